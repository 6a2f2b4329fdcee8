//! Proves backups: reads every block that they name once, decodes it and checks its hash.
//!
//! Memory: 2 bytes per block of the store, 40 bytes per distinct segment, two blocks per thread within
//! 64 MiB, and the list of damaged ranges.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::backup::{Entry, Image};
use crate::block::BlockIndex;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, SegmentId};
use crate::manifest::SEGMENT_SLOTS;
use crate::pool;
use crate::reader::read_all;
use crate::runs::Runs;
use crate::store::places::PlaceNumbers;
use crate::store::{Place, StoreReader};
use crate::verify::places::{BadBlocks, damaged_ranges};
use crate::writer::SlotReader;

mod places;
mod scope;

pub use scope::{MAX_PARTS, Scope};

/// Blocks that go to a thread at once.
const BATCH_BLOCKS: usize = 16;

/// Progress of a verification.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Backups whose blocks were all handed out.
    pub backups: u64,
    /// Blocks read and proved, or found damaged.
    pub blocks: u64,
    /// Their plain bytes.
    pub bytes: u64,
}

/// Range of a backup that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The backup, as `GUEST@TIME`.
    pub backup: String,
    /// The disk.
    pub disk: String,
    /// Offset on the disk.
    pub offset_bytes: u64,
    /// Bytes that may be lost: a block, or all blocks of a segment.
    pub len_bytes: u64,
    /// Description of the fault.
    pub what: String,
}

/// Result of a verification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Blocks and bytes that were read.
    pub read: VerifyProgress,
    /// Every damaged range of every backup.
    pub damage: Vec<Damage>,
    /// The damaged or missing blocks behind it, and their plain length.
    pub bad_blocks: HashMap<BlockId, usize>,
    /// The damaged or missing segments and roots behind it. The blocks that they name are unknown.
    pub bad_segments: HashSet<SegmentId>,
    /// Blocks that were found damaged before and were read whole now.
    pub sound_again: Vec<BlockId>,
}

/// Returns the plain bytes that the backups stored anew: about as many as a verification of all blocks reads. Only an
/// estimate, because records may name any numbers.
pub fn expected_bytes(entries: &[Entry]) -> u64 {
    let new = entries.iter().map(|entry| entry.backup.new_bytes());
    new.fold(0, u64::saturating_add)
}

struct Findings<'a> {
    scope: &'a Scope,
    /// Blocks that a thread reads with one call of the store.
    run_blocks: usize,
    /// Blocks that were found damaged before.
    condemned: HashSet<BlockId>,
    blocks: Mutex<BadBlocks>,
    sound_again: Mutex<Vec<BlockId>>,
    blocks_read: AtomicU64,
    bytes_read: AtomicU64,
}

