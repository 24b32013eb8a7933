//! Safe Rust over the C functions of `cpp/shim.cpp` and `cpp/functions.cpp`.

use super::torch_error;
use crate::error::Result;
use std::ffi::{CStr, c_char, c_void};
use std::thread::ThreadId;
use tch::{Device, Tensor};
use torch_sys::C_tensor;

/// What is told of a parameter's slot.
type Callback = extern "C" fn(context: *mut c_void, slot: i64);

unsafe extern "C" {
    fn trainer_hooks_new() -> *mut c_void;
    fn trainer_hooks_free(hooks: *mut c_void);
    fn trainer_hooks_add(hooks: *mut c_void, parameter: *mut C_tensor, slot: i64) -> *mut c_char;
    fn trainer_backward(
        hooks: *mut c_void,
        loss: *mut C_tensor,
        callback: Callback,
        context: *mut c_void,
    ) -> *mut c_char;
    fn trainer_free(message: *mut c_char);
    fn trainer_kernels_name() -> *const c_char;
    fn trainer_torch_version() -> *const c_char;
    fn trainer_set_grad(parameter: *mut C_tensor, view: *mut C_tensor) -> *mut c_char;
    fn trainer_adamw(
        parameter: *mut C_tensor,
        gradient: *mut C_tensor,
        exp_avg: *mut C_tensor,
        exp_avg_sq: *mut C_tensor,
        step: f64,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        grad_divisor: f64,
    ) -> *mut c_char;
    fn trainer_sum_of_squares(
        flat: *mut C_tensor,
        by_operations: bool,
        result: *mut f64,
    ) -> *mut c_char;
    fn trainer_pin(result: *mut *mut C_tensor, x: *mut C_tensor) -> *mut c_char;
    fn trainer_peak_bytes(index: i64, result: *mut i64) -> *mut c_char;
    fn trainer_set_deterministic(on: bool) -> *mut c_char;
    fn trainer_set_autocast(cuda: bool, kind: i32) -> *mut c_char;
    fn trainer_parallel_width() -> i64;
    fn trainer_selective_scan(
        result: *mut *mut C_tensor,
        u: *mut C_tensor,
        dt: *mut C_tensor,
        dt_bias: *mut C_tensor,
        a_log: *mut C_tensor,
        b: *mut C_tensor,
        c: *mut C_tensor,
        d: *mut C_tensor,
        z: *mut C_tensor,
    ) -> *mut c_char;
    fn trainer_causal_conv(
        result: *mut *mut C_tensor,
        x: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
    ) -> *mut c_char;
    fn trainer_permute_rows(
        result: *mut *mut C_tensor,
        x: *mut C_tensor,
        index: *mut C_tensor,
        inverse: *mut C_tensor,
    ) -> *mut c_char;
    fn trainer_packed_attention(
        out: *mut C_tensor,
        qkv: *mut C_tensor,
        offsets: *mut C_tensor,
        cosines: *mut C_tensor,
        sines: *mut C_tensor,
        longest: i64,
    ) -> *mut c_char;
    fn trainer_bias_gelu(x: *mut C_tensor, bias: *mut C_tensor) -> *mut c_char;
}

/// Turns a C message into an error.
pub(super) fn check(what: &str, message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null message is a NUL-terminated string that the shim gave to us to free.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        trainer_free(message);
        text
    };
    Err(torch_error(what, text))
}

pub(super) fn raw(tensor: &Tensor) -> *mut C_tensor {
    // The shim takes mutable pointers throughout, as torch-sys does; a tensor is a handle, and
    // what it points to is shared and mutable by design.
    tensor.as_ptr().cast_mut()
}

