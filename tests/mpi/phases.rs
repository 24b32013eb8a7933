//! SIGUSR1 to one rank alone, in every phase: all leave together with 75, and the same command goes on
//! to the same bytes. And what makes a job stop by itself: its time limit, restarts without progress.

use crate::harness::{Ended, Scratch, TRAINER, assert_same_run, contents, mpirun};

const COMMON: [&str; 4] = [
    "training.use_precomputed_embeddings=true",
    "training.max_steps=6",
    "training.eval_steps=2",
    "training.save_steps=3",
];

/// Phases of `run` that a signal can come in, in their order.
const PHASES: [&str; 16] = [
    "loading ESM-2",
    "reading sequences",
    "planning the embedding job",
    "looking at the cache",
    "embedding",
    "finishing the cache",
    "finding the run",
    "reading the data",
    "opening the embeddings",
    "planning the batches",
    "making the model",
    "preparing training",
    "evaluating the val part",
    "saving after step 3",
    "training, step 5",
    "evaluating the test part",
];

fn launch(scratch: &Scratch, ranks: &str, vars: &[&str], args: &[&str]) -> Ended {
    scratch.start(&[&["env"], vars, mpirun(), &["-n", ranks, TRAINER]].concat(), args).wait()
}

#[test]
fn a_signal_to_one_rank_is_honoured_in_every_phase() {
    let scratch = Scratch::new("phases");
    let cache = |name: &str| format!("esm.cache_dir={}", scratch.path(name).display());
    let config =
        |name: &str, own: &str| scratch.config(name, &[&COMMON[..], &[&cache(own)]].concat());
    let whole = config("whole", "whole-cache");
    scratch.run(None, &["run", whole.to_str().unwrap()], 0);
    let stopped = config("stopped", "stopped-cache");
    let args = ["run", stopped.to_str().unwrap()];
    let mut counted = 0;
    for (i, phase) in PHASES.iter().enumerate() {
        let (rank, ranks) = (i % 3, 3);
        let fault = format!("TRAINER_FAULT=usr1@{phase}:rank={rank}");
        let ended = launch(&scratch, "3", &[&fault], &args);
        assert!(ended.err.contains("fault: "), "{phase} was met\n{}", ended.err);
        assert_eq!(ended.code, 75, "{phase} on rank {rank} of {ranks}\n{}", ended.err);
        assert_eq!(ended.err.matches("stopped by ").count(), 1, "{}", ended.err);
        assert!(ended.err.contains("the same command goes on"), "{}", ended.err);
        counted += 1;
    }
    assert_eq!(counted, 16);
    // With nothing left to interrupt it comes to the same end.
    scratch.run(Some(2), &args, 0);
    assert!(contents(&scratch.path("whole-cache")) == contents(&scratch.path("stopped-cache")));
    assert_same_run(&scratch.only_run("whole"), &scratch.only_run("stopped"), "phases");
}

/// A step that takes seconds is given up between two micro-batches, by all ranks.
#[test]
fn a_long_step_is_given_up() {
    let scratch = Scratch::new("long");
    let changes = ["training.max_steps=4", "training.eval_steps=2"];
    let whole = scratch.config("whole", &changes);
    scratch.run(None, &["train", whole.to_str().unwrap()], 0);
    let config = scratch.config("a", &changes);
    let args = ["train", config.to_str().unwrap()];
    let fault = "TRAINER_FAULT=slow=2500@training, step 1#1;usr1@training, step 2#2:rank=1";
    let ended = launch(&scratch, "2", &[fault], &args);
    assert_eq!(ended.code, 75, "{}", ended.err);
    assert!(ended.err.contains("while training, step 2, piece 2"), "{}", ended.err);
    assert!(ended.err.contains(" after step 1; everything is saved"), "{}", ended.err);
    scratch.run(Some(2), &args, 0);
    assert_same_run(&scratch.only_run("whole"), &scratch.only_run("a"), "long");
}

/// Rank 0 knows the limit; all leave before it, with time to save.
#[test]
fn a_time_limit_is_kept() {
    let scratch = Scratch::new("limit");
    let config = scratch.config("a", &["training.max_steps=100000", "training.eval_steps=1000"]);
    let args = ["train", config.to_str().unwrap()];
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let end = format!("SLURM_JOB_END_TIME={}", now.as_secs() + 28);
    let ended = launch(&scratch, "2", &["SLURM_JOB_ID=7", &end], &args);
    assert_eq!(ended.code, 75, "{}", ended.err);
    assert!(ended.err.contains("stopped by the job's time limit after step"), "{}", ended.err);
    assert!(ended.seconds < 28.0, "{} s", ended.seconds);
    assert!(scratch.only_run("a").join("last.ckpt/manifest.json").is_file());
}

/// A job that Slurm starts again and again, and that never gets anywhere.
#[test]
fn a_crash_loop_ends() {
    let scratch = Scratch::new("loop");
    let config = scratch.config("a", &["training.max_steps=4", "training.eval_steps=2"]);
    let args = ["train", config.to_str().unwrap()];
    let fault = "TRAINER_FAULT=exit=9@training, step 1";
    let mut codes = Vec::new();
    for restart in 0..8 {
        let count = format!("SLURM_RESTART_COUNT={restart}");
        let vars: &[&str] = if restart == 0 { &[fault] } else { &[fault, &count] };
        let line = [&["env"], vars, &[TRAINER]].concat();
        let ended = scratch.start(&line, &args).wait();
        codes.push(ended.code);
        if ended.code == 4 {
            assert!(
                ended.err.contains(" times in a row without getting beyond 0 steps"),
                "{}",
                ended.err
            );
        }
    }
    assert_eq!(codes, [9, 9, 9, 9, 9, 9, 4, 4], "five restarts are allowed");
    // By hand it goes on, and well.
    scratch.run(None, &args, 0);
}
