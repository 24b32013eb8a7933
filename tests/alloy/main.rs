//! The good path of every command of the recipe `alloy`, from a table to predictions in real units.

#[path = "../common/alloys.rs"]
mod alloys;
#[path = "../common/mod.rs"]
mod common;
mod starts;

use alloys::{CONFIG, ROWS, table};
use common::{Outcome, Scratch};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// With `c.yaml` and `alloys.csv` of the recipe.
fn scratch(name: &str) -> Scratch {
    let scratch = Scratch::new(name);
    scratch.write("c.yaml", CONFIG);
    scratch.write("alloys.csv", table(ROWS));
    scratch
}

/// What must succeed; standard output and error together say what went wrong else.
#[track_caller]
fn done(outcome: Outcome) -> Outcome {
    assert_eq!(outcome.code, 0, "{}{}", outcome.out, outcome.err);
    assert!(outcome.seconds < 60.0, "far above what it takes: {} s", outcome.seconds);
    outcome
}

#[track_caller]
fn says(text: &str, wanted: &[&str]) {
    for word in wanted {
        assert!(text.contains(word), "no {word:?} in:\n{text}");
    }
}

/// The only run called so, below the scratch directory.
#[track_caller]
fn run_dir(scratch: &Scratch, name: &str) -> PathBuf {
    let runs = scratch.find(&format!("{name}-20"));
    assert_eq!(runs.len(), 1, "{runs:?}");
    runs[0].clone()
}

/// Rows of a CSV, its column names among them.
fn rows(text: &str) -> Vec<csv::StringRecord> {
    let reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
    reader.into_records().map(Result::unwrap).collect()
}

fn numbers(rows: &[csv::StringRecord], column: usize) -> Vec<f64> {
    rows.iter().map(|row| row[column].parse().unwrap()).collect()
}

#[track_caller]
fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// A picture twice: SVG that is XML with text in it, and a whole PNG.
#[track_caller]
fn pictures(run: &Path, stem: &str, text: &str) {
    let svg = fs::read_to_string(run.join(format!("{stem}.svg"))).unwrap();
    let tree = roxmltree::Document::parse(&svg).unwrap();
    assert_eq!(tree.root_element().tag_name().name(), "svg");
    assert!(tree.descendants().any(|n| n.text().is_some_and(|t| t.contains(text))), "{svg}");
    let png = fs::read(run.join(format!("{stem}.png"))).unwrap();
    assert!(
        png.starts_with(b"\x89PNG\r\n\x1a\n") && png.ends_with(b"IEND\xaeB`\x82"),
        "{stem}.png"
    );
}

#[test]
fn the_sample_goes_all_the_way() {
    let s = scratch("alloy-sample");
    let said = done(s.trainer("sample alloy data --seed 3")).err;
    says(&said, &["data/alloys.csv", "synthetic rows of 300 alloys"]);
    let table = rows(&s.read("data/alloys.csv"));
    let own = " --set dataset.dataset_location=data/alloys.csv --set text.style=simple";
    let said = done(s.trainer(&format!("prepare c.yaml{own}"))).err;
    says(&said, &["rows dropped: no value of the target", "split grouped", "rows/s"]);
    let prepared = format!("{} rows, {} columns", table.len() - 1, table[0].len());
    says(&said, &[&prepared, "left out: PROPERTY: YS (MPa) (it is the target)"]);
    let config = s.read("c.yaml").replace("alloys.csv", "data/alloys.csv");
    s.write(
        "c.yaml",
        config.replace("{element_facts: false}", "{element_facts: false, style: simple}"),
    );
    says(&done(s.trainer("inspect c.yaml")).out, &["texts (train", "batch plan", "padding"]);
    let said = done(s.trainer("-q run c.yaml")).err;
    assert_eq!(said, "", "-q says warnings alone");
    let predicted = rows(&done(s.trainer("predict c.yaml")).out);
    assert_eq!(predicted.len(), table.len(), "rows without a true value are predicted too");
    assert!(s.leftovers().is_empty(), "{:?}", s.leftovers());
}

