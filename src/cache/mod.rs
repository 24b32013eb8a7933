//! Embedding caches: sharded HDF5 files that any h5py opens and that this program reads by `pread`.
//!
//! The map of the room:
//!
//! | file | what it does |
//! |---|---|
//! | `fingerprint` | what an embedding means and how it was made, and how two of them differ |
//! | `manifest`    | the plan of an unfinished cache, the manifest of a finished one, and the step between |
//! | `layout`      | one shard as HDF5: datasets, attributes, and where each dataset's bytes lie |
//! | `numbers`     | float32 to and from the stored precision |
//! | `checksum`    | xxh3_64 over a record's bytes, at the speed of memory |
//! | `writer`      | one shard, its records put in any order |
//! | `shard`       | the index of one finished shard, checked |
//! | `reader`      | a finished cache: find a record, read it, notice damage |
//! | `verify`      | every byte of a cache against its hashes |
//! | `upstream`    | the seed's `{train,val,test}_embeddings.h5`, read in both layouts and written in the first |
//!
//! HDF5 lays a shard out and is closed before the first embedding is written: all datasets are
//! contiguous and unfiltered, so their bytes are written and read at known offsets, in any order
//! and without the library's global lock. A damaged file therefore never reaches the library.

mod checksum;
mod fingerprint;
mod layout;
mod manifest;
mod numbers;
mod reader;
mod shard;
mod upstream;
mod verify;
mod writer;

pub use crate::config::{Dtype, Pooling};
pub use fingerprint::{Fingerprint, INPUTS};
pub use layout::Places;
pub use manifest::{
    Manifest, Plan, Progress, STARTS, ShardSummary, Start, begin, finish, progress, shard_name,
};
pub use reader::{Cache, RecordRef};
pub use upstream::{ExportRow, UpstreamFile, UpstreamLayout, UpstreamRef, export_v1};
pub use verify::{Damage, Report, verify};
pub use writer::ShardWriter;

/// Which record it is. A record is one window of one sequence under one replica of the masks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// The sample's id.
    pub id: String,
    /// xxh3_64 over the ESM ids of the stored window before random masking.
    pub sequence_hash: u64,
    /// Which masked copy, 0 for an unmasked cache.
    pub replica: u16,
    /// First residue of the window and one past its last, within the whole sequence.
    pub range: [u32; 2],
    /// Residues in the window, without specials: `range[1] - range[0]`.
    pub residues: u32,
}

#[cfg(test)]
mod testing {
    //! Small caches for the tests of this room.

    use super::*;
    use std::path::{Path, PathBuf};

    /// An empty directory of its own for one test.
    pub fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("trainer-cache-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// A head whose window starts at `start`.
    pub fn head(id: &str, replica: u16, start: u32, residues: u32) -> RecordHead {
        let sequence_hash = (u64::from(replica) << 32) + u64::from(start) + 7;
        RecordHead {
            id: id.to_string(),
            sequence_hash,
            replica,
            range: [start, start + residues],
            residues,
        }
    }

    /// Numbers that every stored precision holds exactly, different for every record.
    pub fn values(record: usize, count: usize) -> Vec<f32> {
        (0..count).map(|i| ((record * 31 + i * 7) % 255) as f32 - 127.0).collect()
    }

    pub fn fingerprint() -> Fingerprint {
        let mut print = Fingerprint::default();
        print.meaning.insert("layer".into(), 6.into());
        print.meaning.insert("mask_probability".into(), 0.15.into());
        print.meaning.insert("mask_policy".into(), "replicas".into());
        print.meaning.insert("masked".into(), true.into());
        print.meaning.insert("model".into(), serde_json::json!({"hidden_size": 4, "layers": 2}));
        print.making.insert("threads".into(), 1.into());
        print.making.insert(INPUTS.into(), "abc".into());
        print
    }

    /// Two shards: a window of `B` lies in each, and `A` has two replicas.
    pub fn heads() -> Vec<Vec<RecordHead>> {
        vec![
            vec![head("A", 0, 0, 3), head("A", 1, 0, 3), head("B", 0, 5, 4)],
            vec![head("B", 0, 0, 7), head("długie|id", 0, 0, 1)],
        ]
    }

    pub fn plan(dtype: Dtype, pooling: Pooling) -> Plan {
        let heads = heads();
        let residues = heads.iter().flatten().map(|h| u64::from(h.residues)).sum();
        Plan {
            fingerprint: fingerprint(),
            dim: 4,
            dtype,
            pooling,
            shards: heads.len() as u32,
            sequences: 3,
            records: heads.iter().map(|h| h.len() as u64).sum(),
            residues,
        }
    }

    /// Writes shard `index` of [`heads`], its records in the given order.
    pub fn write_shard(dir: &Path, index: usize, plan: &Plan, backwards: bool) -> ShardSummary {
        let heads = &heads()[index];
        let meaning = &plan.fingerprint.meaning;
        let (dim, dtype, pooling) = (plan.dim, plan.dtype, plan.pooling);
        let mut writer =
            ShardWriter::create(dir, index as u32, heads, dim, dtype, pooling, meaning).unwrap();
        for k in 0..heads.len() {
            let record = if backwards { heads.len() - 1 - k } else { k };
            let (rows, specials) = match pooling {
                Pooling::None => (heads[record].residues as usize, 2),
                Pooling::Mean => (1, 0),
            };
            let special = values(record + 100 * index + 50, specials * 4);
            writer.put(record, &values(record + 100 * index, rows * 4), &special).unwrap();
        }
        writer.finish().unwrap()
    }

    /// A whole cache.
    pub fn write_cache(dir: &Path, dtype: Dtype, pooling: Pooling) -> Manifest {
        let plan = plan(dtype, pooling);
        assert!(matches!(begin(dir, &plan).unwrap(), Start::Resume(_)));
        for index in 0..2 {
            write_shard(dir, index, &plan, index == 0);
        }
        finish(dir).unwrap().unwrap()
    }
}
