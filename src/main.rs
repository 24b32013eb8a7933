//! The process: its command line, its world, one command, and its fate.

use clap::Parser;
use std::process::ExitCode;
use trainer::commands::{Cli, start};
use trainer::dist;
use trainer::error::{Error, Kind, Result};

fn main() -> ExitCode {
    let cli = Cli::parse();
    dist::on_panic();
    match run(&cli) {
        Ok(code) => code,
        Err(error) => dist::fail(&error),
    }
}

/// An error comes back where it ends all ranks; a stop is agreed on, and all leave together.
fn run(cli: &Cli) -> Result<ExitCode> {
    let session = start(cli.level())?;
    let stopped = match cli.run(&session) {
        Err(error) if error.kind() == Kind::Preempted => Some(error),
        result => result.map(|()| None::<Error>)?,
    };
    if let Some(reason) = &stopped {
        session.console.line(&reason.to_string());
    }
    session.world.finish()?;
    Ok(stopped.map_or(ExitCode::SUCCESS, |reason| ExitCode::from(reason.code() as u8)))
}
