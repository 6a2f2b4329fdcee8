//! Writes to disks that never change: they go to a scratch file, page by page, and reads find them there.
//!
//! One [`Scratch`] serves all disks of a guest. Its file can be kept, and is then the difference between the backup and
//! what was made of it. Format, numbers little-endian:
//!
//! ```text
//! header   64 KiB: the lines "vbk changes 1", "backup ID", then "disk SIZE NAME" for each disk; zeros; "closed" in the
//!          last 8 bytes if the mount ended as it should
//! group    an index page of 512 entries, then the 512 pages that they name; repeated to the end
//! entry    8 bytes: bits 48..64 the number of the disk + 1, bits 0..48 the number of the page; 0 is a free place
//! ```
//!
//! Memory: about 30 bytes for each page that was written, 8 MiB a GiB.
//!
//! Crash: [`Scratch::flush`] syncs the pages before the index that names them, so a file that is kept holds all writes
//! before the last flush. Between flushes a page that was written again may be old, new or, as on a disk, torn.
//!
//! Full disk, or one that fails:
//!
//! 1. An index page is written, empty, before the first slot of its group is given to a write. If there is no room for it, that
//!    write fails, as without room for its page. So the index needs no room later, nor does the mark of [`Scratch::close`].
//! 2. A file system that copies what it overwrites (btrfs, or any below a snapshot) may still have no room for an entry. That
//!    flush fails, and the next one writes the entries that it lacks. It may: their pages were synced, and a write that fails
//!    leaves nothing in the kernel that a later sync could take for written.
//! 3. A sync that fails is final, also that of the index: the kernel marks what it could not write as clean and reports it once
//!    (fsync(2)), and pages that others wrote meanwhile may be among it. No later flush could be believed.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::device::{Device, SharedDevice};

mod changes;

pub use changes::{Changes, EachPage};

/// Unit of writing. A file system's blocks are seldom smaller; a part of a page is completed from below.
pub const PAGE_BYTES: usize = 4096;
const PAGE: u64 = PAGE_BYTES as u64;
const HEADER_BYTES: u64 = 64 << 10;
/// Entries of an index page.
const GROUP_PAGES: u64 = PAGE / 8;
const MAGIC: &str = "vbk changes 1";
/// Last bytes of the header of a file that was closed.
const CLOSED: &[u8] = b"closed\n\0";
/// Limit of disks in one file: the header holds their names.
const MAX_DISKS: usize = 256;
/// Pages that are written between two looks at the free space, 16 MiB: few enough to keep the floor, and enough to make
/// the look cost nothing.
const LOOK_PAGES: u32 = 4096;

/// A page of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Page {
    disk: u16,
    number: u64,
}

impl Page {
    fn entry(self) -> u64 {
        (u64::from(self.disk) + 1) << 48 | self.number
    }

    fn of_entry(entry: u64) -> Option<Self> {
        let disk = u16::try_from((entry >> 48).checked_sub(1)?).ok()?;
        Some(Self {
            disk,
            number: entry & ((1 << 48) - 1),
        })
    }
}

/// Name and size of a disk whose changes a scratch file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedDisk {
    /// Name in the backup.
    pub name: String,
    /// Size of the disk.
    pub size_bytes: u64,
}

/// Limits of a scratch file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest sum of the pages in it.
    pub bytes: u64,
    /// Free space of its file system below which no page is added, whoever took the rest.
    pub floor_bytes: u64,
}

/// Place of all pages that were written. May be used by many threads at once.
pub struct Scratch {
    file: File,
    limit_pages: u32,
    floor_bytes: u64,
    is_kept: bool,
    /// Slot of each page. A page never moves, so a reader may use its slot without the lock.
    slots: RwLock<HashMap<Page, u32>>,
    next: Mutex<Next>,
    /// Held by the flush that runs, so that another one returns after it only. True once a sync has failed.
    has_failed: Mutex<bool>,
}

#[derive(Default)]
struct Next {
    slot: u32,
    /// Slots before `slot` that have no page, because a write failed or another writer of the page was first. They are
    /// taken first, so the list stays short.
    free: Vec<Range<u32>>,
    /// Pages that may be added before the free space is looked at again.
    unlooked: u32,
    /// Pages that the index in the file does not name yet, with their slots.
    unnamed: Vec<(u32, Page)>,
}

