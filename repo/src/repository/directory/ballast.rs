//! Ballast: a file of 16 MiB that only takes up space. On a full disk not even a prune can open the store, so a prune
//! first removes the ballast.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

const BYTES: u64 = 16 << 20;

/// The ballast is only created if this many times its size is free; with less, a backup has the better use for the
/// space.
const FREE_TIMES: u64 = 8;

fn path_in(repository: &Path) -> PathBuf {
    repository.join("ballast")
}

/// Creates the ballast if it is missing and the disk is not full. A failure to create it is not an error.
pub(crate) fn ensure(repository: &Path, free_bytes: u64) {
    let path = path_in(repository);
    if free_bytes < BYTES * FREE_TIMES || fs::metadata(&path).is_ok_and(|found| found.len() == BYTES) {
        return;
    }
    // The file is written, because some file systems count space that is merely allocated as free.
    let piece = vec![0x5A; 1 << 20];
    let made = File::create(&path).and_then(|mut file| (0..BYTES >> 20).try_for_each(|_| file.write_all(&piece)));
    if let Err(error) = made {
        tracing::debug!(%error, "no ballast");
        let _ = fs::remove_file(path);
    }
}

/// Removes the ballast; `false` if there was none.
pub(crate) fn release(repository: &Path) -> Result<bool> {
    let path = path_in(repository);
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("remove", path)(error)),
    }
}
