//! BERT and RoBERTa against transformers: values, names, files there and back; and what needs no
//! reference: padding, dropout.

use super::{Case, close, device, golden, gradients_and_ten_steps, open};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use tch::{Device, Kind, Reduction, Tensor};
use trainer::models::bert::{BertConfig, BertModel, Head, Texts};
use trainer::torch::{Entry, Params, WeightFile, write_safetensors};

/// Family and head of each folder.
const FOLDERS: [&str; 6] = [
    "bert/mlm",
    "bert/regression",
    "bert/classification",
    "roberta/mlm",
    "roberta/regression",
    "roberta/classification",
];

struct Loaded {
    params: Params,
    model: BertModel,
    head: Head,
}

fn head_of(folder: &str) -> Head {
    match folder.rsplit_once('/').unwrap().1 {
        "mlm" => Head::MaskedLm,
        "regression" => Head::Sequence { num_labels: 1 },
        "classification" => Head::Sequence { num_labels: 3 },
        other => panic!("{other}"),
    }
}

fn read_config(dir: &Path) -> BertConfig {
    let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let config = BertConfig::from_hf(&serde_json::from_str(&text).unwrap()).unwrap();
    config.validate().unwrap();
    config
}

fn load_from(dir: &Path, head: Head) -> Loaded {
    let params = Params::new(device());
    let model = BertModel::new(&params.root(), &read_config(dir), head);
    let file = WeightFile::open(dir).unwrap();
    let report = model.load(&params, &file, false).unwrap();
    assert_eq!(report.loaded, params.list().len());
    Loaded { params, model, head }
}

fn load(folder: &str) -> (Loaded, Case) {
    let folder = format!("bert/{folder}");
    (load_from(&golden(&folder), head_of(&folder)), open(&format!("{folder}/case.safetensors")))
}

fn texts<'a>(ids: &'a Tensor, lengths: Option<&'a Tensor>) -> Texts<'a> {
    Texts { ids, lengths, train: false, read: None }
}

/// `[B, L, 1]` with 1 at tokens and 0 at padding.
fn shown(ids: &Tensor, lengths: &Tensor) -> Tensor {
    let column = Tensor::arange(ids.size()[1], (Kind::Int64, ids.device()));
    column.lt_tensor(&lengths.unsqueeze(1)).to_kind(Kind::Float).unsqueeze(-1)
}

fn golden_case(folder: &str) {
    let (Loaded { params, model, head }, case) = load(folder);
    let (ids, lengths, target) =
        (case.read("input_ids"), case.read("lengths"), case.read("target"));
    let whole = texts(&ids, Some(&lengths));
    let shown = shown(&ids, &lengths);
    tch::no_grad(|| {
        let states = model.encoder().hidden_states(&whole).unwrap();
        assert_eq!(states.len(), 3);
        for (i, state) in states.iter().enumerate() {
            let expected = case.read(&format!("hidden_states.{i}"));
            close(&format!("layer {i}"), &(state * &shown), &(expected * &shown), 2e-5);
        }
        let (logits, expected) = (model.forward(&whole).unwrap(), case.read("logits"));
        if head == Head::MaskedLm {
            close("logits", &(logits * &shown), &(expected * &shown), 2e-5);
            assert!(model.pooled(&whole).is_err());
        } else {
            close("logits", &logits, &expected, 2e-5);
            close("pooled", &model.pooled(&whole).unwrap(), &case.read("pooled"), 2e-5);
        }
    });
    let read = target.reshape([-1]).ge(0).nonzero().squeeze_dim(1);
    let loss = || match head {
        Head::MaskedLm => {
            let logits = model.forward(&Texts { read: Some(&read), ..whole }).unwrap();
            logits.cross_entropy_for_logits(&target.reshape([-1]).index_select(0, &read))
        }
        Head::Sequence { num_labels: 1 } => {
            model.forward(&whole).unwrap().squeeze_dim(1).mse_loss(&target, Reduction::Mean)
        }
        Head::Sequence { .. } => model.forward(&whole).unwrap().cross_entropy_for_logits(&target),
    };
    let expected = case.read("loss").double_value(&[]);
    let found = tch::no_grad(loss).double_value(&[]);
    assert!((found - expected).abs() < 2e-5 * expected.abs(), "loss {found}, expected {expected}");
    let names: Vec<String> = params.list().into_iter().map(|(name, _)| name).collect();
    let idle: Vec<&str> =
        names.iter().map(String::as_str).filter(|n| n.ends_with(KEY_BIAS)).collect();
    assert_eq!(idle.len(), 2);
    gradients_and_ten_steps(&params, (&case, &case), str::to_string, &idle, loss);
}

