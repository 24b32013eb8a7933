//! The reduction of a flat buffer over all ranks.
//!
//! `exact`: the buffer is cut into buckets and each bucket into one slice a rank. Every rank sends
//! its partial sums of slice s to rank s, which evaluates the tree of the step there (`tree`) and
//! sends the sums to all. What is added, and in which order, does not depend on the number of
//! ranks, nor on buckets and slices. `fast` is the library's own all-reduce.

use super::Comm;
use super::mpi::{Mpi, Requests};
use super::tree::{self, Node};
use crate::config::Reduce;
use crate::error::Result;

/// Elements of a bucket; it bounds the memory for other ranks' partial sums.
const BUCKET: usize = 4 << 20;

/// Slices are cut at multiples of this many elements (a cache line).
const SLICE_ALIGN: usize = 16;

impl Comm {
    /// Sums the partial sums of a step of `m` micro-batches over all ranks into `result`, on every
    /// rank. `parts` are this rank's, as [`tree::Fold`] left them for the micro-batches it owns
    /// ([`tree::owned`]); their buffers have the length of `result` and are used up.
    pub fn reduce(
        &self,
        how: Reduce,
        m: usize,
        mut parts: Vec<(Node, &mut [f32])>,
        result: &mut [f32],
    ) -> Result<()> {
        match (self, how) {
            (Comm::Mpi(mpi), Reduce::Exact) if mpi.size > 1 => exact(mpi, m, &mut parts, result),
            _ => {
                match tree::evaluate(parts, m) {
                    Some(sum) => result.copy_from_slice(sum),
                    None => result.fill(0.0),
                }
                match self {
                    Comm::Mpi(mpi) if mpi.size > 1 => mpi.all_reduce_fast(result),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// The first element of slice `s` of `size` in a bucket of `len` elements.
fn cut(s: usize, size: usize, len: usize) -> usize {
    let lines = len.div_ceil(SLICE_ALIGN);
    (s * lines / size * SLICE_ALIGN).min(len)
}

fn exact(mpi: &Mpi, m: usize, parts: &mut [(Node, &mut [f32])], result: &mut [f32]) -> Result<()> {
    let (rank, size, total) = (mpi.rank, mpi.size, result.len());
    let nodes: Vec<Vec<Node>> =
        (0..size).map(|r| tree::maximal_nodes(tree::owned(r, size, m))).collect();
    let foreign: usize =
        nodes.iter().enumerate().filter(|(r, _)| *r != rank).map(|(_, n)| n.len()).sum();
    for start in (0..total).step_by(BUCKET) {
        let len = BUCKET.min(total - start);
        let own = start + cut(rank, size, len)..start + cut(rank + 1, size, len);
        let mut inbox = vec![0f32; foreign * own.len()];
        // To the owners. Messages between two ranks arrive in the order they were posted.
        let mut requests = Requests::default();
        let mut boxes: Vec<(Node, &mut [f32])> = Vec::new();
        let mut rest = inbox.as_mut_slice();
        for (from, list) in nodes.iter().enumerate().filter(|(r, _)| *r != rank) {
            for node in list {
                let (one, after) = rest.split_at_mut(own.len());
                rest = after;
                mpi.receive(one, from, &mut requests)?;
                boxes.push((*node, one));
            }
        }
        for to in (0..size).filter(|r| *r != rank) {
            let slice = start + cut(to, size, len)..start + cut(to + 1, size, len);
            for (_, part) in parts.iter() {
                mpi.send(&part[slice.clone()], to, &mut requests)?;
            }
        }
        mpi.wait(requests)?;
        boxes.extend(parts.iter_mut().map(|(node, part)| (*node, &mut part[own.clone()])));
        boxes.sort_by_key(|(node, _)| (node.index << node.level, node.level));
        match tree::evaluate(boxes, m) {
            Some(sum) => result[own.clone()].copy_from_slice(sum),
            None => result[own.clone()].fill(0.0),
        }
        // And back to everyone.
        let mut requests = Requests::default();
        let mut rest = &mut result[start..start + len];
        let mut mine: &[f32] = &[];
        for from in 0..size {
            let n = cut(from + 1, size, len) - cut(from, size, len);
            let (one, after) = rest.split_at_mut(n);
            rest = after;
            if from == rank {
                mine = one;
            } else {
                mpi.receive(one, from, &mut requests)?;
            }
        }
        for to in (0..size).filter(|r| *r != rank) {
            mpi.send(mine, to, &mut requests)?;
        }
        mpi.wait(requests)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn slices_partition_a_bucket(size in 1usize..40, len in 0usize..10_000) {
            prop_assert_eq!(cut(0, size, len), 0);
            prop_assert_eq!(cut(size, size, len), len);
            for s in 0..size {
                prop_assert!(cut(s, size, len) <= cut(s + 1, size, len));
            }
        }
    }

    #[test]
    fn one_rank_evaluates_the_tree() {
        let (mut a, mut b) = (vec![1.0f32; 3], vec![2.0f32; 3]);
        let parts = vec![
            (Node { level: 1, index: 0 }, a.as_mut_slice()),
            (Node { level: 0, index: 2 }, b.as_mut_slice()),
        ];
        let mut result = vec![0.0; 3];
        Comm::Solo.reduce(Reduce::Exact, 3, parts, &mut result).unwrap();
        assert_eq!(result, [3.0; 3]);
    }
}
