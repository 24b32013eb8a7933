//! The `tokenizer.json` that is made of a vocabulary, and the tokenizer that is built from one.

use super::family::{HINT, Named, content};
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Tokenizer,
};

/// Adds the named special tokens that the vocabulary lacks, at the next ids.
pub(super) fn add_missing(mut json: Value, named: &Named) -> Result<Value> {
    if !json["added_tokens"].is_array() {
        json["added_tokens"] = json!([]);
    }
    let mut known: BTreeMap<String, u64> = BTreeMap::new();
    match &json["model"]["vocab"] {
        Value::Object(vocab) => {
            known.extend(vocab.iter().map(|(token, id)| (token.clone(), id.as_u64().unwrap_or(0))));
        }
        Value::Array(pieces) => known.extend(
            pieces
                .iter()
                .enumerate()
                .filter_map(|(id, piece)| Some((piece.get(0)?.as_str()?.to_string(), id as u64))),
        ),
        _ => return Err(Error::damaged("its model has no `vocab`").hint(HINT)),
    }
    let list = json["added_tokens"].as_array().into_iter().flatten();
    let list: Vec<(String, u64)> = list
        .filter_map(|token| Some((content(token)?.to_string(), token["id"].as_u64()?)))
        .collect();
    let there: BTreeSet<&String> = list.iter().map(|(token, _)| token).collect();
    let mut next = known.values().chain(list.iter().map(|(_, id)| id)).max().map_or(0, |id| id + 1);
    let mut more = Vec::new();
    let mut done = BTreeSet::new();
    for token in named.tokens() {
        let Some(text) = content(token) else { continue };
        if there.contains(&text.to_string()) || !done.insert(text) {
            continue;
        }
        let id = known.get(text).copied().unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        more.push(entry(id, text, token, true));
    }
    if let Value::Array(list) = &mut json["added_tokens"] {
        list.extend(more);
        list.sort_by_key(|token| token["id"].as_u64());
    }
    Ok(json)
}

/// One of `added_tokens`, with the flags that `like` may carry.
pub(super) fn entry(id: u64, text: &str, like: &Value, special: bool) -> Value {
    let flag = |name: &str| like.get(name).and_then(Value::as_bool);
    json!({
        "id": id,
        "content": text,
        "single_word": flag("single_word").unwrap_or(false),
        "lstrip": flag("lstrip").unwrap_or(false),
        "rstrip": flag("rstrip").unwrap_or(false),
        "normalized": flag("normalized").unwrap_or(!special),
        "special": special,
    })
}

/// The frame of a `tokenizer.json` around its parts.
fn frame(added: &[Value], parts: Value, named: &Named) -> Result<Value> {
    let mut json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": null
    });
    if let Value::Object(parts) = parts {
        for (key, part) in parts {
            json[key] = part;
        }
    }
    add_missing(json, named)
}

fn id_of(json: &Value, text: &str) -> Option<Value> {
    let list = json["added_tokens"].as_array()?;
    Some(list.iter().find(|token| content(token) == Some(text))?["id"].clone())
}

/// The `tokenizer.json` of a RoBERTa.
pub(super) fn bpe(
    vocab: Vec<(String, u32)>,
    merges: Vec<(String, String)>,
    named: &Named,
    added: &[Value],
    add_prefix_space: bool,
) -> Result<Value> {
    let vocab: Map<String, Value> = vocab.into_iter().map(|(t, id)| (t, Value::from(id))).collect();
    let merges: Vec<Value> = merges.into_iter().map(|(a, b)| json!([a, b])).collect();
    let parts = json!({
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true,
                          "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
                  "ignore_merges": false, "vocab": vocab, "merges": merges}
    });
    let mut json = frame(added, parts, named)?;
    let (cls, sep) = ends(named)?;
    json["post_processor"] = json!({
        "type": "RobertaProcessing", "sep": [sep, id_of(&json, sep)], "cls": [cls, id_of(&json, cls)],
        "trim_offsets": true, "add_prefix_space": add_prefix_space
    });
    Ok(json)
}

