//! Names every range of every backup that a damaged block or segment is part of.
//!
//! Walks the manifests again. A segment without damage is read once, however many backups share it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use super::Damage;
use crate::backup::{Entry, Image};
use crate::block::BlockIndex;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, SegmentId};
use crate::manifest::SEGMENT_SLOTS;
use crate::store::StoreReader;
use crate::writer::SlotReader;

/// Damaged blocks, with their plain length and the error.
pub(super) type BadBlocks = HashMap<BlockId, (usize, String)>;

/// Returns the damaged ranges of `entries`, in order.
pub(super) fn damaged_ranges(
    store: &dyn StoreReader,
    entries: &[Entry],
    bad_blocks: &BadBlocks,
    bad_segments: &HashSet<SegmentId>,
    cancel: &AtomicBool,
) -> Result<Vec<Damage>> {
    let mut search = Search {
        store,
        bad_blocks,
        bad_segments,
        good_segments: HashSet::new(),
        cancel,
        found: Vec::new(),
    };
    if !bad_blocks.is_empty() || !bad_segments.is_empty() {
        for entry in entries {
            for image in entry.backup.stored() {
                search.image(&Disk { entry, image })?;
            }
        }
    }
    Ok(search.found)
}

struct Search<'a> {
    store: &'a dyn StoreReader,
    bad_blocks: &'a BadBlocks,
    bad_segments: &'a HashSet<SegmentId>,
    /// Segments that name no damaged block.
    good_segments: HashSet<SegmentId>,
    cancel: &'a AtomicBool,
    found: Vec<Damage>,
}

struct Disk<'a> {
    entry: &'a Entry,
    image: &'a Image,
}

impl Search<'_> {
    fn image(&mut self, disk: &Disk<'_>) -> Result<()> {
        let manifest = disk.image.manifest;
        let opened = self.readable(manifest, SlotReader::open(self.store, manifest))?;
        let reader = match opened {
            Ok(reader) => reader,
            Err(error) => {
                self.found
                    .push(disk.damage(0, disk.image.size_bytes, error.to_string()));
                return Ok(());
            }
        };
        for (number, id) in reader.root().segments.iter().enumerate() {
            if *id == SegmentId::ZERO || self.good_segments.contains(id) {
                continue;
            }
            if self.cancel.load(Ordering::SeqCst) {
                return Err(Error::Interrupted);
            }
            self.segment(disk, &reader, number, *id)?;
        }
        Ok(())
    }

    fn segment(&mut self, disk: &Disk<'_>, reader: &SlotReader<'_>, number: usize, id: SegmentId) -> Result<()> {
        let block_size = reader.root().block_size;
        let first = number as u64 * SEGMENT_SLOTS as u64;
        let slots = match self.readable(id, reader.segment(number))? {
            Ok(slots) => slots,
            Err(error) => {
                let start = block_size.offset_of(BlockIndex(first));
                let end = block_size.offset_of(BlockIndex(first + SEGMENT_SLOTS as u64));
                let len = end.min(disk.image.size_bytes).saturating_sub(start);
                self.found.push(disk.damage(start, len, error.to_string()));
                return Ok(());
            }
        };
        let before = self.found.len();
        for (index, slot) in (first..).zip(slots) {
            if let Some((_, what)) = slot.and_then(|id| self.bad_blocks.get(&id)) {
                let index = BlockIndex(index);
                let len = block_size.len_of(index, disk.image.size_bytes) as u64;
                self.found
                    .push(disk.damage(block_size.offset_of(index), len, what.clone()));
            }
        }
        if self.found.len() == before {
            self.good_segments.insert(id);
        }
        Ok(())
    }

    /// Separates damage to a root or segment from errors that end the search. A segment that could not be read before
    /// counts as damaged even if it can be read now: its blocks were not verified.
    fn readable<T>(&self, id: SegmentId, read: Result<T>) -> Result<Result<T>> {
        match read {
            Err(error) if error.kind() != ErrorKind::Corrupt => Err(error),
            Ok(_) if self.bad_segments.contains(&id) => Ok(Err(Error::SegmentDamaged {
                id,
                what: "it could not be read, or only sometimes".into(),
            })),
            read => Ok(read),
        }
    }
}

impl Disk<'_> {
    fn damage(&self, offset_bytes: u64, len_bytes: u64, what: String) -> Damage {
        Damage {
            backup: self.entry.backup.spec(),
            disk: self.image.disk.to_string(),
            offset_bytes,
            len_bytes,
            what,
        }
    }
}
