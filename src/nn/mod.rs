//! What several models share: linear layers and norms, attention, rotary positions, the selective
//! scan.
//!
//! Shapes: B batch, L length, d width, D channels, N states, H heads. Nothing here knows a rank, a
//! file or the command line.

pub mod attention;
mod layers;
pub mod rotary;
pub mod scan;

pub use layers::{Linear, Norm};
