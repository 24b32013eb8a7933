//! Checkpoints: directories that are whole and verified, or not there.
//!
//! `checkpoints/step_00001200/` holds weights, the model's configuration, AdamW's moments, the state
//! of the loop and a manifest with size and SHA-256 of every file. It is written under a temporary
//! name, synced, and renamed. Nothing in it depends on the number of ranks, and no pickle is ever
//! read.

use super::step::StepperState;
use crate::error::{Error, Result};
use crate::files;
use crate::metrics::best::JudgeState;
use crate::torch::{Entry, WeightFile, write_safetensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Name of the weights.
pub const MODEL: &str = "model.safetensors";
/// Name of AdamW's moments: `exp_avg.NAME` and `exp_avg_sq.NAME`.
pub const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const MANIFEST: &str = "manifest.json";

/// Where the loop stands, and what made the run.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct State {
    /// Optimiser steps behind us, skipped ones included.
    pub step: u64,
    /// The last step after which the validation part was evaluated.
    pub evaluated_step: u64,
    /// Optimiser and loss scale.
    pub stepper: StepperState,
    /// Best value and patience.
    pub judge: JudgeState,
    /// Steps of an epoch, by which the plan's position is known.
    pub steps_per_epoch: u64,
    /// Hash of the batch plan.
    pub plan_hash: String,
    /// The run's identity (`config::identity`).
    pub identity: String,
    /// Threads of every rank; other numbers give other last bits.
    pub threads_per_rank: usize,
    /// CPU capability, device and libtorch that bits are promised for.
    pub platform: String,
    /// The resolved configuration.
    pub config: Value,
    /// This program's version.
    pub version: String,
}

/// What goes into a checkpoint.
pub struct Snapshot {
    /// All parameters of the model.
    pub weights: Vec<Entry>,
    /// AdamW's moments.
    pub moments: Vec<Entry>,
    /// The loop.
    pub state: State,
    /// Further files: (name, content).
    pub files: Vec<(String, String)>,
}

#[derive(Serialize, Deserialize)]
struct FileSum {
    bytes: u64,
    sha256: String,
}

/// The directory's name for a step.
pub fn name(step: u64) -> String {
    format!("step_{step:08}")
}

/// Writes `snapshot` as `dir/step_NNNNNNNN` and gives its path. One that exists is kept if it holds
/// the same weights, else moved aside.
pub fn write(dir: &Path, snapshot: &Snapshot) -> Result<PathBuf> {
    files::make_dir(dir)?;
    let path = dir.join(name(snapshot.state.step));
    let temporary = files::temporary_name(&path);
    remove(&temporary)?;
    files::make_dir(&temporary)?;
    let written = fill(&temporary, snapshot).and_then(|()| take_name(&temporary, &path));
    written.inspect_err(|_| {
        // The first error is the one worth telling; a leftover is recognised by its name.
        let _ = fs::remove_dir_all(&temporary);
    })?;
    Ok(path)
}

/// Gives a written checkpoint its name, which another may have.
fn take_name(temporary: &Path, path: &Path) -> Result<()> {
    if path.exists() {
        if same_weights(path, temporary) {
            // The newer state may know more (an evaluation at this step): it takes the name over.
            // Moved aside first, so that the name stands for nothing only between two renames.
            let mut old = files::temporary_name(path).into_os_string();
            old.push("-old");
            let old = PathBuf::from(old);
            fs::rename(path, &old).map_err(|e| Error::write(&old, &e))?;
            files::publish(temporary, path)?;
            return remove(&old);
        } else {
            let step = path.file_name().unwrap_or_default().to_string_lossy();
            let aside = path.with_file_name(format!(".damaged-{step}-{}", std::process::id()));
            fs::rename(path, &aside).map_err(|e| Error::write(&aside, &e))?;
        }
    }
    files::publish(temporary, path)
}

