//! The configuration of this recipe: shared sections, its own, and what spans both.

use super::table::config::{AlloyDataset, TextSection};
use crate::config::{
    ConfigFile, Dataset, Distributed, Masking, Run, Section, Training, UserPath, probability,
};
use crate::error::{Error, Result, nearest};
use crate::models::bert::{BertConfig, KEYS};
use crate::nn::freeze::Freeze;
use crate::recipes::Session;
use crate::recipes::running::{Shared, joined};
use crate::recipes::session::Compute;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The sections of this recipe.
pub struct Sections {
    /// What every recipe has.
    pub shared: Shared,
    pub dataset: Dataset,
    /// This recipe's keys of `dataset`.
    pub alloy: AlloyDataset,
    pub text: TextSection,
    pub masking: Masking,
    /// This recipe's keys of `masking`.
    pub replacement: Replacement,
    pub loss: Loss,
    pub freeze: Freeze,
    pub model: ModelSection,
    /// What is trained, in order.
    pub stages: Vec<StageName>,
    /// The section `training` of the stage `pretrain`.
    pub pretraining: Training,
    /// The keys of `pretrain` as they were given.
    pretrain: Map<String, Value>,
}

/// A stage of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StageName {
    /// Masked language modelling on the training part's texts.
    Pretrain,
    /// Regression or classification.
    Train,
}

/// This recipe's keys of `masking`: what stands where a token must be predicted.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Replacement {
    /// Share of the predicted tokens that `<mask>` stands for.
    pub replace_mask: f64,
    /// Share that a random token stands for; the rest stands as it is.
    pub replace_random: f64,
}

impl Default for Replacement {
    fn default() -> Self {
        Replacement { replace_mask: 0.8, replace_random: 0.1 }
    }
}

/// `loss`: what errors weigh.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loss {
    /// Weights of the classes in their order, `balanced` (n / (classes * n of the class), as
    /// scikit-learn), or null: all alike.
    pub class_weights: Option<ClassWeights>,
}

/// What a class's samples weigh in the loss.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged, expecting = "`balanced` or a list of weights is needed")]
pub enum ClassWeights {
    /// By how rare it is.
    Word(Balanced),
    /// As told.
    Told(Vec<f64>),
}

/// The one word that [`ClassWeights`] knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Balanced {
    /// Inversely to their number.
    Balanced,
}

/// `model`: Hugging Face's keys, and where weights and tokenizer come from.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ModelSection {
    /// A Hugging Face directory, a run or a checkpoint to start from; null: fresh weights.
    pub init_from: Option<UserPath>,
    /// A directory with a tokenizer; null: that of `init_from`, or one trained by `prepare`.
    pub tokenizer: Option<UserPath>,
    /// Hugging Face's keys as they were given; over those of `init_from`.
    #[serde(flatten)]
    pub given: Map<String, Value>,
}

/// The keys of `model` that are no part of the shape.
#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct Own {
    init_from: Option<UserPath>,
    tokenizer: Option<UserPath>,
}

/// What this recipe's sections say where the user says nothing.
fn with_defaults(config: &ConfigFile) -> Result<ConfigFile> {
    let mut config = config.clone();
    let classes = config.tree().get("dataset").and_then(|d| d.get("classes"));
    let best = if classes.is_some_and(|c| !c.is_null()) { "val_auc" } else { "val_r2" };
    for (key, value) in [
        ("run.name", json!("finetune")),
        ("run.output_dir", json!("training_output")),
        ("dataset.val_size", json!(0.15)),
        ("dataset.test_size", json!(0)),
        ("training.evaluation_strategy", json!("epoch")),
        ("training.betas", json!([0.9, 0.999])),
        ("training.num_train_epochs", json!(50)),
        ("training.lr", json!(1e-5)),
        ("training.micro_batches_per_step", json!(1)),
        ("training.metric_for_best_model", json!(best)),
        ("pretrain.metric_for_best_model", json!("val_loss")),
    ] {
        config.set_default(key, value)?;
    }
    Ok(config)
}

impl Sections {
    /// Reads and checks all sections.
    pub fn read(config: &ConfigFile) -> Result<Sections> {
        let config = with_defaults(config)?;
        config.only_sections(&[
            "run",
            "dataset",
            "text",
            "model",
            "masking",
            "loss",
            "freeze",
            "stages",
            "pretrain",
            "training",
            "distributed",
        ])?;
        let (dataset, alloy) = config.read_with::<Dataset, AlloyDataset>()?;
        let (masking, replacement) = config.read_with::<Masking, Replacement>()?;
        known_model_keys(&config)?;
        let own: Own = config.section_without("model", KEYS)?;
        // Wrong values are refused here; which keys are there matters later.
        let _: BertConfig = config.section_without("model", &["init_from", "tokenizer"])?;
        let given = config.section_without("model", &["init_from", "tokenizer"])?;
        let shared =
            Shared { run: config.read()?, training: config.read()?, distributed: config.read()? };
        let sections = Sections {
            shared,
            dataset,
            alloy,
            text: config.section("text")?,
            masking,
            replacement,
            loss: config.section("loss")?,
            freeze: config.section("freeze")?,
            model: ModelSection { init_from: own.init_from, tokenizer: own.tokenizer, given },
            stages: stages(&config)?,
            pretraining: config.overlaid("training", "pretrain").read()?,
            pretrain: config.section("pretrain")?,
        };
        sections.check(&config)?;
        Ok(sections)
    }

