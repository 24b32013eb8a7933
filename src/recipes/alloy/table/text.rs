//! From a row to its text.
//!
//! A [`TextPlan`] says which columns enter and in which words; it is made by `prepare`, stored
//! beside the samples and in checkpoints, and makes the same text of the same row at prediction.
//! What matters most stands first, since long texts are cut at the end. A missing value has no
//! sentence.

use super::clean::{Cell, Cleaner};
use super::columns::{Column, Columns, Role, base_name, match_key, without_prefix};
use super::config::{AlloyDataset, Style, TextSection};
use super::elements;
use super::formula::Composition;
use super::leak::LeftOut;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Names in a template that are no columns.
const COMPOSITION: &str = "composition";
const ELEMENTS: &str = "elements";

/// Everything that makes texts of rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextPlan {
    /// Style, template, element facts.
    pub text: TextSection,
    /// Unified names of the columns that enter, in the order of the table.
    pub kept: Vec<String>,
    /// The columns that do not, and why.
    pub left_out: Vec<LeftOut>,
    /// Whether element facts may name crystal structures.
    pub structures: bool,
    /// `dataset.columns`.
    pub columns: BTreeMap<String, String>,
    /// `dataset.missing`.
    pub missing: Vec<String>,
    /// `dataset.id_column_name`.
    pub id_column_name: Option<String>,
}

impl TextPlan {
    /// The plan for a table of which `why` says what is left out.
    pub fn new(
        columns: &Columns,
        why: &[Option<String>],
        structures: bool,
        own: &AlloyDataset,
        text: &TextSection,
    ) -> TextPlan {
        let with =
            |kept: bool| columns.list.iter().zip(why).filter(move |(_, why)| why.is_none() == kept);
        TextPlan {
            text: text.clone(),
            kept: with(true).map(|(column, _)| column.name.clone()).collect(),
            left_out: with(false)
                .map(|(column, why)| LeftOut {
                    column: column.name.clone(),
                    why: why.clone().unwrap_or_default(),
                })
                .collect(),
            structures,
            columns: own.columns.clone(),
            missing: own.missing.clone(),
            id_column_name: own.id_column_name.clone(),
        }
    }
}

/// How a column's value is told.
enum Telling {
    /// These words around it.
    Around(String, String),
    /// Words for known values, and words around any other.
    Words(&'static [(&'static str, &'static str)], String, String),
}

/// A part of a text.
enum Piece {
    /// A column's sentence.
    Column(usize, Telling),
    /// The formula or, where there is none, nothing.
    Formula(usize),
    /// The composition in atomic percent.
    Composition,
    /// A sentence on each element.
    Elements,
    /// A sentence of the user's, in fragments.
    Sentence(Vec<Fragment>),
}

/// A part of a sentence of the user's.
enum Fragment {
    Words(String),
    Column(usize),
    /// A column that this table lacks.
    Absent,
    Composition,
    Elements,
}

/// Makes the texts of one table.
pub struct TextMaker {
    pieces: Vec<Piece>,
    /// A sentence for every element, by atomic number.
    facts: Vec<String>,
}

const PROCESSING: &[(&str, &str)] = &[
    ("CAST", "It was cast. "),
    ("WROUGHT", "It was wrought. "),
    ("POWDER", "It was made from powder. "),
    ("ANNEAL", "It was annealed. "),
    ("OTHER", "It was processed in another way. "),
];
const TEST: &[(&str, &str)] =
    &[("C", "It was tested in compression. "), ("T", "It was tested in tension. ")];
/// What known properties are called in sentences.
const NAMES: &[(&str, &str)] = &[
    ("ys", "yield strength"),
    ("uts", "ultimate tensile strength"),
    ("hv", "Vickers hardness"),
    ("expdensity", "measured density"),
    ("calculateddensity", "calculated density"),
    ("expyoungmodulus", "measured Young's modulus"),
    ("calculatedyoungmodulus", "calculated Young's modulus"),
    ("microstructure", "microstructure"),
    ("bccfccother", "crystal structure class"),
    ("elongation", "elongation"),
    ("elongationplastic", "plastic elongation"),
    ("ocontent", "oxygen content"),
    ("ncontent", "nitrogen content"),
    ("ccontent", "carbon content"),
    ("testtemperature", "test temperature"),
];

impl TextMaker {
    /// For a table with these columns; those of the plan that it lacks count as missing and are
    /// returned. A template that names no column, or one that is left out, is a usage error.
    pub fn new(plan: &TextPlan, columns: &Columns) -> Result<(TextMaker, Vec<String>)> {
        let place = |name: &String| columns.list.iter().position(|c| c.name == *name);
        let absent: Vec<String> =
            plan.kept.iter().filter(|name| place(name).is_none()).cloned().collect();
        let kept: Vec<usize> = plan.kept.iter().filter_map(place).collect();
        let facts = elements::all()
            .iter()
            .map(|element| elements::sentence(element, plan.structures) + " ")
            .collect();
        let pieces = match plan.text.style {
            Style::Simple => simple(columns, &kept),
            Style::Elaborate => elaborate(columns, &kept, plan.text.element_facts),
            Style::Template => template(plan, columns)?,
        };
        Ok((TextMaker { pieces, facts }, absent))
    }

