//! Who is to blame when a job does not get on: a pure function of what one rank sees of all.

use super::heartbeat::{Beat, Process};
use std::fmt::Write as _;
use std::time::Duration;

/// When silence and standstill count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// No sign of life for so long (`distributed.heartbeat_timeout`).
    pub silence: Option<Duration>,
    /// Signs of life, but no piece of work done for so long (`distributed.progress_timeout`).
    pub standstill: Option<Duration>,
}

/// What a rank sees of one of all ranks, itself among them. Times are by its own clock.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The last sign of life; None where none was ever there.
    pub beat: Option<Beat>,
    /// How long ago that one came, or since when it is waited for.
    pub silent: Duration,
    /// How long the rank has done no piece of work.
    pub still: Duration,
    /// What the machine says of its process, where it is this machine.
    pub process: Option<Process>,
    /// It took its file away: it has left, as one does.
    pub left: bool,
}

/// What happened to the rank that is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its process has ended.
    Dead,
    /// Its process was stopped.
    Stopped,
    /// Its main thread waits for a disk or a network file system.
    StuckInIo,
    /// It lives, but nothing gets done.
    Behind,
    /// No sign of life, and nothing more is known from here.
    Silent,
    /// It was never seen at this work.
    NeverArrived,
    /// All wait for each other.
    Deadlock,
}

/// A rank to blame, and what to tell people.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Its number.
    pub rank: usize,
    /// What happened to it.
    pub kind: Kind,
    /// The report, with a remedy.
    pub text: String,
}

/// How long a process may be gone before it counts, so that a rank that ends with an error can say
/// it itself.
const GRACE: Duration = Duration::from_secs(4);

/// Judges what rank `own` sees. `hurry`: the launcher is ending us, so that little time is left to
/// say why.
pub fn judge(own: usize, seen: &[Seen], limits: Limits, hurry: bool) -> Option<Verdict> {
    let others = || seen.iter().enumerate().filter(|(rank, one)| *rank != own && !one.left);
    let beyond = |limit: Option<Duration>, time: Duration| limit.is_some_and(|l| time >= l);
    let dead = |one: &Seen| {
        // One that said what it ended with needs no other to say it, if that ends the job.
        let told = one.beat.as_ref().is_some_and(|beat| beat.ended.is_some());
        let grace = limits.silence.map(|limit| if told { limit } else { GRACE.min(limit) });
        let at_once = hurry && !told && limits.silence.is_some();
        one.process == Some(Process::Gone) && (at_once || beyond(grace, one.silent))
    };
    if let Some((rank, one)) = others().find(|(_, one)| dead(one)) {
        return Some(verdict(rank, Kind::Dead, one, seen));
    }
    let silent = |one: &Seen| beyond(limits.silence, one.silent);
    if let Some((rank, one)) = others().find(|(_, one)| silent(one)) {
        let kind = match (&one.beat, one.process) {
            (None, _) => Kind::NeverArrived,
            (_, Some(Process::Stopped)) => Kind::Stopped,
            (_, Some(Process::Blocked)) => Kind::StuckInIo,
            _ => Kind::Silent,
        };
        return Some(verdict(rank, kind, one, seen));
    }
    let still = |one: &Seen| beyond(limits.standstill, one.still);
    let waits = |one: &Seen| one.beat.as_ref().is_some_and(|beat| beat.waiting);
    let mut all = seen.iter().enumerate().filter(|(_, one)| !one.left);
    if let Some((rank, one)) = all.clone().find(|(_, one)| still(one) && !waits(one)) {
        let blocked = one.process == Some(Process::Blocked);
        let kind = if blocked { Kind::StuckInIo } else { Kind::Behind };
        return Some(verdict(rank, kind, one, seen));
    }
    if all.clone().all(|(_, one)| still(one) && waits(one)) {
        return all.next().map(|(rank, one)| verdict(rank, Kind::Deadlock, one, seen));
    }
    None
}

fn verdict(rank: usize, kind: Kind, one: &Seen, seen: &[Seen]) -> Verdict {
    let size = seen.len();
    let seconds = |time: Duration| format!("{:.0} s", time.as_secs_f64());
    let (place, doing) = match &one.beat {
        Some(beat) => (format!(", host {}, process {}", beat.host, beat.pid), doing(beat)),
        None => (String::new(), String::new()),
    };
    let who = format!("rank {rank} of {size}{place}");
    let mut text = match kind {
        Kind::Dead => match one.beat.as_ref().and_then(|beat| beat.ended.as_ref()) {
            Some(ended) => format!("{who} has ended with `{ended}`, and the job did not"),
            None => format!("{who} is dead{doing}"),
        },
        Kind::Stopped => {
            format!("{who} was stopped (SIGSTOP or a debugger) {} ago{doing}", seconds(one.silent))
        }
        Kind::StuckInIo => {
            format!("{who} has been stuck in I/O for {}{doing}", seconds(one.silent.max(one.still)))
        }
        Kind::Behind => format!("{who} has done nothing for {}{doing}", seconds(one.still)),
        Kind::Silent => {
            format!("{who} has given no sign of life for {}{doing}", seconds(one.silent))
        }
        Kind::NeverArrived => {
            format!("{who} never arrived; it has been waited for {}", seconds(one.silent))
        }
        Kind::Deadlock => {
            format!("all ranks have waited for each other for {}", seconds(one.still))
        }
    };
    for (number, other) in seen.iter().enumerate().filter(|(number, _)| *number != rank).take(8) {
        if let Some(beat) = other.beat.as_ref().filter(|_| !other.left) {
            let waits = if beat.waiting { "waits" } else { "works" };
            let _ = write!(text, "\n  rank {number} on {} {waits}{}", beat.host, self::doing(beat));
        }
    }
    if size > 9 {
        let _ = write!(text, "\n  and others");
    }
    let hint = match kind {
        Kind::Dead => {
            "look for what killed it (memory: `dmesg`, `sacct -o MaxRSS`); the same command goes on from the last checkpoint"
        }
        Kind::Stopped => "the same command goes on from the last checkpoint",
        Kind::StuckInIo => {
            "look at that node's file systems (df, dmesg); leave the node out with --exclude and start again"
        }
        Kind::Behind => {
            "if that work may take so long, raise distributed.progress_timeout; the same command goes on from the last checkpoint"
        }
        Kind::Silent => {
            "its node, network or file system may be gone: leave it out with --exclude and start again"
        }
        Kind::NeverArrived => {
            "see whether its node is up, and `trainer doctor` under the same launcher"
        }
        Kind::Deadlock => "this is a mistake of the program; please report it with these lines",
    };
    let _ = write!(text, "\n  hint: {hint}");
    Verdict { rank, kind, text }
}

