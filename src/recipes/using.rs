//! What the use of a trained model has in common in every recipe: which checkpoint, how it is
//! measured, where results go.

use super::running::Shared;
use super::{Session, UseArgs};
use crate::dist::heartbeat::HEARTBEATS;
use crate::error::{Error, Result};
use crate::files;
use crate::torch::{Params, WeightFile};
use crate::train::evaluate::{Evaluation, EvaluationPlan, evaluate};
use crate::train::fit::Plans;
use crate::train::task::Task;
use crate::train::{checkpoint, records, run_dir};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The checkpoint that a command uses, by default the best of the newest run; verified where it is
/// one of ours.
pub fn find_checkpoint(shared: &Shared, session: &Session, args: &UseArgs) -> Result<PathBuf> {
    let run = &shared.run;
    session.world.comm.decide(|| {
        let dir = match &args.checkpoint {
            Some(path) => run_dir::best_of(path),
            None => {
                let runs = run_dir::list(&run.output_dir, &run.name)?;
                let best = runs.iter().map(|r| r.join("best.ckpt")).find(|p| p.exists());
                best.ok_or_else(|| {
                    Error::damaged(format!("no run called {} has a best checkpoint", run.name))
                        .at(run.output_dir.display())
                        .hint("train first, or name one with --checkpoint")
                })?
            }
        };
        if dir.join("manifest.json").exists() {
            checkpoint::verify(&dir)?;
        }
        Ok(dir)
    })
}

/// Puts a model's weights into `params`, each of them and nothing else; gives their number.
pub fn load_all(params: &Params, path: &Path, unused: impl Fn(&str) -> bool) -> Result<usize> {
    let file = WeightFile::open(&run_dir::best_of(path))?;
    let report = params.load(&file, |name| (!unused(name)).then(|| name.to_string()))?;
    report.strict(&file)?;
    Ok(report.loaded)
}

/// Does the work of `evaluate` with the watchdog on, where there are ranks to watch.
pub fn watched(
    shared: &Shared,
    session: &Session,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    if session.world.size() == 1 {
        return work();
    }
    let home = shared.run.output_dir.join(HEARTBEATS);
    let dir = session.world.comm.decide(|| Ok(files::temporary_name(&home)))?;
    session.watched(&dir, &shared.distributed, work)
}

/// One evaluation, with a line of progress.
pub fn evaluate_part<T: Task>(
    task: &T,
    shared: &Shared,
    session: &Session,
    plan: &EvaluationPlan,
) -> Result<Evaluation> {
    let workers = shared.training.num_workers;
    evaluate(task, &session.world.comm, plan, workers, |done, total| {
        let text = format!("evaluating {} {done}/{total}", plan.part.name());
        session.console.progress(done as u64, total as u64, &text);
    })
}

/// Writes a checkpoint's loss and figures on the validation and test parts, as JSON.
pub fn measure<T: Task>(
    task: &T,
    (shared, session): (&Shared, &Session),
    plans: &Plans,
    checkpoint: &Path,
    args: &UseArgs,
) -> Result<()> {
    let mut results = Map::new();
    results.insert("checkpoint".into(), json!(checkpoint));
    for plan in [&plans.val, &plans.test] {
        if plan.micro_batches.is_empty() {
            continue;
        }
        let evaluation = evaluate_part(task, shared, session, plan)?;
        let mut one = figures(task, &evaluation);
        if task.has_perplexity() {
            let perplexity = one.get("loss").and_then(Value::as_f64).map(f64::exp);
            one.insert("preplexity".into(), json!(perplexity));
        }
        results.insert(plan.part.name().into(), Value::Object(one));
    }
    session.console.finish();
    if session.world.rank() == 0 {
        write_text(args, &format!("{:#}\n", Value::Object(results)))?;
        say_written(session, args);
    }
    Ok(())
}

/// The loss and every figure of an evaluation, as JSON.
pub fn figures<T: Task>(task: &T, evaluation: &Evaluation) -> Map<String, Value> {
    let additive = &evaluation.additive;
    let mut one = Map::new();
    one.insert("loss".into(), json!(records::loss(additive, &task.terms())));
    for name in task.figures() {
        one.insert(name.into(), json!(additive.mean(name)));
    }
    for (name, value) in &evaluation.figures {
        one.insert(name.clone(), json!(value));
    }
    one.insert("samples".into(), json!(additive.total("samples").sum as u64));
    one
}

/// Writes to `--output`, or to standard output.
pub fn write_text(args: &UseArgs, text: &str) -> Result<()> {
    match &args.output {
        Some(path) => files::write_text(path, text),
        None => files::print(text),
    }
}

/// Says where results went, if not to standard output.
pub fn say_written(session: &Session, args: &UseArgs) {
    if let Some(path) = &args.output {
        session.console.line(&format!("written: {}", path.display()));
    }
}

/// A CSV field.
pub fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text.to_string()
}
