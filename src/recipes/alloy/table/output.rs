//! Prepared files: written row by row under a temporary name, published together, and known again
//! by a stamp that holds what they were made from.

use super::config::{AlloyDataset, TextSection, Wanted};
use crate::config::{Dataset, identity};
use crate::data::split::Part;
use crate::error::{Error, Result};
use crate::files;
use crate::progress;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// Changes where the same table and keys would give other files.
const FORMAT: u32 = 1;

/// Where the files of one target are.
#[derive(Clone, Debug)]
pub struct Layout {
    /// `dataset.prepared_dir`.
    root: PathBuf,
    short: String,
}

impl Layout {
    /// The files of a target.
    pub fn new(own: &AlloyDataset, wanted: &Wanted) -> Layout {
        Layout { root: own.prepared_dir.to_path_buf(), short: wanted.short.clone() }
    }

    /// The directory of the target.
    pub fn dir(&self) -> PathBuf {
        self.root.join(&self.short)
    }

    /// The cleaned table, all rows that have the target.
    pub fn cleaned(&self) -> PathBuf {
        self.root.join(format!("{}.csv", self.short))
    }

    /// A part's table with the columns `target` and `target_raw`.
    pub fn converted(&self, part: Part) -> PathBuf {
        self.dir().join(format!("{}_{}_convert.csv", prefix(part), self.short))
    }

    /// A part's samples: `id,text,target,target_raw`.
    pub fn samples(&self, part: Part) -> PathBuf {
        self.dir().join(format!("{}_{}_text.csv", prefix(part), self.short))
    }

    /// What turns predictions into real units, or class indices into names.
    pub fn target(&self, classes: bool) -> PathBuf {
        self.dir().join(if classes { "classes.json" } else { "normalization.json" })
    }

    /// What makes texts of new rows.
    pub fn text_plan(&self) -> PathBuf {
        self.dir().join("text_plan.json")
    }

    /// The report, `json` or `txt`.
    pub fn report(&self, extension: &str) -> PathBuf {
        self.dir().join(format!("prepare_report.{extension}"))
    }

    fn stamp(&self) -> PathBuf {
        self.dir().join("prepared.json")
    }
}

/// How the seed begins the names of a part's files.
fn prefix(part: Part) -> &'static str {
    match part {
        Part::Train => "tr",
        Part::Val => "vl",
        Part::Test => "te",
    }
}

/// A CSV file that is there as a whole or not at all.
pub struct Output {
    path: PathBuf,
    temporary: PathBuf,
    csv: Option<csv::Writer<BufWriter<File>>>,
}

impl Output {
    /// Begins a file with its column names.
    pub fn create<'a>(path: PathBuf, header: impl IntoIterator<Item = &'a str>) -> Result<Output> {
        let temporary = files::temporary_name(&path);
        let file = File::create(&temporary).map_err(|e| Error::write(&path, &e))?;
        let buffer = BufWriter::with_capacity(1 << 18, file);
        let csv = csv::WriterBuilder::new().buffer_capacity(1 << 16).from_writer(buffer);
        let mut output = Output { path, temporary, csv: Some(csv) };
        output.row(header)?;
        Ok(output)
    }

    /// Writes a row.
    pub fn row<'a>(&mut self, fields: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let Some(csv) = &mut self.csv else {
            return Err(Error::bug("a file was written after its end"));
        };
        csv.write_record(fields).map_err(|error| match error.into_kind() {
            csv::ErrorKind::Io(error) => Error::write(&self.path, &error),
            other => Error::bug(format!("a row could not be written: {other:?}")),
        })
    }

    /// Makes the bytes durable, under the temporary name still.
    pub fn sync(&mut self) -> Result<()> {
        let Some(csv) = self.csv.take() else { return Ok(()) };
        let failed = |e: &std::io::Error| Error::write(&self.path, e);
        let buffer = csv.into_inner().map_err(|e| failed(e.error()))?;
        let file = buffer.into_inner().map_err(|e| failed(e.error()))?;
        file.sync_all().map_err(|e| failed(&e))
    }

    /// Gives the file its name.
    pub fn publish(mut self) -> Result<PathBuf> {
        self.sync()?;
        files::publish(&self.temporary, &self.path)?;
        Ok(self.path.clone())
    }
}

