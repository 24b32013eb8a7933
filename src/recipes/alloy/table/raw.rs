//! Files of samples, one after the other: CSV or JSON lines with `text`, `target`, `target_raw`.

use super::reader::TableReader;
use super::samples::Sample;
use super::target::Target;
use crate::error::{Error, Result};
use crate::files;
use crate::progress;
use csv::StringRecord;
use serde_json::{Map, Value};
use std::io::BufRead;
use std::path::{Path, PathBuf};

/// What to do about a file that lacks a field.
pub const HINT: &str =
    "ready samples have the fields text, target and target_raw (and id, if you like)";

/// A sample as a file has it.
pub struct Raw {
    /// Its id, else its number in the file.
    pub id: String,
    /// `file:line`.
    pub place: String,
    /// What the model reads.
    pub text: String,
    /// The normalised value, or the index of the class.
    pub target: Option<f64>,
    /// The target as the table has it.
    pub target_raw: Option<String>,
}

impl Raw {
    /// Gives a sample whose target is known, checking class indices.
    pub fn sample(self, target: &Target) -> Result<Sample> {
        let value = match (self.target, &self.target_raw) {
            (Some(value), _) => value,
            (None, Some(raw)) => match (raw.parse::<f64>(), target) {
                (Ok(value), Target::Regression { .. }) => target.normalised(value),
                _ => return Err(Error::data("target is empty").at(self.place)),
            },
            (None, None) => return Err(Error::data("target is empty").at(self.place)),
        };
        if let Target::Classes { names, .. } = target {
            let known = value.fract() == 0.0 && (0.0..names.len() as f64).contains(&value);
            if !known {
                let what =
                    format!("target is {value}, and classes are numbered 0 to {}", names.len() - 1);
                return Err(Error::data(what).at(self.place));
            }
        }
        Ok(Sample {
            id: self.id,
            place: self.place,
            text: self.text,
            target: value,
            target_raw: self.target_raw.unwrap_or_else(|| format!("{}", target.real(value))),
        })
    }
}

/// The samples of a file, read as they are asked for.
pub struct RawReader {
    path: PathBuf,
    source: Source,
    read: u64,
}

enum Source {
    Csv { table: Box<TableReader>, record: StringRecord, fields: Fields },
    Json { text: Box<dyn BufRead + Send>, line: String, number: u64 },
}

/// Where a CSV has what.
struct Fields {
    id: Option<usize>,
    text: usize,
    target: Option<usize>,
    target_raw: Option<usize>,
}

impl RawReader {
    /// Opens a file, which may be gzipped; `.jsonl`, `.ndjson` and `.json` are JSON lines.
    pub fn open(path: &Path) -> Result<RawReader> {
        let name = path.to_string_lossy().to_ascii_lowercase();
        let bare = name.strip_suffix(".gz").unwrap_or(&name);
        let source = match [".jsonl", ".ndjson", ".json"].iter().any(|end| bare.ends_with(end)) {
            true => Source::Json { text: files::open_text(path)?, line: String::new(), number: 0 },
            false => csv_source(path)?,
        };
        Ok(RawReader { path: path.to_path_buf(), source, read: 0 })
    }

    /// All samples of a file; none is a data error.
    pub fn all(path: &Path) -> Result<Vec<Raw>> {
        let raws: Vec<Raw> = RawReader::open(path)?.collect::<Result<_>>()?;
        match raws.is_empty() {
            true => Err(Error::data("there is no sample in it").at(path.display())),
            false => Ok(raws),
        }
    }

    fn next_raw(&mut self) -> Result<Option<Raw>> {
        let number = self.read + 1;
        let raw = match &mut self.source {
            Source::Csv { table, record, fields } => match table.read(record)? {
                Some(at) => {
                    csv_raw(record, fields, number, format!("{}:{}", self.path.display(), at.line))?
                }
                None => return Ok(None),
            },
            Source::Json { text, line, number: at } => {
                match next_line(text.as_mut(), line, at).map_err(|e| Error::read(&self.path, &e))? {
                    true => json_raw(line, number, format!("{}:{at}", self.path.display()))?,
                    false => return Ok(None),
                }
            }
        };
        progress::tick()?;
        self.read = number;
        Ok(Some(raw))
    }
}

impl Iterator for RawReader {
    type Item = Result<Raw>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_raw().transpose()
    }
}

/// A field that may be blank, as a finite number.
fn number(text: &str, place: &str) -> Result<Option<f64>> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    match text.trim().parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(Some(value)),
        Ok(_) => Err(Error::data(format!("target is {}, which is not finite", text.trim())).at(place)),
        Err(_) => Err(Error::data(format!("target is {text:?}, not a number")).at(place).hint(
            "target holds the normalised number or the index of the class, target_raw what it means",
        )),
    }
}

fn csv_source(path: &Path) -> Result<Source> {
    let table = TableReader::open(path, None)?;
    let find = |name: &str| table.headers.iter().position(|header| header.trim() == name);
    let missing = |name: &str| {
        let columns: Vec<&str> = table.headers.iter().collect();
        let what = format!("no column {name:?}; the columns are {}", columns.join(", "));
        Error::data(what).at(format!("{}:1", path.display())).hint(HINT)
    };
    let fields = Fields {
        id: find("id"),
        text: find("text").ok_or_else(|| missing("text"))?,
        target: find("target"),
        target_raw: find("target_raw"),
    };
    if fields.target.is_none() && fields.target_raw.is_none() {
        return Err(missing("target"));
    }
    Ok(Source::Csv { table: Box::new(table), record: StringRecord::new(), fields })
}

fn csv_raw(record: &StringRecord, fields: &Fields, number_of: u64, place: String) -> Result<Raw> {
    let field = |index: Option<usize>| {
        index.and_then(|i| record.get(i)).filter(|field| !field.trim().is_empty())
    };
    Ok(Raw {
        id: field(fields.id).map_or_else(|| number_of.to_string(), String::from),
        text: field(Some(fields.text)).ok_or_else(|| empty_text(&place))?.to_string(),
        target: number(field(fields.target).unwrap_or_default(), &place)?,
        target_raw: field(fields.target_raw).map(String::from),
        place,
    })
}

fn empty_text(place: &str) -> Error {
    Error::data("text is empty").at(place).hint("give the sample a text, or take it out")
}

/// Reads the next line that is not blank; false at the end.
fn next_line(text: &mut dyn BufRead, line: &mut String, number: &mut u64) -> std::io::Result<bool> {
    loop {
        line.clear();
        if text.read_line(line)? == 0 {
            return Ok(false);
        }
        *number += 1;
        if !line.trim_start_matches('\u{feff}').trim().is_empty() {
            return Ok(true);
        }
    }
}

fn json_raw(line: &str, number_of: u64, place: String) -> Result<Raw> {
    let line = line.trim_start_matches('\u{feff}');
    let map: Map<String, Value> = serde_json::from_str(line).map_err(|e| {
        Error::data(format!("not a JSON object: {e}")).at(&place).hint(
            "JSON lines hold one {\"text\": ..., \"target\": ..., \"target_raw\": ...} a line",
        )
    })?;
    let field = |name: &str| match map.get(name) {
        Some(Value::String(text)) if !text.trim().is_empty() => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    Ok(Raw {
        id: field("id").unwrap_or_else(|| number_of.to_string()),
        text: field("text").ok_or_else(|| empty_text(&place).hint(HINT))?,
        target: number(&field("target").unwrap_or_default(), &place)?,
        target_raw: field("target_raw"),
        place,
    })
}
