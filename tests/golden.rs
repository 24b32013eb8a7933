//! Golden tests: our models and optimiser against numbers that transformers and PyTorch made.
//!
//! Each folder of `tests/golden/` holds a generator, its artefacts and a README that says what they
//! are. Nothing here needs Python. The models run on the CPU, or where `TRAINER_TEST_DEVICE` says
//! (`cuda`); `TRAINER_TEST_ROOT` is this repository where it lies elsewhere than at the build.

use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};
use trainer::models::esm2::{Esm2, Esm2Config};
use trainer::models::ptm_mamba::{PtmMamba, PtmMambaConfig};
use trainer::torch::{self, Flat, Params, WeightFile, cuda};
use trainer::train::adamw::{Adamw, AdamwConfig};

#[path = "golden/bert/tests.rs"]
mod bert;

fn golden(path: &str) -> PathBuf {
    let root = std::env::var_os("TRAINER_TEST_ROOT").map(PathBuf::from);
    let root = root.unwrap_or(Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf());
    root.join("tests/golden").join(path)
}

/// Where the models compute.
fn device() -> Device {
    match std::env::var("TRAINER_TEST_DEVICE").as_deref() {
        Err(_) | Ok("cpu") => Device::Cpu,
        Ok("cuda") => {
            cuda::load().unwrap();
            torch::set_deterministic(true).unwrap();
            Device::Cuda(0)
        }
        Ok(other) => panic!("TRAINER_TEST_DEVICE is {other}, neither cpu nor cuda"),
    }
}

/// A file of results, whose tensors come to the device.
struct Case(WeightFile);

impl Case {
    fn read(&self, name: &str) -> Tensor {
        self.0.read(name).unwrap().to_device(device())
    }
}

fn open(path: &str) -> Case {
    Case(WeightFile::open(&golden(path)).unwrap())
}

/// Largest difference relative to the largest expected element.
fn deviation(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let scale = expected.abs().max().double_value(&[]).max(1e-30);
    (found - expected).abs().max().double_value(&[]) / scale
}

#[track_caller]
fn close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    let deviation = deviation(found, expected);
    assert!(deviation < tolerance, "{what}: {deviation:.2e}, at most {tolerance:.0e}");
}

const ADAMW: AdamwConfig = AdamwConfig { betas: (0.9, 0.98), eps: 1e-8, weight_decay: 0.01 };
const LR: f64 = 4e-4;

/// Gradients by name, then ten clipped steps, against case files in which a parameter is called
/// `theirs(name)`. `untouched` takes no part.
fn gradients_and_ten_steps(
    params: &Params,
    (grads, after): (&Case, &Case),
    theirs: impl Fn(&str) -> String,
    untouched: &[&str],
    loss: impl Fn() -> Tensor,
) {
    let mut flat = Flat::new(params, |name| !untouched.contains(&name)).unwrap();
    loss().backward();
    for slot in flat.slots() {
        let expected = grads.read(&format!("grad.{}", theirs(&slot.name)));
        close(&format!("grad.{}", slot.name), &slot.view(flat.grad()), &expected, 5e-5);
    }
    let mut optimiser = Adamw::new(&flat, ADAMW, |_| true);
    let losses = after.read("losses");
    let norms = after.read("grad_norms");
    for step in 0..10 {
        flat.zero_grad();
        let value = loss();
        value.backward();
        let norm = torch::sum_of_squares(flat.grad()).unwrap().sqrt();
        let step_loss = value.double_value(&[]);
        let expected = losses.double_value(&[step]);
        assert!(
            (step_loss - expected).abs() < 1e-4 * expected.abs(),
            "loss {step}: {step_loss} {expected}"
        );
        let expected = norms.double_value(&[step]);
        assert!((norm - expected).abs() < 1e-4 * expected, "norm {step}: {norm} {expected}");
        optimiser.step(&flat, LR, ((norm + 1e-6) / 1.0).max(1.0)).unwrap();
    }
    for slot in flat.slots() {
        let expected = after.read(&format!("after.{}", theirs(&slot.name)));
        close(&format!("after.{}", slot.name), &slot.view(flat.data()), &expected, 5e-5);
    }
}

