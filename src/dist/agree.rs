//! Agreement between ranks that are each busy with work of their own.
//!
//! Ranks that read, embed or evaluate meet at different times. Each posts a maximum of (stop,
//! working) when the last one has arrived, without ever waiting for the others while it has work; so
//! a signal that only one rank got reaches all of them within about the longest piece of work.

use super::mpi::{Mpi, PendingMax};
use super::{Comm, stop};
use crate::error::{Error, Result};
use crate::progress;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// What the ranks know together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// Go on.
    Working,
    /// Some rank was asked to stop.
    Stop,
    /// Every rank has said that it has nothing left to do.
    AllDone,
}

impl Comm {
    /// Does work of this rank's own, of any length, while the others do theirs. Its ticks
    /// ([`progress::tick`]) tell and learn whether any rank is asked to stop; then the work fails
    /// with [`Kind::Preempted`](crate::error::Kind::Preempted), on every rank, and nobody has left
    /// yet. No other exchange between ranks may happen within.
    pub fn together<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let mpi = match self {
            Comm::Mpi(mpi) if mpi.size > 1 => Some(*mpi),
            _ => None,
        };
        let agreement =
            Rc::new(RefCell::new(Agreement { mpi, pending: None, last: Status::Working }));
        let asked = agreement.clone();
        let question = move || match asked.borrow_mut().exchange(true)? {
            Status::Stop => Err(preempted()),
            _ => Ok(()),
        };
        let result = progress::asking(question, work);
        let is_stop = |e: &Error| e.kind() == crate::error::Kind::Preempted;
        if result.as_ref().err().is_some_and(|e| !is_stop(e)) {
            // It ends the job; nobody is waited for.
            return result;
        }
        match agreement.borrow_mut().drain()? {
            Status::Stop => {
                self.barrier()?;
                Err(result.err().unwrap_or_else(preempted))
            }
            _ => result,
        }
    }
}

fn preempted() -> Error {
    let reason = stop::requested().unwrap_or("a signal to another rank");
    Error::preempted(format!("stopped by {reason}; the same command goes on"))
}

/// One ongoing agreement; all ranks make one at the same place and drain it at the end.
struct Agreement {
    mpi: Option<Mpi>,
    pending: Option<PendingMax>,
    last: Status,
}

impl Drop for Agreement {
    fn drop(&mut self) {
        // After an error MPI may still write there; the job is about to end.
        std::mem::forget(self.pending.take());
    }
}

impl Agreement {
    /// This rank has no work left: takes part until the others have none either (or stop), and
    /// says which it was.
    fn drain(&mut self) -> Result<Status> {
        loop {
            match self.exchange(false)? {
                Status::Working => {
                    progress::set_waiting(true);
                    std::thread::sleep(Duration::from_millis(1));
                }
                other => {
                    progress::set_waiting(false);
                    return Ok(other);
                }
            }
        }
    }

    /// Never waits.
    fn exchange(&mut self, working: bool) -> Result<Status> {
        if self.last != Status::Working {
            return Ok(self.last);
        }
        let own = [i64::from(stop::requested().is_some()), i64::from(working)];
        let Some(mpi) = self.mpi else {
            self.last = status(own);
            return Ok(self.last);
        };
        if let Some(pending) = &mut self.pending {
            let Some(all) = mpi.test_max(pending)? else { return Ok(Status::Working) };
            self.pending = None;
            self.last = status(all);
        }
        if self.last == Status::Working {
            self.pending = Some(mpi.post_max(own)?);
        }
        Ok(self.last)
    }
}

fn status([stop, working]: [i64; 2]) -> Status {
    match (stop, working) {
        (1.., _) => Status::Stop,
        (_, 0) => Status::AllDone,
        _ => Status::Working,
    }
}
