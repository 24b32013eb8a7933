//! The command line: what can be asked, and which recipe or room answers.

mod context;
mod doctor;
mod export;
mod inspect;
mod status;

use crate::config::{ConfigFile, Distributed, Section, array_part, environment};
use crate::error::{Error, Result};
use crate::progress;
use crate::recipes::{self, Recipe, Session, UseArgs};
use crate::report::console::Level;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

pub use context::start;

/// MPI-style trainer for protein, molecule and materials models.
///
/// Start it alone, under mpirun or under srun: each rank is one process.
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Say more: what is being done, with times.
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
    /// Say warnings alone.
    #[arg(short, long, global = true)]
    quiet: bool,
}

/// A configuration and what changes it.
#[derive(Args)]
pub struct ConfigArgs {
    /// The configuration (YAML).
    config: PathBuf,
    /// Change a key: dotted.key=value (repeatable).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Check configuration, data and model shapes, say what would be done, and stop.
    #[arg(long)]
    dry_run: bool,
}

/// What to apply a trained model to.
#[derive(Args)]
pub struct ModelArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// A checkpoint of ours, a run, or weights as safetensors [default: the newest run's best].
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Where results go [default: standard output].
    #[arg(long)]
    output: Option<PathBuf>,
}

/// The subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// Prepare and embed what is not there yet, train or go on training, and evaluate.
    Run {
        #[command(flatten)]
        config: ConfigArgs,
        /// Begin a new run even if there is one to go on with.
        #[arg(long)]
        new: bool,
    },
    /// Make the samples that training reads from raw tables.
    Prepare {
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Precompute ESM embeddings into a sharded HDF5 cache.
    Embed {
        #[command(flatten)]
        config: ConfigArgs,
        /// The i-th of n disjoint shares, from 0 [default: the array task's].
        #[arg(long, value_name = "I/N")]
        part: Option<String>,
    },
    /// Train, or go on training.
    Train {
        #[command(flatten)]
        config: ConfigArgs,
        /// Begin a new run even if there is one to go on with.
        #[arg(long)]
        new: bool,
    },
    /// Measure a checkpoint on the validation and test parts.
    Evaluate(ModelArgs),
    /// Apply a checkpoint to new data: values, classes or probabilities as CSV, hidden states as .h5.
    Predict {
        #[command(flatten)]
        model: ModelArgs,
        /// What to predict for [default: dataset.dataset_location].
        #[arg(long)]
        input: Option<PathBuf>,
        /// Least probability that is written [default: 0.01].
        #[arg(long)]
        min_probability: Option<f64>,
        /// One vector a sequence instead of one a residue (.h5).
        #[arg(long)]
        mean: bool,
    },
    /// Put a cache or a checkpoint into other people's layouts.
    Export(export::ExportArgs),
    /// Say what is in a data file, cache, checkpoint, run or configuration, and whether it is whole.
    Inspect(inspect::InspectArgs),
    /// Write a small synthetic data set for a recipe.
    Sample {
        /// The recipe.
        recipe: String,
        /// Where to.
        dir: PathBuf,
        /// Seed of the data.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Say what a run is doing, from any machine that sees its directory.
    Status(status::StatusArgs),
    /// Look for what would stop a run here: launcher, cores, memory, network, disks, configuration.
    ///
    /// Start it as the run will be started, under mpirun or srun. Ends with 4 where something would
    /// stop a run.
    Doctor(doctor::DoctorArgs),
    /// Try files for `doctor`, in a process that may hang.
    #[command(hide = true)]
    Probe {
        /// The places in JSON.
        places: String,
    },
}

impl Cli {
    /// How much is said.
    pub fn level(&self) -> Level {
        match (self.verbose, self.quiet) {
            (true, _) => Level::Verbose,
            (_, true) => Level::Quiet,
            _ => Level::Normal,
        }
    }

    /// Whether the command goes on to give signs of life.
    fn is_watched(&self) -> bool {
        match &self.command {
            Command::Run { config, .. }
            | Command::Embed { config, .. }
            | Command::Train { config, .. } => !config.dry_run,
            Command::Evaluate(args) => !args.config.dry_run,
            _ => false,
        }
    }

    /// Threads a rank that the configuration names, 1 where it names none.
    pub fn threads_per_rank(&self) -> usize {
        let distributed = self.config().and_then(ConfigArgs::peek::<Distributed>);
        distributed.and_then(|d| d.threads_per_rank).unwrap_or(1)
    }

    /// The configuration that the command was given, if it takes one.
    fn config(&self) -> Option<&ConfigArgs> {
        match &self.command {
            Command::Run { config, .. }
            | Command::Prepare { config }
            | Command::Embed { config, .. }
            | Command::Train { config, .. } => Some(config),
            Command::Evaluate(args) => Some(&args.config),
            Command::Predict { model, .. } => Some(&model.config),
            _ => None,
        }
    }

    /// Runs the command on this rank; gives the exit code of one that comes to its end.
    pub fn run(&self, session: &Session) -> Result<u8> {
        if !self.is_watched() {
            session.world.arrived();
        }
        let done = match &self.command {
            Command::Run { config, new } => {
                let (file, recipe) = config.open()?;
                if config.dry_run {
                    return dry(recipe, &file, session).map(|()| 0);
                }
                if recipe.needs_prepare(&file, session)? {
                    recipe.prepare(&file, session)?;
                }
                if recipe.needs_cache(&file)? {
                    recipe.embed(&file, session, (0, 1))?;
                }
                recipe.train(&file, session, *new)
            }
            Command::Prepare { config } => {
                let (file, recipe) = config.open()?;
                if config.dry_run {
                    dry(recipe, &file, session)
                } else {
                    recipe.prepare(&file, session)
                }
            }
            Command::Embed { config, part } => {
                let (file, recipe) = config.open()?;
                let part = parse_part(part.as_deref())?;
                if config.dry_run {
                    dry(recipe, &file, session)
                } else {
                    recipe.embed(&file, session, part)
                }
            }
            Command::Train { config, new } => {
                let (file, recipe) = config.open()?;
                if config.dry_run {
                    dry(recipe, &file, session)
                } else {
                    recipe.train(&file, session, *new)
                }
            }
            Command::Evaluate(args) => {
                let (file, recipe) = args.config.open()?;
                if args.config.dry_run {
                    return dry(recipe, &file, session).map(|()| 0);
                }
                recipe.evaluate(&file, session, &args.common())
            }
            Command::Predict { model, input, min_probability, mean } => {
                let (file, recipe) = model.config.open()?;
                if model.config.dry_run {
                    return dry(recipe, &file, session).map(|()| 0);
                }
                let args = UseArgs {
                    input: input.clone(),
                    min_probability: *min_probability,
                    mean: *mean,
                    ..model.common()
                };
                recipe.predict(&file, session, &args)
            }
            Command::Export(args) => export::run(args, session),
            Command::Inspect(args) => inspect::run(args, session),
            Command::Sample { recipe, dir, seed } => {
                let said = recipes::find(recipe)?.sample(dir, *seed)?;
                session.console.line(&said);
                Ok(())
            }
            Command::Doctor(args) => return doctor::run(args, session),
            Command::Probe { places } => crate::doctor::probe(places),
            Command::Status(args) => status::run(args, session),
        };
        done.map(|()| 0)
    }
}

fn dry(recipe: &dyn Recipe, file: &ConfigFile, session: &Session) -> Result<()> {
    recipe.dry_run(file, session)
}

impl ConfigArgs {
    fn open(&self) -> Result<(ConfigFile, &'static dyn Recipe)> {
        progress::enter("reading the configuration");
        let file = ConfigFile::load(&self.config, &self.set)?;
        let recipe = recipes::find(file.recipe()?).map_err(|e| e.at(file.place("recipe")))?;
        Ok((file, recipe))
    }
}

impl ConfigArgs {
    /// A section, before ranks know of each other; what is wrong with it is told later.
    fn peek<T: Section>(&self) -> Option<T> {
        ConfigFile::load(&self.config, &self.set).ok()?.read().ok()
    }
}

impl ModelArgs {
    fn common(&self) -> UseArgs {
        UseArgs {
            checkpoint: self.checkpoint.clone(),
            output: self.output.clone(),
            ..UseArgs::default()
        }
    }
}

/// `I/N`, or the array task's share, or all.
fn parse_part(given: Option<&str>) -> Result<(usize, usize)> {
    let Some(text) = given else {
        return Ok(array_part(environment())?.unwrap_or((0, 1)));
    };
    let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match numbers {
        Some((i, n)) if i < n => Ok((i, n)),
        _ => Err(Error::usage(format!("`{text}` is no part"))
            .at("--part")
            .hint("give i/n with i from 0 to n - 1, such as 0/4")),
    }
}
