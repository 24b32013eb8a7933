//! How ranks are started: `srun` with and without the right plugin, `mpirun` in a job, and the
//! wrong MPI.

use crate::cluster::{Cluster, job_file, plugin};
use crate::harness::{TRAINER, assert_same_run, mpirun};
use std::fs;

#[test]
fn srun_and_mpirun_compute_the_same_bits() {
    let Some(cluster) = Cluster::start("launchers") else { return };
    let scratch = &cluster.scratch;
    let alone = scratch.config("alone", &[]);
    scratch.run(None, &["train", alone.to_str().unwrap()], 0);
    let reference = scratch.only_run("alone");
    for tasks in ["2", "4"] {
        let name = format!("srun-{tasks}");
        let config = scratch.config(&name, &[]);
        let srun = ["srun", plugin(), "-N2", "--ntasks-per-node", tasks, TRAINER];
        let ended = cluster.launch(&srun, &["train", config.to_str().unwrap()]).wait();
        assert_eq!(ended.code, 0, "{}", ended.err);
        let ranks = format!("{} ranks", 2 * tasks.parse::<usize>().unwrap());
        assert!(ended.err.contains(&ranks), "{}", ended.err);
        assert_same_run(&reference, &scratch.only_run(&name), &name);
    }

    let config = scratch.config("mpirun", &[]);
    let mpiexec = mpirun()[0];
    let line = format!("#!/bin/bash\n{mpiexec} {TRAINER} train {}\n", config.display());
    fs::write(scratch.path("mpirun.sbatch"), line).unwrap();
    let file = scratch.path("mpirun.sbatch");
    let job = cluster.submit(&["-N2", "--ntasks-per-node=2"], file.to_str().unwrap(), &[]);
    assert_eq!(job.ends(), "COMPLETED", "{}", job.said());
    assert!(job.said().contains("4 ranks"), "{}", job.said());
    assert_same_run(&reference, &scratch.only_run("mpirun"), "mpirun");
}

#[test]
fn srun_without_a_plugin_is_refused_in_a_few_lines() {
    let Some(cluster) = Cluster::start("noplugin") else { return };
    let config = cluster.scratch.config("refused", &[]);
    let srun = ["srun", "--mpi=none", "-N2", "--ntasks-per-node=2", TRAINER];
    let ended = cluster.launch(&srun, &["train", config.to_str().unwrap()]).wait();
    assert_eq!(ended.code, 4, "{}", ended.err);
    assert_eq!(ended.err.matches("each would be rank 0 of 1").count(), 1, "{}", ended.err);
    assert!(ended.err.contains("srun --mpi=pmix"), "{}", ended.err);
    assert!(ended.err.lines().count() <= 5, "{}", ended.err);
    assert!(!cluster.scratch.path("refused").exists());
}

/// A module of another version: the job says so before anything is started.
#[test]
fn another_mpi_is_refused_by_the_job() {
    let Some(cluster) = Cluster::start("othermpi") else { return };
    let scratch = &cluster.scratch;
    let config = scratch.config("refused", &[]);
    let home = scratch.path("home");
    fs::create_dir_all(home.join(".venv")).unwrap();
    std::os::unix::fs::symlink(job_file(""), home.join("jobs")).unwrap();
    let record = "launcher: /opt/openmpi/bin/mpirun\nversion:  mpirun (Open MPI) 3.1.6\n";
    fs::write(home.join(".venv/mpi.txt"), record).unwrap();
    let export = format!("--export=ALL,TRAINER_HOME={}", home.display());
    let options = [export.as_str(), "--ntasks-per-node=2"];
    let job = cluster.submit(&options, &job_file("train.sbatch"), &[config.to_str().unwrap()]);
    assert_eq!(job.ends(), "FAILED", "{}", job.said());
    assert_eq!(job.field("ExitCode"), "4:0", "{}", job.said());
    assert!(job.said().contains("built against 'mpirun (Open MPI) 3.1.6'"), "{}", job.said());
    assert!(!scratch.path("refused").exists());
}
