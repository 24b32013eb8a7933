//! The systems this program trains: one recipe each, a folder of files and a line below.
//!
//! A recipe owns its sections of the configuration, its samples, its model and its artefacts; it
//! takes readers, plans, the loop, caches and checkpoints from the rooms below. `session`, `running`
//! and `using` hold what recipes have in common: how ranks compute, how a run is done, how a
//! checkpoint is used.

pub mod alloy;
mod devices;
pub mod ptm_mamba;
mod running;
mod session;
mod using;

pub use running::Shared;
pub use session::{Session, platform};

use crate::config::ConfigFile;
use crate::error::{Error, Result, nearest};
use std::path::{Path, PathBuf};

/// Where a command that uses a trained model takes it from, what it reads and writes.
#[derive(Clone, Debug, Default)]
pub struct UseArgs {
    /// A checkpoint; None: the newest run's best.
    pub checkpoint: Option<PathBuf>,
    /// What to predict for; None: what the configuration names.
    pub input: Option<PathBuf>,
    /// Where results go; None: standard output.
    pub output: Option<PathBuf>,
    /// Least probability that is reported; None: the recipe's own.
    pub min_probability: Option<f64>,
    /// One vector a sequence instead of one a residue.
    pub mean: bool,
}

/// A file or directory that a run touches, beside `run.output_dir`.
#[derive(Clone, Debug, PartialEq)]
pub struct Touched {
    /// The configuration key that names it.
    pub key: &'static str,
    /// Where it is.
    pub path: PathBuf,
    /// Whether it is a directory that the run makes and fills; else it is read.
    pub is_made: bool,
}

/// One of the five systems.
pub trait Recipe: Sync {
    /// Its word in the configuration.
    fn name(&self) -> &'static str;

    /// The sections that all recipes have; the whole configuration is checked.
    fn shared(&self, config: &ConfigFile) -> Result<Shared>;

    /// What a run reads and makes.
    fn touches(&self, config: &ConfigFile) -> Result<Vec<Touched>>;

    /// Checks configuration, data and model shapes, and says what would be done.
    fn dry_run(&self, config: &ConfigFile, session: &Session) -> Result<()>;

    /// Whether the samples must be prepared first.
    fn needs_prepare(&self, _config: &ConfigFile, _session: &Session) -> Result<bool> {
        Ok(false)
    }

    /// Makes the samples that training reads from the user's raw data.
    fn prepare(&self, config: &ConfigFile, _session: &Session) -> Result<()> {
        Err(nothing_to(self.name(), "prepare").at(config.place("recipe")))
    }

    /// Whether training needs an embedding cache first.
    fn needs_cache(&self, _config: &ConfigFile) -> Result<bool> {
        Ok(false)
    }

    /// Computes the embedding cache, or what is missing of it; `part` is (i, n).
    fn embed(&self, config: &ConfigFile, _session: &Session, _part: (usize, usize)) -> Result<()> {
        Err(nothing_to(self.name(), "embed").at(config.place("recipe")))
    }

    /// Trains, or goes on training; `fresh` begins a new run whatever there is.
    fn train(&self, config: &ConfigFile, session: &Session, fresh: bool) -> Result<()>;

    /// Measures a checkpoint on the validation and test parts.
    fn evaluate(&self, config: &ConfigFile, session: &Session, args: &UseArgs) -> Result<()>;

    /// Applies a checkpoint to new data.
    fn predict(&self, config: &ConfigFile, session: &Session, args: &UseArgs) -> Result<()>;

    /// The batch plan of training, described.
    fn describe_plan(&self, config: &ConfigFile, session: &Session) -> Result<String>;

    /// What becomes of one row of the user's data, counted from 1 without the header.
    fn describe_row(&self, config: &ConfigFile, _row: u64) -> Result<String> {
        Err(nothing_to(self.name(), "show of single rows").at(config.place("recipe")))
    }

    /// Writes a small synthetic data set into a directory and says what it is.
    fn sample(&self, dir: &Path, seed: u64) -> Result<String>;
}

fn nothing_to(recipe: &str, act: &str) -> Error {
    Error::usage(format!("the recipe {recipe} has nothing to {act}"))
        .hint("`trainer run` does whatever its recipe needs, in order")
}

const RECIPES: &[&dyn Recipe] = &[&ptm_mamba::PtmMambaRecipe, &alloy::AlloyRecipe];

/// The recipe of this name (exit code 2 lists the known ones).
pub fn find(name: &str) -> Result<&'static dyn Recipe> {
    RECIPES.iter().copied().find(|r| r.name() == name).ok_or_else(|| {
        let known: Vec<&str> = RECIPES.iter().map(|r| r.name()).collect();
        let list = format!("known here: {}", known.join(", "));
        Error::usage(format!("there is no recipe `{name}`")).at("recipe").hint(
            match nearest(name, known) {
                Some(near) => format!("did you mean `{near}`? {list}"),
                None => list,
            },
        )
    })
}
