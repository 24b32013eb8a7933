//! The samples that are trained on: prepared ones, or files that the user has ready.

use super::config::{AlloyDataset, TextSection};
use super::output::{Layout, Stamp};
use super::reader::TableReader;
use super::target::{Moments, Target};
use super::text::TextPlan;
use crate::config::Dataset;
use crate::data::split::Part;
use crate::error::{Error, Result};
use crate::files;
use crate::progress;
use csv::StringRecord;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The row's id, or its number in the table, from 1.
    pub id: String,
    /// Where the sample stands, `file:line`.
    pub place: String,
    /// What the model reads.
    pub text: String,
    /// The normalised value, or the index of the class.
    pub target: f64,
    /// The target as the table has it.
    pub target_raw: String,
}

/// The samples of a data set.
#[derive(Clone, Debug)]
pub struct Samples {
    /// For training; never empty.
    pub train: Vec<Sample>,
    /// For validation.
    pub val: Vec<Sample>,
    /// For the test at the end.
    pub test: Vec<Sample>,
    /// The way back from predictions.
    pub target: Target,
    /// What makes texts of new rows; ready-made samples have none.
    pub text: Option<TextPlan>,
    /// Sentences to print.
    pub notes: Vec<String>,
}

/// Reads the samples of the target that is trained: the user's ready ones, or those that `prepare`
/// made with the same keys.
pub fn read_samples(dataset: &Dataset, own: &AlloyDataset, text: &TextSection) -> Result<Samples> {
    own.check()?;
    if own.is_ready_made() {
        return ready_made(own);
    }
    let wanted = own.picked()?;
    let layout = Layout::new(own, &wanted);
    let again = "run `trainer prepare CONFIG`";
    let Some(stamp) = Stamp::read(&layout) else {
        return Err(Error::data("there are no prepared samples here, or they are not whole")
            .at(layout.dir().display())
            .hint(again));
    };
    let now = Stamp::new((0, String::new()), dataset, own, text, &wanted)?;
    if !stamp.same_settings(&now) {
        return Err(Error::data("these samples were prepared with other settings")
            .at(layout.dir().display())
            .hint(again));
    }
    let (classes, numbers) = (layout.target(true), layout.target(false));
    let target: Target = read_json(if classes.exists() { &classes } else { &numbers })?;
    let part = |part: Part| -> Result<Vec<Sample>> {
        let path = layout.samples(part);
        if part != Part::Train && !path.exists() {
            return Ok(Vec::new());
        }
        let raw = read_raw(&path)?;
        raw.into_iter().map(|raw| raw.sample(&target)).collect()
    };
    Ok(Samples {
        train: part(Part::Train)?,
        val: part(Part::Val)?,
        test: part(Part::Test)?,
        target,
        text: Some(read_json(&layout.text_plan())?),
        notes: Vec::new(),
    })
}

/// The plan by which the texts of the picked target were made.
pub fn read_plan(own: &AlloyDataset) -> Result<TextPlan> {
    let layout = Layout::new(own, &own.picked()?);
    if Stamp::read(&layout).is_none() {
        return Err(Error::data("nothing is prepared here yet")
            .at(layout.dir().display())
            .hint("run `trainer prepare CONFIG`"));
    }
    read_json(&layout.text_plan())
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&files::read_text(path)?).map_err(|e| {
        Error::damaged(format!("not what `prepare` writes: {e}"))
            .at(path.display())
            .hint("run `trainer prepare CONFIG` again")
    })
}

/// A sample as a file has it.
struct Raw {
    id: Option<String>,
    place: String,
    text: String,
    target: Option<f64>,
    target_raw: Option<String>,
}

impl Raw {
    /// Gives a sample whose target is known, checking class indices.
    fn sample(self, target: &Target) -> Result<Sample> {
        let value = match (self.target, &self.target_raw) {
            (Some(value), _) => value,
            (None, Some(raw)) => match (raw.parse::<f64>(), target) {
                (Ok(value), Target::Regression { .. }) => target.normalised(value),
                _ => return Err(Error::data("target is empty").at(self.place)),
            },
            (None, None) => return Err(Error::data("target is empty").at(self.place)),
        };
        if let Target::Classes { names, .. } = target {
            let known = value.fract() == 0.0 && (0.0..names.len() as f64).contains(&value);
            if !known {
                let what =
                    format!("target is {value}, and classes are numbered 0 to {}", names.len() - 1);
                return Err(Error::data(what).at(self.place));
            }
        }
        Ok(Sample {
            id: self.id.unwrap_or_default(),
            place: self.place,
            text: self.text,
            target: value,
            target_raw: self.target_raw.unwrap_or_else(|| format!("{}", target.real(value))),
        })
    }
}

