//! The configuration of this recipe: shared sections, upstream's own keys, and what spans both.

use crate::config::{
    ConfigFile, Dataset, Distributed, Esm, MaskPolicy, Masking, PtmResidue, Run, Section, Training,
    UserPath, probability,
};
use crate::data::masks::Masks;
use crate::error::{Error, Result};
use crate::models::ptm_mamba::{KEYS, PtmMambaConfig};
use crate::recipes::Session;
use crate::recipes::running::{Shared, joined};
use crate::recipes::session::Compute;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The sections of this recipe.
pub struct Sections {
    /// What every recipe has.
    pub shared: Shared,
    pub dataset: Dataset,
    /// This recipe's keys of `dataset`.
    pub source: Source,
    pub esm: Esm,
    pub masking: Masking,
    /// This recipe's keys of `masking`.
    pub ptm: PtmMasking,
    /// This recipe's keys of `training`.
    pub embedding: Embedding,
    pub model: ModelSection,
}

/// This recipe's keys of `dataset`: which columns and files hold the sequences.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Source {
    /// The sequences (FASTA) that a label table in `dataset_location` speaks about.
    pub sequences: Option<UserPath>,
    /// CSV column of the sequences.
    pub sequence_column_name: String,
    /// CSV column of the ids; a file without it is numbered from 0.
    pub id_column_name: String,
}

impl Default for Source {
    fn default() -> Self {
        Source {
            sequences: None,
            sequence_column_name: "ptm_seq".to_string(),
            id_column_name: "unique_id".to_string(),
        }
    }
}

/// This recipe's keys of `masking`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PtmMasking {
    /// Probability that a micro-batch must predict all its PTM tokens as well.
    pub ptm_mask_prob: f64,
}

impl Default for PtmMasking {
    fn default() -> Self {
        PtmMasking { ptm_mask_prob: 0.8 }
    }
}

/// This recipe's keys of `training`: ESM's part in it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Embedding {
    /// Whether ESM embeddings enter the model.
    pub use_esm: bool,
    /// Whether they are read from a cache, or computed within the step.
    pub use_precomputed_embeddings: bool,
    /// The cache to read, or a folder of upstream's `.h5` files; null: `esm.cache_dir`.
    pub embeddings_dir: Option<UserPath>,
    /// Allows training by masking on embeddings that saw the answers, as upstream did.
    pub allow_leak: bool,
}

impl Default for Embedding {
    fn default() -> Self {
        Embedding {
            use_esm: true,
            use_precomputed_embeddings: false,
            embeddings_dir: None,
            allow_leak: false,
        }
    }
}

/// `model`: upstream's keys, and where weights may come from.
pub struct ModelSection {
    /// Weights to start from: a run, a checkpoint, or upstream's tensors as safetensors.
    pub init_from: Option<UserPath>,
    /// The model's shape.
    pub shape: PtmMambaConfig,
}

/// The key of `model` that is no part of the shape.
#[derive(Deserialize)]
struct InitFrom {
    #[serde(default)]
    init_from: Option<UserPath>,
}

impl Sections {
    /// Reads and checks all sections.
    pub fn read(config: &ConfigFile) -> Result<Sections> {
        let mut config = config.clone();
        config.set_default("run.name", json!("ptm-mamba"))?;
        config.only_sections(&[
            "run",
            "dataset",
            "esm",
            "model",
            "masking",
            "training",
            "distributed",
        ])?;
        let start: InitFrom = config.section_without("model", KEYS)?;
        let (dataset, source) = config.read_with()?;
        let (masking, ptm) = config.read_with::<Masking, PtmMasking>()?;
        let (training, embedding) = config.read_with()?;
        let shared = Shared { run: config.read()?, training, distributed: config.read()? };
        let model = ModelSection {
            init_from: start.init_from,
            shape: config.section_without("model", &["init_from"])?,
        };
        model.shape.validate().map_err(|e| e.at(config.place("model")))?;
        let esm = config.read()?;
        let sections = Sections { shared, dataset, source, esm, masking, ptm, embedding, model };
        sections.check(&config)?;
        Ok(sections)
    }

    /// What spans sections, and ranges of this recipe's own keys.
    fn check(&self, config: &ConfigFile) -> Result<()> {
        let refuse = |key: &str, what: &str, hint: &str| {
            Err(Error::usage(what).at(key).at(config.place(key)).hint(hint))
        };
        probability("masking.ptm_mask_prob", self.ptm.ptm_mask_prob)
            .map_err(|fault| Error::usage(fault.what).at(fault.key).at(config.place(fault.key)))?;
        let own = self.masking.mask_prob;
        if self.esm.mask_prob.is_some_and(|p| p != own) && self.embedding.use_esm {
            return refuse(
                "esm.mask_prob",
                "ESM must not see what the loss asks for, so both masks are one",
                "leave esm.mask_prob out; masking.mask_prob holds for both",
            );
        }
        if self.embedding.use_esm
            && self.esm.model.is_null()
            && self.model.shape.esm_embed_dim.is_none()
        {
            return refuse(
                "esm.model",
                "no ESM-2 is named",
                "name a Hugging Face directory or an inline configuration, or set training.use_esm: false",
            );
        }
        Ok(())
    }

