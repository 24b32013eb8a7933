//! Faults on purpose, for tests: `TRAINER_FAULT=ACTION@PHASE[#N][:rank=R]`, several separated by `;`.
//!
//! The action happens on rank R (on all, without it) where the phase begins whose name starts so, or
//! at the N-th piece of work within it (`#*`: at each). Actions: `usr1`, `term`, `stop`, `kill`,
//! `abort` (signals to this process), `panic`, `exit=CODE`, `slow=MILLISECONDS`. Each says on
//! standard error that it happens. With `TRAINER_FAULT_ONCE=FILE` nothing happens where FILE
//! exists, and FILE is made first: a job that is started again goes through.

use crate::error::{Error, Result};
use crate::progress;
use std::sync::OnceLock;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
enum Action {
    Signal(i32),
    Panic,
    Exit(i32),
    Slow(Duration),
}

#[derive(Clone, Debug, PartialEq)]
enum When {
    At(u64),
    Always,
}

#[derive(Clone, Debug, PartialEq)]
struct Fault {
    action: Action,
    phase: String,
    when: When,
    rank: Option<usize>,
}

static FAULTS: OnceLock<Vec<Fault>> = OnceLock::new();

/// Reads the variable and keeps what concerns this rank. Without it nothing is watched at all.
pub(super) fn install(rank: usize) -> Result<()> {
    let Ok(text) = std::env::var("TRAINER_FAULT") else { return Ok(()) };
    let all = text.split(';').filter(|t| !t.trim().is_empty()).map(|t| {
        parse(t.trim()).ok_or_else(|| {
            Error::usage(format!("`{t}` is no fault"))
                .at("TRAINER_FAULT")
                .hint("unset it; tests use ACTION@PHASE[#N][:rank=R]")
        })
    });
    let mut own = all.collect::<Result<Vec<_>>>()?;
    own.retain(|fault| fault.rank.is_none_or(|r| r == rank));
    if !own.is_empty() && FAULTS.set(own).is_ok() {
        progress::observe(at);
    }
    Ok(())
}

fn parse(text: &str) -> Option<Fault> {
    let (action, place) = text.split_once('@')?;
    let (action, argument) = action.split_once('=').unwrap_or((action, ""));
    let action = match action {
        "usr1" => Action::Signal(libc::SIGUSR1),
        "term" => Action::Signal(libc::SIGTERM),
        "stop" => Action::Signal(libc::SIGSTOP),
        "kill" => Action::Signal(libc::SIGKILL),
        "abort" => Action::Signal(libc::SIGABRT),
        "panic" => Action::Panic,
        "exit" => Action::Exit(argument.parse().ok()?),
        "slow" => Action::Slow(Duration::from_millis(argument.parse().ok()?)),
        _ => return None,
    };
    let (place, rank) = match place.split_once(":rank=") {
        Some((place, rank)) => (place, Some(rank.parse().ok()?)),
        None => (place, None),
    };
    let (phase, when) = match place.split_once('#') {
        Some((phase, "*")) => (phase, When::Always),
        Some((phase, n)) => (phase, When::At(n.parse().ok()?)),
        None => (place, When::At(0)),
    };
    Some(Fault { action, phase: phase.to_string(), when, rank })
}

fn at(phase: &str, within: u64) {
    for fault in FAULTS.get().into_iter().flatten() {
        let now = match fault.when {
            When::At(n) => n == within,
            When::Always => within > 0,
        };
        if now && phase.starts_with(&fault.phase) && is_first_time() {
            happen(fault, phase, within);
        }
    }
}

fn is_first_time() -> bool {
    let Some(path) = std::env::var_os("TRAINER_FAULT_ONCE") else { return true };
    std::fs::OpenOptions::new().write(true).create_new(true).open(path).is_ok()
}

fn happen(fault: &Fault, phase: &str, within: u64) {
    if !matches!(fault.action, Action::Slow(_)) {
        super::world::say(&format!("fault: {:?} while {phase}, piece {within}", fault.action));
    }
    if matches!(fault.action, Action::Signal(libc::SIGSTOP | libc::SIGKILL)) {
        // The heartbeat tells of a new phase within 50 ms; nobody could know of it before.
        std::thread::sleep(Duration::from_millis(200));
    }
    match fault.action {
        // SAFETY: sends a signal to this process.
        Action::Signal(signal) => unsafe {
            libc::kill(libc::getpid(), signal);
        },
        Action::Panic => panic!("a fault on purpose"),
        // SAFETY: ends the process as a crash would, with nothing tidied up.
        Action::Exit(code) => unsafe { libc::_exit(code) },
        Action::Slow(time) => std::thread::sleep(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read() {
        let fault = parse("stop@evaluating the val part#2:rank=1").unwrap();
        assert_eq!(fault.action, Action::Signal(libc::SIGSTOP));
        assert_eq!(
            (fault.phase.as_str(), fault.when, fault.rank),
            ("evaluating the val part", When::At(2), Some(1))
        );
        let fault = parse("slow=50@training#*").unwrap();
        assert_eq!(
            (fault.action, fault.when),
            (Action::Slow(Duration::from_millis(50)), When::Always)
        );
        for wrong in ["stop", "jump@x", "slow=x@y", "stop@x#y", "exit@x"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
