//! Segments: full ones and deltas.

use super::{HEAD_BYTES, Head, Kind, damaged, is_ascending, named, numbers, prove_kind};
use crate::block::Hashing;
use crate::error::Result;
use crate::id::{BlockId, NodeId};

/// Slots in a segment; the last one of an image may have fewer. With blocks of 1 MiB a segment is 1 GiB of disk.
pub const SEGMENT_SLOTS: usize = 1024;

/// Largest length of a delta, as a divisor of the length of its full segment. With any number of blocks changed at
/// random each day, full segments and deltas together take at most about twice the least possible.
pub const MAX_DELTA: usize = 8;

/// The number that stands for a block of zeros.
const ZERO: u16 = u16::MAX;

/// Slot of one block in an image: the id of a stored block, or `None` for a block of zeros.
pub type Slot = Option<BlockId>;

/// A full segment: its blocks, and for each slot the number of its block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Full {
    names: Vec<[u8; 32]>,
    slots: Vec<u16>,
}

impl Full {
    /// Makes a segment of slots; `None` if all are zero blocks and nothing needs to be stored.
    pub fn of(slots: &[Slot]) -> Option<Self> {
        assert!(slots.len() <= SEGMENT_SLOTS, "a segment has 1024 slots");
        let mut names: Vec<_> = slots.iter().flatten().map(|id| id.0).collect();
        names.sort_unstable();
        names.dedup();
        let number = |slot: &Slot| slot.map_or(ZERO, |id| number_of(&names, &id.0).unwrap_or(ZERO));
        let slots = slots.iter().map(number).collect();
        (!names.is_empty()).then_some(Self { names, slots })
    }

    /// Returns the bytes to store, and the name to store them under.
    pub fn encode(&self, hashing: Hashing) -> (NodeId, Vec<u8>) {
        let head = Head {
            kind: Kind::Full,
            names: self.names.clone(),
            drops: Vec::new(),
        };
        let mut bytes = head.encode();
        bytes.extend((self.slots.len() as u16).to_le_bytes());
        bytes.extend(self.slots.iter().flat_map(|number| number.to_le_bytes()));
        named(hashing, bytes)
    }

    /// Reads and proves a full segment that must have `count` slots.
    pub fn decode(hashing: Hashing, id: NodeId, count: usize, bytes: &[u8]) -> Result<Self> {
        let (Head { names, drops, .. }, body) = prove_kind(hashing, id, Kind::Full, bytes)?;
        let slots = counted(body, 1).ok_or_else(|| damaged(id, "its length is wrong"))?;
        if slots.len() != count {
            return Err(damaged(id, "it gives another number of slots"));
        }
        let mut used = vec![false; names.len()];
        for &number in slots.iter().filter(|number| **number != ZERO) {
            *used
                .get_mut(usize::from(number))
                .ok_or_else(|| damaged(id, "a slot has a block that it does not name"))? = true;
        }
        if names.is_empty() || !drops.is_empty() || used.contains(&false) || !is_ascending(&names) {
            return Err(damaged(id, "it does not name the blocks of its slots"));
        }
        Ok(Self { names, slots })
    }

    /// Returns the slots.
    pub fn slots(&self) -> Vec<Slot> {
        self.slots.iter().map(|number| self.block(*number)).collect()
    }

    /// Returns the length of its bytes.
    pub fn encoded_len(&self) -> usize {
        HEAD_BYTES + 32 * self.names.len() + 2 + 2 * self.slots.len()
    }

    fn block(&self, number: u16) -> Slot {
        self.names.get(usize::from(number)).copied().map(BlockId)
    }
}

/// The slots of a segment that differ from those of a full one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    names: Vec<[u8; 32]>,
    drops: Vec<u16>,
    /// Slots and the numbers of their blocks.
    changes: Vec<(u16, u16)>,
}

