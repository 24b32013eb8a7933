//! The 33 tokens of ESM-2, sequence hashes, and what to do with sequences longer than ESM takes.
//!
//! The ids are those of `facebookresearch/esm` (`Alphabet.from_architecture("ESM-1b")`) and of
//! `transformers`' `EsmTokenizer`: four specials, 25 letters, `.`, `-`, `<null_1>`, `<mask>`.

use crate::config::OverLength;
use crate::error::{Error, Result};
use xxhash_rust::xxh3::xxh3_64;

/// The tokens in the order of their ids.
pub const TOKENS: [&str; 33] = [
    "<cls>", "<pad>", "<eos>", "<unk>", "L", "A", "G", "V", "S", "E", "R", "T", "I", "D", "P", "K",
    "Q", "N", "F", "Y", "M", "H", "W", "C", "X", "B", "U", "Z", "O", ".", "-", "<null_1>",
    "<mask>",
];

/// Stands before every sequence.
pub const CLS: u8 = 0;
/// Fills a batch up to its width.
pub const PAD: u8 = 1;
/// Stands after every sequence.
pub const EOS: u8 = 2;
/// Something that is no token.
pub const UNK: u8 = 3;
/// A position that ESM must not see.
pub const MASK: u8 = 32;

/// The characters a sequence may consist of, in the order of their ids (4 to 30).
pub const LETTERS: &[u8; 27] = b"LAGVSERTIDPKQNFYMHWCXBUZO.-";

/// The id of `LETTERS[0]`.
const FIRST_LETTER: u8 = 4;

const NONE: u8 = u8::MAX;

/// Byte to id, `NONE` where the byte is no letter.
const IDS: [u8; 256] = {
    let mut ids = [NONE; 256];
    let mut i = 0;
    while i < LETTERS.len() {
        ids[LETTERS[i] as usize] = FIRST_LETTER + i as u8;
        i += 1;
    }
    ids
};

/// The id of an upper-case letter (or `.` or `-`); none for anything else.
pub fn id(letter: u8) -> Option<u8> {
    let id = IDS[letter as usize];
    (id != NONE).then_some(id)
}

/// The ids of a sequence, without `<cls>` and `<eos>`; the first character that has none is a data
/// error that names it and its position, counted from 1.
pub fn encode(sequence: &str) -> Result<Vec<u8>> {
    let ids = sequence.bytes().map(id).collect::<Option<Vec<u8>>>();
    ids.ok_or_else(|| {
        let bad = sequence.chars().position(|c| !c.is_ascii() || id(c as u8).is_none());
        let position = bad.expect("some character had no id");
        let c = sequence.chars().nth(position).expect("the position was just found");
        bad_letter(c, position + 1)
    })
}

/// The error for a character that is no residue, at a position counted from 1.
pub fn bad_letter(c: char, position: usize) -> Error {
    let error = Error::data(format!("residue {position} is {c:?}, not in the ESM-2 alphabet"));
    error.hint("residues are the letters ABCDEFGHIKLMNOPQRSTUVWXYZ (X for an unknown one), . or -")
}

/// The text of ids, specials spelt out. Ids above 32 are a bug of the caller.
pub fn decode(ids: &[u8]) -> String {
    ids.iter().map(|id| TOKENS[usize::from(*id)]).collect()
}

/// The name of a sequence's content: xxh3_64 over its ids without `<cls>` and `<eos>`.
pub fn sequence_hash(ids: &[u8]) -> u64 {
    xxh3_64(ids)
}

/// Turns the lines of one raw sequence into ids: lower case is raised, white space and one `*` at
/// the end are dropped.
#[derive(Default)]
pub struct Cleaner {
    /// The ids so far, without `<cls>` and `<eos>`.
    pub ids: Vec<u8>,
    /// Whether the `*` has been seen.
    pub star: bool,
    /// Whether a letter was raised.
    pub lower: bool,
}

impl Cleaner {
    /// Makes ready for another sequence.
    pub fn clear(&mut self) {
        self.ids.clear();
        (self.star, self.lower) = (false, false);
    }

    /// Adds text; the error is the offset of the first byte that cannot stand there.
    pub fn push(&mut self, text: &[u8]) -> std::result::Result<(), usize> {
        for (at, byte) in text.iter().enumerate() {
            let upper = byte.to_ascii_uppercase();
            match id(upper) {
                Some(id) if !self.star => {
                    self.lower |= upper != *byte;
                    self.ids.push(id);
                }
                None if byte.is_ascii_whitespace() => {}
                None if *byte == b'*' && !self.star => self.star = true,
                _ => return Err(at),
            }
        }
        Ok(())
    }
}

