//! YAML text to a JSON value, with the line of every key; the writer is in `yaml_writer`.
//!
//! Plain scalars follow the YAML 1.2 core schema, so `4e-4` is a number (PyYAML reads a string) and
//! `yes` is a string. What a configuration does not need is refused with its line rather than
//! guessed at: duplicate keys, anchors, aliases, tags, several documents, infinite numbers.

use crate::error::{Error, Result};
use serde_json::{Map, Number, Value};
use std::collections::BTreeMap;
use yaml_rust2::parser::{Event, Parser};
use yaml_rust2::scanner::{Marker, ScanError, TScalarStyle};

/// A parsed text: its value, and the line (from 1) of every key and list item by dotted path, such
/// as `training.betas[1]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The value; an empty text is `Null`.
    pub value: Value,
    /// Dotted path to line.
    pub lines: BTreeMap<String, usize>,
}

/// Deeper nesting than any configuration has; keeps recursion bounded.
const MAX_DEPTH: usize = 64;

/// Reads one YAML document. `name` stands in front of the line in errors (exit code 2).
pub fn parse(text: &str, name: &str) -> Result<Document> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder::new(text, name, Some(text.lines().count().max(1)));
    let value = builder.document()?;
    Ok(Document { value, lines: builder.lines })
}

/// Reads a value that stands in no file; errors name `place` alone.
pub fn parse_inline(text: &str, place: &str) -> Result<Value> {
    Builder::new(text, place, None).document()
}

/// The dotted path of `key` inside `path`.
pub fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_string() } else { format!("{path}.{key}") }
}

struct Builder<'a> {
    parser: Parser<std::str::Chars<'a>>,
    name: &'a str,
    /// Lines of the file; `None` where the text is no file.
    length: Option<usize>,
    lines: BTreeMap<String, usize>,
    depth: usize,
}

impl<'a> Builder<'a> {
    fn new(text: &'a str, name: &'a str, length: Option<usize>) -> Self {
        let parser = Parser::new_from_str(text);
        Builder { parser, name, length, lines: BTreeMap::new(), depth: 0 }
    }

    fn refuse(&self, line: usize, what: impl Into<String>) -> Error {
        match self.length {
            // What is missing at the end is noticed behind the last line.
            Some(length) => {
                Error::usage(what).at(format_args!("{}:{}", self.name, line.min(length)))
            }
            None => Error::usage(what).at(self.name),
        }
    }

    fn syntax(&self, error: &ScanError) -> Error {
        let mark = error.marker();
        let what = format!("not valid YAML: {} (column {})", error.info(), mark.col() + 1);
        self.refuse(mark.line(), what).hint(
            "indent with spaces, leave a space after each colon, and quote text that holds `: ` \
             or ` #` or starts with one of * & ! % @ ` [ {",
        )
    }

    fn next(&mut self) -> Result<(Event, Marker)> {
        self.parser.next_token().map_err(|e| self.syntax(&e))
    }

