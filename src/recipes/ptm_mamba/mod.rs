//! Recipe `ptm_mamba`: a protein language model with PTM tokens and ESM-2's embeddings.
//!
//! - `samples`: the user's file to samples
//! - `embeddings`: where ESM's embeddings come from
//! - `task`: masked language modelling
//! - `setup`: configuration to data, model and embedding job
//! - `predict`: a trained model on new data
//! - `synthetic`: a small data set with planted motifs

mod embeddings;
mod predict;
mod samples;
mod setup;
mod synthetic;
mod task;

use super::session::Compute;
use super::{Recipe, Session, UseArgs, platform};
use crate::config::{ConfigFile, Dataset, Esm, GreaterIsBetter};
use crate::dist::heartbeat::HEARTBEATS;
use crate::dist::restarts;
use crate::embed;
use crate::error::{Error, Result};
use crate::files;
use crate::metrics::registry::{Direction, Merge, Registry};
use crate::progress;
use crate::report::step_line::{count, counted, duration, rate};
use crate::train::evaluate::evaluate;
use crate::train::fit::{Plans, Settings, fit};
use crate::train::run_dir::{self, RunDir, STARTS};
use crate::train::task::{Part, Task};
use serde_json::{Map, Value, json};
use setup::{Sections, Setup};
use std::path::Path;

/// What a file of PTM sequences holds, and the residues of its longest protein.
pub fn describe(path: &Path, dataset: &Dataset, esm: &Esm) -> Result<(String, usize)> {
    let samples = samples::Samples::from_file(path, dataset, esm, &std::env::temp_dir())?;
    let (commonest, ptm) = samples.commonest_ptm();
    let longest = samples.samples.iter().map(|s| s.esm_ids.len()).max().unwrap_or(0);
    let mut lines = samples.notes.clone();
    lines.push(format!(
        "{} proteins, the longest {longest}, {} PTM tokens, the commonest {:.1} % of them",
        count(samples.ids.len() as u64),
        count(ptm),
        100.0 * commonest
    ));
    Ok((lines.join("\n"), longest))
}

/// See the module.
pub struct PtmMambaRecipe;

/// The metrics of this recipe.
fn registry() -> Result<Registry> {
    let mut registry = Registry::new();
    registry.add("loss", Direction::Lower, Merge::Additive, "cross entropy of hidden tokens")?;
    registry.add("acc", Direction::Higher, Merge::Additive, "hidden tokens found")?;
    registry.add("ptm_acc", Direction::Higher, Merge::Additive, "hidden PTM tokens found")?;
    Ok(registry)
}

