//! The command line: one file a subcommand, wiring and no logic.

mod context;

pub use context::Context;

use crate::error::Result;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// MPI-style trainer for protein, molecule and materials models.
///
/// Start it alone, under mpirun or under srun; every rank is one process.
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Say more.
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Say warnings alone.
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// A configuration file and what changes it.
#[derive(Args, Clone)]
pub struct ConfigArgs {
    /// The configuration (YAML).
    pub config: PathBuf,
    /// Changes a key: dotted.key=value. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Checks configuration, data headers and model shapes, prints what would be done, and stops.
    #[arg(long)]
    pub dry_run: bool,
}

/// The subcommands.
#[derive(Subcommand)]
pub enum Command {
}

impl Cli {
    /// Runs the command on this rank.
    pub fn run(&self, context: &Context) -> Result<ExitCode> {
        match self.command {}
    }
}
