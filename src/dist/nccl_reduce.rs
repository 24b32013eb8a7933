//! The sum of a flat gradient over all ranks through NCCL, in place, on a stream beside libtorch's.
//!
//! Buckets, slices and the tree are those of `reduce`, so `exact` has its bits. But nothing is posted
//! and tested step by step: what a bucket needs is put on the stream at once, and the stream keeps
//! the order. `exact`: the rank's earlier partial sums are added to the gradient, partial sums go to
//! the owners of slices in one exchange, the owner's additions follow, and the sums go to all in a
//! second one. `fast`: one all-reduce a bucket.
//!
//! A bucket is put on the stream from within the hook that completes it. On a GPU that is
//! autograd's thread, while the main one waits in backward: only there is the GPU not yet far behind
//! the host, and only that thread's current stream says when the bucket is complete.

use super::layout::{Layout, Source};
use super::nccl::{Nccl, joined};
use super::reduce::{Cuts, Reducer};
use super::tree::{self, Node};
use crate::config::Reduce;
use crate::error::{Error, Result};
use std::marker::PhantomData;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// What is kept from step to step: how to sum, and memory for other ranks' partial sums of one
/// slice, which is bucket x k (P - 1) / P for P ranks with k partial sums each.
pub struct NcclReducer {
    nccl: Rc<Nccl>,
    how: Reduce,
    cuts: Cuts,
    inbox: Option<Tensor>,
}

/// The sum of one step, on its way.
pub struct NcclReduction<'a> {
    nccl: &'a Nccl,
    how: Reduce,
    cuts: Cuts,
    m: usize,
    gradient: *mut f32,
    layout: Layout,
    inbox: *mut f32,
    ready: usize,
    sent: usize,
    _memory: PhantomData<&'a Tensor>,
}

// SAFETY: made by the main thread and used by it or, while it waits in backward, by autograd's one
// thread for the GPU; never by two at once. Device memory, communicator and stream may be used from
// any thread, and the communicator's `Rc` is only borrowed.
unsafe impl Send for NcclReduction<'_> {}

impl NcclReducer {
    /// What `reducer` does, through the job's communicator; None where it has none.
    pub fn new(reducer: &Reducer) -> Option<NcclReducer> {
        let (how, cuts) = reducer.plan();
        Some(NcclReducer { nccl: joined()?, how, cuts, inbox: None })
    }

    /// Begins the sum of a step of `m` micro-batches; all ranks do. `gradient` holds, or will hold,
    /// the value of this rank's micro-batch `last` (`fast`: of all its own), and in the end the sum;
    /// `parts` are the partial sums of those before, and are used up.
    pub fn begin<'a>(
        &'a mut self,
        m: usize,
        gradient: &'a Tensor,
        last: Option<usize>,
        parts: &'a [(Node, Tensor)],
    ) -> Result<NcclReduction<'a>> {
        let (rank, size) = (self.nccl.rank, self.nccl.size);
        let sum = self.data(gradient)?;
        let layout = match self.how {
            Reduce::Exact => {
                let parts = parts.iter().map(|(node, part)| Ok((*node, self.data(part)?)));
                Layout::new((rank, size, m), sum, last, parts.collect::<Result<_>>()?)
            }
            Reduce::Fast => Layout::default(),
        };
        let needed = (layout.incoming() * self.cuts.longest_slice()) as i64;
        if self.inbox.as_ref().is_none_or(|inbox| inbox.size()[0] < needed) {
            self.inbox = Some(gradient.new_zeros([needed], (Kind::Float, gradient.device())));
        }
        let inbox = self.inbox.as_ref().map_or(std::ptr::null_mut(), |x| x.data_ptr().cast());
        Ok(NcclReduction {
            nccl: &self.nccl,
            how: self.how,
            cuts: self.cuts,
            m,
            gradient: sum,
            layout,
            inbox,
            ready: 0,
            sent: 0,
            _memory: PhantomData,
        })
    }

    fn data(&self, tensor: &Tensor) -> Result<*mut f32> {
        let dense = tensor.kind() == Kind::Float && tensor.is_contiguous();
        if !dense || tensor.numel() != self.cuts.total {
            return Err(Error::bug("gradients are dense float32 of one length"));
        }
        Ok(tensor.data_ptr().cast())
    }
}

