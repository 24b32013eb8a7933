//! Masked language modelling of PTM sequences, with ESM-2's embedding of the same masked sequence.
//!
//! Which positions are hidden comes from `data::masks` in training, validation and cache alike, so
//! the embedding never saw what the loss asks for. All PTM tokens are hidden from ESM always; a
//! draw per micro-batch decides whether the model must predict all of them too (upstream,
//! `protein_lm/modeling/getters/mask.py`).

use super::embeddings::{Embeddings, Online};
use super::samples::Samples;
use crate::data::masks::Masks;
use crate::data::ptm_vocab::{MASK, PAD, is_ptm, is_special};
use crate::error::Result;
use crate::models::ptm_mamba::PtmMamba;
use crate::rng::{Key, Purpose};
use crate::torch::{Params, pinned, upload};
use crate::train::task::{BatchKey, BatchSize, Data, Output, Part, Phase, Task, TermSpec};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Samples, split, masks and embeddings: what the loader's threads need.
pub struct PtmData {
    pub samples: Arc<Samples>,
    /// Samples of train, val and test; plans count within these.
    pub parts: [Vec<u32>; 3],
    pub masks: Masks,
    /// Probability that a micro-batch must predict all its PTM tokens.
    pub ptm_mask_prob: f64,
    pub embeddings: Embeddings,
    pub seed: u64,
    /// Where batches will go.
    pub device: Device,
}

/// A collated micro-batch: B samples, padded to L.
pub struct PtmBatch {
    /// Tokens as the model sees them, `[B, L]` int64.
    ids: Tensor,
    /// Flat positions (row * L + column) that are predicted, and what stands there, `[n]` int64.
    positions: Tensor,
    targets: Tensor,
    /// Of the predicted, which are PTM tokens.
    ptm: Vec<bool>,
    lengths: Vec<i64>,
    /// Embeddings `[B, L, D]`, if they came from a cache.
    esm: Option<Tensor>,
    /// ESM ids of each row, if they are to be embedded on the way.
    esm_ids: Vec<Vec<u8>>,
    size: BatchSize,
}

fn part_index(part: Part) -> usize {
    match part {
        Part::Train => 0,
        Part::Val => 1,
        Part::Test => 2,
    }
}

impl PtmData {
    /// The samples of a part.
    pub fn part(&self, part: Part) -> &[u32] {
        &self.parts[part_index(part)]
    }

    /// Padded lengths of a part's samples, specials included.
    pub fn lengths(&self, part: Part) -> Vec<u32> {
        let own = self.part(part).iter();
        own.map(|&i| self.samples.samples[i as usize].tokens.len() as u32).collect()
    }

    /// Whether this micro-batch must predict all its PTM tokens.
    fn predicts_all_ptm(&self, part: Part, key: BatchKey) -> bool {
        let draw = Key::new(self.seed, Purpose::PtmDraw);
        let place = match key.phase {
            Phase::Train => key.step,
            // Beyond any step: every evaluation draws the same.
            Phase::Evaluate => u64::MAX - part_index(part) as u64,
        };
        f64::from(draw.uniform(key.micro_batch, key.epoch as u32, place)) < self.ptm_mask_prob
    }
}

impl Data for PtmData {
    type Batch = PtmBatch;