    /// Writes the text of a row, whose cells are cleaned, over `out`.
    pub fn write(&self, cells: &[Cell], composition: Option<&Composition>, out: &mut String) {
        out.clear();
        for piece in &self.pieces {
            match piece {
                Piece::Column(index, telling) => tell(&cells[*index], telling, out),
                Piece::Formula(index) => match &cells[*index] {
                    Cell::Missing => {}
                    cell => {
                        out.push_str("The alloy is ");
                        out.push_str(cell.text());
                        out.push_str(". ");
                    }
                },
                Piece::Composition => {
                    if let Some(composition) = composition {
                        out.push_str("In atomic percent it is ");
                        percent(composition, out);
                        out.push_str(". ");
                    }
                }
                Piece::Elements => self.elements(composition, out),
                Piece::Sentence(fragments) => self.sentence(fragments, cells, composition, out),
            }
        }
        out.truncate(out.trim_end().len());
    }

    fn elements(&self, composition: Option<&Composition>, out: &mut String) {
        for (number, _) in composition.iter().flat_map(|c| &c.elements) {
            out.push_str(&self.facts[usize::from(*number) - 1]);
        }
    }

    /// A sentence of the user's, or nothing where something in it is missing.
    fn sentence(
        &self,
        fragments: &[Fragment],
        cells: &[Cell],
        composition: Option<&Composition>,
        out: &mut String,
    ) {
        let start = out.len();
        for fragment in fragments {
            match (fragment, composition) {
                (Fragment::Words(words), _) => out.push_str(words),
                (Fragment::Column(index), _) if cells[*index] != Cell::Missing => {
                    out.push_str(cells[*index].text());
                }
                (Fragment::Composition, Some(composition)) => percent(composition, out),
                (Fragment::Elements, Some(_)) => {
                    self.elements(composition, out);
                    out.truncate(out.trim_end().len());
                }
                _ => {
                    out.truncate(start);
                    return;
                }
            }
        }
        out.push(' ');
    }
}

fn tell(cell: &Cell, telling: &Telling, out: &mut String) {
    if *cell == Cell::Missing {
        return;
    }
    let text = cell.text();
    let (before, behind) = match telling {
        Telling::Around(before, behind) => (before, behind),
        Telling::Words(known, before, behind) => {
            if let Some((_, words)) =
                known.iter().find(|(value, _)| value.eq_ignore_ascii_case(text))
            {
                out.push_str(words);
                return;
            }
            (before, behind)
        }
    };
    out.push_str(before);
    out.push_str(text);
    out.push_str(behind);
}

/// `Al 7.7, Co 30.8, Fe 30.8, Ni 30.8`
fn percent(composition: &Composition, out: &mut String) {
    for (i, (number, fraction)) in composition.elements.iter().enumerate() {
        let comma = if i > 0 { ", " } else { "" };
        let tenths = (fraction * 1000.0).round() / 10.0;
        // Writing to a String cannot fail.
        let _ = write!(out, "{comma}{} {tenths}", elements::get(*number).symbol);
    }
}

/// `name: value. ` for each column, names without prefix.
fn simple(columns: &Columns, kept: &[usize]) -> Vec<Piece> {
    let piece = |index: &usize| {
        let name = without_prefix(&columns.list[*index].name);
        Piece::Column(*index, Telling::Around(format!("{name}: "), ". ".into()))
    };
    kept.iter().map(piece).collect()
}

/// Composition, processing, test, other properties in the table's order, elements.
fn elaborate(columns: &Columns, kept: &[usize], facts: bool) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let formula = columns.formula().filter(|index| kept.contains(index));
    pieces.extend(formula.map(Piece::Formula));
    pieces.push(Piece::Composition);
    let rank = |index: usize| match match_key(&columns.list[index].name).as_str() {
        "processingmethod" | "processing" | "process" => 0,
        "typeoftest" => 1,
        "testtemperature" | "temperature" => 2,
        _ => 3,
    };
    let mut properties: Vec<usize> =
        kept.iter().copied().filter(|i| columns.list[*i].role == Role::Property).collect();
    properties.sort_by_key(|index| rank(*index));
    for index in properties {
        let column = &columns.list[index];
        let telling = match rank(index) {
            0 => Telling::Words(PROCESSING, "It was processed by ".into(), ". ".into()),
            1 => Telling::Words(TEST, "It was tested by ".into(), ". ".into()),
            _ => property(column),
        };
        pieces.push(Piece::Column(index, telling));
    }
    if facts {
        pieces.push(Piece::Elements);
    }
    pieces
}

