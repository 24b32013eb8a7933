//! Cuts a text where no token can reach across, so that the ids of a piece are found only once.
//!
//! Alloy texts repeat their words; looking a word up takes a hundredth of encoding it. A text is
//! first cut before each space that follows a printable ASCII character: the pattern of byte-level
//! BPE (GPT-2's) begins a word there, since none of its alternatives goes on over a space unless
//! white space came before, and BERT cuts at every space. What is then plain ASCII between two such
//! places is cut into words as the two do it; anything else stays whole. So the pieces' ids, one
//! after another, are the text's, as long as no added token stands in the text: these are looked
//! for before anything is cut, and may themselves hold spaces.

use super::family::Family;
use crate::error::Result;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use tokenizers::tokenizer::Tokenizer;

/// So many pieces are kept, and none longer than this many bytes: 10 to 50 MB.
const KEPT: usize = 1 << 17;
const LONGEST: usize = 64;

/// The pattern's first alternatives.
const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];

/// Where a text may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cuts {
    /// Byte-level BPE: a space and letters, digits, or other characters.
    Bytes,
    /// The same where a text's beginning is given a space: a piece within one would be, too, so
    /// that every piece but the first must begin with its own.
    Spaces,
    /// BERT: letters and digits, or one other character.
    Bert,
}

impl Cuts {
    /// The parts of a text.
    pub(super) fn pieces(self, text: &str) -> impl Iterator<Item = &str> {
        let (mut rest, mut plain) = (text, "");
        std::iter::from_fn(move || {
            if plain.is_empty() {
                if rest.is_empty() {
                    return None;
                }
                let bytes = rest.as_bytes();
                let cut = |i: &usize| bytes[*i] == b' ' && bytes[i - 1].is_ascii_graphic();
                let end = (1..bytes.len()).find(cut).unwrap_or(bytes.len());
                let (piece, after) = rest.split_at(end);
                rest = after;
                let letters = piece.strip_prefix(' ').unwrap_or(piece).as_bytes();
                if self == Cuts::Spaces || !letters.iter().all(u8::is_ascii_graphic) {
                    return Some(piece);
                }
                plain = piece;
            }
            let (word, after) = plain.split_at(self.word(plain));
            plain = after;
            Some(word)
        })
    }

    /// The length of the first word of printable ASCII, which may begin with one space.
    fn word(self, plain: &str) -> usize {
        if self == Cuts::Bytes && plain.starts_with('\'') {
            let mut short = CONTRACTIONS.into_iter();
            if let Some(short) = short.find(|short| plain.starts_with(short)) {
                return short.len();
            }
        }
        let kind = |byte: &u8| match (self, byte) {
            (_, b'a'..=b'z' | b'A'..=b'Z') => 0,
            (Cuts::Bert, b'0'..=b'9') => 0,
            (_, b'0'..=b'9') => 1,
            _ => 2,
        };
        let space = usize::from(plain.starts_with(' '));
        let mut letters = plain.as_bytes()[space..].iter().map(kind);
        let more = match letters.next() {
            None => 0,
            Some(2) if self == Cuts::Bert => 1,
            Some(first) => 1 + letters.take_while(|kind| *kind == first).count(),
        };
        space + more
    }
}

/// The ids of pieces that were met before. Shared by all threads; what it knows never changes what
/// it answers.
pub(super) struct Memory {
    cuts: Cuts,
    known: RwLock<HashMap<Box<str>, Box<[u32]>>>,
    /// Whether an added token begins with this byte.
    begins_added: [bool; 256],
}

impl Memory {
    /// None for a tokenizer whose texts must not be cut.
    pub(super) fn new(family: Family, json: &Value, tokenizer: &Tokenizer) -> Option<Memory> {
        let is = |part: &str, kind: &str| json[part]["type"] == kind;
        let pre = &json["pre_tokenizer"];
        let cuts = match family {
            Family::Roberta if json["normalizer"].is_null() && is("pre_tokenizer", "ByteLevel") => {
                match (&pre["use_regex"], &pre["add_prefix_space"]) {
                    (Value::Bool(false), _) => return None,
                    (_, Value::Bool(false)) => Cuts::Bytes,
                    _ => Cuts::Spaces,
                }
            }
            Family::Bert if is("pre_tokenizer", "BertPreTokenizer") => Cuts::Bert,
            _ => return None,
        };
        let mut begins_added = [false; 256];
        for token in tokenizer.get_added_tokens_decoder().values() {
            // Sought in the normalised text, where any letter may have become its first one.
            if token.normalized {
                return None;
            }
            begins_added[usize::from(*token.content.as_bytes().first()?)] = true;
        }
        Some(Memory { cuts, known: RwLock::default(), begins_added })
    }

