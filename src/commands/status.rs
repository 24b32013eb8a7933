//! `status`: what a run, or an embedding job, is doing, from any machine that sees its directory.
//!
//! Reads heartbeats, links and records that the job writes anyway; changes nothing.

use crate::cache;
use crate::dist::heartbeat::{Beat, HEARTBEATS, Process, REPORT};
use crate::error::{Error, Result};
use crate::files;
use crate::recipes::Session;
use crate::report::console::table;
use crate::report::jsonl;
use crate::report::step_line::{count, duration, figure};
use crate::train::{checkpoint, run_dir};
use clap::Args;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What `status` takes.
#[derive(Args)]
pub struct StatusArgs {
    /// A run directory, a directory of runs (the newest is shown), or a cache that is being made.
    dir: PathBuf,
    /// JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// Beats after which a rank counts as silent.
const SILENT: f64 = 5.0;

/// Runs `status`; the answer goes to standard output.
pub fn run(args: &StatusArgs, session: &Session) -> Result<()> {
    if session.world.rank() != 0 {
        return Ok(());
    }
    let dir = newest(&args.dir)?;
    let mut jobs: Vec<Job> = heartbeat_dirs(&dir)?.iter().map(|dir| Job::read(dir)).collect();
    if is_run(&dir) && run_dir::is_complete(&dir)? {
        // Signs of life that are left were those of a job that was killed as it left.
        jobs.clear();
    }
    let text =
        if args.json { format!("{:#}\n", as_json(&dir, &jobs)?) } else { as_text(&dir, &jobs)? };
    files::print(&text)
}

fn is_run(dir: &Path) -> bool {
    dir.join("run.json").is_file()
}

/// The directory itself, or the newest run in it.
fn newest(dir: &Path) -> Result<PathBuf> {
    let is_cache = ["manifest.json", "plan.json"].iter().any(|name| dir.join(name).is_file());
    if is_run(dir) || is_cache || !heartbeat_dirs(dir)?.is_empty() {
        return Ok(dir.to_path_buf());
    }
    let entries = std::fs::read_dir(dir).map_err(|e| Error::read(dir, &e))?;
    let runs = entries.flatten().map(|entry| entry.path()).filter(|path| is_run(path));
    // The name ends with the time, but names differ; the file is written when the run begins.
    let newest = runs.max_by_key(|path| {
        std::fs::metadata(path.join("config.yaml")).and_then(|m| m.modified()).ok()
    });
    newest.ok_or_else(|| {
        Error::data("neither a run nor a cache, and no run is in it")
            .at(dir.display())
            .hint("name a run directory (outputs/NAME-…), or run.output_dir for its newest run")
    })
}

/// Directories of signs of life: one for a run, one for each part of an embedding job.
fn heartbeat_dirs(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::read(dir, &e))?;
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(HEARTBEATS))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    Ok(found)
}

/// One job's signs of life.
struct Job {
    beats: Vec<Beat>,
    report: Option<String>,
}

impl Job {
    fn read(dir: &Path) -> Job {
        let report = std::fs::read_to_string(dir.join(REPORT)).ok();
        Job { beats: Beat::read_all(dir), report }
    }

    /// In a word, and what to know about it.
    fn state(&self) -> (&'static str, String) {
        if let Some(report) = &self.report {
            return ("hung", format!("ended by the watchdog: {report}"));
        }
        if let Some(beat) = self.beats.iter().find(|beat| beat.ended.is_some()) {
            let ended = beat.ended.as_deref().unwrap_or_default();
            return ("failed", format!("rank {} ended with `{ended}`", beat.rank));
        }
        let lives = |beat: &Beat| match beat.process() {
            Some(Process::Gone) => false,
            _ => beat.age() < SILENT * beat.every,
        };
        let living = self.beats.iter().filter(|beat| lives(beat)).count();
        let size = self.beats.first().map_or(0, |beat| beat.size);
        let last = self.beats.iter().map(Beat::age).fold(f64::INFINITY, f64::min);
        match living {
            0 => ("dead", format!("no rank lives; the last sign of life came {} ago", ago(last))),
            n if n < size => {
                ("ailing", format!("{} of {size} ranks give no sign of life", size - n))
            }
            _ => ("running", "at work".to_string()),
        }
    }
}

fn ago(seconds: f64) -> String {
    duration(seconds.max(0.0))
}

/// What a run has come to, from its records and links.
struct Standing {
    complete: bool,
    checkpoint: Option<u64>,
    train: Option<Value>,
    val: Option<Value>,
}

