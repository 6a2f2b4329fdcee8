//! Restores an image onto a disk that is much like it: reads the disk, and writes only what differs.
//!
//! The disk's blocks are hashed to the ids that the image's blocks have, so of the repository only the manifest and the
//! blocks that differ are read: a block that is damaged in the repository does no harm where the disk still has it. The
//! safety of writing over the only copy is argued in `crate::disk::target`, module `existing`.
//!
//! Workers share the disk as those of a backup do: while one waits for the disk, another hashes.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use vbk_repo::block::{BlockIndex, Hashing, is_zero};
use vbk_repo::manifest::Slot;
use vbk_repo::pool;
use vbk_repo::reader::ImageReader;
use vbk_repo::runs::Runs;

use super::damage::Damage;
use super::write::{BlockWrite, range_of};
use super::{Behind, Damaged, DamagedRange, Stop, check_content, in_workers};
use crate::disk::buffer::AlignedBuffer;
use crate::disk::source::Source;
use crate::disk::target::{Looked, Target, look_at};
use crate::error::{Error, Result};
use crate::observer::{Counts, Event, Observer};

/// Options of a differential restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DifferentialOptions {
    /// The backup and disk, for messages.
    pub label: String,
    /// Change an existing file, write to a device that a program has open for writing, and overwrite another disk.
    pub force: bool,
    /// Overwrite a device that holds another disk, if nobody uses it.
    pub overwrite: bool,
    /// Treatment of ranges that are damaged in the repository.
    pub damaged: Damaged,
    /// Number of threads that may compute at once.
    pub threads: usize,
}

/// Difference between a disk and an image. Differing blocks count in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Difference {
    /// Bytes of the image, all of which were compared.
    pub compared_bytes: u64,
    /// Bytes of differing blocks that have data in the image.
    pub data_bytes: u64,
    /// Bytes of differing blocks that are zeros in the image.
    pub zero_bytes: u64,
    /// Bytes of the disk that could not be read; they count as differing.
    pub unreadable_bytes: u64,
    /// Size of a file before, if the image's is another.
    pub resized_from_bytes: Option<u64>,
}

/// Result of a differential restore.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Updated {
    /// Difference between the disk before and the image.
    pub difference: Difference,
    /// Ranges that could not be read back, in order, if that was accepted.
    pub damaged: Vec<DamagedRange>,
    /// Content after the image's end on a larger device.
    pub behind: Option<Behind>,
}

/// Makes a block device at least as large as the image, or a file, read as the image does. A file gets the image's size.
///
/// Checks and watches the target as [`super::restore`] does. While this runs the target is neither the old disk nor the
/// image; a restore that was interrupted is completed by another one.
pub fn restore(
    image: &ImageReader,
    path: &Path,
    options: &DifferentialOptions,
    cancel: &AtomicBool,
    observer: &dyn Observer,
) -> Result<Updated> {
    let target = Target::open_existing(path, image.size_bytes(), options.force)?;
    if !options.force && !options.overwrite {
        check_content(&target, image)?;
    }
    let disk = target.reader()?;
    let damage = Damage::new(&options.label, options.damaged);
    let comparison = Comparison {
        write: Some(BlockWrite {
            image,
            sink: &target,
            damage: &damage,
        }),
        ..Comparison::new(image, &disk, &damage, options, cancel, observer)
    };
    in_workers(&target, comparison.runs.workers, &|stop| comparison.work(stop))?;
    let difference = comparison.difference();
    let behind = target.wipe_behind(image.size_bytes())?;
    drop(disk);
    target.finish()?;
    Ok(Updated {
        difference,
        damaged: damage.into_ranges(),
        behind,
    })
}

