//! What a probe found, how bad it is, why, and what to do; and the same found by several ranks.

use crate::report::step_line::duration;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What a finding means for a run, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// A run works, but badly, or may fail later.
    Warning,
    /// A run would end, or hang.
    Stops,
}

impl Status {
    /// Its word in the table.
    pub fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Note => "note",
            Status::Warning => "warning",
            Status::Stops => "STOPS",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at: `clock`, `memory`, …
    pub check: String,
    /// What it means for a run.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// Why that is so, or why it matters.
    pub cause: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
    /// Ranks it was found on, ascending.
    pub ranks: BTreeSet<usize>,
    /// Their hosts.
    pub hosts: BTreeSet<String>,
}

impl Finding {
    fn new(check: &str, status: Status, found: impl Into<String>) -> Finding {
        let (ranks, hosts) = (BTreeSet::new(), BTreeSet::new());
        let found = found.into();
        Finding { check: check.into(), status, found, cause: None, remedy: None, ranks, hosts }
    }

    /// All is well.
    pub fn ok(check: &str, found: impl Into<String>) -> Finding {
        Finding::new(check, Status::Ok, found)
    }

    /// Worth knowing, nothing to do.
    pub fn note(check: &str, found: impl Into<String>) -> Finding {
        Finding::new(check, Status::Note, found)
    }

    /// A run works, but badly.
    pub fn warning(check: &str, found: impl Into<String>) -> Finding {
        Finding::new(check, Status::Warning, found)
    }

    /// A run would end.
    pub fn stops(check: &str, found: impl Into<String>) -> Finding {
        Finding::new(check, Status::Stops, found)
    }

    /// Why.
    pub fn cause(mut self, cause: impl Into<String>) -> Finding {
        self.cause = Some(cause.into());
        self
    }

    /// What to do.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Finding {
        self.remedy = Some(remedy.into());
        self
    }

    /// Where it was found.
    pub fn on(mut self, rank: usize, host: &str) -> Finding {
        self.ranks.insert(rank);
        self.hosts.insert(host.to_string());
        self
    }
}

/// A time, below a millisecond in microseconds.
pub fn brief(seconds: f64) -> String {
    match seconds < 9.5e-4 {
        true => format!("{:.0} us", 1e6 * seconds),
        false => duration(seconds),
    }
}

/// The same finding of several ranks becomes one that names them all. Order: from good to bad, and
/// as they came.
pub fn merge(findings: impl IntoIterator<Item = Finding>) -> Vec<Finding> {
    let mut merged: Vec<Finding> = Vec::new();
    for one in findings {
        let same = |other: &&mut Finding| {
            (&other.check, other.status, &other.found, &other.cause, &other.remedy)
                == (&one.check, one.status, &one.found, &one.cause, &one.remedy)
        };
        match merged.iter_mut().find(same) {
            Some(other) => {
                other.ranks.extend(one.ranks);
                other.hosts.extend(one.hosts);
            }
            None => merged.push(one),
        }
    }
    merged.sort_by_key(|finding| finding.status);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_found_the_same_are_named_together() {
        let low = |rank, host| Finding::warning("memory", "1 GB").remedy("more").on(rank, host);
        let found = [
            Finding::stops("disk", "full").on(0, "a"),
            low(0, "a"),
            low(3, "b"),
            Finding::warning("memory", "2 GB").remedy("more").on(1, "a"),
            Finding::ok("clock", "agrees"),
        ];
        let merged = merge(found);
        let checks: Vec<&str> = merged.iter().map(|f| f.check.as_str()).collect();
        assert_eq!(checks, ["clock", "memory", "memory", "disk"]);
        assert_eq!(merged[1].ranks, BTreeSet::from([0, 3]));
        assert_eq!(merged[1].hosts, BTreeSet::from(["a".to_string(), "b".to_string()]));
        assert_eq!(merged[2].ranks, BTreeSet::from([1]));
    }
}
