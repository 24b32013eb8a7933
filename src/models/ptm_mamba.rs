//! PTM-Mamba (Peng et al., Nature Methods 2025): a Mamba language model over residues and
//! post-translational modifications that looks at ESM-2's embedding of the same sequence.
//!
//! After programmablebio/ptm-mamba, `protein_lm/modeling/models/mamba/lm.py`, with its names. One
//! thing differs on purpose: backward blocks see each row reversed within its own length, where
//! upstream reverses the padded row, so that here padding is invisible.

use super::mamba::{Block, SsmConfig, norm};
use crate::error::{Error, Result};
use crate::nn::{Linear, Norm};
use crate::torch::{Init, Path, permute_rows};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// `bidirectional_mamba` (the published model) or `mamba`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum ModelType {
    /// A gate mixes tokens and ESM; blocks run in both directions.
    BidirectionalMamba,
    /// One direction; ESM's embedding stands instead of the tokens'.
    Mamba,
}

/// Upstream's configuration. `residual_in_fp32` and `fused_add_norm` choose between kernels of
/// upstream that compute the same; here the residual is always float32.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct PtmMambaConfig {
    /// Which stack.
    pub model_type: ModelType,
    /// Width d.
    pub d_model: i64,
    /// Number of layers (each a forward and a backward block, if bidirectional).
    pub n_layer: i64,
    /// Number of tokens.
    pub vocab_size: i64,
    /// The state space layer.
    pub ssm_cfg: SsmConfig,
    /// Root-mean-square norms instead of layer norms.
    pub rms_norm: bool,
    /// Always so here.
    pub residual_in_fp32: bool,
    /// No effect on results.
    pub fused_add_norm: bool,
    /// Width of ESM's embeddings; null: as the ESM model or cache has it.
    pub esm_embed_dim: Option<i64>,
}

/// The keys of [`PtmMambaConfig`].
pub const KEYS: &[&str] = &[
    "model_type",
    "d_model",
    "n_layer",
    "vocab_size",
    "ssm_cfg",
    "rms_norm",
    "residual_in_fp32",
    "fused_add_norm",
    "esm_embed_dim",
];

impl Default for PtmMambaConfig {
    fn default() -> Self {
        PtmMambaConfig {
            model_type: ModelType::BidirectionalMamba,
            d_model: 768,
            n_layer: 24,
            vocab_size: 59,
            ssm_cfg: SsmConfig::default(),
            rms_norm: true,
            residual_in_fp32: true,
            fused_add_norm: true,
            esm_embed_dim: None,
        }
    }
}

impl PtmMambaConfig {
    /// Refuses sizes that make no model (exit code 2), naming the key.
    pub fn validate(&self) -> Result<()> {
        let ssm = &self.ssm_cfg;
        let sizes = [
            ("d_model", self.d_model, 65_536),
            ("n_layer", self.n_layer, 4096),
            ("ssm_cfg.d_state", ssm.d_state, 1024),
            ("ssm_cfg.d_conv", ssm.d_conv, 64),
            ("ssm_cfg.expand", ssm.expand, 64),
            ("ssm_cfg.dt_rank", ssm.rank(self.d_model.clamp(1, 65_536)), 65_536),
            ("esm_embed_dim", self.esm_embed_dim.unwrap_or(1), 65_536),
        ];
        for (key, value, most) in sizes {
            if value < 1 || value > most {
                return Err(Error::usage(format!("{value} is not a size from 1 to {most}"))
                    .at(format!("model.{key}")));
            }
        }
        if self.vocab_size != 59 {
            return Err(Error::usage(format!(
                "the vocabulary has 59 tokens, not {}",
                self.vocab_size
            ))
            .at("model.vocab_size"));
        }
        if !self.residual_in_fp32 {
            return Err(Error::usage("the residual is always float32 here")
                .at("model.residual_in_fp32")
                .hint("leave the key out or set it to true"));
        }
        Ok(())
    }

    /// Whether a tensor of upstream's files is one that upstream allocates and never uses, or the
    /// tied head, which is stored once here.
    pub fn is_unused(name: &str) -> bool {
        let unused = ["A_b_log", "D_b", "conv1d_b.weight", "conv1d_b.bias", "x_proj_b.weight"];
        name == "lm_head.weight"
            || unused.iter().chain(&["dt_proj_b.weight", "dt_proj_b.bias"]).any(|suffix| {
                name.strip_suffix(suffix).is_some_and(|stem| stem.ends_with("mixer."))
            })
    }
}

enum Stack {
    Mamba {
        layers: Vec<Block>,
    },
    Bidirectional {
        gate: Linear,
        forward: Vec<Block>,
        backward: Vec<Block>,
        hidden_fc: Vec<Linear>,
    },
}

/// The model.
pub struct PtmMamba {
    embedding: Tensor,
    stack: Stack,
    norm_f: Norm,
    esm_head: Linear,
}

