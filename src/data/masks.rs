//! Which positions of a sequence are masked in its k-th copy: a pure function, so that an embedding
//! cache, an online computation and the training loss agree without talking to each other.

use super::esm_alphabet::MASK;
use crate::rng::{Key, Purpose};

/// The masks of one seed and probability.
#[derive(Clone, Copy, Debug)]
pub struct Masks {
    key: Key,
    probability: f32,
}

/// ESM ids that may be masked: the letters, and `<mask>` itself, which stands at modified residues.
fn is_maskable(esm_id: u8) -> bool {
    (4..29).contains(&esm_id) || esm_id == MASK
}

impl Masks {
    /// Masks drawn from `esm.mask_seed` with this probability a position.
    pub fn new(seed: u64, probability: f64) -> Masks {
        Masks { key: Key::new(seed, Purpose::Mask), probability: probability as f32 }
    }

    /// Whether residue `position` (from 0) of the sequence with this hash is masked in copy `k`.
    /// `esm_id` is what stands there before masking.
    pub fn hides(&self, position: usize, k: u64, sequence_hash: u64, esm_id: u8) -> bool {
        is_maskable(esm_id)
            && self.key.uniform(position as u32, k as u32, sequence_hash) < self.probability
    }

    /// Masks residues in place (no specials among them).
    pub fn apply(&self, esm_ids: &mut [u8], k: u64, sequence_hash: u64) {
        for (position, id) in esm_ids.iter_mut().enumerate() {
            if self.hides(position, k, sequence_hash, *id) {
                *id = MASK;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_right_and_copies_differ() {
        let masks = Masks::new(0, 0.15);
        let sequence = vec![5u8; 100_000];
        let copy = |k| {
            let mut ids = sequence.clone();
            masks.apply(&mut ids, k, 77);
            ids
        };
        let share = copy(0).iter().filter(|&&id| id == MASK).count() as f64 / 1e5;
        assert!((share - 0.15).abs() < 0.005, "{share}");
        assert_ne!(copy(0), copy(1));
        assert_eq!(copy(1), copy(1));
    }

    #[test]
    fn gaps_and_specials_stay() {
        let masks = Masks::new(0, 1.0);
        let mut ids: Vec<u8> = (0..33).collect();
        masks.apply(&mut ids, 0, 1);
        let kept: Vec<u8> = ids.into_iter().filter(|&id| id != MASK).collect();
        assert_eq!(kept, [0, 1, 2, 3, 29, 30, 31]);
    }
}
