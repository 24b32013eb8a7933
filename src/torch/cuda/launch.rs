//! The kernels of `scan.cu` and `conv.cu` on a GPU: compiled by NVRTC for the model's sizes and the
//! GPU's architecture at their first use, and put on libtorch's current stream.
//!
//! The shim calls these functions with raw pointers, from the thread that runs forward and from
//! autograd's own.

use super::table::{
    ConvGrad, ConvInput, ConvShape, DeviceKernels, ScanGrad, ScanInputs, ScanShape,
};
use super::{gpus, open, said};
use cudarc::driver::{result, sys};
use cudarc::nvrtc::{result as nvrtc, sys as nvrtc_sys};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// What the shim calls for tensors on a GPU.
pub(super) static KERNELS: DeviceKernels =
    DeviceKernels { scan_forward, scan_backward, conv_forward, conv_backward };

const SHAPES: &CStr =
    match CStr::from_bytes_with_nul(concat!(include_str!("../cpp/shapes.h"), "\0").as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("a header with a NUL in it"),
    };

type Told<T> = Result<T, String>;

/// A source file and the sizes that it is compiled for.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Source {
    Scan { states: i64, chunk: i64 },
    Conv { width: i64 },
}

impl Source {
    fn name(&self) -> &'static CStr {
        match self {
            Source::Scan { .. } => c"scan.cu",
            Source::Conv { .. } => c"conv.cu",
        }
    }

    fn text(&self) -> &'static str {
        match self {
            Source::Scan { .. } => include_str!("scan.cu"),
            Source::Conv { .. } => include_str!("conv.cu"),
        }
    }

    fn sizes(&self) -> Vec<String> {
        match self {
            Source::Scan { states, chunk } => {
                vec![format!("-DSTATES={states}"), format!("-DCHUNK={chunk}")]
            }
            Source::Conv { width } => vec![format!("-DWIDTH={width}")],
        }
    }
}

/// Opens NVRTC, from these directories if it is there. Its built-in headers are a library that
/// NVRTC finds only where it is open already.
pub(super) fn open_compiler(dirs: &[PathBuf]) -> Told<()> {
    for dir in dirs {
        let Ok(files) = std::fs::read_dir(dir) else { continue };
        let mut names: Vec<_> = files
            .filter_map(|file| file.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with("libnvrtc") && name.contains(".so."))
            .filter(|name| !name.contains(".alt."))
            .collect();
        names.sort(); // the built-in headers (libnvrtc-builtins) first
        for name in names {
            open(&dir.join(name))?;
        }
    }
    // SAFETY: only asks the dynamic loader whether the library is there.
    if unsafe { nvrtc_sys::is_culib_present() } {
        return Ok(());
    }
    Err("libnvrtc.so.13: cannot open shared object file: No such file or directory".to_string())
}

/// Machine code for an architecture such as `sm_90`.
fn compile(source: &Source, architecture: &str) -> Told<Vec<u8>> {
    let text = CString::new(source.text()).map_err(|e| e.to_string())?;
    let mut options = vec![
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".to_string(),
        // Numbers below 1e-38 count as zero, as they do for libtorch's own exponentials.
        "--ftz=true".to_string(),
    ];
    options.extend(source.sizes());
    let told = |e: nvrtc::NvrtcError| format!("NVRTC failed: {e:?}");
    // SAFETY: all pointers are to NUL-terminated text or buffers of the size that NVRTC asks for,
    // and live until the program is destroyed at the end.
    unsafe {
        let mut program = std::ptr::null_mut();
        let (headers, names) = ([SHAPES.as_ptr()], [c"shapes.h".as_ptr()]);
        nvrtc_sys::nvrtcCreateProgram(
            &mut program,
            text.as_ptr(),
            source.name().as_ptr(),
            1,
            headers.as_ptr(),
            names.as_ptr(),
        )
        .result()
        .map_err(told)?;
        let compiled = nvrtc::compile_program(program, &options);
        let code = match compiled {
            Ok(()) => {
                let mut size = 0;
                nvrtc_sys::nvrtcGetCUBINSize(program, &mut size).result().and_then(|()| {
                    let mut code = vec![0u8; size];
                    nvrtc_sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result()?;
                    Ok(code)
                })
            }
            Err(e) => Err(e),
        };
        let log = nvrtc::get_program_log(program).unwrap_or_default();
        let destroyed = nvrtc::destroy_program(program);
        let code = code.map_err(|e| {
            let log: Vec<u8> = log.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
            format!("{} for {architecture}: {}", told(e), String::from_utf8_lossy(&log).trim())
        })?;
        destroyed.map_err(told)?;
        Ok(code)
    }
}

