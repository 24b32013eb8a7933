//! Which rows train, validate and test: by composition, so that none stands in two parts, or each
//! row for itself. Nothing depends on the order of rows.

use crate::config::Size;
use crate::data::split::Part;
use crate::error::{Error, Result};
use crate::rng::{Key, Purpose};
use serde::Serialize;
use std::collections::HashMap;

/// What the usable rows of one target are, as far as the split is concerned. A few bytes a row.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Composition key to group.
    known: HashMap<u64, u32>,
    /// The composition key of each group.
    keys: Vec<u64>,
    /// The group of each row.
    group_of: Vec<u32>,
    /// A random number of each row, drawn from (seed, id).
    drawn: Vec<u64>,
}

/// How compositions of held-out rows stand to the training part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Leak {
    /// Held-out compositions that training rows also have.
    pub compositions: u64,
    /// Held-out rows of these.
    pub rows: u64,
    /// All held-out rows.
    pub of_rows: u64,
}

impl Rows {
    /// Adds a row with the key of its composition and its id's random number.
    pub fn add(&mut self, composition: u64, drawn: u64) {
        let keys = &mut self.keys;
        let group = *self.known.entry(composition).or_insert_with(|| {
            keys.push(composition);
            keys.len() as u32 - 1
        });
        self.group_of.push(group);
        self.drawn.push(drawn);
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.group_of.len()
    }

    /// How many compositions there are.
    pub fn groups(&self) -> usize {
        self.keys.len()
    }

    /// Deals compositions in an order drawn from (seed, composition): each goes to the validation
    /// part where that brings it nearer to its size, else likewise to the test part, else to the
    /// training part. One part a row.
    pub fn grouped(&self, val: Size, test: Size, seed: u64) -> Vec<Part> {
        let mut sizes = vec![0u64; self.groups()];
        self.group_of.iter().for_each(|group| sizes[*group as usize] += 1);
        let key = Key::new(seed, Purpose::Split);
        let mut order: Vec<(u64, u32)> = (0..self.groups() as u32)
            .map(|group| (number(key, self.keys[group as usize]), group))
            .collect();
        order.sort_unstable_by_key(|(drawn, group)| (*drawn, self.keys[*group as usize]));
        let mut room = [val.of(self.len()), test.of(self.len())];
        let mut part_of = vec![Part::Train; self.groups()];
        for (_, group) in order {
            let size = sizes[group as usize];
            for (room, part) in room.iter_mut().zip([Part::Val, Part::Test]) {
                if size < 2 * *room {
                    *room = room.saturating_sub(size);
                    part_of[group as usize] = part;
                    break;
                }
            }
        }
        self.group_of.iter().map(|group| part_of[*group as usize]).collect()
    }

    /// Deals rows in the order of their random numbers: the first validate, the next test.
    pub fn random(&self, val: Size, test: Size) -> Vec<Part> {
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        order.sort_unstable_by_key(|row| (self.drawn[*row as usize], *row));
        let mut parts = vec![Part::Train; self.len()];
        let mut rows = order.into_iter();
        for (size, part) in [(val, Part::Val), (test, Part::Test)] {
            let n = usize::try_from(size.of(self.len())).unwrap_or(usize::MAX);
            rows.by_ref().take(n).for_each(|row| parts[row as usize] = part);
        }
        parts
    }

    /// How many compositions of held-out rows the training part also has.
    pub fn leak(&self, parts: &[Part]) -> Leak {
        let mut trained = vec![false; self.groups()];
        for (group, _) in self.group_of.iter().zip(parts).filter(|(_, part)| **part == Part::Train)
        {
            trained[*group as usize] = true;
        }
        let mut leak = Leak::default();
        let mut counted = vec![false; self.groups()];
        for (group, _) in self.group_of.iter().zip(parts).filter(|(_, part)| **part != Part::Train)
        {
            let group = *group as usize;
            leak.of_rows += 1;
            leak.rows += u64::from(trained[group]);
            leak.compositions += u64::from(trained[group] && !counted[group]);
            counted[group] = true;
        }
        leak
    }

    /// Compositions and rows of each part.
    pub fn counts(&self, parts: &[Part]) -> [(u64, u64); 3] {
        Part::ALL.map(|part| {
            let mut seen = vec![false; self.groups()];
            let mut count = (0, 0);
            for (group, _) in self.group_of.iter().zip(parts).filter(|(_, own)| **own == part) {
                count.0 += u64::from(!seen[*group as usize]);
                count.1 += 1;
                seen[*group as usize] = true;
            }
            count
        })
    }
}

/// A random number for a composition or a row's number.
fn number(key: Key, of: u64) -> u64 {
    let block = key.block([of as u32, (of >> 32) as u32, 0, 0]);
    u64::from(block[0]) | u64::from(block[1]) << 32
}

