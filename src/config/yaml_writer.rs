//! Writes a value as YAML that PyYAML (YAML 1.1) and our own reader read back as the same value.
//!
//! The two disagree about plain scalars: `4e-4` is a string to PyYAML, `yes` a boolean, `12:30` a
//! number in base sixty. So floats always carry a dot and a signed exponent, and a string is quoted
//! unless it is a word that nobody could take for anything else.

use serde_json::{Map, Value};
use std::fmt::Write;

/// The value as a YAML text that ends in a newline: maps in block style, lists in flow style.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block_map(&mut out, map, 0),
        other => {
            flow(&mut out, other);
            out.push('\n');
        }
    }
    out
}

fn block_map(out: &mut String, map: &Map<String, Value>, indent: usize) {
    for (key, value) in map {
        out.extend(std::iter::repeat_n(' ', indent));
        text(out, key);
        out.push(':');
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                block_map(out, inner, indent + 2);
            }
            other => {
                out.push(' ');
                flow(out, other);
                out.push('\n');
            }
        }
    }
}

fn flow(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => match n.as_f64().filter(|_| n.is_f64()) {
            Some(x) => out.push_str(&float(x)),
            None => out.push_str(&n.to_string()),
        },
        Value::String(s) => text(out, s),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                flow(out, item);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                text(out, key);
                out.push_str(": ");
                flow(out, item);
            }
            out.push('}');
        }
    }
}

/// The shortest decimal that reads back equal, with a dot, and a sign on any exponent.
fn float(x: f64) -> String {
    let shortest = format!("{x:?}");
    let Some((mantissa, exponent)) = shortest.split_once('e') else {
        return shortest;
    };
    let dot = if mantissa.contains('.') { "" } else { ".0" };
    let sign = if exponent.starts_with('-') { "" } else { "+" };
    format!("{mantissa}{dot}e{sign}{exponent}")
}

/// A string, plain where every reader sees a string, else in double quotes.
fn text(out: &mut String, s: &str) {
    if is_plain_word(s) {
        out.push_str(s);
        return;
    }
    out.push('"');
    for c in s.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if needs_escape(c) => {
                // Writing into a String cannot fail.
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Characters that a YAML stream may not hold as they are, or that end a line in some reader.
fn needs_escape(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// A word or path that starts with a letter or `/` and is no constant of YAML 1.1 or 1.2. Numbers
/// and dates start with a digit, sign or dot.
fn is_plain_word(s: &str) -> bool {
    const CONSTANTS: [&str; 10] =
        ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "none"];
    s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && s.chars().all(|c| c.is_ascii_alphanumeric() || "_./-".contains(c))
        && !CONSTANTS.contains(&s.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::super::yaml::parse;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn the_text_itself() {
        let value = json!({
            "recipe": "ptm_mamba",
            "training": {"lr": 4e-4, "eps": 1e-8, "big": 1.5e300, "one": 1.0, "steps": 8,
                         "betas": [0.9, 0.98], "none": null},
            "empty": {}, "list": [], "nested": [{"a b": "yes"}],
            "quoted": ["no", "12", "1e5", "", "a: b", "a #b", "null", "~", "2026-11-20", "é\n\u{7}"],
        });
        let expected = "\
recipe: ptm_mamba
training:
  lr: 0.0004
  eps: 1.0e-8
  big: 1.5e+300
  one: 1.0
  steps: 8
  betas: [0.9, 0.98]
  \"none\": null
empty: {}
list: []
nested: [{\"a b\": \"yes\"}]
quoted: [\"no\", \"12\", \"1e5\", \"\", \"a: b\", \"a #b\", \"null\", \"~\", \"2026-11-20\", \
\"é\\n\\u0007\"]
";
        assert_eq!(write(&value), expected);
        assert_eq!(parse(expected, "t").unwrap().value, value);
    }

    /// Every float has the form that YAML 1.1 calls a float.
    fn is_yaml_1_1_float(text: &str) -> bool {
        let text = text.strip_prefix('-').unwrap_or(text);
        let Some((whole, rest)) = text.split_once('.') else {
            return false;
        };
        let (fraction, exponent) = match rest.split_once('e') {
            Some((fraction, exponent)) => (fraction, exponent),
            None => (rest, "+0"),
        };
        let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        digits(whole) && digits(fraction) && {
            exponent.starts_with(['+', '-']) && digits(&exponent[1..])
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_filter("finite", |x| x.is_finite()).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[-~:#yesno0-9.eE+ \\[\\]{},'\"&*!|>%@`?\n\t]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..4)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_equal(value in any_value()) {
            let text = write(&value);
            let read = parse(&text, "t").map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
            prop_assert_eq!(read.value, value);
        }

        #[test]
        fn floats_are_floats_in_yaml_1_1(x in any::<f64>().prop_filter("finite", |x| x.is_finite())) {
            prop_assert!(is_yaml_1_1_float(&float(x)), "{}", float(x));
            prop_assert_eq!(float(x).parse::<f64>().map(f64::to_bits), Ok(x.to_bits()));
        }
    }
}
