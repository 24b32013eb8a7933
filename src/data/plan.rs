//! The batch plan: which samples are computed together, and in what order.
//!
//! A pure function of lengths, seed, epoch and three limits; it knows no tensor and no number of
//! ranks. Samples of similar length form a class; a class is cut into micro-batches of a fixed
//! number of samples, so every epoch has the same number of micro-batches and a position in the
//! schedule needs no walk there. An epoch shuffles within classes, then shuffles micro-batches, and
//! takes `micro_batches_per_step` of them a step.

use crate::error::{Error, Result};
use crate::rng::{Key, Purpose, Stream};
use std::ops::Range;
use xxhash_rust::xxh3::Xxh3;

/// What limits a plan. Lengths and budgets count tokens, specials included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanConfig {
    /// Padded tokens of a micro-batch at most (`training.max_tokens_per_batch`).
    pub max_tokens: usize,
    /// Samples of a micro-batch at most (`training.per_device_train_batch_size`).
    pub max_samples: usize,
    /// Micro-batches of a step (`training.micro_batches_per_step`); the last step may have fewer.
    pub micro_batches_per_step: usize,
    /// The run's seed.
    pub seed: u64,
}

/// Samples that are computed together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MicroBatch {
    /// Indices into the lengths the plan was made of.
    pub samples: Vec<u32>,
    /// The longest member: `width * samples.len()` padded tokens are computed.
    pub width: u32,
}

/// Micro-batches whose gradients are summed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// In the order in which ranks own runs of them.
    pub micro_batches: Vec<MicroBatch>,
}

/// How much of a plan's work is padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Tokens of samples.
    pub tokens: u64,
    /// Tokens computed, padding included.
    pub padded: u64,
}

impl Padding {
    /// Padding's share of what is computed, 0 to 1.
    pub fn share(self) -> f64 {
        if self.padded == 0 { 0.0 } else { 1.0 - self.tokens as f64 / self.padded as f64 }
    }
}

/// A class takes in shorter samples until their mean is this share below its longest member.
const TOLERATED: f64 = 0.04;

/// A batch costs this part of a full budget before its first token, beside its padded tokens: it is
/// cut in two where that saves more padding than it costs.
const BATCHES_PER_OVERHEAD: usize = 50;

/// How many cuts are weighed at each place; more would hardly change the padding.
const CANDIDATES: usize = 64;

/// The width at which attention costs as much as the rest of a layer (about 6 hidden sizes at 512).
const ATTENTION_EVEN: u64 = 3072;

/// Samples of similar length.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Class {
    /// Its part of [`Plan::order`].
    members: Range<usize>,
    /// Samples of a micro-batch; the class's last one may have fewer.
    per_batch: usize,
}

/// The micro-batches of every epoch.
#[derive(Clone, Debug)]
pub struct Plan {
    config: PlanConfig,
    lengths: Vec<u32>,
    /// Samples by rising length, equal ones by index.
    order: Vec<u32>,
    classes: Vec<Class>,
}

impl Plan {
    /// Plans samples of these `lengths`. A sample longer than the budget is a data error in which
    /// `name(i)` says what sample `i` is called; a limit of zero is a usage error.
    pub fn new(
        lengths: &[u32],
        config: PlanConfig,
        name: impl Fn(usize) -> String,
    ) -> Result<Plan> {
        for (key, limit) in [
            ("training.max_tokens_per_batch", config.max_tokens),
            ("training.per_device_train_batch_size", config.max_samples),
            ("training.micro_batches_per_step", config.micro_batches_per_step),
        ] {
            if limit == 0 {
                return Err(Error::usage("must be at least 1").at(key));
            }
        }
        refuse_over_budget(lengths, config.max_tokens, name).map_err(|e| {
            e.hint(
                "raise training.max_tokens_per_batch, or set dataset.max_sequence_length to crop",
            )
        })?;
        let mut order: Vec<u32> = (0..lengths.len() as u32).collect();
        order.sort_unstable_by_key(|i| (lengths[*i as usize], *i));
        let classes = classes(lengths, &order, &config);
        Ok(Plan { config, lengths: lengths.to_vec(), order, classes })
    }