fn text(pointer: *const c_char) -> String {
    // SAFETY: the shim returns pointers to static NUL-terminated strings here.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// The instruction set that libtorch and our kernels were chosen for (`generic`, `avx2` or
/// `avx512`); part of what exactness is promised for.
pub fn kernels_name() -> String {
    // SAFETY: no arguments; returns a static string.
    text(unsafe { trainer_kernels_name() })
}

/// The version of libtorch this program was built against.
pub fn torch_version() -> String {
    // SAFETY: no arguments; returns a static string.
    text(unsafe { trainer_torch_version() })
}

/// Threads that a parallel loop of our kernels really uses.
pub fn parallel_width() -> i64 {
    // SAFETY: no arguments; counts threads.
    unsafe { trainer_parallel_width() }
}

/// Makes `view` (same shape and device) the gradient of `parameter`.
pub fn set_grad(parameter: &Tensor, view: &Tensor) -> Result<()> {
    // SAFETY: both are live tensors for the duration of the call.
    check("set_grad", unsafe { trainer_set_grad(raw(parameter), raw(view)) })
}

/// Hooks on a set of parameters that tell when a gradient has its last value.
pub struct GradientHooks(*mut c_void);

/// Who listens during one backward pass, and where.
struct Listener<'a> {
    /// None: any thread will do.
    thread: Option<ThreadId>,
    ready: &'a mut dyn FnMut(usize),
}

extern "C" fn gradient_is_ready(context: *mut c_void, slot: i64) {
    let listener = context.cast::<Listener>();
    // SAFETY: `backward` below keeps the listener alive and does not touch it during the pass. On
    // another thread than its own (parameters on a GPU) nothing but the thread's name is read, or
    // the listener may be told on any thread: autograd has one for a GPU, and parameters are on one.
    unsafe {
        if (*listener).thread.is_none_or(|own| own == std::thread::current().id()) {
            ((*listener).ready)(slot as usize);
        }
    }
}

impl GradientHooks {
    /// No hooks yet.
    pub fn new() -> GradientHooks {
        // SAFETY: no arguments; the result is ours to free.
        GradientHooks(unsafe { trainer_hooks_new() })
    }

    /// Tells of `parameter` as `slot` from now on. Its other such hook, if it has one, goes.
    pub fn add(&self, parameter: &Tensor, slot: usize) -> Result<()> {
        // SAFETY: hooks and tensor are live for the duration of the call.
        check("hooks", unsafe { trainer_hooks_add(self.0, raw(parameter), slot as i64) })
    }

    /// Backward from `loss`; `ready` is called with a slot as soon as its parameter's gradient has
    /// its last value. Of parameters that are on a GPU nothing is told: their hooks run on
    /// autograd's thread.
    pub fn backward(&self, loss: &Tensor, ready: &mut dyn FnMut(usize)) -> Result<()> {
        self.run(loss, Listener { thread: Some(std::thread::current().id()), ready })
    }

    /// The same for parameters on any one device; `ready` may be called on autograd's thread, while
    /// this one waits. On a GPU the gradient's last value is then on its way, on the stream that is
    /// libtorch's current one on that thread.
    pub fn backward_anywhere(
        &self,
        loss: &Tensor,
        ready: &mut (dyn FnMut(usize) + Send),
    ) -> Result<()> {
        self.run(loss, Listener { thread: None, ready })
    }

    fn run(&self, loss: &Tensor, mut listener: Listener) -> Result<()> {
        let context = (&raw mut listener).cast::<c_void>();
        // SAFETY: all are live for the duration of the call, after which nobody is told any more.
        check("backward", unsafe {
            trainer_backward(self.0, raw(loss), gradient_is_ready, context)
        })
    }
}

impl Drop for GradientHooks {
    fn drop(&mut self) {
        // SAFETY: made by trainer_hooks_new and freed once; hooks that stay on parameters share
        // what they need of it.
        unsafe { trainer_hooks_free(self.0) }
    }
}

/// Hyper-parameters of one AdamW call.
#[derive(Clone, Copy, Debug)]
pub struct AdamwStep {
    /// Counts from 1.
    pub step: u64,
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first and second moments.
    pub betas: (f64, f64),
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// What the gradient is divided by first (1 where nothing is clipped).
    pub grad_divisor: f64,
}

/// One AdamW step in place over flat float32 segments of equal length. The gradient is divided in
/// place, too. Bits do not depend on cuts at multiples of [`super::ALIGN`].
pub fn adamw(
    parameter: &Tensor,
    gradient: &Tensor,
    moments: (&Tensor, &Tensor),
    h: AdamwStep,
) -> Result<()> {
    // SAFETY: all are live tensors for the duration of the call; libtorch checks their shapes.
    check("adamw", unsafe {
        trainer_adamw(
            raw(parameter),
            raw(gradient),
            raw(moments.0),
            raw(moments.1),
            h.step as f64,
            h.lr,
            h.betas.0,
            h.betas.1,
            h.weight_decay,
            h.eps,
            h.grad_divisor,
        )
    })
}

