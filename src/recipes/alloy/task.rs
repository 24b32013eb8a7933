//! What is computed: masked language modelling of texts, or one number or class a text.

use super::table::target::Target;
use crate::data::token_masks::TokenMasks;
use crate::error::{Error, Result};
use crate::metrics::classification::{self, Classification};
use crate::metrics::registry::{Direction, Merge, Registry};
use crate::metrics::regression;
use crate::metrics::table::Table;
use crate::models::bert::{BertModel, Texts};
use crate::nn::freeze::Freeze;
use crate::torch::{Params, pinned, upload};
use crate::train::task::{BatchKey, BatchSize, Data, Output, Part, Phase, Task, TermSpec};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// A text as tokens, and what is to be found out about it.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Token ids, specials included, cut to what the model takes.
    pub ids: Vec<u32>,
    /// Normalised value, or number of the class.
    pub target: f64,
}

/// What a model of texts is asked for.
#[derive(Clone, Debug)]
pub enum Goal {
    /// The hidden tokens.
    Tokens(TokenMasks),
    /// A normalised value.
    Value,
    /// A class; what its samples weigh in the loss.
    Class(Vec<f64>),
}

/// Tokens of all parts: what the loader's threads need.
pub struct TextData {
    /// Texts of train, val and test.
    pub parts: [Vec<Encoded>; 3],
    pub goal: Goal,
    /// What fills a batch up.
    pub pad: u32,
    /// Where batches will go.
    pub device: Device,
}

/// What a batch's loss compares with.
enum Answers {
    /// Flat positions (row * L + column) and the tokens there, both `[n]` int64.
    Tokens { positions: Tensor, tokens: Tensor },
    /// `[B]` float.
    Values(Tensor),
    /// `[B]` int64.
    Classes(Tensor),
}

/// A collated micro-batch: B texts, padded to L.
pub struct TextBatch {
    /// `[B, L]` int64.
    ids: Tensor,
    /// `[B]` int64.
    lengths: Tensor,
    answers: Answers,
    /// Targets as numbers, and which samples of the part these are.
    targets: Vec<f64>,
    samples: Vec<u32>,
    /// What the loss's sum is divided by.
    count: f64,
    size: BatchSize,
}

impl TextData {
    /// The texts of a part.
    pub fn part(&self, part: Part) -> &[Encoded] {
        match part {
            Part::Train => &self.parts[0],
            Part::Val => &self.parts[1],
            Part::Test => &self.parts[2],
        }
    }

    /// Answers of a batch whose rows begin at multiples of `width`, and what they count; tokens to
    /// be predicted are hidden in `ids`.
    fn answers(
        &self,
        ids: &mut [i64],
        rows: &[&Encoded],
        samples: &[u32],
        copy: u32,
    ) -> (Answers, f64) {
        match &self.goal {
            Goal::Value => {
                let values: Vec<f32> = rows.iter().map(|row| row.target as f32).collect();
                (Answers::Values(Tensor::from_slice(&values)), rows.len() as f64)
            }
            Goal::Class(weights) => {
                let classes: Vec<i64> = rows.iter().map(|row| row.target as i64).collect();
                let count = classes.iter().map(|class| weights[*class as usize]).sum();
                (Answers::Classes(Tensor::from_slice(&classes)), count)
            }
            Goal::Tokens(masks) => {
                let width = ids.len() / rows.len().max(1);
                let (mut positions, mut tokens) = (Vec::new(), Vec::new());
                for (row, (text, sample)) in rows.iter().zip(samples).enumerate() {
                    let mut own = text.ids.clone();
                    for (at, token) in masks.apply(&mut own, *sample, copy) {
                        positions.push((row * width + at) as i64);
                        tokens.push(i64::from(token));
                        ids[row * width + at] = i64::from(own[at]);
                    }
                }
                let count = tokens.len() as f64;
                let (positions, tokens) =
                    (Tensor::from_slice(&positions), Tensor::from_slice(&tokens));
                (Answers::Tokens { positions, tokens }, count)
            }
        }
    }
}

