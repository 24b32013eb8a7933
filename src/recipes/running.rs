//! What training has in common in every recipe: the shared sections, the run directory with its
//! watchdog, stages, and the settings of the loop.

use super::session::{Compute, Session, platform};
use crate::config::{Dataset, Distributed, GreaterIsBetter, Run, Training, identity, write_yaml};
use crate::data::plan::{MicroBatch, Plan, PlanConfig};
use crate::dist::heartbeat::HEARTBEATS;
use crate::dist::restarts;
use crate::error::{Error, Result};
use crate::files;
use crate::metrics::registry::{Direction, Registry};
use crate::progress;
use crate::report::step_line::{count, counted};
use crate::train::checkpoint;
use crate::train::evaluate::EvaluationPlan;
use crate::train::fit::{Plans, Settings, fit};
use crate::train::run_dir::{self, RunDir, STARTS};
use crate::train::task::{Part, Task};
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The sections that every recipe has.
#[derive(Clone, Debug)]
pub struct Shared {
    pub run: Run,
    pub training: Training,
    pub distributed: Distributed,
}

impl Shared {
    /// Threads, device and determinism, the same on every rank.
    pub fn compute(&self, session: &Session, stored_threads: Option<usize>) -> Result<Compute> {
        session.compute(self.run.device, self.training.precision, &self.distributed, stored_threads)
    }
}

/// A shared section and a recipe's own keys of it (`&()`: none) as one map.
pub fn joined(shared: &impl Serialize, own: &impl Serialize) -> Result<Value> {
    let map = |value: serde_json::Result<Value>| -> Result<Map<String, Value>> {
        match value {
            Ok(Value::Object(map)) => Ok(map),
            Ok(_) => Ok(Map::new()),
            Err(e) => Err(Error::bug(format!("the configuration cannot be written: {e}"))),
        }
    };
    let mut all = map(serde_json::to_value(shared))?;
    all.extend(map(serde_json::to_value(own))?);
    Ok(Value::Object(all))
}

/// A run that this job has for itself.
pub struct Work<'a> {
    pub session: &'a Session,
    pub shared: &'a Shared,
    /// How every rank computes.
    pub compute: Compute,
    /// The run's directory.
    pub dir: PathBuf,
    resolved: Value,
    identity: String,
}

/// One stage of a run's training.
pub struct Stage<'a> {
    /// A directory of its own within the run's; None: the run's itself.
    pub name: Option<&'a str>,
    pub training: &'a Training,
    /// The metrics it can be judged by.
    pub registry: &'a Registry,
    /// Samples of the parts, seed of the split, and the data's file, for the first record.
    pub split: ([usize; 3], u64, String),
}

/// Finds the directory of the run to go on with, or makes one, and does `work` there with the
/// watchdog on; all ranks call it together. Where `work` comes to its end the run is complete.
pub fn in_run_dir(
    shared: &Shared,
    resolved: Value,
    session: &Session,
    fresh: bool,
    work: impl FnOnce(&Work) -> Result<()>,
) -> Result<()> {
    session.agree_on(&resolved)?;
    let identity = identity(&resolved);
    let run = &shared.run;
    let comm = &session.world.comm;
    progress::enter("finding the run");
    let found: RunDir =
        comm.decide(|| run_dir::find_or_make(&run.output_dir, &run.name, &identity, fresh))?;
    let dir = found.path;
    session.watched(&dir.join(HEARTBEATS), &shared.distributed, || {
        comm.decide(|| {
            restarts::note(&dir.join(STARTS), run_dir::steps(&dir), "steps")?;
            files::write_text(&dir.join("config.yaml"), &write_yaml(&resolved))
        })?;
        let compute = shared.compute(session, run_dir::stored_threads(&dir))?;
        let at_work = Work { session, shared, compute, dir, resolved, identity };
        at_work.introduce()?;
        work(&at_work)?;
        at_work.complete(&at_work.dir)?;
        session.console.line(&format!("done: {}", at_work.dir.display()));
        Ok(())
    })
}

