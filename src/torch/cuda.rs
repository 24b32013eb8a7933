//! CUDA at run time: whether a GPU is there, what identifies it, and libtorch's CUDA half.
//!
//! The program is not linked against `libtorch_cuda.so` (450 MB of code that a CPU never runs), so
//! that half of libtorch is opened when a GPU is visible and wanted, before libtorch is first asked
//! about CUDA: it remembers the answer. GPUs themselves are asked through the driver, which costs a
//! fraction of that and starts nothing on them.
//!
//! - `launch`: our own kernels (`scan.cu`, `conv.cu`), compiled at their first use
//! - `table`: how the shim calls them

#[cfg(test)]
mod emulated;
mod launch;
mod table;

use super::shim;
use crate::error::{Error, Result};
use cudarc::driver::{result, sys};
use std::ffi::{CStr, CString, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A GPU that this process may use, or a part of one (MIG).
#[derive(Clone, Debug, PartialEq)]
pub struct Gpu {
    /// What it is and no other is, as nvidia-smi writes it without the prefix.
    pub uuid: String,
    /// Its model, such as `NVIDIA H200`.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Bytes of memory.
    pub memory: usize,
}

/// The GPUs that are visible to this process, in libtorch's order, or why the driver does not say.
/// Nothing is asked where no NVIDIA device is in sight.
pub fn gpus() -> &'static std::result::Result<Vec<Gpu>, String> {
    static GPUS: OnceLock<std::result::Result<Vec<Gpu>, String>> = OnceLock::new();
    GPUS.get_or_init(|| {
        let wanted = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let there = ["/dev/nvidiactl", "/dev/nvidia0", "/proc/driver/nvidia/version", "/dev/dxg"]
            .iter()
            .any(|path| Path::new(path).exists());
        if worth_asking(wanted.as_deref(), there) { ask_driver() } else { Ok(Vec::new()) }
    })
}

/// Whether a GPU may be visible, by signs that cost nothing: the variable that hides them, and
/// whether the driver has left a file.
fn worth_asking(cuda_visible_devices: Option<&str>, driver_files: bool) -> bool {
    let hidden = |list: &str| matches!(list.trim(), "" | "-1" | "NoDevFiles");
    driver_files && !cuda_visible_devices.is_some_and(hidden)
}

fn ask_driver() -> std::result::Result<Vec<Gpu>, String> {
    // SAFETY: only asks the dynamic loader whether the library is there.
    if !unsafe { sys::is_culib_present() } {
        return Err("the driver's libcuda.so.1 is not found".to_string());
    }
    match result::init() {
        Ok(()) => {}
        Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => return Ok(Vec::new()),
        Err(e) => return Err(format!("the driver does not start: {}", said(&e))),
    }
    let count = result::device::get_count().map_err(|e| said(&e))?;
    (0..count).map(|i| describe(i).map_err(|e| said(&e))).collect()
}

fn describe(ordinal: c_int) -> std::result::Result<Gpu, result::DriverError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let device = result::device::get(ordinal)?;
    let uuid = result::device::get_uuid(device)?;
    // SAFETY: `device` comes from the driver.
    let (capability, memory) = unsafe {
        let attribute = |which| result::device::get_attribute(device, which);
        ((attribute(MAJOR)?, attribute(MINOR)?), result::device::total_mem(device)?)
    };
    let name = result::device::get_name(device)?;
    Ok(Gpu { uuid: uuid_text(uuid.bytes.map(|b| b as u8)), name, capability, memory })
}

/// 16 bytes as 8-4-4-4-12 hexadecimal digits.
fn uuid_text(bytes: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text += &format!("{byte:02x}");
    }
    text
}

/// The driver's own words.
fn said(error: &result::DriverError) -> String {
    let text = error.error_string().map(|s| s.to_string_lossy().into_owned());
    text.unwrap_or_else(|_| format!("{:?}", error.0))
}

/// Opens libtorch's CUDA half and compiles for its GPUs from then on, once in a process; afterwards
/// tensors can live on [`gpus`]. What fails is the installation (exit code 4).
pub fn load() -> Result<()> {
    LOADED.get_or_init(open_libtorch).clone().map_err(|what| {
        Error::launch(format!("libtorch cannot use a GPU: {what}"))
            .hint("install its CUDA libraries with `bash jobs/setup.sh --cuda`")
    })
}