/// The parts of a sequence of `n` residues to embed, `(start, end)` each, none longer than `max`.
/// Too long under [`OverLength::Error`] is a data error; the caller adds the id.
pub fn parts(policy: OverLength, n: usize, max: usize) -> Result<Vec<(usize, usize)>> {
    match policy {
        _ if n <= max => Ok(vec![(0, n)]),
        OverLength::Crop => Ok(vec![(0, max)]),
        OverLength::Windows => Ok(windows(n, max)),
        OverLength::Error => {
            Err(Error::data(format!("the sequence has {n} residues, esm.max_length is {max}"))
                .hint("raise esm.max_length, or set esm.over_length to crop or windows"))
        }
    }
}

/// The seed's overlapping windows `(start, end)` over `n` residues, none longer than `max`: one up
/// to `max`; then windows that share about 30 %; from ten times `max` on, windows that share
/// nothing (zz9tf/ptm-mlm, embedding generation).
pub fn windows(n: usize, max: usize) -> Vec<(usize, usize)> {
    assert!(max > 0, "a window needs room for a residue");
    if n <= max {
        return vec![(0, n)];
    }
    if n >= 10 * max {
        return (0..n.div_ceil(max)).map(|i| (i * max, ((i + 1) * max).min(n))).collect();
    }
    let count = ((n as f64 / (0.7 * max as f64)).ceil() as usize).max(2);
    let step = (n - max) as f64 / (count - 1) as f64;
    let mut windows: Vec<_> = (0..count)
        .map(|i| (i as f64 * step) as usize)
        .map(|start| (start, (start + max).min(n)))
        .collect();
    windows[count - 1] = (n - max, n);
    windows
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_are_those_of_esm() {
        let expected = [20, 15, 11, 5, 10];
        assert_eq!(encode("MKTAR").unwrap(), expected);
        assert_eq!(
            decode(&[CLS, 20, 29, 30, MASK, EOS, PAD, UNK]),
            "<cls>M.-<mask><eos><pad><unk>"
        );
        for (i, letter) in LETTERS.iter().enumerate() {
            assert_eq!(id(*letter), Some(4 + i as u8));
            assert_eq!(TOKENS[4 + i].as_bytes(), [*letter]);
        }
        assert_eq!((0..=255).filter_map(id).count(), LETTERS.len());
        assert_eq!(TOKENS[usize::from(MASK)], "<mask>");
    }

    #[test]
    fn a_wrong_letter_is_named() {
        let error = encode("MKÄJ").unwrap_err();
        assert_eq!(error.code(), 3);
        assert!(error.to_string().contains("residue 3 is 'Ä'"), "{error}");
        assert!(encode("mk").unwrap_err().to_string().contains("residue 1 is 'm'"));
    }

    /// Computed with the seed's Python expression.
    #[test]
    fn windows_of_the_seed() {
        assert_eq!(windows(512, 512), [(0, 512)]);
        assert_eq!(windows(513, 512), [(0, 512), (1, 513)]);
        assert_eq!(windows(1000, 512), [(0, 512), (244, 756), (488, 1000)]);
        let starts: Vec<usize> = windows(1800, 512).iter().map(|w| w.0).collect();
        assert_eq!(starts, [0, 257, 515, 772, 1030, 1288]);
        assert_eq!(windows(25, 2).len(), 13);
        assert_eq!(windows(25, 2)[12], (24, 25));
    }

    #[test]
    fn over_length_policies() {
        assert_eq!(parts(OverLength::Crop, 10, 4).unwrap(), [(0, 4)]);
        assert_eq!(parts(OverLength::Error, 4, 4).unwrap(), [(0, 4)]);
        assert_eq!(parts(OverLength::Windows, 6, 4).unwrap(), windows(6, 4));
        assert_eq!(parts(OverLength::Error, 5, 4).unwrap_err().code(), 3);
    }

    proptest! {
        #[test]
        fn windows_cover_everything(n in 1usize..20_000, max in 1usize..1500) {
            let windows = windows(n, max);
            prop_assert!(n > max || windows == [(0, n)]);
            let mut covered = 0;
            for (start, end) in windows {
                prop_assert!(start <= covered && start < end && end - start <= max);
                prop_assert!(end >= covered);
                covered = end;
            }
            prop_assert_eq!(covered, n);
        }

        #[test]
        fn decoding_undoes_encoding(text in "[LAGVSERTIDPKQNFYMHWCXBUZO.-]{0,200}") {
            let ids = encode(&text).unwrap();
            prop_assert_eq!(decode(&ids), text);
            prop_assert_ne!(sequence_hash(&ids), sequence_hash(&[&ids[..], &[4]].concat()));
        }
    }
}
