//! From the sections to data, model and embedding job.

use super::embeddings::{Embeddings, Online};
use super::part_line;
use super::samples::Samples;
use super::sections::Sections;
use super::task::{PtmData, PtmTask};
use crate::cache::{Cache, Fingerprint};
use crate::config::MaskPolicy;
use crate::data::is_fasta;
use crate::data::split::Split;
use crate::dist::Comm;
use crate::embed::{self, Encoder, FastaSequences, JobConfig, Sequences, Summary, Work};
use crate::error::{Error, Result};
use crate::models::ptm_mamba::{PtmMamba, PtmMambaConfig};
use crate::progress;
use crate::recipes::running::{self, Planned, Shared};
use crate::recipes::session::Compute;
use crate::recipes::using::load_all;
use crate::recipes::{Session, platform};
use crate::report::console::Console;
use crate::report::step_line::count;
use crate::torch::Params;
use crate::train::fit::Plans;
use crate::train::task::Part;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn encoder(sections: &Sections, compute: &Compute) -> Result<Encoder> {
    Encoder::load(&sections.esm.model, sections.esm.layer, sections.shared.run.seed, compute.device)
}

/// The scratch directory for unpacked copies: where the cache is, or will be.
fn scratch(sections: &Sections) -> Result<PathBuf> {
    let dir = std::env::temp_dir();
    if dir.is_dir() { Ok(dir) } else { Ok(sections.cache_dir()) }
}

/// Makes the embedding cache, or what is missing of it.
pub fn embed(
    sections: &Sections,
    session: &Session,
    compute: &Compute,
    part: (usize, usize),
) -> Result<(embed::Ended, Summary)> {
    let comm = &session.world.comm;
    progress::enter("loading ESM-2");
    let encoder = comm.together(|| encoder(sections, compute))?;
    let esm = &sections.esm;
    let making = [
        ("device", json!(if compute.device == tch::Device::Cpu { "cpu" } else { "cuda" })),
        ("platform", json!(platform(compute.device))),
        ("threads", json!(compute.threads)),
    ];
    let config = JobConfig {
        dir: sections.cache_dir(),
        dtype: esm.dtype,
        pooling: esm.pooling,
        replicas: (esm.mask_policy == MaskPolicy::Replicas)
            .then(|| (esm.replicas as u16, sections.masks())),
        max_tokens: esm
            .max_tokens_per_batch
            .unwrap_or(sections.shared.training.max_tokens_per_batch),
        meaning: sections.meaning(),
        making: making.into_iter().map(|(k, v)| (k.to_string(), v)).collect(),
        part,
    };
    progress::enter("reading sequences");
    let sequences = comm.together(|| sequences(sections, session))?;
    progress::enter("planning the embedding job");
    let work = comm.together(|| Work::plan(&*sequences, &encoder, &config))?;
    embed::run(&work, comm, &session.console)
}

/// What is to be embedded: a FASTA by offset, or the samples of a table.
fn sequences(sections: &Sections, session: &Session) -> Result<Box<dyn Sequences>> {
    let Sections { dataset, source, esm, .. } = sections;
    let scratch = scratch(sections)?;
    let by_offset = dataset.subsample.is_none() && dataset.max_sequence_length.is_none();
    if let Some(path) = dataset.dataset_location.as_deref().filter(|_| by_offset)
        && is_fasta(path)?
    {
        let sequences = FastaSequences::open(path, &scratch, esm.max_length, esm.over_length)?;
        let c = sequences.index().counts();
        session.console.line(&format!(
            "{}: {} sequences, {} residues; {} lower-case letters raised, {} trailing * dropped, {} repeats left out",
            path.display(), count(c.records as u64), count(c.residues), count(c.lower_case as u64), count(c.stars as u64), count(c.duplicates as u64)
        ));
        return Ok(Box::new(sequences));
    }
    let samples = Samples::read(dataset, source, esm, &scratch)?;
    samples.notes.iter().for_each(|note| session.console.line(note));
    Ok(Box::new(samples))
}

/// Data and embeddings of a run.
pub struct Setup {
    data: Arc<PtmData>,
    split: Split,
    online: std::cell::RefCell<Option<Online>>,
    esm_dim: i64,
    device: tch::Device,
    console: Arc<Console>,
}

impl Setup {
    /// Reads samples, splits them, and opens the source of embeddings.
    pub fn new(sections: &Sections, session: &Session, compute: &Compute) -> Result<Setup> {
        session.world.comm.together(|| Self::make(sections, session, compute, true))
    }

    /// The same without embeddings, for plans and shapes alone.
    pub fn for_shapes(sections: &Sections, session: &Session, compute: &Compute) -> Result<Setup> {
        session.world.comm.together(|| Self::make(sections, session, compute, false))
    }

