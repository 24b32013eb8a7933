//! The columns of an alloy table: one way to write their names, what each is for, and finding one
//! by the name a person gives it.
//!
//! Unified names are those of the MPEA table: `FORMULA`, `COMPOSITION: W` for a column of one
//! element, `IDENTIFIER: …` and `REFERENCE: …` for what names a row or its source, and `PROPERTY: …
//! (unit)` for all else. LaTeX in headers is written out.

use super::clean::{Cell, Cleaner};
use super::elements;
use super::formula::Composition;
use super::units::{self, Conversion, absolute_zero, split_unit};
use crate::error::{Error, Result};
use csv::StringRecord;
use std::collections::{BTreeMap, HashMap};

/// The unified name of the column of formulas.
pub const FORMULA: &str = "FORMULA";
const PREFIXES: [&str; 4] = ["PROPERTY: ", "IDENTIFIER: ", "REFERENCE: ", "COMPOSITION: "];
const FORMULA_KEYS: [&str; 6] =
    ["formula", "composition", "alloy", "alloyformula", "alloycomposition", "chemicalformula"];
const ID_KEYS: [&str; 9] =
    ["id", "uid", "index", "no", "rowid", "sampleid", "alloyid", "referenceid", "entryid"];
const REFERENCE_KEYS: [&str; 14] = [
    "doi",
    "url",
    "link",
    "title",
    "reference",
    "references",
    "ref",
    "author",
    "authors",
    "year",
    "journal",
    "source",
    "citation",
    "publication",
];
/// Words that may follow an element's symbol in the header of its column.
const AMOUNT_WORDS: [&str; 14] = [
    "composition",
    "content",
    "fraction",
    "frac",
    "amount",
    "concentration",
    "percent",
    "pct",
    "at",
    "atomic",
    "mol",
    "wt",
    "weight",
    "mass",
];
/// Quantities that cannot be below zero, by words of their names.
const POSITIVE_WORDS: [&str; 11] = [
    "strength",
    "modulus",
    "hardness",
    "density",
    "elongation",
    "ys",
    "uts",
    "hv",
    "size",
    "content",
    "ductility",
];

/// What a column is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The alloy's formula.
    Formula,
    /// The amount of the element with this atomic number.
    Element(u8),
    /// Names the row.
    Identifier,
    /// Names the row's source.
    Reference,
    /// Anything measured or stated about the alloy.
    Property,
}

/// One column.
#[derive(Clone, Debug)]
pub struct Column {
    /// As the file has it, without white space around it.
    pub header: String,
    /// Its unified name, unit included.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its canonical unit, where the name states one.
    pub unit: Option<String>,
    /// From the unit of the header to that of the name the user maps it to.
    pub conversion: Option<Conversion>,
    /// The least value that is physically possible.
    pub least: Option<f64>,
}

impl Column {
    /// The name without prefix and unit: `Calculated Young modulus`.
    pub fn base(&self) -> &str {
        base_name(&self.name)
    }
}

/// A name without its prefix and unit.
pub fn base_name(name: &str) -> &str {
    split_unit(without_prefix(name)).0
}

/// A name without `PROPERTY:` or the like; case of the prefix does not matter.
pub fn without_prefix(name: &str) -> &str {
    let name = name.trim();
    for prefix in PREFIXES {
        let bare = prefix.trim_end();
        if name.get(..bare.len()).is_some_and(|start| start.eq_ignore_ascii_case(bare)) {
            return name[bare.len()..].trim();
        }
    }
    name
}

/// What names are compared by: no prefix, unit, case, white space or signs.
pub fn match_key(name: &str) -> String {
    let cleaned = without_latex(name);
    let base = base_name(&cleaned);
    let key: String =
        base.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    if key.is_empty() { base.to_lowercase() } else { key }
}

/// The words of a name in lower case, signs between them left out.
pub fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    let parts = text.split(|c: char| !c.is_alphanumeric() && c != '\'' && c != '’');
    parts.filter(|word| !word.is_empty()).map(|word| {
        let word = word.to_lowercase();
        word.strip_suffix("'s").or(word.strip_suffix("’s")).map(String::from).unwrap_or(word)
    })
}

