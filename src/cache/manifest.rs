//! The life of a cache directory: a plan while it grows, a manifest when it is finished.
//!
//! `plan.json` is written before the first embedding is computed, so that a later start with
//! another fingerprint is refused at once. A finished shard leaves `shard-NNNNN.json` beside it,
//! written before the shard gets its name: what stands there without hashing a terabyte again.
//! `manifest.json` is written last; then plan and side files go. No file holds a time, a host or a
//! rank, so a finished directory is the same bytes however often the work was interrupted.

use super::{Dtype, Fingerprint, Places, Pooling};
use crate::error::{Error, Result};
use crate::files;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// What the first lines of manifests, plans and shards say.
pub const FORMAT: &str = "trainer embedding cache";
/// Raised when a reader of the old kind would misread the new one.
pub const VERSION: u32 = 1;

const MANIFEST: &str = "manifest.json";
/// Begins the names of files in which a job that is started again notes so, while a cache grows.
pub const STARTS: &str = "starts";

const PLAN: &str = "plan.json";

/// What a cache will hold, before it holds anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub fingerprint: Fingerprint,
    /// Width of an embedding.
    pub dim: usize,
    pub dtype: Dtype,
    pub pooling: Pooling,
    /// Number of shards, that is of units of the embed plan.
    pub shards: u32,
    /// Different (id, sequence) pairs.
    pub sequences: u64,
    /// Windows times replicas over all sequences.
    pub records: u64,
    /// Residues over all records, specials left out.
    pub residues: u64,
}

/// One finished shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardSummary {
    /// File name within the cache.
    pub name: String,
    pub records: u64,
    /// Residues over its records, specials left out.
    pub residues: u64,
    /// Size of the file.
    pub bytes: u64,
    /// Over the whole file.
    pub sha256: String,
    /// xxh3_64 over offsets, ids, hashes, replicas, ranges and checksums: checked at every opening.
    pub index_hash: String,
    /// Where the datasets lie.
    pub places: Places,
}

/// A finished cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub plan: Plan,
    /// In the order of their numbers.
    pub shards: Vec<ShardSummary>,
}

/// How far an unfinished cache is: shards done, and shards in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub done: u32,
    pub shards: u32,
}

/// What a start finds.
#[derive(Debug)]
pub enum Start {
    /// All is there.
    Finished(Box<Manifest>),
    /// What is still to do: the numbers of the shards that are not there, ascending.
    Resume(Vec<u32>),
}

/// Any of our JSON files, with what it is in front.
#[derive(Serialize, Deserialize)]
struct Framed<T> {
    format: String,
    format_version: u32,
    #[serde(flatten)]
    content: T,
}

/// File name of a shard.
pub fn shard_name(index: u32) -> String {
    format!("shard-{index:05}.h5")
}

fn side_file(dir: &Path, index: u32) -> PathBuf {
    dir.join(format!("shard-{index:05}.json"))
}

fn write_json<T: Serialize>(path: &Path, content: &T) -> Result<()> {
    let framed = Framed { format: FORMAT.to_string(), format_version: VERSION, content };
    let text = serde_json::to_string_pretty(&framed)
        .map_err(|e| Error::bug(format!("cannot be written as JSON: {e}")).at(path.display()))?;
    files::write_atomic(path, |out| writeln!(out, "{text}"))
}

/// Nothing where there is no such file.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(Error::read(path, &e)),
    };
    let damaged = |what: String| {
        Error::damaged(what)
            .at(path.display())
            .hint("restore this file, or delete the cache directory and run `trainer embed CONFIG`")
    };
    // The version first: the content of another one need not look like ours.
    let head: Framed<serde_json::Value> = serde_json::from_str(&text)
        .map_err(|e| damaged(format!("this does not belong to an embedding cache: {e}")))?;
    if head.format != FORMAT || head.format_version != VERSION {
        return Err(damaged(format!(
            "format `{}` version {} cannot be read, only `{FORMAT}` version {VERSION}",
            head.format, head.format_version
        )));
    }
    serde_json::from_value(head.content).map(Some).map_err(|e| damaged(e.to_string()))
}

