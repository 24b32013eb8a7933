//! One shard as HDF5: its datasets and attributes, laid out once, and where their bytes lie.
//!
//! The library creates the file, allocates every dataset in one piece and closes it again; from
//! then on bytes are written and read at the offsets it gave ([`Places`]). No object times, no
//! fill, no filter, no lock: two shards of the same content are the same bytes.
//!
//! | dataset | type and shape | holds |
//! |---|---|---|
//! | `/offsets` | u64 [n+1] | record i is rows `offsets[i]..offsets[i+1]` of `/embeddings` |
//! | `/ids` | fixed-length utf-8 [n] | sample ids, padded with NUL |
//! | `/sequence_hash` | u64 [n] | xxh3_64 over the ESM ids of the window before masking |
//! | `/replica` | u16 [n] | which masked copy |
//! | `/range` | u32 [n, 2] | the window, in residues of the whole sequence |
//! | `/checksum` | u64 [n] | xxh3_64 over the record's stored bytes, embeddings then specials |
//! | `/special_embeddings` | dtype [n, 2, D] | `<cls>` and `<eos>`; not when pooled |
//! | `/embeddings` | dtype [rows, D] | rows are residues; pooled: one a record |

use super::{Dtype, Pooling, RecordHead};
use crate::error::{Error, Result};
use hdf5::types::{FloatSize, IntSize, TypeDescriptor, VarLenUnicode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// Where each dataset's bytes begin in the shard's file. `ids_width` is the bytes of one id;
/// `special_embeddings` is 0 in a pooled cache, which has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Places {
    pub offsets: u64,
    pub ids: u64,
    pub ids_width: u64,
    pub sequence_hash: u64,
    pub replica: u64,
    pub range: u64,
    pub checksum: u64,
    pub special_embeddings: u64,
    pub embeddings: u64,
}

/// Bytes of everything but the numbers themselves, in the order of the file.
#[derive(Debug)]
pub struct IndexBytes {
    pub offsets: Vec<u8>,
    pub ids: Vec<u8>,
    pub sequence_hash: Vec<u8>,
    pub replica: Vec<u8>,
    pub range: Vec<u8>,
    pub checksum: Vec<u8>,
}

impl IndexBytes {
    /// The index of these records, checksums still to come.
    pub fn new(heads: &[RecordHead], pooling: Pooling, ids_width: usize) -> IndexBytes {
        let mut ids = vec![0; heads.len() * ids_width];
        for (head, field) in heads.iter().zip(ids.chunks_exact_mut(ids_width)) {
            field[..head.id.len()].copy_from_slice(head.id.as_bytes());
        }
        let range = heads.iter().flat_map(|h| h.range).flat_map(u32::to_le_bytes);
        IndexBytes {
            offsets: offsets(heads, pooling).into_iter().flat_map(u64::to_le_bytes).collect(),
            ids,
            sequence_hash: heads.iter().flat_map(|h| h.sequence_hash.to_le_bytes()).collect(),
            replica: heads.iter().flat_map(|h| h.replica.to_le_bytes()).collect(),
            range: range.collect(),
            checksum: Vec::new(),
        }
    }

    /// Each part with its place.
    pub fn parts<'a>(&'a self, places: &Places) -> [(u64, &'a [u8]); 6] {
        [
            (places.offsets, self.offsets.as_slice()),
            (places.ids, &self.ids),
            (places.sequence_hash, &self.sequence_hash),
            (places.replica, &self.replica),
            (places.range, &self.range),
            (places.checksum, &self.checksum),
        ]
    }

    /// One hash over all parts, 16 hexadecimal digits.
    pub fn hash(&self, places: &Places) -> String {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for (_, bytes) in self.parts(places) {
            hash.update(bytes);
        }
        format!("{:016x}", hash.digest())
    }
}

/// First row of each record, and one past the last row: u64 [n+1].
pub fn offsets(heads: &[RecordHead], pooling: Pooling) -> Vec<u64> {
    let mut next = 0;
    let mut offsets = vec![0];
    for head in heads {
        next += match pooling {
            Pooling::None => u64::from(head.residues),
            Pooling::Mean => 1,
        };
        offsets.push(next);
    }
    offsets
}

/// Creates the file with all datasets allocated and nothing in them.
///
/// # Errors
/// Exit code 4 where the file cannot be written.
pub fn create(
    path: &Path,
    heads: &[RecordHead],
    dim: usize,
    dtype: Dtype,
    pooling: Pooling,
    meaning: &Map<String, Value>,
) -> Result<Places> {
    let laid_out = lay_out(path, heads, dim, dtype, pooling, meaning);
    laid_out.map_err(|e| Error::write(path, &std::io::Error::other(e.to_string())))
}

