//! The time of the next barrier, for writers that put much: what is durable need not be put again after a crash.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Bytes after which a barrier is due.
pub const BARRIER_BYTES: u64 = 4 << 30;
/// Time after which a barrier is due, if anything was put.
pub const BARRIER_INTERVAL: Duration = Duration::from_secs(30);

/// The time and the bytes since the last barrier.
#[derive(Debug)]
pub struct Barrier(Mutex<(Instant, u64)>);

impl Default for Barrier {
    fn default() -> Self {
        Self(Mutex::new((Instant::now(), 0)))
    }
}

impl Barrier {
    /// Counts bytes that were put. Returns whether a barrier is due: to one of several callers, while the others go on.
    pub fn is_due(&self, bytes: u64) -> bool {
        let mut since = self.0.lock();
        since.1 += bytes;
        let (last, bytes) = *since;
        let is_due = bytes > 0 && (bytes >= BARRIER_BYTES || last.elapsed() >= BARRIER_INTERVAL);
        if is_due {
            *since = (Instant::now(), 0);
        }
        is_due
    }
}
