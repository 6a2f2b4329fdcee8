//! Keys and rows as they stand in RocksDB. All numbers are big-endian, so that keys sort by them.

use crate::error::{Error, Result};
use crate::id::BlockId;

/// Where a block lies and how long it is.
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
        row[8..12].copy_from_slice(&self.plain_bytes.to_be_bytes());
        row[12..].copy_from_slice(&self.stored_bytes.to_be_bytes());
        row
    }

    pub(super) fn decode(id: BlockId, row: &[u8]) -> Result<Self> {
        let row: [u8; 16] = row.try_into().map_err(|_| Error::BlockDamaged {
            id,
            what: "its index row has a wrong length".into(),
        })?;
        let number = |range: std::ops::Range<usize>| row[range].iter().fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
        Ok(Self {
            sequence: number(0..8),
            plain_bytes: number(8..12) as u32,
            stored_bytes: number(12..16) as u32,
        })
    }
}

/// The key of a part of the block with this sequence number.
pub(super) fn part_key(sequence: u64, part: usize) -> [u8; 10] {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&sequence.to_be_bytes());
    // At most 257 parts: a header and 256 pages.
    key[8..].copy_from_slice(&(part as u16).to_be_bytes());
    key
}
