//! What is to be embedded. Sequences are asked for one at a time, so a FASTA of ten million records
//! costs an index and no text.

use crate::config::OverLength;
use crate::data::esm_alphabet::{parts, sequence_hash};
use crate::data::fasta::FastaIndex;
use crate::error::Result;
use crate::progress;
use std::path::Path;

/// One window of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// First residue of the window and one past its last, within the whole sequence.
    pub range: [u32; 2],
    /// xxh3_64 over the window's ESM ids before random masking.
    pub sequence_hash: u64,
}

impl Item {
    /// Residues in the window.
    pub fn residues(&self) -> u32 {
        self.range[1] - self.range[0]
    }
}

/// All windows of an input set, by number.
pub trait Sequences: Sync {
    /// How many there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number `i`.
    fn item(&self, i: usize) -> Item;

    /// The id of the sequence that window `i` is of.
    fn id(&self, i: usize) -> Result<String>;

    /// The ESM ids of window `i`, without specials, before random masking.
    fn esm_ids(&self, i: usize) -> Result<Vec<u8>>;
}

/// The windows of a FASTA.
pub struct FastaSequences {
    index: FastaIndex,
    /// Where a sequence is cropped or cut: (record, start, end, hash); else records are windows.
    windows: Option<Vec<(u32, u32, u32, u64)>>,
}

impl FastaSequences {
    /// Indexes a FASTA, plain or gzip; `scratch` takes an unpacked copy of a gzip for as long as it
    /// is used. Sequences beyond `max_length` residues are treated as `over_length` says.
    pub fn open(
        path: &Path,
        scratch: &Path,
        max_length: usize,
        over_length: OverLength,
    ) -> Result<FastaSequences> {
        let index = FastaIndex::open(path, scratch)?;
        if index.lengths().all(|n| n as usize <= max_length) {
            return Ok(FastaSequences { index, windows: None });
        }
        let mut windows = Vec::with_capacity(index.len());
        for record in 0..index.len() {
            progress::tick()?;
            let n = index.residues(record) as usize;
            let cut = parts(over_length, n, max_length).map_err(|e| e.at(index.place(record)))?;
            let whole =
                if cut.len() == 1 && n <= max_length { None } else { Some(index.esm_ids(record)?) };
            for (start, end) in cut {
                let hash = match &whole {
                    Some(ids) => sequence_hash(&ids[start..end]),
                    None => index.sequence_hash(record),
                };
                windows.push((record as u32, start as u32, end as u32, hash));
            }
        }
        Ok(FastaSequences { index, windows: Some(windows) })
    }

    /// The index, for its counts.
    pub fn index(&self) -> &FastaIndex {
        &self.index
    }

    fn record(&self, i: usize) -> usize {
        self.windows.as_ref().map_or(i, |w| w[i].0 as usize)
    }
}

impl Sequences for FastaSequences {
    fn len(&self) -> usize {
        self.windows.as_ref().map_or(self.index.len(), Vec::len)
    }

    fn item(&self, i: usize) -> Item {
        match &self.windows {
            Some(windows) => {
                let (_, start, end, sequence_hash) = windows[i];
                Item { range: [start, end], sequence_hash }
            }
            None => Item {
                range: [0, self.index.residues(i)],
                sequence_hash: self.index.sequence_hash(i),
            },
        }
    }

    fn id(&self, i: usize) -> Result<String> {
        self.index.id(self.record(i))
    }

    fn esm_ids(&self, i: usize) -> Result<Vec<u8>> {
        let mut ids = self.index.esm_ids(self.record(i))?;
        let item = self.item(i);
        ids.truncate(item.range[1] as usize);
        ids.drain(..item.range[0] as usize);
        Ok(ids)
    }
}
