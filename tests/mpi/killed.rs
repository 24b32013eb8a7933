//! Killed at any moment, gone on with on another number of ranks: the same bits.

use crate::harness::{Dice, Scratch, assert_same_run, entries, last_step, records, signal};
use std::time::{Duration, Instant};

/// Kills a training at random moments, with other ranks each time, until it is finished, and
/// requires the run that nobody disturbed. `steps` is how far it goes.
fn killed(name: &str, steps: u64, changes: &[&str]) {
    let scratch = Scratch::new(name);
    let mut dice = Dice::new(name);
    let whole = scratch.config("whole", changes);
    scratch.run(None, &["train", whole.to_str().unwrap()], 0);
    let reference = scratch.only_run("whole");
    let all = last_step(&scratch.path("whole"));
    assert!(all <= steps, "{all} steps");

    let config = scratch.config("killed", changes);
    let (mut died, mut last) = (0, None);
    for kill in 0.. {
        let ranks = loop {
            let ranks = [None, Some(1), Some(2), Some(3), Some(4)][dice.roll(0, 4) as usize];
            if ranks != last {
                break ranks;
            }
        };
        last = ranks;
        let mut job = scratch.launch(ranks, &["train", config.to_str().unwrap()]);
        if kill >= 4 {
            let ended = job.wait();
            assert_eq!(ended.code, 0, "{}", ended.err);
            break;
        }
        // Some way on in the first three quarters, and then a moment that no step decides.
        let aim = all * 3 / 4 * (kill + 1) / 4;
        let aim = aim.saturating_sub(dice.roll(0, all / 8)).max(1);
        job.until(|| last_step(&scratch.path("killed")) >= aim);
        std::thread::sleep(Duration::from_micros(dice.roll(0, 30_000)));
        // Every other time one rank alone dies, and must take the others with it.
        let single = ranks.is_some_and(|n| n > 1) && dice.roll(0, 1) == 1;
        if single {
            let pids = job.ranks();
            if !pids.is_empty() {
                signal(pids[dice.roll(0, pids.len() as u64 - 1) as usize], "KILL");
            }
            let told = Instant::now();
            let ended = job.wait_any();
            assert!(told.elapsed() < Duration::from_secs(10), "{}", ended.err);
            died += usize::from(ended.code != 0);
        } else {
            died += usize::from(job.kill());
        }
    }
    assert!(died >= 3, "only {died} of 4 kills met a living job");
    let run = scratch.only_run("killed");
    assert_same_run(&reference, &run, name);
    let steps: Vec<u64> = records(&run)
        .iter()
        .filter(|r| r["kind"] == "train")
        .map(|r| r["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=all).collect::<Vec<_>>(), "each step once, in order");
}

const LONG: [&str; 3] =
    ["training.max_steps=200", "training.eval_steps=20", "training.save_steps=10"];

#[test]
fn a_cosine_schedule_survives_kills() {
    let more = ["training.lr_scheduler_type=cosine", "training.warmup_steps=15"];
    killed("cosine", 200, &[&LONG[..], &more].concat());
}

#[test]
fn a_linear_schedule_and_a_limit_of_checkpoints_survive_kills() {
    let more = ["training.lr_scheduler_type=linear", "training.warmup_steps=30"];
    let limit = ["training.save_total_limit=2"];
    killed("linear", 200, &[&LONG[..], &more, &limit].concat());
}

/// At this rate the model learns its 40 samples by heart, and validation grows worse.
#[test]
fn early_stopping_survives_kills() {
    let more =
        ["training.early_stopping_patience=3", "training.lr=3.0e-2", "training.max_steps=2000"];
    killed("patience", 1999, &[&LONG[..], &more].concat());
}

#[test]
fn a_limit_keeps_the_newest_and_the_best() {
    let scratch = Scratch::new("limit");
    let changes = ["training.save_total_limit=2", "training.lr=3.0e-2", "training.max_steps=200"];
    let config = scratch.config("limit", &[&changes[..], &["training.eval_steps=20"]].concat());
    scratch.run(Some(2), &["train", config.to_str().unwrap()], 0);
    let run = scratch.only_run("limit");
    let best = std::fs::read_link(run.join("best.ckpt")).unwrap();
    let best = best.file_name().unwrap().to_string_lossy().into_owned();
    let newest = ["step_00000180".to_string(), "step_00000200".to_string()];
    assert!(!newest.contains(&best), "the best is an older one, else this shows nothing");
    assert_eq!(entries(&run.join("checkpoints")), [&[best], &newest[..]].concat());
}

/// The two moments that chance hardly meets, made by hand from a finished run: after a checkpoint
/// and before its links, and after the last record and before the run is marked as complete.
#[test]
fn links_and_records_that_a_kill_left_behind_are_put_right() {
    let scratch = Scratch::new("links");
    let changes = [
        "training.lr=3.0e-2",
        "training.max_steps=200",
        "training.eval_steps=20",
        "training.save_total_limit=null",
    ];
    let whole = scratch.config("whole", &changes);
    scratch.run(None, &["train", whole.to_str().unwrap()], 0);
    let reference = scratch.only_run("whole");
    let best = std::fs::read_link(reference.join("best.ckpt")).unwrap();
    let config = scratch.config("killed", &changes);
    let args = ["train", config.to_str().unwrap()];
    scratch.run(None, &args, 0);
    let run = scratch.only_run("killed");
    let unfinished = || {
        let file = run.join("run.json");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("\"complete\": true"), "{text}");
        std::fs::write(file, text.replace("true", "false")).unwrap();
    };

    unfinished();
    for step in ["step_00000180", "step_00000200"] {
        assert!(!best.ends_with(step), "the best is an older one, else this shows nothing");
        std::fs::remove_dir_all(run.join("checkpoints").join(step)).unwrap();
    }
    for link in ["best.ckpt", "last.ckpt"] {
        std::fs::remove_file(run.join(link)).unwrap();
    }
    std::os::unix::fs::symlink("checkpoints/step_00000160", run.join("best.ckpt")).unwrap();
    scratch.run(Some(2), &args, 0);
    assert_same_run(&reference, &run, "links");

    unfinished();
    scratch.run(Some(2), &args, 0);
    assert_same_run(&reference, &run, "records");
}
