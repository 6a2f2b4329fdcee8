//! Changes that were made to a disk through a writable mount, and kept.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vbk_inside::overlay::Changes;

use crate::disk::buffer::AlignedBuffer;
use crate::disk::target::Target;
use crate::error::{Error, Result};

/// Longest write of neighbouring pages.
const RUN_BYTES: usize = 1 << 20;

/// The kept changes of one disk.
#[derive(Clone)]
pub struct DiskChanges {
    changes: Arc<Changes>,
    disk: String,
}

impl DiskChanges {
    /// Takes the changes of a disk; there may be none.
    pub fn new(changes: Arc<Changes>, disk: &str) -> Self {
        Self {
            changes,
            disk: disk.to_owned(),
        }
    }

    /// Writes the changed pages over a restored disk, neighbours in one piece.
    pub(super) fn write(&self, target: &Target, cancel: &AtomicBool) -> Result<()> {
        let mut run = Run {
            start_bytes: 0,
            len: 0,
            buffer: AlignedBuffer::new(RUN_BYTES),
        };
        self.changes.pages(&self.disk, &mut |offset_bytes, bytes| {
            if cancel.load(Ordering::SeqCst) {
                return Err(Stopped::Engine(Error::Interrupted));
            }
            if run.start_bytes + run.len as u64 != offset_bytes || run.len + bytes.len() > RUN_BYTES {
                run.write(target)?;
                run.start_bytes = offset_bytes;
            }
            run.buffer.as_mut_slice()[run.len..run.len + bytes.len()].copy_from_slice(bytes);
            run.len += bytes.len();
            Ok(())
        })?;
        Ok(run.write(target)?)
    }
}

/// Neighbouring pages that are not written yet.
struct Run {
    start_bytes: u64,
    len: usize,
    buffer: AlignedBuffer,
}

impl Run {
    fn write(&mut self, target: &Target) -> std::result::Result<(), Stopped> {
        target.write(self.start_bytes, &self.buffer.as_slice()[..self.len])?;
        self.len = 0;
        Ok(())
    }
}

/// Reason to stop: reading the file of changes failed, or what the engine does with them.
enum Stopped {
    Changes(io::Error),
    Engine(Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Changes(error)
    }
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

impl From<Stopped> for Error {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Engine(error) => error,
            Stopped::Changes(source) => Error::ReadChanges { source },
        }
    }
}

impl fmt::Debug for DiskChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "changes of {}", self.disk)
    }
}

/// Equal if they are of the same file and disk.
impl PartialEq for DiskChanges {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.changes, &other.changes) && self.disk == other.disk
    }
}

impl Eq for DiskChanges {}
