//! Tests of `file`: bad configurations and what is said about them, other names, overrides.

use super::ConfigFile;
use super::sections::{Dataset, Distributed, Esm, Masking, Run, Training};
use super::values::{EvaluationStrategy, Resume, Size};
use crate::error::Result;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;

fn config(text: &str, overrides: &[&str]) -> Result<ConfigFile> {
    let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
    ConfigFile::from_text("c.yaml", text, &overrides)
}

/// Reads everything that the shared sections hold, as a recipe does.
fn all(text: &str, overrides: &[&str]) -> Result<Training> {
    let config = config(text, overrides)?;
    config.recipe()?;
    let known = ["run", "dataset", "esm", "model", "masking", "training", "distributed"];
    config.only_sections(&known)?;
    config.read::<Run>()?;
    config.read::<Dataset>()?;
    config.read::<Esm>()?;
    config.read::<Masking>()?;
    config.read::<Distributed>()?;
    config.read::<Training>()
}

#[test]
fn an_empty_section_is_all_defaults() {
    let training = all("recipe: ptm_mamba\ntraining:\n", &[]).unwrap();
    assert_eq!(training, Training::default());
    assert_eq!((training.lr, training.eval_steps, training.micro_batches_per_step), (4e-4, 100, 8));
}

#[test]
fn bad_configurations_say_where_and_what_is_allowed() {
    let cases: &[(&str, &[&str], &str)] = &[
        (
            "training:\n  max_step: 3\n",
            &[],
            "c.yaml:3: unknown key training.max_step; did you mean max_steps? allowed: num_train_epochs",
        ),
        ("trainig: {}\n", &[], "c.yaml:2: unknown section trainig; did you mean training? allowed"),
        ("training: [1]\n", &[], "c.yaml:2: training: found a list, but a map of keys is needed"),
        ("training: 5\n", &[], "c.yaml:2: training: found the number 5, but a map of keys"),
        (
            "training:\n  lr: fast\n",
            &[],
            "c.yaml:3: training.lr: found the text \"fast\", but a number is needed",
        ),
        ("training:\n  lr:\n", &[], "c.yaml:3: training.lr: found null, but a number is needed"),
        ("training:\n  lr: -1\n", &[], "c.yaml:3: training.lr: found -1.0, but it must be above 0"),
        (
            "distributed:\n  overlap: yes\n",
            &[],
            "c.yaml:3: distributed.overlap: found the text \"yes\", but true or false is needed",
        ),
        (
            "training:\n  max_steps: 10.5\n",
            &[],
            "c.yaml:3: training.max_steps: found the number 10.5, but a whole number from 0 up",
        ),
        (
            "training:\n  max_steps: 0\n",
            &[],
            "training.max_steps: found 0, but it must be at least 1",
        ),
        (
            "training:\n  betas:\n  - 0.9\n  - high\n",
            &[],
            "c.yaml:5: training.betas[1]: found the text \"high\", but a number is needed",
        ),
        (
            "training: {betas: [0.9, 1.0]}\n",
            &[],
            "training.betas: found 1.0, but it must be from 0",
        ),
        (
            "training:\n  precision: fp8\n",
            &[],
            "c.yaml:3: training.precision: unknown value \"fp8\"; did you mean fp16? \
             allowed: fp32, bf16, fp16",
        ),
        (
            "training:\n  lr_scheduler_type: step\n",
            &[],
            "lr_scheduler_type: unknown value \"step\"; allowed: constant, linear, cosine",
        ),
        (
            "training:\n  evaluation_strategy: 3\n",
            &[],
            "evaluation_strategy: found the number 3, but one of steps, epoch is needed",
        ),
        (
            "training:\n  greater_is_better: maybe\n",
            &[],
            "found the text \"maybe\", but auto, true or false is needed",
        ),
        (
            "dataset:\n  val_size: 1.5\n",
            &[],
            "c.yaml:3: dataset.val_size: found the number 1.5, but",
        ),
        (
            "dataset:\n  val_size: 0.5\n  test_size: 0.5\n",
            &[],
            "c.yaml:4: dataset.test_size: found 0.5, but it must be small enough",
        ),
        ("dataset:\n  subsample: 0\n", &[], "c.yaml:3: dataset.subsample: found 0, but"),
        ("dataset:\n  max_sequence_length: 2\n", &[], "c.yaml:3: dataset.max_sequence_length"),
        ("dataset:\n  train_ratio: 90\n", &[], "c.yaml:3: dataset.train_ratio: a fraction above 0"),
        (
            "dataset:\n  dataset_location: ~/x.csv\n",
            &[],
            "c.yaml:3: dataset.dataset_location: ~/x.csv: only a shell expands ~",
        ),
        ("dataset:\n  split_seed: -1\n", &[], "found the number -1, but a whole number from 0 up"),
        ("esm:\n  model: [a]\n", &[], "c.yaml:3: esm.model: found a list, but a model directory"),
        ("esm:\n  dtype: half\n", &[], "allowed: float16, bfloat16, float32"),
        ("esm:\n  over_length: truncate\n", &[], "allowed: error, crop, windows"),
        ("esm:\n  mask_policy: none\n", &[], "allowed: replicas, unmasked"),
        ("esm:\n  replicas: 0\n", &[], "c.yaml:3: esm.replicas: found 0, but it must be from 1"),
        (
            "masking:\n  mask_prob: 15\n",
            &[],
            "c.yaml:3: masking.mask_prob: found 15.0, but it must be a",
        ),
        (
            "run:\n  device: gpu\n",
            &[],
            "c.yaml:3: run.device: unknown device \"gpu\"; allowed: auto",
        ),
        ("run:\n  name: a/b\n", &[], "c.yaml:3: run.name: found \"a/b\", but it must be letters"),
        (
            "distributed:\n  backend: nccl\n  share_gpus: true\n",
            &[],
            "c.yaml:3: distributed.backend: nccl needs a GPU for each rank",
        ),
        (
            "distributed:\n  threads_per_rank: 0\n",
            &[],
            "threads_per_rank: found 0, but it must be from 1 to",
        ),
        (
            "distributed:\n  bucket_mb: 0\n",
            &[],
            "c.yaml:3: distributed.bucket_mb: found 0.0, but it must be from 0.0001 to 1024",
        ),
        (
            "training:\n  lr: 1e-3\n  learning_rate: 1e-4\n",
            &[],
            "c.yaml:4: training.learning_rate and training.lr (c.yaml:3) are two names of one",
        ),
        (
            "epochs: 3\ntraining:\n  num_epochs: 2\n",
            &[],
            "c.yaml:4: training.num_epochs and epochs (c.yaml:2) are two names of one setting",
        ),
        (
            "training:\n  micro_batches_per_step: 8\n  gradient_accumulation_steps: 2\n",
            &[],
            "c.yaml:4: training.gradient_accumulation_steps and training.micro_batches_per_step (",
        ),
        (
            "training:\n  gradient_accumulation_steps: two\n",
            &[],
            "c.yaml:3: training.gradient_accumulation_steps: a whole number, 1 or more, is needed, \
             found the text \"two\"",
        ),
        ("dataset: {train_ratio: 0.9, val_size: 5}\n", &[], "are two names of one setting"),
        ("lora_r: 4\nlora: {r: 8}\n", &[], "c.yaml:3: lora.r and lora_r (c.yaml:2) are two names"),
        ("lora_r: 4\n", &[], "c.yaml:2: unknown section lora; allowed: run, dataset"),
        ("", &["training.max_step=3"], "--set training.max_step=3: unknown key training.max_step;"),
        ("", &["training.lr=fast"], "--set training.lr=fast: training.lr: found the text"),
        ("", &["training.lr"], "--set training.lr: an override needs a ="),
        ("", &["training..lr=1"], "--set training..lr=1: the key must be names joined by dots"),
        ("", &["run.name=a: b"], "--set run.name=a: b: the value reads as a map or list"),
        ("", &["training.betas=[0.9"], "--set training.betas=[0.9: not valid YAML"),
        ("", &["lr=1", "learning_rate=1"], "--set lr=1: unknown section lr"),
        (
            "",
            &["training.lr=1", "learning_rate=1"],
            "--set learning_rate=1: learning_rate and training.lr (--set training.lr=1) are two",
        ),
        (
            "esm:\n  model: dir\n",
            &["esm.model.hidden_size=64"],
            "--set esm.model.hidden_size=64: esm.model holds the text \"dir\", not keys (c.yaml:3)",
        ),
        (
            "",
            &["training={lr: 1, learning_rate: 2}"],
            "--set training={lr: 1, learning_rate: 2}: training.learning_rate and training.lr",
        ),
    ];
    for (text, overrides, wanted) in cases {
        let error = all(&format!("recipe: ptm_mamba\n{text}"), overrides).unwrap_err();
        assert_eq!(error.code(), 2);
        assert!(error.to_string().contains(wanted), "{text} {overrides:?} gave\n{error}");
    }
}

