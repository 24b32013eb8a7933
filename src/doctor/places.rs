//! What a run will touch on disk.

use crate::config::{ConfigFile, Device};
use crate::error::Result;
use crate::recipes::{self, Shared};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Something on disk, and what a run wants of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// What it is to the run, in words: `run.output_dir`, …
    pub role: String,
    /// Where it is.
    pub path: PathBuf,
    /// What is wanted.
    pub need: Need,
}

/// What a run wants of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Need {
    /// To make the directory and write in it, and all ranks to see that.
    SharedDirectory,
    /// To write in the directory, each rank for itself.
    OwnDirectory,
    /// To read it, file or directory.
    Read,
}

/// What the configuration asks of the machine.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// All that a run touches.
    pub places: Vec<Place>,
    /// Threads of a rank; None: as many as fit.
    pub threads: Option<usize>,
    /// Micro-batches of a step that training needs a rank's share of; None: nothing is trained.
    pub micro_batches: Option<usize>,
    /// Where tensors are to live.
    pub device: Device,
    /// Whether ranks may share a GPU.
    pub share_gpus: bool,
}

impl Wanted {
    /// Without a configuration: the working directory, and one thread a rank as shipped
    /// configurations say.
    pub fn nothing() -> Wanted {
        let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
        let places = vec![place("working directory", &here, Need::SharedDirectory), temporary()];
        let device = Device::Auto;
        Wanted { places, threads: Some(1), micro_batches: None, device, share_gpus: false }
    }

    /// Of a configuration, which its recipe has checked.
    pub fn of(file: &ConfigFile) -> Result<Wanted> {
        let recipe = recipes::find(file.recipe()?).map_err(|e| e.at(file.place("recipe")))?;
        let Shared { run, training, distributed } = recipe.shared(file)?;
        let mut places = vec![place("run.output_dir", &run.output_dir, Need::SharedDirectory)];
        let (made, read): (Vec<_>, Vec<_>) =
            recipe.touches(file)?.into_iter().partition(|touched| touched.is_made);
        places.extend(made.iter().map(|t| place(t.key, &t.path, Need::SharedDirectory)));
        places.push(temporary());
        places.extend(read.iter().map(|t| place(t.key, &t.path, Need::Read)));
        Ok(Wanted {
            places,
            threads: distributed.threads_per_rank,
            micro_batches: (!distributed.allow_idle_ranks)
                .then_some(training.micro_batches_per_step),
            device: run.device,
            share_gpus: distributed.share_gpus,
        })
    }
}

fn place(role: &str, path: &Path, need: Need) -> Place {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    Place { role: role.to_string(), path, need }
}

fn temporary() -> Place {
    place("TMPDIR", &std::env::temp_dir(), Need::OwnDirectory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_configuration_touches() {
        let text = "\
recipe: ptm_mamba
run: {output_dir: /o}
dataset: {dataset_location: /d.csv}
esm: {model: /esm, cache_dir: /c}
training: {use_precomputed_embeddings: true}
distributed: {threads_per_rank: 3}
";
        let wanted = Wanted::of(&ConfigFile::from_text("t", text, &[]).unwrap()).unwrap();
        let roles: Vec<&str> = wanted.places.iter().map(|p| p.role.as_str()).collect();
        let all =
            ["run.output_dir", "esm.cache_dir", "TMPDIR", "dataset.dataset_location", "esm.model"];
        assert_eq!(roles, all);
        assert_eq!(wanted.places[1].path, Path::new("/c"));
        assert_eq!((wanted.threads, wanted.micro_batches), (Some(3), Some(8)));
        let online = ConfigFile::from_text("t", text, &["training.use_esm=false".into()]).unwrap();
        assert!(Wanted::of(&online).unwrap().places.iter().all(|p| p.role != "esm.cache_dir"));
    }
}
