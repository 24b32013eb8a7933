//! What training can start from: ready-made samples, weights of transformers, of a run, of a stage of
//! pretraining; and parts of a model that stay as they are.

use super::{classes, done, json, rows, run_dir, says, scratch};
use crate::alloys::CONFIG;
use crate::common::Scratch;
use std::path::Path;
use tch::Tensor;
use trainer::torch::WeightFile;

fn tensor(dir: &Path, name: &str) -> Tensor {
    WeightFile::open(dir).unwrap().read(name).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    WeightFile::open(dir).unwrap().names().map(String::from).collect()
}

/// Whether a parameter has other values in another checkpoint.
fn moved(a: &Path, b: &Path, name: &str) -> bool {
    tensor(a, name) != tensor(b, name)
}

#[test]
fn frozen_parts_keep_their_bits() {
    let s = scratch("alloy-freeze");
    let freeze = "freeze: {embeddings: true, layers: 0, names: ['*.layer.1.attention.*']}\n";
    s.write("c.yaml", format!("{CONFIG}{freeze}"));
    let said = done(s.trainer("run c.yaml")).err;
    let line = |part: &str| -> Vec<String> {
        let line = said.lines().find(|l| l.starts_with(part)).unwrap_or_else(|| panic!("{said}"));
        line[part.len()..].split_whitespace().map(String::from).collect()
    };
    assert_eq!(line("part"), ["trained", "frozen"]);
    assert_eq!(line("embeddings")[0], "0");
    assert_eq!(line("layer 0")[0], "0");
    let second = line("layer 1");
    assert!(second.iter().all(|number| number != "0"), "a part of it: {second:?}");
    assert_eq!(line("classifier.dense")[1], "0");

    let run = run_dir(&s, "t").join("checkpoints");
    let (early, late) = (run.join("step_00000002"), run.join("step_00000004"));
    let (mut kept, mut trained) = (0, 0);
    for name in names(&early) {
        let frozen = name.contains(".embeddings.")
            || name.contains(".layer.0.")
            || name.contains(".layer.1.attention.");
        if frozen {
            assert!(!moved(&early, &late, &name), "{name} is frozen");
            kept += 1;
        } else if name.ends_with("weight") {
            assert!(moved(&early, &late, &name), "{name} is trained");
            trained += 1;
        }
    }
    assert!(kept > 25 && trained > 4, "{kept} and {trained}");
}

/// Samples as a notebook has them ready, the second half as JSON lines.
fn ready(s: &Scratch, raw: impl Fn(usize) -> (f64, String)) {
    let (mut csv, mut lines) = (String::from("text,target,target_raw\n"), String::new());
    for i in 0..40 {
        let (target, raw) = raw(i);
        let text = format!("The alloy is Fe{i} Ni1, and it was \"cast\".");
        if i < 30 {
            csv += &format!("\"{}\",{target},{raw}\n", text.replace('"', "\"\""));
        } else {
            let row = serde_json::json!({"text": text, "target": target, "target_raw": raw});
            lines += &format!("{row}\n");
        }
    }
    s.write("train.csv", csv);
    s.write("val.jsonl", lines);
    let own = "train_data: train.csv\n  val_data: val.jsonl";
    let config =
        CONFIG.replace("  dataset_location: alloys.csv\n", "").replace("  val_size: 12\n", "");
    s.write("c.yaml", config.replace("target: YS", own));
}

#[test]
fn ready_made_numbers_need_no_table() {
    let s = scratch("alloy-ready");
    ready(&s, |i| ((i as f64 - 20.0) / 10.0, format!("{}", 500 + 10 * i)));
    let said = done(s.trainer("run c.yaml")).err;
    says(&said, &["tokenizer: ", "train 30, val 10, test 0", "step 4/4"]);
    assert!(!said.contains("rows/s"), "{said}");
    let run = run_dir(&s, "t");
    let table = rows(&s.read(run.join("predictions_val.csv")));
    assert_eq!(table.len(), 11);
    for row in &table[1..] {
        let (truth, predicted): (f64, f64) = (row[1].parse().unwrap(), row[2].parse().unwrap());
        assert!((800.0..900.0).contains(&truth), "as in target_raw: {row:?}");
        assert!((300.0..1100.0).contains(&predicted), "in its unit: {row:?}");
    }
    let figures = json(&s.read(run.join("evaluation.json")));
    let figure = |name: &str| figures["val"][name].as_f64().unwrap();
    assert!((figure("mae_raw") - 100.0 * figure("mae")).abs() < 1e-3, "{figures}");
    // There is no table to say how one becomes a text.
    let refused = s.trainer("predict c.yaml --input alloys.csv");
    assert_eq!(refused.code, 2, "{}", refused.err);
    says(&refused.err, &["ready-made texts", "dataset.dataset_location"]);
}

#[test]
fn ready_made_classes_have_their_names() {
    let s = scratch("alloy-ready-classes");
    ready(&s, |i| ((i % 3) as f64, ["FCC", "BCC", "mixed"][i % 3].to_string()));
    let said = done(s.trainer("run c.yaml --set training.metric_for_best_model=val_auc")).err;
    says(&said, &["classes: FCC, BCC, mixed", "auc_mixed", "step 4/4"]);
    let table = rows(&s.read(run_dir(&s, "t").join("predictions_val.csv")));
    assert_eq!(table[0], ["id", "true", "predicted", "p_FCC", "p_BCC", "p_mixed"][..]);
    assert_eq!(&table[1][1], "FCC");
}

