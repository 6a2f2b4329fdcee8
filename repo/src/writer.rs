//! Collects an image's slots while the image is read, and writes its manifest.
//!
//! Many threads complete blocks in any order. A segment is stored as soon as its slots are known and is then dropped
//! from memory, so memory depends on the distance between the threads and not on the size of the disk.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::block::{BlockIndex, BlockSize};
use crate::error::{Error, ErrorKind, Result};
use crate::id::SegmentId;
use crate::manifest::{Root, SEGMENT_SLOTS, Slot, decode_segment, encode_segment, segment_count};
use crate::store::checked::{segment_one, segments};
use crate::store::{StoreReader, StoreWriter};

/// Segments and roots that were read from a store and proved. While that store is open for writing they stay in it, so
/// an image with the same segments need not put them again.
#[derive(Debug, Default)]
pub struct ProvedSegments(Mutex<HashSet<SegmentId>>);

impl ProvedSegments {
    /// Adds segments that were read and proved.
    pub fn add(&self, ids: impl IntoIterator<Item = SegmentId>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
    }

    fn has(&self, id: SegmentId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }
}

/// Collects the slots of one image.
pub struct ImageWriter<'a> {
    store: &'a dyn StoreWriter,
    root: Root,
    open: Mutex<Open>,
    proved: Arc<ProvedSegments>,
}

struct Open {
    done: Vec<Option<SegmentId>>,
    partial: BTreeMap<usize, Partial>,
}

struct Partial {
    slots: Vec<Slot>,
    known: Vec<bool>,
    missing: usize,
}

impl<'a> ImageWriter<'a> {
    /// Starts the manifest of an image.
    pub fn create(store: &'a dyn StoreWriter, block_size: BlockSize, size_bytes: u64) -> Self {
        Self::after(store, block_size, size_bytes, Arc::default())
    }

    /// Starts the manifest of an image of which some segments are known to be stored.
    pub fn after(
        store: &'a dyn StoreWriter,
        block_size: BlockSize,
        size_bytes: u64,
        proved: Arc<ProvedSegments>,
    ) -> Self {
        let count = segment_count(block_size, size_bytes) as usize;
        Self {
            store,
            root: Root {
                block_size,
                size_bytes,
                segments: Vec::new(),
            },
            open: Mutex::new(Open {
                done: vec![None; count],
                partial: BTreeMap::new(),
            }),
            proved,
        }
    }

    fn put(&self, id: SegmentId, bytes: Vec<u8>) -> Result<()> {
        match self.proved.has(id) {
            true => Ok(()),
            false => self.store.put_segments(vec![(id, bytes)]),
        }
    }

    /// Sets the slots from `first` on. Each slot must be set once; a block must be put before its slot is set.
    pub fn set(&self, first: BlockIndex, slots: &[Slot]) -> Result<()> {
        let mut place = first.0 as usize;
        let mut rest = slots;
        while !rest.is_empty() {
            let (segment, inside) = (place / SEGMENT_SLOTS, place % SEGMENT_SLOTS);
            let (now, later) = rest.split_at(rest.len().min(SEGMENT_SLOTS - inside));
            self.set_in(segment, inside, now)?;
            place += now.len();
            rest = later;
        }
        Ok(())
    }

    /// Sets `count` slots from `first` on to zero blocks.
    pub fn set_zero(&self, first: BlockIndex, count: u64) -> Result<()> {
        let zeros = [None; SEGMENT_SLOTS];
        let mut done = 0;
        while done < count {
            let piece = (count - done).min(SEGMENT_SLOTS as u64);
            self.set(BlockIndex(first.0 + done), &zeros[..piece as usize])?;
            done += piece;
        }
        Ok(())
    }

    fn set_in(&self, segment: usize, inside: usize, slots: &[Slot]) -> Result<()> {
        let size = self.root.slots_in(segment);
        if inside + slots.len() > size {
            return Err(bug("a slot past the end of the image"));
        }
        let complete = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            let partial = open.partial.entry(segment).or_insert_with(|| Partial {
                slots: vec![None; size],
                known: vec![false; size],
                missing: size,
            });
            for (offset, slot) in slots.iter().enumerate() {
                if std::mem::replace(&mut partial.known[inside + offset], true) {
                    return Err(bug("a slot was set twice"));
                }
                partial.slots[inside + offset] = *slot;
            }
            partial.missing -= slots.len();
            if partial.missing > 0 {
                return Ok(());
            }
            open.partial.remove(&segment)
        };
        let id = match complete.and_then(|complete| encode_segment(self.store.hashing(), &complete.slots)) {
            Some((id, bytes)) => {
                self.put(id, bytes)?;
                id
            }
            None => SegmentId::ZERO,
        };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.done[segment] = Some(id);
        Ok(())
    }

    /// Completes the manifest and returns its name. Fails if a slot was never set.
    pub fn finish(self) -> Result<SegmentId> {
        let done = std::mem::take(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner).done);
        let segments: Option<Vec<_>> = done.into_iter().collect();
        let root = Root {
            segments: segments.ok_or_else(|| bug("a slot was never set"))?,
            ..self.root
        };
        let (id, bytes) = root.encode(self.store.hashing());
        self.put(id, bytes)?;
        Ok(id)
    }
}

