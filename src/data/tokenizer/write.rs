//! The files that make a directory complete for transformers, in all their forms: `tokenizer.json`
//! for today's, the vocabulary files for older ones and for other programs.

use super::TextTokenizer;
use super::family::{Family, NAMES};
use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// What a user's `tokenizer_config.json` may say that is `tokenizer.json`'s now, or is a path.
const LEFT_OUT: [&str; 6] = [
    "added_tokens_decoder",
    "name_or_path",
    "special_tokens_map_file",
    "tokenizer_file",
    "vocab_file",
    "merges_file",
];

impl TextTokenizer {
    /// Says how many ids the model takes, for `model_max_length` of `tokenizer_config.json`.
    pub fn set_model_max_length(&mut self, ids: usize) {
        self.config.insert("model_max_length".to_string(), Value::from(ids));
    }

    /// File names and contents: `tokenizer.json`, `tokenizer_config.json`,
    /// `special_tokens_map.json`, and `vocab.json` with `merges.txt` or `vocab.txt` where the kind
    /// has them. The same tokenizer gives the same bytes.
    pub fn files(&self) -> Result<Vec<(String, String)>> {
        let bug =
            |e: &dyn std::fmt::Display| Error::bug(format!("the tokenizer cannot be written: {e}"));
        let whole = self.tokenizer.to_string(true).map_err(|e| bug(&e))?;
        let json: Value = serde_json::from_str(&whole).map_err(|e| bug(&e))?;
        let pretty = |map: Map<String, Value>| {
            Ok(serde_json::to_string_pretty(&Value::Object(map)).map_err(|e| bug(&e))? + "\n")
        };
        let mut files = vec![
            ("tokenizer.json".to_string(), whole + "\n"),
            ("tokenizer_config.json".to_string(), pretty(self.full_config(&json))?),
            ("special_tokens_map.json".to_string(), pretty(self.special_map())?),
        ];
        let vocab = vocabulary(&json);
        match json["model"]["type"].as_str() {
            Some("BPE") if self.family == Family::Roberta => {
                let map = vocab.into_iter().map(|(token, id)| (token.to_string(), Value::from(id)));
                let text = Value::Object(map.collect()).to_string() + "\n";
                files.push(("vocab.json".to_string(), text));
                files.push(("merges.txt".to_string(), merges(&json)));
            }
            // A line's number is its id, so there can be no holes.
            Some("WordPiece") if vocab.iter().zip(0..).all(|((_, id), at)| *id == at) => {
                let text = vocab.into_iter().map(|(token, _)| format!("{token}\n")).collect();
                files.push(("vocab.txt".to_string(), text));
            }
            _ => {}
        }
        Ok(files)
    }

    fn special_map(&self) -> Map<String, Value> {
        let named = NAMES.iter().filter_map(|name| Some((name, self.named.content(name)?)));
        named.map(|(name, token)| (name.to_string(), Value::from(token))).collect()
    }

    fn full_config(&self, json: &Value) -> Map<String, Value> {
        let mut config = self.config.clone();
        for key in LEFT_OUT {
            config.shift_remove(key);
        }
        let class = match self.family {
            Family::Roberta => "RobertaTokenizer",
            Family::Bert => "BertTokenizer",
            Family::Other => "PreTrainedTokenizerFast",
        };
        config.entry("tokenizer_class").or_insert_with(|| Value::from(class));
        for (key, part, field, _) in self.family.settings() {
            config.insert(key.to_string(), json[*part][*field].clone());
        }
        config.extend(self.special_map());
        config
    }
}

/// The model's tokens in the order of their ids.
fn vocabulary(json: &Value) -> Vec<(&str, u64)> {
    let tokens = json["model"]["vocab"].as_object().into_iter().flatten();
    let mut vocab: Vec<(&str, u64)> =
        tokens.filter_map(|(token, id)| Some((token.as_str(), id.as_u64()?))).collect();
    vocab.sort_by_key(|(_, id)| *id);
    vocab
}

fn merges(json: &Value) -> String {
    let mut text = "#version: 0.2\n".to_string();
    for merge in json["model"]["merges"].as_array().into_iter().flatten() {
        match merge {
            Value::Array(parts) => {
                let parts: Vec<&str> = parts.iter().filter_map(Value::as_str).collect();
                text.push_str(&parts.join(" "));
            }
            merge => text.push_str(merge.as_str().unwrap_or_default()),
        }
        text.push('\n');
    }
    text
}
