//! The training loop.
//!
//! Whatever is due at the current step is done first, then the next step is taken. So a run that
//! was stopped between the two, in an evaluation or a save, goes on with exactly that.

use super::checkpoint::{self, Loaded, State};
use super::evaluate::{Evaluation, EvaluationPlan, evaluate};
use super::records::{At, Records, Timing, loss};
use super::saver::{Saver, repair_links};
use super::schedule::learning_rate;
use super::step::{Outcome, Stepper};
use super::task::{BatchKey, Data, Part, Phase, Task};
use crate::config::{Distributed, EvaluationStrategy, Resume, Training, difference};
use crate::data::loader::Loader;
use crate::data::plan::{Plan, Step};
use crate::dist::{Comm, deadline, stop, tree};
use crate::error::{Error, Kind, Result};
use crate::metrics::best::Judge;
use crate::progress;
use crate::report::console::Console;
use crate::report::step_line::{bytes, count};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// What the loop is told, beside the task.
pub struct Settings {
    /// The section `training`.
    pub training: Training,
    /// The sections' resolved values, for the checkpoint.
    pub config: Value,
    /// `config::identity` of it.
    pub identity: String,
    /// `run.seed`.
    pub seed: u64,
    /// The section `distributed`.
    pub distributed: Distributed,
    /// Threads of every rank.
    pub threads_per_rank: usize,
    /// CPU capability, device and libtorch.
    pub platform: String,
    /// The run's directory, or that of a stage of it.
    pub run_dir: PathBuf,
    /// Which way is better, for `training.metric_for_best_model`, and its name.
    pub metric: (String, crate::metrics::registry::Direction),
    /// What the split record says: sizes, seed and file.
    pub split: ([usize; 3], u64, String),
}

/// The plans of the three parts.
pub struct Plans {
    /// Training.
    pub train: Arc<Plan>,
    /// Validation; may be empty.
    pub val: EvaluationPlan,
    /// Test; may be empty.
    pub test: EvaluationPlan,
}

/// Trains until all steps are done and the best checkpoint, which stays in the model, is tested. Where the job is asked to stop,
/// everything is saved and the error is [`Kind::Preempted`].
pub fn fit<T: Task>(
    task: &T,
    comm: &Comm,
    settings: &Settings,
    plans: &Plans,
    console: Arc<Console>,
) -> Result<()> {
    let mut run = Run::begin(task, comm, settings, plans, console)?;
    match run.go_on() {
        Err(error) if error.kind() == Kind::Preempted => run.leave(),
        result => result,
    }
}

type BatchesOf<T> = (u64, usize, Vec<<<T as Task>::Data as Data>::Batch>);

struct Run<'a, T: Task> {
    task: &'a T,
    comm: &'a Comm,
    settings: &'a Settings,
    plans: &'a Plans,
    console: Arc<Console>,
    stepper: Stepper,
    judge: Judge,
    loader: Loader<StepJob, BatchesOf<T>>,
    saver: Saver,
    /// On rank 0.
    records: Option<Records>,
    total: u64,
    steps_per_epoch: u64,
    step: u64,
    evaluated_step: u64,
    saved_step: Option<u64>,
    /// The evaluation at this step was the best.
    is_best: bool,
}

