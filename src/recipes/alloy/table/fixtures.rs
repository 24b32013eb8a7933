//! What the tests of this recipe share: a directory of their own, real files, sections, and what
//! must hold of any prepared data.

use super::config::{AlloyDataset, TextSection};
use super::prepare::{Prepared, prepare};
use super::reader::TableReader;
use super::report::Report;
use super::samples::{Samples, read_samples};
use super::target::Target;
use crate::config::{ConfigFile, Dataset, Size, UserPath};
pub use crate::data::table::tests::Scratch;
use crate::error::Result;
use csv::StringRecord;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The MPEA table, if the environment says where real files are.
pub fn mpea(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("TRAINER_DATA").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("SKIPPED {test}: TRAINER_DATA does not say where the real files are");
    }
    folder.map(|folder| folder.join("MPEA_dataset.csv"))
}

/// The shared section for a table.
pub fn dataset(table: &Path) -> Dataset {
    Dataset {
        dataset_location: Some(UserPath::new(table.to_str().unwrap()).unwrap()),
        val_size: Size::Fraction(0.15),
        test_size: Size::Samples(0),
        ..Dataset::default()
    }
}

/// The recipe's own keys, from lines of YAML, with prepared data in `dir`.
pub fn own(dir: &Scratch, yaml: &str) -> AlloyDataset {
    let lines: String = yaml.lines().map(|line| format!("  {line}\n")).collect();
    let config = ConfigFile::from_text("c.yaml", &format!("dataset:\n{lines}"), &[]).unwrap();
    let mut own: AlloyDataset = config.section("dataset").unwrap();
    own.check().unwrap();
    own.prepared_dir = UserPath::new(dir.0.join("all_data").to_str().unwrap()).unwrap();
    own
}

/// Prepares without saying anything.
pub fn quietly(dataset: &Dataset, own: &AlloyDataset, text: &TextSection) -> Result<Prepared> {
    prepare(dataset, own, text, &|_| {})
}

/// Prepares, and reads the samples of the picked target.
pub fn make(dataset: &Dataset, own: &AlloyDataset) -> (Report, Samples) {
    let text = TextSection::default();
    let prepared = quietly(dataset, own, &text).unwrap();
    let short = own.picked().unwrap().short;
    let report = prepared.reports.into_iter().find(|r| r.short == short).unwrap();
    (report, read_samples(dataset, own, &text).unwrap())
}

/// Column names and rows of a CSV.
pub fn read(path: &Path) -> (StringRecord, Vec<StringRecord>) {
    let mut reader = TableReader::open(path, None).unwrap();
    let mut record = StringRecord::new();
    let mut rows = Vec::new();
    while reader.read(&mut record).unwrap().is_some() {
        rows.push(record.clone());
    }
    (reader.headers, rows)
}

/// Dropped rows by reason.
pub fn dropped(report: &Report) -> BTreeMap<&str, u64> {
    report.dropped.iter().map(|(why, tally)| (why.as_str(), tally.count)).collect()
}

/// No composition stands in two parts, and the converted tables hold what the samples do.
pub fn check_parts(own: &AlloyDataset, samples: &Samples) {
    let short = own.picked().unwrap().short;
    let mut seen: BTreeMap<u64, &str> = BTreeMap::new();
    for (prefix, part) in [("tr", &samples.train), ("vl", &samples.val), ("te", &samples.test)] {
        let path = own.prepared_dir.join(&short).join(format!("{prefix}_{short}_convert.csv"));
        if part.is_empty() {
            assert!(!path.exists());
            continue;
        }
        let (headers, rows) = read(&path);
        let at = |name: &str| headers.iter().position(|h| h == name).unwrap();
        assert_eq!(rows.len(), part.len());
        for (row, sample) in rows.iter().zip(part) {
            let key = super::formula::Composition::parse(&row[at("FORMULA")], false).unwrap().key();
            assert_eq!(*seen.entry(key).or_insert(prefix), prefix, "{}", &row[at("FORMULA")]);
            assert_eq!(row[at("target")].parse::<f64>().unwrap(), sample.target);
            assert_eq!(row[at("target_raw")], sample.target_raw);
            let raw = sample.target_raw.parse::<f64>();
            match &samples.target {
                Target::Regression { .. } => {
                    let raw = raw.unwrap();
                    assert!(
                        (samples.target.real(sample.target) - raw).abs()
                            <= 1e-9 * raw.abs().max(1.0)
                    );
                }
                Target::Classes { names, .. } => assert!((sample.target as usize) < names.len()),
            }
        }
    }
}
