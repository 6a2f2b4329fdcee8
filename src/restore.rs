//! Writes an image back: to a file, onto a block device, or as a stream.

mod changes;
mod damage;
pub mod differential;
pub mod guest;
mod holds;
pub mod preview;
mod watch;
mod write;

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use vbk_repo::block::BlockIndex;
use vbk_repo::manifest::SEGMENT_SLOTS;
use vbk_repo::pool;
use vbk_repo::reader::{ImageReader, Stream};
use vbk_repo::runs::Runs;

use crate::disk::buffer::AlignedBuffer;
use crate::disk::qcow2::Qcow2;
use crate::disk::target::Target;
pub use crate::disk::target::{Behind, Wiped};
use crate::error::{Error, Result};
use crate::limit::priority::lower_this_thread;
use crate::observer::{Counts, Event, Observer};
pub use changes::DiskChanges;
use damage::Damage;
pub use damage::DamagedRange;
use watch::Watch;
use write::{BlockWrite, Sink, range_of};

/// Options of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreOptions {
    /// The backup and disk, for messages.
    pub label: String,
    /// Format of a file.
    pub format: Format,
    /// Changes to make to the restored disk, in the format [`Format::Raw`].
    pub changes: Option<DiskChanges>,
    /// Replace an existing file, write to a device that a program has open for writing, and overwrite another disk.
    pub force: bool,
    /// Overwrite a device that holds another disk, if nobody uses it.
    pub overwrite: bool,
    /// Extent of the writing to a device.
    pub fill: Fill,
    /// Treatment of ranges that are damaged in the repository.
    pub damaged: Damaged,
    /// Number of threads that may compute at once.
    pub threads: usize,
}

/// Format of a restored file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// The bytes of the disk.
    #[default]
    Raw,
    /// qcow2, QEMU's own format. Its disk ends at the next multiple of 512 bytes, as QEMU counts disks in sectors.
    /// [`Damaged::Keep`] means zeros: there is no old disk to keep.
    Qcow2,
}

/// Treatment of ranges that can't be read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Damaged {
    /// The restore fails.
    #[default]
    Refuse,
    /// They become zeros, and are reported.
    Zeros,
    /// They stay as they were before: a device as it is, a file as the one it replaces; in a new file they are zeros. They are
    /// reported.
    Keep,
}

/// Result of a restore.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Restored {
    /// Ranges that could not be read back, in order, if that was accepted.
    pub damaged: Vec<DamagedRange>,
    /// Content after the image's end on a larger device, where it was left as it is.
    pub behind: Option<Behind>,
}

/// Extent of the writing to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fill {
    /// The image, zeros and all. What lies behind it on a larger device stays.
    #[default]
    Image,
    /// The same, and zeros behind it up to the device's end: for a new volume, which holds what others left in its place.
    Device,
    /// Only what is not zero: for a new device that reads as zeros.
    Data,
}

/// Restores an image to a file or onto a block device at least as large.
///
/// Everything that can be checked is checked before the first byte is written; whether others use the target is asked again
/// all the time. A file appears under its name when it is whole and durable, sparse where the image has zeros. On a device
/// zeros are written or discarded so that it reads as the image does; [`Fill`] says what becomes of what lies behind the image
/// on a larger one. A format other than raw is only for a file. `data_bytes` is the image's size without zero blocks.
pub fn restore(
    image: &ImageReader,
    data_bytes: u64,
    path: &Path,
    options: &RestoreOptions,
    cancel: &AtomicBool,
    observer: &dyn Observer,
) -> Result<Restored> {
    let mut restore = Restore::open(image, data_bytes, path, options)?;
    restore.write(image, Effort::Full, cancel, observer)?;
    restore.finish(options.changes.as_ref(), cancel)
}

/// The steps of [`restore`], for a caller with something to wait for between them. The target is claimed from the first to
/// the last.
pub struct Restore {
    target: Target,
    options: RestoreOptions,
    size_bytes: u64,
    damaged: Vec<DamagedRange>,
}

/// Share of the host that a restore takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// As much as there is.
    Full,
    /// What others leave: one thread, with the lowest priorities, so at most one read and one write are under way, and a disk
    /// or a processor that others want is theirs for the greater part of the time.
    Low,
}

