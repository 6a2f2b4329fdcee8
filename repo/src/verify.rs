//! Proves backups: reads every block that they name, once, decodes it and hashes it again.
//!
//! Memory: 2 bytes per block of the store, 40 bytes per distinct segment, two blocks per thread within
//! 64 MiB, and the list of what is damaged.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::backup::{Entry, Image};
use crate::block::BlockIndex;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, SegmentId};
use crate::manifest::SEGMENT_SLOTS;
use crate::reader::read_whole;
use crate::store::places::PlaceNumbers;
use crate::store::{Place, StoreReader};
use crate::writer::SlotReader;

/// Blocks that go to a thread at once.
const BATCH_BLOCKS: usize = 16;

/// What the threads' blocks may take together; with large blocks there are fewer threads.
const WORKER_BYTES: usize = 64 << 20;

/// How far a verification is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Backups whose blocks were all handed out.
    pub backups: u64,
    /// Blocks read and proved, or found damaged.
    pub blocks: u64,
    /// Their plain bytes.
    pub bytes: u64,
}

/// One place in a backup that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The backup, as `GUEST@TIME`.
    pub backup: String,
    /// The disk.
    pub disk: String,
    /// Where on the disk.
    pub offset_bytes: u64,
    /// How much of it may be lost: a block, or all blocks of a segment.
    pub len_bytes: u64,
    /// What is wrong.
    pub what: String,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// What was read.
    pub read: VerifyProgress,
    /// Every damaged place of every backup.
    pub damage: Vec<Damage>,
    /// The damaged or missing blocks behind it, and their plain length.
    pub bad_blocks: HashMap<BlockId, usize>,
    /// The damaged or missing segments and roots behind it. What blocks they name is not known.
    pub bad_segments: HashSet<SegmentId>,
}

/// Which blocks a verification reads. Manifests are always read in full.
pub type Scope<'a> = &'a (dyn Fn(BlockId) -> bool + Sync);

/// Which of `parts` equal parts of all blocks this one belongs to.
pub fn part_of(id: BlockId, parts: usize) -> usize {
    let start = id.0.first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
    ((u128::from(start) * parts as u128) >> 64) as usize
}

struct Findings {
    blocks: Mutex<HashMap<BlockId, (usize, String)>>,
    blocks_read: AtomicU64,
    bytes_read: AtomicU64,
    /// What says nothing of the block, as a store that can't be reached just now. It ends the verification.
    failed: Mutex<Option<Error>>,
}

