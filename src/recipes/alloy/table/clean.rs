//! One cell of a table: missing, a number, or words; and the rules by which cells are changed.

use super::columns::Column;
use super::units::{self, Conversion};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// What a cell holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell<'a> {
    /// Nothing.
    Missing,
    /// A finite number in the column's unit, and how it is written.
    Number(f64, Cow<'a, str>),
    /// Anything else, without white space around it.
    Text(&'a str),
}

impl Cell<'_> {
    /// As it is written into a cleaned table; a missing one is empty.
    pub fn text(&self) -> &str {
        match self {
            Cell::Missing => "",
            Cell::Number(_, text) => text,
            Cell::Text(text) => text,
        }
    }

    /// The number, if it is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            Cell::Number(number, _) => Some(*number),
            _ => None,
        }
    }
}

/// A rule by which a cell was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The column's own unit stood behind the number: `500 MPa`.
    UnitDropped,
    /// Another unit of the same kind stood there, or the column is mapped to another: converted.
    UnitConverted,
    /// A spread stood behind the number, `500 ± 20`: dropped.
    SpreadDropped,
    /// A decimal comma, in a table whose fields are parted by semicolons.
    DecimalComma,
    /// Below what is physically possible: treated as missing.
    Impossible,
    /// Not finite: treated as missing.
    Infinite,
}

impl Change {
    /// The rule in words.
    pub fn words(self) -> &'static str {
        match self {
            Change::UnitDropped => "a unit behind the number is dropped",
            Change::UnitConverted => "a number in another unit is converted",
            Change::SpreadDropped => "a spread behind the number (±) is dropped",
            Change::DecimalComma => "a decimal comma is read as a point",
            Change::Impossible => "a physically impossible number counts as missing",
            Change::Infinite => "an infinite number counts as missing",
        }
    }
}

/// Cleans cells.
#[derive(Clone, Debug)]
pub struct Cleaner {
    missing: Vec<String>,
    decimal_comma: bool,
}

impl Cleaner {
    /// `missing` are further words for a missing value; the delimiter says whether numbers may have
    /// decimal commas.
    pub fn new(missing: &[String], delimiter: u8) -> Cleaner {
        Cleaner { missing: missing.to_vec(), decimal_comma: delimiter == b';' }
    }

    /// Whether a cell, without white space around it, holds nothing. `NaN` always is nothing.
    pub fn is_missing(&self, text: &str) -> bool {
        let word = |word: &String| word.eq_ignore_ascii_case(text);
        text.is_empty() || text.eq_ignore_ascii_case("nan") || self.missing.iter().any(word)
    }

