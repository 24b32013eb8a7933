//! What tch lacks: the C++ shim and its kernels, declared and flat parameters, strict safetensors,
//! deterministic mode.
//!
//! - `cuda`: GPUs, found and opened at run time, and our kernels for them
//! - `shim`: safe Rust over the C functions of `cpp/`
//! - `transformer`: the same for a transformer layer in training
//! - `params`: parameters in declaration order, their initial values, loading by name
//! - `flat`: trainable parameters and gradients as one buffer each
//! - `lane`: a stream beside libtorch's own
//! - `weights`: reading and writing safetensors, strictly

pub mod cuda;
mod flat;
mod lane;
mod params;
mod shim;
mod transformer;
mod weights;

pub use flat::{ALIGN, Flat, Slot, cells_of, slice_of};
pub use lane::Lane;
pub use params::{Init, LoadReport, Params, Path};
pub use shim::{
    AdamwStep, Autocast, ScanInput, adamw, bias_gelu, causal_conv, keep_freed_memory, kernels_name,
    packed_attention, parallel_width, permute_rows, pinned, selective_scan, set_autocast,
    set_deterministic, set_grad, sum_of_squares, torch_version, upload,
};
pub use transformer::{add_norm, attention, bias_gelu_train, dropout};
pub use weights::{Entry, WeightFile, content_hash, refuse_pickle, write_safetensors};

use crate::error::Error;

/// A failure inside libtorch. Out of memory is the machine's (exit code 4); the rest are bugs.
pub fn torch_error(what: &str, message: impl std::fmt::Display) -> Error {
    let message = message.to_string();
    let first = message.lines().next().unwrap_or_default().to_string();
    if message.contains("out of memory") || message.contains("can't allocate memory") {
        return Error::launch(format!("out of memory in {what}: {first}"))
            .hint("lower training.max_tokens_per_batch or training.per_device_train_batch_size");
    }
    Error::bug(format!("libtorch failed in {what}: {first}"))
}
