//! The blocks that backups need of a full segment and its deltas.

use std::collections::HashSet;

use crate::error::Result;
use crate::id::{BlockId, NodeId};
use crate::manifest::{Head, Kind, damaged};

/// Blocks of a full segment, and of the deltas that it is used with. Made of the heads of the nodes, which a store can
/// read without the key.
#[derive(Default)]
pub(super) struct Needs {
    full: Vec<[u8; 32]>,
    /// For each name of the full segment, the number of uses that do without it.
    dropped: Vec<usize>,
    /// Number of uses: deltas, and the full segment alone.
    uses: usize,
    added: HashSet<[u8; 32]>,
}

impl Needs {
    /// Starts with no node; `alone`: a backup uses the full segment without a delta, and needs all of it.
    pub(super) fn new(alone: bool) -> Self {
        Self {
            uses: usize::from(alone),
            ..Self::default()
        }
    }

    /// Adds the full segment, which must come first, or a delta.
    pub(super) fn add(&mut self, id: NodeId, head: Head) -> Result<()> {
        let damaged = |what| damaged(id, what);
        match head.kind {
            Kind::Full if self.full.is_empty() => {
                self.dropped = vec![0; head.names.len()];
                self.full = head.names;
            }
            Kind::Delta if !self.full.is_empty() => {
                self.uses += 1;
                self.added.extend(head.names);
                let mut last = None;
                for drop in head.drops {
                    let dropped = self.dropped.get_mut(usize::from(drop));
                    let dropped = dropped.filter(|_| last < Some(drop));
                    *dropped.ok_or_else(|| damaged("it drops a block that there is not"))? += 1;
                    last = Some(drop);
                }
            }
            _ => return Err(damaged("another kind of node has this name")),
        }
        Ok(())
    }

    /// Returns the blocks that at least one use needs.
    pub(super) fn blocks(self) -> Vec<BlockId> {
        let needed = self.full.into_iter().zip(self.dropped);
        let needed = needed.filter(|(_, dropped)| *dropped < self.uses).map(|(id, _)| id);
        needed.chain(self.added).map(BlockId).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Hashing;
    use crate::manifest::{Delta, Full, Slot, prove};

    fn slots(numbers: &[u8]) -> Vec<Slot> {
        let slot = |number: &u8| (*number > 0).then_some(BlockId([*number; 32]));
        numbers.iter().map(slot).collect()
    }

    /// Returns the numbers of the blocks that these uses need of a full segment.
    fn needs(full: &[u8], uses: &[&[u8]]) -> Vec<u8> {
        let alone = uses.contains(&full);
        let full = Full::of(&slots(full)).expect("not zero");
        let mut needs = Needs::new(alone);
        let mut add =
            |(id, bytes): (NodeId, Vec<u8>)| needs.add(id, prove(Hashing::Plain, id, &bytes).expect("proves").0);
        add(full.encode(Hashing::Plain)).expect("adds");
        for delta in uses.iter().filter_map(|numbers| Delta::between(&full, &slots(numbers))) {
            add(delta.encode(Hashing::Plain)).expect("adds");
        }
        let mut blocks: Vec<_> = needs.blocks().iter().map(|id| id.0[0]).collect();
        blocks.sort_unstable();
        blocks
    }

    #[test]
    fn a_block_is_needed_as_long_as_one_use_has_it() {
        let full = &[1, 2, 3, 3];
        assert_eq!(needs(full, &[full]), [1, 2, 3]);
        assert_eq!(needs(full, &[&[1, 2, 3, 4]]), [1, 2, 3, 4], "a slot still has block 3");
        assert_eq!(needs(full, &[&[5, 2, 3, 3]]), [2, 3, 5]);
        assert_eq!(needs(full, &[&[5, 2, 3, 3], &[1, 6, 3, 3]]), [1, 2, 3, 5, 6]);
        assert_eq!(needs(full, &[&[5, 2, 3, 3], &[5, 2, 0, 0]]), [2, 3, 5]);
        assert_eq!(needs(full, &[&[5, 2, 3, 3], full]), [1, 2, 3, 5]);
        assert_eq!(needs(full, &[&[0, 0, 0, 0]]), [0; 0]);
    }
}
