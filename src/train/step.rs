//! One optimiser step over all ranks.
//!
//! Counts are agreed on first, so backward starts from sums already divided by them and gradients
//! need no division later. The agreement also carries the stop flag: either all ranks take the
//! step or none does; in steps that take seconds they agree between micro-batches too. How gradients become one is in `gradient`.

use super::adamw::{Adamw, AdamwConfig};
use super::gradient::{GradientSum, Last};
use super::task::{BatchKey, BatchSize, Data, Task, TermSpec};
use crate::config::{Distributed, Precision, Training};
use crate::dist::{Comm, PendingGather, stop, tree};
use crate::error::{Error, Kind, Result};
use crate::metrics::additive::Additive;
use crate::progress;
use crate::rng::{Key, Purpose};
use crate::torch::{self, Autocast, Flat};
use std::ops::Range;
use std::time::Instant;
use tch::Tensor;

/// Seconds of a step beyond which the next one may be given up between its micro-batches.
const LONG_STEP: f64 = 2.0;

/// Non-finite steps in a row after which the run ends.
const MOST_SKIPPED: u32 = 25;

/// fp16's loss scale: halved when a step overflows, doubled after this many that did not
/// (torch.amp.GradScaler).
const GROWTH_INTERVAL: u32 = 2000;

/// What a step came to.
pub(super) enum Outcome {
    /// Some rank was asked to stop; nothing was done.
    Stop,
    /// Done, on all ranks alike.
    Done(StepResult),
}

/// One step's figures, the same on every rank.
pub(super) struct StepResult {
    /// Sums and counts of terms and figures.
    pub metrics: Additive,
    /// Norm of the whole gradient before clipping; not finite where the step was skipped for it.
    pub grad_norm: f64,
    /// Whether the weights were left as they were: nothing to learn from, or not finite.
    pub skipped: bool,
    /// What was computed, over all ranks.
    pub size: BatchSize,
}

/// What a checkpoint keeps of the stepper beside moments.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, PartialEq)]
pub struct StepperState {
    /// AdamW's own count: steps that were not skipped.
    pub optimizer_step: u64,
    /// fp16's loss scale, 1 otherwise.
    pub loss_scale: f64,
    /// Good steps since the scale last changed.
    pub good_steps: u32,
    /// Non-finite steps in a row.
    pub skipped_in_a_row: u32,
    /// Skipped steps in all.
    pub skipped: u64,
}

/// Flat parameters, optimiser, and the buffers a step needs.
pub(super) struct Stepper {
    pub flat: Flat,
    pub optimiser: Adamw,
    pub state: StepperState,
    terms: Vec<TermSpec>,
    names: Vec<String>,
    autocast: Autocast,
    max_grad_norm: Option<f64>,
    sum: GradientSum,
    seed: u64,
    /// What the last step took on this rank.
    seconds: f64,
}

impl Stepper {
    pub fn new<T: Task>(
        task: &T,
        comm: &Comm,
        training: &Training,
        distributed: &Distributed,
        seed: u64,
    ) -> Result<Stepper> {
        let flat = Flat::new(task.params(), |name| task.trains(name))?;
        let sum = GradientSum::new(comm, &flat, distributed);
        let config = AdamwConfig {
            betas: (training.betas[0], training.betas[1]),
            eps: training.eps,
            weight_decay: training.weight_decay,
        };
        let optimiser = Adamw::new(&flat, config, |name| task.decays(name));
        let autocast = match training.precision {
            Precision::Fp32 => Autocast::Off,
            Precision::Bf16 => Autocast::Bfloat16,
            Precision::Fp16 => Autocast::Float16,
        };
        let loss_scale = if autocast == Autocast::Float16 { 65536.0 } else { 1.0 };
        Ok(Stepper {
            flat,
            optimiser,
            state: StepperState {
                optimizer_step: 0,
                loss_scale,
                good_steps: 0,
                skipped_in_a_row: 0,
                skipped: 0,
            },
            terms: task.terms(),
            names: metric_names(task),
            autocast,
            max_grad_norm: training.max_grad_norm,
            sum,
            seed,
            seconds: 0.0,
        })
    }

