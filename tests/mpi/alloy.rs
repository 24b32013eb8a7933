//! The recipe `alloy` on several processes: pretraining, training, figures and predictions are the
//! same to the bit on any number of ranks, after a stop in any phase, and after a kill.

#[path = "../common/alloys.rs"]
mod alloys;

use crate::harness::{Ended, Scratch, TRAINER, assert_same_run, bits, entries, last_step, mpirun};
use alloys::{CONFIG, ROWS, table};
use std::fs;
use std::path::Path;

const MAIN_STEPS: u64 = 8;
const OUTPUTS: [&str; 3] = ["evaluation.json", "predictions_train.csv", "predictions_val.csv"];

fn scratch(name: &str) -> Scratch {
    let scratch = Scratch::new(name);
    fs::write(scratch.path("c.yaml"), CONFIG).unwrap();
    fs::write(scratch.path("alloys.csv"), table(ROWS)).unwrap();
    scratch
}

/// Arguments of a command for two stages with dropout, whose files are below `name`.
fn args(command: &str, name: &str) -> Vec<String> {
    let sets = [
        format!("run.output_dir={name}"),
        format!("dataset.prepared_dir={name}-data"),
        "stages=[pretrain, train]".to_string(),
        "model.hidden_dropout_prob=0.1".to_string(),
        "model.attention_probs_dropout_prob=0.1".to_string(),
        "pretrain.max_steps=4".to_string(),
        format!("training.max_steps={MAIN_STEPS}"),
        "training.eval_steps=4".to_string(),
        "pretrain.eval_steps=2".to_string(),
        "training.metric_for_best_model=val_rmse_raw".to_string(),
    ];
    let mut args = vec![command.to_string(), "c.yaml".to_string()];
    args.extend(sets.into_iter().flat_map(|set| ["--set".to_string(), set]));
    args
}

/// Runs `run` to its end below `name`.
fn run(scratch: &Scratch, name: &str, ranks: Option<usize>) -> Ended {
    let args = args("run", name);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    scratch.run(ranks, &args, 0)
}

/// `run` on these ranks with a fault; it ends as it may.
fn faulty(scratch: &Scratch, name: &str, ranks: usize, fault: &str) -> Ended {
    let (fault, ranks) = (format!("TRAINER_FAULT={fault}"), ranks.to_string());
    let args = args("run", name);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let command = [&["env", &fault], mpirun(), &["-n", &ranks, TRAINER]].concat();
    scratch.start(&command, &args).wait()
}

/// Both stages with every checkpoint, figures and predictions, to the byte. A stop leaves a checkpoint
/// more in `b`, where it was.
fn assert_same(a: &Path, b: &Path, what: &str) {
    for (stage, steps) in [("pretrain", 4), ("", MAIN_STEPS)] {
        let (a, b) = (a.join(stage), b.join(stage));
        let what = format!("{what}, {stage}");
        assert_same_run(&a, &b, &what);
        let names = entries(&a.join("checkpoints"));
        assert!(names.contains(&format!("step_{steps:08}")), "{what}: {names:?}");
        for name in names {
            let own = Path::new("checkpoints").join(&name);
            let own = own.to_str().unwrap();
            assert!(bits(&a, own) == bits(&b, own), "{what}: {name} differs in bits");
        }
    }
    for name in OUTPUTS {
        let read = |run: &Path| fs::read_to_string(run.join(name)).unwrap();
        assert_eq!(read(a), read(b), "{what}: {name}");
    }
}

#[test]
fn both_stages_have_the_same_bits_on_any_number_of_ranks() {
    let scratch = scratch("alloy-exact");
    run(&scratch, "alone", None);
    let alone = scratch.only_run("alone");
    let predictions = fs::read_to_string(alone.join("predictions_val.csv")).unwrap();
    assert_eq!(predictions.lines().count(), 1 + 12, "{predictions}");
    let figures = fs::read_to_string(alone.join("evaluation.json")).unwrap();
    let figures: serde_json::Value = serde_json::from_str(&figures).unwrap();
    assert_eq!(
        (&figures["val"]["samples"], &figures["train"]["samples"]),
        (&12.into(), &36.into())
    );
    assert!(figures["val"]["mae_raw"].as_f64().unwrap() > 1.0, "{figures}");
    for n in [2, 3, 4] {
        let name = format!("ranks-{n}");
        run(&scratch, &name, Some(n));
        assert_same(&alone, &scratch.only_run(&name), &name);
    }
    let last = |stage: &str| bits(&alone.join(stage), "last.ckpt");
    assert_ne!(last("pretrain")[0], last("")[0]);
    assert_ne!(
        bits(&alone, "checkpoints/step_00000004"),
        bits(&alone, "checkpoints/step_00000008")
    );
}

