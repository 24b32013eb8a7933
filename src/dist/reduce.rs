//! The sum of a flat gradient over all ranks.
//!
//! The gradient is cut into buckets, which are summed one after another, as soon as they are
//! complete (`overlap`). `exact`: each bucket is cut into one slice a rank; every rank sends its
//! partial sums of slice s to rank s, which evaluates the tree of the step there (`tree`) and
//! sends the sums to all. What is added, and in which order, does not depend on the number of
//! ranks, nor on buckets, slices and time. `fast` is the library's own all-reduce of each bucket.

use super::mpi::Requests;
use super::overlap::{Link, Own, Pass, Stream};
use super::{Comm, mpi};
use crate::config::Reduce;
use crate::error::{Error, Result};
use std::ops::Range;

/// Slices are cut at multiples of this many elements (a cache line).
const SLICE_ALIGN: usize = 16;

/// A bucket where the user names no size: this many elements (4 MB) ...
const BUCKET: usize = 1 << 20;

/// ... or this many a rank, so that messages stay worth sending.
const LEAST_SLICE: usize = 1 << 14;

/// How a flat buffer is cut into buckets, and buckets into slices. It never changes a bit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cuts {
    /// Elements of the whole buffer.
    pub total: usize,
    /// Elements of a bucket; the last may be shorter.
    pub bucket: usize,
    /// Ranks, that is, slices of a bucket.
    pub size: usize,
}

impl Cuts {
    /// The number of buckets.
    pub fn buckets(&self) -> usize {
        self.total.div_ceil(self.bucket)
    }

    /// The elements of bucket `b`.
    pub fn bucket(&self, b: usize) -> Range<usize> {
        b * self.bucket..((b + 1) * self.bucket).min(self.total)
    }

    /// The elements of bucket `b` that rank `owner` sums; may be none.
    pub fn slice(&self, b: usize, owner: usize) -> Range<usize> {
        let bucket = self.bucket(b);
        let lines = bucket.len().div_ceil(SLICE_ALIGN);
        let cut = |s: usize| bucket.start + (s * lines / self.size * SLICE_ALIGN).min(bucket.len());
        cut(owner)..cut(owner + 1)
    }

    /// The most elements that any slice has.
    pub fn longest_slice(&self) -> usize {
        let lines = self.bucket.min(self.total).div_ceil(SLICE_ALIGN);
        (lines.div_ceil(self.size) * SLICE_ALIGN).min(self.bucket)
    }
}

/// What is kept from step to step: how to sum, and the memory for it.
///
/// `exact` holds other ranks' partial sums of one slice of at most 8 buckets (`overlap::WINDOW`):
/// with P ranks of k partial sums each that is 8 x bucket x k (P - 1) / P, 16 MB for two ranks with
/// one partial sum each. `fast` holds a copy of at most 8 buckets.
pub struct Reducer {
    how: Reduce,
    cuts: Cuts,
    inbox: Vec<f32>,
}

impl Reducer {
    /// For gradients of `total` elements. `bucket_mb` is the size of a bucket in MB (2^20 bytes).
    pub fn new(comm: &Comm, how: Reduce, total: usize, bucket_mb: Option<f64>) -> Reducer {
        let size = comm.size();
        let bucket = match bucket_mb {
            Some(mb) => (mb * f64::from(1 << 18)) as usize,
            None => BUCKET.max(LEAST_SLICE * size),
        };
        let cuts = Cuts { total, bucket: bucket.max(1), size };
        Reducer { how, cuts, inbox: Vec::new() }
    }

    /// How it sums, and how it cuts.
    pub(super) fn plan(&self) -> (Reduce, Cuts) {
        (self.how, self.cuts)
    }

    /// Begins the sum of a step of `m` micro-batches; all ranks do, each with what it owns
    /// ([`super::tree::owned`]). Nothing is waited for.
    pub fn begin<'a>(
        &'a mut self,
        comm: &'a Comm,
        m: usize,
        own: Own<'a>,
    ) -> Result<Reduction<'a>> {
        Ok(Reduction(Pass::new(comm, (self.how, self.cuts, m), own, &mut self.inbox)?))
    }
}

