//! Rows of numbers, one a sample, put together from all ranks: what metrics need that are no sums.
//!
//! Rows are kept by the sample's index, so the table is the same however samples were dealt out.

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// A row of numbers for each sample of a part, in the order of samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    rows: BTreeMap<u64, Vec<f64>>,
}

impl Table {
    /// Samples.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether no sample is here.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds a sample's row. A sample that is here already, or a row of another width, is a bug
    /// (exit code 70).
    pub fn push(&mut self, sample: u64, row: Vec<f64>) -> Result<()> {
        if let Some(first) = self.rows.values().next()
            && first.len() != row.len()
        {
            let (found, wanted) = (row.len(), first.len());
            return Err(Error::bug(format!("sample {sample}: {found} numbers beside {wanted}")));
        }
        match self.rows.insert(sample, row) {
            None => Ok(()),
            Some(_) => Err(Error::bug(format!("sample {sample} was measured twice"))),
        }
    }

    /// The rows with their samples, by rising index.
    pub fn rows(&self) -> impl Iterator<Item = (u64, &[f64])> {
        self.rows.iter().map(|(sample, row)| (*sample, row.as_slice()))
    }

    /// A column.
    ///
    /// # Panics
    /// On a column that the rows do not have: a bug of the caller.
    pub fn column(&self, column: usize) -> Vec<f64> {
        self.rows.values().map(|row| row[column]).collect()
    }

    /// Everything as one flat list: width, then index and numbers of each row. Empty: no row.
    pub fn to_flat(&self) -> Vec<f64> {
        let Some(first) = self.rows.values().next() else { return Vec::new() };
        let mut flat = vec![first.len() as f64];
        for (sample, row) in &self.rows {
            flat.push(*sample as f64);
            flat.extend(row);
        }
        flat
    }

    /// Takes in what another rank sent as [`Table::to_flat`].
    pub fn merge(&mut self, flat: &[f64]) -> Result<()> {
        let Some((width, rest)) = flat.split_first() else { return Ok(()) };
        let width = *width as usize;
        if rest.len() % (1 + width) != 0 {
            let what = format!("{} numbers are no rows of {width}", rest.len());
            return Err(Error::bug(what));
        }
        rest.chunks_exact(1 + width).try_for_each(|row| self.push(row[0] as u64, row[1..].to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_distribution_over_ranks_leaves_a_trace(
            values in prop::collection::vec((prop::num::f64::NORMAL, 0usize..4), 0..40),
            first in 0usize..4,
        ) {
            let mut whole = Table::default();
            let mut parts = vec![Table::default(); 4];
            for (i, (value, owner)) in values.iter().enumerate() {
                whole.push(i as u64, vec![*value, i as f64]).unwrap();
                parts[*owner].push(i as u64, vec![*value, i as f64]).unwrap();
            }
            parts.rotate_left(first);
            let mut merged = Table::default();
            for part in &parts {
                merged.merge(&part.to_flat()).unwrap();
            }
            prop_assert_eq!(&merged, &whole);
            prop_assert_eq!(merged.column(0).len(), values.len());
        }
    }

    #[test]
    fn two_owners_or_other_widths_are_bugs() {
        let mut table = Table::default();
        table.push(3, vec![1.0]).unwrap();
        assert_eq!(table.push(3, vec![1.0]).unwrap_err().code(), 70);
        assert_eq!(table.push(4, vec![1.0, 2.0]).unwrap_err().code(), 70);
        assert_eq!(Table::default().merge(&[2.0, 0.0, 1.0]).unwrap_err().code(), 70);
    }
}
