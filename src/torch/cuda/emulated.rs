//! The GPU kernels' own source, compiled for the CPU (`emulation.h`) and run in place of the CPU's
//! kernels: through the shim and autograd they must give the same numbers.

use super::table::{
    ConvBackward, ConvForward, DeviceKernels, ScanBackward, ScanForward, in_place_of_the_cpu_s,
};
use crate::torch::{ScanInput, causal_conv, selective_scan};
use std::ffi::{CString, c_void};
use std::mem::transmute;
use std::path::Path;
use std::process::Command;
use tch::{Device, Kind, Tensor};

type Address = *mut c_void;

/// A source compiled for some sizes, opened for good.
struct Library(Address);

impl Library {
    fn compile(name: &str, sizes: &[String]) -> Library {
        let dir =
            std::env::temp_dir().join(format!("trainer-emulated-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let library = dir.join(format!("{name}.so"));
        let torch = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/torch");
        let compiler = std::env::var("CXX").unwrap_or("c++".to_string());
        let status = Command::new(compiler)
            .args(["-std=c++20", "-O2", "-fPIC", "-shared", "-I"])
            .arg(torch.join("cpp"))
            .args(sizes)
            .arg(torch.join("cuda/emulation.cpp"))
            .arg("-o")
            .arg(&library)
            .status()
            .expect("the C++ compiler that built this program");
        assert!(status.success(), "{name} does not compile");
        let path = CString::new(library.to_str().unwrap()).unwrap();
        // SAFETY: opens a library whose initialisers only make thread-local variables.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null(), "{name} does not load");
        std::fs::remove_dir_all(&dir).unwrap();
        Library(handle)
    }

    /// The address of a function.
    fn function(&self, name: &str) -> Address {
        let name = CString::new(name).unwrap();
        // SAFETY: an open library and a NUL-terminated name.
        let function = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!function.is_null(), "{name:?} is not in the library");
        function
    }
}

/// What a GPU would be given, from sources compiled for these sizes.
fn kernels(name: &str, states: i64, width: i64) -> DeviceKernels {
    let chunk = if states <= 16 {
        16
    } else if states <= 32 {
        8
    } else {
        4
    };
    let scan = Library::compile(
        &format!("scan-{name}"),
        &[format!("-DSTATES={states}"), format!("-DCHUNK={chunk}")],
    );
    let conv = Library::compile(&format!("conv-{name}"), &[format!("-DWIDTH={width}")]);
    // SAFETY: emulation.cpp defines these functions with the parameters of DeviceKernels.
    unsafe {
        DeviceKernels {
            scan_forward: transmute::<Address, ScanForward>(scan.function("emulated_scan_forward")),
            scan_backward: transmute::<Address, ScanBackward>(
                scan.function("emulated_scan_backward"),
            ),
            conv_forward: transmute::<Address, ConvForward>(conv.function("emulated_conv_forward")),
            conv_backward: transmute::<Address, ConvBackward>(
                conv.function("emulated_conv_backward"),
            ),
        }
    }
}

fn random(shape: &[i64], scale: f64) -> Tensor {
    (Tensor::randn(shape, (Kind::Float, Device::Cpu)) * scale).set_requires_grad(true)
}

/// Largest difference relative to the largest element.
fn deviation(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let scale = b.abs().max().double_value(&[]).max(1e-30);
    (a - b).abs().max().double_value(&[]) / scale
}

/// The output and the gradient of every leaf.
fn run(leaves: &[&Tensor], work: impl Fn() -> Tensor) -> Vec<Tensor> {
    let y = work();
    tch::manual_seed(9);
    let loss = (&y * y.randn_like()).sum(Kind::Float);
    let mut found = vec![y.detach()];
    found.extend(Tensor::run_backward(&[loss], leaves, false, false));
    found
}

#[track_caller]
fn same(what: &str, table: &DeviceKernels, leaves: &[&Tensor], work: impl Fn() -> Tensor) {
    let expected = run(leaves, &work);
    let found = in_place_of_the_cpu_s(table, || run(leaves, &work));
    for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
        assert!(deviation(f, e) < 2e-5, "{what}: result {i} is {:.1e} off", deviation(f, e));
    }
    // The exponentials differ in their last bits, so it was another kernel that ran.
    assert!(found.iter().zip(&expected).any(|(f, e)| f != e), "{what}: the same kernel ran twice");
    let again = in_place_of_the_cpu_s(table, || run(leaves, &work));
    assert_eq!(found, again, "{what}: two runs differ");
    let inference = in_place_of_the_cpu_s(table, || tch::no_grad(&work));
    assert_eq!(inference, found[0], "{what}: inference and training differ");
}

/// (batch, length, channels, states): whole and cut chunks, tiles and warps.
const SCANS: [(i64, i64, i64, i64); 6] = [
    (2, 33, 48, 16),
    (1, 1, 16, 16),
    (3, 70, 20, 4),
    (2, 65, 150, 16),
    (1, 40, 3, 5),
    (1, 21, 33, 33),
];

#[test]
fn the_gpu_s_scan_gives_the_cpu_s_numbers() {
    tch::manual_seed(7);
    for (batch, length, channels, states) in SCANS {
        let name = format!("{batch}-{length}-{channels}-{states}");
        let table = kernels(&name, states, 4);
        // B and C in rows of one tensor, z in the second half of another, as the model has them.
        let rows = random(&[batch, length, 3 + 2 * states], 1.0);
        let halves = random(&[batch, length, 2 * channels], 1.0);
        let (u, dt) =
            (random(&[batch, length, channels], 1.0), random(&[batch, length, channels], 2.0));
        let (dt_bias, d) = (random(&[channels], 1.0), random(&[channels], 1.0));
        let a_log = random(&[channels, states], 1.0);
        let leaves = [&u, &dt, &dt_bias, &a_log, &rows, &d, &halves];
        same(&name, &table, &leaves, || {
            selective_scan(&ScanInput {
                u: &u,
                dt: &dt,
                dt_bias: &dt_bias,
                a_log: &a_log,
                b: &rows.narrow(2, 3, states),
                c: &rows.narrow(2, 3 + states, states),
                d: &d,
                z: &halves.narrow(2, channels, channels),
            })
            .unwrap()
        });
    }
}

#[test]
fn the_gpu_s_convolution_gives_the_cpu_s_numbers() {
    tch::manual_seed(8);
    for (batch, length, channels, width) in
        [(2, 33, 48, 4), (1, 2, 5, 4), (3, 17, 20, 3), (2, 200, 70, 4), (1, 65, 2, 1)]
    {
        let name = format!("{batch}-{length}-{channels}-{width}");
        let table = kernels(&name, 4, width);
        let x = random(&[batch, length, 2 * channels], 1.0);
        let (weight, bias) = (random(&[channels, 1, width], 1.0), random(&[channels], 1.0));
        same(&name, &table, &[&x, &weight, &bias], || {
            causal_conv(&x.narrow(2, channels, channels), &weight, &bias).unwrap()
        });
    }
}