/// Verifies the blocks of `entries` that are `wanted`, with `threads` threads. `progress` is called now and then from this thread; when `cancel` is
/// set the call ends soon with [`Error::Interrupted`].
pub fn verify(
    store: &dyn StoreReader,
    entries: &[Entry],
    wanted: Scope<'_>,
    threads: usize,
    progress: &dyn Fn(VerifyProgress),
    cancel: &AtomicBool,
) -> Result<VerifyReport> {
    // A block and, at worst, as much stored.
    let limit = WORKER_BYTES / (2 * store.identity()?.block_size.bytes());
    let threads = threads.clamp(1, limit.max(1));
    let findings = Findings {
        blocks: Mutex::default(),
        blocks_read: AtomicU64::new(0),
        bytes_read: AtomicU64::new(0),
        failed: Mutex::default(),
    };
    let mut read = VerifyProgress::default();
    let (work, queue) = crossbeam_channel::bounded::<Vec<(BlockId, usize)>>(2 * threads);
    let walked = std::thread::scope(|scope| {
        for number in 0..threads {
            let (queue, findings) = (queue.clone(), &findings);
            std::thread::Builder::new()
                .name(format!("vbk-verify-{number}"))
                .spawn_scoped(scope, move || {
                    for batch in queue {
                        findings.check(store, &batch);
                    }
                })
                .expect("the system can start a few threads");
        }
        // The threads hold clones; with this one gone a dead pool shows as a failed send.
        drop(queue);
        let mut walk = Walk {
            store,
            seen_segments: HashSet::new(),
            seen: PlaceNumbers::default(),
            bad_segments: HashSet::new(),
        };
        for entry in entries {
            for image in entry.backup.stored() {
                walk.image(image, &mut |batch| {
                    if cancel.load(Ordering::SeqCst) {
                        return Err(Error::Interrupted);
                    }
                    if let Some(error) = findings.take_failure() {
                        return Err(error);
                    }
                    let mut there = Vec::with_capacity(batch.len());
                    for &(id, len, place) in batch {
                        match place {
                            None => findings.note(id, len, &Error::BlockMissing(id)),
                            Some(_) if wanted(id) => there.push((id, len)),
                            Some(_) => {}
                        }
                    }
                    if !there.is_empty() {
                        let _ = work.send(there);
                    }
                    read.blocks = findings.blocks_read.load(Ordering::Relaxed);
                    read.bytes = findings.bytes_read.load(Ordering::Relaxed);
                    progress(read);
                    Ok(())
                })?;
            }
            read.backups += 1;
        }
        drop(work);
        Ok(walk.bad_segments)
    });
    let bad_segments = walked?;
    if let Some(error) = findings.take_failure() {
        return Err(error);
    }
    read.blocks = findings.blocks_read.load(Ordering::Relaxed);
    read.bytes = findings.bytes_read.load(Ordering::Relaxed);
    let mut report = VerifyReport {
        read,
        bad_segments,
        ..VerifyReport::default()
    };
    let bad = findings.blocks.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.damage = places(store, entries, &bad, &report.bad_segments, cancel)?;
    report.bad_blocks = bad.into_iter().map(|(id, (len, _))| (id, len)).collect();
    Ok(report)
}

impl Findings {
    fn check(&self, store: &dyn StoreReader, batch: &[(BlockId, usize)]) {
        for &(id, len) in batch {
            let mut plain = vec![0; len];
            match read_whole(store, id, &mut plain) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Corrupt => self.note(id, len, &error),
                Err(error) => {
                    let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.get_or_insert(error);
                }
            }
            self.blocks_read.fetch_add(1, Ordering::Relaxed);
            self.bytes_read.fetch_add(len as u64, Ordering::Relaxed);
        }
    }

    fn take_failure(&self) -> Option<Error> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note(&self, id: BlockId, len: usize, error: &Error) {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.insert(id, (len, error.to_string()));
    }
}

/// Walks the manifests again to name every place that a damaged block or segment is in. Each segment without damage
/// is read once, however many backups have it.
fn places(
    store: &dyn StoreReader,
    entries: &[Entry],
    blocks: &HashMap<BlockId, (usize, String)>,
    bad_segments: &HashSet<SegmentId>,
    cancel: &AtomicBool,
) -> Result<Vec<Damage>> {
    let mut all = Vec::new();
    if blocks.is_empty() && bad_segments.is_empty() {
        return Ok(all);
    }
    // Even if it can be read now: its blocks were not.
    let readable = |id: SegmentId| match bad_segments.contains(&id) {
        true => Err(Error::SegmentDamaged {
            id,
            what: "it could not be read, or not always".into(),
        }),
        false => Ok(()),
    };
    let mut good_segments = HashSet::new();
    for entry in entries {
        for image in entry.backup.stored() {
            let mut add = |offset_bytes, len_bytes, what: &str| {
                all.push(Damage {
                    backup: entry.backup.spec(),
                    disk: image.disk.to_string(),
                    offset_bytes,
                    len_bytes,
                    what: what.to_owned(),
                });
            };
            let opened = SlotReader::open(store, image.manifest);
            let reader = match opened.and_then(|reader| readable(image.manifest).map(|()| reader)) {
                Ok(reader) => reader,
                Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
                Err(error) => {
                    add(0, image.size_bytes, &error.to_string());
                    continue;
                }
            };
            let size = reader.root().block_size;
            for (number, segment) in reader.root().segments.iter().enumerate() {
                if *segment == SegmentId::ZERO || good_segments.contains(segment) {
                    continue;
                }
                if cancel.load(Ordering::SeqCst) {
                    return Err(Error::Interrupted);
                }
                let first = number as u64 * SEGMENT_SLOTS as u64;
                let start = size.offset_of(BlockIndex(first));
                let slots = reader.segment(number);
                let slots = match slots.and_then(|slots| readable(*segment).map(|()| slots)) {
                    Ok(slots) => slots,
                    Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
                    Err(error) => {
                        let end = size.offset_of(BlockIndex(first + SEGMENT_SLOTS as u64));
                        let len = end.min(image.size_bytes).saturating_sub(start);
                        add(start, len, &error.to_string());
                        continue;
                    }
                };
                let mut good = true;
                for (index, id) in (first..).zip(&slots) {
                    if let Some((_, what)) = id.and_then(|id| blocks.get(&id)) {
                        let index = BlockIndex(index);
                        let len = size.len_of(index, image.size_bytes) as u64;
                        add(size.offset_of(index), len, what);
                        good = false;
                    }
                }
                if good {
                    good_segments.insert(*segment);
                }
            }
        }
    }
    Ok(all)
}