fn esm2(case: &str) {
    let config = std::fs::read_to_string(golden(&format!("esm2/{case}/config.json"))).unwrap();
    let config: Esm2Config = serde_json::from_str(&config).unwrap();
    config.validate().unwrap();
    let params = Params::new(device());
    let model = Esm2::new(&params.root(), &config);
    let file = open(&format!("esm2/{case}/model.safetensors")).0;
    params.load(&file, Esm2Config::rename).unwrap().strict(&file).unwrap();
    let data = open(&format!("esm2/{case}/case.safetensors"));
    let (ids, mask) = (data.read("input_ids"), data.read("attention_mask"));
    let expected = data.read("last_hidden_state");
    let cotangent = data.read("cotangent");
    let shown = mask.to_kind(Kind::Float).unsqueeze(-1);
    let hidden = tch::no_grad(|| model.forward(&ids, &mask, model.last_layer()));
    close("hidden states", &(&hidden * &shown), &(&expected * &shown), 2e-5);

    if case == "b" {
        for layer in 0..=model.last_layer() {
            let expected = data.read(&format!("hidden_states.{layer}"));
            let hidden = tch::no_grad(|| model.forward(&ids, &mask, layer));
            close(&format!("layer {layer}"), &(&hidden * &shown), &(&expected * &shown), 2e-5);
        }
    }

    if device() == Device::Cpu {
        packed_is_padded(&model, &ids, &mask);
    }

    let (grads, after) = (
        open(&format!("esm2/{case}/grads.safetensors")),
        open(&format!("esm2/{case}/ten_steps.safetensors")),
    );
    let loss =
        || (model.forward(&ids, &mask, model.last_layer()) * &cotangent * &shown).sum(Kind::Float);
    gradients_and_ten_steps(&params, (&grads, &after), str::to_string, &[], loss);
}

/// The packed way, the CPU's for inference, sees no padding at all, and gives the same.
fn packed_is_padded(model: &Esm2, ids: &Tensor, mask: &Tensor) {
    let lengths: Vec<i64> =
        Vec::try_from(mask.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64)).unwrap();
    let mut packed_ids = Vec::new();
    let mut offsets = vec![0i64];
    for (row, n) in lengths.iter().enumerate() {
        let row: Vec<i64> = Vec::try_from(ids.get(row as i64).narrow(0, 0, *n)).unwrap();
        packed_ids.extend(row.iter().map(|&id| id as u8));
        offsets.push(packed_ids.len() as i64);
    }
    for layer in [1, model.last_layer()] {
        let padded = tch::no_grad(|| model.forward(ids, mask, layer));
        let packed = model.forward_packed(&packed_ids, &offsets, layer).unwrap();
        for (row, n) in lengths.iter().enumerate() {
            let own = packed.narrow(0, offsets[row], *n);
            close("packed", &own, &padded.get(row as i64).narrow(0, 0, *n), 2e-5);
        }
    }
}

#[test]
fn esm2_with_names_without_prefix() {
    esm2("a");
}

#[test]
fn esm2_with_names_of_the_published_files() {
    esm2("b");
}

fn masked_loss(logits: &Tensor, targets: &Tensor, mask: &Tensor) -> Tensor {
    let index = mask.reshape([-1]).nonzero().squeeze_dim(1);
    let logits = logits.reshape([-1, logits.size()[2]]).index_select(0, &index);
    logits.cross_entropy_for_logits(&targets.reshape([-1]).index_select(0, &index))
}

