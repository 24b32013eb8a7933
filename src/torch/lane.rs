//! A stream beside libtorch's own, on which gradients are summed while libtorch goes on: who waits
//! for whom, and additions there. Safe Rust over `cpp/lane.cpp`.
//!
//! On the CPU a lane is no stream at all: everything is done at once, in the order of the calls.

use super::shim::check;
use crate::error::{Error, Result};
use std::ffi::{c_char, c_void};
use tch::Device;

unsafe extern "C" {
    fn trainer_lane_new(
        gpu: i64,
        result: *mut *mut c_void,
        handle: *mut *mut c_void,
    ) -> *mut c_char;
    fn trainer_lane_free(lane: *mut c_void);
    fn trainer_lane_follow(lane: *mut c_void) -> *mut c_char;
    fn trainer_lane_lead(lane: *mut c_void) -> *mut c_char;
    fn trainer_lane_idle(lane: *mut c_void, idle: *mut bool) -> *mut c_char;
    fn trainer_lane_add(lane: *mut c_void, into: *mut f32, from: *const f32, n: i64)
    -> *mut c_char;
    fn trainer_lane_copy(
        lane: *mut c_void,
        into: *mut f32,
        from: *const f32,
        n: i64,
    ) -> *mut c_char;
}

/// A stream of our own on one device.
pub struct Lane {
    raw: *mut c_void,
    handle: *mut c_void,
}

impl Lane {
    /// On the CPU or on a GPU, which becomes this thread's current one.
    pub fn new(device: Device) -> Result<Lane> {
        let gpu = match device {
            Device::Cpu => -1,
            Device::Cuda(i) => i as i64,
            other => return Err(Error::bug(format!("no stream on {other:?}"))),
        };
        let (mut raw, mut handle) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: both results are valid for writing.
        check("a stream", unsafe { trainer_lane_new(gpu, &mut raw, &mut handle) })?;
        Ok(Lane { raw, handle })
    }

    /// The stream as the driver knows it; null on the CPU.
    pub fn handle(&self) -> *mut c_void {
        self.handle
    }

    /// What the lane is given from now on waits for what libtorch has been given on this thread.
    pub fn follow(&self) -> Result<()> {
        // SAFETY: the lane is live.
        check("a stream's order", unsafe { trainer_lane_follow(self.raw) })
    }

    /// What libtorch is given on this thread from now on waits for what the lane has been given.
    pub fn lead(&self) -> Result<()> {
        // SAFETY: the lane is live.
        check("a stream's order", unsafe { trainer_lane_lead(self.raw) })
    }

    /// Whether all that the lane was given is done. An error of the GPU shows here at the latest.
    pub fn idle(&self) -> Result<bool> {
        let mut idle = false;
        // SAFETY: the lane is live, the result is valid for writing.
        check("work beside libtorch", unsafe { trainer_lane_idle(self.raw, &mut idle) })?;
        Ok(idle)
    }

    /// into += from, `len` numbers on the lane's device.
    ///
    /// # Safety
    /// Both stay alive until the lane has done it; they are the same or do not overlap.
    pub unsafe fn add(&self, into: *mut f32, from: *const f32, len: usize) -> Result<()> {
        // SAFETY: as the caller promises.
        check("adding gradients", unsafe { trainer_lane_add(self.raw, into, from, len as i64) })
    }

    /// into = from, `len` numbers on the lane's device.
    ///
    /// # Safety
    /// Both stay alive until the lane has done it and do not overlap.
    pub unsafe fn copy(&self, into: *mut f32, from: *const f32, len: usize) -> Result<()> {
        // SAFETY: as the caller promises.
        check("copying gradients", unsafe { trainer_lane_copy(self.raw, into, from, len as i64) })
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // SAFETY: made by trainer_lane_new and freed once. The stream itself is libtorch's.
        unsafe { trainer_lane_free(self.raw) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    #[test]
    fn on_the_cpu_all_is_done_at_once() {
        let lane = Lane::new(Device::Cpu).unwrap();
        assert!(lane.handle().is_null());
        let a = Tensor::from_slice(&[1.0f32, -0.0, 3.0]);
        let b = Tensor::from_slice(&[0.5f32, -0.0, f32::INFINITY]);
        let (into, from) = (a.data_ptr().cast::<f32>(), b.data_ptr().cast::<f32>());
        lane.follow().unwrap();
        // SAFETY: three numbers each, alive beyond the calls.
        unsafe { lane.add(into, from, 3).unwrap() };
        lane.lead().unwrap();
        assert!(lane.idle().unwrap());
        let sum = Vec::<f32>::try_from(&a).unwrap();
        assert_eq!(sum.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), {
            [1.5f32, -0.0, f32::INFINITY].map(f32::to_bits)
        });
        // SAFETY: as above.
        unsafe { lane.copy(into, from, 2).unwrap() };
        assert_eq!(Vec::<f32>::try_from(&a).unwrap(), [0.5, -0.0, f32::INFINITY]);
        assert_eq!(a.kind(), Kind::Float);
    }
}
