//! From a user's table of alloys to samples: texts, targets and the split.
//!
//! - `config`: the keys of `dataset` and `text` that say how
//! - `reader`, `columns`, `units`, `clean`: what the columns and cells of a table mean
//! - `formula`, `elements`: what an alloy is made of
//! - `target`: what is predicted, and the way back; `parts`: who trains and who is held out
//! - `leak`: what must not enter a text; `text`: the texts
//! - `prepare` with `job`, `output`, `report`: all of it, for every target, in bounded memory
//! - `samples` with `raw`: what `prepare` made, or the user brought, read back
//! - `rows`: texts of a new table, for predictions

pub mod clean;
pub mod columns;
pub mod config;
mod elements;
#[cfg(test)]
pub mod fixtures;
mod formula;
mod job;
mod leak;
#[cfg(test)]
mod mpea_tests;
pub mod output;
mod parts;
pub mod prepare;
mod raw;
pub mod reader;
pub mod report;
pub mod rows;
pub mod samples;
pub mod target;
#[cfg(test)]
mod tests;
pub mod text;
mod units;