fn ptm_mamba(case: &str, with_esm: bool) {
    let config = std::fs::read_to_string(golden(&format!("ptm_mamba/{case}/config.json"))).unwrap();
    let config: PtmMambaConfig = serde_json::from_str(&config).unwrap();
    config.validate().unwrap();
    let params = Params::new(device());
    let model = PtmMamba::new(&params.root(), &config, 12);
    let file = open(&format!("ptm_mamba/{case}/weights.safetensors")).0;
    let rename = |name: &str| (!PtmMambaConfig::is_unused(name)).then(|| name.to_string());
    params.load(&file, rename).unwrap().strict(&file).unwrap();
    let variant = if with_esm { "esm" } else { "tokens" };
    let data = open(&format!("ptm_mamba/{case}/{variant}.safetensors"));
    let ids = data.read("input_ids");
    let targets = data.read("targets");
    let mask = data.0.read_bool("prediction_mask").unwrap().to_device(device());
    let lengths: Vec<i64> = Vec::try_from(data.read("lengths")).unwrap();
    let esm = with_esm.then(|| data.read("esm_embeddings"));
    let shown = targets.not_equal(1).to_kind(Kind::Float).unsqueeze(-1);
    let hidden = tch::no_grad(|| model.forward(&ids, esm.as_ref(), &lengths));
    let expected = data.read("hidden_states");
    close("hidden states", &(&hidden * &shown), &(&expected * &shown), 2e-5);
    let expected = data.read("logits");
    close("logits", &(model.logits(&hidden) * &shown), &(&expected * &shown), 2e-5);
    let loss = || {
        let hidden = model.forward(&ids, esm.as_ref(), &lengths);
        masked_loss(&model.logits(&hidden), &targets, &mask)
    };
    let untouched: &[&str] = if with_esm { &[] } else { &["esm_head.weight"] };
    gradients_and_ten_steps(&params, (&data, &data), str::to_string, untouched, loss);
}

#[test]
fn bidirectional_ptm_mamba_with_esm() {
    ptm_mamba("bidirectional", true);
}

#[test]
fn bidirectional_ptm_mamba_from_tokens() {
    ptm_mamba("bidirectional", false);
}

#[test]
fn plain_ptm_mamba_with_esm() {
    ptm_mamba("mamba", true);
}

#[test]
fn plain_ptm_mamba_from_tokens() {
    ptm_mamba("mamba", false);
}

#[test]
fn padding_is_invisible_and_a_batch_equals_its_singles() {
    let config = std::fs::read_to_string(golden("ptm_mamba/bidirectional/config.json")).unwrap();
    let config: PtmMambaConfig = serde_json::from_str(&config).unwrap();
    let params = Params::new(device());
    let model = PtmMamba::new(&params.root(), &config, 12);
    let file = open("ptm_mamba/bidirectional/weights.safetensors").0;
    let rename = |name: &str| (!PtmMambaConfig::is_unused(name)).then(|| name.to_string());
    params.load(&file, rename).unwrap();
    let data = open("ptm_mamba/bidirectional/esm.safetensors");
    let (ids, esm) = (data.read("input_ids"), data.read("esm_embeddings"));
    let lengths: Vec<i64> = Vec::try_from(data.read("lengths")).unwrap();
    let together = tch::no_grad(|| model.forward(&ids, Some(&esm), &lengths));
    for (row, &n) in lengths.iter().enumerate() {
        let row = row as i64;
        let alone = tch::no_grad(|| {
            let one = |t: &Tensor| t.narrow(0, row, 1).narrow(1, 0, n);
            model.forward(&one(&ids), Some(&one(&esm)), &[n])
        });
        close("single", &alone, &together.narrow(0, row, 1).narrow(1, 0, n), 2e-5);
    }
}

