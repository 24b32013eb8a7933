//! Learns the merges of byte-pair encoding from counted words (Sennrich et al. 2016), the same for
//! the same words whatever their order, the process and the machine.
//!
//! The crate's own trainer numbers WordPiece's `##` letters in the order of a hash table, so that
//! two processes give two vocabularies. Here the commonest pair is merged first, of equally common
//! ones that with the smallest ids, as there; counts are kept pair by pair as merges change them.

use crate::error::Result;
use crate::progress;
use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap};

/// Two ids that stand side by side.
pub(super) type Pair = (u32, u32);

/// A different word of the corpus.
pub(super) struct Word {
    pub(super) symbols: Vec<u32>,
    pub(super) count: i64,
}

/// What was learned.
pub(super) struct Learned {
    /// The tokens in the order of their ids, the given ones first.
    pub(super) tokens: Vec<String>,
    pub(super) merges: Vec<Pair>,
}

/// Where a pair stands, and how often in the whole corpus.
#[derive(Default)]
struct Found {
    count: i64,
    words: Vec<usize>,
}

/// Merges until there are `size` tokens or no pair is left that stands `at_least` times. A merged
/// token's second part loses `prefix` (`##`). The order of `words` does not matter.
pub(super) fn learn(
    mut words: Vec<Word>,
    mut tokens: Vec<String>,
    size: usize,
    at_least: i64,
    prefix: &str,
) -> Result<Learned> {
    let mut ids: HashMap<String, u32> = tokens.iter().cloned().zip(0..).collect();
    let mut pairs = count(&words)?;
    let mut queue: BinaryHeap<(i64, Reverse<Pair>)> =
        pairs.iter().map(|(pair, found)| (found.count, Reverse(*pair))).collect();
    let mut merges = Vec::new();
    let mut grown: Vec<Pair> = Vec::new();
    while tokens.len() < size {
        let Some((count, Reverse(pair))) = queue.pop() else { break };
        let Entry::Occupied(entry) = pairs.entry(pair) else { continue };
        if entry.get().count != count {
            // Merges have made it rarer since it was queued; where commoner, it was queued again.
            if entry.get().count > 0 {
                queue.push((entry.get().count, Reverse(pair)));
            }
            continue;
        }
        if count < at_least {
            break;
        }
        progress::tick()?;
        let found = entry.remove();
        let second = &tokens[pair.1 as usize];
        let text = tokens[pair.0 as usize].clone() + second.strip_prefix(prefix).unwrap_or(second);
        // Other parts may have given the same text before.
        let new = *ids.entry(text).or_insert_with_key(|text| {
            tokens.push(text.clone());
            tokens.len() as u32 - 1
        });
        merges.push(pair);
        for at in found.words {
            let Word { symbols, count } = &mut words[at];
            merge(symbols, pair, new, |near, change| {
                // Of the pair itself none is left, however its parts overlapped.
                if near == pair {
                    return;
                }
                let found = pairs.entry(near).or_default();
                found.count += change * *count;
                if change > 0 {
                    found.words.push(at);
                    grown.push(near);
                }
            });
        }
        grown.sort_unstable();
        grown.dedup();
        queue.extend(grown.drain(..).map(|pair| (pairs[&pair].count, Reverse(pair))));
    }
    Ok(Learned { tokens, merges })
}

fn count(words: &[Word]) -> Result<HashMap<Pair, Found>> {
    let mut pairs: HashMap<Pair, Found> = HashMap::new();
    for (at, word) in words.iter().enumerate() {
        progress::tick()?;
        for pair in word.symbols.windows(2) {
            let found = pairs.entry((pair[0], pair[1])).or_default();
            found.count += word.count;
            if found.words.last() != Some(&at) {
                found.words.push(at);
            }
        }
    }
    Ok(pairs)
}

