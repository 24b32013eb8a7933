//! A finished cache: find a record, read it, notice damage.
//!
//! Opening reads each shard's index once. In memory stay 32 bytes a record (a sorted table from
//! hashed id to place, row offsets, checksums); ids stay on disk and are compared when found.
//! A read is one `pread` for the embeddings and one for the specials, from a bounded pool of open
//! files, checked by the record's checksum and turned to float32 in one pass.

use super::manifest::{Manifest, no_cache, progress, read_manifest};
use super::numbers::decode;
use super::shard::{Shard, damaged, unreadable};
use super::{Fingerprint, Pooling, RecordHead};
use crate::error::{Error, Result};
use crate::progress;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Files open at a time; half of the usual limit of a process.
const MOST_OPEN: usize = 512;

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordRef {
    /// Number of the shard.
    pub shard: u32,
    /// Number of the record within it.
    pub row: u32,
}

/// One line of the table: what a record is called, and where it lies.
#[derive(Clone, Copy, Debug)]
struct Entry {
    key: u64,
    place: RecordRef,
}

/// A finished cache, open for reading by any number of threads.
#[derive(Debug)]
pub struct Cache {
    manifest: Manifest,
    shards: Vec<Shard>,
    /// Sorted by key, then by first residue: the windows of one id and replica stand together.
    entries: Vec<Entry>,
    pool: Mutex<Pool>,
}

/// Open files; the one opened first is closed first.
#[derive(Debug, Default)]
struct Pool {
    files: HashMap<u32, Arc<File>>,
    order: VecDeque<u32>,
}

thread_local! {
    /// One record's stored bytes on their way to float32.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn key(id: &[u8], replica: u16) -> u64 {
    xxh3_64_with_seed(id, u64::from(replica))
}

