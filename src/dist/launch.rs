//! Whether the launcher that started this process can start ranks of the MPI it was built with.
//!
//! Launcher and library meet through a protocol (PMI, PMIx, Open MPI's own). Where they have none in
//! common, MPICH starts quietly and every process is rank 0 of 1; Open MPI ends the process from
//! within `MPI_Init`, or is alone as well. What the environment shows is refused before MPI starts,
//! the rest by comparing what MPI says with what the launcher said.

use super::versions::{MpiLibrary, Vendor};
use crate::config::{Launcher, LauncherKind};
use crate::error::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Refuses what is known to fail before MPI is started (exit code 4). All ranks meet it alike.
pub(super) fn refuse(launcher: &Launcher, library: &MpiLibrary) -> Result<()> {
    let Some(size) = launcher.size.filter(|size| *size > 1) else { return Ok(()) };
    let why = match launcher.kind {
        LauncherKind::SlurmStep => Some(
            "it gave MPI nothing to find the other tasks by (it was told no --mpi): each would be \
             rank 0 of 1"
                .to_string(),
        ),
        LauncherKind::Pmi if launcher.in_step => lacks_pmi(library),
        _ => None,
    };
    match why {
        None => Ok(()),
        Some(why) => {
            let what = format!("srun started {size} tasks, but {why}");
            Err(explain(&what, size, library).everywhere())
        }
    }
}

/// MPI knows another rank or size than the launcher: what that means.
pub(super) fn contradiction(
    launcher: &Launcher,
    library: &MpiLibrary,
    (rank, size): (usize, usize),
) -> Error {
    let promised = launcher.size.map_or("?".to_string(), |size| size.to_string());
    let started = launcher.size.unwrap_or(launcher.rank + 1);
    let what = format!(
        "{} says rank {} of {promised}, MPI says rank {rank} of {size}",
        launcher.kind, launcher.rank
    );
    let why = match (launcher.kind, library.vendor) {
        _ if size != 1 => "this program's MPI was started by something else",
        (LauncherKind::OpenMpi, Vendor::OpenMpi) => {
            "that mpirun belongs to another Open MPI than the one that is loaded here"
        }
        (LauncherKind::Pmix, Vendor::OpenMpi) => {
            "its PMIx and that of Open MPI do not understand each other"
        }
        (LauncherKind::Pmix, _) => "this MPI does not speak PMIx: each process is alone",
        (LauncherKind::OpenMpi, _) => {
            "that is the mpirun of Open MPI, and this program's MPI is another: each process is alone"
        }
        (_, Vendor::OpenMpi) => "Open MPI does not speak PMI: each process is alone",
        _ => {
            "the launcher and this program's MPI do not understand each other: each process is alone"
        }
    };
    let error = explain(&format!("{what}: {why}"), started, library);
    // Without a size, rank 0 cannot know that it should not be alone.
    if launcher.size.is_some() { error.everywhere() } else { error }
}

fn explain(what: &str, ranks: usize, library: &MpiLibrary) -> Error {
    Error::launch(what).hint(format!(
        "this program was built with {library}; start it with {}{}",
        library.vendor.launchers(ranks),
        if what.contains("srun") { " (`srun --mpi=list` shows what there is)" } else { "" }
    ))
}

/// Why an Open MPI cannot take part in a PMI-1 or PMI-2 launch of Slurm, if it is known not to:
/// release 5 has no PMI any more, and before that it is a plugin that may not be installed.
fn lacks_pmi(library: &MpiLibrary) -> Option<String> {
    if library.vendor != Vendor::OpenMpi {
        return None;
    }
    let first: u32 = library.version.split('.').next()?.parse().ok()?;
    let lacking = first >= 5 || !has_slurm_pmi(&loaded("libmpi.so")?)?;
    lacking.then(|| format!("{library} does not speak PMI: it would end in MPI_Init"))
}

/// Whether an Open MPI of release 3 or 4 has the plugin for Slurm's PMI; None where its plugins are
/// not found where they usually are.
fn has_slurm_pmi(library: &Path) -> Option<bool> {
    let plugins = plugins(library.parent()?, 3);
    let slurms =
        |name: &String| name.starts_with("mca_pmix_s1.") || name.starts_with("mca_pmix_s2.");
    (!plugins.is_empty()).then(|| plugins.iter().any(slurms))
}