    fn make(
        sections: &Sections,
        session: &Session,
        compute: &Compute,
        open: bool,
    ) -> Result<Setup> {
        progress::enter("reading the data");
        let Sections { dataset, source, esm, .. } = sections;
        let samples = Samples::read(dataset, source, esm, &scratch(sections)?)?;
        samples.notes.iter().for_each(|note| session.console.line(note));
        let split = samples.split(&sections.dataset)?;
        let parts = Part::ALL.map(|p| samples.of_records(split.part(p)));
        progress::enter("opening the embeddings");
        let needs_encoder = sections.embedding.use_esm && !sections.esm.model.is_null();
        let encoder = needs_encoder.then(|| encoder(sections, compute)).transpose()?;
        let (embeddings, online) = if open {
            open_source(sections, encoder, compute)?
        } else {
            (Embeddings::None, encoder.map(|encoder| Online { encoder, device: compute.device }))
        };
        let known = embeddings.dim().or(online.as_ref().map(|o| o.encoder.dim()));
        let esm_dim = esm_dim(sections, known)?;
        let online = std::cell::RefCell::new(online.filter(|_| open));
        let data = PtmData {
            samples: Arc::new(samples),
            parts,
            masks: sections.masks(),
            ptm_mask_prob: sections.ptm.ptm_mask_prob,
            embeddings,
            seed: sections.shared.run.seed,
            device: compute.device,
        };
        Ok(Setup {
            data: Arc::new(data),
            split,
            online,
            esm_dim,
            device: compute.device,
            console: session.console.clone(),
        })
    }

    /// Samples of a part.
    pub fn part_len(&self, part: Part) -> usize {
        self.data.lengths(part).len()
    }

    /// Records, parts and PTM tokens, for people.
    pub fn describe_data(&self) -> String {
        let samples = &self.data.samples;
        let (commonest, ptm) = samples.commonest_ptm();
        let tokens: u64 = samples.samples.iter().map(|s| s.tokens.len() as u64).sum();
        format!(
            "{} proteins, {} samples ({}), {} tokens | {} PTM tokens ({:.2} % of all, the commonest {:.1} % of them)",
            count(samples.ids.len() as u64),
            count(samples.samples.len() as u64),
            part_line(self),
            count(tokens),
            count(ptm),
            100.0 * ptm as f64 / tokens.max(1) as f64,
            100.0 * commonest
        )
    }

    /// The training plan, for people.
    pub fn describe_plan(&self, sections: &Sections) -> Result<String> {
        let Shared { run, training, .. } = &sections.shared;
        let name = |i| self.name(Part::Train, i);
        let planned = Planned { lengths: self.data.lengths(Part::Train), name: &name };
        Ok(running::describe_plan(&running::plan(training, run.seed, &planned)?))
    }

    /// What a sample of a part is called in messages.
    fn name(&self, part: Part, sample: usize) -> String {
        self.data.samples.name(self.data.part(part)[sample] as usize)
    }

    /// Plans of all parts.
    pub fn plans(&self, sections: &Sections, comm: &Comm) -> Result<Plans> {
        progress::enter("planning the batches");
        let Shared { run, training, .. } = &sections.shared;
        let names = Part::ALL.map(|part| move |i| self.name(part, i));
        let planned =
            |at: usize| Planned { lengths: self.data.lengths(Part::ALL[at]), name: &names[at] };
        comm.together(|| running::plans(training, run.seed, [0, 1, 2].map(planned)))
    }

    /// Parameters of the model, from its shape alone.
    pub fn shapes(&self, sections: &Sections) -> Result<usize> {
        let params = Params::new(tch::Device::Cpu);
        PtmMamba::new(&params.root(), &sections.model.shape, self.esm_dim);
        Ok(params.count())
    }

    /// The model with its initial weights, and all that computes with it. To be called once.
    pub fn task(&self, sections: &Sections, comm: &Comm) -> Result<PtmTask> {
        progress::enter("making the model");
        comm.together(|| self.make_task(sections))
    }

    fn make_task(&self, sections: &Sections) -> Result<PtmTask> {
        let params = Params::new(self.device);
        let model = PtmMamba::new(&params.root(), &sections.model.shape, self.esm_dim);
        params.initialise(sections.shared.run.seed)?;
        if let Some(path) = &sections.model.init_from {
            let loaded = init_from(&params, path).map_err(|e| e.at("model.init_from"))?;
            self.console.line(&format!("{loaded} tensors start from {}", path.display()));
        }
        let mut shape = sections.model.shape.clone();
        shape.esm_embed_dim = Some(self.esm_dim);
        Ok(PtmTask {
            data: self.data.clone(),
            model,
            params,
            online: self.online.take(),
            files: checkpoint_files(&shape)?,
        })
    }

