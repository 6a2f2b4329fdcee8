//! Keys and rows in RocksDB. All numbers are big-endian, so that keys sort by them.

use crate::error::{Error, Result};
use crate::id::BlockId;
use crate::store::{Located, Place};

/// Place and lengths of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IndexRow {
    pub(super) sequence: u64,
    pub(super) plain_bytes: u32,
    pub(super) stored_bytes: u32,
}

impl IndexRow {
    pub(super) fn encode(self) -> [u8; 16] {
        let mut row = [0; 16];
        row[..8].copy_from_slice(&self.sequence.to_be_bytes());
        row[8..].copy_from_slice(&self.lengths());
        row
    }

    pub(super) fn decode(id: BlockId, row: &[u8]) -> Result<Self> {
        let row: [u8; 16] = row.try_into().map_err(|_| Error::BlockDamaged {
            id,
            what: "its index row has a wrong length".into(),
        })?;
        Ok(Self {
            sequence: number(&row[..8]),
            plain_bytes: number(&row[8..12]) as u32,
            stored_bytes: number(&row[12..]) as u32,
        })
    }

    pub(super) fn located(self) -> Located {
        Located {
            place: Place(self.sequence),
            plain_bytes: self.plain_bytes,
            stored_bytes: self.stored_bytes,
        }
    }

    fn lengths(self) -> [u8; 8] {
        let mut lengths = [0; 8];
        lengths[..4].copy_from_slice(&self.plain_bytes.to_be_bytes());
        lengths[4..].copy_from_slice(&self.stored_bytes.to_be_bytes());
        lengths
    }

    /// Returns the start of a block's part 0, which repeats its index row.
    pub(super) fn part_zero(self, id: BlockId) -> Vec<u8> {
        [&id.0[..], &self.lengths()].concat()
    }
}

/// Offset of the header in part 0.
pub(super) const HEADER_AT: usize = 40;

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