fn fill(dir: &Path, snapshot: &Snapshot) -> Result<()> {
    write_safetensors(&dir.join(MODEL), &snapshot.weights)?;
    write_safetensors(&dir.join(OPTIMIZER), &snapshot.moments)?;
    let state = serde_json::to_string_pretty(&snapshot.state)
        .map_err(|e| Error::bug(format!("the state cannot be written: {e}")))?;
    files::write_text(&dir.join(STATE), &state)?;
    let mut names = vec![MODEL.to_string(), OPTIMIZER.to_string(), STATE.to_string()];
    for (name, content) in &snapshot.files {
        files::write_text(&dir.join(name), content)?;
        names.push(name.clone());
    }
    let mut manifest = BTreeMap::new();
    for name in names {
        let path = dir.join(&name);
        let bytes = fs::metadata(&path).map_err(|e| Error::read(&path, &e))?.len();
        manifest.insert(name, FileSum { bytes, sha256: files::sha256_file(&path)? });
    }
    let manifest = serde_json::to_string_pretty(&manifest)
        .map_err(|e| Error::bug(format!("the manifest cannot be written: {e}")))?;
    files::write_text(&dir.join(MANIFEST), &manifest)?;
    files::sync_dir(dir)
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::write(dir, &e)),
        _ => Ok(()),
    }
}

fn manifest(dir: &Path) -> Result<BTreeMap<String, FileSum>> {
    let path = dir.join(MANIFEST);
    let text = fs::read_to_string(&path).map_err(|e| {
        Error::damaged(format!("not a whole checkpoint: {e}"))
            .at(path.display())
            .hint("name a directory that `trainer train` has written, such as RUN/best.ckpt")
    })?;
    serde_json::from_str(&text)
        .map_err(|e| Error::damaged(format!("not a manifest: {e}")).at(path.display()))
}

fn same_weights(a: &Path, b: &Path) -> bool {
    let sums = |dir: &Path| manifest(dir).ok().filter(|_| verify(dir).is_ok());
    let (Some(a), Some(b)) = (sums(a), sums(b)) else { return false };
    [MODEL, OPTIMIZER].iter().all(|name| match (a.get(*name), b.get(*name)) {
        (Some(a), Some(b)) => a.sha256 == b.sha256,
        _ => false,
    })
}

/// Checks size and SHA-256 of every file (exit code 5 names the first that is wrong).
pub fn verify(dir: &Path) -> Result<()> {
    for (name, sum) in manifest(dir)? {
        let path = dir.join(&name);
        let damaged = |what: String| {
            Error::damaged(what).at(path.display()).hint("an older checkpoint may be whole")
        };
        let bytes = fs::metadata(&path).map_err(|e| damaged(format!("cannot be read: {e}")))?.len();
        if bytes != sum.bytes {
            return Err(damaged(format!("it has {bytes} bytes, the manifest says {}", sum.bytes)));
        }
        if files::sha256_file(&path)? != sum.sha256 {
            return Err(damaged("its content is not what the manifest says".to_string()));
        }
    }
    Ok(())
}

/// A verified checkpoint.
pub struct Loaded {
    /// Its directory.
    pub dir: PathBuf,
    /// The loop.
    pub state: State,
    /// All parameters.
    pub weights: WeightFile,
    /// AdamW's moments.
    pub moments: WeightFile,
}

/// Opens a checkpoint that [`verify`] has passed.
pub fn open(dir: &Path) -> Result<Loaded> {
    let path = dir.join(STATE);
    let state = serde_json::from_str(&files::read_text(&path)?)
        .map_err(|e| Error::damaged(format!("not a state: {e}")).at(path.display()))?;
    Ok(Loaded {
        dir: dir.to_path_buf(),
        state,
        weights: WeightFile::open(&dir.join(MODEL))?,
        moments: WeightFile::open(&dir.join(OPTIMIZER))?,
    })
}

/// Steps of the checkpoints in `dir`, newest first.
pub fn list(dir: &Path) -> Result<Vec<u64>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::read(dir, &e)),
    };
    let mut steps: Vec<u64> = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::read(dir, &e))?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix("step_"));
        steps.extend(number.and_then(|n| n.parse::<u64>().ok()));
    }
    steps.sort_unstable_by(|a, b| b.cmp(a));
    Ok(steps)
}