/// A module that the driver has loaded on one GPU; it stays loaded.
#[derive(Clone, Copy)]
struct Loaded(sys::CUmodule);

// SAFETY: a module's handle may be used from any thread.
unsafe impl Send for Loaded {}

/// Makes the GPU's primary context, which is libtorch's, current on this thread.
fn enter(device: i64) -> Told<()> {
    let told = |e| format!("GPU {device}: {}", said(&e));
    let ordinal = result::device::get(device as i32).map_err(told)?;
    // SAFETY: the device comes from the driver. The context's count of users stays one higher
    // than it was for every call, which is harmless: it ends with the process.
    unsafe {
        let mut current = std::ptr::null_mut();
        sys::cuCtxGetCurrent(&mut current).result().map_err(told)?;
        let mut its_device = 0;
        if !current.is_null()
            && sys::cuCtxGetDevice(&mut its_device).result().is_ok()
            && its_device == ordinal
        {
            return Ok(());
        }
        let context = result::primary_ctx::retain(ordinal).map_err(told)?;
        result::ctx::set_current(context).map_err(told)
    }
}

/// A kernel of a source, compiled and loaded if this is its first use on this GPU.
fn function(source: Source, device: i64, name: &CStr) -> Told<sys::CUfunction> {
    static MODULES: Mutex<Option<HashMap<(Source, i64), Loaded>>> = Mutex::new(None);
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    let modules = modules.get_or_insert_default();
    let told = |e| format!("GPU {device}: {}", said(&e));
    let key = (source, device);
    let module = match modules.get(&key) {
        Some(module) => *module,
        None => {
            let gpu = gpus().as_ref().ok().and_then(|list| list.get(device as usize));
            let (major, minor) = gpu.ok_or(format!("there is no GPU {device}"))?.capability;
            let code = compile(&key.0, &format!("sm_{major}{minor}"))?;
            // SAFETY: a whole cubin, which the driver copies; the GPU's context is current.
            let module = unsafe { result::module::load_data(code.as_ptr().cast()) };
            let module = Loaded(module.map_err(told)?);
            modules.insert(key, module);
            module
        }
    };
    // SAFETY: the module is loaded and never unloaded.
    unsafe { result::module::get_function(module.0, name.to_owned()) }.map_err(told)
}

/// Puts a kernel on a stream. `arguments` point to values of the kernel's own parameter types.
///
/// # Safety
/// What the arguments point to must be device memory of the kernel's shapes, used on that stream.
unsafe fn launch(
    (source, name): (Source, &CStr),
    (device, stream): (i64, *mut c_void),
    grid: (i64, i64, i64),
    threads: u32,
    arguments: &mut [*mut c_void],
) -> Told<()> {
    if grid.0 == 0 || grid.1 == 0 || grid.2 == 0 {
        return Ok(());
    }
    // More than the hardware takes in the second and third direction.
    if grid.1 > 65_535 || grid.2 > 65_535 {
        return Err(format!("a micro-batch of {} x {} is too large for a GPU", grid.1, grid.2));
    }
    enter(device)?;
    let function = function(source, device, name)?;
    let grid = (grid.0 as u32, grid.1 as u32, grid.2 as u32);
    // SAFETY: as the caller promises; a function of a loaded module in the current context.
    unsafe {
        result::launch_kernel(function, grid, (threads, 1, 1), 0, stream.cast(), arguments)
            .map_err(|e| format!("GPU {device}, {name:?}: {}", said(&e)))
    }
}

/// A message that the shim frees, or null.
fn tell(outcome: Told<()>) -> *mut c_char {
    match outcome {
        Ok(()) => std::ptr::null_mut(),
        Err(text) => {
            let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
            // SAFETY: a NUL-terminated copy made by malloc.
            unsafe { libc::strdup(text.as_ptr()) }
        }
    }
}

/// The address of a kernel's argument.
fn at<T>(value: &mut T) -> *mut c_void {
    std::ptr::from_mut(value).cast()
}

/// Threads of a block of the scan (LANES in scan.cu) and of the convolution.
const LANES: i64 = 32;
const CONV_THREADS: i64 = 128;

fn scan_source(shape: &ScanShape) -> Source {
    Source::Scan { states: shape.states, chunk: shape.chunk }
}

fn conv_grid(shape: &ConvShape) -> (i64, i64, i64) {
    let tiles = (shape.length + shape.tile - 1) / shape.tile;
    ((shape.channels + CONV_THREADS - 1) / CONV_THREADS, tiles, shape.batch)
}

