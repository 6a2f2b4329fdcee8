//! Ctrl-C and SIGTERM: the first asks for a clean end, the second ends the program at once. SIGHUP, e.g. after a lost
//! connection, asks for a clean end where ending at once would leave something half done.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// The flags of this process.
static FLAGS: Mutex<Vec<Arc<AtomicBool>>> = Mutex::new(Vec::new());

/// Returns whether one of the flags is set: a wait for another host makes no sense any more.
pub fn is_cancelled() -> bool {
    let flags = FLAGS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    flags.iter().any(|flag| flag.load(Ordering::SeqCst))
}

/// Returns a flag that the first signal sets. The second signal ends the process with code 130. Other code may set the flag
/// too, e.g. a deadline; the first signal after that does not end the process at once.
pub fn cancel_flag() -> std::io::Result<Arc<AtomicBool>> {
    let cancel = Arc::new(AtomicBool::new(false));
    let signalled = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag false, sets it, and the second finds it true.
        flag::register_conditional_shutdown(signal, 130, Arc::clone(&signalled))?;
        flag::register(signal, Arc::clone(&signalled))?;
        flag::register(signal, Arc::clone(&cancel))?;
    }
    let mut flags = FLAGS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    flags.push(Arc::clone(&cancel));
    drop(flags);
    Ok(cancel)
}

/// Returns a flag like [`cancel_flag`] that SIGHUP sets too. SIGHUP comes twice, from the terminal and from the shell, so it
/// never ends the process at once. Where it is ignored, e.g. with nohup, it stays ignored.
pub fn cancel_flag_with_hangup() -> std::io::Result<Arc<AtomicBool>> {
    let cancel = cancel_flag()?;
    if !ignores(SIGHUP)? {
        flag::register(SIGHUP, Arc::clone(&cancel))?;
    }
    Ok(cancel)
}

/// Returns whether this process was started with a signal ignored: proc_pid_status(5), `SigIgn`.
fn ignores(signal: i32) -> std::io::Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    Ok(mask.is_some_and(|mask| mask & 1 << (signal - 1) != 0))
}
