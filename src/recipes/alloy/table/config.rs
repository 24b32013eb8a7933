//! The recipe's own keys of the configuration: in `dataset`, beside the shared ones, and `text`.

use super::columns::{base_name, match_key};
use crate::config::UserPath;
use crate::error::{Error, Result};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Short names of targets that the program makes itself begin so, as those of the seed do.
const SHORT: &str = "all_data_";

/// The recipe's own keys of section `dataset`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlloyDataset {
    /// The table's header to the unified name (`FORMULA`, `PROPERTY: YS (MPa)`) that it gets. A unit
    /// that differs from the header's own is converted to.
    pub columns: BTreeMap<String, String>,
    /// Targets that `prepare` makes: short name, which becomes file names, to column.
    pub targets: BTreeMap<String, String>,
    /// The target that is trained: a short name of `targets`, or a column; null: the only one.
    pub target: Option<String>,
    /// What makes a target a class; null: a regression.
    pub classes: Option<Classes>,
    /// A column of unique ids; null: rows are numbered from 1.
    pub id_column_name: Option<String>,
    /// What is kept in one part by the split.
    pub split: SplitBy,
    /// Further columns that never enter the text.
    pub exclude: Vec<String>,
    /// Words that mean that a value is missing, as an empty cell does; case does not matter.
    pub missing: Vec<String>,
    /// Which values of a numeric target are too far away to be kept.
    pub outliers: Outliers,
    /// How a numeric target is normalised, from the training part alone.
    pub normalization: Normalization,
    /// Where prepared data go.
    pub prepared_dir: UserPath,
    /// Ready samples (CSV or JSON lines with `text`, `target`, `target_raw`) instead of a table.
    pub train_data: Option<UserPath>,
    /// Ready samples for validation.
    pub val_data: Option<UserPath>,
    /// Ready samples for the test.
    pub test_data: Option<UserPath>,
}

impl Default for AlloyDataset {
    fn default() -> Self {
        let words = ["nan", "na", "n/a", "none", "null", "-", "--", "?"];
        AlloyDataset {
            columns: BTreeMap::new(),
            targets: BTreeMap::new(),
            target: None,
            classes: None,
            id_column_name: None,
            split: SplitBy::Grouped,
            exclude: Vec::new(),
            missing: words.map(String::from).to_vec(),
            outliers: Outliers::None,
            normalization: Normalization::Zscore,
            prepared_dir: UserPath::default_at("all_data"),
            train_data: None,
            val_data: None,
            test_data: None,
        }
    }
}

/// A target by its short name and its column, as the user wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Names files and directories.
    pub short: String,
    /// The table's own or the unified name.
    pub column: String,
}

impl AlloyDataset {
    /// Refuses values that no table could make sense of (exit code 2).
    pub fn check(&self) -> Result<()> {
        for short in self.targets.keys() {
            let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
            if short.is_empty() || short.starts_with(['.', '-']) || !short.chars().all(fits) {
                let what = format!("{short:?} cannot be a file's name");
                return Err(Error::usage(what).at("dataset.targets").hint(
                    "short names are letters, digits, `_`, `.` and `-`, beginning with none of the last two",
                ));
            }
        }
        self.outliers.check()?;
        if self.train_data.is_some() != self.val_data.is_some() {
            let (given, absent) = match self.train_data {
                Some(_) => ("train_data", "val_data"),
                None => ("val_data", "train_data"),
            };
            let what = format!("dataset.{given} is given, and {absent} is not");
            return Err(Error::usage(what).at(format!("dataset.{absent}")).hint(
                "ready samples need both; or give neither and let `trainer prepare` split a table",
            ));
        }
        if self.test_data.is_some() && self.train_data.is_none() {
            return Err(Error::usage(
                "ready test samples need train_data and val_data beside them",
            )
            .at("dataset.test_data"));
        }
        if let Some(classes) = &self.classes {
            classes.check()?;
        }
        Ok(())
    }

    /// Whether samples are given ready, so that there is nothing to prepare.
    pub fn is_ready_made(&self) -> bool {
        self.train_data.is_some()
    }