impl Data for TextData {
    type Batch = TextBatch;

    fn collate(&self, part: Part, key: BatchKey, samples: &[u32]) -> Result<TextBatch> {
        let own = self.part(part);
        let rows: Vec<&Encoded> = samples.iter().map(|&i| &own[i as usize]).collect();
        let (mut ids, lengths, width) = padded(&rows, self.pad);
        let copy = match key.phase {
            Phase::Train => key.epoch as u32 + 1,
            Phase::Evaluate => 0,
        };
        let (answers, count) = self.answers(&mut ids, &rows, samples, copy);
        let ready = |t: Tensor| pinned(t, self.device);
        Ok(TextBatch {
            ids: ready(Tensor::from_slice(&ids).view([rows.len() as i64, width as i64]))?,
            answers: match answers {
                Answers::Tokens { positions, tokens } => {
                    Answers::Tokens { positions: ready(positions)?, tokens: ready(tokens)? }
                }
                Answers::Values(values) => Answers::Values(ready(values)?),
                Answers::Classes(classes) => Answers::Classes(ready(classes)?),
            },
            size: BatchSize {
                samples: rows.len() as u64,
                tokens: lengths.iter().sum::<i64>() as u64,
                padded: (rows.len() * width) as u64,
            },
            lengths: ready(Tensor::from_slice(&lengths))?,
            targets: rows.iter().map(|row| row.target).collect(),
            samples: samples.to_vec(),
            count,
        })
    }

    fn counts(&self, batch: &TextBatch) -> Vec<f64> {
        vec![batch.count]
    }

    fn size(&self, batch: &TextBatch) -> BatchSize {
        batch.size
    }
}

/// The model and what it needs on the main thread.
pub struct TextTask {
    pub data: Arc<TextData>,
    pub model: BertModel,
    pub params: Params,
    pub freeze: Freeze,
    /// What a value or class means.
    pub target: Target,
    /// Files of a checkpoint beside weights and state.
    pub files: Vec<(String, String)>,
}

/// A padded batch: ids `[B, L]` and lengths `[B]`, both int64, and the padded tokens.
fn padded(rows: &[&Encoded], pad: u32) -> (Vec<i64>, Vec<i64>, usize) {
    let width = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
    let mut ids = vec![i64::from(pad); rows.len() * width];
    for (row, text) in rows.iter().enumerate() {
        for (column, id) in text.ids.iter().enumerate() {
            ids[row * width + column] = i64::from(*id);
        }
    }
    (ids, rows.iter().map(|row| row.ids.len() as i64).collect(), width)
}

impl TextTask {
    /// One normalised value, or the classes' probabilities, for each text.
    pub fn predict(&self, texts: &[&Encoded]) -> Result<Vec<Vec<f64>>> {
        let (ids, lengths, width) = padded(texts, self.data.pad);
        let device = self.params.device();
        let ids = Tensor::from_slice(&ids).view([texts.len() as i64, width as i64]);
        let (ids, lengths) =
            (ids.to_device(device), Tensor::from_slice(&lengths).to_device(device));
        let texts = Texts { ids: &ids, lengths: Some(&lengths), train: false, read: None };
        let logits = tch::no_grad(|| self.model.forward(&texts))?.to_kind(Kind::Float);
        self.answers_of(&logits)
    }

    /// What logits `[B, labels]` say: a value, or the classes' probabilities.
    fn answers_of(&self, logits: &Tensor) -> Result<Vec<Vec<f64>>> {
        let labels = logits.size()[1] as usize;
        let told = match self.data.goal {
            Goal::Class(_) => numbers(&logits.softmax(1, Kind::Double))?,
            _ => numbers(logits)?,
        };
        Ok(told.chunks_exact(labels.max(1)).map(<[f64]>::to_vec).collect())
    }

