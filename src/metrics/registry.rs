//! The metrics a recipe knows: name, which way is better, and how it merges over ranks.
//!
//! Names here are bare (`loss`, `ptm_acc`). A configuration names a metric of the validation part
//! (`val_loss`); the bare name and transformers' `eval_loss` mean the same.

use crate::error::{Error, Result, nearest};
use serde::{Deserialize, Serialize};

/// The configuration key that names a metric.
const KEY: &str = "training.metric_for_best_model";

/// What may stand in front of a bare name; the first is how we print it.
const PREFIXES: [&str; 3] = ["val_", "avg_val_", "eval_"];

/// Which way a metric improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// A loss or an error.
    Lower,
    /// An accuracy, a correlation, a score.
    Higher,
}

impl Direction {
    /// Whether `a` is strictly better than `b`. Nothing is better than, or worse than, NaN.
    pub fn better(self, a: f64, b: f64) -> bool {
        match self {
            Direction::Lower => a < b,
            Direction::Higher => a > b,
        }
    }
}

/// How a metric is put together from what the ranks saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Sum over count, folded per micro-batch in index order ([`super::additive`]).
    Additive,
    /// From the whole table of (sample index, prediction, target), sorted by index on rank 0.
    Table,
}

/// One metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricSpec {
    /// The bare name, as it stands in records after `train_`, `val_` or `test_`.
    pub name: String,
    /// Which way is better.
    pub direction: Direction,
    /// How it merges over ranks.
    pub merge: Merge,
    /// One line for people.
    pub what: String,
}

/// All metrics of one recipe, in the order they are printed.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    specs: Vec<MetricSpec>,
}

impl Registry {
    /// An empty registry, for a recipe to fill.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a metric. Two of one name are an error, because names may come from the user's own
    /// task or column names (exit code 2).
    pub fn add(
        &mut self,
        name: impl Into<String>,
        direction: Direction,
        merge: Merge,
        what: impl Into<String>,
    ) -> Result<()> {
        let name = name.into();
        if self.specs.iter().any(|spec| spec.name == name) {
            return Err(Error::usage(format!("two metrics are called `{name}`"))
                .hint("rename the task or column that the second one comes from"));
        }
        self.specs.push(MetricSpec { name, direction, merge, what: what.into() });
        Ok(())
    }

    /// Every metric, in the order it was added.
    pub fn specs(&self) -> &[MetricSpec] {
        &self.specs
    }

    /// The names of the metrics that merge in this way, in order.
    pub fn names(&self, merge: Merge) -> Vec<String> {
        let of_kind = self.specs.iter().filter(|spec| spec.merge == merge);
        of_kind.map(|spec| spec.name.clone()).collect()
    }

    /// The metric that `training.metric_for_best_model` names: `val_loss`, `eval_loss`,
    /// `avg_val_loss` and `loss` are one, and `val_R2` is `val_r2` unless two metrics differ in
    /// nothing but case. An unknown name is exit code 2 and lists the known ones.
    pub fn lookup(&self, given: &str) -> Result<&MetricSpec> {
        let stripped = PREFIXES.iter().filter_map(|prefix| {
            let head = given.get(..prefix.len())?;
            head.eq_ignore_ascii_case(prefix).then(|| &given[prefix.len()..])
        });
        let names: Vec<&str> = std::iter::once(given).chain(stripped).collect();
        let exact = names.iter().find_map(|name| self.specs.iter().find(|s| s.name == **name));
        if let Some(spec) = exact {
            return Ok(spec);
        }
        for name in names {
            let alike = self.specs.iter().filter(|spec| spec.name.eq_ignore_ascii_case(name));
            match alike.collect::<Vec<_>>()[..] {
                [] => {}
                [spec] => return Ok(spec),
                [first, second, ..] => {
                    let what = format!("`{given}` may be `{}` or `{}`", first.name, second.name);
                    return Err(Error::usage(what).at(KEY).hint("write it in its own case"));
                }
            }
        }
        Err(self.unknown(given))
    }