static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();

/// The most bytes of tensors that this process has held on a GPU at once; None where it uses none.
pub fn peak_bytes() -> Option<u64> {
    if !matches!(LOADED.get(), Some(Ok(()))) {
        return None;
    }
    let count = gpus().as_ref().map_or(0, Vec::len);
    let held = (0..count).filter_map(|gpu| shim::peak_bytes(gpu).ok()).max();
    held.filter(|&bytes| bytes > 0)
}

fn open_libtorch() -> std::result::Result<(), String> {
    let lib = libtorch_dir().ok_or("this process has no libtorch_cpu.so")?;
    open(&lib.join("libtorch_cuda.so"))?;
    launch::open_compiler(&[lib.clone(), lib.join("../../nvidia/cu13/lib")])?;
    let visible = gpus().as_ref().map_or(0, Vec::len) as i64;
    let usable = tch::Cuda::device_count();
    if usable < visible {
        return Err(format!(
            "it sees {usable} of {visible} GPUs; the driver supports CUDA {}, libtorch {} was made \
             with CUDA 13.0",
            driver_version().unwrap_or_else(|| "of an unknown version".to_string()),
            shim::torch_version()
        ));
    }
    table::serve_gpus(&launch::KERNELS);
    Ok(())
}

/// The newest CUDA that the driver supports, such as `13.0`; None without a driver.
pub fn driver_version() -> Option<String> {
    // SAFETY: asks for the library, then for a number.
    let version = unsafe {
        if !sys::is_culib_present() {
            return None;
        }
        let mut version: c_int = 0;
        sys::cuDriverGetVersion(&mut version).result().ok()?;
        version
    };
    Some(format!("{}.{}", version / 1000, version % 1000 / 10))
}

/// Where this process's libtorch lies.
fn libtorch_dir() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    let mut own = path.filter(|path| path.ends_with("/libtorch_cpu.so"));
    Path::new(own.next()?).parent().map(Path::to_path_buf)
}

/// Opens a library for the whole process and for good. The error is the dynamic loader's: it names
/// the library that is missing, which may be one that `path` needs.
fn open(path: &Path) -> std::result::Result<(), String> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: runs the initialisers of a library of the libtorch that already runs here; the error
    // text is copied before another call could change it.
    unsafe {
        if !libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL).is_null() {
            return Ok(());
        }
        let text = libc::dlerror();
        if text.is_null() {
            return Err(format!("{} cannot be opened", path.display()));
        }
        Err(CStr::from_ptr(text).to_string_lossy().into_owned())
    }
}

/// What cuBLAS needs to give the same bits every time, unless the user has set it. Called once, at
/// the start, before there are threads.
pub fn settle_environment() {
    const NAME: &str = "CUBLAS_WORKSPACE_CONFIG";
    if std::env::var_os(NAME).is_none() {
        // SAFETY: no other thread runs yet that could read the environment meanwhile.
        unsafe { std::env::set_var(NAME, ":4096:8") };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_not_asked_about_where_there_is_no_sign_of_one() {
        assert!(worth_asking(None, true));
        assert!(worth_asking(Some("0,1"), true));
        assert!(worth_asking(Some("GPU-8f6d2a3b"), true));
        for hidden in ["", " ", "-1", "NoDevFiles"] {
            assert!(!worth_asking(Some(hidden), true), "{hidden:?}");
        }
        assert!(!worth_asking(None, false));
        assert!(!worth_asking(Some("0"), false));
    }

    #[test]
    fn uuids_read_as_nvidia_smi_writes_them() {
        let bytes = std::array::from_fn(|i| (i * 17) as u8);
        assert_eq!(uuid_text(bytes), "00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn a_missing_library_is_named() {
        // The CPU's set of wheels has libtorch_cuda.so, but not what it needs.
        let lib = libtorch_dir().unwrap();
        assert!(lib.join("libtorch_cpu.so").exists());
        match open(&lib.join("libtorch_cuda.so")) {
            Ok(()) => println!("this libtorch is complete: nothing is missing to be named"),
            Err(text) => assert!(text.contains(".so") && text.contains("No such file"), "{text}"),
        }
        let text = open(Path::new("/nowhere/libx.so")).unwrap_err();
        assert!(text.contains("/nowhere/libx.so"), "{text}");
    }
}
