//! A JSON value into a typed section, with refusals that know what was found and what is allowed.
//!
//! serde_json reports a mismatch as finished prose. Here the deserializer is our own, so a refusal
//! keeps its parts: the key, the value found, the names allowed. `file` adds file and line.

use serde::Deserializer;
use serde::de::value::{
    BorrowedStrDeserializer, MapAccessDeserializer, MapDeserializer, SeqDeserializer,
};
use serde::de::{DeserializeOwned, Expected, IntoDeserializer, Unexpected, Visitor};
use serde_json::Value;
use serde_path_to_error::Segment;
use std::fmt;

use crate::error::nearest;

/// Why a value does not fit.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// A key that the section does not have.
    UnknownKey { key: String, allowed: Vec<&'static str> },
    /// A word that is not among the allowed ones.
    UnknownWord { found: String, allowed: Vec<&'static str> },
    /// A value of another type or outside the type's range.
    WrongType { found: String, wanted: String },
    /// A key that has no default.
    MissingKey(&'static str),
    /// A type's own message.
    Other(String),
}

/// A refusal and the dotted key it is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Misfit {
    /// Dotted path from the top of the configuration.
    pub key: String,
    /// What is wrong there.
    pub refusal: Refusal,
}

/// Reads `value`, which stands at the dotted path `path`, as a `T`.
pub fn read<T: DeserializeOwned>(value: &Value, path: &str) -> Result<T, Misfit> {
    serde_path_to_error::deserialize(Node(value)).map_err(|error| {
        let mut key = path.to_string();
        for segment in error.path().iter() {
            match segment {
                Segment::Map { key: name } | Segment::Enum { variant: name } => {
                    key = super::yaml::join(&key, name);
                }
                Segment::Seq { index } => key = format!("{key}[{index}]"),
                Segment::Unknown => {}
            }
        }
        Misfit { key, refusal: error.into_inner() }
    })
}

/// The keys that a struct reads, as serde names them; empty for anything that is no struct.
pub fn known_keys<T: DeserializeOwned>() -> &'static [&'static str] {
    match T::deserialize(KeysOnly) {
        Err(Keys(keys)) => keys,
        Ok(_) => &[],
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.refusal {
            Refusal::UnknownKey { key: name, allowed } => {
                write!(f, "unknown key {key}{}", suggest(name, allowed))
            }
            Refusal::UnknownWord { found, allowed } => {
                write!(f, "{key}: unknown value \"{found}\"{}", suggest(found, allowed))
            }
            Refusal::WrongType { found, wanted } => {
                write!(f, "{key}: found {found}, but {wanted} is needed")
            }
            Refusal::MissingKey(name) => write!(f, "missing key {key}.{name}"),
            Refusal::Other(message) => write!(f, "{key}: {message}"),
        }
    }
}

/// `; did you mean X? allowed: a, b, c`
pub fn suggest(found: &str, allowed: &[&str]) -> String {
    let near = nearest(found, allowed.iter().copied());
    let near = near.map(|name| format!("; did you mean {name}?")).unwrap_or(";".to_string());
    format!("{near} allowed: {}", allowed.join(", "))
}

/// A value as a message shows it.
pub fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => format!("the text \"{s}\""),
        Value::Array(_) => "a list".to_string(),
        Value::Object(_) => "a map".to_string(),
    }
}

fn found(unexpected: Unexpected<'_>) -> String {
    match unexpected {
        Unexpected::Bool(b) => b.to_string(),
        Unexpected::Unsigned(n) => format!("the number {n}"),
        Unexpected::Signed(n) => format!("the number {n}"),
        Unexpected::Float(x) => format!("the number {x:?}"),
        Unexpected::Str(s) => format!("the text \"{s}\""),
        Unexpected::Unit | Unexpected::Option => "null".to_string(),
        Unexpected::Seq => "a list".to_string(),
        Unexpected::Map => "a map".to_string(),
        other => other.to_string(),
    }
}

/// serde's names for Rust types, in the words of a configuration; other texts stay.
fn wanted(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number from 0 up".to_string(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_string(),
        "f32" | "f64" => "a number".to_string(),
        "a boolean" => "true or false".to_string(),
        "a string" | "a borrowed string" => "a text".to_string(),
        "a sequence" => "a list".to_string(),
        "a map" => "a map of keys".to_string(),
        t => match t.strip_prefix("an array of length ") {
            Some(n) => format!("a list of {n} values"),
            None => text,
        },
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Misfit { key: "value".to_string(), refusal: self.clone() })
    }
}

impl std::error::Error for Refusal {}

impl serde::de::Error for Refusal {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Refusal::Other(message.to_string())
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Refusal::WrongType { found: found(unexpected), wanted: wanted(expected) }
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        // serde says "2 elements in sequence" or "an array of length 2", by which end it noticed.
        let text = wanted(expected);
        let count = text.strip_suffix(" elements in sequence");
        let wanted = count.map_or(text.clone(), |n| format!("a list of {n} values"));
        Refusal::WrongType { found: format!("{length} values"), wanted }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Refusal::UnknownWord { found: variant.to_string(), allowed: expected.to_vec() }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Refusal::UnknownKey { key: field.to_string(), allowed: expected.to_vec() }
    }

    fn missing_field(field: &'static str) -> Self {
        Refusal::MissingKey(field)
    }
}

/// A value that serde can read from.
struct Node<'de>(&'de Value);

impl<'de> IntoDeserializer<'de, Refusal> for Node<'de> {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

type Entry<'de> = (BorrowedStrDeserializer<'de, Refusal>, Node<'de>);

/// A map's entries in their order.
fn entries<'de>(
    map: &'de serde_json::Map<String, Value>,
) -> MapDeserializer<'de, impl Iterator<Item = Entry<'de>>, Refusal> {
    MapDeserializer::new(map.iter().map(|(k, v)| (BorrowedStrDeserializer::new(k), Node(v))))
}

