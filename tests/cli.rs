//! The good path of every command, and what the command line promises besides.

mod common;

use common::{Outcome, PROTEINS, Scratch};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What must succeed; standard output and error together say what went wrong else.
fn done(outcome: Outcome) -> Outcome {
    assert_eq!(outcome.code, 0, "{}{}", outcome.out, outcome.err);
    outcome
}

#[track_caller]
fn says(text: &str, wanted: &[&str]) {
    for word in wanted {
        assert!(text.contains(word), "no {word:?} in:\n{text}");
    }
}

/// The run directory, of which there is one, below the scratch directory.
fn run_dir(scratch: &Scratch) -> String {
    let runs = scratch.find("t-20");
    assert_eq!(runs.len(), 1, "{runs:?}");
    let name = runs[0].file_name().unwrap().to_string_lossy();
    format!("out/{name}")
}

/// Columns of a comma-separated line that may have quotes in it.
fn columns(text: &str) -> Vec<csv::StringRecord> {
    csv::ReaderBuilder::new()
        .has_headers(false)
        .from_reader(text.as_bytes())
        .into_records()
        .map(Result::unwrap)
        .collect()
}

#[test]
fn from_sample_to_export() {
    let s = Scratch::new("cli");
    says(&done(s.trainer("sample ptm_mamba data")).err, &["800 synthetic proteins"]);
    let found = done(s.trainer("inspect data/ptm.csv")).out;
    says(&found, &["800 rows", "unique_id", "dataset_location: data/ptm.csv"]);
    says(&done(s.trainer("inspect c.yaml")).out, &["batch plan", "padding"]);

    let before = s.find("");
    let dry = done(s.mpirun(2, "run c.yaml --dry-run")).err;
    says(&dry, &["micro_batches_per_step: 2", "parameters", "batch plan", "steps an epoch"]);
    for command in ["embed", "train", "evaluate", "predict"] {
        done(s.trainer(&format!("{command} c.yaml --dry-run")));
    }
    assert_eq!(s.find(""), before, "a dry run writes nothing");

    let quiet = done(s.trainer("-q run c.yaml"));
    assert_eq!(quiet.err, "", "-q says warnings alone");
    let run = run_dir(&s);
    for name in ["config.yaml", "metrics.jsonl", "metrics.json", "split_mapping.json"] {
        assert!(!s.read(format!("{run}/{name}")).is_empty());
    }
    let again = done(s.trainer("embed c.yaml"));
    says(&again.err, &["is finished", &format!("{} records", 2 * PROTEINS)]);
    let cache = done(s.trainer("inspect cache")).out;
    says(&cache, &["finished", "mask_policy", "every byte is as its hash says"]);
    says(&done(s.trainer(&format!("inspect {run}"))).out, &["step_00000004", "last", "whole"]);
    let checkpoint = done(s.trainer(&format!("inspect {run}/best.ckpt"))).out;
    says(&checkpoint, &["after step", "whole", "backbone.embedding.weight", "[59, 16]"]);

    evaluation(&s);
    prediction(&s);
    exports(&s, &run);
    assert!(s.leftovers().is_empty(), "{:?}", s.leftovers());
}

fn evaluation(s: &Scratch) {
    let alone = done(s.trainer("evaluate c.yaml")).out;
    let value: serde_json::Value = serde_json::from_str(&alone).unwrap();
    for part in ["val", "test"] {
        assert_eq!(value[part]["samples"], 6.0, "{alone}");
        assert!(value[part]["loss"].as_f64().unwrap() > 0.0, "{alone}");
    }
    done(s.mpirun(2, "evaluate c.yaml --output e.json"));
    assert_eq!(s.read("e.json"), alone, "on two ranks, to the last digit");
}

fn prediction(s: &Scratch) {
    s.write("two.fasta", ">A one\nMKSLV\n>B\nMMSKAAAA\n");
    let text = done(s.trainer("predict c.yaml --input two.fasta --min-probability 0")).out;
    let rows = columns(&text);
    assert_eq!(rows[0], ["id", "pos", "residue", "token", "probability"][..]);
    // Thirteen residues; 25 PTM tokens, the generic one apart.
    assert_eq!((rows.len() - 1) % 13, 0, "{} rows", rows.len());
    assert_eq!((&rows[1][0], &rows[1][1], &rows[1][2]), ("A", "0", "M"));
    let last = &rows[rows.len() - 1];
    assert_eq!((&last[0], &last[1], &last[2]), ("B", "7", "A"));
    assert!(rows[1..].iter().all(|row| (0.0..=1.0).contains(&row[4].parse::<f64>().unwrap())));
    let few = done(s.trainer("predict c.yaml --input two.fasta --min-probability 0.02")).out;
    let kept = rows[1..].iter().filter(|row| row[4].parse::<f64>().unwrap() >= 0.02).count();
    assert_eq!(columns(&few).len() - 1, kept);

    done(s.trainer("predict c.yaml --input two.fasta --output r.h5"));
    done(s.trainer("predict c.yaml --input two.fasta --output m.h5 --mean"));
    let shape = |name: &str| {
        let file = hdf5::File::open(s.path(name)).unwrap();
        let lengths: Vec<i32> = file.dataset("lengths").unwrap().read_raw().unwrap();
        (file.dataset("embeddings").unwrap().shape(), lengths)
    };
    assert_eq!(shape("r.h5"), (vec![2, 8, 16], vec![5, 8]));
    assert_eq!(shape("m.h5"), (vec![2, 1, 16], vec![1, 1]));
}

