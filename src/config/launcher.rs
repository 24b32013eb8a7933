//! Which launcher started this process, read from its environment alone, before any MPI.
//!
//! The order matters. Under `mpirun` inside a Slurm job a rank also carries the SLURM_* variables of
//! the daemon that started it, with a rank and a size of their own; so Open MPI's variables come
//! first, then PMI's, then PMIx's, and Slurm's last and only inside a step: the batch script itself
//! has SLURM_PROCID=0 and the whole job's SLURM_NTASKS.

use crate::error::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fmt;

/// Who started this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LauncherKind {
    /// Nobody that starts ranks: a shell, or a batch script.
    #[default]
    None,
    /// `mpirun` of Open MPI.
    OpenMpi,
    /// `mpiexec` of MPICH or Intel MPI, or `srun --mpi=pmi2`.
    Pmi,
    /// `srun --mpi=pmix`.
    Pmix,
    /// `srun` without any MPI plugin.
    SlurmStep,
}

impl fmt::Display for LauncherKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LauncherKind::None => "no launcher",
            LauncherKind::OpenMpi => "Open MPI's mpirun",
            LauncherKind::Pmi => "a PMI launcher (mpiexec, srun --mpi=pmi2)",
            LauncherKind::Pmix => "a PMIx launcher (srun --mpi=pmix)",
            LauncherKind::SlurmStep => "srun without MPI support",
        })
    }
}

/// What the launcher says about this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launcher {
    /// Who it is.
    pub kind: LauncherKind,
    /// This process's rank, from 0.
    pub rank: usize,
    /// Number of ranks; `None` where a PMIx launcher does not say and MPI must be asked.
    pub size: Option<usize>,
    /// Rank among the processes of this node, where the launcher says.
    pub local_rank: Option<usize>,
    /// Number of ranks on this node, where the launcher says.
    pub local_size: Option<usize>,
    /// Whether a Slurm step runs this very process (and not only the daemon that started it).
    pub in_step: bool,
}

#[derive(Deserialize)]
struct OpenMpi {
    rank: Option<usize>,
    size: Option<usize>,
    local_rank: Option<usize>,
    local_size: Option<usize>,
}

#[derive(Deserialize)]
struct Pmi {
    rank: Option<usize>,
    size: Option<usize>,
    local_rank: Option<usize>,
    local_size: Option<usize>,
}

/// MPICH's process manager says what is on the node under another prefix.
#[derive(Deserialize)]
struct Hydra {
    localrankid: Option<usize>,
    localnranks: Option<usize>,
}

#[derive(Deserialize)]
struct Pmix {
    rank: Option<usize>,
    namespace: Option<String>,
}

#[derive(Deserialize)]
struct Slurm {
    step_id: Option<u32>,
    step_num_tasks: Option<usize>,
    procid: Option<usize>,
    localid: Option<usize>,
    nodeid: Option<usize>,
    step_tasks_per_node: Option<String>,
    mpi_type: Option<String>,
}

#[derive(Deserialize)]
struct Array {
    task_id: Option<usize>,
    task_min: Option<usize>,
    task_step: Option<usize>,
    task_count: Option<usize>,
}

/// Step ids from here on are no steps that run tasks: the batch script, an interactive shell, an
/// external container (slurm.h, SLURM_MAX_NORMAL_STEP_ID).
const FIRST_SPECIAL_STEP: u32 = 0xffff_fff0;

/// This process's environment, without variables that are not UTF-8.
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
        .collect()
}

/// Reads the variables with a prefix; a number that is none is exit code 4.
fn group<T: DeserializeOwned>(prefix: &str, env: &[(String, String)]) -> Result<T> {
    envy::prefixed(prefix).from_iter(env.iter().cloned()).map_err(|e| {
        Error::launch(format!("{prefix}*: {e}"))
            .at("the launcher's environment")
            .hint("unset that variable, or start the program through mpirun or srun again")
    })
}

