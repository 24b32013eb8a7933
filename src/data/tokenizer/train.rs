//! A tokenizer for a fresh model, trained on the corpus that the model will see.

use super::TextTokenizer;
use super::family::{Family, Named};
use super::form;
use super::learn::{Word, learn};
use super::open::Source;
use super::pieces::Cuts;
use crate::error::{Error, Result};
use crate::progress;
use serde_json::{Map, Value};
use std::collections::{BTreeSet, HashMap};
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::tokenizer::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};

/// A pair of tokens that stands once in the corpus is not worth a token.
const AT_LEAST: i64 = 2;
/// WordPiece keeps so many different characters, the commonest; a word with another is `[UNK]`.
const CHARACTERS: usize = 1000;

/// Different pieces of the corpus's texts that are held before they are cut into words.
const AT_ONCE: usize = 1 << 18;

/// What can be trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizerKind {
    /// Byte-level BPE, for a RoBERTa: ids 0 to 4 are `<s> <pad> </s> <unk> <mask>`, then the 256
    /// bytes.
    Bpe,
    /// WordPiece, for a BERT: ids 0 to 4 are `[PAD] [UNK] [CLS] [SEP] [MASK]`, then the characters.
    WordPiece {
        /// Whether all text is lower-cased and stripped of accents.
        lowercase: bool,
    },
}

impl TokenizerKind {
    fn family(self) -> Family {
        match self {
            TokenizerKind::Bpe => Family::Roberta,
            TokenizerKind::WordPiece { .. } => Family::Bert,
        }
    }

    fn cuts(self) -> Cuts {
        match self {
            TokenizerKind::Bpe => Cuts::Bytes,
            TokenizerKind::WordPiece { .. } => Cuts::Bert,
        }
    }

    fn specials(self) -> [&'static str; 5] {
        match self {
            TokenizerKind::Bpe => ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
            TokenizerKind::WordPiece { .. } => ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        }
    }

    fn config(self) -> Map<String, Value> {
        let (key, value) = match self {
            TokenizerKind::Bpe => ("add_prefix_space", false),
            TokenizerKind::WordPiece { lowercase } => ("do_lower_case", lowercase),
        };
        Map::from_iter([(key.to_string(), Value::from(value))])
    }

    /// Adds the words of counted pieces of text, as the finished tokenizer will see them.
    fn count(
        self,
        pieces: impl Iterator<Item = (String, i64)>,
        counts: &mut HashMap<String, i64>,
    ) -> Result<()> {
        for (piece, count) in pieces {
            progress::tick()?;
            self.words(&piece, |word| add(counts, word, count))
                .map_err(|e| Error::bug(format!("{piece:?} cannot be cut into words: {e}")))?;
        }
        Ok(())
    }

    fn words(self, text: &str, mut each: impl FnMut(&str)) -> tokenizers::Result<()> {
        let mut text = NormalizedString::from(text);
        let mut pieces = match self {
            TokenizerKind::Bpe => PreTokenizedString::from(text),
            TokenizerKind::WordPiece { lowercase } => {
                BertNormalizer::new(true, true, None, lowercase).normalize(&mut text)?;
                PreTokenizedString::from(text)
            }
        };
        match self {
            TokenizerKind::Bpe => ByteLevel::new(false, true, true).pre_tokenize(&mut pieces)?,
            TokenizerKind::WordPiece { .. } => BertPreTokenizer.pre_tokenize(&mut pieces)?,
        }
        for (word, ..) in pieces.get_splits(OffsetReferential::Original, OffsetType::None) {
            each(word);
        }
        Ok(())
    }
}

impl TextTokenizer {
    /// Trains on a corpus of texts: the same corpus gives the same bytes in every process. The
    /// vocabulary is at most `vocab_size` large, and smaller where no pair of tokens is left that
    /// stands twice. A corpus without a word is a data error, a `vocab_size` that the special
    /// tokens and single characters exceed a usage error; errors of the corpus go through.
    pub fn train(
        kind: TokenizerKind,
        vocab_size: usize,
        corpus: impl Iterator<Item = Result<String>>,
    ) -> Result<TextTokenizer> {
        progress::enter("training the tokenizer");
        let counts = count_words(kind, corpus)?;
        let mut tokens: Vec<String> = kind.specials().map(String::from).to_vec();
        let (words, prefix) = match kind {
            TokenizerKind::Bpe => (bytes(&counts, &mut tokens)?, ""),
            TokenizerKind::WordPiece { .. } => (characters(&counts, &mut tokens)?, "##"),
        };
        if tokens.len() > vocab_size {
            let n = tokens.len();
            let what = format!(
                "vocab_size is {vocab_size}, but special tokens and characters alone are {n}"
            );
            return Err(
                Error::usage(what).hint(format!("give more than {n}; 1,000 to 30,000 is usual"))
            );
        }
        let learned = learn(words, tokens, vocab_size, AT_LEAST, prefix)?;
        let merge = |(a, b): &(u32, u32)| {
            (learned.tokens[*a as usize].clone(), learned.tokens[*b as usize].clone())
        };
        let merges = learned.merges.iter().map(merge).collect();
        let vocab = learned.tokens.iter().cloned().zip(0..).collect();
        let (family, config) = (kind.family(), kind.config());
        let named = Named::of(family);
        let json = match kind {
            TokenizerKind::Bpe => form::bpe(vocab, merges, &named, &[], false)?,
            TokenizerKind::WordPiece { .. } => form::wordpiece(vocab, &named, &[], &config)?,
        };
        TextTokenizer::new(Source {
            json,
            config,
            family,
            named,
            keep_end: false,
            split_special: false,
            origin: "trained on the corpus".to_string(),
        })
    }
}