impl<'a, T: Task> Run<'a, T> {
    fn begin(
        task: &'a T,
        comm: &'a Comm,
        settings: &'a Settings,
        plans: &'a Plans,
        console: Arc<Console>,
    ) -> Result<Self> {
        progress::enter("preparing training");
        let training = &settings.training;
        let steps_per_epoch = plans.train.steps_per_epoch() as u64;
        let all = steps_per_epoch * training.num_train_epochs as u64;
        let total = training.max_steps.map_or(all, |most| all.min(most as u64));
        check_ranks(comm, settings, &console)?;
        let distributed = &settings.distributed;
        let mut stepper = Stepper::new(task, comm, training, distributed, settings.seed)?;
        let patience = training.early_stopping_patience.map(|p| p as u32);
        let mut judge = Judge::new(settings.metric.1, patience)?;
        print_sizes(task, &stepper, &console);
        let resumed = find_checkpoint(comm, settings, &console)?;
        if let Some(loaded) = &resumed {
            restore(task, settings, plans, loaded, &mut stepper, &console)?;
            judge.resume(loaded.state.judge);
            console.line(&format!(
                "going on from {} (step {})",
                loaded.dir.display(),
                loaded.state.step
            ));
        }
        let state = resumed.as_ref().map(|l| (l.state.step, l.state.evaluated_step));
        let (step, evaluated_step) = state.unwrap_or((0, 0));
        let records = (comm.rank() == 0).then(|| {
            let dir = &settings.run_dir;
            if let Some(loaded) = resumed.as_ref().filter(|l| l.dir.starts_with(dir)) {
                repair_links(dir, &loaded.state)?;
            }
            let mut records = Records::open(console.clone(), dir, training, task, state)?;
            let (sizes, seed, file) = &settings.split;
            records.split(*sizes, *seed, file)?;
            Ok::<_, Error>(records)
        });
        let jobs = StepJobs::new(&plans.train, comm, step, total);
        let data = task.data();
        let loader = Loader::new(jobs, training.num_workers, move |job: StepJob| {
            let batches = job.micro_batches.iter().map(|(index, samples)| {
                let micro_batch = *index as u32;
                let key =
                    BatchKey { phase: Phase::Train, epoch: job.epoch, step: job.step, micro_batch };
                data.collate(Part::Train, key, samples)
            });
            Ok((job.epoch, job.m, batches.collect::<Result<Vec<_>>>()?))
        })?;
        Ok(Run {
            saver: Saver::new(&settings.run_dir, training.save_total_limit),
            records: records.transpose()?,
            saved_step: resumed.map(|l| l.state.step),
            is_best: false,
            task,
            comm,
            settings,
            plans,
            console,
            stepper,
            judge,
            loader,
            total,
            steps_per_epoch,
            step,
            evaluated_step,
        })
    }

    fn go_on(&mut self) -> Result<()> {
        loop {
            if self.evaluation_is_due() {
                self.evaluate()?;
            }
            if self.save_is_due() {
                self.save()?;
            }
            if self.is_over() {
                return self.finish();
            }
            self.step()?;
        }
    }

    fn at(&self) -> At {
        At { step: self.step, total: self.total, steps_per_epoch: self.steps_per_epoch }
    }

    /// Whether nothing is left but the last evaluation and save.
    fn is_over(&self) -> bool {
        let patience = self.settings.training.early_stopping_patience;
        let worse = self.judge.state().evaluations_since_best as usize;
        self.step >= self.total || patience.is_some_and(|patience| worse >= patience)
    }

    fn evaluation_is_due(&self) -> bool {
        let training = &self.settings.training;
        let every = match training.evaluation_strategy {
            EvaluationStrategy::Steps => training.eval_steps as u64,
            EvaluationStrategy::Epoch => self.steps_per_epoch,
        };
        self.step > 0
            && self.evaluated_step < self.step
            && !self.plans.val.micro_batches.is_empty()
            && (self.step.is_multiple_of(every) || self.step >= self.total)
    }

    /// Evaluates the validation part.
    fn evaluate(&mut self) -> Result<()> {
        let evaluation = self.evaluate_part(&self.plans.val)?;
        let value = self.value(&evaluation).unwrap_or(f64::NAN);
        self.is_best = self.judge.observe(self.step, value).is_best;
        self.evaluated_step = self.step;
        // A checkpoint of this step that a signal left behind does not know of the evaluation.
        self.saved_step = None;
        let at = self.at();
        if let Some(records) = &mut self.records {
            records.evaluation(Part::Val, at, &evaluation, None)?;
        }
        Ok(())
    }

    fn evaluate_part(&self, plan: &EvaluationPlan) -> Result<Evaluation> {
        let name = plan.part.name();
        evaluate(self.task, self.comm, plan, self.settings.training.num_workers, |done, total| {
            self.console.progress(
                done as u64,
                total as u64,
                &format!("evaluating {name} {done}/{total}"),
            );
        })
    }

    /// The metric that decides what is best.
    fn value(&self, evaluation: &Evaluation) -> Option<f64> {
        match self.settings.metric.0.as_str() {
            "loss" => loss(&evaluation.additive, &self.task.terms()),
            name => evaluation.figure(name),
        }
    }

    fn save_is_due(&self) -> bool {
        let every = self.settings.training.save_steps.map(|n| n as u64);
        let due = match every {
            Some(every) => self.step.is_multiple_of(every),
            None => self.evaluated_step == self.step,
        };
        self.step > 0
            && self.saved_step != Some(self.step)
            && (due || self.is_best || self.is_over())
    }

