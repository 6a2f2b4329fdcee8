//! Everything that backups name: the places of the blocks, a bit each, and the beginnings of the names of nodes, eight bytes
//! each. It may hold too much and never too little.

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
    nodes: NodeSet,
}

impl Live {
    /// Combines the places of the live blocks with the names of all live nodes of manifests. From `end` on, all blocks count as
    /// live: `end` must be no higher than a place that was given away before the places were read.
    pub(crate) fn new(places: LivePlaces, end: Place, nodes: NodeSet) -> Self {
        Self {
            places: places.0,
            end,
            nodes,
        }
    }

    /// Returns a set of these blocks of a store, and of these nodes.
    pub fn of(store: &(impl StoreReader + ?Sized), blocks: &[BlockId], nodes: &[NodeId]) -> Result<Self> {
        let (mut places, mut named) = (LivePlaces::default(), NodeIds::default());
        store
            .locate(blocks)?
            .into_iter()
            .flatten()
            .for_each(|located| places.add(&located));
        nodes.iter().for_each(|id| named.add(id));
        Ok(Self::new(places, Place(u64::MAX), named.into_set()))
    }

    /// Returns the set of a store without backups.
    pub fn none() -> Self {
        Self::new(LivePlaces::default(), Place(u64::MAX), NodeIds::default().into_set())
    }

    /// Returns whether a backup names the block that is stored at this place.
    pub fn has_block_at(&self, place: Place) -> bool {
        place >= self.end || self.places.contains(place)
    }

    /// Returns whether a backup names this node of a manifest.
    pub fn has_node(&self, id: &NodeId) -> bool {
        self.nodes.0.binary_search(&start_of(id)).is_ok()
    }

    /// Returns the number of live nodes.
    #[cfg(test)]
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.0.len()
    }
}

/// Collects the places of live blocks.
#[derive(Debug, Default)]
pub(crate) struct LivePlaces(Places);

impl LivePlaces {
    /// Adds the places that the row of a live block needs: everything that must stay so that the block can be read.
    pub(crate) fn add(&mut self, block: &Located) {
        self.0.insert(block.place);
    }
}

/// Collects names of nodes, in any order.
#[derive(Debug, Default)]
pub(crate) struct NodeIds(Vec<u64>);

/// The starts of the names of nodes, in order. Names are hashes: an unused node that starts like a live one stays.
#[derive(Debug)]
pub(crate) struct NodeSet(Vec<u64>);

impl NodeIds {
    /// Adds a name.
    pub(crate) fn add(&mut self, id: &NodeId) {
        if self.0.len() == self.0.capacity() {
            self.compact();
            // A part of what is there, instead of as much again.
            self.0.reserve_exact((self.0.len() / 4).max(1024));
        }
        self.0.push(start_of(id));
    }

    /// Completes the set when all names were added.
    pub(crate) fn into_set(mut self) -> NodeSet {
        self.compact();
        NodeSet(self.0)
    }

    fn compact(&mut self) {
        self.0.sort_unstable();
        self.0.dedup();
    }
}

fn start_of(id: &NodeId) -> u64 {
    id.0.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
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
        let mut nodes = NodeIds::default();
        (0..COUNT).chain(0..COUNT / 2).for_each(|number| nodes.add(&id(number)));
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
        });
        let live = Live::new(places, Place(5), NodeIds::default().into_set());
        let is_live: Vec<_> = (0..7).filter(|place| live.has_block_at(Place(*place))).collect();
        assert_eq!(is_live, [3, 5, 6]);
    }
}
