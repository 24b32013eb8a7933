//! Which samples train, validate and test.
//!
//! Samples are put in an order drawn from (seed, id) alone, so shuffling the rows of a file changes
//! nothing; as upstream, the first of that order train, the next validate and the last test. A
//! `split_mapping.json` (`{id: "train" | "val" | "test"}`) is written beside every run and can be
//! given instead of sizes.

use crate::config::Size;
use crate::error::{Error, Result, nearest};
use crate::files;
use crate::rng::{Key, Purpose};
use serde_json::{Map, Value};
use std::io::Write;
use std::path::Path;

/// A part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// For training.
    Train,
    /// For validation during training.
    Val,
    /// For the one test at the end.
    Test,
}

impl Part {
    /// All parts, in the order in which samples are dealt.
    pub const ALL: [Part; 3] = [Part::Train, Part::Val, Part::Test];

    /// The name in a mapping.
    pub fn name(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Val => "val",
            Part::Test => "test",
        }
    }
}

/// Every sample's part. Samples are indices into the list of ids, in the drawn order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Samples for training.
    pub train: Vec<u32>,
    /// Samples for validation.
    pub val: Vec<u32>,
    /// Samples for the test.
    pub test: Vec<u32>,
    /// Ids of a given mapping that are not among the samples.
    pub extra: usize,
}

impl Split {
    /// Draws a split of unique `ids`. Sizes that leave no sample to train on are a usage error.
    pub fn seeded<S: AsRef<str>>(ids: &[S], val: Size, test: Size, seed: u64) -> Result<Split> {
        let n = ids.len();
        let (val_n, test_n) = (val.of(n), test.of(n));
        let Some(train_n) = val_n
            .checked_add(test_n)
            .and_then(|held_out| (n as u64).checked_sub(held_out))
            .filter(|train| *train > 0)
        else {
            let what = format!(
                "val_size {val} and test_size {test} hold out {val_n} and {test_n} samples, and \
                 there are {n}: none is left to train on"
            );
            let hint = "lower dataset.val_size or dataset.test_size (below 1 they are shares)";
            return Err(Error::usage(what).at("dataset.val_size").hint(hint));
        };
        let mut train = drawn_order(ids, seed);
        let mut val = train.split_off(train_n as usize);
        let test = val.split_off(val_n as usize);
        Ok(Split { train, val, test, extra: 0 })
    }

    /// Takes the parts of unique `ids` from a `split_mapping.json`. An id that is not in it and an
    /// unknown part are data errors; ids that are only in it are counted.
    pub fn from_mapping<S: AsRef<str>>(path: &Path, ids: &[S], seed: u64) -> Result<Split> {
        let mapping: Map<String, Value> =
            serde_json::from_str(&files::read_text(path)?).map_err(|e| {
                Error::data(format!("not a mapping of ids to parts: {e}"))
                    .at(format!("{}:{}", path.display(), e.line()))
                    .hint("it is written as {\"id\": \"train\", ...}")
            })?;
        for (id, part) in &mapping {
            known_part(part).map_err(|e| e.at(format!("{}: {id:?}", path.display())))?;
        }
        let missing: Vec<&str> =
            ids.iter().map(AsRef::as_ref).filter(|id| !mapping.contains_key(*id)).collect();
        if let Some(first) = missing.first() {
            let (missing, n) = (missing.len(), ids.len());
            let what = format!("{missing} of {n} samples are not in it, the first is {first:?}");
            return Err(Error::data(what)
                .at(path.display())
                .hint("give the mapping that belongs to this data set, or none"));
        }
        let mut split = Split { train: vec![], val: vec![], test: vec![], extra: 0 };
        for sample in drawn_order(ids, seed) {
            match known_part(&mapping[ids[sample as usize].as_ref()])? {
                Part::Train => split.train.push(sample),
                Part::Val => split.val.push(sample),
                Part::Test => split.test.push(sample),
            }
        }
        split.extra = mapping.len() - ids.len();
        Ok(split)
    }

    /// The samples of a part.
    pub fn part(&self, part: Part) -> &[u32] {
        match part {
            Part::Train => &self.train,
            Part::Val => &self.val,
            Part::Test => &self.test,
        }
    }

    /// Writes the mapping, a line for each sample in the order of `ids`.
    pub fn write_mapping<S: AsRef<str>>(&self, path: &Path, ids: &[S]) -> Result<()> {
        let mut parts = vec![Part::Train; ids.len()];
        for part in Part::ALL {
            for sample in self.part(part) {
                parts[*sample as usize] = part;
            }
        }
        files::write_atomic(path, |out| {
            write!(out, "{{")?;
            for (i, (id, part)) in ids.iter().zip(&parts).enumerate() {
                let comma = if i > 0 { "," } else { "" };
                write!(out, "{comma}\n  {}: \"{}\"", Value::from(id.as_ref()), part.name())?;
            }
            writeln!(out, "\n}}")
        })
    }
}

