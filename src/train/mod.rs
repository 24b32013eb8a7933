//! Training: the loop, one step of it, evaluation, checkpoints, the run directory.
//!
//! - `task`: what a recipe gives: data that collates, a model that computes loss terms
//! - `fit`: the loop, on one page
//! - `step`: one optimiser step over all ranks; `gradient`: its sum; `adamw`, `schedule`
//! - `evaluate`: a whole part of the data over all ranks
//! - `checkpoint`: whole and verified directories; `saver` writes them in the background
//! - `run_dir`: which directory a run lives in, and that it lives there alone
//! - `records`: what a run leaves for people and programs to read
//!
//! Knows no model: a task hides it.

pub mod adamw;
pub mod checkpoint;
pub mod evaluate;
pub mod fit;
pub mod gradient;
pub mod records;
pub mod run_dir;
pub mod saver;
pub mod schedule;
mod step;
pub mod task;
