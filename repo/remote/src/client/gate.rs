//! Where threads wait until some connection takes more. One for all connections of this process: a thread takes whichever has room
//! first.

use parking_lot::{Condvar, Mutex};

/// The gate of this process.
pub(super) static GATE: Gate = Gate {
    changes: Mutex::new(0),
    changed: Condvar::new(),
};

pub(super) struct Gate {
    changes: Mutex<u64>,
    changed: Condvar,
}

impl Gate {
    /// The number of changes, for [`Gate::wait`]. To be taken before the connections are looked at.
    pub(super) fn changes(&self) -> u64 {
        *self.changes.lock()
    }

    /// Waits until there were more changes than `seen`.
    pub(super) fn wait(&self, seen: u64) {
        let mut changes = self.changes.lock();
        while *changes == seen {
            self.changed.wait(&mut changes);
        }
    }

    /// Tells that a connection has more room, is there again, or is over.
    pub(super) fn change(&self) {
        *self.changes.lock() += 1;
        self.changed.notify_all();
    }
}
