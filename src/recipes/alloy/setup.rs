//! From the sections to tokenizer, model and tokens of all parts.

use super::sections::{Balanced, ClassWeights, Sections, StageName};
use super::table::output::Layout;
use super::table::samples::Samples;
use super::table::target::Target;
use super::table::text::TextPlan;
use super::task::{Encoded, Goal, TextData, TextTask};
use crate::data::token_masks::TokenMasks;
use crate::data::tokenizer::{TextTokenizer, TokenizerKind};
use crate::error::{Error, Result};
use crate::files;
use crate::models::bert::{BertConfig, BertModel, Head, ModelType};
use crate::nn::freeze::Freeze;
use crate::progress;
use crate::recipes::running::{self, Planned};
use crate::recipes::session::Compute;
use crate::report::console::{Console, table};
use crate::report::step_line::count;
use crate::torch::{Params, WeightFile, refuse_pickle};
use crate::train::fit::Plans;
use crate::train::run_dir;
use crate::train::task::Part;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file of a checkpoint that holds its [`Purpose`].
const PURPOSE: &str = "alloy.json";

/// What a model was trained for: all that predictions need beside model and tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Purpose {
    /// The way back from numbers.
    pub target: Target,
    /// What makes texts of a table's rows; None: it was trained on ready-made samples.
    pub text: Option<TextPlan>,
}

/// Tokens of a tokenizer that `prepare` trains where `model.vocab_size` says nothing.
const VOCAB_SIZE: usize = 2000;

/// Where the model comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// As the configuration says: `model.init_from`, or fresh weights.
    Configured,
    /// A checkpoint of the stage before, whose encoder is taken.
    Pretrained(PathBuf),
    /// A checkpoint, all of whose weights are taken.
    Checkpoint(PathBuf),
}

/// Tokenizer and shape of a model.
pub struct Shape {
    pub tokenizer: Arc<TextTokenizer>,
    pub config: BertConfig,
    /// Tokens of a text at most, specials included.
    pub longest: usize,
    /// Where weights come from; None: fresh ones.
    weights: Option<PathBuf>,
}

/// Where `prepare` leaves the tokenizer that it trains.
pub fn tokenizer_dir(sections: &Sections) -> Result<PathBuf> {
    let alloy = &sections.alloy;
    let home = match alloy.is_ready_made() {
        true => alloy.prepared_dir.to_path_buf(),
        false => Layout::new(alloy, &alloy.picked()?).dir(),
    };
    Ok(home.join("tokenizer"))
}

/// Whether the tokenizer is one that `prepare` trains.
pub fn trains_tokenizer(sections: &Sections) -> bool {
    sections.model.init_from.is_none() && sections.model.tokenizer.is_none()
}

/// The kind and size of the tokenizer that `prepare` trains.
pub fn tokenizer_wanted(sections: &Sections) -> Result<(TokenizerKind, usize)> {
    let config = configured(sections, None)?;
    let kind = match config.model_type {
        ModelType::Roberta => TokenizerKind::Bpe,
        ModelType::Bert => TokenizerKind::WordPiece { lowercase: true },
    };
    let told = sections.model.given.contains_key("vocab_size");
    Ok((kind, if told { config.vocab_size as usize } else { VOCAB_SIZE }))
}

/// The shape as configured, over that of a directory.
fn configured(sections: &Sections, dir: Option<&Path>) -> Result<BertConfig> {
    let mut keys = match dir {
        Some(dir) => read_config(&dir.join("config.json"))?,
        None => Map::from_iter([("model_type".to_string(), json!("roberta"))]),
    };
    keys.extend(sections.model.given.clone());
    let place =
        dir.map_or("model".to_string(), |dir| dir.join("config.json").display().to_string());
    let config = BertConfig::from_hf(&Value::Object(keys)).map_err(|e| e.at(&place))?;
    config.validate().map_err(|e| e.at(place))?;
    Ok(config)
}