fn known_part(name: &Value) -> Result<Part> {
    let given = name.as_str().unwrap_or_default();
    Part::ALL.into_iter().find(|part| part.name() == given).ok_or_else(|| {
        let error = Error::data(format!("{name} is not one of \"train\", \"val\", \"test\""));
        match nearest(given, Part::ALL.map(Part::name)) {
            Some(near) => error.hint(format!("did you mean {near:?}?")),
            None => error,
        }
    })
}

/// The samples sorted by a random number of (seed, id); should two be equal, by id.
fn drawn_order<S: AsRef<str>>(ids: &[S], seed: u64) -> Vec<u32> {
    let key = Key::new(seed, Purpose::Split);
    let mut order: Vec<([u32; 4], u32)> = ids
        .iter()
        .enumerate()
        .map(|(i, id)| (key.named(id.as_ref()).block([0; 4]), i as u32))
        .collect();
    let id = |i: u32| ids[i as usize].as_ref();
    order.sort_unstable_by(|a, b| (a.0, id(a.1), a.1).cmp(&(b.0, id(b.1), b.1)));
    order.into_iter().map(|(_, i)| i).collect()
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::Scratch;
    use super::*;
    use proptest::prelude::*;

    fn ids(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("P{i}")).collect()
    }

    #[test]
    fn sizes_that_leave_nothing_are_refused() {
        let samples = Size::Samples;
        for (val, test) in [(6, 5), (5, 5), (11, 0), (u64::MAX, u64::MAX)] {
            let error = Split::seeded(&ids(10), samples(val), samples(test), 1).unwrap_err();
            assert_eq!(error.code(), 2);
            let text = error.to_string();
            assert!(text.starts_with("dataset.val_size: "), "{text}");
            assert!(text.contains("there are 10") && text.contains(&val.to_string()), "{text}");
        }
        let split = Split::seeded(&ids(10), samples(5), samples(4), 1).unwrap();
        assert_eq!((split.train.len(), split.val.len(), split.test.len()), (1, 5, 4));
    }

    #[test]
    fn the_order_is_a_fair_draw() {
        let mut seen = [0u32; 4];
        for seed in 0..4000 {
            seen[drawn_order(&ids(4), seed)[0] as usize] += 1;
        }
        assert!(seen.iter().all(|n| (900..1100).contains(n)), "{seen:?}");
    }

    #[test]
    fn mappings() {
        let dir = Scratch::new("mapping");
        let ids = ["a", "b \"c\"", "d"];
        let wrong = [
            ("{\"a\": \"train\"}", "2 of 3 samples are not in it, the first is \"b \\\"c\\\"\""),
            ("{\"a\": \"training\"}", "\"a\": \"training\" is not one of"),
            ("{\"a\": \"tests\"}", "did you mean \"test\"?"),
            ("{\"a\": 1}", "1 is not one of"),
            ("{\n\"a\": \"train\"", "m.json:2: not a mapping"),
            ("[]", "not a mapping"),
        ];
        for (text, expected) in wrong {
            let error = Split::from_mapping(&dir.file("m.json", text), &ids, 0).unwrap_err();
            assert_eq!(error.code(), 3);
            assert!(error.to_string().contains(expected), "{text} gave {error}");
        }
        let text = r#"{"z": "val", "a": "test", "d": "val", "b \"c\"": "train"}"#;
        let split = Split::from_mapping(&dir.file("m.json", text), &ids, 0).unwrap();
        assert_eq!(split, Split { train: vec![1], val: vec![2], test: vec![0], extra: 1 });
        split.write_mapping(&dir.0.join("m.json"), &ids).unwrap();
        let written = files::read_text(&dir.0.join("m.json")).unwrap();
        let expected =
            "{\n  \"a\": \"test\",\n  \"b \\\"c\\\"\": \"train\",\n  \"d\": \"val\"\n}\n";
        assert_eq!(written, expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_sample_has_one_part_whatever_the_order_of_rows(
            n in 1usize..200, val in 0.0..0.4, test in 0u64..50, seed: u64, turn in 0usize..200,
        ) {
            let ids = ids(n);
            let (val, test) = (Size::Fraction(val), Size::Samples(test));
            prop_assume!(val.of(n) + test.of(n) < n as u64);
            let split = Split::seeded(&ids, val, test, seed).unwrap();
            prop_assert_eq!(split.val.len() as u64, val.of(n));
            prop_assert_eq!(split.test.len() as u64, test.of(n));
            let mut all: Vec<u32> =
                Part::ALL.iter().flat_map(|p| split.part(*p)).copied().collect();
            all.sort();
            prop_assert_eq!(all, (0..n as u32).collect::<Vec<_>>());

            let mut turned = ids.clone();
            turned.rotate_left(turn % n);
            let other = Split::seeded(&turned, val, test, seed).unwrap();
            for part in Part::ALL {
                let names = |ids: &[String], s: &Split| -> Vec<String> {
                    s.part(part).iter().map(|i| ids[*i as usize].clone()).collect()
                };
                prop_assert_eq!(names(&ids, &split), names(&turned, &other));
            }

            let dir = Scratch::new("split");
            split.write_mapping(&dir.0.join("m.json"), &ids).unwrap();
            prop_assert_eq!(Split::from_mapping(&dir.0.join("m.json"), &ids, seed).unwrap(), split);
        }
    }
}
