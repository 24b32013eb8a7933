//! Which columns must stay out of the text because they spell, restate or determine the target.
//!
//! Some are known by name alone: the target, the same quantity under another qualifier or unit,
//! identifiers and references. Others show themselves in the values: words of the target's classes,
//! a number that is a straight line of the target, a value that tells the class every time; or in
//! where they are blank: MPEA's calculated modulus is given for single phases alone.

use super::clean::Cell;
use super::columns::{Column, Columns, Role, words};
use super::target::ClassMap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};

/// Words that say how a quantity was got, not which it is.
const QUALIFIERS: [&str; 14] = [
    "exp",
    "experimental",
    "experiment",
    "calculated",
    "calc",
    "computed",
    "measured",
    "estimated",
    "predicted",
    "theoretical",
    "nominal",
    "average",
    "mean",
    "the",
];
/// Other names of one quantity.
const SYNONYMS: [(&str, &str); 20] = [
    ("yield strength", "ys"),
    ("yield stress", "ys"),
    ("proof stress", "ys"),
    ("proof strength", "ys"),
    ("yield strength ys", "ys"),
    ("ultimate tensile strength", "uts"),
    ("tensile strength", "uts"),
    ("ultimate strength", "uts"),
    ("elastic modulus", "young modulus"),
    ("modulus of elasticity", "young modulus"),
    ("vickers hardness", "hv"),
    ("hardness", "hv"),
    ("microstructure", "structure"),
    ("crystal structure", "structure"),
    ("phase", "structure"),
    ("phases", "structure"),
    ("phase type", "structure"),
    ("lattice", "structure"),
    ("crystal system", "structure"),
    ("bcc fcc other", "structure"),
];
/// Words of values that mean nothing by themselves.
const GENERIC: [&str; 9] =
    ["other", "others", "none", "unknown", "sec", "yes", "no", "and", "class"];
/// Words that name crystal structures, as element facts do.
const STRUCTURES: [&str; 14] = [
    "fcc",
    "bcc",
    "hcp",
    "dhcp",
    "cubic",
    "hexagonal",
    "tetragonal",
    "orthorhombic",
    "trigonal",
    "rhombohedral",
    "monoclinic",
    "diamond",
    "b2",
    "structure",
];
/// Rows needed before values are believed to determine the target.
const ENOUGH: u64 = 20;
/// Different values of a column that are remembered.
const REMEMBERED: usize = 1000;

/// A column that is not in the text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Its unified name.
    pub column: String,
    /// Why.
    pub why: String,
}

/// What a quantity is, whoever names it: words without qualifiers and unit, synonyms made one.
fn stem(column: &Column) -> BTreeSet<String> {
    let kept: Vec<String> =
        words(column.base()).filter(|word| !QUALIFIERS.contains(&word.as_str())).collect();
    let joined = kept.join(" ");
    match SYNONYMS.iter().find(|(other, _)| *other == joined) {
        Some((_, name)) => name.split(' ').map(String::from).collect(),
        None => kept.into_iter().collect(),
    }
}

/// The words by which a class target would be recognised in a text, in lower case.
pub fn class_words(classes: &ClassMap) -> BTreeSet<String> {
    classes
        .seen
        .keys()
        .chain(&classes.names)
        .flat_map(|value| words(value).collect::<Vec<_>>())
        .filter(|word| {
            let letters = word.chars().any(char::is_alphabetic);
            letters && word.chars().count() > 1 && !GENERIC.contains(&word.as_str())
        })
        .collect()
}

/// Whether the crystal structures of elements may be named beside this target.
pub fn structures_allowed(target: &Column, class_words: &BTreeSet<String>) -> bool {
    let is_structure = stem(target).contains("structure");
    !is_structure && !STRUCTURES.iter().any(|word| class_words.contains(*word))
}