/// Verifies the blocks of `entries` in `scope`, with `threads` threads. `progress` is called now and then from the
/// caller's thread. Returns [`Error::Interrupted`] soon after `cancel` is set, and the error of a store that can't be
/// read at all; a damaged block or manifest is in the report instead.
pub fn verify(
    store: &dyn StoreReader,
    entries: &[Entry],
    scope: &Scope,
    threads: usize,
    progress: &dyn Fn(VerifyProgress),
    cancel: &AtomicBool,
) -> Result<VerifyReport> {
    let runs = Runs::new(store.identity()?.block_size, store.distance(), threads);
    let findings = Findings {
        scope,
        run_blocks: runs.blocks,
        condemned: store.condemned()?.into_iter().collect(),
        blocks: Mutex::default(),
        sound_again: Mutex::default(),
        blocks_read: AtomicU64::new(0),
        bytes_read: AtomicU64::new(0),
    };
    let hand_out = |send: &mut dyn FnMut(Vec<(BlockId, usize)>) -> bool| {
        let mut walk = Walk::new(store);
        for (backups, entry) in (0..).zip(entries) {
            walk.backup(entry, &mut |blocks| {
                let batch = findings.sort_out(blocks);
                // A thread that fails leaves its own error, which counts.
                if cancel.load(Ordering::SeqCst) || !batch.is_empty() && !send(batch) {
                    return Err(Error::Interrupted);
                }
                progress(findings.read(backups));
                Ok(())
            })?;
        }
        Ok(walk.bad_segments)
    };
    let check = |batch: Vec<_>| findings.check(store, &batch);
    let bad_segments = pool::feed("vbk-verify", runs.workers, 2 * runs.workers, hand_out, &check)?;
    let read = findings.read(entries.len() as u64);
    let bad = std::mem::take(&mut *lock(&findings.blocks));
    // A block that was read at two places counts as damaged if either of them is.
    let mut sound_again = std::mem::take(&mut *lock(&findings.sound_again));
    sound_again.retain(|id| !bad.contains_key(id));
    Ok(VerifyReport {
        read,
        damage: damaged_ranges(store, entries, &bad, &bad_segments, cancel)?,
        bad_blocks: bad.into_iter().map(|(id, (len, _))| (id, len)).collect(),
        bad_segments,
        sound_again,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Findings<'_> {
    /// Returns the blocks in scope that are stored, with their plain length, and notes those that are missing.
    fn sort_out(&self, blocks: &[Located]) -> Vec<(BlockId, usize)> {
        let mut stored = Vec::with_capacity(blocks.len());
        for &(id, len, place) in blocks {
            match place {
                None => self.note(id, len, &Error::BlockMissing(id)),
                Some(_) if self.scope.contains(id) => stored.push((id, len)),
                Some(_) => {}
            }
        }
        stored
    }

    /// Reads blocks and proves them.
    fn check(&self, store: &dyn StoreReader, batch: &[(BlockId, usize)]) -> Result<()> {
        for run in batch.chunks(self.run_blocks) {
            let mut buffers: Vec<_> = run.iter().map(|&(_, len)| vec![0; len]).collect();
            let ids = run.iter().map(|&(id, _)| id);
            let mut wanted: Vec<_> = ids.zip(buffers.iter_mut().map(Vec::as_mut_slice)).collect();
            for (&(id, len), read) in run.iter().zip(read_all(store, &mut wanted)) {
                match read {
                    Ok(()) if self.condemned.contains(&id) => lock(&self.sound_again).push(id),
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::Corrupt => self.note(id, len, &error),
                    // An unreachable store says nothing about the block.
                    Err(error) => return Err(error),
                }
                self.blocks_read.fetch_add(1, Ordering::Relaxed);
                self.bytes_read.fetch_add(len as u64, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn note(&self, id: BlockId, len: usize, error: &Error) {
        lock(&self.blocks).insert(id, (len, error.to_string()));
    }

    fn read(&self, backups: u64) -> VerifyProgress {
        VerifyProgress {
            backups,
            blocks: self.blocks_read.load(Ordering::Relaxed),
            bytes: self.bytes_read.load(Ordering::Relaxed),
        }
    }
}

type Located = (BlockId, usize, Option<Place>);

/// Walks manifests and hands out each block once, within a segment in the order of the store.
struct Walk<'a> {
    store: &'a dyn StoreReader,
    seen_segments: HashSet<SegmentId>,
    /// For each place in the store, a few bits of the id of the block that was handed out. If damage makes another block
    /// claim the same place, that one is handed out too, and found to be missing.
    seen: PlaceNumbers,
    bad_segments: HashSet<SegmentId>,
}

impl<'a> Walk<'a> {
    fn new(store: &'a dyn StoreReader) -> Self {
        Self {
            store,
            seen_segments: HashSet::new(),
            seen: PlaceNumbers::default(),
            bad_segments: HashSet::new(),
        }
    }

    fn backup(&mut self, entry: &Entry, hand_out: &mut dyn FnMut(&[Located]) -> Result<()>) -> Result<()> {
        let mut images = entry.backup.stored();
        images.try_for_each(|image| self.image(image, hand_out))
    }

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
        // The walk notes damage and continues; another error, e.g. an unreachable store, ends it.
        if error.kind() != ErrorKind::Corrupt {
            return Err(error);
        }
        self.bad_segments.insert(segment);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