    fn save(&mut self) -> Result<()> {
        progress::enter(format!("saving after step {}", self.step));
        self.saved_step = Some(self.step);
        let best = std::mem::take(&mut self.is_best);
        let Some(records) = &mut self.records else { return Ok(()) };
        records.sync()?;
        let state = State {
            step: self.step,
            evaluated_step: self.evaluated_step,
            stepper: self.stepper.state.clone(),
            judge: self.judge.state(),
            steps_per_epoch: self.steps_per_epoch,
            plan_hash: format!("{:016x}", self.plans.train.hash()),
            identity: self.settings.identity.clone(),
            threads_per_rank: self.settings.threads_per_rank,
            platform: self.settings.platform.clone(),
            config: self.settings.config.clone(),
            version: env!("CARGO_PKG_VERSION").to_string(),
        };
        self.saver.save(self.task, &self.stepper, state, best)
    }

    /// Takes a step, on all ranks or on none.
    fn step(&mut self) -> Result<()> {
        progress::set_step(self.step + 1, self.total);
        progress::enter(format!("training, step {}", self.step + 1));
        let start = Instant::now();
        let (epoch, m, batches) =
            self.loader.take_next()?.ok_or_else(|| Error::bug("the plan ended before the run"))?;
        let training = &self.settings.training;
        let (peak, warmup) = (training.lr, training.warmup_steps as u64);
        let lr = learning_rate(training.lr_scheduler_type, peak, warmup, self.step, self.total);
        let place = (epoch, self.step, m);
        let outcome = self.stepper.run(self.task, self.comm, place, &batches, lr)?;
        let Outcome::Done(result) = outcome else {
            return Err(Error::preempted("before the next step"));
        };
        self.step += 1;
        deadline::stepped(start.elapsed());
        let timing = Timing {
            seconds: start.elapsed().as_secs_f64(),
            waiting: self.loader.take_waited().as_secs_f64(),
        };
        let at = self.at();
        if let Some(records) = &mut self.records {
            records.step(at, lr, &result, self.stepper.state.skipped, timing)?;
        }
        Ok(())
    }

    /// The job is to end: save, and leave together.
    fn leave(mut self) -> Result<()> {
        if self.step > 0 && self.saved_step != Some(self.step) {
            self.save()?;
        }
        self.saver.wait()?;
        self.comm.barrier()?;
        self.console.finish();
        Err(Error::preempted(format!(
            "stopped by {} after step {}; everything is saved, the same command goes on",
            stop::requested().unwrap_or("a signal to another rank"),
            self.step
        )))
    }

    /// Leaves the best checkpoint's weights in the model, tested.
    fn finish(&mut self) -> Result<()> {
        progress::enter("waiting for the last save");
        self.saver.wait()?;
        self.comm.barrier()?;
        self.console.finish();
        let best = self.load_best()?;
        if !self.plans.test.micro_batches.is_empty() {
            let evaluation = self.evaluate_part(&self.plans.test)?;
            let at = self.at();
            if let Some(records) = &mut self.records {
                records.evaluation(Part::Test, at, &evaluation, Some(best))?;
            }
        }
        if let Some(records) = &mut self.records {
            records.sync()?;
        }
        Ok(())
    }

    /// Puts the best checkpoint's weights (the last one's, without a best) into the model.
    fn load_best(&mut self) -> Result<u64> {
        let dir = self.settings.run_dir.clone();
        let step = self.comm.decide(|| {
            let linked = checkpoint::linked_step(&dir.join("best.ckpt"));
            Ok(linked.unwrap_or(self.step))
        })?;
        if step != self.step {
            let loaded = checkpoint::open(&dir.join("checkpoints").join(checkpoint::name(step)))?;
            let keep = |name: &str| Some(name.to_string());
            self.task.params().load(&loaded.weights, keep)?.strict(&loaded.weights)?;
        }
        Ok(step)
    }
}

/// Refuses more ranks than micro-batches, and says what stands idle.
fn check_ranks(comm: &Comm, settings: &Settings, console: &Console) -> Result<()> {
    let (size, m) = (comm.size(), settings.training.micro_batches_per_step);
    if size > m && !settings.distributed.allow_idle_ranks {
        return Err(Error::usage(format!(
            "{size} ranks, but a step has {m} micro-batches to share"
        ))
        .at("training.micro_batches_per_step")
        .hint(format!(
            "raise it to {size} or a multiple, start fewer ranks, or set \
                 distributed.allow_idle_ranks: true"
        )));
    }
    if !m.is_multiple_of(size) {
        let most = m.div_ceil(size);
        let idle = 100.0 * (1.0 - m as f64 / (most * size) as f64);
        console.line(&format!(
            "{m} micro-batches a step over {size} ranks: {idle:.0} % of the time is idle"
        ));
    }
    Ok(())
}

