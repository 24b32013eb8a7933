//! The sections that recipes share: upstream's key names, the seed's defaults, units, ranges.
//!
//! A section is a plain struct. `ConfigFile::read` fills it, checks its ranges and names the line of
//! whatever is wrong. A recipe whose section has further keys reads both structs at once
//! (`ConfigFile::read_with`); one with other defaults sets them first (`ConfigFile::set_default`).

use super::values::{
    Backend, Device, Dtype, EvaluationStrategy, GreaterIsBetter, MaskPolicy, OverLength, Pooling,
    Precision, PtmResidue, Reduce, ReportTo, Resume, Schedule, Size, UserPath,
};
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::fmt;

/// A value out of range: which key, and what it must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Dotted key.
    pub key: &'static str,
    /// What is wrong and what would do.
    pub what: String,
}

/// A part of the configuration with a name of its own.
pub trait Section: DeserializeOwned {
    /// Its key at the top of the configuration.
    const NAME: &'static str;

    /// The first value that is out of range.
    fn check(&self) -> std::result::Result<(), Fault>;

    /// [`Section::check`] as an error that names the key (exit code 2).
    fn validate(&self) -> Result<()> {
        self.check().map_err(|fault| Error::usage(fault.what).at(fault.key))
    }
}

/// Refuses a value: `key: found 3, but it must be at least 4`.
pub fn require(
    holds: bool,
    key: &'static str,
    found: impl fmt::Debug,
    must: &str,
) -> std::result::Result<(), Fault> {
    if holds {
        return Ok(());
    }
    Err(Fault { key, what: format!("found {found:?}, but it must be {must}") })
}

/// Requires at least 1 of whatever is given.
fn some_if_given(key: &'static str, n: Option<usize>) -> std::result::Result<(), Fault> {
    require(n != Some(0), key, 0, "at least 1, or null")
}

/// Requires a probability.
pub fn probability(key: &'static str, p: f64) -> std::result::Result<(), Fault> {
    require((0.0..=1.0).contains(&p), key, p, "a probability from 0 to 1")
}

/// `run`: what the run is called, where it writes, from which seed, on what.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// First part of the run directory's name.
    pub name: String,
    /// Where run directories are made.
    pub output_dir: UserPath,
    /// Seed of everything random that has no seed of its own.
    pub seed: u64,
    /// Where tensors live.
    pub device: Device,
}

impl Default for Run {
    fn default() -> Self {
        Run {
            name: "run".to_string(),
            output_dir: UserPath::default_at("outputs"),
            seed: 42,
            device: Device::Auto,
        }
    }
}

impl Section for Run {
    const NAME: &'static str = "run";

    fn check(&self) -> std::result::Result<(), Fault> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        let usable = !self.name.is_empty() && self.name.chars().all(fits);
        let must = "letters, digits, `_`, `.` and `-`: it becomes a directory's name";
        require(usable && !self.name.starts_with('.'), "run.name", &self.name, must)
    }
}

/// `dataset`: where the samples are and how they are split.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dataset {
    /// The data file (CSV, FASTA, either gzipped); null where a recipe has no use for one.
    pub dataset_location: Option<UserPath>,
    /// Validation set.
    pub val_size: Size,
    /// Test set.
    pub test_size: Size,
    /// Seed of the split.
    pub split_seed: u64,
    /// A `split_mapping.json` to follow instead of drawing a split.
    pub split_mapping: Option<UserPath>,
    /// Only the first so many samples of the file.
    pub subsample: Option<usize>,
    /// Longest sample in tokens, specials included; longer ones are cropped once. Null: no limit.
    pub max_sequence_length: Option<usize>,
}

impl Default for Dataset {
    fn default() -> Self {
        Dataset {
            dataset_location: None,
            val_size: Size::Samples(10_000),
            test_size: Size::Samples(5_000),
            split_seed: 42,
            split_mapping: None,
            subsample: None,
            max_sequence_length: None,
        }
    }
}