extern "C" fn scan_forward(
    shape: &ScanShape,
    input: &ScanInputs,
    mut y: *mut f32,
    mut saved: *mut f32,
    device: i64,
    stream: *mut c_void,
) -> *mut c_char {
    let (mut shape, mut input) = (*shape, *input);
    let kernel = (scan_source(&shape), c"scan_forward");
    let grid = ((shape.channels + LANES - 1) / LANES, shape.batch, 1);
    let mut arguments = [at(&mut shape), at(&mut input), at(&mut y), at(&mut saved)];
    // SAFETY: the shim made these tensors on this device and stream, and checked their shapes.
    tell(unsafe { launch(kernel, (device, stream), grid, LANES as u32, &mut arguments) })
}

extern "C" fn scan_backward(
    shape: &ScanShape,
    input: &ScanInputs,
    mut saved: *const f32,
    grad: &ScanGrad,
    device: i64,
    stream: *mut c_void,
) -> *mut c_char {
    let (mut shape, mut input, mut grad) = (*shape, *input, *grad);
    let kernel = (scan_source(&shape), c"scan_backward");
    let grid = ((shape.channels + LANES - 1) / LANES, shape.batch, 1);
    let mut arguments = [at(&mut shape), at(&mut input), at(&mut saved), at(&mut grad)];
    // SAFETY: the shim made these tensors on this device and stream, and checked their shapes.
    tell(unsafe { launch(kernel, (device, stream), grid, LANES as u32, &mut arguments) })
}

extern "C" fn conv_forward(
    shape: &ConvShape,
    input: &ConvInput,
    mut y: *mut f32,
    device: i64,
    stream: *mut c_void,
) -> *mut c_char {
    let (mut shape, mut input) = (*shape, *input);
    let kernel = (Source::Conv { width: shape.width }, c"conv_forward");
    let grid = conv_grid(&shape);
    let mut arguments = [at(&mut shape), at(&mut input), at(&mut y)];
    // SAFETY: the shim made these tensors on this device and stream, and checked their shapes.
    tell(unsafe { launch(kernel, (device, stream), grid, CONV_THREADS as u32, &mut arguments) })
}

extern "C" fn conv_backward(
    shape: &ConvShape,
    input: &ConvInput,
    grad: &ConvGrad,
    device: i64,
    stream: *mut c_void,
) -> *mut c_char {
    let (mut shape, mut input, mut grad) = (*shape, *input, *grad);
    let kernel = (Source::Conv { width: shape.width }, c"conv_backward");
    let grid = conv_grid(&shape);
    let mut arguments = [at(&mut shape), at(&mut input), at(&mut grad)];
    // SAFETY: the shim made these tensors on this device and stream, and checked their shapes.
    tell(unsafe { launch(kernel, (device, stream), grid, CONV_THREADS as u32, &mut arguments) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::cuda::libtorch_dir;
    use std::io::Write;

    /// Compiling needs no GPU. `TRAINER_NVRTC` names a directory with libnvrtc where libtorch has
    /// none (PyPI's nvidia-cuda-nvrtc unpacked).
    #[test]
    fn every_kernel_compiles_for_every_architecture() {
        let lib = libtorch_dir().unwrap();
        let mut dirs = vec![lib.clone(), lib.join("../../nvidia/cu13/lib")];
        dirs.extend(std::env::var_os("TRAINER_NVRTC").map(PathBuf::from));
        if let Err(why) = open_compiler(&dirs) {
            // Past the test's capture: this must be seen.
            let _ = std::io::stderr().write_all(
                format!(
                    "################ NOT RUN: the GPU kernels are not compiled. {why}\n\
                     ################ Set TRAINER_NVRTC to the directory of libnvrtc.so.13.\n"
                )
                .as_bytes(),
            );
            return;
        }
        for architecture in ["sm_80", "sm_90"] {
            for (states, chunk) in [(1, 16), (4, 16), (16, 16), (32, 8), (64, 4)] {
                let code = compile(&Source::Scan { states, chunk }, architecture).unwrap();
                assert_eq!(&code[..4], b"\x7fELF");
            }
            for width in [1, 4, 8] {
                let code = compile(&Source::Conv { width }, architecture).unwrap();
                assert_eq!(&code[..4], b"\x7fELF");
            }
        }
        // A wrong size is refused, with the compiler's own words.
        let text = compile(&Source::Conv { width: 0 }, "sm_90").unwrap_err();
        assert!(text.contains("conv.cu"), "{text}");
    }

    #[test]
    fn a_kernel_s_complaint_reaches_the_shim_as_text() {
        assert!(tell(Ok(())).is_null());
        let message = tell(Err("what went wrong".to_string()));
        // SAFETY: a NUL-terminated text from malloc, freed once.
        unsafe {
            assert_eq!(CStr::from_ptr(message).to_str(), Ok("what went wrong"));
            libc::free(message.cast());
        }
    }
}