fn lay_out(
    path: &Path,
    heads: &[RecordHead],
    dim: usize,
    dtype: Dtype,
    pooling: Pooling,
    meaning: &Map<String, Value>,
) -> hdf5::Result<Places> {
    let file = hdf5::FileBuilder::new()
        .with_fcpl(|p| p.obj_track_times(false))
        .with_fapl(|p| p.file_locking(false))
        .create(path)?;
    attributes(&file, dim, dtype, pooling, meaning)?;
    let n = heads.len();
    let rows = offsets(heads, pooling)[n] as usize;
    let ids_width = heads.iter().map(|h| h.id.len()).max().unwrap_or(0).max(1);
    let (u64s, u32s) =
        (TypeDescriptor::Unsigned(IntSize::U8), TypeDescriptor::Unsigned(IntSize::U4));
    let u16s = TypeDescriptor::Unsigned(IntSize::U2);
    let numbers = match dtype {
        Dtype::Float16 => TypeDescriptor::Float(FloatSize::U2),
        Dtype::Bfloat16 => u16s.clone(),
        Dtype::Float32 => TypeDescriptor::Float(FloatSize::U4),
    };
    let add = |name: &str, kind: &TypeDescriptor, shape: &[usize]| -> hdf5::Result<u64> {
        let set = file
            .new_dataset_builder()
            .empty_as(kind)
            .shape(shape)
            .no_chunk()
            .alloc_time(Some(hdf5::dataset::AllocTime::Early))
            .fill_time(hdf5::dataset::FillTime::Never)
            .obj_track_times(false)
            .create(name)?;
        if dtype == Dtype::Bfloat16 && name.ends_with("embeddings") {
            text_attribute(&set, "dtype", dtype.name())?;
        }
        set.offset().ok_or_else(|| format!("dataset {name} was not allocated").into())
    };
    let places = Places {
        offsets: add("offsets", &u64s, &[n + 1])?,
        ids: add("ids", &TypeDescriptor::FixedUnicode(ids_width), &[n])?,
        ids_width: ids_width as u64,
        sequence_hash: add("sequence_hash", &u64s, &[n])?,
        replica: add("replica", &u16s, &[n])?,
        range: add("range", &u32s, &[n, 2])?,
        checksum: add("checksum", &u64s, &[n])?,
        special_embeddings: match pooling {
            Pooling::None => add("special_embeddings", &numbers, &[n, 2, dim])?,
            Pooling::Mean => 0,
        },
        embeddings: add("embeddings", &numbers, &[rows, dim])?,
    };
    file.close()?;
    Ok(places)
}

/// What the shard is, then every field of the fingerprint's meaning under its own name. Objects
/// and lists stand there as JSON.
fn attributes(
    file: &hdf5::File,
    dim: usize,
    dtype: Dtype,
    pooling: Pooling,
    meaning: &Map<String, Value>,
) -> hdf5::Result<()> {
    let mut all = Map::new();
    all.insert("format".into(), super::manifest::FORMAT.into());
    all.insert("format_version".into(), super::manifest::VERSION.into());
    all.insert("dim".into(), dim.into());
    all.insert("dtype".into(), dtype.name().into());
    all.insert("pooling".into(), pooling.name().into());
    all.extend(meaning.iter().map(|(name, value)| (name.clone(), value.clone())));
    for (name, value) in &all {
        let name = name.as_str();
        match value {
            Value::Bool(b) => file.new_attr::<bool>().create(name)?.write_scalar(b)?,
            Value::String(s) => text_attribute(file, name, s)?,
            Value::Number(n) => match (n.as_i64(), n.as_f64()) {
                (Some(i), _) => file.new_attr::<i64>().create(name)?.write_scalar(&i)?,
                (None, Some(x)) => file.new_attr::<f64>().create(name)?.write_scalar(&x)?,
                (None, None) => text_attribute(file, name, &n.to_string())?,
            },
            Value::Null | Value::Array(_) | Value::Object(_) => {
                text_attribute(file, name, &value.to_string())?;
            }
        }
    }
    Ok(())
}

fn text_attribute(at: &hdf5::Location, name: &str, text: &str) -> hdf5::Result<()> {
    let text: VarLenUnicode =
        text.parse().map_err(|e| format!("attribute {name} cannot hold this text: {e}"))?;
    at.new_attr::<VarLenUnicode>().create(name)?.write_scalar(&text)
}
