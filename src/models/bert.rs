//! BERT (Devlin et al., 2019) and RoBERTa (Liu et al., 2019) as transformers computes them:
//! encoders with learnt positions and a norm after each part, a masked-LM head, and a head on the
//! first token for regression and classification.
//!
//! The two are one encoder behind different embeddings; besides those only names differ, and that
//! RoBERTa's head drops its input too. Names of parameters and configuration keys are transformers'.
//! The last layer is computed only where something is read: at the masked positions, or at the
//! first token.

mod config;

pub use config::{Activation, BertConfig, Head, KEYS, ModelType};

use crate::error::{Error, Result};
use crate::nn::attention::{add_norm, attention, dropout, linear_gelu};
use crate::nn::{Linear, Norm};
use crate::torch::{Init, LoadReport, Params, Path, WeightFile, torch_error};
use config::without;
use tch::{Device, Kind, Tensor};

/// Tables of tokens, positions and types: where the two models differ.
struct Embeddings {
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    norm: Norm,
}

impl Embeddings {
    fn new(path: &Path, config: &BertConfig) -> Embeddings {
        let table = |name: &str, rows| {
            let normal = Init::Normal(config.initializer_range);
            path.sub(name).param("weight", &[rows, config.hidden_size], normal)
        };
        Embeddings {
            word: table("word_embeddings", config.vocab_size),
            position: table("position_embeddings", config.max_position_embeddings),
            token_type: table("token_type_embeddings", config.type_vocab_size),
            norm: Norm::layer(&path.sub("LayerNorm"), config.hidden_size, config.layer_norm_eps),
        }
    }

    /// `[B, L, D]` of ids `[B, L]`.
    fn forward(&self, ids: &Tensor, config: &BertConfig) -> Result<Tensor> {
        let (length, longest, pad) = (ids.size()[1], config.longest(), config.pad_token_id);
        if length > longest {
            return Err(Error::data(format!(
                "a text of {length} tokens, and the model has positions for {longest}"
            ))
            .at("max_position_embeddings")
            .hint("lower dataset.max_sequence_length"));
        }
        let failed = |e| torch_error("embedding tokens", e);
        // On the CPU a sparse gradient: it is added to this batch's rows alone, where a dense one would
        // be a second table, made and added in every step.
        let sparse = ids.device() == Device::Cpu;
        let look = |table: &Tensor, at: &Tensor, pad: i64| {
            Tensor::f_embedding(table, at, pad, false, sparse).map_err(failed)
        };
        let position = match config.model_type {
            ModelType::Bert => self.position.narrow(0, 0, length),
            ModelType::Roberta => {
                let token = ids.not_equal(pad).to_kind(Kind::Int64);
                look(&self.position, &(token.cumsum(1, Kind::Int64) * token + pad), pad)?
            }
        };
        let word = look(&self.word, ids, pad)?;
        Ok(self.norm.forward(&(word + self.token_type.narrow(0, 0, 1) + position)))
    }
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    intermediate: Linear,
    output: Linear,
    norm: Norm,
}

impl Layer {
    fn new(path: &Path, config: &BertConfig) -> Layer {
        let (d, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let attention = path.sub("attention");
        let own = attention.sub("self");
        Layer {
            query: linear(&own.sub("query"), d, d, config),
            key: linear(&own.sub("key"), d, d, config),
            value: linear(&own.sub("value"), d, d, config),
            attention_output: linear(&attention.sub("output").sub("dense"), d, d, config),
            attention_norm: Norm::layer(&attention.sub("output").sub("LayerNorm"), d, eps),
            intermediate: linear(&path.sub("intermediate").sub("dense"), d, inner, config),
            output: linear(&path.sub("output").sub("dense"), inner, d, config),
            norm: Norm::layer(&path.sub("output").sub("LayerNorm"), d, eps),
        }
    }

    /// x `[B, L, D]` to the same shape, or where `read` says.
    fn forward(
        &self,
        x: &Tensor,
        texts: &Texts,
        read: Read,
        config: &BertConfig,
    ) -> Result<Tensor> {
        let d = config.hidden_size;
        let heads = |layer: &Linear, x: &Tensor| {
            let split = [x.size()[0], x.size()[1], config.num_attention_heads, config.head_dim()];
            layer.forward(x).view(split).transpose(1, 2)
        };
        let asking =
            if matches!(read, Read::First) { x.narrow(1, 0, 1) } else { x.shallow_clone() };
        let (q, k, v) = (heads(&self.query, &asking), heads(&self.key, x), heads(&self.value, x));
        let p = texts.dropout(config.attention_probs_dropout_prob);
        let y = attention(&q, &k, &v, texts.lengths, p)?.transpose(1, 2).reshape(asking.size());
        let (x, y) = match read {
            Read::At(at) => {
                let rows = |t: &Tensor| t.reshape([-1, d]).index_select(0, at);
                (rows(&asking), rows(&y))
            }
            Read::All | Read::First => (asking, y),
        };
        let p = texts.dropout(config.hidden_dropout_prob);
        let x = add_norm(&self.attention_output.forward(&y), &x, &self.attention_norm, p)?;
        let y = match config.hidden_act {
            Activation::Gelu => linear_gelu(&x, &self.intermediate)?,
            other => other.forward(&self.intermediate.forward(&x)),
        };
        add_norm(&self.output.forward(&y), &x, &self.norm, p)
    }
}

fn linear(path: &Path, inputs: i64, outputs: i64, config: &BertConfig) -> Linear {
    Linear::with_init(path, inputs, outputs, true, Init::Normal(config.initializer_range))
}

/// A padded batch, and how it is computed.
#[derive(Clone, Copy)]
pub struct Texts<'a> {
    /// Token ids `[B, L]` int64, padded on the right with `pad_token_id`.
    pub ids: &'a Tensor,
    /// Tokens of each text, specials included, `[B]` int64; None: no text is padded.
    pub lengths: Option<&'a Tensor>,
    /// Whether dropout acts.
    pub train: bool,
    /// Flat positions (row * L + column), `[n]` int64, at which the last layer is wanted; None: all.
    pub read: Option<&'a Tensor>,
}

