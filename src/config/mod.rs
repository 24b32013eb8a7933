//! The configuration: from YAML text, overrides and environment to typed, checked sections.
//!
//! - `yaml`, `yaml_writer`: text to value with the line of every key, and back.
//! - `aliases`: other names of our keys, and settings said in another way.
//! - `file`: [`ConfigFile`], the way from a file and `--set` to sections, with the place of each value.
//! - `typed`: a value into a struct, with refusals that know what is allowed.
//! - `values`, `sections`: the types of keys, and the sections that recipes share.
//! - `identity`: what makes two runs the same run.
//! - `launcher`: who started this process, from its environment; `cores`: what it may compute on.

mod aliases;
mod cores;
mod file;
#[cfg(test)]
mod file_tests;
mod identity;
mod launcher;
mod sections;
mod typed;
mod values;
mod yaml;
mod yaml_writer;

pub use cores::Cores;
pub use file::ConfigFile;
pub use identity::{difference, identity};
pub use launcher::{Launcher, LauncherKind, array_part, environment};
pub use sections::{
    Dataset, Distributed, Esm, Fault, Masking, Run, Section, Training, probability, require,
};
pub use values::{
    Backend, Device, Dtype, EvaluationStrategy, GreaterIsBetter, MaskPolicy, OverLength, Pooling,
    Precision, PtmResidue, Reduce, ReportTo, Resume, Schedule, Size, UserPath,
};
pub use yaml_writer::write as write_yaml;
