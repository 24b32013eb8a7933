//! The way from a table to samples, on small tables and on the MPEA table.

use super::config::{AlloyDataset, Style, TextSection};
use super::fixtures::{Scratch, dataset, mpea, own};
use super::prepare::{Prepared, prepare};
use super::reader::TableReader;
use super::report::Report;
use super::samples::{Samples, read_samples};
use super::target::Target;
use crate::config::Dataset;
use crate::error::Result;
use csv::StringRecord;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn quietly(dataset: &Dataset, own: &AlloyDataset, text: &TextSection) -> Result<Prepared> {
    prepare(dataset, own, text, &|_| {})
}

fn make(dataset: &Dataset, own: &AlloyDataset) -> (Report, Samples) {
    let text = TextSection::default();
    let prepared = quietly(dataset, own, &text).unwrap();
    let short = own.picked().unwrap().short;
    let report = prepared.reports.into_iter().find(|r| r.short == short).unwrap();
    (report, read_samples(dataset, own, &text).unwrap())
}

fn read(path: &Path) -> (StringRecord, Vec<StringRecord>) {
    let mut reader = TableReader::open(path, None).unwrap();
    let mut record = StringRecord::new();
    let mut rows = Vec::new();
    while reader.read(&mut record).unwrap().is_some() {
        rows.push(record.clone());
    }
    (reader.headers, rows)
}

fn dropped(report: &Report) -> BTreeMap<&str, u64> {
    report.dropped.iter().map(|(why, tally)| (why.as_str(), tally.count)).collect()
}

/// No composition stands in two parts, and the converted tables hold what the samples do.
fn check_parts(own: &AlloyDataset, samples: &Samples) {
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

const TARGETS: &str = "targets:\n  all_data_YS: 'PROPERTY: YS (MPa)'\n  all_data_YM: 'PROPERTY: Calculated Young modulus (GPa)'\n";

#[test]
fn mpea_regressions() {
    let Some(table) = mpea("mpea_regressions") else { return };
    let dir = Scratch::new("mpea-regressions");
    for (short, used, unit) in [("all_data_YS", 1067, "MPa"), ("all_data_YM", 729, "GPa")] {
        let own = own(&dir, &format!("{TARGETS}target: {short}"));
        let (report, samples) = make(&dataset(&table), &own);
        assert_eq!(report.rows, 1545);
        let all = samples.train.len() + samples.val.len();
        assert_eq!(all, used);
        assert_eq!(
            dropped(&report),
            BTreeMap::from([("no value of the target", 1545 - used as u64)])
        );
        let share = samples.val.len() as f64 / all as f64;
        assert!((0.13..0.17).contains(&share), "{share}");
        assert_eq!((report.leak.rows, report.leak.compositions), (0, 0));
        assert!(report.leak_if_random.rows > 20, "{:?}", report.leak_if_random);
        check_parts(&own, &samples);
        let Target::Regression { mean, std, unit: found, .. } = &samples.target else { panic!() };
        assert_eq!(found.as_deref(), Some(unit));
        let raw: Vec<f64> = samples.train.iter().map(|s| s.target_raw.parse().unwrap()).collect();
        let n = raw.len() as f64;
        let own_mean = raw.iter().sum::<f64>() / n;
        let own_std = (raw.iter().map(|x| (x - own_mean).powi(2)).sum::<f64>() / n).sqrt();
        assert!((mean - own_mean).abs() < 1e-9 && (std - own_std).abs() < 1e-9);
        let left: Vec<&str> = report.text.left_out.iter().map(|l| l.column.as_str()).collect();
        let mut expected = vec!["IDENTIFIER: Reference ID"];
        expected.extend(match short {
            "all_data_YS" => vec!["PROPERTY: YS (MPa)"],
            _ => vec![
                "PROPERTY: Exp. Young modulus (GPa)",
                "PROPERTY: Calculated Young modulus (GPa)",
            ],
        });
        expected.extend(["REFERENCE: doi", "REFERENCE: year", "REFERENCE: title"]);
        assert_eq!(left, expected);
        let spelt = if short == "all_data_YS" { "yield strength" } else { "Its calculated Young" };
        for sample in samples.train.iter().chain(&samples.val) {
            assert!(!sample.text.contains(spelt) && !sample.text.contains("  "), "{}", sample.text);
            assert!(sample.text.starts_with("The alloy is "), "{}", sample.text);
        }
    }
}

/// Texts of class targets hold no word of any class.
#[test]
fn mpea_classes() {
    let Some(table) = mpea("mpea_classes") else { return };
    let dir = Scratch::new("mpea-classes");
    let classes = "classes: {FCC: [FCC], BCC: [BCC], Other: '*'}";
    for (column, counts, blank) in [
        ("PROPERTY: BCC/FCC/other", [265, 468, 812], 0),
        ("PROPERTY: Microstructure", [267, 468, 667], 143),
    ] {
        for style in [Style::Simple, Style::Elaborate] {
            let own = own(&dir, &format!("target: '{column}'\n{classes}"));
            let text = TextSection { style, ..TextSection::default() };
            let report = quietly(&dataset(&table), &own, &text).unwrap().reports.remove(0);
            let samples = read_samples(&dataset(&table), &own, &text).unwrap();
            let Target::Classes { names, .. } = &samples.target else { panic!() };
            assert_eq!(*names, ["FCC", "BCC", "Other"]);
            let mut found = [0; 3];
            for sample in samples.train.iter().chain(&samples.val) {
                found[sample.target as usize] += 1;
                let text = sample.text.to_lowercase();
                for word in ["fcc", "bcc", "hcp", "b2", "laves", "cubic", "l12", "microstructure"] {
                    let words: BTreeSet<&str> =
                        text.split(|c: char| !c.is_alphanumeric()).collect();
                    assert!(!words.contains(word), "{word} in {text}");
                }
            }
            assert_eq!(found, counts);
            assert_eq!(report.dropped.get("no value of the target").map_or(0, |t| t.count), blank);
            assert!(!report.text.structures);
            check_parts(&own, &samples);
        }
    }
}