/// Softmax does not see it, and its gradient is rounding alone; the steps leave it out.
const KEY_BIAS: &str = ".attention.self.key.bias";

#[test]
fn bert_with_a_masked_lm_head() {
    golden_case("bert/mlm");
}

#[test]
fn bert_for_regression() {
    golden_case("bert/regression");
}

#[test]
fn bert_for_classification() {
    golden_case("bert/classification");
}

#[test]
fn roberta_with_a_masked_lm_head() {
    golden_case("roberta/mlm");
}

#[test]
fn roberta_for_regression() {
    golden_case("roberta/regression");
}

#[test]
fn roberta_for_classification() {
    golden_case("roberta/classification");
}

#[test]
fn names_and_shapes_are_those_of_the_published_models() {
    let text = std::fs::read_to_string(golden("bert/published.json")).unwrap();
    let published: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_str(&text).unwrap();
    assert_eq!(published.keys().collect::<Vec<_>>(), ["matscibert", "roberta-base"]);
    for (name, entry) in published {
        let config = BertConfig::from_hf(&entry["config"]).unwrap();
        config.validate().unwrap();
        for (head, list) in
            [(Head::MaskedLm, "mlm"), (Head::Sequence { num_labels: 3 }, "sequence")]
        {
            let expected: BTreeMap<String, Vec<i64>> =
                serde_json::from_value(entry[list].clone()).unwrap();
            let params = Params::new(Device::Cpu);
            BertModel::new(&params.root(), &config, head);
            let found: BTreeMap<String, Vec<i64>> =
                params.list().into_iter().map(|(name, t)| (name, t.size())).collect();
            assert_eq!(found, expected, "{name}, {head:?}");
        }
    }
}

#[test]
fn a_batch_equals_its_singles_and_padding_is_invisible() {
    for folder in FOLDERS {
        let (Loaded { model, head, .. }, case) = load(folder);
        let (ids, lengths) = (case.read("input_ids"), case.read("lengths"));
        let forward = |ids: &Tensor, lengths: Option<&Tensor>| {
            tch::no_grad(|| model.forward(&texts(ids, lengths)).unwrap())
        };
        let together = forward(&ids, Some(&lengths));
        let largest = together.abs().max().double_value(&[]);
        // What stands at padding is not seen, not even through the positions.
        let noise = shown(&ids, &lengths).squeeze_dim(2).to_kind(Kind::Bool);
        let other = ids.where_self(&noise, &Tensor::from(7i64).to_device(ids.device()));
        let disturbed = forward(&other, Some(&lengths));
        for (row, n) in Vec::<i64>::try_from(&lengths).unwrap().into_iter().enumerate() {
            let row = row as i64;
            let own = |t: &Tensor| match head {
                Head::MaskedLm => t.narrow(0, row, 1).narrow(1, 0, n),
                Head::Sequence { .. } => t.narrow(0, row, 1),
            };
            let alone = forward(&ids.narrow(0, row, 1).narrow(1, 0, n), None);
            // An output near zero is no measure of its own error.
            let apart = (alone - own(&together)).abs().max().double_value(&[]) / largest;
            assert!(apart < 2e-5, "{folder}: single {row}: {apart:.2e}");
            assert_eq!(own(&disturbed), own(&together), "{folder}: padding in row {row}");
        }
    }
}

