//! `metrics.json`: the array that the seed's own scripts read, derived from `metrics.jsonl`.
//!
//! | record in `metrics.jsonl` | entry |
//! |---|---|
//! | `split`: train, val, test, seed, file | `{"split": {...}}`, first |
//! | `train` | `Epoch, Step, train_loss, ..., act_bs, act_seq_len` |
//! | `val_batch`, `test_batch` | `Epoch, Step, val_loss, ...`, `test_loss, ...` |
//! | `val`, `test` | `Epoch, Step, avg_val_loss, ...`, `avg_test_loss, ...` |
//!
//! Other kinds are left out. Floats are rounded to 4 places as upstream does; what is not finite is
//! null, because JSON has no word for it. Entries are converted one at a time, so memory does not
//! grow with the run, and a second update converts only what is new. The file is replaced by
//! rename.

use super::jsonl::{self, Position};
use crate::error::{Error, Result};
use crate::files;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The kind of record that holds the split.
const SPLIT: &str = "split";

/// Figures that keep their name, whatever the kind.
const BARE: [&str; 2] = ["act_bs", "act_seq_len"];

/// Perplexity as upstream spells it; where a record has none, it is exp(loss).
const PERPLEXITY: &str = "preplexity";

/// What ends the array.
const CLOSING: &[u8] = b"\n]\n";

/// Keeps one `metrics.json` up to date with its `metrics.jsonl`.
#[derive(Debug)]
pub struct MetricsJson {
    source: PathBuf,
    path: PathBuf,
    names: Vec<String>,
    /// How far the source is converted.
    position: Position,
    /// Length of our last file without its closing; zero when there is none.
    body: u64,
}

impl MetricsJson {
    /// Derives `path` from `source`, with these metrics (bare names in the order of entries).
    /// Make it anew after [`jsonl::cut_back`].
    pub fn new(source: &Path, path: &Path, names: &[String]) -> Self {
        MetricsJson {
            source: source.to_path_buf(),
            path: path.to_path_buf(),
            names: names.to_vec(),
            position: Position::default(),
            body: 0,
        }
    }

    /// Brings the file up to date, durably.
    pub fn update(&mut self) -> Result<()> {
        let old = self.reusable();
        if old.is_none() {
            (self.position, self.body) = (Position::default(), 0);
        }
        // An error of ours cannot travel through io::Error with its place and hint.
        let mut failed = None;
        let (mut position, mut body) = (self.position, self.body);
        let written = files::write_atomic(&self.path, |out| {
            let copied = old.map(|file| io::copy(&mut file.take(body), out)).transpose()?;
            if copied.is_none() {
                out.write_all(b"[")?;
                body = 1;
            }
            self.convert(&mut position, &mut body, out).map_err(|e| {
                let text = e.to_string();
                failed = Some(e);
                io::Error::other(text)
            })?;
            out.write_all(CLOSING)
        });
        if let Some(error) = failed {
            return Err(error);
        }
        written?;
        (self.position, self.body) = (position, body);
        Ok(())
    }

    /// Our last file, if it is still there and as long as we left it.
    fn reusable(&self) -> Option<File> {
        let file = File::open(&self.path).ok().filter(|_| self.body > 0)?;
        let length = file.metadata().ok()?.len();
        (length == self.body + CLOSING.len() as u64).then_some(file)
    }

    fn convert(&self, position: &mut Position, body: &mut u64, out: &mut impl Write) -> Result<()> {
        let mut records = jsonl::read_from(&self.source, *position)?;
        while let Some(record) = records.next() {
            if let Some(entry) = entry(&record?.value, &self.names) {
                let text = format!("{}{entry}", if *body > 1 { ",\n" } else { "\n" });
                out.write_all(text.as_bytes()).map_err(|e| Error::write(&self.path, &e))?;
                *body += text.len() as u64;
            }
            *position = records.position();
        }
        Ok(())
    }
}

/// The entry that a record becomes, if its kind has one.
fn entry(record: &Value, names: &[String]) -> Option<Value> {
    let prefix = match record["kind"].as_str()? {
        SPLIT => {
            let mut split = record.as_object()?.clone();
            split.retain(|key, _| key != "kind" && key != "step");
            return Some(json!({ SPLIT: split }));
        }
        "train" => "train_",
        "val_batch" => "val_",
        "val" => "avg_val_",
        "test_batch" => "test_",
        "test" => "avg_test_",
        _ => return None,
    };
    let mut entry = Map::new();
    if let Some(epoch) = record["epoch"].as_f64() {
        entry.insert("Epoch".to_string(), json!(epoch as u64));
    }
    entry.insert("Step".to_string(), record["step"].clone());
    for name in names {
        let given = record.get(name).cloned();
        let derived = || (name == PERPLEXITY).then(|| json!(record["loss"].as_f64().map(f64::exp)));
        if let Some(value) = given.or_else(derived) {
            entry.insert(format!("{prefix}{name}"), rounded(&value));
        }
    }
    for name in BARE {
        if let Some(value) = record.get(name) {
            entry.insert(name.to_string(), rounded(value));
        }
    }
    Some(Value::Object(entry))
}

