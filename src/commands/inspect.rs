//! `inspect`: what is in a data file, cache, checkpoint, run or configuration, and whether it is
//! whole.

use crate::cache::{self, verify};
use crate::config::ConfigFile;
use crate::data::fasta::FastaIndex;
use crate::data::is_fasta;
use crate::data::labels::{POS, TOKEN};
use crate::data::table::{AC_ID, ORI_SEQ, Table, read_table};
use crate::error::{Error, Result};
use crate::files;
use crate::recipes::{self, Session};
use crate::report::console::table;
use crate::report::step_line::{bytes, count, counted};
use crate::torch::WeightFile;
use crate::train::checkpoint;
use clap::Args;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What `inspect` takes.
#[derive(Args)]
pub struct InspectArgs {
    /// A data file, a cache, a checkpoint, a run directory or a configuration.
    path: PathBuf,
    /// Write the manifest of a cache whose shards are all there.
    #[arg(long)]
    finish: bool,
    /// Of a configuration: what becomes of this row of its table, counted from 1.
    #[arg(long)]
    row: Option<u64>,
}

/// Runs `inspect`; what it finds goes to standard output.
pub fn run(args: &InspectArgs, session: &Session) -> Result<()> {
    let path = &args.path;
    if session.world.rank() != 0 {
        return Ok(());
    }
    if !path.exists() {
        return Err(Error::data("there is no such file or directory").at(path.display()));
    }
    let text = match args.row {
        Some(row) => {
            let config = ConfigFile::load(path, &[])?;
            recipes::find(config.recipe()?)?.describe_row(&config, row)?
        }
        None if path.is_dir() => directory(path, args.finish)?,
        None => file(path, session)?,
    };
    files::print(&format!("{}\n", text.trim_end()))?;
    Ok(())
}

fn directory(path: &Path, finish: bool) -> Result<String> {
    let has = |name: &str| path.join(name).exists();
    if has("run.json") {
        return run_dir(path);
    }
    if has("state.json") || has("model.safetensors") || has("model.safetensors.index.json") {
        return weights(path);
    }
    if has("plan.json") || has("manifest.json") {
        return cache_dir(path, finish);
    }
    Err(Error::data("neither a run, a checkpoint, a model nor a cache")
        .at(path.display())
        .hint("name one of these, or a file: CSV, FASTA, YAML or safetensors"))
}

fn run_dir(path: &Path) -> Result<String> {
    let steps = checkpoint::list(&path.join("checkpoints"))?;
    let mut rows = Vec::new();
    for step in steps {
        let dir = path.join("checkpoints").join(checkpoint::name(step));
        let whole = checkpoint::verify(&dir).map_or_else(|e| e.to_string(), |()| "whole".into());
        let link = |name: &str| checkpoint::linked_step(&path.join(name)) == Some(step);
        let mut marks = Vec::new();
        marks.extend(link("best.ckpt").then_some("best"));
        marks.extend(link("last.ckpt").then_some("last"));
        rows.push(vec![checkpoint::name(step), marks.join(" "), whole]);
    }
    Ok(format!("run {}\n{}", path.display(), table(&["checkpoint", "link", "state"], &rows)))
}

fn weights(path: &Path) -> Result<String> {
    let mut text = String::new();
    if path.join("state.json").exists() {
        checkpoint::verify(path)?;
        let loaded = checkpoint::open(path)?;
        let s = &loaded.state;
        text += &format!(
            "checkpoint after step {}, best {}, made on {} with {} a rank; whole\n",
            s.step,
            s.judge.best.map_or("none".into(), |b| format!("{:.4} at step {}", b.value, b.step)),
            s.platform,
            counted(s.threads_per_rank as u64, "thread")
        );
    }
    let file = WeightFile::open(path)?;
    let mut rows = Vec::new();
    let mut total = 0usize;
    for name in file.names() {
        let shape = file.shape(name).unwrap_or_default();
        total += shape.iter().product::<usize>();
        rows.push(vec![name.to_string(), format!("{shape:?}")]);
    }
    text += &table(&["tensor", "shape"], &rows);
    Ok(format!("{text}\n{} tensors, {} numbers", rows.len(), count(total as u64)))
}