/// Replaces the pair by the new symbol everywhere in a word, from the left, and tells which pairs
/// that takes away (-1) and brings (1).
fn merge(symbols: &mut Vec<u32>, pair: Pair, new: u32, mut change: impl FnMut(Pair, i64)) {
    let (mut from, mut to) = (0usize, 0usize);
    while from < symbols.len() {
        if symbols[from..].starts_with(&[pair.0, pair.1]) {
            if let Some(before) = to.checked_sub(1).map(|i| symbols[i]) {
                change((before, pair.0), -1);
                change((before, new), 1);
            }
            if let Some(after) = symbols.get(from + 2) {
                change((pair.1, *after), -1);
                change((new, *after), 1);
            }
            symbols[to] = new;
            from += 2;
        } else {
            symbols[to] = symbols[from];
            from += 1;
        }
        to += 1;
    }
    symbols.truncate(to);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(given: &[(&str, i64)]) -> (Vec<Word>, Vec<String>) {
        let mut tokens: Vec<String> =
            given.iter().flat_map(|(word, _)| word.chars()).map(String::from).collect();
        tokens.sort();
        tokens.dedup();
        let id = |c: char| tokens.iter().position(|t| *t == c.to_string()).unwrap() as u32;
        let word = |(word, count): &(&str, i64)| Word {
            symbols: word.chars().map(id).collect(),
            count: *count,
        };
        (given.iter().map(word).collect(), tokens)
    }

    fn learned(given: &[(&str, i64)], more: usize) -> Vec<String> {
        let (words, tokens) = words(given);
        let (alphabet, size) = (tokens.len(), tokens.len() + more);
        learn(words, tokens, size, 1, "##").unwrap().tokens.split_off(alphabet)
    }

    #[test]
    fn the_commonest_pair_comes_first_and_equals_by_id() {
        // The example of the paper that brought byte pairs to words.
        let corpus = [("low", 5), ("lower", 2), ("newest", 6), ("widest", 3)];
        assert_eq!(learned(&corpus, 4), ["es", "est", "lo", "low"]);
        assert_eq!(learned(&[("ab", 2), ("cd", 2)], 9), ["ab", "cd"]);
    }

    #[test]
    fn repeated_letters() {
        assert_eq!(learned(&[("aaaa", 3)], 9), ["aa", "aaaa"]);
        let mut symbols = vec![0, 0, 0];
        let mut told = Vec::new();
        merge(&mut symbols, (0, 0), 1, |pair, change| told.push((pair, change)));
        assert_eq!((symbols, told), (vec![1, 0], vec![((0, 0), -1), ((1, 0), 1)]));
    }

    /// Learns by counting everything anew for each merge.
    fn slowly(mut words: Vec<Word>, mut tokens: Vec<String>, size: usize) -> Vec<String> {
        while tokens.len() < size {
            let mut counts: HashMap<Pair, i64> = HashMap::new();
            for word in &words {
                for pair in word.symbols.windows(2) {
                    *counts.entry((pair[0], pair[1])).or_default() += word.count;
                }
            }
            let Some((&pair, _)) = counts.iter().max_by_key(|(p, n)| (**n, Reverse(**p))) else {
                break;
            };
            let text = format!("{}{}", tokens[pair.0 as usize], tokens[pair.1 as usize]);
            let new = tokens.iter().position(|t| *t == text).unwrap_or(tokens.len());
            if new == tokens.len() {
                tokens.push(text);
            }
            for word in &mut words {
                merge(&mut word.symbols, pair, new as u32, |_, _| {});
            }
        }
        tokens
    }

    proptest! {
        #[test]
        fn keeping_counts_is_counting_anew(
            given in prop::collection::vec(("[a-c]{1,12}", 1i64..20), 1..12), more in 1usize..20,
        ) {
            let given: Vec<(&str, i64)> = given.iter().map(|(w, n)| (w.as_str(), *n)).collect();
            let (one, tokens) = words(&given);
            let (two, _) = words(&given);
            let size = tokens.len() + more;
            let quick = learn(one, tokens.clone(), size, 1, "##").unwrap().tokens;
            prop_assert_eq!(quick, slowly(two, tokens, size));
        }

        #[test]
        fn the_order_of_words_does_not_matter(
            given in prop::collection::vec(("[a-c]{1,12}", 1i64..5), 1..15),
        ) {
            let forth: Vec<(&str, i64)> = given.iter().map(|(w, n)| (w.as_str(), *n)).collect();
            let back: Vec<(&str, i64)> = forth.iter().rev().copied().collect();
            prop_assert_eq!(learned(&forth, 15), learned(&back, 15));
        }
    }
}
