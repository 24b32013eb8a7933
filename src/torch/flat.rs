//! Trainable parameters and their gradients as one flat buffer each.
//!
//! The order is the declaration order reversed: backward finishes the last declared parameters
//! first, so the front of the buffer is ready first. Each parameter starts at a multiple of
//! [`ALIGN`] elements, because the bits of a fused AdamW step depend on where segments are cut
//! unless the cuts are multiples of 64. The model's tensors become views; nothing is copied in a
//! step.

use super::params::Params;
use super::shim::{self, GradientHooks};
use super::torch_error;
use crate::error::{Error, Result};
use std::cell::Cell;
use tch::{Device, Kind, Tensor};

/// Elements to which every parameter is aligned.
pub const ALIGN: usize = 64;

/// One trainable parameter's place in the flat buffers.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The parameter's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// First element in the flat buffers.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

/// The flat buffers of the parameters that are trained.
pub struct Flat {
    slots: Vec<Slot>,
    data: Tensor,
    grad: Tensor,
    hooks: GradientHooks,
}

impl Flat {
    /// Moves the parameters that `trainable` names into a flat buffer and gives each a gradient in
    /// another. The others keep their place and need no gradient.
    pub fn new(params: &Params, trainable: impl Fn(&str) -> bool) -> Result<Flat> {
        let failed = |e| torch_error("flat parameters", e);
        let mut slots = Vec::new();
        let mut tensors = Vec::new();
        let mut end = 0usize;
        for (name, tensor) in params.list().into_iter().rev() {
            if !trainable(&name) {
                let _ = tensor.set_requires_grad(false);
                continue;
            }
            let len = tensor.numel();
            slots.push(Slot { name, shape: tensor.size(), offset: end, len });
            tensors.push(tensor);
            end = (end + len).next_multiple_of(ALIGN);
        }
        if slots.is_empty() {
            return Err(Error::usage("no parameter is left to be trained"));
        }
        let options = (Kind::Float, params.device());
        let zeros = || {
            let mut buffer = Tensor::f_empty([end as i64], options)?;
            prefer_large_pages(&buffer);
            buffer.f_zero_()
        };
        let (data, grad) = (zeros().map_err(failed)?, zeros().map_err(failed)?);
        let hooks = GradientHooks::new();
        for (number, (slot, tensor)) in slots.iter().zip(&mut tensors).enumerate() {
            let view = slot.view(&data);
            tch::no_grad(|| view.shallow_clone().f_copy_(tensor)).map_err(failed)?;
            tensor.set_data(&view);
            let _ = tensor.set_requires_grad(true);
            shim::set_grad(tensor, &slot.view(&grad))?;
            hooks.add(tensor, number)?;
        }
        Ok(Flat { slots, data, grad, hooks })
    }

    /// Elements in each buffer, padding included.
    pub fn len(&self) -> usize {
        self.data.numel()
    }

    /// Whether there is nothing to train; never so, see [`Flat::new`].
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The parameters in flat order.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Number of trained scalars.
    pub fn count(&self) -> usize {
        self.slots.iter().map(|s| s.len).sum()
    }

    /// All parameters, `[len]`.
    pub fn data(&self) -> &Tensor {
        &self.data
    }

    /// All gradients, `[len]`; backward adds into it.
    pub fn grad(&self) -> &Tensor {
        &self.grad
    }

    /// Backward from `loss`, adding into the gradient. On the CPU `ready` is called after each
    /// parameter with the number of leading elements of the flat gradient that have their last
    /// value; parameters that take no part hold it back, so it need not reach [`Flat::len`].
    pub fn backward(&self, loss: &Tensor, mut ready: impl FnMut(usize)) -> Result<()> {
        let mut front = Front::new(self);
        self.hooks.backward(loss, &mut |slot| ready(front.after(slot)))
    }

    /// The same on any device. On a GPU `ready` is called on autograd's thread while this one waits,
    /// and the elements it speaks of have their last value when libtorch's current stream of that
    /// thread has come so far.
    pub fn backward_anywhere(
        &self,
        loss: &Tensor,
        mut ready: impl FnMut(usize) + Send,
    ) -> Result<()> {
        let mut front = Front::new(self);
        self.hooks.backward_anywhere(loss, &mut |slot| ready(front.after(slot)))
    }

    /// Sets all gradients to zero.
    pub fn zero_grad(&mut self) {
        let _ = self.grad.zero_();
    }

    /// A buffer of the same size on the same device, all zeros.
    pub fn like(&self) -> Tensor {
        self.unset().zero_()
    }

    /// The same with any content.
    pub fn unset(&self) -> Tensor {
        let buffer = self.data.empty_like();
        prefer_large_pages(&buffer);
        buffer
    }
}

