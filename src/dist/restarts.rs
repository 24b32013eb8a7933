//! A job that a scheduler starts again and again without getting any further ends for good.
//!
//! Only starts that nobody asked for count: Slurm says by `SLURM_RESTART_COUNT` that it started a
//! job again. A start that finds the work as far as the one before it left it is one without
//! progress; after a number of those in a row the job is refused (exit code 4, which no job file
//! requeues). A start by hand begins to count anew.

use crate::error::{Error, Result};
use crate::files;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Restarts in a row without progress that are allowed.
const BUDGET: u64 = 5;

#[derive(Default, Serialize, Deserialize)]
struct Starts {
    /// Where the work stood at the last restart.
    at: u64,
    /// Restarts in a row that found it there.
    in_a_row: u64,
}

/// Notes in `path` a start that finds the work at `at` (steps, finished shards), and refuses one too
/// many (rank 0 alone).
pub fn note(path: &Path, at: u64, unit: &str) -> Result<()> {
    let count = std::env::var("SLURM_RESTART_COUNT").ok().and_then(|n| n.parse::<u64>().ok());
    noted(path, at, unit, count.unwrap_or(0))
}

fn noted(path: &Path, at: u64, unit: &str, restart: u64) -> Result<()> {
    if restart == 0 {
        forget(path);
        return Ok(());
    }
    let before = std::fs::read_to_string(path).ok();
    let before: Option<Starts> = before.and_then(|text| serde_json::from_str(&text).ok());
    let in_a_row = match before {
        Some(before) if before.at == at => before.in_a_row + 1,
        _ => 1,
    };
    let text = serde_json::to_string(&Starts { at, in_a_row })
        .map_err(|e| Error::bug(format!("starts cannot be written: {e}")))?;
    files::write_text(path, &text)?;
    if in_a_row <= BUDGET {
        return Ok(());
    }
    Err(Error::launch(format!(
        "this job was started again {in_a_row} times in a row without getting beyond {at} {unit}"
    ))
    .at(path.display())
    .hint(
        "read what ended it in the job's output; a time limit too short for one checkpoint does this too \
         (training.save_steps, --time). Submitting it again by hand begins to count anew",
    ))
}

/// Forgets the starts of work that is done.
pub fn forget(path: &Path) {
    // What cannot be removed is a small file that does no harm.
    let _ = std::fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_without_progress_run_out() {
        let dir = std::env::temp_dir().join(format!("trainer-starts-{}", std::process::id()));
        noted(&dir, 7, "steps", 0).unwrap();
        assert!(!dir.exists(), "a start by hand leaves nothing");
        for restart in 1..=BUDGET {
            noted(&dir, 7, "steps", restart).unwrap();
        }
        let error = noted(&dir, 7, "steps", BUDGET + 1).unwrap_err();
        assert_eq!(error.code(), 4);
        assert!(error.to_string().contains("6 times in a row without getting beyond 7 steps"));
        // Progress, and a start by hand, begin to count anew.
        noted(&dir, 8, "steps", 20).unwrap();
        noted(&dir, 8, "steps", 21).unwrap();
        noted(&dir, 8, "steps", 0).unwrap();
        for restart in 1..=BUDGET {
            noted(&dir, 8, "steps", restart).unwrap();
        }
        forget(&dir);
        noted(&dir, 8, "steps", 9).unwrap();
        forget(&dir);
        assert!(!dir.exists());
    }
}
