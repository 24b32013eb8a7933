//! The seed's `{train,val,test}_embeddings.h5`: both layouts are read, the first is written.
//!
//! * First layout: `unique_ids`, `lengths`, `embeddings` [N, longest, D] padded with zeros; a
//!   sequence of several windows has the keys `{id}_window_{i}`.
//! * Second layout: a group an id, in it `embedding_seq` [W, longest, D] and `range_seq` [W, 2].
//!
//! Rows are the seed's tokens, which include `<cls>` and `<eos>`. Chunks and filters are whatever
//! the file has; this is for taking over existing files, not for fast training.

use crate::error::{Error, Result};
use crate::files;
use hdf5::types::{FixedAscii, FixedUnicode, TypeDescriptor, VarLenAscii, VarLenUnicode};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The longest id in a file of fixed-length strings.
const LONGEST_ID: usize = 1024;
/// Ids are read this many at a time.
const IDS_AT_ONCE: usize = 4096;
/// Size of a chunk that is written, uncompressed.
const CHUNK_BYTES: usize = 1 << 18;

/// Which of the seed's layouts a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamLayout {
    /// One padded array for all sequences.
    V1,
    /// A group a sequence.
    V2,
}

/// One window of one sequence in such a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamRef {
    /// Row of the padded array, or number of the window within its group.
    row: usize,
    /// Number of the id in [`UpstreamFile::ids`].
    id: usize,
    /// Rows that are no padding.
    pub rows: usize,
    /// First token and one past the last, where the file says so (second layout).
    pub range: Option<[u32; 2]>,
}

/// One file of the seed's, open for reading.
#[derive(Debug)]
pub struct UpstreamFile {
    path: PathBuf,
    file: hdf5::File,
    dim: usize,
    ids: Vec<String>,
    numbers: HashMap<String, usize>,
    array: Option<Padded>,
}

/// The first layout's one array.
#[derive(Debug)]
struct Padded {
    embeddings: hdf5::Dataset,
    lengths: Vec<usize>,
    /// For each id its windows: (number, row).
    windows: Vec<Vec<(u32, usize)>>,
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::damaged(format!("cannot be read as precomputed embeddings: {what}"))
        .at(path.display())
        .hint("the file must have been written by the seed's generate_embeddings.py, or by export")
}

/// Id and number of the window in a key of the first layout.
fn split_key(key: &str) -> (&str, u32) {
    match key.split_once("_window_") {
        Some((id, number)) => number.parse().map_or((key, 0), |number| (id, number)),
        None => (key, 0),
    }
}

impl UpstreamFile {
    /// Opens a file of either layout.
    ///
    /// # Errors
    /// Exit code 3 where it cannot be read at all, 5 where it is neither layout or damaged.
    pub fn open(path: &Path) -> Result<UpstreamFile> {
        let mut head = Vec::new();
        let opened = File::open(path).and_then(|f| f.take(64).read_to_end(&mut head));
        opened.map_err(|e| Error::read(path, &e))?;
        if files::is_lfs_pointer(&head) {
            return Err(Error::damaged("this is a Git-LFS pointer, not the embeddings")
                .at(path.display())
                .hint(files::LFS_HINT));
        }
        let file = hdf5::FileBuilder::new()
            .with_fapl(|p| p.file_locking(false))
            .open(path)
            .map_err(|e| damaged(path, e))?;
        let opened = if file.link_exists("unique_ids") {
            Self::open_v1(path, file)
        } else {
            Self::open_v2(path, file)
        };
        opened.map_err(|e| damaged(path, e))
    }

