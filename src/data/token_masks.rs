//! Masked language modelling of tokens: which positions are predicted, and what stands there
//! meanwhile (BERT, Devlin et al. 2019: of the chosen 80 % the mask, 10 % a random token, 10 % the
//! token itself). Specials are neither chosen nor drawn.

use crate::rng::{Key, Purpose};

/// How tokens are hidden. A pure function of (seed, sample, copy, position).
#[derive(Clone, Debug)]
pub struct TokenMasks {
    key: Key,
    /// Probability that a token is predicted.
    mask_prob: f64,
    /// Of the predicted, the share that the mask stands for.
    replace_mask: f64,
    /// Of the predicted, the share that a random token stands for.
    replace_random: f64,
    mask_id: u32,
    /// Ids that may be chosen and drawn, rising.
    ordinary: Vec<u32>,
}

/// The predicted positions of a sample and what stands there.
pub type Targets = Vec<(usize, u32)>;

fn share(bits: u32) -> f64 {
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}

impl TokenMasks {
    /// Masks drawn from `seed`; `ordinary` are the ids that are no specials, rising.
    pub fn new(
        seed: u64,
        (mask_prob, replace_mask, replace_random): (f64, f64, f64),
        mask_id: u32,
        ordinary: Vec<u32>,
    ) -> TokenMasks {
        let key = Key::new(seed, Purpose::TokenMask);
        TokenMasks { key, mask_prob, replace_mask, replace_random, mask_id, ordinary }
    }

    /// Hides tokens of a sample in place and gives what must be predicted. Copies of one sample
    /// are hidden differently: training takes the epoch, evaluation always 0.
    pub fn apply(&self, ids: &mut [u32], sample: u32, copy: u32) -> Targets {
        let mut targets = Targets::new();
        for (position, id) in ids.iter_mut().enumerate() {
            let [chosen, act, high, low] = self.key.block([position as u32, copy, sample, 0]);
            if share(chosen) >= self.mask_prob || self.ordinary.binary_search(id).is_err() {
                continue;
            }
            targets.push((position, *id));
            let act = share(act);
            if act < self.replace_mask {
                *id = self.mask_id;
            } else if act < self.replace_mask + self.replace_random {
                let drawn = u64::from(high) << 32 | u64::from(low);
                *id = self.ordinary[(drawn % self.ordinary.len() as u64) as usize];
            }
        }
        targets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masks() -> TokenMasks {
        TokenMasks::new(7, (0.15, 0.8, 0.1), 4, (5..1000).collect())
    }

    #[test]
    fn the_shares_are_right_and_specials_stay() {
        let before: Vec<u32> = (0..100_000u32).map(|i| i % 1000).collect();
        let mut ids = before.clone();
        let targets = masks().apply(&mut ids, 3, 0);
        let ordinary = before.iter().filter(|&&id| id >= 5).count() as f64;
        let chosen = targets.len() as f64;
        assert!((chosen / ordinary - 0.15).abs() < 0.005, "{chosen} of {ordinary}");
        let masked = targets.iter().filter(|(at, _)| ids[*at] == 4).count() as f64 / chosen;
        let kept = targets.iter().filter(|(at, id)| ids[*at] == *id).count() as f64 / chosen;
        assert!((masked - 0.8).abs() < 0.01 && (kept - 0.1).abs() < 0.01, "{masked} {kept}");
        for (at, (was, is)) in before.iter().zip(&ids).enumerate() {
            let target = targets.iter().any(|(own, id)| (*own, *id) == (at, *was));
            assert!(was == is || (target && *was >= 5 && *is >= 4), "{at}: {was} {is}");
            if at > 5000 {
                break;
            }
        }
    }

    #[test]
    fn copies_and_samples_differ_and_nothing_else_matters() {
        let run = |sample, copy| masks().apply(&mut vec![9; 500], sample, copy);
        assert_eq!(run(1, 2), run(1, 2));
        assert_ne!(run(1, 2), run(1, 3));
        assert_ne!(run(1, 2), run(2, 2));
    }
}
