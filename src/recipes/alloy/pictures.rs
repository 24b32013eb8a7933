//! The pictures and tables of a finished run: predicted against true, confusion matrix, ROC curves.

use super::table::columns::base_name;
use super::table::target::Target;
use super::task::classes_of;
use crate::error::Result;
use crate::metrics::regression::{Regression, regression};
use crate::report::console::Console;
use crate::report::plots::{ConfusionPicture, Points, PredictedTrue, RocPicture};
use crate::report::scores::{classification_table, confusion_table, regression_table};
use crate::train::evaluate::Evaluation;
use crate::train::task::Part;
use std::path::Path;

/// A part's predictions and true values in real units.
struct Real {
    truth: Vec<f64>,
    predicted: Vec<f64>,
}

impl Real {
    fn of(target: &Target, evaluation: &Evaluation) -> Real {
        let real = |column: usize| -> Vec<f64> {
            evaluation.table.column(column).iter().map(|v| target.real(*v)).collect()
        };
        Real { predicted: real(0), truth: real(1) }
    }

    fn points<'a>(&'a self, name: &'a str) -> Points<'a> {
        Points { name, truth: &self.truth, predicted: &self.predicted }
    }
}

/// Draws into `dir` and prints what people want to see at the end of a run.
pub fn draw(
    dir: &Path,
    target: &Target,
    measured: &[(Part, Evaluation)],
    console: &Console,
) -> Result<()> {
    match target {
        Target::Regression { name, unit, .. } => {
            draw_regression(dir, target, (name, unit.as_deref()), measured, console)
        }
        Target::Classes { name, names } => draw_classes(dir, name, names, measured, console),
    }
}

fn draw_regression(
    dir: &Path,
    target: &Target,
    (name, unit): (&str, Option<&str>),
    measured: &[(Part, Evaluation)],
    console: &Console,
) -> Result<()> {
    let parts: Vec<(Part, Real)> =
        measured.iter().map(|(part, own)| (*part, Real::of(target, own))).collect();
    let train = parts.iter().find(|(part, _)| *part == Part::Train);
    let mut scores: Vec<(&str, Regression)> = Vec::new();
    for (part, real) in &parts {
        scores.push((part.name(), regression(&real.predicted, &real.truth)?));
        if *part == Part::Train {
            continue;
        }
        let picture = PredictedTrue {
            title: base_name(name),
            quantity: base_name(name),
            unit: unit.unwrap_or_default(),
            train: train.map(|(_, real)| real.points("train")),
            validation: real.points(part.name()),
        };
        picture.write(&dir.join(format!("predicted_vs_true_{}", part.name())))?;
    }
    console.line(&regression_table(&scores, unit.unwrap_or("as in the table")));
    Ok(())
}

fn draw_classes(
    dir: &Path,
    name: &str,
    names: &[String],
    measured: &[(Part, Evaluation)],
    console: &Console,
) -> Result<()> {
    for (part, evaluation) in measured.iter().filter(|(part, _)| *part != Part::Train) {
        let found = classes_of(&evaluation.table, names.len())?;
        let title = format!("{}, {}", base_name(name), part.name());
        ConfusionPicture { title: &title, classes: names, counts: &found.confusion }
            .write(&dir.join(format!("confusion_matrix_{}", part.name())))?;
        let (probabilities, targets) =
            super::task::probabilities_of(&evaluation.table, names.len());
        RocPicture {
            title: &title,
            classes: names,
            probabilities: &probabilities,
            targets: &targets,
        }
        .write(&dir.join(format!("roc_{}", part.name())))?;
        console.line(&format!("{}:\n{}", part.name(), classification_table(&found, names)));
        console.line(&confusion_table(&found.confusion, names));
    }
    Ok(())
}