impl Cache {
    /// Opens a finished cache and checks the size and index of every shard.
    ///
    /// # Errors
    /// Exit code 5: no cache, an unfinished one, or a shard that is missing, cut short or altered.
    pub fn open(dir: &Path) -> Result<Cache> {
        let Some(manifest) = read_manifest(dir)? else {
            return Err(unfinished(dir)?);
        };
        let mut shards = Vec::with_capacity(manifest.shards.len());
        let mut entries = Vec::new();
        let mut starts = Vec::with_capacity(manifest.shards.len());
        for index in 0..manifest.shards.len() {
            progress::tick()?;
            let (shard, _, keys) = Shard::open(dir, &manifest, index)?;
            let mut first = Vec::with_capacity(shard.checksums.len());
            for (row, (id, replica, start)) in (0..).zip(keys.iter()) {
                let place = RecordRef { shard: index as u32, row };
                entries.push(Entry { key: key(id, replica), place });
                first.push(start);
            }
            shards.push(shard);
            starts.push(first);
        }
        entries.shrink_to_fit();
        let start = |place: RecordRef| starts[place.shard as usize][place.row as usize];
        entries.sort_unstable_by(|a, b| {
            a.key.cmp(&b.key).then_with(|| start(a.place).cmp(&start(b.place)))
        });
        let cache = Cache { manifest, shards, entries, pool: Mutex::default() };
        for pair in cache.entries.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            if a.key == b.key && start(a.place) == start(b.place) {
                cache.refuse_twins(a.place, b.place)?;
            }
        }
        Ok(cache)
    }

    /// Two records of one key and window are a damaged cache, unless only their hashes agree.
    fn refuse_twins(&self, a: RecordRef, b: RecordRef) -> Result<()> {
        let (first, second) = (self.head(a)?, self.head(b)?);
        if first.id != second.id || first.replica != second.replica {
            return Ok(());
        }
        let path = &self.shards[b.shard as usize].path;
        Err(damaged(path, format!("the cache holds {} twice: {:?}", first.id, first.range)))
    }

    /// What the cache says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What its embeddings mean and how they were made.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.manifest.plan.fingerprint
    }

    /// Every record, in the order of shards and rows.
    pub fn records(&self) -> impl Iterator<Item = RecordRef> + '_ {
        self.shards.iter().enumerate().flat_map(|(shard, held)| {
            let rows = held.checksums.len() as u32;
            (0..rows).map(move |row| RecordRef { shard: shard as u32, row })
        })
    }

    /// The record of `id` whose window is number `window` (0 for a whole sequence) among the
    /// windows of that id and replica, by first residue. Nothing where there is none.
    ///
    /// # Errors
    /// Exit code 5 where the shard that should hold it cannot be read.
    pub fn find(&self, id: &str, window: u32, replica: u16) -> Result<Option<RecordRef>> {
        let key = key(id.as_bytes(), replica);
        let first = self.entries.partition_point(|e| e.key < key);
        let mut left = window;
        for entry in self.entries[first..].iter().take_while(|e| e.key == key) {
            // Another id of the same hash may stand between: count only what is ours.
            let (shard, file) = (entry.place.shard, self.file(entry.place.shard)?);
            if !self.shards[shard as usize].is_called(&file, entry.place.row, id, replica)? {
                continue;
            }
            if left == 0 {
                return Ok(Some(entry.place));
            }
            left -= 1;
        }
        Ok(None)
    }

    /// Everything about a record but its numbers.
    ///
    /// # Errors
    /// Exit code 5 where the shard cannot be read.
    pub fn head(&self, record: RecordRef) -> Result<RecordHead> {
        self.shards[record.shard as usize].head(&*self.file(record.shard)?, record.row)
    }

    /// Rows that [`Cache::read`] gives: residues, or 1 when pooled. Costs no reading.
    pub fn rows(&self, record: RecordRef) -> usize {
        let offsets = &self.shards[record.shard as usize].offsets;
        (offsets[record.row as usize + 1] - offsets[record.row as usize]) as usize
    }

    /// Reads a record as float32 [rows, dim]; `out` is given that length. Reuse `out` as it is: it
    /// costs nothing where it is long enough.
    ///
    /// # Errors
    /// Exit code 5 naming shard and id, where the bytes are not those that were written.
    pub fn read(&self, record: RecordRef, out: &mut Vec<f32>) -> Result<()> {
        BUFFER.with_borrow_mut(|buffer| {
            let (main, _) = self.load(record, 0, buffer)?;
            self.decode(&buffer[..main], out);
            Ok(())
        })
    }

    /// Reads a record with its specials as float32 [residues + 2, dim]: `<cls>`, residues, `<eos>`.
    ///
    /// # Errors
    /// Exit code 5 naming shard and id, where the bytes are not those that were written; 70 for a
    /// pooled cache, which has no specials.
    pub fn read_with_specials(&self, record: RecordRef, out: &mut Vec<f32>) -> Result<()> {
        BUFFER.with_borrow_mut(|buffer| {
            let bytes = self.load_between(record, buffer)?;
            self.decode(&buffer[..bytes], out);
            Ok(())
        })
    }

    /// The stored bytes of [`Cache::read`], little-endian, in the cache's precision.
    ///
    /// # Errors
    /// As [`Cache::read`].
    pub fn read_stored(&self, record: RecordRef, out: &mut Vec<u8>) -> Result<()> {
        let (main, _) = self.load(record, 0, out)?;
        out.truncate(main);
        Ok(())
    }

    fn decode(&self, bytes: &[u8], out: &mut Vec<f32>) {
        let dtype = self.manifest.plan.dtype;
        out.resize(bytes.len() / dtype.bytes(), 0.0);
        decode(dtype, bytes, out);
    }

    fn row_bytes(&self) -> usize {
        self.manifest.plan.dim * self.manifest.plan.dtype.bytes()
    }

    fn load(&self, record: RecordRef, gap: usize, buffer: &mut Vec<u8>) -> Result<(usize, usize)> {
        let file = self.file(record.shard)?;
        let (row_bytes, pooling) = (self.row_bytes(), self.manifest.plan.pooling);
        let shard = &self.shards[record.shard as usize];
        shard.load(&file, record.row, row_bytes, pooling, gap, buffer)
    }

    /// Loads a record and puts its specials around it; gives the length in bytes.
    fn load_between(&self, record: RecordRef, buffer: &mut Vec<u8>) -> Result<usize> {
        if self.manifest.plan.pooling != Pooling::None {
            return Err(Error::bug("a pooled cache was asked for special embeddings"));
        }
        // On disk: residues, <cls>, <eos>. Read behind a gap of one row, only the two specials move.
        let row = self.row_bytes();
        let (main, special) = self.load(record, row, buffer)?;
        let cls = row + main;
        buffer.copy_within(cls..cls + row, 0);
        buffer.copy_within(cls + row..cls + special, cls);
        Ok(main + special)
    }

    fn file(&self, shard: u32) -> Result<Arc<File>> {
        // A thread that died holding the pool left it whole: every change is one call.
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = pool.files.get(&shard) {
            return Ok(Arc::clone(file));
        }
        let path = &self.shards[shard as usize].path;
        let file = Arc::new(File::open(path).map_err(|e| unreadable(path, &e))?);
        if pool.files.len() >= MOST_OPEN
            && let Some(oldest) = pool.order.pop_front()
        {
            pool.files.remove(&oldest);
        }
        pool.files.insert(shard, Arc::clone(&file));
        pool.order.push_back(shard);
        Ok(file)
    }
}