impl Section for Dataset {
    const NAME: &'static str = "dataset";

    fn check(&self) -> std::result::Result<(), Fault> {
        some_if_given("dataset.subsample", self.subsample)?;
        if let (Size::Fraction(val), Size::Fraction(test)) = (self.val_size, self.test_size) {
            let must = "small enough that samples remain to train on: val_size + test_size below 1";
            require(val + test < 1.0, "dataset.test_size", test, must)?;
        }
        let length = self.max_sequence_length.unwrap_or(usize::MAX);
        let must = "at least 3: one residue between the two special tokens";
        require(length >= 3, "dataset.max_sequence_length", length, must)
    }
}

/// `esm`: the model whose embeddings are used, what it sees, and the cache they go to.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Esm {
    /// A Hugging Face directory (text), or a configuration with seeded weights (map); null: none.
    #[serde(deserialize_with = "directory_or_map")]
    pub model: Value,
    /// Whether ESM sees masked copies or the sequence itself.
    pub mask_policy: MaskPolicy,
    /// Masked copies of every sequence in a cache (policy `replicas`).
    pub replicas: usize,
    /// Seed of the masks.
    pub mask_seed: u64,
    /// Probability that a position is masked; null: `masking.mask_prob`.
    pub mask_prob: Option<f64>,
    /// What ESM sees at a modified residue.
    pub ptm_residue: PtmResidue,
    /// Padded tokens of a batch, specials included; null: `training.max_tokens_per_batch`.
    pub max_tokens_per_batch: Option<usize>,
    /// Number type of stored embeddings.
    pub dtype: Dtype,
    /// A vector a residue, or their mean.
    pub pooling: Pooling,
    /// Where the cache lies; null: `hdf5_cache/` and the run's name.
    pub cache_dir: Option<UserPath>,
    /// Longest sequence that ESM is given, in residues.
    pub max_length: usize,
    /// What happens to longer ones.
    pub over_length: OverLength,
    /// After which layer embeddings are taken, from 1; null: the last.
    pub layer: Option<usize>,
}

impl Default for Esm {
    fn default() -> Self {
        Esm {
            model: Value::Null,
            mask_policy: MaskPolicy::Replicas,
            replicas: 4,
            mask_seed: 0,
            mask_prob: None,
            ptm_residue: PtmResidue::Mask,
            max_tokens_per_batch: None,
            dtype: Dtype::Float16,
            pooling: Pooling::None,
            cache_dir: None,
            max_length: 1022,
            over_length: OverLength::Error,
            layer: None,
        }
    }
}

impl Section for Esm {
    const NAME: &'static str = "esm";

    fn check(&self) -> std::result::Result<(), Fault> {
        // A replica is a u16 in the cache.
        let fits = (1..=usize::from(u16::MAX)).contains(&self.replicas);
        require(fits, "esm.replicas", self.replicas, "from 1 to 65535")?;
        probability("esm.mask_prob", self.mask_prob.unwrap_or(0.0))?;
        some_if_given("esm.max_tokens_per_batch", self.max_tokens_per_batch)?;
        require(self.max_length >= 1, "esm.max_length", self.max_length, "at least 1")?;
        some_if_given("esm.layer", self.layer)
    }
}

/// A directory's path made absolute, a map as it is, or null.
fn directory_or_map<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Value, D::Error> {
    use serde::de::Error as _;
    match Value::deserialize(deserializer)? {
        Value::String(text) => {
            let path = UserPath::new(&text).map_err(D::Error::custom)?;
            serde_json::to_value(path).map_err(D::Error::custom)
        }
        value @ (Value::Object(_) | Value::Null) => Ok(value),
        other => Err(D::Error::custom(format_args!(
            "found {}, but a model directory or a map of ESM-2's configuration is needed",
            super::typed::describe(&other)
        ))),
    }
}

/// `masking`: what the masked language model must predict.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Masking {
    /// Probability that a position is masked.
    pub mask_prob: f64,
}

