//! A whole part of the data, every sample once, over all ranks.
//!
//! Evaluation has a plan of its own, the same for any number of ranks. Its figures are sums per
//! micro-batch, folded in the order of the plan, or come from a table of all samples in their
//! order; so they have the same bits on any number.

use super::step::{floats, gather, metric_names, record};
use super::task::{BatchKey, Data, Part, Phase, Task};
use crate::data::loader::Loader;
use crate::data::plan::MicroBatch;
use crate::dist::{Comm, tree};
use crate::error::Result;
use crate::metrics::additive::Additive;
use crate::metrics::table::Table;
use crate::progress;
use std::sync::Arc;

/// What an evaluation needs to know of a part.
pub struct EvaluationPlan {
    /// Which part.
    pub part: Part,
    /// Its micro-batches in order.
    pub micro_batches: Arc<Vec<MicroBatch>>,
}

/// What an evaluation gives, the same on every rank.
pub struct Evaluation {
    /// Sums over the whole part.
    pub additive: Additive,
    /// The rows of all its samples, if the task gives any.
    pub table: Table,
    /// What the task measured on them.
    pub figures: Vec<(String, f64)>,
}

impl Evaluation {
    /// A figure by its name, wherever it comes from.
    pub fn figure(&self, name: &str) -> Option<f64> {
        match self.figures.iter().find(|(own, _)| own == name) {
            Some((_, value)) => Some(*value),
            None if self.additive.names().iter().any(|own| own == name) => self.additive.mean(name),
            None => None,
        }
    }
}

/// Measures the whole part.
pub fn evaluate<T: Task>(
    task: &T,
    comm: &Comm,
    plan: &EvaluationPlan,
    workers: usize,
    mut report: impl FnMut(usize, usize),
) -> Result<Evaluation> {
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
    let mut additive = Additive::new(metric_names(task));
    let mut table = Table::default();
    comm.together(|| {
        for (done, index) in own.clone().enumerate() {
            progress::tick()?;
            report(done, own.len());
            let Some(batch) = loader.take_next()? else { break };
            let mut output = tch::no_grad(|| task.forward(&batch, key(index)))?;
            for (sample, row) in std::mem::take(&mut output.rows) {
                table.push(sample, row)?;
            }
            let (counts, size) = (data.counts(&batch), data.size(&batch));
            record(&mut additive, index as u64, &terms, &output, &counts, size);
        }
        report(own.len(), own.len());
        Ok(())
    })?;
    let additive = gather(comm, additive)?;
    let table = gather_table(comm, table)?;
    let figures = task.measure(plan.part, &table)?;
    Ok(Evaluation { additive, table, figures })
}

/// Everyone's rows, on every rank.
fn gather_table(comm: &Comm, own: Table) -> Result<Table> {
    if comm.size() == 1 {
        return Ok(own);
    }
    let bytes = own.to_flat().iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut all = Table::default();
    comm.all_gather(bytes)?.iter().try_for_each(|part| all.merge(&floats(part)))?;
    Ok(all)
}

fn key(index: usize) -> BatchKey {
    BatchKey { phase: Phase::Evaluate, epoch: 0, step: 0, micro_batch: index as u32 }
}
