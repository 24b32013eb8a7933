//! Gradients through NCCL, with a stand-in in its place that works on host memory; see README.md.

#[path = "../common/mod.rs"]
#[allow(dead_code)] // each test crate uses its own part
mod common;

use common::{Outcome, Scratch};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// 28 proteins, one a micro-batch: three full steps of eight an epoch.
const TRAIN: &str = "train c.yaml --set training.use_precomputed_embeddings=false \
    --set training.per_device_train_batch_size=1 --set training.micro_batches_per_step=8 \
    --set training.max_steps=3 --set training.eval_steps=3 --set training.num_train_epochs=100 \
    --set distributed.bucket_mb=0.002";
const STEPS: u64 = 3;

/// Elements of a bucket of 0.002 MB.
const BUCKET: u64 = 524;

struct Bench {
    scratch: Scratch,
    library: PathBuf,
}

impl Bench {
    /// With the stand-in compiled.
    fn new(name: &str) -> Bench {
        let scratch = Scratch::new(&format!("nccl-{name}"));
        let library = scratch.path("libnccl.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nccl/standin.c");
        let compiled = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"])
            .args(["-Wl,-soname,libnccl.so", "-o"])
            .args([&library, &source])
            .status()
            .expect("there is a C compiler");
        assert!(compiled.success());
        Bench { scratch, library }
    }

    /// Trains on so many ranks (0: without a launcher) with the stand-in at hand, into directory
    /// `name`, where the stand-in leaves its files too.
    fn train(&self, name: &str, ranks: usize, more: &str, env: &[(&str, &str)]) -> Outcome {
        fs::create_dir_all(self.scratch.path(name).join("nccl")).unwrap();
        let launcher = match ranks {
            0 => String::new(),
            n => format!("mpirun --oversubscribe --bind-to none -n {n}"),
        };
        let dir = self.scratch.path(name).join("nccl");
        let mut all = vec![
            ("LD_PRELOAD", self.library.to_str().unwrap()),
            ("TRAINER_STANDIN_DIR", dir.to_str().unwrap()),
            ("TRAINER_NCCL_ON_HOST", "1"),
            ("TRAINER_LOG", "trainer::dist=trace"),
        ];
        all.extend(env);
        let args = format!("{TRAIN} --set run.output_dir={name} {more}");
        self.scratch.launch(&launcher, &args, &all)
    }

    fn finished(&self, name: &str, ranks: usize, more: &str) -> Outcome {
        let outcome = self.train(name, ranks, more, &[]);
        assert_eq!(outcome.code, 0, "{name}: {}", outcome.err);
        outcome
    }

    /// The one file that a run has of this name.
    fn only(&self, name: &str, file: &str) -> PathBuf {
        let found = self.scratch.find(file);
        let own: Vec<_> =
            found.into_iter().filter(|p| p.starts_with(self.scratch.path(name))).collect();
        assert_eq!(own.len(), 1, "{name}: {own:?}");
        own[0].clone()
    }

    fn weights(&self, name: &str) -> Vec<Vec<u8>> {
        let last = self.only(name, "last.ckpt");
        let files = ["model.safetensors", "optimizer.safetensors"];
        files.iter().map(|file| fs::read(last.join(file)).unwrap()).collect()
    }

    fn loss(&self, name: &str) -> f64 {
        let text = fs::read_to_string(self.only(name, "metrics.jsonl")).unwrap();
        let mut records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let last = records.rfind(|r| r["kind"] == "train").unwrap();
        assert_eq!(last["step"], STEPS);
        last["loss"].as_f64().unwrap()
    }

    /// What the stand-in was asked by each rank, from files of this kind.
    fn told(&self, name: &str, kind: &str) -> Vec<Value> {
        let dir = self.scratch.path(name).join("nccl");
        let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        let own =
            files.iter().filter(|f| f.file_name().unwrap().to_str().unwrap().starts_with(kind));
        own.map(|f| serde_json::from_str(&fs::read_to_string(f).unwrap()).unwrap()).collect()
    }
}

fn count(told: &Value, what: &str) -> u64 {
    told[what].as_u64().unwrap()
}

/// For every rank and step how many of how many buckets were sent in backward.
fn buckets(outcome: &Outcome) -> Vec<(u64, u64)> {
    let lines = outcome.err.lines();
    let told = lines.filter_map(|line| line.split_once(" buckets were sent in backward"));
    told.map(|(before, _)| {
        let mut words = before.rsplit(' ');
        let all = words.next().unwrap().parse().unwrap();
        (words.nth(1).unwrap().parse().unwrap(), all)
    })
    .collect()
}

