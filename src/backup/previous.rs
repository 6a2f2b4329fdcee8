//! The previous backup of the same disk: what is the same there need not be looked up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use vbk_repo::backup::Image;
use vbk_repo::block::BlockIndex;
use vbk_repo::manifest::{SEGMENT_SLOTS, Slot};
use vbk_repo::store::StoreReader;
use vbk_repo::writer::SlotReader;

use super::lock;
use crate::observer::{Event, Observer};

/// The slots of the previous backup.
pub(super) struct Previous<'a> {
    reader: SlotReader<'a>,
    cached: Mutex<VecDeque<(usize, Arc<Vec<Slot>>)>>,
}

/// Segments that workers may be in at once.
const CACHED_SEGMENTS: usize = 4;

impl<'a> Previous<'a> {
    pub(super) fn open(store: &'a dyn StoreReader, image: &Image, observer: &dyn Observer) -> Option<Self> {
        match SlotReader::open(store, image.manifest) {
            Ok(reader) => Some(Self {
                reader,
                cached: Mutex::default(),
            }),
            Err(error) => {
                observer.event(Event::Warning(&format!(
                    "the previous backup of disk {} can't be compared with: {error}",
                    image.disk
                )));
                None
            }
        }
    }

    /// The size of the disk then.
    pub(super) fn size_bytes(&self) -> u64 {
        self.reader.root().size_bytes
    }

    pub(super) fn slot(&self, index: BlockIndex) -> Slot {
        // What can't be read has nothing to compare with; the index still knows its blocks.
        self.slots(index, 1)?.first().copied().flatten()
    }

    /// `count` slots of one segment; `None` if it can't be read or has not so many.
    pub(super) fn slots(&self, first: BlockIndex, count: usize) -> Option<Vec<Slot>> {
        let segment = (first.0 / SEGMENT_SLOTS as u64) as usize;
        let inside = (first.0 % SEGMENT_SLOTS as u64) as usize;
        let mut cached = lock(&self.cached);
        let found = cached.iter().find(|(number, _)| *number == segment);
        let slots = match found {
            Some((_, slots)) => Arc::clone(slots),
            None => {
                let slots = Arc::new(self.reader.segment(segment).unwrap_or_default());
                cached.push_back((segment, Arc::clone(&slots)));
                if cached.len() > CACHED_SEGMENTS {
                    cached.pop_front();
                }
                slots
            }
        };
        Some(slots.get(inside..inside + count)?.to_vec())
    }
}
