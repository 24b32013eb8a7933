//! Sums and counts per micro-batch, kept apart until every rank's are together.
//!
//! Floating-point addition is not associative, so a rank never adds up its own micro-batches: it
//! keeps each one's terms, ranks concatenate theirs, and the fold runs once over all of them in
//! index order. Which rank saw which micro-batch then leaves no trace in the result.

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// What one term contributes from one micro-batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Term {
    /// The sum over what was counted.
    pub sum: f64,
    /// How much was counted; fractional where weighted. Zero: the term did not occur.
    pub count: f64,
}

impl Term {
    /// Sum over count; `None` when nothing was counted.
    pub fn mean(self) -> Option<f64> {
        (self.count != 0.0).then(|| self.sum / self.count)
    }
}

/// Named terms of the micro-batches of a step, or of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Additive {
    names: Vec<String>,
    batches: BTreeMap<u64, Vec<Term>>,
}

impl Additive {
    /// No micro-batch yet. The names, in order, must be the same on every rank.
    pub fn new<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        let names = names.into_iter().map(Into::into).collect();
        Additive { names, batches: BTreeMap::new() }
    }

    /// The names of the terms, in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// How many micro-batches are here.
    pub fn len(&self) -> usize {
        self.batches.len()
    }

    /// Whether no micro-batch is here.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Adds what one micro-batch gave, as (name, sum, count); a name left out did not occur.
    ///
    /// # Panics
    /// On an index pushed twice and on a name that was not declared: bugs of the caller.
    pub fn push(&mut self, micro_batch: u64, terms: &[(&str, f64, f64)]) {
        let mut row = vec![Term::default(); self.names.len()];
        for &(name, sum, count) in terms {
            row[self.column(name)] = Term { sum, count };
        }
        let before = self.batches.insert(micro_batch, row);
        assert!(before.is_none(), "micro-batch {micro_batch} was measured twice");
    }

    /// Everything as one flat row per micro-batch: index, then sum and count of each name. Rows of
    /// several ranks may simply be concatenated. Indices are exact below 2^53.
    pub fn to_flat(&self) -> Vec<f64> {
        let mut flat = Vec::with_capacity(self.batches.len() * (1 + 2 * self.names.len()));
        for (index, row) in &self.batches {
            flat.push(*index as f64);
            flat.extend(row.iter().flat_map(|term| [term.sum, term.count]));
        }
        flat
    }

    /// Takes in what other ranks sent as [`Additive::to_flat`], in any order and cut anywhere
    /// between rows. A ragged part or a micro-batch that is already here is a bug (exit code 70).
    pub fn merge<'a>(&mut self, parts: impl IntoIterator<Item = &'a [f64]>) -> Result<()> {
        let width = 1 + 2 * self.names.len();
        for part in parts {
            if part.len() % width != 0 {
                return Err(Error::bug(format!(
                    "{} numbers of gathered metrics are no multiple of {width}: ranks disagree \
                     on the names {:?}",
                    part.len(),
                    self.names
                )));
            }
            for row in part.chunks_exact(width) {
                let terms = row[1..].chunks_exact(2);
                let terms = terms.map(|pair| Term { sum: pair[0], count: pair[1] }).collect();
                if self.batches.insert(row[0] as u64, terms).is_some() {
                    return Err(Error::bug(format!("two ranks measured micro-batch {}", row[0])));
                }
            }
        }
        Ok(())
    }

    /// The term over all micro-batches, folded in index order. A micro-batch where it did not
    /// occur contributes nothing (not even a zero, which would turn -0.0 into 0.0).
    ///
    /// # Panics
    /// On a name that was not declared.
    pub fn total(&self, name: &str) -> Term {
        let column = self.column(name);
        let present = self.batches.values().map(|row| row[column]).filter(|t| t.count != 0.0);
        let total = present.reduce(|left, right| Term {
            sum: left.sum + right.sum,
            count: left.count + right.count,
        });
        total.unwrap_or_default()
    }

    /// Mean of a term over everything counted; `None` when nothing was.
    ///
    /// # Panics
    /// On a name that was not declared.
    pub fn mean(&self, name: &str) -> Option<f64> {
        self.total(name).mean()
    }

    /// Each micro-batch in index order with its terms, in the order of [`Additive::names`].
    pub fn batches(&self) -> impl Iterator<Item = (u64, &[Term])> {
        self.batches.iter().map(|(index, row)| (*index, row.as_slice()))
    }

    fn column(&self, name: &str) -> usize {
        let found = self.names.iter().position(|known| known == name);
        found.unwrap_or_else(|| panic!("no term `{name}` among {:?}", self.names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAMES: [&str; 2] = ["loss", "ptm_acc"];

    /// What rank 0 holds when `owner` says who measured which micro-batch and the parts arrive
    /// rotated by `first`.
    fn gathered(rows: &[[f64; 4]], owner: &[usize], ranks: usize, first: usize) -> Additive {
        let mut local = vec![Additive::new(NAMES); ranks];
        for (index, (row, rank)) in rows.iter().zip(owner).enumerate() {
            let terms = [(NAMES[0], row[0], row[1]), (NAMES[1], row[2], row[3])];
            local[rank % ranks].push(index as u64, &terms);
        }
        let mut flats: Vec<Vec<f64>> = local.iter().map(Additive::to_flat).collect();
        flats.rotate_left(first % ranks);
        let mut all = Additive::new(NAMES);
        all.merge(flats.iter().map(Vec::as_slice)).unwrap();
        all
    }

    proptest! {
        #[test]
        fn no_distribution_over_ranks_leaves_a_trace(
            rows in prop::collection::vec(
                (-1e9..1e9f64, 0u32..3, prop::num::f64::NORMAL, 0u32..2), 1..40),
            owner in prop::collection::vec(0usize..8, 40),
            ranks in 1usize..9,
            first in 0usize..8,
        ) {
            let rows: Vec<[f64; 4]> =
                rows.iter().map(|r| [r.0, r.1.into(), r.2, r.3.into()]).collect();
            let alone = gathered(&rows, &owner, 1, 0);
            let many = gathered(&rows, &owner, ranks, first);
            prop_assert_eq!(alone.len(), rows.len());
            for name in NAMES {
                let bits = |a: &Additive| a.mean(name).map(f64::to_bits);
                prop_assert_eq!(bits(&alone), bits(&many));
            }
        }
    }

    #[test]
    fn the_order_of_the_fold_is_the_index_order() {
        // ((1e16 + 1) - 1e16) is 0 in float64, ((1e16 - 1e16) + 1) is 1: only one order is right.
        let mut backwards = Additive::new(["x"]);
        for (index, value) in [(2, -1e16), (1, 1.0), (0, 1e16)] {
            backwards.push(index, &[("x", value, 1.0)]);
        }
        assert_eq!(backwards.total("x"), Term { sum: 0.0, count: 3.0 });
    }

    #[test]
    fn what_did_not_occur_counts_for_nothing() {
        let mut metrics = Additive::new(["loss", "ptm_acc"]);
        metrics.push(0, &[("loss", 4.0, 2.0)]);
        assert_eq!(metrics.mean("loss"), Some(2.0));
        assert_eq!(metrics.mean("ptm_acc"), None);
        metrics.push(1, &[("ptm_acc", -0.0, 1.0), ("loss", f64::NAN, 1.0)]);
        assert_eq!(metrics.mean("ptm_acc").unwrap().to_bits(), (-0.0f64).to_bits());
        assert!(metrics.mean("loss").unwrap().is_nan());
        let second = metrics.batches().nth(1).unwrap();
        assert_eq!((second.0, second.1[1].mean()), (1, Some(-0.0)));
        assert!(Additive::new(["loss"]).mean("loss").is_none());
    }

    #[test]
    fn two_owners_or_other_names_are_bugs() {
        let mut metrics = Additive::new(["loss"]);
        metrics.push(3, &[("loss", 1.0, 1.0)]);
        let flat = metrics.to_flat();
        assert_eq!(flat, [3.0, 1.0, 1.0]);
        assert_eq!(metrics.merge([flat.as_slice()]).unwrap_err().code(), 70);
        assert_eq!(Additive::new(NAMES).merge([flat.as_slice()]).unwrap_err().code(), 70);
    }
}
