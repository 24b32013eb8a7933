//! Bad input: every case ends with its exit code and one message that says where and what to do,
//! and leaves no unfinished file behind.

#[path = "../common/mod.rs"]
mod common;

mod alloy;
mod caches;
mod configurations;
mod data;
mod disks;
mod launches;
mod models;
mod runs;

use common::{Outcome, Scratch};
use std::fs;
use std::path::Path;
use std::process::Command;

/// A row of a table. The command runs after `prepare`, in a directory that is as it was before.
struct Case {
    name: &'static str,
    code: i32,
    args: String,
    prepare: fn(&Scratch),
    says: Vec<&'static str>,
    env: Vec<(&'static str, &'static str)>,
    ranks: Option<usize>,
}

/// `says` is what standard error must contain, cut at ` | `.
fn case(
    name: &'static str,
    code: i32,
    args: &'static str,
    prepare: fn(&Scratch),
    says: &'static str,
) -> Case {
    let args = args.to_string();
    let says = says.split(" | ").collect();
    Case { name, code, args, prepare, says, env: vec![], ranks: None }
}

impl Case {
    /// With these variables in its environment.
    fn env(mut self, env: &[(&'static str, &'static str)]) -> Case {
        self.env = env.to_vec();
        self
    }

    /// Under mpirun.
    fn ranks(mut self, ranks: usize) -> Case {
        self.ranks = Some(ranks);
        self
    }

    /// What is wrong with how the program took it.
    fn faults(&self, scratch: &Scratch) -> Vec<String> {
        (self.prepare)(scratch);
        let outcome = match self.ranks {
            Some(ranks) => scratch.mpirun(ranks, &self.args),
            None => scratch.launch("", &self.args, &self.env),
        };
        let mut faults = faults_of(&outcome, self.code, &self.says);
        let left = scratch.leftovers();
        if !left.is_empty() {
            faults.push(format!("left behind: {left:?}"));
        }
        faults
    }
}

/// How an outcome differs from what is wanted.
fn faults_of(outcome: &Outcome, code: i32, says: &[&str]) -> Vec<String> {
    let mut faults = Vec::new();
    if outcome.code != code {
        faults.push(format!("exit code {}, expected {code}", outcome.code));
    }
    for wanted in says.iter().filter(|wanted| !outcome.err.contains(**wanted)) {
        faults.push(format!("the message lacks {wanted:?}"));
    }
    let messages = outcome.err.lines().filter(|l| l.starts_with("error")).count();
    if code != 0 && messages != 1 {
        faults.push(format!("{messages} messages, expected one"));
    }
    // Far above what it takes, far below what a hang takes.
    if outcome.seconds > 60.0 {
        faults.push(format!("it took {:.0} s", outcome.seconds));
    }
    if !faults.is_empty() {
        faults.push(format!("it said:\n{}{}", outcome.out, outcome.err));
    }
    faults
}

/// Runs a table, each row in `scratch` as it is now, and tells of all failures at once.
fn check(scratch: &Scratch, table: &[Case]) {
    // Paths stay the same: they are a part of what runs and caches are.
    let (dir, saved) = (scratch.path(""), scratch.path("").with_extension("saved"));
    copy(&dir, &saved);
    let mut failed = Vec::new();
    for case in table {
        fs::remove_dir_all(&dir).unwrap();
        copy(&saved, &dir);
        let faults = case.faults(scratch);
        if !faults.is_empty() {
            failed.push(format!("--- {}\n{}", case.name, faults.join("\n")));
        }
    }
    fs::remove_dir_all(saved).unwrap();
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), table.len(), failed.join("\n"));
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success(), "{} to {}", from.display(), to.display());
}

fn none(_: &Scratch) {}

/// Replaces text that must be there.
fn edit(scratch: &Scratch, name: impl AsRef<Path>, from: &str, to: &str) {
    let text = scratch.read(&name);
    assert!(text.contains(from), "{}: no {from:?}", name.as_ref().display());
    fs::write(scratch.path(name), text.replacen(from, to, 1)).unwrap();
}

/// Flips a bit of the byte at this place, counted from the end.
fn flip(path: &Path, from_end: usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() - from_end;
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn truncate(path: &Path, bytes: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

/// What Git puts in the place of a large file that was not fetched.
const LFS: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";

fn gzip(text: &str) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, text.as_bytes()).unwrap();
    gz.finish().unwrap()
}