/// Compares a block device or file with an image, and changes neither. Of the repository only the manifest is read, so
/// damaged blocks are not noticed. A warning says that the disk is in use.
pub fn compare(
    image: &ImageReader,
    path: &Path,
    options: &DifferentialOptions,
    cancel: &AtomicBool,
    observer: &dyn Observer,
) -> Result<Updated> {
    let Looked { source: disk, user } = look_at(path, image.size_bytes())?;
    if let Some(user) = user {
        observer.event(Event::Warning(&format!(
            "{} is in use ({user}): it may change while it is compared, so the numbers are approximate",
            path.display()
        )));
    }
    let damage = Damage::new(&options.label, options.damaged);
    let comparison = Comparison::new(image, &disk, &damage, options, cancel, observer);
    pool::run("vbk-compare", comparison.runs.workers, &|_, failed| {
        comparison.work(Stop {
            has_failed: failed,
            is_refused: None,
        })
    })?;
    Ok(Updated {
        difference: comparison.difference(),
        damaged: damage.into_ranges(),
        behind: None,
    })
}

/// A disk that is compared with an image.
struct Comparison<'a> {
    image: &'a ImageReader,
    disk: &'a Source,
    hashing: Hashing,
    /// Writes what differs; `None` to write nothing.
    write: Option<BlockWrite<'a>>,
    damage: &'a Damage<'a>,
    runs: Runs,
    /// The next block that no worker has taken.
    next: AtomicU64,
    found: Mutex<Difference>,
    /// Set once a warning told that the disk can't be read.
    has_warned: AtomicBool,
    cancel: &'a AtomicBool,
    observer: &'a dyn Observer,
}

/// A block of the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    /// A hole, or the space after the end of a smaller file. The buffer's content is undefined.
    Hole,
    /// Read to the buffer.
    Bytes,
    /// The disk returned an error.
    Unreadable,
}

impl<'a> Comparison<'a> {
    fn new(
        image: &'a ImageReader,
        disk: &'a Source,
        damage: &'a Damage<'a>,
        options: &DifferentialOptions,
        cancel: &'a AtomicBool,
        observer: &'a dyn Observer,
    ) -> Self {
        Self {
            image,
            disk,
            hashing: image.hashing(),
            write: None,
            damage,
            // More workers than processors, because some of them wait for the disk.
            runs: Runs::new(image.block_size(), image.distance(), options.threads + 2),
            next: AtomicU64::new(0),
            found: Mutex::default(),
            has_warned: AtomicBool::new(false),
            cancel,
            observer,
        }
    }

    fn difference(&self) -> Difference {
        let (old, new) = (self.disk.size_bytes(), self.image.size_bytes());
        Difference {
            compared_bytes: new,
            resized_from_bytes: (!self.disk.is_device() && old != new).then_some(old),
            ..*self.found.lock()
        }
    }

    fn work(&self, stop: Stop<'_>) -> Result<()> {
        let mut buffer = AlignedBuffer::new(self.runs.blocks * self.image.block_size().bytes());
        let blocks = self.image.block_size().blocks_in(self.image.size_bytes());
        let run = self.runs.blocks as u64;
        while !stop.is_set() {
            if self.cancel.load(Ordering::SeqCst) {
                return Err(Error::Interrupted);
            }
            let first = self.next.fetch_add(run, Ordering::SeqCst);
            if first >= blocks {
                return Ok(());
            }
            let counts = self.compare(BlockIndex(first), run.min(blocks - first), &mut buffer)?;
            self.observer.event(Event::Done(counts));
        }
        Ok(())
    }

