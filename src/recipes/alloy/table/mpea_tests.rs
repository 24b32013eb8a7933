//! The way from the MPEA table to samples: its counts, its leaks, its splits.

use super::config::{Style, TextSection};
use super::fixtures::{Scratch, check_parts, dataset, dropped, make, mpea, own, quietly};
use super::samples::read_samples;
use super::target::Target;
use std::collections::{BTreeMap, BTreeSet};

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

/// What the split leaks where it is not by composition, side by side.
#[test]
fn mpea_random_split_leaks() {
    let Some(table) = mpea("mpea_random_split_leaks") else { return };
    let dir = Scratch::new("mpea-random");
    let (grouped, _) = make(&dataset(&table), &own(&dir, "target: YS"));
    let (random, samples) = make(&dataset(&table), &own(&dir, "target: YS\nsplit: random"));
    assert_eq!(grouped.leak_if_random, random.leak);
    assert_eq!(samples.val.len(), 160);
    assert!(2 * random.leak.rows > random.leak.of_rows, "{:?}", random.leak);
}
