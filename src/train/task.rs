//! What a recipe gives to the loop.
//!
//! The work is in two halves. `Data` runs on the loader's threads: it knows samples and makes
//! batches. `Task` runs on the main thread: it owns the model. Whatever is random in either is a
//! function of the [`BatchKey`], never of a rank or a thread.

pub use crate::data::split::Part;
use crate::error::Result;
use crate::metrics::table::Table;
use crate::torch::Params;
use std::sync::Arc;
use tch::Tensor;

/// Which part of the data a batch is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Gradients follow.
    Train,
    /// Validation or test.
    Evaluate,
}

/// A micro-batch's place in the run.
#[derive(Clone, Copy, Debug)]
pub struct BatchKey {
    /// Training or evaluation.
    pub phase: Phase,
    /// Pass over the data, from 0; 0 in evaluation.
    pub epoch: u64,
    /// Optimiser step, from 0, over the whole run; 0 in evaluation.
    pub step: u64,
    /// Number within the step, or within the evaluation.
    pub micro_batch: u32,
}

/// How much of a batch is real.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchSize {
    /// Samples.
    pub samples: u64,
    /// Tokens, specials included.
    pub tokens: u64,
    /// Tokens computed, padding included.
    pub padded: u64,
}

/// A term of the loss: it is the sum over micro-batches divided by the count over micro-batches,
/// times the weight.
#[derive(Clone, Debug)]
pub struct TermSpec {
    /// Its name.
    pub name: &'static str,
    /// Its share of the loss.
    pub weight: f64,
}

/// What a forward pass gives.
pub struct Output {
    /// For each term its sum, a scalar tensor that backward can start from.
    pub sums: Vec<Tensor>,
    /// Further additive figures: (name, sum, count).
    pub figures: Vec<(&'static str, f64, f64)>,
    /// In evaluation, a row of numbers for each sample, if the task's metrics need them all at
    /// once: (the sample's index in its part, numbers), rows of one width.
    pub rows: Vec<(u64, Vec<f64>)>,
}

/// The half that makes batches.
pub trait Data: Send + Sync + 'static {
    /// A collated micro-batch.
    type Batch: Send + 'static;

    /// Collates these samples (indices into the part of the data that was planned).
    fn collate(&self, part: Part, key: BatchKey, samples: &[u32]) -> Result<Self::Batch>;

    /// For each term what its sum will be divided by, known before any computation.
    fn counts(&self, batch: &Self::Batch) -> Vec<f64>;

    /// How much of it is real.
    fn size(&self, batch: &Self::Batch) -> BatchSize;
}

/// The half that computes.
pub trait Task {
    /// The other half.
    type Data: Data;

    /// The other half, for the loader's threads.
    fn data(&self) -> Arc<Self::Data>;

    /// The model's parameters.
    fn params(&self) -> &Params;

    /// Whether a parameter is trained.
    fn trains(&self, _name: &str) -> bool {
        true
    }

    /// Whether a trained parameter is decayed.
    fn decays(&self, _name: &str) -> bool {
        true
    }

    /// The terms of the loss.
    fn terms(&self) -> Vec<TermSpec>;

    /// Whether exp(loss) is a perplexity.
    fn has_perplexity(&self) -> bool {
        false
    }

    /// Names of the further figures that `forward` gives.
    fn figures(&self) -> Vec<&'static str>;

    /// Names of the figures that `measure` gives.
    fn table_figures(&self) -> Vec<String> {
        Vec::new()
    }

    /// Figures of a whole part from the rows of all its samples: (name, value) in the order of
    /// `table_figures`; one that has no value there is left out.
    fn measure(&self, _part: Part, _table: &Table) -> Result<Vec<(String, f64)>> {
        Ok(Vec::new())
    }

    /// Loss terms and figures of a batch.
    fn forward(&self, batch: &<Self::Data as Data>::Batch, key: BatchKey) -> Result<Output>;

    /// Files that make a checkpoint complete beside weights and state: (name, content), such as
    /// the model's `config.json` and its vocabulary.
    fn checkpoint_files(&self) -> Vec<(String, String)>;
}