impl Delta {
    /// Compares slots with a full segment of as many slots; `None` if they are the same.
    pub fn between(full: &Full, slots: &[Slot]) -> Option<Self> {
        assert_eq!(full.slots.len(), slots.len(), "a delta changes no number of slots");
        let changed = || {
            let slots = (0..).zip(full.slots.iter().zip(slots));
            slots.filter(|(_, (before, now))| full.block(**before) != **now)
        };
        let known = |id: &[u8; 32]| number_of(&full.names, id);
        let mut names: Vec<_> = changed()
            .filter_map(|(_, (_, now))| now.map(|id| id.0))
            .filter(|id| known(id).is_none())
            .collect();
        names.sort_unstable();
        names.dedup();
        let number = |id: BlockId| {
            let own = || number_of(&names, &id.0).map(|number| number + full.names.len() as u16);
            known(&id.0).or_else(own).unwrap_or(ZERO)
        };
        let changes: Vec<_> = changed()
            .map(|(slot, (_, now))| (slot, now.map_or(ZERO, number)))
            .collect();
        let drops = unused(full, &changes);
        (!changes.is_empty()).then_some(Self { names, drops, changes })
    }

    /// Returns the bytes to store, and the name to store them under.
    pub fn encode(&self, hashing: Hashing) -> (NodeId, Vec<u8>) {
        let head = Head {
            kind: Kind::Delta,
            names: self.names.clone(),
            drops: self.drops.clone(),
        };
        let mut bytes = head.encode();
        bytes.extend((self.changes.len() as u16).to_le_bytes());
        let numbers = self.changes.iter().flat_map(|(slot, number)| [*slot, *number]);
        bytes.extend(numbers.flat_map(u16::to_le_bytes));
        named(hashing, bytes)
    }

    /// Reads and proves a delta of `full`, and returns the slots of the segment.
    pub fn decode(hashing: Hashing, id: NodeId, full: &Full, bytes: &[u8]) -> Result<Vec<Slot>> {
        let (Head { names, drops, .. }, body) = prove_kind(hashing, id, Kind::Delta, bytes)?;
        let numbers = counted(body, 2).ok_or_else(|| damaged(id, "its length is wrong"))?;
        let changes = numbers.chunks_exact(2).map(|change| (change[0], change[1])).collect();
        let found = Self { names, drops, changes };
        let mut slots = full.slots();
        for &(slot, number) in &found.changes {
            let slot = slots.get_mut(usize::from(slot));
            let slot = slot.ok_or_else(|| damaged(id, "it changes a slot that there is not"))?;
            *slot = match number {
                ZERO => None,
                number => Some(
                    found
                        .block(full, number)
                        .ok_or_else(|| damaged(id, "a slot has a block that it does not name"))?,
                ),
            };
        }
        // There is one way to write a delta, so it names what its slots need and nothing else.
        match Self::between(full, &slots) == Some(found) {
            true => Ok(slots),
            false => Err(damaged(id, "it does not name the blocks of its slots")),
        }
    }

    /// Returns the length of its bytes.
    pub fn encoded_len(&self) -> usize {
        HEAD_BYTES + 32 * self.names.len() + 2 * self.drops.len() + 2 + 4 * self.changes.len()
    }

    fn block(&self, full: &Full, number: u16) -> Slot {
        let own = || self.names.get(usize::from(number) - full.names.len());
        let name = full.names.get(usize::from(number));
        name.or_else(own).copied().map(BlockId)
    }
}

/// A segment that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentSlots {
    /// The full segment, whose slots may differ from these; `None` if the segment has only zeros.
    pub full: Option<Full>,
    /// The slots.
    pub slots: Vec<Slot>,
}

/// Returns the numbers of the full segment's blocks that no slot uses after the changes, in order.
fn unused(full: &Full, changes: &[(u16, u16)]) -> Vec<u16> {
    let mut slots = full.slots.clone();
    for &(slot, number) in changes {
        slots[usize::from(slot)] = number;
    }
    let mut used = vec![false; full.names.len()];
    for number in slots {
        if let Some(used) = used.get_mut(usize::from(number)) {
            *used = true;
        }
    }
    (0..)
        .zip(used)
        .filter(|(_, used)| !used)
        .map(|(number, _)| number)
        .collect()
}

fn number_of(names: &[[u8; 32]], id: &[u8; 32]) -> Option<u16> {
    names.binary_search(id).ok().map(|number| number as u16)
}

/// Reads a body: a count, and as many groups of numbers.
fn counted(body: &[u8], group: usize) -> Option<Vec<u16>> {
    let (count, rest) = body.split_first_chunk()?;
    let count = usize::from(u16::from_le_bytes(*count));
    (rest.len() == 2 * group * count).then(|| numbers(rest))
}
