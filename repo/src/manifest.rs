//! Manifests: the lists of the blocks that images consist of.
//!
//! An image's slots are cut into segments of 1024, each stored under the hash of its bytes, so that the backups of two
//! days share the segments of every GiB that did not change. A root lists the segments and is stored the same way; a
//! backup record needs only the root's id. Numbers are little-endian.
//!
//! | segment bytes | what |
//! |---|---|
//! | 1 | `S` |
//! | 1 | version: 1 |
//! | 2 | number of slots, 1 to 1024 |
//! | (slots + 7) / 8 | a bit per slot, lowest first: 0 is a zero block |
//! | 32 per set bit | the block's id |
//!
//! | root bytes | what |
//! |---|---|
//! | 1 | `R` |
//! | 1 | version: 1 |
//! | 2 | zero |
//! | 4 | block size |
//! | 8 | image size in bytes |
//! | 32 per segment | the segment's id; all zero: only zero blocks, not stored |

use crate::block::{BlockSize, Hashing};
use crate::error::{Error, Result};
use crate::id::{BlockId, SegmentId};

/// Slots in a segment; the last one of an image may have fewer. With blocks of 1 MiB a segment is 1 GiB of disk.
pub const SEGMENT_SLOTS: usize = 1024;

const VERSION: u8 = 1;

/// Slot of one block in an image: the id of a stored block, or `None` for a block of zeros.
pub type Slot = Option<BlockId>;

/// Encodes slots; returns `None` if all are zero blocks and nothing needs to be stored.
pub fn encode_segment(hashing: Hashing, slots: &[Slot]) -> Option<(SegmentId, Vec<u8>)> {
    assert!(slots.len() <= SEGMENT_SLOTS, "a segment has 1024 slots");
    if slots.iter().all(Option::is_none) {
        return None;
    }
    let mut bytes = vec![b'S', VERSION];
    bytes.extend((slots.len() as u16).to_le_bytes());
    bytes.extend(slots.chunks(8).map(|eight| {
        eight
            .iter()
            .enumerate()
            .fold(0_u8, |bits, (place, slot)| bits | (u8::from(slot.is_some()) << place))
    }));
    for id in slots.iter().flatten() {
        bytes.extend(id.0);
    }
    Some((SegmentId(hashing.content(&bytes)), bytes))
}

/// Reads and proves a segment that must have `count` slots.
pub fn decode_segment(hashing: Hashing, id: SegmentId, count: usize, bytes: &[u8]) -> Result<Vec<Slot>> {
    let rest = prove(hashing, id, b'S', bytes)?;
    let damaged = || Error::SegmentDamaged {
        id,
        what: "it gives another number of slots".into(),
    };
    let (stated, rest) = rest.split_at_checked(2).ok_or_else(damaged)?;
    let (bitmap, ids) = rest.split_at_checked(count.div_ceil(8)).ok_or_else(damaged)?;
    if usize::from(u16::from_le_bytes([stated[0], stated[1]])) != count {
        return Err(damaged());
    }
    let mut ids = ids.chunks_exact(32);
    (0..count)
        .map(|slot| {
            if bitmap[slot / 8] >> (slot % 8) & 1 == 0 {
                return Ok(None);
            }
            ids.next()
                .and_then(|id| id.try_into().ok())
                .map(|id| Some(BlockId(id)))
                .ok_or_else(damaged)
        })
        .collect()
}

/// Root of a manifest: the image's size and its segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// The size of the blocks.
    pub block_size: BlockSize,
    /// The size of the image.
    pub size_bytes: u64,
    /// The segments in order.
    pub segments: Vec<SegmentId>,
}

impl Root {
    /// Returns the bytes to store, and the name to store them under.
    pub fn encode(&self, hashing: Hashing) -> (SegmentId, Vec<u8>) {
        let mut bytes = vec![b'R', VERSION, 0, 0];
        bytes.extend((self.block_size.bytes() as u32).to_le_bytes());
        bytes.extend(self.size_bytes.to_le_bytes());
        for segment in &self.segments {
            bytes.extend(segment.0);
        }
        (SegmentId(hashing.content(&bytes)), bytes)
    }

