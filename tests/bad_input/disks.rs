//! Full disks.

use super::faults_of;
use crate::common::Scratch;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system that ends with the test.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// None where this user may not mount.
    fn mount(at: PathBuf, options: &str) -> Option<Tmpfs> {
        fs::create_dir_all(&at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&at);
        mount.output().is_ok_and(|o| o.status.success()).then_some(Tmpfs(at))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn full_disks() {
    let base = Scratch::new("full-disks");
    let (tiny, few) = (base.path("tiny"), base.path("few"));
    // `few` has bytes enough and no room for names.
    let disks = Tmpfs::mount(tiny, "size=64k").zip(Tmpfs::mount(few, "size=200m,nr_inodes=3"));
    let Some(_disks) = disks else {
        eprintln!("SKIPPED full_disks: mounting a tmpfs needs root");
        return;
    };
    assert_eq!(base.trainer("run c.yaml").code, 0);
    let table: [(&str, &str, &str); 7] = [
        (
            "embed c.yaml --set esm.cache_dir=tiny/cache",
            "tiny",
            "tiny/cache | the cache needs | are free | esm.cache_dir",
        ),
        (
            "embed c.yaml --set esm.cache_dir=few/cache",
            "few",
            "few/cache | No space left | free some space",
        ),
        (
            "train c.yaml --set run.output_dir=tiny/out",
            "tiny",
            "tiny/out | No space left | free some space",
        ),
        (
            "train c.yaml --set run.output_dir=few/out",
            "few",
            "few/out | No space left | free some space",
        ),
        (
            "predict c.yaml --min-probability 0 --output tiny/x.csv",
            "tiny",
            "tiny/x.csv | No space left | free some space",
        ),
        ("predict c.yaml --output tiny/x.h5", "tiny", "tiny/x.h5 | are free | free some space"),
        (
            "sample ptm_mamba tiny/data",
            "tiny",
            "tiny/data/ptm.csv | No space left | free some space",
        ),
    ];
    let mut failed = Vec::new();
    for (args, disk, says) in table {
        let outcome = base.trainer(args);
        let says: Vec<&str> = says.split(" | ").collect();
        let mut faults = faults_of(&outcome, 4, &says);
        let left = base.leftovers();
        if !left.is_empty() {
            faults.push(format!("left behind: {left:?}"));
        }
        if !faults.is_empty() {
            failed.push(format!("--- {args}\n{}", faults.join("\n")));
        }
        empty(&base.path(disk));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_limit_on_the_size_of_files() {
    let base = Scratch::new("file-size");
    let command = "train c.yaml --set training.use_esm=false";
    let outcome = base.launch("prlimit --fsize=4000", command, &[]);
    let faults = faults_of(&outcome, 4, &["File too large", "ulimit -f"]);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(base.leftovers().is_empty(), "{:?}", base.leftovers());
    assert_eq!(base.trainer(command).code, 0, "without the limit it goes on");
}

/// Removes what is in a directory.
fn empty(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let removed = match entry.file_type().unwrap().is_dir() {
            true => fs::remove_dir_all(entry.path()),
            false => fs::remove_file(entry.path()),
        };
        removed.unwrap();
    }
}
