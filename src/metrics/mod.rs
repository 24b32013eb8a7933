//! What is measured: the registry of names, sums that any distribution over ranks folds to the
//! same bits, tables of all samples and the figures of them, and the judgement of which evaluation
//! was best.

pub mod additive;
pub mod best;
pub mod classification;
pub mod ranking;
pub mod registry;
pub mod regression;
pub mod table;

use crate::error::{Error, Result};

/// What to do about predictions that are not finite.
const DIVERGED: &str = "lower training.lr, or train with training.precision: fp32";

/// Refuses two columns of unequal length, which is a bug of the caller (exit code 70), and empty
/// ones, of which nothing can be said (exit code 3).
fn same_length(first: usize, second: usize) -> Result<()> {
    if first != second {
        return Err(Error::bug(format!("{first} predictions stand against {second} targets")));
    }
    if first == 0 {
        return Err(Error::data("no sample to measure")
            .hint("the part of the data that is evaluated must hold one sample or more"));
    }
    Ok(())
}

/// Refuses NaN and infinities (exit code 6), as scikit-learn does. `what` is one value in words,
/// and `width` how many of them a sample has.
fn finite(what: &str, values: &[f64], width: usize) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::numerical(format!(
            "the {what} of sample {} is {} (samples count from 0)",
            at / width,
            values[at]
        ))),
    }
}
