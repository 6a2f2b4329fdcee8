//! Hints from extent maps: two reflink copies of a raw file are compared by the physical addresses of their bytes.
//!
//! # Why bytes with the same address are unchanged
//!
//! 1. The base and the new copy exist at the same time, and no process writes to either. Where both map the same range
//!    of the file to the same range of the file system, reading one or the other reads the same bytes: they are equal.
//! 2. The range can't have been given to other data between the look at the one and at the other: the base refers to it
//!    all the while, so the file system does not free it; and as long as it is shared, btrfs and XFS write what the
//!    origin changes elsewhere (btrfs also for files without copy-on-write, XFS by its copy-on-write fork).
//! 3. The base holds what was read for its backup as long as no process writes to it. The run that keeps it sees to
//!    that: root alone can write to the file.
//! 4. Data that is only in memory has no address yet: `FIEMAP_FLAG_SYNC` writes it first, and what has none all the
//!    same is flagged.
//!
//! Only extents whose flags are all in `PLAIN` count, so no unknown kind does. Left out on purpose: compressed extents
//! of btrfs (`ENCODED`), because all parts of one are given the address of its start, and two different parts would
//! look the same; data among the metadata (`INLINE`, `TAIL`, `NOT_ALIGNED`), which has no range of its own; and
//! `UNWRITTEN` extents, which are read as zeros whatever lies there, and which the reader skips as holes.
//!
//! Only btrfs and XFS are trusted. It is not known whether others keep to this, and one with several devices may give
//! two extents on two of them the same address, as bcachefs does.
//!
//! If a file system moves data between the two looks (balance, defragmentation), the addresses differ, and it is read.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statfs::{BTRFS_SUPER_MAGIC, XFS_SUPER_MAGIC, statfs};
use vbk_repo::block::BlockSize;

use super::{Collector, HintError, Unchanged};
use crate::sys::{self, FileExtent};

// linux/fiemap.h
const LAST: u32 = 0x1;
const MERGED: u32 = 0x1000;
const SHARED: u32 = 0x2000;
/// Flags that do not matter: the last extent of its file, one that was put together for the answer, one that is shared.
const PLAIN: u32 = LAST | MERGED | SHARED;

/// Returns whether a file lies on a file system for which all of this is known to be true.
pub fn may_compare(file: &Path) -> bool {
    statfs(file).is_ok_and(|stat| [BTRFS_SUPER_MAGIC, XFS_SUPER_MAGIC].contains(&stat.filesystem_type()))
}

/// Compares two reflink copies of a file, both of which are quiet, on a file system that [`may_compare`] allows. The
/// base must be a file of this user or root: it lies where the guest's owner may put another.
pub fn unchanged(base: &Path, new: &Path, block_size: BlockSize) -> Result<Unchanged, HintError> {
    let (base_file, base_data) = read_metadata(base, sys::open_own(base))?;
    let (new_file, new_data) = read_metadata(new, File::open(new))?;
    let not_comparable = |what: &str| HintError::NotComparable {
        what: format!("{} and {}: {what}", base.display(), new.display()),
    };
    if !base_data.is_file() || !new_data.is_file() {
        return Err(not_comparable("only files have extents"));
    }
    if base_data.dev() != new_data.dev() {
        return Err(not_comparable("they are on different file systems"));
    }
    if base_data.ino() == new_data.ino() {
        return Err(not_comparable("they are the same file"));
    }
    if base_data.len() != new_data.len() {
        return Err(not_comparable("the sizes differ"));
    }
    let left = Extents::of(base, |from| sys::file_extents(&base_file, from));
    let right = Extents::of(new, |from| sys::file_extents(&new_file, from));
    let found = compare(left, right, new_data.len(), block_size)?;
    // If a file was written to meanwhile, its old addresses may have been compared.
    for (path, file, before) in [(base, &base_file, &base_data), (new, &new_file, &new_data)] {
        let after = file.metadata().map_err(HintError::file("read", path))?;
        if changes(&after) != changes(before) {
            return Err(not_comparable("one was changed while they were compared"));
        }
    }
    Ok(found)
}

fn read_metadata(path: &Path, file: io::Result<File>) -> Result<(File, Metadata), HintError> {
    let file = file.map_err(HintError::file("open", path))?;
    let metadata = file.metadata().map_err(HintError::file("read", path))?;
    Ok((file, metadata))
}

fn changes(metadata: &Metadata) -> (u64, i64, i64) {
    (metadata.len(), metadata.ctime(), metadata.ctime_nsec())
}

fn compare<L, R>(
    mut left: Extents<'_, L>,
    mut right: Extents<'_, R>,
    size_bytes: u64,
    block_size: BlockSize,
) -> Result<Unchanged, HintError>
where
    L: FnMut(u64) -> io::Result<Vec<FileExtent>>,
    R: FnMut(u64) -> io::Result<Vec<FileExtent>>,
{
    let mut collector = Collector::new(size_bytes, block_size);
    let (mut one, mut other) = (left.next()?, right.next()?);
    while let (Some(a), Some(b)) = (one, other) {
        let start = a.logical.max(b.logical);
        let end = a.end().min(b.end());
        // Within an extent no sum wraps: that was checked when it came in.
        let place_in = |extent: &FileExtent| extent.physical + (start - extent.logical);
        if start < end && place_in(&a) == place_in(&b) && (a.flags | b.flags) & !PLAIN == 0 {
            collector.add(start..end)?;
        }
        if a.end() <= b.end() {
            one = left.next()?;
        }
        if b.end() <= a.end() {
            other = right.next()?;
        }
    }
    Ok(collector.finish())
}

impl FileExtent {
    fn end(&self) -> u64 {
        self.logical + self.length
    }
}

/// The extents of a file in order, fetched some hundred at a time.
struct Extents<'a, F> {
    path: &'a Path,
    fetch: F,
    fetched: VecDeque<FileExtent>,
    /// The end of the last extent.
    at: u64,
    done: bool,
}

impl<'a, F: FnMut(u64) -> io::Result<Vec<FileExtent>>> Extents<'a, F> {
    fn of(path: &'a Path, fetch: F) -> Self {
        Self {
            path,
            fetch,
            fetched: VecDeque::new(),
            at: 0,
            done: false,
        }
    }

    fn next(&mut self) -> Result<Option<FileExtent>, HintError> {
        if self.fetched.is_empty() && !self.done {
            let fetched = (self.fetch)(self.at).map_err(HintError::file("map the extents of", self.path))?;
            self.done = fetched.last().is_none_or(|extent| extent.flags & LAST != 0);
            self.fetched = fetched.into();
        }
        let Some(extent) = self.fetched.pop_front() else {
            return Ok(None);
        };
        let end = extent.logical.checked_add(extent.length);
        let room = extent.physical.checked_add(extent.length).is_some();
        match end {
            // In order and with a length, so that asking for the rest comes to an end.
            Some(end) if extent.logical >= self.at && end > self.at && room => {
                self.at = end;
                Ok(Some(extent))
            }
            _ => Err(HintError::not_understood(format!(
                "the extents of {} overlap or are out of order at {} bytes",
                self.path.display(),
                extent.logical
            ))),
        }
    }
}

#[cfg(test)]
mod tests;