/// Reads `text`, `target`, `target_raw` and `id` of a CSV or of JSON lines.
fn read_raw(path: &Path) -> Result<Vec<Raw>> {
    let name = path.to_string_lossy().to_ascii_lowercase();
    let bare = name.strip_suffix(".gz").unwrap_or(&name);
    let raws = match [".jsonl", ".ndjson", ".json"].iter().any(|end| bare.ends_with(end)) {
        true => read_json_lines(path)?,
        false => read_csv(path)?,
    };
    if raws.is_empty() {
        return Err(Error::data("there is no sample in it").at(path.display()));
    }
    Ok(raws)
}

const HINT: &str =
    "ready samples have the fields text, target and target_raw (and id, if you like)";

/// A field that may be blank, as a finite number.
fn number(text: &str, place: &str) -> Result<Option<f64>> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    match text.trim().parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(Some(value)),
        Ok(_) => Err(Error::data(format!("target is {}, which is not finite", text.trim())).at(place)),
        Err(_) => Err(Error::data(format!("target is {text:?}, not a number")).at(place).hint(
            "target holds the normalised number or the index of the class, target_raw what it means",
        )),
    }
}

fn read_csv(path: &Path) -> Result<Vec<Raw>> {
    let mut reader = TableReader::open(path, None)?;
    let find = |name: &str| reader.headers.iter().position(|header| header.trim() == name);
    let (id, target, target_raw) = (find("id"), find("target"), find("target_raw"));
    let missing = |name: &str| {
        let columns: Vec<&str> = reader.headers.iter().collect();
        let what = format!("no column {name:?}; the columns are {}", columns.join(", "));
        Error::data(what).at(format!("{}:1", path.display())).hint(HINT)
    };
    let text = find("text").ok_or_else(|| missing("text"))?;
    if target.is_none() && target_raw.is_none() {
        return Err(missing("target"));
    }
    let mut raws = Vec::new();
    let mut record = StringRecord::new();
    while let Some(at) = reader.read(&mut record)? {
        let place = format!("{}:{}", path.display(), at.line);
        let field = |index: Option<usize>| {
            index.and_then(|i| record.get(i)).filter(|f| !f.trim().is_empty())
        };
        raws.push(Raw {
            id: field(id).map(String::from).or_else(|| Some(at.row.to_string())),
            text: field(Some(text)).ok_or_else(|| empty_text(&place))?.to_string(),
            target: number(field(target).unwrap_or_default(), &place)?,
            target_raw: field(target_raw).map(String::from),
            place,
        });
    }
    Ok(raws)
}

fn empty_text(place: &str) -> Error {
    Error::data("text is empty").at(place).hint("give the sample a text, or take it out")
}

