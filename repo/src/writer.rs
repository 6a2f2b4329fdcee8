//! Collects an image's slots while the image is read, and writes its manifest.
//!
//! Many threads complete blocks in any order. A segment is stored as soon as its slots are known and is then dropped
//! from memory, so memory depends on the distance between the threads and not on the size of the disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::block::{BlockIndex, BlockSize};
use crate::error::{Error, Result};
use crate::id::NodeId;
use crate::manifest::{
    Delta, Full, MAX_DELTA, PAGE_SEGMENTS, Page, Root, SEGMENT_SLOTS, Segment, SegmentSlots, Slot, segment_count,
    slots_in,
};
use crate::slots::SlotReader;
use crate::store::StoreWriter;

/// An earlier image of the same disk, read from the same store while that is open for writing: what was read from it
/// stays stored, so an image with the same nodes need not put them again.
pub trait Base: Send + Sync {
    /// Returns the reader of the earlier image.
    fn reader(&self) -> &SlotReader<'_>;

    /// Returns a segment of the earlier image; `None` if it can't be read.
    fn segment(&self, number: usize) -> Option<Arc<SegmentSlots>>;
}

/// Collects the slots of one image.
pub struct ImageWriter<'a> {
    store: &'a dyn StoreWriter,
    block_size: BlockSize,
    size_bytes: u64,
    open: Mutex<Open>,
    base: Option<Arc<dyn Base + 'a>>,
}

struct Open {
    done: Vec<Option<Segment>>,
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
        Self::after(store, block_size, size_bytes, None)
    }

    /// Starts the manifest of an image that probably differs little from `base`.
    pub fn after(
        store: &'a dyn StoreWriter,
        block_size: BlockSize,
        size_bytes: u64,
        base: Option<Arc<dyn Base + 'a>>,
    ) -> Self {
        Self {
            store,
            block_size,
            size_bytes,
            open: Mutex::new(Open {
                done: vec![None; segment_count(block_size, size_bytes) as usize],
                partial: BTreeMap::new(),
            }),
            base,
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

    /// Takes segment `number` over from the earlier image as it is, in place of setting its slots. Returns `false`, and does nothing,
    /// if that can't be read or has another length there.
    pub fn keep(&self, number: usize) -> Result<bool> {
        let before = self.base.as_ref().map(|base| base.reader().manifest());
        let count = slots_in(self.block_size, self.size_bytes, number);
        let Some(before) = before.filter(|before| before.slots_in(number) == count) else {
            return Ok(false);
        };
        let Ok(names) = before.segment(number) else {
            return Ok(false);
        };
        let mut open = self.open.lock();
        let is_begun = open.partial.contains_key(&number);
        match open.done.get_mut(number) {
            Some(done) if done.is_none() && !is_begun => *done = Some(names),
            _ => return Err(bug("a slot was set twice")),
        }
        Ok(true)
    }

    fn set_in(&self, segment: usize, inside: usize, slots: &[Slot]) -> Result<()> {
        let size = slots_in(self.block_size, self.size_bytes, segment);
        if inside + slots.len() > size {
            return Err(bug("a slot past the end of the image"));
        }
        let complete = {
            let mut open = self.open.lock();
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
        if let Some(complete) = complete {
            let names = self.put_segment(segment, &complete.slots)?;
            self.open.lock().done[segment] = Some(names);
        }
        Ok(())
    }

    /// Stores what is new in a segment: nothing, a delta, or a full segment.
    fn put_segment(&self, number: usize, slots: &[Slot]) -> Result<Segment> {
        if slots.iter().all(Option::is_none) {
            return Ok(Segment::ZERO);
        }
        let hashing = self.store.hashing();
        if let Some((names, known)) = self.known(number) {
            if known.slots == slots {
                return Ok(names);
            }
            if let Some(full) = known.full.as_ref().filter(|_| known.slots.len() == slots.len()) {
                let delta = match Delta::between(full, slots) {
                    None => Some(NodeId::ZERO),
                    Some(delta) if delta.encoded_len() * MAX_DELTA <= full.encoded_len() => {
                        let (id, bytes) = delta.encode(hashing);
                        self.store.put_nodes(vec![(id, bytes)])?;
                        Some(id)
                    }
                    Some(_) => None,
                };
                if let Some(delta) = delta {
                    return Ok(Segment { delta, ..names });
                }
            }
        }
        let Some(full) = Full::of(slots) else {
            return Ok(Segment::ZERO);
        };
        let (id, bytes) = full.encode(hashing);
        self.store.put_nodes(vec![(id, bytes)])?;
        Ok(Segment {
            full: id,
            delta: NodeId::ZERO,
        })
    }

    /// Returns the segment of the earlier image.
    fn known(&self, number: usize) -> Option<(Segment, Arc<SegmentSlots>)> {
        let base = self.base.as_ref()?;
        let names = base.reader().manifest().segment(number).ok()?;
        if names == Segment::ZERO {
            return None;
        }
        if let Some(read) = base.segment(number) {
            return Some((names, read));
        }
        // If only the delta is damaged and the disk did not change since, the same delta is made again, and repairs it.
        let (alone, read) = base.reader().without_delta(number)?;
        Some((alone, Arc::new(read)))
    }

    /// Completes the manifest and returns its name. Fails if a slot was never set.
    pub fn finish(self) -> Result<NodeId> {
        let hashing = self.store.hashing();
        let done = std::mem::take(&mut self.open.lock().done);
        let segments: Option<Vec<_>> = done.into_iter().collect();
        let segments = segments.ok_or_else(|| bug("a slot was never set"))?;
        let mut new = Vec::new();
        let mut pages = Vec::new();
        for segments in segments.chunks(PAGE_SEGMENTS) {
            let page = Page(segments.to_vec()).encode(hashing);
            pages.push(page.as_ref().map_or(NodeId::ZERO, |(id, _)| *id));
            new.extend(page);
        }
        let root = Root {
            block_size: self.block_size,
            size_bytes: self.size_bytes,
            pages,
        };
        let (id, bytes) = root.encode(hashing);
        new.push((id, bytes));
        if let Some(base) = &self.base {
            let proved = base.reader().proved();
            new.retain(|(id, _)| !proved.contains(id));
        }
        if !new.is_empty() {
            self.store.put_nodes(new)?;
        }
        Ok(id)
    }
}

fn bug(message: &str) -> Error {
    Error::Internal {
        doing: "write a manifest",
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests;
