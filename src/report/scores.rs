//! Figures of an evaluation as plain tables, for people at a terminal.

use super::console::table;
use super::step_line::{count, figure};
use crate::metrics::classification::Classification;
use crate::metrics::regression::Regression;

/// What stands where there is no figure.
const NONE: &str = "-";

/// A row for each part of the data: how many samples, and the figures of [`Regression`]. Units are
/// said in `unit` (`MPa`); empty for none.
pub fn regression_table(parts: &[(&str, Regression)], unit: &str) -> String {
    let squared = if unit.is_empty() { String::new() } else { format!(" ({unit}^2)") };
    let plain = if unit.is_empty() { String::new() } else { format!(" ({unit})") };
    let heads = [format!("MAE{plain}"), format!("MSE{squared}"), format!("RMSE{plain}")];
    let [mae, mse, rmse] = heads.each_ref().map(String::as_str);
    let rows: Vec<Vec<String>> = parts
        .iter()
        .map(|(part, of)| {
            let figures = [of.mae, of.mse, of.rmse].map(figure);
            let [mae, mse, rmse] = figures;
            vec![part.to_string(), count(of.count as u64), mae, mse, rmse, share(Some(of.r2))]
        })
        .collect();
    table(&["part", "n", mae, mse, rmse, "R2"], &rows)
}

/// A row for each class and one for all: precision, sensitivity, specificity, F1, AUC and the number
/// of samples. Class names are in the order of the classes' numbers.
pub fn classification_table(of: &Classification, classes: &[String]) -> String {
    let mut rows: Vec<Vec<String>> = of
        .per_class
        .iter()
        .enumerate()
        .map(|(class, figures)| {
            let shares =
                [figures.precision, figures.sensitivity, figures.specificity, figures.f1].map(Some);
            row(name(classes, class), shares, figures.auc, figures.support)
        })
        .collect();
    let all = [of.precision, of.sensitivity, of.specificity, of.f1].map(Some);
    // What stands in records: with two classes the second one's, which the table already has.
    if of.per_class.len() > 2 {
        rows.push(row("macro".to_string(), all, of.auc, of.count()));
    }
    let heads = ["class", "precision", "sensitivity", "specificity", "F1", "AUC", "n"];
    let last = format!(
        "accuracy {}, balanced accuracy {}, n = {}",
        share(Some(of.accuracy)),
        share(Some(of.balanced_accuracy)),
        count(of.count())
    );
    format!("{}\n{last}", table(&heads, &rows))
}

/// How many samples of each class, a row each, were called which class, a column each.
pub fn confusion_table(counts: &[Vec<u64>], classes: &[String]) -> String {
    let names: Vec<String> = (0..counts.len()).map(|class| name(classes, class)).collect();
    let heads: Vec<&str> =
        std::iter::once("true \\ predicted").chain(names.iter().map(String::as_str)).collect();
    let rows: Vec<Vec<String>> = counts
        .iter()
        .zip(&names)
        .map(|(row, name)| {
            std::iter::once(name.clone()).chain(row.iter().map(|n| count(*n))).collect()
        })
        .collect();
    table(&heads, &rows)
}

fn row(name: String, shares: [Option<f64>; 4], auc: Option<f64>, samples: u64) -> Vec<String> {
    let shares = shares.into_iter().chain([auc]).map(share);
    std::iter::once(name).chain(shares).chain([count(samples)]).collect()
}

/// A class's name on one line; its number where it has none.
fn name(classes: &[String], class: usize) -> String {
    let name = classes.get(class).map_or(String::new(), |name| {
        name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    });
    if name.trim().is_empty() { format!("class {class}") } else { name }
}

fn share(value: Option<f64>) -> String {
    value.filter(|value| value.is_finite()).map_or(NONE.to_string(), |value| format!("{value:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::classification::classification;
    use crate::metrics::regression::regression;

    #[test]
    fn regression_in_units() {
        let train = regression(&[100.0, 250.0], &[110.0, 230.0]).unwrap();
        let alone = regression(&[1.0], &[2.0]).unwrap();
        let text = regression_table(&[("train", train), ("val", alone)], "MPa");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "part   n  MAE (MPa)  MSE (MPa^2)  RMSE (MPa)     R2");
        assert_eq!(lines[1], "train  2         15          250        15.8  0.931");
        assert_eq!(lines[2], "val    1          1            1           1      -");
    }

    #[test]
    fn classes_and_their_mean() {
        let probabilities = [0.8, 0.1, 0.1, 0.1, 0.8, 0.1, 0.3, 0.6, 0.1];
        let found = classification(&probabilities, 3, &[0, 1, 0]).unwrap();
        let classes = ["FCC", "B\nCC", ""].map(String::from);
        let text = classification_table(&found, &classes);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "class    precision  sensitivity  specificity     F1    AUC  n");
        assert_eq!(lines[1], "FCC          1.000        0.500        1.000  0.667  1.000  2");
        assert_eq!(lines[2], "B CC         0.500        1.000        0.500  0.667  1.000  1");
        assert_eq!(lines[3], "class 2      0.000        0.000        1.000  0.000      -  0");
        assert_eq!(lines[4], "macro        0.750        0.750        0.750  0.667  1.000  3");
        assert_eq!(lines[5], "accuracy 0.667, balanced accuracy 0.750, n = 3");
        let text = confusion_table(&found.confusion, &classes);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "true \\ predicted  FCC  B CC  class 2");
        assert_eq!(lines[1], "FCC                 1     1        0");
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn two_classes_need_no_mean() {
        let found = classification(&[0.8, 0.2, 0.1, 0.9], 2, &[0, 1]).unwrap();
        let text = classification_table(&found, &["a", "b"].map(String::from));
        assert!(!text.contains("macro") && text.lines().count() == 4, "{text}");
    }
}
