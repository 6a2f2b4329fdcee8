//! Makes a backup: reads the disks, hashes their blocks, and stores those that the repository does not have.
//!
//! A few workers share each disk. A worker takes the next run of blocks, reads and hashes it, compares the ids with
//! the previous backup's manifest and then with the store's index, seals what is new and puts it. While one waits for
//! the disk another hashes, so the disk always has reads in flight; a store that falls behind slows the workers down,
//! and with them the reading.
//!
//! A block that changed since the previous backup is stored as a difference from what it was then, if that saves much and the
//! store is near ([`vbk_repo::differences`]).
//!
//! Ranges that a change hint calls unchanged are not read ([`crate::hints`]): their slots are those of the previous backup.
//!
//! # On disk, step by step
//!
//! Blocks become durable at barriers ([`vbk_repo::barrier`]), at the latest every 4 GiB or 30 s; the record comes last, when
//! everything it names is durable ([`vbk_repo::store`]). A run that ends early, however it ends, leaves no record, so it is never
//! listed, and the next run finds the blocks that a barrier covered.

mod files;
mod gone;
pub mod guest;
mod hinted;
mod losses;
mod new;
mod plan;
mod previous;
mod walk;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use vbk_repo::ErrorKind;
use vbk_repo::backup::{Backup, Entry, Image, RECORD_FORMAT};
use vbk_repo::barrier::Barrier;
use vbk_repo::block::{BlockIndex, BlockSize, Hashing, is_zero};
use vbk_repo::codec::Sealer;
use vbk_repo::id::{BlockId, NodeId};
use vbk_repo::manifest::Slot;
use vbk_repo::name::{BackupTime, DiskName};
use vbk_repo::pool;
use vbk_repo::repository::{Committed, Writer};
use vbk_repo::runs::Runs;
use vbk_repo::store::StoreWriter;
use vbk_repo::writer::{Base, ImageWriter};

use self::new::Candidate;
pub use self::plan::{BackupPlan, DiskPlan};
use self::previous::Previous;
use self::walk::{Claim, Walk};
use crate::disk::buffer::{AlignedBuffer, Buffer};
use crate::disk::source::{MAX_IN_FLIGHT, Source};
use crate::error::{Error, Result};
use crate::hints::Hint;
use crate::observer::{Counts, Event, Observer};

/// Times that what is gone of what was stored for the backup is stored again.
const MOST_TRIES: u32 = 5;

/// Times that a backup takes another second, because other writers of the same guest had the one before.
const MOST_SECONDS: u32 = 60;

/// Result of a backup.
#[derive(Debug, Clone, PartialEq)]
pub struct BackupSummary {
    /// The backup.
    pub entry: Entry,
    /// All its disks together.
    pub counts: Counts,
}

/// Runs a backup. Ends soon with [`Error::Interrupted`] when one of `stops` is set; blocks stored by then are kept for the next
/// run. Calls `still_good` after the last byte was read: it returns the used bytes of the disks' thick snapshots, or an error, and
/// then nothing is recorded.
pub fn backup(
    writer: &Writer,
    plan: &BackupPlan,
    still_good: &dyn Fn() -> Result<BTreeMap<DiskName, u64>>,
    stops: &[&AtomicBool],
    observer: &dyn Observer,
) -> Result<BackupSummary> {
    let clock = Instant::now();
    let sources = open_sources(plan)?;
    files::check(plan)?;
    let catalogue = writer.catalogue()?;
    let previous = catalogue.latest(&plan.guest);
    let mut time = catalogue.free_time(&plan.guest, plan.started);
    warn_of_a_clock_that_is_behind(plan, previous, &time, observer);
    if let Some(previous) = previous {
        writer.store().builds_on(&previous.backup.spec())?;
    }
    let mut job = Job {
        writer,
        plan,
        previous,
        condemned: writer.store().condemned()?.into_iter().collect(),
        barrier: Barrier::default(),
        stops,
        observer,
    };
    let mut counts = Counts::default();
    let mut images = copy_disks(&job, &sources, &mut counts)?;
    observer.event(Event::DisksRead);
    let (mut tries, mut seconds) = (0, 0);
    let committed = loop {
        match commit(&job, &mut images, time, clock, still_good, &counts) {
            Err(Error::Repository(vbk_repo::Error::Missing { blocks, nodes })) if tries < MOST_TRIES => {
                tries += 1;
                observer.event(Event::DisksNeeded);
                gone::store_again(&mut job, &sources, &mut images, &mut counts, blocks, &nodes)?;
                observer.event(Event::DisksRead);
            }
            // Another writer had the same second for this guest, and was faster.
            Err(Error::Repository(vbk_repo::Error::BackupExists(_))) if seconds < MOST_SECONDS => {
                seconds += 1;
                time = time.next();
            }
            committed => break committed?,
        }
    };
    if let Some(error) = committed.unpublished {
        observer.event(Event::Warning(&format!(
            "the backup is stored, but will not be listed before the next one: {error}"
        )));
    }
    Ok(BackupSummary {
        entry: committed.entry,
        counts,
    })
}