/// The sum of squares of a flat float32 tensor in float64; the same bits for any number of
/// threads.
pub fn sum_of_squares(flat: &Tensor) -> Result<f64> {
    squares(flat, flat.device() != Device::Cpu)
}

fn squares(flat: &Tensor, by_operations: bool) -> Result<f64> {
    let mut result = 0.0;
    // SAFETY: the tensor and the result are live for the duration of the call.
    check("sum_of_squares", unsafe {
        trainer_sum_of_squares(raw(flat), by_operations, &mut result)
    })?;
    Ok(result)
}

/// A tensor on the CPU made ready to go to `device`: for a GPU a copy that it can read by itself.
/// Any thread may do this.
pub fn pinned(x: Tensor, device: Device) -> Result<Tensor> {
    if !device.is_cuda() {
        return Ok(x);
    }
    let mut result = std::ptr::null_mut();
    // SAFETY: the tensor is live for the duration of the call.
    let message = unsafe { trainer_pin(&mut result, raw(&x)) };
    taken("pinning memory", result, message)
}

/// A tensor on `device`; what [`pinned`] prepared goes there while the CPU does other things.
pub fn upload(x: &Tensor, device: Device) -> Result<Tensor> {
    x.f_to_device_(device, x.kind(), true, false).map_err(|e| torch_error("uploading", e))
}

/// The most bytes of tensors that this GPU has held at once; only after `cuda::load`.
pub(super) fn peak_bytes(gpu: usize) -> Result<u64> {
    let mut result = 0;
    // SAFETY: the result is live for the duration of the call.
    check("peak_bytes", unsafe { trainer_peak_bytes(gpu as i64, &mut result) })?;
    Ok(result as u64)
}

/// Refuses operations whose result depends on scheduling.
pub fn set_deterministic(on: bool) -> Result<()> {
    // SAFETY: sets a flag of libtorch's global context.
    check("set_deterministic", unsafe { trainer_set_deterministic(on) })
}

/// The lower precision that autocast uses; parameters stay float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Autocast {
    /// float32 throughout.
    Off,
    /// bfloat16.
    Bfloat16,
    /// float16, with loss scaling.
    Float16,
}

/// Turns autocast on or off for the operations of `device`'s kind that follow on this thread.
pub fn set_autocast(device: Device, autocast: Autocast) -> Result<()> {
    let kind = match autocast {
        Autocast::Off => 0,
        Autocast::Bfloat16 => 1,
        Autocast::Float16 => 2,
    };
    // SAFETY: sets thread-local flags of libtorch.
    check("set_autocast", unsafe { trainer_set_autocast(device.is_cuda(), kind) })
}

/// Takes a tensor that the shim made for us.
pub(super) fn taken(what: &str, result: *mut C_tensor, message: *mut c_char) -> Result<Tensor> {
    check(what, message)?;
    // SAFETY: without a message the result is a new tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(result) })
}

/// Inputs of [`selective_scan`]: B batch, L length, D channels, N states; all float32,
/// on the CPU or a GPU.
pub struct ScanInput<'a> {
    /// `[B, L, D]`
    pub u: &'a Tensor,
    /// `[B, L, D]`, before bias and softplus
    pub dt: &'a Tensor,
    /// `[D]`
    pub dt_bias: &'a Tensor,
    /// `[D, N]`; A = -exp(a_log)
    pub a_log: &'a Tensor,
    /// `[B, L, N]`
    pub b: &'a Tensor,
    /// `[B, L, N]`
    pub c: &'a Tensor,
    /// `[D]`
    pub d: &'a Tensor,
    /// `[B, L, D]`
    pub z: &'a Tensor,
}

