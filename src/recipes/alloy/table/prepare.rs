//! `prepare`: from a table to samples, for every target in the configuration.
//!
//! Three passes over the table, each in memory that grows by a few bytes a row: the first finds which
//! rows can be used and what their compositions are, the second measures the training part, the third
//! writes. All files of a target appear together at the end.

use super::clean::{Cell, Change, Cleaner};
use super::columns::{Columns, Role};
use super::config::{AlloyDataset, SplitBy, TextSection, Wanted};
use super::job::{Job, Kind, changed, composition_key};
use super::output::{Layout, Output, Stamp, clear_leftovers, content};
use super::parts;
use super::reader::{Place, TableReader};
use super::report::{Report, Tally, TextFacts};
use super::target::{ClassMap, Target};
use super::text::{TextMaker, TextPlan, cells};
use crate::config::Dataset;
use crate::data::split::Part;
use crate::error::{Error, Result};
use crate::files;
use crate::progress;
use csv::StringRecord;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

/// Filled values of a column that say whether it holds words or numbers.
const TYPICAL: usize = 1000;

/// What was prepared.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// One a target; each is also written beside its samples.
    pub reports: Vec<Report>,
    /// Rows of the table.
    pub rows: u64,
    /// How long it took.
    pub seconds: f64,
}

/// The table of the configuration.
fn location(dataset: &Dataset) -> Result<&Path> {
    dataset.dataset_location.as_deref().ok_or_else(|| {
        Error::usage("no table is named").at("dataset.dataset_location").hint(
            "name a CSV of alloys, or ready samples in dataset.train_data and dataset.val_data",
        )
    })
}

