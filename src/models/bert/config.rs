//! The shape of a BERT or RoBERTa, Hugging Face's `config.json`, and names in its files.

use crate::error::{Error, Result};
use crate::torch::WeightFile;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tch::Tensor;

/// Which of the two.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum ModelType {
    /// Positions count from 0.
    Bert,
    /// Positions count from `pad_token_id` + 1, over tokens that are no padding.
    #[default]
    Roberta,
}

/// The function within the feed-forward layer.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x Φ(x)
    Gelu,
    /// The same with a tanh in place of Φ.
    GeluNew,
    /// max(x, 0)
    Relu,
}

impl Activation {
    /// Of each element.
    pub(super) fn forward(self, x: &Tensor) -> Tensor {
        match self {
            Activation::Gelu => x.gelu("none"),
            Activation::GeluNew => x.gelu("tanh"),
            Activation::Relu => x.relu(),
        }
    }
}

/// What stands on the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Tokens from hidden states (`BertForMaskedLM`, `RobertaForMaskedLM`).
    MaskedLm,
    /// So many numbers from the first token (`…ForSequenceClassification`); one for regression.
    Sequence {
        /// Numbers a text.
        num_labels: i64,
    },
}

/// The configuration with transformers' key names. A key that is left out has the default of
/// transformers' class for that `model_type`; an unknown one is refused ([`BertConfig::from_hf`]
/// passes over it).
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(from = "Given")]
pub struct BertConfig {
    /// `bert` or `roberta`.
    pub model_type: ModelType,
    /// Number of tokens.
    pub vocab_size: i64,
    /// Width D.
    pub hidden_size: i64,
    /// Number of layers.
    pub num_hidden_layers: i64,
    /// Number of heads.
    pub num_attention_heads: i64,
    /// Width of the feed-forward layer.
    pub intermediate_size: i64,
    /// Its activation.
    pub hidden_act: Activation,
    /// Dropout of embeddings and of each part's output.
    pub hidden_dropout_prob: f64,
    /// Dropout of attention weights.
    pub attention_probs_dropout_prob: f64,
    /// Dropout within the head; null: `hidden_dropout_prob`.
    pub classifier_dropout: Option<f64>,
    /// Rows of the table of positions; RoBERTa leaves the first `pad_token_id` + 1 unused.
    pub max_position_embeddings: i64,
    /// Rows of the table of types, of which the first alone is used.
    pub type_vocab_size: i64,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
    /// Id of the padding token.
    pub pad_token_id: i64,
    /// Id of the first token, for files that are written; the model does not look at it.
    pub bos_token_id: Option<i64>,
    /// Id of the last token, likewise.
    pub eos_token_id: Option<i64>,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// `absolute` is the only kind.
    pub position_embedding_type: String,
}

/// The keys of [`BertConfig`].
pub const KEYS: &[&str] = &[
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "initializer_range",
    "position_embedding_type",
];

/// The keys that a file gives.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Given {
    model_type: ModelType,
    vocab_size: Option<i64>,
    hidden_size: Option<i64>,
    num_hidden_layers: Option<i64>,
    num_attention_heads: Option<i64>,
    intermediate_size: Option<i64>,
    hidden_act: Option<Activation>,
    hidden_dropout_prob: Option<f64>,
    attention_probs_dropout_prob: Option<f64>,
    classifier_dropout: Option<f64>,
    max_position_embeddings: Option<i64>,
    type_vocab_size: Option<i64>,
    layer_norm_eps: Option<f64>,
    pad_token_id: Option<i64>,
    bos_token_id: Option<i64>,
    eos_token_id: Option<i64>,
    initializer_range: Option<f64>,
    position_embedding_type: Option<String>,
}

