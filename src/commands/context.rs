//! From the process's start to a session: signals, launcher, MPI, console.

use crate::config::{Launcher, LauncherKind, Suspicion, environment};
use crate::dist::{World, stop};
use crate::error::{Error, Result};
use crate::recipes::Session;
use crate::report::console::{Console, Level};
use std::sync::Arc;

/// Joins the job that the launcher's environment speaks of.
pub fn start(level: Level) -> Result<Session> {
    stop::install();
    crate::torch::keep_freed_memory();
    let launcher = Launcher::from_env(environment())?;
    if let Suspicion::Singletons { tasks } = launcher.suspicion() {
        return Err(Error::launch(format!(
            "srun started {tasks} tasks but gave MPI no way to find them: each would be rank 0 of 1"
        ))
        .hint("start with `srun --mpi=pmix` (Open MPI) or `srun --mpi=pmi2` (MPICH); `srun --mpi=list` shows what there is"));
    }
    let expected = match launcher.kind {
        LauncherKind::None => None,
        _ => Some((launcher.rank, launcher.size)),
    };
    let world = World::start(expected)?;
    let console = Arc::new(Console::stderr(level, world.rank()));
    Ok(Session { world, console })
}