fn read_config(path: &Path) -> Result<Map<String, Value>> {
    const HINT: &str = "name a run, a checkpoint of it, or a Hugging Face directory with config.json \
                        and model.safetensors";
    if !path.is_file() {
        let dir = path.parent().unwrap_or(path);
        let what = if dir.exists() { "no config.json here" } else { "there is no such directory" };
        return Err(Error::damaged(what).at(dir.display()).hint(HINT));
    }
    serde_json::from_str(&files::read_text(path)?).map_err(|e| {
        Error::damaged(format!("not a model's configuration: {e}"))
            .at(format!("{}:{}", path.display(), e.line()))
            .hint(HINT)
    })
}

impl Shape {
    /// Opens tokenizer and configuration, and refuses those that do not fit each other.
    pub fn open(sections: &Sections, origin: &Origin) -> Result<Shape> {
        let weights = match origin {
            Origin::Checkpoint(dir) | Origin::Pretrained(dir) => Some(dir.clone()),
            Origin::Configured => sections.model.init_from.as_deref().map(run_dir::best_of),
        };
        let told = sections.model.tokenizer.as_deref().map(Path::to_path_buf);
        if let Some(dir) = weights.iter().chain(&told).find(|dir| !dir.exists()) {
            return Err(Error::damaged("there is no such directory")
                .at(format!("model: {}", dir.display()))
                .hint(
                    "copy the model's Hugging Face directory there (config.json, \
                     model.safetensors, tokenizer.json), or leave model.init_from out for fresh weights",
                ));
        }
        let home = match (origin, told, &weights) {
            (Origin::Checkpoint(dir), _, _) => dir.clone(),
            (_, Some(told), _) => told,
            (_, None, Some(dir)) => dir.clone(),
            (_, None, None) => tokenizer_dir(sections)?,
        };
        // First what is wrong with the directory as a whole, then its tokenizer.
        if let Some(dir) = &weights {
            refuse_pickle(dir)?;
        }
        let mut config = configured(sections, weights.as_deref())?;
        let mut tokenizer = TextTokenizer::open(&home)?;
        if weights.is_none() && !sections.model.given.contains_key("vocab_size") {
            config.vocab_size = tokenizer.vocab_size() as i64;
            let special = tokenizer.special();
            config.pad_token_id = special.pad.map_or(config.pad_token_id, i64::from);
            config.validate().map_err(|e| e.at("model"))?;
        }
        tokenizer.fits(config.vocab_size, config.pad_token_id).map_err(|e| e.at(home.display()))?;
        let most = config.longest() as usize;
        let longest = sections.dataset.max_sequence_length.unwrap_or(most);
        if longest > most {
            return Err(Error::usage(format!("the model takes {most} tokens, not {longest}"))
                .at("dataset.max_sequence_length"));
        }
        tokenizer.set_model_max_length(most);
        Ok(Shape { tokenizer: Arc::new(tokenizer), config, longest, weights })
    }

    /// A text as token ids.
    pub fn encode(&self, text: &str) -> Result<(Vec<u32>, bool)> {
        let encoded = self.tokenizer.encode(text, self.longest)?;
        Ok((encoded.ids, encoded.cut))
    }

    /// Parameters with values, and the model. A head that `model.init_from` has not is drawn.
    pub fn model(
        &self,
        sections: &Sections,
        origin: &Origin,
        head: Head,
        compute: &Compute,
        console: &Console,
    ) -> Result<(Params, BertModel)> {
        progress::enter("making the model");
        let params = Params::new(compute.device);
        let model = BertModel::new(&params.root(), &self.config, head);
        params.initialise(sections.shared.run.seed)?;
        let from = match origin {
            Origin::Pretrained(dir) => Some(dir),
            _ => self.weights.as_ref(),
        };
        let Some(dir) = from else { return Ok((params, model)) };
        let whole = matches!(origin, Origin::Checkpoint(_));
        let report = model.load(&params, &WeightFile::open(dir)?, !whole)?;
        if !whole {
            console.line(&format!("{} tensors start from {}", report.loaded, dir.display()));
            for (what, names) in [("fresh", &report.missing), ("not used", &report.unexpected)] {
                if !names.is_empty() {
                    console.line(&format!("  {what}: {}", names.join(", ")));
                }
            }
        }
        Ok((params, model))
    }
}

