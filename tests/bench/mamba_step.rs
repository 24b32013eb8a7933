//! Our side of `mamba_step.py`: forward, backward and AdamW of a plain Mamba language model.
//!
//! Prints one JSON line: seconds of each step after one that is not counted, and the last loss.

use clap::Parser;
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use trainer::error::Result;
use trainer::models::ptm_mamba::{ModelType, PtmMamba, PtmMambaConfig};
use trainer::torch::{Flat, Params, keep_freed_memory};
use trainer::train::adamw::{Adamw, AdamwConfig};

#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 4)]
    layers: i64,
    #[arg(long, default_value_t = 256)]
    d_model: i64,
    #[arg(long, default_value_t = 4)]
    batch: i64,
    #[arg(long, default_value_t = 256)]
    length: i64,
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    #[arg(long, default_value_t = 2)]
    threads: i32,
}

fn main() -> Result<()> {
    let args = Args::parse();
    keep_freed_memory();
    tch::set_num_threads(args.threads);
    let config = PtmMambaConfig {
        model_type: ModelType::Mamba,
        d_model: args.d_model,
        n_layer: args.layers,
        ..PtmMambaConfig::default()
    };
    let params = Params::new(Device::Cpu);
    let model = PtmMamba::new(&params.root(), &config, 1);
    params.initialise(0)?;
    let mut flat = Flat::new(&params, |name| name != "esm_head.weight")?;
    let adamw = AdamwConfig { betas: (0.9, 0.98), eps: 1e-8, weight_decay: 0.01 };
    let mut optimiser = Adamw::new(&flat, adamw, |_| true);
    tch::manual_seed(0);
    let ids = Tensor::randint(59, [args.batch, args.length], (Kind::Int64, Device::Cpu));
    let targets = Tensor::randint(59, [args.batch * args.length], (Kind::Int64, Device::Cpu));
    let lengths = vec![args.length; args.batch as usize];
    let (mut seconds, mut value) = (Vec::new(), 0.0);
    for _ in 0..=args.repeats {
        let start = Instant::now();
        flat.zero_grad();
        let hidden = model.forward(&ids, None, &lengths);
        let logits = model.logits(&hidden).view([-1, 59]);
        let loss = logits.cross_entropy_for_logits(&targets);
        loss.backward();
        optimiser.step(&flat, 4e-4, 1.0)?;
        value = loss.double_value(&[]);
        seconds.push(start.elapsed().as_secs_f64());
    }
    println!(
        "{}",
        serde_json::json!({"work": "mamba_step", "seconds": seconds[1..], "loss": value})
    );
    Ok(())
}
