//! Looks during a restore whether another process begins to use the target.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::disk::target::Target;
use crate::error::Result;

/// A guest that is started needs longer than that until it writes to its disk.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// Looks until it is ended.
#[derive(Default)]
pub(super) struct Watch {
    is_over: Mutex<bool>,
    ended: Condvar,
}

impl Watch {
    /// Looks every few seconds. Returns with an error as soon as there is another user, or when the watch is ended.
    pub(super) fn run(&self, target: &Target) -> Result<()> {
        let mut is_over = self.is_over.lock().unwrap_or_else(PoisonError::into_inner);
        while !*is_over {
            drop(is_over);
            target.check_alone()?;
            is_over = self.is_over.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = self
                .ended
                .wait_timeout_while(is_over, BETWEEN_LOOKS, |is_over| !*is_over);
            is_over = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    pub(super) fn end(&self) {
        *self.is_over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.ended.notify_all();
    }
}