/// The fused selective scan with gate and skip, `[B, L, D]`, differentiable in every input.
pub fn selective_scan(x: &ScanInput) -> Result<Tensor> {
    let mut result = std::ptr::null_mut();
    // SAFETY: all are live tensors; the shim checks device, type and strides.
    let message = unsafe {
        trainer_selective_scan(
            &mut result,
            raw(x.u),
            raw(x.dt),
            raw(x.dt_bias),
            raw(x.a_log),
            raw(x.b),
            raw(x.c),
            raw(x.d),
            raw(x.z),
        )
    };
    taken("selective_scan", result, message)
}

/// SiLU of a depthwise causal convolution. x `[B, L, D]`, weight `[D, 1, W]`, bias `[D]`.
pub fn causal_conv(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let mut result = std::ptr::null_mut();
    // SAFETY: all are live tensors; the shim checks device, type and strides.
    let message = unsafe { trainer_causal_conv(&mut result, raw(x), raw(weight), raw(bias)) };
    taken("causal_conv", result, message)
}

/// The rows of x `[R, d]` in the order of `index` `[R]`, a permutation that `inverse` undoes.
pub fn permute_rows(x: &Tensor, index: &Tensor, inverse: &Tensor) -> Result<Tensor> {
    let mut result = std::ptr::null_mut();
    // SAFETY: all are live tensors; libtorch checks the index.
    let message = unsafe { trainer_permute_rows(&mut result, raw(x), raw(index), raw(inverse)) };
    taken("permute_rows", result, message)
}

/// Attention over packed sequences with rotary positions, for inference on the CPU.
/// qkv `[T, 3, H, d]`, offsets int64 `[n + 1]`, rotary tables `[>= longest, d / 2]` (cos, sin);
/// returns `[T, H * d]`.
pub fn packed_attention(
    qkv: &Tensor,
    offsets: &Tensor,
    rotary: (&Tensor, &Tensor),
    longest: i64,
) -> Result<Tensor> {
    let (tokens, _, heads, head_dim) = qkv.size4().map_err(|e| torch_error("attention", e))?;
    let out = Tensor::empty([tokens, heads * head_dim], (tch::Kind::Float, Device::Cpu));
    // SAFETY: all are live tensors; the shim checks what it relies on.
    check("packed_attention", unsafe {
        trainer_packed_attention(
            raw(&out),
            raw(qkv),
            raw(offsets),
            raw(rotary.0),
            raw(rotary.1),
            longest,
        )
    })?;
    Ok(out)
}

/// x = gelu(x + bias) in place; x `[rows, width]` float32 on the CPU, for inference.
pub fn bias_gelu(x: &Tensor, bias: &Tensor) -> Result<()> {
    // SAFETY: both are live tensors; the shim checks what it relies on.
    check("bias_gelu", unsafe { trainer_bias_gelu(raw(x), raw(bias)) })
}

/// Keeps freed memory in the process: activations of one micro-batch serve the next one without
/// going through the kernel. glibc maps blocks above 32 MiB one by one, whatever the threshold, and
/// every page of a new map costs a fault (30 ms for 33 MiB, measured beside other work, against 0.5
/// for memory that is there): so it is told to map none. Called once at the start.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets thresholds of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        // -1: never.
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn squares_by_operations_are_the_kernel_s() {
        tch::manual_seed(3);
        for n in [0, 1, 64, 4095, 4096, 4097, 3 * 4096 + 64, 4096 * 4096 + 4096 + 7] {
            let x = Tensor::randn([n], (Kind::Float, Device::Cpu)) * 1e3;
            let (kernel, operations) = (squares(&x, false).unwrap(), squares(&x, true).unwrap());
            assert!((kernel - operations).abs() <= 1e-13 * kernel, "{n}: {kernel} {operations}");
            assert_eq!(operations, squares(&x, true).unwrap());
        }
        let x = Tensor::from_slice(&[1.0f32, f32::INFINITY]);
        assert!(!squares(&x, true).unwrap().is_finite());
    }

    #[test]
    fn an_upload_to_the_cpu_is_the_tensor_itself() {
        let x = Tensor::from_slice(&[1.0f32, 2.0]);
        let there = upload(&pinned(x.shallow_clone(), Device::Cpu).unwrap(), Device::Cpu).unwrap();
        assert_eq!(there.data_ptr(), x.data_ptr());
    }
}
