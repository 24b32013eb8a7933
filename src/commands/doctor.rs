//! What this program finds on this machine: versions, ranks, threads, devices.

use crate::dist::{mpi_version, nccl_version};
use crate::error::Result;
use crate::files::{free_bytes, host_name, print};
use crate::recipes::Session;
use crate::report::console::table;
use crate::report::step_line::bytes;
use crate::torch::{self, cuda};
use std::path::Path;

/// Prints a table on standard output (rank 0), one line a rank below it.
pub fn run(session: &Session) -> Result<()> {
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
        return Ok(());
    }
    let rows: Vec<Vec<String>> =
        facts().into_iter().map(|(what, found)| vec![what.to_string(), found]).collect();
    let mut text = table(&["what", "found"], &rows) + "\n";
    for rank in ranks {
        text += &format!("{}\n", String::from_utf8_lossy(&rank));
    }
    print(&text)?;
    Ok(())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn facts() -> Vec<(&'static str, String)> {
    vec![
        ("trainer", env!("CARGO_PKG_VERSION").to_string()),
        ("MPI", mpi_version()),
        ("HDF5", hdf5_version()),
        ("libtorch", torch::torch_version()),
        ("kernels", torch::kernels_name()),
        ("NCCL", nccl_version()),
        ("GPUs", gpus()),
        ("cores", cores().to_string()),
        ("threads of a kernel", torch::parallel_width().to_string()),
        ("free space here", free_bytes(Path::new(".")).map_or("unknown".into(), bytes)),
    ]
}

/// The visible GPUs, or why they cannot be used.
fn gpus() -> String {
    let list = match cuda::gpus() {
        Ok(list) if list.is_empty() => return "none is visible".to_string(),
        Ok(list) => list,
        Err(what) => return what.clone(),
    };
    let driver = cuda::driver_version().unwrap_or_default();
    let names: Vec<_> =
        list.iter().map(|g| format!("{} ({})", g.name, bytes(g.memory as u64))).collect();
    let usable = match cuda::load() {
        Ok(()) => String::new(),
        Err(error) => format!("; {}", error.to_string().replace("\n  hint: ", "; ")),
    };
    format!("{}, driver for CUDA {driver}{usable}", names.join(", "))
}

fn hdf5_version() -> String {
    let (major, minor, patch) = hdf5::library_version();
    format!("{major}.{minor}.{patch}")
}
