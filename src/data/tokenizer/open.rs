//! From Hugging Face's files, in whichever of their forms, to one `tokenizer.json` and its settings.

use super::family::{Family, HINT, NAMES, Named, content};
use super::form::{add_missing, bpe, entry, wordpiece};
use crate::error::{Error, Result};
use crate::files;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// A tokenizer before it is built.
pub(super) struct Source {
    /// `tokenizer.json`, with truncation, padding and overruled settings changed.
    pub(super) json: Value,
    pub(super) config: Map<String, Value>,
    pub(super) family: Family,
    pub(super) named: Named,
    /// Whether truncation keeps a text's end.
    pub(super) keep_end: bool,
    /// Whether special tokens in a text are text.
    pub(super) split_special: bool,
    /// The file, for messages.
    pub(super) origin: String,
}

/// What stands beside the vocabulary.
struct Settings {
    /// `tokenizer_config.json`.
    config: Map<String, Value>,
    /// `special_tokens_map.json`.
    map: Map<String, Value>,
}

/// What each form of the files comes to.
type Found = (Value, Family, Named);

/// Finds and reads the files of a directory.
pub(super) fn read(dir: &Path) -> Result<Source> {
    if !dir.is_dir() {
        let what = if dir.exists() { "this is no directory" } else { "there is no such directory" };
        return Err(Error::damaged(what).at(dir.display()).hint(
            "name a directory with tokenizer.json, or vocab.json and merges.txt, or vocab.txt",
        ));
    }
    let settings = Settings {
        config: read_map(&dir.join("tokenizer_config.json"))?.unwrap_or_default(),
        map: read_map(&dir.join("special_tokens_map.json"))?.unwrap_or_default(),
    };
    let [whole, vocab_json, merges_txt, vocab_txt] =
        ["tokenizer.json", "vocab.json", "merges.txt", "vocab.txt"].map(|name| dir.join(name));
    let (origin, found) = if whole.exists() {
        (&whole, settings.whole(&whole)?)
    } else if vocab_json.exists() || merges_txt.exists() {
        (&vocab_json, settings.bpe(dir, &vocab_json, &merges_txt)?)
    } else if vocab_txt.exists() {
        (&vocab_txt, settings.wordpiece(dir, &vocab_txt)?)
    } else {
        return Err(Error::damaged(
            "no tokenizer in this directory: looked for tokenizer.json, for vocab.json with \
             merges.txt, and for vocab.txt",
        )
        .at(dir.display())
        .hint(HINT));
    };
    let (mut json, family, named) = found;
    let keep_end = settings.keep_end(&json);
    // A limit and a width are each call's own.
    json["truncation"] = Value::Null;
    json["padding"] = Value::Null;
    let split_special = settings.flag("split_special_tokens");
    let origin = origin.display().to_string();
    Ok(Source { json, config: settings.config, family, named, keep_end, split_special, origin })
}

