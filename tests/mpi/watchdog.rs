//! A rank that stops, dies or stands still in any phase: the job ends, and says who and where.

use crate::harness::{Dice, Ended, Scratch, TRAINER, entries, last_step, mpirun};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The phases of a training, in words that a report must contain, and the change that makes the job
/// come by there.
const PHASES: [(&str, &str); 8] = [
    ("reading the data", ""),
    ("making the model", ""),
    ("preparing training", ""),
    ("training, step 3", ""),
    ("evaluating the val part", ""),
    ("saving after step", ""),
    ("evaluating the test part", ""),
    ("embedding", "training.use_precomputed_embeddings=true"),
];

/// Four ranks that meet a fault; the watchdog's limits are short.
fn faulty(scratch: &Scratch, name: &str, fault: &str, changes: &[&str]) -> Ended {
    let limits =
        ["distributed.heartbeat_timeout=4", "training.max_steps=4", "training.eval_steps=2"];
    let config = scratch.config(name, &[&limits[..], changes].concat());
    let fault = format!("TRAINER_FAULT={fault}");
    let line = [&["env", &fault], mpirun(), &["-n", "4", TRAINER]].concat();
    scratch.start(&line, &["run", config.to_str().unwrap()]).wait_any()
}

/// A phase up to its number, which may be one behind: heartbeats come every two seconds.
fn kind(phase: &str) -> &str {
    phase.trim_end_matches(|c: char| c.is_ascii_digit())
}

fn assert_happened(ended: &Ended, phase: &str) {
    assert!(ended.err.contains("fault: "), "it happened\n{}", ended.err);
    assert!(ended.err.contains(&format!("while {phase}")), "while {phase}\n{}", ended.err);
}

/// Every rank in every phase would be 32 launches of eight seconds; each rank in two phases drawn
/// by lot is eight. `WATCHDOG_ALL` set: all of them.
fn draws(test: &str) -> Vec<(usize, usize)> {
    let all = (0..4).flat_map(|rank| (0..PHASES.len()).map(move |phase| (rank, phase)));
    if std::env::var_os("WATCHDOG_ALL").is_some() {
        return all.collect();
    }
    let mut dice = Dice::new(test);
    let first = dice.roll(0, 7) as usize;
    (0..8).map(|i| (i % 4, (first + i) % PHASES.len())).collect()
}

#[test]
fn a_stopped_rank_is_named_with_its_phase() {
    let scratch = Scratch::new("stopped");
    let mut counted = 0;
    for (rank, phase) in draws("stopped") {
        let (phase, change) = PHASES[phase];
        let name = format!("stop-{rank}-{}", phase.replace([' ', ','], "-"));
        let cache = format!("esm.cache_dir={}", scratch.path(&format!("cache-{name}")).display());
        let fault = format!("stop@{phase}:rank={rank}");
        let ended = faulty(&scratch, &name, &fault, &[change, &cache]);
        assert_happened(&ended, phase);
        assert_eq!(ended.code, 76, "{}", ended.err);
        assert!(ended.seconds < 30.0, "{} s", ended.seconds);
        let who = format!("watchdog: rank {rank} of 4, host ");
        assert_eq!(ended.err.matches("watchdog: ").count(), 1, "told once\n{}", ended.err);
        let report = ended.err.split("watchdog: ").nth(1).unwrap().lines().next().unwrap();
        assert!(ended.err.contains(&who), "{}", ended.err);
        assert!(report.contains(" was stopped (SIGSTOP or a debugger) "), "{report}");
        assert!(report.contains(&format!(", while {}", kind(phase))), "{report}");
        counted += 1;
    }
    assert!(counted >= 8);
}

#[test]
fn a_killed_rank_is_named_with_its_phase() {
    let scratch = Scratch::new("killed");
    for (rank, phase) in draws("killed") {
        let (phase, change) = PHASES[phase];
        let name = format!("kill-{rank}-{}", phase.replace([' ', ','], "-"));
        let cache = format!("esm.cache_dir={}", scratch.path(&format!("cache-{name}")).display());
        let fault = format!("kill@{phase}:rank={rank}");
        let ended = faulty(&scratch, &name, &fault, &[change, &cache]);
        assert_happened(&ended, phase);
        assert!(![0, 75].contains(&ended.code), "{}", ended.err);
        assert!(ended.seconds < 15.0, "{} s", ended.seconds);
        // mpirun ends the others within a second; they use it to say who died, and where.
        let report = format!("watchdog: rank {rank} of 4, host ");
        let line = ended.err.lines().find(|line| line.contains(&report));
        let line = line.unwrap_or_else(|| panic!("nobody is named\n{}", ended.err));
        assert!(line.contains(&format!(" is dead, while {}", kind(phase))), "{line}");
    }
}