impl Scratch {
    /// Starts with an empty file, which must be open for reading and writing. With `keep`, the header and the index are
    /// written too, so that [`Changes::open`] can read it.
    pub fn create(file: File, limits: Limits, keep: Option<(&str, &[ChangedDisk])>) -> io::Result<Self> {
        if let Some((backup, disks)) = keep {
            file.try_lock()?;
            file.write_all_at(&header(backup, disks)?, 0)?;
        }
        Ok(Self {
            file,
            limit_pages: u32::try_from(limits.bytes / PAGE).unwrap_or(u32::MAX),
            floor_bytes: limits.floor_bytes,
            is_kept: keep.is_some(),
            slots: RwLock::default(),
            next: Mutex::default(),
            has_failed: Mutex::new(false),
        })
    }

    /// Makes all earlier writes durable, if the file is kept. After a failure, the next call may succeed if the disk was full.
    pub fn flush(&self) -> io::Result<()> {
        if !self.is_kept {
            return Ok(());
        }
        let mut has_failed = self.has_failed.lock();
        if *has_failed {
            return Err(io::Error::other("an earlier write to the scratch file was lost"));
        }
        let mut sync = || self.file.sync_data().inspect_err(|_| *has_failed = true);
        let unnamed = std::mem::take(&mut self.next.lock().unnamed);
        sync()?;
        if unnamed.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.name_pages(&unnamed) {
            self.next.lock().unnamed.extend(unnamed);
            return Err(error);
        }
        sync()
    }

