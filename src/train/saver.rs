//! Checkpoints in the background: training waits for a copy of the flat buffers, not for the disk.

use super::checkpoint::{self, Snapshot, State};
use super::step::Stepper;
use super::task::Task;
use crate::dist::deadline;
use crate::error::{Error, Result};
use crate::files;
use crate::torch::Entry;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Instant;
use tch::{Device, Tensor};

/// Writes a run's checkpoints, on rank 0.
pub(super) struct Saver {
    run_dir: PathBuf,
    limit: Option<usize>,
    writing: Option<JoinHandle<Result<()>>>,
}

impl Saver {
    pub fn new(run_dir: &Path, limit: Option<usize>) -> Saver {
        Saver { run_dir: run_dir.to_path_buf(), limit, writing: None }
    }

    /// Takes a copy of everything and writes it while training goes on. Waits first for the last
    /// one to be written. `best` also moves `best.ckpt` there.
    pub fn save<T: Task>(
        &mut self,
        task: &T,
        stepper: &Stepper,
        state: State,
        best: bool,
    ) -> Result<()> {
        let start = Instant::now();
        self.wait()?;
        let snapshot = snapshot(task, stepper, state);
        let (run_dir, limit) = (self.run_dir.clone(), self.limit);
        let write = move || {
            publish(&run_dir, limit, &snapshot, best)?;
            deadline::saved(start.elapsed());
            Ok(())
        };
        let thread = std::thread::Builder::new()
            .name("saver".to_string())
            .spawn(write)
            .map_err(|e| Error::launch(format!("cannot start the saving thread: {e}")))?;
        self.writing = Some(thread);
        Ok(())
    }

    /// Waits until the last save is durable.
    pub fn wait(&mut self) -> Result<()> {
        match self.writing.take() {
            // A panic has already ended the process.
            Some(thread) => thread.join().unwrap_or_else(|_| Err(Error::bug("saving panicked"))),
            None => Ok(()),
        }
    }
}

impl Drop for Saver {
    /// A run that ends by an error leaves no half-written checkpoint.
    fn drop(&mut self) {
        // The run's own error is the one worth telling.
        let _ = self.wait();
    }
}

fn publish(run_dir: &Path, limit: Option<usize>, snapshot: &Snapshot, best: bool) -> Result<()> {
    let dir = run_dir.join("checkpoints");
    checkpoint::write(&dir, snapshot)?;
    let target = Path::new("checkpoints").join(checkpoint::name(snapshot.state.step));
    files::replace_link(&target, &run_dir.join("last.ckpt"))?;
    if best {
        files::replace_link(&target, &run_dir.join("best.ckpt"))?;
    }
    let linked: Vec<u64> = ["best.ckpt", "last.ckpt"]
        .iter()
        .filter_map(|link| checkpoint::linked_step(&run_dir.join(link)))
        .collect();
    checkpoint::prune(&dir, limit, &linked)
}

/// Points `last.ckpt` and `best.ckpt` at what a run that goes on from `state` knows: a process that
/// was killed between a checkpoint and its links left older ones, one that walks back past a damaged
/// checkpoint finds newer ones.
pub(super) fn repair_links(run_dir: &Path, state: &State) -> Result<()> {
    let checkpoints = run_dir.join("checkpoints");
    let best = state.judge.best.map(|best| best.step);
    for (link, step) in [("last.ckpt", Some(state.step)), ("best.ckpt", best)] {
        let link = run_dir.join(link);
        let step = step.filter(|step| checkpoints.join(checkpoint::name(*step)).is_dir());
        let linked = checkpoint::linked_step(&link);
        match step {
            _ if step == linked => {}
            Some(step) => {
                let target = Path::new("checkpoints").join(checkpoint::name(step));
                files::replace_link(&target, &link)?;
            }
            None => std::fs::remove_file(&link).map_err(|e| Error::write(&link, &e))?,
        }
    }
    Ok(())
}

/// Copies of all that is saved, so that training may go on changing the originals.
fn snapshot<T: Task>(task: &T, stepper: &Stepper, state: State) -> Snapshot {
    let copy = |t: &Tensor| t.to_device(Device::Cpu).copy();
    let flat = &stepper.flat;
    let data = copy(flat.data());
    let (first, second) = stepper.optimiser.moments();
    let moments = [("exp_avg", copy(first)), ("exp_avg_sq", copy(second))];
    let weights = task
        .params()
        .list()
        .into_iter()
        .map(|(name, tensor)| match flat.slots().iter().find(|slot| slot.name == name) {
            Some(slot) => Entry { tensor: slot.view(&data), name },
            None => Entry { tensor: copy(&tensor), name },
        })
        .collect();
    let moments = moments
        .iter()
        .flat_map(|(kind, buffer)| {
            flat.slots().iter().map(move |slot| Entry {
                name: format!("{kind}.{}", slot.name),
                tensor: slot.view(buffer),
            })
        })
        .collect();
    Snapshot { weights, moments, state, files: task.checkpoint_files() }
}