impl Restore {
    /// Checks and claims the target. Nothing is written yet. A device that holds another disk is refused, except a new
    /// volume ([`Fill`]): it may hold what others left in its place.
    pub fn open(image: &ImageReader, data_bytes: u64, path: &Path, options: &RestoreOptions) -> Result<Self> {
        let size_bytes = image.size_bytes();
        let target = match options.format {
            Format::Raw => Target::open(path, size_bytes, data_bytes, options.force)?,
            Format::Qcow2 => {
                let need_bytes = Qcow2::file_bytes(size_bytes, data_bytes);
                Target::create(path, Qcow2::NAME, need_bytes, options.force)?
            }
        };
        if options.fill == Fill::Image && !options.force && !options.overwrite {
            check_content(&target, image)?;
        }
        Ok(Self {
            target,
            options: options.clone(),
            size_bytes,
            damaged: Vec::new(),
        })
    }

    /// Writes the image, which must be of the size that was given.
    pub fn write(
        &mut self,
        image: &ImageReader,
        effort: Effort,
        cancel: &AtomicBool,
        observer: &dyn Observer,
    ) -> Result<()> {
        let (target, options) = (&self.target, &self.options);
        let qcow2 = match options.format {
            Format::Raw => None,
            Format::Qcow2 => Some(Qcow2::begin(target, image.size_bytes())?),
        };
        let sink: &dyn Sink = match &qcow2 {
            Some(qcow2) => qcow2,
            None => target,
        };
        // More workers than processors: while some write, which is most of the time, others decompress.
        let runs = Runs::new(image.block_size(), image.distance(), options.threads + 6);
        let workers = match effort {
            Effort::Full => runs.workers,
            Effort::Low => 1,
        };
        let damage = Damage::new(&options.label, options.damaged);
        let writing = DiskWrite {
            blocks: BlockWrite {
                image,
                sink,
                damage: &damage,
            },
            fill: options.fill,
            run_blocks: runs.blocks,
            next: Mutex::new(0),
            cancel,
            observer,
        };
        in_workers(target, workers, &|stop| {
            if effort == Effort::Low {
                lower_this_thread();
            }
            writing.work(stop)
        })?;
        if let Some(qcow2) = qcow2 {
            qcow2.finish()?;
        }
        self.damaged = damage.into_ranges();
        Ok(())
    }

    /// Fails if another process has started to use the target.
    pub fn check_alone(&self) -> Result<()> {
        self.target.check_alone()
    }

    /// Writes changes over the image, and makes everything durable.
    pub fn finish(self, changes: Option<&DiskChanges>, cancel: &AtomicBool) -> Result<Restored> {
        if let Some(changes) = changes.filter(|_| self.options.format == Format::Raw) {
            changes.write(&self.target, cancel)?;
        }
        let behind = match self.options.fill {
            Fill::Device => self.target.zero_behind(self.size_bytes).map(|()| None)?,
            Fill::Image => self.target.wipe_behind(self.size_bytes)?,
            Fill::Data => None,
        };
        self.target.finish()?;
        Ok(Restored {
            damaged: self.damaged,
            behind,
        })
    }
}

/// Fails if the target holds another disk.
fn check_content(target: &Target, image: &ImageReader) -> Result<()> {
    let compare = |old| holds::compare(target.path(), &old, image);
    match target.old_disk().map(compare).and_then(|holds| holds.refusal) {
        Some(refusal) => Err(refusal),
        None => Ok(()),
    }
}

/// Lets workers do `work`, which ends soon once one of its flags is set, while the target is watched for other users.
/// The first error ends all of them.
fn in_workers(target: &Target, workers: usize, work: &(dyn Fn(Stop<'_>) -> Result<()> + Sync)) -> Result<()> {
    let watch = Watch::default();
    let is_refused = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching = std::thread::Builder::new()
            .name("vbk-restore-watch".into())
            .spawn_scoped(scope, || {
                watch
                    .run(target)
                    .inspect_err(|_| is_refused.store(true, Ordering::SeqCst))
            })
            .map_err(Error::Thread)?;
        let written = pool::run("vbk-restore", workers, &|_, failed| {
            work(Stop {
                has_failed: failed,
                is_refused: Some(&is_refused),
            })
        });
        watch.end();
        // A panic of the thread is passed on.
        let watched = watching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written.and(watched)
    })
}

/// Reasons for which a worker ends before its work is done.
#[derive(Clone, Copy)]
struct Stop<'a> {
    /// Set by the first error of any worker.
    has_failed: &'a AtomicBool,
    /// Set when another program was found to use the target.
    is_refused: Option<&'a AtomicBool>,
}

impl Stop<'_> {
    fn is_set(&self) -> bool {
        let refused = self.is_refused.is_some_and(|refused| refused.load(Ordering::SeqCst));
        refused || self.has_failed.load(Ordering::SeqCst)
    }
}

/// An image on its way to a target.
struct DiskWrite<'a> {
    blocks: BlockWrite<'a>,
    fill: Fill,
    /// The most blocks that a worker takes at once.
    run_blocks: usize,
    /// The next block that no worker has taken.
    next: Mutex<u64>,
    cancel: &'a AtomicBool,
    observer: &'a dyn Observer,
}