/// `Its measured density is 7.9 g/cm³. `
fn property(column: &Column) -> Telling {
    let key = match_key(&column.name);
    let name = NAMES.iter().find(|(known, _)| *known == key).map(|(_, name)| *name);
    let unit = column.unit.as_ref().map(|unit| format!(" {unit}")).unwrap_or_default();
    let name = name.unwrap_or_else(|| base_name(&column.name));
    Telling::Around(format!("Its {name} is "), format!("{unit}. "))
}

/// The sentences of the user's template.
fn template(plan: &TextPlan, columns: &Columns) -> Result<Vec<Piece>> {
    let sentence = |(i, text): (usize, &String)| {
        fragments(text, plan, columns)
            .map(Piece::Sentence)
            .map_err(|e| e.at(format!("text.template[{i}]")))
    };
    plan.text.template.iter().enumerate().map(sentence).collect()
}

fn fragments(text: &str, plan: &TextPlan, columns: &Columns) -> Result<Vec<Fragment>> {
    let mut fragments = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        let (words, behind) = rest.split_at(open);
        fragments.push(Fragment::Words(words.to_string()));
        let Some((name, after)) = behind[1..].split_once('}') else {
            return Err(Error::usage(format!("a {{ is not closed in {text:?}"))
                .hint("columns stand in braces: \"The alloy is {FORMULA}.\""));
        };
        rest = after;
        fragments.push(match name.trim() {
            COMPOSITION => Fragment::Composition,
            ELEMENTS => Fragment::Elements,
            name => template_column(name, plan, columns)?,
        });
    }
    fragments.push(Fragment::Words(rest.to_string()));
    Ok(fragments)
}

/// The column that a template names, unless the plan leaves it out.
fn template_column(name: &str, plan: &TextPlan, columns: &Columns) -> Result<Fragment> {
    let index = match columns.find(name) {
        Ok(found) => found.index,
        // A new table may lack a column that the training table had.
        Err(_) if plan.kept.iter().any(|kept| match_key(kept) == match_key(name)) => {
            return Ok(Fragment::Absent);
        }
        Err(error) => return Err(error),
    };
    let column = &columns.list[index].name;
    match plan.left_out.iter().find(|left| left.column == *column) {
        Some(left) => Err(Error::usage(format!("{column:?} may not enter the text: {}", left.why))
            .hint("take it out of the template")),
        None => Ok(Fragment::Column(index)),
    }
}

