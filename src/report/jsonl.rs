//! `metrics.jsonl`: the truth about a run, one record a line, appended and never rewritten except
//! to cut back what a killed run did after its last checkpoint.
//!
//! Every record has a `kind` (`train`, `val`, `test` and others) and the `step` after which it was
//! written; steps never go down in a file. A line is one write, so a reader sees whole lines, and a
//! crash leaves at most one half-written line at the end, which nobody counts.

use crate::error::{Error, Result};
use crate::files;
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// An open record file.
#[derive(Debug)]
pub struct Jsonl {
    file: File,
    path: PathBuf,
    last_step: Option<u64>,
}

impl Jsonl {
    /// Opens a file for appending, and makes it if it is not there. A half-written last line is
    /// dropped. On a resume, [`cut_back`] comes first.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e| Error::write(path, &e);
        let fresh = !path.exists();
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(path).map_err(failed)?;
        if fresh {
            files::sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        }
        let mut records = read(path)?;
        let mut last_step = None;
        for record in &mut records {
            last_step = record?.step.or(last_step);
        }
        if records.position.bytes < file.metadata().map_err(failed)?.len() {
            file.set_len(records.position.bytes).map_err(failed)?;
        }
        Ok(Jsonl { file, path: path.to_path_buf(), last_step })
    }

    /// The step of the last record, if there is one.
    pub fn last_step(&self) -> Option<u64> {
        self.last_step
    }

    /// Appends one record in one write. It must have a `kind` and a `step` that is not below the
    /// last one; anything else is a bug of the caller (exit code 70).
    pub fn append(&mut self, record: &Value) -> Result<()> {
        let kind = record.get("kind").and_then(Value::as_str);
        let (Some(_), Some(step)) = (kind, step_of(record)) else {
            return Err(Error::bug(format!("a record without kind or step: {record}")));
        };
        if let Some(last) = self.last_step.filter(|last| step < *last) {
            return Err(Error::bug(format!("a record of step {step} after one of step {last}"))
                .at(self.path.display()));
        }
        let mut line = record.to_string();
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|e| Error::write(&self.path, &e))?;
        self.last_step = Some(step);
        Ok(())
    }

    /// Makes everything appended so far durable. Call it before a checkpoint gets its name, so that
    /// the checkpoint never knows of a step that the file has lost.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::write(&self.path, &e))
    }
}

/// One record and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Line number from 1.
    pub line: u64,
    /// Its step, if it has one.
    pub step: Option<u64>,
    /// The record itself.
    pub value: Value,
}

/// The records of a file in order. A half-written last line is not one of them.
pub struct Records {
    reader: BufReader<File>,
    path: PathBuf,
    buffer: Vec<u8>,
    position: Position,
}

/// How far a file has been read: whole lines, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Lines so far.
    pub lines: u64,
    /// Bytes so far.
    pub bytes: u64,
}

/// Reads a file from its beginning. It may still be growing.
pub fn read(path: &Path) -> Result<Records> {
    read_from(path, Position::default())
}

/// Reads on from where an earlier reader of the same file stood.
pub fn read_from(path: &Path, position: Position) -> Result<Records> {
    let mut file = File::open(path).map_err(|e| Error::read(path, &e))?;
    file.seek(SeekFrom::Start(position.bytes)).map_err(|e| Error::read(path, &e))?;
    let reader = BufReader::with_capacity(1 << 16, file);
    Ok(Records { reader, path: path.to_path_buf(), buffer: Vec::new(), position })
}

impl Records {
    /// The end of the last line that was read.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next whole line into the buffer, newline included; false at the end.
    fn next_line(&mut self) -> Result<bool> {
        self.buffer.clear();
        let n = self.reader.read_until(b'\n', &mut self.buffer);
        let n = n.map_err(|e| Error::read(&self.path, &e))?;
        if !self.buffer.ends_with(b"\n") {
            return Ok(false);
        }
        self.position.lines += 1;
        self.position.bytes += n as u64;
        Ok(true)
    }

    fn parse(&self) -> Result<Record> {
        match serde_json::from_slice::<Value>(&self.buffer) {
            Ok(value) if value.is_object() => {
                Ok(Record { line: self.position.lines, step: step_of(&value), value })
            }
            Ok(_) => Err(self.damaged("a record must be a JSON object")),
            Err(e) => Err(self.damaged(&format!("not a whole record: {e}"))),
        }
    }

    fn damaged(&self, what: &str) -> Error {
        Error::damaged(what)
            .at(format!("{}:{}", self.path.display(), self.position.lines))
            .hint("mend or delete this line; training itself does not need the file")
    }
}