impl Default for Masking {
    fn default() -> Self {
        Masking { mask_prob: 0.15 }
    }
}

impl Section for Masking {
    const NAME: &'static str = "masking";

    fn check(&self) -> std::result::Result<(), Fault> {
        probability("masking.mask_prob", self.mask_prob)
    }
}

/// `training`: the loop. Steps are optimiser steps, counted over all ranks together.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Training {
    /// Passes over the training set.
    pub num_train_epochs: usize,
    /// Ends the run after so many steps, if sooner.
    pub max_steps: Option<usize>,
    /// Steps between evaluations (strategy `steps`).
    pub eval_steps: usize,
    /// When the validation set is evaluated.
    pub evaluation_strategy: EvaluationStrategy,
    /// Steps between lines of the log.
    pub logging_steps: usize,
    /// Steps between checkpoints; null: one at every evaluation.
    pub save_steps: Option<usize>,
    /// Checkpoints kept beside the best and the last; null: all.
    pub save_total_limit: Option<usize>,
    /// Most samples in a micro-batch.
    pub per_device_train_batch_size: usize,
    /// Most padded tokens in a micro-batch, specials included.
    pub max_tokens_per_batch: usize,
    /// Micro-batches of one step, over all ranks together.
    pub micro_batches_per_step: usize,
    /// Ranks that `gradient_accumulation_steps` counts for: g means g times this many micro-batches.
    pub reference_ranks: usize,
    /// Peak learning rate of AdamW.
    pub lr: f64,
    /// AdamW's decay rates of the two moments.
    pub betas: [f64; 2],
    /// AdamW's term against division by zero.
    pub eps: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients of a larger norm are scaled down to it; null: never.
    pub max_grad_norm: Option<f64>,
    /// How the learning rate changes.
    pub lr_scheduler_type: Schedule,
    /// Steps over which the learning rate rises from zero.
    pub warmup_steps: usize,
    /// Precision of forward and backward.
    pub precision: Precision,
    /// Threads that prepare batches; 0: the training thread does.
    pub num_workers: usize,
    /// From where the run goes on.
    pub resume_from_checkpoint: Resume,
    /// Ends the run after so many evaluations without a better one; null: never.
    pub early_stopping_patience: Option<usize>,
    /// The metric that decides what is best.
    pub metric_for_best_model: String,
    /// Its direction.
    pub greater_is_better: GreaterIsBetter,
    /// Further places that figures go to, beside metrics.jsonl and metrics.json.
    pub report_to: Vec<ReportTo>,
}

impl Default for Training {
    fn default() -> Self {
        Training {
            num_train_epochs: 10,
            max_steps: None,
            eval_steps: 100,
            evaluation_strategy: EvaluationStrategy::Steps,
            logging_steps: 1,
            save_steps: None,
            save_total_limit: Some(3),
            per_device_train_batch_size: 8,
            max_tokens_per_batch: 100_000,
            micro_batches_per_step: 8,
            reference_ranks: 1,
            lr: 4e-4,
            betas: [0.9, 0.98],
            eps: 1e-8,
            weight_decay: 0.01,
            max_grad_norm: Some(1.0),
            lr_scheduler_type: Schedule::Constant,
            warmup_steps: 0,
            precision: Precision::Fp32,
            num_workers: 2,
            resume_from_checkpoint: Resume::Auto,
            early_stopping_patience: None,
            metric_for_best_model: "val_loss".to_string(),
            greater_is_better: GreaterIsBetter::Auto,
            report_to: vec![ReportTo::Tensorboard],
        }
    }
}

impl Section for Training {
    const NAME: &'static str = "training";

