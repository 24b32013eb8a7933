//! From the user's files to lists of samples: readers, tokens, splits and batch plans.
//!
//! The way through the room, each step knowing only the ones before it:
//!
//! * [`fasta`] and [`table`] (with [`labels`]) read records and keep file and line of each;
//! * [`esm_alphabet`] and [`ptm_vocab`] turn their text into token ids, crop, and cut windows;
//! * [`tokenizer`] does the same for text, as RoBERTa and BERT have it;
//! * [`split`] says which sample is for training, validation and test;
//! * [`plan`] puts samples of known lengths into micro-batches and steps, and [`plan_embed`] puts
//!   sequences into batches and shards. Both are pure functions and know no number of ranks;
//! * [`masks`] says which positions are hidden in which copy of a sequence, [`token_masks`] which
//!   tokens of a text;
//! * [`loader`] prepares batches ahead of their use, on threads of its own.

pub mod esm_alphabet;
pub mod fasta;
pub mod labels;
pub mod loader;
pub mod masks;
pub mod plan;
pub mod plan_embed;
pub mod ptm_vocab;
pub mod split;
pub mod table;
pub mod token_masks;
pub mod tokenizer;

use crate::error::{Error, Result};
use crate::files;
use std::io::{self, BufRead};
use std::path::Path;

/// A file of the user's that opened but could not be read to its end, be it for a broken gzip.
pub fn read_failed(path: &Path, err: &io::Error) -> Error {
    match err.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
            Error::data(format!("the compressed file is cut short or damaged ({err})"))
                .at(path.display())
                .hint("`gzip -t` tests it; copy or download it again")
        }
        _ => Error::read(path, err),
    }
}

/// Whether a file's name says FASTA, or its text (behind white space and a byte-order mark) starts
/// as one does.
pub fn is_fasta(path: &Path) -> Result<bool> {
    let name = path.to_string_lossy().to_ascii_lowercase();
    let plain = name.trim_end_matches(".gz");
    if [".fasta", ".fa", ".faa", ".fas"].iter().any(|end| plain.ends_with(end)) {
        return Ok(true);
    }
    let mut reader = files::open_text(path)?;
    let head = reader.fill_buf().map_err(|e| read_failed(path, &e))?;
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    Ok(head.trim_ascii_start().starts_with(b">"))
}
