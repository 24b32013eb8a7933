//! The plan of an embedding job: sequences into batches, batches into units, a unit into a shard.
//!
//! A pure function of the lengths and two numbers, never of the ranks: a shard's bytes depend on
//! the batches in it. Sequences are sorted by length, so that batches have hardly any padding. It
//! keeps a few numbers for each sequence, so ten million of them are planned within 300 MB.

use super::plan::{Padding, batch_ends, range, refuse_over_budget};
use crate::error::{Error, Result};
use std::ops::Range;
use xxhash_rust::xxh3::Xxh3;

/// Sequences that are computed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch<'a> {
    /// Indices into the lengths the plan was made of, by rising length.
    pub sequences: &'a [u32],
    /// The longest member, specials included.
    pub width: u32,
}

/// All batches of an embedding job, in units that are written as one shard each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbedPlan {
    /// Sequences by rising length, equal ones by index.
    order: Vec<u32>,
    /// Where each batch ends in `order`.
    batch_ends: Vec<u32>,
    widths: Vec<u32>,
    /// Where each unit ends in `batch_ends`.
    unit_ends: Vec<u32>,
    padding: Padding,
    hash: u64,
}

impl EmbedPlan {
    /// Plans sequences of these `lengths` (tokens, specials included) into batches of at most
    /// `max_tokens` padded tokens, and these into units of about `tokens_per_unit` tokens. A
    /// sequence longer than a batch is a data error in which `name(i)` says what `i` is called.
    pub fn new(
        lengths: &[u32],
        max_tokens: usize,
        tokens_per_unit: u64,
        name: impl Fn(usize) -> String,
    ) -> Result<EmbedPlan> {
        if max_tokens == 0 {
            return Err(Error::usage("must be at least 1").at("esm.max_tokens_per_batch"));
        }
        refuse_over_budget(lengths, max_tokens, name)
            .map_err(|e| e.hint("raise esm.max_tokens_per_batch, or lower esm.max_length"))?;
        let mut order: Vec<u32> = (0..lengths.len() as u32).collect();
        order.sort_unstable_by_key(|i| (lengths[*i as usize], *i));
        let length = |at: usize| lengths[order[at] as usize];

        let mut padding = Padding::default();
        let batch_ends = batch_ends(order.len(), length, max_tokens, usize::MAX);
        let (mut widths, mut sums) = (Vec::new(), Vec::new());
        for batch in (0..batch_ends.len()).map(|b| range(&batch_ends, b)) {
            let width = length(batch.end - 1);
            padding.padded += u64::from(width) * batch.len() as u64;
            padding.tokens += batch.map(|at| u64::from(length(at))).sum::<u64>();
            widths.push(width);
            sums.push(padding.tokens);
        }
        let unit_ends = unit_ends(&sums, tokens_per_unit);
        let mut hash = Xxh3::new();
        for numbers in [lengths, &batch_ends, &unit_ends] {
            hash.update(&(numbers.len() as u64).to_le_bytes());
            numbers.iter().for_each(|n| hash.update(&n.to_le_bytes()));
        }
        let hash = hash.digest();
        Ok(EmbedPlan { order, batch_ends, widths, unit_ends, padding, hash })
    }

    /// Batches of all units.
    pub fn batches(&self) -> usize {
        self.batch_ends.len()
    }

    /// Units, that is shards.
    pub fn units(&self) -> usize {
        self.unit_ends.len()
    }

    /// The batches of unit `unit`, for [`EmbedPlan::batch`].
    pub fn unit(&self, unit: usize) -> Range<usize> {
        range(&self.unit_ends, unit)
    }

    /// The sequences of unit `unit` in the order in which they are computed and stored.
    pub fn unit_sequences(&self, unit: usize) -> &[u32] {
        let batches = self.unit(unit);
        let first = range(&self.batch_ends, batches.start).start;
        &self.order[first..range(&self.batch_ends, batches.end - 1).end]
    }

    /// Batch `batch`.
    pub fn batch(&self, batch: usize) -> Batch<'_> {
        let sequences = &self.order[range(&self.batch_ends, batch)];
        Batch { sequences, width: self.widths[batch] }
    }

    /// How much of the work is padding.
    pub fn padding(&self) -> Padding {
        self.padding
    }

    /// A number that differs where the plan does: over all lengths and the cuts.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}

