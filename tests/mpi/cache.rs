//! One cache, however it was made, and a training that reads it as if ESM ran within the step.

use crate::harness::{Dice, Scratch, contents, entries, records, signal, write_proteins};
use std::time::Duration;

#[test]
fn ten_kills_leave_the_same_cache() {
    let scratch = Scratch::new("embed");
    let mut dice = Dice::new("embed");
    // Enough work for ten kills: six masked copies of 150 proteins.
    write_proteins(&scratch.path("ptm.csv"), 150, 20, 60);
    let esm = "esm.model={hidden_size: 160, num_hidden_layers: 4, num_attention_heads: 4, intermediate_size: 640}";
    let whole = scratch.config("whole", &[esm, "esm.replicas=6"]);
    scratch.run(None, &["embed", whole.to_str().unwrap()], 0);
    let reference = contents(&scratch.path("cache"));
    let shards = reference.len() - 1;
    assert!(shards > 30, "{shards} shards");

    let dir = scratch.path("killed");
    let cache = format!("esm.cache_dir={}", dir.display());
    let config = scratch.config("killed", &[esm, "esm.replicas=6", &cache]);
    let args = ["embed", config.to_str().unwrap()];
    let done = || entries(&dir).iter().filter(|n| n.ends_with(".h5")).count();
    let (mut died, mut temporaries, mut ranks) = (0, 0, 0);
    for kill in 1..=10 {
        ranks = (ranks + dice.roll(1, 3) as usize - 1) % 4 + 1;
        let mut job = scratch.launch(Some(ranks), &args);
        let aim = (shards * kill / 11).max(done() + 1).min(shards - 1);
        job.until(|| done() >= aim);
        std::thread::sleep(Duration::from_micros(dice.roll(0, 20_000)));
        // Every third time one rank alone, which takes the others with it.
        let killed = match job.ranks().get(dice.roll(0, 3) as usize) {
            Some(pid) if kill % 3 == 0 => {
                signal(*pid, "KILL");
                job.wait_any().code != 0
            }
            _ => job.kill(),
        };
        died += usize::from(killed);
        temporaries += entries(&dir).iter().filter(|n| n.starts_with(".tmp-")).count();
    }
    assert!(died >= 8, "only {died} of ten kills met a living job");
    assert!(temporaries > 0, "no kill met a shard half-written");
    scratch.run(Some(ranks % 4 + 1), &args, 0);
    assert_eq!(entries(&dir), reference.keys().cloned().collect::<Vec<_>>());
    assert!(contents(&dir) == reference, "other bytes");
}

#[test]
fn two_parts_make_the_cache_of_one_job() {
    let scratch = Scratch::new("parts");
    let whole = scratch.config("whole", &[]);
    scratch.run(None, &["embed", whole.to_str().unwrap()], 0);
    let reference = contents(&scratch.path("cache"));
    let part = |dir: &str| {
        let cache = format!("esm.cache_dir={}", scratch.path(dir).display());
        scratch.config(dir, &[&cache])
    };

    // Both at once: whoever is last finishes the cache.
    let config = part("together");
    let launch =
        |part| scratch.launch(Some(2), &["embed", config.to_str().unwrap(), "--part", part]);
    let jobs = [launch("0/2"), launch("1/2")];
    for job in jobs {
        let ended = job.wait();
        assert_eq!(ended.code, 0, "{}", ended.err);
    }
    assert!(contents(&scratch.path("together")) == reference, "two parts at once");

    // One after the other, and in between nothing can be finished.
    let config = part("apart");
    let args = |part| ["embed", config.to_str().unwrap(), "--part", part];
    let said = scratch.run(None, &args("0/2"), 0).err;
    assert!(said.contains("--finish"), "{said}");
    let dir = scratch.path("apart");
    let seen = scratch.run(None, &["inspect", dir.to_str().unwrap()], 0).out;
    assert!(seen.contains("not finished"), "{seen}");
    let early = scratch.run(None, &["inspect", dir.to_str().unwrap(), "--finish"], 5).err;
    assert!(early.contains("shards are missing"), "{early}");
    assert!(!dir.join("manifest.json").exists());
    scratch.run(None, &args("1/2"), 0);
    assert!(contents(&dir) == reference, "two parts, one after the other");
}

