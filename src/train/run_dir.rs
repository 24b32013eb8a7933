//! Which directory a run lives in, and that it lives there alone.
//!
//! A run directory is `<output_dir>/<name>-YYYY-MM-DD-HH-MM-SS/` (UTC). A start goes on with the
//! newest one of the same name and identity that is not complete, so a requeued job needs no flag.
//! Rank 0's heartbeat says whether a process is at work there. A run of several stages keeps each
//! but the last in a directory of its own within it.

use super::checkpoint;
use crate::dist::heartbeat::{self, Beat, HEARTBEATS, Process};
use crate::error::{Error, Result};
use crate::files;
use crate::progress;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const RUN: &str = "run.json";

/// The file of restarts (`dist::restarts`) in a run directory.
pub const STARTS: &str = "starts.json";

/// What a run directory says about itself.
#[derive(Serialize, Deserialize)]
struct RunFile {
    identity: String,
    complete: bool,
}

/// How a run directory was come by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunDir {
    /// Its path.
    pub path: PathBuf,
    /// Whether it was there already.
    pub continued: bool,
}

/// `YYYY-MM-DD-HH-MM-SS` in UTC (civil date from days, after Hinnant's `chrono` paper).
fn time_stamp(unix_seconds: u64) -> String {
    let (days, second) = ((unix_seconds / 86_400) as i64, unix_seconds % 86_400);
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * m + 2) / 5 + 1;
    let month = if m < 10 { m + 3 } else { m - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (h, min, s) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}-{h:02}-{min:02}-{s:02}")
}