enum Claim {
    Zeros {
        first: BlockIndex,
        count: u64,
    },
    /// Stored blocks.
    Data {
        first: BlockIndex,
        count: usize,
    },
    /// Blocks of which not even the ids can be read.
    Lost {
        first: BlockIndex,
        count: u64,
    },
}

impl DiskWrite<'_> {
    fn work(&self, stop: Stop<'_>) -> Result<()> {
        let BlockWrite { image, sink, damage } = self.blocks;
        let mut buffer = AlignedBuffer::new(self.run_blocks * image.block_size().bytes());
        while !stop.is_set() {
            if self.cancel.load(Ordering::SeqCst) {
                return Err(Error::Interrupted);
            }
            let mut counts = Counts::default();
            match self.claim()? {
                None => return Ok(()),
                Some(Claim::Zeros { first, count }) => {
                    let (start, len) = range_of(image, first, count);
                    counts.zero_bytes = len;
                    if self.fill != Fill::Data {
                        sink.zero(start, len)?;
                    }
                }
                Some(Claim::Lost { first, count }) => {
                    let (start, len) = range_of(image, first, count);
                    damage.note(start, len);
                    self.blocks.fill_lost(start, len)?;
                    counts.new_bytes = len;
                }
                Some(Claim::Data { first, count }) => {
                    let (_, len) = range_of(image, first, count as u64);
                    self.blocks
                        .copy_run(first, &mut buffer.as_mut_slice()[..len as usize])?;
                    counts.read_bytes = len;
                    counts.new_bytes = len;
                }
            }
            self.observer.event(Event::Done(counts));
        }
        Ok(())
    }

    /// Takes the next block, or the next zero blocks of one segment.
    fn claim(&self) -> Result<Option<Claim>> {
        let image = self.blocks.image;
        let mut next = self.next.lock();
        let count = image.block_size().blocks_in(image.size_bytes());
        let first = BlockIndex(*next);
        if first.0 >= count {
            return Ok(None);
        }
        let segment = SEGMENT_SLOTS as u64;
        let limit = ((first.0 / segment + 1) * segment).min(count);
        match image.slot(first) {
            Ok(None) => {}
            Ok(Some(_)) => {
                let end = limit.min(first.0 + self.run_blocks as u64);
                *next += 1;
                while *next < end && image.slot(BlockIndex(*next))?.is_some() {
                    *next += 1;
                }
                return Ok(Some(Claim::Data {
                    first,
                    count: (*next - first.0) as usize,
                }));
            }
            Err(error) => {
                self.blocks.damage.accept(image.block_size().offset_of(first), error)?;
                *next = limit;
                return Ok(Some(Claim::Lost {
                    first,
                    count: limit - first.0,
                }));
            }
        }
        while *next < limit && image.slot(BlockIndex(*next))?.is_none() {
            *next += 1;
        }
        Ok(Some(Claim::Zeros {
            first,
            count: *next - first.0,
        }))
    }
}

/// Writes an image to a stream, zeros and all. `label` names backup and disk in messages. With [`Damaged::Zeros`] ranges that
/// can't be read back are zeros, and returned.
pub fn stream(
    label: &str,
    image: &Arc<ImageReader>,
    damaged: Damaged,
    out: &mut dyn Write,
    cancel: &AtomicBool,
    observer: &dyn Observer,
) -> Result<Vec<DamagedRange>> {
    let stream = Stream::new(Arc::clone(image));
    let damage = Damage::new(label, damaged);
    let mut buffer = vec![0; image.block_size().bytes()];
    let mut offset = 0;
    let failed = |source: io::Error| Error::Target {
        doing: "write to",
        path: "standard output".into(),
        source,
    };
    loop {
        if cancel.load(Ordering::SeqCst) {
            return Err(Error::Interrupted);
        }
        let len = match stream.read_at(offset, &mut buffer) {
            Ok(len) => len,
            Err(error) => {
                let left = image.size_bytes().saturating_sub(offset);
                let len = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                // What is lost is zeros in the buffer.
                damage.rescue(image, offset, &mut buffer[..len], error)?;
                len
            }
        };
        if len == 0 {
            out.flush().map_err(failed)?;
            return Ok(damage.into_ranges());
        }
        out.write_all(&buffer[..len]).map_err(failed)?;
        offset += len as u64;
        observer.event(Event::Done(Counts {
            read_bytes: len as u64,
            new_bytes: len as u64,
            ..Counts::default()
        }));
    }
}

#[cfg(test)]
mod tests;
