//! Our side of `bert_step.py`: one pass of fine-tuning steps of a RoBERTa over given texts.
//!
//! Prints one JSON line: seconds of the pass after one step that is not counted, its parts, the
//! share of padding, and the last loss.

use clap::Parser;
use serde::Deserialize;
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use trainer::data::plan::{MicroBatch, Plan, PlanConfig};
use trainer::error::{Error, Result};
use trainer::models::bert::{BertConfig, BertModel, Head, Texts};
use trainer::torch::{Flat, Params, keep_freed_memory};
use trainer::train::adamw::{Adamw, AdamwConfig};

const LONGEST: usize = 512;
const LEARNING_RATE: f64 = 2e-5;

#[derive(Parser)]
struct Args {
    /// JSON: {"ids": a list of tokens each, "targets": a number each}
    #[arg(long)]
    texts: std::path::PathBuf,
    #[arg(long, default_value_t = 4)]
    layers: i64,
    #[arg(long, default_value_t = 8)]
    max_samples: usize,
    #[arg(long, default_value_t = 2)]
    threads: i32,
    #[arg(long, default_value_t = 0.1)]
    dropout: f64,
}

#[derive(Deserialize)]
struct Given {
    ids: Vec<Vec<i64>>,
    targets: Vec<f32>,
}

/// A padded batch: ids `[B, L]`, lengths `[B]`, targets `[B]`.
fn collate(given: &Given, batch: &MicroBatch, pad: i64) -> (Tensor, Tensor, Tensor) {
    let members = || batch.samples.iter().map(|i| *i as usize);
    let mut ids = vec![pad; batch.samples.len() * batch.width as usize];
    for (row, member) in ids.chunks_mut(batch.width as usize).zip(members()) {
        row[..given.ids[member].len()].copy_from_slice(&given.ids[member]);
    }
    let lengths: Vec<i64> = members().map(|i| given.ids[i].len() as i64).collect();
    let targets: Vec<f32> = members().map(|i| given.targets[i]).collect();
    (
        Tensor::from_slice(&ids).view([-1, i64::from(batch.width)]),
        Tensor::from_slice(&lengths),
        Tensor::from_slice(&targets),
    )
}

fn roberta(args: &Args) -> Result<BertConfig> {
    let config = serde_json::json!({
        "model_type": "roberta", "num_hidden_layers": args.layers, "layer_norm_eps": 1e-5,
        "max_position_embeddings": LONGEST + 2, "type_vocab_size": 1,
        "hidden_dropout_prob": args.dropout, "attention_probs_dropout_prob": args.dropout,
    });
    let config = BertConfig::from_hf(&config)?;
    config.validate()?;
    Ok(config)
}

fn main() -> Result<()> {
    let args = Args::parse();
    keep_freed_memory();
    tch::set_num_threads(args.threads);
    let failed = |e: &dyn std::fmt::Display| Error::data(format!("{e}")).at(args.texts.display());
    let text = std::fs::read_to_string(&args.texts).map_err(|e| failed(&e))?;
    let given: Given = serde_json::from_str(&text).map_err(|e| failed(&e))?;
    let lengths: Vec<u32> = given.ids.iter().map(|ids| ids.len() as u32).collect();
    let plan = PlanConfig {
        max_tokens: args.max_samples * LONGEST,
        max_samples: args.max_samples,
        micro_batches_per_step: 1,
        seed: 3,
    };
    let plan = Plan::new(&lengths, plan, |i| format!("text {i}"))?;

    let config = roberta(&args)?;
    let params = Params::new(Device::Cpu);
    let model = BertModel::new(&params.root(), &config, Head::Sequence { num_labels: 1 });
    params.initialise(0)?;
    let mut flat = Flat::new(&params, |_| true)?;
    let adamw = AdamwConfig { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.01 };
    let mut optimiser = Adamw::new(&flat, adamw, |_| true);
    let mut parts = [0.0; 3];
    let mut step = |batch: &MicroBatch, number: i64| -> Result<f64> {
        let start = Instant::now();
        tch::manual_seed(number);
        let (ids, lengths, targets) = collate(&given, batch, config.pad_token_id);
        flat.zero_grad();
        let texts = Texts { ids: &ids, lengths: Some(&lengths), train: true, read: None };
        let loss = model.forward(&texts)?.squeeze_dim(1).mse_loss(&targets, tch::Reduction::Mean);
        let forward = start.elapsed().as_secs_f64();
        loss.backward();
        let backward = start.elapsed().as_secs_f64();
        optimiser.step(&flat, LEARNING_RATE, 1.0)?;
        let update = start.elapsed().as_secs_f64();
        for (part, seconds) in
            parts.iter_mut().zip([forward, backward - forward, update - backward])
        {
            *part += seconds;
        }
        Ok(loss.to_kind(Kind::Double).double_value(&[]))
    };
    let batches: Vec<MicroBatch> =
        plan.epoch(0).into_iter().flat_map(|step| step.micro_batches).collect();
    step(&batches[0], 0)?;
    let (start, mut loss) = (Instant::now(), 0.0);
    for (number, batch) in batches.iter().enumerate() {
        loss = step(batch, number as i64 + 1)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{}",
        serde_json::json!({
            "work": "bert_step", "seconds": seconds, "loss": loss, "steps": batches.len(),
            "forward": parts[0], "backward": parts[1], "update": parts[2],
            "padding": plan.padding().share(),
        })
    );
    Ok(())
}