/// Writes the side file of a finished shard, before the shard gets its name.
pub(super) fn write_summary(dir: &Path, index: u32, summary: &ShardSummary) -> Result<()> {
    write_json(&side_file(dir, index), summary)
}

/// The manifest, if the cache is finished.
pub(super) fn read_manifest(dir: &Path) -> Result<Option<Manifest>> {
    read_json(&dir.join(MANIFEST))
}

/// The plan, if the cache was begun and is not finished.
pub(super) fn read_plan(dir: &Path) -> Result<Option<Plan>> {
    read_json(&dir.join(PLAN))
}

/// The shards of an unfinished cache that are there, by number. A shard counts if its side file is
/// there and its size is what that says.
pub(super) fn finished_shards(dir: &Path, plan: &Plan) -> Result<Vec<Option<ShardSummary>>> {
    let one = |index| -> Result<Option<ShardSummary>> {
        let summary: Option<ShardSummary> = read_json(&side_file(dir, index))?;
        Ok(summary.filter(|s| is_there(dir, s)))
    };
    (0..plan.shards).map(one).collect()
}

fn is_there(dir: &Path, summary: &ShardSummary) -> bool {
    fs::metadata(dir.join(&summary.name)).is_ok_and(|m| m.len() == summary.bytes)
}

/// How far a cache that was begun is; nothing where none was begun.
pub fn progress(dir: &Path) -> Result<Option<Progress>> {
    if let Some(manifest) = read_manifest(dir)? {
        let shards = manifest.plan.shards;
        return Ok(Some(Progress { done: shards, shards }));
    }
    let Some(plan) = read_plan(dir)? else {
        return Ok(None);
    };
    let done = finished_shards(dir, &plan)?.iter().flatten().count() as u32;
    Ok(Some(Progress { done, shards: plan.shards }))
}

/// Starts or goes on with a cache; rank 0 alone calls it and tells the others. A finished cache
/// that lost a shard is reopened, and only that shard is to be made again.
///
/// # Errors
/// Exit code 5 where the directory holds a cache with another meaning, other inputs or, unless it
/// is finished, another making; 4 where it cannot be written.
pub fn begin(dir: &Path, plan: &Plan) -> Result<Start> {
    files::make_dir(dir)?;
    let wanted = &plan.fingerprint;
    // Plan before manifest: a process that finishes now writes the manifest first and then removes
    // the plan, so one of the two is seen.
    let mut begun = read_plan(dir)?;
    if let Some(manifest) = read_manifest(dir)? {
        wanted.check_meaning(&manifest.plan.fingerprint, dir.display())?;
        wanted.check_inputs(&manifest.plan.fingerprint, dir.display())?;
        if manifest.shards.iter().all(|s| is_there(dir, s)) {
            tidy(dir, manifest.plan.shards)?;
            return Ok(Start::Finished(Box::new(manifest)));
        }
        wanted.check_making(&manifest.plan.fingerprint, dir.display())?;
        reopen(dir, &manifest)?;
        begun = Some(manifest.plan);
    }
    match begun {
        None => write_json(&dir.join(PLAN), plan)?,
        Some(begun) => {
            wanted.check_meaning(&begun.fingerprint, dir.display())?;
            wanted.check_making(&begun.fingerprint, dir.display())?;
            if begun != *plan {
                return Err(Error::damaged(format!(
                    "the cache was begun with {}, but now there are {}",
                    counts(&begun),
                    counts(plan)
                ))
                .at(dir.display())
                .hint("choose another esm.cache_dir, or delete this one to start anew"));
            }
        }
    }
    let shards = finished_shards(dir, plan)?;
    let missing = (0..plan.shards).zip(shards).filter(|(_, s)| s.is_none()).map(|(i, _)| i);
    Ok(Start::Resume(missing.collect()))
}

fn counts(plan: &Plan) -> String {
    format!(
        "{} shards of {} records and {} residues, {} wide, {}, pooling {}",
        plan.shards,
        plan.records,
        plan.residues,
        plan.dim,
        plan.dtype.name(),
        plan.pooling.name()
    )
}