    fn open_v1(path: &Path, file: hdf5::File) -> hdf5::Result<UpstreamFile> {
        let embeddings = file.dataset("embeddings")?;
        let shape = embeddings.shape();
        let keys = read_strings(&file.dataset("unique_ids")?)?;
        let lengths = file.dataset("lengths")?.read_raw::<i64>()?;
        if shape.len() != 3 || keys.len() != shape[0] || lengths.len() != shape[0] {
            return Err(format!(
                "embeddings have shape {shape:?}, with {} ids and {} lengths",
                keys.len(),
                lengths.len()
            )
            .into());
        }
        let lengths: Vec<usize> = lengths
            .iter()
            .map(|l| usize::try_from(*l).ok().filter(|l| *l <= shape[1]))
            .collect::<Option<_>>()
            .ok_or("a length is negative or beyond the array")?;
        let (mut ids, mut numbers, mut windows) = (Vec::new(), HashMap::new(), Vec::new());
        for (row, key) in keys.iter().enumerate() {
            let (id, window) = split_key(key);
            let number = *numbers.entry(id.to_string()).or_insert_with(|| {
                ids.push(id.to_string());
                windows.push(Vec::new());
                ids.len() - 1
            });
            windows[number].push((window, row));
        }
        let array = Some(Padded { embeddings, lengths, windows });
        Ok(UpstreamFile { path: path.to_path_buf(), file, dim: shape[2], ids, numbers, array })
    }

    fn open_v2(path: &Path, file: hdf5::File) -> hdf5::Result<UpstreamFile> {
        let ids = file.member_names()?;
        let first = ids.first().ok_or("the file is empty")?;
        let shape = file.group(first)?.dataset("embedding_seq")?.shape();
        if shape.len() != 3 {
            return Err(format!("embedding_seq of {first} has shape {shape:?}").into());
        }
        let numbers = ids.iter().cloned().zip(0..).collect();
        Ok(UpstreamFile {
            path: path.to_path_buf(),
            file,
            dim: shape[2],
            ids,
            numbers,
            array: None,
        })
    }

    /// Which layout it is.
    pub fn layout(&self) -> UpstreamLayout {
        if self.array.is_some() { UpstreamLayout::V1 } else { UpstreamLayout::V2 }
    }

    /// Width of an embedding.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Sequence ids, in the order of the file, windows taken together.
    pub fn ids(&self) -> &[String] {
        &self.ids
    }

    /// Window number `window` of `id`; nothing where there is none.
    ///
    /// # Errors
    /// Exit code 5 where the file is damaged.
    pub fn find(&self, id: &str, window: u32) -> Result<Option<UpstreamRef>> {
        let Some(&number) = self.numbers.get(id) else {
            return Ok(None);
        };
        let Some(array) = &self.array else {
            let found = self.find_v2(number, window as usize);
            return found.map_err(|e| damaged(&self.path, e).at(id));
        };
        let found = array.windows[number].iter().find(|(n, _)| *n == window);
        Ok(found.map(|(_, row)| UpstreamRef {
            row: *row,
            id: number,
            rows: array.lengths[*row],
            range: None,
        }))
    }

    fn find_v2(&self, number: usize, window: usize) -> hdf5::Result<Option<UpstreamRef>> {
        let group = self.file.group(&self.ids[number])?;
        let shape = group.dataset("embedding_seq")?.shape();
        let ranges = group.dataset("range_seq")?.read_raw::<i64>()?;
        if shape.len() != 3 || shape[2] != self.dim || ranges.len() != 2 * shape[0] {
            return Err(format!("shape {shape:?} with {} range numbers", ranges.len()).into());
        }
        if window >= shape[0] {
            return Ok(None);
        }
        let (start, end) = (ranges[2 * window], ranges[2 * window + 1]);
        let rows = usize::try_from(end - start).ok().filter(|rows| *rows <= shape[1]);
        match (rows, u32::try_from(start), u32::try_from(end)) {
            (Some(rows), Ok(start), Ok(end)) => {
                Ok(Some(UpstreamRef { row: window, id: number, rows, range: Some([start, end]) }))
            }
            _ => Err(format!("window {window} has the range {start}..{end}").into()),
        }
    }

    /// Reads a window as float32 [rows, dim], padding left out; `out` is given that length.
    ///
    /// # Errors
    /// Exit code 5 where the file is damaged.
    pub fn read(&self, window: &UpstreamRef, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        let mut read = || -> hdf5::Result<()> {
            let in_group;
            let set = match &self.array {
                Some(array) => &array.embeddings,
                None => {
                    in_group = self.file.group(&self.ids[window.id])?.dataset("embedding_seq")?;
                    &in_group
                }
            };
            let rows = set.read_slice_2d::<f32, _>((window.row, 0..window.rows, ..))?;
            out.extend(rows.iter());
            Ok(())
        };
        let read = if window.rows == 0 { Ok(()) } else { read() };
        read.map_err(|e| damaged(&self.path, e).at(&self.ids[window.id]))
    }
}

