//! The thread that gives a rank's signs of life, watches the others', and ends a job that hangs.
//!
//! Every rank watches (in jobs of many ranks one a node): what the others' heartbeats say, how long
//! they have been silent by its own clock, and what the machine knows of processes on its own node.
//! `verdict` judges. Whoever judges first writes the report, says it once, and leaves with exit code
//! 76; the launcher ends the rest, and where it does not, they find the report and leave too. The
//! main thread may sit anywhere, also inside MPI, so this thread makes no MPI call.
//!
//! A file system that is slow for everyone must not look like death: where a round of writing and
//! reading takes long, or this process itself was stopped, all clocks start again.

use super::heartbeat::{Beat, Process, REPORT, file, interval};
use super::verdict::{Kind, Limits, Seen, Verdict, judge};
use super::{World, deadline, stop, world};
use crate::error::{Error, Result};
use crate::files;
use crate::progress;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The exit code of a job that was ended because it hung.
const HUNG: i32 = 76;

/// How often the thread looks at flags.
const LOOK: Duration = Duration::from_millis(50);

/// Jobs of more ranks than this have one watching rank a node.
const ALL_WATCH: usize = 64;

/// At the end ranks have this long to come together: all of them are there already.
pub(super) const LAST_MEETING: Duration = Duration::from_secs(60);

/// Whose directory of heartbeats it is.
const JOB: &str = "job";

/// The rank and directory that a dying process writes its last sign of life to.
static LAST_WORDS: Mutex<Option<(PathBuf, usize, usize)>> = Mutex::new(None);

/// Signs of life and watching, until it is dropped.
pub struct Watch {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    dir: PathBuf,
    rank: usize,
}

impl World {
    /// Begins to give signs of life in `dir` (made here, emptied of an earlier job's) and to watch
    /// all ranks' there. All ranks call it together.
    pub fn watch(&self, dir: &Path, limits: Limits) -> Result<Watch> {
        let (rank, size) = (self.rank(), self.size());
        let job = self.comm.decide(|| {
            if dir.is_dir() {
                fs::remove_dir_all(dir).map_err(|e| Error::write(dir, &e))?;
            }
            files::make_dir(dir)?;
            let own = Beat::own(0, size, 0);
            let job = format!("{} {} {}", own.host, own.pid, own.unix_seconds);
            let path = dir.join(JOB);
            fs::write(&path, &job).map_err(|e| Error::write(&path, &e))?;
            Ok(job)
        })?;
        Beat::own(rank, size, 0).write(dir)?;
        self.arrived();
        *lock() = Some((dir.to_path_buf(), rank, size));
        let over = Arc::new(AtomicBool::new(false));
        let watcher = Watcher {
            dir: dir.to_path_buf(),
            job,
            rank,
            limits,
            watches: size <= ALL_WATCH || self.local_rank == 0,
            every: interval(size),
            peers: (0..size).map(|_| Peer::new()).collect(),
            beats: 0,
        };
        let flag = over.clone();
        let thread = std::thread::Builder::new()
            .name("watchdog".to_string())
            .spawn(move || watcher.run(&flag))
            .map_err(|e| Error::launch(format!("cannot start the watchdog: {e}")))?;
        Ok(Watch { over, thread: Some(thread), dir: dir.to_path_buf(), rank })
    }
}

