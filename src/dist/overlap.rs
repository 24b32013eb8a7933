//! The sum of one step as a pipeline over buckets, advanced while backward goes on.
//!
//! On every rank each bucket goes through the same stages, and no bucket overtakes another in any
//! of them, so that the n-th message of a stream between two ranks is the same on both sides:
//!
//! 1. `awaited`: receives for the other ranks' partial sums of the own slice are posted;
//! 2. `sent`: the own gradient of the bucket is complete; earlier partial sums are added to it as
//!    the tree says, and what other ranks own is sent to them;
//! 3. `expected`: these sends are done, so their place in the gradient is free for the results,
//!    whose receives are posted;
//! 4. `evaluated`: all partial sums of the own slice are there; the tree is evaluated and the
//!    result sent to all;
//! 5. `finished`: all results of the bucket are there, and the own one is sent.
//!
//! At most [`WINDOW`] buckets are between 1 and 4, and between 2 and 5, which bounds memory and
//! open requests. `fast` has stages 2 and 5 alone. A pass is advanced by the one thread that may
//! call MPI, from the hooks of backward and afterwards until all is done.

use super::layout::{Layout, Source};
use super::reduce::Cuts;
use super::tree::{self, Node};
use crate::config::Reduce;
use crate::error::Result;
use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

/// Buckets that are on their way at a time.
pub(super) const WINDOW: usize = 8;

/// Elements that are added at a time: all partial sums of them stay in the first-level cache.
const BLOCK: usize = 2048;

/// Two streams of messages between two ranks, each in the order of buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// Partial sums, to the owner of a slice.
    Sums = 1,
    /// Whole sums, from the owner.
    Results = 2,
}

/// What carries messages; MPI, or in tests a simulation of it.
pub(super) trait Link {
    /// Posted operations.
    type Requests: Default;

    /// This process's number.
    fn rank(&self) -> usize;

    /// The number of processes.
    fn size(&self) -> usize;

    /// Posts a message of `len` numbers.
    ///
    /// # Safety
    /// They stay alive and unchanged until `requests` are done.
    unsafe fn send(
        &self,
        data: *const f32,
        len: usize,
        to: usize,
        stream: Stream,
        requests: &mut Self::Requests,
    ) -> Result<()>;

    /// Posts the receiving of a message of `len` numbers.
    ///
    /// # Safety
    /// They stay alive and untouched until `requests` are done.
    unsafe fn receive(
        &self,
        data: *mut f32,
        len: usize,
        from: usize,
        stream: Stream,
        requests: &mut Self::Requests,
    ) -> Result<()>;

    /// Posts the sum of `len` numbers over all ranks in any order.
    ///
    /// # Safety
    /// Both buffers stay alive, `data` unchanged and `sum` untouched, until `requests` are done.
    unsafe fn sum(
        &self,
        data: *const f32,
        sum: *mut f32,
        len: usize,
        requests: &mut Self::Requests,
    ) -> Result<()>;

    /// Whether something is posted that is not known to be done.
    fn is_live(requests: &Self::Requests) -> bool;

    /// Whether all that is posted is done; true where nothing is.
    fn test(&self, requests: &mut Self::Requests) -> Result<bool>;
}

/// What a rank brings to the sum of a step. The memory is shared with backward, which writes the
/// gradient on the same thread, hence the cells.
pub struct Own<'a> {
    /// The flat gradient. It holds, or will hold, the value of micro-batch `last` (`fast`: of all
    /// own micro-batches), and in the end the sum over all ranks.
    pub gradient: &'a [Cell<f32>],
    /// The last micro-batch that this rank owns, None where it owns none.
    pub last: Option<usize>,
    /// Partial sums of the ones before it, as [`tree::Fold`] left them, as long as the gradient;
    /// they are used up. None for `fast`.
    pub parts: Vec<(Node, &'a [Cell<f32>])>,
    /// What owns this memory. It is leaked where the sum ends in an error, because MPI may still
    /// write to it then.
    pub keep: Box<dyn Any>,
}

/// The state of one step's sum.
pub(super) struct Pass<'a, L: Link> {
    link: &'a L,
    how: Reduce,
    cuts: Cuts,
    m: usize,
    gradient: *mut f32,
    layout: Layout,
    inbox: &'a mut Vec<f32>,
    /// The inbox's memory; while the pass lasts it is reached through this pointer alone.
    inbox_data: *mut f32,
    /// Elements of the inbox for one bucket.
    stride: usize,
    keep: Option<Box<dyn Any>>,
    /// Elements of the own gradient that have their last value.
    ready: usize,
    awaited: usize,
    sent: usize,
    expected: usize,
    evaluated: usize,
    finished: usize,
    /// Requests of each stage, by bucket modulo WINDOW.
    sums_in: [L::Requests; WINDOW],
    sums_out: [L::Requests; WINDOW],
    results: [L::Requests; WINDOW],
    _memory: PhantomData<&'a [Cell<f32>]>,
}

/// The cells' numbers. They are read and written through this pointer between calls of libtorch
/// alone, on its thread.
fn numbers(cells: &[Cell<f32>]) -> *mut f32 {
    cells.as_ptr().cast::<f32>().cast_mut()
}