fn exports(s: &Scratch, run: &str) {
    let mapping = format!("{run}/split_mapping.json");
    done(s.trainer(&format!("export cache --to h5 --output up --split-mapping {mapping}")));
    for (part, rows) in [("train", PROTEINS - 12), ("val", 6), ("test", 6)] {
        let file = hdf5::File::open(s.path(format!("up/{part}_embeddings.h5"))).unwrap();
        assert_eq!(file.dataset("embeddings").unwrap().shape()[0], rows);
    }
    done(s.trainer(&format!("export {run}/best.ckpt --to upstream --output model")));
    says(&done(s.trainer("inspect model")).out, &["lm_head.weight", "backbone.embedding.weight"]);
    // What was exported can be used again.
    let theirs = done(s.trainer("evaluate c.yaml --checkpoint model")).out;
    let ours = done(s.trainer("evaluate c.yaml")).out;
    let without_path = |text: &str| text.lines().skip(2).map(String::from).collect::<Vec<_>>();
    assert_eq!(without_path(&theirs), without_path(&ours));
}

#[test]
fn the_stored_configuration_is_the_same_run() {
    let s = Scratch::new("stored");
    let first = done(s.trainer("run c.yaml --set training.lr=0.001")).err;
    says(&first, &["step 4/4"]);
    let run = run_dir(&s);
    let complete = s.read(format!("{run}/run.json"));
    let stopped = complete.replace("\"complete\": true", "\"complete\": false");
    assert_ne!(complete, stopped);
    s.write(&format!("{run}/run.json"), stopped);
    // From elsewhere: its paths are absolute.
    let config = format!("{}/config.yaml", s.path(&run).display());
    let moved = Command::new(env!("CARGO_BIN_EXE_trainer"))
        .args(["train", &config])
        .current_dir(s.path("tmp"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&moved.stderr);
    assert!(moved.status.success(), "{said}");
    says(&said, &["going on from", "(step 4)"]);
    assert_eq!(run_dir(&s), run, "no other run was begun");
    assert_eq!(s.read(format!("{run}/run.json")), complete);
}

#[test]
fn every_command_explains_itself() {
    let s = Scratch::new("help");
    let help = done(s.trainer("--help")).out;
    let commands = ["run", "embed", "train", "evaluate", "predict", "export", "inspect", "sample"];
    for command in commands.iter().chain(&["doctor", "status"]) {
        says(&help, &[command]);
        says(&done(s.trainer(&format!("{command} --help"))).out, &["Usage: trainer", "--quiet"]);
    }
    let doctor = done(s.mpirun(2, "doctor"));
    says(&doctor.out, &["libtorch", "HDF5", "MPI says the same", "NCCL", "2 ranks of 1 thread"]);
    assert!(doctor.seconds < 60.0);
}

/// Files of a folder of the repository with this extension.
fn shipped(folder: &str, extension: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let found: Vec<_> = files.filter(|f| f.extension().is_some_and(|e| e == extension)).collect();
    assert!(!found.is_empty());
    found
}

/// What the data and models that a shipped configuration names are replaced by, for they are not
/// here; all else is read and checked.
fn replacements(recipe: &str) -> &'static [&'static str] {
    match recipe {
        "alloy" => &[
            "dataset.dataset_location=data/alloys.csv",
            "model.init_from=null",
            "model.tokenizer=null",
            "model.hidden_size=16",
            "model.num_hidden_layers=2",
            "model.num_attention_heads=2",
            "model.intermediate_size=32",
        ],
        _ => &[
            "dataset.dataset_location=data.csv",
            "dataset.val_size=6",
            "dataset.test_size=6",
            "model.esm_embed_dim=null",
            "esm.model=null",
            "esm.model.hidden_size=16",
            "esm.model.num_hidden_layers=2",
            "esm.model.num_attention_heads=2",
            "esm.model.intermediate_size=32",
        ],
    }
}

#[test]
fn shipped_configurations_are_read() {
    let s = Scratch::new("shipped");
    done(s.trainer("sample alloy data"));
    for path in shipped("configs", "yaml") {
        let text = fs::read_to_string(&path).unwrap();
        let recipe = text.lines().find_map(|line| line.strip_prefix("recipe: ")).unwrap();
        let recipe = recipe.split_whitespace().next().unwrap();
        let sets: String = replacements(recipe).iter().map(|set| format!(" --set {set}")).collect();
        let path = path.display();
        if recipe == "alloy" {
            // Without samples little of a dry run can be done.
            done(s.trainer(&format!("prepare {path}{sets}")));
        }
        let said = done(s.trainer(&format!("run {path} --dry-run{sets}"))).err;
        says(&said, &["batch plan", " parameters"]);
    }
}

#[test]
fn shipped_scripts_are_bash() {
    for script in shipped("jobs", "sh") {
        let checked = Command::new("bash").arg("-n").arg(&script).status().unwrap();
        assert!(checked.success(), "{}", script.display());
    }
}