    /// Whether the text may be cut: surely no added token is in it.
    pub(super) fn may_cut(&self, text: &str) -> bool {
        !text.is_empty() && !text.bytes().any(|byte| self.begins_added[usize::from(byte)])
    }

    /// The ids of a text that may be cut; `encode` gives those of a piece.
    pub(super) fn ids(
        &self,
        text: &str,
        encode: impl Fn(&str) -> Result<Vec<u32>>,
    ) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 2);
        let mut fresh: Vec<(&str, Vec<u32>)> = Vec::new();
        // A thread that panics ends the process; what it held is whole.
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        for piece in self.cuts.pieces(text) {
            if let Some(own) = known.get(piece) {
                ids.extend_from_slice(own);
            } else {
                let own = encode(piece)?;
                ids.extend_from_slice(&own);
                if piece.len() <= LONGEST {
                    fresh.push((piece, own));
                }
            }
        }
        let room = KEPT.saturating_sub(known.len());
        drop(known);
        if room > 0 && !fresh.is_empty() {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            let fresh = fresh.into_iter().take(room);
            known.extend(fresh.map(|(piece, ids)| (piece.into(), ids.into_boxed_slice())));
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{TextTokenizer, TokenizerKind};
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    #[test]
    fn cuts() {
        let cut = |cuts: Cuts, text| cuts.pieces(text).collect::<Vec<_>>();
        let text = "The alloy  is\n hot. ";
        assert_eq!(cut(Cuts::Spaces, text), ["The", " alloy", "  is\n hot.", " "]);
        assert_eq!(cut(Cuts::Bytes, text), ["The", " alloy", "  is\n hot.", " "]);
        let text = "it's Al0.25 '12 °C, \"'s\" -1e-5%";
        let words = ["it", "'s", " Al", "0", ".", "25", " '", "12", " °C,", " \"'", "s", "\""];
        assert_eq!(cut(Cuts::Bytes, text), [&words[..], &[" -", "1", "e", "-", "5", "%"]].concat());
        let words = ["it", "'", "s", " Al0", ".", "25", " '", "12", " °C,", " \"", "'", "s", "\""];
        assert_eq!(cut(Cuts::Bert, text), [&words[..], &[" -", "1e", "-", "5", "%"]].concat());
        for cuts in [Cuts::Bytes, Cuts::Spaces, Cuts::Bert] {
            assert!(cut(cuts, "").is_empty());
            assert_eq!(cut(cuts, " "), [" "]);
        }
    }

    static TRAINED: LazyLock<Vec<TextTokenizer>> = LazyLock::new(|| {
        let corpus = ["it's 25.5 °C, isn't it? İstanbul ΣΑΣ", "Al0.5CoCr it's 25.5 GPa  and\tmore"];
        let kinds = [
            TokenizerKind::Bpe,
            TokenizerKind::WordPiece { lowercase: true },
            TokenizerKind::WordPiece { lowercase: false },
        ];
        let train = |kind| {
            let corpus = corpus.iter().cycle().take(20).map(|text| Ok(text.to_string()));
            TextTokenizer::train(kind, 400, corpus).unwrap()
        };
        kinds.into_iter().map(train).collect()
    });

    fn cutting_changes_nothing(text: &str) {
        for tokenizer in TRAINED.iter() {
            let whole = tokenizer.tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec();
            for time in ["first", "second"] {
                let found = tokenizer.encode(text, usize::MAX).unwrap();
                let own = &found.ids[1..found.ids.len() - 1];
                assert_eq!(own, whole, "{time} time, {text:?}");
            }
        }
    }

    #[test]
    fn added_tokens_are_never_cut() {
        for text in ["a <mask> b", "a <mask> <s>x [MASK] y", "[SEP] a", "a [ MASK] <", "<mas k>"] {
            cutting_changes_nothing(text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn pieces_give_the_ids_of_the_whole(
            parts in prop::collection::vec(prop_oneof![
                4 => "[a-zA-Z0-9.,'(){}<\\[°µ]{1,4}",
                3 => Just(" ".to_string()),
                2 => "[ \\t\\n\\r\u{a0}\u{2009}\u{3000}\u{85}\u{200b}\\x00\u{feff}]{1,3}",
                1 => "('s|'t|'re|'ll|'LL|'d)",
                1 => "[\u{300}\u{301}éÅΣσςßİ钢😀\u{1f3fd}\u{200d}½²٣]{1,3}",
                1 => any::<char>().prop_map(String::from),
            ], 0..25),
        ) {
            cutting_changes_nothing(&parts.concat());
        }
    }
}
