//! Seeded misconfigurations: each is really made, and must be told at the start or by `doctor` with
//! its cause and remedy, by one rank, soon, with its exit code, and leave nothing on disk.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

mod configurations;
mod disks;
mod healthy;
mod launches;
mod machine;

use common::{Outcome, Scratch};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// A row of a table.
struct Case {
    name: &'static str,
    code: i32,
    /// What stands in front of the program.
    launcher: String,
    args: &'static str,
    /// What the table or the message must contain.
    says: Vec<&'static str>,
    env: Vec<(String, String)>,
    /// Shell commands of `start.sh`, which is part of the launcher.
    script: String,
    prepare: fn(&Scratch),
    /// A shell command that fails where this machine cannot produce it.
    needs: &'static str,
}

/// `says` is cut at ` | `.
fn case(name: &'static str, code: i32, args: &'static str, says: &'static str) -> Case {
    Case {
        name,
        code,
        launcher: String::new(),
        args,
        says: says.split(" | ").collect(),
        env: vec![],
        script: String::new(),
        prepare: |_| (),
        needs: "true",
    }
}

impl Case {
    fn launcher(mut self, launcher: &str) -> Case {
        self.launcher = launcher.into();
        self
    }

    /// Behind `launcher sh start.sh`, of this text; it ends with the program, which is `"$@"`.
    fn script(mut self, launcher: &str, script: &str) -> Case {
        self.launcher = format!("{launcher} sh start.sh");
        self.script = script.into();
        self
    }

    /// Two ranks, of which rank 1 does this before it becomes the program.
    fn rank_1(self, does: &str) -> Case {
        let script = format!("[ $OMPI_COMM_WORLD_RANK != 1 ] || {{ {does}; }}\nexec \"$@\"\n");
        self.script(&mpirun(2), &script)
    }

    /// With the environment that a launcher was recorded to make.
    fn recorded(mut self, text: &str) -> Case {
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        self.env.extend(pairs.map(|(name, value)| (name.to_string(), value.to_string())));
        self
    }

    fn env(mut self, name: &str, value: &str) -> Case {
        self.env.push((name.into(), value.into()));
        self
    }

    fn prepare(mut self, prepare: fn(&Scratch)) -> Case {
        self.prepare = prepare;
        self
    }

    fn needs(mut self, command: &'static str) -> Case {
        self.needs = command;
        self
    }

    /// What is wrong with how the program took it.
    fn faults(&self) -> Vec<String> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let scratch = Scratch::new(&format!("doctor-{number}"));
        (self.prepare)(&scratch);
        if !self.script.is_empty() {
            scratch.write("start.sh", &self.script);
        }
        let env: Vec<(&str, &str)> =
            self.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let outcome = scratch.launch(&self.launcher, self.args, &env);
        let mut faults = self.faults_of(&outcome);
        let left = scratch.leftovers();
        if !left.is_empty() {
            faults.push(format!("left behind: {left:?}"));
        }
        faults
    }

    fn faults_of(&self, outcome: &Outcome) -> Vec<String> {
        let said = format!("{}{}", outcome.out, outcome.err);
        let mut faults = Vec::new();
        if outcome.code != self.code {
            faults.push(format!("exit code {}, expected {}", outcome.code, self.code));
        }
        for wanted in self.says.iter().filter(|wanted| !said.contains(**wanted)) {
            faults.push(format!("it does not say {wanted:?}"));
        }
        let errors = outcome.err.lines().filter(|l| l.starts_with("error")).count();
        let tables = usize::from(outcome.out.lines().any(|line| line.starts_with("ok ")));
        if errors + tables > 1 {
            faults.push(format!("{errors} messages and {tables} tables"));
        }
        if errors + tables == 0 || !said.contains("remedy  ") && !said.contains("hint: ") {
            faults.push("no remedy".to_string());
        }
        // Far above what it takes, far below what a hang takes.
        if outcome.seconds > 90.0 {
            faults.push(format!("it took {:.0} s", outcome.seconds));
        }
        if !faults.is_empty() {
            faults.push(format!("after {:.1} s it said:\n{said}", outcome.seconds));
        }
        faults
    }
}

fn mpirun(ranks: usize) -> String {
    format!("mpirun --oversubscribe --bind-to none -n {ranks}")
}

/// One table at a time: rows that hang count seconds.
static ONE: Mutex<()> = Mutex::new(());

/// Goes through a table and tells of all failures at once. Every row makes its own directory.
fn check(table: &[Case]) {
    let _alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut failed = Vec::new();
    for case in table {
        let able = Command::new("sh").args(["-c", case.needs]).output();
        if !able.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED {}: `{}` fails on this machine", case.name, case.needs);
            continue;
        }
        let faults = case.faults();
        if !faults.is_empty() {
            failed.push(format!("--- {}\n{}", case.name, faults.join("\n")));
        }
    }
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), table.len(), failed.join("\n"));
}

/// Compiles a library that stands in front of others (LD_PRELOAD).
fn shim(scratch: &Scratch, code: &str) {
    scratch.write("shim.c", code);
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-D_GNU_SOURCE", "-o", "shim.so", "shim.c"])
        .current_dir(scratch.path(""))
        .status();
    assert!(compiled.is_ok_and(|status| status.success()), "cc compiles a shim");
}