/// Strings of any kind that h5py writes.
fn read_strings(set: &hdf5::Dataset) -> hdf5::Result<Vec<String>> {
    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }
    let mut strings = Vec::with_capacity(set.size());
    for start in (0..set.size()).step_by(IDS_AT_ONCE) {
        let part = start..set.size().min(start + IDS_AT_ONCE);
        match set.dtype()?.to_descriptor()? {
            TypeDescriptor::FixedAscii(n) if n <= LONGEST_ID => {
                let part = set.read_slice_1d::<FixedAscii<LONGEST_ID>, _>(part)?;
                strings.extend(part.iter().map(|s| text(s.as_bytes())));
            }
            TypeDescriptor::FixedUnicode(n) if n <= LONGEST_ID => {
                let part = set.read_slice_1d::<FixedUnicode<LONGEST_ID>, _>(part)?;
                strings.extend(part.iter().map(|s| text(s.as_bytes())));
            }
            TypeDescriptor::VarLenAscii => {
                let part = set.read_slice_1d::<VarLenAscii, _>(part)?;
                strings.extend(part.iter().map(|s| text(s.as_bytes())));
            }
            TypeDescriptor::VarLenUnicode => {
                let part = set.read_slice_1d::<VarLenUnicode, _>(part)?;
                strings.extend(part.iter().map(|s| text(s.as_bytes())));
            }
            other => return Err(format!("unique_ids are of the type {other:?}").into()),
        }
    }
    Ok(strings)
}

/// One row of a file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportRow {
    /// The sequence's id.
    pub id: String,
    /// Number of this window, and how many the sequence has.
    pub window: u32,
    pub windows: u32,
    /// Rows of its embedding, specials included as the seed has them.
    pub rows: u32,
}

impl ExportRow {
    fn key(&self) -> String {
        if self.windows <= 1 {
            self.id.clone()
        } else {
            format!("{}_window_{}", self.id, self.window)
        }
    }
}

/// Writes the seed's first layout. `fill(i, out)` gives the embedding of row i, [rows, dim]; it is
/// asked in order, and no more than one is held. Padding is never written: chunks that hold nothing
/// else take no space. `gzip` is the level, 1 to 9.
///
/// # Errors
/// Those of `fill`; exit code 4 where the file cannot be written. No file is then left.
pub fn export_v1(
    path: &Path,
    rows: &[ExportRow],
    dim: usize,
    gzip: u8,
    mut fill: impl FnMut(usize, &mut Vec<f32>) -> Result<()>,
) -> Result<()> {
    refuse_full_disk(path, rows, dim)?;
    let temporary = files::temporary_name(path);
    let failed = |e: hdf5::Error| match e.to_string() {
        text if text.contains("No space left") => {
            Error::write(path, &std::io::Error::from_raw_os_error(libc::ENOSPC))
        }
        text => Error::write(path, &std::io::Error::other(text)),
    };
    files::or_remove(&temporary, || {
        // Asked of the system first: its errors say more than the library's.
        File::create(&temporary).map_err(|e| Error::write(path, &e))?;
        let (file, embeddings) = create_v1(&temporary, rows, dim, gzip).map_err(failed)?;
        let mut write = || -> Result<()> {
            let mut numbers = Vec::new();
            for (i, row) in rows.iter().enumerate() {
                fill(i, &mut numbers)?;
                if numbers.len() != row.rows as usize * dim {
                    let (rows, n) = (row.rows, numbers.len());
                    let what = format!("{n} numbers for {rows} rows of {dim}");
                    return Err(Error::bug(what).at(&row.id));
                }
                for (j, one) in numbers.chunks_exact(dim).enumerate() {
                    embeddings.write_slice(one, (i, j, ..)).map_err(failed)?;
                }
            }
            file.flush().map_err(failed)
        };
        if let Err(error) = write() {
            // HDF5 2.2 crashes when it closes a file that it could not write; the process ends.
            std::mem::forget((embeddings, file));
            return Err(error);
        }
        drop(embeddings);
        file.close().map_err(failed)?;
        let synced = File::open(&temporary).and_then(|f| f.sync_all());
        synced.map_err(|e| Error::write(path, &e))?;
        files::publish(&temporary, path)
    })
}

