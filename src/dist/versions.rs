//! Which libraries ranks talk through, for `doctor`.

/// The MPI in use: first line of the library's own version text.
pub fn mpi_version() -> String {
    let text = mpi::environment::library_version().unwrap_or_default();
    text.trim_end_matches('\0').split([',', '\n']).next().unwrap_or("unknown").to_string()
}

/// The version of the NCCL that would be loaded; it answers without a GPU.
pub fn nccl_version() -> String {
    use cudarc::nccl::{result, sys};
    // SAFETY: only asks the dynamic loader whether the library is there.
    if !unsafe { sys::is_culib_present() } {
        return "not found (libnccl.so; `bash jobs/setup.sh` links it)".to_string();
    }
    match result::get_nccl_version() {
        Ok(v) => format!("{}.{}.{}", v / 10_000, v / 100 % 100, v % 100),
        Err(error) => format!("present, but does not answer: {error:?}"),
    }
}
