//! One target on its way through the passes over a table: what each row is to it.

use super::clean::{Cell, Change, Cleaner};
use super::columns::{Column, Columns};
use super::config::{AlloyDataset, Normalization, Outliers, SplitBy, Wanted};
use super::formula::Composition;
use super::leak::{self, Truth, Watch};
use super::parts::{self, Leak, Rows};
use super::reader::Place;
use super::report::{PartFacts, Tally};
use super::target::{ClassMap, Moments, Target, fences};
use crate::config::Dataset;
use crate::data::split::{Part, Split};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// A row that is not used.
const DROPPED: u8 = u8::MAX;
const NO_VALUE: &str = "no value of the target";
const NO_COMPOSITION: &str = "no composition";
const NO_CLASS: &str = "a value of no class";
const IMPOSSIBLE: &str = "a physically impossible value of the target";
const OUTLIER: &str = "an outlier of the target";

/// What kind of target a column is.
pub enum Kind {
    /// Numbers.
    Number,
    /// Classes.
    Classes(ClassMap),
}

/// A target, and what the passes so far have found.
pub struct Job {
    /// Its names.
    pub wanted: Wanted,
    /// Its column.
    pub column: usize,
    /// Numbers or classes.
    pub kind: Kind,
    /// Sentences for the report.
    pub notes: Vec<String>,
    /// Dropped rows by reason.
    pub dropped: BTreeMap<String, Tally>,
    /// Values of no class.
    pub without_class: BTreeMap<String, u64>,
    /// Rows, compositions and samples of the parts.
    pub parts: [PartFacts; 3],
    /// What the split leaks, and what a random one would.
    pub leaks: [Leak; 2],
    /// Bounds outside which values are outliers.
    pub bounds: Option<[f64; 2]>,
    /// For every column why it is not in the text.
    pub why: Vec<Option<String>>,
    /// Words of the classes.
    pub class_words: BTreeSet<String>,
    /// For every row of the table its part, or [`DROPPED`].
    state: Vec<u8>,
    rows: Rows,
    /// Ids of the used rows, where a mapping says their parts.
    ids: Vec<String>,
    watch: Option<Watch>,
    moments: Moments,
    /// Training values, where outliers are told by quartiles.
    values: Vec<f64>,
}

impl Job {
    /// Before the first pass.
    pub fn new(
        wanted: Wanted,
        column: usize,
        kind: Kind,
        notes: Vec<String>,
        own: &AlloyDataset,
    ) -> Job {
        let bounds = match (own.outliers, &kind) {
            (Outliers::Range(bounds), Kind::Number) => Some(bounds),
            _ => None,
        };
        Job {
            wanted,
            column,
            kind,
            notes,
            dropped: BTreeMap::new(),
            without_class: BTreeMap::new(),
            parts: Default::default(),
            leaks: Default::default(),
            bounds,
            why: Vec::new(),
            class_words: BTreeSet::new(),
            state: Vec::new(),
            rows: Rows::default(),
            ids: Vec::new(),
            watch: None,
            moments: Moments::default(),
            values: Vec::new(),
        }
    }

    fn drop(&mut self, why: &str, line: u64) {
        match self.dropped.get_mut(why) {
            Some(tally) => tally.add(line),
            None => self.dropped.entry(why.to_string()).or_default().add(line),
        }
    }

    /// Looks at a row in the first pass. `composition` is the key of its composition, None where it
    /// is blank. An infinite value and words in a column of numbers are data errors.
    pub fn scan(
        &mut self,
        column: &Column,
        cell: (Cell, Option<Change>),
        composition: Option<u64>,
        drawn: u64,
        id: Option<&str>,
        place: Place,
    ) -> Result<()> {
        let why = match (&mut self.kind, &cell) {
            (_, (_, Some(Change::Infinite))) => {
                return Err(Error::data(format!("{} is infinite", column.name))
                    .hint("give the row a finite number, or none"));
            }
            (Kind::Number, (Cell::Missing, Some(Change::Impossible))) => Some(IMPOSSIBLE),
            (_, (Cell::Missing, _)) => Some(NO_VALUE),
            (Kind::Number, (Cell::Text(text), _)) => {
                return Err(Error::data(format!("{} is {text:?}, not a number", column.name))
                    .hint(
                        "mend the row, or name the word in dataset.missing; a classification needs \
                     dataset.classes: auto, or a map of classes to values",
                    ));
            }
            (Kind::Number, (Cell::Number(x, _), _)) => {
                let outside = self.bounds.is_some_and(|[low, high]| *x < low || *x > high);
                outside.then_some(OUTLIER)
            }
            (Kind::Classes(map), (cell, _)) => {
                map.see(cell.text()).map_err(|e| e.at(&column.name))?;
                let has = map.has(cell.text());
                if !has {
                    *self.without_class.entry(cell.text().to_string()).or_default() += 1;
                }
                (!has).then_some(NO_CLASS)
            }
        };
        match (why, composition) {
            (Some(why), _) => self.drop(why, place.line),
            (None, None) => self.drop(NO_COMPOSITION, place.line),
            (None, Some(composition)) => {
                self.rows.add(composition, drawn);
                self.ids.extend(id.map(String::from));
                self.state.push(0);
                return Ok(());
            }
        }
        self.state.push(DROPPED);
        Ok(())
    }