impl Work<'_> {
    /// Says where and how the run is done, and opens what gradients go through.
    fn introduce(&self) -> Result<()> {
        let (console, training) = (&self.session.console, &self.shared.training);
        console.line(&format!("run: {}", self.dir.display()));
        console.line(&format!(
            "{}, {} each, {} | {} micro-batches a step of at most {} tokens",
            counted(self.session.world.size() as u64, "rank"),
            counted(self.compute.threads as u64, "thread"),
            platform(self.compute.device),
            training.micro_batches_per_step,
            count(training.max_tokens_per_batch as u64),
        ));
        self.session.start_gradients(&self.compute, &self.shared.distributed)
    }

    /// The directory of a stage.
    pub fn stage_dir(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Whether a stage was brought to its end before.
    pub fn is_stage_complete(&self, name: &str) -> Result<bool> {
        let dir = self.stage_dir(name);
        self.session.world.comm.decide(|| run_dir::is_stage_complete(&dir))
    }

    /// Trains a stage to its end; one with a name is complete then, the run itself is not.
    pub fn fit<T: Task>(&self, stage: &Stage, task: &T, plans: &Plans) -> Result<()> {
        let comm = &self.session.world.comm;
        let dir = stage.name.map_or(self.dir.clone(), |name| self.stage_dir(name));
        if stage.name.is_some() {
            comm.decide(|| run_dir::begin_stage(&dir, &self.identity))?;
        }
        let settings = Settings {
            training: stage.training.clone(),
            config: self.resolved.clone(),
            identity: self.identity.clone(),
            seed: self.shared.run.seed,
            distributed: self.shared.distributed.clone(),
            threads_per_rank: self.compute.threads,
            platform: platform(self.compute.device),
            run_dir: dir.clone(),
            metric: metric(stage.training, stage.registry)?,
            split: stage.split.clone(),
        };
        fit(task, comm, &settings, plans, self.session.console.clone())?;
        if stage.name.is_some() { self.complete(&dir) } else { Ok(()) }
    }

    /// Marks a run or a stage as complete.
    fn complete(&self, dir: &Path) -> Result<()> {
        self.session.world.comm.decide(|| {
            restarts::forget(&dir.join(STARTS));
            run_dir::complete(dir, &self.identity)
        })
    }
}

/// The metric that decides what is best, and its direction.
pub fn metric(training: &Training, registry: &Registry) -> Result<(String, Direction)> {
    let spec = registry.lookup(&training.metric_for_best_model)?;
    let told = match training.greater_is_better {
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

/// Lengths and names of the samples of one part, from which its batches are planned.
pub struct Planned<'a> {
    /// Tokens of each sample, specials included.
    pub lengths: Vec<u32>,
    /// What a sample is called in messages.
    pub name: &'a dyn Fn(usize) -> String,
}

/// The batch plan of a part under these limits.
pub fn plan(training: &Training, seed: u64, part: &Planned) -> Result<Plan> {
    let config = PlanConfig {
        max_tokens: training.max_tokens_per_batch,
        max_samples: training.per_device_train_batch_size,
        micro_batches_per_step: training.micro_batches_per_step,
        seed,
    };
    Plan::new(&part.lengths, config, part.name)
}

/// Plans of training, validation and test; exit code 3 where nothing is left to train on.
pub fn plans(training: &Training, seed: u64, parts: [Planned; 3]) -> Result<Plans> {
    let [train, val, test] = &parts;
    let train = plan(training, seed, train)?;
    if train.micro_batches_per_epoch() == 0 {
        return Err(Error::data("no sample is left to train on").at("dataset"));
    }
    let evaluation = |part, planned: &Planned| -> Result<EvaluationPlan> {
        let steps = plan(training, seed, planned)?.evaluation();
        let all: Vec<MicroBatch> = steps.into_iter().flat_map(|s| s.micro_batches).collect();
        Ok(EvaluationPlan { part, micro_batches: Arc::new(all) })
    };
    let (val, test) = (evaluation(Part::Val, val)?, evaluation(Part::Test, test)?);
    Ok(Plans { train: Arc::new(train), val, test })
}

/// A plan's figures, for people.
pub fn describe_plan(plan: &Plan) -> String {
    let padding = plan.padding();
    format!(
        "batch plan: {} micro-batches and {} steps an epoch, {} tokens, padding {:.1} %",
        count(plan.micro_batches_per_epoch() as u64),
        count(plan.steps_per_epoch() as u64),
        count(padding.tokens),
        100.0 * padding.share()
    )
}

/// What the first record of a run says.
pub fn split_record(sizes: [usize; 3], dataset: &Dataset) -> ([usize; 3], u64, String) {
    let file = dataset.dataset_location.as_deref().map(|p| p.display().to_string());
    (sizes, dataset.split_seed, file.unwrap_or_default())
}

/// The newest checkpoint of a directory of a run or stage, if there is one.
pub fn best_of_stage(dir: &Path) -> Result<PathBuf> {
    let best = dir.join("best.ckpt");
    let last = dir.join("last.ckpt");
    let found = [best, last].into_iter().find(|link| checkpoint::linked_step(link).is_some());
    found.ok_or_else(|| {
        Error::damaged("the stage is complete, but has no checkpoint")
            .at(dir.display())
            .hint("start a new run with `--new`")
    })
}