/// How far the front of the gradient has its last value.
struct Front {
    /// For each slot its offset and whether it is done; the end of the buffer.
    slots: Vec<(usize, bool)>,
    end: usize,
    first: usize,
}

impl Front {
    fn new(flat: &Flat) -> Front {
        let slots = flat.slots.iter().map(|slot| (slot.offset, false)).collect();
        Front { slots, end: flat.len(), first: 0 }
    }

    /// The number of leading elements that are done once `slot` is too.
    fn after(&mut self, slot: usize) -> usize {
        self.slots[slot].1 = true;
        self.first += self.slots[self.first..].iter().take_while(|slot| slot.1).count();
        self.slots.get(self.first).map_or(self.end, |slot| slot.0)
    }
}

impl Slot {
    /// This parameter's part of a flat buffer, in its shape.
    pub fn view(&self, flat: &Tensor) -> Tensor {
        flat.narrow(0, self.offset as i64, self.len as i64).view(self.shape.as_slice())
    }
}

/// Asks for pages of 2 MB in a buffer of the CPU that was not touched yet: passes over hundreds of
/// megabytes, by us and by MPI, then miss fewer translations. It is advice; nothing depends on it.
fn prefer_large_pages(buffer: &Tensor) {
    #[cfg(target_os = "linux")]
    if buffer.device() == Device::Cpu {
        const PAGE: usize = 4096;
        let start = buffer.data_ptr() as usize;
        let (first, end) = (start.next_multiple_of(PAGE), start + 4 * buffer.numel());
        let len = (end / PAGE * PAGE).saturating_sub(first);
        // SAFETY: whole pages of the buffer's own memory (or none); advice changes no content.
        unsafe { libc::madvise(first as *mut libc::c_void, len, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = buffer;
}

/// The numbers of a contiguous float32 CPU tensor, which libtorch may go on changing whenever it is
/// called on this thread.
pub fn cells_of(tensor: &Tensor) -> Option<&[Cell<f32>]> {
    if tensor.device() != Device::Cpu || tensor.kind() != Kind::Float || !tensor.is_contiguous() {
        return None;
    }
    // SAFETY: contiguous float32 in this process's memory, numel elements long and kept alive by
    // the tensor. Everyone reaches them from this thread alone (kernels' threads only work while
    // it waits for them), and cells may be changed behind a shared reference.
    Some(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) })
}

/// The numbers of a contiguous float32 CPU tensor.
pub fn slice_of(tensor: &mut Tensor) -> Option<&mut [f32]> {
    if tensor.device() != Device::Cpu || tensor.kind() != Kind::Float || !tensor.is_contiguous() {
        return None;
    }
    // SAFETY: contiguous float32 in this process's memory, numel elements long, kept alive and not
    // used otherwise while the tensor is borrowed mutably (views of it run on this thread alone).
    Some(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) })
}

#[cfg(test)]
mod tests {
    use super::super::params::Init;
    use super::*;

    /// Three products one after another, and a parameter that takes no part.
    fn model(unused_last: bool) -> (Params, Vec<Tensor>) {
        let params = Params::new(Device::Cpu);
        let root = params.root();
        let one = |name| root.param(name, &[5, 5], Init::Normal(0.5));
        let unused = |wanted| (wanted == unused_last).then(|| one("unused"));
        let before = unused(false);
        let weights = ["a", "b", "c"].map(one).into();
        drop((before, unused(true)));
        (params, weights)
    }

    fn told(unused_last: bool) -> Vec<usize> {
        let (params, weights) = model(unused_last);
        params.initialise(1).unwrap();
        let flat = Flat::new(&params, |_| true).unwrap();
        let here = std::thread::current().id();
        let mut told = Vec::new();
        let x = Tensor::ones([3, 5], (Kind::Float, Device::Cpu));
        let loss = weights.iter().fold(x, |x, w| x.matmul(w).tanh()).sum(Kind::Float);
        flat.backward(&loss, |upto| {
            assert_eq!(std::thread::current().id(), here, "hooks run on the caller's thread");
            // What is told to be final is: it is compared with the end below.
            let grad = flat.grad().narrow(0, 0, upto as i64);
            told.push((upto, Vec::<f32>::try_from(grad).unwrap()));
        })
        .unwrap();
        let end = Vec::<f32>::try_from(flat.grad()).unwrap();
        assert!(end.iter().any(|x| *x != 0.0));
        told.iter().for_each(|(upto, then)| assert_eq!(then[..], end[..*upto]));
        told.into_iter().map(|t| t.0).collect()
    }

    #[test]
    fn the_front_of_the_gradient_is_ready_first() {
        assert_eq!(told(false), [64, 128, 192]);
    }

    #[test]
    fn an_unused_parameter_holds_back_what_is_behind_it() {
        assert_eq!(told(true), [0, 0, 0]);
    }
}
