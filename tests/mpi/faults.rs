//! An error on one rank ends all of them, within seconds, and says where it was; ranks that would
//! not compute the same are refused at the start.

use crate::harness::{
    Ended, Scratch, TRAINER, entries, is_alive, is_open_mpi, last_step, mpirun, signal,
};
use std::time::{Duration, Instant};

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    format!("host {}", name.trim())
}

/// Two ranks; `second` stands in front of the second one's program.
fn mixed(scratch: &Scratch, second: &[&str], args: &[&str], second_args: &[&str]) -> Ended {
    // No shared memory: a rank that may write no files has none.
    let tcp: &[&str] = if is_open_mpi() {
        &["--mca", "btl", "self,tcp"]
    } else {
        &["-genv", "UCX_TLS", "self,tcp"]
    };
    let first = [&["-n", "1", TRAINER], args, &[":", "-n", "1"]].concat();
    let line = [mpirun(), tcp, &first, second, &[TRAINER], second_args].concat();
    let ended = scratch.start(&line, &[]).wait();
    assert!(ended.seconds < 20.0, "{} s\n{}", ended.seconds, ended.err);
    ended
}

#[test]
fn ranks_that_differ_are_refused() {
    let scratch = Scratch::new("differ");
    let config = scratch.config("a", &[]);
    let other = scratch.config("b", &["training.lr=1.0e-3"]);
    let args = ["train", config.to_str().unwrap()];
    let cases = [
        (mixed(&scratch, &["env", "ATEN_CPU_CAPABILITY=default"], &args, &args), "computes on"),
        (mixed(&scratch, &[], &args, &["train", other.to_str().unwrap()]), "was given"),
    ];
    for (ended, words) in cases {
        assert_eq!(ended.code, 4, "{}", ended.err);
        assert!(ended.err.contains(words), "{}", ended.err);
        assert_eq!(ended.err.matches("error on rank").count(), 1, "told once: {}", ended.err);
    }

    // The same command, another file behind it: each rank has a working directory of its own.
    for (dir, lr) in [("one", "3.0e-3"), ("two", "1.0e-3")] {
        let own = scratch.config(dir, &[&format!("training.lr={lr}")]);
        std::fs::create_dir_all(scratch.path(&format!("{dir}-cwd"))).unwrap();
        std::fs::rename(own, scratch.path(&format!("{dir}-cwd/c.yaml"))).unwrap();
    }
    let line = ["-n", "1", "-wdir", "one-cwd", TRAINER, "train", "c.yaml", ":", "-n", "1", "-wdir"];
    let line = [mpirun(), &line, &["two-cwd", TRAINER, "train", "c.yaml"]].concat();
    let ended = scratch.start(&line, &[]).wait();
    assert_eq!(ended.code, 4, "{}", ended.err);
    assert!(ended.err.contains("training.lr"), "{}", ended.err);
}

#[test]
fn another_build_is_refused() {
    let scratch = Scratch::new("build");
    let config = scratch.config("a", &[]);
    let copy = scratch.path("trainer");
    let mut bytes = std::fs::read(TRAINER).unwrap();
    bytes.push(0);
    std::fs::write(&copy, bytes).unwrap();
    std::fs::set_permissions(&copy, std::fs::metadata(TRAINER).unwrap().permissions()).unwrap();
    let args = ["train", config.to_str().unwrap()];
    let line = [&["-n", "1", TRAINER], &args[..], &[":", "-n", "1", copy.to_str().unwrap()], &args];
    let ended = scratch.start(&[mpirun(), &line.concat()].concat(), &[]).wait();
    assert_eq!(ended.code, 4, "{}", ended.err);
    assert!(ended.err.contains("another build"), "{}", ended.err);
}

/// The second rank may write files of a few kilobytes only: its first shard fails.
#[test]
fn a_failing_write_on_one_rank_ends_all() {
    let scratch = Scratch::new("write");
    let config = scratch.config("a", &[]);
    let limited = ["bash", "-c", "trap '' XFSZ; ulimit -f 2; exec \"$@\"", "bash"];
    let args = ["embed", config.to_str().unwrap()];
    let ended = mixed(&scratch, &limited, &args, &args);
    assert_eq!(ended.code, 4, "{}", ended.err);
    let wanted = format!("error on rank 1 of 2, {} while embedding", host());
    assert!(ended.err.contains(&wanted), "{}", ended.err);
    assert!(ended.err.contains("cannot write"), "{}", ended.err);
    let left = entries(&scratch.path("cache"));
    assert!(!left.contains(&"manifest.json".to_string()), "{left:?}");
    // Once the cause is gone the same command goes on.
    scratch.run(Some(2), &args, 0);
}

/// One changed byte among the embeddings is met by the rank that reads the record.
#[test]
fn a_damaged_record_ends_all_ranks() {
    let scratch = Scratch::new("damaged");
    let changes = ["training.use_precomputed_embeddings=true", "esm.dtype=float32"];
    let config = scratch.config("a", &changes);
    let config = config.to_str().unwrap();
    scratch.run(None, &["embed", config], 0);
    for name in entries(&scratch.path("cache")).iter().filter(|n| n.ends_with(".h5")) {
        let path = scratch.path("cache").join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(
            &std::fs::read_to_string(scratch.path("cache").join("manifest.json")).unwrap(),
        )
        .unwrap();
        let shards = manifest["shards"].as_array().unwrap();
        let places = &shards.iter().find(|s| s["name"] == name.as_str()).unwrap()["places"];
        bytes[places["embeddings"].as_u64().unwrap() as usize] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let ended = scratch.launch(Some(2), &["train", config]).wait();
    assert_eq!(ended.code, 5, "{}", ended.err);
    assert!(ended.seconds < 20.0, "{} s", ended.seconds);
    assert!(ended.err.contains(&format!("of 2, {} while training", host())), "{}", ended.err);
}

#[test]
fn ranks_do_not_outlive_their_launcher() {
    let scratch = Scratch::new("orphans");
    let config = scratch.config("a", &["training.max_steps=100000"]);
    let mut job = scratch.launch(Some(2), &["train", config.to_str().unwrap()]);
    assert!(job.until(|| last_step(&scratch.path("a")) >= 3));
    let (ranks, launcher) = (job.ranks(), job.leader());
    assert_eq!(ranks.len(), 2);
    signal(launcher, "KILL");
    let told = Instant::now();
    while ranks.iter().any(|pid| is_alive(*pid)) {
        assert!(told.elapsed() < Duration::from_secs(10), "{ranks:?} work on by themselves");
        std::thread::sleep(Duration::from_millis(20));
    }
    job.wait_any();
}