    /// Micro-batches of every epoch.
    pub fn micro_batches_per_epoch(&self) -> usize {
        self.classes.iter().map(|c| c.members.len().div_ceil(c.per_batch)).sum()
    }

    /// Steps of every epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.micro_batches_per_epoch().div_ceil(self.config.micro_batches_per_step)
    }

    /// The steps of an epoch, counted from 0: every sample once.
    pub fn epoch(&self, epoch: u64) -> Vec<Step> {
        let key = Key::new(self.config.seed, Purpose::Plan);
        let mut stream = key.stream(epoch as u32, (epoch >> 32) as u32);
        let mut micro_batches = self.micro_batches(Some(&mut stream));
        stream.shuffle(&mut micro_batches);
        self.steps(micro_batches)
    }

    /// The steps of an evaluation: every sample once, nothing shuffled, the least padding.
    pub fn evaluation(&self) -> Vec<Step> {
        self.steps(self.micro_batches(None))
    }

    /// How much of the first epoch's work is padding; other epochs differ by little.
    pub fn padding(&self) -> Padding {
        let padded =
            self.epoch(0).iter().flat_map(|s| &s.micro_batches).map(MicroBatch::tokens).sum();
        Padding { tokens: self.lengths.iter().map(|l| u64::from(*l)).sum(), padded }
    }

    /// A number that differs where any epoch would: over the limits, the seed and all lengths.
    pub fn hash(&self) -> u64 {
        let c = &self.config;
        let mut hash = Xxh3::new();
        for number in [c.max_tokens, c.max_samples, c.micro_batches_per_step, self.classes.len()] {
            hash.update(&(number as u64).to_le_bytes());
        }
        hash.update(&c.seed.to_le_bytes());
        for class in &self.classes {
            for number in [class.members.start, class.members.end, class.per_batch] {
                hash.update(&(number as u64).to_le_bytes());
            }
        }
        for length in &self.lengths {
            hash.update(&length.to_le_bytes());
        }
        hash.digest()
    }

    /// All classes cut into micro-batches, their members shuffled first if there is a `stream`.
    fn micro_batches(&self, mut stream: Option<&mut Stream>) -> Vec<MicroBatch> {
        let mut micro_batches = Vec::with_capacity(self.micro_batches_per_epoch());
        for class in &self.classes {
            let mut members = self.order[class.members.clone()].to_vec();
            if let Some(stream) = &mut stream {
                stream.shuffle(&mut members);
            }
            for samples in members.chunks(class.per_batch) {
                let widths = samples.iter().map(|i| self.lengths[*i as usize]);
                let width = widths.max().expect("a chunk has a member");
                micro_batches.push(MicroBatch { samples: samples.to_vec(), width });
            }
        }
        micro_batches
    }

    fn steps(&self, micro_batches: Vec<MicroBatch>) -> Vec<Step> {
        let mut steps = Vec::with_capacity(self.steps_per_epoch());
        let mut rest = micro_batches.into_iter().peekable();
        while rest.peek().is_some() {
            let mut step: Vec<_> = rest.by_ref().take(self.config.micro_batches_per_step).collect();
            step.sort_by_key(|m| (std::cmp::Reverse(m.cost()), m.samples[0]));
            steps.push(Step { micro_batches: balanced(step) });
        }
        steps
    }
}

impl MicroBatch {
    /// Padded tokens.
    pub fn tokens(&self) -> u64 {
        u64::from(self.width) * self.samples.len() as u64
    }

    /// The time it takes, in a unit of no meaning: linear layers and attention.
    fn cost(&self) -> u64 {
        self.tokens().saturating_mul(ATTENTION_EVEN + u64::from(self.width))
    }
}

/// A sample that no micro-batch can hold is a data error; the caller says what to do about it.
pub(super) fn refuse_over_budget(
    lengths: &[u32],
    max_tokens: usize,
    name: impl Fn(usize) -> String,
) -> Result<()> {
    let is_over = |length: &u32| *length as usize > max_tokens;
    let Some(first) = lengths.iter().position(is_over) else { return Ok(()) };
    let mut what = format!(
        "{} has {} tokens with its specials, a batch holds {max_tokens}",
        name(first),
        lengths[first]
    );
    let over = lengths.iter().filter(|l| is_over(l)).count();
    if over > 1 {
        let longest = lengths.iter().max().expect("some length is over the budget");
        what += &format!(" ({over} such samples, the longest has {longest})");
    }
    Err(Error::data(what))
}