impl Settings {
    fn flag(&self, key: &str) -> bool {
        self.config.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    fn keep_end(&self, json: &Value) -> bool {
        let side = self.config.get("truncation_side").and_then(Value::as_str);
        let side = side.or_else(|| json["truncation"]["direction"].as_str());
        side.is_some_and(|side| side.eq_ignore_ascii_case("left"))
    }

    /// From `tokenizer.json`, which `tokenizer_config.json` overrules as in transformers.
    fn whole(&self, path: &Path) -> Result<Found> {
        let damaged =
            |what: &str, hint: &str| Err(Error::damaged(what).at(path.display()).hint(hint));
        let mut json = read_json(path)?;
        if !json["model"].is_object() {
            return damaged("this JSON is no tokenizer: it has no `model`", HINT);
        }
        if json["model"]["dropout"].as_f64().is_some_and(|p| p > 0.0) {
            return damaged(
                "this tokenizer draws its merges at random (model.dropout)",
                "set model.dropout to null: the same text must always give the same ids",
            );
        }
        let family = self.family(&json);
        for (key, part, field) in family.settings() {
            if let Some(value) = self.config.get(*key) {
                json[*part][*field] = value.clone();
            }
        }
        let mut named = self.named(family);
        if family == Family::Other {
            guess(&mut named, &json);
        }
        let json = add_missing(json, &named).map_err(|e| e.at(path.display()))?;
        Ok((json, family, named))
    }

    /// From `vocab.json` and `merges.txt`.
    fn bpe(&self, dir: &Path, vocab_json: &Path, merges_txt: &Path) -> Result<Found> {
        self.must_be("RobertaTokenizer", dir)?;
        let named = self.named(Family::Roberta);
        let vocab = read_vocab_json(vocab_json)?;
        let merges = read_merges(merges_txt, &vocab, vocab_json)?;
        let json = bpe(vocab, merges, &named, &self.added(dir)?, self.flag("add_prefix_space"))
            .map_err(|e| e.at(vocab_json.display()))?;
        Ok((json, Family::Roberta, named))
    }

    /// From `vocab.txt`.
    fn wordpiece(&self, dir: &Path, vocab_txt: &Path) -> Result<Found> {
        self.must_be("BertTokenizer", dir)?;
        let named = self.named(Family::Bert);
        let vocab = read_vocab_txt(vocab_txt)?;
        let json = wordpiece(vocab, &named, &self.added(dir)?, &self.config)
            .map_err(|e| e.at(vocab_txt.display()))?;
        Ok((json, Family::Bert, named))
    }

    /// Which class of transformers this is: as `tokenizer_config.json` says, or by its parts.
    fn family(&self, json: &Value) -> Family {
        let is = |part: &str, kind: &str| json[part]["type"] == kind;
        let class = self.class();
        let roberta = match class {
            Some(class) => class == "RobertaTokenizer",
            None => is("post_processor", "RobertaProcessing"),
        };
        if roberta && is("model", "BPE") && is("pre_tokenizer", "ByteLevel") {
            return Family::Roberta;
        }
        let bert = class.is_none_or(|class| class == "BertTokenizer");
        if bert && is("model", "WordPiece") && is("normalizer", "BertNormalizer") {
            return Family::Bert;
        }
        Family::Other
    }

    /// Vocabulary files do not say what is done with them: only two classes are known by heart.
    fn must_be(&self, class: &str, dir: &Path) -> Result<()> {
        match self.class() {
            Some(other) if other != class => {
                let what = format!("the vocabulary files of a {other} do not say how it cuts text");
                let place = dir.join("tokenizer_config.json");
                Err(Error::damaged(what).at(place.display()).hint(
                    "write its tokenizer.json with transformers: \
                     AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
                ))
            }
            _ => Ok(()),
        }
    }

    /// What `tokenizer_config.json` names.
    fn class(&self) -> Option<&str> {
        Some(self.config.get("tokenizer_class")?.as_str()?.trim_end_matches("Fast"))
    }

    /// The special tokens by name: the class's own, overruled by the two files as transformers
    /// reads them (`special_tokens_map.json` counts where there is no `added_tokens_decoder`).
    fn named(&self, family: Family) -> Named {
        let mut named = Named::of(family);
        let map = (!self.config.contains_key("added_tokens_decoder")).then_some(&self.map);
        for source in [Some(&self.config), map].into_iter().flatten() {
            for name in NAMES {
                match source.get(name) {
                    Some(Value::Null) => drop(named.0.remove(name)),
                    Some(token) if content(token).is_some() => {
                        named.0.insert(name, token.clone());
                    }
                    _ => {}
                }
            }
        }
        named
    }

    /// Tokens beside the vocabulary files: `added_tokens_decoder` of `tokenizer_config.json`, or
    /// the older `added_tokens.json`.
    fn added(&self, dir: &Path) -> Result<Vec<Value>> {
        let wrong = |name: &str, what: &str| {
            Error::damaged(format!("{what} is not what transformers writes"))
                .at(dir.join(name).display())
                .hint(HINT)
        };
        let Some(decoder) = self.config.get("added_tokens_decoder") else {
            let map = read_map(&dir.join("added_tokens.json"))?.unwrap_or_default();
            let tokens = map.iter().map(|(token, id)| {
                let id = id.as_u64().ok_or_else(|| wrong("added_tokens.json", "an id"))?;
                Ok(entry(id, token, &Value::Null, false))
            });
            return tokens.collect();
        };
        let bad = || wrong("tokenizer_config.json", "added_tokens_decoder");
        let tokens = decoder.as_object().ok_or_else(bad)?.iter().map(|(id, token)| {
            let id = id.parse().map_err(|_| bad())?;
            let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
            Ok(entry(id, content(token).ok_or_else(bad)?, token, special))
        });
        tokens.collect()
    }
}

/// Names the special tokens that are called as everybody calls them, where nothing else says.
fn guess(named: &mut Named, json: &Value) {
    let known: BTreeSet<&str> =
        json["added_tokens"].as_array().into_iter().flatten().filter_map(content).collect();
    for family in [Family::Roberta, Family::Bert] {
        for (name, token) in NAMES.into_iter().zip(family.defaults()) {
            if let Some(token) = token.filter(|token| known.contains(token)) {
                named.0.entry(name).or_insert_with(|| Value::from(token));
            }
        }
    }
}

/// A text file that may begin with a byte-order mark.
fn read_text(path: &Path) -> Result<String> {
    let missing = |e: std::io::Error| match e.kind() {
        ErrorKind::NotFound => {
            Error::damaged("this file of the tokenizer is missing").at(path.display()).hint(HINT)
        }
        _ => Error::read(path, &e),
    };
    let mut bytes = fs::read(path).map_err(missing)?;
    if files::is_lfs_pointer(&bytes) {
        return Err(Error::damaged("this is a Git-LFS pointer, not the file itself")
            .at(path.display())
            .hint(files::LFS_HINT));
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    String::from_utf8(bytes).map_err(|e| {
        let good = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        Error::damaged("not UTF-8 text").at(format!("{}:{line}", path.display())).hint(HINT)
    })
}

fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_str(&read_text(path)?).map_err(|e| {
        let place = format!("{}:{}", path.display(), e.line());
        Error::damaged(format!("not JSON: {e}")).at(place).hint(HINT)
    })
}

fn read_map(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.exists() {
        return Ok(None);
    }
    match read_json(path)? {
        Value::Object(map) => Ok(Some(map)),
        _ => Err(Error::damaged("not a JSON object").at(path.display()).hint(HINT)),
    }
}

/// Tokens with their ids.
pub(super) type Vocabulary = Vec<(String, u32)>;

fn read_vocab_json(path: &Path) -> Result<Vocabulary> {
    let damaged = |what: String| Err(Error::damaged(what).at(path.display()).hint(HINT));
    let Value::Object(map) = read_json(path)? else {
        return damaged("not a JSON object of tokens and ids".to_string());
    };
    let mut ids: BTreeMap<u32, String> = BTreeMap::new();
    for (token, id) in map {
        let Some(number) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
            return damaged(format!("the id of {token:?} is {id}, not a whole number"));
        };
        if let Some(other) = ids.insert(number, token.clone()) {
            return damaged(format!("{other:?} and {token:?} both have the id {id}"));
        }
    }
    if ids.is_empty() {
        return damaged("no token in this file".to_string());
    }
    Ok(ids.into_iter().map(|(id, token)| (token, id)).collect())
}

