//! What makes two runs the same run: a hash of what their resolved configurations mean.
//!
//! Left out are the keys that change where a run writes, how it is spread, how much it says and
//! keeps, or how long it goes on, and no number that it computes up to a given step:
//! - `run.output_dir`: where, not what.
//! - `distributed`: results do not depend on ranks; a stored `threads_per_rank` is compared apart.
//! - `training.logging_steps`, `report_to`, `save_steps`, `save_total_limit`, `num_workers`: what is
//!   said and kept, and who prepares batches.
//! - `training.max_steps`, `num_train_epochs`: a finished run may be continued further.
//! - `training.resume_from_checkpoint`: how a run starts cannot be part of which run it is.
//! - `training.reference_ranks`: already multiplied into `micro_batches_per_step`.

use super::yaml::join;
use crate::files::hex;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Sections and keys that are no part of a run's identity.
const IGNORED: &[&str] = &[
    "run.output_dir",
    "distributed",
    "training.logging_steps",
    "training.report_to",
    "training.save_steps",
    "training.save_total_limit",
    "training.num_workers",
    "training.max_steps",
    "training.num_train_epochs",
    "training.resume_from_checkpoint",
    "training.reference_ranks",
];

/// Sixteen hexadecimal digits that are equal for configurations of one run, in any order of keys.
pub fn identity(resolved: &Value) -> String {
    let mut hash = Sha256::new();
    for (key, value) in leaves(resolved) {
        // Lengths in front keep neighbouring texts apart.
        for text in [key, value] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
    }
    hex(&hash.finalize()[..8])
}

/// The dotted keys, in alphabetical order, in which two configurations are different runs.
pub fn difference(a: &Value, b: &Value) -> Vec<String> {
    let (a, b) = (leaves(a), leaves(b));
    let mut keys: Vec<String> =
        a.keys().chain(b.keys()).filter(|key| a.get(*key) != b.get(*key)).cloned().collect();
    keys.sort();
    keys.dedup();
    keys
}

/// Every value that is no map, as JSON text, by dotted key. Keys are escaped where they hold a dot.
fn leaves(resolved: &Value) -> BTreeMap<String, String> {
    let mut leaves = BTreeMap::new();
    collect(resolved, "", &mut leaves);
    leaves
}

fn collect(value: &Value, path: &str, leaves: &mut BTreeMap<String, String>) {
    if IGNORED.contains(&path) {
        return;
    }
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let key = key.replace('\\', "\\\\").replace('.', "\\.");
                collect(value, &join(path, &key), leaves);
            }
        }
        other => {
            leaves.insert(path.to_string(), sorted(other).to_string());
        }
    }
}

/// The same value with the keys of maps inside lists in order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(sorted).collect(),
        Value::Object(map) => {
            let by_key: BTreeMap<&String, Value> =
                map.iter().map(|(k, v)| (k, sorted(v))).collect();
            Value::Object(by_key.into_iter().map(|(k, v)| (k.clone(), v)).collect())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resolved() -> Value {
        json!({
            "recipe": "ptm_mamba",
            "run": {"name": "a", "output_dir": "/o", "seed": 42},
            "training": {"lr": 4e-4, "max_steps": 20, "num_train_epochs": 1, "num_workers": 2,
                         "save_total_limit": 3, "logging_steps": 1, "betas": [0.9, 0.98],
                         "save_steps": null, "resume_from_checkpoint": "auto",
                         "reference_ranks": 1},
            "distributed": {"threads_per_rank": 1},
            "tasks": [{"name": "x", "weight": 1.0}],
        })
    }

    fn with(pointer: &str, value: Value) -> Value {
        let mut config = resolved();
        *config.pointer_mut(pointer).unwrap() = value;
        config
    }

    #[test]
    fn what_does_not_matter() {
        let own = identity(&resolved());
        assert_eq!(own.len(), 16);
        for pointer in [
            "/run/output_dir",
            "/training/max_steps",
            "/training/num_train_epochs",
            "/training/num_workers",
            "/training/save_total_limit",
            "/training/save_steps",
            "/training/logging_steps",
            "/training/resume_from_checkpoint",
            "/training/reference_ranks",
            "/distributed/threads_per_rank",
        ] {
            let other = with(pointer, json!("other"));
            assert_eq!(identity(&other), own, "{pointer}");
            assert_eq!(difference(&resolved(), &other), [""; 0], "{pointer}");
        }
        let reordered = json!({
            "tasks": [{"weight": 1.0, "name": "x"}],
            "training": {"betas": [0.9, 0.98], "lr": 4e-4},
            "run": {"seed": 42, "name": "a"},
            "recipe": "ptm_mamba",
        });
        assert_eq!(identity(&reordered), own);
    }

    #[test]
    fn what_matters() {
        let own = identity(&resolved());
        for (pointer, key) in [
            ("/recipe", "recipe"),
            ("/run/name", "run.name"),
            ("/run/seed", "run.seed"),
            ("/training/lr", "training.lr"),
            ("/training/betas/1", "training.betas"),
            ("/tasks/0/weight", "tasks"),
        ] {
            let other = with(pointer, json!(7));
            assert_ne!(identity(&other), own, "{pointer}");
            assert_eq!(difference(&resolved(), &other), [key]);
        }
        let mut more = resolved();
        more["model"] = json!({"d_model": 64});
        assert_eq!(difference(&more, &resolved()), ["model.d_model"]);
        assert_ne!(identity(&json!({"a": {"b": 1}})), identity(&json!({"a.b": 1})));
    }

    #[test]
    fn survives_the_stored_file() {
        let stored = super::super::yaml_writer::write(&resolved());
        let read = super::super::yaml::parse(&stored, "config.yaml").unwrap().value;
        assert_eq!(identity(&read), identity(&resolved()));
    }
}