fn add(counts: &mut HashMap<String, i64>, text: &str, more: i64) {
    match counts.get_mut(text) {
        Some(count) => *count += more,
        None => drop(counts.insert(text.to_string(), more)),
    }
}

/// The corpus's different words with their counts, in the order of their spelling.
fn count_words(
    kind: TokenizerKind,
    corpus: impl Iterator<Item = Result<String>>,
) -> Result<Vec<(String, i64)>> {
    let mut counts: HashMap<String, i64> = HashMap::new();
    let mut pieces: HashMap<String, i64> = HashMap::new();
    let mut texts = 0u64;
    for text in corpus {
        progress::tick()?;
        texts += 1;
        for piece in kind.cuts().pieces(&text?) {
            add(&mut pieces, piece, 1);
        }
        if pieces.len() >= AT_ONCE {
            kind.count(pieces.drain(), &mut counts)?;
        }
    }
    kind.count(pieces.drain(), &mut counts)?;
    if counts.is_empty() {
        return Err(Error::data(format!("no word in the {texts} texts of the corpus")).hint(
            "a tokenizer is trained on the texts that `prepare` writes; see whether there are any",
        ));
    }
    let mut counts: Vec<(String, i64)> = counts.into_iter().collect();
    counts.sort_unstable();
    Ok(counts)
}

/// Words over the 256 bytes, which join the tokens.
fn bytes(counts: &[(String, i64)], tokens: &mut Vec<String>) -> Result<Vec<Word>> {
    let alphabet: BTreeSet<char> = ByteLevel::alphabet().into_iter().collect();
    let ids = number(alphabet.iter().map(char::to_string), tokens);
    let mut letter = [0; 4];
    counts
        .iter()
        .map(|(word, count)| {
            let ids = word.chars().map(|c| ids.get(&*c.encode_utf8(&mut letter)).copied());
            let symbols: Option<Vec<u32>> = ids.collect();
            let bug = || Error::bug(format!("{word:?} is not in the byte-level alphabet"));
            Ok(Word { symbols: symbols.ok_or_else(bug)?, count: *count })
        })
        .collect()
}

/// Words over their characters: those of the commonest that stand anywhere, then `##` and those
/// that go on a word. They join the tokens. Words with other characters are left out.
fn characters(counts: &[(String, i64)], tokens: &mut Vec<String>) -> Result<Vec<Word>> {
    let mut found: HashMap<char, i64> = HashMap::new();
    for (word, count) in counts {
        progress::tick()?;
        for c in word.chars() {
            *found.entry(c).or_default() += count;
        }
    }
    let mut common: Vec<(char, i64)> = found.into_iter().collect();
    common.sort_unstable_by_key(|(c, count)| (std::cmp::Reverse(*count), *c));
    let kept: BTreeSet<char> = common.into_iter().take(CHARACTERS).map(|(c, _)| c).collect();
    let whole: Vec<&(String, i64)> =
        counts.iter().filter(|(word, _)| word.chars().all(|c| kept.contains(&c))).collect();
    let inner: BTreeSet<char> = whole.iter().flat_map(|(word, _)| word.chars().skip(1)).collect();
    let texts = kept.iter().map(char::to_string).chain(inner.iter().map(|c| format!("##{c}")));
    let ids = number(texts, tokens);
    let symbol = |(at, c): (usize, char)| match at {
        0 => ids[&c.to_string()],
        _ => ids[&format!("##{c}")],
    };
    Ok(whole
        .into_iter()
        .map(|(word, count)| Word {
            symbols: word.chars().enumerate().map(symbol).collect(),
            count: *count,
        })
        .collect())
}

/// Gives the texts the next ids.
fn number(texts: impl Iterator<Item = String>, tokens: &mut Vec<String>) -> HashMap<String, u32> {
    let mut ids = HashMap::new();
    for text in texts {
        ids.insert(text.clone(), tokens.len() as u32);
        tokens.push(text);
    }
    ids
}
