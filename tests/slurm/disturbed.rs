//! Trainings that are interrupted in every way a cluster knows: the job goes back into the queue,
//! goes on, and ends with the weights of the run that nobody disturbed. Unless it was cancelled, or
//! one of its ranks died.

use crate::cluster::{Batch, Cluster, job_file, plugin};
use crate::harness::{Job, assert_same_run, last_step, signal};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Long enough to be met in the middle.
const STEPS: u64 = 200;
const CHANGES: [&str; 3] =
    ["training.max_steps=200", "training.eval_steps=100", "training.save_steps=20"];

/// Ranks of a job on one node.
const TWO: &str = "--ntasks-per-node=2";

/// A training on the cluster, and where it writes.
struct Training<'a> {
    job: Batch<'a>,
    name: &'a str,
    out: PathBuf,
}

impl<'a> Training<'a> {
    fn submit(cluster: &'a Cluster, name: &'a str, file: &str, options: &[&str]) -> Training<'a> {
        let config = cluster.scratch.config(name, &CHANGES);
        let job = cluster.submit(options, &job_file(file), &[config.to_str().unwrap()]);
        Training { job, name, out: cluster.scratch.path(name) }
    }

    /// Waits until it is under way, and notes how far.
    fn under_way(&self) {
        self.job.until_step(&self.out, 15);
    }

    /// Waits until it no longer runs, and requires that it was met in the middle.
    fn put_back(&self) {
        self.job.until("it is put back into the queue", || self.job.restarts() == "1");
        let step = last_step(&self.out);
        assert!(0 < step && step < STEPS, "{}: met at step {step}", self.name);
    }

    /// Waits for the end and requires the reference's run.
    fn ends_as(&self, cluster: &Cluster, reference: &Path) {
        self.job.completes(1);
        let run = cluster.scratch.only_run(self.name);
        assert_same_run(reference, &run, self.name);
    }
}

/// The undisturbed run, alone, beside everything else.
fn reference(cluster: &Cluster) -> Job {
    let config = cluster.scratch.config("whole", &CHANGES);
    cluster.scratch.launch(None, &["train", config.to_str().unwrap()])
}

fn finished(cluster: &Cluster, reference: Job) -> PathBuf {
    let ended = reference.wait();
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert_eq!(last_step(&cluster.scratch.path("whole")), STEPS);
    cluster.scratch.only_run("whole")
}

#[test]
fn requeued_by_hand_or_warned_of_the_time_limit() {
    let Some(cluster) = Cluster::start("requeue") else { return };
    let whole = finished(&cluster, reference(&cluster));
    let submit = |name| Training::submit(&cluster, name, "train.sbatch", &[TWO]);
    let (requeued, warned, batch) = (submit("requeued"), submit("warned"), submit("batch"));
    requeued.under_way();
    cluster.ask(&["scontrol", "requeue", &requeued.job.id]);
    requeued.put_back();
    // What the time limit does goes to the batch script alone; `--full` reaches the ranks too.
    warned.under_way();
    cluster.ask(&["scancel", "--signal=USR1", "--full", &warned.job.id]);
    batch.under_way();
    cluster.ask(&["scancel", "--signal=USR1", "--batch", &batch.job.id]);
    warned.put_back();
    batch.put_back();
    for own in [&warned, &batch] {
        assert!(own.job.said().contains("goes back into the queue"), "{}", own.job.said());
    }
    assert!(!requeued.job.said().contains("goes back into the queue"), "Slurm did it already");
    for training in [requeued, warned, batch] {
        training.ends_as(&cluster, &whole);
    }
}