impl<'de> Deserializer<'de> for Node<'de> {
    type Error = Refusal;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Number(n) => match (n.as_u64(), n.as_i64()) {
                (Some(n), _) => visitor.visit_u64(n),
                (None, Some(n)) => visitor.visit_i64(n),
                (None, None) => visitor.visit_f64(n.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(s) => visitor.visit_borrowed_str(s),
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.iter().map(Node));
                let value = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(value)
            }
            Value::Object(map) => {
                let mut entries = entries(map);
                let value = visitor.visit_map(&mut entries)?;
                entries.end()?;
                Ok(value)
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        visitor.visit_newtype_struct(self)
    }

    /// serde would also fill a struct from a list, by position; a configuration names its keys.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        match self.0 {
            Value::Object(_) => self.deserialize_any(visitor),
            other => Err(Refusal::WrongType {
                found: describe(other),
                wanted: "a map of keys".to_string(),
            }),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        match self.0 {
            Value::String(s) => visitor.visit_enum(BorrowedStrDeserializer::new(s)),
            Value::Object(map) if map.len() == 1 => {
                visitor.visit_enum(MapAccessDeserializer::new(entries(map)))
            }
            other => Err(Refusal::WrongType {
                found: describe(other),
                wanted: format!("one of {}", variants.join(", ")),
            }),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

/// The answer of [`KeysOnly`], carried as an error because serde offers no other way out.
#[derive(Debug)]
struct Keys(&'static [&'static str]);

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("keys of a struct")
    }
}

impl std::error::Error for Keys {}

impl serde::de::Error for Keys {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Keys(&[])
    }
}

/// A deserializer that only listens to which keys are asked for.
struct KeysOnly;

impl<'de> Deserializer<'de> for KeysOnly {
    type Error = Keys;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Keys> {
        Err(Keys(&[]))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Keys> {
        Err(Keys(fields))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Colour {
        #[default]
        Red,
        Green,
        Mixed(Vec<f64>),
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        size: Option<usize>,
        rate: f64,
        pair: [f64; 2],
        colour: Colour,
        names: Vec<String>,
        small: u8,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        inner: Inner,
        on: bool,
        #[serde(default)]
        free: Value,
    }

    #[test]
    fn what_fits_is_read() {
        let value = json!({"on": true, "free": {"a": [1, null]}, "inner": {
            "size": 3, "rate": 2, "pair": [0.5, 1], "colour": "green", "names": ["a"]}});
        let read: Outer = read(&value, "s").unwrap();
        let inner = Inner {
            size: Some(3),
            rate: 2.0,
            pair: [0.5, 1.0],
            colour: Colour::Green,
            names: vec!["a".to_string()],
            small: 0,
        };
        assert_eq!(read, Outer { inner, on: true, free: json!({"a": [1, null]}) });
        let inner: Inner =
            super::read(&json!({"size": null, "colour": {"mixed": [1]}}), "").unwrap();
        assert_eq!((inner.size, inner.colour), (None, Colour::Mixed(vec![1.0])));
    }

    #[test]
    fn what_does_not_fit_says_where_and_what_is_allowed() {
        for (inner, wanted) in [
            (
                json!({"rates": 1}),
                "unknown key s.inner.rates; did you mean rate? \
                 allowed: size, rate, pair, colour, names, small",
            ),
            (
                json!({"rate": "fast"}),
                "s.inner.rate: found the text \"fast\", but a number is needed",
            ),
            (json!({"rate": null}), "s.inner.rate: found null, but a number is needed"),
            (
                json!({"size": -1}),
                "s.inner.size: found the number -1, but a whole number from 0 up is needed",
            ),
            (
                json!({"size": 1000.0}),
                "s.inner.size: found the number 1000.0, but a whole number from 0 up is needed",
            ),
            (
                json!({"small": 300}),
                "s.inner.small: found the number 300, but a whole number from 0 up is needed",
            ),
            (
                json!({"pair": [1]}),
                "s.inner.pair: found 1 values, but a list of 2 values is needed",
            ),
            (
                json!({"pair": [1, 2, 3]}),
                "s.inner.pair: found 3 values, but a list of 2 values is needed",
            ),
            (json!({"pair": [1, "x"]}), "s.inner.pair[1]: found the text \"x\", but a number"),
            (
                json!({"colour": "gren"}),
                "s.inner.colour: unknown value \"gren\"; did you mean green? \
                 allowed: red, green, mixed",
            ),
            (
                json!({"colour": 3}),
                "s.inner.colour: found the number 3, but one of red, green, mixed",
            ),
            (json!({"names": "a"}), "s.inner.names: found the text \"a\", but a list is needed"),
            (json!({"names": [1]}), "s.inner.names[0]: found the number 1, but a text is needed"),
            (json!([]), "s.inner: found a list, but a map of keys is needed"),
        ] {
            let value = json!({"on": true, "inner": inner});
            let message = read::<Outer>(&value, "s").unwrap_err().to_string();
            assert!(message.starts_with(wanted), "{value} gave {message}");
        }
        let missing = read::<Outer>(&json!({"on": true}), "s").unwrap_err();
        assert_eq!(missing.to_string(), "missing key s.inner");
        let word = read::<Outer>(&json!({"on": "yes", "inner": {}}), "s").unwrap_err();
        assert_eq!(word.to_string(), "s.on: found the text \"yes\", but true or false is needed");
    }

    #[test]
    fn keys_of_a_struct() {
        assert_eq!(known_keys::<Outer>(), ["inner", "on", "free"]);
        assert_eq!(known_keys::<Vec<f64>>(), [""; 0]);
    }
}
