//! From the process's start to a session: signals, launcher, MPI, console.

use crate::config::{Cores, Launcher, environment};
use crate::dist::{MpiLibrary, World, ranks, stop};
use crate::error::{Error, Result};
use crate::progress;
use crate::recipes::Session;
use crate::report::console::{Console, Level};
use crate::torch;
use serde::{Deserialize, Serialize};
use std::os::unix::process::CommandExt;
use std::process::Command;
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

/// Joins the job that the launcher's environment speaks of. `threads` is what a rank will use.
pub fn start(level: Level, threads: usize) -> Result<Session> {
    torch::cuda::settle_environment();
    let launcher = Launcher::from_env(environment())?;
    wait_passively(&launcher, threads)?;
    stop::install();
    torch::keep_freed_memory();
    let world = World::start(&launcher)?;
    agree_on_program(&world)?;
    let console = Arc::new(Console::stderr(level, world.rank()));
    log_to(&console)?;
    Ok(Session { world, console })
}

/// What tells libgomp how threads wait. It is read when the library is loaded, before `main`.
const WAITING: &str = "OMP_WAIT_POLICY";

/// Where this node's ranks have more threads than cores, waiting threads must not spin: then two
/// processes of two threads on two cores are eight times slower. The program is replaced by itself
/// with that setting, once, before MPI knows of it. What the user set is left alone.
fn wait_passively(launcher: &Launcher, threads: usize) -> Result<()> {
    let ranks = launcher.local_size.or(launcher.size).unwrap_or(1);
    let crowded = threads > 1 && Cores::of_this_process().crowded(ranks, threads);
    if !crowded || std::env::var_os(WAITING).is_some() {
        return Ok(());
    }
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let error = match std::env::current_exe() {
        Ok(own) => Command::new(own).arg0(name).args(arguments).env(WAITING, "passive").exec(),
        Err(error) => error,
    };
    Err(Error::launch(format!("cannot start again with {WAITING}=passive: {error}"))
        .hint(format!("set {WAITING}=passive yourself")))
}

/// What must be the same on all ranks.
#[derive(Serialize, Deserialize)]
struct Program {
    build: u64,
    arguments: String,
    libraries: String,
}

impl Program {
    fn here() -> Result<Program> {
        let build = hash_of_this_program()
            .map_err(|e| Error::launch(format!("cannot read this program's own file: {e}")))?;
        let arguments: Vec<String> =
            std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
        let (major, minor, patch) = hdf5::library_version();
        let libraries = format!(
            "{}, libtorch {}, HDF5 {major}.{minor}.{patch}",
            MpiLibrary::running(),
            torch::torch_version()
        );
        Ok(Program { build, arguments: arguments.join(" "), libraries })
    }
}

/// Refuses ranks that run another program, command or library than rank 0.
fn agree_on_program(world: &World) -> Result<()> {
    if world.size() == 1 {
        return Ok(());
    }
    let own = Program::here()?;
    progress::enter("comparing the ranks");
    let bug = |e: serde_json::Error| Error::bug(format!("a rank's program in JSON: {e}"));
    let all = world.comm.all_gather(serde_json::to_vec(&own).map_err(bug)?)?;
    let all: Vec<Program> =
        all.iter().map(|one| serde_json::from_slice(one).map_err(bug)).collect::<Result<_>>()?;
    compare(&all)
}

fn compare(all: &[Program]) -> Result<()> {
    let differ = |same: &dyn Fn(&Program) -> bool| -> Option<(String, &Program)> {
        let odd: Vec<usize> = (0..all.len()).filter(|rank| !same(&all[*rank])).collect();
        odd.first().map(|first| (ranks(&odd), &all[*first]))
    };
    let refuse = |what: String, hint: &str| {
        Err(Error::launch(format!("ranks differ: {what}")).hint(hint).everywhere())
    };
    let first = &all[0];
    if let Some((odd, _)) = differ(&|one| one.build == first.build) {
        return refuse(
            format!("{odd}: another build of trainer than rank 0's"),
            "start one and the same file on all nodes",
        );
    }
    if let Some((odd, other)) = differ(&|one| one.arguments == first.arguments) {
        return refuse(
            format!("rank 0 was given `{}`, {odd} `{}`", first.arguments, other.arguments),
            "give all ranks the same command",
        );
    }
    if let Some((odd, other)) = differ(&|one| one.libraries == first.libraries) {
        return refuse(
            format!("rank 0 uses {}, {odd} {}", first.libraries, other.libraries),
            "load the same modules on all nodes, and set no LD_LIBRARY_PATH or LD_PRELOAD on some",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_told_with_the_ranks() {
        let program = |build, arguments: &str, libraries: &str| Program {
            build,
            arguments: arguments.into(),
            libraries: libraries.into(),
        };
        let first = || program(1, "train a.yaml", "Open MPI 4.1.4");
        for (other, said) in [
            (program(2, "train a.yaml", "Open MPI 4.1.4"), "ranks 1, 2: another build"),
            (program(1, "train b.yaml", "Open MPI 4.1.4"), "ranks 1, 2 `train b.yaml`"),
            (program(1, "train a.yaml", "Open MPI 4.1.5"), "ranks 1, 2 Open MPI 4.1.5"),
        ] {
            let same = program(other.build, &other.arguments, &other.libraries);
            let error = compare(&[first(), same, other]).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
            assert!(error.is_everywhere());
        }
        compare(&[first(), first()]).unwrap();
    }
}