/// The random number of a row, by its id or its number.
pub fn drawn(seed: u64, id: Option<&str>, row: u64) -> u64 {
    let key = Key::new(seed, Purpose::Split);
    match id {
        Some(id) => number(key.named(id), 0),
        None => number(key, row),
    }
}

/// Refuses a split of which a part that should have rows has none.
pub fn not_empty(counts: &[(u64, u64); 3], val: Size, test: Size, grouped: bool) -> Result<()> {
    let rows: u64 = counts.iter().map(|(_, rows)| rows).sum();
    let groups: u64 = counts.iter().map(|(groups, _)| groups).sum();
    let kind = if grouped { format!(" of {groups} compositions") } else { String::new() };
    let wrong = |what: String, key: &str| {
        let hint = match grouped {
            true => "change dataset.val_size or dataset.test_size, or set dataset.split: random",
            false => "change dataset.val_size or dataset.test_size (below 1 they are shares)",
        };
        Err(Error::usage(what).at(key).hint(hint))
    };
    for (i, size, key) in [(1, val, "dataset.val_size"), (2, test, "dataset.test_size")] {
        let wanted = size.of(rows as usize);
        if wanted > 0 && counts[i].1 == 0 {
            let part = Part::ALL[i].name();
            let what = format!("the {part} part is empty: {size} of {rows} rows{kind}");
            return wrong(what, key);
        }
    }
    if counts[0].1 == 0 {
        let what = format!(
            "no row is left to train on: val_size {val} and test_size {test} of {rows} rows{kind}"
        );
        return wrong(what, "dataset.val_size");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows(groups: &[u64], seed: u64) -> Rows {
        let mut rows = Rows::default();
        for (i, group) in groups.iter().enumerate() {
            rows.add(*group, drawn(seed, None, i as u64 + 1));
        }
        rows
    }

    #[test]
    fn random_leaks_and_grouped_does_not() {
        let groups: Vec<u64> = (0..1000).map(|i| i % 300).collect();
        let rows = rows(&groups, 1);
        let random = rows.random(Size::Fraction(0.15), Size::Samples(20));
        let count = |parts: &[Part], part| parts.iter().filter(|p| **p == part).count();
        assert_eq!((count(&random, Part::Val), count(&random, Part::Test)), (150, 20));
        let leak = rows.leak(&random);
        assert!(leak.rows > 150 && leak.of_rows == 170 && leak.compositions > 100, "{leak:?}");
        let grouped = rows.grouped(Size::Fraction(0.15), Size::Samples(20), 1);
        assert_eq!(rows.leak(&grouped).rows, 0);
        assert!((140..=160).contains(&count(&grouped, Part::Val)));
        assert!((15..=25).contains(&count(&grouped, Part::Test)));
        assert_ne!(grouped, rows.grouped(Size::Fraction(0.15), Size::Samples(20), 2));
    }

    #[test]
    fn empty_parts_are_refused() {
        let one = rows(&[7, 7, 7, 7], 1);
        let (val, test) = (Size::Fraction(0.25), Size::Samples(0));
        let counts = one.counts(&one.grouped(val, test, 1));
        let error = not_empty(&counts, val, test, true).unwrap_err();
        assert_eq!(error.code(), 2);
        assert!(
            error.to_string().contains("the val part is empty: 0.25 of 4 rows of 1 comp"),
            "{error}"
        );
        let counts = one.counts(&one.random(val, test));
        assert!(not_empty(&counts, val, test, false).is_ok());
        let counts = one.counts(&one.random(Size::Samples(9), test));
        let error = not_empty(&counts, Size::Samples(9), test, false).unwrap_err();
        assert!(error.to_string().contains("no row is left to train on"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_group_has_one_part_whatever_the_order(
            groups in prop::collection::vec(0u64..40, 1..200), seed: u64, turn in 0usize..200, val in 0.05f64..0.4,
        ) {
            let size = Size::Fraction(val);
            let own = rows(&groups, seed);
            let parts = own.grouped(size, Size::Samples(0), seed);
            prop_assert_eq!(own.leak(&parts).rows, 0);
            let mut turned = groups.clone();
            turned.rotate_left(turn % groups.len());
            let other = rows(&turned, seed).grouped(size, Size::Samples(0), seed);
            for (group, part) in turned.iter().zip(&other) {
                let at = groups.iter().position(|g| g == group).unwrap();
                prop_assert_eq!(part, &parts[at]);
            }
            // No nearer than half the largest group, and no further.
            let most = groups.iter().map(|g| groups.iter().filter(|o| o == &g).count()).max().unwrap();
            let held = parts.iter().filter(|p| **p == Part::Val).count() as i64;
            prop_assert!((held - size.of(groups.len()) as i64).unsigned_abs() as usize <= most);
        }
    }
}
