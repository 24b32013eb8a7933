//! The embedding job: sequences through ESM-2 into the shards of a cache, on any number of ranks.
//!
//! - `encoder`: an ESM-2 with its weights, ready for inference, and what identifies it
//! - `sequences`: what is to be embedded, read by offset so that memory stays bounded
//! - `job`: plan, shards, ranks, progress

mod encoder;
mod job;
mod sequences;

pub use encoder::Encoder;
pub use job::{Ended, JobConfig, Summary, Work, run, side_name};
pub use sequences::{FastaSequences, Item, Sequences};
