//! Recipe `ptm_mamba`: a protein language model with PTM tokens and ESM-2's embeddings.
//!
//! - `sections`: its configuration
//! - `samples`: the user's file to samples
//! - `embeddings`: where ESM's embeddings come from
//! - `task`: masked language modelling
//! - `setup`: sections to data, model and embedding job
//! - `predict`: a trained model on new data
//! - `synthetic`: a small data set with planted motifs

mod embeddings;
mod predict;
mod samples;
mod sections;
mod setup;
mod synthetic;
mod task;

use super::running::{self, Stage, Work, in_run_dir};
use super::session::Compute;
use super::using;
use super::{Recipe, Session, Shared, Touched, UseArgs};
use crate::config::{ConfigFile, Dataset, Esm, OverLength};
use crate::dist::heartbeat::HEARTBEATS;
use crate::embed;
use crate::error::Result;
use crate::files;
use crate::metrics::registry::{Direction, Merge, Registry};
use crate::report::step_line::{count, duration, rate};
use crate::train::fit::Plans;
use crate::train::task::Part;
use samples::Samples;
use sections::{Sections, Source};
use serde_json::json;
use setup::Setup;
use std::path::Path;

/// What a file of PTM sequences holds, and the residues of its longest protein.
pub fn describe(path: &Path) -> Result<(String, usize)> {
    // Nothing is over-long to somebody who only wants to see the data.
    let esm = Esm { max_length: usize::MAX, over_length: OverLength::Crop, ..Esm::default() };
    let (dataset, source) = (Dataset::default(), Source::default());
    let scratch = std::env::temp_dir();
    let samples = Samples::from_file(path, &dataset, &source, &esm, &scratch)?;
    let (commonest, ptm) = samples.commonest_ptm();
    let longest = samples.samples.iter().map(|s| s.esm_ids.len()).max().unwrap_or(0);
    let mut lines = samples.notes.clone();
    lines.push(format!(
        "{} proteins, the longest {longest}, {} PTM tokens, the commonest {:.1} % of them",
        count(samples.ids.len() as u64),
        count(ptm),
        100.0 * commonest
    ));
    Ok((lines.join("\n"), longest))
}

/// See the module.
pub struct PtmMambaRecipe;

/// The metrics of this recipe.
fn registry() -> Result<Registry> {
    let mut registry = Registry::new();
    registry.add("loss", Direction::Lower, Merge::Additive, "cross entropy of hidden tokens")?;
    registry.add("acc", Direction::Higher, Merge::Additive, "hidden tokens found")?;
    registry.add("ptm_acc", Direction::Higher, Merge::Additive, "hidden PTM tokens found")?;
    Ok(registry)
}

impl Recipe for PtmMambaRecipe {
    fn name(&self) -> &'static str {
        "ptm_mamba"
    }

    fn shared(&self, config: &ConfigFile) -> Result<Shared> {
        Ok(Sections::read(config)?.shared)
    }

    fn touches(&self, config: &ConfigFile) -> Result<Vec<Touched>> {
        let sections = Sections::read(config)?;
        let made = sections.needs_cache().then(|| sections.cache_dir());
        let read = [
            ("dataset.dataset_location", sections.dataset.dataset_location.as_deref()),
            ("dataset.sequences", sections.source.sequences.as_deref()),
            ("esm.model", sections.esm.model.as_str().map(Path::new)),
            ("training.embeddings_dir", sections.embedding.embeddings_dir.as_deref()),
        ];
        let made = made.map(|path| Touched { key: "esm.cache_dir", path, is_made: true });
        let read = read.into_iter().filter_map(|(key, path)| {
            Some(Touched { key, path: path?.to_path_buf(), is_made: false })
        });
        Ok(made.into_iter().chain(read).collect())
    }

    fn needs_cache(&self, config: &ConfigFile) -> Result<bool> {
        Ok(Sections::read(config)?.needs_cache())
    }

    fn dry_run(&self, config: &ConfigFile, session: &Session) -> Result<()> {
        let sections = Sections::read(config)?;
        session.console.line(&crate::config::write_yaml(&sections.resolved()?));
        let compute = sections.compute(session, None)?;
        let setup = Setup::for_shapes(&sections, session, &compute)?;
        session.console.line(&setup.describe_data());
        session.console.line(&setup.describe_plan(&sections)?);
        let params = setup.shapes(&sections)?;
        session.console.line(&format!("model: {} parameters", count(params as u64)));
        Ok(())
    }

    fn describe_plan(&self, config: &ConfigFile, session: &Session) -> Result<String> {
        let sections = Sections::read(config)?;
        let compute = sections.compute(session, None)?;
        Setup::for_shapes(&sections, session, &compute)?.describe_plan(&sections)
    }

    fn embed(&self, config: &ConfigFile, session: &Session, part: (usize, usize)) -> Result<()> {
        let sections = Sections::read(config)?;
        let compute = sections.compute(session, None)?;
        let dir = sections.cache_dir();
        let work = || embed(&sections, session, &compute, part);
        let heartbeats = dir.join(embed::side_name(HEARTBEATS, part));
        let is_finished = session.world.comm.decide(|| {
            let finished = dir.join("manifest.json").exists();
            if finished {
                // A job that was killed as it left has left these behind.
                let _ = std::fs::remove_dir_all(&heartbeats);
            }
            Ok(finished)
        })?;
        // A finished cache may lie where nothing can be written.
        if is_finished {
            return work();
        }
        session.watched(&heartbeats, &sections.shared.distributed, work)
    }

    fn train(&self, config: &ConfigFile, session: &Session, fresh: bool) -> Result<()> {
        let sections = Sections::read(config)?;
        let registry = registry()?;
        running::metric(&sections.shared.training, &registry)?;
        let resolved = sections.resolved()?;
        in_run_dir(&sections.shared, resolved, session, fresh, |work| {
            train(&sections, &registry, work)
        })
    }

    fn evaluate(&self, config: &ConfigFile, session: &Session, args: &UseArgs) -> Result<()> {
        let sections = Sections::read(config)?;
        using::watched(&sections.shared, session, || measure(&sections, session, args))
    }

    fn predict(&self, config: &ConfigFile, session: &Session, args: &UseArgs) -> Result<()> {
        predict::run(&Sections::read(config)?, session, args)
    }

    fn sample(&self, dir: &Path, seed: u64) -> Result<String> {
        synthetic::write(dir, seed)
    }
}

