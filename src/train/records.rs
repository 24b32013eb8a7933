//! What a run leaves for people and programs to read: step lines, `metrics.jsonl`, `metrics.json`,
//! TensorBoard. Rank 0 alone has one.

use super::evaluate::Evaluation;
use super::step::StepResult;
use super::task::{Part, Task, TermSpec};
use crate::config::{ReportTo, Training};
use crate::error::Result;
use crate::metrics::additive::{Additive, Term};
use crate::report::console::Console;
use crate::report::jsonl::{self, Jsonl};
use crate::report::metrics_json::MetricsJson;
use crate::report::step_line::{StepReport, TimeLeft, count, figure, resident_bytes};
use crate::report::tensorboard::TensorBoard;
use crate::torch::cuda;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;

/// Steps over which the time left is smoothed.
const WINDOW: usize = 50;

/// Where in the run something happened.
#[derive(Clone, Copy)]
pub struct At {
    /// Optimiser steps behind us.
    pub step: u64,
    /// Of how many.
    pub total: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
}

impl At {
    fn epoch(self) -> f64 {
        self.step as f64 / self.steps_per_epoch.max(1) as f64
    }
}

/// Time a step took, and how much of it was waiting for data.
#[derive(Clone, Copy, Default)]
pub struct Timing {
    /// Wall time.
    pub seconds: f64,
    /// Of it, waiting for the loader.
    pub waiting: f64,
}

/// The writers of one run.
pub struct Records {
    console: Arc<Console>,
    jsonl: Jsonl,
    metrics_json: MetricsJson,
    tensorboard: Option<TensorBoard>,
    terms: Vec<TermSpec>,
    figures: Vec<&'static str>,
    logging_steps: u64,
    time_left: TimeLeft,
    /// Steps since the last line.
    open: Vec<(Timing, f64, StepReport)>,
}

impl Records {
    /// Opens a run's records. `resumed` is (step, last evaluated step) of the checkpoint that the
    /// run goes on from: whatever came later is dropped.
    pub fn open<T: Task>(
        console: Arc<Console>,
        run_dir: &Path,
        training: &Training,
        task: &T,
        resumed: Option<(u64, u64)>,
    ) -> Result<Records> {
        let (terms, figures) = (task.terms(), task.figures());
        let path = run_dir.join("metrics.jsonl");
        let (step, evaluated) = resumed.unwrap_or((0, 0));
        jsonl::cut_back(&path, jsonl::known_at(step, evaluated))?;
        let mut names = vec!["loss".to_string()];
        names.extend(task.has_perplexity().then(|| "preplexity".to_string()));
        names.extend(figures.iter().map(|name| name.to_string()));
        names.extend(task.table_figures());
        names.extend(["act_bs", "act_seq_len"].map(String::from));
        let metrics_json = MetricsJson::new(&path, &run_dir.join("metrics.json"), &names);
        let tensorboard = training
            .report_to
            .contains(&ReportTo::Tensorboard)
            .then(|| TensorBoard::create(&run_dir.join("tensorboard"), resumed.map(|r| r.0)))
            .transpose()?;
        Ok(Records {
            console,
            jsonl: Jsonl::open(&path)?,
            metrics_json,
            tensorboard,
            terms,
            figures,
            logging_steps: training.logging_steps as u64,
            time_left: TimeLeft::new(WINDOW),
            open: Vec::new(),
        })
    }

    /// The first record of a run; nothing if there is one already.
    pub fn split(&mut self, sizes: [usize; 3], seed: u64, file: &str) -> Result<()> {
        if self.jsonl.last_step().is_some() {
            return Ok(());
        }
        let [train, val, test] = sizes;
        self.jsonl.append(&json!({
            "kind": "split", "step": 0, "train": train, "val": val, "test": test, "seed": seed,
            "file": file,
        }))
    }

    /// One step: a record, and every `logging_steps` a line.
    pub(super) fn step(
        &mut self,
        at: At,
        lr: f64,
        result: &StepResult,
        skipped: u64,
        timing: Timing,
    ) -> Result<()> {
        self.time_left.observe(1, timing.seconds);
        let loss = loss(&result.metrics, &self.terms);
        let mut figures: Vec<(String, f64)> = self
            .figures
            .iter()
            .filter_map(|name| Some((name.to_string(), result.metrics.mean(name)?)))
            .collect();
        let printed = figures.clone();
        figures.extend(sizes(
            result.size.samples,
            result.size.padded,
            result.metrics.batches().count(),
        ));
        let mut report = StepReport {
            step: at.step,
            total_steps: at.total,
            epoch: at.epoch(),
            steps: 1,
            loss: loss.filter(|_| !result.skipped),
            lr,
            grad_norm: Some(result.grad_norm).filter(|n| n.is_finite() && !result.skipped),
            tokens: result.size.tokens,
            padded_tokens: result.size.padded,
            seconds: timing.seconds,
            waiting_seconds: timing.waiting,
            memory_bytes: cuda::peak_bytes().or_else(resident_bytes),
            skipped,
            seconds_left: self.time_left.left(at.total - at.step),
            figures,
        };
        self.jsonl.append(&report.record())?;
        if let Some(board) = &mut self.tensorboard {
            for (name, value) in &report.figures {
                board.scalar(&format!("train/{name}"), *value, at.step)?;
            }
            board.scalar("train/loss", report.loss.unwrap_or(f64::NAN), at.step)?;
            board.scalar("train/lr", lr, at.step)?;
            board.scalar("train/grad_norm", result.grad_norm, at.step)?;
        }
        report.figures = printed;
        self.open.push((timing, loss.unwrap_or(f64::NAN), report));
        if at.step.is_multiple_of(self.logging_steps) || at.step == at.total {
            self.line(at);
        }
        Ok(())
    }

