//! ESM-2 (Lin et al., Science 2023), an encoder over amino acids, exactly as transformers'
//! `EsmModel` computes it: token dropout, rotary positions, pre-norm blocks, a final norm.
//!
//! Two ways through the same weights. `forward` takes a padded batch, is differentiable and runs
//! on any device. `forward_packed` is for inference on the CPU: sequences lie one after another with
//! no padding, and attention runs in a kernel made for small heads.

use crate::error::{Error, Result};
use crate::nn::{Linear, Norm, rotary};
use crate::torch::{Init, Path, bias_gelu, packed_attention, torch_error};
use serde::{Deserialize, Serialize};
use std::cell::OnceCell;
use tch::{Kind, Tensor};

/// The share of positions that were masked in training times the share of those that became
/// `<mask>`: what token dropout rescales by.
const TRAINED_MASK_RATIO: f64 = 0.15 * 0.8;

/// The configuration with transformers' key names (`config.json`); other keys are ignored.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Esm2Config {
    /// Number of tokens.
    #[serde(default = "vocab_size")]
    pub vocab_size: i64,
    /// Width D.
    pub hidden_size: i64,
    /// Number of layers.
    pub num_hidden_layers: i64,
    /// Number of heads.
    pub num_attention_heads: i64,
    /// Width of the feed-forward layer.
    pub intermediate_size: i64,
    /// Epsilon of the norms.
    #[serde(default = "layer_norm_eps")]
    pub layer_norm_eps: f64,
    /// Zero the embedding of `<mask>` and rescale.
    #[serde(default = "yes")]
    pub token_dropout: bool,
    /// A norm on the embeddings (no published ESM-2 has one).
    #[serde(default)]
    pub emb_layer_norm_before: bool,
    /// `rotary` is the only kind of ESM-2.
    #[serde(default = "rotary_word")]
    pub position_embedding_type: String,
    /// Id of `<mask>`.
    #[serde(default = "mask_token_id")]
    pub mask_token_id: i64,
    /// Id of `<pad>`.
    #[serde(default = "pad_token_id")]
    pub pad_token_id: i64,
    /// Standard deviation of fresh weights.
    #[serde(default = "initializer_range")]
    pub initializer_range: f64,
}

fn vocab_size() -> i64 {
    33
}
fn layer_norm_eps() -> f64 {
    1e-5
}
fn yes() -> bool {
    true
}
fn rotary_word() -> String {
    "rotary".to_string()
}
fn mask_token_id() -> i64 {
    32
}
fn pad_token_id() -> i64 {
    1
}
fn initializer_range() -> f64 {
    0.02
}

impl Esm2Config {
    /// Refuses what is not an ESM-2 (exit code 5 is the caller's to choose), naming the key.
    pub fn validate(&self) -> Result<()> {
        let refuse = |key: &str, what: String| Err(Error::usage(what).at(key));
        for (key, value, most) in [
            ("hidden_size", self.hidden_size, 65_536),
            ("num_hidden_layers", self.num_hidden_layers, 4096),
            ("num_attention_heads", self.num_attention_heads, 65_536),
            ("intermediate_size", self.intermediate_size, 1 << 20),
        ] {
            if value < 1 || value > most {
                return refuse(key, format!("{value} is not a size from 1 to {most}"));
            }
        }
        if self.position_embedding_type != "rotary" {
            return refuse(
                "position_embedding_type",
                format!("{} positions are not ESM-2's rotary ones", self.position_embedding_type),
            );
        }
        if self.vocab_size != 33 {
            return refuse("vocab_size", format!("ESM-2 has 33 tokens, not {}", self.vocab_size));
        }
        if self.hidden_size % self.num_attention_heads != 0
            || (self.hidden_size / self.num_attention_heads) % 2 != 0
        {
            return refuse(
                "num_attention_heads",
                format!(
                    "{} heads do not cut a width of {} into even parts of even size",
                    self.num_attention_heads, self.hidden_size
                ),
            );
        }
        Ok(())
    }

    /// Numbers of one head.
    pub fn head_dim(&self) -> i64 {
        self.hidden_size / self.num_attention_heads
    }

    /// Where a tensor of a Hugging Face file belongs here; None for heads, position tables and
    /// other things that embeddings do not need. Files come with and without the prefix `esm.`,
    /// and with `gamma` and `beta` for the norms' weight and bias.
    pub fn rename(name: &str) -> Option<String> {
        let name = name.strip_prefix("esm.").unwrap_or(name);
        let own = name.starts_with("encoder.") || name.starts_with("embeddings.");
        let table = name.ends_with("rotary_embeddings.inv_freq")
            || name.ends_with("position_ids")
            || name == "embeddings.position_embeddings.weight";
        if !own || table {
            return None;
        }
        Some(match name.rsplit_once("LayerNorm.") {
            Some((stem, "gamma")) => format!("{stem}LayerNorm.weight"),
            Some((stem, "beta")) => format!("{stem}LayerNorm.bias"),
            _ => name
                .replace("norm_after.gamma", "norm_after.weight")
                .replace("norm_after.beta", "norm_after.bias"),
        })
    }
}

