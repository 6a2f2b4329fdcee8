//! The ids of all stored blocks in about five bytes each, and a bit for each that is named. Exact except for ids that
//! begin alike.
//!
//! The first 16 bits of an id choose a bucket, the next 32 are kept. Ids are hashes. In a store with 100 million
//! blocks, an id that is not stored is therefore taken for a stored one with a probability of 4 in 10 million, and
//! about 20 pairs of stored ids can't be distinguished; of such a pair both count as named.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::id::BlockId;

const BUCKETS: usize = 1 << 16;

/// Collects ids, in any order.
pub(crate) struct Collected(Vec<Vec<u32>>);

/// The complete set of ids, which many threads may look up and mark as named.
pub(crate) struct StoredIds {
    buckets: Vec<Vec<u32>>,
    /// Number of ids in the buckets before each bucket.
    starts: Vec<usize>,
    /// A bit for each id, set if the id is named.
    named: Vec<AtomicU64>,
}

fn split(id: &BlockId) -> (usize, u32) {
    let byte = |at: usize| u32::from(id.0[at]);
    let bucket = byte(0) << 8 | byte(1);
    (bucket as usize, byte(2) << 24 | byte(3) << 16 | byte(4) << 8 | byte(5))
}

impl Collected {
    /// Returns an empty collection with room for about `count` ids.
    pub(crate) fn with_room_for(count: u64) -> Self {
        // Buckets of hashes differ little in length: hardly one has more than four deviations above the mean, and such
        // a bucket grows.
        let each = usize::try_from(count / BUCKETS as u64).unwrap_or(0);
        let room = each + 4 * each.isqrt();
        Self((0..BUCKETS).map(|_| Vec::with_capacity(room)).collect())
    }

    /// Adds the id of a stored block.
    pub(crate) fn add(&mut self, id: &BlockId) {
        let (bucket, rest) = split(id);
        self.0[bucket].push(rest);
    }

    /// Completes the set when all ids were added.
    pub(crate) fn finish(self) -> StoredIds {
        let mut buckets = self.0;
        let mut starts = Vec::with_capacity(BUCKETS);
        let mut count = 0;
        for bucket in &mut buckets {
            bucket.sort_unstable();
            starts.push(count);
            count += bucket.len();
        }
        StoredIds {
            buckets,
            starts,
            named: (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl StoredIds {
    /// Marks a block as named; returns `false` if it is not stored.
    pub(crate) fn name(&self, id: &BlockId) -> bool {
        let found = self.numbers_of(id);
        for number in found.clone() {
            self.named[number / 64].fetch_or(1 << (number % 64), Ordering::Relaxed);
        }
        !found.is_empty()
    }

    /// Returns whether a stored block is named.
    pub(crate) fn is_named(&self, id: &BlockId) -> bool {
        self.numbers_of(id)
            .any(|number| self.named[number / 64].load(Ordering::Relaxed) >> (number % 64) & 1 == 1)
    }

    fn numbers_of(&self, id: &BlockId) -> Range<usize> {
        let (number, rest) = split(id);
        let bucket = &self.buckets[number];
        let first = bucket.partition_point(|other| *other < rest);
        let count = bucket[first..].iter().take_while(|other| **other == rest).count();
        let start = self.starts[number] + first;
        start..start + count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Hashing;

    fn id(number: u32) -> BlockId {
        BlockId(Hashing::Plain.content(&number.to_le_bytes()))
    }

    fn stored(ids: impl Iterator<Item = BlockId>) -> StoredIds {
        let mut collected = Collected::with_room_for(1000);
        ids.for_each(|id| collected.add(&id));
        collected.finish()
    }

    #[test]
    fn every_stored_id_is_known_and_no_other() {
        const COUNT: u32 = 300_000;
        let ids = stored((0..COUNT).map(id));
        assert!((0..COUNT).step_by(3).all(|number| ids.name(&id(number))));
        assert!((COUNT..2 * COUNT).all(|number| !ids.name(&id(number))));
        for number in 0..COUNT {
            assert_eq!(ids.is_named(&id(number)), number % 3 == 0);
        }
    }

    #[test]
    fn ids_that_begin_alike_are_named_together() {
        let [mut one, mut other] = [id(1), id(1)];
        (one.0[31], other.0[31]) = (1, 2);
        let ids = stored([one, id(2), other].into_iter());
        assert!(!ids.is_named(&one) && ids.name(&one));
        assert!(ids.is_named(&other) && !ids.is_named(&id(2)));
        assert!(!stored(std::iter::empty()).name(&one));
    }
}