/// Why there is no manifest: never begun, or not finished.
fn unfinished(dir: &Path) -> Result<Error> {
    Ok(match progress(dir)? {
        None => no_cache(dir),
        Some(progress) => Error::damaged(format!(
            "the cache is not finished: {} of {} shards",
            progress.done, progress.shards
        ))
        .at(dir.display())
        .hint("run `trainer embed CONFIG` again; it goes on where it stopped"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{heads, plan, scratch, values, write_cache, write_shard};
    use super::super::{Dtype, begin};
    use super::*;
    use std::fs;
    use std::os::unix::fs::FileExt;

    #[test]
    fn every_record_is_found_and_read_back() {
        for (dtype, pooling) in [
            (Dtype::Float16, Pooling::None),
            (Dtype::Bfloat16, Pooling::None),
            (Dtype::Float32, Pooling::None),
            (Dtype::Float16, Pooling::Mean),
        ] {
            let dir = scratch("round-trip");
            write_cache(&dir, dtype, pooling);
            let cache = Cache::open(&dir).unwrap();
            let (mut out, mut stored) = (vec![9.0; 3], Vec::new());
            for place in cache.records() {
                let (shard, row) = (place.shard as usize, place.row as usize);
                let head = &heads()[shard][row];
                assert_eq!(cache.head(place).unwrap(), *head);
                let window = u32::from(head.id == "B" && head.range[0] == 5);
                assert_eq!(cache.find(&head.id, window, head.replica).unwrap(), Some(place));
                let rows = cache.rows(place);
                let main = values(row + 100 * shard, rows * 4);
                cache.read(place, &mut out).unwrap();
                assert_eq!(out, main);
                cache.read_stored(place, &mut stored).unwrap();
                assert_eq!(stored.len(), rows * 4 * dtype.bytes());
                if pooling == Pooling::Mean {
                    assert_eq!(cache.read_with_specials(place, &mut out).unwrap_err().code(), 70);
                    continue;
                }
                let special = values(row + 100 * shard + 50, 8);
                cache.read_with_specials(place, &mut out).unwrap();
                assert_eq!(out, [&special[..4], &main, &special[4..]].concat());
            }
            assert_eq!(cache.records().count(), 5);
            fs::remove_dir_all(dir).unwrap();
        }
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let dir = scratch("absent");
        write_cache(&dir, Dtype::Float16, Pooling::None);
        let cache = Cache::open(&dir).unwrap();
        for (id, window, replica) in
            [("A", 1, 0), ("A", 0, 2), ("B", 2, 0), ("C", 0, 0), ("", 0, 0)]
        {
            assert_eq!(cache.find(id, window, replica).unwrap(), None, "{id} {window} {replica}");
        }
        let b = |window| cache.head(cache.find("B", window, 0).unwrap().unwrap()).unwrap().range;
        assert_eq!([b(0), b(1)], [[0, 7], [5, 9]]);
        fs::remove_dir_all(dir).unwrap();
    }

    fn flip(path: &Path, at: u64) {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }

    #[test]
    fn a_flipped_byte_is_noticed() {
        let dir = scratch("flipped");
        let manifest = write_cache(&dir, Dtype::Float16, Pooling::None);
        let path = dir.join("shard-00000.h5");
        let places = manifest.shards[0].places.clone();
        for at in [places.embeddings + 3 * 8, places.special_embeddings + 16] {
            flip(&path, at);
            let cache = Cache::open(&dir).unwrap();
            let place = cache.find("A", 0, 1).unwrap().unwrap();
            let error = cache.read(place, &mut Vec::new()).unwrap_err();
            assert_eq!(error.code(), 5);
            let text = error.to_string();
            assert!(text.contains("shard-00000.h5: the embedding of A is damaged"), "{text}");
            let other = cache.find("A", 0, 0).unwrap().unwrap();
            assert!(cache.read(other, &mut Vec::new()).is_ok());
            flip(&path, at);
        }
        let index =
            [places.offsets, places.ids, places.sequence_hash, places.replica, places.range];
        for at in index.into_iter().chain([places.checksum]) {
            flip(&path, at);
            assert_eq!(Cache::open(&dir).unwrap_err().code(), 5);
            flip(&path, at);
        }
        assert!(Cache::open(&dir).is_ok());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn truncated_missing_and_unfinished_are_told_apart() {
        let dir = scratch("truncated");
        let says = |dir: &Path| {
            let error = Cache::open(dir).unwrap_err();
            assert_eq!(error.code(), 5);
            error.to_string()
        };
        assert!(says(&dir).contains("there is no embedding cache here"));
        assert!(says(&dir.join("nowhere")).contains("there is no embedding cache here"));
        let plan = plan(Dtype::Float16, Pooling::None);
        begin(&dir, &plan).unwrap();
        write_shard(&dir, 1, &plan, false);
        let text = says(&dir);
        assert!(text.contains("not finished: 1 of 2 shards"), "{text}");
        assert!(text.contains("trainer embed CONFIG"), "{text}");
        write_cache_rest(&dir, &plan);
        let path = dir.join("shard-00001.h5");
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(100).unwrap();
        assert!(says(&dir).contains("shard-00001.h5: the file has 100 bytes"));
        fs::remove_file(path).unwrap();
        assert!(says(&dir).contains("shard-00001.h5: this shard of the cache is missing"));
        fs::remove_dir_all(dir).unwrap();
    }

    /// Whatever stands in a manifest, opening and reading end in a result.
    #[test]
    fn a_manifest_that_lies_is_refused() {
        let dir = scratch("lies");
        write_cache(&dir, Dtype::Float16, Pooling::None);
        let path = dir.join("manifest.json");
        let text = fs::read_to_string(&path).unwrap();
        let mut refused = 0;
        for (name, value) in text.lines().filter_map(|line| line.trim().split_once(": ")) {
            let value = value.trim_end_matches(',');
            let ours =
                ["threads", "layer", "hidden_size", "layers"].iter().all(|n| !name.contains(n));
            if !ours || value.parse::<u64>().is_err() {
                continue;
            }
            for lie in ["0", "1", "4611686018427387904", "18446744073709551615", "-1"] {
                let lied = text.replacen(&format!("{name}: {value}"), &format!("{name}: {lie}"), 1);
                fs::write(&path, lied).unwrap();
                match Cache::open(&dir) {
                    Ok(cache) => cache.records().for_each(|r| {
                        let _ = cache.read_with_specials(r, &mut Vec::new());
                    }),
                    Err(error) => {
                        assert_eq!(error.code(), 5, "{name} {lie}: {error}");
                        refused += 1;
                    }
                }
            }
        }
        assert!(refused > 50, "only {refused} lies were noticed");
        fs::remove_dir_all(dir).unwrap();
    }

    fn write_cache_rest(dir: &Path, plan: &super::super::Plan) {
        write_shard(dir, 0, plan, false);
        super::super::finish(dir).unwrap().unwrap();
    }

    #[test]
    fn many_threads_read_at_once() {
        let dir = scratch("threads");
        write_cache(&dir, Dtype::Bfloat16, Pooling::None);
        let cache = Cache::open(&dir).unwrap();
        let place = cache.find("B", 0, 0).unwrap().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut out = Vec::new();
                    for _ in 0..200 {
                        cache.read(place, &mut out).unwrap();
                        assert_eq!(out, values(100, 28));
                    }
                });
            }
        });
        fs::remove_dir_all(dir).unwrap();
    }
}
