//! Ctrl-C and SIGTERM: the first asks for a clean end, the second ends the program at once.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// A flag that becomes true with the first signal. With the second the process ends with code 130. Others may set the
/// flag too, as a deadline does: that is no signal, and the first after it does not end the process at once.
pub fn cancel_flag() -> std::io::Result<Arc<AtomicBool>> {
    let cancel = Arc::new(AtomicBool::new(false));
    let signalled = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag false, sets it, and the second finds it true.
        flag::register_conditional_shutdown(signal, 130, Arc::clone(&signalled))?;
        flag::register(signal, Arc::clone(&signalled))?;
        flag::register(signal, Arc::clone(&cancel))?;
    }
    Ok(cancel)
}
