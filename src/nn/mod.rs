//! What several models share: linear layers and norms, attention, dropout, rotary positions, the
//! selective scan; and which parameters are frozen.
//!
//! Shapes: B batch, L length, d width, D channels, N states, H heads. Nothing here knows a rank, a
//! file or the command line.

pub mod attention;
#[cfg(test)]
mod attention_tests;
pub mod freeze;
mod layers;
pub mod rotary;
pub mod scan;

pub use layers::{Linear, Norm};
