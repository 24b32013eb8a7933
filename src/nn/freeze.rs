//! Which parameters are not trained, told by their names alone, so that it serves every model.
//!
//! `freeze: {embeddings: true, layers: "0-5", names: ["encoder.layer.7.attention.*"]}`. A layer is
//! the number after the first part `layer`, `layers`, `block` or `blocks` of a name; embeddings are
//! what lies below a part `embeddings`, a tied decoder with them. What is named but not there is refused.

use crate::error::{Error, Result, nearest};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// The section `freeze`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Freeze {
    /// Tables of tokens, positions and types, with their norm.
    pub embeddings: bool,
    /// Layers, from 0: numbers and ranges.
    pub layers: Layers,
    /// Patterns of names, in which `*` stands for anything; the model's own prefix may be left out.
    pub names: Vec<String>,
}

/// Numbers of layers: `3`, `"0-5"`, or a list of both.
#[derive(Clone, Debug, Default, Serialize, PartialEq)]
#[serde(transparent)]
pub struct Layers(BTreeSet<usize>);

/// Layers beyond this are a slip of the pen.
const MOST_LAYERS: usize = 4096;

impl Layers {
    fn add(&mut self, first: usize, last: usize) -> std::result::Result<(), String> {
        if first > last || last >= MOST_LAYERS {
            return Err(format!("{first}-{last} is no range of layers; write first-last, as 0-5"));
        }
        self.0.extend(first..=last);
        Ok(())
    }

    fn add_text(&mut self, text: &str) -> std::result::Result<(), String> {
        let number = |t: &str| t.trim().parse::<usize>().ok();
        let ends = match text.split_once('-') {
            Some((first, last)) => (number(first), number(last)),
            None => (number(text), number(text)),
        };
        match ends {
            (Some(first), Some(last)) => self.add(first, last),
            _ => Err(format!("\"{text}\" is no layer and no range of layers, as 0-5")),
        }
    }
}

impl<'de> Deserialize<'de> for Layers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct LayersVisitor;
        impl<'de> Visitor<'de> for LayersVisitor {
            type Value = Layers;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a layer, a range of layers as \"0-5\", or a list of these")
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> std::result::Result<Layers, E> {
                let (mut layers, n) = (Layers::default(), usize::try_from(n).map_err(E::custom)?);
                layers.add(n, n).map_err(E::custom)?;
                Ok(layers)
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Layers, E> {
                let mut layers = Layers::default();
                layers.add_text(text).map_err(E::custom)?;
                Ok(layers)
            }
            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> std::result::Result<Layers, A::Error> {
                let mut layers = Layers::default();
                while let Some(item) = seq.next_element::<Item>()? {
                    match item {
                        Item::Number(n) => layers.add(n, n),
                        Item::Text(text) => layers.add_text(&text),
                    }
                    .map_err(A::Error::custom)?;
                }
                Ok(layers)
            }
        }
        deserializer.deserialize_any(LayersVisitor)
    }
}

/// A member of a list of layers.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a layer or a range of layers as \"0-5\" is needed")]
enum Item {
    Number(usize),
    Text(String),
}

/// A line of the table of what is frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreezeRow {
    /// `embeddings`, `layer 3`, or the module.
    pub group: String,
    /// Numbers (scalars) that are trained.
    pub trained: usize,
    /// Numbers that are not.
    pub frozen: usize,
}

impl Freeze {
    /// Whether nothing is frozen.
    pub fn is_empty(&self) -> bool {
        *self == Freeze::default()
    }

    /// Whether the parameter `name` is frozen.
    pub fn frozen(&self, name: &str) -> bool {
        (self.embeddings && is_embedding(name))
            || layer_of(name).is_some_and(|layer| self.layers.0.contains(&layer))
            || self.names.iter().any(|pattern| matches_name(pattern, name))
    }