#[test]
fn dropout_acts_in_training_alone() {
    for folder in FOLDERS {
        let (Loaded { model, .. }, case) = load(folder);
        let (ids, lengths) = (case.read("input_ids"), case.read("lengths"));
        let run = |train: bool, seed: i64| {
            tch::manual_seed(seed);
            let texts = Texts { train, ..texts(&ids, Some(&lengths)) };
            tch::no_grad(|| model.forward(&texts).unwrap())
        };
        assert_eq!(run(false, 1), run(false, 2), "{folder}");
        assert_eq!(run(true, 1), run(true, 1), "{folder}: the seed decides");
        assert_ne!(run(true, 1), run(true, 2), "{folder}");
        assert_ne!(run(true, 1), run(false, 1), "{folder}");
    }
}

#[test]
fn a_text_beyond_the_positions_is_refused() {
    let (Loaded { model, .. }, _) = load("roberta/regression");
    let ids = |length: i64| Tensor::full([1, length], 5, (Kind::Int64, device()));
    assert_eq!(model.forward(&texts(&ids(32), None)).unwrap().size(), [1, 1]);
    let error = model.forward(&texts(&ids(33), None)).unwrap_err();
    assert!(error.code() == 3 && error.to_string().contains("has positions for 32"), "{error}");
}

/// A directory of this test's own that goes when it is done.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("trainer-bert-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn write(path: &Path, tensors: Vec<(String, Tensor)>) -> WeightFile {
    let entries: Vec<Entry> =
        tensors.into_iter().map(|(name, tensor)| Entry { name, tensor }).collect();
    write_safetensors(path, &entries).unwrap();
    WeightFile::open(path).unwrap()
}

/// The names of older files: no prefix, `gamma` and `beta`, tables, a pooler, other heads.
fn old_names(tensors: Vec<(String, Tensor)>) -> Vec<(String, Tensor)> {
    let mut old: Vec<(String, Tensor)> = tensors
        .into_iter()
        .filter(|(name, _)| name.starts_with("bert.") || name.starts_with("roberta."))
        .map(|(name, tensor)| {
            let name = name.split_once('.').unwrap().1.to_string();
            let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
            (name.replace("LayerNorm.bias", "LayerNorm.beta"), tensor)
        })
        .collect();
    let small = || Tensor::zeros([2], (Kind::Float, Device::Cpu));
    old.push(("embeddings.position_ids".to_string(), small()));
    old.push(("cls.seq_relationship.weight".to_string(), small()));
    old
}

#[test]
fn older_files_and_encoders_alone_start_a_model() {
    let dir = Scratch::new("old");
    for (folder, pooler) in [("bert/regression", "bert.pooler."), ("roberta/mlm", "none")] {
        let (source, _) = load(folder);
        let file = write(&dir.0.join("old.safetensors"), old_names(source.params.list()));
        let config = source.model.encoder().config().clone();
        let params = Params::new(device());
        let model = BertModel::new(&params.root(), &config, Head::Sequence { num_labels: 3 });
        params.initialise(3).unwrap();
        let error = model.load(&params, &file, false).unwrap_err().to_string();
        assert!(error.contains("classifier.") && error.contains("missing"), "{error}");
        let report = model.load(&params, &file, true).unwrap();
        assert!(report.missing.iter().all(|name| name.starts_with("classifier.")));
        assert_eq!(report.missing.len(), if pooler == "none" { 4 } else { 2 });
        assert_eq!(report.unexpected, ["cls.seq_relationship.weight"]);
        let own: BTreeMap<String, Tensor> = source.params.list().into_iter().collect();
        for (name, tensor) in params.list() {
            if !report.missing.contains(&name) {
                assert_eq!(tensor, own[&name], "{name}");
            }
        }
    }
}

