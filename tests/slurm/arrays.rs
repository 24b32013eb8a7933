//! The array that embeds, and the pipeline of two jobs.

use crate::cluster::{Batch, Cluster, job_file};
use crate::harness::{Scratch, contents, entries, last_step};
use std::collections::BTreeMap;
use std::path::Path;

/// A large ESM: a share of the work takes long enough to be met in the middle.
const SLOW_ESM: &str = "esm.model={hidden_size: 320, num_hidden_layers: 6, num_attention_heads: 4, intermediate_size: 1280}";

/// The cache that one process makes, in `whole`.
fn made_alone(scratch: &Scratch, changes: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let dir = scratch.path("whole-cache");
    let cache = format!("esm.cache_dir={}", dir.display());
    let config = scratch.config("whole", &[changes, &[&cache]].concat());
    scratch.run(None, &["embed", config.to_str().unwrap()], 0);
    contents(&dir)
}

fn shards(dir: &Path) -> usize {
    entries(dir).iter().filter(|name| name.ends_with(".h5")).count()
}

/// Submits the pipeline and returns the numbers of its two jobs.
fn pipeline(cluster: &Cluster, environment: &[&str], args: &[&str]) -> [String; 2] {
    let file = job_file("pipeline.sh");
    let said = cluster.ask(&[&["env"], environment, &["bash", &file], args].concat());
    let number = |line: &str, name| line.strip_prefix(name).expect(line).to_string();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    [number(lines[0], "embed: "), number(lines[1], "train: ")]
}

/// One task of the array is stopped in the middle: it alone goes back into the queue, and the
/// training waits for it.
#[test]
fn a_pipeline_embeds_in_an_array_and_then_trains() {
    let Some(cluster) = Cluster::start("pipeline") else { return };
    let scratch = &cluster.scratch;
    let changes = [SLOW_ESM, "esm.replicas=12", "training.use_precomputed_embeddings=true"];
    let whole = made_alone(scratch, &changes);
    let config = scratch.config("piped", &changes);
    let environment = [
        "PARTS=3",
        "EMBED_OPTIONS=--ntasks-per-node=1",
        "TRAIN_OPTIONS=--ntasks-per-node=4 --time=5",
    ];
    let args = [config.to_str().unwrap(), "--set", "training.max_steps=30"];
    let [embed, train] = pipeline(&cluster, &environment, &args);
    let tasks: Vec<Batch> = (0..3).map(|i| cluster.job(&format!("{embed}_{i}"))).collect();
    let train = cluster.job(&train);

    let cache = scratch.path("cache");
    tasks[1].until("it is at work", || tasks[1].said().contains("residues x"));
    tasks[1].until("some shards are there", || shards(&cache) >= 3);
    cluster.ask(&["scancel", "--signal=USR1", "--full", &tasks[1].id]);
    tasks[1].until("it is put back into the queue", || tasks[1].restarts() == "1");
    assert!(!cache.join("manifest.json").exists(), "it was met at work");
    assert_eq!(train.state(), "PENDING", "it waits for the embeddings");
    for (task, restarts) in tasks.iter().zip([0, 1, 0]) {
        task.completes(restarts);
    }
    assert!(contents(&cache) == whole, "other bytes: {:?}", entries(&cache));
    train.completes(0);
    assert_eq!(last_step(&scratch.path("piped")), 30);
    assert!(train.said().contains("4 ranks"), "{}", train.said());
}

/// Where embedding fails for good, the training leaves the queue.
#[test]
fn a_pipeline_whose_embeddings_fail_does_not_train() {
    let Some(cluster) = Cluster::start("broken") else { return };
    let config = cluster.scratch.config("broken", &["dataset.dataset_location=nowhere.csv"]);
    let environment = ["EMBED_OPTIONS=--ntasks-per-node=1", "TRAIN_OPTIONS=--ntasks-per-node=1"];
    let [embed, train] = pipeline(&cluster, &environment, &[config.to_str().unwrap()]);
    let (embed, train) = (cluster.job(&embed), cluster.job(&train));
    assert_eq!(embed.ends(), "FAILED", "{}", embed.said());
    assert_eq!(embed.field("ExitCode"), "3:0", "{}", embed.said());
    assert_eq!(train.ends(), "CANCELLED");
    assert_eq!(train.said(), "", "it was never started");
}
