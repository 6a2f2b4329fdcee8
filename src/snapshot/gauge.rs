//! Things that become full while a disk is held still, and their highest fill.

use std::fmt::Debug;
use std::sync::Arc;

use parking_lot::Mutex;

use super::SnapshotError;
use crate::host::lvm::status::Space;
use crate::host::program::{ProgramError, Programs};

/// Something that becomes full while a disk is held still: a snapshot's space, a pool. The guard watches it.
pub(super) trait Fills: Debug + Send + Sync {
    /// Its names. Two things with equal names are one, and watched once.
    fn label(&self) -> Label;

    /// Asks for its space. The outer error says that there is no answer, which may pass; the inner one that the disk is
    /// not held still any more, which does not.
    fn look(&self, programs: &Programs) -> Result<Result<Space, SnapshotError>, ProgramError>;

    /// Bytes that the disk alone has used of it; `None` if others use it too.
    fn own_bytes(&self, _used: u64) -> Option<u64> {
        None
    }

    /// Returns whether it can become full at all.
    fn can_overflow(&self, _space: Space) -> bool {
        true
    }

    /// Extends it as far as there is room. `total` is its size now, in its own unit.
    fn extend(&self, programs: &Programs, total: u64) -> Result<(), String>;

    /// Makes the error that stops the run. `why` says why it was not extended.
    fn stopped(&self, percent: f64, why: String) -> SnapshotError;
}

/// Names of something that becomes full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Label {
    /// Name in the device mapper.
    pub device: String,
    /// `snapshot` or `thin pool`.
    pub noun: &'static str,
    /// `vg0/pool`
    pub name: String,
    /// `data` or `metadata` of a pool.
    pub part: &'static str,
    /// Others fill it too, before the run and after it; and an extension of it stays.
    pub is_shared: bool,
}

/// Something to watch, and the gauge for its fill.
#[derive(Debug, Clone)]
pub(super) struct Gauged {
    pub thing: Arc<dyn Fills>,
    /// `None` where the fill is not reported.
    pub gauge: Option<Arc<Gauge>>,
}

/// Highest fill, and highest use, that was seen.
#[derive(Debug, Default)]
pub(super) struct Gauge(Mutex<(f64, u64)>);

impl Gauge {
    pub(super) fn note(&self, space: Space) {
        let mut peak = self.0.lock();
        *peak = (peak.0.max(space.fill()), peak.1.max(space.used));
    }

    pub(super) fn peak(&self) -> (f64, u64) {
        *self.0.lock()
    }
}