    /// All targets to prepare: those of `targets`, and the one of `target` if it is another.
    pub fn wanted(&self) -> Result<Vec<Wanted>> {
        let mut wanted: Vec<Wanted> = self
            .targets
            .iter()
            .map(|(short, column)| Wanted { short: short.clone(), column: column.clone() })
            .collect();
        if let Some(target) = &self.target {
            let picked = self.named(target);
            if !wanted.contains(&picked) {
                wanted.push(picked);
            }
        }
        if wanted.is_empty() {
            return Err(no_target());
        }
        Ok(wanted)
    }

    /// The target that is trained.
    pub fn picked(&self) -> Result<Wanted> {
        match (&self.target, self.targets.len()) {
            (Some(target), _) => Ok(self.named(target)),
            (None, 1) => Ok(self.wanted()?.remove(0)),
            (None, 0) => Err(no_target()),
            (None, _) => {
                let names: Vec<&str> = self.targets.keys().map(String::as_str).collect();
                Err(Error::usage("dataset.targets names several, and none of them is picked")
                    .at("dataset.target")
                    .hint(format!("set it to one of {}", names.join(", "))))
            }
        }
    }

    /// A target by short name, by the column of a short name, or by a column of its own.
    fn named(&self, name: &str) -> Wanted {
        let found = self.targets.get_key_value(name).or_else(|| {
            self.targets.iter().find(|(_, column)| match_key(column) == match_key(name))
        });
        match found {
            Some((short, column)) => Wanted { short: short.clone(), column: column.clone() },
            None => Wanted { short: short_name(name), column: name.to_string() },
        }
    }
}

fn no_target() -> Error {
    Error::usage("no target is named")
        .at("dataset.target")
        .hint("name a column of the table, such as dataset.target: 'PROPERTY: YS (MPa)'")
}

/// A short name for a column: its bare name with everything odd replaced.
fn short_name(column: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let mut short = String::from(SHORT);
    for c in base_name(column).chars().map(fits) {
        if c != '_' || !short.ends_with('_') {
            short.push(c);
        }
    }
    short.trim_end_matches('_').to_string()
}

/// What the split keeps together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitBy {
    /// All rows of one composition are in one part.
    Grouped,
    /// Every row for itself; compositions then stand in several parts.
    Random,
}

/// How a numeric target is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalization {
    /// Mean 0 and standard deviation 1 over the training part.
    Zscore,
    /// Divided by the training part's largest value, as AlloyBERT did (with the whole column's).
    Max,
    /// Left as it is.
    None,
}

/// Which values of a numeric target are dropped, beside physically impossible ones.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outliers {
    /// No further ones.
    None,
    /// Those further than so many interquartile ranges below the first or above the third quartile
    /// of the training part.
    Iqr(f64),
    /// Those outside these bounds, in the unit of the column.
    Range([f64; 2]),
}

impl Outliers {
    fn check(self) -> Result<()> {
        let fault = match self {
            Outliers::Iqr(times) if !(times.is_finite() && times > 0.0) => {
                format!("found iqr: {times}, but it must be a number above 0")
            }
            Outliers::Range([low, high])
                if !(low.is_finite() && high.is_finite() && low < high) =>
            {
                format!("found range: [{low}, {high}], but the first must be below the second")
            }
            _ => return Ok(()),
        };
        Err(Error::usage(fault).at("dataset.outliers"))
    }
}

/// Which values of a column belong to a class.
#[derive(Clone, Debug, PartialEq)]
pub enum Classes {
    /// Every value is a class of its own.
    Auto,
    /// Classes in their order, which numbers them from 0.
    Named(Vec<(String, Members)>),
}

/// The values of one class.
#[derive(Clone, Debug, PartialEq)]
pub enum Members {
    /// These; case does not matter.
    Values(Vec<String>),
    /// All that no other class has (`'*'`).
    Rest,
}

const CLASSES_FORM: &str = "`auto`, or a map of class names to lists of values, one of them may be \
                            '*': {FCC: [FCC], BCC: [BCC], Other: '*'}";

