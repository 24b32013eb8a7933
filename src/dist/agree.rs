//! Agreement between ranks that are each busy with work of their own.
//!
//! Ranks that embed or evaluate meet at different times. Each posts a maximum of (stop, working)
//! when the last one has arrived, without ever waiting for the others while it has work; so a
//! signal that only one rank got reaches all of them within about the longest piece of work.

use super::mpi::PendingMax;
use super::{Comm, stop};
use crate::error::Result;
use std::time::Duration;

/// What the ranks know together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Go on.
    Working,
    /// Some rank was asked to stop.
    Stop,
    /// Every rank has said that it has nothing left to do.
    AllDone,
}

/// One ongoing agreement; all ranks make one at the same place and drain it at the end.
pub struct Agreement<'a> {
    comm: &'a Comm,
    pending: Option<PendingMax>,
    last: Status,
}

impl<'a> Agreement<'a> {
    /// Begins; costs nothing until the first poll.
    pub fn new(comm: &'a Comm) -> Self {
        Agreement { comm, pending: None, last: Status::Working }
    }

    /// To be called between pieces of work of a few seconds at most. Never waits. After
    /// [`Status::Stop`] the caller does no more work and calls [`Agreement::drain`].
    pub fn poll(&mut self) -> Result<Status> {
        self.exchange(true)
    }

    /// This rank has no work left: takes part until the others have none either (or stop), and
    /// says which it was.
    pub fn drain(mut self) -> Result<Status> {
        loop {
            match self.exchange(false)? {
                Status::Working => std::thread::sleep(Duration::from_millis(1)),
                Status::AllDone => return Ok(Status::AllDone),
                // A rank that learnt it later is still to come by; meet there.
                Status::Stop => {
                    self.comm.barrier()?;
                    return Ok(Status::Stop);
                }
            }
        }
    }

    fn exchange(&mut self, working: bool) -> Result<Status> {
        if self.last != Status::Working {
            return Ok(self.last);
        }
        let own = [i64::from(stop::requested().is_some()), i64::from(working)];
        let Comm::Mpi(mpi) = self.comm else {
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
