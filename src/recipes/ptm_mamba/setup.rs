//! From the configuration to data, model and embedding job.

use super::embeddings::{Embeddings, Online};
use super::part_line;
use super::samples::Samples;
use super::task::{PtmData, PtmTask};
use crate::cache::{Cache, Fingerprint};
use crate::config::{
    ConfigFile, Dataset, Distributed, Esm, MaskPolicy, Masking, PtmResidue, Run, Section, Training,
    UserPath, write_yaml,
};
use crate::data::is_fasta;
use crate::data::masks::Masks;
use crate::data::plan::{MicroBatch, Plan, PlanConfig};
use crate::data::split::Split;
use crate::dist::Comm;
use crate::embed::{self, Encoder, FastaSequences, JobConfig, Sequences, Summary, Work};
use crate::error::{Error, Result};
use crate::files;
use crate::models::ptm_mamba::{PtmMamba, PtmMambaConfig};
use crate::progress;
use crate::recipes::session::Compute;
use crate::recipes::{Session, UseArgs, platform};
use crate::report::console::Console;
use crate::report::step_line::count;
use crate::torch::{Params, WeightFile};
use crate::train::evaluate::EvaluationPlan;
use crate::train::fit::Plans;
use crate::train::task::Part;
use crate::train::{checkpoint, run_dir};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The sections of this recipe.
pub struct Sections {
    pub run: Run,
    pub dataset: Dataset,
    pub esm: Esm,
    pub masking: Masking,
    pub training: Training,
    pub distributed: Distributed,
    pub model: ModelSection,
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
        config.only_sections(&[
            "run",
            "dataset",
            "esm",
            "model",
            "masking",
            "training",
            "distributed",
        ])?;
        let keys = crate::models::ptm_mamba::KEYS;
        let start: InitFrom = config.section_without("model", keys)?;
        let sections = Sections {
            run: config.read()?,
            dataset: config.read()?,
            esm: config.read()?,
            masking: config.read()?,
            training: config.read()?,
            distributed: config.read()?,
            model: ModelSection {
                init_from: start.init_from,
                shape: config.section_without("model", &["init_from"])?,
            },
        };
        sections.model.shape.validate().map_err(|e| e.at(config.place("model")))?;
        sections.check(config)?;
        Ok(sections)
    }

    /// What spans sections.
    fn check(&self, config: &ConfigFile) -> Result<()> {
        let refuse = |key: &str, what: &str, hint: &str| {
            Err(Error::usage(what).at(key).at(config.place(key)).hint(hint))
        };
        let own = self.masking.mask_prob;
        if self.esm.mask_prob.is_some_and(|p| p != own) && self.training.use_esm {
            return refuse(
                "esm.mask_prob",
                "ESM must not see what the loss asks for, so both masks are one",
                "leave esm.mask_prob out; masking.mask_prob holds for both",
            );
        }
        if self.training.use_esm
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
        let value = |v: std::result::Result<Value, serde_json::Error>| {
            v.map_err(|e| Error::bug(format!("the configuration cannot be written: {e}")))
        };
        let mut model = value(serde_json::to_value(&self.model.shape))?;
        if let (Some(map), Some(path)) = (model.as_object_mut(), &self.model.init_from) {
            map.insert("init_from".into(), json!(path));
        }
        Ok(json!({
            "recipe": "ptm_mamba",
            Run::NAME: value(serde_json::to_value(&self.run))?,
            Dataset::NAME: value(serde_json::to_value(&self.dataset))?,
            Esm::NAME: value(serde_json::to_value(&self.esm))?,
            "model": model,
            Masking::NAME: value(serde_json::to_value(&self.masking))?,
            Training::NAME: value(serde_json::to_value(&self.training))?,
            Distributed::NAME: value(serde_json::to_value(&self.distributed))?,
        }))
    }

    /// `esm.cache_dir`, or `hdf5_cache/` and the run's name.
    pub fn cache_dir(&self) -> PathBuf {
        match &self.esm.cache_dir {
            Some(dir) => dir.to_path_buf(),
            None => Path::new("hdf5_cache").join(&self.run.name),
        }
    }

    /// Threads, device and determinism, the same on every rank.
    pub fn compute(&self, session: &Session, stored_threads: Option<usize>) -> Result<Compute> {
        session.agree_on(&self.resolved()?)?;
        session.compute(self.run.device, self.training.precision, &self.distributed, stored_threads)
    }

    fn masks(&self) -> Masks {
        Masks::new(self.esm.mask_seed, self.masking.mask_prob)
    }

    /// What stored embeddings mean, beside the encoder's own part.
    fn meaning(&self) -> Map<String, Value> {
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

fn encoder(sections: &Sections, compute: &Compute) -> Result<Encoder> {
    Encoder::load(&sections.esm.model, sections.esm.layer, sections.run.seed, compute.device)
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
        max_tokens: esm.max_tokens_per_batch.unwrap_or(sections.training.max_tokens_per_batch),
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
    let (dataset, esm) = (&sections.dataset, &sections.esm);
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
    let samples = Samples::read(dataset, esm, &scratch)?;
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
        let samples = Samples::read(&sections.dataset, &sections.esm, &scratch(sections)?)?;
        samples.notes.iter().for_each(|note| session.console.line(note));
        let split = samples.split(&sections.dataset)?;
        let parts = [Part::Train, Part::Val, Part::Test].map(|p| samples.of_records(split.part(p)));
        progress::enter("opening the embeddings");
        let needs_encoder = sections.training.use_esm && !sections.esm.model.is_null();
        let encoder = needs_encoder.then(|| encoder(sections, compute)).transpose()?;
        let (embeddings, online) = if open {
            source(sections, encoder, compute)?
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
            ptm_mask_prob: sections.masking.ptm_mask_prob,
            embeddings,
            seed: sections.run.seed,
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
        Ok(describe(&self.plan(sections, Part::Train)?))
    }

    fn plan(&self, sections: &Sections, part: Part) -> Result<Plan> {
        let training = &sections.training;
        let config = PlanConfig {
            max_tokens: training.max_tokens_per_batch,
            max_samples: training.per_device_train_batch_size,
            micro_batches_per_step: training.micro_batches_per_step,
            seed: sections.run.seed,
        };
        let own = match part {
            Part::Train => &self.data.parts[0],
            Part::Val => &self.data.parts[1],
            Part::Test => &self.data.parts[2],
        };
        Plan::new(&self.data.lengths(part), config, |i| self.data.samples.name(own[i] as usize))
    }

    /// Plans of all parts.
    pub fn plans(&self, sections: &Sections, comm: &Comm) -> Result<Plans> {
        progress::enter("planning the batches");
        comm.together(|| self.make_plans(sections))
    }

    fn make_plans(&self, sections: &Sections) -> Result<Plans> {
        let train = self.plan(sections, Part::Train)?;
        if train.micro_batches_per_epoch() == 0 {
            return Err(Error::data("no sample is left to train on").at("dataset"));
        }
        let evaluation = |part| -> Result<EvaluationPlan> {
            let steps = self.plan(sections, part)?.evaluation();
            let all: Vec<MicroBatch> = steps.into_iter().flat_map(|s| s.micro_batches).collect();
            Ok(EvaluationPlan { part, micro_batches: Arc::new(all) })
        };
        let (val, test) = (evaluation(Part::Val)?, evaluation(Part::Test)?);
        Ok(Plans { train: Arc::new(train), val, test })
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
        params.initialise(sections.run.seed)?;
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

    /// `config.yaml` and `split_mapping.json` of a run.
    pub fn write_run_files(&self, dir: &Path, resolved: &Value) -> Result<()> {
        files::write_text(&dir.join("config.yaml"), &write_yaml(resolved))?;
        self.split.write_mapping(&dir.join("split_mapping.json"), &self.data.samples.ids)
    }

    /// What the first record of a run says.
    pub fn split_record(&self, sections: &Sections) -> ([usize; 3], u64, String) {
        let sizes = [Part::Train, Part::Val, Part::Test].map(|p| self.split.part(p).len());
        let file = sections.dataset.dataset_location.as_deref().map(|p| p.display().to_string());
        (sizes, sections.dataset.split_seed, file.unwrap_or_default())
    }
}

/// A plan's figures, for people.
pub fn describe(plan: &Plan) -> String {
    let padding = plan.padding();
    format!(
        "batch plan: {} micro-batches and {} steps an epoch, {} tokens, padding {:.1} %",
        count(plan.micro_batches_per_epoch() as u64),
        count(plan.steps_per_epoch() as u64),
        count(padding.tokens),
        100.0 * padding.share()
    )
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
fn source(
    sections: &Sections,
    encoder: Option<Encoder>,
    compute: &Compute,
) -> Result<(Embeddings, Option<Online>)> {
    let training = &sections.training;
    if !training.use_esm {
        return Ok((Embeddings::None, None));
    }
    if !training.use_precomputed_embeddings {
        let encoder = encoder.ok_or_else(|| Error::usage("no ESM-2 is named").at("esm.model"))?;
        return Ok((Embeddings::Online, Some(Online { encoder, device: compute.device })));
    }
    let dir = training.embeddings_dir.as_deref().map_or(sections.cache_dir(), Path::to_path_buf);
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
        if !training.allow_leak {
            return Err(leak("embeddings of upstream's kind saw all residues but PTM sites"));
        }
        return Ok((Embeddings::upstream(&dir)?, None));
    }
    let cache = Cache::open(&dir)?;
    let found = cache.fingerprint();
    if found.meaning.get("mask_policy") != Some(&json!("replicas")) && !training.allow_leak {
        return Err(leak("this cache holds embeddings of unmasked sequences"));
    }
    let mut wanted = Fingerprint { meaning: found.meaning.clone(), making: Map::new() };
    wanted.meaning.extend(sections.meaning());
    if let Some(encoder) = &encoder {
        wanted.meaning.extend(encoder.identity().clone());
    }
    wanted.check_meaning(found, dir.display())?;
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
fn init_from(params: &Params, path: &Path) -> Result<usize> {
    let file = WeightFile::open(&run_dir::best_of(path))?;
    let rename = |name: &str| (!PtmMambaConfig::is_unused(name)).then(|| name.to_string());
    let report = params.load(&file, rename)?;
    report.strict(&file)?;
    Ok(report.loaded)
}

/// The checkpoint that a command uses, by default the best of the newest run; its weights are put
/// into `params`. Gives its path.
pub fn load_weights(
    sections: &Sections,
    session: &Session,
    args: &UseArgs,
    params: &Params,
) -> Result<PathBuf> {
    let run = &sections.run;
    let dir: PathBuf = session.world.comm.decide(|| match &args.checkpoint {
        Some(path) => Ok(run_dir::best_of(path)),
        None => {
            let runs = run_dir::list(&run.output_dir, &run.name)?;
            let best = runs.iter().map(|r| r.join("best.ckpt")).find(|p| p.exists());
            best.ok_or_else(|| {
                Error::damaged(format!("no run called {} has a best checkpoint", run.name))
                    .at(run.output_dir.display())
                    .hint("train first, or name one with --checkpoint")
            })
        }
    })?;
    if dir.join("manifest.json").exists() {
        checkpoint::verify(&dir)?;
    }
    init_from(params, &dir)?;
    Ok(dir)
}

/// The step of a run's newest checkpoint, 0 without one.
pub fn last_step(run_dir: &Path) -> u64 {
    checkpoint::linked_step(&run_dir.join("last.ckpt")).unwrap_or(0)
}

/// Threads a rank that a run's newest checkpoint was made with.
pub fn stored_threads(run_dir: &Path) -> Option<usize> {
    let dir = run_dir.join("last.ckpt");
    checkpoint::open(&dir).ok().map(|loaded| loaded.state.threads_per_rank)
}