/// Back from manifest to plan and side files. Interrupted, it is done again from the manifest.
fn reopen(dir: &Path, manifest: &Manifest) -> Result<()> {
    for (index, summary) in (0..).zip(&manifest.shards) {
        write_summary(dir, index, summary)?;
    }
    write_json(&dir.join(PLAN), &manifest.plan)?;
    remove(&dir.join(MANIFEST))?;
    files::sync_dir(dir)
}

/// Writes the manifest if every shard is there; nothing if some are still missing. Any process may
/// call it, several may at once: they write the same bytes.
///
/// # Errors
/// Exit code 5 where nothing was begun here, 4 where the directory cannot be written.
pub fn finish(dir: &Path) -> Result<Option<Manifest>> {
    let Some(plan) = read_plan(dir)? else {
        return match read_manifest(dir)? {
            Some(manifest) => Ok(Some(manifest)),
            None => Err(no_cache(dir)),
        };
    };
    let shards: Option<Vec<ShardSummary>> = finished_shards(dir, &plan)?.into_iter().collect();
    let Some(shards) = shards else {
        // Another process may have finished, and tidied the side files away, in the meantime.
        return read_manifest(dir);
    };
    let records: u64 = shards.iter().map(|s| s.records).sum();
    let residues: u64 = shards.iter().map(|s| s.residues).sum();
    if (records, residues) != (plan.records, plan.residues) {
        return Err(Error::bug(format!(
            "the shards hold {records} records and {residues} residues, the plan has {} and {}",
            plan.records, plan.residues
        ))
        .at(dir.display()));
    }
    let manifest = Manifest { plan, shards };
    if let Err(error) = write_json(&dir.join(MANIFEST), &manifest) {
        // Another process that finishes at the same time may have tidied our temporary away.
        read_manifest(dir)?.ok_or(error)?;
    }
    tidy(dir, manifest.plan.shards)?;
    Ok(Some(manifest))
}

/// Removes what only an unfinished cache needs, and what killed processes left half-written.
fn tidy(dir: &Path, shards: u32) -> Result<()> {
    remove(&dir.join(PLAN))?;
    for index in 0..shards {
        remove(&side_file(dir, index))?;
    }
    for leftover in leftovers(dir)? {
        remove(&leftover)?;
    }
    files::sync_dir(dir)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::write(path, &e)),
        _ => Ok(()),
    }
}

/// Unfinished files of processes that are no more, or still at work.
pub(super) fn leftovers(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::read(dir, &e))? {
        let name = entry.map_err(|e| Error::read(dir, &e))?.file_name();
        let text = name.to_string_lossy();
        if files::is_temporary(&text) || text.starts_with(STARTS) {
            found.push(dir.join(&name));
        }
    }
    found.sort();
    Ok(found)
}

