//! AdamW (Loshchilov and Hutter, 2019) over flat buffers, with a state that is ours to save.

use crate::error::{Error, Result};
use crate::torch::{AdamwStep, Flat, adamw};
use tch::Tensor;

/// What does not change during a run.
#[derive(Clone, Copy, Debug)]
pub struct AdamwConfig {
    /// Decay of the first and second moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, on every parameter that `decays` names.
    pub weight_decay: f64,
}

/// A stretch of the flat buffers with one weight decay.
struct Segment {
    start: i64,
    len: i64,
    weight_decay: f64,
}

/// The optimiser: moments in the order and size of the flat parameters.
pub struct Adamw {
    config: AdamwConfig,
    segments: Vec<Segment>,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: u64,
}

impl Adamw {
    /// Fresh moments. `decays` says which parameters are decayed; neighbours that agree become one
    /// segment, cut at the parameters' aligned starts.
    pub fn new(flat: &Flat, config: AdamwConfig, decays: impl Fn(&str) -> bool) -> Adamw {
        let mut segments: Vec<Segment> = Vec::new();
        let ends = flat.slots().iter().skip(1).map(|s| s.offset).chain([flat.len()]);
        for (slot, end) in flat.slots().iter().zip(ends) {
            let weight_decay = if decays(&slot.name) { config.weight_decay } else { 0.0 };
            let len = (end - slot.offset) as i64;
            match segments.last_mut() {
                Some(last) if last.weight_decay == weight_decay => last.len += len,
                _ => segments.push(Segment { start: slot.offset as i64, len, weight_decay }),
            }
        }
        Adamw { config, segments, exp_avg: flat.like(), exp_avg_sq: flat.like(), step: 0 }
    }

    /// One step on the flat gradient, which is divided by `grad_divisor` on the way.
    pub fn step(&mut self, flat: &Flat, lr: f64, grad_divisor: f64) -> Result<()> {
        self.step += 1;
        for segment in &self.segments {
            let part = |t: &Tensor| t.narrow(0, segment.start, segment.len);
            let step = AdamwStep {
                step: self.step,
                lr,
                betas: self.config.betas,
                weight_decay: segment.weight_decay,
                eps: self.config.eps,
                grad_divisor,
            };
            let moments = (&part(&self.exp_avg), &part(&self.exp_avg_sq));
            adamw(&part(flat.data()), &part(flat.grad()), moments, step)?;
        }
        Ok(())
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// First and second moments, flat.
    pub fn moments(&self) -> (&Tensor, &Tensor) {
        (&self.exp_avg, &self.exp_avg_sq)
    }

    /// Takes up where a checkpoint left off. `moment(kind, name)` gives a parameter's tensor, with
    /// kind `exp_avg` or `exp_avg_sq`.
    pub fn restore(
        &mut self,
        flat: &Flat,
        step: u64,
        moment: impl Fn(&str, &str) -> Result<Tensor>,
    ) -> Result<()> {
        for (kind, buffer) in [("exp_avg", &self.exp_avg), ("exp_avg_sq", &self.exp_avg_sq)] {
            for slot in flat.slots() {
                let value = moment(kind, &slot.name)?;
                if value.size() != slot.shape {
                    return Err(Error::damaged(format!(
                        "{kind}.{} has the shape {:?}, the parameter {:?}",
                        slot.name,
                        value.size(),
                        slot.shape
                    )));
                }
                tch::no_grad(|| slot.view(buffer).copy_(&value));
            }
        }
        self.step = step;
        Ok(())
    }
}
