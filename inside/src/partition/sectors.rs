//! The sector size of an MBR. The table does not state it; the data where its partitions would start reveals it.

use std::io;

use super::{MbrEntry, has_signature};
use crate::device::{Device, read_array};
use crate::probe::{Content, probe_all};

/// Sector size of nearly all disks.
pub(super) const COMMON: u64 = 512;
/// Sector size of "4Kn" disks.
const LARGE: u64 = 4096;

/// Returns 4096 if the partitions fit into the disk with that size, and more of them start with a known mark than with
/// sectors of 512 bytes.
pub(super) fn sector_bytes(disk: &dyn Device, entries: &[MbrEntry; 4]) -> io::Result<u64> {
    let used = || entries.iter().filter(|entry| entry.sectors != 0);
    let fits = |entry: &MbrEntry| (entry.start_sector + entry.sectors) * LARGE <= disk.size_bytes();
    if !used().all(fits) {
        return Ok(COMMON);
    }
    let mut known = [0, 0];
    for (known, sector_bytes) in known.iter_mut().zip([COMMON, LARGE]) {
        for entry in used() {
            *known += u32::from(starts_with_something(disk, entry, sector_bytes)?);
        }
    }
    Ok(if known[1] > known[0] { LARGE } else { COMMON })
}

fn starts_with_something(disk: &dyn Device, entry: &MbrEntry, sector_bytes: u64) -> io::Result<bool> {
    let offset_bytes = entry.start_sector * sector_bytes;
    if entry.is_extended() {
        let sector = read_array::<512>(disk, offset_bytes)?;
        return Ok(sector.is_some_and(|sector| has_signature(&sector)));
    }
    let size_bytes = (entry.sectors * sector_bytes).min(disk.size_bytes().saturating_sub(offset_bytes));
    let part = Slice {
        disk,
        offset_bytes,
        size_bytes,
    };
    Ok(!matches!(probe_all(&part)?.content, Content::Empty | Content::Unknown))
}

/// A range of a disk, completely inside it.
struct Slice<'a> {
    disk: &'a dyn Device,
    offset_bytes: u64,
    size_bytes: u64,
}

impl Device for Slice<'_> {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let end_bytes = offset_bytes.checked_add(buf.len() as u64);
        if end_bytes.is_none_or(|end_bytes| end_bytes > self.size_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.disk.read_at(self.offset_bytes + offset_bytes, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}