fn standing(dir: &Path) -> Result<Standing> {
    let (mut train, mut val) = (None, None);
    let path = dir.join("metrics.jsonl");
    if path.is_file() {
        for record in jsonl::read(&path)? {
            let value = record?.value;
            match value["kind"].as_str() {
                Some("train") => train = Some(value),
                Some("val") => val = Some(value),
                _ => {}
            }
        }
    }
    Ok(Standing {
        complete: run_dir::is_complete(dir)?,
        checkpoint: checkpoint::linked_step(&dir.join("last.ckpt")),
        train,
        val,
    })
}

fn as_text(dir: &Path, jobs: &[Job]) -> Result<String> {
    let mut text = format!("{}\n", dir.display());
    if is_run(dir) {
        text += &run_text(&standing(dir)?, jobs);
    } else if let Some(progress) = cache::progress(dir)? {
        let _ = writeln!(text, "{} of {} shards are done", progress.done, progress.shards);
    } else {
        text += "the cache is finished\n";
    }
    for job in jobs {
        let _ = writeln!(text, "{}\n{}", job.state().1, ranks(&job.beats));
    }
    Ok(text)
}

fn run_text(standing: &Standing, jobs: &[Job]) -> String {
    let mut text = String::new();
    if standing.complete {
        text += "complete\n";
    } else if jobs.is_empty() {
        text += "not running; the same command goes on with it\n";
    }
    if let Some(step) = standing.checkpoint {
        let _ = writeln!(text, "the last checkpoint is of step {}", count(step));
    }
    let shown = |record: &Value, keys: &[&str]| {
        let known = keys.iter().filter_map(|key| Some((*key, record[*key].as_f64()?)));
        known.map(|(key, value)| format!(" | {key} {}", figure(value))).collect::<String>()
    };
    if let Some(record) = &standing.train {
        let total = jobs.iter().flat_map(|job| &job.beats).map(|beat| beat.total).max();
        let of = total.filter(|t| *t > 0).map_or(String::new(), |total| format!("/{total}"));
        let step = record["step"].as_u64().unwrap_or(0);
        let _ = write!(text, "step {step}{of}{}", shown(record, &["epoch", "loss", "lr", "norm"]));
        let pace = record["seconds"].as_f64().zip(record["steps"].as_f64());
        if let Some(((seconds, steps), total)) = pace.zip(total.filter(|t| *t > step)) {
            let left = seconds / steps.max(1.0) * (total - step) as f64;
            let _ = write!(text, " | about {} left", duration(left));
        }
        text += "\n";
    }
    if let Some(record) = &standing.val {
        let step = record["step"].as_u64().unwrap_or(0);
        let _ = writeln!(text, "validation after step {step}{}", shown(record, &["loss"]));
    }
    text
}

fn ranks(beats: &[Beat]) -> String {
    let rows: Vec<Vec<String>> = beats
        .iter()
        .map(|beat| {
            let doing = if beat.waiting { "waits while " } else { "" };
            vec![
                beat.rank.to_string(),
                beat.host.clone(),
                beat.pid.to_string(),
                if beat.device.is_empty() { "-".into() } else { beat.device.clone() },
                beat.step.to_string(),
                ago(beat.age()),
                format!("{doing}{} ({})", beat.phase, duration(beat.phase_seconds)),
            ]
        })
        .collect();
    table(&["rank", "host", "process", "device", "step", "last sign", "doing"], &rows)
}

fn as_json(dir: &Path, jobs: &[Job]) -> Result<Value> {
    let mut all = Map::new();
    all.insert("dir".into(), json!(dir));
    if is_run(dir) {
        let standing = standing(dir)?;
        all.insert("complete".into(), json!(standing.complete));
        all.insert("checkpoint_step".into(), json!(standing.checkpoint));
        all.insert("train".into(), json!(standing.train));
        all.insert("val".into(), json!(standing.val));
    } else {
        let progress = cache::progress(dir)?;
        all.insert("complete".into(), json!(progress.is_none()));
        all.insert("shards_done".into(), json!(progress.as_ref().map(|p| p.done)));
        all.insert("shards".into(), json!(progress.as_ref().map(|p| p.shards)));
    }
    let jobs: Vec<Value> = jobs
        .iter()
        .map(|job| {
            let (state, what) = job.state();
            json!({"state": state, "what": what, "ranks": job.beats})
        })
        .collect();
    all.insert("jobs".into(), json!(jobs));
    Ok(Value::Object(all))
}
