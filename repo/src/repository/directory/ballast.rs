//! A file of 16 MiB that is only there to take space: on a full disk not even a prune can open the store, so it lets go of
//! this first.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

const BYTES: u64 = 16 << 20;

/// So much is free where the ballast is made: what is free is better used by a backup that needs it.
const FREE_TIMES: u64 = 8;

fn path_in(repository: &Path) -> PathBuf {
    repository.join("ballast")
}

/// Makes the ballast if it is not there and the disk is not full. That it could not be made is no error.
pub(crate) fn ensure(repository: &Path, free_bytes: u64) {
    let path = path_in(repository);
    if free_bytes < BYTES * FREE_TIMES || fs::metadata(&path).is_ok_and(|found| found.len() == BYTES) {
        return;
    }
    // Written, because what is only set aside may be counted as free on some file systems.
    let piece = vec![0x5A; 1 << 20];
    let made = File::create(&path).and_then(|mut file| (0..BYTES >> 20).try_for_each(|_| file.write_all(&piece)));
    if let Err(error) = made {
        tracing::debug!(%error, "no ballast");
        let _ = fs::remove_file(path);
    }
}

/// Lets go of the space; `false` if there was none.
pub(crate) fn release(repository: &Path) -> Result<bool> {
    let path = path_in(repository);
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("remove", path)(error)),
    }
}