    /// What spans sections, and ranges of this recipe's own keys.
    fn check(&self, config: &ConfigFile) -> Result<()> {
        let placed = |e: Error| e.at(config.place("dataset"));
        self.alloy.check().map_err(placed)?;
        self.text.check().map_err(|e| e.at(config.place("text")))?;
        let refuse =
            |key: &str, what: String| Err(Error::usage(what).at(key).at(config.place(key)));
        let Replacement { replace_mask, replace_random } = self.replacement;
        for (key, p) in
            [("masking.replace_mask", replace_mask), ("masking.replace_random", replace_random)]
        {
            probability(key, p)
                .map_err(|fault| Error::usage(fault.what).at(key).at(config.place(key)))?;
        }
        if replace_mask + replace_random > 1.0 {
            let what = format!("{replace_mask} and {replace_random} are more than all");
            return refuse("masking.replace_random", what);
        }
        if let Some(ClassWeights::Told(weights)) = &self.loss.class_weights
            && let Some(bad) = weights.iter().find(|w| !(w.is_finite() && **w > 0.0))
        {
            return refuse("loss.class_weights", format!("{bad} is no weight above 0"));
        }
        if self.loss.class_weights.is_some() && self.alloy.classes.is_none() {
            let what = "there are no classes: a regression has no class weights".to_string();
            return refuse("loss.class_weights", what);
        }
        Ok(())
    }

    /// The whole configuration with every default, as it is stored.
    pub fn resolved(&self) -> Result<Value> {
        let Shared { run, training, distributed } = &self.shared;
        Ok(json!({
            "recipe": "alloy",
            "stages": self.stages,
            Run::NAME: joined(run, &())?,
            Dataset::NAME: joined(&self.dataset, &self.alloy)?,
            "text": joined(&self.text, &())?,
            "model": joined(&self.model, &())?,
            Masking::NAME: joined(&self.masking, &self.replacement)?,
            "loss": joined(&self.loss, &())?,
            "freeze": joined(&self.freeze, &())?,
            "pretrain": self.pretrain,
            Training::NAME: joined(training, &())?,
            Distributed::NAME: joined(distributed, &())?,
        }))
    }

    /// Whether `stage` is to be done.
    pub fn has(&self, stage: StageName) -> bool {
        self.stages.contains(&stage)
    }

    /// Threads, device and determinism, the same on every rank.
    pub fn compute(&self, session: &Session, stored_threads: Option<usize>) -> Result<Compute> {
        session.agree_on(&self.resolved()?)?;
        self.shared.compute(session, stored_threads)
    }
}

/// Refuses a key of `model` that is neither Hugging Face's nor this recipe's.
fn known_model_keys(config: &ConfigFile) -> Result<()> {
    let known = || ["init_from", "tokenizer"].into_iter().chain(KEYS.iter().copied());
    let given: Map<String, Value> = config.section("model")?;
    let Some(key) = given.keys().find(|key| !known().any(|own| own == key.as_str())) else {
        return Ok(());
    };
    let near = nearest(key, known()).map_or(String::new(), |near| format!("did you mean {near}? "));
    let allowed: Vec<&str> = known().collect();
    Err(Error::usage(format!("unknown key model.{key}"))
        .at(config.place(&format!("model.{key}")))
        .hint(format!("{near}allowed: {}", allowed.join(", "))))
}

/// `stages`: `[train]` where nothing is said.
fn stages(config: &ConfigFile) -> Result<Vec<StageName>> {
    let refuse = |what: String| {
        Err(Error::usage(what)
            .at("stages")
            .at(config.place("stages"))
            .hint("allowed: [train], [pretrain, train], [pretrain]"))
    };
    let Some(value) = config.tree().get("stages").filter(|value| !value.is_null()) else {
        return Ok(vec![StageName::Train]);
    };
    match serde_json::from_value::<Vec<StageName>>(value.clone()) {
        Ok(stages) => match stages[..] {
            [StageName::Train]
            | [StageName::Pretrain]
            | [StageName::Pretrain, StageName::Train] => Ok(stages),
            _ => refuse(format!("{value} is no order of stages")),
        },
        Err(_) => refuse(format!("{value} is no list of stages")),
    }
}
