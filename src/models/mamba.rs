//! Mamba (Gu and Dao, 2023, arXiv 2312.00752), the layers of PTM-Mamba.
//!
//! Names and defaults are those of state-spaces/mamba's `mamba_simple.py`. Every block adds, then
//! norms, then mixes: it takes (hidden states, residual) and gives the same pair.

use crate::nn::scan::{causal_conv, scan};
use crate::nn::{Linear, Norm};
use crate::torch::{Init, Path, ScanInput};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// The epsilon of every norm.
pub const NORM_EPS: f64 = 1e-5;

/// Sizes of the state space layer (`ssm_cfg`).
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct SsmConfig {
    /// States a channel, N.
    pub d_state: i64,
    /// Taps of the causal convolution.
    pub d_conv: i64,
    /// Channels for each number of width.
    pub expand: i64,
    /// Width of the step's projection; `auto` is ceil(d_model / 16).
    pub dt_rank: DtRank,
}

/// `auto` or a number.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(untagged, expecting = "dt_rank is `auto` or a whole number")]
pub enum DtRank {
    /// A number.
    Fixed(i64),
    /// ceil(d_model / 16).
    Auto(AutoWord),
}

/// The word `auto`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum AutoWord {
    /// To be derived.
    Auto,
}

impl Default for SsmConfig {
    fn default() -> Self {
        SsmConfig { d_state: 16, d_conv: 4, expand: 2, dt_rank: DtRank::Auto(AutoWord::Auto) }
    }
}

impl SsmConfig {
    /// The rank for a model of width d.
    pub fn rank(&self, d_model: i64) -> i64 {
        match self.dt_rank {
            DtRank::Fixed(rank) => rank,
            DtRank::Auto(_) => (d_model + 15) / 16,
        }
    }
}

/// How the norms of a stack are made (`rms_norm`).
pub fn norm(path: &Path, d_model: i64, rms_norm: bool) -> Norm {
    if rms_norm { Norm::rms(path, d_model, NORM_EPS) } else { Norm::layer(path, d_model, NORM_EPS) }
}

struct Mixer {
    in_proj: Linear,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Linear,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
    out_proj: Linear,
    rank: i64,
    states: i64,
}

impl Mixer {
    fn new(path: &Path, d_model: i64, n_layer: i64, ssm: &SsmConfig) -> Mixer {
        let channels = ssm.expand * d_model;
        let (rank, states) = (ssm.rank(d_model), ssm.d_state);
        let conv = path.sub("conv1d");
        let dt_proj = path.sub("dt_proj");
        let log_states = (1..=states).map(|n| (n as f32).ln()).collect();
        let out_bound = 1.0 / (channels as f64 * n_layer as f64).sqrt();
        Mixer {
            in_proj: Linear::new(&path.sub("in_proj"), d_model, 2 * channels, false),
            conv_weight: conv.param("weight", &[channels, 1, ssm.d_conv], Init::linear(ssm.d_conv)),
            conv_bias: conv.param("bias", &[channels], Init::linear(ssm.d_conv)),
            x_proj: Linear::new(&path.sub("x_proj"), channels, rank + 2 * states, false),
            dt_weight: dt_proj.param("weight", &[channels, rank], Init::linear(rank)),
            dt_bias: dt_proj.param("bias", &[channels], Init::InverseSoftplusStep),
            a_log: path.param("A_log", &[channels, states], Init::Values(log_states)),
            d: path.param("D", &[channels], Init::Constant(1.0)),
            // Each layer adds to the residual: divided by the root of their number.
            out_proj: Linear::with_init(
                &path.sub("out_proj"),
                channels,
                d_model,
                false,
                Init::Uniform(out_bound),
            ),
            rank,
            states,
        }
    }

    /// `[B, L, d]` to `[B, L, d]`.
    fn forward(&self, x: &Tensor) -> Tensor {
        let xz = self.in_proj.forward(x).chunk(2, -1);
        // The recurrence runs in float32 whatever autocast makes of the products around it.
        let float = |t: &Tensor| t.to_kind(Kind::Float);
        let u = causal_conv(&float(&xz[0]), &self.conv_weight, &self.conv_bias);
        let parts =
            self.x_proj.forward(&u).split_with_sizes([self.rank, self.states, self.states], -1);
        let dt = parts[0].linear(&self.dt_weight, None::<&Tensor>);
        let y = scan(&ScanInput {
            u: &u,
            dt: &float(&dt),
            dt_bias: &self.dt_bias,
            a_log: &self.a_log,
            b: &float(&parts[1]),
            c: &float(&parts[2]),
            d: &self.d,
            z: &float(&xz[1]),
        });
        self.out_proj.forward(&y)
    }
}

/// Add, norm, mix.
pub struct Block {
    mixer: Mixer,
    norm: Norm,
}

impl Block {
    /// Declares the block's parameters (`mixer.*`, `norm.*`).
    pub fn new(path: &Path, d_model: i64, n_layer: i64, ssm: &SsmConfig, rms_norm: bool) -> Block {
        let mixer = Mixer::new(&path.sub("mixer"), d_model, n_layer, ssm);
        Block { mixer, norm: norm(&path.sub("norm"), d_model, rms_norm) }
    }

    /// (hidden states, residual), each `[B, L, d]`, to the next pair. The residual is float32.
    pub fn forward(&self, hidden: &Tensor, residual: Option<&Tensor>) -> (Tensor, Tensor) {
        let residual = match residual {
            Some(residual) => hidden + residual,
            None => hidden.to_kind(Kind::Float),
        };
        (self.mixer.forward(&self.norm.forward(&residual)), residual)
    }
}