/// Errors, panics and crashes of one rank end the job at once and are told once.
#[test]
fn a_failing_rank_ends_the_job_in_seconds() {
    let scratch = Scratch::new("failing");
    for (fault, code) in [("panic", 70), ("exit=3", 3), ("abort", 134)] {
        let name = fault.replace('=', "-");
        let at = format!("{fault}@training, step 3:rank=2");
        let start = Instant::now();
        let ended = faulty(&scratch, &name, &at, &[]);
        assert_happened(&ended, "training, step 3");
        // mpirun gives a signal's number or the code.
        assert!([code, code - 128].contains(&ended.code), "{fault}: {}\n{}", ended.code, ended.err);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        let said = ended.err.matches("a fault on purpose").count();
        assert_eq!(said, usize::from(fault == "panic"), "{}", ended.err);
    }
}

/// A rank that gives signs of life and does nothing is behind; the others wait.
#[test]
fn a_rank_that_stands_still_is_named() {
    let scratch = Scratch::new("still");
    let limit = ["distributed.progress_timeout=5", "distributed.heartbeat_timeout=20"];
    let ended = faulty(&scratch, "a", "slow=60000@training, step 3:rank=1", &limit);
    assert_eq!(ended.code, 76, "{}", ended.err);
    let report = ended.err.split("watchdog: ").nth(1).unwrap_or_default();
    assert!(report.starts_with("rank 1 of 4, host "), "{}", ended.err);
    assert!(report.contains(" has done nothing for "), "{}", ended.err);
    assert!(report.contains(", while training, step 3\n"), "{}", ended.err);
    assert!(report.contains("\n  rank 0 on "), "{}", ended.err);
    assert!(report.contains(" waits, while training, step 3"), "{}", ended.err);
    assert!(report.contains("raise distributed.progress_timeout"), "{}", ended.err);
}

/// Slow is not hung: pieces of work that each take nearly as long as the limit, on one rank alone.
#[test]
fn a_slow_rank_is_left_alone() {
    let scratch = Scratch::new("slow");
    let limit = ["distributed.progress_timeout=4", "distributed.heartbeat_timeout=3"];
    let slow = "slow=2500@training, step 1:rank=1;slow=2500@training, step 2:rank=1;\
                slow=2500@training, step 3:rank=1;slow=2500@saving after step 4:rank=0";
    let ended = faulty(&scratch, "a", slow, &limit);
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert!(ended.seconds > 10.0, "it was slow: {} s", ended.seconds);
    let run = scratch.only_run("a");
    assert!(!run.join("heartbeats").exists(), "who leaves takes its signs of life along");
}

/// What `status` says while a job works, after it was killed, and when it is complete.
#[test]
fn status_tells_of_ranks_from_outside() {
    let scratch = Scratch::new("status");
    let changes = ["training.max_steps=60", "training.eval_steps=20"];
    let config = scratch.config("a", &changes);
    let args = ["train", config.to_str().unwrap()];
    let out = scratch.path("a");
    let mut job = scratch.launch(Some(2), &args);
    assert!(job.until(|| last_step(&out) >= 2));
    let run = scratch.only_run("a");
    let working = status(&run);
    assert_eq!(working["complete"], false);
    assert_eq!(working["jobs"][0]["state"], "running", "{working}");
    let ranks = working["jobs"][0]["ranks"].as_array().unwrap();
    assert_eq!(ranks.len(), 2);
    assert!(ranks.iter().all(|rank| rank["total"] == 60 || rank["step"] == 0), "{working}");
    // The newest run of a directory of runs.
    assert_eq!(status(&out)["dir"], run.to_str().unwrap());
    assert!(job.kill(), "it was still at work");
    let dead = status(&run);
    assert_eq!(dead["jobs"][0]["state"], "dead", "{dead}");
    scratch.run(Some(2), &args, 0);
    let done = status(&run);
    assert_eq!((&done["complete"], &done["checkpoint_step"]), (&true.into(), &60.into()));
    assert_eq!(done["jobs"].as_array().unwrap().len(), 0);
    assert!(entries(&run).iter().all(|name| name != "heartbeats"));
}

fn status(dir: &Path) -> serde_json::Value {
    let output =
        Command::new(TRAINER).args(["status", "--json", dir.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