/// `($^\circ$C)` to `(°C)`, and one space where there are several.
fn without_latex(header: &str) -> String {
    let mut text = header.to_string();
    for (latex, plain) in [
        ("\\mu", "µ"),
        ("^\\circ", "°"),
        ("\\circ", "°"),
        ("^3", "³"),
        ("^2", "²"),
        ("^{3}", "³"),
        ("$", ""),
        ("\\", ""),
    ] {
        if text.contains(latex) {
            text = text.replace(latex, plain);
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// All columns of a table.
#[derive(Clone, Debug)]
pub struct Columns {
    /// The file as the user named it.
    pub file: String,
    /// In the order of the file.
    pub list: Vec<Column>,
    /// The column of formulas.
    formula: Option<usize>,
    /// Columns of single elements.
    elements: Vec<(usize, u8)>,
    by_weight: bool,
}

/// A column that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its place in the row.
    pub index: usize,
    /// What to say where the name is not exactly the column's.
    pub note: Option<String>,
}

impl Columns {
    /// Unifies a table's headers. `mapped` is `dataset.columns`; where `all_mapped`, each of its
    /// headers must be there. Two columns of one unified name are a data error.
    pub fn unify(
        file: &str,
        headers: &StringRecord,
        mapped: &BTreeMap<String, String>,
        all_mapped: bool,
    ) -> Result<Columns> {
        let mut list: Vec<Column> = Vec::with_capacity(headers.len());
        for (i, header) in headers.iter().enumerate() {
            let header = header.trim();
            let given = mapped.iter().find(|(own, _)| own.trim() == header);
            let column = match given {
                Some((_, name)) => mapped_column(header, name)
                    .map_err(|e| e.at(format!("dataset.columns.{header}")))?,
                None => plain_column(header, i),
            };
            list.push(column);
        }
        if all_mapped {
            let known: Vec<&str> = headers.iter().map(str::trim).collect();
            if let Some(absent) = mapped.keys().find(|own| !known.contains(&own.trim())) {
                return Err(no_column(absent, &known, file).at("dataset.columns"));
            }
        }
        settle_elements(&mut list);
        let mut seen: HashMap<&str, &str> = HashMap::new();
        for column in &list {
            if let Some(other) = seen.insert(&column.name, &column.header) {
                let what = if other == column.header {
                    format!("two columns are called {other:?}")
                } else {
                    format!(
                        "the columns {other:?} and {:?} are both {:?}",
                        column.header, column.name
                    )
                };
                return Err(Error::data(what)
                    .at(format!("{file}:1"))
                    .hint("give one of them another name in dataset.columns, or in the file"));
            }
        }
        let formula = list.iter().position(|c| c.role == Role::Formula);
        let elements: Vec<(usize, u8)> = list
            .iter()
            .enumerate()
            .filter_map(|(i, c)| match c.role {
                Role::Element(number) => Some((i, number)),
                _ => None,
            })
            .collect();
        let first = formula.or(elements.first().map(|(i, _)| *i));
        let by_weight =
            first.is_some_and(|i| is_weight(&list[i].header) || is_weight(&list[i].name));
        Ok(Columns { file: file.to_string(), list, formula, elements, by_weight })
    }

    /// Finds a column by its header or unified name; else by what is left without prefix, unit, case
    /// and spaces, if that is unique. Otherwise a usage error with the nearest names.
    pub fn find(&self, name: &str) -> Result<Found> {
        let name = name.trim();
        let exact = |c: &Column| c.name == name || c.header == name;
        if let Some(index) = self.list.iter().position(exact) {
            return Ok(Found { index, note: None });
        }
        let key = match_key(name);
        let alike: Vec<usize> = (0..self.list.len())
            .filter(|i| {
                match_key(&self.list[*i].name) == key || match_key(&self.list[*i].header) == key
            })
            .collect();
        match alike[..] {
            [index] => {
                let note = format!("{name:?} is taken as {:?}", self.list[index].name);
                Ok(Found { index, note: Some(note) })
            }
            [] => {
                let mut known: Vec<&str> = self.list.iter().map(|c| c.name.as_str()).collect();
                let headers = self.list.iter().map(|c| c.header.as_str());
                known.extend(headers.filter(|h| !self.list.iter().any(|c| c.name == *h)));
                Err(no_column(name, &known, &self.file))
            }
            _ => {
                let names: Vec<String> =
                    alike.iter().map(|i| format!("{:?}", self.list[*i].name)).collect();
                Err(Error::usage(format!("{name:?} could be {}", names.join(" or ")))
                    .hint("write the whole name"))
            }
        }
    }

    /// Whether any column says what the alloy is made of.
    pub fn have_composition(&self) -> bool {
        self.formula.is_some() || !self.elements.is_empty()
    }

    /// The column of formulas.
    pub fn formula(&self) -> Option<usize> {
        self.formula
    }

    /// The composition of a row, None where it is blank. Without a column of formulas it comes from
    /// the columns of elements, where blank means 0.
    pub fn composition(
        &self,
        row: &StringRecord,
        cleaner: &Cleaner,
    ) -> Result<Option<Composition>> {
        if let Some(index) = self.formula {
            let text = row.get(index).unwrap_or_default().trim();
            if cleaner.is_missing(text) {
                return Ok(None);
            }
            return Composition::parse(text, self.by_weight).map(Some);
        }
        let mut amounts = Vec::with_capacity(self.elements.len());
        let mut blank = true;
        for (index, number) in &self.elements {
            let text = row.get(*index).unwrap_or_default();
            match cleaner.clean(&self.list[*index], text).0 {
                Cell::Missing => continue,
                Cell::Number(amount, _) => amounts.push((*number, amount)),
                Cell::Text(text) => {
                    return Err(Error::data(format!("the amount {text:?} is not a number"))
                        .at(&self.list[*index].header));
                }
            }
            blank = false;
        }
        if blank {
            return Ok(None);
        }
        if self.by_weight {
            elements::weight_to_atomic(&mut amounts)?;
        }
        Composition::from_amounts(amounts).map(Some)
    }
}

/// The error for a name that no column has, with the nearest ones.
fn no_column(name: &str, known: &[&str], file: &str) -> Error {
    let near = nearest_names(name, known);
    let error = Error::usage(format!("{file} has no column {name:?}"));
    match near.is_empty() {
        false => error.hint(format!("did you mean {}?", near.join(" or "))),
        true => error.hint(format!("the columns are {}", known.join(", "))),
    }
}

/// Up to three names that one could have meant: containing or contained, or a few letters away.
fn nearest_names(name: &str, known: &[&str]) -> Vec<String> {
    let key = match_key(name);
    let mut near: Vec<(usize, &str)> = known
        .iter()
        .filter_map(|other| {
            let own = match_key(other);
            let inside =
                key.len() > 2 && own.len() > 2 && (own.contains(&key) || key.contains(&own));
            let distance = strsim::damerau_levenshtein(&key, &own);
            (inside || distance <= 1 + key.len().max(own.len()) / 4).then_some((distance, *other))
        })
        .collect();
    near.sort();
    near.dedup();
    near.into_iter().take(3).map(|(_, other)| format!("{other:?}")).collect()
}

/// A column that the user maps: its name as given, and the conversion to its unit.
fn mapped_column(header: &str, name: &str) -> Result<Column> {
    let mut column = named_column(header, &without_latex(name));
    let written = without_latex(header);
    let from = split_unit(&written).1.map(units::canonical);
    if let (Some(from), Some(to)) = (from, &column.unit)
        && from != *to
    {
        column.conversion = Some(Conversion::between(&from, to).ok_or_else(|| {
            Error::usage(format!("{from} cannot be converted to {to}"))
                .hint("give the name the unit that the header has")
        })?);
    }
    Ok(column)
}

/// A column as its own header names it.
fn plain_column(header: &str, place: usize) -> Column {
    if header.is_empty() {
        // What pandas writes for its index.
        return named_column(header, &format!("IDENTIFIER: column {}", place + 1));
    }
    named_column(header, &without_latex(header))
}

fn named_column(header: &str, name: &str) -> Column {
    let (base, unit) = split_unit(without_prefix(name));
    let unit = unit.map(units::canonical);
    let key = match_key(name);
    let starts = |prefix: &str| {
        let bare = prefix.trim_end();
        name.get(..bare.len()).is_some_and(|start| start.eq_ignore_ascii_case(bare))
    };
    let prefixed = PREFIXES.iter().position(|prefix| starts(prefix));
    let role = match prefixed {
        Some(0) => Role::Property,
        Some(1) => Role::Identifier,
        Some(2) => Role::Reference,
        Some(_) => element_column(base, None).map_or(Role::Property, Role::Element),
        None if FORMULA_KEYS.contains(&key.as_str()) => Role::Formula,
        None if ID_KEYS.contains(&key.as_str()) || key.starts_with("unnamed") => Role::Identifier,
        None if REFERENCE_KEYS.contains(&key.as_str()) => Role::Reference,
        None => element_column(base, unit.as_deref()).map_or(Role::Property, Role::Element),
    };
    let bare = match &unit {
        Some(unit) => format!("{base} ({unit})"),
        None => base.to_string(),
    };
    let name = match role {
        Role::Formula => FORMULA.to_string(),
        Role::Element(number) => format!("{}{}", PREFIXES[3], elements::get(number).symbol),
        Role::Property => format!("{}{bare}", PREFIXES[0]),
        Role::Identifier => format!("{}{bare}", PREFIXES[1]),
        Role::Reference => format!("{}{bare}", PREFIXES[2]),
    };
    let positive = || words(base).any(|word| POSITIVE_WORDS.contains(&word.as_str()));
    let coldest = unit.as_deref().and_then(absolute_zero);
    let least = coldest.or_else(|| (role == Role::Property && positive()).then_some(0.0));
    Column { header: header.to_string(), name, role, unit, conversion: None, least }
}

/// The element of a header such as `W`, `W composition`, `W_at%`; None for parts per million, which
/// are impurities beside the composition.
fn element_column(base: &str, unit: Option<&str>) -> Option<u8> {
    if unit.is_some_and(|unit| unit.to_lowercase().contains("ppm")) {
        return None;
    }
    let mut parts = base.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let number = elements::number(parts.next()?)?;
    parts.all(|word| AMOUNT_WORDS.contains(&word.to_lowercase().as_str())).then_some(number)
}

/// A single column of one letter is no composition: two or more are, unless the name says so.
fn settle_elements(list: &mut [Column]) {
    let count = list.iter().filter(|c| matches!(c.role, Role::Element(_))).count();
    if count != 1 {
        return;
    }
    for column in list.iter_mut().filter(|c| matches!(c.role, Role::Element(_))) {
        column.role = Role::Property;
        column.name = format!("{}{}", PREFIXES[0], without_latex(&column.header));
    }
}

fn is_weight(name: &str) -> bool {
    words(name).any(|word| ["wt", "weight", "mass"].contains(&word.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unify(headers: &[&str], mapped: &[(&str, &str)]) -> Result<Columns> {
        let mapped = mapped.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
        Columns::unify("t.csv", &StringRecord::from(headers.to_vec()), &mapped, true)
    }

    fn names(headers: &[&str]) -> Vec<String> {
        unify(headers, &[]).unwrap().list.into_iter().map(|c| c.name).collect()
    }

    #[test]
    fn headers_become_one_way_of_writing() {
        let found = names(&[
            "",
            "IDENTIFIER: Reference ID",
            "formula",
            "PROPERTY: grain size ($\\mu$m)",
            "PROPERTY: Test temperature ($^\\circ$C)",
            "property:Exp. Density (g/cm$^3$)",
            "Yield  Strength [mpa]",
            "doi",
            "PROPERTY: O content (wppm)",
            "C content (wppm)",
        ]);
        assert_eq!(
            found,
            [
                "IDENTIFIER: column 1",
                "IDENTIFIER: Reference ID",
                "FORMULA",
                "PROPERTY: grain size (µm)",
                "PROPERTY: Test temperature (°C)",
                "PROPERTY: Exp. Density (g/cm³)",
                "PROPERTY: Yield Strength (MPa)",
                "REFERENCE: doi",
                "PROPERTY: O content (wppm)",
                "PROPERTY: C content (wppm)",
            ]
        );
    }

    #[test]
    fn element_columns_make_a_composition() {
        let columns = unify(&["W", "Nb composition", "C_at%", "YS"], &[]).unwrap();
        assert_eq!(columns.elements, [(0, 74), (1, 41), (2, 6)]);
        let cleaner = Cleaner::new(&[], b',');
        let row = |fields: [&str; 4]| StringRecord::from(fields.to_vec());
        let found = columns.composition(&row(["1", "3", "", "9"]), &cleaner).unwrap().unwrap();
        assert_eq!(found.elements, [(74, 0.25), (41, 0.75)]);
        assert_eq!(columns.composition(&row(["", "", "", "9"]), &cleaner).unwrap(), None);
        let error = columns.composition(&row(["bal", "", "", "9"]), &cleaner).unwrap_err();
        assert!(error.to_string().contains("W: the amount \"bal\" is not a number"), "{error}");
        let weight = unify(&["Al (wt.%)", "W (wt.%)"], &[]).unwrap();
        let row = StringRecord::from(vec!["26.982", "183.84"]);
        let found = weight.composition(&row, &cleaner).unwrap().unwrap();
        assert!((found.elements[0].1 - 0.5).abs() < 1e-12);
        // One letter alone is no composition.
        assert_eq!(names(&["C", "YS"]), ["PROPERTY: C", "PROPERTY: YS"]);
    }

    #[test]
    fn own_headers_are_mapped_and_units_converted() {
        let mapped = [("comp", "FORMULA"), ("sigma [GPa]", "YS (MPa)")];
        let columns = unify(&["comp", "sigma [GPa]"], &mapped).unwrap();
        assert_eq!(columns.formula(), Some(0));
        assert_eq!(columns.list[1].name, "PROPERTY: YS (MPa)");
        assert_eq!(columns.list[1].conversion.unwrap().apply(1.5), 1500.0);
        let error = unify(&["a (K)"], &[("a (K)", "b (MPa)")]).unwrap_err();
        assert!(error.to_string().contains("dataset.columns.a (K): K cannot be converted to MPa"));
        let error = unify(&["comp"], &[("cmp", "FORMULA")]).unwrap_err();
        assert_eq!(error.code(), 2);
        assert!(error.to_string().contains("no column \"cmp\""), "{error}");
        assert!(error.to_string().contains("did you mean \"comp\"?"), "{error}");
    }

    #[test]
    fn one_name_for_two_columns_is_refused() {
        for (headers, expected) in [
            (["YS (MPa)", "YS (MPa)"], "two columns are called \"YS (MPa)\""),
            (["formula", "Composition"], "\"formula\" and \"Composition\" are both \"FORMULA\""),
        ] {
            let error = unify(&headers, &[]).unwrap_err();
            assert_eq!(error.code(), 3);
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn names_are_found() {
        let columns = unify(
            &[
                "FORMULA",
                "PROPERTY: YS (MPa)",
                "PROPERTY: Exp. Young modulus (GPa)",
                "PROPERTY: Calculated Young modulus (GPa)",
                "x (K)",
                "x (MPa)",
            ],
            &[],
        )
        .unwrap();
        assert_eq!(columns.find("PROPERTY: YS (MPa)").unwrap(), Found { index: 1, note: None });
        for name in ["YS", "ys (mpa)", "property: Y S", "PROPERTY: YS"] {
            let found = columns.find(name).unwrap();
            assert_eq!(found.index, 1);
            let said = found.note.unwrap();
            assert!(said.ends_with("is taken as \"PROPERTY: YS (MPa)\""), "{said}");
        }
        let refused = |name: &str| {
            let error = columns.find(name).unwrap_err();
            assert_eq!(error.code(), 2);
            error.to_string()
        };
        assert!(
            refused("x").contains("\"x\" could be \"PROPERTY: x (K)\" or \"PROPERTY: x (MPa)\"")
        );
        let said = refused("Young modulus");
        assert!(
            said.contains("t.csv has no column") && said.contains("Exp. Young modulus"),
            "{said}"
        );
        assert!(said.contains("Calculated Young modulus"), "{said}");
        assert!(
            refused("UTSS").contains("the columns are") || refused("UTSS").contains("did you mean")
        );
    }

    #[test]
    fn what_is_least() {
        let columns =
            unify(&["YS (MPa)", "T (K)", "T2 ($^\\circ$C)", "residual stress (MPa)"], &[]).unwrap();
        let least: Vec<Option<f64>> = columns.list.iter().map(|c| c.least).collect();
        assert_eq!(least, [Some(0.0), Some(0.0), Some(-273.15), None]);
    }
}