impl Recipe for PtmMambaRecipe {
    fn name(&self) -> &'static str {
        "ptm_mamba"
    }

    fn needs_cache(&self, config: &ConfigFile) -> Result<bool> {
        let sections = Sections::read(config)?;
        let training = &sections.training;
        Ok(training.use_esm
            && training.use_precomputed_embeddings
            && training.embeddings_dir.is_none())
    }

    fn dry_run(&self, config: &ConfigFile, session: &Session) -> Result<()> {
        let sections = Sections::read(config)?;
        session.console.line(&crate::config::write_yaml(&sections.resolved()?));
        let compute = sections.compute(session, None)?;
        let setup = Setup::for_shapes(&sections, session, &compute)?;
        session.console.line(&setup.describe_data());
        session.console.line(&setup.describe_plan(&sections)?);
        let params = setup.shapes(&sections)?;
        session.console.line(&format!("model: {} parameters", count(params as u64)));
        Ok(())
    }

    fn describe_plan(&self, config: &ConfigFile, session: &Session) -> Result<String> {
        let sections = Sections::read(config)?;
        let compute = sections.compute(session, None)?;
        Setup::for_shapes(&sections, session, &compute)?.describe_plan(&sections)
    }

    fn embed(&self, config: &ConfigFile, session: &Session, part: (usize, usize)) -> Result<()> {
        let sections = Sections::read(config)?;
        let compute = sections.compute(session, None)?;
        let dir = sections.cache_dir();
        let work = || embed(&sections, session, &compute, part);
        let heartbeats = dir.join(embed::side_name(HEARTBEATS, part));
        let is_finished = session.world.comm.decide(|| {
            let finished = dir.join("manifest.json").exists();
            if finished {
                // A job that was killed as it left has left these behind.
                let _ = std::fs::remove_dir_all(&heartbeats);
            }
            Ok(finished)
        })?;
        // A finished cache may lie where nothing can be written.
        if is_finished {
            return work();
        }
        session.watched(&heartbeats, &sections.distributed, work)
    }

    fn train(&self, config: &ConfigFile, session: &Session, fresh: bool) -> Result<()> {
        let sections = Sections::read(config)?;
        metric(&sections)?;
        let resolved = sections.resolved()?;
        session.agree_on(&resolved)?;
        let identity = crate::config::identity(&resolved);
        let run = &sections.run;
        progress::enter("finding the run");
        let run_dir = session
            .world
            .comm
            .decide(|| run_dir::find_or_make(&run.output_dir, &run.name, &identity, fresh))?;
        session.watched(&run_dir.path.join(HEARTBEATS), &sections.distributed, || {
            train(&sections, session, resolved, identity, run_dir.clone())
        })
    }

    fn evaluate(&self, config: &ConfigFile, session: &Session, args: &UseArgs) -> Result<()> {
        let sections = Sections::read(config)?;
        if session.world.size() == 1 {
            return measure(&sections, session, args);
        }
        let home = sections.run.output_dir.join(HEARTBEATS);
        let dir = session.world.comm.decide(|| Ok(files::temporary_name(&home)))?;
        session.watched(&dir, &sections.distributed, || measure(&sections, session, args))
    }

    fn predict(&self, config: &ConfigFile, session: &Session, args: &UseArgs) -> Result<()> {
        predict::run(&Sections::read(config)?, session, args)
    }

    fn sample(&self, dir: &Path, seed: u64) -> Result<String> {
        synthetic::write(dir, seed)
    }
}

/// Makes the embedding cache, or what is missing of it, and says how fast.
fn embed(
    sections: &Sections,
    session: &Session,
    compute: &Compute,
    part: (usize, usize),
) -> Result<()> {
    let (ended, summary) = setup::embed(sections, session, compute, part)?;
    let residues = session.world.comm.all_gather(summary.residues.to_le_bytes().to_vec())?;
    let residues: u64 = residues
        .into_iter()
        .filter_map(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)))
        .sum();
    if session.world.rank() == 0 && residues > 0 {
        let seconds = summary.seconds;
        session.console.line(&format!(
            "{} residues in {}, {} residues/s",
            count(residues),
            duration(seconds),
            rate(residues as f64 / seconds)
        ));
        let line = json!({
            "residues": residues, "forward_seconds": summary.forward_seconds,
            "total_seconds": seconds,
        });
        files::print(&format!("{line}\n"))?;
    }
    let dir = sections.cache_dir();
    session.console.line(&match ended {
        embed::Ended::Complete => format!("done: {}", dir.display()),
        embed::Ended::PartDone => format!(
            "this part is done; {0} is finished by the last part, or by `trainer inspect {0} --finish`",
            dir.display(),
        ),
    });
    Ok(())
}