impl Classes {
    fn check(&self) -> Result<()> {
        let Classes::Named(classes) = self else { return Ok(()) };
        let wrong = |what: String| Err(Error::usage(what).at("dataset.classes"));
        if classes.len() < 2 {
            return wrong("there must be two classes or more".into());
        }
        let mut seen: BTreeMap<String, &str> = BTreeMap::new();
        for (name, members) in classes {
            let Members::Values(values) = members else { continue };
            if values.is_empty() {
                return wrong(format!("class {name} has no values"));
            }
            for value in values {
                if let Some(other) = seen.insert(value.trim().to_lowercase(), name) {
                    return wrong(format!("the value {value:?} is in class {other} and in {name}"));
                }
            }
        }
        if classes.iter().filter(|(_, members)| *members == Members::Rest).count() > 1 {
            return wrong("only one class can be '*'".into());
        }
        Ok(())
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

fn members(value: &Value) -> Option<Members> {
    match value {
        Value::String(text) if text == "*" => Some(Members::Rest),
        Value::Array(values) => {
            values.iter().map(scalar).collect::<Option<_>>().map(Members::Values)
        }
        one => scalar(one).map(|value| Members::Values(vec![value])),
    }
}

fn named(map: &Map<String, Value>) -> Option<Vec<(String, Members)>> {
    map.iter().map(|(name, value)| Some((name.clone(), members(value)?))).collect()
}

impl<'de> Deserialize<'de> for Classes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let classes = match Value::deserialize(deserializer)? {
            Value::String(word) if word == "auto" => Some(Classes::Auto),
            Value::Object(map) => named(&map).map(Classes::Named),
            Value::Array(maps) => {
                let one = |map: &Value| map.as_object().and_then(named);
                maps.iter().map(one).collect::<Option<Vec<_>>>().map(|c| Classes::Named(c.concat()))
            }
            _ => None,
        };
        classes.ok_or_else(|| D::Error::custom(format!("it must be {CLASSES_FORM}")))
    }
}

impl Serialize for Classes {
    /// As a list of maps: the order numbers the classes, so it is part of a run's identity, and the
    /// order of a map's keys is not.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let Classes::Named(classes) = self else { return serializer.serialize_str("auto") };
        serializer.collect_seq(classes.iter().map(|(name, members)| {
            let members = match members {
                Members::Rest => Value::from("*"),
                Members::Values(values) => Value::from(values.clone()),
            };
            Map::from_iter([(name.clone(), members)])
        }))
    }
}

/// `text`: how a row becomes a text.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextSection {
    /// Which sentences.
    pub style: Style,
    /// The user's own sentences (style `template`), columns in braces; a sentence of which a column
    /// is blank is left out. `{composition}` and `{elements}` stand for what `elaborate` says there.
    pub template: Vec<String>,
    /// Whether facts about each element follow (style `elaborate`).
    pub element_facts: bool,
}

impl Default for TextSection {
    fn default() -> Self {
        TextSection { style: Style::Elaborate, template: Vec::new(), element_facts: true }
    }
}

impl TextSection {
    /// Refuses keys that contradict each other (exit code 2).
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::usage(what).at("text.template"));
        match (self.style, self.template.is_empty()) {
            (Style::Template, true) => wrong("style template needs at least one sentence here"),
            (Style::Simple | Style::Elaborate, false) => {
                wrong("sentences are given, but text.style is not template")
            }
            _ => Ok(()),
        }
    }
}

