//! The stop flag: SIGTERM, SIGINT and SIGUSR1 set it and do nothing else; so does the time limit of
//! the job (`deadline`).
//!
//! A second Ctrl-C within five seconds ends the process at once with exit code 130. SIGXFSZ is
//! ignored: a file that grows beyond a limit is then an error with a name and a remedy.

use std::sync::atomic::{AtomicI32, AtomicI64, Ordering};

static SIGNAL: AtomicI32 = AtomicI32::new(0);
static LAST_INTERRUPT: AtomicI64 = AtomicI64::new(0);

extern "C" fn on_signal(signal: libc::c_int) {
    SIGNAL.store(signal, Ordering::SeqCst);
    if signal == libc::SIGINT {
        // SAFETY: time and _exit may be called from a signal handler.
        unsafe {
            let now = libc::time(std::ptr::null_mut());
            let last = LAST_INTERRUPT.swap(now, Ordering::SeqCst);
            if last != 0 && now - last <= 5 {
                libc::_exit(130);
            }
        }
    }
}

/// Installs the handler. Called once, before anything that takes long.
pub fn install() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1] {
        // SAFETY: the handler only stores to atomics and calls functions that are safe in one.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// What [`requested`] says where the job's time is nearly up.
const TIME_LIMIT: &str = "the job's time limit";

/// Stands for [`TIME_LIMIT`] among the signals.
const NO_SIGNAL: i32 = -1;

/// Sets the flag because the job's time is nearly up.
pub(super) fn time_is_up() {
    // A signal that came before stays the reason.
    let _ = SIGNAL.compare_exchange(0, NO_SIGNAL, Ordering::SeqCst, Ordering::SeqCst);
}

/// What asked this process to stop, if anything did.
pub fn requested() -> Option<&'static str> {
    match SIGNAL.load(Ordering::SeqCst) {
        0 => None,
        libc::SIGTERM => Some("SIGTERM"),
        libc::SIGINT => Some("SIGINT"),
        NO_SIGNAL => Some(TIME_LIMIT),
        _ => Some("SIGUSR1"),
    }
}