/// Groups samples of rising length into classes, the longest first: the best cut into batches, of
/// which neighbours are joined while that adds little padding. The more batches a class has, the
/// more there is to shuffle.
fn classes(lengths: &[u32], order: &[u32], config: &PlanConfig) -> Vec<Class> {
    let length = |at: usize| lengths[order[at] as usize];
    let ends = batch_ends(order.len(), length, config.max_tokens, config.max_samples);
    let sum = |batch: usize| range(&ends, batch).map(|at| u64::from(length(at))).sum::<u64>();
    let mut classes = Vec::new();
    let mut rest = ends.len();
    while rest > 0 {
        let mut members = range(&ends, rest - 1);
        let longest = length(members.end - 1).max(1);
        let mut tokens = sum(rest - 1);
        rest -= 1;
        while rest > 0 {
            let start = range(&ends, rest - 1).start;
            let padded = u64::from(longest) * (members.end - start) as u64;
            tokens += sum(rest - 1);
            if (Padding { tokens, padded }).share() > TOLERATED {
                break;
            }
            members.start = start;
            rest -= 1;
        }
        let most = (config.max_tokens / longest as usize).min(config.max_samples);
        let per_batch = members.len().div_ceil(members.len().div_ceil(most));
        classes.push(Class { members, per_batch });
    }
    classes
}

/// Cuts `n` samples of rising `length` into batches so that padded tokens and the overhead of
/// batches together are least: the shortest path over the places where a batch may end.
pub(super) fn batch_ends(
    n: usize,
    length: impl Fn(usize) -> u32,
    max_tokens: usize,
    max_samples: usize,
) -> Vec<u32> {
    let overhead = max_tokens.div_ceil(BATCHES_PER_OVERHEAD) as u64;
    // The least cost of the first `end` samples, and where the last batch of them starts.
    let (mut cost, mut starts) = (vec![0u64; n + 1], vec![0u32; n + 1]);
    for end in 1..=n {
        let width = u64::from(length(end - 1)).max(1);
        let most = (max_tokens / width as usize).min(max_samples);
        let first = end.saturating_sub(most);
        let (best, start) = (first..end)
            .step_by((end - first).div_ceil(CANDIDATES))
            .map(|start| (cost[start] + width * (end - start) as u64, start))
            .min()
            .expect("a sample fits a batch");
        (cost[end], starts[end]) = (best + overhead, start as u32);
    }
    let mut ends = Vec::new();
    let mut end = n;
    while end > 0 {
        ends.push(end as u32);
        end = starts[end] as usize;
    }
    ends.reverse();
    ends
}

/// The positions of batch `i`, given where each batch ends.
pub(super) fn range(ends: &[u32], i: usize) -> Range<usize> {
    let start = if i == 0 { 0 } else { ends[i - 1] as usize };
    start..ends[i] as usize
}

