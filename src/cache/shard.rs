//! One finished shard as the manifest describes it: its index checked and held, its bytes by place.
//!
//! Nothing here trusts the file: its size and the hash of its index come from the manifest, and
//! every record carries its own checksum. HDF5 itself is not asked, so a damaged file can neither
//! hang nor crash it.

use super::checksum::checksum;
use super::layout::IndexBytes;
use super::manifest::{Manifest, ShardSummary};
use super::{Pooling, RecordHead};
use crate::error::{Error, Result};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What stays in memory of a shard: 16 bytes a record.
#[derive(Debug)]
pub struct Shard {
    pub path: PathBuf,
    pub summary: ShardSummary,
    /// First row of each record, and one past the last row.
    pub offsets: Vec<u64>,
    /// xxh3_64 over each record's stored bytes.
    pub checksums: Vec<u64>,
}

/// What is needed once, to build the map from ids to records.
#[derive(Debug)]
pub struct Keys {
    ids: Vec<u8>,
    ids_width: usize,
    replicas: Vec<u8>,
    ranges: Vec<u8>,
}

impl Keys {
    /// Id, replica and first residue of each record, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u16, u32)> {
        let replicas = self.replicas.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        let starts =
            self.ranges.chunks_exact(8).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let ids = self.ids.chunks_exact(self.ids_width).map(unpadded);
        ids.zip(replicas).zip(starts).map(|((id, replica), start)| (id, replica, start))
    }
}

/// An id without the NULs that fill its field.
pub fn unpadded(field: &[u8]) -> &[u8] {
    &field[..field.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1)]
}

/// Exit code 5: a shard that is not what the manifest says.
pub fn damaged(path: &Path, what: impl Into<String>) -> Error {
    Error::damaged(what).at(path.display()).hint(
        "delete this file and run `trainer embed CONFIG` again: only this shard is computed anew",
    )
}

/// A failed read of a shard: its bytes are missing, or the file system is at fault.
pub fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => damaged(path, "this shard of the cache is missing"),
        ErrorKind::UnexpectedEof => damaged(path, "this shard of the cache is cut short"),
        _ => Error::read(path, error),
    }
}

impl Shard {
    /// Opens shard number `index`, compares its size with the manifest, reads its index and
    /// compares that with the manifest's hash. Cost: the index alone, about 60 bytes a record.
    ///
    /// # Errors
    /// Exit code 5 naming the file, where it is missing, cut short or altered.
    pub fn open(dir: &Path, manifest: &Manifest, index: usize) -> Result<(Shard, File, Keys)> {
        let summary = manifest.shards[index].clone();
        let path = dir.join(&summary.name);
        let file = File::open(&path).map_err(|e| unreadable(&path, &e))?;
        let size = file.metadata().map_err(|e| unreadable(&path, &e))?.len();
        if size != summary.bytes {
            let what = format!("the file has {size} bytes, not {}", summary.bytes);
            return Err(damaged(&path, what));
        }
        let read = read_index(&file, &summary).map_err(|e| unreadable(&path, &e))?;
        if read.hash(&summary.places) != summary.index_hash {
            return Err(damaged(&path, "the shard's index is not what was written"));
        }
        let numbers = |bytes: &[u8]| -> Vec<u64> { bytes.chunks_exact(8).map(number).collect() };
        let offsets = numbers(&read.offsets);
        if !offsets.is_sorted() || !fits(manifest, &summary, offsets[offsets.len() - 1]) {
            return Err(damaged(&path, "the shard's index points outside the file"));
        }
        let checksums = numbers(&read.checksum);
        let ids_width = summary.places.ids_width as usize;
        let keys = Keys { ids: read.ids, ids_width, replicas: read.replica, ranges: read.range };
        Ok((Shard { path, summary, offsets, checksums }, file, keys))
    }

    /// Everything about one record but its numbers.
    ///
    /// # Errors
    /// Exit code 5 where the file is cut short.
    pub fn head(&self, file: &File, row: u32) -> Result<RecordHead> {
        let places = &self.summary.places;
        let row = u64::from(row);
        let read = || -> std::io::Result<RecordHead> {
            let (mut hash, mut replica, mut range) = ([0; 8], [0; 2], [0; 8]);
            file.read_exact_at(&mut hash, places.sequence_hash + 8 * row)?;
            file.read_exact_at(&mut replica, places.replica + 2 * row)?;
            file.read_exact_at(&mut range, places.range + 8 * row)?;
            let range = number(&range);
            let range = [range as u32, (range >> 32) as u32];
            Ok(RecordHead {
                id: String::from_utf8_lossy(&self.id(file, row as u32)?).into_owned(),
                sequence_hash: u64::from_le_bytes(hash),
                replica: u16::from_le_bytes(replica),
                range,
                residues: range[1].saturating_sub(range[0]),
            })
        };
        read().map_err(|e| unreadable(&self.path, &e))
    }