impl From<Given> for BertConfig {
    fn from(given: Given) -> BertConfig {
        let roberta = given.model_type == ModelType::Roberta;
        BertConfig {
            model_type: given.model_type,
            vocab_size: given.vocab_size.unwrap_or(if roberta { 50_265 } else { 30_522 }),
            hidden_size: given.hidden_size.unwrap_or(768),
            num_hidden_layers: given.num_hidden_layers.unwrap_or(12),
            num_attention_heads: given.num_attention_heads.unwrap_or(12),
            intermediate_size: given.intermediate_size.unwrap_or(3072),
            hidden_act: given.hidden_act.unwrap_or(Activation::Gelu),
            hidden_dropout_prob: given.hidden_dropout_prob.unwrap_or(0.1),
            attention_probs_dropout_prob: given.attention_probs_dropout_prob.unwrap_or(0.1),
            classifier_dropout: given.classifier_dropout,
            max_position_embeddings: given.max_position_embeddings.unwrap_or(512),
            type_vocab_size: given.type_vocab_size.unwrap_or(2),
            // Of the classes of both; the published RoBERTa says 1e-5 in its file.
            layer_norm_eps: given.layer_norm_eps.unwrap_or(1e-12),
            pad_token_id: given.pad_token_id.unwrap_or(i64::from(roberta)),
            bos_token_id: given.bos_token_id.or(roberta.then_some(0)),
            eos_token_id: given.eos_token_id.or(roberta.then_some(2)),
            initializer_range: given.initializer_range.unwrap_or(0.02),
            position_embedding_type: given.position_embedding_type.unwrap_or("absolute".into()),
        }
    }
}

impl BertConfig {
    /// From a Hugging Face `config.json`, whose other keys are passed over. What makes another
    /// model of it (a decoder, untied weights, another type) is refused with exit code 5.
    pub fn from_hf(file: &Value) -> Result<BertConfig> {
        let Some(map) = file.as_object() else {
            return Err(Error::damaged("this is no configuration: a map of keys is needed"));
        };
        let kind = map.get("model_type").and_then(Value::as_str).unwrap_or("unknown");
        if !["bert", "roberta"].contains(&kind) {
            return Err(Error::damaged(format!(
                "this is a model of type {kind}, neither bert nor roberta"
            ))
            .at("model_type"));
        }
        for (key, other) in
            [("is_decoder", true), ("add_cross_attention", true), ("tie_word_embeddings", false)]
        {
            if map.get(key) == Some(&Value::Bool(other)) {
                return Err(Error::damaged(format!("{other} makes it another model")).at(key));
            }
        }
        let mut own: Map<String, Value> =
            map.iter().filter(|(k, _)| KEYS.contains(&k.as_str())).map(pair).collect();
        // Generation may end at one of several tokens; an encoder does not generate.
        if own.get("eos_token_id").is_some_and(Value::is_array) {
            own.remove("eos_token_id");
        }
        serde_path_to_error::deserialize(Value::Object(own)).map_err(|e| {
            let key = e.path().to_string();
            Error::damaged(format!("not a {kind} model: {}", e.into_inner())).at(key)
        })
    }

