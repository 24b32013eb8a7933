//! Golden tests of the text tokenizers: ids of 1,000 texts against transformers' RobertaTokenizer
//! and BertTokenizer, the trainer against Hugging Face's own, and what we write read back.
//!
//! `tests/golden/tokenizers/` holds the generator, its artefacts and a README. With
//! `TRAINER_TOKENIZERS_OUT=DIR` the tokenizers written here stay in DIR, for its `check.py`.

use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use trainer::data::tokenizer::{TextTokenizer, TokenizerKind};

const NAMES: [&str; 4] = ["bpe", "bpe_prefix", "wordpiece", "wordpiece_cased"];

fn golden(name: &str) -> PathBuf {
    let root = std::env::var_os("TRAINER_TEST_ROOT").map(PathBuf::from);
    let root = root.unwrap_or(Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf());
    root.join("tests/golden/tokenizers").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(golden(name)).unwrap()
}

fn texts() -> Vec<String> {
    let texts: Vec<String> =
        read("texts.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(texts.len(), 1000);
    texts
}

fn expected() -> Value {
    serde_json::from_str(&read("expected.json")).unwrap()
}

/// The first 12 hexadecimal digits of a text's SHA-256.
fn hash(text: &str) -> String {
    let digest = Sha256::digest(text);
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn joined(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// Encodes all texts and compares every one.
fn compare(name: &str, tokenizer: &TextTokenizer, texts: &[String], expected: &Value) {
    let max_length = expected["max_length"].as_u64().unwrap() as usize;
    let expected = &expected[name];
    assert_eq!(tokenizer.vocab_size() as u64, expected["vocab_size"].as_u64().unwrap());
    let special = tokenizer.special();
    for (key, id) in [
        ("pad", special.pad),
        ("cls", special.cls),
        ("sep", special.sep),
        ("mask", special.mask),
        ("unk", special.unk),
    ] {
        assert_eq!(id.map(u64::from), expected["special"][key].as_u64(), "{name}: {key}");
        assert!(id.is_some_and(|id| special.is_special(id)), "{name}: {key}");
    }
    assert!(!special.is_special(tokenizer.vocab_size() as u32 - 1));
    let hashes: Vec<&str> = expected["hashes"].as_str().unwrap().split(' ').collect();
    assert_eq!(hashes.len(), texts.len());
    let (mut cut, mut whole) = (0, 0);
    for (i, text) in texts.iter().enumerate() {
        let found = tokenizer.encode(text, max_length).unwrap();
        if let Some(ids) = expected["ids"].get(i.to_string()) {
            let ids: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
            assert_eq!(found.ids, ids, "{name}, text {i}: {text:?}");
            whole += 1;
        }
        let tokens = tokenizer.tokens(&found.ids);
        assert_eq!(
            hash(&joined(&found.ids)),
            hashes[i],
            "{name}, text {i}: {text:?} gave {tokens:?}"
        );
        assert_eq!(found.cut, found.whole > max_length);
        cut += u64::from(found.cut);
    }
    assert_eq!(whole, 50);
    assert_eq!(cut, expected["cut"].as_u64().unwrap());
    assert!(cut > 20, "{name}: only {cut} texts are cut, too few to test anything");
}

#[test]
fn a_thousand_texts_as_transformers_encodes_them() {
    let (texts, expected) = (texts(), expected());
    for name in NAMES {
        let tokenizer = TextTokenizer::open(&golden(name)).unwrap();
        compare(name, &tokenizer, &texts, &expected);
    }
}

/// Where a tokenizer is written to, and whether it stays there.
struct Place(PathBuf, bool);

impl Place {
    fn new(name: &str) -> Place {
        let kept = std::env::var_os("TRAINER_TOKENIZERS_OUT");
        let own = format!("trainer-tokenizers-{name}-{}", std::process::id());
        let dir = kept
            .as_ref()
            .map_or(std::env::temp_dir().join(own), |dir| PathBuf::from(dir).join(name));
        fs::create_dir_all(&dir).unwrap();
        Place(dir, kept.is_some())
    }

    fn write(&self, tokenizer: &TextTokenizer) {
        for (name, content) in tokenizer.files().unwrap() {
            fs::write(self.0.join(name), content).unwrap();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.1 {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }
}

#[test]
fn what_is_written_is_read_back_in_every_form() {
    let (texts, expected) = (texts(), expected());
    for name in NAMES {
        let tokenizer = TextTokenizer::open(&golden(name)).unwrap();
        let place = Place::new(name);
        place.write(&tokenizer);
        let again = TextTokenizer::open(&place.0).unwrap();
        compare(name, &again, &texts, &expected);
        assert_eq!(again.files().unwrap(), tokenizer.files().unwrap());
        if place.1 {
            continue;
        }
        // The vocabulary files alone say the same, with the configuration.
        fs::remove_file(place.0.join("tokenizer.json")).unwrap();
        let old = TextTokenizer::open(&place.0).unwrap();
        compare(name, &old, &texts, &expected);
    }
}

/// Byte-level BPE trained on the same texts is Hugging Face's own result, merge by merge.
#[test]
fn training_gives_hugging_face_s_merges() {
    let corpus = texts();
    let size = expected()["bpe"]["vocab_size"].as_u64().unwrap() as usize;
    let trained =
        TextTokenizer::train(TokenizerKind::Bpe, size, corpus.iter().cloned().map(Ok)).unwrap();
    let files = trained.files().unwrap();
    let file = |name: &str| &files.iter().find(|(n, _)| n == name).unwrap().1;
    assert_eq!(file("merges.txt"), &read("bpe/merges.txt"));
    assert_eq!(file("vocab.json"), &read("bpe/vocab.json"));
    compare("bpe", &trained, &corpus, &expected());
}

#[test]
fn a_trained_wordpiece_is_the_same_every_time_and_covers_its_corpus() {
    let corpus = texts();
    let train = |size| {
        let kind = TokenizerKind::WordPiece { lowercase: true };
        TextTokenizer::train(kind, size, corpus.iter().cloned().map(Ok)).unwrap()
    };
    let tokenizer = train(1200);
    assert_eq!(tokenizer.vocab_size(), 1200);
    let files = tokenizer.files().unwrap();
    assert_eq!(files, train(1200).files().unwrap());
    let vocab = &files.iter().find(|(name, _)| name == "vocab.txt").unwrap().1;
    assert!(vocab.starts_with("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"));
    // Each process has other hash tables; this pins the bytes over all of them.
    assert_eq!(hash(vocab), "1b4937027af7");
    let place = Place::new("wordpiece_trained");
    place.write(&tokenizer);
    let again = TextTokenizer::open(&place.0).unwrap();
    let unknown = tokenizer.special().unk.unwrap();
    let (mut ids, mut unknowns) = (0, 0);
    let mut hashes = Vec::new();
    for text in &corpus {
        let found = tokenizer.encode(text, 128).unwrap();
        assert_eq!(found, again.encode(text, 128).unwrap());
        hashes.push(hash(&joined(&found.ids)));
        ids += found.ids.len();
        unknowns += found.ids.iter().filter(|id| **id == unknown).count();
    }
    if place.1 {
        fs::write(place.0.join("ours.txt"), hashes.join(" ")).unwrap();
    }
    // Only words of more than 100 characters, and `[UNK]` itself in the texts, are unknown.
    assert!(unknowns * 500 < ids, "{unknowns} of {ids}");
}
