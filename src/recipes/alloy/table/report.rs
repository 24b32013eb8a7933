//! What `prepare` did to a table: every dropped row and changed cell counted and listed, what the
//! split leaks, what the text leaves out.

use super::leak::LeftOut;
use super::parts::Leak;
use super::target::Target;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Lines listed of one kind; all are counted.
const LISTED: usize = 1000;
/// Lines that the text form of a report shows.
const SHOWN: usize = 8;

/// Rows or cells to which one rule applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// How many.
    pub count: u64,
    /// The lines of the first thousand of them.
    pub lines: Vec<u64>,
}

impl Tally {
    /// Counts one.
    pub fn add(&mut self, line: u64) {
        self.count += 1;
        if self.lines.len() < LISTED {
            self.lines.push(line);
        }
    }
}

/// One part of the split.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PartFacts {
    /// Rows, before outliers are dropped.
    pub rows: u64,
    /// Different compositions.
    pub compositions: u64,
    /// Samples written.
    pub samples: u64,
    /// Samples of each class, in the order of their indices.
    pub classes: Vec<u64>,
}

/// Lengths of texts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TextFacts {
    /// Columns that enter, by unified name.
    pub kept: Vec<String>,
    /// Columns that do not, and why.
    pub left_out: Vec<LeftOut>,
    /// Whether element facts may name crystal structures.
    pub structures: bool,
    /// Characters of the shortest text.
    pub shortest: u64,
    /// Characters on average.
    pub mean: f64,
    /// Characters of the longest.
    pub longest: u64,
}

/// All of it, for one target.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The table.
    pub table: String,
    /// Its rows.
    pub rows: u64,
    /// Header to unified name, where they differ.
    pub renamed: BTreeMap<String, String>,
    /// Short name of the target.
    pub short: String,
    /// What it is, with its normalisation or classes.
    pub target: Target,
    /// How it was normalised.
    pub normalization: String,
    /// Bounds outside which a value is an outlier.
    pub bounds: Option<[f64; 2]>,
    /// Why rows were dropped.
    pub dropped: BTreeMap<String, Tally>,
    /// Values that belong to no class, and how often they stand there.
    pub without_class: BTreeMap<String, u64>,
    /// Column, then rule, by which cells were changed, over the whole table.
    pub changed: BTreeMap<String, BTreeMap<String, Tally>>,
    /// `grouped`, `random` or `mapping`.
    pub split: String,
    /// `train`, `val` and `test`.
    pub parts: BTreeMap<String, PartFacts>,
    /// What this split leaks.
    pub leak: Leak,
    /// What a random split of the same rows and sizes leaks.
    pub leak_if_random: Leak,
    /// Texts.
    pub text: TextFacts,
    /// Sentences.
    pub notes: Vec<String>,
}

impl Report {
    /// For people.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "{}: target {} ({}), {} rows",
            self.short,
            self.target.name(),
            self.table,
            self.rows
        )?;
        match &self.target {
            Target::Regression { mean, std, unit, .. } => {
                let unit = unit.as_deref().unwrap_or("");
                let how = &self.normalization;
                writeln!(out, "  normalised ({how}): (value - {mean}) / {std} {unit}")?;
            }
            Target::Classes { names, .. } => {
                let numbered: Vec<String> =
                    names.iter().enumerate().map(|(i, name)| format!("{i} {name}")).collect();
                writeln!(out, "  classes: {}", numbered.join(", "))?;
            }
        }
        for (why, tally) in &self.dropped {
            writeln!(out, "  {} rows dropped: {why}{}", tally.count, lines(tally))?;
        }
        for (value, count) in &self.without_class {
            writeln!(out, "    of these {count} have the value {value:?}")?;
        }
        if let Some([low, high]) = self.bounds {
            writeln!(out, "  values below {low} and above {high} are outliers")?;
        }
        for (column, rules) in &self.changed {
            for (rule, tally) in rules {
                writeln!(out, "  {} cells of {column}: {rule}{}", tally.count, lines(tally))?;
            }
        }
        writeln!(out, "  split {}:", self.split)?;
        for (name, part) in &self.parts {
            write!(
                out,
                "    {name}: {} samples of {} compositions",
                part.samples, part.compositions
            )?;
            match part.classes.is_empty() {
                true => writeln!(out)?,
                false => writeln!(out, ", by class {:?}", part.classes)?,
            }
        }
        let leak = |leak: &Leak| {
            format!(
                "{} of {} held-out rows have a composition that training rows have too ({} compositions)",
                leak.rows, leak.of_rows, leak.compositions
            )
        };
        writeln!(out, "    {}", leak(&self.leak))?;
        if self.leak != self.leak_if_random {
            writeln!(out, "    under a random split: {}", leak(&self.leak_if_random))?;
        }
        let text = &self.text;
        writeln!(
            out,
            "  texts of {} to {} characters, {:.0} on average, from {} columns",
            text.shortest,
            text.longest,
            text.mean,
            text.kept.len()
        )?;
        for left in &text.left_out {
            writeln!(out, "    left out: {} ({})", left.column, left.why)?;
        }
        if !text.structures {
            writeln!(
                out,
                "    crystal structures of elements are not told: they are words of the target"
            )?;
        }
        for (header, name) in &self.renamed {
            writeln!(out, "  {header:?} is called {name:?}")?;
        }
        for note in &self.notes {
            writeln!(out, "  {note}")?;
        }
        Ok(())
    }
}

fn lines(tally: &Tally) -> String {
    let shown: Vec<String> = tally.lines.iter().take(SHOWN).map(u64::to_string).collect();
    let more = if tally.count as usize > shown.len() { ", …" } else { "" };
    format!(" (lines {}{more})", shown.join(", "))
}
