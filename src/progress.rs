//! Signs of life: what this process is doing, that it gets on, and where it may be asked to stop.
//!
//! Every room says what begins ([`enter`]) and that a piece of it is done ([`tick`]): a record read,
//! a batch computed. The heartbeat (`dist`) tells both to the other ranks and to people, the
//! watchdog judges by them, and errors name the phase. A tick is also the place where long work
//! learns that the job is to end: it then fails with [`crate::error::Kind::Preempted`], which goes
//! up with `?` like any other error.

use crate::error::Result;
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// A tick asks whether to stop no more often than this.
const ASK: Duration = Duration::from_millis(10);

struct Phase {
    name: String,
    since: Option<Instant>,
}

static PHASE: Mutex<Phase> = Mutex::new(Phase { name: String::new(), since: None });
static TICKS: AtomicU64 = AtomicU64::new(0);
static IN_PHASE: AtomicU64 = AtomicU64::new(0);
static STEP: AtomicU64 = AtomicU64::new(0);
static TOTAL: AtomicU64 = AtomicU64::new(0);
static WAITING: AtomicBool = AtomicBool::new(false);
static DEVICE: Mutex<String> = Mutex::new(String::new());
static OBSERVER: OnceLock<fn(&str, u64)> = OnceLock::new();

type Ask = Box<dyn FnMut() -> Result<()>>;

thread_local! {
    /// What ticks of this thread ask, while something is installed.
    static ASKED: RefCell<Option<Ask>> = const { RefCell::new(None) };
    static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// What a process is doing.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// In words that complete "while ...".
    pub phase: String,
    /// How long it has been at it.
    pub seconds: f64,
    /// Pieces of work done since the start.
    pub ticks: u64,
    /// The last step that was begun, from 1; 0 where there are none.
    pub step: u64,
    /// The last step there will be; 0 where there are none.
    pub total: u64,
    /// Whether it waits for other ranks.
    pub waiting: bool,
    /// What it computes on, where that is known.
    pub device: String,
}

/// Says what begins now, in words that complete "while ...".
pub fn enter(phase: impl Into<String>) {
    let phase = phase.into();
    tracing::debug!("{phase}");
    IN_PHASE.store(0, Ordering::Relaxed);
    TICKS.fetch_add(1, Ordering::Relaxed);
    *lock(&PHASE) = Phase { name: phase.clone(), since: Some(Instant::now()) };
    // Told after the change, so that what happens now happens in the new phase.
    if let Some(observer) = OBSERVER.get() {
        observer(&phase, 0);
    }
}

/// Says that a piece of work is done. Fails where the job is to end and this thread was told to ask
/// (see [`ask`]).
pub fn tick() -> Result<()> {
    advance();
    let now = Instant::now();
    if LAST.get().is_some_and(|last| now - last < ASK) {
        return Ok(());
    }
    LAST.set(Some(now));
    // Taken out while it runs: what it does may itself enter phases, never tick.
    let Some(mut ask) = ASKED.take() else { return Ok(()) };
    let answer = ask();
    ASKED.set(Some(ask));
    answer
}

/// Says that a piece of work is done, on threads and in places that cannot stop.
pub fn advance() {
    TICKS.fetch_add(1, Ordering::Relaxed);
    let within = IN_PHASE.fetch_add(1, Ordering::Relaxed) + 1;
    if let Some(observer) = OBSERVER.get() {
        observer(&current(), within);
    }
}

/// Does `work` on this thread with `question` asked by its ticks. Not to be nested.
pub fn asking<T>(
    question: impl FnMut() -> Result<()> + 'static,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let before = ASKED.replace(Some(Box::new(question)));
    assert!(before.is_none(), "agreements do not nest");
    LAST.set(None);
    let result = work();
    ASKED.set(None);
    result
}

/// The step that begins now, from 1, and the last one there will be.
pub fn set_step(step: u64, total: u64) {
    TOTAL.store(total, Ordering::Relaxed);
    STEP.store(step, Ordering::Relaxed);
}

/// What this process computes on.
pub fn set_device(device: String) {
    *lock(&DEVICE) = device;
}

/// Whether this process waits for others.
pub fn set_waiting(waiting: bool) {
    WAITING.store(waiting, Ordering::Relaxed);
}

/// What was entered last.
pub fn current() -> String {
    lock(&PHASE).name.clone()
}

/// All of it.
pub fn snapshot() -> Snapshot {
    let (phase, seconds) = {
        let phase = lock(&PHASE);
        (phase.name.clone(), phase.since.map_or(0.0, |since| since.elapsed().as_secs_f64()))
    };
    Snapshot {
        phase,
        seconds,
        ticks: TICKS.load(Ordering::Relaxed),
        step: STEP.load(Ordering::Relaxed),
        total: TOTAL.load(Ordering::Relaxed),
        waiting: WAITING.load(Ordering::Relaxed),
        device: lock(&DEVICE).clone(),
    }
}

/// Has every phase and every tick within it (numbered from 1; 0 is its beginning) told to
/// `observer`. Once for a process.
pub fn observe(observer: fn(&str, u64)) {
    let _ = OBSERVER.set(observer);
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A thread that panics ends the process; what it held is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::rc::Rc;

    #[test]
    fn ticks_ask_and_stop() {
        let asked = Rc::new(Cell::new(0));
        let own = asked.clone();
        let mut done = 0;
        let stopped = asking(
            move || {
                own.set(own.get() + 1);
                if own.get() == 2 { Err(Error::preempted("asked")) } else { Ok(()) }
            },
            || {
                for _ in 0..1000 {
                    tick()?;
                    done += 1;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            },
        );
        assert_eq!(stopped.unwrap_err().code(), 75);
        assert!((1..1000).contains(&done));
        // Outside nobody asks.
        std::thread::sleep(ASK);
        tick().unwrap();
        assert_eq!(asked.get(), 2);
    }
}
