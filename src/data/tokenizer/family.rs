//! Which class of transformers a tokenizer belongs to, and the names of its special tokens.

use serde_json::Value;
use std::collections::BTreeMap;

/// The names of special tokens in `tokenizer_config.json`, in the order in which transformers adds
/// those that a vocabulary lacks.
pub(super) const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

pub(super) const HINT: &str = "copy the tokenizer's files again, or write them anew with transformers: \
     AutoTokenizer.from_pretrained(NAME).save_pretrained(DIR)";

/// What kind of tokenizer it is, and so which class of transformers reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// `RobertaTokenizer`: byte-level BPE.
    Roberta,
    /// `BertTokenizer`: WordPiece.
    Bert,
    /// Known by its `tokenizer.json` alone.
    Other,
}

impl Family {
    pub(super) fn words(self) -> &'static str {
        match self {
            Family::Roberta => "byte-level BPE (RoBERTa)",
            Family::Bert => "WordPiece (BERT)",
            Family::Other => "a tokenizer of another kind",
        }
    }

    /// The settings that stand both in `tokenizer_config.json`, where transformers reads them, and
    /// in `tokenizer.json`: the key of the one, part and field of the other.
    pub(super) fn settings(self) -> &'static [(&'static str, &'static str, &'static str)] {
        match self {
            Family::Roberta => &[("add_prefix_space", "pre_tokenizer", "add_prefix_space")],
            Family::Bert => &[
                ("do_lower_case", "normalizer", "lowercase"),
                ("strip_accents", "normalizer", "strip_accents"),
                ("tokenize_chinese_chars", "normalizer", "handle_chinese_chars"),
            ],
            Family::Other => &[],
        }
    }

    /// The class's own special tokens, in the order of [`NAMES`].
    pub(super) fn defaults(self) -> [Option<&'static str>; 7] {
        match self {
            Family::Roberta => ["<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"].map(Some),
            Family::Bert => [
                None,
                None,
                Some("[UNK]"),
                Some("[SEP]"),
                Some("[PAD]"),
                Some("[CLS]"),
                Some("[MASK]"),
            ],
            Family::Other => [None; 7],
        }
    }
}

/// Special tokens under their names: a text, or a table of `content`, `lstrip` and so on.
#[derive(Clone, Debug, Default)]
pub(super) struct Named(pub(super) BTreeMap<&'static str, Value>);

impl Named {
    /// The class's own.
    pub(super) fn of(family: Family) -> Named {
        let pairs = NAMES.into_iter().zip(family.defaults());
        Named(pairs.filter_map(|(name, token)| Some((name, Value::from(token?)))).collect())
    }

    pub(super) fn content(&self, name: &str) -> Option<&str> {
        content(self.0.get(name)?)
    }

    /// Each once, in the order of [`NAMES`].
    pub(super) fn tokens(&self) -> impl Iterator<Item = &Value> {
        NAMES.iter().filter_map(|name| self.0.get(name))
    }
}

pub(super) fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}
