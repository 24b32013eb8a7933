//! What the shell or the launcher allows a process (`ulimit`).

use super::facts::RankFacts;
use super::finding::{Finding, Status};
use crate::report::step_line::{bytes, duration};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

/// One rank's limits; None: unlimited, or the system does not say.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// `ulimit -n`: open files.
    pub files: Option<u64>,
    /// `ulimit -Hn`: what that may be raised to.
    pub files_hard: Option<u64>,
    /// `ulimit -f` in bytes: the largest file.
    pub file_size: Option<u64>,
    /// `ulimit -s` in bytes.
    pub stack: Option<u64>,
    /// `ulimit -u`: processes and threads of the user.
    pub processes: Option<u64>,
    /// `ulimit -t` in seconds.
    pub cpu_seconds: Option<u64>,
    /// `ulimit -l` in bytes: memory that a network card may be given.
    pub locked: Option<u64>,
    /// Whether there is a card that wants it.
    pub infiniband: bool,
}

/// A limit in the kernel's table.
fn limit(name: &str, hard: bool) -> Option<u64> {
    let table = fs::read_to_string("/proc/self/limits").ok()?;
    let line = table.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().nth(usize::from(hard))?.parse().ok()
}

/// The soft limit of this name in `/proc/self/limits`; None: unlimited, or not said.
pub fn soft(name: &str) -> Option<u64> {
    limit(name, false)
}

/// Asks the system.
pub fn gather() -> Facts {
    Facts {
        files: soft("Max open files"),
        files_hard: limit("Max open files", true),
        file_size: soft("Max file size"),
        stack: soft("Max stack size"),
        processes: soft("Max processes"),
        cpu_seconds: soft("Max cpu time"),
        locked: soft("Max locked memory"),
        infiniband: fs::read_dir("/sys/class/infiniband").is_ok_and(|mut d| d.next().is_some()),
    }
}

/// What they mean, rank by rank.
pub fn judge(all: &[RankFacts]) -> Vec<Finding> {
    let each = all
        .iter()
        .flat_map(|f| judge_one(&f.limits).into_iter().map(|finding| finding.on(f.rank, &f.host)));
    each.collect()
}

fn judge_one(limits: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |status: Status, found: String, cause: &str, remedy: String| {
        let finding = Finding { status, ..Finding::note("limits", found) };
        findings.push(finding.cause(cause).remedy(remedy));
    };
    if let Some(files) = limits.files.filter(|files| *files < 1024) {
        let status = if files < 64 { Status::Stops } else { Status::Warning };
        let most = limits.files_hard.map_or("4096".to_string(), |n| n.min(4096).to_string());
        let cause = "MPI's connections, cache shards, records and checkpoints are open files";
        add(status, format!("at most {files} open files"), cause, format!("ulimit -n {most}"));
    }
    if let Some(size) = limits.file_size {
        let status = if size < 10_000_000_000 { Status::Stops } else { Status::Warning };
        let cause = "a larger checkpoint or cache cannot be written, and the run ends there";
        let remedy = "ulimit -f unlimited".to_string();
        add(status, format!("a file may have at most {}", bytes(size)), cause, remedy);
    }
    if let Some(stack) = limits.stack.filter(|stack| *stack < 1_000_000) {
        let cause = "libraries count on a stack of several megabytes";
        add(
            Status::Warning,
            format!("a stack of {}", bytes(stack)),
            cause,
            "ulimit -s 8192".into(),
        );
    }
    if let Some(processes) = limits.processes.filter(|n| *n < 256) {
        let cause = "threads count too, and each rank has several";
        let found = format!("at most {processes} processes of this user");
        add(Status::Warning, found, cause, "ulimit -u 4096".into());
    }
    if let Some(seconds) = limits.cpu_seconds {
        let cause = "the kernel ends each process after that much CPU time; login nodes do so";
        let found = format!("at most {} of CPU time", duration(seconds as f64));
        add(Status::Warning, found, cause, "run it in a job, on a compute node".into());
    }
    if let Some(locked) = limits.locked.filter(|n| *n < 64 << 20 && limits.infiniband) {
        let cause = "InfiniBand needs locked memory; MPI falls back to something slower, or ends";
        let remedy = "ulimit -l unlimited; under Slurm whoever runs it sets LimitMEMLOCK=infinity for slurmd";
        let found = format!("at most {} of locked memory", bytes(locked));
        add(Status::Warning, found, cause, remedy.into());
    }
    if findings.is_empty() {
        findings.push(Finding::ok("limits", "nothing is limited too tightly (ulimit)"));
    }
    findings
}

/// Shared memory: ranks of a node talk through files there.
pub fn judge_shared(free: Option<u64>, ranks: usize) -> Vec<Finding> {
    let Some(free) = free.filter(|_| ranks > 1) else { return Vec::new() };
    let dir = Path::new("/dev/shm").display();
    let found = format!("{dir} has {} free", bytes(free));
    vec![match free < 16_000_000 * ranks as u64 {
        false => Finding::ok("shared memory", found),
        true => Finding::warning("shared memory", found)
            .cause(format!(
                "{ranks} ranks talk through it, with up to 16 MB each; a full one ends them with a \
                 bus error"
            ))
            .remedy("start the container with --shm-size=1g, or remove old files there"),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(limits: Facts) -> Status {
        judge_one(&limits).into_iter().map(|f| f.status).max().unwrap()
    }

    #[test]
    fn limits_and_what_they_do() {
        let fine = Facts { files: Some(1 << 20), stack: Some(8 << 20), ..Facts::default() };
        assert_eq!(worst(fine.clone()), Status::Ok);
        assert_eq!(worst(Facts { files: Some(16), ..fine.clone() }), Status::Stops);
        assert_eq!(worst(Facts { files: Some(256), ..fine.clone() }), Status::Warning);
        assert_eq!(worst(Facts { file_size: Some(1 << 20), ..fine.clone() }), Status::Stops);
        assert_eq!(worst(Facts { cpu_seconds: Some(600), ..fine.clone() }), Status::Warning);
        assert_eq!(worst(Facts { processes: Some(64), ..fine.clone() }), Status::Warning);
        assert_eq!(worst(Facts { stack: Some(1 << 16), ..fine.clone() }), Status::Warning);
        let locked = Facts { locked: Some(65536), ..fine };
        assert_eq!(worst(locked.clone()), Status::Ok);
        assert_eq!(worst(Facts { infiniband: true, ..locked }), Status::Warning);
    }

    #[test]
    fn shared_memory() {
        assert!(judge_shared(Some(0), 1).is_empty());
        assert_eq!(judge_shared(Some(64 << 20), 2)[0].status, Status::Ok);
        assert_eq!(judge_shared(Some(64 << 20), 8)[0].status, Status::Warning);
    }

    #[test]
    fn the_kernels_table_is_read() {
        assert!(soft("Max open files").is_some_and(|files| files > 0));
        assert_eq!(soft("Max nonsense"), None);
    }
}