    /// Whether a record really has this id and replica.
    ///
    /// # Errors
    /// Exit code 5 where the file is cut short.
    pub fn is_called(&self, file: &File, row: u32, id: &str, replica: u16) -> Result<bool> {
        let mut stored = [0; 2];
        let place = self.summary.places.replica + 2 * u64::from(row);
        let found = file.read_exact_at(&mut stored, place).and_then(|()| self.id(file, row));
        let found = found.map_err(|e| unreadable(&self.path, &e))?;
        Ok(found == id.as_bytes() && u16::from_le_bytes(stored) == replica)
    }

    /// The bytes of one record's id.
    pub fn id(&self, file: &File, row: u32) -> std::io::Result<Vec<u8>> {
        let places = &self.summary.places;
        let mut id = vec![0; places.ids_width as usize];
        file.read_exact_at(&mut id, places.ids + places.ids_width * u64::from(row))?;
        id.truncate(unpadded(&id).len());
        Ok(id)
    }

    /// Reads one record's stored bytes, embeddings and then specials, to `buffer[gap..]`, and
    /// checks them. `buffer` grows as needed and never shrinks; gives the bytes of the embeddings
    /// and of the specials. `row_bytes` is dim times the bytes of a number.
    ///
    /// # Errors
    /// Exit code 5 naming shard and id, where the bytes are not those that were written.
    pub fn load(
        &self,
        file: &File,
        row: u32,
        row_bytes: usize,
        pooling: Pooling,
        gap: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<(usize, usize)> {
        let (at, places) = (row as usize, &self.summary.places);
        let main = (self.offsets[at + 1] - self.offsets[at]) as usize * row_bytes;
        let special = if pooling == Pooling::None { 2 * row_bytes } else { 0 };
        if buffer.len() < gap + main + special {
            buffer.resize(gap + main + special, 0);
        }
        let bytes = &mut buffer[gap..gap + main + special];
        let start = places.embeddings + self.offsets[at] * row_bytes as u64;
        let read = file.read_exact_at(&mut bytes[..main], start).and_then(|()| {
            let start = places.special_embeddings + at as u64 * special as u64;
            file.read_exact_at(&mut bytes[main..], start)
        });
        read.map_err(|e| unreadable(&self.path, &e))?;
        if checksum(bytes) != self.checksums[at] {
            let id = self.id(file, row).map_err(|e| unreadable(&self.path, &e))?;
            let id = String::from_utf8_lossy(&id);
            return Err(damaged(&self.path, format!("the embedding of {id} is damaged")));
        }
        Ok((main, special))
    }
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("every caller gives eight bytes"))
}

/// Whether all rows and specials that the index speaks of lie within the file.
fn fits(manifest: &Manifest, summary: &ShardSummary, rows: u64) -> bool {
    let (plan, places) = (&manifest.plan, &summary.places);
    let within = |place: u64, rows: Option<u64>| {
        let bytes = (plan.dim as u64).checked_mul(plan.dtype.bytes() as u64);
        let bytes = bytes.zip(rows).and_then(|(row, rows)| row.checked_mul(rows));
        bytes.and_then(|bytes| bytes.checked_add(place)).is_some_and(|end| end <= summary.bytes)
    };
    let specials = match plan.pooling {
        Pooling::None => summary.records.checked_mul(2),
        Pooling::Mean => Some(0),
    };
    within(places.embeddings, Some(rows)) && within(places.special_embeddings, specials)
}

fn read_index(file: &File, summary: &ShardSummary) -> std::io::Result<IndexBytes> {
    let (n, places) = (summary.records, &summary.places);
    let read = |place: u64, bytes: u64| -> std::io::Result<Vec<u8>> {
        // A manifest that lies must not make us ask for more memory than the file is long.
        if bytes > summary.bytes || place > summary.bytes || places.ids_width == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let mut buffer = vec![0; bytes as usize];
        file.read_exact_at(&mut buffer, place)?;
        Ok(buffer)
    };
    let times = |width: u64| n.saturating_mul(width);
    Ok(IndexBytes {
        offsets: read(places.offsets, times(8).saturating_add(8))?,
        ids: read(places.ids, times(places.ids_width))?,
        sequence_hash: read(places.sequence_hash, times(8))?,
        replica: read(places.replica, times(2))?,
        range: read(places.range, times(8))?,
        checksum: read(places.checksum, times(8))?,
    })
}