/// Makes the embedding cache, or what is missing of it, and says how fast.
fn embed(
    sections: &Sections,
    session: &Session,
    compute: &Compute,
    part: (usize, usize),
) -> Result<()> {
    let (ended, summary) = setup::embed(sections, session, compute, part)?;
    let residues = session.world.comm.all_gather(summary.residues.to_le_bytes().to_vec())?;
    let residues: u64 = residues
        .into_iter()
        .filter_map(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)))
        .sum();
    if session.world.rank() == 0 && residues > 0 {
        let seconds = summary.seconds;
        session.console.line(&format!(
            "{} residues in {}, {} residues/s",
            count(residues),
            duration(seconds),
            rate(residues as f64 / seconds)
        ));
        let line = json!({
            "residues": residues, "forward_seconds": summary.forward_seconds,
            "total_seconds": seconds,
        });
        files::print(&format!("{line}\n"))?;
    }
    let dir = sections.cache_dir();
    session.console.line(&match ended {
        embed::Ended::Complete => format!("done: {}", dir.display()),
        embed::Ended::PartDone => format!(
            "this part is done; {0} is finished by the last part, or by `trainer inspect {0} --finish`",
            dir.display(),
        ),
    });
    Ok(())
}

/// Trains in a run directory that this job has for itself.
fn train(sections: &Sections, registry: &Registry, work: &Work) -> Result<()> {
    let session = work.session;
    let (comm, console) = (&session.world.comm, &session.console);
    let setup = Setup::new(sections, session, &work.compute)?;
    console.line(&setup.describe_data());
    if comm.rank() == 0 {
        setup.write_mapping(&work.dir)?;
    }
    let plans = setup.plans(sections, comm)?;
    console.line(&running::describe_plan(&plans.train));
    let training = &sections.shared.training;
    let split = running::split_record(setup.sizes(), &sections.dataset);
    let stage = Stage { name: None, training, registry, split };
    work.fit(&stage, &setup.task(sections, comm)?, &plans)
}

/// A checkpoint's loss and figures on the validation and test parts, as JSON.
fn measure(sections: &Sections, session: &Session, args: &UseArgs) -> Result<()> {
    let comm = &session.world.comm;
    let shared = &sections.shared;
    let compute = sections.compute(session, None)?;
    let setup = Setup::new(sections, session, &compute)?;
    let plans: Plans = setup.plans(sections, comm)?;
    let task = setup.task(sections, comm)?;
    let checkpoint = using::find_checkpoint(shared, session, args)?;
    setup::init_from(&task.params, &checkpoint)?;
    using::measure(&task, (shared, session), &plans, &checkpoint, args)
}

/// The samples of each part, for lines.
fn part_line(setup: &Setup) -> String {
    Part::ALL
        .iter()
        .map(|part| format!("{} {}", part.name(), count(setup.part_len(*part) as u64)))
        .collect::<Vec<_>>()
        .join(", ")
}
