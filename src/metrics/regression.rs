//! Errors of predicted numbers, as scikit-learn 1.9 defines them.

use super::registry::{Direction, Merge, Registry};
use super::{DIVERGED, finite, same_length};
use crate::error::{Error, Result};

/// How far predictions lie from the truth. Units are the target's (squared in `mse`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Regression {
    /// Mean absolute error.
    pub mae: f64,
    /// Mean squared error.
    pub mse: f64,
    /// Its root.
    pub rmse: f64,
    /// Coefficient of determination, 1 - squared error / spread around the mean. NaN for a single
    /// sample; where all targets are equal 1 for perfect predictions, else 0.
    pub r2: f64,
    /// How many samples there were.
    pub count: usize,
}

impl Regression {
    /// The figures under the names they have in records.
    pub fn figures(&self) -> [(&'static str, f64); 4] {
        [("mae", self.mae), ("mse", self.mse), ("rmse", self.rmse), ("r2", self.r2)]
    }
}

/// Declares the names of [`Regression::figures`], each with `suffix` behind it, and says that they
/// are in `unit` (`_raw` and `MPa`; nothing and `normalised units`). `r2` is the same in all units,
/// so it is declared with the empty suffix alone.
pub fn register(registry: &mut Registry, suffix: &str, unit: &str) -> Result<()> {
    let mut add = |name: &str, direction, what: String| {
        registry.add(format!("{name}{suffix}"), direction, Merge::Table, what)
    };
    add("mae", Direction::Lower, format!("mean absolute error, {unit}"))?;
    add("mse", Direction::Lower, format!("mean squared error, ({unit})^2"))?;
    add("rmse", Direction::Lower, format!("root of the mean squared error, {unit}"))?;
    if !suffix.is_empty() {
        return Ok(());
    }
    add("r2", Direction::Higher, "coefficient of determination".to_string())
}

/// Compares predictions with targets, sample by sample.
///
/// # Errors
/// No sample and targets that are not finite (exit code 3), predictions that are not (6), unequal
/// lengths (70).
///
/// Targets that are all equal count as without spread even where their mean in floating point is
/// another number; scikit-learn then divides by what rounding left.
pub fn regression(predictions: &[f64], targets: &[f64]) -> Result<Regression> {
    same_length(predictions.len(), targets.len())?;
    finite("prediction", predictions, 1).map_err(|e| e.hint(DIVERGED))?;
    if let Some(at) = targets.iter().position(|target| !target.is_finite()) {
        return Err(Error::data(format!("the target of sample {at} is {}", targets[at]))
            .hint("samples without a true value cannot be measured: drop their rows"));
    }
    let count = targets.len();
    let errors = || predictions.iter().zip(targets).map(|(p, t)| p - t);
    let absolute: f64 = errors().map(f64::abs).sum();
    let squared: f64 = errors().map(|e| e * e).sum();
    let mean = targets.iter().sum::<f64>() / count as f64;
    let spread: f64 = targets.iter().map(|t| (t - mean) * (t - mean)).sum();
    let constant = spread == 0.0 || targets.iter().all(|t| *t == targets[0]);
    let r2 = match (count, constant) {
        (1, _) => f64::NAN,
        (_, true) => f64::from(squared == 0.0),
        (_, false) => 1.0 - squared / spread,
    };
    let mse = squared / count as f64;
    Ok(Regression { mae: absolute / count as f64, mse, rmse: mse.sqrt(), r2, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let found = regression(&[1.0, 2.0, 5.0], &[1.0, 3.0, 2.0]).unwrap();
        assert_eq!((found.count, found.mae, found.mse), (3, 4.0 / 3.0, 10.0 / 3.0));
        assert_eq!((found.rmse, found.r2), ((10.0f64 / 3.0).sqrt(), -4.0));
        assert_eq!(found.figures()[3], ("r2", -4.0));
    }

    #[test]
    fn targets_without_spread() {
        // The mean of three times 0.1 is another number than 0.1.
        assert_eq!(regression(&[0.1; 3], &[0.1; 3]).unwrap().r2, 1.0);
        assert_eq!(regression(&[0.1, 0.1, 0.2], &[0.1; 3]).unwrap().r2, 0.0);
        assert!(regression(&[1.0], &[1.0]).unwrap().r2.is_nan());
        // Differences whose squares vanish are none either.
        assert_eq!(regression(&[0.0, 2e-200], &[1e-200, 2e-200]).unwrap().r2, 1.0);
    }

    #[test]
    fn what_cannot_be_measured() {
        assert_eq!(regression(&[], &[]).unwrap_err().code(), 3);
        assert_eq!(regression(&[1.0], &[]).unwrap_err().code(), 70);
        let error = regression(&[1.0, 1.0, f64::NAN], &[1.0; 3]).unwrap_err();
        assert_eq!(error.code(), 6);
        assert!(error.to_string().starts_with("the prediction of sample 2 is NaN"), "{error}");
        let error = regression(&[1.0], &[f64::INFINITY]).unwrap_err();
        assert_eq!(error.code(), 3);
        assert!(error.to_string().starts_with("the target of sample 0 is inf"), "{error}");
    }

    #[test]
    fn names() {
        let mut registry = Registry::new();
        register(&mut registry, "", "normalised units").unwrap();
        register(&mut registry, "_raw", "MPa").unwrap();
        for (name, _) in regression(&[1.0], &[1.0]).unwrap().figures() {
            registry.lookup(&format!("val_{name}")).unwrap();
        }
        assert_eq!(registry.lookup("val_R2").unwrap().direction, Direction::Higher);
        assert_eq!(registry.lookup("mae_raw").unwrap().what, "mean absolute error, MPa");
    }
}