/// Tokens of all parts, and how many texts were cut.
pub struct Texts {
    pub parts: [Vec<Encoded>; 3],
    /// Names of the samples, for messages.
    pub names: [Vec<String>; 3],
    /// Texts that are longer than the model takes.
    pub cut: u64,
}

impl Texts {
    /// Turns all samples into tokens.
    pub fn encode(samples: &Samples, shape: &Shape) -> Result<Texts> {
        progress::enter("turning texts into tokens");
        let mut texts = Texts { parts: Default::default(), names: Default::default(), cut: 0 };
        let parts = [&samples.train, &samples.val, &samples.test];
        for (at, part) in parts.into_iter().enumerate() {
            for sample in part {
                progress::tick()?;
                let (ids, cut) = shape.encode(&sample.text).map_err(|e| e.at(&sample.place))?;
                texts.cut += u64::from(cut);
                texts.parts[at].push(Encoded { ids, target: sample.target });
                texts.names[at].push(format!("{} ({})", sample.id, sample.place));
            }
        }
        Ok(texts)
    }

    /// Texts in all.
    pub fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.len() as u64).sum()
    }

    /// Plans of all parts.
    pub fn plans(&self, training: &crate::config::Training, seed: u64) -> Result<Plans> {
        progress::enter("planning the batches");
        let names = [0, 1, 2].map(|at| move |i: usize| self.names[at][i].clone());
        let planned = |at: usize| Planned {
            lengths: self.parts[at].iter().map(|text| text.ids.len() as u32).collect(),
            name: &names[at],
        };
        running::plans(training, seed, [0, 1, 2].map(planned))
    }

    /// Samples and truncation, for people.
    pub fn describe(&self, longest: usize) -> String {
        let sizes: Vec<String> = Part::ALL
            .iter()
            .zip(&self.parts)
            .map(|(part, texts)| format!("{} {}", part.name(), count(texts.len() as u64)))
            .collect();
        let tokens: usize = self.parts.iter().flatten().map(|text| text.ids.len()).sum();
        format!(
            "{} texts ({}), {} tokens | {} ({:.1} %) are longer than {longest} tokens and cut",
            count(self.len()),
            sizes.join(", "),
            count(tokens as u64),
            count(self.cut),
            100.0 * self.cut as f64 / self.len().max(1) as f64
        )
    }
}

/// What a stage asks of the model.
pub fn goal(
    sections: &Sections,
    stage: StageName,
    shape: &Shape,
    target: &Target,
    train: &[Encoded],
) -> Result<Goal> {
    match (stage, target) {
        (StageName::Pretrain, _) => {
            let special = shape.tokenizer.special();
            let mask = special.mask.ok_or_else(|| {
                Error::damaged("this tokenizer has no mask token")
                    .at(shape.tokenizer.origin())
                    .hint("leave the stage pretrain out, or take another tokenizer")
            })?;
            let all = 0..shape.tokenizer.vocab_size() as u32;
            let ordinary = all.filter(|id| !special.is_special(*id)).collect();
            let own = &sections.replacement;
            let shares = (sections.masking.mask_prob, own.replace_mask, own.replace_random);
            let seed = sections.shared.run.seed;
            Ok(Goal::Tokens(TokenMasks::new(seed, shares, mask, ordinary)))
        }
        (StageName::Train, Target::Regression { .. }) => Ok(Goal::Value),
        (StageName::Train, Target::Classes { names, .. }) => {
            class_weights(sections.loss.class_weights.as_ref(), names, train).map(Goal::Class)
        }
    }
}

