//! Where the model's ESM embeddings come from: a cache, upstream's files, ESM itself, or nowhere.

use super::samples::{Sample, Samples};
use crate::cache::{Cache, RecordRef, UpstreamFile};
use crate::embed::Encoder;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tch::{Device, Kind, Tensor};

/// The source, as the loader's threads see it.
pub enum Embeddings {
    /// The model looks at tokens alone.
    None,
    /// ESM runs within the step, on the main thread ([`Online`]).
    Online,
    /// A cache with this many masked copies (1: the sequences as they are).
    Cache {
        /// Open and checked.
        cache: Box<Cache>,
        /// Copies K; epoch e reads copy e mod K.
        copies: u64,
    },
    /// Upstream's `{train,val,test}_embeddings.h5`; they saw what the loss asks for.
    Upstream {
        /// The files of the folder. HDF5 reads under one lock anyway.
        files: Mutex<Vec<UpstreamFile>>,
        /// Width of an embedding.
        dim: usize,
    },
}

impl Embeddings {
    /// The masked copy that is used in an epoch.
    pub fn copy_of_epoch(&self, epoch: u64) -> u64 {
        match self {
            Embeddings::Cache { copies, .. } => epoch % copies,
            _ => epoch,
        }
    }

    /// Width of an embedding, where the source knows it.
    pub fn dim(&self) -> Option<usize> {
        match self {
            Embeddings::Cache { cache, .. } => Some(cache.manifest().plan.dim),
            Embeddings::Upstream { dim, .. } => Some(*dim),
            _ => None,
        }
    }

    /// Opens the folder of upstream's files.
    pub fn upstream(dir: &Path) -> Result<Embeddings> {
        let paths: Vec<PathBuf> = ["train", "val", "test"]
            .iter()
            .map(|part| dir.join(format!("{part}_embeddings.h5")))
            .filter(|path| path.is_file())
            .collect();
        let files: Vec<UpstreamFile> =
            paths.iter().map(|p| UpstreamFile::open(p)).collect::<Result<_>>()?;
        let Some(dim) = files.first().map(UpstreamFile::dim) else {
            return Err(Error::damaged("no embeddings in this folder")
                .at(dir.display())
                .hint("run `trainer embed CONFIG`, or put train_embeddings.h5 and so on there"));
        };
        Ok(Embeddings::Upstream { files: Mutex::new(files), dim })
    }

    /// Embeddings `[B, L, D]` of these rows from a cache or files, zeros at padding.
    pub fn cached(
        &self,
        samples: &Samples,
        rows: &[&Sample],
        width: usize,
        copy: u64,
    ) -> Result<Option<Tensor>> {
        let Some(dim) = self.dim() else { return Ok(None) };
        let mut values = vec![0f32; rows.len() * width * dim];
        let mut one = Vec::new();
        for (row, sample) in rows.iter().enumerate() {
            let id = &samples.ids[sample.record as usize];
            self.read(id, sample, copy, &mut one)
                .map_err(|e| e.at(&samples.places[sample.record as usize]))?;
            let wanted = sample.tokens.len() * dim;
            if one.len() != wanted {
                return Err(Error::damaged(format!(
                    "{id} has {} stored rows, the sample has {} tokens",
                    one.len() / dim,
                    sample.tokens.len()
                )));
            }
            values[row * width * dim..][..wanted].copy_from_slice(&one);
        }
        let shape = [rows.len() as i64, width as i64, dim as i64];
        Ok(Some(Tensor::from_slice(&values).view(shape)))
    }

    /// One sample's rows: `<cls>`, residues, `<eos>`.
    fn read(&self, id: &str, sample: &Sample, copy: u64, out: &mut Vec<f32>) -> Result<()> {
        match self {
            Embeddings::Cache { cache, .. } => {
                let record = record_of(cache, id, sample, copy)?;
                cache.read_with_specials(record, out)
            }
            Embeddings::Upstream { files, .. } => {
                let files = files.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                for file in files.iter() {
                    if let Some(found) = file.find(id, sample.window)? {
                        return file.read(&found, out);
                    }
                }
                Err(Error::damaged(format!("{id} has no embedding in these files")))
            }
            Embeddings::None | Embeddings::Online => Ok(()),
        }
    }
}

/// The record of a sample's copy; what stands there must be the sample's own window.
fn record_of(cache: &Cache, id: &str, sample: &Sample, copy: u64) -> Result<RecordRef> {
    let record = cache.find(id, sample.window, copy as u16)?.ok_or_else(|| {
        Error::damaged(format!("{id} (window {}, copy {copy}) is not in the cache", sample.window))
            .hint("the data have changed since; run `trainer embed CONFIG` into another esm.cache_dir")
    })?;
    let head = cache.head(record)?;
    if head.sequence_hash != sample.item.sequence_hash || head.range != sample.item.range {
        return Err(Error::damaged(format!("{id} has another sequence in the cache")).hint(
            "the data have changed since; run `trainer embed CONFIG` into another esm.cache_dir",
        ));
    }
    Ok(record)
}

/// ESM itself, within the step.
pub struct Online {
    /// The model.
    pub encoder: Encoder,
    /// Where the embeddings are wanted.
    pub device: Device,
}

impl Online {
    /// Embeddings `[B, L, D]` of rows of ESM ids without specials, zeros at padding.
    pub fn embed(&self, rows: &[Vec<u8>], width: i64) -> Result<Tensor> {
        let views: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
        let packed = self.encoder.embed(&views)?;
        let dim = self.encoder.dim() as i64;
        let out = Tensor::zeros([rows.len() as i64, width, dim], (Kind::Float, self.device));
        let mut at = 0;
        for (row, ids) in rows.iter().enumerate() {
            let n = ids.len() as i64 + 2;
            out.get(row as i64).narrow(0, 0, n).copy_(&packed.narrow(0, at, n));
            at += n;
        }
        Ok(out)
    }
}