/// For every column why its name keeps it out of the text, if it does.
pub fn by_name(
    columns: &Columns,
    target: usize,
    class_words: &BTreeSet<String>,
    excluded: &[usize],
) -> Vec<Option<String>> {
    let own = stem(&columns.list[target]);
    columns
        .list
        .iter()
        .enumerate()
        .map(|(i, column)| {
            let other = stem(column);
            let same = !other.is_empty() && (own.is_subset(&other) || other.is_subset(&own));
            let why = if i == target {
                "it is the target"
            } else if column.role == Role::Identifier {
                "it names the row"
            } else if column.role == Role::Reference {
                "it names the source"
            } else if column.role == Role::Formula || matches!(column.role, Role::Element(_)) {
                return None;
            } else if excluded.contains(&i) {
                "dataset.exclude names it"
            } else if same {
                "by its name it is the target's quantity"
            } else if let Some(word) = words(column.base()).find(|word| class_words.contains(word))
            {
                return Some(format!("its name holds {word:?}, a word of the target's classes"));
            } else {
                return None;
            };
            Some(why.to_string())
        })
        .collect()
}

/// What the target of a row is.
#[derive(Clone, Copy, Debug)]
pub enum Truth {
    /// A real number.
    Number(f64),
    /// The index of a class.
    Class(usize),
}

/// What the values of one column have shown.
#[derive(Default)]
struct Shown {
    word: Option<String>,
    line: Line,
    /// Value to (class, rows); None once it does not determine the class.
    classes: Option<HashMap<String, (usize, u64)>>,
    /// Whether some value is no number.
    words: bool,
    /// For each class the rows in which the column is filled, and those in which it is blank.
    filled: Vec<[u64; 2]>,
}

/// Sums for a straight line between a column's number and the target.
#[derive(Default)]
struct Line {
    n: f64,
    first: (f64, f64),
    x: f64,
    y: f64,
    xx: f64,
    yy: f64,
    xy: f64,
}

impl Line {
    fn add(&mut self, x: f64, y: f64) {
        if self.n == 0.0 {
            self.first = (x, y);
        }
        let (x, y) = (x - self.first.0, y - self.first.1);
        self.n += 1.0;
        self.x += x;
        self.y += y;
        self.xx += x * x;
        self.yy += y * y;
        self.xy += x * y;
    }

    /// Whether the numbers lie on a line, up to their rounding.
    fn is_straight(&self) -> bool {
        let (xx, yy) = (self.n * self.xx - self.x * self.x, self.n * self.yy - self.y * self.y);
        let xy = self.n * self.xy - self.x * self.y;
        self.n >= ENOUGH as f64 && xx > 0.0 && yy > 0.0 && xy * xy > (1.0 - 1e-5) * xx * yy
    }
}

/// From this balanced accuracy on, being blank is another way of writing the class.
const TELLING: f64 = 0.95;

/// Watches the values of columns that their names did not exclude.
pub struct Watch {
    columns: Vec<(usize, Shown)>,
    class_words: BTreeSet<String>,
}

impl Watch {
    /// Watches the properties for which `why` holds nothing.
    pub fn new(columns: &Columns, why: &[Option<String>], class_words: BTreeSet<String>) -> Watch {
        let watched = |i: &usize| why[*i].is_none() && columns.list[*i].role == Role::Property;
        let new = || Shown { classes: Some(HashMap::new()), ..Shown::default() };
        let columns = (0..columns.list.len()).filter(watched).map(|i| (i, new())).collect();
        Watch { columns, class_words }
    }

    /// Looks at a row; `truth` is given for training rows alone.
    pub fn add(&mut self, cells: &[Cell], truth: Option<Truth>) {
        for (i, shown) in &mut self.columns {
            let cell = &cells[*i];
            if let Some(Truth::Class(class)) = truth {
                shown.see(class, *cell == Cell::Missing);
            }
            if let (Cell::Text(text), None, false) =
                (cell, &shown.word, self.class_words.is_empty())
            {
                shown.word = words(text).find(|word| self.class_words.contains(word));
            }
            match (truth, cell) {
                (Some(Truth::Number(y)), Cell::Number(x, _)) => shown.line.add(*x, y),
                (Some(Truth::Class(class)), Cell::Number(..) | Cell::Text(_)) => {
                    shown.words |= matches!(cell, Cell::Text(_));
                    shown.class(cell.text(), class);
                }
                _ => {}
            }
        }
    }