    fn document(&mut self) -> Result<Value> {
        let mut value = None;
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(value.unwrap_or(Value::Null)),
                (Event::DocumentStart, mark) if value.is_some() => {
                    return Err(self
                        .refuse(mark.line(), "a second YAML document begins here")
                        .hint("keep one document in the file: remove the `---` line"));
                }
                (Event::StreamStart | Event::DocumentStart | Event::DocumentEnd, _) => {}
                (Event::Nothing, _) => {}
                (event, mark) => value = Some(self.node(event, mark.line(), "")?),
            }
        }
    }

    fn node(&mut self, event: Event, line: usize, path: &str) -> Result<Value> {
        let (anchor, tag) = match &event {
            Event::Scalar(_, _, anchor, tag) => (*anchor, tag),
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) => (*anchor, tag),
            Event::Alias(_) => (1, &None),
            other => {
                return Err(Error::bug(format!("YAML event {other:?} where a value begins")));
            }
        };
        if anchor != 0 {
            return Err(self
                .refuse(line, "YAML anchors (&name) and aliases (*name) are not read")
                .hint("write the value out, or quote the text that starts with & or *"));
        }
        if let Some(tag) = tag {
            let tag = format!("{}{}", tag.handle, tag.suffix);
            return Err(self
                .refuse(line, format!("YAML tags are not read, found {tag}"))
                .hint("write the plain value, or quote the text that starts with !"));
        }
        match event {
            Event::Scalar(text, TScalarStyle::Plain, ..) => {
                plain_scalar(&text).map_err(|what| self.refuse(line, what))
            }
            Event::Scalar(text, ..) => Ok(Value::String(text)),
            Event::SequenceStart(..) => self.nested(line, |b| b.sequence(path)),
            _ => self.nested(line, |b| b.mapping(path)),
        }
    }

    fn nested(
        &mut self,
        line: usize,
        read: impl FnOnce(&mut Self) -> Result<Value>,
    ) -> Result<Value> {
        if self.depth == MAX_DEPTH {
            return Err(self.refuse(line, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.depth += 1;
        let value = read(self);
        self.depth -= 1;
        value
    }

    fn sequence(&mut self, path: &str) -> Result<Value> {
        let mut items = Vec::new();
        loop {
            let (event, mark) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(Value::Array(items));
            }
            let path = format!("{path}[{}]", items.len());
            self.lines.insert(path.clone(), mark.line());
            items.push(self.node(event, mark.line(), &path)?);
        }
    }

    fn mapping(&mut self, path: &str) -> Result<Value> {
        let mut map = Map::new();
        let mut seen = BTreeMap::new();
        loop {
            let (event, mark) = self.next()?;
            let line = mark.line();
            let key = match event {
                Event::MappingEnd => return Ok(Value::Object(map)),
                Event::Scalar(key, style, 0, None)
                    if !key.is_empty() || style != TScalarStyle::Plain =>
                {
                    key
                }
                _ => return Err(self.refuse(line, "a key must be a plain word or quoted text")),
            };
            let path = join(path, &key);
            if let Some(first) = seen.insert(key.clone(), line) {
                let what = format!("key {path} is given twice, first on line {first}");
                return Err(self.refuse(line, what).hint("keep one of the two"));
            }
            self.lines.insert(path.clone(), line);
            let (event, mark) = self.next()?;
            let value = self.node(event, mark.line(), &path)?;
            map.insert(key, value);
        }
    }
}

/// Reads an unquoted scalar by the core schema; the error says why a number cannot be held.
fn plain_scalar(text: &str) -> std::result::Result<Value, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        _ => {}
    }
    let bare = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(bare, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Err(format!("{text} is not a finite number"));
    }
    let digits = |t: &str, radix| !t.is_empty() && t.chars().all(|c| c.is_digit(radix));
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(body) = text.strip_prefix(prefix).filter(|b| digits(b, radix)) {
            let number = u64::from_str_radix(body, radix);
            return number.map(Value::from).map_err(|_| format!("{text} is too large a number"));
        }
    }
    if digits(bare, 10) {
        let number = text.parse::<i64>().map(Value::from);
        let number = number.or_else(|_| text.parse::<u64>().map(Value::from));
        return number.map_err(|_| format!("{text} is too large a number"));
    }
    if looks_like_float(bare) {
        let number = text.parse().ok().and_then(Number::from_f64);
        return number.map(Value::Number).ok_or(format!("{text} is too large a number"));
    }
    Ok(Value::String(text.to_string()))
}