/// What the samples of each class weigh.
fn class_weights(
    told: Option<&ClassWeights>,
    names: &[String],
    train: &[Encoded],
) -> Result<Vec<f64>> {
    let n = names.len();
    match told {
        None => Ok(vec![1.0; n]),
        Some(ClassWeights::Told(weights)) if weights.len() == n => Ok(weights.clone()),
        Some(ClassWeights::Told(weights)) => Err(Error::usage(format!(
            "{} weights for {n} classes: {}",
            weights.len(),
            names.join(", ")
        ))
        .at("loss.class_weights")),
        Some(ClassWeights::Word(Balanced::Balanced)) => {
            let mut counts = vec![0u64; n];
            train.iter().for_each(|text| counts[text.target as usize] += 1);
            // A class that nothing is trained on weighs nothing in any sum.
            let weight = |c: &u64| train.len() as f64 / (n as f64 * (*c).max(1) as f64);
            Ok(counts.iter().map(weight).collect())
        }
    }
}

/// The head that a goal needs.
pub fn head(goal: &Goal) -> Head {
    match goal {
        Goal::Tokens(_) => Head::MaskedLm,
        Goal::Value => Head::Sequence { num_labels: 1 },
        Goal::Class(weights) => Head::Sequence { num_labels: weights.len() as i64 },
    }
}

/// What the main thread computes with.
pub fn task(
    sections: &Sections,
    shape: &Shape,
    (params, model): (Params, BertModel),
    (goal, purpose): (Goal, Purpose),
    parts: [Vec<Encoded>; 3],
) -> Result<TextTask> {
    let files = checkpoint_files(shape, head(&goal), &purpose)?;
    let device = params.device();
    let freeze = match goal {
        // All of it learns the language.
        Goal::Tokens(_) => Freeze::default(),
        _ => sections.freeze.clone(),
    };
    let names: Vec<String> = params.list().into_iter().map(|(name, _)| name).collect();
    freeze.check(&names)?;
    let pad = shape.config.pad_token_id as u32;
    let data = TextData { parts, goal, pad, device };
    Ok(TextTask { data: Arc::new(data), model, params, freeze, target: purpose.target, files })
}

/// What is trained and what is not, as a table; nothing where all is.
pub fn describe_freeze(task: &TextTask) -> Option<String> {
    if task.freeze.is_empty() {
        return None;
    }
    let params = task.params.list();
    let sizes = params.iter().map(|(name, tensor)| (name.as_str(), tensor.numel()));
    let rows: Vec<Vec<String>> = task
        .freeze
        .rows(sizes)
        .into_iter()
        .map(|row| vec![row.group, count(row.trained as u64), count(row.frozen as u64)])
        .collect();
    Some(table(&["part", "trained", "frozen"], &rows))
}

/// Files of a checkpoint beside weights and state, so that transformers opens it too.
fn checkpoint_files(shape: &Shape, head: Head, purpose: &Purpose) -> Result<Vec<(String, String)>> {
    let labels = match &purpose.target {
        Target::Classes { names, .. } => names.clone(),
        Target::Regression { name, .. } => vec![name.clone()],
    };
    let config = shape.config.to_hf(head, &labels)?;
    let purpose = serde_json::to_string_pretty(purpose)
        .map_err(|e| Error::bug(format!("a model's purpose cannot be written: {e}")))?;
    let mut all = vec![("config.json".to_string(), format!("{config:#}\n"))];
    all.extend(shape.tokenizer.files()?);
    all.push((PURPOSE.to_string(), purpose + "\n"));
    Ok(all)
}

/// What the model of a checkpoint was trained for.
pub fn read_purpose(dir: &Path) -> Result<Purpose> {
    refuse_pickle(dir)?;
    let path = dir.join(PURPOSE);
    if !path.exists() {
        return Err(Error::damaged("this is no model that the recipe alloy has trained")
            .at(path.display())
            .hint("name a run or a checkpoint of it, such as RUN/best.ckpt"));
    }
    serde_json::from_str(&files::read_text(&path)?).map_err(|e| {
        Error::damaged(format!("not a model's purpose: {e}")).at(format!(
            "{}:{}",
            path.display(),
            e.line()
        ))
    })
}