    fn collate(&self, part: Part, key: BatchKey, samples: &[u32]) -> Result<PtmBatch> {
        let own = &self.parts[part_index(part)];
        let rows: Vec<_> =
            samples.iter().map(|&i| &self.samples.samples[own[i as usize] as usize]).collect();
        let width = rows.iter().map(|s| s.tokens.len()).max().unwrap_or(0);
        let copy = match key.phase {
            Phase::Train => self.embeddings.copy_of_epoch(key.epoch),
            Phase::Evaluate => 0,
        };
        let all_ptm = self.predicts_all_ptm(part, key);
        let mut ids = vec![i64::from(PAD); rows.len() * width];
        let (mut positions, mut targets, mut ptm) = (vec![], vec![], vec![]);
        for (row, sample) in rows.iter().enumerate() {
            for (column, &token) in sample.tokens.iter().enumerate() {
                let at = row * width + column;
                ids[at] = i64::from(token);
                if is_special(token) {
                    continue;
                }
                let residue = column - 1;
                let hash = sample.item.sequence_hash;
                let hidden = self.masks.hides(residue, copy, hash, sample.esm_ids[residue]);
                if hidden || (all_ptm && is_ptm(token)) {
                    ids[at] = i64::from(MASK);
                    positions.push(at as i64);
                    targets.push(i64::from(token));
                    ptm.push(is_ptm(token));
                }
            }
        }
        let esm = self.embeddings.cached(&self.samples, &rows, width, copy)?;
        let esm_ids = match self.embeddings {
            Embeddings::Online => rows
                .iter()
                .map(|sample| {
                    let mut own = sample.esm_ids.clone();
                    self.masks.apply(&mut own, copy, sample.item.sequence_hash);
                    own
                })
                .collect(),
            _ => Vec::new(),
        };
        let tokens = rows.iter().map(|s| s.tokens.len() as u64).sum();
        let shape = [rows.len() as i64, width as i64];
        let ready = |t: Tensor| pinned(t, self.device);
        Ok(PtmBatch {
            ids: ready(Tensor::from_slice(&ids).view(shape))?,
            positions: ready(Tensor::from_slice(&positions))?,
            targets: ready(Tensor::from_slice(&targets))?,
            ptm,
            lengths: rows.iter().map(|s| s.tokens.len() as i64).collect(),
            esm: esm.map(ready).transpose()?,
            esm_ids,
            size: BatchSize {
                samples: rows.len() as u64,
                tokens,
                padded: (rows.len() * width) as u64,
            },
        })
    }

    fn counts(&self, batch: &PtmBatch) -> Vec<f64> {
        vec![batch.ptm.len() as f64]
    }

    fn size(&self, batch: &PtmBatch) -> BatchSize {
        batch.size
    }
}

/// The model and what it needs on the main thread.
pub struct PtmTask {
    pub data: Arc<PtmData>,
    pub model: PtmMamba,
    pub params: Params,
    /// ESM itself, where it runs within the step.
    pub online: Option<Online>,
    /// Files of a checkpoint beside weights and state.
    pub files: Vec<(String, String)>,
}

impl Task for PtmTask {
    type Data = PtmData;

    fn data(&self) -> Arc<PtmData> {
        self.data.clone()
    }

    fn params(&self) -> &Params {
        &self.params
    }

    fn terms(&self) -> Vec<TermSpec> {
        vec![TermSpec { name: "mlm", weight: 1.0 }]
    }

    fn has_perplexity(&self) -> bool {
        true
    }

    fn figures(&self) -> Vec<&'static str> {
        vec!["acc", "ptm_acc"]
    }

    fn forward(&self, batch: &PtmBatch, _key: BatchKey) -> Result<Output> {
        let device = self.params.device();
        let esm = match (&batch.esm, &self.online) {
            (Some(esm), _) => Some(upload(esm, device)?),
            (None, Some(online)) => Some(online.embed(&batch.esm_ids, batch.ids.size()[1])?),
            (None, None) => None,
        };
        let ids = upload(&batch.ids, device)?;
        let hidden = self.model.forward(&ids, esm.as_ref(), &batch.lengths);
        let hidden = hidden.reshape([-1, hidden.size()[2]]);
        // Only what is predicted needs logits.
        let hidden = hidden.index_select(0, &upload(&batch.positions, device)?);
        let logits = self.model.logits(&hidden).to_kind(Kind::Float);
        let targets = upload(&batch.targets, device)?;
        let sum =
            logits.cross_entropy_loss(&targets, None::<&Tensor>, tch::Reduction::Sum, -100, 0.0);
        let right = logits.argmax(1, false).eq_tensor(&targets).to_device(Device::Cpu);
        let right: Vec<bool> = Vec::try_from(right).unwrap_or_default();
        let among = |want_ptm: bool| {
            let chosen = right.iter().zip(&batch.ptm).filter(|(_, ptm)| !want_ptm || **ptm);
            let (hits, count) =
                chosen.fold((0u64, 0u64), |(h, n), (r, _)| (h + u64::from(*r), n + 1));
            (hits as f64, count as f64)
        };
        let (acc, ptm_acc) = (among(false), among(true));
        Ok(Output {
            sums: vec![sum],
            figures: vec![("acc", acc.0, acc.1), ("ptm_acc", ptm_acc.0, ptm_acc.1)],
            rows: Vec::new(),
        })
    }

    fn checkpoint_files(&self) -> Vec<(String, String)> {
        self.files.clone()
    }
}
