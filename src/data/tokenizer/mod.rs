//! Text tokenizers: byte-level BPE as RoBERTa has it, WordPiece as BERT has it, and whatever else a
//! `tokenizer.json` describes.
//!
//! The ids are those of transformers' `RobertaTokenizer` and `BertTokenizer` with `truncation=True`
//! (`tests/golden/tokenizers`). [`open`](TextTokenizer::open) takes a Hugging Face directory,
//! [`train`](TextTokenizer::train) a corpus, and [`files`](TextTokenizer::files) is what makes a
//! directory complete for `AutoTokenizer`.
//!
//! A special token that stands in a text (`<mask>`, `[SEP]`) becomes that token's id, as in
//! transformers, whose `split_special_tokens` is off unless `tokenizer_config.json` turns it on.
//!
//! Nothing here starts a thread: texts are encoded one at a time by whoever calls.

mod family;
mod form;
mod learn;
mod open;
mod pieces;
mod train;
mod write;

pub use train::TokenizerKind;

use crate::error::{Error, Result};
use family::{Family, HINT, NAMES, Named};
use open::Source;
use pieces::Memory;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use tokenizers::tokenizer::{Encoding, Token, Tokenizer};

/// A text as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// `<s>` (`[CLS]`), the tokens that fit, `</s>` (`[SEP]`).
    pub ids: Vec<u32>,
    /// How many ids the whole text has, those two included.
    pub whole: usize,
    /// Whether truncation cut some off.
    pub cut: bool,
}

/// The ids with a part to play. None where the tokenizer has no such token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Specials {
    /// Fills a batch up to its width.
    pub pad: Option<u32>,
    /// Stands first: `<s>` or `[CLS]`.
    pub cls: Option<u32>,
    /// Stands last: `</s>` or `[SEP]`.
    pub sep: Option<u32>,
    /// A position to be predicted.
    pub mask: Option<u32>,
    /// Something that is no token.
    pub unk: Option<u32>,
    all: BTreeSet<u32>,
}

impl Specials {
    /// Whether the id is a special token: one of the above, or any other declared special.
    pub fn is_special(&self, id: u32) -> bool {
        self.all.contains(&id)
    }
}

/// A tokenizer, shared freely among threads.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    family: Family,
    named: Named,
    /// What `tokenizer_config.json` says, ours or the user's.
    config: Map<String, Value>,
    special: Specials,
    /// The ids before and after a text's own.
    around: (Vec<u32>, Vec<u32>),
    keep_end: bool,
    memory: Option<Memory>,
    vocab_size: usize,
    origin: String,
}

impl TextTokenizer {
    /// Reads a Hugging Face directory: `tokenizer.json`, or else `vocab.json` and `merges.txt`
    /// (RoBERTa), or else `vocab.txt` (BERT), each with `tokenizer_config.json` and
    /// `special_tokens_map.json` where they are. As in transformers, `tokenizer_config.json`
    /// overrules `tokenizer.json`, even by silence: where it does not say `do_lower_case` a BERT
    /// lower-cases, where it does not say `add_prefix_space` a RoBERTa adds none. Without that file
    /// `tokenizer.json` counts as it is. Errors are of kind damaged, with file and line.
    pub fn open(dir: &Path) -> Result<TextTokenizer> {
        Self::new(open::read(dir)?)
    }

