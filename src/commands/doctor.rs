//! `doctor`: what would stop a run here, as a table or as JSON.

use crate::doctor::{Status, Target, examine};
use crate::error::Result;
use crate::files::print;
use crate::recipes::Session;
use clap::Args;
use std::path::PathBuf;

/// What is looked at, and how it is told.
#[derive(Args)]
pub struct DoctorArgs {
    /// The configuration of the run [default: the machine and the working directory alone].
    config: Option<PathBuf>,
    /// Change a key: dotted.key=value (repeatable).
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
    set: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Prints what was found (rank 0); 4 where something would stop a run.
pub fn run(args: &DoctorArgs, session: &Session) -> Result<u8> {
    let target = args.config.as_ref().map(|config| Target { config, set: &args.set });
    let report = examine(&session.world, target.as_ref())?;
    if session.world.rank() == 0 {
        print(&if args.json { report.json()? } else { report.table() })?;
    }
    Ok(if report.verdict == Status::Stops { 4 } else { 0 })
}