impl<'a, L: Link> Pass<'a, L> {
    /// The start of a step of `m` micro-batches. The first receives are posted.
    pub fn new(
        link: &'a L,
        (how, cuts, m): (Reduce, Cuts, usize),
        own: Own<'a>,
        inbox: &'a mut Vec<f32>,
    ) -> Result<Pass<'a, L>> {
        let (rank, size) = (link.rank(), link.size());
        assert_eq!(own.gradient.len(), cuts.total, "the gradient's length");
        assert!(own.parts.iter().all(|p| p.1.len() == cuts.total), "the partial sums' lengths");
        let gradient = numbers(own.gradient);
        let parts = own.parts.iter().map(|p| (p.0, numbers(p.1))).collect();
        let layout = match how {
            Reduce::Exact => Layout::new((rank, size, m), gradient, own.last, parts),
            Reduce::Fast => Layout::default(),
        };
        let stride = match how {
            Reduce::Exact => layout.incoming() * cuts.longest_slice(),
            Reduce::Fast if size > 1 => cuts.bucket.min(cuts.total),
            Reduce::Fast => 0,
        };
        let needed = stride * WINDOW.min(cuts.buckets());
        if inbox.len() < needed {
            inbox.resize(needed, 0.0);
        }
        let mut pass = Pass {
            link,
            how,
            cuts,
            m,
            gradient,
            layout,
            inbox_data: inbox.as_mut_ptr(),
            inbox,
            stride,
            keep: Some(own.keep),
            ready: 0,
            awaited: 0,
            sent: 0,
            expected: 0,
            evaluated: 0,
            finished: 0,
            sums_in: Default::default(),
            sums_out: Default::default(),
            results: Default::default(),
            _memory: PhantomData,
        };
        pass.advance()?;
        Ok(pass)
    }

    /// The number of buckets.
    pub fn buckets(&self) -> usize {
        self.cuts.buckets()
    }

    /// How many of them have been sent.
    pub fn sent(&self) -> usize {
        self.sent
    }

    /// The first `upto` elements of the own gradient have their last value.
    pub fn ready(&mut self, upto: usize) -> Result<()> {
        self.ready = self.ready.max(upto);
        self.advance().map(|_| ())
    }

    /// Does all that can be done now; true when there is nothing left.
    pub fn advance(&mut self) -> Result<bool> {
        loop {
            let moved = match self.how {
                Reduce::Exact => {
                    self.await_sums()?
                        | self.send_sums()?
                        | self.expect_results()?
                        | self.evaluate()?
                        | self.finish_bucket(self.expected.min(self.evaluated))?
                }
                Reduce::Fast => self.sum_by_library()? | self.finish_bucket(self.sent)?,
            };
            if !moved {
                return Ok(self.finished == self.cuts.buckets());
            }
        }
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<L> {
        let (rank, size) = (self.link.rank(), self.link.size());
        (0..size).filter(move |r| *r != rank)
    }

    /// The inbox of bucket `b`, for as long as it is between stages 1 and 4.
    fn inbox_of(&self, b: usize) -> *mut f32 {
        // SAFETY: the inbox has room for WINDOW buckets, or for all.
        unsafe { self.inbox_data.add(b % WINDOW * self.stride) }
    }

    /// Whether the own gradient of the next bucket to be sent has its last value.
    fn next_is_ready(&self) -> bool {
        let b = self.sent;
        b < self.cuts.buckets()
            && b < self.finished + WINDOW
            && self.cuts.bucket(b).end <= self.ready
    }

    fn await_sums(&mut self) -> Result<bool> {
        let b = self.awaited;
        if b == self.cuts.buckets() || b == self.evaluated + WINDOW {
            return Ok(false);
        }
        let len = self.cuts.slice(b, self.link.rank()).len();
        let mut at = self.inbox_of(b);
        if len > 0 {
            for &(from, count) in &self.layout.foreign {
                for _ in 0..count {
                    let requests = &mut self.sums_in[b % WINDOW];
                    // SAFETY: within the bucket's inbox, which has room for `len` numbers of every
                    // foreign node and is left alone until stage 4 has seen the requests done.
                    unsafe {
                        self.link.receive(at, len, from, Stream::Sums, requests)?;
                        at = at.add(len);
                    }
                }
            }
        }
        self.awaited += 1;
        Ok(true)
    }

    fn send_sums(&mut self) -> Result<bool> {
        if !self.next_is_ready() {
            return Ok(false);
        }
        let b = self.sent;
        self.fold(self.cuts.bucket(b));
        for to in self.others() {
            let slice = self.cuts.slice(b, to);
            for part in self.layout.mine.iter().filter(|_| !slice.is_empty()) {
                let requests = &mut self.sums_out[b % WINDOW];
                // SAFETY: within the part. Backward is done with this bucket, and what it holds
                // for others is next written in stage 3, after these requests are done.
                unsafe {
                    let data = part.add(slice.start);
                    self.link.send(data, slice.len(), to, Stream::Sums, requests)?;
                }
            }
        }
        self.sent += 1;
        Ok(true)
    }

    fn expect_results(&mut self) -> Result<bool> {
        let b = self.expected;
        if b == self.sent || !self.link.test(&mut self.sums_out[b % WINDOW])? {
            return Ok(false);
        }
        for from in self.others() {
            let slice = self.cuts.slice(b, from);
            if !slice.is_empty() {
                let requests = &mut self.results[b % WINDOW];
                // SAFETY: within the gradient; its sends are done, and nobody looks at these
                // elements until stage 5 has seen the requests done.
                unsafe {
                    let data = self.gradient.add(slice.start);
                    self.link.receive(data, slice.len(), from, Stream::Results, requests)?;
                }
            }
        }
        self.expected += 1;
        Ok(true)
    }

    fn evaluate(&mut self) -> Result<bool> {
        let b = self.evaluated;
        if b == self.sent.min(self.awaited) || !self.link.test(&mut self.sums_in[b % WINDOW])? {
            return Ok(false);
        }
        let slice = self.cuts.slice(b, self.link.rank());
        self.evaluate_slice(b, slice.clone());
        for to in self.others().filter(|_| !slice.is_empty()) {
            let requests = &mut self.results[b % WINDOW];
            // SAFETY: within the gradient, and not written again in this step.
            unsafe {
                let data = self.gradient.add(slice.start);
                self.link.send(data, slice.len(), to, Stream::Results, requests)?;
            }
        }
        self.evaluated += 1;
        Ok(true)
    }

    fn sum_by_library(&mut self) -> Result<bool> {
        if !self.next_is_ready() {
            return Ok(false);
        }
        let (b, bucket) = (self.sent, self.cuts.bucket(self.sent));
        if self.link.size() > 1 {
            let copy = self.inbox_of(b);
            let requests = &mut self.results[b % WINDOW];
            // SAFETY: the copy has room for a bucket and is left alone until stage 5 has seen the
            // requests done; nobody looks at the bucket of the gradient until then either.
            unsafe {
                let sum = self.gradient.add(bucket.start);
                std::ptr::copy_nonoverlapping(sum, copy, bucket.len());
                self.link.sum(copy, sum, bucket.len(), requests)?;
            }
        }
        self.sent += 1;
        Ok(true)
    }

    fn finish_bucket(&mut self, upto: usize) -> Result<bool> {
        let b = self.finished;
        if b == upto || !self.link.test(&mut self.results[b % WINDOW])? {
            return Ok(false);
        }
        self.finished += 1;
        Ok(true)
    }

    /// Adds the earlier partial sums to the own gradient, as pushing the last micro-batch would.
    fn fold(&self, bucket: Range<usize>) {
        if self.layout.chain.is_empty() {
            return;
        }
        for start in bucket.clone().step_by(BLOCK) {
            let len = BLOCK.min(bucket.end - start);
            // SAFETY: within the buffers, which are distinct; no request concerns this bucket yet
            // and libtorch is not using them now.
            let block =
                |data: *mut f32| unsafe { std::slice::from_raw_parts_mut(data.add(start), len) };
            let sum = block(self.gradient);
            for left in &self.layout.chain {
                // left + right and right + left have the same bits.
                tree::add_into(sum, block(*left));
            }
        }
    }

    /// Evaluates the tree over bucket `b`'s own slice into the gradient.
    fn evaluate_slice(&self, b: usize, slice: Range<usize>) {
        let inbox = self.inbox_of(b);
        for start in slice.clone().step_by(BLOCK) {
            let len = BLOCK.min(slice.end - start);
            let parts = self.layout.sources.iter().map(|(node, source)| {
                // SAFETY: within the own buffer or the bucket's inbox; all are distinct, none has a
                // live request on this slice, and libtorch is not using them now.
                let part = unsafe {
                    let data = match source {
                        Source::Own(data) => data.add(start),
                        Source::Foreign(n) => inbox.add(n * slice.len() + start - slice.start),
                    };
                    std::slice::from_raw_parts_mut(data, len)
                };
                (*node, part)
            });
            let mut add = |left: &mut &mut [f32], right: &mut [f32]| tree::add_into(left, right);
            let sum = tree::evaluate(parts.collect(), self.m, &mut add).map(|sum| sum.as_ptr());
            // SAFETY: as above; the slices of `parts` are gone, and where the sum already stands
            // in the gradient nothing is copied.
            unsafe {
                let result = self.gradient.add(start);
                match sum {
                    Some(sum) if sum == result.cast_const() => (),
                    Some(sum) => std::ptr::copy_nonoverlapping(sum, result, len),
                    None => std::slice::from_raw_parts_mut(result, len).fill(0.0),
                }
            }
        }
    }
}

impl<L: Link> Drop for Pass<'_, L> {
    fn drop(&mut self) {
        let mut all = self.sums_in.iter().chain(&self.sums_out).chain(&self.results);
        if all.any(L::is_live) {
            std::mem::forget(std::mem::take(self.inbox));
            std::mem::forget(self.keep.take());
        }
    }
}