    /// Deals the rows of the first pass to parts.
    pub fn split(
        &mut self,
        columns: &Columns,
        dataset: &Dataset,
        own: &AlloyDataset,
    ) -> Result<()> {
        let name = columns.list[self.column].name.clone();
        if self.rows.len() == 0 {
            let why: Vec<String> =
                self.dropped.iter().map(|(why, tally)| format!("{}: {why}", tally.count)).collect();
            let what = format!("no row can be used for {name} ({})", why.join("; "));
            return Err(Error::data(what).at(&columns.file));
        }
        let grouped = own.split == SplitBy::Grouped;
        let (val, test) = (dataset.val_size, dataset.test_size);
        let random = self.rows.random(val, test);
        let parts = match (&dataset.split_mapping, grouped) {
            (Some(path), _) => {
                let split = Split::from_mapping(path, &self.ids, dataset.split_seed)?;
                let mut parts = vec![Part::Train; self.ids.len()];
                for part in Part::ALL {
                    split.part(part).iter().for_each(|row| parts[*row as usize] = part);
                }
                parts
            }
            (None, true) => self.rows.grouped(val, test, dataset.split_seed),
            (None, false) => random.clone(),
        };
        let counts = self.rows.counts(&parts);
        if dataset.split_mapping.is_none() {
            parts::not_empty(&counts, val, test, grouped).map_err(|e| e.at(&name))?;
        }
        for (facts, (compositions, rows)) in self.parts.iter_mut().zip(counts) {
            (facts.compositions, facts.rows) = (compositions, rows);
        }
        self.leaks = [self.rows.leak(&parts), self.rows.leak(&random)];
        let mut dealt = parts.into_iter();
        for state in self.state.iter_mut().filter(|state| **state != DROPPED) {
            *state = dealt.next().map_or(DROPPED, |part| part as u8);
        }
        // What only the split needed.
        (self.rows, self.ids) = (Rows::default(), Vec::new());
        self.settle_classes(&name)?;
        Ok(())
    }

    fn settle_classes(&mut self, name: &str) -> Result<()> {
        let Kind::Classes(map) = &mut self.kind else { return Ok(()) };
        map.finish();
        let unused = map.unused();
        if !unused.is_empty() {
            let values: Vec<String> = unused.iter().map(|value| format!("{value:?}")).collect();
            self.notes.push(format!("dataset.classes: no row has {}", values.join(", ")));
        }
        if map.names.len() < 2 {
            let what = format!("{name} has one class alone: {}", map.names.join(", "));
            return Err(Error::data(what).at("dataset.classes"));
        }
        self.class_words = leak::class_words(map);
        self.parts.iter_mut().for_each(|part| part.classes = vec![0; map.names.len()]);
        Ok(())
    }

    /// Says by name which columns stay out of the text, and begins to watch the others.
    pub fn begin_measure(&mut self, columns: &Columns, excluded: &[usize]) {
        self.why = leak::by_name(columns, self.column, &self.class_words, excluded);
        self.watch = Some(Watch::new(columns, &self.why, self.class_words.clone()));
    }

    /// The part of a row of the table, None where it is not used.
    pub fn part(&self, row: u64) -> Option<Part> {
        let state = *self.state.get(row as usize - 1)?;
        Part::ALL.into_iter().find(|part| *part as u8 == state)
    }

    fn truth(&self, cells: &[Cell]) -> Option<Truth> {
        let cell = &cells[self.column];
        match &self.kind {
            Kind::Number => cell.number().map(Truth::Number),
            Kind::Classes(map) => map.index(cell.text()).map(Truth::Class),
        }
    }