/// Files named `mca_pmix_…` in the directories `openmpi…` of this one (and, as Debian has it, in
/// such a one's `lib`).
fn plugins(dir: &Path, depth: usize) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let deeper = depth > 0 && (name.starts_with("openmpi") || name == "lib");
        if name.starts_with("mca_pmix_") {
            found.push(name);
        } else if deeper && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(plugins(&entry.path(), depth - 1));
        }
    }
    found
}

/// Where a library that this process has loaded lies.
fn loaded(name: &str) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    paths
        .map(PathBuf::from)
        .find(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(kind: LauncherKind, in_step: bool) -> Launcher {
        Launcher { kind, rank: 2, size: Some(4), in_step, ..Launcher::none() }
    }

    fn library(vendor: Vendor, version: &str) -> MpiLibrary {
        MpiLibrary { vendor, version: version.into() }
    }

    #[test]
    fn srun_without_mpi_is_refused_for_both() {
        for (library, remedy) in [
            (library(Vendor::OpenMpi, "4.1.4"), "srun --mpi=pmix"),
            (library(Vendor::Mpich, "4.0.2"), "srun --mpi=pmi2"),
        ] {
            let error = refuse(&started(LauncherKind::SlurmStep, true), &library).unwrap_err();
            assert!(error.to_string().contains(remedy), "{error}");
            assert!(error.to_string().contains("4 tasks"), "{error}");
            assert_eq!(error.code(), 4);
            let alone =
                Launcher { size: Some(1), rank: 0, ..started(LauncherKind::SlurmStep, true) };
            refuse(&alone, &library).unwrap();
            refuse(&started(LauncherKind::Pmix, true), &library).unwrap();
        }
    }

    #[test]
    fn slurms_pmi_is_not_for_an_open_mpi_without_it() {
        let pmi = started(LauncherKind::Pmi, true);
        refuse(&pmi, &library(Vendor::Mpich, "4.0.2")).unwrap();
        refuse(&started(LauncherKind::Pmi, false), &library(Vendor::OpenMpi, "5.0.1")).unwrap();
        let error = refuse(&pmi, &library(Vendor::OpenMpi, "5.0.1")).unwrap_err();
        assert!(error.to_string().contains("srun --mpi=pmix"), "{error}");
    }

    #[test]
    fn plugins_are_looked_for_beside_the_library() {
        let dir = std::env::temp_dir().join(format!("trainer-plugins-{}", std::process::id()));
        let library = dir.join("libmpi.so.40");
        let debian = dir.join("openmpi/lib/openmpi3");
        fs::create_dir_all(&debian).unwrap();
        assert_eq!(has_slurm_pmi(&library), None);
        fs::write(debian.join("mca_pmix_ext3x.so"), "").unwrap();
        assert_eq!(has_slurm_pmi(&library), Some(false));
        fs::create_dir_all(dir.join("openmpi4")).unwrap();
        fs::write(dir.join("openmpi4/mca_pmix_s2.so"), "").unwrap();
        assert_eq!(has_slurm_pmi(&library), Some(true));
        fs::remove_dir_all(dir).unwrap();
        assert!(loaded("libmpi.so").is_some());
    }

    #[test]
    fn contradictions_name_the_launcher_that_works() {
        use LauncherKind::{OpenMpi, Pmi, Pmix};
        for (kind, vendor, cause, remedy) in [
            (Pmi, Vendor::OpenMpi, "does not speak PMI:", "mpirun -n 4 trainer"),
            (Pmix, Vendor::Mpich, "does not speak PMIx", "srun --mpi=pmi2"),
            (OpenMpi, Vendor::Mpich, "the mpirun of Open MPI", "mpiexec -n 4 trainer"),
            (OpenMpi, Vendor::OpenMpi, "another Open MPI", "mpirun -n 4 trainer"),
        ] {
            let error = contradiction(&started(kind, false), &library(vendor, "4.0"), (0, 1));
            let text = error.to_string();
            assert!(text.contains("rank 2 of 4, MPI says rank 0 of 1"), "{text}");
            assert!(text.contains(cause) && text.contains(remedy), "{text}");
        }
    }
}