    /// Refuses what makes no model (exit code 2), naming the key.
    pub fn validate(&self) -> Result<()> {
        let refuse = |key: &str, what: String| Err(Error::usage(what).at(key));
        for (key, value, most) in [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 65_536),
            ("num_hidden_layers", self.num_hidden_layers, 4096),
            ("num_attention_heads", self.num_attention_heads, 65_536),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 20),
            ("type_vocab_size", self.type_vocab_size, 65_536),
        ] {
            if value < 1 || value > most {
                return refuse(key, format!("{value} is not a size from 1 to {most}"));
            }
        }
        let (width, heads) = (self.hidden_size, self.num_attention_heads);
        if width % heads != 0 {
            let what = format!("{heads} heads do not cut a width of {width} into equal parts");
            return refuse("num_attention_heads", what);
        }
        for (key, p) in [
            ("hidden_dropout_prob", self.hidden_dropout_prob),
            ("attention_probs_dropout_prob", self.attention_probs_dropout_prob),
            ("classifier_dropout", self.classifier_dropout()),
        ] {
            if !(0.0..1.0).contains(&p) {
                return refuse(key, format!("{p} is not a probability from 0 to below 1"));
            }
        }
        for (key, x) in
            [("layer_norm_eps", self.layer_norm_eps), ("initializer_range", self.initializer_range)]
        {
            if !(x > 0.0 && x <= 1.0) {
                return refuse(key, format!("{x} is not above 0 and at most 1"));
            }
        }
        if !(0..self.vocab_size).contains(&self.pad_token_id) {
            let what = format!("{} is none of {} tokens", self.pad_token_id, self.vocab_size);
            return refuse("pad_token_id", what);
        }
        if self.longest() < 1 {
            let what = format!("{} leaves no position for a token", self.max_position_embeddings);
            return refuse("max_position_embeddings", what);
        }
        if self.position_embedding_type != "absolute" {
            let what = format!("{} positions are not there", self.position_embedding_type);
            return Err(Error::usage(what).at("position_embedding_type").hint("use absolute"));
        }
        Ok(())
    }

    /// Numbers of one head.
    pub fn head_dim(&self) -> i64 {
        self.hidden_size / self.num_attention_heads
    }

    /// Tokens of the longest text it can read, specials included.
    pub fn longest(&self) -> i64 {
        self.max_position_embeddings - self.first_position()
    }

    /// Row of the table of positions at which texts begin.
    fn first_position(&self) -> i64 {
        if self.model_type == ModelType::Roberta { self.pad_token_id + 1 } else { 0 }
    }

    /// Dropout within the head.
    pub fn classifier_dropout(&self) -> f64 {
        self.classifier_dropout.unwrap_or(self.hidden_dropout_prob)
    }

    /// What the encoder's names begin with.
    pub fn prefix(&self) -> &'static str {
        match self.model_type {
            ModelType::Bert => "bert",
            ModelType::Roberta => "roberta",
        }
    }

    /// Names of the masked-LM head's tensors that are others under a second name, with the first:
    /// they are stored once, under the first, as transformers does.
    pub fn tied(&self) -> [(&'static str, &'static str); 2] {
        match self.model_type {
            ModelType::Bert => [
                ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
                ("cls.predictions.decoder.bias", "cls.predictions.bias"),
            ],
            ModelType::Roberta => [
                ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
                ("lm_head.decoder.bias", "lm_head.bias"),
            ],
        }
    }

    /// A `config.json` that transformers' `AutoModelForMaskedLM` or
    /// `AutoModelForSequenceClassification` opens. `labels` names a sequence head's numbers in
    /// order (`LABEL_i` where there are none); one number is a regression, more are classes.
    pub fn to_hf(&self, head: Head, labels: &[String]) -> Result<Value> {
        let mut file = serde_json::to_value(self)
            .map_err(|e| Error::bug(format!("the model's configuration cannot be written: {e}")))?;
        let family = match self.model_type {
            ModelType::Bert => "Bert",
            ModelType::Roberta => "Roberta",
        };
        match head {
            Head::MaskedLm => {
                file["architectures"] = json!([format!("{family}ForMaskedLM")]);
                file["tied_weights"] = self.tied().iter().map(|(k, v)| (*k, *v)).collect();
            }
            Head::Sequence { num_labels } => {
                let name = |i: usize| labels.get(i).cloned().unwrap_or(format!("LABEL_{i}"));
                let names: Vec<String> = (0..num_labels as usize).map(name).collect();
                let ids = names.iter().enumerate();
                file["architectures"] = json!([format!("{family}ForSequenceClassification")]);
                let kind =
                    if num_labels == 1 { "regression" } else { "single_label_classification" };
                file["problem_type"] = json!(kind);
                file["id2label"] = ids.clone().map(|(i, n)| (i.to_string(), json!(n))).collect();
                file["label2id"] = ids.map(|(i, n)| (n.clone(), json!(i))).collect();
            }
        }
        file["dtype"] = json!("float32");
        Ok(file)
    }

    /// Where the tensor `name` of a Hugging Face file belongs; None: nowhere, it is a table that
    /// is computed or a tied weight. Files come with and without the model's prefix, and with
    /// `gamma` and `beta` for the norms' weight and bias. Where a RoBERTa has a pooler and no
    /// classifier of its own, the pooler is the classifier's first layer: the same function.
    pub fn rename(&self, head: Head, file: &WeightFile, name: &str) -> Option<String> {
        let name = match name.rsplit_once("LayerNorm.") {
            Some((stem, "gamma")) => format!("{stem}LayerNorm.weight"),
            Some((stem, "beta")) => format!("{stem}LayerNorm.bias"),
            _ => name.to_string(),
        };
        let own = self.prefix();
        let bare = without(own, &name);
        if bare == "embeddings.position_ids" || bare == "embeddings.token_type_ids" {
            return None;
        }
        if bare.starts_with("embeddings.") || bare.starts_with("encoder.") {
            return Some(format!("{own}.{bare}"));
        }
        let [(weight, _), (bias, kept)] = self.tied();
        if name == weight || (name == bias && file.contains(kept)) {
            return None;
        }
        if name == bias {
            return Some(kept.to_string());
        }
        if let Some(rest) = bare.strip_prefix("pooler.dense.") {
            let classifier = self.model_type == ModelType::Roberta
                && head != Head::MaskedLm
                && !file.contains("classifier.dense.weight");
            let module = if classifier { "classifier" } else { &format!("{own}.pooler") };
            return Some(format!("{module}.dense.{rest}"));
        }
        Some(name)
    }
}

