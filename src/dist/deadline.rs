//! The job's time limit: rank 0 asks for the end in time to save.
//!
//! When the limit comes is what Slurm says: `SLURM_JOB_END_TIME` where it sets it (23.02 and newer),
//! else `squeue -o %L` (time left), asked again now and then because limits are changed while jobs
//! run. How long before it the job is asked to stop is what saving and the longest piece of work
//! between two points of agreement have taken so far, twice, and a margin.

use super::stop;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Beside what was measured: for the launcher, a slow disk, and Slurm's own 30 s between looks at
/// its clocks.
const MARGIN: Duration = Duration::from_secs(20);

/// A limit is asked for again after this long.
const ASK_AGAIN: Duration = Duration::from_secs(120);

/// Longest save and longest step seen, in milliseconds.
static SAVE: AtomicU64 = AtomicU64::new(0);
static STEP: AtomicU64 = AtomicU64::new(0);

static END: Mutex<Option<Instant>> = Mutex::new(None);
static ASKED: Mutex<Option<Instant>> = Mutex::new(None);
static ASKING: AtomicBool = AtomicBool::new(false);

/// Says how long a checkpoint took from the request to the disk.
pub fn saved(time: Duration) {
    SAVE.fetch_max(time.as_millis() as u64, Ordering::Relaxed);
}

/// Says how long a step took.
pub fn stepped(time: Duration) {
    STEP.fetch_max(time.as_millis() as u64, Ordering::Relaxed);
}

/// How long before the limit the job is asked to stop.
fn needed() -> Duration {
    let measured = SAVE.load(Ordering::Relaxed) + STEP.load(Ordering::Relaxed);
    Duration::from_millis(2 * measured) + MARGIN
}

/// Time left until the limit, where one is known.
fn left() -> Option<Duration> {
    let end = *END.lock().unwrap_or_else(PoisonError::into_inner);
    end.map(|end| end.saturating_duration_since(Instant::now()))
}

/// Asks for the end when it is time; to be called often, costs nothing.
pub(super) fn check() {
    let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    if asked.is_none_or(|last| last.elapsed() >= ASK_AGAIN) && !ASKING.load(Ordering::Relaxed) {
        *asked = Some(Instant::now());
        ask();
    }
    drop(asked);
    if left().is_some_and(|left| left <= needed()) {
        stop::time_is_up();
    }
}

/// Learns the limit, on a thread of its own where a program must be asked: it may not answer.
fn ask() {
    let Some(job) = std::env::var("SLURM_JOB_ID").ok().filter(|id| id.parse::<u64>().is_ok())
    else {
        return;
    };
    if let Some(end) = std::env::var("SLURM_JOB_END_TIME").ok().and_then(|t| t.parse().ok()) {
        set(end_of(end, super::heartbeat::now()));
        return;
    }
    ASKING.store(true, Ordering::Relaxed);
    let asked = std::thread::Builder::new().name("squeue".to_string()).spawn(move || {
        let output = Command::new("squeue")
            .args(["-h", "-j", &job, "-o", "%L"])
            .stdin(Stdio::null())
            .output();
        if let Ok(output) = output
            && let Some(left) = time_left(&String::from_utf8_lossy(&output.stdout))
        {
            set(Some(left));
        }
        ASKING.store(false, Ordering::Relaxed);
    });
    // Without an answer the launcher's signals are all there is.
    if asked.is_err() {
        ASKING.store(false, Ordering::Relaxed);
    }
}

fn set(left: Option<Duration>) {
    let end = left.map(|left| Instant::now() + left);
    *END.lock().unwrap_or_else(PoisonError::into_inner) = end;
}

fn end_of(unix_end: f64, now: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(unix_end - now).ok()
}

/// `squeue`'s time left: `[days-][hours:]minutes:seconds`; None for UNLIMITED, INVALID and the like.
fn time_left(text: &str) -> Option<Duration> {
    let text = text.trim();
    let (days, clock) = match text.split_once('-') {
        Some((days, clock)) => (days.parse::<u64>().ok()?, clock),
        None => (0, text),
    };
    let parts: Vec<u64> = clock.split(':').map(|p| p.parse().ok()).collect::<Option<_>>()?;
    let seconds = match parts[..] {
        [minutes, seconds] => 60 * minutes + seconds,
        [hours, minutes, seconds] => 3600 * hours + 60 * minutes + seconds,
        _ => return None,
    };
    Some(Duration::from_secs(86_400 * days + seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squeue_is_understood() {
        let seconds = |text| time_left(text).map(|t| t.as_secs());
        assert_eq!(seconds("0:41\n"), Some(41));
        assert_eq!(seconds("9:59:07"), Some(35_947));
        assert_eq!(seconds("2-03:00:01"), Some(183_601));
        for no in ["UNLIMITED", "INVALID", "NOT_SET", "", "1:2:3:4", "5"] {
            assert_eq!(seconds(no), None, "{no}");
        }
    }

    #[test]
    fn a_limit_in_the_past_is_none() {
        assert_eq!(end_of(10.0, 5.0), Some(Duration::from_secs(5)));
        assert_eq!(end_of(5.0, 10.0), None);
    }

    #[test]
    fn what_took_long_is_allowed_for() {
        saved(Duration::from_secs(3));
        saved(Duration::from_secs(1));
        stepped(Duration::from_secs(2));
        assert_eq!(needed(), MARGIN + Duration::from_secs(10));
    }
}
