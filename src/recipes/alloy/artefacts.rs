//! What a finished run leaves beside its checkpoints: figures, predictions in real units beside the
//! true values, and the pictures people look at.

use super::pictures::draw;
use super::sections::Sections;
use super::table::samples::{Sample, Samples};
use super::table::target::Target;
use super::task::{TextTask, classes_of};
use crate::data::plan::MicroBatch;
use crate::error::{Error, Result};
use crate::files;
use crate::metrics::classification::likeliest;
use crate::metrics::table::Table;
use crate::progress;
use crate::recipes::running::Work;
use crate::recipes::using::{evaluate_part, figures, quoted};
use crate::train::evaluate::{Evaluation, EvaluationPlan};
use crate::train::fit::Plans;
use crate::train::task::Part;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

/// Beyond so many samples the training part is not predicted for the pictures.
const MOST_TRAIN: usize = 20_000;

/// Measures the best weights, which the task holds, once more and writes everything.
pub fn write(
    sections: &Sections,
    work: &Work,
    task: &TextTask,
    plans: &Plans,
    samples: &Samples,
) -> Result<()> {
    let session = work.session;
    let mut results = Map::new();
    let mut measured: Vec<(Part, Evaluation)> = Vec::new();
    for plan in [&train_plan(plans, samples), &plans.val, &plans.test] {
        if plan.micro_batches.is_empty() {
            continue;
        }
        let evaluation = evaluate_part(task, &sections.shared, session, plan)?;
        results.insert(plan.part.name().into(), Value::Object(figures(task, &evaluation)));
        measured.push((plan.part, evaluation));
    }
    session.console.finish();
    progress::enter("writing predictions and pictures");
    session.world.comm.decide(|| {
        let dir = &work.dir;
        for (part, evaluation) in &measured {
            let name = format!("predictions_{}.csv", part.name());
            let rows = part_of(samples, *part);
            write_predictions(&dir.join(name), &samples.target, rows, &evaluation.table)?;
            if let (Target::Classes { names, .. }, Part::Val | Part::Test) = (&samples.target, part)
            {
                let found = classes_of(&evaluation.table, names.len())?;
                results.insert(
                    format!("{}_confusion", part.name()),
                    json!({"classes": names, "rows_are_true_columns_predicted": found.confusion}),
                );
            }
        }
        draw(dir, &samples.target, &measured, &session.console)?;
        let text = format!("{:#}\n", Value::Object(results));
        files::write_text(&dir.join("evaluation.json"), &text)
    })
}

/// The training part in the order of its samples, as far as it is predicted.
fn train_plan(plans: &Plans, samples: &Samples) -> EvaluationPlan {
    let all: Vec<MicroBatch> = if samples.train.len() > MOST_TRAIN {
        Vec::new()
    } else {
        plans.train.evaluation().into_iter().flat_map(|step| step.micro_batches).collect()
    };
    EvaluationPlan { part: Part::Train, micro_batches: Arc::new(all) }
}

fn part_of(samples: &Samples, part: Part) -> &[Sample] {
    match part {
        Part::Train => &samples.train,
        Part::Val => &samples.val,
        Part::Test => &samples.test,
    }
}

/// The header of a file of predictions, without the columns in front.
pub fn header(target: &Target) -> String {
    match target {
        Target::Regression { name, .. } => quoted(&format!("predicted {name}")),
        Target::Classes { names, .. } => {
            let p: Vec<String> = names.iter().map(|name| quoted(&format!("p_{name}"))).collect();
            format!("predicted,{}", p.join(","))
        }
    }
}

/// The columns of one prediction: a value in real units, or class and probabilities.
pub fn columns(target: &Target, row: &[f64]) -> String {
    match target {
        Target::Regression { .. } => format!("{}", target.real(row[0])),
        Target::Classes { names, .. } => {
            let own = &row[..names.len()];
            let mut text = quoted(&names[likeliest(own)]);
            own.iter().for_each(|p| {
                // Writing to a string cannot fail.
                let _ = write!(text, ",{p:.6}");
            });
            text
        }
    }
}

/// CSV: id, true value as in the table, prediction.
fn write_predictions(
    path: &Path,
    target: &Target,
    samples: &[Sample],
    table: &Table,
) -> Result<()> {
    let truth = match target {
        Target::Regression { name, .. } => quoted(&format!("true {name}")),
        Target::Classes { .. } => "true".to_string(),
    };
    let mut failed = None;
    let written = files::write_atomic(path, |out| {
        writeln!(out, "id,{truth},{}", header(target))?;
        for (sample, row) in table.rows() {
            let Some(own) = samples.get(sample as usize) else {
                failed =
                    Some(Error::bug(format!("prediction of a sample {sample} that is not there")));
                return Ok(());
            };
            let truth = match target {
                Target::Regression { .. } => own.target_raw.clone(),
                Target::Classes { names, .. } => names[own.target as usize].clone(),
            };
            writeln!(out, "{},{},{}", quoted(&own.id), quoted(&truth), columns(target, row))?;
        }
        Ok(())
    });
    match failed {
        Some(error) => Err(error),
        None => written,
    }
}
