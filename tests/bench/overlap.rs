//! Our side of `overlap.py`: a training step of PTM-Mamba without any sum over ranks, with one
//! after backward, and with one during backward.
//!
//! One JSON line from rank 0: for each kind the seconds of each step on the slowest rank, the kinds
//! taking turns.

use clap::Parser;
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use trainer::commands::start;
use trainer::config::{Distributed, Reduce};
use trainer::dist::{Comm, tree};
use trainer::error::Result;
use trainer::models::ptm_mamba::{PtmMamba, PtmMambaConfig};
use trainer::report::console::Level;
use trainer::torch::{Flat, Params, keep_freed_memory, set_deterministic, sum_of_squares};
use trainer::train::adamw::{Adamw, AdamwConfig};
use trainer::train::gradient::GradientSum;

#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 4)]
    layers: i64,
    #[arg(long, default_value_t = 768)]
    d_model: i64,
    #[arg(long, default_value_t = 2)]
    batch: i64,
    #[arg(long, default_value_t = 128)]
    length: i64,
    /// Micro-batches of a rank.
    #[arg(long, default_value_t = 1)]
    micro_batches: usize,
    #[arg(long, default_value_t = 15)]
    repeats: usize,
    /// `distributed.reduce: fast` instead of `exact`.
    #[arg(long)]
    fast: bool,
    /// `distributed.bucket_mb`.
    #[arg(long)]
    bucket_mb: Option<f64>,
}

struct Training {
    model: PtmMamba,
    flat: Flat,
    optimiser: Adamw,
    ids: Tensor,
    targets: Tensor,
    lengths: Vec<i64>,
}

impl Training {
    fn loss(&self) -> Tensor {
        let hidden = self.model.forward(&self.ids, None, &self.lengths);
        self.model.logits(&hidden).view([-1, 59]).cross_entropy_for_logits(&self.targets)
    }

    /// A step of `n` micro-batches a rank.
    fn step(&mut self, comm: &Comm, sum: &mut GradientSum, n: usize) -> Result<()> {
        let m = n * comm.size();
        let own = tree::owned(comm.rank(), comm.size(), m);
        self.flat.zero_grad();
        for index in own.start..own.end - 1 {
            let loss = self.loss();
            sum.add(&mut self.flat, index, Some(loss))?;
        }
        let loss = self.loss();
        sum.finish(&self.flat, comm, m, Some((own.end - 1, Some(loss))))?;
        let norm = sum_of_squares(self.flat.grad())?.sqrt();
        self.optimiser.step(&self.flat, 1e-5, (norm + 1e-6).max(1.0))
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let session = start(Level::Quiet, 1)?;
    keep_freed_memory();
    set_deterministic(true)?;
    tch::set_num_threads(1);
    let (comm, alone) = (&session.world.comm, &Comm::Solo);
    let config =
        PtmMambaConfig { d_model: args.d_model, n_layer: args.layers, ..PtmMambaConfig::default() };
    let params = Params::new(Device::Cpu);
    let model = PtmMamba::new(&params.root(), &config, 1);
    params.initialise(0)?;
    let flat = Flat::new(&params, |name| name != "esm_head.weight")?;
    let adamw = AdamwConfig { betas: (0.9, 0.98), eps: 1e-8, weight_decay: 0.01 };
    let optimiser = Adamw::new(&flat, adamw, |_| true);
    tch::manual_seed(comm.rank() as i64);
    let ids = Tensor::randint(59, [args.batch, args.length], (Kind::Int64, Device::Cpu));
    let targets = Tensor::randint(59, [args.batch * args.length], (Kind::Int64, Device::Cpu));
    let lengths = vec![args.length; args.batch as usize];
    let mut training = Training { model, flat, optimiser, ids, targets, lengths };
    let told = |overlap| Distributed {
        reduce: if args.fast { Reduce::Fast } else { Reduce::Exact },
        overlap,
        bucket_mb: args.bucket_mb,
        ..Distributed::default()
    };
    let mut kinds = [
        (alone, GradientSum::new(alone, &training.flat, &told(true)), vec![]),
        (comm, GradientSum::new(comm, &training.flat, &told(false)), vec![]),
        (comm, GradientSum::new(comm, &training.flat, &told(true)), vec![]),
    ];
    for _ in 0..=args.repeats {
        for (comm_now, sum, seconds) in &mut kinds {
            comm.barrier()?;
            let started = Instant::now();
            training.step(comm_now, sum, args.micro_batches)?;
            let own = started.elapsed().as_secs_f64();
            let all = comm.all_gather(own.to_le_bytes().to_vec())?;
            let all = all.iter().map(|b| f64::from_le_bytes(b[..].try_into().expect("eight")));
            seconds.push(all.fold(0.0, f64::max));
        }
    }
    if comm.rank() == 0 {
        let [none, after, during] = kinds.map(|k| k.2[1..].to_vec());
        let line = serde_json::json!({
            "work": "overlap", "ranks": comm.size(), "gradient_bytes": training.flat.len() * 4,
            "none": none, "after": after, "during": during,
        });
        println!("{line}");
    }
    session.world.finish()
}
