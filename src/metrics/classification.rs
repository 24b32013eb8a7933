//! Figures of a classifier from its class probabilities, as scikit-learn 1.9 defines them with
//! `zero_division=0`.
//!
//! With two classes precision, sensitivity (recall), specificity, F1 and AUC are class 1's. With
//! more they are macro means: precision, sensitivity, specificity and F1 over the classes that
//! occur among targets or predictions, balanced accuracy over those among targets, and AUC, one
//! class against the rest, over those where it exists. A class that no target or every target has
//! is without an AUC; scikit-learn gives NaN there and would spoil the mean with it.

use super::registry::{Direction, Merge, Registry};
use super::{DIVERGED, finite, ranking, same_length};
use crate::error::{Error, Result};
use crate::progress;

/// What one class looks like against all others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassFigures {
    /// Of the samples called this class, the share that are; 0 where none is called so.
    pub precision: f64,
    /// Of the samples of this class, the share that is found (recall); 0 where there are none.
    pub sensitivity: f64,
    /// Of the samples of other classes, the share not called this one; 0 where there are none.
    pub specificity: f64,
    /// Harmonic mean of precision and sensitivity.
    pub f1: f64,
    /// Area under the ROC curve of this class's probability against the rest.
    pub auc: Option<f64>,
    /// How many samples are of this class.
    pub support: u64,
}

/// How good a classifier is. See the head of this file for what is averaged over what.
#[derive(Clone, Debug, PartialEq)]
pub struct Classification {
    /// The share of samples whose likeliest class is the right one.
    pub accuracy: f64,
    /// Mean sensitivity of the classes that occur among the targets.
    pub balanced_accuracy: f64,
    /// Class 1's, or the macro mean.
    pub precision: f64,
    /// Class 1's, or the macro mean.
    pub sensitivity: f64,
    /// Class 1's, or the macro mean.
    pub specificity: f64,
    /// Class 1's, or the macro mean.
    pub f1: f64,
    /// Class 1's, or the macro mean over the classes that have one.
    pub auc: Option<f64>,
    /// Each class.
    pub per_class: Vec<ClassFigures>,
    /// How many samples of class i were called class j: `confusion[i][j]`.
    pub confusion: Vec<Vec<u64>>,
}

