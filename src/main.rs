//! The process: its command line, its world, one command, and its fate.

use clap::Parser;
use std::process::ExitCode;
use trainer::commands::{Cli, start};
use trainer::dist;
use trainer::error::Result;
use trainer::recipes::Done;

fn main() -> ExitCode {
    let cli = Cli::parse();
    dist::on_panic();
    match run(&cli) {
        Ok(Done::Complete) => ExitCode::SUCCESS,
        Ok(Done::Preempted) => ExitCode::from(75),
        Err(error) => dist::fail(&error),
    }
}

fn run(cli: &Cli) -> Result<Done> {
    let session = start(cli.level())?;
    let done = cli.run(&session)?;
    session.world.finish()?;
    Ok(done)
}