/// Whether every target's files are there, made from this table with these keys. Ready-made samples
/// need no preparation.
pub fn is_prepared(dataset: &Dataset, own: &AlloyDataset, text: &TextSection) -> Result<bool> {
    if own.is_ready_made() {
        return Ok(true);
    }
    let wanted = own.wanted()?;
    let stamps: Vec<_> = wanted.iter().map(|w| Stamp::read(&Layout::new(own, w))).collect();
    if stamps.iter().any(Option::is_none) {
        return Ok(false);
    }
    let table = content(location(dataset)?)?;
    for (wanted, stamp) in wanted.iter().zip(stamps) {
        let now = Stamp::new(table.clone(), dataset, own, text, wanted)?;
        if !stamp.is_some_and(|stamp| stamp.same(&now)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What all passes share.
struct Passes<'a> {
    path: &'a Path,
    dataset: &'a Dataset,
    own: &'a AlloyDataset,
    text: &'a TextSection,
    columns: Columns,
    cleaner: Cleaner,
    id: Option<usize>,
    excluded: Vec<usize>,
}

/// Prepares every target of the configuration, in one process. `say` is told what is done.
pub fn prepare(
    dataset: &Dataset,
    own: &AlloyDataset,
    text: &TextSection,
    say: &dyn Fn(&str),
) -> Result<Prepared> {
    let start = Instant::now();
    own.check()?;
    text.check()?;
    if own.is_ready_made() {
        return Err(Error::usage("samples are given ready, there is nothing to prepare")
            .at("dataset.train_data")
            .hint("go on with `trainer train`, or take dataset.train_data and val_data out"));
    }
    let path = location(dataset)?;
    let table = content(path)?;
    let (passes, mut jobs) = Passes::begin(path, dataset, own, text)?;
    progress::enter("reading the table");
    let rows = passes.scan(&mut jobs)?;
    say(&format!("{}: {rows} rows, {} columns", path.display(), passes.columns.list.len()));
    for job in &mut jobs {
        job.split(&passes.columns, dataset, own)?;
    }
    progress::enter("measuring the training part");
    let targets = passes.measure(&mut jobs, rows)?;
    progress::enter("writing samples");
    let reports = passes.write(&mut jobs, targets, rows, &table)?;
    Ok(Prepared { reports, rows, seconds: start.elapsed().as_secs_f64() })
}

impl<'a> Passes<'a> {
    /// Reads the column names and finds what the configuration names.
    fn begin(
        path: &'a Path,
        dataset: &'a Dataset,
        own: &'a AlloyDataset,
        text: &'a TextSection,
    ) -> Result<(Passes<'a>, Vec<Job>)> {
        let reader = TableReader::open(path, dataset.subsample)?;
        let mut columns = Columns::unify(&reader.file(), &reader.headers, &own.columns, true)?;
        let cleaner = Cleaner::new(&own.missing, reader.delimiter);
        if let Some(name) = &own.id_column_name {
            let found = columns.find(name).map_err(|e| e.at("dataset.id_column_name"))?;
            // Whatever it is called: a name of the row is nothing to learn from.
            columns.list[found.index].role = Role::Identifier;
        }
        let find = |name: &str, key: &str| columns.find(name).map_err(|e| e.at(key.to_string()));
        let mut excluded = Vec::new();
        for name in &own.exclude {
            excluded.push(find(name, "dataset.exclude")?.index);
        }
        let id = match &own.id_column_name {
            Some(name) => Some(find(name, "dataset.id_column_name")?.index),
            None => None,
        };
        if own.split == SplitBy::Grouped
            && dataset.split_mapping.is_none()
            && !columns.have_composition()
        {
            return Err(Error::usage("no column says what the alloys are made of")
                .at(format!("{}:1", columns.file))
                .hint(
                    "map your column to it, dataset.columns: {YOUR_HEADER: FORMULA}, or set \
                     dataset.split: random",
                ));
        }
        let passes = Passes { path, dataset, own, text, columns, cleaner, id, excluded };
        let mut jobs = Vec::new();
        let all = own.wanted()?;
        let only = all.len() == 1;
        for wanted in all {
            let key = match own.targets.contains_key(&wanted.short) {
                true => format!("dataset.targets.{}", wanted.short),
                false => "dataset.target".to_string(),
            };
            jobs.push(passes.job(wanted, only).map_err(|e| e.at(key))?);
        }
        if own.classes.is_some() && jobs.iter().all(|job| matches!(job.kind, Kind::Number)) {
            return Err(Error::usage("every target holds numbers, and classes are given")
                .at("dataset.classes")
                .hint("take it out, or prepare the target of classes alone"));
        }
        Ok((passes, jobs))
    }

    /// A target's job. Classes are for the only target, or for those of several that hold words.
    fn job(&self, wanted: Wanted, only: bool) -> Result<Job> {
        let found = self.columns.find(&wanted.column)?;
        let kind = match &self.own.classes {
            Some(classes) if only || self.holds_words(found.index)? => {
                Kind::Classes(ClassMap::new(classes))
            }
            _ => Kind::Number,
        };
        let notes = found.note.into_iter().collect();
        Ok(Job::new(wanted, found.index, kind, notes, self.own))
    }

    /// Whether most of the first values of a column are no numbers.
    fn holds_words(&self, index: usize) -> Result<bool> {
        let (mut filled, mut words) = (0, 0);
        let mut reader = TableReader::open(self.path, self.dataset.subsample)?;
        let mut record = StringRecord::new();
        while filled < TYPICAL && reader.read(&mut record)?.is_some() {
            let text = record.get(index).unwrap_or_default();
            match self.cleaner.clean(&self.columns.list[index], text).0 {
                Cell::Missing => {}
                Cell::Number(..) => filled += 1,
                Cell::Text(_) => (filled, words) = (filled + 1, words + 1),
            }
        }
        Ok(2 * words > filled)
    }

    fn at(&self, place: Place) -> String {
        format!("{}:{}", self.columns.file, place.line)
    }

    /// Calls `each` with every row and its place; the number of rows.
    fn rows(&self, mut each: impl FnMut(&StringRecord, Place) -> Result<()>) -> Result<u64> {
        let mut reader = TableReader::open(self.path, self.dataset.subsample)?;
        let mut record = StringRecord::new();
        let mut rows = 0;
        while let Some(place) = reader.read(&mut record)? {
            each(&record, place).map_err(|e| e.at(self.at(place)))?;
            rows = place.row;
        }
        Ok(rows)
    }

    /// The first pass: usable rows and their compositions; the number of rows.
    fn scan(&self, jobs: &mut [Job]) -> Result<u64> {
        let mut ids: HashMap<u64, u64> = HashMap::new();
        let mapped = self.dataset.split_mapping.is_some();
        let rows = self.rows(|row, place| {
            let composition = composition_key(&self.columns, row, &self.cleaner, place)?;
            let id = self.id.map(|index| row.get(index).unwrap_or_default().trim());
            if let Some(id) = id {
                self.unique(id, place, &mut ids)?;
            }
            let drawn = parts::drawn(self.dataset.split_seed, id, place.row);
            let own = mapped.then(|| id.map_or_else(|| place.row.to_string(), String::from));
            for job in jobs.iter_mut() {
                let column = &self.columns.list[job.column];
                let cell = self.cleaner.clean(column, row.get(job.column).unwrap_or_default());
                job.scan(column, cell, composition, drawn, own.as_deref(), place)?;
            }
            Ok(())
        })?;
        match rows {
            0 => Err(Error::data("no row below the column names").at(&self.columns.file)),
            rows => Ok(rows),
        }
    }

    fn unique(&self, id: &str, place: Place, ids: &mut HashMap<u64, u64>) -> Result<()> {
        if id.is_empty() {
            return Err(Error::data("the id is empty")
                .hint("fill it in, or leave dataset.id_column_name out"));
        }
        match ids.insert(xxh3_64(id.as_bytes()), place.line) {
            Some(line) => Err(Error::data(format!("the id {id:?} stands on line {line} already"))
                .hint("ids must be unique; without dataset.id_column_name rows are numbered")),
            None => Ok(()),
        }
    }

    /// The second pass: what the training part is, and which columns give the target away.
    fn measure(&self, jobs: &mut [Job], rows: u64) -> Result<Vec<Target>> {
        jobs.iter_mut().for_each(|job| job.begin_measure(&self.columns, &self.excluded));
        let again = self.rows(|row, place| {
            if jobs.iter().all(|job| job.part(place.row).is_none()) {
                return Ok(());
            }
            let cells = cells(&self.columns, &self.cleaner, row);
            jobs.iter_mut().try_for_each(|job| job.measure(&cells, place, self.own.outliers))
        })?;
        if again != rows {
            return Err(changed().at(&self.columns.file));
        }
        jobs.iter_mut().map(|job| job.end_measure(&self.columns, self.own)).collect()
    }

    /// The third pass: all files of all targets.
    fn write(
        &self,
        jobs: &mut [Job],
        targets: Vec<Target>,
        rows: u64,
        table: &(u64, String),
    ) -> Result<Vec<Report>> {
        let mut writers = Vec::new();
        for (job, target) in jobs.iter_mut().zip(targets) {
            writers.push(TargetWriter::new(self, job, target)?);
        }
        let mut changes = Changes::new();
        let again = self.rows(|row, place| {
            let cells = self.cells(row, place, &mut changes);
            let composition = match self.columns.have_composition() {
                true if writers.iter().any(|writer| writer.job.part(place.row).is_some()) => {
                    self.columns.composition(row, &self.cleaner)?
                }
                _ => None,
            };
            let id = match self.id {
                Some(index) => row.get(index).unwrap_or_default().trim().to_string(),
                None => place.row.to_string(),
            };
            for writer in &mut writers {
                writer.row(&cells, composition.as_ref(), &id, place, self.own)?;
            }
            Ok(())
        })?;
        if again != rows {
            return Err(changed().at(&self.columns.file));
        }
        writers.into_iter().map(|writer| writer.finish(self, rows, &changes, table)).collect()
    }

    /// The cells of a row, with every change counted.
    fn cells<'r>(
        &self,
        row: &'r StringRecord,
        place: Place,
        changes: &mut Changes,
    ) -> Vec<Cell<'r>> {
        let pairs = self.columns.list.iter().zip(row).enumerate();
        pairs
            .map(|(index, (column, text))| {
                let (cell, change) = self.cleaner.clean(column, text);
                if let Some(change) = change {
                    changes.entry((index, change)).or_default().add(place.line);
                }
                cell
            })
            .collect()
    }
}