    /// Flushes, and marks a kept file as complete. Nothing may be written afterwards.
    pub fn close(&self) -> io::Result<()> {
        self.flush()?;
        if self.is_kept {
            self.file.write_all_at(CLOSED, HEADER_BYTES - CLOSED.len() as u64)?;
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// Writes index entries. An entry that is written again is the same.
    fn name_pages(&self, unnamed: &[(u32, Page)]) -> io::Result<()> {
        for (slot, page) in unnamed {
            let at = index_offset(*slot) + u64::from(*slot) % GROUP_PAGES * 8;
            self.file.write_all_at(&page.entry().to_le_bytes(), at)?;
        }
        Ok(())
    }

    /// Writes the empty index pages of groups that begin with these new slots.
    fn begin_groups(&self, new: Range<u32>) -> io::Result<()> {
        let is_first = |slot: &u32| u64::from(*slot) % GROUP_PAGES == 0;
        let mut first = new.filter(is_first);
        first.try_for_each(|slot| self.file.write_all_at(&[0; PAGE_BYTES], index_offset(slot)))
    }

    /// Returns the sum of the pages that were written.
    pub fn written_bytes(&self) -> u64 {
        self.slots.read().len() as u64 * PAGE
    }

    /// Takes slots for new pages; [`Self::give_back`] returns those that are not used.
    fn allocate(&self, count: u32) -> io::Result<Vec<Range<u32>>> {
        let mut next = self.next.lock();
        self.check_room(&mut next, count)?;
        let mut taken = Vec::new();
        let mut left = count;
        while left > 0
            && let Some(free) = next.free.pop()
        {
            let cut = free.start + left.min(free.end - free.start);
            left -= cut - free.start;
            taken.push(free.start..cut);
            if cut < free.end {
                next.free.push(cut..free.end);
            }
        }
        let end = next.slot.checked_add(left).filter(|end| *end <= self.limit_pages);
        let new = end.map(|end| next.slot..end).ok_or(io::ErrorKind::StorageFull.into());
        let begun = new.and_then(|new| match self.is_kept {
            true => self.begin_groups(new.clone()).map(|()| new),
            false => Ok(new),
        });
        match begun {
            Ok(new) => {
                next.slot = new.end;
                taken.push(new);
                Ok(taken)
            }
            Err(error) => {
                next.free.extend(taken);
                Err(error)
            }
        }
    }

    /// Fails if pages would take the host's file system below the floor.
    fn check_room(&self, next: &mut Next, count: u32) -> io::Result<()> {
        if next.unlooked < count {
            let stat = rustix::fs::fstatvfs(&self.file)?;
            let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
            if free_bytes.saturating_sub(u64::from(count) * PAGE) < self.floor_bytes {
                return Err(io::ErrorKind::StorageFull.into());
            }
            next.unlooked = count.max(LOOK_PAGES);
        }
        next.unlooked -= count;
        Ok(())
    }

    /// Writes the content of new pages to their slots.
    fn fill(&self, slots: &[Range<u32>], mut pages: &[u8]) -> io::Result<()> {
        for slots in slots {
            let (now, rest) = pages.split_at(slots.len() * PAGE_BYTES);
            // An index page may lie between two slots.
            for (at, page) in group_runs(slots.clone(), now) {
                self.file.write_all_at(page, at)?;
            }
            pages = rest;
        }
        Ok(())
    }

    fn give_back(&self, slots: impl IntoIterator<Item = Range<u32>>) {
        self.next.lock().free.extend(slots);
    }

    /// Makes pages visible whose content is in these slots. Returns those that another writer made visible first; their
    /// slots are free again.
    fn publish(&self, slots: impl Iterator<Item = u32>, pages: &[Page]) -> Vec<usize> {
        let mut taken = Vec::new();
        let mut unused = Vec::new();
        let mut fresh = Vec::with_capacity(pages.len());
        {
            let mut known = self.slots.write();
            for (index, (slot, page)) in slots.zip(pages).enumerate() {
                match known.entry(*page) {
                    std::collections::hash_map::Entry::Occupied(_) => {
                        taken.push(index);
                        unused.push(slot..slot + 1);
                    }
                    std::collections::hash_map::Entry::Vacant(free) => {
                        free.insert(slot);
                        fresh.push((slot, *page));
                    }
                }
            }
            // Before another writer can find the page, and flush it.
            if self.is_kept {
                self.next.lock().unnamed.extend(fresh);
            }
        }
        self.give_back(unused);
        taken
    }
}

/// Offset of the index page of a slot's group.
fn index_offset(slot: u32) -> u64 {
    HEADER_BYTES + u64::from(slot) / GROUP_PAGES * (GROUP_PAGES + 1) * PAGE
}

/// Offset of a slot's page.
fn page_offset(slot: u32) -> u64 {
    index_offset(slot) + (u64::from(slot) % GROUP_PAGES + 1) * PAGE
}

fn header(backup: &str, disks: &[ChangedDisk]) -> io::Result<Vec<u8>> {
    let mut text = format!("{MAGIC}\nbackup {backup}\n");
    for disk in disks {
        text.push_str(&format!("disk {} {}\n", disk.size_bytes, disk.name));
    }
    let mut bytes = text.into_bytes();
    if bytes.len() + CLOSED.len() >= HEADER_BYTES as usize || disks.len() > MAX_DISKS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the guest has too many disks",
        ));
    }
    bytes.resize(HEADER_BYTES as usize, 0);
    Ok(bytes)
}

/// A disk with changes: reads find the pages that were written, and everything else below. Several overlays of one disk
/// may share a scratch; all see the same bytes.
pub struct Overlay {
    below: SharedDevice,
    disk: u16,
    scratch: Arc<Scratch>,
}

/// A part of a request.
struct Run {
    /// Range within the buffer.
    bytes: Range<usize>,
    /// Offset in the scratch file; `None` for the device below.
    at: Option<u64>,
}

impl Overlay {
    /// Lays the changes of disk number `disk` over a device.
    pub fn new(below: SharedDevice, disk: u16, scratch: Arc<Scratch>) -> Self {
        Self { below, disk, scratch }
    }

