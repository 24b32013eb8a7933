//! One shard while it grows: records are put in any order, the file appears when it is whole.
//!
//! A put turns one record to the stored precision and writes it at its place with one or two
//! system calls; nothing waits for another record and nothing is held back in memory. The bytes of
//! the finished file depend on the records alone, not on the order of puts.

use super::checksum::checksum;
use super::layout::{self, IndexBytes};
use super::manifest::{ShardSummary, shard_name, write_summary};
use super::numbers::encode;
use super::{Dtype, Places, Pooling, RecordHead};
use crate::error::{Error, Result};
use crate::files;
use serde_json::{Map, Value};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Writes one shard of a cache. Dropped before [`ShardWriter::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct ShardWriter {
    index: u32,
    dir: PathBuf,
    temporary: PathBuf,
    file: File,
    heads: Vec<RecordHead>,
    dim: usize,
    dtype: Dtype,
    pooling: Pooling,
    places: Places,
    offsets: Vec<u64>,
    checksums: Vec<Option<u64>>,
    buffer: Vec<u8>,
}

impl ShardWriter {
    /// Lays out shard `index` of the cache in `dir` for these records, `dim` numbers a row.
    /// `meaning` is the fingerprint's and becomes the file's attributes.
    ///
    /// # Errors
    /// Exit code 4 where the file cannot be written; 70 for heads that no plan can give.
    pub fn create(
        dir: &Path,
        index: u32,
        heads: &[RecordHead],
        dim: usize,
        dtype: Dtype,
        pooling: Pooling,
        meaning: &Map<String, Value>,
    ) -> Result<ShardWriter> {
        if heads.is_empty() || dim == 0 {
            return Err(Error::bug(format!(
                "shard {index} would have {} records, {dim} wide",
                heads.len()
            )));
        }
        if let Some(head) = heads.iter().find(|h| !is_sound(h)) {
            return Err(Error::bug(format!("a record with an impossible head: {head:?}")));
        }
        let temporary = files::temporary_name(&dir.join(shard_name(index)));
        let create = || -> Result<(Places, File)> {
            let failed = |e: std::io::Error| Error::write(&temporary, &e);
            // Asked of the system first: its errors say more than the library's.
            File::create(&temporary).map_err(failed)?;
            let places = layout::create(&temporary, heads, dim, dtype, pooling, meaning)?;
            let file = OpenOptions::new().read(true).write(true).open(&temporary);
            Ok((places, file.map_err(failed)?))
        };
        let (places, file) = create().inspect_err(|_| {
            // The first error is the one worth telling; a leftover is recognised by its name.
            let _ = fs::remove_file(&temporary);
        })?;
        Ok(ShardWriter {
            index,
            dir: dir.to_path_buf(),
            temporary,
            file,
            heads: heads.to_vec(),
            dim,
            dtype,
            pooling,
            places,
            offsets: layout::offsets(heads, pooling),
            checksums: vec![None; heads.len()],
            buffer: Vec::new(),
        })
    }

    /// Stores record number `record`: `embeddings` [residues, dim], or [dim] when pooled, and
    /// `special` [2, dim] (`<cls>`, `<eos>`), empty when pooled.
    ///
    /// # Errors
    /// Exit code 6, naming the sequence, where a number is not finite or too large for the stored
    /// precision; 4 where the file cannot be written; 70 for a second put of a record or a wrong
    /// count of numbers.
    pub fn put(&mut self, record: usize, embeddings: &[f32], special: &[f32]) -> Result<()> {
        let head = self
            .heads
            .get(record)
            .ok_or_else(|| Error::bug(format!("shard {} has no record {record}", self.index)))?;
        let rows = (self.offsets[record + 1] - self.offsets[record]) as usize;
        let specials = if self.pooling == Pooling::None { 2 } else { 0 };
        if embeddings.len() != rows * self.dim || special.len() != specials * self.dim {
            return Err(Error::bug(format!(
                "record {} needs {rows} and {specials} rows of {} numbers, it was given {} and {} \
                 numbers",
                head.id,
                self.dim,
                embeddings.len(),
                special.len()
            )));
        }
        if self.checksums[record].is_some() {
            return Err(Error::bug(format!("record {} is put a second time", head.id)));
        }
        self.buffer.clear();
        for numbers in [embeddings, special] {
            encode(self.dtype, numbers, &mut self.buffer)
                .map_err(|i| not_held(head, self.dtype, numbers[i], i / self.dim))?;
        }
        let row = (self.dim * self.dtype.bytes()) as u64;
        let (main, tail) = self.buffer.split_at(embeddings.len() * self.dtype.bytes());
        let written = self
            .file
            .write_all_at(main, self.places.embeddings + self.offsets[record] * row)
            .and_then(|()| {
                let place = self.places.special_embeddings + record as u64 * 2 * row;
                if tail.is_empty() { Ok(()) } else { self.file.write_all_at(tail, place) }
            });
        written.map_err(|e| Error::write(&self.temporary, &e))?;
        self.checksums[record] = Some(checksum(&self.buffer));
        Ok(())
    }

    /// Makes the shard durable under its name and says what it is.
    ///
    /// # Errors
    /// Exit code 4 where the disk refuses; 70 where a record is missing.
    pub fn finish(mut self) -> Result<ShardSummary> {
        let mut index = IndexBytes::new(&self.heads, self.pooling, self.places.ids_width as usize);
        for (checksum, head) in self.checksums.iter().zip(&self.heads) {
            let checksum = checksum.ok_or_else(|| {
                Error::bug(format!("shard {} is finished without {}", self.index, head.id))
            })?;
            index.checksum.extend(checksum.to_le_bytes());
        }
        for (place, bytes) in index.parts(&self.places) {
            let written = self.file.write_all_at(bytes, place);
            written.map_err(|e| Error::write(&self.temporary, &e))?;
        }
        self.file.sync_all().map_err(|e| Error::write(&self.temporary, &e))?;
        let bytes = self.file.metadata().map_err(|e| Error::write(&self.temporary, &e))?.len();
        let summary = ShardSummary {
            name: shard_name(self.index),
            records: self.heads.len() as u64,
            residues: self.heads.iter().map(|h| u64::from(h.residues)).sum(),
            bytes,
            sha256: files::sha256_file(&self.temporary)?,
            index_hash: index.hash(&self.places),
            places: self.places.clone(),
        };
        // Before the shard itself: a shard under its name then always has its side file.
        write_summary(&self.dir, self.index, &summary)?;
        files::publish(&self.temporary, &self.dir.join(&summary.name))?;
        // It has its own name now: nothing is left for `drop` to remove.
        self.temporary.clear();
        Ok(summary)
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        if !self.temporary.as_os_str().is_empty() {
            // Nobody is left to tell; a leftover is recognised by its name.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// An id that the file can hold, and a window that is one.
fn is_sound(head: &RecordHead) -> bool {
    !head.id.is_empty()
        && !head.id.contains('\0')
        && head.residues > 0
        && u64::from(head.range[0]) + u64::from(head.residues) == u64::from(head.range[1])
}

fn not_held(head: &RecordHead, dtype: Dtype, value: f32, row: usize) -> Error {
    let place = format!("{} replica {}, row {row}", head.id, head.replica);
    if value.is_finite() {
        Error::numerical(format!("the embedding has a value of {value:e}, beyond {}", dtype.name()))
            .at(place)
            .hint("set esm.dtype to bfloat16 or float32")
    } else {
        Error::numerical(format!("the embedding has a value of {value}"))
            .at(place)
            .hint("see whether the model's weights are whole, and compute in fp32")
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{fingerprint, head, plan, scratch, values, write_shard};
    use super::*;
    use std::time::Duration;

    fn one_record(dir: &Path, dtype: Dtype) -> ShardWriter {
        let meaning = fingerprint().meaning;
        let heads = [head("P12345", 2, 0, 2)];
        ShardWriter::create(dir, 7, &heads, 4, dtype, Pooling::None, &meaning).unwrap()
    }

    #[test]
    fn time_and_order_of_puts_leave_no_trace() {
        let (a, b) = (scratch("bytes-a"), scratch("bytes-b"));
        for (dtype, pooling) in [
            (Dtype::Float16, Pooling::None),
            (Dtype::Bfloat16, Pooling::None),
            (Dtype::Float32, Pooling::Mean),
        ] {
            let plan = plan(dtype, pooling);
            let first = write_shard(&a, 0, &plan, false);
            std::thread::sleep(Duration::from_millis(2100));
            assert_eq!(first, write_shard(&b, 0, &plan, true));
            assert_eq!(
                fs::read(a.join(&first.name)).unwrap(),
                fs::read(b.join(&first.name)).unwrap()
            );
            assert_eq!(files::sha256_file(&a.join(&first.name)).unwrap(), first.sha256);
        }
        fs::remove_dir_all(a).unwrap();
        fs::remove_dir_all(b).unwrap();
    }

    #[test]
    fn what_float16_cannot_hold_names_the_sequence() {
        let dir = scratch("overflow");
        let mut numbers = values(0, 8);
        numbers[5] = 70000.0;
        let error = one_record(&dir, Dtype::Float16).put(0, &numbers, &[0.0; 8]).unwrap_err();
        assert_eq!(error.code(), 6);
        let text = error.to_string();
        assert!(text.contains("P12345 replica 2, row 1") && text.contains("7e4"), "{text}");
        let mut writer = one_record(&dir, Dtype::Bfloat16);
        writer.put(0, &numbers, &[0.0; 8]).unwrap();
        let mut special = [0.0; 8];
        special[0] = f32::NAN;
        let error = one_record(&dir, Dtype::Float32).put(0, &numbers, &special).unwrap_err();
        assert_eq!(error.code(), 6);
        drop(writer);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "dropped writers leave nothing");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn misuse_is_a_bug_and_leaves_no_shard() {
        let dir = scratch("misuse");
        let mut writer = one_record(&dir, Dtype::Float16);
        assert_eq!(writer.put(1, &[0.0; 8], &[0.0; 8]).unwrap_err().code(), 70);
        assert_eq!(writer.put(0, &[0.0; 7], &[0.0; 8]).unwrap_err().code(), 70);
        assert_eq!(writer.put(0, &[0.0; 8], &[]).unwrap_err().code(), 70);
        assert_eq!(writer.finish().unwrap_err().code(), 70);
        let mut writer = one_record(&dir, Dtype::Float16);
        writer.put(0, &[0.0; 8], &[0.0; 8]).unwrap();
        assert_eq!(writer.put(0, &[0.0; 8], &[0.0; 8]).unwrap_err().code(), 70);
        drop(writer);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        let missing = dir.join("missing");
        let heads = [head("A", 0, 0, 2)];
        let made =
            ShardWriter::create(&missing, 0, &heads, 4, Dtype::Float16, Pooling::None, &Map::new());
        assert_eq!(made.unwrap_err().code(), 4);
        fs::remove_dir_all(dir).unwrap();
    }
}