    /// Prints the mean of the steps since the last line.
    fn line(&mut self, at: At) {
        let steps: Vec<_> = self.open.drain(..).collect();
        let Some((_, _, last)) = steps.last() else { return };
        let sum = |f: fn(&StepReport) -> u64| steps.iter().map(|s| f(&s.2)).sum::<u64>();
        let losses: Vec<f64> = steps.iter().map(|s| s.1).filter(|l| l.is_finite()).collect();
        let report = StepReport {
            steps: steps.len() as u64,
            loss: (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64),
            tokens: sum(|r| r.tokens),
            padded_tokens: sum(|r| r.padded_tokens),
            seconds: steps.iter().map(|s| s.0.seconds).sum(),
            waiting_seconds: steps.iter().map(|s| s.0.waiting).sum(),
            ..last.clone()
        };
        self.console.step(at.step, at.total, &report.to_string());
    }

    /// A whole evaluation: a record a micro-batch, one for the means, and a line.
    pub fn evaluation(
        &mut self,
        part: Part,
        at: At,
        evaluation: &Evaluation,
        best_step: Option<u64>,
    ) -> Result<()> {
        let metrics = &evaluation.additive;
        let (kind, batch_kind) = match part {
            Part::Test => ("test", "test_batch"),
            _ => ("val", "val_batch"),
        };
        let base = |kind: &str| {
            let mut record = Map::new();
            record.insert("kind".into(), json!(kind));
            record.insert("step".into(), json!(at.step));
            record.insert("epoch".into(), json!(at.epoch()));
            record
        };
        let names = metrics.names().to_vec();
        for (index, row) in metrics.batches() {
            let mut record = base(batch_kind);
            record.insert("batch".into(), json!(index));
            let term = |name: &str| names.iter().position(|n| n == name).map(|i| row[i]);
            self.fill(&mut record, &term, 1);
            self.jsonl.append(&Value::Object(record))?;
        }
        let mut record = base(kind);
        if let Some(step) = best_step {
            record.insert("best_step".into(), json!(step));
        }
        let batches = metrics.batches().count();
        let mut shown = self.fill(&mut record, &|name| Some(metrics.total(name)), batches);
        for (name, value) in &evaluation.figures {
            record.insert(name.clone(), json!(value));
            shown.push((name.clone(), *value));
        }
        self.jsonl.append(&Value::Object(record))?;
        if let Some(board) = &mut self.tensorboard {
            for (name, value) in &shown {
                board.scalar(&format!("{kind}/{name}"), *value, at.step)?;
            }
            board.flush()?;
        }
        self.metrics_json.update()?;
        let list = shown.iter().map(|(name, value)| match name.as_str() {
            "loss" => format!("loss {value:.4}"),
            _ => format!("{name} {}", figure(*value)),
        });
        let samples = metrics.total("samples").sum as u64;
        self.console.line(&format!(
            "{} after step {} | {} | {} samples",
            if kind == "val" { "validation" } else { "test" },
            at.step,
            list.collect::<Vec<_>>().join(" | "),
            count(samples)
        ));
        Ok(())
    }

    /// Adds loss and figures to a record, and gives those that a person wants to see.
    fn fill(
        &self,
        record: &mut Map<String, Value>,
        term: &dyn Fn(&str) -> Option<Term>,
        batches: usize,
    ) -> Vec<(String, f64)> {
        let mut shown = Vec::new();
        let mean = |name: &str| term(name).and_then(Term::mean);
        let parts: Option<Vec<f64>> =
            self.terms.iter().map(|t| mean(t.name).map(|m| m * t.weight)).collect();
        let loss = parts.map(|p| p.iter().sum::<f64>());
        record.insert("loss".into(), json!(loss));
        shown.extend(loss.map(|l| ("loss".to_string(), l)));
        for name in &self.figures {
            let value = mean(name);
            record.insert(name.to_string(), json!(value));
            shown.extend(value.map(|v| (name.to_string(), v)));
        }
        let total = |name| term(name).map_or(0, |t| t.sum as u64);
        for (name, value) in sizes(total("samples"), total("padded"), batches) {
            record.insert(name, json!(value));
        }
        shown
    }

    /// Everything durable, and the derived files up to date.
    pub fn sync(&mut self) -> Result<()> {
        self.jsonl.sync()?;
        self.metrics_json.update()?;
        match &mut self.tensorboard {
            Some(board) => board.flush(),
            None => Ok(()),
        }
    }
}

/// Upstream's `act_bs` (samples of a micro-batch) and `act_seq_len` (its width), means over
/// micro-batches and samples.
fn sizes(samples: u64, padded: u64, batches: usize) -> [(String, f64); 2] {
    [
        ("act_bs".to_string(), samples as f64 / batches.max(1) as f64),
        ("act_seq_len".to_string(), padded as f64 / samples.max(1) as f64),
    ]
}

/// The loss: terms by their weights; None where one has nothing to divide by.
pub fn loss(metrics: &Additive, terms: &[TermSpec]) -> Option<f64> {
    terms.iter().map(|t| metrics.mean(t.name).map(|m| m * t.weight)).sum()
}