    /// The cell of a column, and the rule that changed it.
    pub fn clean<'a>(&self, column: &Column, text: &'a str) -> (Cell<'a>, Option<Change>) {
        let text = text.trim();
        let first = text.as_bytes().first().copied().unwrap_or(b' ');
        // Most cells are empty, or begin as numbers do: only the others are compared with words.
        let may_be_number = first.is_ascii_digit() || matches!(first, b'+' | b'-' | b'.' | 0xe2);
        if (!first.is_ascii_digit()
            || self.missing.iter().any(|w| w.starts_with(|c: char| c.is_ascii_digit())))
            && self.is_missing(text)
        {
            return (Cell::Missing, None);
        }
        if !may_be_number {
            return match is_infinity(text) {
                true => (Cell::Missing, Some(Change::Infinite)),
                false => (Cell::Text(text), None),
            };
        }
        let Some((number, written, change)) = self.number(column, text) else {
            return match is_infinity(text) {
                true => (Cell::Missing, Some(Change::Infinite)),
                false => (Cell::Text(text), None),
            };
        };
        if !number.is_finite() {
            return (Cell::Missing, Some(Change::Infinite));
        }
        if column.least.is_some_and(|least| number < least) {
            return (Cell::Missing, Some(Change::Impossible));
        }
        (Cell::Number(number, written), change)
    }

    /// (value, as written, rule) of a number with what may stand behind it.
    fn number<'a>(
        &self,
        column: &Column,
        text: &'a str,
    ) -> Option<(f64, Cow<'a, str>, Option<Change>)> {
        let (mut number, mut behind) = leading_number(text)?;
        let mut written = Cow::Borrowed(text[..text.len() - behind.len()].trim_end());
        let mut change = None;
        if self.decimal_comma && behind.starts_with(',') && written.bytes().all(|b| b != b'.') {
            let pointed = text.replacen(',', ".", 1);
            let (value, rest) = leading_number(&pointed)?;
            behind = &text[text.len() - rest.len()..];
            number = value;
            written = Cow::Owned(pointed[..pointed.len() - rest.len()].to_string());
            change = Some(Change::DecimalComma);
        }
        let behind = behind.trim();
        let mut conversion = column.conversion;
        if !behind.is_empty() {
            if let Some(spread) = behind.strip_prefix(['±']).or(behind.strip_prefix("+/-")) {
                leading_number(spread.trim()).filter(|(_, rest)| rest.is_empty())?;
                change = Some(Change::SpreadDropped);
            } else {
                let (own, found) = (column.unit.as_deref()?, units::canonical(behind));
                if found == own {
                    conversion = None;
                    change = Some(Change::UnitDropped);
                } else {
                    conversion = Some(Conversion::between(&found, own)?);
                }
            }
        }
        if let Some(conversion) = conversion {
            let value = conversion.apply(number);
            return Some((value, Cow::Owned(shortest(value)), Some(Change::UnitConverted)));
        }
        let written = match written {
            Cow::Borrowed(text) => tidy(text),
            Cow::Owned(text) => Cow::Owned(tidy(&text).into_owned()),
        };
        Some((number, written, change))
    }
}

/// `inf`, `-Infinity` and their like.
pub fn is_infinity(text: &str) -> bool {
    let word = text.trim_start_matches(['+', '-', '−']);
    ["inf", "infinity", "∞"].iter().any(|known| word.eq_ignore_ascii_case(known))
}

/// The number at the start of a text, and what follows it.
fn leading_number(text: &str) -> Option<(f64, &str)> {
    let (minus, unsigned) = match text.strip_prefix('−') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let bytes = unsigned.as_bytes();
    let digits = |from: usize| bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let mut end = usize::from(!minus && matches!(bytes.first(), Some(b'+' | b'-')));
    let whole = digits(end);
    end += whole;
    let mut fraction = 0;
    if bytes.get(end) == Some(&b'.') {
        fraction = digits(end + 1);
        end += 1 + fraction;
    }
    if whole + fraction == 0 {
        return None;
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let power = bytes.get(end + 1 + sign..).map_or(0, |_| digits(end + 1 + sign));
        if power > 0 {
            end += 1 + sign + power;
        }
    }
    let number: f64 = unsigned[..end].parse().ok()?;
    Some((if minus { -number } else { number }, &unsigned[end..]))
}

/// `25.0` to `25`, `+3.10` to `3.1`; a number with an exponent stays.
fn tidy(text: &str) -> Cow<'_, str> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(rest) = text.strip_prefix('−') {
        return Cow::Owned(format!("-{}", tidy(rest)));
    }
    if !text.contains('.') || text.contains(['e', 'E']) {
        return Cow::Borrowed(text);
    }
    let short = text.trim_end_matches('0').trim_end_matches('.');
    match short {
        "" | "-" | "-0" => Cow::Borrowed("0"),
        _ => Cow::Borrowed(short),
    }
}

/// A computed number to nine significant digits.
fn shortest(value: f64) -> String {
    let rounded: f64 = format!("{value:.8e}").parse().unwrap_or(value);
    format!("{rounded}")
}

#[cfg(test)]
mod tests {
    use super::super::columns::Columns;
    use super::*;
    use csv::StringRecord;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn column(header: &str) -> Column {
        let headers = StringRecord::from(vec![header]);
        Columns::unify("t", &headers, &BTreeMap::new(), false).unwrap().list.remove(0)
    }

