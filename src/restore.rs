//! Writes an image back: to a file, onto a block device, or as a stream.

pub mod guest;

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vbk_repo::block::BlockIndex;
use vbk_repo::manifest::SEGMENT_SLOTS;
use vbk_repo::reader::{ImageReader, Stream};

use crate::buffer::AlignedBuffer;
use crate::error::{Error, Result};
use crate::observer::{Counts, Event, Observer};
use crate::target::Target;

/// What the workers' blocks may take together; with large blocks there are fewer workers.
const WORKER_BYTES: usize = 64 << 20;

/// What a restore may do and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreOptions {
    /// The backup and disk, for messages.
    pub label: String,
    /// Replace an existing file, and write to a device that a program has open for writing.
    pub force: bool,
    /// How much of a device is written.
    pub fill: Fill,
    /// How many threads may compute at once.
    pub threads: usize,
}

/// How much of a device a restore writes.
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
/// Everything that can be checked is checked before the first byte is written. A file appears under its name when it
/// is whole and durable, sparse where the image has zeros. On a device zeros are written or discarded so that it reads
/// as the image does; [`Fill`] says what becomes of what lies behind the image on a larger one. `data_bytes` is the image's size without
/// zero blocks.
pub fn restore(
    image: &ImageReader,
    data_bytes: u64,
    path: &Path,
    options: &RestoreOptions,
    cancel: &AtomicBool,
    observer: &dyn Observer,
) -> Result<()> {
    let target = Target::open(path, image.size_bytes(), data_bytes, options.force)?;
    // A block and, at worst, as much stored. More workers than processors, because some of them wait for a disk.
    let limit = WORKER_BYTES / (2 * image.block_size().bytes());
    let workers = (options.threads + 2).min(limit).max(2);
    let run = Run {
        label: &options.label,
        image,
        target: &target,
        fill: options.fill,
        next: Mutex::new(0),
        stop: AtomicBool::new(false),
        cancel,
        observer,
    };
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for number in 0..workers {
            let (run, failed) = (&run, &failed);
            std::thread::Builder::new()
                .name(format!("vbk-restore-{number}"))
                .spawn_scoped(scope, move || {
                    if let Err(error) = run.work() {
                        run.stop.store(true, Ordering::SeqCst);
                        failed
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .get_or_insert(error);
                    }
                })
                .expect("the system can start a few threads");
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => {
            if options.fill == Fill::Device {
                target.zero_behind(image.size_bytes())?;
            }
            target.finish()
        }
    }
}

struct Run<'a> {
    label: &'a str,
    image: &'a ImageReader,
    target: &'a Target,
    fill: Fill,
    /// The next block that nobody has taken.
    next: Mutex<u64>,
    stop: AtomicBool,
    cancel: &'a AtomicBool,
    observer: &'a dyn Observer,
}

enum Claim {
    Zeros { first: BlockIndex, count: u64 },
    Block(BlockIndex),
}

impl Run<'_> {
    fn work(&self) -> Result<()> {
        let size = self.image.block_size();
        let mut buffer = AlignedBuffer::new(size.bytes());
        while !self.stop.load(Ordering::SeqCst) {
            if self.cancel.load(Ordering::SeqCst) {
                return Err(Error::Interrupted);
            }
            let mut counts = Counts::default();
            match self.claim()? {
                None => return Ok(()),
                Some(Claim::Zeros { first, count }) => {
                    let start = size.offset_of(first);
                    let end = size.offset_of(BlockIndex(first.0 + count));
                    counts.zero_bytes = end.min(self.image.size_bytes()) - start;
                    if self.fill != Fill::Data {
                        self.target.zero(start, counts.zero_bytes)?;
                    }
                }
                Some(Claim::Block(index)) => {
                    let len = size.len_of(index, self.image.size_bytes());
                    let plain = &mut buffer.as_mut_slice()[..len];
                    let offset_bytes = size.offset_of(index);
                    let read = self.image.read_block(index, plain);
                    read.map_err(unreadable(self.label, offset_bytes))?;
                    self.target.write(size.offset_of(index), plain)?;
                    counts.read_bytes = len as u64;
                    counts.new_bytes = len as u64;
                }
            }
            self.observer.event(Event::Done(counts));
        }
        Ok(())
    }

    /// Takes the next block, or the next zero blocks of one segment.
    fn claim(&self) -> Result<Option<Claim>> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let count = self.image.block_size().blocks_in(self.image.size_bytes());
        let first = BlockIndex(*next);
        if first.0 >= count {
            return Ok(None);
        }
        if self.image.slot(first)?.is_some() {
            *next += 1;
            return Ok(Some(Claim::Block(first)));
        }
        let segment = SEGMENT_SLOTS as u64;
        let limit = ((first.0 / segment + 1) * segment).min(count);
        while *next < limit && self.image.slot(BlockIndex(*next))?.is_none() {
            *next += 1;
        }
        Ok(Some(Claim::Zeros {
            first,
            count: *next - first.0,
        }))
    }
}

fn unreadable(image: &str, offset_bytes: u64) -> impl FnOnce(vbk_repo::Error) -> Error {
    move |source| Error::ReadImage {
        image: image.to_owned(),
        offset_bytes,
        source,
    }
}

/// Writes an image to a stream, zeros and all. `label` names backup and disk in messages.
pub fn stream(
    label: &str,
    image: &Arc<ImageReader>,
    out: &mut dyn Write,
    cancel: &AtomicBool,
    observer: &dyn Observer,
) -> Result<()> {
    let stream = Stream::new(Arc::clone(image));
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
        let read = stream.read_at(offset, &mut buffer);
        let len = read.map_err(unreadable(label, offset))?;
        if len == 0 {
            return out.flush().map_err(failed);
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
