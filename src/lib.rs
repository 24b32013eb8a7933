//! `trainer`: an MPI-style HPC batch launcher and trainer. One line a room; the README has the map,
//! and `tests/layers.rs` holds who may import whom.

pub mod cache;
pub mod commands;
pub mod config;
pub mod data;
pub mod dist;
pub mod doctor;
pub mod embed;
pub mod error;
pub mod files;
pub mod metrics;
pub mod models;
pub mod nn;
pub mod progress;
pub mod recipes;
pub mod report;
pub mod rng;
pub mod torch;
pub mod train;