    /// `split_mapping.json` of a run.
    pub fn write_mapping(&self, dir: &Path) -> Result<()> {
        self.split.write_mapping(&dir.join("split_mapping.json"), &self.data.samples.ids)
    }

    /// Records of each part.
    pub fn sizes(&self) -> [usize; 3] {
        Part::ALL.map(|p| self.split.part(p).len())
    }
}

/// Width of ESM's embeddings: what the source has, which the configuration may repeat.
fn esm_dim(sections: &Sections, known: Option<usize>) -> Result<i64> {
    let told = sections.model.shape.esm_embed_dim;
    match (known.map(|d| d as i64), told) {
        (Some(known), Some(told)) if known != told => {
            Err(Error::usage(format!("ESM's embeddings are {known} wide, not {told}"))
                .at("model.esm_embed_dim")
                .hint("leave it out: it is taken from the ESM model or cache"))
        }
        (known, told) => Ok(known.or(told).unwrap_or(1)),
    }
}

/// Opens the source of embeddings and refuses one that saw the answers.
fn open_source(
    sections: &Sections,
    encoder: Option<Encoder>,
    compute: &Compute,
) -> Result<(Embeddings, Option<Online>)> {
    let wanted = &sections.embedding;
    if !wanted.use_esm {
        return Ok((Embeddings::None, None));
    }
    if !wanted.use_precomputed_embeddings {
        let encoder = encoder.ok_or_else(|| Error::usage("no ESM-2 is named").at("esm.model"))?;
        return Ok((Embeddings::Online, Some(Online { encoder, device: compute.device })));
    }
    let dir = wanted.embeddings_dir.as_deref().map_or(sections.cache_dir(), Path::to_path_buf);
    let leak = |what: &str| {
        Error::damaged(what).at(dir.display()).hint(
            "masked language modelling on it would read the answers: use esm.mask_policy: \
                 replicas, or training.use_precomputed_embeddings: false; training.allow_leak: \
                 true reproduces upstream's numbers",
        )
    };
    if !dir.join("manifest.json").exists()
        && !dir.join("plan.json").exists()
        && holds_upstream(&dir)
    {
        if !wanted.allow_leak {
            return Err(leak("embeddings of upstream's kind saw all residues but PTM sites"));
        }
        return Ok((Embeddings::upstream(&dir)?, None));
    }
    let cache = Cache::open(&dir)?;
    let found = cache.fingerprint();
    if found.meaning.get("mask_policy") != Some(&json!("replicas")) && !wanted.allow_leak {
        return Err(leak("this cache holds embeddings of unmasked sequences"));
    }
    let mut own = Fingerprint { meaning: found.meaning.clone(), making: Map::new() };
    own.meaning.extend(sections.meaning());
    if let Some(encoder) = &encoder {
        own.meaning.extend(encoder.identity().clone());
    }
    own.check_meaning(found, dir.display())?;
    if cache.manifest().plan.pooling != crate::config::Pooling::None {
        return Err(Error::usage("a model of residues needs a vector a residue, not their mean")
            .at("esm.pooling"));
    }
    let copies = found.meaning.get("replicas").and_then(Value::as_u64).unwrap_or(1);
    Ok((Embeddings::Cache { cache: Box::new(cache), copies }, None))
}

fn holds_upstream(dir: &Path) -> bool {
    ["train", "val", "test"].iter().any(|p| dir.join(format!("{p}_embeddings.h5")).is_file())
}

/// Files of a checkpoint beside weights and state.
fn checkpoint_files(shape: &PtmMambaConfig) -> Result<Vec<(String, String)>> {
    let failed = |e| Error::bug(format!("the model's configuration cannot be written: {e}"));
    let mut config = serde_json::to_value(shape).map_err(failed)?;
    if let Some(map) = config.as_object_mut() {
        map.insert("architecture".into(), json!("ptm_mamba"));
        map.insert("tied_weights".into(), json!({"lm_head.weight": "backbone.embedding.weight"}));
    }
    let vocabulary = crate::data::ptm_vocab::TOKENS.join("\n") + "\n";
    Ok(vec![("config.json".into(), format!("{config:#}\n")), ("vocab.txt".into(), vocabulary)])
}

/// Weights by name and shape from a run, a checkpoint or upstream's tensors as safetensors; gives
/// the number of tensors.
pub fn init_from(params: &Params, path: &Path) -> Result<usize> {
    load_all(params, path, PtmMambaConfig::is_unused)
}
