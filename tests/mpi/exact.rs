//! The same bits on any number of ranks.

use crate::harness::{Scratch, TRAINER, assert_same_run, bits, mpirun, records};

/// Trains alone and on each of these numbers of ranks, and requires the same run.
fn same_on(scratch: &Scratch, changes: &[&str], ranks: &[usize]) -> String {
    let alone = scratch.config("alone", changes);
    let said = scratch.run(None, &["train", alone.to_str().unwrap()], 0).err;
    let reference = scratch.only_run("alone");
    for &n in ranks {
        let name = format!("ranks-{n}");
        let config = scratch.config(&name, changes);
        scratch.run(Some(n), &["train", config.to_str().unwrap()], 0);
        assert_same_run(&reference, &scratch.only_run(&name), &name);
    }
    assert_ne!(bits(&reference, "checkpoints/step_00000010"), bits(&reference, "last.ckpt"));
    said
}

#[test]
fn twenty_steps_have_the_same_bits_on_any_number_of_ranks() {
    let scratch = Scratch::new("exact");
    same_on(&scratch, &[], &[1, 2, 3, 4, 8]);
    let run = scratch.only_run("alone");
    assert!(run.join("checkpoints/step_00000020").is_dir());
    assert!(!run.join("checkpoints/step_00000021").exists(), "max_steps is honoured");
}

/// 40 samples in micro-batches of two: 20 and a few, which 6 does not divide.
#[test]
fn a_short_last_step_and_ranks_that_do_not_divide_it() {
    let scratch = Scratch::new("short");
    let said = same_on(&scratch, &["training.micro_batches_per_step=6"], &[4]);
    let at = said.find(" micro-batches and ").expect("the plan is described");
    let number = said[..at].rsplit(' ').next().unwrap().parse::<usize>().unwrap();
    assert!(!number.is_multiple_of(6), "the last step of an epoch is short: {number}");
}

#[test]
fn an_idle_rank_adds_nothing() {
    let scratch = Scratch::new("idle");
    let m = "training.micro_batches_per_step=2";
    same_on(&scratch, &[m, "distributed.allow_idle_ranks=true"], &[3]);
    let config = scratch.config("refused", &[m]);
    let refused = scratch.run(Some(3), &["train", config.to_str().unwrap()], 2).err;
    assert!(refused.contains("training.micro_batches_per_step"), "{refused}");
    assert_eq!(refused.matches("error on rank").count(), 1, "told once: {refused}");
}

#[test]
fn evaluation_is_the_same_on_any_number_of_ranks() {
    let scratch = Scratch::new("evaluate");
    let config = scratch.config("alone", &["dataset.val_size=25"]);
    let config = config.to_str().unwrap();
    scratch.run(None, &["train", config], 0);
    let alone = scratch.run(None, &["evaluate", config], 0).out;
    assert!(alone.contains("\"samples\": 25"), "{alone}");
    for n in [1, 2, 3, 8] {
        assert_eq!(scratch.run(Some(n), &["evaluate", config], 0).out, alone, "{n} ranks");
    }
}

/// Summing during backward or after it, in one bucket or in many: on 2 to 4 ranks that own 0 to 3
/// micro-batches of a step.
#[test]
fn overlap_and_buckets_change_no_bit() {
    for (m, ranks) in [(2, 3), (5, 2), (6, 4), (8, 3)] {
        let scratch = Scratch::new("overlap");
        let m = format!("training.micro_batches_per_step={m}");
        let common = [m.as_str(), "distributed.allow_idle_ranks=true"];
        let train = |name: &str, changes: &[&str], ranks| {
            let config = scratch.config(name, &[&common[..], changes].concat());
            scratch.run(ranks, &["train", config.to_str().unwrap()], 0);
            scratch.only_run(name)
        };
        let alone = train("alone", &["distributed.overlap=false"], None);
        let (on, off) = ("distributed.overlap=true", "distributed.overlap=false");
        let small = "distributed.bucket_mb=0.001";
        let ways: [(&str, &[&str]); 4] = [
            ("during", &[on]),
            ("after", &[off]),
            ("during-small", &[on, small]),
            ("after-small", &[off, small]),
        ];
        for (name, changes) in ways {
            let run = train(name, changes, Some(ranks));
            assert_same_run(&alone, &run, &format!("{m} on {ranks} ranks, {name}"));
        }
    }
}

/// What the test before speaks of takes place: buckets leave in backward where they may.
#[test]
fn buckets_are_sent_in_backward() {
    let scratch = Scratch::new("in-backward");
    for (overlap, reduce) in [("true", "exact"), ("true", "fast"), ("false", "exact")] {
        let name = format!("{overlap}-{reduce}");
        let overlap_key = format!("distributed.overlap={overlap}");
        let reduce_key = format!("distributed.reduce={reduce}");
        let config =
            scratch.config(&name, &[&overlap_key, &reduce_key, "distributed.bucket_mb=0.001"]);
        let log = "TRAINER_LOG=trainer::dist=trace";
        let command = [mpirun(), &["-n", "2", "env", log, TRAINER]].concat();
        let ended = scratch.start(&command, &["train", config.to_str().unwrap()]).wait();
        assert_eq!(ended.code, 0, "{}", ended.err);
        // The number in front of "of N buckets were sent in backward", of every rank and step.
        let told = ended.err.lines().filter_map(|l| l.split_once(" buckets were sent in backward"));
        let numbers: Vec<(usize, usize)> = told
            .map(|(before, _)| {
                let mut words = before.rsplit(' ');
                let all = words.next().unwrap().parse().unwrap();
                (words.nth(1).unwrap().parse().unwrap(), all)
            })
            .collect();
        assert_eq!(numbers.len(), 2 * 20, "{}", ended.err);
        let early: usize = numbers.iter().map(|n| n.0).sum();
        let all: usize = numbers.iter().map(|n| n.1).sum();
        assert!(all >= 40 * 20, "many buckets a step: {all}");
        if overlap == "true" {
            assert!(early > all / 10, "{name}: {early} of {all} were sent in backward");
        } else {
            assert_eq!(early, 0, "{name}");
        }
    }
}

/// The library's sum differs in the last bits at most.
#[test]
fn fast_comes_close() {
    let scratch = Scratch::new("fast");
    let loss = |name: &str, changes: &[&str], ranks| -> f64 {
        let config = scratch.config(name, changes);
        scratch.run(ranks, &["train", config.to_str().unwrap()], 0);
        let all = records(&scratch.only_run(name));
        let last = all.iter().rfind(|r| r["kind"] == "train").unwrap();
        assert_eq!(last["step"], 20);
        last["loss"].as_f64().unwrap()
    };
    let exact = loss("exact", &[], None);
    for ranks in [None, Some(2), Some(3)] {
        let small = "distributed.bucket_mb=0.001";
        let name = format!("fast-{ranks:?}");
        let fast = loss(&name, &["distributed.reduce=fast", small], ranks);
        assert!((fast - exact).abs() < 1e-3 * exact, "{name}: {fast} and {exact}");
    }
}