#[test]
fn preempted_at_once_or_with_grace() {
    let Some(cluster) = Cluster::start("preempt") else { return };
    let alone = reference(&cluster);
    let whole = finished(&cluster, alone);
    let submit = |name, more: &[&str]| {
        Training::submit(&cluster, name, "train.sbatch", &[&[TWO], more].concat())
    };
    let (at_once, grace) = (submit("at-once", &[]), submit("grace", &["--partition=grace"]));
    at_once.under_way();
    grace.under_way();
    let urgent = ["--partition=high", "-N3", "--exclusive"];
    fs::write(cluster.scratch.path("urgent.sbatch"), "#!/bin/bash\nsleep 1\n").unwrap();
    let file = cluster.scratch.path("urgent.sbatch");
    let urgent = cluster.submit(&urgent, file.to_str().unwrap(), &[]);
    at_once.put_back();
    grace.put_back();
    // With grace the ranks save and end before Slurm puts the job back, so that it does it itself.
    assert!(grace.job.said().contains("goes back into the queue"), "{}", grace.job.said());
    assert_eq!(urgent.ends(), "COMPLETED", "{}", urgent.said());
    at_once.ends_as(&cluster, &whole);
    grace.ends_as(&cluster, &whole);
}

#[test]
fn a_node_fails() {
    let Some(cluster) = Cluster::start("failing") else { return };
    let alone = reference(&cluster);
    let training =
        Training::submit(&cluster, "moved", "train_multinode.sbatch", &["--nodes=2", TWO]);
    training.under_way();
    assert_eq!(training.job.field("NodeList"), "n[1-2]");
    cluster.node("fail n2");
    let whole = finished(&cluster, alone);
    training.put_back();
    training.ends_as(&cluster, &whole);
    assert_eq!(training.job.field("NodeList"), "n[1,3]");
}

/// The ranks save on `scancel` as well and end with 75; yet nobody wants this job back.
#[test]
fn a_cancelled_job_stays_away() {
    let Some(cluster) = Cluster::start("cancel") else { return };
    let training = Training::submit(&cluster, "cancelled", "train.sbatch", &[TWO]);
    training.under_way();
    cluster.ask(&["scancel", &training.job.id]);
    assert_eq!(training.job.ends(), "CANCELLED", "{}", training.job.said());
    let said = training.job.said();
    assert!(said.contains("so Slurm decides"), "the ranks ended with 75: {said}");
    assert_eq!(training.job.restarts(), "0", "{said}");
    assert!(last_step(&training.out) < STEPS);
}

#[test]
fn a_dead_rank_ends_the_job_at_once() {
    let Some(cluster) = Cluster::start("dead") else { return };
    let options = ["--nodes=2", TWO];
    let training = Training::submit(&cluster, "dead", "train_multinode.sbatch", &options);
    training.under_way();
    assert!(training.job.said().contains(plugin()), "{}", training.job.said());
    let ranks = cluster.ranks();
    assert_eq!(ranks.len(), 4, "{ranks:?}");
    signal(ranks[2], "KILL");
    let killed = Instant::now();
    while !cluster.ranks().is_empty() {
        assert!(killed.elapsed() < Duration::from_secs(5), "{:?} work on", cluster.ranks());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(training.job.ends(), "FAILED", "{}", training.job.said());
    assert_eq!(training.job.restarts(), "0", "a crash is not repeated");
}

/// The true limit of a minute: Slurm warns the batch script, at most half a minute early or late.
#[test]
fn the_time_limit() {
    if std::env::var_os("TRAINER_SLOW_TESTS").is_none() {
        return;
    }
    let Some(cluster) = Cluster::start("limit") else { return };
    let config = cluster.scratch.config("limit", &["training.max_steps=1000000"]);
    let options = [TWO, "--time=1", "--signal=B:USR1@30"];
    let job = cluster.submit(&options, &job_file("train.sbatch"), &[config.to_str().unwrap()]);
    job.until("it is put back into the queue", || job.restarts() == "1");
    let step = last_step(&cluster.scratch.path("limit"));
    assert!(step > 0);
    assert!(job.said().contains("goes back into the queue"), "{}", job.said());
    job.until("it goes on", || last_step(&cluster.scratch.path("limit")) > step);
    cluster.ask(&["scancel", &job.id]);
    assert_eq!(job.ends(), "CANCELLED", "{}", job.said());
}
