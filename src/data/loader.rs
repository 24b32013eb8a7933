//! Prepares batches ahead of their use, on threads of its own, in order.
//!
//! Jobs come from an iterator that is only advanced when there is room, so a plan of any length
//! costs nothing. Workers finish in any order; `take_next` gives results in the order of the jobs.

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Results that may wait to be taken, for each worker.
const AHEAD_PER_WORKER: u64 = 2;

struct State<J, T> {
    jobs: Box<dyn Iterator<Item = J> + Send>,
    /// Numbers of the next job to begin and of the next result to give.
    begun: u64,
    taken: u64,
    done: BTreeMap<u64, Result<T>>,
    /// No further jobs: the iterator is at its end, or nobody wants them any more.
    ended: bool,
}

struct Shared<J, T> {
    state: Mutex<State<J, T>>,
    changed: Condvar,
    ahead: u64,
}

impl<J, T> Shared<J, T> {
    fn lock(&self) -> MutexGuard<'_, State<J, T>> {
        // A worker that panics ends the whole process, so no state is left half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&'a self, guard: MutexGuard<'a, State<J, T>>) -> MutexGuard<'a, State<J, T>> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }
}

/// A queue of results that is filled in the background.
pub struct Loader<J, T> {
    shared: Arc<Shared<J, T>>,
    workers: Vec<JoinHandle<()>>,
    prepare: Arc<dyn Fn(J) -> Result<T> + Send + Sync>,
    waited: Duration,
}

impl<J: Send + 'static, T: Send + 'static> Loader<J, T> {
    /// Starts `workers` threads that `prepare` the jobs; with none, `take_next` prepares them itself.
    pub fn new(
        jobs: impl Iterator<Item = J> + Send + 'static,
        workers: usize,
        prepare: impl Fn(J) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Loader<J, T>> {
        let state =
            State { jobs: Box::new(jobs), begun: 0, taken: 0, done: BTreeMap::new(), ended: false };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            ahead: workers as u64 * AHEAD_PER_WORKER,
        });
        let prepare: Arc<dyn Fn(J) -> Result<T> + Send + Sync> = Arc::new(prepare);
        let workers = (0..workers)
            .map(|i| {
                let (shared, prepare) = (shared.clone(), prepare.clone());
                std::thread::Builder::new()
                    .name(format!("loader-{i}"))
                    .spawn(move || work(&shared, &*prepare))
                    .map_err(|e| Error::launch(format!("cannot start a loader thread: {e}")))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Loader { shared, workers, prepare, waited: Duration::ZERO })
    }

    /// The next result, or None after the last.
    pub fn take_next(&mut self) -> Result<Option<T>> {
        let start = Instant::now();
        let result = if self.workers.is_empty() {
            let job = self.shared.lock().jobs.next();
            job.map(|job| (self.prepare)(job))
        } else {
            self.take()
        };
        self.waited += start.elapsed();
        result.transpose()
    }

    fn take(&self) -> Option<Result<T>> {
        let mut state = self.shared.lock();
        loop {
            let number = state.taken;
            if let Some(result) = state.done.remove(&number) {
                state.taken += 1;
                self.shared.changed.notify_all();
                return Some(result);
            }
            if state.ended && state.begun == state.taken {
                return None;
            }
            state = self.shared.wait(state);
        }
    }

    /// Time spent waiting in `take_next` since this was last asked.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }
}

impl<J, T> Drop for Loader<J, T> {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        for worker in self.workers.drain(..) {
            // A panic has already ended the process.
            let _ = worker.join();
        }
    }
}

fn work<J, T>(shared: &Shared<J, T>, prepare: &(dyn Fn(J) -> Result<T> + Send + Sync)) {
    let mut state = shared.lock();
    loop {
        while !state.ended && state.begun >= state.taken + shared.ahead {
            state = shared.wait(state);
        }
        if state.ended {
            return;
        }
        let Some(job) = state.jobs.next() else {
            state.ended = true;
            shared.changed.notify_all();
            return;
        };
        let number = state.begun;
        state.begun += 1;
        drop(state);
        let result = prepare(job);
        state = shared.lock();
        state.done.insert(number, result);
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn order_is_kept_and_little_is_prepared_ahead() {
        for workers in [0, 1, 3] {
            let begun = Arc::new(AtomicU64::new(0));
            let seen = begun.clone();
            let jobs = (0..200u64).inspect(move |_| {
                seen.fetch_add(1, Ordering::SeqCst);
            });
            let mut loader = Loader::new(jobs, workers, |job: u64| {
                std::thread::sleep(Duration::from_micros(job * 7919 % 300));
                Ok(job)
            })
            .unwrap();
            for expected in 0..200u64 {
                assert_eq!(loader.take_next().unwrap(), Some(expected));
                let ahead = begun.load(Ordering::SeqCst) - expected - 1;
                assert!(ahead <= workers as u64 * (AHEAD_PER_WORKER + 1), "{ahead} ahead");
            }
            assert_eq!(loader.take_next().unwrap(), None);
        }
    }

    #[test]
    fn an_error_arrives_in_its_place_and_an_unfinished_loader_ends() {
        let mut loader = Loader::new(0..1000, 2, |job: u64| {
            if job == 3 { Err(Error::data("bad sample")) } else { Ok(job) }
        })
        .unwrap();
        for expected in 0..3u64 {
            assert_eq!(loader.take_next().unwrap(), Some(expected));
        }
        assert_eq!(loader.take_next().unwrap_err().code(), 3);
        drop(loader);
    }
}
