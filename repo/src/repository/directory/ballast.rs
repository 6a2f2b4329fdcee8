//! Ballast: a file that only takes up space. On a full disk not even a prune can open the store, so a prune first removes
//! the ballast.
//!
//! Opening writes a new list of RocksDB's files, and copies it for a view. It grows with the store, and so does the ballast.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::error::{Error, Result};
use crate::file_system::file_system;

/// Enough for a small store. Opening takes 2 MiB; the rest is for the live blocks that a prune moves, which RocksDB may do
/// twice before it removes the old files: 5 MiB were too few for a prune that moves 4 MiB.
const LEAST_BYTES: u64 = 16 << 20;

/// Room for opening and for the first pass of a prune, besides the list of files.
const OPENING_BYTES: u64 = 4 << 20;

/// Room for the list of files: it is written twice, and may grow until the next writer looks.
const TIMES_LIST: u64 = 3;

/// A command that frees space makes the ballast only if this many times its size is free: it may just have removed it. A backup
/// makes it wherever it fits, before it uses the space itself.
const FREE_TIMES: u64 = 8;

const PIECE_BYTES: u64 = 1 << 20;

fn path_in(repository: &Path) -> PathBuf {
    repository.join("ballast")
}

/// Makes the ballast as large as a store with such a list of files needs it, if the disk is not full. A failure is not an
/// error.
pub(super) fn ensure(repository: &Path, list_bytes: u64) {
    make(repository, list_bytes, FREE_TIMES);
}

/// Makes the ballast for a process that will fill the disk. An error if there is none and no room for one: what is free is needed
/// by the next `forget` and `prune`.
pub(super) fn require(repository: &Path, list_bytes: u64) -> Result<()> {
    make(repository, list_bytes, 1);
    let kept_bytes = needed(list_bytes);
    let there = fs::metadata(path_in(repository)).map_or(0, |found| found.len());
    let free_bytes = room(repository)?;
    // With more free, it is not room that is missing, e.g. the directory belongs to another user.
    match there + free_bytes < kept_bytes {
        true => Err(Error::Full {
            path: repository.to_owned(),
            free_bytes,
            kept_bytes,
        }),
        false => Ok(()),
    }
}

/// Makes the ballast again, after a command on a full disk has used it, of what that command has left: the next one needs it
/// too, and whoever fills the disk may be faster.
pub(super) fn refill(repository: &Path, list_bytes: u64) {
    let path = path_in(repository);
    let there = fs::metadata(&path).map_or(0, |found| found.len());
    let free_bytes = room(repository).unwrap_or(0);
    // What is left is for the closing of the store.
    let room = free_bytes.saturating_sub(PIECE_BYTES) / PIECE_BYTES * PIECE_BYTES;
    let wanted = needed(list_bytes).min(there + room);
    if wanted > there
        && let Err(error) = resize(&path, there, wanted)
    {
        tracing::debug!(%error, "the ballast stays smaller than it should be");
    }
}

/// Returns the bytes that this process may still use. Root has what is reserved for it too.
fn room(repository: &Path) -> Result<u64> {
    let found = file_system(repository)?;
    Ok(match geteuid().is_root() {
        true => found.size_bytes - found.used_bytes,
        false => found.free_bytes,
    })
}

/// Returns the size that the ballast should have.
fn needed(list_bytes: u64) -> u64 {
    (OPENING_BYTES + TIMES_LIST * list_bytes)
        .max(LEAST_BYTES)
        .next_multiple_of(PIECE_BYTES)
}

fn make(repository: &Path, list_bytes: u64, free_times: u64) {
    let path = path_in(repository);
    let needed = needed(list_bytes);
    let there = fs::metadata(&path).map_or(0, |found| found.len());
    if (needed..=2 * needed).contains(&there) {
        return;
    }
    let free = room(repository).unwrap_or(0);
    if there < needed && free < (needed - there) * free_times {
        return;
    }
    if let Err(error) = resize(&path, there, needed) {
        tracing::debug!(%error, "no ballast of {needed} bytes");
        // What was there stays.
        let _ = match there {
            0 => fs::remove_file(path),
            _ => File::options()
                .write(true)
                .open(path)
                .and_then(|file| file.set_len(there)),
        };
    }
}

fn resize(path: &Path, there: u64, needed: u64) -> io::Result<()> {
    let mut file = File::options().create(true).append(true).open(path)?;
    if there > needed {
        return file.set_len(needed);
    }
    // The file is written, because some file systems count space that is merely allocated as free.
    let piece = vec![0x5A; PIECE_BYTES as usize];
    let mut missing = needed - there;
    while missing > 0 {
        let length = missing.min(PIECE_BYTES);
        file.write_all(&piece[..length as usize])?;
        missing -= length;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn the_ballast_grows_with_the_list_of_files_and_a_larger_one_shrinks() {
        let directory = tempfile::tempdir().expect("a directory");
        let size = || fs::metadata(path_in(directory.path())).map_or(0, |found| found.len());
        ensure(directory.path(), 1000);
        assert_eq!(size(), 16 << 20);
        ensure(directory.path(), 12 << 20);
        assert_eq!(size(), 40 << 20);
        // Not for each byte.
        ensure(directory.path(), 11 << 20);
        assert_eq!(size(), 40 << 20);
        ensure(directory.path(), 0);
        assert_eq!(size(), 16 << 20);
        let bytes = fs::read(path_in(directory.path())).expect("reads");
        assert!(bytes.iter().all(|byte| *byte == 0x5A), "all of it is written");
        assert!(release(directory.path()).expect("removes"));
        assert!(!release(directory.path()).expect("is gone"));
    }

    #[test]
    fn a_ballast_without_room_for_it_is_not_made() {
        let directory = tempfile::tempdir().expect("a directory");
        ensure(directory.path(), 1 << 50);
        let full = require(directory.path(), 1 << 50).expect_err("has no room");
        assert!(full.to_string().contains("`vbk forget` and `vbk prune`"), "{full}");
        assert_eq!(full.kind(), ErrorKind::NoSpace);
        assert!(!path_in(directory.path()).exists());
        require(directory.path(), 1000).expect("makes it");
        assert!(path_in(directory.path()).exists());
    }

    #[test]
    fn a_ballast_that_was_used_is_made_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = path_in(directory.path());
        fs::write(&path, [0x5A; 10]).expect("writes");
        refill(directory.path(), 0);
        assert_eq!(fs::metadata(&path).expect("is there").len(), LEAST_BYTES);
        refill(directory.path(), 0);
        assert_eq!(fs::metadata(&path).expect("is there").len(), LEAST_BYTES);
    }
}
