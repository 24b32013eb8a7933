//! What is predicted: a normalised number or the index of a class, and the way back.

use super::config::{Classes, Members, Normalization};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// Turns predictions into real units or class names. Kept beside prepared data and in checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Target {
    /// A number; samples hold `(real - mean) / std`.
    Regression {
        /// The column.
        name: String,
        /// Its unit, where it states one.
        unit: Option<String>,
        /// The real value of a normalised 0.
        mean: f64,
        /// Real units of a normalised 1; above 0.
        std: f64,
    },
    /// One of several classes; samples hold its index.
    Classes {
        /// The column.
        name: String,
        /// The classes, in the order of their indices.
        names: Vec<String>,
    },
}

impl Target {
    /// The column.
    pub fn name(&self) -> &str {
        match self {
            Target::Regression { name, .. } | Target::Classes { name, .. } => name,
        }
    }

    /// A normalised number in real units; a class index stays.
    pub fn real(&self, normalised: f64) -> f64 {
        match self {
            Target::Regression { mean, std, .. } => normalised * std + mean,
            Target::Classes { .. } => normalised,
        }
    }

    /// A real number normalised; a class index stays.
    pub fn normalised(&self, real: f64) -> f64 {
        match self {
            Target::Regression { mean, std, .. } => (real - mean) / std,
            Target::Classes { .. } => real,
        }
    }
}

/// The values of a column as classes.
#[derive(Clone, Debug)]
pub struct ClassMap {
    /// The classes, in the order of their indices; filled by [`ClassMap::finish`] for `auto`.
    pub names: Vec<String>,
    by_value: HashMap<String, usize>,
    rest: Option<usize>,
    auto: bool,
    /// How often each value of the column was seen, as written.
    pub seen: BTreeMap<String, u64>,
}

/// More different values than this are no classes.
const MOST: usize = 1000;

impl ClassMap {
    /// From `dataset.classes`.
    pub fn new(classes: &Classes) -> ClassMap {
        let mut map = ClassMap {
            names: Vec::new(),
            by_value: HashMap::new(),
            rest: None,
            auto: *classes == Classes::Auto,
            seen: BTreeMap::new(),
        };
        if let Classes::Named(classes) = classes {
            for (index, (name, members)) in classes.iter().enumerate() {
                map.names.push(name.clone());
                match members {
                    Members::Rest => map.rest = Some(index),
                    Members::Values(values) => {
                        let values = values.iter().map(|v| (v.trim().to_lowercase(), index));
                        map.by_value.extend(values);
                    }
                }
            }
        }
        map
    }

    /// Counts a value; too many different ones are a data error.
    pub fn see(&mut self, value: &str) -> Result<()> {
        let full = self.seen.len() == MOST;
        match self.seen.get_mut(value) {
            Some(count) => *count += 1,
            None if full => {
                return Err(Error::data(format!("it has more than {MOST} different values")).hint(
                    "classes need a column of few words; a regression needs no dataset.classes",
                ));
            }
            None => {
                self.seen.insert(value.to_string(), 1);
            }
        }
        Ok(())
    }

    /// Settles the classes of `auto`, once all values were seen.
    pub fn finish(&mut self) {
        if self.auto {
            self.names = self.seen.keys().cloned().collect();
            let pairs = self.names.iter().enumerate();
            self.by_value = pairs.map(|(index, name)| (name.clone(), index)).collect();
        }
    }

    /// Whether a value has a class.
    pub fn has(&self, value: &str) -> bool {
        self.auto || self.index(value).is_some()
    }

    /// The class of a value.
    pub fn index(&self, value: &str) -> Option<usize> {
        if self.auto {
            return self.by_value.get(value).copied();
        }
        self.by_value.get(&value.to_lowercase()).copied().or(self.rest)
    }

    /// Listed values that no row has.
    pub fn unused(&self) -> Vec<String> {
        let seen: Vec<String> = self.seen.keys().map(|value| value.to_lowercase()).collect();
        let mut unused: Vec<String> =
            self.by_value.keys().filter(|v| !self.auto && !seen.contains(v)).cloned().collect();
        unused.sort();
        unused
    }
}

/// A sum in about 106 bits, so that its value in 53 does not depend on the order of its terms.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    high: f64,
    low: f64,
}

impl Sum {
    fn add(&mut self, x: f64) {
        // Knuth's two-sum: `high + x` and what its rounding lost.
        let sum = self.high + x;
        let of_x = sum - self.high;
        let lost = (self.high - (sum - of_x)) + (x - of_x);
        let low = self.low + lost;
        self.high = sum + low;
        self.low = low - (self.high - sum);
    }

    fn add_square(&mut self, x: f64) {
        let square = x * x;
        self.add(square);
        self.add(x.mul_add(x, -square));
    }
}

/// The training part's numbers, as far as normalisation needs them.
#[derive(Clone, Debug)]
pub struct Moments {
    /// How many.
    pub n: u64,
    sum: Sum,
    squares: Sum,
    /// The least.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Default for Moments {
    fn default() -> Self {
        Moments {
            n: 0,
            sum: Sum::default(),
            squares: Sum::default(),
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
        }
    }
}