/// A float to 4 places, by its exact decimal value, halves to even: as Python's `round(x, 4)`.
/// Anything else is copied.
fn rounded(value: &Value) -> Value {
    match value.as_f64().filter(|_| value.is_f64()) {
        Some(x) => format!("{x:.4}").parse::<f64>().map_or(Value::Null, |x| json!(x)),
        None => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scratch;
    use super::*;
    use crate::report::jsonl::Jsonl;

    fn names() -> Vec<String> {
        ["loss", PERPLEXITY, "acc", "ptm_acc"].map(String::from).to_vec()
    }

    fn array(path: &Path) -> Vec<Value> {
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn the_seeds_array() {
        let dir = scratch("array");
        let (source, path) = (dir.join("metrics.jsonl"), dir.join("metrics.json"));
        let mut out = Jsonl::open(&source).unwrap();
        let mut array_file = MetricsJson::new(&source, &path, &names());
        array_file.update().unwrap();
        assert_eq!(array(&path).len(), 0);
        let records = [
            json!({"kind": "split", "step": 0, "train": 90, "val": 5, "test": 5, "seed": 42,
                   "file": "a.csv"}),
            json!({"kind": "train", "step": 1, "epoch": 1.26, "loss": 2.5, "lr": 1e-4,
                   "acc": 0.123_456, "ptm_acc": null, "act_bs": 8, "act_seq_len": 512}),
            json!({"kind": "resume", "step": 1}),
            json!({"kind": "val_batch", "step": 1, "epoch": 1.26, "loss": 800.0}),
        ];
        for record in &records {
            out.append(record).unwrap();
        }
        array_file.update().unwrap();
        out.append(
            &json!({"kind": "val", "step": 1, "epoch": 2.0, "loss": 0.3, "preplexity": 7.0}),
        )
        .unwrap();
        array_file.update().unwrap();
        // The next update has nothing left to convert, and changes nothing.
        assert_eq!(array_file.position.bytes, std::fs::metadata(&source).unwrap().len());
        array_file.update().unwrap();
        let expected = [
            json!({"split": {"train": 90, "val": 5, "test": 5, "seed": 42, "file": "a.csv"}}),
            json!({"Epoch": 1, "Step": 1, "train_loss": 2.5, "train_preplexity": 12.1825,
                   "train_acc": 0.1235, "train_ptm_acc": null, "act_bs": 8, "act_seq_len": 512}),
            json!({"Epoch": 1, "Step": 1, "val_loss": 800.0, "val_preplexity": null}),
            json!({"Epoch": 2, "Step": 1, "avg_val_loss": 0.3, "avg_val_preplexity": 7.0}),
        ];
        assert_eq!(array(&path), expected);
        let grown = std::fs::read(&path).unwrap();
        MetricsJson::new(&source, &path, &names()).update().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), grown);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn an_altered_file_is_made_anew_and_a_damaged_source_is_told() {
        let dir = scratch("anew");
        let (source, path) = (dir.join("metrics.jsonl"), dir.join("metrics.json"));
        let mut out = Jsonl::open(&source).unwrap();
        out.append(&json!({"kind": "test", "step": 3, "loss": 2.0})).unwrap();
        let mut file = MetricsJson::new(&source, &path, &names());
        file.update().unwrap();
        std::fs::write(&path, "[]").unwrap();
        file.update().unwrap();
        assert_eq!(array(&path)[0]["avg_test_preplexity"], json!(7.3891));
        let before = std::fs::read(&path).unwrap();
        let text = std::fs::read_to_string(&source).unwrap();
        std::fs::write(&source, text + "rubbish\n").unwrap();
        let error = file.update().unwrap_err();
        assert_eq!(error.code(), 5);
        assert!(error.to_string().contains("metrics.jsonl:2: "), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn rounding_is_pythons() {
        // round(x, 4) in Python 3.
        for (x, expected) in [(0.00005, 0.0001), (0.12345, 0.1235), (0.00015, 0.0001), (2.0, 2.0)] {
            assert_eq!(rounded(&json!(x)), json!(expected), "{x}");
        }
        assert_eq!(rounded(&json!(0.03125)), json!(0.0312));
        assert_eq!(rounded(&json!(8)).to_string(), "8");
    }
}
