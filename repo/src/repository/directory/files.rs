//! Files of a repository's directory that are written whole, with errors that name them.

use std::path::Path;

use crate::error::{Error, Result};
use crate::files::{self, Mode, Synced};

/// Returns whether a path exists; an error if that can't be told.
pub(crate) fn is_there(path: &Path) -> Result<bool> {
    path.try_exists().map_err(Error::io("read", path))
}

/// Writes a file that is complete once it has its name. Its directory is not synced yet: a caller that writes several
/// files syncs it once. The draft has the extension [`files::DRAFT`], by which other code finds drafts of killed
/// writers.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    files::write_whole(path, bytes, Mode::Umask, Synced::File).map_err(Error::io("write", path))
}

/// Makes renames in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    files::sync_directory(path).map_err(Error::io("sync", path))
}
