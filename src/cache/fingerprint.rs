//! What makes two caches the same: the meaning of their numbers, and how these were made.
//!
//! *Meaning* is checked by every reader: other weights, another layer or other masks give other
//! embeddings. *Making* is checked when unfinished work goes on: other threads or batch shapes
//! give other last bits, and a cache must not be half one and half the other.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt::Display;

/// The field of `making` that holds the hash of the input set. A finished cache of other inputs is
/// refused too, because it lacks records; other fields of `making` no longer matter by then.
pub const INPUTS: &str = "inputs";

/// Both parts, in the order in which they were filled; comparing them looks at names, not order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// What an embedding is: weights, layer, mask policy, alphabet, windows, precision …
    pub meaning: Map<String, Value>,
    /// How it was computed: plan, inputs, batch budget, threads, device, library versions.
    pub making: Map<String, Value>,
}

impl Fingerprint {
    /// Whether `found` (the cache at `place`) means what this configuration (`self`) means.
    ///
    /// # Errors
    /// Exit code 5, naming the first field that differs and both values.
    pub fn check_meaning(&self, found: &Fingerprint, place: impl Display) -> Result<()> {
        refuse(&self.meaning, &found.meaning, place).map_err(|e| {
            e.hint(
                "choose another esm.cache_dir, or delete this one and run `trainer embed CONFIG` \
                 again",
            )
        })
    }

    /// Whether work that was begun as `found` may go on as `self`, with the same last bits.
    ///
    /// # Errors
    /// Exit code 5, naming the first field that differs and both values.
    pub fn check_making(&self, found: &Fingerprint, place: impl Display) -> Result<()> {
        refuse(&self.making, &found.making, place).map_err(|e| {
            e.hint(
                "finish it as it was begun, choose another esm.cache_dir, or delete this one to \
                 start anew",
            )
        })
    }

    /// Whether a finished cache holds the same inputs (see [`INPUTS`]).
    ///
    /// # Errors
    /// Exit code 5 with both hashes.
    pub fn check_inputs(&self, found: &Fingerprint, place: impl Display) -> Result<()> {
        let only = |print: &Fingerprint| -> Map<String, Value> {
            print.making.get(INPUTS).map(|v| (INPUTS.to_string(), v.clone())).into_iter().collect()
        };
        refuse(&only(self), &only(found), place).map_err(|e| {
            e.hint("the sequences have changed: choose another esm.cache_dir, or delete this one")
        })
    }
}

fn refuse(
    wanted: &Map<String, Value>,
    found: &Map<String, Value>,
    place: impl Display,
) -> Result<()> {
    match difference("", wanted, found) {
        None => Ok(()),
        Some((field, wanted, found)) => Err(Error::damaged(format!(
            "the cache was made with {field} = {found}, but now {field} = {wanted}"
        ))
        .at(place)),
    }
}

/// The dotted name of the first field that differs, and both values as text.
fn difference(
    prefix: &str,
    wanted: &Map<String, Value>,
    found: &Map<String, Value>,
) -> Option<(String, String, String)> {
    let extra = found.keys().filter(|key| !wanted.contains_key(*key));
    for key in wanted.keys().chain(extra) {
        let name = format!("{prefix}{key}");
        match (wanted.get(key), found.get(key)) {
            (Some(Value::Object(a)), Some(Value::Object(b))) => {
                if let Some(inner) = difference(&format!("{name}."), a, b) {
                    return Some(inner);
                }
            }
            (a, b) if a != b => return Some((name, text(a), text(b))),
            _ => {}
        }
    }
    None
}

/// A value as it stands in an error message: JSON, long ones cut.
fn text(value: Option<&Value>) -> String {
    const MOST: usize = 120;
    let Some(value) = value else {
        return "(not given)".to_string();
    };
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::fingerprint;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_difference_is_named_with_both_values() {
        let wanted = fingerprint();
        let mut found = fingerprint();
        assert!(wanted.check_meaning(&found, "here").is_ok());
        found.meaning["model"]["hidden_size"] = 8.into();
        let error = wanted.check_meaning(&found, "cache/x").unwrap_err();
        assert_eq!(error.code(), 5);
        let text = error.to_string();
        assert!(text.starts_with("cache/x: "), "{text}");
        assert!(text.contains("model.hidden_size = 8, but now model.hidden_size = 4"), "{text}");
        assert!(text.contains("esm.cache_dir"), "{text}");
        assert!(wanted.check_making(&found, "x").is_ok());
    }

    #[test]
    fn a_field_that_only_one_side_has_is_a_difference() {
        let (wanted, mut found) = (fingerprint(), fingerprint());
        found.making.insert("device".into(), "cpu".into());
        let error = wanted.check_making(&found, "x").unwrap_err().to_string();
        assert!(error.contains("device = \"cpu\", but now device = (not given)"), "{error}");
        assert!(found.check_making(&wanted, "x").is_err());
        assert!(wanted.check_meaning(&found, "x").is_ok());
    }

    #[test]
    fn of_a_finished_cache_only_the_inputs_are_checked() {
        let (wanted, mut found) = (fingerprint(), fingerprint());
        found.making["threads"] = 64.into();
        assert!(wanted.check_inputs(&found, "x").is_ok());
        found.making[INPUTS] = "def".into();
        assert_eq!(wanted.check_inputs(&found, "x").unwrap_err().code(), 5);
    }

    proptest! {
        #[test]
        fn order_and_a_round_trip_through_json_change_nothing(
            fields in prop::collection::hash_map("[a-z]{1,6}", -1e30f64..1e30, 1..8)
        ) {
            let mut a = Fingerprint::default();
            let mut b = Fingerprint::default();
            let mut sorted: Vec<_> = fields.into_iter().collect();
            sorted.sort_by(|x, y| x.0.cmp(&y.0));
            for (name, value) in &sorted {
                a.meaning.insert(name.clone(), (*value).into());
            }
            for (name, value) in sorted.iter().rev() {
                b.meaning.insert(name.clone(), (*value).into());
            }
            let b: Fingerprint = serde_json::from_str(&serde_json::to_string(&b).unwrap()).unwrap();
            prop_assert!(a.check_meaning(&b, "x").is_ok());
            b.meaning.keys().for_each(|name| {
                let mut c = b.clone();
                c.meaning.insert(name.clone(), Value::Null);
                assert!(a.check_meaning(&c, "x").is_err());
            });
        }
    }
}