    fn new(source: Source) -> Result<TextTokenizer> {
        // Threads belong to the ranks, and ours call nothing that would use these.
        tokenizers::utils::parallelism::set_parallelism(false);
        let Source { json, config, family, named, keep_end, split_special, origin } = source;
        let mut tokenizer = form::build(&json, &origin)?;
        tokenizer.set_encode_special_tokens(split_special);
        form::check_added(&tokenizer, &json).map_err(|e| e.at(&origin))?;
        let around = around(&tokenizer).map_err(|e| e.at(&origin))?;
        let id = |name: &str| named.content(name).and_then(|token| tokenizer.token_to_id(token));
        let mut special = Specials {
            pad: id("pad_token"),
            cls: id("cls_token"),
            sep: id("sep_token"),
            mask: id("mask_token"),
            unk: id("unk_token"),
            all: BTreeSet::new(),
        };
        let declared = tokenizer.get_added_tokens_decoder();
        special.all =
            declared.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        special.all.extend(NAMES.iter().filter_map(|name| id(name)));
        let largest = tokenizer.get_vocab(true).into_values().max();
        let vocab_size = largest.map_or(0, |id| id as usize + 1);
        if vocab_size == 0 {
            return Err(Error::damaged("the vocabulary is empty").at(origin).hint(HINT));
        }
        let memory = Memory::new(family, &json, &tokenizer);
        Ok(TextTokenizer {
            tokenizer,
            family,
            named,
            config,
            special,
            around,
            keep_end,
            memory,
            vocab_size,
            origin,
        })
    }

    /// The ids of a text between `<s>` and `</s>` (`[CLS]` and `[SEP]`), at most `max_length` of
    /// them with those two: the text's end is cut off (its beginning where `truncation_side` is
    /// `left`). A `max_length` without room for one token is a usage error.
    pub fn encode(&self, text: &str, max_length: usize) -> Result<Encoded> {
        let (before, after) = &self.around;
        let Some(room) = max_length.checked_sub(before.len() + after.len()).filter(|n| *n > 0)
        else {
            let n = before.len() + after.len();
            let what = format!("{max_length} leaves no room for text beside {n} special tokens");
            return Err(Error::usage(what).hint(format!("give at least {}", n + 1)));
        };
        let own = match &self.memory {
            Some(memory) if memory.may_cut(text) => {
                memory.ids(text, |piece| self.own_ids(piece))?
            }
            _ => self.own_ids(text)?,
        };
        let kept = match own.len().checked_sub(room) {
            None => &own[..],
            Some(over) if self.keep_end => &own[over..],
            Some(_) => &own[..room],
        };
        let mut ids = Vec::with_capacity(before.len() + kept.len() + after.len());
        ids.extend_from_slice(before);
        ids.extend_from_slice(kept);
        ids.extend_from_slice(after);
        let whole = before.len() + own.len() + after.len();
        Ok(Encoded { cut: ids.len() < whole, ids, whole })
    }