type Located = (BlockId, usize, Option<Place>);

/// Hands out each block once, in the order in which they lie in the store as far as one segment goes.
struct Walk<'a> {
    store: &'a dyn StoreReader,
    seen_segments: HashSet<SegmentId>,
    /// Of the block that was handed out at each place, a few bits of its id: should damage name another block for the same
    /// place, that one is handed out too, and found not to be there.
    seen: PlaceNumbers,
    bad_segments: HashSet<SegmentId>,
}

impl Walk<'_> {
    fn image(&mut self, image: &Image, hand_out: &mut dyn FnMut(&[Located]) -> Result<()>) -> Result<()> {
        let reader = match SlotReader::open(self.store, image.manifest) {
            Ok(reader) => reader,
            Err(error) => return self.bad(image.manifest, error),
        };
        let root = reader.root();
        for (number, &segment) in root.segments.iter().enumerate() {
            if segment == SegmentId::ZERO || !self.seen_segments.insert(segment) {
                continue;
            }
            let slots = match reader.segment(number) {
                Ok(slots) => slots,
                Err(error) => {
                    self.bad(segment, error)?;
                    continue;
                }
            };
            let first = number as u64 * SEGMENT_SLOTS as u64;
            let (ids, lens): (Vec<_>, Vec<_>) = (first..)
                .zip(slots)
                .filter_map(|(index, slot)| {
                    let len = root.block_size.len_of(BlockIndex(index), root.size_bytes);
                    slot.map(|id| (id, len))
                })
                .unzip();
            let places = self.store.locate(&ids)?;
            let mut blocks: Vec<Located> = ids
                .into_iter()
                .zip(lens)
                .zip(places)
                .map(|((id, len), located)| (id, len, located.map(|located| located.place)))
                .filter(|(id, _, place)| place.is_none_or(|place| self.is_new(*id, place)))
                .collect();
            blocks.sort_by_key(|(_, _, place)| *place);
            for batch in blocks.chunks(BATCH_BLOCKS) {
                hand_out(batch)?;
            }
        }
        Ok(())
    }

    fn is_new(&mut self, id: BlockId, place: Place) -> bool {
        let seen = self.seen.at(place);
        let now = u16::from_le_bytes([id.0[30], id.0[31]]).max(1);
        std::mem::replace(seen, now) != now
    }

    fn bad(&mut self, segment: SegmentId, error: Error) -> Result<()> {
        // Damage is noted and the walk goes on; anything else, like a store that is not reachable, ends it.
        if error.kind() != ErrorKind::Corrupt {
            return Err(error);
        }
        self.bad_segments.insert(segment);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