fn pair((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

/// A name without the prefix of its model.
pub(super) fn without<'a>(prefix: &str, name: &'a str) -> &'a str {
    name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inline(value: Value) -> BertConfig {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_is_left_out_is_as_in_transformers_classes() {
        let roberta = inline(json!({}));
        assert_eq!((roberta.vocab_size, roberta.pad_token_id), (50_265, 1));
        assert_eq!((roberta.bos_token_id, roberta.eos_token_id), (Some(0), Some(2)));
        assert_eq!((roberta.max_position_embeddings, roberta.longest()), (512, 510));
        let bert = inline(json!({"model_type": "bert", "classifier_dropout": null}));
        assert_eq!((bert.vocab_size, bert.pad_token_id, bert.longest()), (30_522, 0, 512));
        assert_eq!((bert.bos_token_id, bert.classifier_dropout()), (None, 0.1));
        for config in [roberta, bert] {
            config.validate().unwrap();
            let stored = serde_json::to_value(&config).unwrap();
            assert_eq!(stored.as_object().unwrap().keys().collect::<Vec<_>>(), KEYS);
            assert_eq!(inline(stored), config);
        }
    }

    #[test]
    fn unknown_keys_are_refused_inline_and_passed_over_in_files() {
        let file = json!({
            "model_type": "bert", "hidden_size": 24, "gradient_checkpointing": false,
            "pad_token_id": null, "eos_token_id": [2, 3], "type_vocab_size": 1
        });
        assert!(serde_json::from_value::<BertConfig>(file.clone()).is_err());
        let config = BertConfig::from_hf(&file).unwrap();
        assert_eq!((config.hidden_size, config.pad_token_id), (24, 0));
        assert_eq!((config.eos_token_id, config.type_vocab_size), (None, 1));
    }

    #[test]
    fn files_of_other_models_are_refused_by_key() {
        for (file, says) in [
            (json!({"model_type": "esm"}), "model_type: this is a model of type esm"),
            (json!({}), "model_type: this is a model of type unknown"),
            (json!({"model_type": "bert", "is_decoder": true}), "is_decoder: true makes it"),
            (json!({"model_type": "bert", "hidden_act": "swish"}), "hidden_act: not a bert model"),
            (json!({"model_type": "bert", "hidden_size": "24"}), "hidden_size: not a bert model"),
            (json!([]), "this is no configuration"),
        ] {
            let error = BertConfig::from_hf(&file).unwrap_err();
            assert!(error.code() == 5 && error.to_string().starts_with(says), "{error}");
        }
    }

    #[test]
    fn shapes_that_make_no_model_are_refused_by_key() {
        for (key, value, says) in [
            ("hidden_size", json!(0), "0 is not a size"),
            ("num_attention_heads", json!(7), "7 heads do not cut a width of 768"),
            ("hidden_dropout_prob", json!(1.0), "1 is not a probability"),
            ("classifier_dropout", json!(-0.1), "-0.1 is not a probability"),
            ("layer_norm_eps", json!(0.0), "0 is not above 0"),
            ("pad_token_id", json!(50_265), "50265 is none of 50265 tokens"),
            ("max_position_embeddings", json!(2), "2 leaves no position"),
            ("position_embedding_type", json!("relative_key"), "relative_key positions"),
        ] {
            let error = inline(json!({ key: value })).validate().unwrap_err();
            let text = error.to_string();
            assert!(error.code() == 2 && text.starts_with(&format!("{key}: {says}")), "{text}");
        }
    }

    #[test]
    fn files_say_what_the_head_is() {
        let config = inline(json!({}));
        let labels = ["FCC", "BCC"].map(str::to_string);
        let file = config.to_hf(Head::Sequence { num_labels: 3 }, &labels).unwrap();
        assert_eq!(file["architectures"], json!(["RobertaForSequenceClassification"]));
        assert_eq!(file["problem_type"], "single_label_classification");
        assert_eq!(file["id2label"], json!({"0": "FCC", "1": "BCC", "2": "LABEL_2"}));
        assert_eq!(file["label2id"]["BCC"], 1);
        let file = config.to_hf(Head::Sequence { num_labels: 1 }, &[]).unwrap();
        assert_eq!(file["problem_type"], "regression");
        let file = config.to_hf(Head::MaskedLm, &[]).unwrap();
        assert_eq!(file["architectures"], json!(["RobertaForMaskedLM"]));
        assert_eq!(file["tied_weights"]["lm_head.decoder.bias"], "lm_head.bias");
        assert_eq!(BertConfig::from_hf(&file).unwrap(), config);
    }
}