fn doing(beat: &Beat) -> String {
    if beat.phase.is_empty() { String::new() } else { format!(", while {}", beat.phase) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        silence: Some(Duration::from_secs(20)),
        standstill: Some(Duration::from_secs(600)),
    };

    /// Four ranks that wait for each other's next step, all well.
    fn well() -> Vec<Seen> {
        (0..4)
            .map(|rank| Seen {
                beat: Some(Beat {
                    rank,
                    size: 4,
                    host: format!("n{}", rank / 2),
                    phase: "training, step 7".into(),
                    waiting: true,
                    ..Beat::default()
                }),
                silent: Duration::from_secs(2),
                still: Duration::from_secs(1),
                process: None,
                left: false,
            })
            .collect()
    }

    fn judged(change: impl Fn(&mut Vec<Seen>)) -> Option<(usize, Kind)> {
        let mut seen = well();
        change(&mut seen);
        judge(1, &seen, LIMITS, false).map(|v| (v.rank, v.kind))
    }

    #[test]
    fn healthy_jobs_are_left_alone() {
        assert_eq!(judged(|_| ()), None);
        // Rank 0 saves for a minute, the others wait.
        let slow = Duration::from_secs(60);
        assert_eq!(judged(|s| s.iter_mut().for_each(|one| one.still = slow)), None);
        // One that has left is nobody's worry, nor is one that just died: it may say why.
        assert_eq!(judged(|s| (s[2].left, s[2].silent) = (true, slow)), None);
        assert_eq!(judged(|s| s[2].process = Some(Process::Gone)), None);
        let off = Limits { silence: None, standstill: None };
        let mut seen = well();
        seen[3].silent = Duration::from_secs(9999);
        seen[3].process = Some(Process::Gone);
        assert_eq!(judge(1, &seen, off, false), None);
    }

    #[test]
    fn the_guilty_one_is_named_with_what_happened() {
        let long = Duration::from_secs(21);
        assert_eq!(judged(|s| s[2].silent = long), Some((2, Kind::Silent)));
        let state = |process| {
            move |s: &mut Vec<Seen>| {
                s[3].silent = long;
                s[3].process = Some(process);
            }
        };
        assert_eq!(judged(state(Process::Stopped)), Some((3, Kind::Stopped)));
        assert_eq!(judged(state(Process::Blocked)), Some((3, Kind::StuckInIo)));
        assert_eq!(judged(state(Process::Gone)), Some((3, Kind::Dead)));
        assert_eq!(judged(state(Process::There)), Some((3, Kind::Silent)));
        let never = judged(|s| s[0] = Seen { silent: long, ..Seen::default() });
        assert_eq!(never, Some((0, Kind::NeverArrived)));
    }

    #[test]
    fn of_those_that_stand_still_the_one_that_does_not_wait_is_to_blame() {
        let long = Duration::from_secs(601);
        let all_still = |s: &mut Vec<Seen>| s.iter_mut().for_each(|one| one.still = long);
        let behind = judged(|s| {
            all_still(s);
            s[2].beat.as_mut().unwrap().waiting = false;
        });
        assert_eq!(behind, Some((2, Kind::Behind)));
        assert_eq!(judged(all_still), Some((0, Kind::Deadlock)));
        // Itself, too.
        let own = judged(|s| {
            s[1].still = long;
            s[1].beat.as_mut().unwrap().waiting = false;
            s[1].process = Some(Process::Blocked);
        });
        assert_eq!(own, Some((1, Kind::StuckInIo)));
    }

    #[test]
    fn the_report_reads_well() {
        let mut seen = well();
        seen[2].silent = Duration::from_secs(21);
        seen[2].process = Some(Process::Stopped);
        let text = judge(1, &seen, LIMITS, false).unwrap().text;
        assert!(text.starts_with(
            "rank 2 of 4, host n1, process 0 was stopped (SIGSTOP or a debugger) 21 s ago, while training, step 7\n  rank 0 on n0 waits, while training, step 7"
        ), "{text}");
        assert!(text.contains("\n  hint: "), "{text}");
    }

    #[test]
    fn in_a_hurry_the_dead_are_named_at_once() {
        let mut seen = well();
        seen[0].process = Some(Process::Gone);
        assert_eq!(judge(1, &seen, LIMITS, true).map(|v| v.kind), Some(Kind::Dead));
        seen[0].beat.as_mut().unwrap().ended = Some("error: no such file".into());
        assert_eq!(judge(1, &seen, LIMITS, true), None, "it has said why itself");
        seen[0].silent = Duration::from_secs(21);
        assert_eq!(judge(1, &seen, LIMITS, false).map(|v| v.kind), Some(Kind::Dead));
    }
}
