//! Builds the C++ of `torch/` against the libtorch that torch-sys found, and bakes the run paths
//! into the binaries, so that they start without LD_LIBRARY_PATH.

use std::env;
use std::path::PathBuf;

/// Compiled once per instruction set.
const KERNELS: [&str; 3] = ["kernels.cpp", "attention_kernel.cpp", "transformer_kernels.cpp"];

fn main() {
    let cpp = "src/torch/cpp";
    let sources = ["shim.cpp", "functions.cpp", "transformer.cpp", "lane.cpp"];
    let headers = ["shapes.h", "kernels.h", "transformer.h", "vector.h", "mask.h", "shim.h"];
    for file in headers.iter().chain(&KERNELS).chain(&sources) {
        println!("cargo:rerun-if-changed={cpp}/{file}");
    }
    println!("cargo:rerun-if-changed=src/torch/build.rs");
    let lib = PathBuf::from(
        env::var("DEP_TCH_LIBTORCH_LIB")
            .expect("torch-sys says where libtorch is; run `bash jobs/setup.sh` first"),
    );
    let root = lib.parent().expect("libtorch's lib directory has a parent").to_path_buf();

    let x86 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    let avx512 = [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mfma",
        "-mprefer-vector-width=512",
    ];
    kernels(cpp, "generic", &[]);
    if x86 {
        kernels(cpp, "avx2", &["-mavx2", "-mfma"]);
        kernels(cpp, "avx512", &avx512);
    }
    base()
        .files(sources.map(|file| format!("{cpp}/{file}")))
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .flag("-fopenmp")
        .define("AT_PARALLEL_OPENMP", "1")
        .compile("trainer_shim");

    println!("cargo:rustc-link-lib=gomp");
    // The libgomp that libtorch brings must be the only one in the process.
    println!("cargo:rustc-link-search=native={}", lib.display());
    let nccl =
        PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join(".venv/nccl");
    for dir in [&lib, &nccl] {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", dir.display());
    }
    // Run paths of the older kind also serve libraries that are opened later (NCCL, libtorch_cuda).
    println!("cargo:rustc-link-arg=-Wl,--disable-new-dtags");
}

fn base() -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++20")
        .opt_level(3)
        .debug(false)
        .flag_if_supported("-Wno-unused-parameter")
        .flag_if_supported("-Wno-psabi");
    build
}

/// One instruction set's tables of kernels.
fn kernels(cpp: &str, name: &str, flags: &[&str]) {
    let mut build = base();
    build
        .files(KERNELS.map(|file| format!("{cpp}/{file}")))
        .define("KERNELS_NAME", format!("\"{name}\"").as_str())
        .define("KERNELS_SPACE", name)
        .define("KERNELS_FUNCTION", format!("kernels_{name}").as_str())
        .define("TRANSFORMER_FUNCTION", format!("transformer_kernels_{name}").as_str())
        .flag("-fno-math-errno");
    for flag in flags {
        build.flag(flag);
    }
    build.compile(&format!("trainer_kernels_{name}"));
}
