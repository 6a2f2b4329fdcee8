//! The stored blocks whose ids begin alike, in four bytes each and a bit that says whether a backup names the block.
//!
//! Of an id, 50 bits are kept: 8 choose a part, the next 10 a run in it, and 32 stand in the run. Ids are hashes. In a store
//! with 100 million blocks, an id that is not stored is therefore taken for a stored one with a probability of 1 in 10
//! million. Of stored ids that begin alike, all count as named.

use std::iter::Peekable;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::id::BlockId;
use crate::pool;
use crate::store::live::{LivePlaces, StartSet, start_of};
use crate::store::{Located, Place, StoreReader};

/// Parts of all ids, by their first byte.
const PARTS: usize = 256;
/// Runs of a part, by the next bits.
const RUNS: usize = 1 << 10;
/// Blocks that are looked at together, if a quarter of all is no more.
const LEAST_BLOCKS: u64 = if cfg!(test) { 100 } else { 2 << 20 };
/// Slices at most.
const MOST_SLICES: usize = 4;
/// Places that a thread collects before it adds them to the others'.
const BATCH_PLACES: usize = 16 << 10;

/// Returns the parts of each slice of a store with so many blocks.
pub(super) fn slices(blocks: u64) -> impl Iterator<Item = Range<usize>> {
    let slices = usize::try_from(blocks.div_ceil(LEAST_BLOCKS)).unwrap_or(MOST_SLICES);
    let slices = slices.clamp(1, MOST_SLICES);
    (0..slices).map(move |slice| slice * PARTS / slices..(slice + 1) * PARTS / slices)
}

/// The index of a store, which several threads read, each some ids in their order.
pub(super) struct Index<'a> {
    pub(super) store: &'a dyn StoreReader,
    pub(super) threads: usize,
    pub(super) cancel: &'a std::sync::atomic::AtomicBool,
}