#[test]
fn a_roberta_s_pooler_is_the_classifier_s_first_layer() {
    let dir = Scratch::new("pooler");
    let (source, case) = load("roberta/regression");
    let renamed =
        source.params.list().into_iter().map(|(name, tensor)| {
            (name.replace("classifier.dense.", "roberta.pooler.dense."), tensor)
        });
    let file = write(&dir.0.join("model.safetensors"), renamed.collect());
    let params = Params::new(device());
    let config = source.model.encoder().config().clone();
    let model = BertModel::new(&params.root(), &config, source.head);
    model.load(&params, &file, false).unwrap();
    let (ids, lengths) = (case.read("input_ids"), case.read("lengths"));
    let run =
        |model: &BertModel| tch::no_grad(|| model.forward(&texts(&ids, Some(&lengths))).unwrap());
    assert_eq!(run(&model), run(&source.model));
}

#[test]
fn tensors_of_another_model_are_refused() {
    let dir = Scratch::new("other");
    let (source, _) = load("bert/classification");
    let mut tensors = source.params.list();
    let (_, first) = tensors.remove(0);
    tensors.push(("bert.embeddings.words".to_string(), first));
    let file = write(&dir.0.join("model.safetensors"), tensors);
    let params = Params::new(device());
    let config = source.model.encoder().config();
    let model = BertModel::new(&params.root(), config, source.head);
    for fresh_head in [false, true] {
        let error = model.load(&params, &file, fresh_head).unwrap_err();
        let text = error.to_string();
        assert!(error.code() == 5 && text.contains("bert.embeddings.words"), "{text}");
        assert!(text.contains("1 missing (bert.embeddings.word_embeddings.weight)"), "{text}");
    }
    let other = golden("bert/roberta/mlm");
    let error = model.load(&params, &WeightFile::open(&other).unwrap(), true).unwrap_err();
    assert!(error.code() == 5, "{error}");
}

/// The peers' Python, where it is set up.
fn python() -> Option<PathBuf> {
    let path = golden("../bench/.venv/bin/python");
    path.exists().then_some(path)
}

#[test]
fn what_we_save_opens_in_transformers_and_comes_back() {
    let dir = Scratch::new("roundtrip");
    let labels = ["FCC", "BCC", "Other"].map(str::to_string);
    for folder in FOLDERS {
        let (Loaded { params, model, head }, case) = load(folder);
        let own = dir.0.join(folder.replace('/', "-"));
        std::fs::create_dir_all(&own).unwrap();
        let names = if head == (Head::Sequence { num_labels: 3 }) { &labels[..] } else { &[] };
        let config = model.encoder().config().to_hf(head, names).unwrap();
        std::fs::write(own.join("config.json"), format!("{config:#}\n")).unwrap();
        write(&own.join("model.safetensors"), params.list());
        let (ids, lengths) = (case.read("input_ids"), case.read("lengths"));
        let logits = tch::no_grad(|| model.forward(&texts(&ids, Some(&lengths))).unwrap());
        let outputs = [("input_ids", ids), ("lengths", lengths), ("logits", logits)];
        let outputs = outputs.map(|(name, tensor)| (name.to_string(), tensor));
        write(&own.join("case.safetensors"), outputs.into());
        equal_weights(&load_from(&own, head).params, &params);
    }
    let Some(python) = python() else {
        eprintln!("NO TRANSFORMERS: what we save is NOT opened there (bash tests/bench/setup.sh)");
        return;
    };
    let script = golden("bert/roundtrip.py");
    let output = Command::new(python).arg(script).arg(&dir.0).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).to_string();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    print!("{}", text(&output.stdout));
    for folder in FOLDERS {
        let own = dir.0.join(folder.replace('/', "-"));
        let (ours, theirs) = (read_config(&own), read_config(&own.join("again")));
        assert_eq!(ours, theirs);
        let again = load_from(&own.join("again"), head_of(folder));
        equal_weights(&again.params, &load(folder).0.params);
    }
}

fn equal_weights(found: &Params, expected: &Params) {
    for ((name, found), (_, expected)) in found.list().iter().zip(expected.list()) {
        assert_eq!(found, &expected, "{name}");
    }
}