struct Layer {
    norm: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    feed_forward_norm: Norm,
    intermediate: Linear,
    output: Linear,
}

/// The encoder.
pub struct Esm2 {
    config: Esm2Config,
    word_embeddings: Tensor,
    norm_before: Option<Norm>,
    layers: Vec<Layer>,
    norm_after: Norm,
    /// Query, key and value of each layer as one product, for inference; arranged at first use.
    qkv: OnceCell<Vec<(Tensor, Tensor)>>,
}

impl Esm2 {
    /// Declares all parameters with transformers' names (without a leading `esm.`).
    pub fn new(root: &Path, config: &Esm2Config) -> Esm2 {
        let (d, eps) = (config.hidden_size, config.layer_norm_eps);
        let normal = || Init::Normal(config.initializer_range);
        let linear =
            |path: Path, inputs, outputs| Linear::with_init(&path, inputs, outputs, true, normal());
        let embeddings = root.sub("embeddings");
        let encoder = root.sub("encoder");
        let layers = (0..config.num_hidden_layers)
            .map(|i| {
                let layer = encoder.sub("layer").sub(i);
                let attention = layer.sub("attention");
                let own = attention.sub("self");
                Layer {
                    norm: Norm::layer(&attention.sub("LayerNorm"), d, eps),
                    query: linear(own.sub("query"), d, d),
                    key: linear(own.sub("key"), d, d),
                    value: linear(own.sub("value"), d, d),
                    attention_output: linear(attention.sub("output").sub("dense"), d, d),
                    feed_forward_norm: Norm::layer(&layer.sub("LayerNorm"), d, eps),
                    intermediate: linear(
                        layer.sub("intermediate").sub("dense"),
                        d,
                        config.intermediate_size,
                    ),
                    output: linear(layer.sub("output").sub("dense"), config.intermediate_size, d),
                }
            })
            .collect();
        Esm2 {
            word_embeddings: embeddings.sub("word_embeddings").param(
                "weight",
                &[config.vocab_size, d],
                normal(),
            ),
            norm_before: config
                .emb_layer_norm_before
                .then(|| Norm::layer(&embeddings.sub("layer_norm"), d, eps)),
            layers,
            norm_after: Norm::layer(&encoder.sub("emb_layer_norm_after"), d, eps),
            qkv: OnceCell::new(),
            config: config.clone(),
        }
    }

    /// The configuration it was made from.
    pub fn config(&self) -> &Esm2Config {
        &self.config
    }

    /// How many hidden states there are to choose from, the last one after the final norm.
    pub fn last_layer(&self) -> i64 {
        self.config.num_hidden_layers
    }

    /// Hidden states `[B, L, D]` after `layer` layers (the last: after the final norm) of ids
    /// `[B, L]` with 1 for tokens and 0 for padding in mask `[B, L]`.
    pub fn forward(&self, ids: &Tensor, mask: &Tensor, layer: i64) -> Tensor {
        let (batch, length) = ids.size2().expect("ids are [B, L]");
        let (heads, head_dim) = (self.config.num_attention_heads, self.config.head_dim());
        let tables = rotary::tables(length, head_dim, ids.device());
        let mut x = self.embed_padded(ids, mask);
        let seen = mask.to_kind(Kind::Bool).view([batch, 1, 1, length]);
        let split = |t: Tensor| t.view([batch, length, heads, head_dim]).transpose(1, 2);
        for block in self.layers.iter().take(layer as usize) {
            let h = block.norm.forward(&x);
            let q = rotary::rotate(&split(block.query.forward(&h)), (&tables.0, &tables.1));
            let k = rotary::rotate(&split(block.key.forward(&h)), (&tables.0, &tables.1));
            let v = split(block.value.forward(&h));
            let y = Tensor::scaled_dot_product_attention(
                &q,
                &k,
                &v,
                Some(&seen),
                0.0,
                false,
                None,
                false,
            );
            let y = y.transpose(1, 2).reshape([batch, length, heads * head_dim]);
            x = &x + block.attention_output.forward(&y);
            let h = block.intermediate.forward(&block.feed_forward_norm.forward(&x)).gelu("none");
            x = &x + block.output.forward(&h);
        }
        if layer == self.last_layer() { self.norm_after.forward(&x) } else { x }
    }