    /// Looks at a row in the second pass.
    pub fn measure(&mut self, cells: &[Cell], place: Place, outliers: Outliers) -> Result<()> {
        let Some(part) = self.part(place.row) else { return Ok(()) };
        let truth = self.truth(cells).ok_or_else(changed)?;
        let trains = part == Part::Train;
        if let Some(watch) = &mut self.watch {
            watch.add(cells, trains.then_some(truth));
        }
        match truth {
            Truth::Class(class) => self.parts[part as usize].classes[class] += 1,
            Truth::Number(x) if trains => match outliers {
                Outliers::Iqr(_) => self.values.push(x),
                _ => self.moments.add(x),
            },
            Truth::Number(_) => {}
        }
        Ok(())
    }

    /// Ends the second pass: the target with its normalisation or classes.
    pub fn end_measure(&mut self, columns: &Columns, own: &AlloyDataset) -> Result<Target> {
        if let Some(watch) = self.watch.take() {
            watch.finish(&mut self.why);
        }
        let column = &columns.list[self.column];
        let name = column.name.clone();
        match &self.kind {
            Kind::Classes(map) => {
                let names = map.names.clone();
                self.check_members(&name, &names)?;
                Ok(Target::Classes { name, names })
            }
            Kind::Number => {
                if let Outliers::Iqr(times) = own.outliers {
                    let [low, high] = fences(&mut self.values, times);
                    self.bounds = Some([low, high]);
                    let values = std::mem::take(&mut self.values);
                    let inside = values.into_iter().filter(|x| (low..=high).contains(x));
                    inside.for_each(|x| self.moments.add(x));
                }
                let (mean, std) =
                    self.moments.normalisation(own.normalization).map_err(|e| e.at(&name))?;
                if own.normalization == Normalization::Zscore {
                    let Moments { min, max, .. } = self.moments;
                    self.notes.push(format!("the training part's values go from {min} to {max}"));
                }
                Ok(Target::Regression { name, unit: column.unit.clone(), mean, std })
            }
        }
    }

    /// A class must have two members or more, and one of them in the training part.
    fn check_members(&mut self, name: &str, names: &[String]) -> Result<()> {
        for (index, class) in names.iter().enumerate() {
            let members = self.parts.each_ref().map(|part| part.classes[index]);
            let all: u64 = members.iter().sum();
            let wrong = |what: String, hint: &str| Err(Error::data(what).at(name).hint(hint));
            if all < 2 {
                let what = format!(
                    "class {class:?} has {all} {}",
                    if all == 1 { "member" } else { "members" }
                );
                return wrong(
                    what,
                    "join it with another class in dataset.classes; '*' takes all that is left",
                );
            }
            if members[0] == 0 {
                let what =
                    format!("class {class:?} has {all} members, and none in the training part");
                return wrong(
                    what,
                    "try another dataset.split_seed, or join the class with another",
                );
            }
            if members[1] == 0 && self.parts[1].rows > 0 {
                self.notes.push(format!("class {class:?} has no member in the validation part"));
            }
        }
        Ok(())
    }

    /// The (part, normalised or index, as written) of a row in the third pass; None where it is not
    /// used or an outlier.
    pub fn sample(
        &mut self,
        cells: &[Cell],
        place: Place,
        target: &Target,
        outliers: Outliers,
    ) -> Result<Option<(Part, f64, String)>> {
        let Some(part) = self.part(place.row) else { return Ok(None) };
        let raw = cells[self.column].text().to_string();
        let found = match self.truth(cells).ok_or_else(changed)? {
            Truth::Class(class) => (part, class as f64, raw),
            Truth::Number(x) => {
                let outside = self.bounds.is_some_and(|[low, high]| x < low || x > high);
                if outside && matches!(outliers, Outliers::Iqr(_)) {
                    self.drop(OUTLIER, place.line);
                    return Ok(None);
                }
                (part, target.normalised(x), raw)
            }
        };
        self.parts[part as usize].samples += 1;
        Ok(Some(found))
    }
}

/// The table is not what it was in an earlier pass.
pub fn changed() -> Error {
    Error::data("the table changed while it was read").hint("run the same command again")
}

/// The composition's key of a row, or the error of its formula with its place.
pub fn composition_key(
    columns: &Columns,
    row: &csv::StringRecord,
    cleaner: &Cleaner,
    place: Place,
) -> Result<Option<u64>> {
    if !columns.have_composition() {
        // Rows without any composition at all: each is one of its own.
        return Ok(Some(place.row));
    }
    Ok(columns.composition(row, cleaner)?.map(|composition: Composition| composition.key()))
}