/// The cells of a row, cleaned, as [`TextMaker::write`] needs them.
pub fn cells<'a>(
    columns: &Columns,
    cleaner: &Cleaner,
    row: &'a csv::StringRecord,
) -> Vec<Cell<'a>> {
    columns.list.iter().zip(row).map(|(column, text)| cleaner.clean(column, text).0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use csv::StringRecord;

    const HEADERS: [&str; 9] = [
        "FORMULA",
        "PROPERTY: Processing method",
        "PROPERTY: Type of test",
        "PROPERTY: Test temperature ($^\\circ$C)",
        "PROPERTY: Exp. Density (g/cm$^3$)",
        "PROPERTY: YS (MPa)",
        "PROPERTY: Microstructure",
        "REFERENCE: doi",
        "fatigue limit",
    ];

    fn make(
        text: &TextSection,
        left_out: &[usize],
        structures: bool,
        row: [&str; 9],
    ) -> Result<String> {
        let columns =
            Columns::unify("t", &StringRecord::from(HEADERS.to_vec()), &BTreeMap::new(), false)?;
        let mut why = vec![None; 9];
        left_out.iter().for_each(|i| why[*i] = Some("a test says so".to_string()));
        let plan = TextPlan::new(&columns, &why, structures, &AlloyDataset::default(), text);
        // What a checkpoint stores makes the same text.
        let plan: TextPlan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
        let (maker, absent) = TextMaker::new(&plan, &columns)?;
        assert!(absent.is_empty());
        let row = StringRecord::from(row.to_vec());
        let cleaner = Cleaner::new(&plan.missing, b',');
        let composition = columns.composition(&row, &cleaner)?;
        let mut out = String::new();
        maker.write(&cells(&columns, &cleaner, &row), composition.as_ref(), &mut out);
        Ok(out)
    }

    const ROW: [&str; 9] =
        ["Al0.25 Co1 Fe1 Ni1", "CAST", "C", "25.0", "", "158.0", "FCC", "10.1/x", "nan"];

    #[test]
    fn simple_style() {
        let text = TextSection { style: Style::Simple, ..TextSection::default() };
        assert_eq!(
            make(&text, &[5, 7], true, ROW).unwrap(),
            "FORMULA: Al0.25 Co1 Fe1 Ni1. Processing method: CAST. Type of test: C. Test temperature \
             (°C): 25. Microstructure: FCC."
        );
    }

    #[test]
    fn elaborate_style() {
        let mut text = TextSection { element_facts: false, ..TextSection::default() };
        assert_eq!(
            make(&text, &[5, 7], true, ROW).unwrap(),
            "The alloy is Al0.25 Co1 Fe1 Ni1. In atomic percent it is Al 7.7, Co 30.8, Fe 30.8, Ni \
             30.8. It was cast. It was tested in compression. Its test temperature is 25 °C. Its \
             microstructure is FCC."
        );
        let row = ["W1", "spraying", "bending", "", "19", "7", "", "", "80.50"];
        text.element_facts = true;
        let made = make(&text, &[7], false, row).unwrap();
        assert_eq!(
            made,
            "The alloy is W1. In atomic percent it is W 100. It was processed by spraying. It was \
             tested by bending. Its measured density is 19 g/cm³. Its yield strength is 7 MPa. Its \
             fatigue limit is 80.5. Tungsten (W): atomic number 74, atomic mass 183.84 u, density \
             19.25 g/cm³, melting point 3695 K, Young's modulus 411 GPa."
        );
        assert!(make(&text, &[7], true, row).unwrap().contains("BCC crystal structure"));
    }

    #[test]
    fn templates() {
        let own = |sentences: &[&str]| TextSection {
            style: Style::Template,
            template: sentences.iter().map(|s| s.to_string()).collect(),
            ..TextSection::default()
        };
        let text = own(&[
            "{FORMULA} ({composition}) at {test temperature} C.",
            "Density {Exp. Density}.",
            "{elements}",
        ]);
        let made = make(&text, &[5], true, ROW).unwrap();
        assert!(
            made.starts_with(
                "Al0.25 Co1 Fe1 Ni1 (Al 7.7, Co 30.8, Fe 30.8, Ni 30.8) at 25 C. Aluminium (Al): "
            ),
            "{made}"
        );
        assert!(made.ends_with("Young's modulus 200 GPa."), "{made}");
        for (sentence, expected) in [
            (
                "{YS}",
                "text.template[0]: \"PROPERTY: YS (MPa)\" may not enter the text: a test says so",
            ),
            ("{fatigue}", "did you mean \"PROPERTY: fatigue limit\""),
            ("{FORMULA", "a { is not closed"),
        ] {
            let error = make(&own(&[sentence]), &[5], true, ROW).unwrap_err();
            assert_eq!(error.code(), 2);
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