    /// Refuses (exit code 2) what hits none of the model's parameters, and freezing all of them.
    pub fn check(&self, names: &[String]) -> Result<()> {
        if self.embeddings && !names.iter().any(|name| is_embedding(name)) {
            return Err(Error::usage("this model has no embeddings").at("freeze.embeddings"));
        }
        let there: BTreeSet<usize> = names.iter().filter_map(|name| layer_of(name)).collect();
        if let Some(layer) = self.layers.0.difference(&there).next() {
            let known = match (there.first(), there.last()) {
                (Some(first), Some(last)) => format!("this model has layers {first} to {last}"),
                _ => "this model has no layers".to_string(),
            };
            return Err(Error::usage(format!("there is no layer {layer}"))
                .at("freeze.layers")
                .hint(known));
        }
        for (i, pattern) in self.names.iter().enumerate() {
            if !names.iter().any(|name| matches_name(pattern, name)) {
                return Err(Error::usage(format!("no parameter is called {pattern}"))
                    .at(format!("freeze.names[{i}]"))
                    .hint(remedy(pattern, names)));
            }
        }
        if !self.is_empty() && names.iter().all(|name| self.frozen(name)) {
            return Err(Error::usage("every parameter is frozen, and nothing is left to train")
                .at("freeze")
                .hint("leave the head out of freeze.names"));
        }
        Ok(())
    }

    /// What is trained and what is frozen by groups, in the order in which they come; `params` are
    /// names and numbers of scalars.
    pub fn rows<'a>(&self, params: impl IntoIterator<Item = (&'a str, usize)>) -> Vec<FreezeRow> {
        let mut rows: Vec<FreezeRow> = Vec::new();
        for (name, count) in params {
            let group = group_of(name);
            let at = rows.iter().position(|row| row.group == group).unwrap_or_else(|| {
                rows.push(FreezeRow { group, trained: 0, frozen: 0 });
                rows.len() - 1
            });
            let frozen = self.frozen(name);
            *(if frozen { &mut rows[at].frozen } else { &mut rows[at].trained }) += count;
        }
        rows
    }
}

fn is_embedding(name: &str) -> bool {
    layer_of(name).is_none() && name.split('.').any(|part| part == "embeddings")
}

/// The number after the first part that says layer: in T5's `block.3.layer.1` it is 3.
fn layer_of(name: &str) -> Option<usize> {
    let mut parts = name.split('.');
    parts.find(|part| ["layer", "layers", "block", "blocks"].contains(part))?;
    parts.next()?.parse().ok()
}

fn group_of(name: &str) -> String {
    match layer_of(name) {
        Some(layer) => format!("layer {layer}"),
        None if is_embedding(name) => "embeddings".to_string(),
        None => name.rsplit_once('.').map_or(name, |(module, _)| module).to_string(),
    }
}

/// Whether a pattern is the whole name, or the name without its first part.
fn matches_name(pattern: &str, name: &str) -> bool {
    let bare = name.split_once('.').map(|(_, rest)| rest);
    matches(pattern, name) || bare.is_some_and(|bare| matches(pattern, bare))
}

/// Whether `text` is `pattern`, in which `*` stands for any characters or none.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, mut rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(head) else {
        return false;
    };
    // What stands between two stars is best found as early as possible.
    while let Some((middle, next)) = rest.split_once('*') {
        let Some(at) = text.find(middle) else {
            return false;
        };
        (text, rest) = (&text[at + middle.len()..], next);
    }
    text.ends_with(rest)
}