    /// Reads and proves a root.
    pub fn decode(hashing: Hashing, id: SegmentId, bytes: &[u8]) -> Result<Self> {
        let rest = prove(hashing, id, b'R', bytes)?;
        let damaged = |what: &str| Error::SegmentDamaged {
            id,
            what: what.to_owned(),
        };
        let (fixed, segments) = rest.split_at_checked(14).ok_or_else(|| damaged("it is cut off"))?;
        let number = |range: std::ops::Range<usize>| {
            fixed[range]
                .iter()
                .rev()
                .fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
        };
        let root = Self {
            block_size: BlockSize::new(number(2..6))?,
            size_bytes: number(6..14),
            segments: segments
                .chunks_exact(32)
                .filter_map(|id| id.try_into().ok().map(SegmentId))
                .collect(),
        };
        let wanted = segment_count(root.block_size, root.size_bytes);
        if segments.len() % 32 != 0 || root.segments.len() as u64 != wanted {
            return Err(damaged("it gives another number of segments"));
        }
        Ok(root)
    }

    /// Returns the number of slots of segment `number`.
    pub fn slots_in(&self, number: usize) -> usize {
        let before = number as u64 * SEGMENT_SLOTS as u64;
        let left = self.block_size.blocks_in(self.size_bytes).saturating_sub(before);
        left.min(SEGMENT_SLOTS as u64) as usize
    }
}

/// Returns the number of segments of an image.
pub fn segment_count(block_size: BlockSize, size_bytes: u64) -> u64 {
    block_size.blocks_in(size_bytes).div_ceil(SEGMENT_SLOTS as u64)
}

fn prove(hashing: Hashing, id: SegmentId, kind: u8, bytes: &[u8]) -> Result<&[u8]> {
    let damaged = |what: &str| Error::SegmentDamaged {
        id,
        what: what.to_owned(),
    };
    if hashing.content(bytes) != id.0 {
        return Err(damaged("it does not match its hash"));
    }
    match bytes {
        [first, VERSION, rest @ ..] if *first == kind => Ok(rest),
        _ => Err(damaged("it is of an unknown kind or version")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slots() -> impl Strategy<Value = Vec<Slot>> {
        let slot = prop::option::of(any::<[u8; 32]>().prop_map(BlockId));
        prop::collection::vec(slot, 1..=SEGMENT_SLOTS)
    }

    #[test]
    fn zero_blocks_alone_are_not_stored() {
        assert_eq!(encode_segment(Hashing::Plain, &[None; SEGMENT_SLOTS]), None);
    }

    #[test]
    fn a_root_must_list_as_many_segments_as_its_size_needs() {
        let root = |segments| Root {
            block_size: BlockSize::DEFAULT,
            size_bytes: (1 << 30) + 1,
            segments: vec![SegmentId::ZERO; segments],
        };
        let (id, bytes) = root(2).encode(Hashing::Plain);
        assert_eq!(Root::decode(Hashing::Plain, id, &bytes).expect("decodes"), root(2));
        assert_eq!(
            (root(2).slots_in(0), root(2).slots_in(1), root(2).slots_in(2)),
            (1024, 1, 0)
        );
        for wrong in [0, 1, 3] {
            let (id, bytes) = root(wrong).encode(Hashing::Plain);
            assert!(Root::decode(Hashing::Plain, id, &bytes).is_err());
        }
    }

    #[test]
    fn a_segment_is_not_taken_for_a_root() {
        let (id, bytes) = encode_segment(Hashing::Plain, &[Some(BlockId([1; 32]))]).expect("not zero");
        assert!(Root::decode(Hashing::Plain, id, &bytes).is_err());
    }

    proptest! {
        #[test]
        fn segments_go_there_and_back(slots in slots()) {
            if let Some((id, bytes)) = encode_segment(Hashing::Plain, &slots) {
                prop_assert_eq!(decode_segment(Hashing::Plain, id, slots.len(), &bytes).expect("decodes"), slots.clone());
                prop_assert!(decode_segment(Hashing::Plain, id, slots.len() + 1, &bytes).is_err());
            }
        }

        #[test]
        fn a_changed_byte_is_always_found(slots in slots(), place: prop::sample::Index, flip in 1..=255_u8) {
            if let Some((id, mut bytes)) = encode_segment(Hashing::Plain, &slots) {
                let place = place.index(bytes.len());
                bytes[place] ^= flip;
                prop_assert!(decode_segment(Hashing::Plain, id, slots.len(), &bytes).is_err());
            }
        }

        #[test]
        fn well_hashed_nonsense_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), count in 0..2000_usize) {
            let id = SegmentId(Hashing::Plain.content(&bytes));
            let _ = decode_segment(Hashing::Plain, id, count, &bytes);
            let _ = Root::decode(Hashing::Plain, id, &bytes);
        }
    }
}
