//! What a transformer layer needs beside its linear layers, for training and inference: attention
//! and dropout, the residual with its norm, the linear layer with a GELU behind it.
//!
//! In float32 on the CPU each is one fused operation with its own backward
//! (`torch/cpp/transformer.cpp`): libtorch's attention leaves its fast path there as soon as weights
//! are dropped, and its masks come one number after another from a sequential generator. Elsewhere
//! (GPUs, half precision) libtorch's own operations serve.
//!
//! Bits: on the CPU a call draws one seed from libtorch's default generator, and the mask is a
//! function of that seed and of an element's place. Results and gradients of attention and dropout
//! are the same for any number of threads, given the same inputs.

use super::{Linear, Norm};
use crate::error::{Error, Result};
use crate::torch::{self, torch_error};
use tch::{Device, Kind, Tensor};

/// Scaled dot-product attention: q, k, v `[B, H, L, D]` (k and v may have another length),
/// `lengths` `[B]` int64 on q's device: of row b only the first `lengths[b]` keys are seen (None:
/// all); where there are none the result is zero. `dropout`: the probability with which an attention
/// weight is dropped (0 when not training). `[B, H, L, D]`, differentiable. Padding queries are
/// computed like others.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lengths: Option<&Tensor>,
    dropout: f64,
) -> Result<Tensor> {
    check(dropout)?;
    if fused(&[q, k, v]) {
        return torch::attention(q, k, v, lengths, dropout);
    }
    library_attention(q, k, v, lengths, dropout).map_err(|e| torch_error("attention", e))
}

fn library_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lengths: Option<&Tensor>,
    dropout: f64,
) -> std::result::Result<Tensor, tch::TchError> {
    let Some(lengths) = lengths else {
        return Tensor::f_scaled_dot_product_attention::<Tensor>(
            q, k, v, None, dropout, false, None, false,
        );
    };
    // A row that sees nothing would be 0/0: it sees one key, and its result is put aside.
    let at = |x: &Tensor| x.f_view([-1, 1, 1, 1]);
    let places = Tensor::f_arange(k.size()[2], (Kind::Int64, k.device()))?;
    let seen = places.f_lt_tensor(&at(&lengths.f_clamp_min(1)?)?)?;
    let y =
        Tensor::f_scaled_dot_product_attention(q, k, v, Some(&seen), dropout, false, None, false)?;
    y.f_masked_fill(&at(&lengths.f_le(0)?)?, 0.0)
}

/// Drops elements with probability p and scales the rest by 1/(1-p); p = 0 is the tensor itself.
/// Differentiable.
pub fn dropout(x: &Tensor, p: f64) -> Result<Tensor> {
    check(p)?;
    if p == 0.0 {
        return Ok(x.shallow_clone());
    }
    if fused(&[x]) {
        return torch::dropout(x, p);
    }
    x.f_dropout(p, true).map_err(|e| torch_error("dropout", e))
}

/// The norm of dropout(x) + residual, both `[.., d]`: what ends each half of a post-norm layer.
/// Differentiable.
pub fn add_norm(x: &Tensor, residual: &Tensor, norm: &Norm, p: f64) -> Result<Tensor> {
    check(p)?;
    if let Norm::Layer { weight, bias, eps } = norm
        && fused(&[x, residual, weight])
    {
        return torch::add_norm(x, residual, (weight, bias), *eps, p);
    }
    Ok(norm.forward(&(dropout(x, p)? + residual)))
}

/// gelu(linear(x)), the exact GELU; x `[.., in]` to `[.., out]`. Differentiable. Our own needs the
/// registers of AVX-512 to be faster than the library's.
pub fn linear_gelu(x: &Tensor, linear: &Linear) -> Result<Tensor> {
    if let Some(bias) = &linear.bias
        && fused(&[x, &linear.weight])
        && torch::kernels_name() == "avx512"
    {
        let product = x.f_linear(&linear.weight, None::<&Tensor>);
        let product = product.map_err(|e| torch_error("linear", e))?;
        // Autocast gives a half precision product of whole precision operands.
        if product.kind() == Kind::Float {
            return torch::bias_gelu_train(&product, bias);
        }
        return Ok((&product + bias.to_kind(product.kind())).gelu("none"));
    }
    Ok(linear.forward(x).gelu("none"))
}

/// Whether our own kernels take tensors like these.
fn fused(x: &[&Tensor]) -> bool {
    x.iter().all(|x| x.device() == Device::Cpu && x.kind() == Kind::Float)
}

fn check(p: f64) -> Result<()> {
    if (0.0..1.0).contains(&p) {
        return Ok(());
    }
    Err(Error::usage(format!("dropout must be at least 0 and below 1, not {p}")))
}