#[test]
fn the_file_itself() {
    for (text, wanted) in [
        ("", "c.yaml: the configuration names no recipe"),
        ("recipe: 3\n", "c.yaml:1: recipe: a name is needed, found the number 3"),
        ("- a\n", "c.yaml: a map of sections is needed, found a list"),
        ("recipe: a\nrecipe: b\n", "c.yaml:2: key recipe is given twice"),
    ] {
        let error = all(text, &[]).unwrap_err().to_string();
        assert!(error.contains(wanted), "{text} gave {error}");
    }
    let missing = ConfigFile::load(Path::new("no/such.yaml"), &[]).unwrap_err();
    assert_eq!(missing.code(), 2);
    assert!(missing.to_string().starts_with("no/such.yaml: cannot read the configuration"));
    let file = std::env::temp_dir().join(format!("trainer-config-{}.yaml", std::process::id()));
    std::fs::write(&file, b"recipe: a\nrun: \xff\n").unwrap();
    let error = ConfigFile::load(&file, &[]).unwrap_err();
    assert!(error.to_string().ends_with(".yaml:2: the configuration is not UTF-8 text"), "{error}");
    std::fs::write(&file, "recipe: a\n").unwrap();
    let good = ConfigFile::load(&file, &["run.seed=7".to_string()]).unwrap();
    assert_eq!((good.recipe().unwrap(), good.read::<Run>().unwrap().seed), ("a", 7));
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn other_names_arrive_at_the_canonical_key() {
    let text = "recipe: seq2seq\nrun_name: n\nlora_r: 8\ngen_num_beams: 4\ntrain_ratio: 0.9\n\
                training:\n  num_epochs: 3\n  learning_rate: 2e-4\n  batch_size: 2\n\
                \x20 log_steps: 50\n  gradient_accumulation_steps: 4\n  reference_ranks: 2\n\
                \x20 metric_for_best_model: eval_loss\n";
    let config = config(text, &[]).unwrap();
    let training: Training = config.read().unwrap();
    assert_eq!(
        (training.num_train_epochs, training.lr, training.per_device_train_batch_size),
        (3, 2e-4, 2)
    );
    assert_eq!((training.eval_steps, training.micro_batches_per_step), (50, 8));
    assert_eq!(training.metric_for_best_model, "val_loss");
    assert_eq!(config.read::<Run>().unwrap().name, "n");
    let dataset: Dataset = config.read().unwrap();
    assert_eq!((dataset.val_size, dataset.test_size), (Size::Fraction(0.1), Size::Samples(0)));
    assert_eq!(config.tree()["lora"], json!({"r": 8}));
    assert_eq!(config.tree()["generation"], json!({"num_beams": 4}));
    assert_eq!(config.place("generation.num_beams"), "c.yaml:4");
    // What is stored says the same once more.
    let stored = super::write_yaml(&Value::Object(config.tree().clone()));
    let again = ConfigFile::from_text("config.yaml", &stored, &[]).unwrap();
    assert_eq!(again.tree(), config.tree());
}

#[test]
fn overrides_win_over_the_file_under_any_name() {
    let text = "recipe: a\ntraining:\n  learning_rate: 1.0\n  gradient_accumulation_steps: 2\n\
                \x20 num_epochs: 9\n";
    let overrides = [
        "training.lr=2e-4",
        "training.micro_batches_per_step=6",
        "max_epochs=1",
        "training.betas=[0.5, 0.6]",
        "training.resume_from_checkpoint=none",
        "training.lr=3e-4",
        "model.ssm_cfg.d_state=8",
        "run={name: x, seed: 3}",
        "esm.model=",
    ];
    let config = config(text, &overrides).unwrap();
    let training: Training = config.read().unwrap();
    assert_eq!((training.lr, training.micro_batches_per_step), (3e-4, 6));
    assert_eq!((training.num_train_epochs, training.betas), (1, [0.5, 0.6]));
    assert_eq!(training.resume_from_checkpoint, Resume::None);
    assert_eq!(config.tree()["model"], json!({"ssm_cfg": {"d_state": 8}}));
    assert_eq!(config.place("model.ssm_cfg"), "--set model.ssm_cfg.d_state=8");
    assert_eq!(config.read::<Run>().unwrap().seed, 3);
    assert_eq!(config.read::<Esm>().unwrap().model, Value::Null);
}

#[test]
fn a_recipe_adds_keys_and_defaults_of_its_own() {
    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Pairs {
        train_data: Option<String>,
        max_pairs: usize,
    }
    let mut own = config("recipe: x\ndataset:\n  val_size: 5\n  train_data: a.csv\n", &[]).unwrap();
    own.set_default("training.evaluation_strategy", json!("epoch")).unwrap();
    own.set_default("dataset.val_size", json!(1)).unwrap();
    own.set_default("dataset.test_size", json!(0)).unwrap();
    let (dataset, pairs): (Dataset, Pairs) = own.read_with().unwrap();
    assert_eq!((dataset.val_size, dataset.test_size), (Size::Samples(5), Size::Samples(0)));
    assert_eq!(pairs, Pairs { train_data: Some("a.csv".to_string()), max_pairs: 0 });
    let training: Training = own.read().unwrap();
    assert_eq!(training.evaluation_strategy, EvaluationStrategy::Epoch);
    for (text, wanted) in [
        (
            "  max_pair: 3\n",
            "c.yaml:3: unknown key dataset.max_pair; did you mean max_pairs? allowed",
        ),
        ("  max_pairs: x\n", "c.yaml:3: dataset.max_pairs: found the text \"x\""),
        ("  subsample: 0\n", "c.yaml:3: dataset.subsample: found 0"),
        ("  - 3\n", "c.yaml:2: dataset: found a list, but a map of keys is needed"),
    ] {
        let own = config(&format!("recipe: x\ndataset:\n{text}"), &[]).unwrap();
        let error = own.read_with::<Dataset, Pairs>().unwrap_err().to_string();
        assert!(error.starts_with(wanted), "{text} gave {error}");
    }
}

proptest! {
    /// Whatever is typed behind `--set`, it is taken or refused with exit code 2.
    #[test]
    fn any_override_is_taken_or_refused(
        key in "(training|run|esm\\.model|lora_|gen_|)[.a-z]{0,6}",
        value in "[-\\[\\]{}:,#&*!|'\"~?a1.e ]{0,12}",
    ) {
        let text = "recipe: a\nesm: {model: dir}\ntraining:\n  epochs: 3\n";
        let set = format!("{key}={value}");
        if let Err(error) = all(text, &[&set]) {
            prop_assert_eq!(error.code(), 2);
            prop_assert!(error.to_string().contains(&format!("--set {set}")), "{}", error);
        }
    }
}