    fn unknown(&self, given: &str) -> Error {
        let full: Vec<String> =
            self.specs.iter().map(|spec| format!("{}{}", PREFIXES[0], spec.name)).collect();
        let bare = self.specs.iter().map(|spec| spec.name.as_str());
        let near = nearest(given, full.iter().map(String::as_str)).map(str::to_string);
        let near = near.or_else(|| nearest(given, bare).map(|n| format!("{}{n}", PREFIXES[0])));
        let known = format!("known here: {}", full.join(", "));
        Error::usage(format!("no metric is called `{given}`")).at(KEY).hint(match near {
            Some(name) => format!("did you mean `{name}`? {known}"),
            None => known,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> Registry {
        let mut registry = Registry::new();
        registry.add("loss", Direction::Lower, Merge::Additive, "cross entropy").unwrap();
        registry.add("ptm_acc", Direction::Higher, Merge::Additive, "PTM accuracy").unwrap();
        registry.add("auc", Direction::Higher, Merge::Table, "area under the curve").unwrap();
        registry
    }

    #[test]
    fn every_spelling_of_a_name_is_found() {
        let registry = registry();
        for given in ["loss", "val_loss", "eval_loss", "avg_val_loss"] {
            assert_eq!(registry.lookup(given).unwrap().name, "loss");
        }
        assert_eq!(registry.lookup("val_auc").unwrap().direction, Direction::Higher);
        assert_eq!(registry.names(Merge::Additive), ["loss", "ptm_acc"]);
    }

    #[test]
    fn case_matters_only_between_names_that_differ_in_nothing_else() {
        let mut registry = registry();
        registry.add("r2", Direction::Higher, Merge::Table, "").unwrap();
        for given in ["val_R2", "R2", "VAL_R2", "Eval_r2", "Avg_Val_R2"] {
            assert_eq!(registry.lookup(given).unwrap().name, "r2", "{given}");
        }
        registry.add("R2", Direction::Higher, Merge::Table, "").unwrap();
        assert_eq!(registry.lookup("val_R2").unwrap().name, "R2");
        assert_eq!(registry.lookup("VAL_r2").unwrap().name, "r2");
        registry.add("Task_r2", Direction::Higher, Merge::Table, "").unwrap();
        registry.add("task_R2", Direction::Higher, Merge::Table, "").unwrap();
        let error = registry.lookup("val_task_r2").unwrap_err();
        assert_eq!(error.code(), 2);
        assert!(error.to_string().contains("may be `Task_r2` or `task_R2`"), "{error}");
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones_and_the_nearest() {
        for given in ["val_ptm_ac", "ptm_ac"] {
            let error = registry().lookup(given).unwrap_err();
            assert_eq!(error.code(), 2);
            let text = error.to_string();
            assert!(text.starts_with("training.metric_for_best_model: "), "{text}");
            assert!(text.contains("did you mean `val_ptm_acc`?"), "{text}");
            assert!(text.contains("val_loss, val_ptm_acc, val_auc"), "{text}");
        }
        let text = registry().lookup("something").unwrap_err().to_string();
        assert!(!text.contains("did you mean"), "{text}");
    }

    #[test]
    fn a_name_is_taken_once() {
        let error = registry().add("auc", Direction::Higher, Merge::Table, "").unwrap_err();
        assert_eq!(error.code(), 2);
    }

    #[test]
    fn nan_is_never_better() {
        for direction in [Direction::Lower, Direction::Higher] {
            assert!(!direction.better(f64::NAN, 1.0) && !direction.better(1.0, f64::NAN));
            assert!(!direction.better(1.0, 1.0));
        }
        assert!(Direction::Lower.better(1.0, 2.0) && Direction::Higher.better(2.0, 1.0));
    }
}
