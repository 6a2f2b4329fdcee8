//! Keys and rows in RocksDB. All numbers are big-endian, so that keys sort by them.

use crate::error::{Error, Result};
use crate::id::BlockId;
use crate::store::{Located, Place};

/// Place and lengths of a block, and its base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IndexRow {
    pub(super) sequence: u64,
    pub(super) plain_bytes: u32,
    /// Less than [`HAS_BASE`].
    pub(super) stored_bytes: u32,
    pub(super) base: Option<BlockId>,
}

/// Set in the stored length of a block that is stored as a difference: the id of its base follows.
const HAS_BASE: u32 = 1 << 31;

impl IndexRow {
    pub(super) fn encode(self) -> Vec<u8> {
        [&self.sequence.to_be_bytes()[..], &self.lengths()].concat()
    }

    pub(super) fn decode(id: BlockId, row: &[u8]) -> Result<Self> {
        let decoded = row
            .split_first_chunk()
            .and_then(|(sequence, lengths)| Self::with_lengths(u64::from_be_bytes(*sequence), lengths));
        match decoded {
            Some((row, [])) => Ok(row),
            _ => Err(Error::BlockDamaged {
                id,
                what: "its index row has a wrong length".into(),
            }),
        }
    }

    /// Reads the lengths and the base, as they follow the sequence number or the id; also returns what follows them. `None` if
    /// they are cut off.
    fn with_lengths(sequence: u64, bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (plain_bytes, rest) = bytes.split_first_chunk()?;
        let (stored_bytes, rest) = rest.split_first_chunk()?;
        let stored_bytes = u32::from_be_bytes(*stored_bytes);
        let (base, rest) = match stored_bytes & HAS_BASE {
            0 => (None, rest),
            _ => {
                let (base, rest) = rest.split_first_chunk()?;
                (Some(BlockId(*base)), rest)
            }
        };
        let row = Self {
            sequence,
            plain_bytes: u32::from_be_bytes(*plain_bytes),
            stored_bytes: stored_bytes & !HAS_BASE,
            base,
        };
        Some((row, rest))
    }

    /// Reads the start of part 0 of the block at a sequence number: its id and its row. Also returns the header, which follows.
    pub(super) fn of_part_zero(sequence: u64, part: &[u8]) -> Option<(BlockId, Self, &[u8])> {
        let (id, rest) = part.split_first_chunk()?;
        let (row, header) = Self::with_lengths(sequence, rest)?;
        Some((BlockId(*id), row, header))
    }

    pub(super) fn located(self) -> Located {
        Located {
            place: Place(self.sequence),
            plain_bytes: self.plain_bytes,
            stored_bytes: self.stored_bytes,
            base: self.base,
        }
    }

    fn lengths(self) -> Vec<u8> {
        let has_base = self.base.map_or(0, |_| HAS_BASE);
        let mut lengths = self.plain_bytes.to_be_bytes().to_vec();
        lengths.extend((self.stored_bytes | has_base).to_be_bytes());
        lengths.extend(self.base.iter().flat_map(|base| base.0));
        lengths
    }

    /// Returns the start of a block's part 0, which repeats its index row.
    pub(super) fn part_zero(self, id: BlockId) -> Vec<u8> {
        [&id.0[..], &self.lengths()].concat()
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Returns the key of a part of the block with this sequence number.
pub(super) fn part_key(sequence: u64, part: usize) -> [u8; 10] {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&sequence.to_be_bytes());
    // A block has at most 257 parts: a header and 256 pages.
    key[8..].copy_from_slice(&(part as u16).to_be_bytes());
    key
}

/// Returns the number of the part in a key of `blocks`.
pub(super) fn part_number(key: &[u8]) -> usize {
    number(key.get(8..).unwrap_or_default()) as usize
}

/// Returns the sequence number in a key of `blocks`.
pub(super) fn sequence_of(key: &[u8]) -> u64 {
    number(&key[..key.len().min(8)])
}
