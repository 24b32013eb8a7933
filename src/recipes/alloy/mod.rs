//! Recipe `alloy`: tables of alloys → texts → RoBERTa or BERT, regression and classification.
//!
//! - `sections`: its configuration
//! - `table`: the user's table to samples
//! - `setup`: sections to tokenizer, model and tokens
//! - `task`: what is computed
//! - `artefacts`, `pictures`: what a finished run leaves
//! - `predict`: a trained model on a new table
//! - `synthetic`: a small table with a relation to learn

mod artefacts;
mod pictures;
mod predict;
mod sections;
mod setup;
mod synthetic;
mod table;
mod task;

use super::running::{self, Stage, Work, in_run_dir, split_record};
use super::using;
use super::{Recipe, Session, Shared, Touched, UseArgs};
use crate::config::ConfigFile;
use crate::data::tokenizer::TextTokenizer;
use crate::error::{Error, Result};
use crate::files;
use crate::progress;
use crate::report::step_line::{count, duration, rate};
use crate::torch::Params;
use sections::{Sections, StageName};
use serde_json::json;
use setup::{Origin, Purpose, Shape, Texts};
use std::collections::BTreeMap;
use std::path::Path;
use table::columns::{Columns, Role};
use table::output::Layout;
use table::reader::TableReader;
use table::samples::{self, Samples, read_samples};
use table::{prepare, rows};

/// A configuration that fits a table of alloys, and what could be predicted; None: it is none.
pub fn describe(path: &Path) -> Result<Option<String>> {
    let reader = TableReader::open(path, None)?;
    let columns = Columns::unify(&reader.file(), &reader.headers, &BTreeMap::new(), false)?;
    if !columns.have_composition() {
        return Ok(None);
    }
    let properties = columns.list.iter().filter(|column| column.role == Role::Property);
    let names: Vec<&str> = properties.map(|column| column.name.as_str()).collect();
    let Some(first) = names.first() else { return Ok(None) };
    Ok(Some(format!(
        "a table of alloys; what could be a target: {}\n\n\
         recipe: alloy\ndataset:\n  dataset_location: {}\n  target: '{first}'   # or another of them\n  \
         # classes: auto   # for a column of words",
        names.join(", "),
        path.display()
    )))
}

/// See the module.
pub struct AlloyRecipe;

