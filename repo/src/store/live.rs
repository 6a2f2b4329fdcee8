//! Everything that backups name: the places of the blocks, a bit each, and the beginnings of the names of nodes, eight bytes
//! each. It may hold too much and never too little.

use std::ops::Range;

use crate::error::Result;
use crate::id::{BlockId, NodeId};
use crate::store::places::{Place, Places};
use crate::store::{Located, StoreReader};

/// Everything that backups name, for [`crate::store::StoreManager::retain`]. It may hold too much, never too little.
#[derive(Debug)]
pub struct Live {
    places: Places,
    /// The first place after those that were looked at: a block that is stored there came later, or was moved there.
    end: Place,
    nodes: StartSet,
}

impl Live {
    /// Combines the places of the live blocks with the names of all live nodes of manifests. From `end` on, all blocks count as
    /// live: `end` must be no higher than a place that was given away before the places were read.
    pub(crate) fn new(places: LivePlaces, end: Place, nodes: StartSet) -> Self {
        Self {
            places: places.places,
            end,
            nodes,
        }
    }

    /// Returns a set of these blocks of a store, and of these nodes.
    pub fn of(store: &(impl StoreReader + ?Sized), blocks: &[BlockId], nodes: &[NodeId]) -> Result<Self> {
        let (mut places, mut named) = (LivePlaces::default(), Starts::default());
        store
            .locate(blocks)?
            .into_iter()
            .flatten()
            .for_each(|located| places.add(&located));
        nodes.iter().for_each(|id| named.add(&id.0));
        Ok(Self::new(places, Place(u64::MAX), named.into_set()))
    }

    /// Returns the set of a store without backups.
    pub fn none() -> Self {
        Self::new(LivePlaces::default(), Place(u64::MAX), Starts::default().into_set())
    }

    /// Returns whether a backup names the block that is stored at this place.
    pub fn has_block_at(&self, place: Place) -> bool {
        place >= self.end || self.places.contains(place)
    }

    /// Returns whether a backup names this node of a manifest.
    pub fn has_node(&self, id: &NodeId) -> bool {
        self.nodes.0.binary_search(&start_of(&id.0)).is_ok()
    }

    /// Returns the number of live nodes.
    #[cfg(test)]
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.0.len()
    }
}

/// Collects the places of live blocks.
#[derive(Debug, Default)]
pub(crate) struct LivePlaces {
    places: Places,
    /// What the blocks since the last [`LivePlaces::take_bases`] are stored as differences from.
    bases: Starts,
}

impl LivePlaces {
    /// Adds the place of a live block, and notes its base, if it was not live already.
    pub(crate) fn add(&mut self, block: &Located) {
        if self.places.insert(block.place)
            && let Some(base) = block.base
        {
            self.bases.add(&base.0);
        }
    }

    /// Takes the bases whose places are to be added next. None are left after as many times as the longest chain of differences
    /// has parts, however they refer to each other.
    pub(crate) fn take_bases(&mut self) -> StartSet {
        std::mem::take(&mut self.bases).into_set()
    }
}

/// Collects the starts of ids, in any order, in eight bytes each.
#[derive(Debug, Default)]
pub(crate) struct Starts(Vec<u64>);

/// The starts of ids, in order. Ids are hashes: what is unused and starts like something live stays.
#[derive(Debug)]
pub(crate) struct StartSet(Vec<u64>);

impl Starts {
    /// Adds an id.
    pub(crate) fn add(&mut self, id: &[u8; 32]) {
        if self.0.len() == self.0.capacity() {
            self.compact();
            // A part of what is there, instead of as much again.
            self.0.reserve_exact((self.0.len() / 4).max(1024));
        }
        self.0.push(start_of(id));
    }

    /// Completes the set when all ids were added.
    pub(crate) fn into_set(mut self) -> StartSet {
        self.compact();
        StartSet(self.0)
    }

    fn compact(&mut self) {
        self.0.sort_unstable();
        self.0.dedup();
    }
}

impl StartSet {
    /// Returns whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns those of ids whose first byte is one of `bytes`, in order.
    pub(crate) fn of(&self, bytes: Range<usize>) -> &[u64] {
        let before = |byte: usize| self.0.partition_point(|start| ((start >> 56) as usize) < byte);
        &self.0[before(bytes.start)..before(bytes.end)]
    }
}

/// Returns the start of an id, as it is kept here.
pub(crate) fn start_of(id: &[u8; 32]) -> u64 {
    id.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Hashing;

    fn id(number: u32) -> NodeId {
        NodeId(Hashing::Plain.content(&number.to_le_bytes()))
    }

    #[test]
    fn every_node_that_was_added_is_known_and_no_other() {
        const COUNT: u32 = 20_000;
        let mut nodes = Starts::default();
        (0..COUNT)
            .chain(0..COUNT / 2)
            .for_each(|number| nodes.add(&id(number).0));
        let live = Live::new(LivePlaces::default(), Place(0), nodes.into_set());
        assert_eq!(live.nodes(), COUNT as usize);
        assert!((0..2 * COUNT).all(|number| live.has_node(&id(number)) == (number < COUNT)));
    }

    #[test]
    fn a_block_that_came_after_the_marks_is_live() {
        let mut places = LivePlaces::default();
        places.add(&Located {
            place: Place(3),
            plain_bytes: 1,
            stored_bytes: 1,
            base: None,
        });
        let live = Live::new(places, Place(5), Starts::default().into_set());
        let is_live: Vec<_> = (0..7).filter(|place| live.has_block_at(Place(*place))).collect();
        assert_eq!(is_live, [3, 5, 6]);
    }
}