    /// Adds what was found to `why`.
    pub fn finish(self, why: &mut [Option<String>]) {
        for (i, shown) in self.columns {
            let found = if let Some(word) = &shown.word {
                format!("its values hold {word:?}, a word of the target's classes")
            } else if shown.line.is_straight() {
                "in the training part it is the target times a constant, or plus one".to_string()
            } else if shown.determines() {
                "in the training part its value tells the class every time".to_string()
            } else if let Some(share) = shown.blanks_tell() {
                let share = 100.0 * share;
                format!(
                    "whether it is filled in tells a class from the others, {share:.1} % of the time"
                )
            } else {
                continue;
            };
            why[i] = Some(found);
        }
    }
}

impl Shown {
    fn see(&mut self, class: usize, blank: bool) {
        if self.filled.len() <= class {
            self.filled.resize(class + 1, [0; 2]);
        }
        self.filled[class][usize::from(blank)] += 1;
    }

    /// The best balanced accuracy with which being filled or blank tells one class from all others,
    /// where it is too good to be a matter of metallurgy.
    fn blanks_tell(&self) -> Option<f64> {
        let total = |at: usize| self.filled.iter().map(|own| own[at]).sum::<u64>();
        let (filled, blank) = (total(0), total(1));
        let told = self.filled.iter().filter_map(|[own, own_blank]| {
            let (n, others) = (own + own_blank, filled + blank - own - own_blank);
            let enough = n >= ENOUGH && others >= ENOUGH;
            let found = *own as f64 / n as f64;
            let rejected = (blank - own_blank) as f64 / others as f64;
            let accuracy = (found + rejected) / 2.0;
            enough.then_some(accuracy.max(1.0 - accuracy))
        });
        told.reduce(f64::max).filter(|share| *share >= TELLING)
    }

    fn class(&mut self, value: &str, class: usize) {
        let Some(known) = &mut self.classes else { return };
        let full = known.len() == REMEMBERED;
        match known.get_mut(value) {
            Some((own, rows)) if *own == class => *rows += 1,
            Some(_) => self.classes = None,
            None if full => self.classes = None,
            None => {
                known.insert(value.to_string(), (class, 1));
            }
        }
    }

    /// Whether every value that occurs more than once told its class, most rows have such a value,
    /// and more than one class is told. Numbers are believed where they are few, as codes are:
    /// measurements of one paper often come with one class.
    fn determines(&self) -> bool {
        let Some(known) = &self.classes else { return false };
        let all: u64 = known.values().map(|(_, rows)| rows).sum();
        let again: Vec<_> = known.values().filter(|(_, rows)| *rows > 1).collect();
        let rows: u64 = again.iter().map(|(_, rows)| rows).sum();
        let classes: BTreeSet<usize> = again.iter().map(|(class, _)| *class).collect();
        let few = self.words || known.len() <= 2 * classes.len();
        rows >= ENOUGH && 2 * rows > all && classes.len() > 1 && few
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::Classes;
    use super::*;
    use csv::StringRecord;
    use std::borrow::Cow;
    use std::collections::BTreeMap;

    fn columns(headers: &[&str]) -> Columns {
        let headers = StringRecord::from(headers.to_vec());
        Columns::unify("t", &headers, &BTreeMap::new(), false).unwrap()
    }

    /// The columns left out for the first one as target, with class words.
    fn named(headers: &[&str], seen: &[&str]) -> Vec<String> {
        let columns = columns(headers);
        let mut map = ClassMap::new(&Classes::Auto);
        seen.iter().for_each(|value| map.see(value).unwrap());
        let why = by_name(&columns, 0, &class_words(&map), &[]);
        why.iter()
            .zip(headers)
            .skip(1)
            .filter(|(w, _)| w.is_some())
            .map(|(_, h)| h.to_string())
            .collect()
    }

    #[test]
    fn the_same_quantity_by_name() {
        let left = named(
            &[
                "PROPERTY: Calculated Young modulus (GPa)",
                "PROPERTY: Exp. Young modulus (GPa)",
                "Young's modulus [MPa]",
                "elastic modulus",
                "YS (MPa)",
                "Calculated Density",
            ],
            &[],
        );
        assert_eq!(
            left,
            ["PROPERTY: Exp. Young modulus (GPa)", "Young's modulus [MPa]", "elastic modulus"]
        );
        let left = named(
            &[
                "YS (MPa)",
                "Yield strength (ksi)",
                "specific YS",
                "UTS (MPa)",
                "HV",
                "doi",
                "id",
                "Type of test",
            ],
            &[],
        );
        assert_eq!(left, ["Yield strength (ksi)", "specific YS", "doi", "id"]);
    }

    #[test]
    fn structures_both_ways() {
        for target in ["PROPERTY: Microstructure", "PROPERTY: BCC/FCC/other"] {
            let other = ["PROPERTY: Microstructure", "PROPERTY: BCC/FCC/other"];
            let other = other.into_iter().find(|name| *name != target).unwrap();
            let headers = [target, other, "Processing method", "is FCC", "Phase"];
            let left = named(&headers, &["FCC", "BCC+Sec.", "other"]);
            assert_eq!(left, [other, "is FCC", "Phase"]);
            let columns = columns(&headers);
            assert!(!structures_allowed(&columns.list[0], &BTreeSet::new()));
            assert!(structures_allowed(&columns.list[2], &BTreeSet::new()));
            assert!(!structures_allowed(&columns.list[2], &BTreeSet::from(["hcp".to_string()])));
        }
    }

    fn number(x: f64) -> Cell<'static> {
        Cell::Number(x, Cow::Owned(x.to_string()))
    }