    /// The whole configuration with every default, as it is stored.
    pub fn resolved(&self) -> Result<Value> {
        let mut model = joined(&self.model.shape, &())?;
        if let (Some(map), Some(path)) = (model.as_object_mut(), &self.model.init_from) {
            map.insert("init_from".into(), json!(path));
        }
        let Shared { run, training, distributed } = &self.shared;
        Ok(json!({
            "recipe": "ptm_mamba",
            Run::NAME: joined(run, &())?,
            Dataset::NAME: joined(&self.dataset, &self.source)?,
            Esm::NAME: joined(&self.esm, &())?,
            "model": model,
            Masking::NAME: joined(&self.masking, &self.ptm)?,
            Training::NAME: joined(training, &self.embedding)?,
            Distributed::NAME: joined(distributed, &())?,
        }))
    }

    /// `esm.cache_dir`, or `hdf5_cache/` and the run's name.
    pub fn cache_dir(&self) -> PathBuf {
        match &self.esm.cache_dir {
            Some(dir) => dir.to_path_buf(),
            None => Path::new("hdf5_cache").join(&self.shared.run.name),
        }
    }

    /// Whether training needs an embedding cache first.
    pub fn needs_cache(&self) -> bool {
        let embedding = &self.embedding;
        embedding.use_esm
            && embedding.use_precomputed_embeddings
            && embedding.embeddings_dir.is_none()
    }

    /// Threads, device and determinism, the same on every rank.
    pub fn compute(&self, session: &Session, stored_threads: Option<usize>) -> Result<Compute> {
        session.agree_on(&self.resolved()?)?;
        self.shared.compute(session, stored_threads)
    }

    /// The masks that ESM's input and the loss share.
    pub fn masks(&self) -> Masks {
        Masks::new(self.esm.mask_seed, self.masking.mask_prob)
    }

    /// What stored embeddings mean, beside the encoder's own part.
    pub fn meaning(&self) -> Map<String, Value> {
        let esm = &self.esm;
        let masked = esm.mask_policy == MaskPolicy::Replicas;
        let policy = if masked { "replicas" } else { "unmasked" };
        let fields = [
            ("specials", json!("cls_eos")),
            ("alphabet", json!("ESM-2, 33 tokens")),
            ("mask_policy", json!(policy)),
            ("replicas", if masked { json!(esm.replicas) } else { Value::Null }),
            ("mask_seed", if masked { json!(esm.mask_seed) } else { Value::Null }),
            ("mask_prob", if masked { json!(self.masking.mask_prob) } else { Value::Null }),
            (
                "ptm_residue",
                json!(if esm.ptm_residue == PtmResidue::Mask { "mask" } else { "original" }),
            ),
            ("max_length", json!(esm.max_length)),
            ("over_length", json!(esm.over_length)),
            ("max_sequence_length", json!(self.dataset.max_sequence_length)),
            ("precision", json!("float32")),
            ("dtype", json!(esm.dtype.name())),
            ("pooling", json!(esm.pooling.name())),
        ];
        fields.into_iter().map(|(k, v)| (k.to_string(), v)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Training;

    #[test]
    fn shipped_configurations_are_valid() {
        for (name, text) in [
            ("ptm_mamba", include_str!("../../../configs/ptm_mamba.yaml")),
            ("ptm_mamba_published", include_str!("../../../configs/ptm_mamba_published.yaml")),
            ("ptm_mamba_small", include_str!("../../../configs/ptm_mamba_small.yaml")),
        ] {
            let config = ConfigFile::from_text("c.yaml", text, &[]).unwrap();
            let sections = Sections::read(&config).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(sections.model.shape.vocab_size, 59, "{name}");
            assert_eq!(sections.shared.distributed.threads_per_rank, Some(1), "{name}");
            if name == "ptm_mamba" {
                // The seed's values are the defaults.
                let Sections { shared, dataset, source, masking, ptm, embedding, .. } = sections;
                assert_eq!(shared.training, Training::default());
                assert_eq!(shared.run, Run { name: "ptm-mamba".into(), ..Run::default() });
                assert_eq!((masking, ptm), Default::default());
                assert_eq!((&source, &embedding), (&Source::default(), &Embedding::default()));
                assert!(dataset.dataset_location.clone().unwrap().is_absolute());
                assert_eq!(Dataset { dataset_location: None, ..dataset }, Dataset::default());
                // And every key of the shared sections is explained there.
                let training = joined(&shared.training, &embedding).unwrap();
                for key in training.as_object().unwrap().keys() {
                    assert!(config.tree()["training"].get(key).is_some(), "{key}");
                }
            }
        }
    }
}