    /// A text's ids, without those around it.
    fn own_ids(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|e| {
            Error::damaged(format!("cannot encode a text: {e}")).at(&self.origin).hint(HINT)
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens as the vocabulary spells them (`Ġ` is a space before, `##` a word going on). An
    /// id that is none is shown as `#id`.
    pub fn tokens(&self, ids: &[u32]) -> Vec<String> {
        ids.iter()
            .map(|id| self.tokenizer.id_to_token(*id).unwrap_or_else(|| format!("#{id}")))
            .collect()
    }

    /// The text of ids, special tokens included. Where the tokenizer's own decoder fails, the
    /// tokens with spaces between.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, false).unwrap_or_else(|_| self.tokens(ids).join(" "))
    }

    /// The largest id plus one: how many rows an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The ids with a part to play.
    pub fn special(&self) -> &Specials {
        &self.special
    }

    /// Where it came from: a file, or the training.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// One line for people: kind, size and special tokens.
    pub fn describe(&self) -> String {
        let mut line = format!("{}, {} ids", self.family.words(), self.vocab_size);
        let named = [
            ("pad_token", self.special.pad),
            ("cls_token", self.special.cls),
            ("sep_token", self.special.sep),
            ("mask_token", self.special.mask),
            ("unk_token", self.special.unk),
        ];
        for (name, id) in named {
            if let (Some(token), Some(id)) = (self.named.content(name), id) {
                // Writing to a String cannot fail.
                let _ = write!(line, ", {token} {id}");
            }
        }
        line
    }

    /// Refuses a tokenizer that is not the model's: ids beyond the embedding, another padding id,
    /// no `<mask>`, or an embedding of which more than half the rows (and more than 1,024) have
    /// no token. Errors are of kind usage; the caller adds the place.
    pub fn fits(&self, vocab_size: i64, pad_token_id: i64) -> Result<()> {
        let n = self.vocab_size as i64;
        let refuse = |what: String, hint: String| {
            Err(Error::usage(format!(
                "the tokenizer ({}) does not fit the model: {what}",
                self.origin
            ))
            .hint(hint))
        };
        let retrain =
            "use the tokenizer files that belong to the model's weights; for a fresh model";
        if n > vocab_size {
            let what =
                format!("its ids go up to {}, the model's vocab_size is {vocab_size}", n - 1);
            return refuse(what, format!("{retrain} set vocab_size to {n}"));
        }
        match self.special.pad.map(i64::from) {
            Some(pad) if pad == pad_token_id => {}
            Some(pad) => {
                let what =
                    format!("its padding is id {pad}, the model's pad_token_id {pad_token_id}");
                return refuse(what, format!("{retrain} set pad_token_id to {pad}"));
            }
            None => {
                let what = "it has no padding token".to_string();
                return refuse(what, "name one as pad_token in tokenizer_config.json".to_string());
            }
        }
        if self.special.mask.is_none() {
            let what = "it has no mask token".to_string();
            return refuse(what, "name one as mask_token in tokenizer_config.json".to_string());
        }
        if vocab_size > 2 * n && vocab_size - n > 1024 {
            let what = format!("only {n} of the model's {vocab_size} embedding rows have a token");
            return refuse(what, format!("{retrain} set vocab_size to {n}"));
        }
        Ok(())
    }
}

/// The ids that the tokenizer puts before and after a text. One that does anything else to a
/// single text is refused.
fn around(tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
    // No vocabulary has this id.
    const OWN: u32 = u32::MAX;
    let token = |at: usize| Token::new(OWN, "a".to_string(), (at, at + 1));
    let own = Encoding::from_tokens(vec![token(0), token(1)], 0);
    let failed = |e| Error::damaged(format!("its post-processor fails: {e}")).hint(HINT);
    let ids = tokenizer.post_process(own, None, true).map_err(failed)?.get_ids().to_vec();
    let first = ids.iter().position(|id| *id == OWN).unwrap_or(ids.len());
    match ids.get(first..first + 2) {
        Some([OWN, OWN]) if ids.iter().filter(|id| **id == OWN).count() == 2 => {
            Ok((ids[..first].to_vec(), ids[first + 2..].to_vec()))
        }
        _ => Err(Error::damaged("its post-processor does more than put tokens around a text")
            .hint("use the tokenizer of a RoBERTa, BERT or another encoder of single texts")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained(kind: TokenizerKind, size: usize) -> TextTokenizer {
        let corpus = ["The alloy Fe20Ni80 is hard.", "The alloy is as-cast; it isn't hard."];
        let corpus = corpus.iter().cycle().take(6).map(|text| Ok(text.to_string()));
        TextTokenizer::train(kind, size, corpus).unwrap()
    }

    #[test]
    fn truncation_keeps_the_ends_and_is_told() {
        let tokenizer = trained(TokenizerKind::Bpe, 300);
        let text = "The alloy is hard.";
        let whole = tokenizer.encode(text, 512).unwrap();
        assert!(!whole.cut && whole.whole == whole.ids.len());
        assert_eq!(tokenizer.decode(&whole.ids), format!("<s>{text}</s>"));
        let n = whole.ids.len();
        assert!(!tokenizer.encode(text, n).unwrap().cut);
        let cut = tokenizer.encode(text, n - 1).unwrap();
        assert_eq!((cut.cut, cut.whole, cut.ids.len()), (true, n, n - 1));
        assert_eq!(cut.ids[..n - 2], whole.ids[..n - 2]);
        assert_eq!(cut.ids.last(), whole.ids.last());
        assert_eq!(tokenizer.encode("", 3).unwrap().ids, [0, 2]);
        let error = tokenizer.encode("", 2).unwrap_err();
        assert_eq!(error.code(), 2);
        assert!(error.to_string().contains("at least 3"), "{error}");
        assert_eq!(tokenizer.tokens(&[4, 999_999]), ["<mask>", "#999999"]);
    }

    #[test]
    fn a_tokenizer_that_is_not_the_model_s_is_refused() {
        let tokenizer = trained(TokenizerKind::Bpe, 280);
        let n = tokenizer.vocab_size() as i64;
        assert_eq!(n, 280);
        tokenizer.fits(n, 1).unwrap();
        tokenizer.fits(n + 1024, 1).unwrap();
        for (vocab_size, pad, expected) in [
            (n - 1, 1, "ids go up to 279, the model's vocab_size is 279"),
            (n, 0, "its padding is id 1, the model's pad_token_id 0"),
            (50265, 1, "only 280 of the model's 50265 embedding rows have a token"),
        ] {
            let error = tokenizer.fits(vocab_size, pad).unwrap_err();
            assert_eq!(error.code(), 2);
            let text = error.to_string();
            assert!(text.contains(expected) && text.contains("for a fresh model set"), "{text}");
        }
        let described = tokenizer.describe();
        assert_eq!(
            described,
            "byte-level BPE (RoBERTa), 280 ids, <pad> 1, <s> 0, </s> 2, <mask> 4, <unk> 3"
        );
    }

    #[test]
    fn training_that_cannot_be() {
        let train = |kind, size, corpus: Vec<Result<String>>| {
            TextTokenizer::train(kind, size, corpus.into_iter()).err().unwrap()
        };
        let wordpiece = TokenizerKind::WordPiece { lowercase: true };
        let text = |text: &str| vec![Ok(text.to_string())];
        for error in [
            train(TokenizerKind::Bpe, 300, vec![]),
            train(TokenizerKind::Bpe, 300, text("")),
            train(wordpiece, 300, text(" \n\u{200b} ")),
        ] {
            assert_eq!(error.code(), 3);
            assert!(error.to_string().contains("no word in the"), "{error}");
        }
        let error = train(TokenizerKind::Bpe, 260, text("a"));
        assert_eq!(error.code(), 2);
        assert!(error.to_string().contains("characters alone are 261"), "{error}");
        // 5 special tokens, a, b and c, ##b and ##c.
        let error = train(wordpiece, 9, text("abc"));
        assert!(error.to_string().contains("characters alone are 10"), "{error}");
        let broken = vec![Ok("a".to_string()), Err(Error::data("row 7 is broken"))];
        assert_eq!(train(wordpiece, 300, broken).to_string(), "row 7 is broken");
    }

    #[test]
    fn a_model_s_length_is_written() {
        let mut tokenizer = trained(TokenizerKind::WordPiece { lowercase: false }, 60);
        tokenizer.set_model_max_length(512);
        let files = tokenizer.files().unwrap();
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        let expected =
            ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"];
        assert_eq!(names, expected);
        let config: Value = serde_json::from_str(&files[1].1).unwrap();
        assert_eq!(config["model_max_length"], 512);
        assert_eq!(config["do_lower_case"], false);
        assert_eq!(config["tokenizer_class"], "BertTokenizer");
        assert_eq!(config["cls_token"], "[CLS]");
    }

    #[test]
    fn threads_share_one_tokenizer() {
        let tokenizer = trained(TokenizerKind::Bpe, 300);
        let alone = trained(TokenizerKind::Bpe, 300).encode("The hard alloy", 99).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        assert_eq!(tokenizer.encode("The hard alloy", 99).unwrap(), alone);
                    }
                });
            }
        });
    }
}