/// Two tokens a line with a space between; each and the two together must be in the vocabulary.
fn read_merges(
    path: &Path,
    vocab: &Vocabulary,
    vocab_json: &Path,
) -> Result<Vec<(String, String)>> {
    let known: BTreeSet<&str> = vocab.iter().map(|(token, _)| token.as_str()).collect();
    let mut merges = Vec::new();
    for (i, line) in read_text(path)?.lines().enumerate() {
        if line.starts_with("#version") || line.is_empty() {
            continue;
        }
        let damaged = |what: String| {
            Err(Error::damaged(what).at(format!("{}:{}", path.display(), i + 1)).hint(HINT))
        };
        let Some((a, b)) = line.split_once(' ').filter(|(_, b)| !b.contains(' ')) else {
            return damaged(format!("{line:?} is not two tokens with a space between"));
        };
        for token in [a, b, &format!("{a}{b}")] {
            if !known.contains(token) {
                return damaged(format!("{token:?} is not in {}", vocab_json.display()));
            }
        }
        merges.push((a.to_string(), b.to_string()));
    }
    Ok(merges)
}

/// A token a line; its id is the number of the line, from 0. Empty lines are no tokens.
fn read_vocab_txt(path: &Path) -> Result<Vocabulary> {
    let text = read_text(path)?;
    // The last of two equal lines counts, as in transformers.
    let mut ids: BTreeMap<&str, u32> = BTreeMap::new();
    ids.extend(text.lines().map(str::trim_end).zip(0..).filter(|(token, _)| !token.is_empty()));
    if ids.is_empty() {
        return Err(Error::damaged("no token in this file").at(path.display()).hint(HINT));
    }
    let mut vocab: Vocabulary = ids.into_iter().map(|(t, id)| (t.to_string(), id)).collect();
    vocab.sort_by_key(|(_, id)| *id);
    Ok(vocab)
}
