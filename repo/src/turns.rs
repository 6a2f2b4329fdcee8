//! Lets a number of threads at a time do something.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// Turns that threads take and give back. Clones share them.
#[derive(Clone)]
pub struct Turns(Arc<Inner>);

struct Inner {
    free: Mutex<usize>,
    returned: Condvar,
}

impl Turns {
    /// Admits `most` at a time.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Inner {
            free: Mutex::new(most),
            returned: Condvar::new(),
        }))
    }

    /// Waits for a turn.
    pub fn take(&self) -> Turn {
        let mut free = self.0.free.lock();
        self.0.returned.wait_while(&mut free, |free| *free == 0);
        *free -= 1;
        Turn(Arc::clone(&self.0))
    }

    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        *self.0.free.lock()
    }
}

/// A turn; it ends when this is dropped, also by a panic.
pub struct Turn(Arc<Inner>);

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.returned.notify_one();
    }
}