    /// Takes step number `step` with this rank's micro-batches, [`tree::owned`] of the step's `m`.
    pub fn run<T: Task>(
        &mut self,
        task: &T,
        comm: &Comm,
        (epoch, step, m): (u64, u64, usize),
        batches: &[<T::Data as Data>::Batch],
        lr: f64,
    ) -> Result<Outcome> {
        let start = Instant::now();
        let own = tree::owned(comm.rank(), comm.size(), m);
        assert_eq!(own.len(), batches.len(), "the loader gives what this rank owns");
        let data = task.data();
        let counts = batches.iter().map(|b| data.counts(b));
        let header = Header::start(comm, m, &self.terms, self.seconds, counts)?.finish(comm)?;
        if header.stop {
            return Ok(Outcome::Stop);
        }
        let nothing = header.counts.iter().all(|count| *count == 0.0);
        let mut metrics = Additive::new(self.names.clone());
        self.flat.zero_grad();
        let mut work = || {
            let place = (epoch, step, own.clone());
            self.micro_batches(task, place, batches, &header.counts, nothing, &mut metrics)
        };
        let long = header.longest > LONG_STEP;
        let last = match if long { comm.together(work) } else { work() } {
            Err(error) if error.kind() == Kind::Preempted => return Ok(Outcome::Stop),
            last => last?,
        };
        if !nothing {
            self.sum.finish(&self.flat, comm, m, last)?;
        }
        let metrics = gather(comm, metrics)?;
        let grad_norm = if nothing { 0.0 } else { self.grad_norm()? };
        let skipped = nothing || !grad_norm.is_finite();
        self.update(lr, grad_norm, nothing)?;
        self.seconds = start.elapsed().as_secs_f64();
        let total = |name| metrics.total(name).sum as u64;
        let size = BatchSize {
            samples: total("samples"),
            tokens: total("tokens"),
            padded: total("padded"),
        };
        Ok(Outcome::Done(StepResult { metrics, grad_norm, skipped, size }))
    }

    /// Forward of all own micro-batches, and backward of all but the last, which is given back.
    fn micro_batches<T: Task>(
        &mut self,
        task: &T,
        (epoch, step, own): (u64, u64, Range<usize>),
        batches: &[<T::Data as Data>::Batch],
        counts: &[f64],
        nothing: bool,
        metrics: &mut Additive,
    ) -> Result<Option<Last>> {
        let phase = super::task::Phase::Train;
        let mut last = None;
        for (index, batch) in own.clone().zip(batches) {
            progress::tick()?;
            let key = BatchKey { phase, epoch, step, micro_batch: index as u32 };
            let loss = self.forward(task, batch, key, counts, metrics)?;
            if index + 1 == own.end {
                last = Some((index, loss));
            } else if !nothing {
                self.sum.add(&mut self.flat, index, loss)?;
            }
        }
        Ok(last)
    }

    /// Forward of one micro-batch; what backward is to start from, if there is anything to learn.
    fn forward<T: Task>(
        &self,
        task: &T,
        batch: &<T::Data as Data>::Batch,
        key: BatchKey,
        counts: &[f64],
        metrics: &mut Additive,
    ) -> Result<Option<Tensor>> {
        let dropout = Key::new(self.seed, Purpose::Dropout);
        tch::manual_seed(dropout.seed32(key.micro_batch, key.epoch as u32, key.step));
        let device = task.params().device();
        torch::set_autocast(device, self.autocast)?;
        let output = task.forward(batch, key);
        torch::set_autocast(device, Autocast::Off)?;
        let output = output?;
        let data = task.data();
        let (own, size) = (data.counts(batch), data.size(batch));
        record(metrics, u64::from(key.micro_batch), &self.terms, &output, &own, size);
        let parts = self.terms.iter().zip(&output.sums).zip(counts);
        let loss = parts
            .filter(|(_, count)| **count > 0.0)
            .map(|((term, sum), count)| sum * (term.weight / count * self.state.loss_scale))
            .reduce(|a, b| a + b);
        Ok(loss.filter(Tensor::requires_grad))
    }

    /// The norm of the whole gradient, without the loss scale.
    fn grad_norm(&self) -> Result<f64> {
        Ok(torch::sum_of_squares(self.flat.grad())?.sqrt() / self.state.loss_scale)
    }

