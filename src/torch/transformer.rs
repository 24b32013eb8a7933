//! Safe Rust over `cpp/transformer.cpp`: a transformer layer's operations in training on the CPU,
//! each with its own backward. All tensors are float32 on the CPU; anything else is refused.
//!
//! Whatever drops elements draws one seed a call from libtorch's default generator, unless nothing
//! is dropped. Which elements are dropped follows from the seed and their places alone. The
//! probability is rounded to a multiple of 2^-16, and the scale of the others fits what it became.

use super::shim::{raw, taken};
use crate::error::Result;
use std::ffi::c_char;
use tch::Tensor;
use torch_sys::C_tensor;

unsafe extern "C" {
    fn trainer_dropout(result: *mut *mut C_tensor, x: *mut C_tensor, p: f64) -> *mut c_char;
    fn trainer_attention(
        result: *mut *mut C_tensor,
        q: *mut C_tensor,
        k: *mut C_tensor,
        v: *mut C_tensor,
        lengths: *mut C_tensor,
        p: f64,
    ) -> *mut c_char;
    fn trainer_add_norm(
        result: *mut *mut C_tensor,
        x: *mut C_tensor,
        residual: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        eps: f64,
        p: f64,
    ) -> *mut c_char;
    fn trainer_bias_gelu_train(
        result: *mut *mut C_tensor,
        x: *mut C_tensor,
        bias: *mut C_tensor,
    ) -> *mut c_char;
}

/// x with elements dropped with probability `p`, `0 <= p < 1`, and the rest scaled up.
pub fn dropout(x: &Tensor, p: f64) -> Result<Tensor> {
    let mut result = std::ptr::null_mut();
    // SAFETY: x is a live tensor; the shim checks what it relies on.
    let message = unsafe { trainer_dropout(&mut result, raw(x), p) };
    taken("dropout", result, message)
}

/// Scaled dot-product attention with dropout `p` of its weights. q `[B, H, L, D]`, k and v
/// `[B, H, K, D]`; `lengths` `[B]` int64 says how many keys are seen, where not all are.
/// `[B, H, L, D]`, laid out as `[B, L, H, D]`; so are the gradients.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lengths: Option<&Tensor>,
    p: f64,
) -> Result<Tensor> {
    let mut result = std::ptr::null_mut();
    let lengths = lengths.map_or(std::ptr::null_mut(), raw);
    // SAFETY: all are live tensors, or null; the shim checks what it relies on.
    let message = unsafe { trainer_attention(&mut result, raw(q), raw(k), raw(v), lengths, p) };
    taken("attention", result, message)
}

/// The layer norm of dropout(x) + residual over the last dimension d; weight and bias `[d]`.
pub fn add_norm(
    x: &Tensor,
    residual: &Tensor,
    (weight, bias): (&Tensor, &Tensor),
    eps: f64,
    p: f64,
) -> Result<Tensor> {
    let mut result = std::ptr::null_mut();
    // SAFETY: all are live tensors; the shim checks what it relies on.
    let message = unsafe {
        trainer_add_norm(&mut result, raw(x), raw(residual), raw(weight), raw(bias), eps, p)
    };
    taken("add_norm", result, message)
}

/// gelu(x + bias), the exact GELU, over the last dimension d; bias `[d]`.
pub fn bias_gelu_train(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let mut result = std::ptr::null_mut();
    // SAFETY: both are live tensors; the shim checks what it relies on.
    let message = unsafe { trainer_bias_gelu_train(&mut result, raw(x), raw(bias)) };
    taken("bias_gelu", result, message)
}
