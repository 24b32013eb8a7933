//! The functions that compute on a device, as the shim calls them: mirrors of `cpp/shapes.h` and of
//! `DeviceKernels` in `cpp/kernels.h`, where every member is explained.

use std::ffi::{c_char, c_void};

/// Sizes and strides of a selective scan.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ScanShape {
    pub batch: i64,
    pub length: i64,
    pub channels: i64,
    pub states: i64,
    pub stride_bc: i64,
    pub stride_z: i64,
    pub chunk: i64,
}

/// What the scan reads.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ScanInputs {
    pub u: *const f32,
    pub dt: *const f32,
    pub dt_bias: *const f32,
    pub a_log: *const f32,
    pub b: *const f32,
    pub c: *const f32,
    pub d: *const f32,
    pub z: *const f32,
}

/// What its backward reads besides, and writes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ScanGrad {
    pub dy: *const f32,
    pub du: *mut f32,
    pub ddt: *mut f32,
    pub dz: *mut f32,
    pub da_log: *mut f32,
    pub dd: *mut f32,
    pub ddt_bias: *mut f32,
    pub db: *mut f32,
    pub dc: *mut f32,
}

/// Sizes and strides of a causal convolution.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ConvShape {
    pub batch: i64,
    pub length: i64,
    pub channels: i64,
    pub width: i64,
    pub stride_x: i64,
    pub tile: i64,
}

/// What the convolution reads.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ConvInput {
    pub x: *const f32,
    pub weight: *const f32,
    pub bias: *const f32,
}

/// What its backward reads besides, and writes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ConvGrad {
    pub dy: *const f32,
    pub dx: *mut f32,
    pub dw: *mut f32,
    pub dbias: *mut f32,
}

/// The scan; `saved` may be null.
pub type ScanForward = extern "C" fn(
    &ScanShape,
    &ScanInputs,
    y: *mut f32,
    saved: *mut f32,
    device: i64,
    stream: *mut c_void,
) -> *mut c_char;

/// Its backward.
pub type ScanBackward = extern "C" fn(
    &ScanShape,
    &ScanInputs,
    saved: *const f32,
    &ScanGrad,
    device: i64,
    stream: *mut c_void,
) -> *mut c_char;

/// The convolution.
pub type ConvForward = extern "C" fn(
    &ConvShape,
    &ConvInput,
    y: *mut f32,
    device: i64,
    stream: *mut c_void,
) -> *mut c_char;

/// Its backward.
pub type ConvBackward = extern "C" fn(
    &ConvShape,
    &ConvInput,
    &ConvGrad,
    device: i64,
    stream: *mut c_void,
) -> *mut c_char;

/// One function an operation and direction; each gives null or a message from malloc.
#[repr(C)]
pub struct DeviceKernels {
    pub scan_forward: ScanForward,
    pub scan_backward: ScanBackward,
    pub conv_forward: ConvForward,
    pub conv_backward: ConvBackward,
}

unsafe extern "C" {
    fn trainer_set_device_kernels(table: *const DeviceKernels, cpu: bool);
}

/// Has these functions compute what lies on a GPU.
pub fn serve_gpus(table: &'static DeviceKernels) {
    // SAFETY: the table lives for ever.
    unsafe { trainer_set_device_kernels(table, false) }
}

/// Runs `work` with these functions in place of the CPU's own kernels, on this thread alone.
#[cfg(test)]
pub fn in_place_of_the_cpu_s<T>(table: &DeviceKernels, work: impl FnOnce() -> T) -> T {
    struct Ends;
    impl Drop for Ends {
        fn drop(&mut self) {
            // SAFETY: takes the table away.
            unsafe { trainer_set_device_kernels(std::ptr::null(), true) }
        }
    }
    let _ends = Ends;
    // SAFETY: the table outlives its use, which ends when this function is left.
    unsafe { trainer_set_device_kernels(table, true) };
    work()
}