impl PtmMamba {
    /// Declares all parameters with upstream's names. `esm_dim` is the width of ESM's embeddings.
    pub fn new(root: &Path, config: &PtmMambaConfig, esm_dim: i64) -> PtmMamba {
        let backbone = root.sub("backbone");
        let (d, n) = (config.d_model, config.n_layer);
        let block = |list: &str, i: i64| {
            Block::new(&backbone.sub(list).sub(i), d, n, &config.ssm_cfg, config.rms_norm)
        };
        let embedding =
            backbone.sub("embedding").param("weight", &[config.vocab_size, d], Init::Normal(0.02));
        let esm_head = Linear::new(&root.sub("esm_head"), esm_dim, d, false);
        let stack = match config.model_type {
            ModelType::Mamba => {
                Stack::Mamba { layers: (0..n).map(|i| block("layers", i)).collect() }
            }
            ModelType::BidirectionalMamba => {
                let gate = Linear::new(&backbone.sub("gate"), 2 * d, 1, true);
                let (mut forward, mut backward, mut hidden_fc) = (vec![], vec![], vec![]);
                // Layer by layer, so that the flat gradient fills in backward's order.
                for i in 0..n {
                    forward.push(block("forward_layers", i));
                    backward.push(block("backward_layers", i));
                    let fc = backbone.sub("hidden_fc").sub(i);
                    hidden_fc.push(Linear::new(&fc, 2 * d, d, true));
                }
                Stack::Bidirectional { gate, forward, backward, hidden_fc }
            }
        };
        let norm_f = norm(&backbone.sub("norm_f"), d, config.rms_norm);
        PtmMamba { embedding, stack, norm_f, esm_head }
    }

    /// Final hidden states `[B, L, d]` from token ids `[B, L]`, ESM's embeddings `[B, L, esm_dim]`
    /// (specials included, anything at padding) and true lengths, specials included.
    pub fn forward(&self, ids: &Tensor, esm: Option<&Tensor>, lengths: &[i64]) -> Tensor {
        let esm = esm.map(|e| self.esm_head.forward(e));
        let (hidden, residual) = match &self.stack {
            Stack::Mamba { layers } => {
                let mut hidden = esm
                    .unwrap_or_else(|| Tensor::embedding(&self.embedding, ids, -1, false, false));
                let mut residual = None;
                for layer in layers {
                    let (h, r) = layer.forward(&hidden, residual.as_ref());
                    (hidden, residual) = (h, Some(r));
                }
                (hidden, residual)
            }
            Stack::Bidirectional { gate, forward, backward, hidden_fc } => {
                let reversal = Reversal::new(ids, lengths);
                let mut hidden = mix(gate, &self.embed(ids), esm);
                let mut residual: Option<Tensor> = None;
                for ((f, b), fc) in forward.iter().zip(backward).zip(hidden_fc) {
                    let (hf, rf) = f.forward(&hidden, residual.as_ref());
                    let back = residual.as_ref().map(|r| reversal.apply(r));
                    let (hb, rb) = b.forward(&reversal.apply(&hidden), back.as_ref());
                    hidden = fc.forward(&Tensor::cat(&[hf, reversal.apply(&hb)], -1));
                    residual = Some((rf + reversal.apply(&rb)) * 0.5);
                }
                (hidden, residual)
            }
        };
        let sum = match residual {
            Some(residual) => hidden + residual,
            None => hidden,
        };
        self.norm_f.forward(&sum)
    }

    fn embed(&self, ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.embedding, ids, -1, false, false)
    }

    /// Logits `[.., vocab]` of hidden states `[.., d]`; the head is the token embedding.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        hidden.linear(&self.embedding, None::<&Tensor>)
    }
}

/// g h + (1 - g) e with the scalar gate g = sigmoid(W [h; e]); without ESM, e is zero.
fn mix(gate: &Linear, hidden: &Tensor, esm: Option<Tensor>) -> Tensor {
    let esm = esm.unwrap_or_else(|| hidden.zeros_like());
    let g = gate.forward(&Tensor::cat(&[hidden, &esm], -1)).sigmoid();
    &g * hidden + (1.0 - &g) * &esm
}

/// Each row reversed within its own length; padding stays where it is. Its own inverse.
struct Reversal {
    index: Tensor,
}

impl Reversal {
    fn new(ids: &Tensor, lengths: &[i64]) -> Reversal {
        let width = ids.size()[1];
        let rows = lengths.iter().enumerate().flat_map(|(row, &n)| {
            let start = row as i64 * width;
            (0..width).map(move |i| start + if i < n { n - 1 - i } else { i })
        });
        let index: Vec<i64> = rows.collect();
        Reversal { index: Tensor::from_slice(&index).to_device(ids.device()) }
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        let rows = x.reshape([-1, x.size()[2]]);
        permute_rows(&rows, &self.index, &self.index)
            .expect("an index of rows that are there")
            .view_as(x)
    }
}

/// The mean over positions of a sequence's own residues, for pooled outputs: `[B, d]` from hidden
/// states `[B, L, d]`; specials are left out.
pub fn mean_over_residues(hidden: &Tensor, lengths: &[i64]) -> Tensor {
    let rows: Vec<Tensor> = lengths
        .iter()
        .enumerate()
        .map(|(row, &n)| {
            hidden.get(row as i64).narrow(0, 1, (n - 2).max(1)).mean_dim(
                [0i64].as_slice(),
                false,
                Kind::Float,
            )
        })
        .collect();
    Tensor::stack(&rows, 0)
}