#[test]
fn prepare_makes_the_files_of_the_seed() {
    let s = scratch("alloy-prepare");
    done(s.trainer("prepare c.yaml"));
    let whole = s.read("all_data/all_data_YS.csv");
    assert_eq!(rows(&whole).len(), 1 + ROWS);
    assert!(whole.starts_with("IDENTIFIER: id,FORMULA,PROPERTY: Processing method,"), "{whole}");
    let mut ids = Vec::new();
    for (part, samples) in [("tr", ROWS - 12), ("vl", 12)] {
        let converted =
            rows(&s.read(format!("all_data/all_data_YS/{part}_all_data_YS_convert.csv")));
        let texts = rows(&s.read(format!("all_data/all_data_YS/{part}_all_data_YS_text.csv")));
        assert_eq!((converted.len(), texts.len()), (1 + samples, 1 + samples));
        assert_eq!(texts[0], ["id", "text", "target", "target_raw"][..]);
        assert!(texts[1..].iter().all(|row| row[1].starts_with("The alloy is ")));
        ids.extend(texts[1..].iter().map(|row| row[0].parse::<usize>().unwrap()));
    }
    ids.sort_unstable();
    assert_eq!(ids, (1..=ROWS).collect::<Vec<_>>());
    for name in ["prepare_report.txt", "prepare_report.json", "tokenizer/tokenizer.json"] {
        assert!(!s.read(format!("all_data/all_data_YS/{name}")).is_empty());
    }
    let cut = s.read("all_data/all_data_YS/truncation.json");
    let cut: serde_json::Value = serde_json::from_str(&cut).unwrap();
    assert_eq!((&cut["texts"], &cut["cut"]), (&(ROWS - 12).into(), &0.into()));
    let short = done(s.trainer("prepare c.yaml --set dataset.max_sequence_length=5")).err;
    says(&short, &["(100.0 %) are longer than 5 tokens and cut"]);
}

#[test]
fn prepare_is_done_once_and_again_when_the_table_changes() {
    let s = scratch("alloy-again");
    let first = done(s.trainer("run c.yaml")).err;
    says(&first, &["rows/s", "tokenizer: byte-level BPE", "step 4/4"]);
    let second = done(s.trainer("run c.yaml --new")).err;
    assert!(!second.contains("rows/s") && !second.contains("tokenizer:"), "{second}");
    says(&second, &["step 4/4"]);
    s.write("alloys.csv", table(ROWS + 1));
    let refused = s.trainer("train c.yaml");
    assert_eq!(refused.code, 3, "{}", refused.err);
    says(&refused.err, &["the table has changed since", "trainer prepare"]);
    let third = done(s.trainer("run c.yaml --new")).err;
    says(&third, &["49 rows, 6 columns", "rows/s", "tokenizer:", "step 4/4"]);
    // Another size is another tokenizer.
    let fourth = done(s.trainer("run c.yaml --set model.vocab_size=320")).err;
    says(&fourth, &["320 ids", "step 4/4"]);
}

#[test]
fn a_row_is_shown_as_the_model_sees_it() {
    let s = scratch("alloy-row");
    let early = s.trainer("inspect c.yaml --row 7");
    assert_eq!(early.code, 3, "{}", early.err);
    says(&early.err, &["prepared", "trainer prepare CONFIG"]);
    done(s.trainer("prepare c.yaml"));
    let row = rows(&s.read("alloys.csv"))[7].clone();
    let shown = done(s.trainer("inspect c.yaml --row 7")).out;
    says(&shown, &["alloys.csv:8:", &format!("The alloy is {}.", &row[1]), "In atomic percent"]);
    says(&shown, &[" tokens: <s> ", " </s>", &format!("icrostructure is {}.", &row[5])]);
    says(&shown, &[&format!("IDENTIFIER: id: {} (it names the row)", &row[0])]);
    says(&shown, &[&format!("PROPERTY: YS (MPa): {} (it is the target)", &row[3])]);
    assert_eq!(shown.matches(&row[3]).count(), 1, "the text does not spell the target:\n{shown}");
}

#[test]
fn a_dry_run_writes_nothing() {
    let s = scratch("alloy-dry");
    let before = s.find("");
    for command in ["run", "prepare", "train"] {
        let said = done(s.trainer(&format!("{command} c.yaml --dry-run"))).err;
        says(&said, &["recipe: alloy", "intermediate_size: 32", "not prepared yet"]);
    }
    assert_eq!(s.find(""), before);
    done(s.trainer("prepare c.yaml"));
    let before = s.find("");
    let said = done(s.trainer("train c.yaml --dry-run")).err;
    says(
        &said,
        &["48 texts (train 36, val 12, test 0)", "steps an epoch", "model: ", " parameters"],
    );
    assert_eq!(s.find(""), before);
}