impl Index<'_> {
    /// Returns the number of blocks, and the first place after theirs.
    pub(super) fn count(&self) -> Result<(u64, Place)> {
        let total = Mutex::new((0, Place(0)));
        self.each_range(0..PARTS, &|parts| {
            let (mut blocks, mut end) = (0, Place(0));
            self.read(parts, &mut |_, located| {
                blocks += 1;
                end = end.max(Place(located.place.0.saturating_add(1)));
            })?;
            let mut total = total.lock();
            *total = (total.0 + blocks, total.1.max(end));
            Ok(())
        })?;
        Ok(total.into_inner())
    }

    /// Reads the ids in some parts, of a store with about `blocks` blocks.
    pub(super) fn slice(&self, parts: Range<usize>, blocks: u64) -> Result<Slice> {
        let found = Mutex::new(Vec::with_capacity(parts.len()));
        self.each_range(parts.clone(), &|range| {
            let first = range.start;
            let mut read: Vec<_> = range.clone().map(|_| Part::with_room_for(blocks)).collect();
            self.read(range, &mut |id, _| {
                read[usize::from(id.0[0]) - first].push(start_of(&id.0))
            })?;
            read.iter_mut().for_each(Part::complete);
            found.lock().extend((first..).zip(read));
            Ok(())
        })?;
        let mut found = found.into_inner();
        found.sort_unstable_by_key(|(number, _)| *number);
        Ok(Slice {
            first: parts.start,
            parts: found.into_iter().map(|(_, part)| part).collect(),
        })
    }

    /// Adds the places of the blocks that were marked in a slice.
    pub(super) fn add_marked(&self, slice: &Slice, places: &Mutex<LivePlaces>) -> Result<()> {
        self.each_range(slice.first..slice.first + slice.parts.len(), &|range| {
            let mut marked: Vec<Located> = Vec::with_capacity(BATCH_PLACES);
            let add = |marked: &mut Vec<Located>| {
                let mut places = places.lock();
                marked.drain(..).for_each(|block| places.add(&block));
            };
            self.read(range, &mut |id, located| {
                if slice.is_marked(&id) {
                    marked.push(located);
                }
                if marked.len() == BATCH_PLACES {
                    add(&mut marked);
                }
            })?;
            add(&mut marked);
            Ok(())
        })
    }

    /// Adds the places of bases. An error if one of them is not in the index: a prune would take its pages for unused, while a
    /// repair may still find its row.
    pub(super) fn add_bases(&self, bases: &StartSet, places: &Mutex<LivePlaces>) -> Result<()> {
        let lost: Mutex<Option<u64>> = Mutex::default();
        self.each_range(0..PARTS, &|range| {
            // Both are in the order of their ids.
            let mut bases = bases.of(range.clone()).iter().copied().peekable();
            let (mut found, mut missed) = (None, None);
            let mut pass = |bases: &mut Peekable<_>, is_passed: &dyn Fn(&u64) -> bool, found: Option<u64>| {
                while let Some(base) = bases.next_if(is_passed) {
                    missed = missed.or(Some(base).filter(|base| found != Some(*base)));
                }
            };
            self.read(range, &mut |id, located| {
                let start = start_of(&id.0);
                pass(&mut bases, &|base| *base < start, found);
                if bases.peek() == Some(&start) {
                    places.lock().add(&located);
                    found = Some(start);
                }
            })?;
            pass(&mut bases, &|_| true, found);
            let mut lost = lost.lock();
            *lost = lost.or(missed);
            Ok(())
        })?;
        match lost.into_inner() {
            None => Ok(()),
            Some(start) => Err(self.missing(start)?),
        }
    }

    /// Returns the error for a base that is not in the index and whose id starts like this.
    fn missing(&self, start: u64) -> Result<Error> {
        let found = Mutex::new(None);
        self.each_range(0..PARTS, &|range| {
            self.read(range, &mut |_, located| {
                if let Some(base) = located.base.filter(|base| start_of(&base.0) == start) {
                    *found.lock() = Some(base);
                }
            })
        })?;
        let gone = || Error::Store {
            kind: ErrorKind::Corrupt,
            doing: "read the index",
            message: "the base of a difference is missing".to_owned(),
        };
        Ok(found.into_inner().map_or_else(gone, Error::BlockMissing))
    }

    /// Calls `work` with ranges that make up `parts`, in threads.
    fn each_range(&self, parts: Range<usize>, work: &(dyn Fn(Range<usize>) -> Result<()> + Sync)) -> Result<()> {
        // The threads are done at about the same time.
        let ranges = (4 * self.threads).clamp(1, parts.len());
        let bound = |number| parts.start + number * parts.len() / ranges;
        let next = AtomicUsize::new(0);
        pool::run("vbk-index", self.threads.min(ranges), &|_, stop| {
            while !stop.load(Ordering::SeqCst) {
                let number = next.fetch_add(1, Ordering::SeqCst);
                if number >= ranges {
                    break;
                }
                work(bound(number)..bound(number + 1))?;
            }
            Ok(())
        })
    }

    /// Gives the blocks of some parts, in the order of their ids.
    fn read(&self, parts: Range<usize>, each: &mut dyn FnMut(BlockId, Located)) -> Result<()> {
        let mut from = [0; 32];
        from[0] = parts.start as u8;
        let (mut is_complete, mut last) = (false, BlockId(from));
        let read = self.store.survey_from(BlockId(from), &mut |id, located| {
            if id < last {
                return Err(Error::Store {
                    kind: ErrorKind::Corrupt,
                    doing: "read the index",
                    message: format!("the store gave {id} after {last}"),
                });
            }
            last = id;
            is_complete = usize::from(id.0[0]) >= parts.end;
            if is_complete || self.cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            each(id, located);
            Ok(())
        });
        match is_complete {
            true => Ok(()),
            false => read,
        }
    }
}

/// The stored blocks of some parts, which many threads may look up and mark.
pub(super) struct Slice {
    /// Number of the first part.
    first: usize,
    parts: Vec<Part>,
}

impl Slice {
    /// Marks a block; returns `false` if it is one of these parts' and not stored.
    pub(super) fn mark(&self, id: &BlockId) -> bool {
        let Some(part) = self.part_of(id) else {
            return true;
        };
        let found = part.number_of(start_of(&id.0));
        if let Some(number) = found {
            let (word, bit) = (&part.marks[number / 64], 1 << (number % 64));
            // Most blocks of some guests are those of others too.
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
        found.is_some()
    }

    fn is_marked(&self, id: &BlockId) -> bool {
        self.part_of(id).is_some_and(|part| {
            let found = part.number_of(start_of(&id.0));
            found.is_some_and(|number| part.marks[number / 64].load(Ordering::Relaxed) >> (number % 64) & 1 == 1)
        })
    }

    fn part_of(&self, id: &BlockId) -> Option<&Part> {
        self.parts.get(usize::from(id.0[0]).checked_sub(self.first)?)
    }
}

/// Stored blocks whose ids have the same first byte.
struct Part {
    /// The kept bits behind those that choose the run, of all runs in order.
    rests: Vec<u32>,
    /// For each run, the number of the first rest that is behind it.
    ends: Vec<u32>,
    /// A bit for each block.
    marks: Vec<AtomicU64>,
}

impl Part {
    /// Returns a part of a store with about `blocks` blocks.
    fn with_room_for(blocks: u64) -> Self {
        // Parts of hashes differ little in length: hardly one has more than four deviations above the mean, and such a part
        // grows.
        let each = usize::try_from(blocks / PARTS as u64).unwrap_or(0);
        Self {
            rests: Vec::with_capacity(each + 4 * each.isqrt()),
            ends: vec![0; RUNS],
            marks: Vec::new(),
        }
    }

