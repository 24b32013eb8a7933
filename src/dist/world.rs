//! Starting and ending the job.
//!
//! `MPI_Finalize` is reached on success alone: a rank that went there while others sit in a
//! collective would hang the job for ever. Every failure ends in `MPI_Abort`, which ends all ranks.

use super::mpi::Mpi;
use super::versions::MpiLibrary;
use super::watchdog::{LAST_MEETING, RendezvousTimer, last_words};
use super::{Comm, fault, launch, nccl, stop};
use crate::config::Launcher;
use crate::error::{Error, Result};
use crate::files::host_name;
use crate::progress;
use std::cell::RefCell;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Whether MPI can be asked to end the job, and who we are in messages.
static MPI_IS_UP: AtomicBool = AtomicBool::new(false);
static RANK: AtomicUsize = AtomicUsize::new(0);
static SIZE: AtomicUsize = AtomicUsize::new(1);

/// How long a rank waits for rank 0 to tell of the same error.
const PATIENCE: Duration = Duration::from_secs(1);

/// The ranks of this job and this process among them.
pub struct World {
    /// What ranks do together.
    pub comm: Comm,
    /// This process's number on its node.
    pub local_rank: usize,
    /// Number of ranks on this node.
    pub local_size: usize,
    /// Until all ranks have come together.
    start_timer: RefCell<Option<RendezvousTimer>>,
    // Dropped last, on success alone: it finalises MPI.
    universe: Option<mpi::environment::Universe>,
}

impl World {
    /// Joins the job that the launcher speaks of; one process alone needs no MPI. Refuses an MPI
    /// library that is not the one built against, and a launcher that cannot start ranks of it
    /// (exit code 4).
    pub fn start(launcher: &Launcher) -> Result<World> {
        if launcher.size == Some(1) {
            fault::install(0)?;
            return Ok(World {
                comm: Comm::Solo,
                local_rank: 0,
                local_size: 1,
                start_timer: RefCell::new(None),
                universe: None,
            });
        }
        progress::enter("starting MPI");
        RANK.store(launcher.rank, Ordering::SeqCst);
        SIZE.store(launcher.size.unwrap_or(launcher.rank + 1), Ordering::SeqCst);
        fault::install(launcher.rank)?;
        let start_timer = RendezvousTimer::new(start_limit()?);
        let built = MpiLibrary::built();
        MpiLibrary::check(&built, &MpiLibrary::running())?;
        launch::refuse(launcher, &built)?;
        let (universe, _) = mpi::initialize_with_threading(mpi::Threading::Funneled)
            .ok_or_else(|| Error::bug("MPI was initialised twice"))?;
        let mpi = Mpi::world()?;
        let expected = (launcher.rank, launcher.size.unwrap_or(mpi.size));
        if (mpi.rank, mpi.size) != expected {
            // These ranks are not each other's: to leave is all that each can do.
            std::mem::forget(universe);
            return Err(launch::contradiction(launcher, &built, (mpi.rank, mpi.size)));
        }
        SIZE.store(mpi.size, Ordering::SeqCst);
        MPI_IS_UP.store(true, Ordering::SeqCst);
        let (local_rank, local_size) = mpi.node_rank()?;
        Ok(World {
            comm: Comm::Mpi(mpi),
            local_rank,
            local_size,
            start_timer: RefCell::new(Some(start_timer)),
            universe: Some(universe),
        })
    }

    /// All ranks are here and give signs of life, or none is awaited: the start is over.
    pub fn arrived(&self) {
        self.start_timer.take();
    }

    /// This process's number.
    pub fn rank(&self) -> usize {
        self.comm.rank()
    }

    /// The number of processes.
    pub fn size(&self) -> usize {
        self.comm.size()
    }

    /// Leaves the job when all ranks have come here.
    pub fn finish(mut self) -> Result<()> {
        nccl::leave();
        progress::enter("leaving MPI");
        self.comm.barrier()?;
        let _timer = (self.size() > 1).then(|| RendezvousTimer::new(LAST_MEETING));
        MPI_IS_UP.store(false, Ordering::SeqCst);
        drop(self.universe.take());
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Reached with the universe only when an error or a panic unwinds; see above.
        if let Some(universe) = self.universe.take() {
            std::mem::forget(universe);
        }
    }
}

/// How long ranks may take to come together: 300 s, or `TRAINER_START_TIMEOUT`.
pub(super) fn start_limit() -> Result<Duration> {
    const VARIABLE: &str = "TRAINER_START_TIMEOUT";
    let Ok(text) = std::env::var(VARIABLE) else { return Ok(Duration::from_secs(300)) };
    let seconds = text.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    seconds.ok_or_else(|| {
        Error::usage(format!("`{text}` is no number of seconds")).at(VARIABLE).hint("such as 300")
    })
}