    fn embed_padded(&self, ids: &Tensor, mask: &Tensor) -> Tensor {
        let mut x = Tensor::embedding(&self.word_embeddings, ids, -1, false, false);
        let mask = mask.to_kind(Kind::Float);
        if self.config.token_dropout {
            let is_mask = ids.eq(self.config.mask_token_id);
            let dims = [-1i64];
            let count = |t: &Tensor| t.sum_dim_intlist(dims.as_slice(), true, Kind::Float);
            let observed: Tensor = count(&is_mask) / count(&mask);
            let kept: Tensor = 1.0 - observed;
            let scale = kept.reciprocal() * (1.0 - TRAINED_MASK_RATIO);
            x = &x * (scale * is_mask.logical_not()).unsqueeze(-1);
        }
        if let Some(norm) = &self.norm_before {
            x = norm.forward(&x);
        }
        x * mask.unsqueeze(-1)
    }

    fn arrange_qkv(&self) -> Vec<(Tensor, Tensor)> {
        let join = |parts: [&Linear; 3]| {
            let biases = parts.map(bias_of);
            (Tensor::cat(&parts.map(|p| &p.weight), 0), Tensor::cat(&biases, 0))
        };
        self.layers.iter().map(|l| join([&l.query, &l.key, &l.value])).collect()
    }

    /// Hidden states `[T, D]` after `layer` layers of sequences that lie one after another;
    /// sequence i is ids[offsets[i]..offsets[i + 1]], specials included. For inference on the CPU,
    /// with weights that do not change after the first call.
    pub fn forward_packed(&self, ids: &[u8], offsets: &[i64], layer: i64) -> Result<Tensor> {
        tch::no_grad(|| self.run_packed(ids, offsets, layer))
    }

    fn run_packed(&self, ids: &[u8], offsets: &[i64], layer: i64) -> Result<Tensor> {
        let config = &self.config;
        let (heads, head_dim) = (config.num_attention_heads, config.head_dim());
        let (tokens, width) = (ids.len() as i64, config.hidden_size);
        let longest = offsets.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        let tables = rotary::tables(longest, head_dim, tch::Device::Cpu);
        let starts = Tensor::from_slice(offsets);
        let failed = |e| torch_error("ESM-2", e);
        let mut x = self.embed_packed(ids, offsets);
        let qkv = self.qkv.get_or_init(|| self.arrange_qkv());
        for (block, (weight, bias)) in self.layers.iter().zip(qkv).take(layer as usize) {
            let h = block.norm.forward(&x);
            let joined = h.f_linear(weight, Some(bias)).map_err(failed)?;
            let joined = joined.view([tokens, 3, heads, head_dim]);
            let y = packed_attention(&joined, &starts, (&tables.0, &tables.1), longest)?;
            add_product(&mut x, &y, &block.attention_output)?;
            let h = block.feed_forward_norm.forward(&x);
            let h = h.f_linear(&block.intermediate.weight, None::<&Tensor>).map_err(failed)?;
            bias_gelu(&h, bias_of(&block.intermediate))?;
            add_product(&mut x, &h, &block.output)?;
        }
        let x = if layer == self.last_layer() { self.norm_after.forward(&x) } else { x };
        Ok(x.view([tokens, width]))
    }

    fn embed_packed(&self, ids: &[u8], offsets: &[i64]) -> Tensor {
        let config = &self.config;
        let index: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let mut x = self.word_embeddings.index_select(0, &Tensor::from_slice(&index));
        if config.token_dropout {
            let is_mask = |id: u8| i64::from(id) == config.mask_token_id;
            let mut scale = vec![0f32; ids.len()];
            for range in offsets.windows(2).map(|w| w[0] as usize..w[1] as usize) {
                let masked = ids[range.clone()].iter().filter(|&&id| is_mask(id)).count();
                let observed = masked as f32 / range.len() as f32;
                let factor = (1.0 - observed).recip() * (1.0 - TRAINED_MASK_RATIO) as f32;
                for i in range {
                    scale[i] = if is_mask(ids[i]) { 0.0 } else { factor };
                }
            }
            x *= Tensor::from_slice(&scale).unsqueeze(-1);
        }
        match &self.norm_before {
            Some(norm) => norm.forward(&x),
            None => x,
        }
    }
}

fn bias_of(layer: &Linear) -> &Tensor {
    layer.bias.as_ref().expect("ESM-2's projections have biases")
}

/// x += y W^T + b in place: the residual is the product's starting value.
fn add_product(x: &mut Tensor, y: &Tensor, layer: &Linear) -> Result<()> {
    let failed = |e| torch_error("ESM-2", e);
    let _ = x.f_addmm_(y, &layer.weight.tr()).map_err(failed)?;
    let _ = x.f_add_(bias_of(layer)).map_err(failed)?;
    Ok(())
}
