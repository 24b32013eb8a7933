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
        if !self.config.is_empty() {
            for (key, part, field, default) in family.settings() {
                let said = self.config.get(*key).cloned();
                json[*part][*field] = said.unwrap_or_else(|| Value::from(*default));
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
                    Some(Value::Null) => drop(named.by_name.remove(name)),
                    Some(token) if content(token).is_some() => {
                        named.by_name.insert(name, token.clone());
                    }
                    _ => {}
                }
            }
            for key in ["extra_special_tokens", "additional_special_tokens"] {
                match source.get(key) {
                    Some(Value::Array(tokens)) => named.extra.extend(tokens.iter().cloned()),
                    Some(Value::Object(map)) => named.extra.extend(map.values().cloned()),
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
                named.by_name.entry(name).or_insert_with(|| Value::from(token));
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

#[cfg(test)]
mod tests {
    use super::super::{TextTokenizer, TokenizerKind};
    use super::*;
    use serde_json::json;
    use std::path::PathBuf;

    /// A directory of its own with a trained tokenizer's files, removed at the end.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str, kind: TokenizerKind) -> Dir {
            let name = format!("trainer-tokenizer-{name}-{}", std::process::id());
            let dir = Dir(std::env::temp_dir().join(name));
            fs::create_dir_all(&dir.0).unwrap();
            let corpus = ["The alloy Fe20Ni80", "the Alloy é is as-cast"];
            let corpus = corpus.iter().cycle().take(8).map(|text| Ok(text.to_string()));
            for (name, content) in TextTokenizer::train(kind, 300, corpus).unwrap().files().unwrap()
            {
                dir.write(&name, content);
            }
            dir
        }

        fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Dir {
            fs::write(self.0.join(name), content).unwrap();
            self
        }

        fn remove(&self, name: &str) -> &Dir {
            fs::remove_file(self.0.join(name)).unwrap();
            self
        }

        /// Changes a JSON file.
        fn set(&self, name: &str, change: impl FnOnce(&mut Value)) -> &Dir {
            let path = self.0.join(name);
            let mut json = if path.exists() { read_json(&path).unwrap() } else { json!({}) };
            change(&mut json);
            self.write(name, json.to_string())
        }

        fn open(&self) -> TextTokenizer {
            TextTokenizer::open(&self.0).unwrap()
        }

        #[track_caller]
        fn refused(&self, expected: &str) {
            let error = TextTokenizer::open(&self.0).err().expect("this must be refused");
            assert_eq!(error.code(), 5, "{error}");
            let text = error.to_string();
            assert!(text.contains(expected) && text.contains("hint: "), "{text}");
            assert!(text.contains(&self.0.display().to_string()), "{text}");
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    const LOWER: TokenizerKind = TokenizerKind::WordPiece { lowercase: true };

    #[test]
    fn a_directory_without_a_tokenizer() {
        let dir = Dir::new("none", TokenizerKind::Bpe);
        dir.remove("tokenizer.json").remove("merges.txt");
        dir.refused("merges.txt: this file of the tokenizer is missing");
        dir.remove("vocab.json")
            .refused("looked for tokenizer.json, for vocab.json with merges.txt");
        let missing = dir.0.join("missing");
        let error = TextTokenizer::open(&missing).err().unwrap().to_string();
        assert!(error.contains("no such directory"), "{error}");
        let error = TextTokenizer::open(&dir.0.join("tokenizer_config.json")).err().unwrap();
        assert!(error.to_string().contains("no directory"), "{error}");
    }

    #[test]
    fn damaged_tokenizer_json() {
        let dir = Dir::new("json", TokenizerKind::Bpe);
        let whole = fs::read_to_string(dir.0.join("tokenizer.json")).unwrap();
        let half: String = whole.lines().take(20).collect::<Vec<_>>().join("\n");
        dir.write("tokenizer.json", half).refused("tokenizer.json:20: not JSON");
        dir.write("tokenizer.json", b"{\n\n\"model\": \"\xff\"}")
            .refused("tokenizer.json:3: not UTF-8");
        dir.write("tokenizer.json", "{\"model_type\": \"roberta\"}").refused("it has no `model`");
        dir.write("tokenizer.json", "[1]").refused("it has no `model`");
        dir.write("tokenizer.json", "version https://git-lfs.github.com/spec/v1\n");
        dir.refused("Git-LFS pointer");
        let changed = |change: &dyn Fn(&mut Value), expected: &str| {
            dir.write("tokenizer.json", &whole).set("tokenizer.json", change);
            dir.refused(expected);
        };
        changed(
            &|json| json["model"]["type"] = json!("Magic"),
            "tokenizer's `model` (Magic) cannot be read",
        );
        changed(&|json| json["model"]["dropout"] = json!(0.1), "at random");
        changed(&|json| json["model"]["vocab"] = json!(3), "no `vocab`");
        changed(&|json| json["model"]["merges"] = json!([["Q", "qq"]]), "`qq` out of vocabulary");
        changed(&|json| json["decoder"] = json!({"type": "No"}), "`decoder` (No) cannot be read");
        changed(
            &|json| json["model"]["continuing_subword_prefix"] = json!("xyz"),
            "does not begin with \"xyz\"",
        );
        let piece = json!({"SpecialToken": {"id": "<q>", "type_id": 0}});
        changed(
            &|json| {
                json["post_processor"] = json!({"type": "Sequence", "processors": [
                    {"type": "TemplateProcessing", "single": [piece], "pair": [piece],
                     "special_tokens": {}}]});
            },
            "uses \"<q>\" without declaring it",
        );
        changed(&|json| json["added_tokens"][0]["id"] = json!(77), "id 77 here and 0");
        dir.write("tokenizer.json", whole).write("tokenizer_config.json", "{,}");
        dir.refused("tokenizer_config.json:1: not JSON");
    }

    #[test]
    fn damaged_vocabulary_files() {
        let dir = Dir::new("files", TokenizerKind::Bpe);
        dir.remove("tokenizer.json").set("vocab.json", |json| json["th"] = json!(999));
        dir.write("merges.txt", "#version: 0.2\n\nt h\nt zz\n");
        dir.refused("merges.txt:4: \"zz\" is not in");
        dir.write("merges.txt", "t h e\n").refused("merges.txt:1: \"t h e\" is not two tokens");
        dir.write("merges.txt", "\n").write("vocab.json", "{\"a\": 0, \"b\": -1}");
        dir.refused("the id of \"b\" is -1");
        dir.write("vocab.json", "{\"a\": 0, \"b\": 0}").refused("both have the id 0");
        dir.write("vocab.json", "{}").refused("no token in this file");
        dir.set("tokenizer_config.json", |json| json["tokenizer_class"] = json!("GPT2Tokenizer"));
        dir.refused("vocabulary files of a GPT2Tokenizer");
        let dir = Dir::new("lines", LOWER);
        dir.remove("tokenizer.json").write("vocab.txt", b"[PAD]\n[UNK]\n\xffbc\n");
        dir.refused("vocab.txt:3: not UTF-8");
        dir.write("vocab.txt", "\n\n").refused("no token in this file");
    }

    #[test]
    fn a_byte_order_mark_and_windows_line_ends_do_no_harm() {
        for (kind, files) in
            [(TokenizerKind::Bpe, &["vocab.json", "merges.txt"][..]), (LOWER, &["vocab.txt"])]
        {
            let dir = Dir::new(&format!("bom-{}", files.len()), kind);
            let before = dir.open().files().unwrap();
            dir.remove("tokenizer.json");
            for name in files {
                let text = fs::read_to_string(dir.0.join(name)).unwrap();
                dir.write(name, format!("\u{feff}{}", text.replace('\n', "\r\n")));
            }
            assert_eq!(dir.open().files().unwrap(), before);
        }
    }

    #[test]
    fn the_configuration_overrules_tokenizer_json() {
        let dir = Dir::new("overrule", LOWER);
        let ids = |dir: &Dir, text| dir.open().encode(text, 99).unwrap().ids;
        assert_eq!(ids(&dir, "THE é"), ids(&dir, "the e"));
        dir.set("tokenizer_config.json", |json| json["do_lower_case"] = json!(false));
        assert_ne!(ids(&dir, "THE é"), ids(&dir, "the e"));
        dir.set("tokenizer_config.json", |json| json["truncation_side"] = json!("left"));
        let cut = dir.open().encode("the alloy is", 4).unwrap();
        assert_eq!((cut.cut, cut.whole, cut.ids.len()), (true, 5, 4));
        assert_eq!(dir.open().tokens(&cut.ids), ["[CLS]", "alloy", "is", "[SEP]"]);
        dir.set("tokenizer_config.json", |json| json["split_special_tokens"] = json!(true));
        assert!(!ids(&dir, "[MASK]").contains(&4));
    }

    /// Unigram as T5 has it, without any file beside.
    #[test]
    fn another_kind_opens_too() {
        let dir = Dir::new("unigram", LOWER);
        for name in ["tokenizer_config.json", "special_tokens_map.json", "vocab.txt"] {
            dir.remove(name);
        }
        let added = |id: u32, text: &str| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        };
        let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
        let end = json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [added(0, "<pad>"), added(1, "</s>"), added(2, "<unk>")],
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
                              "split": true},
            "post_processor": {"type": "TemplateProcessing", "single": [text("A"), end],
                "pair": [text("A"), end, text("B"), end],
                "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}},
            "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
                        "split": true},
            "model": {"type": "Unigram", "unk_id": 2, "byte_fallback": false, "vocab": [
                ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁the", -2.5], ["▁alloy", -3.0]]}
        });
        dir.write("tokenizer.json", json.to_string());
        let tokenizer = dir.open();
        let found = tokenizer.encode("the alloy", 99).unwrap();
        assert_eq!(found.ids, [3, 4, 1]);
        assert_eq!(tokenizer.decode(&found.ids), "the alloy</s>");
        let special = tokenizer.special();
        assert_eq!((special.pad, special.unk, special.mask), (Some(0), Some(2), None));
        assert!(special.is_special(1) && !special.is_special(3));
        for (name, content) in tokenizer.files().unwrap() {
            dir.write(&name, content);
        }
        assert_eq!(dir.open().encode("the alloy", 99).unwrap(), found);
        assert!(dir.open().fits(5, 0).unwrap_err().to_string().contains("no mask token"));
    }
}
