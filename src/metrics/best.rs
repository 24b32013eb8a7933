//! Which evaluation was best, and whether it is time to stop.
//!
//! Rank 0 judges and broadcasts the verdict. The whole state goes into a checkpoint as JSON and
//! comes back bit for bit (serde_json with `float_roundtrip`).

use super::registry::Direction;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The best evaluation so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// The value of the metric; always finite.
    pub value: f64,
    /// The step after which it was measured.
    pub step: u64,
}

/// What a checkpoint keeps of a [`Judge`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeState {
    /// The best evaluation so far, if any was finite.
    pub best: Option<Best>,
    /// Evaluations since then.
    pub evaluations_since_best: u32,
}

/// What one evaluation means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Better than every one before.
    pub is_best: bool,
    /// `patience` evaluations in a row were no better.
    pub stop: bool,
}

/// Compares evaluations, for the best checkpoint and for early stopping.
#[derive(Clone, Debug)]
pub struct Judge {
    direction: Direction,
    patience: Option<u32>,
    state: JudgeState,
}

impl Judge {
    /// A judge that has seen nothing. `patience` counts evaluations; `None` never stops, and zero
    /// is refused (exit code 2).
    pub fn new(direction: Direction, patience: Option<u32>) -> Result<Self> {
        if patience == Some(0) {
            return Err(Error::usage("a patience of 0 evaluations would end every run at once")
                .at("training.early_stopping_patience")
                .hint("give 1 or more, or null for no early stopping"));
        }
        Ok(Judge { direction, patience, state: JudgeState::default() })
    }

    /// Takes up where a checkpoint left off.
    pub fn resume(&mut self, state: JudgeState) {
        self.state = state;
    }

    /// What a checkpoint must keep.
    pub fn state(&self) -> JudgeState {
        self.state
    }

    /// Judges one evaluation. Equal is not better, and a value that is not finite is never best.
    pub fn observe(&mut self, step: u64, value: f64) -> Verdict {
        let better = |best: Best| self.direction.better(value, best.value);
        let is_best = value.is_finite() && self.state.best.is_none_or(better);
        if is_best {
            self.state = JudgeState { best: Some(Best { value, step }), evaluations_since_best: 0 };
        } else {
            let count = &mut self.state.evaluations_since_best;
            *count = count.saturating_add(1);
        }
        let waited = self.state.evaluations_since_best;
        Verdict { is_best, stop: self.patience.is_some_and(|patience| waited >= patience) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn verdicts(judge: &mut Judge, values: &[f64]) -> Vec<(bool, bool)> {
        let judged = values.iter().enumerate().map(|(i, v)| judge.observe(i as u64 + 1, *v));
        judged.map(|v| (v.is_best, v.stop)).collect()
    }

    #[test]
    fn patience_counts_evaluations() {
        let mut judge = Judge::new(Direction::Lower, Some(2)).unwrap();
        let seen = verdicts(&mut judge, &[2.0, 1.0, 1.0, 0.5, 0.6, f64::NAN]);
        let (best, no, stop) = ((true, false), (false, false), (false, true));
        assert_eq!(seen, [best, best, no, best, no, stop]);
        assert_eq!(judge.state().best, Some(Best { value: 0.5, step: 4 }));
        assert_eq!(Judge::new(Direction::Lower, Some(0)).unwrap_err().code(), 2);
    }

    #[test]
    fn what_is_not_finite_is_never_best() {
        for direction in [Direction::Lower, Direction::Higher] {
            let mut judge = Judge::new(direction, None).unwrap();
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                assert!(!judge.observe(1, value).is_best);
            }
            assert!(judge.observe(2, 0.0).is_best);
        }
    }

    proptest! {
        #[test]
        fn a_resume_changes_no_verdict(
            values in prop::collection::vec(prop::num::f64::ANY, 1..30),
            cut in 0usize..30,
            higher in any::<bool>(),
            patience in prop::option::of(1u32..5),
        ) {
            let direction = if higher { Direction::Higher } else { Direction::Lower };
            let mut straight = Judge::new(direction, patience).unwrap();
            let mut resumed = Judge::new(direction, patience).unwrap();
            for (i, value) in values.iter().enumerate() {
                if i == cut {
                    let text = serde_json::to_string(&resumed.state()).unwrap();
                    resumed = Judge::new(direction, patience).unwrap();
                    resumed.resume(serde_json::from_str(&text).unwrap());
                }
                let step = i as u64;
                prop_assert_eq!(straight.observe(step, *value), resumed.observe(step, *value));
            }
            let bits = |judge: &Judge| judge.state().best.map(|b| (b.value.to_bits(), b.step));
            prop_assert_eq!(bits(&straight), bits(&resumed));
        }
    }
}