/// The `tokenizer.json` of a BERT, lower-casing unless `config` says `do_lower_case: false`.
pub(super) fn wordpiece(
    vocab: Vec<(String, u32)>,
    named: &Named,
    added: &[Value],
    config: &Map<String, Value>,
) -> Result<Value> {
    let vocab: Map<String, Value> = vocab.into_iter().map(|(t, id)| (t, Value::from(id))).collect();
    let option = |name: &str| config.get(name).and_then(Value::as_bool);
    let parts = json!({
        "normalizer": {"type": "BertNormalizer", "clean_text": true,
                       "handle_chinese_chars": option("tokenize_chinese_chars").unwrap_or(true),
                       "strip_accents": option("strip_accents"),
                       "lowercase": option("do_lower_case").unwrap_or(true)},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": named.content("unk_token").unwrap_or("[UNK]"),
                  "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab}
    });
    let mut json = frame(added, parts, named)?;
    let (cls, sep) = ends(named)?;
    let special = |text: &str, id| json!({"id": text, "ids": [id], "tokens": [text]});
    let piece = |text: &str, kind: u8| json!({"SpecialToken": {"id": text, "type_id": kind}});
    let text = |name: &str, kind: u8| json!({"Sequence": {"id": name, "type_id": kind}});
    json["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [piece(cls, 0), text("A", 0), piece(sep, 0)],
        "pair": [piece(cls, 0), text("A", 0), piece(sep, 0), text("B", 1), piece(sep, 1)],
        "special_tokens": {cls: special(cls, id_of(&json, cls)), sep: special(sep, id_of(&json, sep))}
    });
    Ok(json)
}

/// The tokens that stand first and last.
fn ends(named: &Named) -> Result<(&str, &str)> {
    match (named.content("cls_token"), named.content("sep_token")) {
        (Some(cls), Some(sep)) => Ok((cls, sep)),
        _ => Err(Error::damaged("cls_token and sep_token must not be null").hint(HINT)),
    }
}

/// Builds the tokenizer.
pub(super) fn build(json: &Value, origin: &str) -> Result<Tokenizer> {
    check_template(&json["post_processor"]).map_err(|e| e.at(origin))?;
    check_prefix(&json["model"]).map_err(|e| e.at(origin))?;
    Tokenizer::from_str(&json.to_string()).map_err(|e| {
        // The position is one in our own rendering, which nobody has seen.
        let what = e.to_string();
        let what = what.split(" at line ").next().unwrap_or_default();
        let what = match unreadable(json) {
            Some(part) => {
                let kind = json[part]["type"].as_str().unwrap_or("without a type");
                format!("this tokenizer's `{part}` ({kind}) cannot be read: {what}")
            }
            None => format!("this JSON is no tokenizer that can be read: {what}"),
        };
        Error::damaged(what).at(origin).hint(HINT)
    })
}

/// The part of a `tokenizer.json` that is to blame.
fn unreadable(json: &Value) -> Option<&'static str> {
    fn reads<T: DeserializeOwned>(part: &Value) -> bool {
        part.is_null() || serde_json::from_value::<T>(part.clone()).is_ok()
    }
    let parts = [
        ("normalizer", reads::<NormalizerWrapper>(&json["normalizer"])),
        ("pre_tokenizer", reads::<PreTokenizerWrapper>(&json["pre_tokenizer"])),
        ("post_processor", reads::<PostProcessorWrapper>(&json["post_processor"])),
        ("decoder", reads::<DecoderWrapper>(&json["decoder"])),
        ("model", reads::<ModelWrapper>(&json["model"])),
    ];
    parts.into_iter().find(|(_, reads)| !reads).map(|(part, _)| part)
}

/// A template may only use special tokens that it declares; the crate takes that for granted.
fn check_template(post_processor: &Value) -> Result<()> {
    for inner in post_processor["processors"].as_array().into_iter().flatten() {
        check_template(inner)?;
    }
    let template = |name: &str| post_processor[name].as_array().into_iter().flatten();
    for piece in template("single").chain(template("pair")) {
        let id = &piece["SpecialToken"]["id"];
        if let Some(id) = id.as_str().filter(|id| post_processor["special_tokens"][id].is_null()) {
            let what = format!("the post_processor's template uses {id:?} without declaring it");
            return Err(Error::damaged(what).hint(HINT));
        }
    }
    Ok(())
}

/// With a `continuing_subword_prefix` each merge's second part has it; the crate takes that for
/// granted, too.
fn check_prefix(model: &Value) -> Result<()> {
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or_default();
    for merge in model["merges"].as_array().into_iter().flatten() {
        let second = match merge.as_str() {
            Some(text) => text.split(' ').next_back(),
            None => merge[1].as_str(),
        };
        if !second.unwrap_or_default().starts_with(prefix) {
            let what = format!("a merge's second part, {second:?}, does not begin with {prefix:?}");
            return Err(Error::damaged(what).hint(HINT));
        }
    }
    Ok(())
}

/// Added tokens must have got the ids that the file gives them.
pub(super) fn check_added(tokenizer: &Tokenizer, json: &Value) -> Result<()> {
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let text = content(token).unwrap_or_default();
        let (stated, id) = (token["id"].as_u64(), tokenizer.token_to_id(text).map(u64::from));
        if stated != id {
            let shown = |id: Option<u64>| id.map_or("none".to_string(), |id| id.to_string());
            let (stated, id) = (shown(stated), shown(id));
            let what =
                format!("the added token {text:?} is id {stated} here and {id} by the vocabulary");
            return Err(Error::damaged(what).hint(HINT));
        }
    }
    Ok(())
}