/// Messages that a rank sends in a step, and gets: for each bucket its partial sum to every other
/// rank that owns a slice there, and the sum of its own slice, if it has one, to all.
fn messages(elements: u64, size: u64, rank: u64) -> u64 {
    let in_bucket = |start: u64| {
        let lines = BUCKET.min(elements - start).div_ceil(16);
        let owns = |r: u64| (r + 1) * lines / size > r * lines / size;
        let others = (0..size).filter(|r| *r != rank && owns(*r)).count() as u64;
        others + if owns(rank) { size - 1 } else { 0 }
    };
    (0..elements).step_by(BUCKET as usize).map(in_bucket).sum()
}

#[test]
fn exact_gives_one_process_s_bytes_in_as_many_calls_as_buckets_and_ranks_say() {
    let bench = Bench::new("exact");
    let alone = bench.finished("alone", 0, "");
    assert!(alone.err.contains("gradients go through MPI: there is one rank"), "{}", alone.err);
    let expected = bench.weights("alone");
    let mut totals = Vec::new();
    for ranks in [0, 1, 2, 4] {
        let name = format!("exact-{ranks}");
        let outcome = bench.finished(&name, ranks, "--set distributed.backend=nccl");
        let line = "gradients go through NCCL: 9.99.1, distributed.backend says so";
        assert!(outcome.err.contains(line), "{}", outcome.err);
        assert!(bench.weights(&name) == expected, "{name}: other bytes than one process");
        let size = ranks.max(1) as u64;
        let sent = buckets(&outcome);
        assert_eq!(sent.len() as u64, size * STEPS, "{}", outcome.err);
        let all = sent[0].1;
        assert!(all > 10 && sent.iter().all(|s| s.1 == all), "{sent:?}");
        assert!(sent.iter().map(|s| s.0).sum::<u64>() > 0, "some are sent in backward");
        let told = bench.told(&name, "destroyed");
        assert_eq!(told.len() as u64, size);
        // Eight micro-batches on 1, 2 or 4 ranks are one partial sum a rank. Each element goes to its
        // owner from all others, and back.
        let bytes: u64 = told.iter().map(|one| count(one, "sent_bytes")).sum();
        let elements = bytes / (4 * 2 * (size - 1) * STEPS).max(1);
        for (rank, one) in told.iter().enumerate() {
            assert_eq!((count(one, "inits"), count(one, "size")), (1, size));
            let groups = if size == 1 { 0 } else { 2 * all * STEPS };
            assert_eq!(count(one, "groups"), groups, "{one}");
            let messages = messages(elements, size, rank as u64) * STEPS;
            assert_eq!(
                (count(one, "sends"), count(one, "receives")),
                (messages, messages),
                "{one}"
            );
            assert_eq!(count(one, "sums"), 0);
        }
        if size > 1 {
            assert_eq!(elements.div_ceil(BUCKET), all);
            totals.push(elements);
        }
    }
    assert!(totals.len() == 2 && totals[0] == totals[1], "{totals:?}");
}

/// Ranks that own different numbers of micro-batches, several partial sums each, and none at all.
#[test]
fn exact_holds_where_ranks_do_not_divide_a_step() {
    let bench = Bench::new("uneven");
    for (m, ranks) in [(7, 3), (6, 4), (2, 3)] {
        let common = format!(
            "--set training.micro_batches_per_step={m} --set training.max_steps=5 \
             --set distributed.allow_idle_ranks=true"
        );
        let (alone, several) = (format!("alone-{m}"), format!("several-{m}"));
        bench.finished(&alone, 0, &common);
        let nccl = format!("{common} --set distributed.backend=nccl");
        bench.finished(&several, ranks, &nccl);
        assert!(bench.weights(&several) == bench.weights(&alone), "{m} on {ranks} ranks");
        let told = bench.told(&several, "destroyed");
        let sum = |what| told.iter().map(|one| count(one, what)).sum::<u64>();
        assert!(sum("sends") > 0 && sum("sends") == sum("receives"));
        let after = format!("{several}-after");
        bench.finished(&after, ranks, &format!("{nccl} --set distributed.overlap=false"));
        assert!(bench.weights(&after) == bench.weights(&alone), "{m} on {ranks}, after backward");
    }
}

#[test]
fn fast_comes_close_with_one_sum_a_bucket() {
    let bench = Bench::new("fast");
    bench.finished("alone", 0, "");
    let expected = bench.loss("alone");
    let fast = "--set distributed.backend=nccl --set distributed.reduce=fast";
    let mut bytes = Vec::new();
    for ranks in [0, 2, 4] {
        let name = format!("fast-{ranks}");
        let outcome = bench.finished(&name, ranks, fast);
        let loss = bench.loss(&name);
        assert!((loss - expected).abs() < 1e-3 * expected, "{name}: {loss} and {expected}");
        let all = buckets(&outcome)[0].1;
        for one in bench.told(&name, "destroyed") {
            assert_eq!((count(&one, "sums"), count(&one, "groups")), (all * STEPS, 0), "{one}");
            bytes.push(count(&one, "sum_bytes"));
        }
    }
    assert_eq!(bytes.len(), 1 + 2 + 4);
    assert!(bytes[0] > 0 && bytes.iter().all(|b| *b == bytes[0]), "{bytes:?}");
}