impl Launcher {
    /// Finds the launcher in an environment. Half a launcher's variables, or a rank that is not
    /// below the size, is exit code 4.
    pub fn from_env(env: impl IntoIterator<Item = (String, String)>) -> Result<Launcher> {
        let env: Vec<(String, String)> = env.into_iter().collect();
        let slurm: Slurm = group("SLURM_", &env)?;
        let in_step = slurm.step_id.is_some_and(|id| id < FIRST_SPECIAL_STEP);
        let step = if in_step { pair("SLURM_", slurm.procid, slurm.step_num_tasks)? } else { None };
        let on_node = || tasks_on_node(slurm.step_tasks_per_node.as_deref()?, slurm.nodeid?);
        let step_local = slurm.localid.filter(|_| in_step);

        let ompi: OpenMpi = group("OMPI_COMM_WORLD_", &env)?;
        if let Some((rank, size)) = pair("OMPI_COMM_WORLD_", ompi.rank, ompi.size)? {
            return Launcher {
                local_rank: ompi.local_rank,
                local_size: ompi.local_size,
                ..Launcher::new(LauncherKind::OpenMpi, rank, Some(size))
            }
            .checked();
        }
        let pmi: Pmi = group("PMI_", &env)?;
        if let Some((rank, size)) = pair("PMI_", pmi.rank, pmi.size)? {
            let hydra: Hydra = group("MPI_", &env)?;
            // Slurm's own numbers count tasks of the step, which are ours only if as many.
            let ours = step == Some((rank, size));
            let slurm_size = ours.then(on_node).flatten();
            return Launcher {
                local_rank: hydra.localrankid.or(pmi.local_rank).or(step_local.filter(|_| ours)),
                local_size: hydra.localnranks.or(pmi.local_size).or(slurm_size),
                in_step: ours,
                ..Launcher::new(LauncherKind::Pmi, rank, Some(size))
            }
            .checked();
        }
        let pmix: Pmix = group("PMIX_", &env)?;
        if let Some(rank) = pmix.rank {
            // Under another PMIx launcher the step is that of its daemons.
            let ours = pmix.namespace.is_some_and(|name| name.starts_with("slurm.")) && in_step;
            return Launcher {
                local_rank: step_local.filter(|_| ours),
                local_size: ours.then(on_node).flatten(),
                in_step: ours,
                ..Launcher::new(LauncherKind::Pmix, rank, step.filter(|_| ours).map(|(_, n)| n))
            }
            .checked();
        }
        let Some((rank, size)) = step else { return Ok(Launcher::none()) };
        // Cray's plugin leaves rank and size to the library (from Slurm's source; no recording).
        let cray = slurm.mpi_type.as_deref().is_some_and(|plugin| plugin.starts_with("cray"));
        let kind = if cray { LauncherKind::Pmi } else { LauncherKind::SlurmStep };
        Launcher {
            local_rank: step_local,
            local_size: on_node(),
            in_step,
            ..Launcher::new(kind, rank, Some(size))
        }
        .checked()
    }

    /// One process that nobody started as a rank.
    pub fn none() -> Launcher {
        Launcher::new(LauncherKind::None, 0, Some(1))
    }

    fn new(kind: LauncherKind, rank: usize, size: Option<usize>) -> Launcher {
        Launcher { kind, rank, size, local_rank: None, local_size: None, in_step: false }
    }

    fn checked(self) -> Result<Launcher> {
        match self.size {
            Some(size) if self.rank >= size => {
                Err(Error::launch(format!("rank {} of {size} cannot be", self.rank))
                    .at(format_args!("the environment of {}", self.kind))
                    .hint("start the program through mpirun or srun again, from a fresh shell"))
            }
            _ => Ok(self),
        }
    }
}

/// Rank and size belong together.
fn pair(prefix: &str, rank: Option<usize>, size: Option<usize>) -> Result<Option<(usize, usize)>> {
    match (rank, size) {
        (Some(rank), Some(size)) => Ok(Some((rank, size))),
        (None, None) => Ok(None),
        _ => Err(Error::launch(format!(
            "of {prefix}* the rank or the size is set without the other"
        ))
        .at("the launcher's environment")
        .hint("unset what is left of it, or start the program through mpirun or srun again")),
    }
}