fn bug(message: &str) -> Error {
    Error::Store {
        kind: ErrorKind::Internal,
        doing: "write a manifest",
        message: message.to_owned(),
    }
}

/// Reads and proves segments of an image in one call. Returns one result for each segment that the image has.
pub(crate) fn read_segments(
    store: &(impl StoreReader + ?Sized),
    root: &Root,
    numbers: Range<usize>,
) -> Vec<Result<Vec<Slot>>> {
    let numbers = numbers.start..numbers.end.min(root.segments.len());
    let ids = root.segments.get(numbers.clone()).unwrap_or_default();
    let stored: Vec<_> = ids.iter().copied().filter(|id| *id != SegmentId::ZERO).collect();
    let mut answers = match stored.is_empty() {
        true => Vec::new(),
        false => segments(store, &stored),
    }
    .into_iter();
    let of = |(number, &id): (usize, &SegmentId)| {
        let count = root.slots_in(number);
        match id {
            SegmentId::ZERO => Ok(vec![None; count]),
            // `segments` returns one answer for each.
            id => answers
                .next()
                .unwrap_or_else(|| Err(bug("the store returned no answer for a segment")))
                .and_then(|bytes| decode_segment(store.hashing(), id, count, &bytes)),
        }
    };
    numbers.zip(ids).map(of).collect()
}

/// Reads the slots of a stored image.
pub struct SlotReader<'a> {
    store: &'a dyn StoreReader,
    root: Root,
}

impl<'a> SlotReader<'a> {
    /// Reads the root of a manifest.
    pub fn open(store: &'a dyn StoreReader, manifest: SegmentId) -> Result<Self> {
        let bytes = segment_one(store, manifest)?;
        Ok(Self {
            store,
            root: Root::decode(store.hashing(), manifest, &bytes)?,
        })
    }

    /// Returns the root.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Returns the slots of segment `number`; none past the end.
    pub fn segment(&self, number: usize) -> Result<Vec<Slot>> {
        read_segments(self.store, &self.root, number..number + 1)
            .pop()
            .unwrap_or_else(|| Ok(Vec::new()))
    }

    /// Returns the slots of several segments, read in one call: one result for each segment that the image has.
    pub fn segments(&self, numbers: Range<usize>) -> Vec<Result<Vec<Slot>>> {
        read_segments(self.store, &self.root, numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::BlockId;
    use crate::store::memory::MemoryStore;

    fn id(number: u64) -> Slot {
        let mut bytes = [1; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        Some(BlockId(bytes))
    }

    #[test]
    fn slots_set_in_any_order_come_back_in_order() {
        let store = MemoryStore::new(BlockSize::MIN);
        let count = 2 * SEGMENT_SLOTS as u64 + 10;
        let writer = ImageWriter::create(&store, BlockSize::MIN, count << 16);
        let runs: Vec<_> = (0..count).step_by(7).collect();
        for run in runs.into_iter().rev() {
            let slots: Vec<_> = (run..count.min(run + 7)).map(id).collect();
            writer.set(BlockIndex(run), &slots).expect("sets");
        }
        let manifest = writer.finish().expect("finishes");
        let reader = SlotReader::open(&store, manifest).expect("opens");
        let all: Vec<_> = (0..4).flat_map(|n| reader.segment(n).expect("reads")).collect();
        assert_eq!(all, (0..count).map(id).collect::<Vec<_>>());
    }

    #[test]
    fn a_hole_of_any_size_costs_one_root() {
        let store = MemoryStore::new(BlockSize::DEFAULT);
        let blocks = 1 << 20;
        let writer = ImageWriter::create(&store, BlockSize::DEFAULT, blocks << 20);
        writer.set_zero(BlockIndex(0), blocks).expect("sets");
        let manifest = writer.finish().expect("finishes");
        let reader = SlotReader::open(&store, manifest).expect("opens");
        assert_eq!(reader.root().segments, vec![SegmentId::ZERO; 1024]);
        assert_eq!(reader.segment(1023).expect("reads"), vec![None; 1024]);
    }

    #[test]
    fn a_forgotten_or_doubled_slot_is_an_error_and_not_zeros() {
        let store = MemoryStore::new(BlockSize::DEFAULT);
        let writer = ImageWriter::create(&store, BlockSize::DEFAULT, 3 << 20);
        writer.set(BlockIndex(0), &[id(0)]).expect("sets");
        assert!(writer.set(BlockIndex(0), &[id(0)]).is_err());
        assert!(writer.set(BlockIndex(2), &[id(2), id(3)]).is_err());
        assert!(writer.finish().is_err());
    }

    #[test]
    fn an_empty_disk_has_a_manifest() {
        let store = MemoryStore::new(BlockSize::DEFAULT);
        let manifest = ImageWriter::create(&store, BlockSize::DEFAULT, 0)
            .finish()
            .expect("finishes");
        assert_eq!(SlotReader::open(&store, manifest).expect("opens").root().size_bytes, 0);
    }
}