impl Iterator for Records {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.next_line() {
            Ok(true) => Some(self.parse()),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

fn step_of(record: &Value) -> Option<u64> {
    record.get("step").and_then(Value::as_u64)
}

/// What a resume at `step` keeps: no record of a later step, none of an evaluation after that very
/// step if it is still to be made (`evaluated` is the last step that was evaluated), and none of a
/// test: it is a run's last act, so a run that goes on makes it again.
pub fn known_at(step: u64, evaluated: u64) -> impl Fn(&Record) -> bool {
    move |record| {
        let kind = record.value.get("kind").and_then(Value::as_str);
        let test = matches!(kind, Some("test" | "test_batch"));
        let validation = matches!(kind, Some("val" | "val_batch"));
        let known = |s| s < step || s == step && (!validation || evaluated == step);
        !test && record.step.is_none_or(known)
    }
}

/// Drops every record that `keep` does not want ([`known_at`]), and a half-written last line,
/// durably. Returns how many records went. No file is an empty one.
///
/// A crash of the machine may leave lines of rubbish behind the last synced one; they go too. An
/// unreadable line in front of a record that stays is an error with its line (exit code 5).
pub fn cut_back(path: &Path, keep: impl Fn(&Record) -> bool) -> Result<u64> {
    if !path.exists() {
        return Ok(0);
    }
    let (kept, dropped) = survey(path, keep)?;
    let length = std::fs::metadata(path).map_err(|e| Error::read(path, &e))?.len();
    if dropped == 0 && kept.last().map_or(0, |range| range.1) == length {
        return Ok(0);
    }
    let mut source = File::open(path).map_err(|e| Error::read(path, &e))?;
    files::write_atomic(path, |out| {
        for (start, end) in &kept {
            source.seek(SeekFrom::Start(*start))?;
            std::io::copy(&mut std::io::Read::take(&mut source, end - start), out)?;
        }
        Ok(())
    })?;
    Ok(dropped)
}

/// The byte ranges (start, end) of the lines that stay, joined where they touch, and the number of
/// lines that go.
fn survey(path: &Path, keep: impl Fn(&Record) -> bool) -> Result<(Vec<(u64, u64)>, u64)> {
    let mut records = read(path)?;
    let mut kept: Vec<(u64, u64)> = Vec::new();
    let mut dropped = 0;
    let mut unreadable = None;
    loop {
        let start = records.position.bytes;
        if !records.next_line()? {
            return Ok((kept, dropped));
        }
        let end = records.position.bytes;
        match records.parse() {
            Ok(record) if keep(&record) => {
                if let Some(error) = unreadable {
                    return Err(error);
                }
                match kept.last_mut() {
                    Some(range) if range.1 == start => range.1 = end,
                    _ => kept.push((start, end)),
                }
            }
            Ok(_) => dropped += 1,
            Err(error) => {
                dropped += 1;
                unreadable.get_or_insert(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scratch;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn train(step: u64) -> Value {
        json!({"kind": "train", "step": step, "loss": 1.0 / step as f64})
    }

    fn steps(path: &Path) -> Vec<u64> {
        read(path).unwrap().map(|r| r.unwrap().step.unwrap()).collect()
    }

    #[test]
    fn an_evaluation_that_is_still_to_be_made_is_dropped() {
        let dir = scratch("pending");
        let path = dir.join("m.jsonl");
        let mut file = Jsonl::open(&path).unwrap();
        file.append(&train(3)).unwrap();
        file.append(&json!({"kind": "val", "step": 3})).unwrap();
        assert_eq!(cut_back(&path, known_at(3, 3)).unwrap(), 0);
        assert_eq!(cut_back(&path, known_at(3, 0)).unwrap(), 1);
        assert_eq!(steps(&path), [3]);
    }

    #[test]
    fn what_is_appended_is_read_back() {
        let dir = scratch("roundtrip");
        let path = dir.join("metrics.jsonl");
        let mut out = Jsonl::open(&path).unwrap();
        let value = json!({"kind": "val", "step": 7, "loss": 0.1f64 + 0.2, "nan": f64::NAN});
        out.append(&train(3)).unwrap();
        out.append(&value).unwrap();
        out.sync().unwrap();
        let second = read(&path).unwrap().nth(1).unwrap().unwrap();
        assert_eq!((second.line, second.step), (2, Some(7)));
        assert_eq!(second.value["loss"].as_f64(), Some(0.1 + 0.2));
        assert!(second.value["nan"].is_null());
        assert_eq!(out.append(&train(6)).unwrap_err().code(), 70);
        assert_eq!(out.append(&json!({"step": 9})).unwrap_err().code(), 70);
        assert_eq!(Jsonl::open(&path).unwrap().last_step(), Some(7));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn rubbish_behind_goes_and_rubbish_between_is_told() {
        let dir = scratch("rubbish");
        let path = dir.join("metrics.jsonl");
        let lines = |parts: &[&str]| std::fs::write(&path, parts.concat()).unwrap();
        let (one, two) = (&*format!("{}\n", train(1)), &*format!("{}\n", train(2)));
        lines(&[one, "\0\0\n", two, "{\"kind\": \"tr"]);
        assert_eq!(cut_back(&path, known_at(1, 1)).unwrap(), 2);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), one);
        lines(&[one, "[1]\n", two]);
        let error = cut_back(&path, known_at(2, 2)).unwrap_err();
        assert_eq!(error.code(), 5);
        assert!(error.to_string().contains("metrics.jsonl:2: "), "{error}");
        assert!(Jsonl::open(&path).is_err());
        assert_eq!(cut_back(&dir.join("absent"), known_at(2, 2)).unwrap(), 0);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn nothing_to_drop_leaves_the_file_alone() {
        use std::os::unix::fs::MetadataExt;
        let dir = scratch("alone");
        let path = dir.join("metrics.jsonl");
        let inode = || std::fs::metadata(&path).unwrap().ino();
        let mut out = Jsonl::open(&path).unwrap();
        for step in 1..=3 {
            out.append(&train(step)).unwrap();
        }
        let before = inode();
        assert_eq!(cut_back(&path, known_at(3, 3)).unwrap(), 0);
        assert_eq!(inode(), before);
        assert_eq!(cut_back(&path, known_at(2, 2)).unwrap(), 1);
        assert_ne!(inode(), before);
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// One thing that befalls a run.
    #[derive(Clone, Debug)]
    enum Event {
        /// So many further steps, the last of them with a checkpoint.
        Train(u64),
        /// So many further steps without a checkpoint, then a crash that loses this share of the
        /// bytes since the last sync, and a resume from the last checkpoint.
        Crash(u64, f64),
        /// The last checkpoint is damaged: a crash that goes back this many steps further.
        Back(u64),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            (1u64..6).prop_map(Event::Train),
            (0u64..6, 0.0..=1.0f64).prop_map(|(n, lost)| Event::Crash(n, lost)),
            (1u64..8).prop_map(Event::Back),
        ];
        prop::collection::vec(event, 1..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn curves_never_double(events in events()) {
            let dir = scratch("curves");
            let path = dir.join("metrics.jsonl");
            let (mut checkpoint, mut synced) = (0u64, 0u64);
            for event in events {
                let lost = match event {
                    Event::Crash(_, lost) => lost,
                    Event::Train(_) | Event::Back(_) => 0.0,
                };
                if let Event::Back(n) = event {
                    checkpoint = checkpoint.saturating_sub(n);
                }
                cut_back(&path, known_at(checkpoint, checkpoint)).unwrap();
                let mut out = Jsonl::open(&path).unwrap();
                let n = match event {
                    Event::Train(n) | Event::Crash(n, _) => n,
                    Event::Back(_) => 0,
                };
                for step in checkpoint + 1..=checkpoint + n {
                    out.append(&train(step)).unwrap();
                }
                let length = std::fs::metadata(&path).unwrap().len();
                match event {
                    Event::Train(_) => {
                        out.sync().unwrap();
                        checkpoint += n;
                        synced = length;
                    }
                    Event::Crash(..) => {
                        let keep = length - ((length - synced) as f64 * lost) as u64;
                        OpenOptions::new().write(true).open(&path).unwrap().set_len(keep).unwrap();
                    }
                    Event::Back(_) => synced = length,
                }
            }
            cut_back(&path, known_at(checkpoint, checkpoint)).unwrap();
            // Every step once, in order, none missing and none of the lost future.
            prop_assert_eq!(steps(&path), (1..=checkpoint).collect::<Vec<_>>());
            std::fs::remove_dir_all(&dir).unwrap();
        }

        #[test]
        fn a_file_cut_at_any_byte_still_opens(
            records in 1u64..5,
            at in 0.0..=1.0f64,
            resumed in prop::option::of(0u64..6),
        ) {
            let dir = scratch("any-byte");
            let path = dir.join("metrics.jsonl");
            let text: String = (1..=records).map(|s| format!("{}\n", train(s))).collect();
            let keep = (text.len() as f64 * at) as usize;
            std::fs::write(&path, &text[..keep]).unwrap();
            let whole = text[..keep].matches('\n').count() as u64;
            if let Some(step) = resumed {
                cut_back(&path, known_at(step, step)).unwrap();
            }
            let mut out = Jsonl::open(&path).unwrap();
            out.append(&train(9)).unwrap();
            let last = resumed.unwrap_or(whole).min(whole);
            let expected: Vec<u64> = (1..=last).chain([9]).collect();
            prop_assert_eq!(steps(&path), expected);
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }
}
