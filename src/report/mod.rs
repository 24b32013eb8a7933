//! What a run says about itself: one line a step, records that never double, tables of
//! figures, and pictures.

pub mod console;
pub mod jsonl;
pub mod metrics_json;
pub mod picture;
pub mod plots;
pub mod scores;
pub mod step_line;
pub mod tensorboard;

/// An empty directory of a test's own.
#[cfg(test)]
fn scratch(name: &str) -> std::path::PathBuf {
    let name = format!("trainer-report-{name}-{}", std::process::id());
    let dir = std::env::temp_dir().join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}
