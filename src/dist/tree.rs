//! The one summation tree of a step, whatever the number of ranks.
//!
//! Node (level l, index j) covers the micro-batches [j * 2^l, min((j + 1) * 2^l, m)). Its value is
//! left + right; a child that covers nothing contributes nothing (adding zeros would turn -0 into
//! +0). A rank folds the micro-batches it owns into the maximal nodes they make up; whoever has
//! all ranks' nodes of a slice evaluates the rest. So every rank count adds the same numbers in
//! the same order.

use std::ops::Range;

/// A node of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    /// 0 is a single micro-batch.
    pub level: u32,
    /// Position among the nodes of the level.
    pub index: usize,
}

impl Node {
    /// The first micro-batch it covers.
    pub fn first(self) -> usize {
        self.index << self.level
    }

    /// The only node that covers all of m micro-batches and has nothing beside it.
    fn root(m: usize) -> Node {
        Node { level: m.next_power_of_two().trailing_zeros(), index: 0 }
    }
}

/// The micro-batches of a step of `m` that rank `rank` of `size` owns.
pub fn owned(rank: usize, size: usize, m: usize) -> Range<usize> {
    rank * m / size..(rank + 1) * m / size
}

/// The nodes into which folding `range` leaves it, in order; what [`Fold`] produces.
pub fn maximal_nodes(range: Range<usize>) -> Vec<Node> {
    let mut stack: Vec<Node> = Vec::new();
    for leaf in range {
        let mut node = Node { level: 0, index: leaf };
        while stack.last().is_some_and(|top| is_left_sibling(*top, node)) {
            stack.pop();
            node = Node { level: node.level + 1, index: node.index / 2 };
        }
        stack.push(node);
    }
    stack
}

/// What becomes of micro-batch `leaf` when it is pushed onto partial sums at `nodes`: how many of
/// them, counted from the end, are added to it one after another, and the node that it then is.
pub fn absorb(nodes: &[Node], leaf: usize) -> (usize, Node) {
    let mut node = Node { level: 0, index: leaf };
    let mut absorbed = 0;
    for top in nodes.iter().rev() {
        if !is_left_sibling(*top, node) {
            break;
        }
        absorbed += 1;
        node = Node { level: node.level + 1, index: node.index / 2 };
    }
    (absorbed, node)
}

fn is_left_sibling(left: Node, right: Node) -> bool {
    left.level == right.level && right.index % 2 == 1 && left.index + 1 == right.index
}

/// A rank's partial sums while it works through its micro-batches: a binary counter. `T` is a
/// buffer. Of n own micro-batches at most floor(log2 n) + 1 buffers are held where they start at a
/// multiple of a large power of two (one rank, or a power of two of them), at most twice as many
/// anywhere.
pub struct Fold<T> {
    stack: Vec<(Node, T)>,
}

impl<T> Default for Fold<T> {
    fn default() -> Self {
        Fold { stack: Vec::new() }
    }
}

impl<T> Fold<T> {
    /// Adds micro-batch `leaf`, whose value stands in the caller's own buffer. `add(into)` adds
    /// that buffer's value to a partial sum; `keep()` makes a new partial sum of it; `merge(left,
    /// right)` adds a partial sum to the one on its left and recycles it.
    pub fn push(
        &mut self,
        leaf: usize,
        add: impl FnOnce(&mut T),
        keep: impl FnOnce() -> T,
        mut merge: impl FnMut(&mut T, T),
    ) {
        let node = Node { level: 0, index: leaf };
        match self.stack.last_mut() {
            Some((top, value)) if is_left_sibling(*top, node) => {
                add(value);
                *top = Node { level: 1, index: leaf / 2 };
            }
            _ => self.stack.push((node, keep())),
        }
        while let [.., (left, _), (right, _)] = self.stack.as_slice()
            && is_left_sibling(*left, *right)
        {
            let (Some((node, value)), Some((_, under))) = (self.stack.pop(), self.stack.last_mut())
            else {
                unreachable!("two nodes were there");
            };
            merge(under, value);
            if let Some((top, _)) = self.stack.last_mut() {
                *top = Node { level: node.level + 1, index: node.index / 2 };
            }
        }
    }

    /// The partial sums, in order; the fold is empty afterwards.
    pub fn take(&mut self) -> Vec<(Node, T)> {
        std::mem::take(&mut self.stack)
    }
}

/// Evaluates the tree of a step of `m` micro-batches. `parts` holds all ranks' partial sums, in
/// order, whatever they are; `add(left, right)` adds the right one to the left one. The result is
/// the leftmost part. Returns None if there are no parts.
pub fn evaluate<T>(parts: Vec<(Node, T)>, m: usize, add: &mut impl FnMut(&mut T, T)) -> Option<T> {
    let mut queue = parts.into_iter().peekable();
    evaluate_node(Node::root(m), m, &mut queue, add)
}

