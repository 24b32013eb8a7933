//! The gradient of a step: micro-batches are folded as they come, the last one's backward goes on
//! together with the sum over ranks.
//!
//! `exact`: each micro-batch starts from a zeroed gradient and is folded into the one tree of the
//! step (`dist::tree`), so the sum has the same bits on any number of ranks; whether it overlaps
//! with backward, and how it is cut, changes none. `fast`: all add up in the one flat gradient.
//!
//! Where the job has NCCL the sum takes place where the gradient is, else in host memory over MPI.
//!
//! Beside the flat gradient, n micro-batches of a rank take at most floor(log2 (n - 1)) + 1
//! buffers of its size (twice that where the rank's first micro-batch is an unlucky one), none
//! for n = 1 and none for `fast`; and what [`Reducer`] says.

use crate::config::{Distributed, Reduce};
use crate::dist::tree::{Fold, Node};
use crate::dist::{Comm, NcclReducer, Own, Reducer};
use crate::error::{Error, Result};
use crate::torch::{Flat, cells_of, torch_error};
use std::cell::{Cell, RefCell};
use tch::{Device, Tensor};

/// Sums gradients over micro-batches and ranks.
pub struct GradientSum {
    how: Reduce,
    overlap: bool,
    reducer: Reducer,
    /// In its place where the job has NCCL.
    nccl: Option<NcclReducer>,
    fold: Fold<Tensor>,
    /// Partial sums that are not in use.
    spare: Vec<Tensor>,
}

/// This rank's last micro-batch of a step: its number, and the loss to start from (None where
/// nothing in it is to be learnt).
pub type Last = (usize, Option<Tensor>);

impl GradientSum {
    /// For these parameters and ranks.
    pub fn new(comm: &Comm, flat: &Flat, distributed: &Distributed) -> GradientSum {
        let how = distributed.reduce;
        let reducer = Reducer::new(comm, how, flat.len(), distributed.bucket_mb);
        GradientSum {
            how,
            overlap: distributed.overlap,
            nccl: NcclReducer::new(&reducer),
            reducer,
            fold: Fold::default(),
            spare: Vec::new(),
        }
    }

    /// Backward of micro-batch `index`, which is not this rank's last. The gradient is zero before
    /// the first one.
    pub fn add(&mut self, flat: &mut Flat, index: usize, loss: Option<Tensor>) -> Result<()> {
        if let Some(loss) = loss {
            flat.backward(&loss, |_| ())?;
        }
        if self.how == Reduce::Fast {
            return Ok(());
        }
        let (grad, spare) = (flat.grad(), RefCell::new(&mut self.spare));
        self.fold.push(
            index,
            |into| drop(into.g_add_(grad)),
            || {
                let mut buffer = spare.borrow_mut().pop().unwrap_or_else(|| flat.unset());
                buffer.copy_(grad);
                buffer
            },
            |left, right| {
                drop(left.g_add_(&right));
                spare.borrow_mut().push(right);
            },
        );
        flat.zero_grad();
        Ok(())
    }

    /// Backward of the last micro-batch, if this rank has any, of a step of `m`. Afterwards the
    /// flat gradient is the sum over all micro-batches, on every rank.
    pub fn finish(&mut self, flat: &Flat, comm: &Comm, m: usize, last: Option<Last>) -> Result<()> {
        let (index, loss) = last.map_or((None, None), |(i, loss)| (Some(i), loss));
        if let Some(nccl) = &mut self.nccl {
            let parts = self.fold.take();
            sum_by_nccl(nccl, flat, m, (index, loss), &parts, self.overlap)?;
            self.spare.extend(parts.into_iter().map(|p| p.1));
            return Ok(());
        }
        self.finish_in_memory(flat, comm, m, index, loss)
    }

    /// In host memory, over MPI.
    fn finish_in_memory(
        &mut self,
        flat: &Flat,
        comm: &Comm,
        m: usize,
        index: Option<usize>,
        mut loss: Option<Tensor>,
    ) -> Result<()> {
        let on_cpu = flat.grad().device() == Device::Cpu;
        if let Some(loss) = loss.take_if(|_| !(self.overlap && on_cpu)) {
            flat.backward(&loss, |_| ())?;
        }
        // The same tensors on the CPU; copies of those that are on a GPU.
        let home = |tensor: &Tensor| tensor.to_device(Device::Cpu);
        let parts = self.fold.take();
        let (gradient, sums) = (home(flat.grad()), parts.iter().map(|p| (p.0, home(&p.1))));
        let sums: Vec<(Node, Tensor)> = sums.collect();
        let own = Own {
            gradient: cells(&gradient)?,
            last: index,
            parts: sums.iter().map(|(node, t)| Ok((*node, cells(t)?))).collect::<Result<_>>()?,
            keep: Box::new((
                gradient.shallow_clone(),
                sums.iter().map(|s| s.1.shallow_clone()).collect::<Vec<_>>(),
            )),
        };
        let mut reduction = self.reducer.begin(comm, m, own)?;
        if let Some(loss) = loss {
            let mut result = Ok(());
            flat.backward(&loss, |upto| {
                if result.is_ok() {
                    result = reduction.ready(upto);
                }
            })?;
            result?;
        }
        reduction.finish()?;
        if !on_cpu {
            let mut grad = flat.grad().shallow_clone();
            grad.f_copy_(&gradient).map_err(|e| torch_error("copying gradients", e))?;
        }
        self.spare.extend(parts.into_iter().map(|p| p.1));
        Ok(())
    }
}

/// The same where the gradient is; nothing is copied to the host.
fn sum_by_nccl(
    nccl: &mut NcclReducer,
    flat: &Flat,
    m: usize,
    (index, loss): (Option<usize>, Option<Tensor>),
    parts: &[(Node, Tensor)],
    overlap: bool,
) -> Result<()> {
    let mut reduction = nccl.begin(m, flat.grad(), index, parts)?;
    if let Some(loss) = loss {
        let mut result = Ok(());
        flat.backward_anywhere(&loss, |upto| {
            if overlap && result.is_ok() {
                result = reduction.ready(upto);
            }
        })?;
        result?;
    }
    reduction.finish()
}

fn cells(tensor: &Tensor) -> Result<&[Cell<f32>]> {
    cells_of(tensor).ok_or_else(|| Error::bug("gradients are dense float32"))
}