    #[test]
    fn values_that_restate_a_number() {
        let columns = columns(&["YS (MPa)", "a", "b", "c", "few"]);
        let mut why = by_name(&columns, 0, &BTreeSet::new(), &[]);
        let mut watch = Watch::new(&columns, &why, BTreeSet::new());
        for i in 0..100 {
            let y = f64::from(i * i % 71) + 0.5;
            let few = if i < 10 { number(y) } else { Cell::Missing };
            let cells = [
                number(y),
                number(y / 6.894757),
                number(300.0 - y),
                number(y + f64::from(i % 7)),
                few,
            ];
            watch.add(&cells, Some(Truth::Number(y)));
        }
        watch.finish(&mut why);
        let found: Vec<bool> = why.iter().map(Option::is_some).collect();
        assert_eq!(found, [true, true, true, false, false]);
    }

    #[test]
    fn blanks_that_tell_the_class() {
        let columns = columns(&["kind", "modulus", "hardness"]);
        let mut why = by_name(&columns, 0, &BTreeSet::new(), &[]);
        let mut watch = Watch::new(&columns, &why, BTreeSet::new());
        for i in 0..300 {
            let class = i % 3;
            let given = |filled: bool| if filled { number(f64::from(i)) } else { Cell::Missing };
            let modulus = given(class != 2 && i != 4);
            let hardness = given(class != 2 || i % 4 == 0);
            watch.add(&[Cell::Text("k"), modulus, hardness], Some(Truth::Class(class as usize)));
        }
        watch.finish(&mut why);
        assert!(why[1].as_ref().unwrap().contains("filled in tells a class"), "{why:?}");
        assert_eq!(why[2], None);
    }

    #[test]
    fn values_that_tell_the_class() {
        let columns = columns(&["kind", "code", "notes", "noise", "unique", "one", "digit", "ppm"]);
        let mut why = by_name(&columns, 0, &BTreeSet::new(), &[]);
        let words = BTreeSet::from(["laves".to_string()]);
        let mut watch = Watch::new(&columns, &why, words);
        let unique: Vec<String> = (0..100).map(|i| format!("u{i}")).collect();
        for (i, unique) in unique.iter().enumerate() {
            let class = i % 3;
            let notes = if i == 70 { "with Laves, I think" } else { "nothing" };
            let code = if class == 0 {
                "p"
            } else if class == 1 {
                "q"
            } else {
                "r"
            };
            let noise = if i % 2 == 0 { "x" } else { "y" };
            let cells = [
                Cell::Text(code),
                Cell::Text(code),
                Cell::Text(notes),
                Cell::Text(noise),
                Cell::Text(unique),
                Cell::Text("same"),
                number(class as f64),
                number((i % 30) as f64),
            ];
            // Class words are looked for in every part, classes in the training part alone.
            watch.add(&cells, (i != 70).then_some(Truth::Class(class)));
        }
        watch.finish(&mut why);
        let found: Vec<bool> = why.iter().map(Option::is_some).collect();
        assert_eq!(found, [true, true, true, false, false, false, true, false]);
        assert!(why[2].as_ref().unwrap().contains("\"laves\""));
    }
}
