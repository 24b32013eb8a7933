//! Metrics against scikit-learn's and SciPy's on the same predictions; `tests/golden/metrics/` says
//! how those were made. Nothing here needs Python or libtorch.

use serde::Deserialize;
use std::path::Path;
use trainer::metrics::classification::{Classification, classification};
use trainer::metrics::ranking::{pearson, roc_curve, spearman};
use trainer::metrics::regression::regression;

/// Largest difference from scikit-learn, relative to the figure where that is above 1.
const TOLERANCE: f64 = 1e-9;

fn cases<T: for<'de> Deserialize<'de>>(name: &str) -> Vec<T> {
    let root = std::env::var_os("TRAINER_TEST_ROOT").map(std::path::PathBuf::from);
    let root = root.unwrap_or(Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf());
    let path = root.join("tests/golden/metrics").join(name);
    serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap()
}

/// `None` expects NaN.
#[track_caller]
fn close(what: &str, found: f64, expected: Option<f64>) {
    match expected {
        None => assert!(found.is_nan(), "{what}: {found}, expected NaN"),
        Some(x) => {
            let room = TOLERANCE * x.abs().max(1.0);
            assert!((found - x).abs() <= room, "{what}: {found}, expected {x}");
        }
    }
}

/// `None` expects that there is no such figure.
#[track_caller]
fn close_or_none(what: &str, found: Option<f64>, expected: Option<f64>) {
    assert_eq!(found.is_some(), expected.is_some(), "{what}: {found:?}, expected {expected:?}");
    if let Some(found) = found {
        close(what, found, expected);
    }
}

#[derive(Deserialize)]
struct RegressionCase {
    name: String,
    predictions: Vec<f64>,
    targets: Vec<f64>,
    mae: Option<f64>,
    mse: Option<f64>,
    rmse: Option<f64>,
    r2: Option<f64>,
    pearson: Option<f64>,
    spearman: Option<f64>,
}

#[test]
fn regression_is_scikit_learns() {
    let cases: Vec<RegressionCase> = cases("regression.json");
    assert!(cases.len() > 30);
    for case in &cases {
        let (p, t) = (&case.predictions, &case.targets);
        let found = regression(p, t).unwrap();
        assert_eq!(found.count, t.len());
        let expected = [case.mae, case.mse, case.rmse, case.r2];
        for ((figure, value), expected) in found.figures().into_iter().zip(expected) {
            close(&format!("{}: {figure}", case.name), value, expected);
        }
        close(&format!("{}: pearson", case.name), pearson(p, t).unwrap(), case.pearson);
        close(&format!("{}: spearman", case.name), spearman(p, t).unwrap(), case.spearman);
    }
    let nan = |of: fn(&RegressionCase) -> Option<f64>| cases.iter().any(|c| of(c).is_none());
    assert!(nan(|c| c.r2) && nan(|c| c.pearson) && nan(|c| c.spearman), "no case expects NaN");
}

#[derive(Deserialize)]
struct PerClass {
    precision: Vec<f64>,
    sensitivity: Vec<f64>,
    specificity: Vec<f64>,
    f1: Vec<f64>,
    auc: Vec<Option<f64>>,
}

#[derive(Deserialize)]
struct Curve {
    fpr: Vec<f64>,
    tpr: Vec<f64>,
    threshold: Vec<Option<f64>>,
}

#[derive(Deserialize)]
struct ClassificationCase {
    name: String,
    classes: usize,
    probabilities: Vec<f64>,
    targets: Vec<usize>,
    accuracy: f64,
    balanced_accuracy: f64,
    precision: f64,
    sensitivity: f64,
    specificity: f64,
    f1: f64,
    auc: Option<f64>,
    confusion: Vec<Vec<u64>>,
    per_class: PerClass,
    curves: Option<Vec<Option<Curve>>>,
}

impl ClassificationCase {
    fn check_figures(&self, found: &Classification) {
        let expected = [
            Some(self.accuracy),
            Some(self.balanced_accuracy),
            Some(self.precision),
            Some(self.sensitivity),
            Some(self.specificity),
            Some(self.f1),
            self.auc,
        ];
        for ((figure, value), expected) in found.figures().into_iter().zip(expected) {
            close_or_none(&format!("{}: {figure}", self.name), value, expected);
        }
        assert_eq!(found.confusion, self.confusion, "{}", self.name);
        let each = &self.per_class;
        for (k, class) in found.per_class.iter().enumerate() {
            let what = format!("{}: class {k}", self.name);
            close(&what, class.precision, Some(each.precision[k]));
            close(&what, class.sensitivity, Some(each.sensitivity[k]));
            close(&what, class.specificity, Some(each.specificity[k]));
            close(&what, class.f1, Some(each.f1[k]));
            close_or_none(&what, class.auc, each.auc[k]);
            assert_eq!(class.support, self.confusion[k].iter().sum::<u64>(), "{what}");
        }
    }

    /// How many curves were compared.
    fn check_curves(&self) -> usize {
        let expected = self.curves.iter().flatten();
        let compared = expected.enumerate().map(|(k, expected)| {
            let scores: Vec<f64> =
                self.probabilities.chunks_exact(self.classes).map(|row| row[k]).collect();
            let positives: Vec<bool> = self.targets.iter().map(|&t| t == k).collect();
            let found = roc_curve(&scores, &positives).unwrap();
            assert_eq!(found.is_some(), expected.is_some(), "{}: class {k}", self.name);
            let (Some(found), Some(expected)) = (found, expected) else { return 0 };
            assert_eq!(found.len(), expected.fpr.len(), "{}: points, class {k}", self.name);
            for (at, point) in found.iter().enumerate() {
                let what = format!("{}: class {k}, point {at}", self.name);
                close(&what, point.false_positive_rate, Some(expected.fpr[at]));
                close(&what, point.true_positive_rate, Some(expected.tpr[at]));
                assert_eq!(point.threshold, expected.threshold[at].unwrap_or(f64::INFINITY));
            }
            1
        });
        compared.sum()
    }
}

#[test]
fn classification_is_scikit_learns() {
    let cases: Vec<ClassificationCase> = cases("classification.json");
    assert!(cases.len() > 70);
    let mut curves = 0;
    for case in &cases {
        let found = classification(&case.probabilities, case.classes, &case.targets).unwrap();
        case.check_figures(&found);
        curves += case.check_curves();
    }
    assert!(curves > 100, "{curves} curves");
    assert!(cases.iter().any(|case| case.auc.is_none()), "no case is without an area");
}