impl NcclReduction<'_> {
    /// The first `upto` elements of this rank's gradient have their last value, or will when
    /// libtorch's current stream of this thread has come so far. Buckets that are complete are put
    /// on the stream.
    pub fn ready(&mut self, upto: usize) -> Result<()> {
        self.ready = self.ready.max(upto);
        while self.sent < self.cuts.buckets() && self.cuts.bucket(self.sent).end <= self.ready {
            self.sum_bucket(self.sent)?;
            self.sent += 1;
        }
        Ok(())
    }

    /// The whole gradient has its last value: waits until all sums are there. What libtorch is given
    /// afterwards sees them.
    pub fn finish(mut self) -> Result<()> {
        let all = self.cuts.buckets();
        tracing::trace!("{} of {all} buckets were sent in backward", self.sent);
        self.ready(usize::MAX)?;
        self.nccl.lane.lead()?;
        self.nccl.wait()
    }

    fn sum_bucket(&self, b: usize) -> Result<()> {
        let (nccl, bucket) = (self.nccl, self.cuts.bucket(b));
        nccl.lane.follow()?;
        // SAFETY: within the gradient and the partial sums, which the caller lends for the whole
        // sum; what an error leaves under way ends with the process.
        unsafe {
            let sum = self.gradient.add(bucket.start);
            if self.how == Reduce::Fast {
                return nccl.sum(sum, bucket.len());
            }
            for left in &self.layout.chain {
                nccl.lane.add(sum, left.add(bucket.start), bucket.len())?;
            }
        }
        if nccl.size > 1 {
            self.exchange_parts(b)?;
        }
        self.evaluate(b)?;
        if nccl.size > 1 {
            self.exchange_sums(b)?;
        }
        Ok(())
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let (rank, size) = (self.nccl.rank, self.nccl.size);
        (0..size).filter(move |r| *r != rank)
    }

    /// Every rank's partial sums of each slice go to its owner.
    fn exchange_parts(&self, b: usize) -> Result<()> {
        let own = self.cuts.slice(b, self.nccl.rank).len();
        self.nccl.exchange(|exchange| {
            for to in self.others() {
                let slice = self.cuts.slice(b, to);
                for part in self.layout.mine.iter().filter(|_| !slice.is_empty()) {
                    // SAFETY: within the partial sum; see `sum_bucket`.
                    unsafe { exchange.send(part.add(slice.start), slice.len(), to)? };
                }
            }
            let mut at = self.inbox;
            for &(from, count) in self.layout.foreign.iter().filter(|_| own > 0) {
                for _ in 0..count {
                    // SAFETY: the inbox has room for the longest slice of every foreign partial
                    // sum; what it held was added before, on the same stream.
                    unsafe {
                        exchange.receive(at, own, from)?;
                        at = at.add(own);
                    }
                }
            }
            Ok(())
        })
    }

    /// The tree over the own slice, into the gradient.
    fn evaluate(&self, b: usize) -> Result<()> {
        let (lane, slice) = (&self.nccl.lane, self.cuts.slice(b, self.nccl.rank));
        if slice.is_empty() {
            return Ok(());
        }
        // SAFETY: all within the inbox or buffers of the gradient's length; see `sum_bucket`.
        let place = |source: &Source| unsafe {
            match source {
                Source::Own(data) => data.add(slice.start),
                Source::Foreign(n) => self.inbox.add(n * slice.len()),
            }
        };
        let parts = self.layout.sources.iter().map(|(node, source)| (*node, place(source)));
        let mut added = Ok(());
        let mut add = |left: &mut *mut f32, right: *mut f32| {
            if added.is_ok() {
                // SAFETY: two different ones of the places above.
                added = unsafe { lane.add(*left, right, slice.len()) };
            }
        };
        let sum = tree::evaluate(parts.collect(), self.m, &mut add);
        added?;
        let sum = sum.ok_or_else(|| Error::bug("a step without micro-batches"))?;
        // SAFETY: as above; where the sum already stands in the gradient nothing is copied.
        unsafe {
            let result = self.gradient.add(slice.start);
            if sum == result { Ok(()) } else { lane.copy(result, sum, slice.len()) }
        }
    }

    /// Every owner's sums go to all.
    fn exchange_sums(&self, b: usize) -> Result<()> {
        let own = self.cuts.slice(b, self.nccl.rank);
        self.nccl.exchange(|exchange| {
            for rank in self.others() {
                let theirs = self.cuts.slice(b, rank);
                // SAFETY: within the gradient. What stood in another's slice was sent to it before,
                // on the same stream.
                unsafe {
                    if !own.is_empty() {
                        exchange.send(self.gradient.add(own.start), own.len(), rank)?;
                    }
                    if !theirs.is_empty() {
                        let place = self.gradient.add(theirs.start);
                        exchange.receive(place, theirs.len(), rank)?;
                    }
                }
            }
            Ok(())
        })
    }
}