/// Cuts batches, of which `sums` are the running sums of tokens, into units of nearly equal size.
fn unit_ends(sums: &[u64], tokens_per_unit: u64) -> Vec<u32> {
    let total = sums.last().copied().unwrap_or_default();
    let wanted = (total as f64 / tokens_per_unit.max(1) as f64).round().max(1.0);
    let size = total as f64 / wanted;
    let mut ends: Vec<u32> = Vec::new();
    let mut units = 1.0;
    for (i, sum) in sums.iter().enumerate() {
        if i + 1 == sums.len() || *sum as f64 >= units * size {
            ends.push(i as u32 + 1);
            units = (*sum as f64 / size).floor() + 1.0;
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::super::fasta::FastaIndex;
    use super::super::plan::tests::protein_lengths;
    use super::super::table::tests::real_files;
    use super::*;
    use proptest::prelude::*;

    fn plan(lengths: &[u32], max_tokens: usize, tokens_per_unit: u64) -> EmbedPlan {
        EmbedPlan::new(lengths, max_tokens, tokens_per_unit, |i| format!("P{i}")).unwrap()
    }

    #[test]
    fn a_sequence_over_the_budget_is_named() {
        let error = EmbedPlan::new(&[9, 11], 10, 100, |i| format!("P{i}")).unwrap_err();
        assert_eq!(error.code(), 3);
        assert!(error.to_string().contains("P1 has 11 tokens"), "{error}");
        assert!(error.to_string().contains("esm.max_tokens_per_batch"), "{error}");
        let empty = plan(&[], 10, 100);
        assert_eq!((empty.batches(), empty.units()), (0, 0));
    }

    #[test]
    fn uneven_sequences_are_parted() {
        // All would fit one batch, with 45 % padding.
        let plan = plan(&[10, 100, 11, 100, 10, 100], 1000, 1);
        let batches: Vec<_> = (0..plan.batches()).map(|b| plan.batch(b).sequences).collect();
        assert_eq!(batches, [[0, 4, 2], [1, 3, 5]]);
    }

    #[test]
    fn units_are_of_nearly_equal_size() {
        let lengths = protein_lengths(20_000, 3, 3000);
        let plan = plan(&lengths, 4096, 400_000);
        let total: u64 = lengths.iter().map(|l| u64::from(*l)).sum();
        assert_eq!(plan.units() as u64, (total + 200_000) / 400_000);
        for unit in 0..plan.units() {
            let sequences = plan.unit_sequences(unit).iter();
            let tokens: u64 = sequences.map(|i| u64::from(lengths[*i as usize])).sum();
            assert!((390_000..410_000).contains(&tokens), "{tokens}");
        }
    }

    #[test]
    fn padding_of_real_proteins() {
        let Some(folder) = real_files("plan_embed::padding_of_real_proteins") else { return };
        let path = folder.join("swissprot_yeast_ecoli_bsub.fasta");
        let index = FastaIndex::open(&path, &std::env::temp_dir()).unwrap();
        for (every, max_tokens, most) in
            [(1, 4096, 0.02), (1, 16_384, 0.02), (1, 100_000, 0.03), (51, 4096, 0.02)]
        {
            let lengths = index.lengths().map(|n| (n + 2).min(max_tokens as u32)).step_by(every);
            let lengths: Vec<u32> = lengths.collect();
            let plan = plan(&lengths, max_tokens, 1 << 20);
            println!(
                "{} sequences, {max_tokens}: {:.2} % padding, {} batches, {} units, {:.0} % full",
                lengths.len(),
                100.0 * plan.padding().share(),
                plan.batches(),
                plan.units(),
                100.0 * plan.padding().padded as f64 / (plan.batches() * max_tokens) as f64
            );
            assert!(plan.padding().share() <= most, "{max_tokens}: {}", plan.padding().share());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn every_sequence_once_within_the_budget(
            lengths in prop::collection::vec(0u32..300, 0..300), more in 0usize..3000,
            tokens_per_unit in 0u64..20_000,
        ) {
            let max_tokens = lengths.iter().max().map_or(1, |l| (*l as usize).max(1)) + more;
            let plan = plan(&lengths, max_tokens, tokens_per_unit);
            let mut all: Vec<u32> = Vec::new();
            let (mut next, mut padding) = (0, Padding::default());
            for unit in 0..plan.units() {
                let batches = plan.unit(unit);
                prop_assert!(batches.start == next && !batches.is_empty());
                next = batches.end;
                let first = all.len();
                for batch in batches.map(|b| plan.batch(b)) {
                    let padded = u64::from(batch.width) * batch.sequences.len() as u64;
                    prop_assert!(padded <= max_tokens as u64 && !batch.sequences.is_empty());
                    let members = || batch.sequences.iter().map(|i| lengths[*i as usize]);
                    prop_assert_eq!(members().max(), Some(batch.width));
                    padding.padded += padded;
                    padding.tokens += members().map(u64::from).sum::<u64>();
                    all.extend_from_slice(batch.sequences);
                }
                prop_assert_eq!(&all[first..], plan.unit_sequences(unit));
            }
            prop_assert_eq!(next, plan.batches());
            prop_assert_eq!(padding, plan.padding());
            prop_assert!(all.is_sorted_by_key(|i| (lengths[*i as usize], *i)));
            all.sort();
            prop_assert_eq!(all, (0..lengths.len() as u32).collect::<Vec<_>>());
        }
    }
}