/// Stores the files of the guest, and commits the record.
fn commit(
    job: &Job<'_>,
    images: &mut [Image],
    time: BackupTime,
    clock: Instant,
    still_good: &dyn Fn() -> Result<BTreeMap<DiskName, u64>>,
    counts: &Counts,
) -> Result<Committed> {
    let Job { writer, plan, .. } = *job;
    let used = still_good().inspect_err(|error| keep_what_is_stored(writer.store(), error))?;
    for image in &mut *images {
        image.snapshot_used_bytes = used.get(&image.disk).copied().unwrap_or(0);
    }
    let files = plan.files.iter();
    let files = files.map(|(name, bytes)| files::store(writer, plan, &job.condemned, name, bytes));
    let files = files
        .collect::<Result<_>>()
        .map_err(|error| explain(error, counts, 0))?;
    let committed = writer.commit(Backup {
        format: RECORD_FORMAT,
        guest: plan.guest.clone(),
        time,
        sequence: 0,
        duration_ms: u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX),
        host: plan.host.clone(),
        vbk_version: plan.version.clone(),
        consistency: plan.consistency,
        images: images.to_vec(),
        files,
    });
    committed.map_err(|error| explain(error.into(), counts, 0))
}

/// Opens all disks before the first byte is read, so that a wrong path fails at once.
fn open_sources(plan: &BackupPlan) -> Result<Vec<(&DiskPlan, Source)>> {
    let mut sources: Vec<(&DiskPlan, Source)> = Vec::new();
    for disk in &plan.disks {
        if sources.iter().any(|(known, _)| known.name == disk.name) {
            return Err(Error::DiskTwice(disk.name.to_string()));
        }
        sources.push((disk, Source::open(&disk.read)?));
    }
    Ok(sources)
}

fn warn_of_a_clock_that_is_behind(
    plan: &BackupPlan,
    previous: Option<&Entry>,
    time: &BackupTime,
    observer: &dyn Observer,
) {
    if let Some(later) = previous.filter(|entry| entry.backup.time > *time) {
        observer.event(Event::Warning(&format!(
            "the clock is behind the latest backup, {}: one of the two times is wrong. This backup, {}@{time}, counts as the newer \
             one",
            later.backup.spec(),
            plan.guest
        )));
    }
}

/// Copies the disks one after the other, and adds what was done to `total`, also before an error.
fn copy_disks(job: &Job<'_>, sources: &[(&DiskPlan, Source)], total: &mut Counts) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    for (disk, source) in sources {
        let copy = DiskCopy::new(job, disk, source);
        job.observer.event(Event::Disk {
            name: disk.name.as_str(),
            size_bytes: source.size_bytes(),
        });
        let (done, counts) = copy.run();
        *total += counts;
        let (manifest, hints_wrong) = done.map_err(|error| {
            keep_what_is_stored(job.writer.store(), &error);
            let all: u64 = sources.iter().map(|(_, source)| source.size_bytes()).sum();
            explain(error, total, all)
        })?;
        images.push(Image {
            disk: disk.name.clone(),
            source: disk.source.display().to_string(),
            size_bytes: source.size_bytes(),
            manifest,
            data_bytes: counts.new_bytes + counts.unchanged_bytes,
            new_bytes: counts.new_bytes,
            stored_bytes: counts.stored_bytes,
            snapshot: disk.snapshot,
            snapshot_used_bytes: 0,
            skipped_bytes: counts.skipped_bytes,
            hints_wrong,
        });
    }
    Ok(images)
}

