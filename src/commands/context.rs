//! From the process's start to a session: signals, launcher, MPI, console.

use crate::config::{Launcher, LauncherKind, Suspicion, environment};
use crate::dist::{World, stop};
use crate::error::{Error, Result};
use crate::progress;
use crate::recipes::Session;
use crate::report::console::{Console, Level};
use std::sync::Arc;
use tracing_subscriber::EnvFilter;
use xxhash_rust::xxh3::Xxh3;

/// What sets the log's filter, such as `debug` or `trainer::dist=trace`, on every rank.
const FILTER: &str = "TRAINER_LOG";

/// Lets log lines appear between the console's own; without a filter `-v` shows rank 0's phases.
fn log_to(console: &Arc<Console>) -> Result<()> {
    let filter = match std::env::var(FILTER) {
        Ok(text) => EnvFilter::try_new(&text)
            .map_err(|e| Error::usage(e.to_string()).at(FILTER).hint("try TRAINER_LOG=debug"))?,
        Err(_) if console.level() >= Level::Verbose => EnvFilter::new("trainer=debug"),
        Err(_) => return Ok(()),
    };
    let own = console.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(move || Lines(own.clone()))
        .finish();
    tracing::subscriber::set_global_default(subscriber)
        .map_err(|e| Error::bug(format!("the log was set up twice: {e}")))
}

/// The console as the log's place to write.
struct Lines(Arc<Console>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Joins the job that the launcher's environment speaks of.
pub fn start(level: Level) -> Result<Session> {
    crate::torch::cuda::settle_environment();
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
    agree_on_program(&world)?;
    let console = Arc::new(Console::stderr(level, world.rank()));
    log_to(&console)?;
    Ok(Session { world, console })
}

/// Refuses ranks that run another program or another command than rank 0.
fn agree_on_program(world: &World) -> Result<()> {
    if world.size() == 1 {
        return Ok(());
    }
    let program = hash_of_this_program()
        .map_err(|e| Error::launch(format!("cannot read this program's own file: {e}")))?;
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    progress::enter("comparing the ranks");
    let refuse = |what: String, hint: &str| Err(Error::launch(what).hint(hint));
    if let Some(odd) = world.comm.odd_one(program.to_le_bytes().to_vec())? {
        return refuse(
            format!("ranks differ: rank {} runs another build of trainer than rank 0", odd.rank),
            "start one and the same file on all nodes",
        );
    }
    if let Some(odd) = world.comm.odd_one(arguments.join(" ").into_bytes())? {
        let told = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        return refuse(
            format!(
                "ranks differ: rank 0 was given `{}`, rank {} `{}`",
                told(&odd.first),
                odd.rank,
                told(&odd.theirs)
            ),
            "give all ranks the same command",
        );
    }
    Ok(())
}

fn hash_of_this_program() -> std::io::Result<u64> {
    let mut file = std::fs::File::open(std::env::current_exe()?)?;
    let mut hash = Xxh3::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(hash.digest()),
            n => hash.update(&buffer[..n]),
        }
    }
}