    fn check(&self) -> std::result::Result<(), Fault> {
        for (key, n) in [
            ("training.num_train_epochs", self.num_train_epochs),
            ("training.eval_steps", self.eval_steps),
            ("training.logging_steps", self.logging_steps),
            ("training.per_device_train_batch_size", self.per_device_train_batch_size),
            ("training.micro_batches_per_step", self.micro_batches_per_step),
            ("training.reference_ranks", self.reference_ranks),
        ] {
            require(n >= 1, key, n, "at least 1")?;
        }
        for (key, n) in [
            ("training.max_steps", self.max_steps),
            ("training.save_steps", self.save_steps),
            ("training.save_total_limit", self.save_total_limit),
            ("training.early_stopping_patience", self.early_stopping_patience),
        ] {
            some_if_given(key, n)?;
        }
        let workers = self.num_workers;
        require(workers <= 256, "training.num_workers", workers, "at most 256")?;
        let tokens = self.max_tokens_per_batch;
        let must = "at least 3: one residue between the two special tokens";
        require(tokens >= 3, "training.max_tokens_per_batch", tokens, must)?;
        require(self.lr > 0.0, "training.lr", self.lr, "above 0")?;
        for beta in self.betas {
            require((0.0..1.0).contains(&beta), "training.betas", beta, "from 0 to below 1")?;
        }
        require(self.eps > 0.0, "training.eps", self.eps, "above 0")?;
        let decay = self.weight_decay;
        require(decay >= 0.0, "training.weight_decay", decay, "0 or more")?;
        let norm = self.max_grad_norm.unwrap_or(1.0);
        require(norm > 0.0, "training.max_grad_norm", norm, "above 0, or null for no clipping")
    }
}

/// `distributed`: how ranks work together. Nothing here changes what a run means.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Distributed {
    /// Through what gradients go; all else goes through MPI.
    pub backend: Backend,
    /// How gradients are summed.
    pub reduce: Reduce,
    /// Whether they are summed while backward goes on; no bit depends on it.
    pub overlap: bool,
    /// MB (2^20 bytes) of gradient that are summed at a time; null: 4, or 1/16 a rank where that is
    /// more. No bit of `exact` depends on it.
    pub bucket_mb: Option<f64>,
    /// Threads of a rank; null: the cores of this job on the node, shared among its ranks there.
    pub threads_per_rank: Option<usize>,
    /// Allows more ranks than micro-batches in a step.
    pub allow_idle_ranks: bool,
    /// Allows several ranks on one GPU; slower, and without NCCL.
    pub share_gpus: bool,
    /// Seconds without a sign of life after which a rank ends the job (exit code 76); null: never.
    pub heartbeat_timeout: Option<usize>,
    /// Seconds without a piece of work done by a rank that gives signs of life; null: never.
    pub progress_timeout: Option<usize>,
}

impl Default for Distributed {
    fn default() -> Self {
        Distributed {
            backend: Backend::default(),
            reduce: Reduce::default(),
            overlap: true,
            bucket_mb: None,
            threads_per_rank: None,
            allow_idle_ranks: false,
            share_gpus: false,
            heartbeat_timeout: Some(20),
            progress_timeout: Some(600),
        }
    }
}

impl Section for Distributed {
    const NAME: &'static str = "distributed";

    fn check(&self) -> std::result::Result<(), Fault> {
        if self.backend == Backend::Nccl && self.share_gpus {
            let what = "nccl needs a GPU for each rank, and share_gpus is true; use auto or mpi";
            return Err(Fault { key: "distributed.backend", what: what.to_string() });
        }
        let bucket = self.bucket_mb.unwrap_or(4.0);
        let sizes = "from 0.0001 to 1024, or null";
        require((1e-4..=1024.0).contains(&bucket), "distributed.bucket_mb", bucket, sizes)?;
        let threads = self.threads_per_rank.unwrap_or(1);
        let key = "distributed.threads_per_rank";
        require((1..=1024).contains(&threads), key, threads, "from 1 to 1024, or null")?;
        some_if_given("distributed.heartbeat_timeout", self.heartbeat_timeout)?;
        some_if_given("distributed.progress_timeout", self.progress_timeout)
    }
}