    /// Clips and moves the weights, or notes that the step was skipped.
    fn update(&mut self, lr: f64, grad_norm: f64, nothing: bool) -> Result<()> {
        let state = &mut self.state;
        if nothing || !grad_norm.is_finite() {
            state.skipped += 1;
            if nothing {
                return Ok(());
            }
            state.skipped_in_a_row += 1;
            state.good_steps = 0;
            if self.autocast == Autocast::Float16 {
                state.loss_scale = (state.loss_scale / 2.0).max(1.0);
            }
            if state.skipped_in_a_row > MOST_SKIPPED {
                return Err(Error::numerical(format!(
                    "the gradient was not finite in {} steps in a row",
                    state.skipped_in_a_row
                ))
                .hint("lower training.lr, set training.max_grad_norm, or use fp32"));
            }
            return Ok(());
        }
        state.skipped_in_a_row = 0;
        // torch.nn.utils.clip_grad_norm_: the factor is max_norm / (norm + 1e-6), at most 1.
        let clip = self.max_grad_norm.map_or(1.0, |most| ((grad_norm + 1e-6) / most).max(1.0));
        self.optimiser.step(&self.flat, lr, clip * state.loss_scale)?;
        state.optimizer_step = self.optimiser.steps();
        state.good_steps += 1;
        if self.autocast == Autocast::Float16 && state.good_steps == GROWTH_INTERVAL {
            state.loss_scale *= 2.0;
            state.good_steps = 0;
        }
        Ok(())
    }
}

/// All names that a step's or an evaluation's metrics have.
pub(super) fn metric_names<T: Task>(task: &T) -> Vec<String> {
    let mut names: Vec<String> = task.terms().iter().map(|t| t.name.to_string()).collect();
    names.extend(task.figures().iter().map(|f| f.to_string()));
    names.extend(["samples", "tokens", "padded"].map(String::from));
    names
}

/// Adds one micro-batch's terms, figures and sizes.
pub(super) fn record(
    metrics: &mut Additive,
    index: u64,
    terms: &[TermSpec],
    output: &super::task::Output,
    counts: &[f64],
    size: BatchSize,
) {
    let mut list: Vec<(&str, f64, f64)> = terms
        .iter()
        .zip(&output.sums)
        .zip(counts)
        .map(|((term, sum), count)| (term.name, sum.double_value(&[]), *count))
        .collect();
    list.extend(output.figures.iter().copied());
    list.push(("samples", size.samples as f64, 1.0));
    list.push(("tokens", size.tokens as f64, 1.0));
    list.push(("padded", size.padded as f64, 1.0));
    metrics.push(index, &list);
}

/// Everyone's micro-batches, on every rank.
pub(super) fn gather(comm: &Comm, own: Additive) -> Result<Additive> {
    if comm.size() == 1 {
        return Ok(own);
    }
    let bytes = own.to_flat().iter().flat_map(|x| x.to_le_bytes()).collect();
    let parts: Vec<Vec<f64>> = comm.all_gather(bytes)?.iter().map(|b| floats(b)).collect();
    let mut all = Additive::new(own.names().to_vec());
    all.merge(parts.iter().map(Vec::as_slice))?;
    Ok(all)
}

pub(super) fn floats(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("eight bytes"))).collect()
}

/// What ranks agree on before a step.
struct Header {
    stop: bool,
    /// Seconds that the last step took on the slowest rank.
    longest: f64,
    /// For each term its count over the whole step.
    counts: Vec<f64>,
}

struct PendingHeader {
    pending: PendingGather,
    terms: usize,
    lengths: Vec<usize>,
}

impl Header {
    /// Posts this rank's counts, one list a micro-batch, its stop flag and its last step's seconds.
    fn start(
        comm: &Comm,
        m: usize,
        terms: &[TermSpec],
        seconds: f64,
        counts: impl Iterator<Item = Vec<f64>>,
    ) -> Result<PendingHeader> {
        let lengths: Vec<usize> = (0..comm.size())
            .map(|rank| 8 * (2 + terms.len() * tree::owned(rank, comm.size(), m).len()))
            .collect();
        let mut own = vec![f64::from(u8::from(stop::requested().is_some())), seconds];
        own.extend(counts.flatten());
        let own = own.iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok(PendingHeader {
            pending: comm.start_gather(own, &lengths)?,
            terms: terms.len(),
            lengths,
        })
    }
}

impl PendingHeader {
    /// Sums in the order of micro-batches, so that the counts have the same bits everywhere.
    fn finish(self, comm: &Comm) -> Result<Header> {
        let all = comm.finish_gather(self.pending)?;
        let mut header = Header { stop: false, longest: 0.0, counts: vec![0.0; self.terms] };
        let mut rest: &[u8] = &all;
        for length in self.lengths {
            let (own, after) = rest.split_at(length);
            rest = after;
            let numbers = floats(own);
            header.stop |= numbers[0] != 0.0;
            header.longest = header.longest.max(numbers[1]);
            for (i, count) in numbers[2..].iter().enumerate() {
                header.counts[i % self.terms] += count;
            }
        }
        Ok(header)
    }
}
