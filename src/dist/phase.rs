//! What this process is doing, for the one message it may have to leave.

use std::sync::Mutex;

static PHASE: Mutex<String> = Mutex::new(String::new());

/// Says what begins now, in words that complete "while ...".
pub fn enter(phase: impl Into<String>) {
    if let Ok(mut current) = PHASE.lock() {
        *current = phase.into();
    }
}

/// What was entered last.
pub fn current() -> String {
    PHASE.lock().map(|p| p.clone()).unwrap_or_default()
}