/// Which sentences a text has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// `name: value. ` for every column.
    Simple,
    /// English sentences: composition in atomic percent, processing, test, properties, elements.
    Elaborate,
    /// The user's own.
    Template,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigFile;

    fn dataset(text: &str) -> Result<AlloyDataset> {
        let config = ConfigFile::from_text("c.yaml", &format!("dataset:\n{text}"), &[])?;
        let own: AlloyDataset = config.section("dataset")?;
        own.check().map(|()| own)
    }

    fn refused(text: &str) -> String {
        let error = dataset(text).unwrap_err();
        assert_eq!(error.code(), 2, "{error}");
        error.to_string()
    }

    #[test]
    fn classes_keep_their_order_and_come_back() {
        let own = dataset("  classes: {FCC: [FCC], BCC: BCC, Other: '*', No: [0, 1.5]}\n").unwrap();
        let values = |v: &[&str]| Members::Values(v.iter().map(|s| s.to_string()).collect());
        let expected = vec![
            ("FCC".to_string(), values(&["FCC"])),
            ("BCC".to_string(), values(&["BCC"])),
            ("Other".to_string(), Members::Rest),
            ("No".to_string(), values(&["0", "1.5"])),
        ];
        assert_eq!(own.classes, Some(Classes::Named(expected)));
        for text in ["  classes: {FCC: [FCC], Other: '*'}\n", "  classes: auto\n"] {
            let own = dataset(text).unwrap();
            let yaml = crate::config::write_yaml(&serde_json::to_value(&own).unwrap());
            let again: String = yaml.lines().map(|line| format!("  {line}\n")).collect();
            assert_eq!(dataset(&again).unwrap(), own, "{yaml}");
        }
        let turned = |a: &str| serde_json::to_value(dataset(a).unwrap()).unwrap();
        let (a, b) = (turned("  classes: {A: a, B: b}\n"), turned("  classes: {B: b, A: a}\n"));
        assert_ne!(crate::config::identity(&a), crate::config::identity(&b));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (text, expected) in [
            ("  classes: {A: [a], B: [a]}\n", "\"a\" is in class A and in B"),
            ("  classes: {A: '*', B: '*'}\n", "only one class can be '*'"),
            ("  classes: {A: '*'}\n", "two classes or more"),
            ("  classes: {A: [], B: '*'}\n", "class A has no values"),
            ("  classes: {A: {x: 1}, B: '*'}\n", "c.yaml:2: dataset.classes: it must be `auto`"),
            ("  targets: {a/b: YS}\n", "\"a/b\" cannot be a file's name"),
            ("  targets: {..: YS}\n", "cannot be a file's name"),
            ("  outliers: {iqr: -1}\n", "dataset.outliers: found iqr: -1"),
            ("  outliers: {range: [5, 1]}\n", "the first must be below the second"),
            ("  outliers: most\n", "allowed: none, iqr, range"),
            ("  split: group\n", "did you mean grouped?"),
            ("  train_data: a.csv\n", "dataset.val_data: dataset.train_data is given"),
            ("  test_data: a.csv\n", "need train_data"),
            ("  normalisation: max\n", "did you mean normalization?"),
        ] {
            let said = refused(text);
            assert!(said.contains(expected), "{text} gave {said}");
        }
        assert_eq!(dataset("  outliers: {iqr: 3}\n").unwrap().outliers, Outliers::Iqr(3.0));
    }

    #[test]
    fn targets_by_short_name_and_column() {
        let own = dataset(
            "  targets: {all_data_YS: 'PROPERTY: YS (MPa)', e: 'PROPERTY: E (GPa)'}\n  target: YS\n",
        )
        .unwrap();
        assert_eq!(own.picked().unwrap().short, "all_data_YS");
        assert_eq!(own.wanted().unwrap().len(), 2);
        let own = dataset("  targets: {a: YS, b: E}\n").unwrap();
        assert!(own.picked().unwrap_err().to_string().contains("one of a, b"));
        assert_eq!(dataset("").unwrap().wanted().unwrap_err().code(), 2);
        let own = dataset("  target: 'PROPERTY: BCC/FCC/other'\n").unwrap();
        assert_eq!(own.picked().unwrap().short, "all_data_BCC_FCC_other");
        let own = dataset("  target: 'PROPERTY: Calculated Young modulus (GPa)'\n").unwrap();
        assert_eq!(own.picked().unwrap().short, "all_data_Calculated_Young_modulus");
    }

    #[test]
    fn a_template_needs_its_style() {
        let text = |yaml: &str| -> Result<TextSection> {
            ConfigFile::from_text("c.yaml", yaml, &[])?.section("text")
        };
        let with = "text: {style: template, template: ['{FORMULA}.']}";
        assert!(text(with).unwrap().check().is_ok());
        for yaml in ["text: {style: template}", "text: {template: ['{FORMULA}.']}"] {
            assert_eq!(text(yaml).unwrap().check().unwrap_err().code(), 2);
        }
    }
}