/// A checkpoint's loss and figures on the validation and test parts, as JSON.
fn measure(sections: &Sections, session: &Session, args: &UseArgs) -> Result<()> {
    let comm = &session.world.comm;
    let compute = sections.compute(session, None)?;
    let setup = Setup::new(sections, session, &compute)?;
    let plans: Plans = setup.plans(sections, comm)?;
    let task = setup.task(sections, comm)?;
    let checkpoint = setup::load_weights(sections, session, args, &task.params)?;
    let mut results = Map::new();
    results.insert("checkpoint".into(), json!(checkpoint));
    for plan in [&plans.val, &plans.test] {
        if plan.micro_batches.is_empty() {
            continue;
        }
        let workers = sections.training.num_workers;
        let metrics = evaluate(&task, comm, plan, workers, |done, total| {
            let text = format!("evaluating {} {done}/{total}", plan.part.name());
            session.console.progress(done as u64, total as u64, &text);
        })?;
        let loss = crate::train::records::loss(&metrics, &task.terms());
        let mut one = Map::new();
        one.insert("loss".into(), json!(loss));
        one.insert("preplexity".into(), json!(loss.map(f64::exp)));
        for name in task.figures() {
            one.insert(name.into(), json!(metrics.mean(name)));
        }
        one.insert("samples".into(), json!(metrics.total("samples").sum as u64));
        results.insert(plan.part.name().into(), Value::Object(one));
    }
    session.console.finish();
    if session.world.rank() == 0 {
        predict::write_text(args, &format!("{:#}\n", Value::Object(results)))?;
        predict::say_written(session, args);
    }
    Ok(())
}

/// Trains in a run directory that this job has for itself.
fn train(
    sections: &Sections,
    session: &Session,
    resolved: Value,
    identity: String,
    run_dir: RunDir,
) -> Result<()> {
    session.world.comm.decide(|| {
        let at = setup::last_step(&run_dir.path);
        restarts::note(&run_dir.path.join(STARTS), at, "steps")
    })?;
    let stored = setup::stored_threads(&run_dir.path);
    let compute = sections.compute(session, stored)?;
    let console = &session.console;
    console.line(&format!("run: {}", run_dir.path.display()));
    console.line(&format!(
        "{}, {} each, {} | {} micro-batches a step of at most {} tokens",
        counted(session.world.size() as u64, "rank"),
        counted(compute.threads as u64, "thread"),
        platform(compute.device),
        sections.training.micro_batches_per_step,
        count(sections.training.max_tokens_per_batch as u64),
    ));
    session.start_gradients(&compute, &sections.distributed)?;
    let setup = Setup::new(sections, session, &compute)?;
    console.line(&setup.describe_data());
    if session.world.rank() == 0 {
        setup.write_run_files(&run_dir.path, &resolved)?;
    }
    let plans = setup.plans(sections, &session.world.comm)?;
    console.line(&setup::describe(&plans.train));
    let settings = Settings {
        training: sections.training.clone(),
        config: resolved,
        identity,
        seed: sections.run.seed,
        distributed: sections.distributed.clone(),
        threads_per_rank: compute.threads,
        platform: platform(compute.device),
        run_dir,
        metric: metric(sections)?,
        split: setup.split_record(sections),
    };
    let comm = &session.world.comm;
    fit(&setup.task(sections, comm)?, comm, &settings, &plans, console.clone())
}

/// The metric that decides what is best, and its direction.
fn metric(sections: &Sections) -> Result<(String, Direction)> {
    let registry = registry()?;
    let spec = registry.lookup(&sections.training.metric_for_best_model)?;
    let told = match sections.training.greater_is_better {
        GreaterIsBetter::Auto => spec.direction,
        GreaterIsBetter::Told(true) => Direction::Higher,
        GreaterIsBetter::Told(false) => Direction::Lower,
    };
    if told != spec.direction {
        return Err(Error::usage(format!("for {} the other way is better", spec.name))
            .at("training.greater_is_better")
            .hint("leave it at auto"));
    }
    Ok((spec.name.clone(), spec.direction))
}

/// The samples of each part, for lines.
fn part_line(setup: &Setup) -> String {
    [Part::Train, Part::Val, Part::Test]
        .iter()
        .map(|part| format!("{} {}", part.name(), count(setup.part_len(*part) as u64)))
        .collect::<Vec<_>>()
        .join(", ")
}