fn cache_dir(path: &Path, finish: bool) -> Result<String> {
    if finish {
        cache::finish(path)?;
    }
    let report = verify(path)?;
    let mut text = format!(
        "cache {}: {}, {} of {} shards, {} records, {} residues, {}\n",
        path.display(),
        if report.finished { "finished" } else { "not finished" },
        report.shards_read,
        report.shards,
        count(report.records),
        count(report.residues),
        bytes(report.bytes)
    );
    if report.finished {
        let cache = cache::Cache::open(path)?;
        let print = cache.fingerprint();
        for (part, map) in [("meaning", &print.meaning), ("making", &print.making)] {
            let rows: Vec<Vec<String>> =
                map.iter().map(|(k, v)| vec![k.clone(), plain(v)]).collect();
            text += &format!("\n{}\n", table(&[part, "value"], &rows));
        }
    }
    if report.leftovers > 0 {
        text += &format!("{} unfinished temporary files\n", report.leftovers);
    }
    if report.is_whole() {
        return Ok(text + "every byte is as its hash says");
    }
    if report.damaged.is_empty() {
        let missing = report.shards - report.shards_read;
        if finish {
            return Err(Error::damaged(format!(
                "{missing} of {} shards are missing",
                report.shards
            ))
            .at(path.display())
            .hint(
                "run `trainer embed CONFIG`, or its missing parts; the last one finishes the cache",
            ));
        }
        return Ok(
            text + "what is there is as its hash says; `trainer embed CONFIG` makes the rest"
        );
    }
    files::print(&text)?;
    let damaged: Vec<String> =
        report.damaged.iter().map(|d| format!("{}: {}", d.shard, d.what)).collect();
    Err(Error::damaged(format!("damaged: {}", damaged.join("; "))).at(path.display()).hint(
        "delete the damaged shards and run `trainer embed CONFIG` again: only they are made anew",
    ))
}

/// A value as people write it: text without quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

fn file(path: &Path, session: &Session) -> Result<String> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    match extension {
        "yaml" | "yml" => {
            let config = ConfigFile::load(path, &[])?;
            recipes::find(config.recipe()?)?.describe_plan(&config, session)
        }
        "safetensors" | "pt" | "pth" | "bin" | "pkl" => weights(path),
        _ => data_file(path),
    }
}

fn data_file(path: &Path) -> Result<String> {
    if is_fasta(path)? {
        let index = FastaIndex::open(path, &std::env::temp_dir())?;
        let c = index.counts();
        let mut lengths: Vec<u32> = index.lengths().collect();
        lengths.sort_unstable();
        let at = |share: f64| lengths[((lengths.len() - 1) as f64 * share) as usize];
        return Ok(format!(
            "FASTA {}: {} sequences, {} residues, lengths {} to {} (median {}, 95 % up to {})\n\
             {} lower-case letters, {} trailing *, {} repeats\n\n{}",
            path.display(),
            count(c.records as u64),
            count(c.residues),
            at(0.0),
            at(1.0),
            at(0.5),
            at(0.95),
            c.lower_case,
            c.stars,
            c.duplicates,
            fragment(path, Some(at(1.0) as usize))
        ));
    }
    let table = read_table(path)?;
    let head = format!(
        "table {}: {} rows, columns {}\n",
        path.display(),
        count(table.rows.len() as u64),
        table.columns.join(", ")
    );
    if [AC_ID, POS, TOKEN].iter().all(|c| table.column(c).is_ok()) && table.column(ORI_SEQ).is_err()
    {
        return Ok(format!("{head}{}\n\n{}", sites(&table)?, fragment(path, None)));
    }
    match recipes::ptm_mamba::describe(path) {
        Ok((said, longest)) => Ok(format!("{head}{said}\n\n{}", fragment(path, Some(longest)))),
        Err(error) => Ok(match recipes::alloy::describe(path) {
            Ok(Some(said)) => format!("{head}{said}"),
            _ => format!("{head}not readable as PTM sequences: {error}"),
        }),
    }
}

/// What a table of sites holds whose sequences are elsewhere.
fn sites(table: &Table) -> Result<String> {
    let (id, token) = (table.column(AC_ID)?, table.column(TOKEN)?);
    let distinct = |column: usize| {
        table.rows.iter().map(|row| row.fields[column].trim()).collect::<BTreeSet<_>>().len() as u64
    };
    Ok(format!(
        "a table of sites: {} in {}, {} of PTM token; the sequences are in another file",
        counted(table.rows.len() as u64, "site"),
        counted(distinct(id), "protein"),
        counted(distinct(token), "kind")
    ))
}

/// A configuration that fits this file, from the residues of its longest protein; None: a table of
/// sites, which has no protein in it.
fn fragment(path: &Path, longest: Option<usize>) -> String {
    let mut text = format!("recipe: ptm_mamba\ndataset:\n  dataset_location: {}\n", path.display());
    if longest.is_none() {
        text += "  sequences: PROTEINS.fasta   # or a CSV with an id and ori_seq\n";
    }
    text += "  val_size: 0.1\n  test_size: 0.05\nesm:\n";
    text += "  model: models/esm2_t33_650M_UR50D   # a copy of the Hugging Face directory\n";
    text += "  max_length: 1022\n";
    if longest.is_none_or(|n| n > 1022) {
        text += "  over_length: windows        # for proteins longer than that\n";
    }
    text
}