/// A directory that transformers wrote, with a small tokenizer of its own.
#[test]
fn weights_of_transformers_are_taken() {
    let s = scratch("alloy-hf");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert/bert/regression");
    for name in ["config.json", "model.safetensors"] {
        std::fs::create_dir_all(s.path("hf")).unwrap();
        std::fs::copy(golden.join(name), s.path("hf").join(name)).unwrap();
    }
    let words = "[PAD] [UNK] [CLS] [SEP] [MASK] the alloy is in it was at . , percent cast test \
                 0 1 2 3 4 5 6 7 8 9 al co cr fe ni ti mo its of k";
    let words: Vec<&str> = words.split_whitespace().collect();
    assert_eq!(words.len(), 37, "as many as the model has");
    s.write("hf/vocab.txt", words.join("\n") + "\n");
    let start = CONFIG.find("model:\n").unwrap();
    let end = CONFIG.find("training:\n").unwrap();
    let model = "model: {init_from: hf}\n";
    s.write("c.yaml", format!("{}{model}{}", &CONFIG[..start], &CONFIG[end..]));
    let rate = "--set training.lr=1.0e-9 --set training.weight_decay=0";
    let said = done(s.trainer(&format!("run c.yaml {rate}"))).err;
    // Its 40 positions are few for these texts.
    says(&said, &["tensors start from", "are longer than 40 tokens and cut"]);
    assert!(!said.contains("fresh:") && !said.contains("tokenizer: "), "{said}");
    let best = run_dir(&s, "t").join("best.ckpt");
    let own = names(&golden);
    assert_eq!(names(&best), own, "under the names of transformers");
    for name in own {
        let apart = (tensor(&best, &name) - tensor(&golden, &name)).abs().max();
        assert!(apart.double_value(&[]) < 1e-6, "{name} has moved at a rate of 1e-9");
    }
    let config = json(&s.read(best.join("config.json")));
    assert_eq!(config["architectures"], serde_json::json!(["BertForSequenceClassification"]));
    assert!(best.join("vocab.txt").is_file());
    assert_eq!(rows(&done(s.trainer(&format!("predict c.yaml {rate}"))).out).len(), 49);
}

#[test]
fn a_run_starts_from_the_best_of_another() {
    let s = scratch("alloy-init");
    done(s.trainer("run c.yaml"));
    let first = run_dir(&s, "t");
    let name = first.file_name().unwrap().to_string_lossy();
    for from in [format!("out/{name}"), format!("out/{name}/best.ckpt")] {
        let still = "--set training.lr=1.0e-9 --set training.weight_decay=0 --set run.name=u --new";
        let said = done(s.trainer(&format!("run c.yaml --set model.init_from={from} {still}"))).err;
        says(&said, &["tensors start from", "step 4/4"]);
        assert!(!said.contains("fresh:") && !said.contains("tokenizer: "), "{said}");
    }
    let (a, b) = (first.join("best.ckpt"), s.find("u-20").pop().unwrap().join("best.ckpt"));
    for name in names(&a) {
        let apart = (tensor(&a, &name) - tensor(&b, &name)).abs().max().double_value(&[]);
        assert!(apart < 1e-6, "{name} is {apart} away");
    }
}

/// The encoder of the pretrained model is what training starts from; its head is another.
#[test]
fn pretraining_comes_first() {
    let s = scratch("alloy-pretrain");
    let more = "stages: [pretrain, train]\npretrain: {max_steps: 2, lr: 1.0e-2}\n";
    s.write("c.yaml", format!("{CONFIG}{more}"));
    let said = done(s.trainer("run c.yaml --set training.lr=1.0e-9 --set training.weight_decay=0"));
    says(&said.err, &["step 2/2", " | acc ", "step 4/4", "not used: lm_head."]);
    let run = run_dir(&s, "t");
    let (first, last) = (run.join("pretrain/best.ckpt"), run.join("best.ckpt"));
    let shared: Vec<String> = names(&last).into_iter().filter(|n| n.contains("encoder")).collect();
    assert!(shared.len() > 30, "{shared:?}");
    for name in shared {
        let apart = (tensor(&first, &name) - tensor(&last, &name)).abs().max().double_value(&[]);
        assert!(apart < 1e-6, "{name} is {apart} away");
    }
    let config = json(&s.read(first.join("config.json")));
    assert_eq!(config["architectures"], serde_json::json!(["RobertaForMaskedLM"]));
    // The pretrained model alone starts another run, of classes.
    let from = format!("out/{}/pretrain", run.file_name().unwrap().to_string_lossy());
    classes(&s);
    let said =
        done(s.trainer(&format!("run c.yaml --set run.name=u --set model.init_from={from}")));
    says(&said.err, &["fresh: classifier.dense.weight", "not used: lm_head.", "auc_FCC"]);
}

#[test]
fn what_this_recipe_has_not_is_refused() {
    let s = scratch("alloy-refused");
    for (command, wanted) in [("embed c.yaml", "nothing to embed"), ("merge c.yaml", "merge")] {
        let refused = s.trainer(command);
        assert_eq!(refused.code, 2, "{}", refused.err);
        says(&refused.err, &[wanted]);
        assert_eq!(refused.out, "");
    }
    assert!(s.find("out").is_empty() && s.find("all_data").is_empty());
}
