//! A rank's sign of life: a small file that its heartbeat thread overwrites in place.
//!
//! In place and not by renaming, because a network file system shows new bytes of an open-read file
//! at once (close-to-open) and a new name only when its directory entry's cache runs out. What a
//! reader gets in the middle of a write does not parse and is read again at the next beat.

use crate::error::{Error, Result};
use crate::files;
use crate::progress;
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The directory of a run's heartbeats, inside the run's.
pub const HEARTBEATS: &str = "heartbeats";

/// In a directory of heartbeats: what the watchdog ended the job with.
pub const REPORT: &str = "report.txt";

/// A sign of life is given this often in jobs of up to [`RANKS_AT_FULL_PACE`] ranks; in larger ones
/// as many a second in all.
const EVERY: Duration = Duration::from_secs(2);
const RANKS_AT_FULL_PACE: usize = 64;

/// Bytes of the file; shorter texts are filled up, so that nothing of an older one shows.
const WIDTH: usize = 1024;

/// What a rank says about itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Beat {
    /// Its number.
    pub rank: usize,
    /// Number of ranks.
    pub size: usize,
    /// Where it runs.
    pub host: String,
    /// Its process there, and when that started (clock ticks since boot, to tell it from a later
    /// process of the same number).
    pub pid: u32,
    /// See `pid`.
    pub started: u64,
    /// What it computes on.
    pub device: String,
    /// What it does, in words that complete "while ...".
    pub phase: String,
    /// For how long, in seconds.
    pub phase_seconds: f64,
    /// The last step it began, from 1.
    pub step: u64,
    /// The last step there will be; 0 where there are none.
    pub total: u64,
    /// Pieces of work done since its start.
    pub ticks: u64,
    /// Whether it waits for other ranks.
    pub waiting: bool,
    /// Counts beats.
    pub beat: u64,
    /// By the rank's own clock.
    pub unix_seconds: f64,
    /// Seconds between beats.
    pub every: f64,
    /// What it ended with, where it could still say so.
    pub ended: Option<String>,
}

/// How often ranks of a job of this size give a sign of life.
pub fn interval(size: usize) -> Duration {
    EVERY * size.div_ceil(RANKS_AT_FULL_PACE).max(1) as u32
}

/// Seconds since 1970 by this machine's clock.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// Rank `rank`'s file in a directory of heartbeats.
pub fn file(dir: &Path, rank: usize) -> PathBuf {
    dir.join(format!("rank-{rank:05}.json"))
}

impl Beat {
    /// This process's, number `beat`.
    pub fn own(rank: usize, size: usize, beat: u64) -> Beat {
        let doing = progress::snapshot();
        let pid = std::process::id();
        // Room is left for the other fields.
        let phase = doing.phase.chars().take(200).collect();
        Beat {
            rank,
            size,
            host: files::host_name(),
            pid,
            started: started(pid).unwrap_or(0),
            device: doing.device,
            phase,
            phase_seconds: doing.seconds,
            step: doing.step,
            total: doing.total,
            ticks: doing.ticks,
            waiting: doing.waiting,
            beat,
            unix_seconds: now(),
            every: interval(size).as_secs_f64(),
            ended: None,
        }
    }

    /// Writes it to its file. Not synced: a sign of life that a crash takes away says the truth.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let mut text = serde_json::to_vec(self)
            .map_err(|e| Error::bug(format!("a heartbeat cannot be written: {e}")))?;
        text.resize(text.len().max(WIDTH - 1), b' ');
        text.push(b'\n');
        let path = file(dir, self.rank);
        let open = || OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let written = open().and_then(|mut file| file.write_all(&text));
        written.map_err(|e| Error::write(&path, &e))
    }

    /// Reads a file; None where there is none, or where it was met half-written.
    pub fn read(path: &Path) -> Option<Beat> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// All that are in a directory, in order of rank.
    pub fn read_all(dir: &Path) -> Vec<Beat> {
        let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
        let mut beats: Vec<Beat> =
            entries.flatten().filter_map(|entry| Beat::read(&entry.path())).collect();
        beats.sort_by_key(|beat| beat.rank);
        beats
    }

    /// Seconds since it was given, by this machine's clock.
    pub fn age(&self) -> f64 {
        now() - self.unix_seconds
    }

    /// What this machine knows of the process, if it is one of its own.
    pub fn process(&self) -> Option<Process> {
        (self.host == files::host_name()).then(|| process(self.pid, self.started))
    }
}

/// What a machine knows of one of its processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// It has ended.
    Gone,
    /// It was stopped (SIGSTOP, a debugger).
    Stopped,
    /// Its main thread is in a system call that cannot be interrupted: a disk or a network file
    /// system.
    Blocked,
    /// It runs or sleeps.
    There,
}

/// The fields of `/proc/PID/stat` after the name in parentheses, which may hold spaces itself.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = text.rsplit_once(')')?.1.split_whitespace();
    Some(fields.map(str::to_string).collect())
}

/// When a process started, in clock ticks since boot.
fn started(pid: u32) -> Option<u64> {
    stat(pid)?.get(19)?.parse().ok()
}

fn process(pid: u32, since: u64) -> Process {
    let Some(fields) = stat(pid) else { return Process::Gone };
    if since != 0 && fields.get(19).and_then(|f| f.parse().ok()) != Some(since) {
        return Process::Gone;
    }
    // A killed one stays in the list (Z) until somebody asks for its exit code, which after the
    // death of its launcher can take a while.
    match fields.first().map(String::as_str) {
        Some("Z" | "X") => Process::Gone,
        Some("T" | "t") => Process::Stopped,
        Some("D") => Process::Blocked,
        _ => Process::There,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_beat_leaves_nothing_of_a_longer_one() {
        let dir = std::env::temp_dir().join(format!("trainer-beats-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mut beat = Beat::own(3, 4, 1);
        beat.phase = "x".repeat(200);
        beat.write(&dir).unwrap();
        beat.phase = "y".into();
        beat.write(&dir).unwrap();
        assert_eq!(Beat::read_all(&dir), [beat]);
        assert_eq!(fs::metadata(file(&dir, 3)).unwrap().len() as usize, WIDTH);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn processes_are_known_by_number_and_start() {
        let own = Beat::own(0, 1, 1);
        assert_eq!(own.process(), Some(Process::There));
        assert_eq!(process(own.pid, own.started + 1), Process::Gone);
        assert_eq!(Beat { host: "elsewhere".into(), ..own }.process(), None);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let since = started(child.id()).unwrap();
        let tell = |signal: &str| {
            let pid = child.id().to_string();
            std::process::Command::new("kill").args([signal, &pid]).status().unwrap();
            std::thread::sleep(Duration::from_millis(50));
        };
        tell("-STOP");
        assert_eq!(process(child.id(), since), Process::Stopped);
        tell("-KILL");
        assert_eq!(process(child.id(), since), Process::Gone, "nobody has waited for it yet");
        child.wait().unwrap();
    }

    #[test]
    fn large_jobs_beat_more_slowly() {
        assert_eq!(interval(8), EVERY);
        assert_eq!(interval(640), EVERY * 10);
    }
}