/// The newest whole checkpoint, and a line for each newer one that is damaged.
pub fn newest(dir: &Path) -> Result<(Option<PathBuf>, Vec<String>)> {
    let mut passed_over = Vec::new();
    for step in list(dir)? {
        let path = dir.join(name(step));
        match verify(&path) {
            Ok(()) => return Ok((Some(path), passed_over)),
            Err(error) => passed_over.push(format!("passing over {}: {error}", name(step))),
        }
    }
    Ok((None, passed_over))
}

/// Which checkpoints to remove: all but the newest `limit`, and never one that a link points to.
pub fn superfluous(newest_first: &[u64], limit: Option<usize>, linked: &[u64]) -> Vec<u64> {
    let Some(limit) = limit else { return Vec::new() };
    newest_first.iter().skip(limit.max(1)).filter(|s| !linked.contains(s)).copied().collect()
}

/// Removes leftovers of killed writers and what [`superfluous`] names.
pub fn prune(dir: &Path, limit: Option<usize>, linked: &[u64]) -> Result<()> {
    for step in superfluous(&list(dir)?, limit, linked) {
        remove(&dir.join(name(step)))?;
    }
    for entry in fs::read_dir(dir).map_err(|e| Error::read(dir, &e))? {
        let entry = entry.map_err(|e| Error::read(dir, &e))?;
        if entry.file_name().to_str().is_some_and(files::is_temporary) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// The step a link such as `best.ckpt` points to.
pub fn linked_step(link: &Path) -> Option<u64> {
    let target = fs::read_link(link).ok()?;
    target.file_name()?.to_str()?.strip_prefix("step_")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    fn snapshot(step: u64, value: f64) -> Snapshot {
        let tensor = || Tensor::full([3], value, (Kind::Float, Device::Cpu));
        let state = State {
            step,
            evaluated_step: 0,
            stepper: StepperState {
                optimizer_step: step,
                loss_scale: 1.0,
                good_steps: 0,
                skipped_in_a_row: 0,
                skipped: 0,
            },
            judge: JudgeState::default(),
            steps_per_epoch: 10,
            plan_hash: "0".into(),
            identity: "x".into(),
            threads_per_rank: 1,
            platform: "p".into(),
            config: Value::Null,
            version: "0".into(),
        };
        Snapshot {
            weights: vec![Entry { name: "w".into(), tensor: tensor() }],
            moments: vec![Entry { name: "exp_avg.w".into(), tensor: tensor() }],
            state,
            files: vec![("config.json".into(), "{}".into())],
        }
    }

    #[test]
    fn damage_is_passed_over_and_bytes_do_not_change() {
        let dir = std::env::temp_dir().join(format!("trainer-ckpt-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let first = write(&dir, &snapshot(1, 0.5)).unwrap();
        let second = write(&dir, &snapshot(2, 0.25)).unwrap();
        let bytes = fs::read(second.join(MODEL)).unwrap();
        assert_eq!(write(&dir, &snapshot(2, 0.25)).unwrap(), second);
        assert_eq!(fs::read(second.join(MODEL)).unwrap(), bytes);
        assert_eq!(newest(&dir).unwrap().0, Some(second.clone()));

        let mut flipped = bytes.clone();
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(second.join(MODEL), &flipped).unwrap();
        let (found, said) = newest(&dir).unwrap();
        assert_eq!(found, Some(first));
        assert!(said[0].contains("content is not what the manifest says"), "{said:?}");
        assert_eq!(verify(&second).unwrap_err().code(), 5);

        // Written again, it replaces the damaged one.
        write(&dir, &snapshot(2, 0.25)).unwrap();
        verify(&second).unwrap();
        let loaded = open(&second).unwrap();
        assert_eq!(loaded.state, snapshot(2, 0.25).state);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn pruning_spares_links() {
        assert_eq!(superfluous(&[5, 4, 3, 2, 1], Some(2), &[3]), [2, 1]);
        assert_eq!(superfluous(&[5, 4], Some(1), &[]), [4]);
        assert!(superfluous(&[5, 4], None, &[]).is_empty());
    }
}
