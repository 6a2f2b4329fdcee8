//! Blocks that a replay of the log changed, over a device that stays as it is.

use std::collections::BTreeMap;
use std::io;

use crate::device::{Device, SharedDevice};

use super::{BASIC_BLOCK_BYTES, LogResult};

/// Bound of the changed blocks. A log has 2 GiB at most, and much of it is the same blocks again and again; a guest
/// that changed more metadata since its last checkpoint is opened without replay.
const MAX_BLOCKS: usize = (256 << 20) / BASIC_BLOCK_BYTES;

/// A device with changed blocks. Reads show the changes.
pub(in crate::fs::xfs) struct Overlay {
    below: SharedDevice,
    blocks: BTreeMap<u64, Box<[u8; BASIC_BLOCK_BYTES]>>,
}

impl Overlay {
    pub fn new(below: SharedDevice) -> Self {
        Self {
            below,
            blocks: BTreeMap::new(),
        }
    }

    /// Returns the number of changed basic blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Replaces bytes that start and end at basic blocks.
    pub fn replace(&mut self, block: u64, bytes: &[u8]) -> LogResult<()> {
        let (blocks, _) = bytes.as_chunks::<BASIC_BLOCK_BYTES>();
        for (number, bytes) in (block..).zip(blocks) {
            self.blocks.insert(number, Box::new(*bytes));
        }
        match self.blocks.len() > MAX_BLOCKS {
            true => Err("it changes more than 256 MiB".into()),
            false => Ok(()),
        }
    }
}

impl Device for Overlay {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.below.read_at(offset_bytes, buf)?;
        let end_bytes = offset_bytes + buf.len() as u64;
        let len = BASIC_BLOCK_BYTES as u64;
        for (number, bytes) in self.blocks.range(offset_bytes / len..end_bytes.div_ceil(len)) {
            let start = number * len;
            let (from, to) = (start.max(offset_bytes), (start + len).min(end_bytes));
            let target = &mut buf[(from - offset_bytes) as usize..(to - offset_bytes) as usize];
            target.copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.below.size_bytes()
    }
}
