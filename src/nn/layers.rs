//! Linear layers and norms with PyTorch's names and meaning.

use crate::torch::{Init, Path};
use tch::Tensor;

/// y = x W^T (+ b); W is `[out, in]`.
pub struct Linear {
    /// `[out, in]`
    pub weight: Tensor,
    /// `[out]`
    pub bias: Option<Tensor>,
}

impl Linear {
    /// Declares `weight` with PyTorch's default start, and where wanted a `bias` of zeros.
    pub fn new(path: &Path, inputs: i64, outputs: i64, bias: bool) -> Linear {
        Self::with_init(path, inputs, outputs, bias, Init::linear(inputs))
    }

    /// Declares `weight` with its own start, and where wanted a `bias` of zeros.
    pub fn with_init(path: &Path, inputs: i64, outputs: i64, bias: bool, init: Init) -> Linear {
        let weight = path.param("weight", &[outputs, inputs], init);
        let bias = bias.then(|| path.param("bias", &[outputs], Init::Constant(0.0)));
        Linear { weight, bias }
    }

    /// x `[.., in]` to `[.., out]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}

/// A norm over the last dimension.
pub enum Norm {
    /// Mean and variance (Ba et al., 2016).
    Layer {
        /// `[d]`
        weight: Tensor,
        /// `[d]`
        bias: Tensor,
        /// Added to the variance.
        eps: f64,
    },
    /// Root mean square alone (Zhang and Sennrich, 2019).
    Rms {
        /// `[d]`
        weight: Tensor,
        /// Added to the mean square.
        eps: f64,
    },
}

impl Norm {
    /// Declares a layer norm: `weight` ones, `bias` zeros.
    pub fn layer(path: &Path, width: i64, eps: f64) -> Norm {
        let weight = path.param("weight", &[width], Init::Constant(1.0));
        Norm::Layer { weight, bias: path.param("bias", &[width], Init::Constant(0.0)), eps }
    }

    /// Declares a root-mean-square norm: `weight` ones.
    pub fn rms(path: &Path, width: i64, eps: f64) -> Norm {
        Norm::Rms { weight: path.param("weight", &[width], Init::Constant(1.0)), eps }
    }

    /// x `[.., d]` to the same shape.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Norm::Layer { weight, bias, eps } => {
                x.layer_norm([x.size()[x.dim() - 1]], Some(weight), Some(bias), *eps, false)
            }
            Norm::Rms { weight, eps } => {
                let square = x.square().mean_dim([-1i64].as_slice(), true, None);
                x * (square + *eps).rsqrt() * weight
            }
        }
    }
}