impl Classification {
    /// The figures under the names they have in records.
    pub fn figures(&self) -> [(&'static str, Option<f64>); 7] {
        [
            ("accuracy", Some(self.accuracy)),
            ("balanced_accuracy", Some(self.balanced_accuracy)),
            ("precision", Some(self.precision)),
            ("sensitivity", Some(self.sensitivity)),
            ("specificity", Some(self.specificity)),
            ("f1", Some(self.f1)),
            ("auc", self.auc),
        ]
    }

    /// How many samples there were.
    pub fn count(&self) -> u64 {
        self.per_class.iter().map(|class| class.support).sum()
    }
}

/// Declares the names of [`Classification::figures`] for a classifier of so many classes.
pub fn register(registry: &mut Registry, classes: usize) -> Result<()> {
    let of = if classes == 2 { "of class 1" } else { "mean over classes" };
    let mut add =
        |name: &str, what: String| registry.add(name, Direction::Higher, Merge::Table, what);
    add("accuracy", "share of right answers".to_string())?;
    add("balanced_accuracy", "mean share of right answers over the true classes".to_string())?;
    add("precision", format!("share of its answers that are right, {of}"))?;
    add("sensitivity", format!("share of its samples that are found (recall), {of}"))?;
    add("specificity", format!("share of other samples that are told apart, {of}"))?;
    add("f1", format!("harmonic mean of precision and sensitivity, {of}"))?;
    add("auc", format!("area under the ROC curve, one against the rest, {of}"))
}

/// Compares `probabilities` [samples, `classes`], row by row, with the samples' class numbers. The
/// answer is the likeliest class; of equally likely ones the first.
///
/// # Errors
/// No sample (exit code 3), a probability that is not finite (6), fewer than two classes, unequal
/// lengths and class numbers out of range (70).
pub fn classification(
    probabilities: &[f64],
    classes: usize,
    targets: &[usize],
) -> Result<Classification> {
    if classes < 2 || !probabilities.len().is_multiple_of(classes) {
        return Err(Error::bug(format!(
            "{} probabilities are no table of {classes} classes, of which two are the least",
            probabilities.len()
        )));
    }
    same_length(probabilities.len() / classes, targets.len())?;
    finite("probability", probabilities, classes).map_err(|e| e.hint(DIVERGED))?;
    if let Some(at) = targets.iter().position(|&target| target >= classes) {
        return Err(Error::bug(format!("sample {at} is of class {} of {classes}", targets[at])));
    }
    let mut confusion = vec![vec![0u64; classes]; classes];
    for (row, &target) in probabilities.chunks_exact(classes).zip(targets) {
        confusion[target][likeliest(row)] += 1;
    }
    let mut per_class = Vec::with_capacity(classes);
    for class in 0..classes {
        let scores: Vec<f64> = probabilities.chunks_exact(classes).map(|row| row[class]).collect();
        let positives: Vec<bool> = targets.iter().map(|&target| target == class).collect();
        per_class.push(against_the_rest(&confusion, class, ranking::auc(&scores, &positives)?));
        progress::tick()?;
    }
    Ok(together(confusion, per_class))
}

/// The index of the largest element, the first of equal ones.
pub fn likeliest(row: &[f64]) -> usize {
    (1..row.len()).fold(0, |best, at| if row[at] > row[best] { at } else { best })
}

fn against_the_rest(confusion: &[Vec<u64>], class: usize, auc: Option<f64>) -> ClassFigures {
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    let right = confusion[class][class];
    let support: u64 = confusion[class].iter().sum();
    let called: u64 = confusion.iter().map(|row| row[class]).sum();
    let all: u64 = confusion.iter().flatten().sum();
    ClassFigures {
        precision: share(right, called),
        sensitivity: share(right, support),
        specificity: share(all - support - (called - right), all - support),
        f1: share(2 * right, support + called),
        auc,
        support,
    }
}

fn together(confusion: Vec<Vec<u64>>, per_class: Vec<ClassFigures>) -> Classification {
    let classes = per_class.len();
    let right: u64 = (0..classes).map(|class| confusion[class][class]).sum();
    let all: u64 = per_class.iter().map(|class| class.support).sum();
    let occurs = |class: usize| confusion.iter().any(|row| row[class] > 0);
    let told = |class: &usize| per_class[*class].support > 0 || occurs(*class);
    let told: Vec<&ClassFigures> =
        (0..classes).filter(told).map(|class| &per_class[class]).collect();
    let figure = |of: fn(&ClassFigures) -> f64| match classes {
        2 => of(&per_class[1]),
        _ => mean(told.iter().map(|class| of(class))).unwrap_or(0.0),
    };
    let present = per_class.iter().filter(|class| class.support > 0);
    Classification {
        accuracy: right as f64 / all as f64,
        balanced_accuracy: mean(present.map(|class| class.sensitivity)).unwrap_or(0.0),
        precision: figure(|class| class.precision),
        sensitivity: figure(|class| class.sensitivity),
        specificity: figure(|class| class.specificity),
        f1: figure(|class| class.f1),
        auc: match classes {
            2 => per_class[1].auc,
            _ => mean(per_class.iter().filter_map(|class| class.auc)),
        },
        per_class,
        confusion,
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities that answer with these classes.
    fn answers(classes: usize, given: &[usize]) -> Vec<f64> {
        let cell = |answer, class| if answer == class { 0.75 } else { 0.25 / classes as f64 };
        given
            .iter()
            .flat_map(|&answer| (0..classes).map(move |class| cell(answer, class)))
            .collect()
    }

    #[test]
    fn two_classes_are_class_one() {
        let probabilities = answers(2, &[1, 1, 0, 0, 0]);
        let found = classification(&probabilities, 2, &[1, 0, 1, 0, 0]).unwrap();
        assert_eq!(found.confusion, [[2, 1], [1, 1]]);
        assert_eq!((found.accuracy, found.precision, found.sensitivity), (0.6, 0.5, 0.5));
        assert_eq!((found.specificity, found.f1), (2.0 / 3.0, 0.5));
        assert_eq!(found.auc, Some(3.5 / 6.0));
        assert_eq!(found.balanced_accuracy, (0.5 + 2.0 / 3.0) / 2.0);
        assert_eq!((found.count(), found.per_class[0].support), (5, 3));
    }

    #[test]
    fn a_class_that_is_absent_or_alone_has_no_area() {
        let found = classification(&answers(3, &[0, 1, 1]), 3, &[0, 1, 0]).unwrap();
        assert!(found.per_class[0].auc.is_some() && found.per_class[2].auc.is_none());
        let of = |class: usize| found.per_class[class].auc.unwrap();
        assert_eq!(found.auc, Some((of(0) + of(1)) / 2.0));
        // Class 2 occurs nowhere: no mean counts it.
        assert_eq!(found.precision, (1.0 + 0.5) / 2.0);
        let alone = classification(&answers(3, &[0, 1]), 3, &[0, 0]).unwrap();
        assert_eq!(alone.auc, None);
        assert_eq!((alone.balanced_accuracy, alone.sensitivity), (0.5, 0.25));
        assert_eq!(alone.figures()[6], ("auc", None));
    }

    #[test]
    fn of_equal_ones_the_first() {
        assert_eq!((likeliest(&[0.2, 0.4, 0.4]), likeliest(&[0.5, 0.5])), (1, 0));
    }

    #[test]
    fn what_cannot_be_measured() {
        let code = |p: &[f64], k, t: &[usize]| classification(p, k, t).unwrap_err().code();
        assert_eq!(code(&[], 2, &[]), 3);
        assert_eq!(code(&[0.5, f64::NAN], 2, &[0]), 6);
        assert_eq!(code(&[0.5, 0.5], 2, &[2]), 70);
        assert_eq!(code(&[0.5, 0.5, 0.0], 2, &[0]), 70);
        assert_eq!(code(&[0.5, 0.5], 2, &[0, 1]), 70);
        assert_eq!(code(&[1.0], 1, &[0]), 70);
        let error = classification(&[0.5, 0.5, 0.5, f64::NAN], 2, &[0, 1]).unwrap_err();
        assert!(error.to_string().starts_with("the probability of sample 1 is NaN"), "{error}");
    }

    #[test]
    fn names() {
        let mut registry = Registry::new();
        register(&mut registry, 3).unwrap();
        for (name, _) in classification(&[0.5, 0.5], 2, &[0]).unwrap().figures() {
            registry.lookup(&format!("val_{name}")).unwrap();
        }
        assert_eq!(registry.lookup("Val_AUC").unwrap().name, "auc");
        assert_eq!(registry.specs().len(), 7);
    }
}
