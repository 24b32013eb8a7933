//! Asked to stop: all ranks leave together with 75, nothing is half-done, the same command goes on.

use crate::harness::{
    Ended, Job, Scratch, assert_same_run, contents, entries, is_open_mpi, last_step, records,
    signal,
};
use std::path::Path;
use std::time::{Duration, Instant};

/// A large ESM that runs within the step: a micro-batch takes long enough to be met in the middle.
const SLOW_ESM: &str = "esm.model={hidden_size: 320, num_hidden_layers: 6, num_attention_heads: 4, intermediate_size: 1280}";

/// Whom to tell to stop. MPICH's `mpiexec` hands USR1 on as Open MPI's `mpirun` does, but after that
/// one run in eight ends with 0 instead of 75.
fn receiver(job: &Job) -> i32 {
    if is_open_mpi() { job.leader() } else { job.ranks()[0] }
}

fn stop(job: Job, pids: &[i32], name: &str) -> Ended {
    pids.iter().for_each(|pid| signal(*pid, name));
    let told = Instant::now();
    let ended = job.wait();
    assert_eq!(ended.code, 75, "{name}\n{}", ended.err);
    assert!(told.elapsed() < Duration::from_secs(10), "{name} took {:?}", told.elapsed());
    assert!(ended.err.contains("stopped by "), "{}", ended.err);
    ended
}

fn checkpoint_of_last_step(run: &Path) -> bool {
    let last = records(run).last().unwrap()["step"].as_u64().unwrap();
    run.join(format!("checkpoints/step_{last:08}/manifest.json")).is_file()
}

#[test]
fn a_training_that_is_stopped_and_gone_on_with_has_the_same_bits() {
    let scratch = Scratch::new("stop");
    let changes = ["training.max_steps=300", "training.eval_steps=50"];
    let whole = scratch.config("whole", &changes);
    scratch.run(None, &["train", whole.to_str().unwrap()], 0);
    let config = scratch.config("stopped", &changes);
    let args = ["train", config.to_str().unwrap()];
    let out = scratch.path("stopped");
    // (ranks, signal, whether one rank alone gets it, step to wait for)
    let plan = [
        (Some(2), "USR1", false, 20),
        (Some(3), "USR1", true, 70),
        (None, "TERM", false, 120),
        (None, "INT", false, 170),
        (Some(4), "TERM", true, 220),
    ];
    for (ranks, name, single, step) in plan {
        let mut job = scratch.launch(ranks, &args);
        assert!(job.until(|| last_step(&out) >= step), "it is still on its way at step {step}");
        let pid = if single { job.ranks()[1] } else { receiver(&job) };
        stop(job, &[pid], name);
        let run = scratch.only_run("stopped");
        assert!(checkpoint_of_last_step(&run), "the last step taken is saved");
    }
    scratch.run(Some(2), &args, 0);
    assert_same_run(&scratch.only_run("whole"), &scratch.only_run("stopped"), "stopped");
}

/// Validation takes most of the time; the signal comes while it runs.
#[test]
fn a_signal_during_evaluation_leaves_no_half_evaluation() {
    let scratch = Scratch::new("evaluation");
    let changes = [
        SLOW_ESM,
        "dataset.val_size=44",
        "dataset.test_size=4",
        "training.max_steps=4",
        "training.eval_steps=2",
        "training.per_device_train_batch_size=1",
        "training.micro_batches_per_step=2",
    ];
    let whole = scratch.config("whole", &changes);
    scratch.run(None, &["train", whole.to_str().unwrap()], 0);
    let config = scratch.config("stopped", &changes);
    let args = ["train", config.to_str().unwrap()];
    let evaluations = |run: &Path| records(run).iter().filter(|r| r["kind"] == "val").count();
    for (done, (ranks, step)) in [(None, 2), (Some(2), 4)].into_iter().enumerate() {
        let mut job = scratch.launch(ranks, &args);
        assert!(job.until(|| last_step(&scratch.path("stopped")) == step));
        std::thread::sleep(Duration::from_millis(40));
        let receiver = receiver(&job);
        stop(job, &[receiver], "USR1");
        let run = scratch.only_run("stopped");
        assert_eq!(evaluations(&run), done, "it was met within the evaluation");
        assert_eq!(last_step(&scratch.path("stopped")), step);
        assert!(checkpoint_of_last_step(&run));
    }
    scratch.run(Some(2), &args, 0);
    assert_same_run(&scratch.only_run("whole"), &scratch.only_run("stopped"), "evaluation");
}

#[test]
fn a_signal_during_embedding_leaves_whole_shards_alone() {
    let scratch = Scratch::new("embedding");
    let whole = scratch.config("whole", &[SLOW_ESM]);
    scratch.run(None, &["embed", whole.to_str().unwrap()], 0);
    let reference = contents(&scratch.path("cache"));
    let cache = format!("esm.cache_dir={}", scratch.path("stopped-cache").display());
    let dir = scratch.path("stopped-cache");
    let config = scratch.config("stopped", &[SLOW_ESM, &cache]);
    let args = ["embed", config.to_str().unwrap()];
    let shards = || entries(&dir).iter().filter(|n| n.ends_with(".h5")).count();
    for (ranks, single) in [(None, false), (Some(2), false), (Some(2), true)] {
        let before = shards();
        let mut job = scratch.launch(ranks, &args);
        assert!(job.until(|| shards() > before), "it is still at work");
        let pid = if single { job.ranks()[1] } else { receiver(&job) };
        stop(job, &[pid], "USR1");
        let left = entries(&dir);
        assert!(!left.contains(&"manifest.json".to_string()), "it was met at work");
        assert!(left.iter().all(|n| !n.starts_with(".tmp-")), "{left:?}");
    }
    scratch.run(Some(3), &args, 0);
    assert!(contents(&dir) == reference, "other bytes: {:?}", entries(&dir));
}

/// The first Ctrl-C is obeyed after the micro-batch, which takes about a second here.
#[test]
fn a_second_interrupt_ends_at_once() {
    let scratch = Scratch::new("twice");
    let esm = "esm.model={hidden_size: 1024, num_hidden_layers: 4, num_attention_heads: 16, intermediate_size: 4096}";
    let batch = ["training.per_device_train_batch_size=64", "training.micro_batches_per_step=1"];
    let config = scratch.config("twice", &[&[esm][..], &batch].concat());
    let mut job = scratch.launch(None, &["train", config.to_str().unwrap()]);
    assert!(job.until(|| last_step(&scratch.path("twice")) >= 1));
    let pid = job.leader();
    std::thread::sleep(Duration::from_millis(50));
    signal(pid, "INT");
    std::thread::sleep(Duration::from_millis(100));
    assert!(!job.is_over(), "the first one waits for the step");
    signal(pid, "INT");
    let told = Instant::now();
    assert_eq!(job.wait().code, 130);
    assert!(told.elapsed() < Duration::from_millis(500), "at once: {:?}", told.elapsed());
}
