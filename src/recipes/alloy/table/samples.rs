//! The samples that are trained on: prepared ones, or files that the user has ready.

use super::config::{AlloyDataset, TextSection};
use super::output::{Layout, Stamp, content};
use super::raw::{HINT, Raw, RawReader};
use super::target::{Moments, Target};
use super::text::TextPlan;
use crate::config::Dataset;
use crate::data::split::Part;
use crate::error::{Error, Result};
use crate::files;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
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
    let stamp = Stamp::read(&layout).ok_or_else(|| not_prepared(&layout))?;
    let now = Stamp::new((0, String::new()), dataset, own, text, &wanted)?;
    if !stamp.same_settings(&now) {
        return Err(Error::data("these samples were prepared with other settings")
            .at(layout.dir().display())
            .hint("run `trainer prepare CONFIG`"));
    }
    let (classes, numbers) = (layout.target(true), layout.target(false));
    let target: Target = read_json(if classes.exists() { &classes } else { &numbers })?;
    let part = |part: Part| -> Result<Vec<Sample>> {
        let path = layout.samples(part);
        if part != Part::Train && !path.exists() {
            return Ok(Vec::new());
        }
        RawReader::open(&path)?.map(|raw| raw?.sample(&target)).collect()
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
    match Stamp::read(&layout) {
        Some(_) => read_json(&layout.text_plan()),
        None => Err(not_prepared(&layout)),
    }
}

/// Texts of the training part, for a tokenizer: all of them, or as many as make about 16 MB, taken
/// evenly. Read as they are asked for.
pub fn training_texts(own: &AlloyDataset) -> Result<impl Iterator<Item = Result<String>>> {
    let path = match &own.train_data {
        Some(path) => path.to_path_buf(),
        None => Layout::new(own, &own.picked()?).samples(Part::Train),
    };
    let reader = RawReader::open(&path)?;
    let size = std::fs::metadata(&path).map_err(|e| Error::read(&path, &e))?.len();
    Ok(evenly(reader, size.div_ceil(CORPUS).max(1)))
}

/// Bytes of texts that a tokenizer is trained on.
const CORPUS: u64 = 16 << 20;

/// The texts of every `step`th sample; errors as they come.
fn evenly(reader: RawReader, step: u64) -> impl Iterator<Item = Result<String>> {
    let every = reader.zip(0u64..).filter(move |(raw, i)| raw.is_err() || i.is_multiple_of(step));
    every.map(|(raw, _)| raw.map(|raw| raw.text))
}

/// What the training texts were made from, in a line that changes when they do; cheap for prepared
/// ones, whose stamp says it.
pub fn texts_stamp(own: &AlloyDataset) -> Result<String> {
    match &own.train_data {
        Some(path) => Ok(content(path)?.1),
        None => {
            let layout = Layout::new(own, &own.picked()?);
            let stamp = Stamp::read(&layout).ok_or_else(|| not_prepared(&layout))?;
            Ok(stamp.identity())
        }
    }
}

fn not_prepared(layout: &Layout) -> Error {
    Error::data("there are no prepared samples here, or they are not whole")
        .at(layout.dir().display())
        .hint("run `trainer prepare CONFIG`")
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&files::read_text(path)?).map_err(|e| {
        Error::damaged(format!("not what `prepare` writes: {e}"))
            .at(path.display())
            .hint("run `trainer prepare CONFIG` again")
    })
}

/// Samples from `dataset.train_data` and its fellows.
fn ready_made(own: &AlloyDataset) -> Result<Samples> {
    let read = |path: &Option<crate::config::UserPath>| match path {
        Some(path) => RawReader::all(path),
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

#[cfg(test)]
mod tests {
    use super::super::fixtures::Scratch;
    use super::*;

    #[test]
    fn texts_are_taken_evenly() {
        let dir = Scratch::new("evenly");
        let mut text = String::from("text,target\n");
        (0..10).for_each(|i| text += &format!("t{i},{i}\n"));
        let path = dir.file("a.csv", &text);
        let taken = |step: u64| -> Vec<String> {
            evenly(RawReader::open(&path).unwrap(), step).map(Result::unwrap).collect()
        };
        assert_eq!(taken(4), ["t0", "t4", "t8"]);
        assert_eq!(taken(1).len(), 10);
        // What is wrong in a sample that is not taken is still told.
        let path = dir.file("b.csv", text + ",3\n");
        let last = evenly(RawReader::open(&path).unwrap(), 4).last().unwrap();
        assert_eq!(last.unwrap_err().code(), 3);
    }
}