/// A phase that is met, the ranks it is met on, and which of them gets the signal. Rank 0 alone
/// prepares.
const STOPS: [(&str, usize, usize); 8] = [
    ("preparing the samples", 2, 0),
    ("training the tokenizer", 3, 0),
    ("turning texts into tokens", 2, 1),
    ("training, step 3", 3, 2),
    ("evaluating the val part", 2, 0),
    ("training, step 6", 4, 3),
    ("evaluating the train part", 3, 1),
    ("writing predictions and pictures", 2, 1),
];

#[test]
fn a_stop_in_any_phase_changes_nothing() {
    let scratch = scratch("alloy-stops");
    run(&scratch, "whole", None);
    for (phase, ranks, rank) in STOPS {
        if ["preparing the samples", "training the tokenizer"].contains(&phase) {
            // A table as small as this is done before a stop is seen.
            let _ = fs::remove_dir_all(scratch.path("stopped-data"));
        }
        let ended = faulty(&scratch, "stopped", ranks, &format!("usr1@{phase}:rank={rank}"));
        assert!(ended.err.contains("fault: "), "{phase} was met\n{}", ended.err);
        assert_eq!(ended.code, 75, "{phase} on rank {rank} of {ranks}\n{}", ended.err);
        assert_eq!(ended.err.matches("stopped by ").count(), 1, "{phase}\n{}", ended.err);
    }
    run(&scratch, "stopped", None);
    assert_same(&scratch.only_run("whole"), &scratch.only_run("stopped"), "stops");
}

#[test]
fn a_kill_in_either_stage_changes_nothing() {
    let scratch = scratch("alloy-kill");
    run(&scratch, "whole", None);
    // The step is slow, so that the kill is within it.
    for (ranks, step) in [(3, 3), (2, 6)] {
        let fault = format!("TRAINER_FAULT=slow=20000@training, step {step}");
        let args = args("run", "killed");
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let n = ranks.to_string();
        let command = [&["env", &fault], mpirun(), &["-n", &n, TRAINER]].concat();
        let mut job = scratch.start(&command, &args);
        let stage = if step == 3 { "pretrain" } else { "" };
        let reached = || {
            let Some(run) = entries(&scratch.path("killed")).pop() else { return false };
            let dir = scratch.path("killed").join(run).join(stage);
            crate::harness::records(&dir)
                .iter()
                .any(|r| r["kind"] == "train" && r["step"] == step - 1)
        };
        assert!(job.until(reached), "step {} of the stage {stage:?} was done", step - 1);
        assert!(job.kill(), "the kill met a living job");
    }
    assert!(last_step(&scratch.path("killed")) < MAIN_STEPS);
    run(&scratch, "killed", Some(4));
    assert_same(&scratch.only_run("whole"), &scratch.only_run("killed"), "kill");
}

/// More rows than two blocks hold, so that ranks take turns and the last one is short.
#[test]
fn predictions_keep_the_order_of_the_table_on_any_number_of_ranks() {
    let scratch = scratch("alloy-predict");
    run(&scratch, "alone", None);
    fs::write(scratch.path("new.csv"), table(700)).unwrap();
    let mut predict = args("predict", "alone");
    predict.extend(["--input", "new.csv"].map(String::from));
    let mut predict: Vec<&str> = predict.iter().map(String::as_str).collect();
    let alone = scratch.run(None, &predict, 0).out;
    let ids: Vec<&str> =
        alone.lines().skip(1).map(|line| line.split(',').next().unwrap()).collect();
    let rows: Vec<String> = (1..=700).map(|row| row.to_string()).collect();
    assert_eq!(ids, rows);
    assert!(scratch.run(Some(3), &predict, 0).out == alone, "three ranks say the same");
    predict.extend(["--output", "p.csv"]);
    let said = scratch.run(Some(3), &predict, 0);
    assert_eq!(said.out, "");
    assert_eq!(fs::read_to_string(scratch.path("p.csv")).unwrap(), alone);
    let left = entries(&scratch.path(".")).into_iter().filter(|name| name.starts_with(".tmp-"));
    assert_eq!(left.count(), 0);
}