/// Adds to the error of a full repository how far the backup of disks of `size_bytes` came.
fn explain(error: Error, done: &Counts, size_bytes: u64) -> Error {
    let done_bytes = done.zero_bytes + done.unchanged_bytes + done.new_bytes;
    match error {
        Error::Repository(source) if source.kind() == ErrorKind::NoSpace => Error::RepositoryFull {
            // Known when the store is closed.
            kept_bytes: None,
            left_bytes: size_bytes.saturating_sub(done_bytes),
            source,
        },
        error => error,
    }
}

/// A last barrier, so that the next run need not store the same blocks again.
fn keep_what_is_stored(store: &dyn StoreWriter, error: &Error) {
    if error.kind() == ErrorKind::NoSpace {
        return;
    }
    if let Err(error) = store.flush() {
        tracing::debug!(%error, "what an unfinished backup stored may have to be stored again");
    }
}

/// Everything that the disks of a backup share.
struct Job<'a> {
    writer: &'a Writer,
    plan: &'a BackupPlan,
    /// The guest's latest backup.
    previous: Option<&'a Entry>,
    /// Blocks to store again, though they are known.
    condemned: HashSet<BlockId>,
    /// Counts new plain bytes.
    barrier: Barrier,
    stops: &'a [&'a AtomicBool],
    observer: &'a dyn Observer,
}

impl Job<'_> {
    /// Calls `work` with a sealer.
    fn seal<T>(&self, work: impl FnOnce(&mut Sealer) -> vbk_repo::Result<T>) -> Result<T> {
        Ok(self.writer.sealers().with(self.plan.compression, work)?)
    }
}

/// One disk on its way into the repository.
struct DiskCopy<'a> {
    job: &'a Job<'a>,
    disk: &'a DiskPlan,
    source: &'a Source,
    store: &'a dyn StoreWriter,
    hashing: Hashing,
    block_size: BlockSize,
    previous: Option<Arc<Previous<'a>>>,
    /// Used only together with `previous`, and only if it was made by comparison with that backup.
    hint: Option<&'a Hint>,
    slots: ImageWriter<'a>,
    walk: Mutex<Walk>,
    counts: Mutex<Counts>,
    audit: hinted::Audit,
    runs: Runs,
}

impl<'a> DiskCopy<'a> {
    fn new(job: &'a Job<'a>, disk: &'a DiskPlan, source: &'a Source) -> Self {
        let store = job.writer.store();
        let block_size = job.writer.identity().block_size;
        // While as many as may read wait for the disk, the others keep all processors busy; two more have read and wait for one.
        let workers = job.plan.threads + MAX_IN_FLIGHT as usize + 2;
        let runs = Runs::of_single_blocks(block_size, store.distance(), workers);
        let runs = runs.of(block_size.blocks_in(source.size_bytes()));
        let image = |entry: &'a Entry| Some((entry, entry.backup.image(disk.name.as_str()).ok()?));
        let known = job.previous.and_then(image);
        let previous = known.and_then(|(_, image)| Previous::open(store, image, job.observer));
        let previous = previous.map(Arc::new);
        let base = previous.clone().map(|previous| previous as Arc<dyn Base>);
        let hint = disk.hint.as_ref().filter(|hint| {
            hinted::check(hint, known, previous.as_deref(), source, block_size)
                .inspect_err(|why| {
                    let warning = format!("disk {} is read in full: {why}", disk.name);
                    job.observer.event(Event::Warning(&warning));
                })
                .is_ok()
        });
        Self {
            job,
            disk,
            source,
            store,
            hashing: store.hashing(),
            block_size,
            previous,
            hint,
            slots: ImageWriter::after(store, block_size, source.size_bytes(), base),
            walk: Mutex::default(),
            counts: Mutex::default(),
            audit: hinted::Audit::default(),
            runs,
        }
    }

    /// Returns the root of the manifest and whether change hints were wrong; and the counts, also of an unfinished copy.
    fn run(mut self) -> (Result<(NodeId, bool)>, Counts) {
        let read = self.audit().and_then(|wrong| {
            self.in_workers(Self::work)?;
            Ok(wrong)
        });
        let counts = *self.counts.lock();
        let done = read.and_then(|wrong| {
            self.source.check_unchanged()?;
            Ok((self.slots.finish()?, wrong))
        });
        (done, counts)
    }

