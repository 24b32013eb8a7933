//! The systems this program trains: one recipe each, a folder of files and a line below.
//!
//! A recipe owns its sections of the configuration, its samples, its model and its artefacts; it
//! takes readers, plans, the loop, caches and checkpoints from the rooms below.

mod devices;
pub mod ptm_mamba;
mod session;

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
    /// Least probability that is reported.
    pub min_probability: f64,
    /// One vector a sequence instead of one a residue.
    pub mean: bool,
}

/// One of the five systems.
pub trait Recipe: Sync {
    /// Its word in the configuration.
    fn name(&self) -> &'static str;

    /// Checks configuration, data and model shapes, and says what would be done.
    fn dry_run(&self, config: &ConfigFile, session: &Session) -> Result<()>;

    /// Computes the embedding cache, or what is missing of it; `part` is (i, n).
    fn embed(&self, config: &ConfigFile, session: &Session, part: (usize, usize)) -> Result<()>;

    /// Trains, or goes on training; `fresh` begins a new run whatever there is.
    fn train(&self, config: &ConfigFile, session: &Session, fresh: bool) -> Result<()>;

    /// Measures a checkpoint on the validation and test parts.
    fn evaluate(&self, config: &ConfigFile, session: &Session, args: &UseArgs) -> Result<()>;

    /// Applies a checkpoint to new data.
    fn predict(&self, config: &ConfigFile, session: &Session, args: &UseArgs) -> Result<()>;

    /// Whether training needs an embedding cache first.
    fn needs_cache(&self, config: &ConfigFile) -> Result<bool>;

    /// The batch plan of training, described.
    fn describe_plan(&self, config: &ConfigFile, session: &Session) -> Result<String>;

    /// Writes a small synthetic data set into a directory and says what it is.
    fn sample(&self, dir: &Path, seed: u64) -> Result<String>;
}

const RECIPES: &[&dyn Recipe] = &[&ptm_mamba::PtmMambaRecipe];

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