/// Exit code 5: there is nothing here.
pub(super) fn no_cache(dir: &Path) -> Error {
    Error::damaged("there is no embedding cache here (no manifest.json)")
        .at(dir.display())
        .hint("make it with `trainer embed CONFIG`, or see what esm.cache_dir says")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{plan, scratch, write_cache, write_shard};
    use super::*;
    use std::collections::BTreeMap;

    fn missing(start: Start) -> Vec<u32> {
        match start {
            Start::Resume(missing) => missing,
            Start::Finished(_) => panic!("the cache is not finished"),
        }
    }

    fn everything(dir: &Path) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap());
        entries
            .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()))
            .collect()
    }

    #[test]
    fn a_half_finished_cache_goes_on_and_ends_with_the_same_bytes() {
        let (whole, broken) = (scratch("whole"), scratch("broken"));
        write_cache(&whole, Dtype::Float16, Pooling::None);
        let plan = plan(Dtype::Float16, Pooling::None);
        assert_eq!(missing(begin(&broken, &plan).unwrap()), [0, 1]);
        let side = scratch("side");
        write_shard(&side, 0, &plan, true);
        write_shard(&broken, 1, &plan, true);
        // Killed here: a shard is half-written, and its side file is there already.
        fs::write(broken.join(".tmp-shard-00000.h5-host-1"), b"half").unwrap();
        fs::write(broken.join(".tmp-plan.json-host-1"), b"half").unwrap();
        fs::copy(side_file(&side, 0), side_file(&broken, 0)).unwrap();
        assert_eq!(progress(&broken).unwrap(), Some(Progress { done: 1, shards: 2 }));
        assert_eq!(missing(begin(&broken, &plan).unwrap()), [0]);
        assert!(finish(&broken).unwrap().is_none());
        write_shard(&broken, 0, &plan, false);
        assert!(finish(&broken).unwrap().is_some());
        assert_eq!(everything(&whole), everything(&broken));
        let names: Vec<_> = everything(&whole).into_keys().collect();
        assert_eq!(names, ["manifest.json", "shard-00000.h5", "shard-00001.h5"]);
        assert!(matches!(begin(&broken, &plan).unwrap(), Start::Finished(_)));
        for dir in [whole, broken, side] {
            fs::remove_dir_all(dir).unwrap();
        }
    }

    #[test]
    fn a_shard_of_the_wrong_size_or_lost_is_made_again() {
        let dir = scratch("lost");
        let manifest = write_cache(&dir, Dtype::Float32, Pooling::Mean);
        let before = everything(&dir);
        let plan = manifest.plan.clone();
        fs::remove_file(dir.join("shard-00001.h5")).unwrap();
        assert_eq!(missing(begin(&dir, &plan).unwrap()), [1]);
        fs::write(dir.join("shard-00000.h5"), b"short").unwrap();
        assert_eq!(missing(begin(&dir, &plan).unwrap()), [0, 1]);
        write_shard(&dir, 0, &plan, true);
        write_shard(&dir, 1, &plan, true);
        assert_eq!(finish(&dir).unwrap().unwrap(), manifest);
        assert_eq!(everything(&dir), before);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn another_fingerprint_is_refused_before_anything_is_written() {
        let dir = scratch("refused");
        let begun = plan(Dtype::Float16, Pooling::None);
        begin(&dir, &begun).unwrap();
        let mut other = begun.clone();
        other.fingerprint.making["threads"] = 2.into();
        let error = begin(&dir, &other).unwrap_err();
        assert_eq!(error.code(), 5);
        assert!(error.to_string().contains("threads = 1, but now threads = 2"), "{error}");
        let mut other = begun.clone();
        other.residues += 1;
        assert_eq!(begin(&dir, &other).unwrap_err().code(), 5);
        // Once finished, the making no longer matters, the inputs and the meaning do.
        write_shard(&dir, 0, &begun, false);
        write_shard(&dir, 1, &begun, false);
        finish(&dir).unwrap().unwrap();
        let mut other = begun.clone();
        other.fingerprint.making["threads"] = 2.into();
        assert!(matches!(begin(&dir, &other).unwrap(), Start::Finished(_)));
        other.fingerprint.making[super::super::INPUTS] = "else".into();
        assert_eq!(begin(&dir, &other).unwrap_err().code(), 5);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn foreign_and_newer_files_are_refused() {
        let dir = scratch("foreign");
        for text in ["", "{\"a\": 1}", "{\"format\": \"trainer embedding cache\"}"] {
            fs::write(dir.join(MANIFEST), text).unwrap();
            assert_eq!(read_manifest(&dir).unwrap_err().code(), 5, "{text}");
        }
        let newer = format!("{{\"format\": \"{FORMAT}\", \"format_version\": 2, \"x\": 0}}");
        fs::write(dir.join(MANIFEST), newer).unwrap();
        let error = read_manifest(&dir).unwrap_err().to_string();
        assert!(error.contains("version 2 cannot be read"), "{error}");
        fs::remove_file(dir.join(MANIFEST)).unwrap();
        assert_eq!(finish(&dir).unwrap_err().code(), 5);
        assert_eq!(progress(&dir).unwrap(), None);
        fs::remove_dir_all(dir).unwrap();
    }
}