/// Where the last layer is computed.
#[derive(Clone, Copy)]
enum Read<'a> {
    /// Everywhere: `[B, L, D]`.
    All,
    /// At each text's first token: `[B, 1, D]`.
    First,
    /// At flat positions: `[n, D]`.
    At(&'a Tensor),
}

impl Texts<'_> {
    fn dropout(&self, p: f64) -> f64 {
        if self.train { p } else { 0.0 }
    }
}

/// The encoder.
pub struct Bert {
    config: BertConfig,
    embeddings: Embeddings,
    layers: Vec<Layer>,
}

impl Bert {
    /// Declares all parameters, below `bert` or `roberta`.
    pub fn new(root: &Path, config: &BertConfig) -> Bert {
        let own = root.sub(config.prefix());
        let layer = own.sub("encoder").sub("layer");
        Bert {
            embeddings: Embeddings::new(&own.sub("embeddings"), config),
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::new(&layer.sub(i), config))
                .collect(),
            config: config.clone(),
        }
    }

    /// The configuration it was made from.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Last hidden states: `[B, L, D]`, or `[n, D]` at `texts.read`. Anything at padding.
    pub fn hidden(&self, texts: &Texts) -> Result<Tensor> {
        self.run(texts, texts.read.map_or(Read::All, Read::At), |_| ())
    }

    /// The last hidden state of each text's first token, `[B, D]`, whatever `texts.read` says.
    pub fn first(&self, texts: &Texts) -> Result<Tensor> {
        Ok(self.run(texts, Read::First, |_| ())?.squeeze_dim(1))
    }

    /// Embeddings and the hidden states after each layer, each `[B, L, D]`.
    pub fn hidden_states(&self, texts: &Texts) -> Result<Vec<Tensor>> {
        let mut states = Vec::new();
        let _ = self.run(texts, Read::All, |x| states.push(x.shallow_clone()))?;
        Ok(states)
    }

    fn run(&self, texts: &Texts, last: Read, mut each: impl FnMut(&Tensor)) -> Result<Tensor> {
        let config = &self.config;
        let mut x = self.embeddings.forward(texts.ids, config)?;
        x = dropout(&x, texts.dropout(config.hidden_dropout_prob))?;
        each(&x);
        for (i, layer) in self.layers.iter().enumerate() {
            let read = if i + 1 == self.layers.len() { last } else { Read::All };
            x = layer.forward(&x, texts, read, config)?;
            each(&x);
        }
        Ok(x)
    }
}

/// Logits over tokens; the decoder is the table of tokens.
struct MlmHead {
    dense: Linear,
    norm: Norm,
    bias: Tensor,
    activation: Activation,
}

impl MlmHead {
    fn new(root: &Path, config: &BertConfig) -> MlmHead {
        let (d, eps, zeros) = (config.hidden_size, config.layer_norm_eps, Init::Constant(0.0));
        let (top, transform, norm, activation) = match config.model_type {
            ModelType::Bert => {
                let top = root.sub("cls").sub("predictions");
                (top.clone(), top.sub("transform"), "LayerNorm", config.hidden_act)
            }
            // Whatever hidden_act says.
            ModelType::Roberta => {
                (root.sub("lm_head"), root.sub("lm_head"), "layer_norm", Activation::Gelu)
            }
        };
        MlmHead {
            dense: linear(&transform.sub("dense"), d, d, config),
            norm: Norm::layer(&transform.sub(norm), d, eps),
            bias: top.param("bias", &[config.vocab_size], zeros),
            activation,
        }
    }

    /// `[n, vocab_size]` of hidden states `[n, D]` and the table of tokens.
    fn forward(&self, hidden: &Tensor, table: &Tensor) -> Tensor {
        let x = self.activation.forward(&self.dense.forward(hidden));
        self.norm.forward(&x).linear(table, Some(&self.bias))
    }
}

