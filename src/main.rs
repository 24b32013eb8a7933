//! The process: its command line, its world, one command, and its fate.

use clap::Parser;
use std::process::ExitCode;
use trainer::commands::{Cli, start};
use trainer::dist;
use trainer::error::{Kind, Result};

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
    let session = start(cli.level(), cli.threads_per_rank())?;
    let code = match cli.run(&session) {
        Err(error) if error.kind() == Kind::Preempted => {
            session.console.line(&error.to_string());
            error.code() as u8
        }
        code => code?,
    };
    session.world.finish()?;
    Ok(ExitCode::from(code))
}
