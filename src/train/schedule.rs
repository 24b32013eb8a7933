//! The learning rate as a function of the step, so that any step's rate is known without walking
//! there.

use crate::config::Schedule;

/// The rate for optimiser step `step`, counted from 0, of `total`: it rises linearly over
/// `warmup` steps, then stays, falls linearly to zero, or follows half a cosine to zero
/// (transformers' `get_*_schedule_with_warmup`).
pub fn learning_rate(kind: Schedule, peak: f64, warmup: u64, step: u64, total: u64) -> f64 {
    if step < warmup {
        return peak * step as f64 / warmup as f64;
    }
    let span = total.saturating_sub(warmup).max(1) as f64;
    let progress = ((step - warmup) as f64 / span).min(1.0);
    match kind {
        Schedule::Constant => peak,
        Schedule::Linear => peak * (1.0 - progress),
        Schedule::Cosine => peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// transformers: `get_cosine_schedule_with_warmup(o, 40, 714)` at lr 5e-4 and its relatives.
    #[test]
    fn known_values() {
        let rate = |kind, step| learning_rate(kind, 5e-4, 40, step, 714);
        assert_eq!(rate(Schedule::Cosine, 0), 0.0);
        assert_eq!(rate(Schedule::Constant, 20), 2.5e-4);
        assert_eq!(rate(Schedule::Cosine, 40), 5e-4);
        assert!((rate(Schedule::Cosine, 377) - 2.5e-4).abs() < 1e-18);
        assert!((rate(Schedule::Linear, 377) - 2.5e-4).abs() < 1e-18);
        assert_eq!(rate(Schedule::Linear, 714), 0.0);
        assert_eq!(learning_rate(Schedule::Constant, 1e-3, 0, 0, 10), 1e-3);
    }
}
