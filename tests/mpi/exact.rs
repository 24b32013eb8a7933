//! The same bits on any number of ranks.

use crate::harness::{Scratch, assert_same_run, bits};

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