    fn cleaned(header: &str, text: &str, delimiter: u8) -> (String, Option<Change>) {
        let words = ["n/a".to_string(), "-".to_string(), "999".to_string()];
        let cleaner = Cleaner::new(&words, delimiter);
        let column = column(header);
        let (cell, change) = cleaner.clean(&column, text);
        (format!("{}{}", if cell.number().is_some() { "#" } else { "" }, cell.text()), change)
    }

    #[test]
    fn rules() {
        use Change::*;
        for (text, expected, change) in [
            ("", "", None),
            ("  ", "", None),
            ("NaN", "", None),
            ("N/A", "", None),
            ("-", "", None),
            ("999", "", None),
            ("25.0", "#25", None),
            (" 25.50 ", "#25.5", None),
            ("+3", "#3", None),
            ("1e3", "#1e3", None),
            (".5", "#.5", None),
            ("500 MPa", "#500", Some(UnitDropped)),
            ("500MPa", "#500", Some(UnitDropped)),
            ("1.2 GPa", "#1200", Some(UnitConverted)),
            ("500 ± 20", "#500", Some(SpreadDropped)),
            ("500+/-20.5", "#500", Some(SpreadDropped)),
            ("-3", "", Some(Impossible)),
            ("−3", "", Some(Impossible)),
            ("inf", "", Some(Infinite)),
            ("-Infinity", "", Some(Infinite)),
            ("1e999", "", Some(Infinite)),
            (">500", ">500", None),
            ("500-600", "500-600", None),
            ("12,5", "12,5", None),
            ("5 furlongs", "5 furlongs", None),
            ("5 K", "5 K", None),
            ("abc", "abc", None),
            ("1e", "1e", None),
            ("0x10", "0x10", None),
        ] {
            let found = cleaned("YS (MPa)", text, b',');
            assert_eq!(found, (expected.to_string(), change), "{text:?}");
        }
        assert_eq!(cleaned("YS (MPa)", "12,5", b';'), ("#12.5".into(), Some(DecimalComma)));
        assert_eq!(cleaned("x", "−7.50", b','), ("#-7.5".into(), None));
        assert_eq!(cleaned("x", "-0.0", b','), ("#0".into(), None));
        assert_eq!(cleaned("T (°C)", "-274", b','), ("".into(), Some(Impossible)));
        assert_eq!(cleaned("T (°C)", "298.15 K", b','), ("#25".into(), Some(UnitConverted)));
    }

    #[test]
    fn a_mapped_column_is_converted() {
        let mapped = BTreeMap::from([("s [GPa]".to_string(), "YS (MPa)".to_string())]);
        let headers = StringRecord::from(vec!["s [GPa]"]);
        let column = Columns::unify("t", &headers, &mapped, true).unwrap().list.remove(0);
        let cleaner = Cleaner::new(&[], b',');
        for (text, expected) in [("0.5", 500.0), ("0.5 GPa", 500.0), ("500 MPa", 500.0)] {
            assert_eq!(cleaner.clean(&column, text).0.number(), Some(expected), "{text}");
        }
    }

    proptest! {
        #[test]
        fn numbers_are_what_rust_reads(value in proptest::num::f64::NORMAL, text in "[-+0-9.eE ]{0,12}") {
            let cleaner = Cleaner::new(&[], b',');
            let column = column("x");
            for text in [format!("{value:?}"), format!("{value}"), text] {
                let (cell, _) = cleaner.clean(&column, &text);
                let own = text.trim();
                match own.parse::<f64>() {
                    Ok(number) if number.is_finite() => {
                        prop_assert_eq!(cell.number(), Some(number), "{}", own);
                        // What is written back is the same number.
                        prop_assert_eq!(cell.text().parse::<f64>().unwrap(), number);
                    }
                    _ => prop_assert_eq!(cell.number(), None, "{}", own),
                }
            }
        }
    }
}
