//! Trainable parameters and their gradients as one flat buffer each.
//!
//! The order is the declaration order reversed: backward finishes the last declared parameters
//! first, so the front of the buffer is ready first. Each parameter starts at a multiple of
//! [`ALIGN`] elements, because the bits of a fused AdamW step depend on where segments are cut
//! unless the cuts are multiples of 64. The model's tensors become views; nothing is copied in a
//! step.

use super::params::Params;
use super::{shim, torch_error};
use crate::error::{Error, Result};
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
        let data = Tensor::f_zeros([end as i64], options).map_err(failed)?;
        let grad = Tensor::f_zeros([end as i64], options).map_err(failed)?;
        for (slot, tensor) in slots.iter().zip(&mut tensors) {
            let view = slot.view(&data);
            tch::no_grad(|| view.shallow_clone().f_copy_(tensor)).map_err(failed)?;
            tensor.set_data(&view);
            let _ = tensor.set_requires_grad(true);
            shim::set_grad(tensor, &slot.view(&grad))?;
        }
        Ok(Flat { slots, data, grad })
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

    /// The gradient as numbers, for the reduction; None where it lies on a GPU.
    pub fn grad_slice(&mut self) -> Option<&mut [f32]> {
        slice_of(&mut self.grad)
    }

    /// Sets all gradients to zero.
    pub fn zero_grad(&mut self) {
        let _ = self.grad.zero_();
    }

    /// A buffer of the same size on the same device, all zeros.
    pub fn like(&self) -> Tensor {
        self.data.zeros_like()
    }
}

impl Slot {
    /// This parameter's part of a flat buffer, in its shape.
    pub fn view(&self, flat: &Tensor) -> Tensor {
        flat.narrow(0, self.offset as i64, self.len as i64).view(self.shape.as_slice())
    }
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