/// Orders micro-batches, given by falling cost, so that runs of them cost about the same: the list
/// is dealt into two halves of equal size and nearly equal cost, and each half likewise.
fn balanced(sorted: Vec<MicroBatch>) -> Vec<MicroBatch> {
    if sorted.len() < 3 {
        return sorted;
    }
    let (left_size, right_size) = (sorted.len() / 2, sorted.len().div_ceil(2));
    let (mut left, mut right) = (Vec::with_capacity(left_size), Vec::with_capacity(right_size));
    let (mut left_cost, mut right_cost) = (0u64, 0u64);
    for m in sorted {
        let cost = m.cost();
        if right.len() == right_size || (left.len() < left_size && left_cost <= right_cost) {
            left_cost = left_cost.saturating_add(cost);
            left.push(m);
        } else {
            right_cost = right_cost.saturating_add(cost);
            right.push(m);
        }
    }
    let mut order = balanced(left);
    order.append(&mut balanced(right));
    order
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::table::tests::{columns, real_files};
    use super::super::{ptm_vocab, table};
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    fn config(max_tokens: usize, max_samples: usize, micro_batches_per_step: usize) -> PlanConfig {
        PlanConfig { max_tokens, max_samples, micro_batches_per_step, seed: 42 }
    }

    fn named(i: usize) -> String {
        format!("P{i}")
    }

    fn samples(steps: &[Step]) -> Vec<u32> {
        let all = steps.iter().flat_map(|s| &s.micro_batches).flat_map(|m| &m.samples);
        all.copied().collect()
    }

    /// Lengths as proteins have them: log-normal, median 300, from 8 to `longest`.
    pub fn protein_lengths(n: usize, seed: u64, longest: u32) -> Vec<u32> {
        let mut stream = Key::new(seed, Purpose::Sample).stream(0, 0);
        let mut length = || (5.7 + 0.75 * stream.normal()).exp() as u32 + 2;
        (0..n).map(|_| length().clamp(10, longest)).collect()
    }

    #[test]
    fn a_sample_over_the_budget_is_named() {
        let error = Plan::new(&[5, 11, 12], config(10, 8, 8), named).unwrap_err();
        assert_eq!(error.code(), 3);
        let text = error.to_string();
        assert!(text.contains("P1 has 11 tokens") && text.contains("2 such samples"), "{text}");
        let error = Plan::new(&[5], config(10, 0, 8), named).unwrap_err();
        assert_eq!(error.code(), 2);
        assert!(error.to_string().starts_with("training.per_device_train_batch_size"), "{error}");
        let empty = Plan::new(&[], config(10, 8, 8), named).unwrap();
        assert_eq!((empty.steps_per_epoch(), empty.epoch(0).len()), (0, 0));
    }

    #[test]
    fn epochs_differ_and_repeat() {
        let plan = Plan::new(&protein_lengths(2000, 1, 4000), config(4096, 8, 8), named).unwrap();
        assert_eq!(plan.epoch(3), plan.epoch(3));
        assert_ne!(plan.epoch(3), plan.epoch(4));
        assert_ne!(plan.epoch(3), plan.epoch(3 + (1 << 32)));
        let other = PlanConfig { seed: 43, ..plan.config };
        let other = Plan::new(&plan.lengths, other, named).unwrap();
        assert_ne!(plan.epoch(3), other.epoch(3));
        assert_ne!(plan.hash(), other.hash());
        // Not only the order of micro-batches changes, but who is in one.
        let groups = |epoch: u64| -> BTreeSet<Vec<u32>> {
            let steps = plan.epoch(epoch);
            let groups = steps.iter().flat_map(|s| &s.micro_batches).map(|m| m.samples.clone());
            groups.map(|mut samples| (samples.sort(), samples).1).collect()
        };
        let (first, second) = (groups(0), groups(1));
        let kept = first.intersection(&second).count();
        assert!(2 * kept < first.len(), "{kept} of {} groups stay together", first.len());
    }

    #[test]
    fn contiguous_runs_cost_about_the_same() {
        let plan = Plan::new(&protein_lengths(4000, 2, 4000), config(8192, 64, 16), named).unwrap();
        for ranks in [2, 4, 8] {
            let (mut worst, mut total) = (0, 0);
            for step in plan.epoch(0).iter().filter(|s| s.micro_batches.len() == 16) {
                let cost = |r: usize| {
                    step.micro_batches[r * 16 / ranks..(r + 1) * 16 / ranks]
                        .iter()
                        .map(MicroBatch::cost)
                };
                worst += (0..ranks).map(|r| cost(r).sum::<u64>()).max().unwrap() * ranks as u64;
                total += step.micro_batches.iter().map(MicroBatch::cost).sum::<u64>();
            }
            let idle = 1.0 - total as f64 / worst as f64;
            println!("{ranks} ranks: {:.1} % of the time is waiting", 100.0 * idle);
            assert!(idle < 0.12, "{ranks} ranks: {idle}");
        }
    }

    #[test]
    fn padding_of_real_proteins() {
        let Some(folder) = real_files("plan::padding_of_real_proteins") else { return };
        let path = folder.join("ptm_swissprot_yeast_bsub.csv");
        let proteins = table::read_proteins(&path, &columns(), None, Path::new("/")).unwrap();
        let rules = ptm_vocab::Rules { unknown: ptm_vocab::Unknown::Error, generic_ptm: false };
        for max_tokens in [4096, 8192, 16_384, 40_000, 100_000] {
            for max_samples in [8, 96, 100_000] {
                let lengths: Vec<u32> = proteins
                    .records
                    .iter()
                    .map(|r| ptm_vocab::tokenize(&r.ptm_seq, rules).unwrap().len() + 2)
                    .map(|n| n.min(max_tokens) as u32)
                    .collect();
                let plan = Plan::new(&lengths, config(max_tokens, max_samples, 8), named).unwrap();
                let (padding, n) = (plan.padding(), plan.micro_batches_per_epoch());
                let fill = padding.padded as f64 / (n * max_tokens) as f64;
                println!(
                    "budget {max_tokens}, cap {max_samples}: {:.2} % padding, {n} micro-batches, \
                     {} classes, {:.0} % full",
                    100.0 * padding.share(),
                    plan.classes.len(),
                    100.0 * fill
                );
                assert!(padding.share() <= 0.05, "{}", padding.share());
                assert!(max_samples < 100_000 || fill > 0.5, "{fill}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn every_sample_once_within_all_limits(
            lengths in prop::collection::vec(0u32..200, 0..300),
            more in 0usize..2000, max_samples in 1usize..40, m in 1usize..20, epoch: u64,
        ) {
            let max_tokens = lengths.iter().max().map_or(1, |l| (*l as usize).max(1)) + more;
            let plan = Plan::new(&lengths, config(max_tokens, max_samples, m), named).unwrap();
            for steps in [plan.epoch(epoch), plan.epoch(0), plan.evaluation()] {
                let mut all = samples(&steps);
                all.sort();
                prop_assert_eq!(all, (0..lengths.len() as u32).collect::<Vec<_>>());
                prop_assert_eq!(steps.len(), plan.steps_per_epoch());
                let sizes: Vec<usize> = steps.iter().map(|s| s.micro_batches.len()).collect();
                prop_assert_eq!(sizes.iter().sum::<usize>(), plan.micro_batches_per_epoch());
                for (i, size) in sizes.iter().enumerate() {
                    prop_assert!(*size == m || (i + 1 == sizes.len() && *size < m));
                }
                for m in steps.iter().flat_map(|s| &s.micro_batches) {
                    let widest = m.samples.iter().map(|i| lengths[*i as usize]).max();
                    prop_assert_eq!(widest, Some(m.width));
                    prop_assert!(m.tokens() <= max_tokens as u64 && m.samples.len() <= max_samples);
                }
            }
            let again = Plan::new(&lengths, plan.config, named).unwrap();
            prop_assert_eq!(again.hash(), plan.hash());
            prop_assert_eq!(again.epoch(epoch), plan.epoch(epoch));
        }

        #[test]
        fn no_other_cuts_cost_less(
            mut lengths in prop::collection::vec(1u32..30, 1..11), more in 0usize..200,
            max_samples in 1usize..12,
        ) {
            lengths.sort();
            let n = lengths.len();
            let max_tokens = lengths[n - 1] as usize + more;
            let cost = |ends: &[u32]| -> Option<usize> {
                let mut cost = ends.len() * max_tokens.div_ceil(BATCHES_PER_OVERHEAD);
                for batch in (0..ends.len()).map(|b| range(ends, b)) {
                    let padded = lengths[batch.end - 1] as usize * batch.len();
                    let fits = padded <= max_tokens && batch.len() <= max_samples;
                    cost += fits.then_some(padded)?;
                }
                Some(cost)
            };
            let found = cost(&batch_ends(n, |i| lengths[i], max_tokens, max_samples));
            let least = (0..1u32 << (n - 1)).filter_map(|cuts| {
                let inner = (1..n as u32).filter(|i| cuts >> (i - 1) & 1 == 1);
                cost(&inner.chain([n as u32]).collect::<Vec<_>>())
            });
            prop_assert_eq!(found, least.min());
        }
    }
}