/// The tasks of the node with this number in Slurm's list, such as `4(x2),3`.
fn tasks_on_node(list: &str, node: usize) -> Option<usize> {
    let mut first = 0;
    for group in list.split(',') {
        let (tasks, nodes) = match group.split_once("(x") {
            Some((tasks, nodes)) => (tasks, nodes.strip_suffix(')')?.parse().ok()?),
            None => (group, 1),
        };
        if (first..first + nodes).contains(&node) {
            return tasks.parse().ok();
        }
        first += nodes;
    }
    None
}

/// The part (i, n) of a Slurm array that this task is, i from 0 to below n; `None` outside an array.
/// An array with gaps (`--array=1,5`) does not say which of its tasks this is: exit code 4.
pub fn array_part(
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Option<(usize, usize)>> {
    let env: Vec<(String, String)> = env.into_iter().collect();
    let array: Array = group("SLURM_ARRAY_", &env)?;
    let (Some(id), Some(min), Some(count)) = (array.task_id, array.task_min, array.task_count)
    else {
        return Ok(None);
    };
    let step = array.task_step.unwrap_or(1).max(1);
    let index = id.checked_sub(min).filter(|offset| offset % step == 0).map(|offset| offset / step);
    match index.filter(|index| *index < count) {
        Some(index) => Ok(Some((index, count))),
        None => Err(Error::launch(format!("task {id} of an array with gaps has no place in it"))
            .at("SLURM_ARRAY_TASK_ID")
            .hint("use an array such as --array=0-7, or say which part it is: --part i/n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Excerpts of environments recorded on Slurm 22.05 with Open MPI 4.1 and MPICH 4.0.
    fn recorded(name: &str) -> Vec<(String, String)> {
        let text = match name {
            "mpirun" => include_str!("testdata/mpirun.env"),
            "mpirun-in-salloc-1" => include_str!("testdata/mpirun-in-salloc-1.env"),
            "mpirun-in-salloc-2" => include_str!("testdata/mpirun-in-salloc-2.env"),
            "mpiexec" => include_str!("testdata/mpiexec.env"),
            "mpiexec-in-salloc" => include_str!("testdata/mpiexec-in-salloc.env"),
            "srun-none" => include_str!("testdata/srun-none.env"),
            "srun-pmi2" => include_str!("testdata/srun-pmi2.env"),
            "srun-pmix" => include_str!("testdata/srun-pmix.env"),
            "sbatch" => include_str!("testdata/sbatch.env"),
            "sbatch-array-3" => include_str!("testdata/sbatch-array-3.env"),
            "sbatch-array-4" => include_str!("testdata/sbatch-array-4.env"),
            "salloc-shell" => include_str!("testdata/salloc-shell.env"),
            other => panic!("no recording {other}"),
        };
        vars(text.lines())
    }

    fn vars<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<(String, String)> {
        let split = |line: &'a str| line.split_once('=').expect("NAME=value");
        lines.into_iter().map(split).map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn recorded_environments() {
        use LauncherKind::{OpenMpi, Pmi, Pmix, SlurmStep};
        for (name, kind, rank, local_rank, local_size, in_step) in [
            ("mpirun", OpenMpi, 1, 1, 4, false),
            ("mpirun-in-salloc-1", OpenMpi, 1, 1, 2, false),
            ("mpirun-in-salloc-2", OpenMpi, 2, 0, 2, false),
            ("mpiexec", Pmi, 1, 1, 4, false),
            ("mpiexec-in-salloc", Pmi, 1, 1, 2, false),
            ("srun-none", SlurmStep, 1, 1, 2, true),
            ("srun-pmi2", Pmi, 1, 1, 2, true),
            ("srun-pmix", Pmix, 1, 1, 2, true),
        ] {
            let found = Launcher::from_env(recorded(name)).unwrap();
            let (local_rank, local_size) = (Some(local_rank), Some(local_size));
            let wanted = Launcher { kind, rank, size: Some(4), local_rank, local_size, in_step };
            assert_eq!(found, wanted, "{name}");
        }
    }

    #[test]
    fn batch_scripts_and_shells_are_no_launchers() {
        let none = Launcher::none();
        for name in ["sbatch", "sbatch-array-3", "salloc-shell"] {
            assert_eq!(Launcher::from_env(recorded(name)).unwrap(), none, "{name}");
        }
        assert_eq!(Launcher::from_env(Vec::new()).unwrap(), none);
        // An interactive shell that newer Slurms run as a special step.
        let shell = ["SLURM_STEP_ID=4294967290", "SLURM_STEP_NUM_TASKS=4", "SLURM_PROCID=0"];
        assert_eq!(Launcher::from_env(vars(shell)).unwrap(), none);
    }

    #[test]
    fn tasks_of_a_node() {
        for (list, node, wanted) in [
            ("2(x2)", 1, Some(2)),
            ("3,1", 1, Some(1)),
            ("4(x2),3,1(x3)", 2, Some(3)),
            ("4(x2),3,1(x3)", 5, Some(1)),
            ("4", 1, None),
            ("4(x", 0, None),
        ] {
            assert_eq!(tasks_on_node(list, node), wanted, "{list} {node}");
        }
    }

    #[test]
    fn crays_plugin_names_itself_alone() {
        let mut env = recorded("srun-none");
        env.push(("SLURM_MPI_TYPE".into(), "cray_shasta".into()));
        let found = Launcher::from_env(env).unwrap();
        assert_eq!((found.kind, found.rank, found.size), (LauncherKind::Pmi, 1, Some(4)));
    }

    #[test]
    fn pmix_without_a_size_leaves_it_to_mpi() {
        let found = Launcher::from_env(vars(["PMIX_RANK=3"])).unwrap();
        assert_eq!((found.kind, found.rank, found.size), (LauncherKind::Pmix, 3, None));
        // The step of a daemon says nothing about its children.
        let child = [
            "PMIX_RANK=3",
            "PMIX_NAMESPACE=prterun-17",
            "SLURM_STEP_ID=0",
            "SLURM_STEP_NUM_TASKS=4",
            "SLURM_PROCID=3",
        ];
        assert_eq!(Launcher::from_env(vars(child)).unwrap(), found);
    }

    #[test]
    fn damaged_environments_are_refused() {
        for (lines, wanted) in [
            (
                vec!["OMPI_COMM_WORLD_RANK=1"],
                "OMPI_COMM_WORLD_* the rank or the size is set without",
            ),
            (
                vec!["PMI_RANK=x", "PMI_SIZE=4"],
                "PMI_*: invalid digit found in string while parsing",
            ),
            (vec!["PMI_RANK=4", "PMI_SIZE=4"], "rank 4 of 4 cannot be"),
            (vec!["SLURM_STEP_ID=0", "SLURM_PROCID=0"], "SLURM_* the rank or the size"),
        ] {
            let error = Launcher::from_env(vars(lines)).unwrap_err();
            assert_eq!(error.code(), 4);
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }

    #[test]
    fn parts_of_an_array() {
        assert_eq!(array_part(recorded("sbatch-array-3")).unwrap(), Some((0, 2)));
        assert_eq!(array_part(recorded("sbatch-array-4")).unwrap(), Some((1, 2)));
        assert_eq!(array_part(recorded("sbatch")).unwrap(), None);
        let array = |id: &str, step: &str| {
            let id = format!("SLURM_ARRAY_TASK_ID={id}");
            let step = format!("SLURM_ARRAY_TASK_STEP={step}");
            let rest = ["SLURM_ARRAY_TASK_MIN=1", "SLURM_ARRAY_TASK_COUNT=2"];
            array_part(vars([id.as_str(), step.as_str()].into_iter().chain(rest)))
        };
        assert_eq!(array("5", "4").unwrap(), Some((1, 2)));
        assert_eq!(array("5", "1").unwrap_err().code(), 4);
    }
}
