//! The world: who we are among the ranks, and everything they do together.
//!
//! - `world`: starting and ending the job, ranks and nodes; `ranks`: ranks in words
//! - `launch`: whether launcher and MPI understand each other; `versions`: which MPI
//! - `stop`: the flag that signals set; `deadline`: the job's time limit; `restarts`: crash loops
//! - `agree`: what all ranks must know of each other while each does its own work
//! - `heartbeat`, `watchdog`, `verdict`: signs of life, who watches them, who is to blame
//! - `fault`: faults on purpose, for tests
//! - `tree`: the one summation tree; `reduce`: its evaluation by all ranks, `overlap`: while
//!   backward goes on; `layout`: where its parts lie
//! - `mpi`: MPI itself, never blocking
//! - `nccl`: NCCL likewise; `nccl_reduce`: the sum through it
//!
//! Knows no model and no data set. Gradients may go through NCCL; all else goes through [`Comm`].

mod agree;
pub mod deadline;
mod fault;
pub mod heartbeat;
mod launch;
mod layout;
mod mpi;
mod nccl;
mod nccl_reduce;
mod overlap;
#[cfg(test)]
mod overlap_tests;
mod ranks;
mod reduce;
pub mod restarts;
pub mod stop;
pub mod tree;
mod verdict;
mod versions;
mod watchdog;
mod world;

pub use nccl::nccl_library;
pub use nccl_reduce::{NcclReducer, NcclReduction};
pub use overlap::Own;
pub use ranks::ranks;
pub use reduce::{Reducer, Reduction};
pub use verdict::Limits;
pub use versions::{MpiLibrary, Vendor};
pub use watchdog::Watch;
pub use world::{World, abort, fail, on_panic};

use crate::error::{Error, Result};

/// The transport between ranks. With one rank every call returns at once with its own input.
pub enum Comm {
    /// One process, no MPI.
    Solo,
    /// MPI over host memory.
    Mpi(mpi::Mpi),
}

/// A rank that is not like rank 0.
pub struct OddOne {
    /// Its number.
    pub rank: usize,
    /// What rank 0 gave.
    pub first: Vec<u8>,
    /// What it gave.
    pub theirs: Vec<u8>,
}

/// An all-gather on its way.
pub struct PendingGather(Pending);

enum Pending {
    Here(Box<[u8]>),
    Mpi(mpi::PendingGather),
}

impl Comm {
    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        match self {
            Comm::Solo => 0,
            Comm::Mpi(mpi) => mpi.rank,
        }
    }

    /// The number of processes ("world size").
    pub fn size(&self) -> usize {
        match self {
            Comm::Solo => 1,
            Comm::Mpi(mpi) => mpi.size,
        }
    }

    /// Waits until every rank has come here.
    pub fn barrier(&self) -> Result<()> {
        match self {
            Comm::Solo => Ok(()),
            Comm::Mpi(mpi) => mpi.barrier(),
        }
    }

    /// Posts an all-gather; `lengths` are the bytes each rank gives, known to all.
    pub fn start_gather(&self, own: Vec<u8>, lengths: &[usize]) -> Result<PendingGather> {
        Ok(PendingGather(match self {
            Comm::Solo => Pending::Here(own.into_boxed_slice()),
            Comm::Mpi(mpi) => Pending::Mpi(mpi.post_gather(own, lengths)?),
        }))
    }

    /// All ranks' bytes in order of rank.
    pub fn finish_gather(&self, pending: PendingGather) -> Result<Box<[u8]>> {
        match (self, pending.0) {
            (_, Pending::Here(own)) => Ok(own),
            (Comm::Mpi(mpi), Pending::Mpi(pending)) => mpi.finish_gather(pending),
            (Comm::Solo, Pending::Mpi(_)) => Err(Error::bug("an MPI gather without MPI")),
        }
    }

    /// Every rank's bytes, of any lengths, in order of rank.
    pub fn all_gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let words = vec![8usize; self.size()];
        let lengths = self.start_gather((own.len() as u64).to_le_bytes().to_vec(), &words)?;
        let lengths: Vec<usize> = self
            .finish_gather(lengths)?
            .chunks_exact(8)
            .map(|w| u64::from_le_bytes(w.try_into().expect("eight bytes")) as usize)
            .collect();
        let all = self.start_gather(own, &lengths)?;
        let all = self.finish_gather(all)?;
        let mut rest: &[u8] = &all;
        Ok(lengths
            .into_iter()
            .map(|n| {
                let (one, after) = rest.split_at(n);
                rest = after;
                one.to_vec()
            })
            .collect())
    }

    /// Rank 0's bytes for everyone; what the others give is ignored.
    pub fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let Comm::Mpi(mpi) = self else { return Ok(bytes) };
        let mut length = (bytes.len() as u64).to_le_bytes();
        mpi.broadcast_bytes(&mut length)?;
        let length = u64::from_le_bytes(length) as usize;
        let mut bytes = if mpi.rank == 0 { bytes } else { vec![0; length] };
        mpi.broadcast_bytes(&mut bytes)?;
        Ok(bytes)
    }

    /// The first rank that gives other bytes than rank 0, with both; the same answer everywhere.
    pub fn odd_one(&self, own: Vec<u8>) -> Result<Option<OddOne>> {
        let mut all = self.all_gather(own)?;
        let odd = all.iter().position(|other| *other != all[0]);
        Ok(odd.map(|rank| OddOne {
            theirs: all.swap_remove(rank),
            first: all.swap_remove(0),
            rank,
        }))
    }

    /// What rank 0 decides, for everyone: `decide` runs there alone, and its failure is
    /// everyone's, so that no rank waits for one that has given up. Where any rank is asked to stop
    /// meanwhile, the decision fails everywhere with [`Kind::Preempted`](crate::error::Kind), at
    /// its next tick or at its end.
    pub fn decide<T: serde::Serialize + serde::de::DeserializeOwned>(
        &self,
        decide: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let is_mine = self.rank() == 0;
        let mine = self.together(|| if is_mine { decide().map(Some) } else { Ok(None) })?;
        if self.size() == 1 {
            return mine.ok_or_else(|| Error::bug("rank 0 decides"));
        }
        let bytes = match &mine {
            Some(value) => serde_json::to_vec(value)
                .map_err(|e| Error::bug(format!("a decision cannot be sent: {e}")))?,
            None => Vec::new(),
        };
        let bytes = self.broadcast(bytes)?;
        match mine {
            Some(value) => Ok(value),
            None => serde_json::from_slice(&bytes)
                .map_err(|e| Error::bug(format!("a decision cannot be read: {e}"))),
        }
    }
}
