//! The names that other programs give to our keys, and settings that are said in another way.
//!
//! The five upstream systems disagree about names. One name is canonical, the others are taken at
//! the top of the file or inside `training`, where those systems have them. `thing` names what must
//! not be said twice, under whichever names.

use serde_json::{Map, Value, json};

/// Other name (without section) to canonical key.
const RENAMED: &[(&str, &str)] = &[
    ("num_epochs", "training.num_train_epochs"),
    ("max_epochs", "training.num_train_epochs"),
    ("epochs", "training.num_train_epochs"),
    ("learning_rate", "training.lr"),
    ("batch_size", "training.per_device_train_batch_size"),
    ("run_name", "run.name"),
    ("log_steps", "training.eval_steps"),
    ("gradient_accumulation_steps", "training.gradient_accumulation_steps"),
    ("train_ratio", "dataset.train_ratio"),
];

/// Prefix of a name to the section that it means.
const PREFIXED: &[(&str, &str)] = &[("gen_", "generation"), ("lora_", "lora")];

/// Keys that set the same thing by different measures, the canonical one first.
const SAME_THING: &[[&str; 2]] = &[
    ["training.micro_batches_per_step", "training.gradient_accumulation_steps"],
    ["dataset.val_size", "dataset.train_ratio"],
];

/// The canonical key of a dotted key that is another name; `None` where it is none.
pub fn canonical(key: &str) -> Option<String> {
    let name = key.strip_prefix("training.").unwrap_or(key);
    if let Some((_, canonical)) = RENAMED.iter().find(|(other, _)| *other == name) {
        return (*canonical != key).then(|| canonical.to_string());
    }
    let (prefix, section) = PREFIXED.iter().find(|(prefix, _)| name.starts_with(prefix))?;
    let rest = &name[prefix.len()..];
    (!rest.is_empty() && !rest.contains('.')).then(|| format!("{section}.{rest}"))
}

/// The one thing that a canonical key sets: its own key, or that of the first key of its group.
pub fn thing(canonical: &str) -> &str {
    let same = SAME_THING.iter().find(|names| names.contains(&canonical));
    same.map_or(canonical, |names| names[0])
}

/// The canonical keys that may hold a thing.
pub fn names_of(thing: &str) -> Vec<&str> {
    match SAME_THING.iter().find(|names| names[0] == thing) {
        Some(names) => names.to_vec(),
        None => vec![thing],
    }
}

/// What a converted setting means.
pub struct Converted {
    /// The canonical key's value.
    pub value: Value,
    /// Other keys that follow, where the user did not give them.
    pub implied: Option<(&'static str, Value)>,
}

/// From a value and the whole tree; the error says what the value must be.
type Convert = fn(&Value, &Map<String, Value>) -> Result<Converted, String>;

/// Key, the canonical key that it becomes, and how.
pub const CONVERSIONS: &[(&str, &str, Convert)] = &[
    (
        "training.gradient_accumulation_steps",
        "training.micro_batches_per_step",
        micro_batches_per_step,
    ),
    ("dataset.train_ratio", "dataset.val_size", val_size),
    ("training.metric_for_best_model", "training.metric_for_best_model", metric),
];

/// g steps of accumulation on `reference_ranks` ranks are g times as many micro-batches.
fn micro_batches_per_step(value: &Value, tree: &Map<String, Value>) -> Result<Converted, String> {
    let ranks = tree.get("training").and_then(|t| t.get("reference_ranks"));
    // A mistyped reference_ranks is refused when the section is read.
    let ranks = ranks.and_then(Value::as_u64).unwrap_or(1);
    let steps = value.as_u64().filter(|g| *g >= 1).and_then(|g| g.checked_mul(ranks));
    let value = json!(steps.ok_or("a whole number, 1 or more, is needed")?);
    Ok(Converted { value, implied: None })
}

/// Training on a part r leaves 1 - r for validation, and nothing for a test set not asked for.
fn val_size(value: &Value, _: &Map<String, Value>) -> Result<Converted, String> {
    let ratio = value.as_f64().filter(|r| *r > 0.0 && *r <= 1.0);
    let ratio = ratio.ok_or("a fraction above 0 and up to 1 is needed")?;
    // 1 - 0.9 is 0.09999999999999998; nobody means that.
    let rest = ((1.0 - ratio) * 1e12).round() / 1e12;
    Ok(Converted { value: json!(rest), implied: Some(("dataset.test_size", json!(0))) })
}

/// Other names of the validation loss.
fn metric(value: &Value, _: &Map<String, Value>) -> Result<Converted, String> {
    let value = match value.as_str() {
        Some("eval_loss" | "avg_val_loss") => json!("val_loss"),
        _ => value.clone(),
    };
    Ok(Converted { value, implied: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_names() {
        for (key, wanted) in [
            ("training.num_epochs", Some("training.num_train_epochs")),
            ("max_epochs", Some("training.num_train_epochs")),
            ("training.epochs", Some("training.num_train_epochs")),
            ("learning_rate", Some("training.lr")),
            ("training.batch_size", Some("training.per_device_train_batch_size")),
            ("run_name", Some("run.name")),
            ("training.log_steps", Some("training.eval_steps")),
            ("gen_num_beams", Some("generation.num_beams")),
            ("training.lora_r", Some("lora.r")),
            ("train_ratio", Some("dataset.train_ratio")),
            ("gradient_accumulation_steps", Some("training.gradient_accumulation_steps")),
            ("training.gradient_accumulation_steps", None),
            ("training.lr", None),
            ("model.learning_rate", None),
            ("embed.batch_size", None),
            ("gen_", None),
            ("generation.max_length", None),
            ("lora", None),
        ] {
            assert_eq!(canonical(key).as_deref(), wanted, "{key}");
        }
    }

    #[test]
    fn one_thing_under_many_names() {
        assert_eq!(thing("training.lr"), "training.lr");
        let rival = "training.gradient_accumulation_steps";
        assert_eq!(thing(rival), "training.micro_batches_per_step");
        assert_eq!(names_of("training.micro_batches_per_step")[1], rival);
        // Every conversion between keys is also known as one thing.
        for (from, to, _) in CONVERSIONS {
            assert!(from == to || thing(from) == *to, "{from}");
        }
    }
}
