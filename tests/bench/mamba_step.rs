//! Our side of `mamba_step.py`: forward, backward and AdamW of a plain Mamba language model.
//!
//! Prints one JSON line: seconds of each step after one that is not counted, tokens a second at
//! their median, the last loss, and on a GPU the most memory that tensors held.

use clap::Parser;
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use trainer::error::{Error, Result};
use trainer::models::ptm_mamba::{ModelType, PtmMamba, PtmMambaConfig};
use trainer::torch::{
    Autocast, Flat, Params, ScanInput, causal_conv, cuda, keep_freed_memory, selective_scan,
    set_autocast,
};
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
    /// cpu or cuda
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Products in bfloat16.
    #[arg(long)]
    bf16: bool,
    /// Times the scan and the convolution alone, at the sizes of one layer.
    #[arg(long)]
    kernels: bool,
}

fn device(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "cuda" => cuda::load().map(|()| Device::Cuda(0)),
        other => Err(Error::usage(format!("{other} is neither cpu nor cuda")).at("--device")),
    }
}

/// Milliseconds of a call, the median of `repeats` after one that is not counted.
fn milliseconds(device: Device, repeats: usize, work: impl Fn()) -> f64 {
    let wait = || {
        if let Device::Cuda(i) = device {
            tch::Cuda::synchronize(i as i64);
        }
    };
    let mut times: Vec<f64> = (0..=repeats)
        .map(|_| {
            wait();
            let start = Instant::now();
            work();
            wait();
            start.elapsed().as_secs_f64() * 1e3
        })
        .skip(1)
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Forward and forward with backward of the two operations that are not the library's.
fn kernels(args: &Args) -> Result<()> {
    let device = device(&args.device)?;
    let (batch, length, channels, states) = (args.batch, args.length, 2 * args.d_model, 16);
    let random =
        |shape: &[i64]| Tensor::randn(shape, (Kind::Float, device)).set_requires_grad(true);
    let [u, dt, z] = std::array::from_fn(|_| random(&[batch, length, channels]));
    let [b, c] = std::array::from_fn(|_| random(&[batch, length, states]));
    let [dt_bias, d, bias] = std::array::from_fn(|_| random(&[channels]));
    let (a_log, weight) = (random(&[channels, states]), random(&[channels, 1, 4]));
    let scan = || {
        let (dt_bias, a_log) = (&dt_bias, &a_log);
        selective_scan(&ScanInput { u: &u, dt: &dt, dt_bias, a_log, b: &b, c: &c, d: &d, z: &z })
    };
    let conv = || causal_conv(&u, &weight, &bias);
    let cotangent = u.detach();
    drop(scan()?);
    drop(conv()?);
    let time = |work: &dyn Fn() -> Result<Tensor>, leaves: &[&Tensor]| {
        let there = || work().expect("it has just run");
        let forward = milliseconds(device, args.repeats, || drop(tch::no_grad(there)));
        let both = milliseconds(device, args.repeats, || {
            let loss = (there() * &cotangent).sum(Kind::Float);
            drop(Tensor::run_backward(&[loss], leaves, false, false));
        });
        serde_json::json!({"forward_ms": forward, "both_ms": both})
    };
    println!(
        "{}",
        serde_json::json!({
            "work": "kernels", "shape": [batch, length, channels, states],
            "scan": time(&scan, &[&u, &dt, &dt_bias, &a_log, &b, &c, &d, &z]),
            "conv": time(&conv, &[&u, &weight, &bias]),
        })
    );
    Ok(())
}

fn main() -> Result<()> {
    let args = Args::parse();
    keep_freed_memory();
    tch::set_num_threads(args.threads);
    if args.kernels {
        return kernels(&args);
    }
    let config = PtmMambaConfig {
        model_type: ModelType::Mamba,
        d_model: args.d_model,
        n_layer: args.layers,
        ..PtmMambaConfig::default()
    };
    let device = device(&args.device)?;
    let params = Params::new(device);
    let model = PtmMamba::new(&params.root(), &config, 1);
    params.initialise(0)?;
    let mut flat = Flat::new(&params, |name| name != "esm_head.weight")?;
    let adamw = AdamwConfig { betas: (0.9, 0.98), eps: 1e-8, weight_decay: 0.01 };
    let mut optimiser = Adamw::new(&flat, adamw, |_| true);
    tch::manual_seed(0);
    let ids = Tensor::randint(59, [args.batch, args.length], (Kind::Int64, device));
    let targets = Tensor::randint(59, [args.batch * args.length], (Kind::Int64, device));
    let lengths = vec![args.length; args.batch as usize];
    let (mut seconds, mut value) = (Vec::new(), 0.0);
    for _ in 0..=args.repeats {
        let start = Instant::now();
        flat.zero_grad();
        set_autocast(device, if args.bf16 { Autocast::Bfloat16 } else { Autocast::Off })?;
        let hidden = model.forward(&ids, None, &lengths);
        let logits = model.logits(&hidden).view([-1, 59]).to_kind(Kind::Float);
        set_autocast(device, Autocast::Off)?;
        let loss = logits.cross_entropy_for_logits(&targets);
        loss.backward();
        optimiser.step(&flat, 4e-4, 1.0)?;
        value = loss.double_value(&[]);
        seconds.push(start.elapsed().as_secs_f64());
    }
    let seconds = &seconds[1..];
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    println!(
        "{}",
        serde_json::json!({
            "work": "mamba_step", "seconds": seconds, "loss": value,
            "tokens_per_second": (args.batch * args.length) as f64 / median,
            "gpu_peak_bytes": cuda::peak_bytes(),
        })
    );
    Ok(())
}
