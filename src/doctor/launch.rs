//! Who started the ranks, with which libraries, and whether they are one job.
//!
//! What cannot work at all (ranks that do not find each other, another MPI, unequal builds and
//! commands) ends every command at its start, this one too; here is what is left.

use super::facts::RankFacts;
use super::finding::Finding;
use crate::config::{Launcher, LauncherKind, environment};
use crate::dist::{MpiLibrary, nccl_library};
use crate::torch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One rank's launcher and libraries.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// The launcher in words; None: started alone.
    pub launcher: Option<String>,
    /// Tasks of the Slurm job that it runs in, if it does.
    pub slurm_tasks: Option<usize>,
    /// The MPI that was compiled against, and the one that was loaded.
    pub mpi: (String, String),
    /// libtorch, HDF5, NCCL.
    pub libraries: Vec<(String, String)>,
    /// The CPU's instruction set that kernels were chosen for.
    pub kernels: String,
}

/// Asks the environment and the libraries.
pub fn gather() -> Facts {
    let launcher = Launcher::from_env(environment()).unwrap_or_else(|_| Launcher::none());
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let (major, minor, patch) = hdf5::library_version();
    Facts {
        launcher: (launcher.kind != LauncherKind::None).then(|| launcher.kind.to_string()),
        slurm_tasks: number("SLURM_JOB_ID").and_then(|_: usize| number("SLURM_NTASKS")),
        mpi: (MpiLibrary::built().to_string(), MpiLibrary::running().to_string()),
        libraries: vec![
            ("libtorch".into(), torch::torch_version()),
            ("HDF5".into(), format!("{major}.{minor}.{patch}")),
            ("NCCL".into(), nccl_library().unwrap_or_else(|why| why)),
        ],
        kernels: torch::kernels_name(),
    }
}

/// What that means.
pub fn judge(all: &[RankFacts]) -> Vec<Finding> {
    let mut findings = vec![launcher(all)];
    findings.extend(uneven(all));
    findings.extend(libraries(all));
    findings
}

fn hosts(all: &[RankFacts]) -> BTreeMap<&str, usize> {
    let mut hosts = BTreeMap::new();
    all.iter().for_each(|facts| *hosts.entry(facts.host.as_str()).or_default() += 1);
    hosts
}

fn launcher(all: &[RankFacts]) -> Finding {
    let first = &all[0].launch;
    let (ranks, hosts) = (all.len(), hosts(all).len());
    let plural = |n: usize, noun: &str| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
    match (&first.launcher, first.slurm_tasks) {
        (None, Some(tasks)) if tasks > 1 => Finding::warning(
            "launcher",
            format!("one process alone, inside a Slurm job of {tasks} tasks"),
        )
        .cause("without srun or mpirun in front, one process does all the work")
        .remedy(format!("srun or mpirun -n {tasks} trainer …")),
        (None, _) => Finding::ok("launcher", "none: one process, which needs no MPI"),
        (Some(name), _) if ranks == 1 => {
            Finding::ok("launcher", format!("{name}: one process, which needs no MPI"))
        }
        (Some(name), _) => {
            let on = format!("{} on {}", plural(ranks, "rank"), plural(hosts, "host"));
            Finding::ok("launcher", format!("{name}: {on}, and MPI says the same"))
        }
    }
}

/// Nodes with unlike numbers of ranks.
fn uneven(all: &[RankFacts]) -> Option<Finding> {
    let hosts = hosts(all);
    let (least, most) = (hosts.values().min()?, hosts.values().max()?);
    let list: Vec<String> = hosts.iter().map(|(host, ranks)| format!("{host} {ranks}")).collect();
    (least != most).then(|| {
        Finding::note("launcher", format!("unlike numbers of ranks on hosts: {}", list.join(", ")))
            .cause("a step takes as long as on the fullest node")
            .remedy("sbatch --ntasks-per-node=N, or mpirun --map-by ppr:N:node")
    })
}

fn libraries(all: &[RankFacts]) -> Vec<Finding> {
    let first = &all[0].launch;
    let mut findings = Vec::new();
    let list: Vec<String> = first.libraries.iter().map(|(n, v)| format!("{n} {v}")).collect();
    let (built, running) = &first.mpi;
    let mpi = match built == running {
        true => running.clone(),
        false => format!("{running} (built with {built})"),
    };
    let found = format!(
        "trainer {}, {mpi}, {}, {} kernels",
        env!("CARGO_PKG_VERSION"),
        list.join(", "),
        first.kernels
    );
    findings.push(Finding::ok("versions", found));
    for facts in all.iter().filter(|facts| facts.launch.kernels != first.kernels) {
        let (theirs, ours) = (&facts.launch.kernels, &first.kernels);
        findings.push(
            Finding::stops("versions", format!("{theirs} kernels, and {ours} on rank 0"))
                .cause("ranks of unlike CPUs compute other last bits: a run refuses them")
                .remedy(
                    "start all ranks on nodes of one kind, or set ATEN_CPU_CAPABILITY=avx2 on all, \
                     which makes newer CPUs compute as older ones do",
                )
                .on(facts.rank, &facts.host),
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::facts::tests::ranks_on;
    use super::super::finding::Status;
    use super::*;

    #[test]
    fn alone_in_a_job_of_many() {
        let mut all = ranks_on("a", 1);
        assert_eq!(launcher(&all).status, Status::Ok);
        all[0].launch.slurm_tasks = Some(4);
        let found = launcher(&all);
        assert_eq!(found.status, Status::Warning);
        assert!(found.remedy.unwrap().contains("mpirun -n 4 trainer"));
    }

    #[test]
    fn nodes_with_unlike_numbers_of_ranks() {
        let mut all = ranks_on("a", 4);
        assert!(uneven(&all).is_none());
        all[3].host = "b".into();
        assert!(uneven(&all).unwrap().found.ends_with("a 3, b 1"));
    }

    #[test]
    fn unlike_kernels_stop_a_run() {
        let mut all = ranks_on("a", 3);
        assert!(libraries(&all).iter().all(|f| f.status == Status::Ok));
        all[2].launch.kernels = "avx2".into();
        let found = libraries(&all).pop().unwrap();
        assert_eq!(found.status, Status::Stops);
        assert!(found.ranks.contains(&2) && found.ranks.len() == 1);
    }
}