/// Asks before writing whether there is room: HDF5 copes badly with a disk that fills up.
fn refuse_full_disk(path: &Path, rows: &[ExportRow], dim: usize) -> Result<()> {
    const SPARE_BYTES: u64 = 1 << 20;
    let numbers: u64 = rows.iter().map(|r| u64::from(r.rows) * dim as u64).sum();
    let needed = numbers * 4 + rows.len() as u64 * 64 + SPARE_BYTES;
    match files::free_bytes(path.parent().unwrap_or(Path::new("."))) {
        Some(free) if free < needed => {
            let what = format!("the file may take {needed} bytes, only {free} are free");
            Err(Error::launch(what)
                .at(path.display())
                .hint("free some space, or name a file on another disk"))
        }
        _ => Ok(()),
    }
}

fn create_v1(
    path: &Path,
    rows: &[ExportRow],
    dim: usize,
    gzip: u8,
) -> hdf5::Result<(hdf5::File, hdf5::Dataset)> {
    let longest = rows.iter().map(|r| r.rows as usize).max().unwrap_or(0);
    let file = hdf5::FileBuilder::new()
        .with_fcpl(|p| p.obj_track_times(false))
        .with_fapl(|p| p.file_locking(false))
        .create(path)?;
    for (name, value) in [("num_samples", rows.len()), ("embed_dim", dim), ("max_seq_len", longest)]
    {
        file.new_attr::<i64>().create(name)?.write_scalar(&(value as i64))?;
    }
    let keys: Vec<VarLenUnicode> = rows
        .iter()
        .map(|r| r.key().parse().map_err(|e| format!("id {}: {e}", r.id)))
        .collect::<std::result::Result<_, String>>()?;
    let lengths: Vec<i32> = rows.iter().map(|r| r.rows as i32).collect();
    let builder = || file.new_dataset_builder().obj_track_times(false);
    builder().with_data(&keys).create("unique_ids")?;
    builder().with_data(&lengths).create("lengths")?;
    let chunk = (CHUNK_BYTES / (4 * dim.max(1))).clamp(1, longest.max(1));
    let embeddings = builder()
        .empty::<f32>()
        .shape((rows.len(), longest, dim))
        .chunk((1, chunk, dim))
        .chunk_cache(521, 8 * CHUNK_BYTES.max(4 * dim), 1.0)
        .deflate(gzip)
        .create("embeddings")?;
    Ok((file, embeddings))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{scratch, values};
    use super::*;
    use std::fs;

    fn row(id: &str, window: u32, windows: u32, rows: u32) -> ExportRow {
        ExportRow { id: id.to_string(), window, windows, rows }
    }

    #[test]
    fn the_first_layout_comes_back_as_it_was_written() {
        let dir = scratch("v1");
        let path = dir.join("train_embeddings.h5");
        let rows = [row("P1", 0, 1, 300), row("Q", 0, 2, 1), row("Q", 1, 2, 3), row("ż", 0, 1, 2)];
        let dim = 1000;
        let fill = |i: usize, out: &mut Vec<f32>| {
            *out = values(i, rows[i].rows as usize * dim);
            Ok(())
        };
        export_v1(&path, &rows, dim, 1, fill).unwrap();
        let file = UpstreamFile::open(&path).unwrap();
        assert_eq!((file.layout(), file.dim()), (UpstreamLayout::V1, dim));
        assert_eq!(file.ids(), ["P1", "Q", "ż"]);
        let mut out = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            let found = file.find(&row.id, row.window).unwrap().unwrap();
            assert_eq!((found.rows, found.range), (row.rows as usize, None));
            file.read(&found, &mut out).unwrap();
            assert_eq!(out, values(i, row.rows as usize * dim));
        }
        assert_eq!(file.find("Q", 2).unwrap(), None);
        assert_eq!(file.find("Q_window_1", 0).unwrap(), None);
        // 4 padded rows of 300 would be 4.8 MB; the padding is not there.
        assert!(fs::metadata(&path).unwrap().len() < 1_500_000);
        fs::remove_dir_all(dir).unwrap();
    }

    /// What numpy's `S` type becomes: fixed-length ASCII, and chunks across all three axes.
    #[test]
    fn the_first_layout_as_h5py_writes_it() {
        let dir = scratch("v1-h5py");
        let path = dir.join("val_embeddings.h5");
        let file = hdf5::File::create(&path).unwrap();
        let ids: Vec<FixedAscii<11>> = ["A_window_0", "A_window_1", "B_window_x"]
            .map(|s| FixedAscii::from_ascii(s).unwrap())
            .into();
        file.new_dataset_builder().deflate(4).with_data(&ids).create("unique_ids").unwrap();
        file.new_dataset_builder().with_data(&[2i32, 3, 1]).create("lengths").unwrap();
        let set = file
            .new_dataset::<f32>()
            .chunk((2, 2, 2))
            .deflate(9)
            .shape((3, 3, 4))
            .create("embeddings")
            .unwrap();
        set.write_raw(&values(0, 36)).unwrap();
        drop(set);
        file.close().unwrap();
        let file = UpstreamFile::open(&path).unwrap();
        assert_eq!(file.ids(), ["A", "B_window_x"]);
        let mut out = Vec::new();
        file.read(&file.find("A", 1).unwrap().unwrap(), &mut out).unwrap();
        assert_eq!(out, values(0, 36)[12..24]);
        file.read(&file.find("B_window_x", 0).unwrap().unwrap(), &mut out).unwrap();
        assert_eq!(out, values(0, 36)[24..28]);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_second_layout() {
        let dir = scratch("v2");
        let path = dir.join("test_embeddings.h5");
        let file = hdf5::File::create(&path).unwrap();
        for (k, (id, ranges)) in [("A", vec![0i32, 3]), ("B", vec![0, 4, 2, 5])].iter().enumerate()
        {
            let group = file.create_group(id).unwrap();
            let windows = ranges.len() / 2;
            let set = group
                .new_dataset::<f32>()
                .chunk((1, 4, 2))
                .deflate(9)
                .shape((windows.., 4, 2))
                .create("embedding_seq")
                .unwrap();
            set.write_raw(&values(k, windows * 8)).unwrap();
            let set = group.new_dataset::<i32>().shape((windows, 2)).create("range_seq").unwrap();
            set.write_raw(ranges).unwrap();
        }
        file.close().unwrap();
        let file = UpstreamFile::open(&path).unwrap();
        assert_eq!((file.layout(), file.dim()), (UpstreamLayout::V2, 2));
        assert_eq!(file.ids(), ["A", "B"]);
        let found = file.find("B", 1).unwrap().unwrap();
        assert_eq!((found.rows, found.range), (3, Some([2, 5])));
        let mut out = Vec::new();
        file.read(&found, &mut out).unwrap();
        assert_eq!(out, values(1, 16)[8..14]);
        assert_eq!(file.find("B", 2).unwrap(), None);
        assert_eq!(file.find("C", 0).unwrap(), None);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_is_no_such_file_is_refused() {
        let dir = scratch("upstream-bad");
        let path = dir.join("train_embeddings.h5");
        assert_eq!(UpstreamFile::open(&path).unwrap_err().code(), 3);
        fs::write(&path, "version https://git-lfs.github.com/spec/v1\n").unwrap();
        assert!(UpstreamFile::open(&path).unwrap_err().to_string().contains("git lfs pull"));
        fs::write(&path, "no hdf5").unwrap();
        assert_eq!(UpstreamFile::open(&path).unwrap_err().code(), 5);
        hdf5::File::create(&path).unwrap().close().unwrap();
        assert!(UpstreamFile::open(&path).unwrap_err().to_string().contains("the file is empty"));
        let rows = [row("A", 0, 1, 2)];
        let stop = |_, _: &mut Vec<f32>| Err(Error::damaged("stop"));
        assert_eq!(export_v1(&dir.join("x.h5"), &rows, 2, 1, stop).unwrap_err().code(), 5);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "a failed export leaves nothing");
        let nowhere = dir.join("nowhere").join("x.h5");
        assert_eq!(export_v1(&nowhere, &rows, 2, 1, |_, _| Ok(())).unwrap_err().code(), 4);
        fs::remove_dir_all(dir).unwrap();
    }
}