impl Recipe for AlloyRecipe {
    fn name(&self) -> &'static str {
        "alloy"
    }

    fn shared(&self, config: &ConfigFile) -> Result<Shared> {
        Ok(Sections::read(config)?.shared)
    }

    fn touches(&self, config: &ConfigFile) -> Result<Vec<Touched>> {
        let Sections { dataset, alloy, model, .. } = Sections::read(config)?;
        let prepared = Touched {
            key: "dataset.prepared_dir",
            path: alloy.prepared_dir.to_path_buf(),
            is_made: true,
        };
        let read = [
            ("dataset.dataset_location", dataset.dataset_location),
            ("dataset.train_data", alloy.train_data),
            ("dataset.val_data", alloy.val_data),
            ("dataset.test_data", alloy.test_data),
            ("model.init_from", model.init_from),
            ("model.tokenizer", model.tokenizer),
        ];
        let read = read.into_iter().filter_map(|(key, path)| {
            Some(Touched { key, path: path?.to_path_buf(), is_made: false })
        });
        Ok(std::iter::once(prepared).chain(read).collect())
    }

    fn needs_prepare(&self, config: &ConfigFile, session: &Session) -> Result<bool> {
        let sections = Sections::read(config)?;
        session.world.comm.decide(|| needs_prepare(&sections))
    }

    fn prepare(&self, config: &ConfigFile, session: &Session) -> Result<()> {
        let sections = Sections::read(config)?;
        session.agree_on(&sections.resolved()?)?;
        session.world.comm.decide(|| {
            check_model(&sections)?;
            prepare(&sections, session)
        })
    }

    fn dry_run(&self, config: &ConfigFile, session: &Session) -> Result<()> {
        let sections = Sections::read(config)?;
        let console = &session.console;
        console.line(&crate::config::write_yaml(&sections.resolved()?));
        check_model(&sections)?;
        if needs_prepare(&sections)? {
            console.line(
                "the samples are not prepared yet: `trainer run` or `trainer prepare` makes them",
            );
            return Ok(());
        }
        sections.compute(session, None)?;
        let (shape, samples, texts) = open(&sections, &Origin::Configured)?;
        console.line(&texts.describe(shape.longest));
        let Shared { run, training, .. } = &sections.shared;
        console.line(&running::describe_plan(&texts.plans(training, run.seed)?.train));
        let train = &texts.parts[0];
        let goal = setup::goal(&sections, StageName::Train, &shape, &samples.target, train)?;
        let params = Params::new(tch::Device::Cpu);
        crate::models::bert::BertModel::new(&params.root(), &shape.config, setup::head(&goal));
        console.line(&format!("model: {} parameters", count(params.count() as u64)));
        running::metric(training, &task::registry(&samples.target)?)?;
        Ok(())
    }

    fn describe_plan(&self, config: &ConfigFile, _session: &Session) -> Result<String> {
        let sections = Sections::read(config)?;
        let (shape, _, texts) = open(&sections, &Origin::Configured)?;
        let Shared { run, training, .. } = &sections.shared;
        let plans = texts.plans(training, run.seed)?;
        let plan = running::describe_plan(&plans.train);
        Ok(format!("{}\n{plan}", texts.describe(shape.longest)))
    }

    fn describe_row(&self, config: &ConfigFile, row: u64) -> Result<String> {
        let sections = Sections::read(config)?;
        let shown = rows::row_text(&sections.dataset, &sections.alloy, row)?;
        let mut lines = vec![format!("{}:", shown.place), shown.text.clone()];
        match Shape::open(&sections, &Origin::Configured) {
            Ok(shape) => {
                let (ids, cut) = shape.encode(&shown.text)?;
                let tokens = shape.tokenizer.tokens(&ids);
                let end = if cut { ", cut" } else { "" };
                lines.push(format!("\n{} tokens{end}: {}", ids.len(), tokens.join(" ")));
            }
            Err(error) => lines.push(format!("\nno tokens yet: {error}")),
        }
        lines.push("\nleft out:".to_string());
        let left_out = shown.left_out.iter();
        lines.extend(left_out.map(|(column, value, why)| format!("  {column}: {value} ({why})")));
        Ok(lines.join("\n"))
    }

    fn train(&self, config: &ConfigFile, session: &Session, fresh: bool) -> Result<()> {
        let sections = Sections::read(config)?;
        let comm = &session.world.comm;
        comm.decide(|| check_model(&sections))?;
        if comm.decide(|| needs_prepare(&sections))? {
            return Err(Error::data(
                "the samples are not prepared, or the table has changed since",
            )
            .at(sections.alloy.prepared_dir.display())
            .hint("`trainer prepare` makes them; `trainer run` does both"));
        }
        let resolved = sections.resolved()?;
        in_run_dir(&sections.shared, resolved, session, fresh, |work| train(&sections, work))
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

/// Refuses a model to start from that is not there, before hours of other work.
fn check_model(sections: &Sections) -> Result<()> {
    match setup::trains_tokenizer(sections) {
        true => Ok(()),
        false => Shape::open(sections, &Origin::Configured).map(|_| ()),
    }
}

/// Whether samples or tokenizer are missing, or of other data or settings.
fn needs_prepare(sections: &Sections) -> Result<bool> {
    let Sections { dataset, alloy, text, .. } = sections;
    if !prepare::is_prepared(dataset, alloy, text)? {
        return Ok(true);
    }
    if !setup::trains_tokenizer(sections) {
        return Ok(false);
    }
    let stamp = setup::tokenizer_dir(sections)?.join(MADE_FROM);
    Ok(!stamp.exists() || files::read_text(&stamp)? != tokenizer_stamp(sections)?)
}

/// What a trained tokenizer was made from.
const MADE_FROM: &str = "made_from.json";

fn tokenizer_stamp(sections: &Sections) -> Result<String> {
    let (kind, size) = setup::tokenizer_wanted(sections)?;
    let texts = samples::texts_stamp(&sections.alloy)?;
    let stamp = json!({"kind": format!("{kind:?}"), "vocab_size": size, "texts": texts});
    Ok(format!("{stamp:#}\n"))
}

/// Makes samples, and where the model is fresh its tokenizer (rank 0 alone).
fn prepare(sections: &Sections, session: &Session) -> Result<()> {
    let console = &session.console;
    let Sections { dataset, alloy, text, .. } = sections;
    progress::enter("preparing the samples");
    if !alloy.is_ready_made() {
        let made = prepare::prepare(dataset, alloy, text, &|line| console.line(line))?;
        made.reports.iter().for_each(|report| console.line(report.to_text().trim_end()));
        let per_second = rate(made.rows as f64 / made.seconds.max(1e-9));
        console.line(&format!(
            "{} rows in {}, {per_second} rows/s",
            count(made.rows),
            duration(made.seconds)
        ));
    }
    if setup::trains_tokenizer(sections) {
        let (kind, size) = setup::tokenizer_wanted(sections)?;
        let tokenizer = TextTokenizer::train(kind, size, samples::training_texts(alloy)?)?;
        let dir = setup::tokenizer_dir(sections)?;
        files::make_dir(&dir)?;
        // Last the stamp, which says that all is there.
        for (name, content) in tokenizer.files()? {
            files::write_text(&dir.join(name), &content)?;
        }
        files::write_text(&dir.join(MADE_FROM), &tokenizer_stamp(sections)?)?;
        console.line(&format!("tokenizer: {} in {}", tokenizer.describe(), dir.display()));
    } else if alloy.is_ready_made() {
        console.line("samples and tokenizer are given ready: there is nothing to prepare");
    }
    tell_truncation(sections, session)
}

/// Says how many texts the model cannot read to their end, and writes it beside the report. Of long
/// tables a part of the texts is looked at.
fn tell_truncation(sections: &Sections, session: &Session) -> Result<()> {
    let alloy = &sections.alloy;
    let shape = Shape::open(sections, &Origin::Configured)?;
    let (mut seen, mut cut) = (0u64, 0u64);
    for text in samples::training_texts(alloy)? {
        progress::tick()?;
        seen += 1;
        cut += u64::from(shape.encode(&text?)?.1);
    }
    let share = cut as f64 / seen.max(1) as f64;
    let line = format!(
        "  {} of {} training texts ({:.1} %) are longer than {} tokens and cut",
        count(cut),
        count(seen),
        100.0 * share,
        shape.longest
    );
    session.console.line(&line);
    if alloy.is_ready_made() {
        return Ok(());
    }
    // Beside the report: the stamp of what was prepared holds for the report's bytes.
    let path = Layout::new(alloy, &alloy.picked()?).dir().join("truncation.json");
    let told = json!({"texts": seen, "cut": cut, "share": share, "tokens": shape.longest});
    files::write_text(&path, &format!("{told:#}\n"))
}

/// Tokenizer, samples and tokens.
fn open(sections: &Sections, origin: &Origin) -> Result<(Shape, Samples, Texts)> {
    let shape = Shape::open(sections, origin)?;
    progress::enter("reading the samples");
    let samples = read_samples(&sections.dataset, &sections.alloy, &sections.text)?;
    let texts = Texts::encode(&samples, &shape)?;
    Ok((shape, samples, texts))
}

/// Trains all stages in a run directory that this job has for itself.
fn train(sections: &Sections, work: &Work) -> Result<()> {
    let session = work.session;
    let (comm, console) = (&session.world.comm, &session.console);
    let mut origin = Origin::Configured;
    let (shape, samples, texts) = comm.together(|| open(sections, &origin))?;
    samples.notes.iter().for_each(|note| console.line(note));
    console.line(&texts.describe(shape.longest));
    let sizes = [0, 1, 2].map(|at| texts.parts[at].len());
    for &name in &sections.stages {
        let pretrains = name == StageName::Pretrain;
        // The last stage is the run itself.
        let own = (pretrains && sections.has(StageName::Train)).then_some("pretrain");
        if let Some(own) = own
            && work.is_stage_complete(own)?
        {
            origin = Origin::Pretrained(running::best_of_stage(&work.stage_dir(own))?);
            continue;
        }
        let training = if pretrains { &sections.pretraining } else { &sections.shared.training };
        let plans = comm.together(|| texts.plans(training, sections.shared.run.seed))?;
        console.line(&running::describe_plan(&plans.train));
        let goal = setup::goal(sections, name, &shape, &samples.target, &texts.parts[0])?;
        let model = comm.together(|| {
            shape.model(sections, &origin, setup::head(&goal), &work.compute, console)
        })?;
        let purpose = Purpose { target: samples.target.clone(), text: samples.text.clone() };
        let task = setup::task(sections, &shape, model, (goal, purpose), texts.parts.clone())?;
        setup::describe_freeze(&task).iter().for_each(|text| console.line(text));
        let registry = if pretrains {
            task::pretraining_registry()?
        } else {
            task::registry(&samples.target)?
        };
        let split = split_record(sizes, &sections.dataset);
        let stage = Stage { name: own, training, registry: &registry, split };
        work.fit(&stage, &task, &plans)?;
        if let Some(own) = own {
            origin = Origin::Pretrained(running::best_of_stage(&work.stage_dir(own))?);
        }
        if !pretrains {
            artefacts::write(sections, work, &task, &plans, &samples)?;
        }
    }
    Ok(())
}

/// A checkpoint's loss and figures on the validation and test parts, as JSON.
fn measure(sections: &Sections, session: &Session, args: &UseArgs) -> Result<()> {
    let (comm, shared) = (&session.world.comm, &sections.shared);
    let compute = sections.compute(session, None)?;
    let checkpoint = using::find_checkpoint(shared, session, args)?;
    let origin = Origin::Checkpoint(checkpoint.clone());
    let purpose = comm.together(|| setup::read_purpose(&checkpoint))?;
    let (shape, samples, texts) = comm.together(|| open(sections, &origin))?;
    if purpose.target != samples.target {
        return Err(Error::damaged(
            "the checkpoint was trained for another target or normalisation",
        )
        .at(checkpoint.display())
        .hint("use the configuration and the prepared data of its run"));
    }
    let plans = comm.together(|| texts.plans(&shared.training, shared.run.seed))?;
    let train = &texts.parts[0];
    let goal = setup::goal(sections, StageName::Train, &shape, &purpose.target, train)?;
    let head = setup::head(&goal);
    let model =
        comm.together(|| shape.model(sections, &origin, head, &compute, &session.console))?;
    let task = setup::task(sections, &shape, model, (goal, purpose), texts.parts.clone())?;
    using::measure(&task, (shared, session), &plans, &checkpoint, args)
}