fn evaluate_node<T, I: Iterator<Item = (Node, T)>>(
    node: Node,
    m: usize,
    queue: &mut std::iter::Peekable<I>,
    add: &mut impl FnMut(&mut T, T),
) -> Option<T> {
    if node.first() >= m {
        return None;
    }
    if let Some((_, value)) = queue.next_if(|(part, _)| *part == node) {
        return Some(value);
    }
    if node.level == 0 {
        return None;
    }
    let child = |side| Node { level: node.level - 1, index: node.index * 2 + side };
    let left = evaluate_node(child(0), m, queue, add);
    let right = evaluate_node(child(1), m, queue, add);
    match (left, right) {
        (Some(mut left), Some(right)) => {
            add(&mut left, right);
            Some(left)
        }
        (left, right) => left.or(right),
    }
}

/// into += from, element by element.
pub fn add_into(into: &mut [f32], from: &[f32]) {
    assert_eq!(into.len(), from.len(), "partial sums are of one length");
    for (a, b) in into.iter_mut().zip(from) {
        *a += *b;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The tree by its definition, with nothing shared with the code above.
    fn plain(values: &[f32], low: usize, level: u32) -> Option<f32> {
        if low >= values.len() {
            return None;
        }
        if level == 0 {
            return Some(values[low]);
        }
        let right = plain(values, low + (1 << (level - 1)), level - 1);
        let left = plain(values, low, level - 1)?;
        Some(right.map_or(left, |right| left + right))
    }

    fn fold_range(values: &[f32], range: Range<usize>) -> Vec<(Node, Vec<f32>)> {
        let mut fold = Fold::default();
        let mut most = 0;
        for leaf in range.clone() {
            fold.push(
                leaf,
                |into: &mut Vec<f32>| into[0] += values[leaf],
                || vec![values[leaf]],
                |into, from| into[0] += from[0],
            );
            most = most.max(fold.stack.len());
        }
        let bound = 2 * (range.len().max(1).ilog2() as usize + 1);
        assert!(most <= bound, "{most} buffers for {range:?}");
        fold.take()
    }

    fn reduced(values: &[f32], size: usize) -> Option<f32> {
        let m = values.len();
        let mut parts: Vec<(Node, Vec<f32>)> =
            (0..size).flat_map(|rank| fold_range(values, owned(rank, size, m))).collect();
        let views = parts.iter_mut().map(|(n, v)| (*n, v.as_mut_slice())).collect();
        evaluate(views, m, &mut |a, b: &mut [f32]| add_into(a, b)).map(|v| v[0])
    }

    proptest! {
        #[test]
        fn any_number_of_ranks_gives_the_bits_of_the_plain_tree(
            values in prop::collection::vec(-1e3f32..1e3, 1..40),
            size in 1usize..24,
        ) {
            let expected = plain(&values, 0, 6).unwrap();
            prop_assert_eq!(reduced(&values, size).unwrap().to_bits(), expected.to_bits());
        }

        #[test]
        fn folding_leaves_the_maximal_nodes(low in 0usize..40, len in 0usize..40) {
            let values = vec![1.0; low + len];
            let nodes: Vec<Node> =
                fold_range(&values, low..low + len).into_iter().map(|p| p.0).collect();
            prop_assert_eq!(nodes, maximal_nodes(low..low + len));
        }

        #[test]
        fn the_last_leaf_may_be_added_outside_the_fold(
            values in prop::collection::vec(-1e3f32..1e3, 1..60),
            low in 0usize..40,
        ) {
            let low = low.min(values.len() - 1);
            let whole = fold_range(&values, low..values.len());
            let last = values.len() - 1;
            let mut parts = fold_range(&values, low..last);
            let nodes: Vec<Node> = parts.iter().map(|p| p.0).collect();
            let (absorbed, node) = absorb(&nodes, last);
            let mut value = values[last];
            for (_, left) in parts.drain(parts.len() - absorbed..).rev() {
                value += left[0];
            }
            parts.push((node, vec![value]));
            prop_assert_eq!(parts, whole);
        }
    }

    #[test]
    fn minus_zero_stays() {
        for size in [1, 2, 3, 8] {
            assert_eq!(reduced(&[-0.0], size).unwrap().to_bits(), (-0.0f32).to_bits());
        }
    }

    #[test]
    fn ownership_partitions_a_step() {
        for (size, m) in [(1, 8), (3, 8), (8, 8), (5, 3), (19, 17)] {
            let all: Vec<usize> = (0..size).flat_map(|r| owned(r, size, m)).collect();
            assert_eq!(all, (0..m).collect::<Vec<_>>());
        }
    }
}
