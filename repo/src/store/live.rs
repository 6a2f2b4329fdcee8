//! Everything that backups name, in about five bytes for each block and node, and a bit for each that is named. Exact
//! except for ids that begin alike: of those, all count as named, so the set may hold too much and never too little.
//!
//! The first 16 bits of an id choose a bucket, the next 32 are kept. Ids are hashes. In a store with 100 million
//! blocks, an id that is not stored is therefore taken for a stored one with a probability of 4 in 10 million, and
//! about 20 pairs of stored ids can't be distinguished.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::id::{BlockId, NodeId};

/// Everything that backups name, for [`crate::store::StoreManager::retain`]. It may hold too much, never too little.
#[derive(Debug)]
pub struct Live {
    blocks: IdSet,
    nodes: IdSet,
}

impl Live {
    /// Combines the stored blocks, of which the live ones are marked, with the names of all live nodes of manifests.
    pub(crate) fn new(blocks: IdSet, nodes: IdSet) -> Self {
        Self { blocks, nodes }
    }

    /// Returns a set of these blocks and nodes.
    pub fn of(blocks: &[BlockId], nodes: &[NodeId]) -> Self {
        let (mut all, mut named) = (Ids::default(), Ids::default());
        blocks.iter().for_each(|id| all.add(&id.0));
        nodes.iter().for_each(|id| named.add(&id.0));
        let set = all.into_set();
        for id in blocks {
            set.mark(&id.0);
        }
        Self::new(set, named.into_set())
    }

    /// Returns whether a backup names this stored block.
    pub fn has_block(&self, id: &BlockId) -> bool {
        self.blocks.is_marked(&id.0)
    }

    /// Returns whether a backup names this node of a manifest.
    pub fn has_node(&self, id: &NodeId) -> bool {
        self.nodes.contains(&id.0)
    }

    /// Returns the number of live nodes.
    #[cfg(test)]
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.buckets.iter().map(Vec::len).sum()
    }
}

const BUCKETS: usize = 1 << 16;

/// Collects ids, in any order.
pub(crate) struct Ids(Vec<Vec<u32>>);

/// A set of ids, which many threads may look up and mark.
#[derive(Debug)]
pub(crate) struct IdSet {
    buckets: Vec<Vec<u32>>,
    /// Number of ids in the buckets before each bucket.
    starts: Vec<usize>,
    /// A bit for each id.
    marks: Vec<AtomicU64>,
}

fn split(id: &[u8; 32]) -> (usize, u32) {
    let byte = |at: usize| u32::from(id[at]);
    let bucket = byte(0) << 8 | byte(1);
    (bucket as usize, byte(2) << 24 | byte(3) << 16 | byte(4) << 8 | byte(5))
}

impl Default for Ids {
    fn default() -> Self {
        Self::with_room_for(0)
    }
}

impl Ids {
    /// Returns an empty collection with room for about `count` ids.
    pub(crate) fn with_room_for(count: u64) -> Self {
        // Buckets of hashes differ little in length: hardly one has more than four deviations above the mean, and such
        // a bucket grows.
        let each = usize::try_from(count / BUCKETS as u64).unwrap_or(0);
        let room = each + 4 * each.isqrt();
        Self((0..BUCKETS).map(|_| Vec::with_capacity(room)).collect())
    }

    /// Adds an id.
    pub(crate) fn add(&mut self, id: &[u8; 32]) {
        let (bucket, rest) = split(id);
        self.0[bucket].push(rest);
    }

    /// Completes the set when all ids were added.
    pub(crate) fn into_set(self) -> IdSet {
        let mut buckets = self.0;
        let mut starts = Vec::with_capacity(BUCKETS);
        let mut count = 0;
        for bucket in &mut buckets {
            bucket.sort_unstable();
            // Ids that begin alike are one.
            bucket.dedup();
            starts.push(count);
            count += bucket.len();
        }
        IdSet {
            buckets,
            starts,
            marks: (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl IdSet {
    /// Marks an id; returns `false` if the set does not have it.
    pub(crate) fn mark(&self, id: &[u8; 32]) -> bool {
        let found = self.number_of(id);
        if let Some(number) = found {
            self.marks[number / 64].fetch_or(1 << (number % 64), Ordering::Relaxed);
        }
        found.is_some()
    }

    fn is_marked(&self, id: &[u8; 32]) -> bool {
        let found = self.number_of(id);
        found.is_some_and(|number| self.marks[number / 64].load(Ordering::Relaxed) >> (number % 64) & 1 == 1)
    }

    fn contains(&self, id: &[u8; 32]) -> bool {
        self.number_of(id).is_some()
    }

    fn number_of(&self, id: &[u8; 32]) -> Option<usize> {
        let (bucket, rest) = split(id);
        let found = self.buckets[bucket].binary_search(&rest).ok()?;
        Some(self.starts[bucket] + found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Hashing;

    fn id(number: u32) -> [u8; 32] {
        Hashing::Plain.content(&number.to_le_bytes())
    }

    fn stored(ids: impl Iterator<Item = [u8; 32]>) -> IdSet {
        let mut collected = Ids::with_room_for(1000);
        ids.for_each(|id| collected.add(&id));
        collected.into_set()
    }

    #[test]
    fn every_stored_id_is_known_and_no_other() {
        const COUNT: u32 = 300_000;
        let ids = stored((0..COUNT).map(id));
        assert!((0..COUNT).step_by(3).all(|number| ids.mark(&id(number))));
        assert!((COUNT..2 * COUNT).all(|number| !ids.mark(&id(number))));
        for number in 0..COUNT {
            assert_eq!(ids.is_marked(&id(number)), number % 3 == 0);
        }
    }

    #[test]
    fn ids_that_begin_alike_are_named_together() {
        let [mut one, mut other] = [id(1), id(1)];
        (one[31], other[31]) = (1, 2);
        let ids = stored([one, id(2), other].into_iter());
        assert!(!ids.is_marked(&one) && ids.mark(&one));
        assert!(ids.is_marked(&other) && !ids.is_marked(&id(2)));
        assert!(!stored(std::iter::empty()).mark(&one));
    }
}