fn mamba(case: &str) {
    #[derive(serde::Deserialize)]
    struct Hf {
        hidden_size: i64,
        num_hidden_layers: i64,
        state_size: i64,
        time_step_rank: i64,
    }
    let text = std::fs::read_to_string(golden(&format!("mamba/{case}/config.json"))).unwrap();
    let hf: Hf = serde_json::from_str(&text).unwrap();
    let config: PtmMambaConfig = serde_json::from_value(serde_json::json!({
        "model_type": "mamba", "d_model": hf.hidden_size, "n_layer": hf.num_hidden_layers,
        "ssm_cfg": {"d_state": hf.state_size, "dt_rank": hf.time_step_rank}
    }))
    .unwrap();
    let params = Params::new(device());
    let model = PtmMamba::new(&params.root(), &config, 1);
    let file = open(&format!("mamba/{case}/model.safetensors")).0;
    let report = params
        .load(&file, |name| Some(name.replace("backbone.embeddings.", "backbone.embedding.")))
        .unwrap();
    assert_eq!((report.missing, report.unexpected), (vec!["esm_head.weight".to_string()], vec![]));
    let data = open(&format!("mamba/{case}/case.safetensors"));
    let (ids, targets) = (data.read("input_ids"), data.read("targets"));
    let lengths: Vec<i64> = Vec::try_from(data.read("lengths")).unwrap();
    let mask = targets.ge(0);
    let shown = mask.to_kind(Kind::Float).unsqueeze(-1);
    let hidden = tch::no_grad(|| model.forward(&ids, None, &lengths));
    let expected = data.read("last_hidden_state");
    close("hidden states", &(&hidden * &shown), &(&expected * &shown), 2e-5);
    let theirs = |name: &str| name.replace("backbone.embedding.", "backbone.embeddings.");
    let loss = || masked_loss(&model.logits(&model.forward(&ids, None, &lengths)), &targets, &mask);
    gradients_and_ten_steps(&params, (&data, &data), theirs, &["esm_head.weight"], loss);
}

#[test]
fn transformers_mamba_with_four_states() {
    mamba("a");
}

#[test]
fn transformers_mamba_with_sixteen_states() {
    mamba("b");
}

#[test]
fn adamw_is_torch_s() {
    let inputs = open("adamw/inputs.safetensors");
    for case in ["constant", "schedule"] {
        let expected = open(&format!("adamw/{case}.safetensors"));
        let hyper: Vec<f64> = Vec::try_from(expected.read("hyper").to_kind(Kind::Double)).unwrap();
        let lr = expected.read("lr");
        let params = Params::new(device());
        let count = 5usize;
        for i in 0..count {
            let value = inputs.read(&format!("param.{i}"));
            let own =
                params.root().param(&i.to_string(), &value.size(), torch::Init::Constant(0.0));
            tch::no_grad(|| own.shallow_clone().copy_(&value));
        }
        let flat = Flat::new(&params, |_| true).unwrap();
        let config =
            AdamwConfig { betas: (hyper[0], hyper[1]), eps: hyper[2], weight_decay: hyper[3] };
        let mut optimiser = Adamw::new(&flat, config, |_| true);
        for step in 0..10i64 {
            for slot in flat.slots() {
                let grad = inputs.read(&format!("grad.{}", slot.name)).get(step);
                tch::no_grad(|| slot.view(flat.grad()).copy_(&grad));
            }
            let norm = torch::sum_of_squares(flat.grad()).unwrap().sqrt();
            let wanted = expected.read("grad_norms").double_value(&[step]);
            assert!((norm - wanted).abs() <= 1e-6 * wanted, "{case} norm: {norm} {wanted}");
            let divisor = if hyper[4] > 0.0 { ((norm + 1e-6) / hyper[4]).max(1.0) } else { 1.0 };
            optimiser.step(&flat, lr.double_value(&[step]), divisor).unwrap();
            if step == 0 || step == 9 {
                let (m, v) = optimiser.moments();
                for slot in flat.slots() {
                    for (kind, buffer) in
                        [("param", flat.data()), ("exp_avg", m), ("exp_avg_sq", v)]
                    {
                        let name = format!("step{}.{kind}.{}", step + 1, slot.name);
                        // The fused kernel takes 1 - beta2 in float32, which is 1.3e-5 off at 0.999.
                        let tolerance = if kind == "exp_avg_sq" { 2e-5 } else { 2e-6 };
                        let wanted = expected.read(&name);
                        close(&format!("{case} {name}"), &slot.view(buffer), &wanted, tolerance);
                    }
                }
            }
        }
    }
}
