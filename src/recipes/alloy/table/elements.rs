//! Facts about the chemical elements, for texts and for weight percent.
//!
//! The table `elements.csv` beside this file holds round values of general knowledge; what is not
//! known, or means nothing for that element, is blank. Densities and crystal structures are those
//! at room temperature (blank where it is no solid), Young's moduli those of polycrystals.

use crate::error::{Error, Result, nearest};
use std::collections::HashMap;
use std::sync::OnceLock;

/// What is known of an element.
#[derive(Clone, Debug, PartialEq)]
pub struct Element {
    /// Its symbol, `Al`.
    pub symbol: &'static str,
    /// Its English name, `aluminium`.
    pub name: &'static str,
    /// Its atomic number.
    pub number: u8,
    /// Its atomic mass in unified atomic mass units; the longest-lived isotope's where none is stable.
    pub mass: f64,
    /// Its density in g/cm³, as written.
    pub density: &'static str,
    /// Its melting point in K, as written.
    pub melting_point: &'static str,
    /// Its crystal structure.
    pub structure: &'static str,
    /// Its Young's modulus in GPa, as written.
    pub young_modulus: &'static str,
}

/// All of them, in the order of atomic numbers.
pub fn all() -> &'static [Element] {
    static ALL: OnceLock<Vec<Element>> = OnceLock::new();
    ALL.get_or_init(|| include_str!("elements.csv").lines().skip(1).map(element).collect())
}

fn element(line: &'static str) -> Element {
    let mut fields = line.split(',');
    let mut next = || fields.next().unwrap_or_default();
    Element {
        symbol: next(),
        name: next(),
        // A wrong number would not pass the test below.
        number: next().parse().unwrap_or(0),
        mass: next().parse().unwrap_or(f64::NAN),
        density: next(),
        melting_point: next(),
        structure: next(),
        young_modulus: next(),
    }
}

/// The atomic number of a symbol, written exactly so.
pub fn number(symbol: &str) -> Option<u8> {
    static BY_SYMBOL: OnceLock<HashMap<&'static str, u8>> = OnceLock::new();
    let by_symbol = BY_SYMBOL.get_or_init(|| all().iter().map(|e| (e.symbol, e.number)).collect());
    by_symbol.get(symbol).copied()
}

/// The element of an atomic number from 1 to 118.
pub fn get(number: u8) -> &'static Element {
    &all()[usize::from(number) - 1]
}

/// The error for a symbol that no element has.
pub fn unknown(symbol: &str) -> Error {
    let error = Error::data(format!("{symbol:?} is no chemical element"));
    match nearest(symbol, all().iter().map(|e| e.symbol)) {
        Some(near) => error.hint(format!("did you mean {near:?}?")),
        None => error.hint("symbols begin with a capital letter: Al0.25 Co1 Fe1 Ni1"),
    }
}

/// A sentence of what is known of an element, `with_structure` or without its crystal structure.
pub fn sentence(element: &Element, with_structure: bool) -> String {
    let mut facts = vec![format!("atomic number {}", element.number)];
    facts.push(format!("atomic mass {} u", element.mass));
    let known = |fact: &str| !fact.is_empty();
    if known(element.density) {
        facts.push(format!("density {} g/cm³", element.density));
    }
    if known(element.melting_point) {
        facts.push(format!("melting point {} K", element.melting_point));
    }
    if known(element.structure) && with_structure {
        facts.push(format!("{} crystal structure", element.structure));
    }
    if known(element.young_modulus) {
        facts.push(format!("Young's modulus {} GPa", element.young_modulus));
    }
    format!("{} ({}): {}.", capitalised(element.name), element.symbol, facts.join(", "))
}

fn capitalised(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// Atomic fractions from weight amounts, in place.
pub fn weight_to_atomic(amounts: &mut [(u8, f64)]) -> Result<()> {
    for (number, amount) in amounts.iter_mut() {
        *amount /= get(*number).mass;
    }
    if amounts.iter().any(|(_, amount)| !amount.is_finite()) {
        return Err(Error::data("an amount is too large"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        assert_eq!(all().len(), 118);
        for (i, e) in all().iter().enumerate() {
            assert_eq!(usize::from(e.number), i + 1, "{}", e.symbol);
            assert!(e.mass.is_finite() && e.mass > 0.99 * f64::from(e.number), "{}", e.symbol);
            assert_eq!(number(e.symbol), Some(e.number));
            let letters: Vec<char> = e.symbol.chars().collect();
            assert!(letters[0].is_ascii_uppercase() && letters.len() <= 2);
            assert!(letters[1..].iter().all(char::is_ascii_lowercase));
            for fact in [e.density, e.melting_point, e.young_modulus] {
                assert!(fact.is_empty() || fact.parse::<f64>().unwrap() > 0.0, "{}", e.symbol);
            }
        }
    }

    #[test]
    fn sentences_leave_out_what_is_unknown() {
        let iron = get(number("Fe").unwrap());
        assert_eq!(
            sentence(iron, true),
            "Iron (Fe): atomic number 26, atomic mass 55.845 u, density 7.87 g/cm³, melting point \
             1811 K, BCC crystal structure, Young's modulus 211 GPa."
        );
        assert!(!sentence(iron, false).contains("BCC"));
        assert_eq!(
            sentence(get(118), true),
            "Oganesson (Og): atomic number 118, atomic mass 294 u."
        );
        let words = ["FCC", "BCC", "HCP", "cubic", "structure"];
        for e in all() {
            let text = sentence(e, false);
            assert!(words.iter().all(|word| !text.contains(word)), "{text}");
        }
    }

    #[test]
    fn symbols_are_told_when_wrong() {
        let text = unknown("Xx").to_string();
        assert!(text.contains("\"Xx\" is no chemical element"), "{text}");
        assert!(number("fe").is_none() && number("").is_none());
    }
}