/// Trains on two ranks with a fault, and requires an end with this code within half a minute.
fn ends(bench: &Bench, name: &str, more: &str, env: (&str, &str), code: i32) -> Outcome {
    let more = format!("--set distributed.backend=nccl {more}");
    let outcome = bench.train(name, 2, &more, &[env]);
    assert_eq!(outcome.code, code, "{name}: {}", outcome.err);
    assert!(outcome.seconds < 30.0, "{name}: {} s", outcome.seconds);
    assert!(bench.told(name, "destroyed").is_empty(), "{name} is not left as if all were well");
    outcome
}

#[test]
fn an_error_of_the_library_ends_the_job_and_says_so() {
    let bench = Bench::new("error");
    for (call, reduce) in [(0, "exact"), (1, "exact"), (5, "fast")] {
        let name = format!("call-{call}");
        let fault = format!("1:{call}:6");
        let reduce = format!("--set distributed.reduce={reduce}");
        let outcome = ends(&bench, &name, &reduce, ("TRAINER_STANDIN_FAULT", &fault), 4);
        let what = "NCCL";
        let text = "remote process exited or there was a network error: a fault on purpose";
        assert!(outcome.err.contains(what) && outcome.err.contains(text), "{}", outcome.err);
        assert!(outcome.err.contains("error on rank 1 of 2"), "{}", outcome.err);
        assert!(outcome.err.contains("NCCL_DEBUG=INFO"), "a remedy: {}", outcome.err);
        let aborted = bench.told(&name, "aborted");
        assert!(aborted.iter().any(|one| one["rank"] == 1), "{aborted:?}");
    }
}

#[test]
fn what_never_comes_is_given_up() {
    let bench = Bench::new("hang");
    let limit = "--set distributed.progress_timeout=10";
    let outcome = ends(&bench, "hang", limit, ("TRAINER_STANDIN_FAULT", "1:3:hang"), 4);
    assert!(outcome.err.contains("over NCCL is not over after 9 s"), "{}", outcome.err);
    assert!(outcome.err.contains("distributed.progress_timeout"), "a remedy: {}", outcome.err);
    assert!(!bench.told("hang", "aborted").is_empty());
    let start = [("TRAINER_STANDIN_FAULT", "0:0:hang"), ("TRAINER_START_TIMEOUT", "15")];
    let outcome = bench.train("start", 2, "--set distributed.backend=nccl", &start);
    assert_eq!(outcome.code, 4, "{}", outcome.err);
    let what = "making an NCCL communicator is not over after 15 s";
    assert!(outcome.err.contains(what) && outcome.seconds < 60.0, "{}", outcome.err);
}

#[test]
fn a_dead_rank_ends_the_job() {
    let bench = Bench::new("dead");
    let limit = "--set distributed.heartbeat_timeout=4";
    let fault = ("TRAINER_FAULT", "kill@training, step 2:rank=1");
    let outcome =
        bench.train("dead", 2, &format!("--set distributed.backend=nccl {limit}"), &[fault]);
    assert!(outcome.err.contains("fault: "), "it happened\n{}", outcome.err);
    assert_ne!(outcome.code, 0);
    assert!(outcome.seconds < 30.0, "{} s", outcome.seconds);
    assert!(outcome.err.contains("rank 1"), "it is named\n{}", outcome.err);
    assert!(bench.told("dead", "destroyed").is_empty());
}

#[test]
fn without_gpus_auto_says_mpi_and_nccl_is_refused() {
    let bench = Bench::new("choice");
    let outcome = bench.finished("auto", 2, "");
    let line = "gradients go through MPI: the ranks compute on CPUs";
    assert_eq!(outcome.err.matches(line).count(), 1, "{}", outcome.err);
    assert!(bench.told("auto", "").is_empty(), "the library is not touched");
    let mpi = bench.finished("mpi", 2, "--set distributed.backend=mpi");
    assert!(
        mpi.err.contains("gradients go through MPI: distributed.backend says so"),
        "{}",
        mpi.err
    );
    let refused = bench.scratch.mpirun(2, &format!("{TRAIN} --set distributed.backend=nccl"));
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(refused.err.contains("nccl needs GPUs"), "{}", refused.err);
}
