//! The blocks of a file system that are newer in its journal.

use std::ops::Range;

use super::checksum::crc32c;
use crate::device::Device;
use crate::error::{Error, Result};

/// First four bytes of the journal's own blocks.
pub(super) const MAGIC: u32 = 0xc03b_3998;

/// A block of the file system that is newer in the journal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copy {
    /// Block of the file system.
    pub block: u64,
    /// Offset in the device.
    pub offset_bytes: u64,
    /// Number of the transaction, which the checksum covers.
    pub sequence: u32,
    pub checksum: u32,
    pub is_escaped: bool,
}

/// The blocks that are newer in the journal.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    /// In the order of their blocks, of which each has one.
    pub copies: Vec<Copy>,
    pub checksums: Checksums,
}

/// Checksums of a journal's blocks, with their seed.
#[derive(Debug, Default, Clone, Copy)]
pub(super) enum Checksums {
    #[default]
    None,
    /// In place of 32 bits, tags have the lower 16 (CSUM_V2).
    V2(u32),
    V3(u32),
}

impl Replayed {
    /// Returns the newer copy of a block.
    pub fn get(&self, block: u64) -> Option<&Copy> {
        let index = self.copies.binary_search_by_key(&block, |copy| copy.block).ok()?;
        self.copies.get(index)
    }

    /// Returns the newer copies of some blocks.
    pub fn of(&self, blocks: Range<u64>) -> &[Copy] {
        let first = self.copies.partition_point(|copy| copy.block < blocks.start);
        let from = self.copies.get(first..).unwrap_or_default();
        let count = from.partition_point(|copy| copy.block < blocks.end);
        from.get(..count).unwrap_or_default()
    }

    /// Reads the copy of a block.
    pub fn read(&self, device: &dyn Device, copy: &Copy, block_bytes: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; block_bytes as usize];
        device.read_at(copy.offset_bytes, &mut bytes)?;
        let of = |seed| crc32c(crc32c(seed, &copy.sequence.to_be_bytes()), &bytes);
        let is_intact = match self.checksums {
            Checksums::None => true,
            Checksums::V2(seed) => of(seed) & 0xffff == copy.checksum,
            Checksums::V3(seed) => of(seed) == copy.checksum,
        };
        if !crate::proven(is_intact) {
            return Err(Error::damaged(format!(
                "block {}: wrong checksum in the journal",
                copy.block
            )));
        }
        if copy.is_escaped {
            bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
        }
        Ok(bytes)
    }
}
