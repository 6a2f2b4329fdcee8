//! The previous backup of the same disk: a block that has the same id there need not be looked up in the store.
//!
//! The slots are read ahead of the workers, many segments in one call. The worker that comes near the end of the
//! segments read so far reads the next ones while the others continue, so a disk of any size waits only for its first
//! segments.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};
use vbk_repo::backup::Image;
use vbk_repo::block::BlockIndex;
use vbk_repo::manifest::{SEGMENT_SLOTS, Segment, SegmentSlots, Slot};
use vbk_repo::slots::SlotReader;
use vbk_repo::store::StoreReader;
use vbk_repo::writer::Base;

use crate::observer::{Event, Observer};

/// Segments that are read in one call: 4 MiB in memory, and up to three times as much in the window.
const BATCH: usize = 64;

/// Slots of the previous backup.
pub(super) struct Previous<'a> {
    reader: SlotReader<'a>,
    window: Mutex<Window>,
    changed: Condvar,
}

/// The segments that the workers are using, and those read ahead.
#[derive(Default)]
struct Window {
    /// `None` for a segment that can't be read.
    slots: BTreeMap<usize, Option<Arc<SegmentSlots>>>,
    /// First segment that has not been read yet.
    next: usize,
    /// A worker is reading the next segments.
    reading: bool,
}

impl<'a> Previous<'a> {
    pub(super) fn open(store: &'a dyn StoreReader, image: &Image, observer: &dyn Observer) -> Option<Self> {
        match SlotReader::open(store, image.manifest) {
            Ok(reader) => Some(Self {
                reader,
                window: Mutex::default(),
                changed: Condvar::new(),
            }),
            Err(error) => {
                observer.event(Event::Warning(&format!(
                    "can't compare disk {} with its previous backup: {error}",
                    image.disk
                )));
                None
            }
        }
    }

    /// Returns the disk's size at the previous backup.
    pub(super) fn size_bytes(&self) -> u64 {
        self.reader.manifest().size_bytes()
    }

    /// Returns the names of a segment; `None` past its end, and if its page can't be read.
    pub(super) fn names(&self, number: usize) -> Option<Segment> {
        self.reader.manifest().segment(number).ok()
    }

    pub(super) fn slot(&self, index: BlockIndex) -> Slot {
        // A segment that can't be read gives nothing to compare with; the index still knows its blocks.
        self.slots(index, 1)?.first().copied().flatten()
    }

    /// Returns `count` slots of one segment; `None` if it can't be read or has fewer.
    pub(super) fn slots(&self, first: BlockIndex, count: usize) -> Option<Vec<Slot>> {
        let segment = (first.0 / SEGMENT_SLOTS as u64) as usize;
        let inside = (first.0 % SEGMENT_SLOTS as u64) as usize;
        let segment = self.segment(segment)?;
        Some(segment.slots.get(inside..inside + count)?.to_vec())
    }

    /// Reads the segments from `first` on, and drops those that no worker is using any more.
    fn read(&self, window: &mut MutexGuard<'_, Window>, first: usize) {
        if first >= self.reader.manifest().segments() {
            return;
        }
        window.reading = true;
        let read = MutexGuard::unlocked(window, || self.reader.segments(first..first + BATCH));
        window.reading = false;
        window.next = first + read.len();
        window.slots.retain(|number, _| number.abs_diff(first) <= BATCH);
        let read = read.into_iter().map(|segment| segment.ok().map(Arc::new));
        window.slots.extend((first..).zip(read));
        self.changed.notify_all();
    }
}

impl Base for Previous<'_> {
    fn reader(&self) -> &SlotReader<'_> {
        &self.reader
    }

    fn segment(&self, number: usize) -> Option<Arc<SegmentSlots>> {
        if number >= self.reader.manifest().segments() {
            return None;
        }
        let mut window = self.window.lock();
        let found = loop {
            if let Some(segment) = window.slots.get(&number) {
                break segment.clone();
            }
            match window.reading {
                true => self.changed.wait(&mut window),
                // From the start of its batch: workers come in any order, and those before this one must not ask again.
                false => self.read(&mut window, number - number % BATCH),
            }
        };
        if !window.reading && window.next < number + BATCH / 2 {
            let next = window.next;
            self.read(&mut window, next);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use vbk_repo::block::BlockSize;
    use vbk_repo::id::BlockId;
    use vbk_repo::name::DiskName;
    use vbk_repo::store::delayed::Delayed;
    use vbk_repo::store::memory::MemoryStore;
    use vbk_repo::writer::ImageWriter;

    use super::*;

    const SEGMENTS: usize = 1024;

    fn id(number: u64) -> Slot {
        let mut bytes = [1; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        Some(BlockId(bytes))
    }

    fn image(store: &MemoryStore) -> Image {
        let count = (SEGMENTS * SEGMENT_SLOTS) as u64;
        let writer = ImageWriter::create(store, BlockSize::MIN, count << 16);
        for first in (0..count).step_by(SEGMENT_SLOTS) {
            let slots: Vec<_> = (first..first + SEGMENT_SLOTS as u64).map(id).collect();
            writer.set(BlockIndex(first), &slots).expect("sets");
        }
        Image::new(
            DiskName::new("vda").expect("a name"),
            "",
            count << 16,
            writer.finish().expect("finishes"),
        )
    }

    #[test]
    fn all_slots_of_a_large_disk_come_with_few_calls_and_in_any_order() {
        let store = Arc::new(MemoryStore::new(BlockSize::MIN));
        let image = image(&store);
        let far = Delayed::new(store, std::time::Duration::from_millis(1)).expect("starts");
        let previous = Previous::open(&far, &image, &()).expect("opens");
        let all = (SEGMENTS * SEGMENT_SLOTS) as u64;
        // One call for the root, one for the pages, and one for each 64 segments.
        let calls = 2 + (SEGMENTS / BATCH) as u64;
        for first in (0..all).step_by(64) {
            assert_eq!(previous.slots(BlockIndex(first), 64).expect("is there")[0], id(first));
        }
        assert_eq!(far.calls().waits, calls);
        let before = far.calls().waits;
        let previous = Previous::open(&far, &image, &()).expect("opens");
        let next = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    loop {
                        let first = next.fetch_add(64, Ordering::SeqCst);
                        if first >= all {
                            return;
                        }
                        let slots = previous.slots(BlockIndex(first), 64).expect("is there");
                        assert_eq!(slots[0], id(first));
                        assert_eq!(slots[63], id(first + 63));
                    }
                });
            }
        });
        // A worker that the others have left far behind, on a busy machine, asks again.
        assert!((calls..2 * calls - 2).contains(&(far.calls().waits - before)));
        // The first worker to come need not be the one with the first segment.
        let before = far.calls().waits;
        let previous = Previous::open(&far, &image, &()).expect("opens");
        for segment in [5, 3, 0, 31] {
            let first = segment * SEGMENT_SLOTS as u64;
            assert_eq!(previous.slot(BlockIndex(first)), id(first));
        }
        assert_eq!(far.calls().waits - before, 2 + 1);
        // Back to the start, as after a sample, and far ahead.
        for first in [0, all - 1, 5 * SEGMENT_SLOTS as u64] {
            assert_eq!(previous.slot(BlockIndex(first)), id(first));
        }
        assert_eq!(previous.slot(BlockIndex(all)), None);
    }
}