fn print_sizes<T: Task>(task: &T, stepper: &Stepper, console: &Console) {
    let (total, trained) = (task.params().count(), stepper.flat.count());
    console.line(&format!(
        "parameters: {} total, {} trainable, {} frozen | weights {}, gradients {}, moments {}",
        count(total as u64),
        count(trained as u64),
        count((total - trained) as u64),
        bytes(total as u64 * 4),
        bytes(stepper.flat.len() as u64 * 4),
        bytes(stepper.flat.len() as u64 * 8)
    ));
}

/// Rank 0 decides which checkpoint the run goes on from; everyone opens it.
fn find_checkpoint(comm: &Comm, settings: &Settings, console: &Console) -> Result<Option<Loaded>> {
    let dir = settings.run_dir.join("checkpoints");
    let found: Option<PathBuf> =
        comm.decide(|| match &settings.training.resume_from_checkpoint {
            Resume::None => Ok(None),
            Resume::From(path) => {
                checkpoint::verify(path)?;
                Ok(Some(path.to_path_buf()))
            }
            Resume::Auto => {
                let (newest, passed_over) = checkpoint::newest(&dir)?;
                passed_over.iter().for_each(|line| console.warn(line));
                Ok(newest)
            }
        })?;
    found.map(|dir| checkpoint::open(&dir)).transpose()
}

/// Puts a checkpoint into model and optimiser, if it is one of this run.
fn restore<T: Task>(
    task: &T,
    settings: &Settings,
    plans: &Plans,
    loaded: &Loaded,
    stepper: &mut Stepper,
    console: &Console,
) -> Result<()> {
    let state = &loaded.state;
    let place = loaded.dir.display();
    if state.identity != settings.identity {
        let keys = difference(&state.config, &settings.config);
        return Err(Error::damaged(format!(
            "this checkpoint is of another run; these keys differ: {}",
            if keys.is_empty() { "none that is stored".to_string() } else { keys.join(", ") }
        ))
        .at(place)
        .hint("use its own configuration (config.yaml beside it), or model.init_from to start anew from its weights"));
    }
    if state.plan_hash != format!("{:016x}", plans.train.hash()) {
        return Err(Error::damaged("the data or its split are not those of this checkpoint's run")
            .at(place)
            .hint("restore the data file, or start a new run with `--new`"));
    }
    if state.platform != settings.platform {
        console.warn(&format!(
            "the checkpoint was made on `{}`, this is `{}`: the last bits may differ",
            state.platform, settings.platform
        ));
    }
    let keep = |name: &str| Some(name.to_string());
    task.params().load(&loaded.weights, keep)?.strict(&loaded.weights)?;
    let moments = &loaded.moments;
    stepper.optimiser.restore(&stepper.flat, state.stepper.optimizer_step, |kind, name| {
        moments.read(&format!("{kind}.{name}"))
    })?;
    stepper.state = state.stepper.clone();
    Ok(())
}

/// One step's work for this rank's loader.
struct StepJob {
    epoch: u64,
    step: u64,
    /// Micro-batches of the whole step.
    m: usize,
    /// This rank's: (number within the step, samples).
    micro_batches: Vec<(usize, Vec<u32>)>,
}

/// The steps of a run from some step on, an epoch's plan at a time.
struct StepJobs {
    plan: Arc<Plan>,
    rank: usize,
    size: usize,
    steps_per_epoch: u64,
    next: u64,
    total: u64,
    epoch: Option<(u64, Vec<Step>)>,
}

impl StepJobs {
    fn new(plan: &Arc<Plan>, comm: &Comm, next: u64, total: u64) -> StepJobs {
        let steps_per_epoch = plan.steps_per_epoch() as u64;
        let (rank, size) = (comm.rank(), comm.size());
        StepJobs { plan: plan.clone(), rank, size, steps_per_epoch, next, total, epoch: None }
    }
}

impl Iterator for StepJobs {
    type Item = StepJob;

    fn next(&mut self) -> Option<StepJob> {
        if self.next >= self.total {
            return None;
        }
        let (epoch, within) = (self.next / self.steps_per_epoch, self.next % self.steps_per_epoch);
        if self.epoch.as_ref().is_none_or(|(e, _)| *e != epoch) {
            self.epoch = Some((epoch, self.plan.epoch(epoch)));
        }
        let (_, steps) = self.epoch.as_ref()?;
        let all = &steps[within as usize].micro_batches;
        let own = tree::owned(self.rank, self.size, all.len());
        let micro_batches = own.map(|i| (i, all[i].samples.clone())).collect();
        let job = StepJob { epoch, step: self.next, m: all.len(), micro_batches };
        self.next += 1;
        Some(job)
    }
}
