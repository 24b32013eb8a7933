//! What depends on the order of values: mid-ranks, the area under the ROC curve, the curve itself,
//! and the correlations of Pearson and Spearman.

use super::{finite, same_length};
use crate::error::Result;
use std::cmp::Ordering;

/// A point of a ROC curve: what is found when everything that scores `threshold` or more is called
/// positive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RocPoint {
    /// The share of the negatives that is called positive.
    pub false_positive_rate: f64,
    /// The share of the positives that is called positive.
    pub true_positive_rate: f64,
    /// Infinite at the first point, where nothing is called positive.
    pub threshold: f64,
}

/// The place of each value in ascending order, from 1; equal values share the mean of their places.
///
/// # Errors
/// Values that are not finite (exit code 6).
pub fn mid_ranks(values: &[f64]) -> Result<Vec<f64>> {
    finite("value", values, 1)?;
    let order = ascending(values);
    let mut ranks = vec![0.0; values.len()];
    let mut begin = 0;
    for equal in order.chunk_by(|a, b| values[*a] == values[*b]) {
        // Places begin+1 to begin+n; twice their mean is an integer, so this is exact.
        let rank = (2 * begin + 1 + equal.len()) as f64 / 2.0;
        equal.iter().for_each(|&at| ranks[at] = rank);
        begin += equal.len();
    }
    Ok(ranks)
}

/// The area under the ROC curve: the probability that a positive scores higher than a negative,
/// where a tie counts half. `None` where positives or negatives are missing.
///
/// # Errors
/// No sample (exit code 3), scores that are not finite (6), unequal lengths (70).
pub fn auc(scores: &[f64], positives: &[bool]) -> Result<Option<f64>> {
    same_length(scores.len(), positives.len())?;
    let ranks = mid_ranks(scores)?;
    let (positive, negative) = both(positives);
    if positive == 0 || negative == 0 {
        return Ok(None);
    }
    // Halves of integers far below 2^53: sums are exact up to some ten million samples.
    let sum: f64 = ranks.iter().zip(positives).filter(|(_, is)| **is).map(|(rank, _)| rank).sum();
    let (positive, negative) = (positive as f64, negative as f64);
    Ok(Some((sum - positive * (positive + 1.0) / 2.0) / (positive * negative)))
}

/// The ROC curve from (0, 0) to (1, 1), a point for each different score, except those between two
/// others on a straight line, as scikit-learn's `roc_curve`. `None` where positives or negatives
/// are missing.
///
/// # Errors
/// No sample (exit code 3), scores that are not finite (6), unequal lengths (70).
pub fn roc_curve(scores: &[f64], positives: &[bool]) -> Result<Option<Vec<RocPoint>>> {
    same_length(scores.len(), positives.len())?;
    finite("score", scores, 1)?;
    let (positive, negative) = both(positives);
    if positive == 0 || negative == 0 {
        return Ok(None);
    }
    let mut descending = ascending(scores);
    descending.reverse();
    let mut found = (0i64, 0i64);
    let mut steps: Vec<(i64, i64, f64)> = Vec::new();
    for equal in descending.chunk_by(|a, b| scores[*a] == scores[*b]) {
        let hits = equal.iter().filter(|&&at| positives[at]).count() as i64;
        found = (found.0 + equal.len() as i64 - hits, found.1 + hits);
        steps.push((found.0, found.1, scores[equal[0]]));
    }
    let straight = |at: usize| {
        at > 0 && at + 1 < steps.len() && {
            let (before, here, after) = (steps[at - 1], steps[at], steps[at + 1]);
            (here.0 - before.0, here.1 - before.1) == (after.0 - here.0, after.1 - here.1)
        }
    };
    let kept = (0..steps.len()).filter(|&at| !straight(at)).map(|at| steps[at]);
    let points = std::iter::once((0, 0, f64::INFINITY)).chain(kept);
    let rates = points.map(|(false_positives, true_positives, threshold)| RocPoint {
        false_positive_rate: false_positives as f64 / negative as f64,
        true_positive_rate: true_positives as f64 / positive as f64,
        threshold,
    });
    Ok(Some(rates.collect()))
}