    /// Adds the start of an id that is not below the last one.
    fn push(&mut self, start: u64) {
        self.rests.push(rest_of(start));
        self.ends[run_of(start)] = self.rests.len() as u32;
    }

    /// Readies the part when all ids were added.
    fn complete(&mut self) {
        let mut end = 0;
        for run in &mut self.ends {
            // A run without blocks ends where the one before does.
            end = end.max(*run);
            *run = end;
        }
        let words = self.rests.len().div_ceil(64);
        self.marks = (0..words).map(|_| AtomicU64::new(0)).collect();
    }

    fn number_of(&self, start: u64) -> Option<usize> {
        let run = run_of(start);
        let first = run.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        let found = self.rests[first..self.ends[run] as usize].binary_search(&rest_of(start));
        Some(first + found.ok()?)
    }
}

fn run_of(start: u64) -> usize {
    (start >> 46) as usize % RUNS
}

fn rest_of(start: u64) -> u32 {
    (start >> 14) as u32
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::block::{BlockSize, Hashing};
    use crate::codec::Sealed;
    use crate::store::StoreWriter;
    use crate::store::memory::MemoryStore;

    static CANCEL: AtomicBool = AtomicBool::new(false);

    fn id(number: u32) -> BlockId {
        BlockId(Hashing::Plain.content(&number.to_le_bytes()))
    }

    fn stored(ids: impl Iterator<Item = BlockId>) -> MemoryStore {
        let store = MemoryStore::new(BlockSize::MIN);
        let sealed = |id| Sealed {
            id,
            plain_bytes: 1,
            header: vec![1],
            pages: Vec::new(),
            base: None,
        };
        store.put(ids.map(sealed).collect()).expect("puts");
        store
    }

    fn index(store: &MemoryStore) -> Index<'_> {
        Index {
            store,
            threads: 3,
            cancel: &CANCEL,
        }
    }

    #[test]
    fn every_stored_block_is_of_one_slice_and_known_there() {
        const COUNT: u32 = 100_000;
        let store = stored((0..COUNT).map(id));
        let index = index(&store);
        let (blocks, end) = index.count().expect("counts");
        assert_eq!((blocks, end), (u64::from(COUNT), Place(u64::from(COUNT))));
        let places = Mutex::default();
        let mut covered = 0;
        for parts in slices(blocks) {
            assert_eq!(parts.start, covered);
            covered = parts.end;
            let slice = index.slice(parts.clone(), blocks).expect("reads");
            assert!((0..COUNT).step_by(3).all(|number| slice.mark(&id(number))));
            let is_here = |id: &BlockId| parts.contains(&usize::from(id.0[0]));
            assert!((COUNT..2 * COUNT).map(id).all(|id| slice.mark(&id) != is_here(&id)));
            index.add_marked(&slice, &places).expect("reads");
        }
        assert_eq!(covered, PARTS);
        let nodes = crate::store::live::Starts::default().into_set();
        let live = crate::store::Live::new(places.into_inner(), end, nodes);
        let is_live = |number| live.has_block_at(Place(u64::from(number)));
        assert!((0..COUNT).all(|number| is_live(number) == (number % 3 == 0)));
    }

    #[test]
    fn blocks_that_begin_alike_are_named_together() {
        let [mut one, mut other] = [id(1), id(1)];
        (one.0[31], other.0[31]) = (1, 2);
        let store = stored([one, id(2), other].into_iter());
        let slice = index(&store).slice(0..PARTS, 3).expect("reads");
        assert!(!slice.is_marked(&one) && slice.mark(&one));
        assert!(slice.is_marked(&other) && !slice.is_marked(&id(2)));
    }

    #[test]
    fn a_store_has_at_most_four_slices() {
        let counts = [
            0,
            1,
            LEAST_BLOCKS,
            LEAST_BLOCKS + 1,
            3 * LEAST_BLOCKS,
            4 * LEAST_BLOCKS,
            u64::MAX,
        ];
        assert_eq!(counts.map(|blocks| slices(blocks).count()), [1, 1, 1, 2, 3, 4, 4]);
    }
}