/// A hidden layer and an output on the first token: BERT's pooler and classifier, RoBERTa's
/// classifier.
struct SequenceHead {
    dense: Linear,
    output: Linear,
    /// RoBERTa's drops before the hidden layer too.
    drops_input: bool,
    dropout: f64,
}

impl SequenceHead {
    fn new(root: &Path, config: &BertConfig, num_labels: i64) -> SequenceHead {
        let classifier = root.sub("classifier");
        let (dense, output) = match config.model_type {
            ModelType::Bert => (root.sub("bert").sub("pooler").sub("dense"), classifier),
            ModelType::Roberta => (classifier.sub("dense"), classifier.sub("out_proj")),
        };
        let d = config.hidden_size;
        SequenceHead {
            dense: linear(&dense, d, d, config),
            output: linear(&output, d, num_labels, config),
            drops_input: config.model_type == ModelType::Roberta,
            dropout: config.classifier_dropout(),
        }
    }

    /// `[B, D]` of the first tokens' hidden states `[B, D]`: BERT's `pooler_output`.
    fn pooled(&self, first: &Tensor, p: f64) -> Result<Tensor> {
        let p = if self.drops_input { p } else { 0.0 };
        Ok(self.dense.forward(&dropout(first, p)?).tanh())
    }
}

enum HeadLayers {
    MaskedLm(MlmHead),
    Sequence(SequenceHead),
}

/// An encoder with its head.
pub struct BertModel {
    encoder: Bert,
    kind: Head,
    head: HeadLayers,
}

impl BertModel {
    /// Declares all parameters: embeddings, layers, head.
    pub fn new(root: &Path, config: &BertConfig, head: Head) -> BertModel {
        BertModel {
            encoder: Bert::new(root, config),
            kind: head,
            head: match head {
                Head::MaskedLm => HeadLayers::MaskedLm(MlmHead::new(root, config)),
                Head::Sequence { num_labels } => {
                    HeadLayers::Sequence(SequenceHead::new(root, config, num_labels))
                }
            },
        }
    }

    /// The encoder.
    pub fn encoder(&self) -> &Bert {
        &self.encoder
    }

    /// What the head gives. A masked-LM head: logits `[n, vocab_size]` at `texts.read`, or
    /// `[B, L, vocab_size]`. A sequence head: `[B, num_labels]`, whatever `texts.read` says.
    pub fn forward(&self, texts: &Texts) -> Result<Tensor> {
        match &self.head {
            HeadLayers::MaskedLm(head) => {
                let hidden = self.encoder.hidden(texts)?;
                Ok(head.forward(&hidden, &self.encoder.embeddings.word))
            }
            HeadLayers::Sequence(head) => {
                let pooled = dropout(&self.pooled(texts)?, texts.dropout(head.dropout))?;
                Ok(head.output.forward(&pooled))
            }
        }
    }

    /// What a sequence head's output is made from, `[B, D]`: BERT's `pooler_output`.
    pub fn pooled(&self, texts: &Texts) -> Result<Tensor> {
        match &self.head {
            HeadLayers::MaskedLm(_) => Err(Error::bug("a masked-LM head has no pooler")),
            HeadLayers::Sequence(head) => {
                head.pooled(&self.encoder.first(texts)?, texts.dropout(head.dropout))
            }
        }
    }

    /// Copies weights by name from a Hugging Face file, or one of ours, strictly. `fresh_head`: the
    /// head, or a part of it, may be missing, and then keeps the values it has; and tensors of
    /// transformers' other heads may stand in the file. The report lists both.
    pub fn load(&self, params: &Params, file: &WeightFile, fresh_head: bool) -> Result<LoadReport> {
        let config = &self.encoder.config;
        let report = params.load(file, |name| config.rename(self.kind, file, name))?;
        let refused = |names: &[String], allowed: &dyn Fn(&str) -> bool| {
            names.iter().filter(|name| !(fresh_head && allowed(name))).cloned().collect()
        };
        let counted = LoadReport {
            loaded: report.loaded,
            missing: refused(&report.missing, &|name| self.is_head(name)),
            unexpected: refused(&report.unexpected, &|name| self.is_of_another_head(name)),
        };
        counted.strict(file)?;
        Ok(report)
    }

    /// Whether a parameter belongs to the head.
    pub fn is_head(&self, name: &str) -> bool {
        let bare = without(self.encoder.config.prefix(), name);
        !bare.starts_with("embeddings.") && !bare.starts_with("encoder.")
    }

    /// Whether a tensor of a file belongs to a head that this model has not.
    fn is_of_another_head(&self, name: &str) -> bool {
        let bare = without(self.encoder.config.prefix(), name);
        let others = match self.kind {
            Head::MaskedLm => ["classifier.", "pooler.", "cls.seq_relationship."],
            Head::Sequence { .. } => ["cls.", "lm_head.", "pooler."],
        };
        others.iter().any(|head| bare.starts_with(head))
    }
}