/// Changed cells by column and rule.
type Changes = BTreeMap<(usize, Change), Tally>;

/// The files of one target while they are written.
struct TargetWriter<'j> {
    job: &'j mut Job,
    layout: Layout,
    target: Target,
    plan: TextPlan,
    maker: TextMaker,
    cleaned: Output,
    /// Converted table and samples of train, val and test; a part of size 0 has none.
    parts: [Option<(Output, Output)>; 3],
    text: String,
    facts: TextFacts,
    characters: u64,
}

impl<'j> TargetWriter<'j> {
    fn new(passes: &Passes, job: &'j mut Job, target: Target) -> Result<TargetWriter<'j>> {
        let columns = &passes.columns;
        let structures =
            super::leak::structures_allowed(&columns.list[job.column], &job.class_words);
        let plan = TextPlan::new(columns, &job.why, structures, passes.own, passes.text);
        let (maker, _) = TextMaker::new(&plan, columns)?;
        let layout = Layout::new(passes.own, &job.wanted);
        files::make_dir(&layout.dir())?;
        for dir in [layout.dir(), passes.own.prepared_dir.to_path_buf()] {
            clear_leftovers(&dir)?;
        }
        let names = || columns.list.iter().map(|column| column.name.as_str());
        let part = |part: Part| -> Result<Option<(Output, Output)>> {
            if job.parts[part as usize].rows == 0 {
                return Ok(None);
            }
            let with_target = names().chain(["target", "target_raw"]);
            Ok(Some((
                Output::create(layout.converted(part), with_target)?,
                Output::create(layout.samples(part), ["id", "text", "target", "target_raw"])?,
            )))
        };
        Ok(TargetWriter {
            parts: [part(Part::Train)?, part(Part::Val)?, part(Part::Test)?],
            cleaned: Output::create(layout.cleaned(), names())?,
            facts: TextFacts {
                kept: plan.kept.clone(),
                left_out: plan.left_out.clone(),
                structures,
                shortest: u64::MAX,
                ..TextFacts::default()
            },
            job,
            layout,
            target,
            plan,
            maker,
            text: String::new(),
            characters: 0,
        })
    }

    /// Writes a row, if it is one of this target's.
    fn row(
        &mut self,
        cells: &[Cell],
        composition: Option<&super::formula::Composition>,
        id: &str,
        place: Place,
        own: &AlloyDataset,
    ) -> Result<()> {
        let Some((part, target, raw)) =
            self.job.sample(cells, place, &self.target, own.outliers)?
        else {
            return Ok(());
        };
        let target = format!("{target}");
        self.cleaned.row(cells.iter().map(Cell::text))?;
        self.maker.write(cells, composition, &mut self.text);
        let length = self.text.chars().count() as u64;
        self.facts.shortest = self.facts.shortest.min(length);
        self.facts.longest = self.facts.longest.max(length);
        self.characters += length;
        let Some((converted, samples)) = &mut self.parts[part as usize] else {
            return Err(changed());
        };
        converted.row(cells.iter().map(Cell::text).chain([target.as_str(), raw.as_str()]))?;
        samples.row([id, self.text.as_str(), target.as_str(), raw.as_str()])
    }

    /// Publishes the files and reports.
    fn finish(
        mut self,
        passes: &Passes,
        rows: u64,
        changes: &Changes,
        table: &(u64, String),
    ) -> Result<Report> {
        let layout = self.layout.clone();
        let stamp =
            Stamp::new(table.clone(), passes.dataset, passes.own, passes.text, &self.job.wanted)?;
        let report = self.report(passes, rows, changes);
        let mut outputs = vec![self.cleaned];
        outputs.extend(self.parts.into_iter().flatten().flat_map(|(a, b)| [a, b]));
        outputs.iter_mut().try_for_each(Output::sync)?;
        Stamp::withdraw(&layout)?;
        clear(&layout)?;
        let mut published: Vec<PathBuf> = Vec::new();
        for output in outputs {
            published.push(output.publish()?);
        }
        let classes = matches!(self.target, Target::Classes { .. });
        let json = [
            (layout.target(classes), to_json(&self.target)?),
            (layout.text_plan(), to_json(&self.plan)?),
            (layout.report("json"), to_json(&report)?),
            (layout.report("txt"), report.to_text()),
        ];
        for (path, text) in json {
            files::write_text(&path, &text)?;
            published.push(path);
        }
        stamp.publish(&layout, &published)?;
        Ok(report)
    }

    fn report(&mut self, passes: &Passes, rows: u64, changes: &Changes) -> Report {
        let columns = &passes.columns;
        let samples: u64 = self.job.parts.iter().map(|part| part.samples).sum();
        self.facts.mean = self.characters as f64 / samples.max(1) as f64;
        self.facts.shortest = self.facts.shortest.min(self.facts.longest);
        let mut changed: BTreeMap<String, BTreeMap<String, Tally>> = BTreeMap::new();
        for ((index, change), tally) in changes {
            let column = changed.entry(columns.list[*index].name.clone()).or_default();
            column.insert(change.words().to_string(), tally.clone());
        }
        let own = passes.own;
        let split = match (&passes.dataset.split_mapping, own.split) {
            (Some(_), _) => "mapping",
            (None, SplitBy::Grouped) => "grouped",
            (None, SplitBy::Random) => "random",
        };
        let renamed = columns.list.iter().filter(|c| c.header != c.name);
        Report {
            table: columns.file.clone(),
            rows,
            renamed: renamed.map(|c| (c.header.clone(), c.name.clone())).collect(),
            short: self.job.wanted.short.clone(),
            target: self.target.clone(),
            normalization: to_word(&own.normalization),
            bounds: self.job.bounds,
            dropped: self.job.dropped.clone(),
            without_class: self.job.without_class.clone(),
            changed,
            split: split.to_string(),
            parts: Part::ALL
                .iter()
                .map(|part| (part.name().to_string(), self.job.parts[*part as usize].clone()))
                .collect(),
            leak: self.job.leaks[0],
            leak_if_random: self.job.leaks[1],
            text: self.facts.clone(),
            notes: self.job.notes.clone(),
        }
    }
}

/// Removes what an earlier preparation left that this one may not write again.
fn clear(layout: &Layout) -> Result<()> {
    let mut old = vec![layout.target(true), layout.target(false)];
    old.extend(
        [Part::Val, Part::Test].into_iter().flat_map(|p| [layout.converted(p), layout.samples(p)]),
    );
    for path in old {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::write(&path, &e));
            }
            _ => {}
        }
    }
    Ok(())
}

fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|e| Error::bug(format!("a report could not be written: {e}")))
}

/// A word of the configuration, as it is written there.
fn to_word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_string()
}