/// Two halves made in two places and brought together: nobody was last, so `--finish` is.
#[test]
fn parts_that_were_brought_together_are_finished_by_hand() {
    let scratch = Scratch::new("finish");
    let whole = scratch.config("whole", &[]);
    scratch.run(None, &["embed", whole.to_str().unwrap()], 0);
    for (dir, part) in [("here", "0/2"), ("there", "1/2")] {
        let cache = format!("esm.cache_dir={}", scratch.path(dir).display());
        let config = scratch.config(dir, &[&cache]);
        scratch.run(None, &["embed", config.to_str().unwrap(), "--part", part], 0);
        assert!(!scratch.path(dir).join("manifest.json").exists());
    }
    let (here, there) = (scratch.path("here"), scratch.path("there"));
    for name in entries(&there).iter().filter(|n| n.starts_with("shard-")) {
        assert!(!here.join(name).exists(), "{name} is in both parts");
        std::fs::copy(there.join(name), here.join(name)).unwrap();
    }
    scratch.run(None, &["inspect", here.to_str().unwrap(), "--finish"], 0);
    assert!(contents(&here) == contents(&scratch.path("cache")));
}

/// All number types, windows over long sequences, means: the same bytes on 1 and on 3 ranks.
#[test]
fn ranks_leave_no_trace_in_any_kind_of_cache() {
    let scratch = Scratch::new("kinds");
    write_proteins(&scratch.path("ptm.csv"), 40, 20, 150);
    let long = ["esm.max_length=50", "esm.over_length=windows", "esm.max_tokens_per_batch=120"];
    for (dtype, pooling, policy) in [
        ("float16", "none", "replicas"),
        ("bfloat16", "none", "unmasked"),
        ("float32", "mean", "unmasked"),
    ] {
        let cached = |ranks: Option<usize>| {
            let dir = scratch.path(&format!("{dtype}-{pooling}-{}", ranks.unwrap_or(0)));
            let kind = [
                format!("esm.dtype={dtype}"),
                format!("esm.pooling={pooling}"),
                format!("esm.mask_policy={policy}"),
                format!("esm.cache_dir={}", dir.display()),
            ];
            let kind = kind.iter().map(String::as_str).chain(long).collect::<Vec<_>>();
            let config = scratch.config("kinds", &kind);
            scratch.run(ranks, &["embed", config.to_str().unwrap()], 0);
            contents(&dir)
        };
        let alone = cached(None);
        assert!(alone.len() > 10 && alone.contains_key("manifest.json"));
        assert!(alone == cached(Some(3)), "{dtype}, {pooling}, {policy}");
    }
}

#[test]
fn a_cache_trains_as_esm_within_the_step_does() {
    let scratch = Scratch::new("online");
    let steps = ["training.max_steps=8", "training.eval_steps=4", "esm.dtype=float32"];
    let online = scratch.config("online", &[&steps[..], &["esm.replicas=4"]].concat());
    let from_cache = ["esm.replicas=4", "training.use_precomputed_embeddings=true"];
    let cached = scratch.config("cached", &[&steps[..], &from_cache].concat());
    scratch.run(None, &["train", online.to_str().unwrap()], 0);
    scratch.run(Some(2), &["run", cached.to_str().unwrap()], 0);
    let (a, b) = (records(&scratch.only_run("online")), records(&scratch.only_run("cached")));
    assert_eq!(a.len(), b.len());
    let mut compared = 0;
    for (a, b) in a.iter().zip(&b).filter(|(a, _)| a.get("loss").is_some()) {
        let loss = |r: &serde_json::Value| r["loss"].as_f64().unwrap();
        let relative = (loss(a) - loss(b)).abs() / loss(a);
        assert!(relative < 1e-5, "{relative:e}\n{a}\n{b}");
        compared += 1;
    }
    assert!(compared > 10, "{compared} losses");
}
