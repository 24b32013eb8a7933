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

/// Yes, no, or as the other settings say.
type Setting = Option<bool>;

impl Family {
    pub(super) fn words(self) -> &'static str {
        match self {
            Family::Roberta => "byte-level BPE (RoBERTa)",
            Family::Bert => "WordPiece (BERT)",
            Family::Other => "a tokenizer of another kind",
        }
    }

    /// The settings that stand both in `tokenizer_config.json`, where transformers reads them, and
    /// in `tokenizer.json`: the key of the one, part and field of the other, and the class's value
    /// where the one does not say.
    pub(super) fn settings(self) -> &'static [(&'static str, &'static str, &'static str, Setting)] {
        match self {
            Family::Roberta => {
                &[("add_prefix_space", "pre_tokenizer", "add_prefix_space", Some(false))]
            }
            Family::Bert => &[
                ("do_lower_case", "normalizer", "lowercase", Some(true)),
                ("strip_accents", "normalizer", "strip_accents", None),
                ("tokenize_chinese_chars", "normalizer", "handle_chinese_chars", Some(true)),
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

/// Special tokens: each a text, or a table of `content`, `lstrip` and so on.
#[derive(Clone, Debug, Default)]
pub(super) struct Named {
    /// Those with a name.
    pub(super) by_name: BTreeMap<&'static str, Value>,
    /// Those without.
    pub(super) extra: Vec<Value>,
}

impl Named {
    /// The class's own.
    pub(super) fn of(family: Family) -> Named {
        let pairs = NAMES.into_iter().zip(family.defaults());
        let by_name = pairs.filter_map(|(name, token)| Some((name, Value::from(token?))));
        Named { by_name: by_name.collect(), extra: Vec::new() }
    }

    pub(super) fn content(&self, name: &str) -> Option<&str> {
        content(self.by_name.get(name)?)
    }

    /// All of them, in the order in which transformers adds them.
    pub(super) fn tokens(&self) -> impl Iterator<Item = &Value> {
        NAMES.iter().filter_map(|name| self.by_name.get(name)).chain(&self.extra)
    }
}

/// The token's text.
pub(super) fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}