fn read_json_lines(path: &Path) -> Result<Vec<Raw>> {
    let mut raws = Vec::new();
    for (i, line) in files::open_text(path)?.lines().enumerate() {
        progress::tick()?;
        let line = line.map_err(|e| Error::read(path, &e))?;
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            continue;
        }
        let place = format!("{}:{}", path.display(), i + 1);
        let map: Map<String, Value> = serde_json::from_str(line).map_err(|e| {
            Error::data(format!("not a JSON object: {e}")).at(&place).hint(
                "JSON lines hold one {\"text\": ..., \"target\": ..., \"target_raw\": ...} a line",
            )
        })?;
        let field = |name: &str| match map.get(name) {
            Some(Value::String(text)) if !text.trim().is_empty() => Some(text.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        raws.push(Raw {
            id: field("id").or_else(|| Some((raws.len() + 1).to_string())),
            text: field("text").ok_or_else(|| empty_text(&place).hint(HINT))?,
            target: number(&field("target").unwrap_or_default(), &place)?,
            target_raw: field("target_raw"),
            place,
        });
    }
    Ok(raws)
}

/// Samples from `dataset.train_data` and its fellows.
fn ready_made(own: &AlloyDataset) -> Result<Samples> {
    let read = |path: &Option<crate::config::UserPath>| match path {
        Some(path) => read_raw(path),
        None => Ok(Vec::new()),
    };
    let (train, val, test) = (read(&own.train_data)?, read(&own.val_data)?, read(&own.test_data)?);
    let name = own.target.clone().unwrap_or_else(|| "target".to_string());
    let mut notes = Vec::new();
    let target = match class_names(&[&train, &val, &test], own)? {
        Some(names) => {
            notes.push(format!("classes: {}", names.join(", ")));
            Target::Classes { name, names }
        }
        None => normalisation(name, &train, own, &mut notes)?,
    };
    let finish = |raws: Vec<Raw>| {
        raws.into_iter().map(|raw| raw.sample(&target)).collect::<Result<Vec<_>>>()
    };
    Ok(Samples {
        train: finish(train)?,
        val: finish(val)?,
        test: finish(test)?,
        target: target.clone(),
        text: None,
        notes,
    })
}

/// The names of classes, if these samples are of classes: `dataset.classes` is given, or each
/// `target_raw` is a word.
fn class_names(parts: &[&Vec<Raw>], own: &AlloyDataset) -> Result<Option<Vec<String>>> {
    let all = || parts.iter().flat_map(|part| part.iter());
    let is_word = |raw: &Raw| raw.target_raw.as_ref().is_some_and(|t| t.parse::<f64>().is_err());
    if own.classes.is_none() && !all().all(is_word) {
        return Ok(None);
    }
    let mut counts: BTreeMap<u64, BTreeMap<&str, u64>> = BTreeMap::new();
    for raw in all() {
        let index = raw.target.filter(|x| x.fract() == 0.0 && (0.0..1000.0).contains(x));
        let Some(index) = index else {
            return Err(Error::data("target is no class index (0, 1, 2 …)")
                .at(&raw.place)
                .hint("classes are numbered from 0 in the field target, and named in target_raw"));
        };
        let names = counts.entry(index as u64).or_default();
        *names.entry(raw.target_raw.as_deref().unwrap_or_default()).or_default() += 1;
    }
    let classes = counts.keys().max().map_or(0, |most| most + 1);
    let mut names = Vec::new();
    for index in 0..classes {
        let given = match &own.classes {
            Some(super::config::Classes::Named(named)) => {
                named.get(index as usize).map(|(n, _)| n.clone())
            }
            _ => None,
        };
        let found = counts.get(&index).filter(|names| names.len() == 1);
        let found = found.and_then(|names| names.keys().next().map(|n| n.to_string()));
        let name = given.or(found.filter(|name| !name.is_empty()));
        names.push(name.unwrap_or_else(|| index.to_string()));
    }
    if names.len() < 2 {
        return Err(Error::data(format!("all samples are of class {}", names.join(", ")))
            .at("dataset.train_data"));
    }
    Ok(Some(names))
}

/// The line from `target_raw` to `target`, found on the training samples and checked on each.
fn normalisation(
    name: String,
    train: &[Raw],
    own: &AlloyDataset,
    notes: &mut Vec<String>,
) -> Result<Target> {
    let made =
        |mean: f64, std: f64| Target::Regression { name: name.clone(), unit: None, mean, std };
    let pair = |raw: &Raw| Some((raw.target_raw.as_ref()?.parse::<f64>().ok()?, raw.target));
    let pairs: Vec<(f64, Option<f64>)> = train.iter().filter_map(pair).collect();
    if pairs.len() < train.len() {
        if train.iter().any(|raw| raw.target.is_none()) {
            let place = train.iter().find(|raw| raw.target.is_none()).map(|raw| raw.place.clone());
            return Err(Error::data("neither target nor target_raw is a number")
                .at(place.unwrap_or_default())
                .hint(HINT));
        }
        notes.push("there is no target_raw: predictions are in the unit of target".into());
        return Ok(made(0.0, 1.0));
    }
    if pairs.iter().any(|(_, target)| target.is_none()) {
        notes.push("there is no target: it is normalised from target_raw".into());
        let mut moments = Moments::default();
        pairs.iter().for_each(|(real, _)| moments.add(*real));
        let (mean, std) = moments.normalisation(own.normalization)?;
        return Ok(made(mean, std));
    }
    let by_real = |a: &&(f64, Option<f64>), b: &&(f64, Option<f64>)| a.0.total_cmp(&b.0);
    let (Some(low), Some(high)) = (pairs.iter().min_by(by_real), pairs.iter().max_by(by_real))
    else {
        return Err(Error::data("there is no sample in it").at("dataset.train_data"));
    };
    let (a, b) = (low.1.unwrap_or(0.0), high.1.unwrap_or(0.0));
    let std = (high.0 - low.0) / (b - a);
    if !(std.is_finite() && std > 0.0) {
        return Err(Error::data("target does not grow with target_raw")
            .at("dataset.train_data")
            .hint(HINT));
    }
    let target = made(low.0 - a * std, std);
    for (raw, (real, value)) in train.iter().zip(&pairs) {
        let off = (target.normalised(*real) - value.unwrap_or(f64::NAN)).abs();
        // What a file of seven digits may be off.
        if off.is_nan() || off > 1e-4 * (b - a) {
            let what = format!("target is not a straight line of target_raw ({real})");
            return Err(Error::data(what)
                .at(&raw.place)
                .hint("target must be (target_raw - mean) / scale, the same for all samples"));
        }
    }
    Ok(target)
}
