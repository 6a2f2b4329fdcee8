//! Watches during a restore whether another process starts to use the target.

use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::disk::target::Target;
use crate::error::Result;

/// Interval between checks: shorter than the time from a guest's start to its first write to its disk.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// Checks for other users of the target until it is stopped.
#[derive(Default)]
pub(super) struct Watch {
    is_over: Mutex<bool>,
    ended: Condvar,
}

impl Watch {
    /// Checks every few seconds. Returns an error as soon as another user appears; returns `Ok` when the watch is
    /// stopped.
    pub(super) fn run(&self, target: &Target) -> Result<()> {
        let mut is_over = self.is_over.lock();
        while !*is_over {
            MutexGuard::unlocked(&mut is_over, || target.check_alone())?;
            self.ended
                .wait_while_for(&mut is_over, |is_over| !*is_over, BETWEEN_LOOKS);
        }
        Ok(())
    }

    pub(super) fn end(&self) {
        *self.is_over.lock() = true;
        self.ended.notify_all();
    }
}