    /// Lets all workers do `work` and waits for them. The first error ends them.
    fn in_workers(&self, work: fn(&Self, &mut Worker<'_>) -> Result<()>) -> Result<()> {
        pool::run("vbk-backup", self.runs.workers, &|_, stop| {
            self.disk.pace.begin();
            work(self, &mut Worker::new(self, stop))
        })
    }

    /// Returns `false` after an error of another worker, and an error after the caller's request to stop.
    fn continues(&self, worker: &Worker<'_>) -> Result<bool> {
        if self.is_stopped() {
            return Err(Error::Interrupted);
        }
        Ok(!worker.stop.load(Ordering::SeqCst))
    }

    fn work(&self, worker: &mut Worker<'_>) -> Result<()> {
        while self.continues(worker)? {
            let Some(claim) = self.claim() else {
                return Ok(());
            };
            let counts = match claim {
                Claim::Zeros { first, count } => {
                    self.slots.set_zero(first, count)?;
                    let start = self.block_size.offset_of(first);
                    let end = self.block_size.offset_of(BlockIndex(first.0 + count));
                    Counts {
                        zero_bytes: end.min(self.source.size_bytes()) - start,
                        ..Counts::default()
                    }
                }
                Claim::Data { first, count } => self.back_up(first, count, self.previous.as_deref(), worker)?,
                Claim::Unchanged { first, count } => self.take_over(first, count, worker)?,
            };
            self.count(counts);
            if self.job.barrier.is_due(counts.new_bytes) {
                self.store.flush()?;
            }
        }
        Ok(())
    }

    /// Returns whether the caller has asked for a stop.
    fn is_stopped(&self) -> bool {
        self.job.stops.iter().any(|stop| stop.load(Ordering::SeqCst))
    }

    fn count(&self, counts: Counts) {
        *self.counts.lock() += counts;
        self.job.observer.event(Event::Done(counts));
    }

    fn read<'b>(&self, index: BlockIndex, buffer: &'b mut AlignedBuffer, stop: &AtomicBool) -> Result<&'b [u8]> {
        let len = self.block_size.len_of(index, self.source.size_bytes());
        let offset = self.block_size.offset_of(index);
        let ends = || stop.load(Ordering::SeqCst) || self.is_stopped();
        self.disk.pace.read(self.source, offset, len, buffer, &ends)?;
        Ok(&buffer.as_slice()[..len])
    }

    /// Reads at most as many blocks as there are buffers. Blocks that `previous` has are not looked up in the store.
    fn back_up(
        &self,
        first: BlockIndex,
        count: u64,
        previous: Option<&Previous<'_>>,
        worker: &mut Worker<'_>,
    ) -> Result<Counts> {
        let mut counts = Counts::default();
        let mut slots: Vec<Slot> = Vec::with_capacity(count as usize);
        let mut candidates = Vec::new();
        for (number, buffer) in (0..count).zip(&mut worker.buffers) {
            let index = BlockIndex(first.0 + number);
            let plain = self.read(index, buffer, worker.stop)?;
            let len = plain.len();
            counts.read_bytes += len as u64;
            if is_zero(plain) {
                counts.zero_bytes += len as u64;
                slots.push(None);
                continue;
            }
            let hashes = self.hashing.block(plain);
            slots.push(Some(hashes.id));
            let previous = previous.and_then(|previous| previous.slot(index));
            if previous == Some(hashes.id) && !self.job.condemned.contains(&hashes.id) {
                counts.unchanged_bytes += len as u64;
            } else {
                candidates.push(Candidate {
                    number: number as usize,
                    len,
                    hashes,
                    before: previous,
                });
            }
        }
        self.store_new(candidates, worker, &mut counts)?;
        self.slots.set(first, &slots)?;
        Ok(counts)
    }
}

struct Worker<'a> {
    buffers: Vec<Buffer>,
    /// Set by the first error of any worker.
    stop: &'a AtomicBool,
}

impl<'a> Worker<'a> {
    fn new(copy: &DiskCopy<'_>, stop: &'a AtomicBool) -> Self {
        let buffer = |_| copy.job.plan.buffers.take(copy.block_size.bytes());
        Self {
            buffers: (0..copy.runs.blocks).map(buffer).collect(),
            stop,
        }
    }
}

#[cfg(test)]
mod tests;