    /// Compares blocks, and makes those that differ the same.
    fn compare(&self, first: BlockIndex, count: u64, buffer: &mut AlignedBuffer) -> Result<Counts> {
        let size = self.image.block_size();
        let (start, len) = range_of(self.image, first, count);
        let mut counts = Counts::default();
        let mut found = Difference::default();
        let states = self.read(start, len as usize, buffer, &mut counts);
        let mut copy: Vec<(BlockIndex, &mut [u8])> = Vec::new();
        let mut zero: Vec<(u64, u64)> = Vec::new();
        let blocks = buffer.as_mut_slice()[..len as usize].chunks_mut(size.bytes());
        for ((number, plain), state) in (first.0..).zip(blocks).zip(states) {
            let (offset, len) = range_of(self.image, BlockIndex(number), 1);
            let slot = match self.image.slot(BlockIndex(number)) {
                Ok(slot) => slot,
                // Not even the id can be read.
                Err(error) => {
                    self.damage.accept(offset, error)?;
                    self.damage.note(offset, len);
                    counts.new_bytes += len;
                    if let Some(write) = &self.write {
                        write.fill_lost(offset, len)?;
                    }
                    continue;
                }
            };
            if state == Found::Unreadable {
                found.unreadable_bytes += len;
            }
            if self.is_same(slot, state, plain) {
                counts.unchanged_bytes += len;
            } else if slot.is_some() {
                found.data_bytes += len;
                copy.push((BlockIndex(number), plain));
            } else {
                found.zero_bytes += len;
                match zero.last_mut() {
                    Some((start, before)) if *start + *before == offset => *before += len,
                    _ => zero.push((offset, len)),
                }
            }
        }
        if let Some(write) = &self.write {
            write.copy(&mut copy)?;
            zero.iter()
                .try_for_each(|(offset, len)| write.sink.zero(*offset, *len))?;
        }
        counts.new_bytes += found.data_bytes;
        counts.zero_bytes += found.zero_bytes;
        let mut total = self.found.lock();
        total.data_bytes += found.data_bytes;
        total.zero_bytes += found.zero_bytes;
        total.unreadable_bytes += found.unreadable_bytes;
        Ok(counts)
    }

    fn is_same(&self, slot: Slot, state: Found, plain: &[u8]) -> bool {
        match (slot, state) {
            (_, Found::Unreadable) | (Some(_), Found::Hole) => false,
            (None, Found::Hole) => true,
            (None, Found::Bytes) => is_zero(plain),
            (Some(id), Found::Bytes) => self.hashing.block(plain).id == id,
        }
    }

    /// Reads a range of the disk, with one request if that works. Returns the state of each block.
    fn read(&self, start: u64, len: usize, buffer: &mut AlignedBuffer, counts: &mut Counts) -> Vec<Found> {
        let block = self.image.block_size().bytes();
        let blocks = len.div_ceil(block);
        let data = self.disk.next_data(start);
        if data.is_none_or(|data| data.start >= start + len as u64) {
            return vec![Found::Hole; blocks];
        }
        if self.read_part(start, len, buffer.as_mut_slice(), counts).is_ok() {
            return vec![Found::Bytes; blocks];
        }
        let read = |number: usize| {
            let inside = number * block;
            let at = start + inside as u64;
            match self.read_part(
                at,
                block.min(len - inside),
                &mut buffer.as_mut_slice()[inside..],
                counts,
            ) {
                Ok(()) => Found::Bytes,
                Err(error) => {
                    self.warn(&error);
                    Found::Unreadable
                }
            }
        };
        (0..blocks).map(read).collect()
    }

    /// Reads to the start of `buffer`, zeros after the end of the disk.
    fn read_part(&self, start: u64, len: usize, buffer: &mut [u8], counts: &mut Counts) -> Result<()> {
        let left = self.disk.size_bytes().saturating_sub(start);
        let here = len.min(usize::try_from(left).unwrap_or(usize::MAX));
        self.disk.read_part(start, here, buffer)?;
        // Afterwards: a read of whole sectors may have stored bytes behind the end.
        buffer[here..len].fill(0);
        counts.read_bytes += here as u64;
        Ok(())
    }

    /// Reports the first part of the disk that can't be read. The result counts the others.
    fn warn(&self, error: &Error) {
        let Error::ReadSource {
            path,
            offset_bytes,
            source,
        } = error
        else {
            return;
        };
        if !self.has_warned.swap(true, Ordering::SeqCst) {
            self.observer.event(Event::Warning(&format!(
                "{} can't be read at {offset_bytes} bytes: {source}; what can't be read counts as different",
                path.display()
            )));
        }
    }
}

#[cfg(test)]
mod tests;
