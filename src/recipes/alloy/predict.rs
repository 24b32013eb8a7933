//! A trained model on a new table: a CSV with predictions in real units, in the table's order.
//!
//! The table is read as a stream by every rank; ranks take turns at blocks of rows and rank 0
//! writes them. A block is the same on any number of ranks, so are its batches and predictions.

use super::artefacts::{columns, header};
use super::sections::{Sections, StageName};
use super::setup::{self, Origin, Shape};
use super::table::rows::TextRows;
use super::task::{Encoded, TextTask};
use crate::data::plan::{Plan, PlanConfig};
use crate::dist::Comm;
use crate::error::{Error, Result};
use crate::files;
use crate::progress;
use crate::recipes::using::{find_checkpoint, quoted, say_written};
use crate::recipes::{Session, UseArgs};
use crate::report::step_line::count;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

/// Rows of a block.
const BLOCK: usize = 256;

/// Runs `predict`.
pub fn run(sections: &Sections, session: &Session, args: &UseArgs) -> Result<()> {
    if args.mean || args.min_probability.is_some() {
        return Err(Error::usage("--mean and --min-probability are for other recipes")
            .hint("alloy writes one value, or all classes' probabilities, a row"));
    }
    let comm = &session.world.comm;
    let compute = sections.compute(session, None)?;
    let checkpoint = find_checkpoint(&sections.shared, session, args)?;
    session.console.line(&format!("model: {}", checkpoint.display()));
    let origin = Origin::Checkpoint(checkpoint.clone());
    let (plan, model) = comm.together(|| {
        let purpose = setup::read_purpose(&checkpoint)?;
        let shape = Shape::open(sections, &origin)?;
        let goal = setup::goal(sections, StageName::Train, &shape, &purpose.target, &[])?;
        let head = setup::head(&goal);
        let model = shape.model(sections, &origin, head, &compute, &session.console)?;
        let plan = purpose.text.clone();
        let task = setup::task(sections, &shape, model, (goal, purpose), Default::default())?;
        Ok((plan, (shape, task)))
    })?;
    let Some(plan) = plan else {
        return Err(Error::usage("this model was trained on ready-made texts, not on a table")
            .at(checkpoint.display())
            .hint("train on a table (dataset.dataset_location) to predict for tables"));
    };
    let path = match (&args.input, &sections.dataset.dataset_location) {
        (Some(path), _) => path.clone(),
        (None, Some(path)) => path.to_path_buf(),
        (None, None) => {
            return Err(Error::usage("no table to predict for").at("--input"));
        }
    };
    let rows = comm.together(|| TextRows::open(&path, &plan))?;
    rows.notes.iter().for_each(|note| session.console.line(note));
    let written = predict(sections, session, &model, rows, args)?;
    session.console.finish();
    session.console.line(&format!("{} rows predicted", count(written)));
    say_written(session, args);
    Ok(())
}

/// Where rank 0 writes: standard output, or a file that appears when it is whole.
enum Sink {
    Standard(BufWriter<std::io::Stdout>),
    File { out: BufWriter<File>, temporary: PathBuf, path: PathBuf },
}

impl Sink {
    fn open(args: &UseArgs) -> Result<Sink> {
        let Some(path) = &args.output else {
            return Ok(Sink::Standard(BufWriter::new(std::io::stdout())));
        };
        let temporary = files::temporary_name(path);
        let file = File::create(&temporary).map_err(|e| Error::write(&temporary, &e))?;
        Ok(Sink::File { out: BufWriter::new(file), temporary, path: path.clone() })
    }

    fn write(&mut self, text: &str) -> Result<()> {
        match self {
            Sink::Standard(out) => out
                .write_all(text.as_bytes())
                .map_err(|e| Error::launch(format!("cannot write to standard output: {e}"))),
            Sink::File { out, temporary, .. } => {
                out.write_all(text.as_bytes()).map_err(|e| Error::write(temporary, &e))
            }
        }
    }

    fn finish(self) -> Result<()> {
        match self {
            Sink::Standard(mut out) => out
                .flush()
                .map_err(|e| Error::launch(format!("cannot write to standard output: {e}"))),
            Sink::File { mut out, temporary, path } => {
                let synced = out.flush().and_then(|()| out.get_ref().sync_all());
                synced.map_err(|e| Error::write(&temporary, &e))?;
                files::publish(&temporary, &path)
            }
        }
    }

    /// Removes a file that will not be whole.
    fn abandon(self) {
        if let Sink::File { temporary, .. } = self {
            // The error that led here is the one worth telling.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// Predicts all rows; gives their number.
fn predict(
    sections: &Sections,
    session: &Session,
    model: &(Shape, TextTask),
    mut rows: TextRows,
    args: &UseArgs,
) -> Result<u64> {
    let comm = &session.world.comm;
    progress::enter("predicting");
    let mut sink = None;
    comm.decide(|| {
        sink = Some(Sink::open(args)?);
        Ok(())
    })?;
    let mut done = 0u64;
    let mut work = || -> Result<u64> {
        if let Some(sink) = &mut sink {
            sink.write(&format!("id,{}\n", header(&model.1.target)))?;
        }
        loop {
            let (lines, read) = comm.together(|| own_block(sections, comm, model, &mut rows))?;
            if read == 0 {
                return Ok(done);
            }
            for text in comm.all_gather(lines.into_bytes())? {
                if let Some(sink) = &mut sink {
                    sink.write(&String::from_utf8_lossy(&text))?;
                }
            }
            done += read;
            session.console.progress(done, done, &format!("predicted {}", count(done)));
        }
    };
    let result = work();
    match (result, sink) {
        (Ok(done), Some(sink)) => sink.finish().map(|()| done),
        (Err(error), Some(sink)) => {
            sink.abandon();
            Err(error)
        }
        (result, None) => result,
    }
}

/// Lines of this rank's block of the next round, and how many rows all blocks have; every rank
/// reads past the others' blocks.
fn own_block(
    sections: &Sections,
    comm: &Comm,
    (shape, task): &(Shape, TextTask),
    rows: &mut TextRows,
) -> Result<(String, u64)> {
    let (mut own, mut read): (Vec<(String, Encoded)>, u64) = (Vec::new(), 0);
    for rank in 0..comm.size() {
        for row in rows.by_ref().take(BLOCK) {
            progress::tick()?;
            let row = row?;
            read += 1;
            if rank == comm.rank() {
                let text = row.text?;
                let (ids, _) = shape.encode(&text).map_err(|e| e.at(&row.place))?;
                own.push((row.id, Encoded { ids, target: 0.0 }));
            }
        }
    }
    let training = &sections.shared.training;
    let config = PlanConfig {
        max_tokens: training.max_tokens_per_batch,
        max_samples: training.per_device_train_batch_size,
        micro_batches_per_step: 1,
        seed: 0,
    };
    let lengths: Vec<u32> = own.iter().map(|(_, text)| text.ids.len() as u32).collect();
    let plan = Plan::new(&lengths, config, |i| own[i].0.clone())?;
    let mut lines = vec![String::new(); own.len()];
    for batch in plan.evaluation().into_iter().flat_map(|step| step.micro_batches) {
        progress::tick()?;
        let texts: Vec<&Encoded> = batch.samples.iter().map(|i| &own[*i as usize].1).collect();
        for (i, row) in batch.samples.iter().zip(task.predict(&texts)?) {
            let i = *i as usize;
            lines[i] = format!("{},{}\n", quoted(&own[i].0), columns(&task.target, &row));
        }
    }
    Ok((lines.concat(), read))
}
