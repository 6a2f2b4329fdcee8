//! Names every range of every backup that a damaged block or node of a manifest is part of.
//!
//! Walks the manifests again. A segment without damage is read once, however many backups share it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use super::Damage;
use crate::backup::{Entry, Image};
use crate::block::BlockIndex;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, NodeId};
use crate::manifest::{PAGE_SEGMENTS, SEGMENT_SLOTS, Segment};
use crate::slots::SlotReader;
use crate::store::StoreReader;

/// Damaged blocks, with their plain length and the error.
pub(super) type BadBlocks = HashMap<BlockId, (usize, String)>;

/// Returns the damaged ranges of `entries`, in order.
pub(super) fn damaged_ranges(
    store: &dyn StoreReader,
    entries: &[Entry],
    bad_blocks: &BadBlocks,
    bad_nodes: &HashSet<NodeId>,
    cancel: &AtomicBool,
) -> Result<Vec<Damage>> {
    let mut search = Search {
        store,
        bad_blocks,
        bad_nodes,
        good_segments: HashSet::new(),
        cancel,
        found: Vec::new(),
    };
    if !bad_blocks.is_empty() || !bad_nodes.is_empty() {
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
    bad_nodes: &'a HashSet<NodeId>,
    /// Segments that name no damaged block.
    good_segments: HashSet<Segment>,
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
        let opened = self.readable([manifest], SlotReader::open(self.store, manifest))?;
        let reader = match opened {
            Ok(reader) => reader,
            Err(error) => {
                self.add(disk.damage(0, disk.image.size_bytes, error.to_string()));
                return Ok(());
            }
        };
        for number in 0..reader.manifest().segments() {
            let page = reader.manifest().pages()[number / PAGE_SEGMENTS];
            let names = reader.manifest().segment(number).ok();
            let names = names.filter(|_| !self.bad_nodes.contains(&page));
            if names.is_some_and(|names| names == Segment::ZERO || self.good_segments.contains(&names)) {
                continue;
            }
            if self.cancel.load(Ordering::SeqCst) {
                return Err(Error::Interrupted);
            }
            self.segment(disk, &reader, number, names)?;
        }
        Ok(())
    }

    /// Searches a segment; `names` is `None` if its page is or was damaged.
    fn segment(
        &mut self,
        disk: &Disk<'_>,
        reader: &SlotReader<'_>,
        number: usize,
        names: Option<Segment>,
    ) -> Result<()> {
        let block_size = reader.manifest().block_size();
        let first = number as u64 * SEGMENT_SLOTS as u64;
        let page = reader.manifest().pages()[number / PAGE_SEGMENTS];
        let nodes = names.into_iter().flat_map(Segment::nodes).chain([page]);
        let slots = match self.readable(nodes, reader.segment(number))? {
            Ok(slots) => slots,
            Err(error) => {
                let start = block_size.offset_of(BlockIndex(first));
                let end = block_size.offset_of(BlockIndex(first + SEGMENT_SLOTS as u64));
                let len = end.min(disk.image.size_bytes).saturating_sub(start);
                self.add(disk.damage(start, len, error.to_string()));
                return Ok(());
            }
        };
        let before = self.found.len();
        for (index, slot) in (first..).zip(slots) {
            if let Some((_, what)) = slot.and_then(|id| self.bad_blocks.get(&id)) {
                let index = BlockIndex(index);
                let len = block_size.len_of(index, disk.image.size_bytes) as u64;
                self.add(disk.damage(block_size.offset_of(index), len, what.clone()));
            }
        }
        if self.found.len() == before {
            self.good_segments.extend(names);
        }
        Ok(())
    }

    /// Adds a range; ranges of one fault that touch, e.g. the segments of a damaged page, become one.
    fn add(&mut self, damage: Damage) {
        match self.found.last_mut() {
            Some(last)
                if (&last.backup, &last.disk, &last.what) == (&damage.backup, &damage.disk, &damage.what)
                    && last.offset_bytes + last.len_bytes == damage.offset_bytes =>
            {
                last.len_bytes += damage.len_bytes;
            }
            _ => self.found.push(damage),
        }
    }

    /// Separates damage to `nodes` from errors that end the search. A node that could not be read before counts as
    /// damaged even if it can be read now: its blocks were not verified.
    fn readable<T>(&self, nodes: impl IntoIterator<Item = NodeId>, read: Result<T>) -> Result<Result<T>> {
        let bad = || nodes.into_iter().find(|id| self.bad_nodes.contains(id));
        match read {
            Err(error) if error.kind() != ErrorKind::Corrupt => Err(error),
            Err(error) => Ok(Err(error)),
            Ok(read) => Ok(match bad() {
                None => Ok(read),
                Some(id) => Err(Error::NodeDamaged {
                    id,
                    what: "it could not be read, or only sometimes".into(),
                }),
            }),
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