    /// Logits of a batch, float.
    fn logits(&self, batch: &TextBatch, read: Option<&Tensor>, train: bool) -> Result<Tensor> {
        let device = self.params.device();
        let (ids, lengths) = (upload(&batch.ids, device)?, upload(&batch.lengths, device)?);
        let padded = batch.size.padded > batch.size.tokens;
        let texts = Texts { ids: &ids, lengths: padded.then_some(&lengths), train, read };
        Ok(self.model.forward(&texts)?.to_kind(Kind::Float))
    }
}

/// A tensor's numbers on the CPU.
fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    let flat = tensor.to_kind(Kind::Double).to_device(Device::Cpu).contiguous().view([-1]);
    Vec::try_from(flat).map_err(|e| Error::bug(format!("predictions: {e}")))
}

impl Task for TextTask {
    type Data = TextData;

    fn data(&self) -> Arc<TextData> {
        self.data.clone()
    }

    fn params(&self) -> &Params {
        &self.params
    }

    fn trains(&self, name: &str) -> bool {
        !self.freeze.frozen(name)
    }

    fn terms(&self) -> Vec<TermSpec> {
        let name = match self.data.goal {
            Goal::Tokens(_) => "mlm",
            Goal::Value => "mse_loss",
            Goal::Class(_) => "cross_entropy",
        };
        vec![TermSpec { name, weight: 1.0 }]
    }

    fn has_perplexity(&self) -> bool {
        matches!(self.data.goal, Goal::Tokens(_))
    }

    fn figures(&self) -> Vec<&'static str> {
        if self.has_perplexity() { vec!["acc"] } else { Vec::new() }
    }

    fn table_figures(&self) -> Vec<String> {
        match &self.data.goal {
            Goal::Tokens(_) => Vec::new(),
            Goal::Value | Goal::Class(_) => figure_names(&self.target),
        }
    }

    fn measure(&self, _part: Part, table: &Table) -> Result<Vec<(String, f64)>> {
        match &self.data.goal {
            Goal::Tokens(_) => Ok(Vec::new()),
            Goal::Value | Goal::Class(_) if table.is_empty() => Ok(Vec::new()),
            Goal::Value | Goal::Class(_) => measure(&self.target, table),
        }
    }

    fn forward(&self, batch: &TextBatch, key: BatchKey) -> Result<Output> {
        let device = self.params.device();
        let train = key.phase == Phase::Train;
        let (mut figures, mut rows) = (Vec::new(), Vec::<Vec<f64>>::new());
        let sum = match &batch.answers {
            Answers::Tokens { positions, tokens } => {
                let (positions, tokens) = (upload(positions, device)?, upload(tokens, device)?);
                let logits = self.logits(batch, Some(&positions), train)?;
                let hits = logits.argmax(1, false).eq_tensor(&tokens).sum(Kind::Int64);
                figures.push(("acc", hits.int64_value(&[]) as f64, batch.count));
                logits.cross_entropy_loss(&tokens, None::<&Tensor>, tch::Reduction::Sum, -100, 0.0)
            }
            Answers::Values(values) => {
                let logits = self.logits(batch, None, train)?;
                if !train {
                    rows = self.answers_of(&logits)?;
                }
                let apart = logits.squeeze_dim(1) - upload(values, device)?;
                (&apart * &apart).sum(Kind::Float)
            }
            Answers::Classes(classes) => {
                let logits = self.logits(batch, None, train)?;
                if !train {
                    rows = self.answers_of(&logits)?;
                }
                let Goal::Class(weights) = &self.data.goal else {
                    return Err(Error::bug("classes in a task that has none"));
                };
                let weights = Tensor::from_slice(weights).to_kind(Kind::Float).to_device(device);
                let classes = upload(classes, device)?;
                let sum = tch::Reduction::Sum;
                logits.cross_entropy_loss(&classes, Some(&weights), sum, -100, 0.0)
            }
        };
        rows.iter_mut().zip(&batch.targets).for_each(|(row, target)| row.push(*target));
        let rows = batch.samples.iter().map(|i| u64::from(*i)).zip(rows).collect();
        Ok(Output { sums: vec![sum], figures, rows })
    }

    fn checkpoint_files(&self) -> Vec<(String, String)> {
        self.files.clone()
    }
}

