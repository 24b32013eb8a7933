//! A whole part of the data, every sample once, over all ranks.
//!
//! Evaluation has a plan of its own, the same for any number of ranks, and its figures are sums
//! per micro-batch, folded in the order of the plan; so they have the same bits on any number.

use super::step::{gather, metric_names, record};
use super::task::{BatchKey, Data, Part, Phase, Task};
use crate::data::loader::Loader;
use crate::data::plan::MicroBatch;
use crate::dist::{Comm, tree};
use crate::error::Result;
use crate::metrics::additive::Additive;
use crate::progress;
use std::sync::Arc;

/// What an evaluation needs to know of a part.
pub struct EvaluationPlan {
    /// Which part.
    pub part: Part,
    /// Its micro-batches in order.
    pub micro_batches: Arc<Vec<MicroBatch>>,
}

/// Sums over the whole part, on every rank.
pub fn evaluate<T: Task>(
    task: &T,
    comm: &Comm,
    plan: &EvaluationPlan,
    workers: usize,
    mut report: impl FnMut(usize, usize),
) -> Result<Additive> {
    progress::enter(format!("evaluating the {} part", plan.part.name()));
    let total = plan.micro_batches.len();
    let own = tree::owned(comm.rank(), comm.size(), total);
    let (data, part) = (task.data(), plan.part);
    let micro_batches = plan.micro_batches.clone();
    let mut loader = Loader::new(own.clone(), workers, move |index: usize| {
        data.collate(part, key(index), &micro_batches[index].samples)
    })?;
    let data = task.data();
    let terms = task.terms();
    let mut metrics = Additive::new(metric_names(task));
    comm.together(|| {
        for (done, index) in own.clone().enumerate() {
            progress::tick()?;
            report(done, own.len());
            let Some(batch) = loader.take_next()? else { break };
            let output = tch::no_grad(|| task.forward(&batch, key(index)))?;
            let (counts, size) = (data.counts(&batch), data.size(&batch));
            record(&mut metrics, index as u64, &terms, &output, &counts, size);
        }
        report(own.len(), own.len());
        Ok(())
    })?;
    gather(comm, metrics)
}

fn key(index: usize) -> BatchKey {
    BatchKey { phase: Phase::Evaluate, epoch: 0, step: 0, micro_batch: index as u32 }
}