    fn check(&self, offset_bytes: u64, len: usize) -> io::Result<()> {
        let end_bytes = offset_bytes.checked_add(len as u64);
        match end_bytes.is_some_and(|end_bytes| end_bytes <= self.below.size_bytes()) {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Splits a request where it goes to another place. Neighbouring pages of one place are one run.
    fn runs(&self, offset_bytes: u64, len: usize) -> Vec<Run> {
        let slots = self.scratch.slots.read();
        let mut runs: Vec<Run> = Vec::new();
        let mut done = 0;
        while done < len {
            let at_bytes = offset_bytes + done as u64;
            let (number, inside) = (at_bytes / PAGE, at_bytes % PAGE);
            let now = (len - done).min((PAGE - inside) as usize);
            let disk = self.disk;
            let slot = slots.get(&Page { disk, number });
            let at = slot.map(|slot| page_offset(*slot) + inside);
            match runs.last_mut() {
                Some(last) if last.at.map(|at| at + last.bytes.len() as u64) == at => last.bytes.end += now,
                _ => runs.push(Run {
                    bytes: done..done + now,
                    at,
                }),
            }
            done += now;
        }
        runs
    }

    /// Writes pages for the first time.
    fn write_new(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        let first = offset_bytes / PAGE;
        let end = (offset_bytes + bytes.len() as u64).div_ceil(PAGE);
        let start_bytes = first * PAGE;
        let mut whole = vec![0; ((end - first) * PAGE) as usize];
        // The disk may end within the last page.
        let covered = whole.len().min((self.below.size_bytes() - start_bytes) as usize);
        let inside = (offset_bytes - start_bytes) as usize;
        let behind = inside + bytes.len();
        if inside > 0 {
            let head = covered.min(PAGE_BYTES);
            self.below.read_at(start_bytes, &mut whole[..head])?;
        }
        let last = (behind / PAGE_BYTES * PAGE_BYTES).min(covered);
        if behind < covered && (last > 0 || inside == 0) {
            self.below
                .read_at(start_bytes + last as u64, &mut whole[last..covered])?;
        }
        whole[inside..behind].copy_from_slice(bytes);
        let disk = self.disk;
        let pages: Vec<Page> = (first..end).map(|number| Page { disk, number }).collect();
        let slots = self.scratch.allocate((end - first) as u32)?;
        if let Err(error) = self.scratch.fill(&slots, &whole) {
            self.scratch.give_back(slots);
            return Err(error);
        }
        // Another writer of the same page was first: its slot gets these bytes.
        for index in self.scratch.publish(slots.into_iter().flatten(), &pages) {
            let page = (index * PAGE_BYTES)..((index + 1) * PAGE_BYTES);
            let (from, to) = (page.start.max(inside), page.end.min(behind));
            self.write_at(start_bytes + from as u64, &whole[from..to])?;
        }
        Ok(())
    }
}

/// Splits pages for consecutive slots where an index page interrupts them.
fn group_runs(slots: Range<u32>, mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let mut runs = Vec::new();
    let mut slot = slots.start;
    while slot < slots.end {
        let left = GROUP_PAGES as u32 - slot % GROUP_PAGES as u32;
        let count = left.min(slots.end - slot);
        let (now, rest) = bytes.split_at(count as usize * PAGE_BYTES);
        runs.push((page_offset(slot), now));
        bytes = rest;
        slot += count;
    }
    runs
}

impl Device for Overlay {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check(offset_bytes, buf.len())?;
        for run in self.runs(offset_bytes, buf.len()) {
            let out = &mut buf[run.bytes.clone()];
            match run.at {
                Some(at) => self.scratch.file.read_exact_at(out, at)?,
                None => self.below.read_at(offset_bytes + run.bytes.start as u64, out)?,
            }
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.below.size_bytes()
    }

    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(offset_bytes, bytes.len())?;
        for run in self.runs(offset_bytes, bytes.len()) {
            let now = &bytes[run.bytes.clone()];
            match run.at {
                Some(at) => self.scratch.file.write_all_at(now, at)?,
                None => self.write_new(offset_bytes + run.bytes.start as u64, now)?,
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.scratch.flush()
    }

    // A page that was written counts as data. Below it there may be a hole, so holes are only those in which nothing
    // was written; finding the next change would need an ordered map, and who asks copies whole disks.
    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        match self.scratch.slots.read().is_empty() {
            true => self.below.next_data(offset_bytes),
            false => Ok(Some(offset_bytes).filter(|offset_bytes| *offset_bytes < self.size_bytes())),
        }
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        match self.scratch.slots.read().is_empty() {
            true => self.below.next_hole(offset_bytes),
            false => Ok(offset_bytes.max(self.size_bytes())),
        }
    }
}

#[cfg(test)]
mod tests;
