//! Our side of `allreduce.py`, and the peer: a large all-reduce, exact, fast, and MPI's own.
//!
//! One JSON line from rank 0: for each way the seconds of each repetition on the slowest rank, the
//! ways taking turns.

use clap::Parser;
use mpi::ffi;
use std::cell::Cell;
use std::time::Instant;
use trainer::commands::start;
use trainer::config::Reduce;
use trainer::dist::tree::owned;
use trainer::dist::{Comm, Own, Reducer};
use trainer::error::Result;
use trainer::report::console::Level;

#[derive(Parser)]
struct Args {
    /// Size of the buffer in MB (2^20 bytes).
    #[arg(long, default_value_t = 256)]
    mb: usize,
    #[arg(long, default_value_t = 9)]
    repeats: usize,
    /// `distributed.bucket_mb`.
    #[arg(long)]
    bucket_mb: Option<f64>,
}

/// MPI_Allreduce as anyone would call it; it blocks.
fn library(data: &[f32], sum: &mut [f32]) {
    // SAFETY: both buffers are as long as is said, and the call comes back when they are done with.
    let code = unsafe {
        ffi::MPI_Allreduce(
            data.as_ptr().cast(),
            sum.as_mut_ptr().cast(),
            data.len() as i32,
            ffi::RSMPI_FLOAT,
            ffi::RSMPI_SUM,
            ffi::RSMPI_COMM_WORLD,
        )
    };
    assert_eq!(code, 0, "MPI_Allreduce");
}

fn ours(comm: &Comm, reducer: &mut Reducer, data: &mut [f32]) -> Result<()> {
    let m = comm.size();
    let own = Own {
        gradient: Cell::from_mut(data).as_slice_of_cells(),
        last: owned(comm.rank(), m, m).next_back(),
        parts: Vec::new(),
        keep: Box::new(()),
    };
    reducer.begin(comm, m, own)?.finish()
}

/// Seconds of the slowest rank.
fn slowest(comm: &Comm, action: impl FnOnce() -> Result<()>) -> Result<f64> {
    comm.barrier()?;
    let started = Instant::now();
    action()?;
    let own = started.elapsed().as_secs_f64();
    let all = comm.all_gather(own.to_le_bytes().to_vec())?;
    let all = all.iter().map(|b| f64::from_le_bytes(b[..].try_into().expect("eight bytes")));
    Ok(all.fold(0.0, f64::max))
}

fn main() -> Result<()> {
    let args = Args::parse();
    let session = start(Level::Quiet, 1)?;
    let comm = &session.world.comm;
    let n = args.mb << 18;
    let (mut data, mut sum) = (vec![1f32; n], vec![0f32; n]);
    let ways = [Reduce::Exact, Reduce::Fast];
    let mut reducers = ways.map(|how| Reducer::new(comm, how, n, args.bucket_mb));
    let mut seconds: [Vec<f64>; 3] = Default::default();
    for _ in 0..=args.repeats {
        data.fill(1.0);
        let peer = slowest(comm, || {
            library(&data, &mut sum);
            Ok(())
        })?;
        seconds[0].push(peer);
        for (way, reducer) in reducers.iter_mut().enumerate() {
            data.fill(1.0);
            seconds[way + 1].push(slowest(comm, || ours(comm, reducer, &mut data))?);
            assert!(data.iter().all(|x| *x == comm.size() as f32), "the sum is wrong");
        }
    }
    if comm.rank() == 0 {
        let [library, exact, fast] = seconds.map(|s| s[1..].to_vec());
        let line = serde_json::json!({
            "work": "allreduce", "ranks": comm.size(), "library": library, "exact": exact,
            "fast": fast,
        });
        println!("{line}");
    }
    session.world.finish()
}