/// The metrics that a run of this target can be judged by.
pub fn registry(target: &Target) -> Result<Registry> {
    let mut registry = Registry::new();
    match target {
        Target::Regression { unit, .. } => {
            registry.add("loss", Direction::Lower, Merge::Additive, "mean squared error")?;
            regression::register(&mut registry, "", "normalised")?;
            regression::register(&mut registry, RAW, unit.as_deref().unwrap_or("as in the table"))?;
        }
        Target::Classes { names, .. } => {
            registry.add("loss", Direction::Lower, Merge::Additive, "weighted cross entropy")?;
            classification::register(&mut registry, names.len())?;
            for name in names.iter().filter(|_| names.len() > 2) {
                let what = format!("area under the ROC curve of {name}");
                registry.add(format!("auc_{name}"), Direction::Higher, Merge::Table, what)?;
            }
        }
    }
    Ok(registry)
}

/// The metrics of masked language modelling.
pub fn pretraining_registry() -> Result<Registry> {
    let mut registry = Registry::new();
    registry.add("loss", Direction::Lower, Merge::Additive, "cross entropy of hidden tokens")?;
    registry.add("acc", Direction::Higher, Merge::Additive, "hidden tokens found")?;
    Ok(registry)
}

/// What figures in the target's own unit end with.
const RAW: &str = "_raw";

/// Names of the figures of [`measure`].
fn figure_names(target: &Target) -> Vec<String> {
    let registry = registry(target).unwrap_or_default();
    registry.names(Merge::Table)
}

/// The figures of a table that holds predictions and, in the last column, targets.
fn measure(target: &Target, table: &Table) -> Result<Vec<(String, f64)>> {
    match target {
        Target::Regression { .. } => {
            let (predictions, targets) = (table.column(0), table.column(1));
            let normalised = regression::regression(&predictions, &targets)?;
            let real = |values: &[f64]| values.iter().map(|v| target.real(*v)).collect::<Vec<_>>();
            let raw = regression::regression(&real(&predictions), &real(&targets))?;
            let mut figures: Vec<(String, f64)> =
                normalised.figures().map(|(name, value)| (name.to_string(), value)).to_vec();
            let in_units = raw.figures().into_iter().filter(|(name, _)| *name != "r2");
            figures.extend(in_units.map(|(name, value)| (format!("{name}{RAW}"), value)));
            // scikit-learn's answer to one sample; a record holds numbers.
            figures.retain(|(_, value)| !value.is_nan());
            Ok(figures)
        }
        Target::Classes { names, .. } => {
            let found = classes_of(table, names.len())?;
            let figures = found.figures().into_iter();
            let mut figures: Vec<(String, f64)> =
                figures.filter_map(|(name, value)| Some((name.to_string(), value?))).collect();
            if names.len() > 2 {
                let each = names.iter().zip(&found.per_class);
                figures
                    .extend(each.filter_map(|(name, own)| Some((format!("auc_{name}"), own.auc?))));
            }
            Ok(figures)
        }
    }
}

/// Class probabilities `[samples, classes]`, row by row, and true classes of a table that holds both.
pub fn probabilities_of(table: &Table, classes: usize) -> (Vec<f64>, Vec<usize>) {
    let mut probabilities = Vec::with_capacity(table.len() * classes);
    let mut targets = Vec::with_capacity(table.len());
    for (_, row) in table.rows() {
        probabilities.extend_from_slice(&row[..classes]);
        targets.push(row[classes] as usize);
    }
    (probabilities, targets)
}

/// Everything about such a table.
pub fn classes_of(table: &Table, classes: usize) -> Result<Classification> {
    let (probabilities, targets) = probabilities_of(table, classes);
    classification::classification(&probabilities, classes, &targets)
}
