//! Model directories and files of weights.

use super::{LFS, case, check, edit, none, truncate};
use crate::common::Scratch;
use std::fs;
use trainer::models::esm2::{Esm2, Esm2Config};
use trainer::torch::{Entry, Params, write_safetensors};

/// Writes `esm/` as a Hugging Face directory whose tensors `change` has had in its hands.
fn model_dir(scratch: &Scratch, change: impl FnOnce(&mut Vec<Entry>)) {
    let shape = serde_json::json!({"model_type": "esm", "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 32});
    let config: Esm2Config = serde_json::from_value(shape.clone()).unwrap();
    let params = Params::new(tch::Device::Cpu);
    Esm2::new(&params.root(), &config);
    params.initialise(1).unwrap();
    let mut entries: Vec<Entry> =
        params.list().into_iter().map(|(name, tensor)| Entry { name, tensor }).collect();
    change(&mut entries);
    scratch.write("esm/config.json", shape.to_string());
    write_safetensors(&scratch.path("esm/model.safetensors"), &entries).unwrap();
    edit(
        scratch,
        "c.yaml",
        "{hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32}",
        "esm",
    );
}

/// Two shards.
const INDEX: &str = r#"{"weight_map":
    {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;

#[test]
fn models() {
    let base = Scratch::new("models");
    let esm =
        |name, code, prepare: fn(&Scratch), says| case(name, code, "embed c.yaml", prepare, says);
    let init = |name, args, prepare: fn(&Scratch), says| case(name, 5, args, prepare, says);
    check(
        &base,
        &[
            esm("a whole model", 0, |d| model_dir(d, |_| ()), "done:"),
            esm(
                "no directory",
                5,
                |d| {
                    model_dir(d, |_| ());
                    fs::remove_dir_all(d.path("esm")).unwrap();
                },
                "esm | config.json",
            ),
            esm(
                "no config.json",
                5,
                |d| {
                    model_dir(d, |_| ());
                    fs::remove_file(d.path("esm/config.json")).unwrap();
                },
                "esm | config.json",
            ),
            esm(
                "config.json that is none",
                5,
                |d| {
                    model_dir(d, |_| ());
                    d.write("esm/config.json", "{");
                },
                "config.json",
            ),
            esm(
                "another kind of model",
                5,
                |d| {
                    model_dir(d, |_| ());
                    edit(d, "esm/config.json", "\"esm\"", "\"bert\"");
                },
                "config.json | bert | esm",
            ),
            esm(
                "a missing tensor",
                5,
                |d| {
                    model_dir(d, |e| {
                        e.remove(3);
                    })
                },
                "esm | 1 missing ( | different models",
            ),
            esm(
                "an extra tensor",
                5,
                |d| {
                    model_dir(d, |e| {
                        let tensor = e[0].tensor.copy();
                        e.push(Entry {
                            name: "encoder.layer.9.attention.self.query.weight".into(),
                            tensor,
                        });
                    })
                },
                "1 unexpected (encoder.layer.9.",
            ),
            esm(
                "a misshapen tensor",
                5,
                |d| {
                    model_dir(d, |e| {
                        let words =
                            e.iter_mut().find(|e| e.name.ends_with("word_embeddings.weight"));
                        let words = words.unwrap();
                        words.tensor = words.tensor.narrow(0, 0, 20).copy();
                    })
                },
                "model.safetensors | [20, 16] | [33, 16]",
            ),
            esm(
                "a truncated file",
                5,
                |d| {
                    model_dir(d, |_| ());
                    truncate(&d.path("esm/model.safetensors"), 5000);
                },
                "model.safetensors | truncated",
            ),
            esm(
                "an empty file",
                5,
                |d| {
                    model_dir(d, |_| ());
                    truncate(&d.path("esm/model.safetensors"), 0);
                },
                "model.safetensors | truncated",
            ),
            esm(
                "a Git-LFS pointer",
                5,
                |d| {
                    model_dir(d, |_| ());
                    d.write("esm/model.safetensors", LFS);
                },
                "model.safetensors | git lfs pull",
            ),
            esm(
                "no weights",
                5,
                |d| {
                    model_dir(d, |_| ());
                    fs::remove_file(d.path("esm/model.safetensors")).unwrap();
                },
                "esm | no model.safetensors",
            ),
            esm(
                "a shard that is missing",
                5,
                |d| {
                    model_dir(d, |_| ());
                    fs::rename(
                        d.path("esm/model.safetensors"),
                        d.path("esm/model-00001-of-00002.safetensors"),
                    )
                    .unwrap();
                    d.write("esm/model.safetensors.index.json", INDEX);
                },
                "index.json | model-00002-of-00002.safetensors is missing",
            ),
            esm(
                "a pickle as weights",
                5,
                |d| {
                    model_dir(d, |_| ());
                    fs::rename(d.path("esm/model.safetensors"), d.path("esm/pytorch_model.bin"))
                        .unwrap();
                },
                "pytorch_model.bin | pickle | safetensors.torch",
            ),
            init(
                "a pickle as model",
                "embed c.yaml --set esm.model=m.pt",
                |d| d.write("m.pt", "x"),
                "m.pt | pickle | torch.load",
            ),
            init(
                "a .pth as weights",
                "train c.yaml --set training.use_esm=false --set model.init_from=m.pth",
                |d| d.write("m.pth", "x"),
                "m.pth | pickle | torch.load",
            ),
            init(
                "a .pkl as checkpoint",
                "predict c.yaml --checkpoint m.pkl",
                |d| d.write("m.pkl", "x"),
                "m.pkl | pickle | torch.load",
            ),
            init(
                "no weights to start from",
                "train c.yaml --set training.use_esm=false --set model.init_from=gone",
                none,
                "gone",
            ),
            init(
                "weights of another model",
                "train c.yaml --set training.use_esm=false --set model.init_from=esm",
                |d| {
                    model_dir(d, |_| ());
                },
                "esm | missing | unexpected",
            ),
            init(
                "no run to predict with",
                "predict c.yaml",
                none,
                "no run called t | --checkpoint",
            ),
            init(
                "no checkpoint",
                "evaluate c.yaml --set training.use_esm=false --checkpoint gone",
                none,
                "gone",
            ),
        ],
    );
}
