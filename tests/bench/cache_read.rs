//! Our side of `cache_read.py`: random reads of single sequences from a cache.
//!
//! Prints one JSON line: seconds of each pass after one that is not counted, and bytes of a pass.

use clap::Parser;
use std::path::PathBuf;
use std::time::Instant;
use trainer::cache::{Cache, RecordRef};
use trainer::error::Result;
use trainer::rng::{Key, Purpose};

#[derive(Parser)]
struct Args {
    /// The cache.
    dir: PathBuf,
    #[arg(long, default_value_t = 2000)]
    reads: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Turn to float32 too, as training does.
    #[arg(long)]
    float32: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let cache = Cache::open(&args.dir)?;
    let records: Vec<RecordRef> = cache.records().collect();
    let mut stream = Key::new(args.seed, Purpose::Sample).stream(0, 0);
    let chosen: Vec<RecordRef> =
        (0..args.reads).map(|_| records[stream.below(records.len() as u64) as usize]).collect();
    let (mut stored, mut values) = (Vec::new(), Vec::new());
    let (mut seconds, mut bytes) = (Vec::new(), 0u64);
    for _ in 0..=args.repeats {
        let start = Instant::now();
        bytes = 0;
        for &record in &chosen {
            if args.float32 {
                cache.read(record, &mut values)?;
                bytes += values.len() as u64 * cache.manifest().plan.dtype.bytes() as u64;
            } else {
                cache.read_stored(record, &mut stored)?;
                bytes += stored.len() as u64;
            }
        }
        seconds.push(start.elapsed().as_secs_f64());
    }
    let line = serde_json::json!({"work": "cache_read", "seconds": seconds[1..], "bytes": bytes});
    println!("{line}");
    Ok(())
}