/// Ends every process of the job with this exit code.
pub fn abort(code: i32) -> ! {
    if MPI_IS_UP.load(Ordering::SeqCst) {
        Mpi::abort(code);
    }
    // What is on its way to standard output goes out; nothing else is tidied up, for a library in
    // the middle of a failure (HDF5 on a full disk) may crash when it is asked to.
    let _ = std::io::stdout().flush();
    // SAFETY: ends the process; nothing runs after it.
    unsafe { libc::_exit(code) }
}

/// Prints an error with who and where, and ends the job with its exit code.
///
/// What goes wrong on all ranks alike is told by rank 0: the others wait a moment, and where the
/// launcher ends them meanwhile (by a signal) they have nothing to add. What rank 0 does not see is
/// told by the lowest rank that does; what is known to meet all of them ([`Error::everywhere`]) by
/// rank 0 alone, also where no launcher ends the others.
pub fn fail(error: &Error) -> ! {
    let rank = RANK.load(Ordering::SeqCst);
    if rank != 0 && error.is_everywhere() {
        std::thread::sleep(PATIENCE);
        abort(error.code());
    }
    if rank != 0 && stop::requested().is_none() {
        let started = Instant::now();
        // Before MPI is up rank 0 cannot abort; launchers take a second to see that it left.
        let factor = if MPI_IS_UP.load(Ordering::SeqCst) { 4 } else { 12 };
        let patience = PATIENCE / 4 * (factor + (rank - 1).min(8) as u32);
        while started.elapsed() < patience && stop::requested().is_none() {
            std::thread::sleep(Duration::from_millis(10));
        }
        if stop::requested().is_some() {
            last_words(&error.to_string());
            // SAFETY: the launcher is ending this process anyway; nothing of ours is unsaved.
            unsafe { libc::_exit(error.code()) };
        }
    }
    last_words(&error.to_string());
    say(&report("error", &error.to_string()));
    abort(error.code())
}

/// Says what the watchdog found.
pub(super) fn say_verdict(text: &str) {
    say(&format!("watchdog: {text}"));
}

/// Ends this process at once, from any thread, and says why.
pub(super) fn leave_at_once(code: i32, why: &str) -> ! {
    say(&format!("watchdog: {}", report("end", why)));
    leave_quietly(code)
}

/// Ends this process at once, from any thread; the main one may sit inside MPI.
pub(super) fn leave_quietly(code: i32) -> ! {
    // SAFETY: ends the process; nothing runs after it.
    unsafe { libc::_exit(code) }
}

/// Whether srun started this process itself.
pub(super) fn is_slurm_step() -> bool {
    let has = |name| std::env::var_os(name).is_some();
    has("SLURM_STEP_ID") && !has("OMPI_COMM_WORLD_RANK")
}

/// Writes a message whole: the lines of ranks that speak at once do not mix.
pub(super) fn say(message: &str) {
    // With standard error gone nobody is left to be told.
    let _ = std::io::stderr().write_all(format!("{message}\n").as_bytes());
}

fn report(kind: &str, what: &str) -> String {
    let (rank, size) = (RANK.load(Ordering::SeqCst), SIZE.load(Ordering::SeqCst));
    let phase = progress::current();
    let phase = if phase.is_empty() { String::new() } else { format!(" while {phase}") };
    if size == 1 {
        return format!("{kind}{phase}: {what}");
    }
    format!("{kind} on rank {rank} of {size}, host {}{phase}: {what}", host_name())
}

/// What libtorch says by a panic when memory is short (exit code 4).
fn out_of_memory(text: &str) -> Error {
    let asked = text.split("tried to allocate ").nth(1).and_then(|t| t.split(['.', '\\']).next());
    let asked = asked.map_or(String::new(), |a| format!(": {} were asked for", a.trim()));
    Error::launch(format!("there is not enough memory{asked}")).hint(
        "lower training.max_tokens_per_batch or training.per_device_train_batch_size, take a \
         smaller model (model.d_model, model.n_layer), or start fewer ranks on a node",
    )
}

/// Makes every panic, on any thread, end the whole job with exit code 70.
pub fn on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.to_string();
        if text.contains("allocate memory") || text.contains("out of memory") {
            fail(&out_of_memory(&text));
        }
        last_words(&format!("bug: {info}"));
        let plea = "this is a mistake of the program; please report it with the lines above";
        say(&format!("{}\n  {plea}", report("bug", &info.to_string())));
        abort(70)
    }));
}
