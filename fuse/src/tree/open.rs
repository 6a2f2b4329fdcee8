//! Open files of the tree, and the bytes they read.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use vbk_repo::Error;
use vbk_repo::Result;
use vbk_repo::reader::Stream;

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
    Part {
        stream: Stream,
        offset_bytes: u64,
        size_bytes: u64,
        /// Bytes that replace those of the part.
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
            OpenContent::Part {
                stream,
                offset_bytes: start,
                size_bytes,
                patches,
            } => {
                let left = size_bytes.saturating_sub(offset_bytes);
                let len = out.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                if len == 0 {
                    return Ok(0);
                }
                let len = stream.read_at(start + offset_bytes, &mut out[..len])?;
                btrfs::apply(patches, offset_bytes, &mut out[..len]);
                Ok(len)
            }
        }
    }

    pub(super) fn report(&self, offset_bytes: u64, len: usize, error: &Error) {
        let mut reported = self.reported.lock();
        if reported.len() < REPORTS && reported.insert(offset_bytes) {
            tracing::error!("{}: reading {len} bytes at {offset_bytes} failed: {error}", self.label);
        }
    }
}