/// The nearest pattern that hits something, or how to see the names.
fn remedy(pattern: &str, names: &[String]) -> String {
    let mut known = BTreeSet::new();
    for name in names {
        let bare = name.split_once('.').map_or("", |(_, rest)| rest);
        for name in [name.as_str(), bare] {
            known.insert(name.to_string());
            known.extend(name.match_indices('.').map(|(at, _)| format!("{}.*", &name[..at])));
        }
    }
    match nearest(pattern, known.iter().map(String::as_str)) {
        Some(near) => format!("did you mean {near}?"),
        None => {
            let first = names.first().map_or("none", String::as_str);
            format!("names are those of the model's weights, the first is {first}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names() -> Vec<String> {
        let mut names = vec![
            "bert.embeddings.word_embeddings.weight".to_string(),
            "bert.embeddings.LayerNorm.bias".to_string(),
        ];
        for layer in 0..12 {
            for part in ["attention.self.query.weight", "output.dense.bias"] {
                names.push(format!("bert.encoder.layer.{layer}.{part}"));
            }
        }
        names.push("bert.pooler.dense.weight".to_string());
        names.push("classifier.weight".to_string());
        names
    }

    fn freeze(section: serde_json::Value) -> Freeze {
        serde_json::from_value(section).unwrap()
    }

    #[test]
    fn layers_are_numbers_and_ranges() {
        for section in [json!([0, 1, 2]), json!("0-2"), json!(["0-1", 2]), json!(["0", "1 - 2"])] {
            assert_eq!(freeze(json!({ "layers": section })).layers.0, BTreeSet::from([0, 1, 2]));
        }
        assert_eq!(freeze(json!({"layers": 1})).layers.0, BTreeSet::from([1]));
        let stored = serde_json::to_value(freeze(json!({"layers": "3-4"}))).unwrap();
        assert_eq!(stored["layers"], json!([3, 4]));
        assert_eq!(freeze(stored).layers.0, BTreeSet::from([3, 4]));
        for section in [json!("2-0"), json!("a"), json!([-1]), json!(9999), json!("-1")] {
            let result = serde_json::from_value::<Freeze>(json!({ "layers": section }));
            assert!(result.is_err(), "{section}");
        }
    }

    #[test]
    fn names_decide() {
        let by_layer = freeze(json!({"layers": [1]}));
        let hit = |f: &Freeze| names().iter().filter(|name| f.frozen(name)).count();
        assert_eq!(hit(&by_layer), 2, "layer 1 and not 10 or 11");
        assert!(by_layer.frozen("bert.encoder.layer.1.output.dense.bias"));
        assert_eq!(hit(&freeze(json!({"embeddings": true}))), 2);
        assert_eq!(hit(&freeze(json!({"names": ["bert.*"]}))), names().len() - 1);
        for pattern in ["encoder.layer.3.*", "*.layer.3.*", "bert.encoder.layer.3.*"] {
            assert_eq!(hit(&freeze(json!({ "names": [pattern] }))), 2, "{pattern}");
        }
        assert_eq!(hit(&freeze(json!({"names": ["*.query.*t"]}))), 12);
        assert_eq!(hit(&freeze(json!({"names": ["classifier"]}))), 0);
        assert_eq!(hit(&Freeze::default()), 0);
    }

    #[test]
    fn what_hits_nothing_is_refused() {
        for (section, place, says) in [
            (json!({"layers": "10-12"}), "freeze.layers", "there is no layer 12"),
            (
                json!({"names": ["classifier.weight", "encoder.layers.3.*"]}),
                "freeze.names[1]",
                "did you mean encoder.layer.3.*?",
            ),
            (json!({"names": ["quite another"]}), "freeze.names[0]", "the first is bert.emb"),
            (json!({"names": ["*"]}), "freeze", "nothing is left to train"),
        ] {
            let error = freeze(section).check(&names()).unwrap_err();
            let text = error.to_string();
            assert!(error.code() == 2 && text.starts_with(&format!("{place}: ")), "{text}");
            assert!(text.contains(says), "{text}");
        }
        let bare = ["decoder.block.0.weight".to_string()];
        assert!(freeze(json!({"embeddings": true})).check(&bare).is_err());
        freeze(json!({"embeddings": true, "layers": "0-11"})).check(&names()).unwrap();
        Freeze::default().check(&[]).unwrap();
    }

    #[test]
    fn the_table_has_a_row_a_group() {
        let frozen = freeze(json!({"embeddings": true, "names": ["encoder.layer.0.output.*"]}));
        let names = names();
        let rows = frozen.rows(names.iter().map(|name| (name.as_str(), 5)));
        assert_eq!(rows.len(), 1 + 12 + 2);
        let row = |group: &str, trained, frozen| FreezeRow { group: group.into(), trained, frozen };
        assert_eq!(rows[..2], [row("embeddings", 0, 10), row("layer 0", 5, 5)]);
        assert_eq!(rows[13..], [row("bert.pooler.dense", 5, 0), row("classifier", 5, 0)]);
    }
}