impl Drop for Output {
    /// An unfinished file leaves nothing; a published one has no temporary name any more.
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Removes what killed processes of this machine left unfinished in a directory.
pub fn clear_leftovers(dir: &Path) -> Result<()> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::read(dir, &e))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let dead = name
            .rsplit_once('-')
            .filter(|(rest, _)| files::is_temporary(&name) && rest.ends_with(&files::host_name()))
            .filter(|(_, pid)| pid.parse::<u32>().is_ok())
            .is_some_and(|(_, pid)| !Path::new("/proc").join(pid).exists());
        if dead {
            std::fs::remove_file(entry.path()).map_err(|e| Error::write(&entry.path(), &e))?;
        }
    }
    Ok(())
}

/// What a target's files were made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    format: u32,
    /// Size and hash of the table.
    table: (u64, String),
    /// Hash of the keys that matter.
    settings: String,
    /// Name, below `dataset.prepared_dir`, to size.
    files: BTreeMap<String, u64>,
}

impl Stamp {
    /// For a table of this content and these keys; files are added as they are published.
    pub fn new(
        table: (u64, String),
        dataset: &Dataset,
        own: &AlloyDataset,
        text: &TextSection,
        wanted: &Wanted,
    ) -> Result<Stamp> {
        let settings = settings(dataset, own, text, wanted)?;
        Ok(Stamp { format: FORMAT, table, settings, files: BTreeMap::new() })
    }

    /// Takes away the stamp of what is about to be replaced.
    pub fn withdraw(layout: &Layout) -> Result<()> {
        let path = layout.stamp();
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::write(&path, &e)),
            _ => Ok(()),
        }
    }

    /// Writes the stamp for these published files.
    pub fn publish(mut self, layout: &Layout, published: &[PathBuf]) -> Result<()> {
        for path in published {
            let size = std::fs::metadata(path).map_err(|e| Error::read(path, &e))?.len();
            let name = path.strip_prefix(&layout.root).unwrap_or(path);
            self.files.insert(name.to_string_lossy().into_owned(), size);
        }
        let text = serde_json::to_string_pretty(&self)
            .map_err(|e| Error::bug(format!("a stamp could not be written: {e}")))?;
        files::write_text(&layout.stamp(), &(text + "\n"))
    }

    /// The stamp of a target's files, if they are all there in full; a damaged one is none.
    pub fn read(layout: &Layout) -> Option<Stamp> {
        let text = std::fs::read_to_string(layout.stamp()).ok()?;
        let stamp: Stamp = serde_json::from_str(&text).ok()?;
        let whole = |(name, size): (&String, &u64)| {
            std::fs::metadata(layout.root.join(name)).is_ok_and(|found| found.len() == *size)
        };
        (stamp.format == FORMAT && stamp.files.iter().all(whole)).then_some(stamp)
    }

    /// A line that is another where the table or the keys are.
    pub fn identity(&self) -> String {
        format!("{}-{}-{}", self.format, self.table.1, self.settings)
    }

    /// Whether files were made with the same keys; the table is not looked at.
    pub fn same_settings(&self, other: &Stamp) -> bool {
        self.settings == other.settings
    }

    /// Whether they were made from the same table with the same keys.
    pub fn same(&self, other: &Stamp) -> bool {
        self.same_settings(other) && self.table == other.table
    }
}

/// A hash of every key that prepared files depend on.
fn settings(
    dataset: &Dataset,
    own: &AlloyDataset,
    text: &TextSection,
    wanted: &Wanted,
) -> Result<String> {
    let mapping = match &dataset.split_mapping {
        Some(path) => Some(content(path)?),
        None => None,
    };
    let value = json!({
        "short": wanted.short, "column": wanted.column, "targets": own.wanted()?.len(),
        "columns": own.columns, "classes": own.classes, "id": own.id_column_name,
        "split": own.split, "exclude": own.exclude, "missing": own.missing,
        "outliers": own.outliers, "normalization": own.normalization, "text": text,
        "val_size": dataset.val_size, "test_size": dataset.test_size,
        "split_seed": dataset.split_seed, "mapping": mapping, "subsample": dataset.subsample,
    });
    Ok(identity(&value))
}

/// Size and hash of a file's bytes.
pub fn content(path: &Path) -> Result<(u64, String)> {
    let mut file = File::open(path).map_err(|e| Error::read(path, &e))?;
    let mut hash = Xxh3::new();
    let mut buffer = vec![0u8; 1 << 20];
    let mut size = 0;
    loop {
        let n = file.read(&mut buffer).map_err(|e| Error::read(path, &e))?;
        if n == 0 {
            return Ok((size, format!("{:032x}", hash.digest128())));
        }
        hash.update(&buffer[..n]);
        size += n as u64;
        progress::tick()?;
    }
}