/// `[0-9]+(\.[0-9]*)?` or `\.[0-9]+`, then `([eE][-+]?[0-9]+)?`; the sign is already off.
fn looks_like_float(bare: &str) -> bool {
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    let (mantissa, exponent) = match bare.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (bare, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent_fits = exponent.is_none_or(|e| {
        let e = e.strip_prefix(['+', '-']).unwrap_or(e);
        !e.is_empty() && digits(e)
    });
    digits(whole) && digits(fraction) && whole.len() + fraction.len() > 0 && exponent_fits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn value(text: &str) -> Value {
        parse(text, "t.yaml").unwrap_or_else(|e| panic!("{text}: {e}")).value
    }

    fn error(text: &str) -> String {
        let error = parse(text, "t.yaml").expect_err(text);
        assert_eq!(error.code(), 2);
        error.to_string()
    }

    #[test]
    fn plain_scalars_follow_the_core_schema() {
        for (text, expected) in [
            ("", json!(null)),
            ("~", json!(null)),
            ("null", json!(null)),
            ("true", json!(true)),
            ("False", json!(false)),
            ("yes", json!("yes")),
            ("none", json!("none")),
            ("12", json!(12)),
            ("-3", json!(-3)),
            ("+3", json!(3)),
            ("0123", json!(123)),
            ("0x1F", json!(31)),
            ("0o17", json!(15)),
            ("18446744073709551615", json!(u64::MAX)),
            ("4e-4", json!(4e-4)),
            ("2.5E+3", json!(2500.0)),
            (".5", json!(0.5)),
            ("5.", json!(5.0)),
            ("-.5", json!(-0.5)),
            ("1_000", json!("1_000")),
            ("1.2.3", json!("1.2.3")),
            (".", json!(".")),
            ("e5", json!("e5")),
            ("1e", json!("1e")),
            ("0x", json!("0x")),
            ("'12'", json!("12")),
            ("\"true\"", json!("true")),
            ("2026-11-20", json!("2026-11-20")),
            ("\u{feff}a: 1\r\nb: x\r\n", json!({"a": 1, "b": "x"})),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
    }

    #[test]
    fn maps_lists_and_lines() {
        let text = "# first\na:\n  b: 1\n  c: [x, {d: 2}]\ne:\n- |\n  two\n  lines\n- f\n";
        let document = parse(text, "t.yaml").unwrap();
        assert_eq!(
            document.value,
            json!({"a": {"b": 1, "c": ["x", {"d": 2}]}, "e": ["two\nlines\n", "f"]})
        );
        for (path, line) in [
            ("a", 2),
            ("a.b", 3),
            ("a.c", 4),
            ("a.c[1]", 4),
            ("a.c[1].d", 4),
            ("e", 5),
            ("e[1]", 9),
        ] {
            assert_eq!(document.lines.get(path), Some(&line), "{path}");
        }
    }

    #[test]
    fn refusals_name_the_line() {
        for (text, wanted) in [
            ("a: 1\nb:\n  c: 1\n  c: 2\n", "t.yaml:4: key b.c is given twice, first on line 3"),
            ("a: 1\nb: c: d\n", "t.yaml:2: not valid YAML"),
            ("a: [1, 2\nb: 3\n", "t.yaml:2: not valid YAML"),
            ("a: 1\nb: [0.9", "t.yaml:2: not valid YAML"),
            ("a: \"open\n", "t.yaml:1: not valid YAML"),
            ("a: 1\nb: &x 2\n", "t.yaml:2: YAML anchors"),
            ("a: 1\nb: !!str 2\n", "t.yaml:2: YAML tags are not read"),
            ("a: 1\n---\nb: 2\n", "t.yaml:2: a second YAML document"),
            ("a: 1\nb: .inf\n", "t.yaml:2: .inf is not a finite number"),
            ("b: -.Inf\n", "t.yaml:1: -.Inf is not a finite number"),
            ("b: 1e999\n", "t.yaml:1: 1e999 is too large a number"),
            ("b: 18446744073709551616\n", "t.yaml:1: 18446744073709551616 is too large"),
            ("? [1]\n: 2\n", "t.yaml:1: a key must be"),
            ("a: *x\n", "t.yaml:1: not valid YAML"),
        ] {
            let message = error(text);
            assert!(message.contains(wanted), "{text:?} gave {message}");
        }
        let deep = "[".repeat(200);
        assert!(error(&deep).contains("nested deeper than 64 levels"));
    }

    proptest! {
        /// Whatever the text, there is an answer and no panic.
        #[test]
        fn any_text_is_read_or_refused(text in "[-\\[\\]{}:,#&*!|>'\"%@`~?a1.\\\\ \n\t\u{e9}]{0,40}") {
            if let Err(error) = parse(&text, "t.yaml") {
                prop_assert_eq!(error.code(), 2);
            }
        }
    }
}
