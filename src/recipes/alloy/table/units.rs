//! Units of measurement: found in a header, written alike, and converted where both are known.

/// `(name, what it measures, factor, offset)`: value · factor + offset is in the first of its kind.
const UNITS: &[(&str, &str, f64, f64)] = &[
    ("MPa", "pressure", 1.0, 0.0),
    ("GPa", "pressure", 1000.0, 0.0),
    ("kPa", "pressure", 1e-3, 0.0),
    ("Pa", "pressure", 1e-6, 0.0),
    ("ksi", "pressure", 6.894_757_293_168, 0.0),
    ("psi", "pressure", 6.894_757_293_168e-3, 0.0),
    ("K", "temperature", 1.0, 0.0),
    ("°C", "temperature", 1.0, 273.15),
    ("°F", "temperature", 5.0 / 9.0, 273.15 - 32.0 * 5.0 / 9.0),
    ("µm", "length", 1.0, 0.0),
    ("nm", "length", 1e-3, 0.0),
    ("mm", "length", 1e3, 0.0),
    ("g/cm³", "density", 1.0, 0.0),
    ("kg/m³", "density", 1e-3, 0.0),
];

/// Other ways to write them.
const SPELLINGS: &[(&str, &str)] = &[
    ("c", "°C"),
    ("degc", "°C"),
    ("deg c", "°C"),
    ("°c", "°C"),
    ("celsius", "°C"),
    ("f", "°F"),
    ("degf", "°F"),
    ("fahrenheit", "°F"),
    ("kelvin", "K"),
    ("um", "µm"),
    ("μm", "µm"),
    ("micron", "µm"),
    ("microns", "µm"),
    ("g/cm3", "g/cm³"),
    ("g/cm^3", "g/cm³"),
    ("g/cc", "g/cm³"),
    ("kg/m3", "kg/m³"),
    ("kg/m^3", "kg/m³"),
];

/// A unit in the spelling used throughout; an unknown one stays as it is.
pub fn canonical(unit: &str) -> String {
    let unit = unit.trim();
    let known = UNITS.iter().find(|known| known.0 == unit);
    let alike = || UNITS.iter().find(|known| known.0.eq_ignore_ascii_case(unit));
    let lower = unit.to_lowercase();
    match (known, SPELLINGS.iter().find(|(other, _)| *other == lower)) {
        (Some(known), _) => known.0.to_string(),
        (None, Some((_, name))) => (*name).to_string(),
        (None, None) => alike().map_or(unit, |known| known.0).to_string(),
    }
}

/// From one unit to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conversion {
    factor: f64,
    offset: f64,
}

impl Conversion {
    /// Between two canonical units of the same kind.
    pub fn between(from: &str, to: &str) -> Option<Conversion> {
        let find = |unit: &str| UNITS.iter().find(|known| known.0 == unit);
        let (from, to) = (find(from)?, find(to)?);
        (from.1 == to.1)
            .then(|| Conversion { factor: from.2 / to.2, offset: (from.3 - to.3) / to.2 })
    }

    /// The value in the other unit.
    pub fn apply(self, value: f64) -> f64 {
        value * self.factor + self.offset
    }
}

/// Whether a unit is one of temperature, and the coldest there is in it.
pub fn absolute_zero(unit: &str) -> Option<f64> {
    Conversion::between("K", unit)
        .filter(|_| kind(unit) == Some("temperature"))
        .map(|c| c.apply(0.0))
}

fn kind(unit: &str) -> Option<&'static str> {
    UNITS.iter().find(|known| known.0 == unit).map(|known| known.1)
}

/// A header without the unit in brackets at its end, and that unit.
pub fn split_unit(header: &str) -> (&str, Option<&str>) {
    let header = header.trim();
    for (open, close) in [('(', ')'), ('[', ']')] {
        if let Some((name, unit)) = header.strip_suffix(close).and_then(|h| h.rsplit_once(open)) {
            let (name, unit) = (name.trim(), unit.trim());
            if !name.is_empty() && !unit.is_empty() {
                return (name, Some(unit));
            }
        }
    }
    (header, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions() {
        let convert = |from: &str, to: &str, x: f64| {
            Conversion::between(&canonical(from), &canonical(to)).map(|c| c.apply(x))
        };
        let near = |found: Option<f64>, x: f64| (found.unwrap() - x).abs() < 1e-9;
        assert!(near(convert("GPa", "MPa", 1.5), 1500.0));
        assert!(near(convert("K", "C", 298.15), 25.0));
        assert!(near(convert("degF", "°C", 212.0), 100.0));
        assert!(near(convert("C", "Kelvin", -273.15), 0.0));
        assert!(near(convert("nm", "um", 500.0), 0.5));
        assert!(near(convert("kg/m3", "g/cm^3", 7874.0), 7.874));
        assert_eq!(convert("MPa", "K", 1.0), None);
        assert_eq!(convert("HV", "MPa", 1.0), None);
        assert_eq!(absolute_zero("°C"), Some(-273.15));
        assert_eq!(absolute_zero("MPa"), None);
    }

    #[test]
    fn headers() {
        assert_eq!(split_unit("YS (MPa)"), ("YS", Some("MPa")));
        assert_eq!(split_unit(" YS [MPa] "), ("YS", Some("MPa")));
        assert_eq!(split_unit("BCC/FCC/other"), ("BCC/FCC/other", None));
        assert_eq!(split_unit("(x)"), ("(x)", None));
        assert_eq!(canonical(" mpa "), "MPa");
        assert_eq!(canonical("wppm"), "wppm");
    }
}
