//! What must hold under Slurm: the launchers, and the job files in `jobs/`, each put through what
//! happens on a cluster.
//!
//! Every test starts a real Slurm of three virtual nodes on this machine, which takes root and
//! Debian's packages; without them each says loudly that it did not run, and with
//! `TRAINER_REQUIRE_SLURM` set it fails. `TRAINER_SLOW_TESTS` adds the time limit, 95 s.

mod arrays;
mod cluster;
mod disturbed;
#[path = "../mpi/harness.rs"]
#[allow(dead_code)] // the tests of MPI use the rest
mod harness;
mod launchers;
