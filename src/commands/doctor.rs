//! What this program finds on this machine: versions, ranks, threads, devices.

use crate::error::Result;
use crate::files::{free_bytes, host_name};
use crate::recipes::{Done, Session};
use crate::report::console::table;
use crate::report::step_line::bytes;
use crate::torch;
use std::path::Path;

/// Prints a table on standard output (rank 0), one line a rank below it.
pub fn run(session: &Session) -> Result<Done> {
    let world = &session.world;
    let own = format!(
        "rank {} of {} on {}, number {} of {} on its node, {} cores",
        world.rank(),
        world.size(),
        host_name(),
        world.local_rank,
        world.local_size,
        cores()
    );
    let ranks = world.comm.all_gather(own.into_bytes())?;
    if world.rank() != 0 {
        return Ok(Done::Complete);
    }
    let rows: Vec<Vec<String>> =
        facts().into_iter().map(|(what, found)| vec![what.to_string(), found]).collect();
    print!("{}", table(&["what", "found"], &rows));
    for rank in ranks {
        println!("{}", String::from_utf8_lossy(&rank));
    }
    Ok(Done::Complete)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn facts() -> Vec<(&'static str, String)> {
    let gpus = tch::Cuda::device_count();
    vec![
        ("trainer", env!("CARGO_PKG_VERSION").to_string()),
        ("MPI", mpi_version()),
        ("HDF5", hdf5_version()),
        ("libtorch", torch::torch_version()),
        ("kernels", torch::kernels_name()),
        ("NCCL", nccl_version()),
        ("CUDA devices", gpus.to_string()),
        ("cores", cores().to_string()),
        ("threads of a kernel", torch::parallel_width().to_string()),
        ("free space here", free_bytes(Path::new(".")).map_or("unknown".into(), bytes)),
    ]
}

/// First line of the library's own version text.
fn mpi_version() -> String {
    let text = mpi::environment::library_version().unwrap_or_default();
    text.trim_end_matches('\0').split([',', '\n']).next().unwrap_or("unknown").to_string()
}

fn hdf5_version() -> String {
    let (major, minor, patch) = hdf5::library_version();
    format!("{major}.{minor}.{patch}")
}

/// The version of the NCCL that would be loaded; it answers without a GPU.
fn nccl_version() -> String {
    use cudarc::nccl::{result, sys};
    // SAFETY: only asks the dynamic loader whether the library is there.
    if !unsafe { sys::is_culib_present() } {
        return "not found (libnccl.so; `bash jobs/setup.sh` links it)".to_string();
    }
    match result::get_nccl_version() {
        Ok(v) => format!("{}.{}.{}", v / 10_000, v / 100 % 100, v % 100),
        Err(error) => format!("present, but does not answer: {error:?}"),
    }
}