impl Moments {
    /// Adds a number.
    pub fn add(&mut self, x: f64) {
        self.n += 1;
        self.sum.add(x);
        self.squares.add_square(x);
        self.min = self.min.min(x);
        self.max = self.max.max(x);
    }

    /// Their mean.
    pub fn mean(&self) -> f64 {
        self.sum.high / self.n as f64
    }

    /// Their standard deviation, dividing by n.
    pub fn std(&self) -> f64 {
        let mean = self.mean();
        // n·mean² taken off before rounding: Σx² − mean·Σx.
        let mut left = self.squares;
        let product = mean * self.sum.high;
        left.add(-product);
        left.add(-mean.mul_add(self.sum.high, -product));
        left.add(-mean * self.sum.low);
        (left.high.max(0.0) / self.n as f64).sqrt()
    }

    /// The (mean, std) of a normalisation; numbers that are all equal cannot be normalised.
    pub fn normalisation(&self, how: Normalization) -> Result<(f64, f64)> {
        let (mean, std) = match how {
            Normalization::Zscore => (self.mean(), self.std()),
            Normalization::Max => (0.0, self.max),
            Normalization::None => (0.0, 1.0),
        };
        if !(mean.is_finite() && std.is_finite()) {
            return Err(Error::data("the numbers are too large to take their mean and spread"));
        }
        // Equal numbers leave rounding alone.
        if std <= 0.0 || (how == Normalization::Zscore && self.max <= self.min) {
            let what = match how {
                Normalization::Max => format!("the training part's largest value is {}", self.max),
                _ => format!("every training row has the value {}", self.min),
            };
            return Err(Error::data(what).hint(
                "there is nothing to learn from equal values; max needs positive ones \
                 (dataset.normalization: none leaves values as they are)",
            ));
        }
        Ok((mean, std))
    }
}

/// The bounds beyond which values are outliers: `times` interquartile ranges beyond the quartiles.
/// Sorts `values`.
pub fn fences(values: &mut [f64], times: f64) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    let quartile = |share: f64| {
        let at = share * (values.len().saturating_sub(1)) as f64;
        let (below, above) = (values[at.floor() as usize], values[at.ceil() as usize]);
        below + (above - below) * at.fract()
    };
    let (first, third) = (quartile(0.25), quartile(0.75));
    [first - times * (third - first), third + times * (third - first)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn there_and_back() {
        let target = Target::Regression { name: "YS".into(), unit: None, mean: 900.0, std: 450.0 };
        assert_eq!(target.normalised(1350.0), 1.0);
        assert_eq!(target.real(-2.0), 0.0);
        let text = serde_json::to_string(&target).unwrap();
        assert_eq!(serde_json::from_str::<Target>(&text).unwrap(), target);
    }

    #[test]
    fn classes_by_value() {
        let list = |v: &[&str]| Members::Values(v.iter().map(|s| s.to_string()).collect());
        let mut map = ClassMap::new(&Classes::Named(vec![
            ("FCC".into(), list(&["FCC", "fcc a1"])),
            ("Other".into(), Members::Rest),
        ]));
        assert_eq!((map.index("fcc"), map.index("BCC+B2")), (Some(0), Some(1)));
        map.see("fcc").unwrap();
        assert_eq!(map.unused(), ["fcc a1"]);
        let mut map = ClassMap::new(&Classes::Auto);
        for value in ["T", "C", "T"] {
            map.see(value).unwrap();
        }
        map.finish();
        assert_eq!(
            (map.names.clone(), map.index("T"), map.seen["T"]),
            (vec!["C".into(), "T".into()], Some(1), 2)
        );
        let mut map = ClassMap::new(&Classes::Auto);
        let error = (0..2000).try_for_each(|i| map.see(&i.to_string())).unwrap_err();
        assert!(error.to_string().contains("more than 1000 different values"), "{error}");
    }

    #[test]
    fn moments_and_fences() {
        let mut moments = Moments::default();
        [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0].into_iter().for_each(|x| moments.add(x));
        assert_eq!((moments.mean(), moments.std(), moments.max), (5.0, 2.0, 9.0));
        assert_eq!(moments.normalisation(Normalization::Max).unwrap(), (0.0, 9.0));
        let mut equal = Moments::default();
        (0..7).for_each(|_| equal.add(0.1));
        assert_eq!(equal.normalisation(Normalization::Zscore).unwrap_err().code(), 3);
        let mut values: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        assert_eq!(fences(&mut values, 1.5), [-50.0, 150.0]);
    }

    proptest! {
        #[test]
        fn the_order_of_rows_changes_no_bit(
            values in prop::collection::vec(-1e6f64..1e6, 2..300), turn in 0usize..300,
        ) {
            let moments = |values: &[f64]| {
                let mut moments = Moments::default();
                values.iter().for_each(|x| moments.add(*x));
                (moments.mean().to_bits(), moments.std().to_bits())
            };
            let mut turned = values.clone();
            turned.rotate_left(turn % values.len());
            prop_assert_eq!(moments(&values), moments(&turned));
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let std = (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
            let found = moments(&values);
            prop_assert!((f64::from_bits(found.0) - mean).abs() < 1e-6);
            prop_assert!((f64::from_bits(found.1) - std).abs() <= 1e-9 * std.max(1.0));
        }
    }
}
