//! Attention over heads, dropout, and what ends the halves of a layer, by the library's operations.

use super::{Linear, Norm};
use crate::error::Result;
use crate::torch::torch_error;
use tch::{Kind, Tensor};

/// softmax(q k^T / sqrt(D)) v of `[B, H, L, D]` (k and v may have another length); row b sees its first `lengths[b]` keys (`[B]`
/// int64; None: all). `dropout` is the probability that a weight is dropped, 0 outside training.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lengths: Option<&Tensor>,
    dropout: f64,
) -> Result<Tensor> {
    let failed = |e| torch_error("attention", e);
    let (batch, keys) = (k.size()[0], k.size()[2]);
    let seen = lengths.map(|lengths| {
        let column = Tensor::arange(keys, (Kind::Int64, k.device()));
        column.lt_tensor(&lengths.unsqueeze(1)).view([batch, 1, 1, keys])
    });
    Tensor::f_scaled_dot_product_attention(q, k, v, seen.as_ref(), dropout, false, None, false)
        .map_err(failed)
}

/// Each element is zero with probability `p`, the others grow by 1 / (1 - p).
pub fn dropout(x: &Tensor, p: f64) -> Result<Tensor> {
    if p == 0.0 {
        return Ok(x.shallow_clone());
    }
    x.f_dropout(p, true).map_err(|e| torch_error("dropout", e))
}

/// The norm of dropout(x) + residual, both `[.., d]`.
pub fn add_norm(x: &Tensor, residual: &Tensor, norm: &Norm, p: f64) -> Result<Tensor> {
    Ok(norm.forward(&(dropout(x, p)? + residual)))
}

/// gelu(linear(x)), the exact GELU; x `[.., in]` to `[.., out]`.
pub fn linear_gelu(x: &Tensor, linear: &Linear) -> Result<Tensor> {
    Ok(linear.forward(x).gelu("none"))
}
