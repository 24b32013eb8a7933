//! What this process is doing, for the one message it may have to leave, and for `-v`.

use std::sync::Mutex;

static PHASE: Mutex<String> = Mutex::new(String::new());

/// Says what begins now, in words that complete "while ...".
pub fn enter(phase: impl Into<String>) {
    let phase = phase.into();
    tracing::debug!("{phase}");
    if let Ok(mut current) = PHASE.lock() {
        *current = phase;
    }
}

/// What was entered last.
pub fn current() -> String {
    PHASE.lock().map(|p| p.clone()).unwrap_or_default()
}
