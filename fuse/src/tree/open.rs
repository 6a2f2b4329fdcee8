//! Open files of the tree, and the bytes they read.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use vbk_inside::device::SharedDevice;
use vbk_repo::Error;
use vbk_repo::Result;

use super::Attributes;
use vbk_inside::btrfs::{self, Patch};

/// Damaged offsets that one open file logs at most, so that a program that retries for ever does not fill the log.
const REPORTS: usize = 100;

/// An open file.
pub(super) struct OpenFile {
    pub(super) attributes: Attributes,
    /// Backup and file, for the log.
    pub(super) label: String,
    pub(super) content: OpenContent,
    pub(super) reported: Mutex<HashSet<u64>>,
}

pub(super) enum OpenContent {
    Bytes(Arc<[u8]>),
    Device {
        device: SharedDevice,
        /// Bytes that replace those of the device.
        patches: Vec<Patch>,
    },
}

impl OpenFile {
    pub(super) fn read(&self, offset_bytes: u64, out: &mut [u8]) -> Result<usize> {
        match &self.content {
            OpenContent::Bytes(bytes) => {
                let start = usize::try_from(offset_bytes).unwrap_or(usize::MAX).min(bytes.len());
                let len = out.len().min(bytes.len() - start);
                out[..len].copy_from_slice(&bytes[start..start + len]);
                Ok(len)
            }
            OpenContent::Device { device, patches } => {
                let left = device.size_bytes().saturating_sub(offset_bytes);
                let len = out.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                if len == 0 {
                    return Ok(0);
                }
                device
                    .read_at(offset_bytes, &mut out[..len])
                    .map_err(from_io("read", &self.label))?;
                btrfs::apply(patches, offset_bytes, &mut out[..len]);
                Ok(len)
            }
        }
    }

    pub(super) fn write(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        match &self.content {
            OpenContent::Bytes(_) => Err(from_io("write", &self.label)(io::ErrorKind::ReadOnlyFilesystem.into())),
            OpenContent::Device { device, .. } => device
                .write_at(offset_bytes, bytes)
                .map_err(from_io("write", &self.label)),
        }
    }

    pub(super) fn flush(&self) -> Result<()> {
        match &self.content {
            OpenContent::Bytes(_) => Ok(()),
            OpenContent::Device { device, .. } => device.flush().map_err(from_io("sync", &self.label)),
        }
    }

    pub(super) fn next_data(&self, offset_bytes: u64) -> Result<Option<u64>> {
        match &self.content {
            OpenContent::Bytes(bytes) => Ok(Some(offset_bytes).filter(|offset| *offset < bytes.len() as u64)),
            OpenContent::Device { device, .. } => device.next_data(offset_bytes).map_err(from_io("read", &self.label)),
        }
    }

    pub(super) fn next_hole(&self, offset_bytes: u64) -> Result<Option<u64>> {
        let size_bytes = match &self.content {
            OpenContent::Bytes(bytes) => bytes.len() as u64,
            OpenContent::Device { device, .. } => device.size_bytes(),
        };
        if offset_bytes >= size_bytes {
            return Ok(None);
        }
        match &self.content {
            OpenContent::Bytes(_) => Ok(Some(size_bytes)),
            OpenContent::Device { device, .. } => device
                .next_hole(offset_bytes)
                .map(Some)
                .map_err(from_io("read", &self.label)),
        }
    }

    pub(super) fn report(&self, offset_bytes: u64, len: usize, doing: &str, error: &Error) {
        let mut reported = self.reported.lock();
        if reported.len() < REPORTS && reported.insert(offset_bytes) {
            tracing::error!("{}: {doing} {len} bytes at {offset_bytes} failed: {error}", self.label);
        }
    }
}

/// Returns the repository's own error, if a device passed it on.
pub(super) fn from_io(doing: &'static str, label: &str) -> impl Fn(io::Error) -> Error {
    move |error| {
        error.downcast::<Error>().unwrap_or_else(|source| Error::Io {
            doing,
            path: label.into(),
            source,
        })
    }
}