#[test]
fn a_regression_ends_in_real_units() {
    let s = scratch("alloy-regression");
    let said = done(s.trainer("run c.yaml --set dataset.test_size=6")).err;
    says(&said, &["part", "MAE (MPa)", "R2", "test    6", "done: "]);
    let run = run_dir(&s, "t");
    let figures = json(&s.read(run.join("evaluation.json")));
    let truth: Vec<csv::StringRecord> = rows(&s.read("alloys.csv"));
    for (part, samples) in [("train", 30), ("val", 12), ("test", 6)] {
        let table = rows(&s.read(run.join(format!("predictions_{part}.csv"))));
        assert_eq!(table[0], ["id", "true PROPERTY: YS (MPa)", "predicted PROPERTY: YS (MPa)"][..]);
        assert_eq!(table.len(), 1 + samples);
        for row in &table[1..] {
            assert_eq!(row[1], truth[row[0].parse::<usize>().unwrap()][3], "as in the table");
        }
        let (real, predicted) = (numbers(&table[1..], 1), numbers(&table[1..], 2));
        let apart = real.iter().zip(&predicted).map(|(a, b)| (a - b).abs()).sum::<f64>();
        let mae = apart / samples as f64;
        let told = figures[part]["mae_raw"].as_f64().unwrap();
        assert!((mae - told).abs() < 1e-6 * mae, "{part}: {mae} and {told}");
    }
    pictures(&run, "predicted_vs_true_val", "YS");
    pictures(&run, "predicted_vs_true_test", "YS");
    let again = json(&done(s.trainer("evaluate c.yaml --set dataset.test_size=6")).out);
    for part in ["val", "test"] {
        assert_eq!(again[part], figures[part]);
        assert!(again[part]["loss"].as_f64().unwrap() > 0.0);
    }
    done(s.mpirun(2, "evaluate c.yaml --set dataset.test_size=6 --output e.json"));
    assert_eq!(json(&s.read("e.json")), again);
    let predicted = done(s.trainer("predict c.yaml")).out;
    let predicted = rows(&predicted);
    assert_eq!(predicted[0], ["id", "predicted PROPERTY: YS (MPa)"][..]);
    for row in &rows(&s.read(run.join("predictions_val.csv")))[1..] {
        // Batches are others than in the evaluation, and with them the last bits.
        let own: f64 = predicted[row[0].parse::<usize>().unwrap()][1].parse().unwrap();
        let told: f64 = row[2].parse().unwrap();
        assert!((own - told).abs() < 1e-3, "{own} and {told}");
    }
}

/// The lines of [`CONFIG`] for classes.
pub fn classes(s: &Scratch) {
    let own = "target: Microstructure\n  classes: {FCC: [FCC], BCC: [BCC], Other: '*'}";
    s.write("c.yaml", CONFIG.replace("target: YS", own));
}

#[test]
fn a_classification_ends_in_names_of_classes() {
    let s = scratch("alloy-classes");
    classes(&s);
    let said = done(s.trainer("run c.yaml --set loss.class_weights=balanced")).err;
    says(&said, &["classes: 0 FCC, 1 BCC, 2 Other", "auc_Other", "true \\ predicted"]);
    let run = run_dir(&s, "t");
    let table = rows(&s.read(run.join("predictions_val.csv")));
    assert_eq!(table[0], ["id", "true", "predicted", "p_FCC", "p_BCC", "p_Other"][..]);
    let names = ["FCC", "BCC", "Other"];
    let mut confusion = vec![vec![0u64; 3]; 3];
    let truth = rows(&s.read("alloys.csv"));
    for row in &table[1..] {
        let raw = &truth[row[0].parse::<usize>().unwrap()][5];
        assert_eq!(&row[1], if names.contains(&raw) { raw } else { "Other" });
        let p: Vec<f64> = (3..6).map(|i| row[i].parse().unwrap()).collect();
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{p:?}");
        let index = |name: &str| names.iter().position(|n| *n == name).unwrap();
        assert!(p.iter().all(|own| *own <= p[index(&row[2])] + 1e-6), "the likeliest: {row:?}");
        confusion[index(&row[1])][index(&row[2])] += 1;
    }
    let figures = json(&s.read(run.join("evaluation.json")));
    let told = &figures["val_confusion"];
    assert_eq!(told["rows_are_true_columns_predicted"], serde_json::json!(confusion));
    assert_eq!(told["classes"], serde_json::json!(names));
    let right: u64 = (0..3).map(|i| confusion[i][i]).sum();
    assert_eq!(figures["val"]["accuracy"], right as f64 / 12.0);
    assert!(figures["val"]["auc"].is_f64(), "{figures}");
    pictures(&run, "confusion_matrix_val", "Other");
    pictures(&run, "roc_val", "FCC");

    let predicted = rows(&done(s.trainer("predict c.yaml")).out);
    assert_eq!((predicted.len(), &predicted[0][1]), (1 + ROWS, "predicted"));
    assert!(predicted[1..].iter().all(|row| names.contains(&&row[1])));
    // Weights are a part of the loss.
    let told = done(s.trainer("run c.yaml --set loss.class_weights=[5,1,1] --set run.name=w")).err;
    let first_loss = |text: &str| text.split("step 1/4 | ").nth(1).unwrap()[..40].to_string();
    assert_ne!(first_loss(&said), first_loss(&told));
}
