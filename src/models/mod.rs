//! One file a model: its configuration with upstream's key names, its layers, its forward pass.
//!
//! Models are single-device code. Shapes: B batch, L length, d width, H heads, T packed tokens.

pub mod bert;
pub mod esm2;
pub mod mamba;
pub mod ptm_mamba;
