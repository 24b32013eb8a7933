//! Every byte of a cache against its hashes: what `inspect CACHE` says about it.

use super::manifest::{Manifest, finished_shards, leftovers, no_cache, read_manifest, read_plan};
use super::shard::Shard;
use crate::error::Result;
use crate::files;
use std::path::Path;

/// What a full reading of a cache found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whether the manifest is there.
    pub finished: bool,
    /// Shards in all, and of these the ones that were there to be read.
    pub shards: u32,
    pub shards_read: u32,
    /// Records, residues and bytes of the shards that were read.
    pub records: u64,
    pub residues: u64,
    pub bytes: u64,
    /// Shards that are not what was written.
    pub damaged: Vec<Damage>,
    /// Unfinished temporary files.
    pub leftovers: usize,
}

impl Report {
    /// Whether the cache is finished and every byte is as written.
    pub fn is_whole(&self) -> bool {
        self.finished && self.damaged.is_empty()
    }
}

/// One damaged shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// File name within the cache.
    pub shard: String,
    /// What is wrong, in words, with the remedy.
    pub what: String,
    /// Ids of the records whose numbers are damaged; empty where the index is.
    pub ids: Vec<String>,
}

/// Reads a whole cache, finished or not: SHA-256 of every shard, checksum of every record.
///
/// # Errors
/// Exit code 5 where there is no cache, or its manifest is damaged. Damaged shards are no error
/// but stand in the report.
pub fn verify(dir: &Path) -> Result<Report> {
    let (finished, manifest, shards) = match (read_manifest(dir)?, read_plan(dir)?) {
        (Some(manifest), _) => {
            let shards = manifest.plan.shards;
            (true, manifest, shards)
        }
        (None, Some(plan)) => {
            let there = finished_shards(dir, &plan)?.into_iter().flatten().collect();
            let shards = plan.shards;
            (false, Manifest { plan, shards: there }, shards)
        }
        (None, None) => return Err(no_cache(dir)),
    };
    let mut report = Report {
        finished,
        shards,
        shards_read: manifest.shards.len() as u32,
        records: manifest.shards.iter().map(|s| s.records).sum(),
        residues: manifest.shards.iter().map(|s| s.residues).sum(),
        bytes: manifest.shards.iter().map(|s| s.bytes).sum(),
        damaged: Vec::new(),
        leftovers: leftovers(dir)?.len(),
    };
    for index in 0..manifest.shards.len() {
        report.damaged.extend(verify_shard(dir, &manifest, index));
    }
    Ok(report)
}

fn verify_shard(dir: &Path, manifest: &Manifest, index: usize) -> Option<Damage> {
    let name = manifest.shards[index].name.clone();
    let damage = |what: String, ids| Some(Damage { shard: name.clone(), what, ids });
    let (shard, file, _) = match Shard::open(dir, manifest, index) {
        Ok(opened) => opened,
        Err(error) => return damage(error.to_string(), Vec::new()),
    };
    let row_bytes = manifest.plan.dim * manifest.plan.dtype.bytes();
    let (mut ids, mut buffer) = (Vec::new(), Vec::new());
    let mut first = None;
    for row in 0..shard.checksums.len() as u32 {
        let pooling = manifest.plan.pooling;
        if let Err(error) = shard.load(&file, row, row_bytes, pooling, 0, &mut buffer) {
            ids.push(shard.head(&file, row).map(|h| h.id).unwrap_or_default());
            first.get_or_insert(error);
        }
    }
    if let Some(error) = first {
        return damage(error.to_string(), ids);
    }
    match files::sha256_file(&shard.path) {
        Ok(hash) if hash == shard.summary.sha256 => None,
        Ok(_) => {
            let what =
                "all records are whole, but the file's own structure is not what was written";
            damage(super::shard::damaged(&shard.path, what).to_string(), ids)
        }
        Err(error) => damage(error.to_string(), ids),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{plan, scratch, write_cache, write_shard};
    use super::super::{Dtype, Pooling, begin};
    use super::*;
    use std::fs;

    fn flip(path: &Path, at: u64) {
        let mut bytes = fs::read(path).unwrap();
        bytes[at as usize] ^= 0x80;
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn each_kind_of_damage_is_listed() {
        let dir = scratch("verify");
        let manifest = write_cache(&dir, Dtype::Float16, Pooling::None);
        let whole = verify(&dir).unwrap();
        assert!(whole.is_whole());
        assert_eq!((whole.shards, whole.records, whole.residues), (2, 5, 18));
        let path = dir.join("shard-00001.h5");
        let places = &manifest.shards[1].places;
        flip(&path, places.embeddings + 7 * 8);
        fs::write(dir.join(".tmp-shard-00009.h5-h-1"), b"").unwrap();
        let report = verify(&dir).unwrap();
        assert!(!report.is_whole());
        assert_eq!(report.leftovers, 1);
        assert_eq!(report.damaged.len(), 1);
        assert_eq!(report.damaged[0].shard, "shard-00001.h5");
        assert_eq!(report.damaged[0].ids, ["długie|id"]);
        flip(&path, places.embeddings + 7 * 8);
        // A byte that no reader of ours looks at: the HDF5 signature.
        flip(&path, 1);
        let report = verify(&dir).unwrap();
        assert!(report.damaged[0].what.contains("structure"), "{:?}", report.damaged);
        flip(&path, 1);
        flip(&path, places.range);
        fs::remove_file(dir.join("shard-00000.h5")).unwrap();
        let report = verify(&dir).unwrap();
        assert!(report.damaged[0].what.contains("missing"), "{:?}", report.damaged);
        assert!(report.damaged[1].what.contains("index"), "{:?}", report.damaged);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn an_unfinished_cache_is_read_as_far_as_it_is() {
        let dir = scratch("verify-unfinished");
        assert_eq!(verify(&dir).unwrap_err().code(), 5);
        let plan = plan(Dtype::Float32, Pooling::None);
        begin(&dir, &plan).unwrap();
        write_shard(&dir, 1, &plan, false);
        let report = verify(&dir).unwrap();
        assert!(!report.finished && report.damaged.is_empty());
        assert_eq!((report.shards, report.shards_read, report.records), (2, 1, 2));
        fs::remove_dir_all(dir).unwrap();
    }
}
