//! Where the partial sums of a step lie: which of this rank's are added to its gradient first, and
//! which of all ranks' make up a slice that it owns. The same for every transport.

use super::tree::{self, Node};

/// Where a partial sum of the own slice lies.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// In a buffer of this rank.
    Own(*mut f32),
    /// In the inbox, the n-th from other ranks.
    Foreign(usize),
}

/// The partial sums of one step, as one rank sees them.
#[derive(Default)]
pub(super) struct Layout {
    /// Earlier partial sums that are added to the gradient, in this order.
    pub chain: Vec<*mut f32>,
    /// This rank's partial sums once that is done, in order of node.
    pub mine: Vec<*mut f32>,
    /// All ranks' partial sums of the own slice, in order of node.
    pub sources: Vec<(Node, Source)>,
    /// For each other rank how many partial sums it sends.
    pub foreign: Vec<(usize, usize)>,
}

impl Layout {
    /// For rank `rank` of `size` in a step of `m` micro-batches. `gradient` holds the value of
    /// micro-batch `last` (None where the rank owns none), `parts` the partial sums of the ones
    /// before it.
    pub fn new(
        (rank, size, m): (usize, usize, usize),
        gradient: *mut f32,
        last: Option<usize>,
        mut parts: Vec<(Node, *mut f32)>,
    ) -> Layout {
        let mut chain = Vec::new();
        if let Some(leaf) = last {
            let nodes: Vec<Node> = parts.iter().map(|p| p.0).collect();
            let (absorbed, node) = tree::absorb(&nodes, leaf);
            let absorbed = parts.split_off(parts.len() - absorbed);
            chain.extend(absorbed.iter().rev().map(|p| p.1));
            parts.push((node, gradient));
        }
        let mut sources: Vec<(Node, Source)> =
            parts.iter().map(|(node, data)| (*node, Source::Own(*data))).collect();
        let mut foreign = Vec::new();
        let mut count = 0;
        for from in (0..size).filter(|r| *r != rank) {
            let nodes = tree::maximal_nodes(tree::owned(from, size, m));
            foreign.push((from, nodes.len()));
            for node in nodes {
                sources.push((node, Source::Foreign(count)));
                count += 1;
            }
        }
        sources.sort_by_key(|(node, _)| node.first());
        Layout { chain, mine: parts.into_iter().map(|p| p.1).collect(), sources, foreign }
    }

    /// How many partial sums come from other ranks.
    pub fn incoming(&self) -> usize {
        self.foreign.iter().map(|f| f.1).sum()
    }
}