/// Pearson's correlation; NaN for fewer than two samples and where either column is constant.
///
/// # Errors
/// No sample (exit code 3), values that are not finite (6), unequal lengths (70).
pub fn pearson(first: &[f64], second: &[f64]) -> Result<f64> {
    same_length(first.len(), second.len())?;
    finite("first value", first, 1)?;
    finite("second value", second, 1)?;
    let constant = |values: &[f64]| values.iter().all(|value| *value == values[0]);
    if constant(first) || constant(second) {
        return Ok(f64::NAN);
    }
    let deviations = |values: &[f64]| -> Vec<f64> {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let centred: Vec<f64> = values.iter().map(|value| value - mean).collect();
        // Scaled first, so that squares of tiny or huge values neither vanish nor overflow.
        let largest = centred.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
        let norm = centred.iter().map(|v| (v / largest).powi(2)).sum::<f64>().sqrt();
        centred.iter().map(|value| value / largest / norm).collect()
    };
    let products = deviations(first).into_iter().zip(deviations(second)).map(|(a, b)| a * b);
    Ok(products.sum::<f64>().clamp(-1.0, 1.0))
}

/// Spearman's correlation: Pearson's of the mid-ranks, with its errors.
pub fn spearman(first: &[f64], second: &[f64]) -> Result<f64> {
    same_length(first.len(), second.len())?;
    pearson(&mid_ranks(first)?, &mid_ranks(second)?)
}

/// Indices in ascending order of finite values.
fn ascending(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    // Not total_cmp: -0.0 and 0.0 are a tie.
    order.sort_by(|&a, &b| values[a].partial_cmp(&values[b]).unwrap_or(Ordering::Equal));
    order
}

/// How many are positive, how many negative.
fn both(positives: &[bool]) -> (usize, usize) {
    let positive = positives.iter().filter(|is| **is).count();
    (positive, positives.len() - positive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranks_by_hand() {
        let ranks = mid_ranks(&[3.0, -0.0, 3.0, 0.0, 3.0, 1.0]).unwrap();
        assert_eq!(ranks, [5.0, 1.5, 5.0, 1.5, 5.0, 3.0]);
        assert_eq!(mid_ranks(&[f64::NAN]).unwrap_err().code(), 6);
    }

    #[test]
    fn one_side_alone_has_no_area_and_no_curve() {
        for positives in [[true, true], [false, false]] {
            assert_eq!(auc(&[0.1, 0.9], &positives).unwrap(), None);
            assert_eq!(roc_curve(&[0.1, 0.9], &positives).unwrap(), None);
        }
        assert_eq!(auc(&[0.5, 0.5], &[true, false]).unwrap(), Some(0.5));
        assert_eq!(auc(&[0.1, 0.9], &[false, true]).unwrap(), Some(1.0));
        assert_eq!(auc(&[], &[]).unwrap_err().code(), 3);
        assert_eq!(roc_curve(&[f64::NAN], &[true]).unwrap_err().code(), 6);
    }

    #[test]
    fn correlations() {
        let (a, b) = ([1.0, 2.0, 3.0], [1e-300, 2e-300, 9e-300]);
        assert!((pearson(&a, &[2.0, 4.0, 6.0]).unwrap() - 1.0).abs() < 1e-15);
        assert!((spearman(&a, &b).unwrap() - 1.0).abs() < 1e-15);
        assert!((pearson(&a, &b).unwrap() - 0.917_662_935_482_247).abs() < 1e-12);
        assert!(spearman(&a, &[5.0; 3]).unwrap().is_nan());
        assert!(pearson(&[1.0], &[1.0]).unwrap().is_nan());
    }

    proptest! {
        #[test]
        fn the_area_is_what_lies_under_the_curve_and_what_pairs_say(
            samples in prop::collection::vec((-4i32..4, any::<bool>()), 2..60),
        ) {
            let scores: Vec<f64> = samples.iter().map(|s| f64::from(s.0) / 4.0).collect();
            let positives: Vec<bool> = samples.iter().map(|s| s.1).collect();
            let (mut wins, mut pairs) = (0.0, 0.0);
            for (high, _) in scores.iter().zip(&positives).filter(|(_, is)| **is) {
                for (low, _) in scores.iter().zip(&positives).filter(|(_, is)| !**is) {
                    wins += if high > low { 1.0 } else if high == low { 0.5 } else { 0.0 };
                    pairs += 1.0;
                }
            }
            let area = auc(&scores, &positives).unwrap();
            prop_assert_eq!(area, (pairs > 0.0).then(|| wins / pairs));
            let Some(curve) = roc_curve(&scores, &positives).unwrap() else {
                prop_assert!(area.is_none());
                return Ok(());
            };
            let trapezia = curve.windows(2).map(|w| {
                let width = w[1].false_positive_rate - w[0].false_positive_rate;
                width * (w[0].true_positive_rate + w[1].true_positive_rate) / 2.0
            });
            prop_assert!((trapezia.sum::<f64>() - area.unwrap()).abs() < 1e-12);
            let last = curve.last().unwrap();
            prop_assert_eq!((last.false_positive_rate, last.true_positive_rate), (1.0, 1.0));
        }
    }
}