/// The sum of one step, on its way. Dropped before [`Reduction::finish`] it leaks what MPI may
/// still touch; the job is at its end then.
pub struct Reduction<'a>(Pass<'a, Comm>);

impl Reduction<'_> {
    /// The first `upto` elements of this rank's gradient have their last value. Buckets that are
    /// complete are sent, and what has arrived is worked on; never waits.
    pub fn ready(&mut self, upto: usize) -> Result<()> {
        self.0.ready(upto)
    }

    /// The whole gradient has its last value: waits until all sums are there.
    pub fn finish(mut self) -> Result<()> {
        tracing::trace!("{} of {} buckets were sent in backward", self.0.sent(), self.0.buckets());
        self.0.ready(usize::MAX)?;
        mpi::patiently(|| self.0.advance())
    }
}

impl Link for Comm {
    type Requests = Requests;

    fn rank(&self) -> usize {
        Comm::rank(self)
    }

    fn size(&self) -> usize {
        Comm::size(self)
    }

    unsafe fn send(
        &self,
        data: *const f32,
        len: usize,
        to: usize,
        stream: Stream,
        requests: &mut Requests,
    ) -> Result<()> {
        // SAFETY: the same contract.
        unsafe { self.mpi()?.send(data, len, to, stream as i32, requests) }
    }

    unsafe fn receive(
        &self,
        data: *mut f32,
        len: usize,
        from: usize,
        stream: Stream,
        requests: &mut Requests,
    ) -> Result<()> {
        // SAFETY: the same contract.
        unsafe { self.mpi()?.receive(data, len, from, stream as i32, requests) }
    }

    unsafe fn sum(
        &self,
        data: *const f32,
        sum: *mut f32,
        len: usize,
        requests: &mut Requests,
    ) -> Result<()> {
        // SAFETY: the same contract.
        unsafe { self.mpi()?.sum(data, sum, len, requests) }
    }

    fn is_live(requests: &Requests) -> bool {
        !requests.is_empty()
    }

    fn test(&self, requests: &mut Requests) -> Result<bool> {
        Ok(requests.is_empty() || self.mpi()?.test(requests)?)
    }
}

impl Comm {
    fn mpi(&self) -> Result<&mpi::Mpi> {
        match self {
            Comm::Mpi(mpi) => Ok(mpi),
            Comm::Solo => Err(Error::bug("a message without MPI")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::Node;
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    proptest! {
        #[test]
        fn slices_partition_buckets_and_buckets_the_whole(
            size in 1usize..40, bucket in 1usize..3000, total in 0usize..10_000
        ) {
            let cuts = Cuts { total, bucket, size };
            let mut end = 0;
            for b in 0..cuts.buckets() {
                prop_assert_eq!(cuts.bucket(b).start, end);
                for s in 0..size {
                    let slice = cuts.slice(b, s);
                    prop_assert_eq!(slice.start, end);
                    prop_assert!(slice.start <= slice.end && slice.len() <= cuts.longest_slice());
                    end = slice.end;
                }
                prop_assert_eq!(cuts.bucket(b).end, end);
            }
            prop_assert_eq!(end, total);
        }
    }

    #[test]
    fn one_rank_evaluates_the_tree() {
        let (mut a, mut b) = (vec![1.0f32; 3], vec![2.0f32; 3]);
        let part = Cell::from_mut(a.as_mut_slice()).as_slice_of_cells();
        let own = Own {
            gradient: Cell::from_mut(b.as_mut_slice()).as_slice_of_cells(),
            last: Some(2),
            parts: vec![(Node { level: 1, index: 0 }, part)],
            keep: Box::new(()),
        };
        let mut reducer = Reducer::new(&Comm::Solo, Reduce::Exact, 3, Some(1e-5));
        reducer.begin(&Comm::Solo, 3, own).unwrap().finish().unwrap();
        assert_eq!(b, [3.0; 3]);
    }
}
