//! Texts of a table's rows without their target: for predictions, and to look at one of them.

use super::clean::{Cell, Cleaner};
use super::columns::Columns;
use super::config::AlloyDataset;
use super::leak::LeftOut;
use super::reader::TableReader;
use super::samples::read_plan;
use super::text::{TextMaker, TextPlan, cells};
use crate::config::Dataset;
use crate::error::{Error, Result};
use csv::StringRecord;
use std::path::Path;

/// A row of a new table.
#[derive(Debug)]
pub struct TextRow {
    /// Its number, from 1.
    pub row: u64,
    /// The value of the id column, else its number.
    pub id: String,
    /// Where it stands, `file:line`.
    pub place: String,
    /// Its text; a formula that cannot be read is a data error with its place, and no reason to stop.
    pub text: Result<String>,
}

/// The rows of a new table as texts, in their order, read as they are asked for. The first error of
/// the file itself (rows of unequal length, text that is not UTF-8) ends it.
pub struct TextRows {
    reader: TableReader,
    columns: Columns,
    cleaner: Cleaner,
    maker: TextMaker,
    id: Option<usize>,
    record: StringRecord,
    over: bool,
    /// Sentences to print: columns that the training table had and this one lacks.
    pub notes: Vec<String>,
}

impl TextRows {
    /// Opens a table for the plan of a checkpoint; the target's column may be absent.
    pub fn open(path: &Path, plan: &TextPlan) -> Result<TextRows> {
        let reader = TableReader::open(path, None)?;
        let columns = Columns::unify(&reader.file(), &reader.headers, &plan.columns, false)?;
        let (maker, absent) = TextMaker::new(plan, &columns)?;
        let needs =
            plan.kept.iter().any(|name| name == "FORMULA" || name.starts_with("COMPOSITION: "));
        if needs && !columns.have_composition() {
            return Err(Error::data("no column says what the alloys are made of")
                .at(format!("{}:1", columns.file))
                .hint("call it FORMULA, or as in the table that was trained on"));
        }
        let mut notes = Vec::new();
        if !absent.is_empty() {
            notes.push(format!(
                "{} lacks columns that were trained on; they count as missing: {}",
                columns.file,
                absent.join(", ")
            ));
        }
        let id = match &plan.id_column_name {
            Some(name) => columns.find(name).ok().map(|found| found.index),
            None => None,
        };
        let cleaner = Cleaner::new(&plan.missing, reader.delimiter);
        let record = StringRecord::new();
        Ok(TextRows { reader, columns, cleaner, maker, id, record, over: false, notes })
    }

    fn next_row(&mut self) -> Result<Option<TextRow>> {
        let Some(place) = self.reader.read(&mut self.record)? else { return Ok(None) };
        let at = format!("{}:{}", self.columns.file, place.line);
        let id = match self.id.and_then(|index| self.record.get(index)).map(str::trim) {
            Some(id) if !id.is_empty() => id.to_string(),
            _ => place.row.to_string(),
        };
        let text = self.text().map_err(|e| e.at(&at));
        Ok(Some(TextRow { row: place.row, id, place: at, text }))
    }

    fn text(&self) -> Result<String> {
        let composition = match self.columns.have_composition() {
            true => {
                Some(self.columns.composition(&self.record, &self.cleaner)?.ok_or_else(|| {
                    Error::data("the row has no composition").hint("fill it in or remove the row")
                })?)
            }
            false => None,
        };
        let mut out = String::new();
        let cells = cells(&self.columns, &self.cleaner, &self.record);
        self.maker.write(&cells, composition.as_ref(), &mut out);
        Ok(out)
    }
}

impl Iterator for TextRows {
    type Item = Result<TextRow>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let next = self.next_row();
        self.over = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

/// One row of the table as the model sees it.
#[derive(Debug)]
pub struct RowText {
    /// Where it stands, `file:line`.
    pub place: String,
    /// Its text.
    pub text: String,
    /// Columns that do not enter: name, this row's value, why. Blank ones are among them.
    pub left_out: Vec<(String, String, String)>,
}

/// The text of row `row` (from 1) of the table, by the plan that `prepare` made.
pub fn row_text(dataset: &Dataset, own: &AlloyDataset, row: u64) -> Result<RowText> {
    let plan = read_plan(own)?;
    let path = dataset
        .dataset_location
        .as_deref()
        .ok_or_else(|| Error::usage("no table is named").at("dataset.dataset_location"))?;
    let mut rows = TextRows::open(path, &plan)?;
    let mut last = 0;
    while let Some(found) = rows.next() {
        let found = found?;
        if found.row == row {
            return Ok(RowText {
                place: found.place,
                text: found.text?,
                left_out: left_out(&rows, &plan),
            });
        }
        last = found.row;
    }
    Err(Error::usage(format!("there is no row {row}, the table has {last}")).at(path.display()))
}

/// The columns of the row read last that are not in its text.
fn left_out(rows: &TextRows, plan: &TextPlan) -> Vec<(String, String, String)> {
    let mut left = Vec::new();
    for (column, value) in rows.columns.list.iter().zip(&rows.record) {
        let why = plan.left_out.iter().find(|out: &&LeftOut| out.column == column.name);
        let blank = rows.cleaner.clean(column, value).0 == Cell::Missing;
        let why = match (why, blank) {
            (Some(out), _) => out.why.clone(),
            (None, true) => "it is missing in this row".to_string(),
            (None, false) => continue,
        };
        left.push((column.name.clone(), value.trim().to_string(), why));
    }
    left
}