/// The run directories of this name, newest first.
pub fn list(output_dir: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(output_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        // Its remedy is that of a place that cannot be written to.
        Err(e) => return Err(Error::write(output_dir, &e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::read(output_dir, &e))?;
        let own = entry.file_name();
        let stamp = own.to_str().and_then(|n| n.strip_prefix(name)?.strip_prefix('-'));
        let is_stamp = stamp
            .is_some_and(|s| s.len() >= 19 && s.chars().all(|c| c.is_ascii_digit() || c == '-'));
        if is_stamp && entry.path().join(RUN).is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    found.reverse();
    Ok(found)
}

/// Where a run keeps checkpoints: its own directory and those of its stages.
fn homes(run_dir: &Path) -> Vec<PathBuf> {
    let mut homes = vec![run_dir.to_path_buf()];
    // What cannot be listed has no checkpoint to go on from; opening one will tell why.
    if let Ok(entries) = fs::read_dir(run_dir) {
        homes.extend(entries.flatten().map(|e| e.path()).filter(|p| p.join(RUN).is_file()));
    }
    homes
}

/// Steps behind a run, those of its stages included, as far as checkpoints know.
pub fn steps(run_dir: &Path) -> u64 {
    let last = |dir: &PathBuf| checkpoint::linked_step(&dir.join("last.ckpt"));
    homes(run_dir).iter().filter_map(last).sum()
}

/// Threads a rank that a run's checkpoints were made with.
pub fn stored_threads(run_dir: &Path) -> Option<usize> {
    let state = |dir: &PathBuf| checkpoint::open(&dir.join("last.ckpt")).ok();
    homes(run_dir).iter().find_map(state).map(|loaded| loaded.state.threads_per_rank)
}

/// Makes the directory of a stage, if it is not there (rank 0 alone).
pub fn begin_stage(dir: &Path, identity: &str) -> Result<()> {
    files::make_dir(dir)?;
    sweep(dir)?;
    if dir.join(RUN).is_file() { Ok(()) } else { write(dir, identity, false) }
}

/// Whether a stage was brought to its end.
pub fn is_stage_complete(dir: &Path) -> Result<bool> {
    if dir.join(RUN).is_file() { is_complete(dir) } else { Ok(false) }
}

/// The best checkpoint of a run; any other path as it is.
pub fn best_of(path: &Path) -> PathBuf {
    let best = path.join("best.ckpt");
    if best.exists() { best } else { path.to_path_buf() }
}

/// Finds the directory to go on in, or makes one (rank 0 alone). With `fresh`, always makes one.
pub fn find_or_make(output_dir: &Path, name: &str, identity: &str, fresh: bool) -> Result<RunDir> {
    if !fresh {
        for path in list(output_dir, name)? {
            let Ok(run) = read(&path) else { continue };
            if run.identity == identity && !run.complete {
                refuse_if_busy(&path)?;
                sweep(&path)?;
                return Ok(RunDir { path, continued: true });
            }
        }
    }
    files::make_dir(output_dir)?;
    let stamp = time_stamp(heartbeat::now() as u64);
    for attempt in 1.. {
        let more = if attempt == 1 { String::new() } else { format!("-{attempt}") };
        let path = output_dir.join(format!("{name}-{stamp}{more}"));
        match fs::create_dir(&path) {
            Ok(()) => {
                write(&path, identity, false)?;
                return Ok(RunDir { path, continued: false });
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::write(&path, &e)),
        }
    }
    unreachable!("some name is free")
}

/// Removes what a killed process left half-written beside the records.
fn sweep(run_dir: &Path) -> Result<()> {
    for entry in fs::read_dir(run_dir).map_err(|e| Error::read(run_dir, &e))? {
        let entry = entry.map_err(|e| Error::read(run_dir, &e))?;
        if entry.file_name().to_str().is_some_and(files::is_temporary) {
            fs::remove_file(entry.path()).map_err(|e| Error::write(&entry.path(), &e))?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<RunFile> {
    let file = path.join(RUN);
    serde_json::from_str(&files::read_text(&file)?)
        .map_err(|e| Error::damaged(format!("not a run's file: {e}")).at(file.display()))
}

fn write(path: &Path, identity: &str, complete: bool) -> Result<()> {
    let run = RunFile { identity: identity.to_string(), complete };
    let text = serde_json::to_string_pretty(&run)
        .map_err(|e| Error::bug(format!("{RUN} cannot be written: {e}")))?;
    files::write_text(&path.join(RUN), &text)
}

/// Whether a run is complete.
pub fn is_complete(path: &Path) -> Result<bool> {
    Ok(read(path)?.complete)
}

/// Marks a run as complete: the next start of the same configuration begins a new one.
pub fn complete(path: &Path, identity: &str) -> Result<()> {
    write(path, identity, true)
}

fn refuse_if_busy(run_dir: &Path) -> Result<()> {
    let file = heartbeat::file(&run_dir.join(HEARTBEATS), 0);
    let Some(beat) = Beat::read(&file).filter(|beat| beat.ended.is_none()) else { return Ok(()) };
    match beat.process() {
        // A process of this host that is gone left its heartbeat behind.
        Some(Process::Gone) => return Ok(()),
        Some(_) => {}
        // On another host, whose clock is not ours: one that lives gives another sign of life.
        None if gives_another(&beat, &file)? => {}
        None => return Ok(()),
    }
    Err(Error::launch(format!(
        "this run is already at work: process {} on {} gave a sign of life {:.0} s ago",
        beat.pid,
        beat.host,
        beat.age().max(0.0)
    ))
    .at(run_dir.display())
    .hint("wait for it or stop it; `--new` begins another run of the same configuration"))
}

/// Waits for two and a half beats at most.
fn gives_another(beat: &Beat, file: &Path) -> Result<bool> {
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < 2.5 * beat.every {
        std::thread::sleep(Duration::from_millis(100));
        progress::tick()?;
        if Beat::read(file).is_some_and(|now| now.beat != beat.beat) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stamps() {
        assert_eq!(time_stamp(0), "1970-01-01-00-00-00");
        assert_eq!(time_stamp(951_782_400), "2000-02-29-00-00-00");
        assert_eq!(time_stamp(1_795_132_799), "2026-11-19-23-59-59");
    }

    #[test]
    fn a_start_goes_on_where_the_same_run_stopped() {
        let dir = std::env::temp_dir().join(format!("trainer-runs-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let first = find_or_make(&dir, "a", "one", false).unwrap();
        assert!(!first.continued);
        let again = find_or_make(&dir, "a", "one", false).unwrap();
        assert_eq!((again.path.clone(), again.continued), (first.path.clone(), true));
        assert!(!find_or_make(&dir, "a", "two", false).unwrap().continued);
        assert!(!find_or_make(&dir, "a-b", "one", false).unwrap().continued);
        let fresh = find_or_make(&dir, "a", "one", true).unwrap();
        assert_ne!(fresh.path, first.path);

        let beats = fresh.path.join(HEARTBEATS);
        fs::create_dir(&beats).unwrap();
        let mut beat = Beat::own(0, 1, 1);
        beat.write(&beats).unwrap();
        let busy = find_or_make(&dir, "a", "one", false).unwrap_err();
        assert_eq!(busy.code(), 4);

        // A killed process that nobody has waited for yet is at work no more.
        let mut killed = std::process::Command::new("true").spawn().unwrap();
        (beat.pid, beat.started) = (killed.id(), 0);
        beat.write(&beats).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        assert!(Path::new(&format!("/proc/{}", killed.id())).exists());
        let half = fresh.path.join(".tmp-metrics.json-host-1");
        fs::write(&half, "").unwrap();
        assert!(find_or_make(&dir, "a", "one", false).unwrap().continued);
        assert!(!half.exists(), "what it left half-written is swept away");
        killed.wait().unwrap();
        assert!(find_or_make(&dir, "a", "one", false).unwrap().continued);

        // Of a process on another host only its next sign of life tells.
        (beat.host, beat.every) = ("elsewhere".into(), 0.2);
        beat.write(&beats).unwrap();
        assert!(find_or_make(&dir, "a", "one", false).unwrap().continued);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(150));
                Beat { beat: 2, ..beat.clone() }.write(&beats).unwrap();
            });
            assert_eq!(find_or_make(&dir, "a", "one", false).unwrap_err().code(), 4);
        });
        complete(&fresh.path, "one").unwrap();
        assert_eq!(find_or_make(&dir, "a", "one", false).unwrap().path, first.path);
        fs::remove_dir_all(dir).unwrap();
    }
}