impl Watch {
    /// Leaves together with all ranks; nothing stays in the directory, nor the directory itself.
    pub fn leave(self, world: &World) -> Result<()> {
        progress::enter("waiting for the others to end");
        world.comm.barrier()?;
        let dir = self.dir.clone();
        // Nobody watches from here on, and there is nothing left to do but to come together.
        let _timer = RendezvousTimer::new(LAST_MEETING);
        drop(self);
        world.comm.barrier()?;
        if world.rank() == 0 {
            // What cannot be removed is overwritten by the next job.
            let _ = fs::remove_dir_all(dir);
        }
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
        // Nobody is at work here any more; after an error the last words stay.
        if lock().take().is_some() {
            let _ = fs::remove_file(file(&self.dir, self.rank));
        }
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<(PathBuf, usize, usize)>> {
    LAST_WORDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Leaves a last sign of life that says why there will be no other.
pub(super) fn last_words(what: &str) {
    if let Some((dir, rank, size)) = lock().take() {
        let mut beat = Beat::own(rank, size, u64::MAX);
        beat.ended = Some(what.lines().next().unwrap_or_default().chars().take(300).collect());
        // The error itself is told elsewhere.
        let _ = beat.write(&dir);
    }
}

/// One rank as it was last seen, with our own clock's times.
struct Peer {
    beat: Option<Beat>,
    heard: Instant,
    moved: Instant,
    left: bool,
}

impl Peer {
    fn new() -> Peer {
        let now = Instant::now();
        Peer { beat: None, heard: now, moved: now, left: false }
    }

    fn see(&mut self, found: Option<Beat>, is_there: bool, now: Instant) {
        match found {
            Some(new) => {
                let old = self.beat.as_ref();
                if old.is_none_or(|old| old.beat != new.beat) {
                    self.heard = now;
                }
                if old.is_none_or(|old| (old.ticks, &old.phase) != (new.ticks, &new.phase)) {
                    self.moved = now;
                }
                self.left = false;
                self.beat = Some(new);
            }
            // Met half-written: the next round reads it.
            None if is_there => {}
            None => self.left = self.beat.is_some(),
        }
    }
}

struct Watcher {
    dir: PathBuf,
    job: String,
    rank: usize,
    limits: Limits,
    watches: bool,
    every: Duration,
    peers: Vec<Peer>,
    beats: u64,
}

impl Watcher {
    fn run(mut self, over: &AtomicBool) {
        let mut last = Instant::now();
        let mut phase = String::new();
        let mut told_to_stop = None;
        while !over.load(Ordering::SeqCst) {
            std::thread::park_timeout(LOOK);
            if self.rank == 0 {
                deadline::check();
            }
            // A launcher that ends us because a rank died leaves about a second to say which.
            if stop::requested() == Some("SIGTERM") {
                let since = *told_to_stop.get_or_insert_with(Instant::now);
                if since.elapsed() < Duration::from_secs(3) && self.watches {
                    self.look(true);
                }
            }
            // Another kind of work is told at once, so that a rank that dies in it is found there.
            let kind = kind_of(progress::current());
            if kind != phase {
                phase = kind;
                self.beat();
            }
            if last.elapsed() >= self.every {
                let slow = last.elapsed() > 3 * self.every;
                last = Instant::now();
                self.round(slow);
            }
        }
    }

    /// Gives a sign of life and looks at the others'. `slow`: the last round is too long ago.
    fn round(&mut self, slow: bool) {
        let start = Instant::now();
        if fs::read_to_string(self.dir.join(JOB)).is_ok_and(|job| job != self.job) {
            world::leave_at_once(HUNG, "another job has taken this work over while this rank hung");
        }
        if self.dir.join(REPORT).exists() {
            // Whoever wrote it said it.
            world::leave_quietly(HUNG);
        }
        self.beat();
        if self.watches {
            self.look(false);
        }
        if slow || start.elapsed() > self.every {
            let now = Instant::now();
            self.peers.iter_mut().for_each(|peer| (peer.heard, peer.moved) = (now, now));
        }
    }

    fn beat(&mut self) {
        self.beats += 1;
        // A full disk shows where it matters, at the next checkpoint.
        let _ = Beat::own(self.rank, self.peers.len(), self.beats).write(&self.dir);
    }

    fn look(&mut self, hurry: bool) {
        let now = Instant::now();
        for (rank, peer) in self.peers.iter_mut().enumerate() {
            let path = file(&self.dir, rank);
            let found = if rank == self.rank {
                Some(Beat::own(rank, 0, self.beats))
            } else {
                Beat::read(&path)
            };
            let is_there = found.is_some() || path.exists();
            peer.see(found, is_there, now);
        }
        let seen: Vec<Seen> = self.peers.iter().map(|peer| peer.seen(now)).collect();
        if let Some(verdict) = judge(self.rank, &seen, self.limits, hurry) {
            self.end(&verdict, &seen, hurry);
        }
    }

    /// Reports, and ends this process; the lowest healthy rank speaks, on the guilty one's node if
    /// there is one, because it knows most.
    fn end(&self, verdict: &Verdict, seen: &[Seen], hurry: bool) {
        let guilty = verdict.rank;
        let host_of = |rank: usize| seen[rank].beat.as_ref().map(|beat| beat.host.clone());
        let own = Some(files::host_name());
        let far = u32::from(host_of(guilty).is_some() && host_of(guilty) != own);
        let lower = (0..self.rank.min(8)).filter(|rank| *rank != guilty).count() as u32;
        let turn = if hurry { LOOK * lower } else { LOOK * 10 * lower + LOOK * 40 * far };
        std::thread::sleep(turn);
        let report = self.dir.join(REPORT);
        if files::write_new(&report, &verdict.text).is_ok() || !report.exists() {
            world::say_verdict(&verdict.text);
        }
        last_words(&format!("the watchdog: {}", verdict.text));
        // mpirun ends all ranks when one leaves; plain srun leaves a stopped one where it is.
        if verdict.kind != Kind::Dead && guilty != self.rank && world::is_slurm_step() {
            self.kill(&seen[guilty]);
        }
        world::leave_quietly(HUNG);
    }

    fn kill(&self, guilty: &Seen) {
        let Some(beat) = &guilty.beat else { return };
        if !matches!(beat.process(), None | Some(Process::Gone)) {
            // SAFETY: the process is of this job: host, number and start time are its own.
            unsafe { libc::kill(beat.pid as i32, libc::SIGKILL) };
        }
    }
}

/// A phase without its numbers: steps and epochs are one kind of work.
fn kind_of(phase: String) -> String {
    phase.chars().filter(|c| !c.is_ascii_digit()).collect()
}

impl Peer {
    fn seen(&self, now: Instant) -> Seen {
        Seen {
            beat: self.beat.clone(),
            silent: now - self.heard,
            still: now - self.moved,
            process: self.beat.as_ref().and_then(Beat::process),
            left: self.left,
        }
    }
}

/// Ends the process where the ranks have not all come together after a while: before signs of life
/// begin, and after they end, there is nothing else to judge by.
pub struct RendezvousTimer {
    over: Arc<AtomicBool>,
}

impl RendezvousTimer {
    /// Begins to count, `limit` from now.
    pub fn new(limit: Duration) -> RendezvousTimer {
        let over = Arc::new(AtomicBool::new(false));
        let flag = over.clone();
        let start = Instant::now();
        // Without the thread there is only no such report.
        let _ = std::thread::Builder::new().name("rendezvous".to_string()).spawn(move || {
            while !flag.load(Ordering::SeqCst) {
                std::thread::sleep(LOOK);
                if start.elapsed() >= limit {
                    world::leave_at_once(HUNG, &missing(limit));
                }
            }
        });
        RendezvousTimer { over }
    }
}

fn missing(limit: Duration) -> String {
    format!(
        "the ranks have not come together within {:.0} s: at least one never arrived\n  hint: see whether all \
         nodes are up and all processes were started (`trainer doctor` under the same launcher); \
         TRAINER_START_TIMEOUT=SECONDS gives them longer (this rank is {})",
        limit.as_secs_f64(),
        match progress::current() {
            phase if phase.is_empty() => "starting".to_string(),
            phase => phase,
        }
    )
}

impl Drop for RendezvousTimer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}
