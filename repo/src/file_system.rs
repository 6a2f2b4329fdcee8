//! Room of a file system.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Room of a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystem {
    /// Size of the file system.
    pub size_bytes: u64,
    /// Used bytes, including those of other programs.
    pub used_bytes: u64,
    /// Bytes that this user may still use; fewer than the unused ones if some are reserved for root.
    pub free_bytes: u64,
}

/// Returns the size and use of the file system that contains `path`.
pub fn file_system(path: &Path) -> Result<FileSystem> {
    let stat = nix::sys::statvfs::statvfs(path).map_err(|errno| Error::io("read", path)(errno.into()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
    Ok(FileSystem {
        size_bytes: bytes(stat.blocks()),
        used_bytes: bytes(stat.blocks().saturating_sub(stat.blocks_free())),
        free_bytes: bytes(stat.blocks_available()),
    })
}
