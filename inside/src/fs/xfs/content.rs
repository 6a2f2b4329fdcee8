//! Content of a regular file. Extents that are consecutive on the volume are read at once.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::device::Device;
use crate::error::{Error, Result};

use super::extents::{Extent, Fork, Leaf};
use super::volume::Volume;

/// The content of a file.
pub(super) struct Content {
    pub volume: Arc<Volume>,
    pub inode: u64,
    pub fork: Fork,
    pub size_bytes: u64,
    /// Part of the map that was used last: reads are mostly sequential.
    pub last: Mutex<Option<Arc<Leaf>>>,
}

impl Content {
    fn leaf_at(&self, block: u64) -> Result<Arc<Leaf>> {
        let last = self.last.lock().clone();
        if let Some(leaf) = last.filter(|leaf| leaf.covers.contains(&block)) {
            return Ok(leaf);
        }
        let leaf = Arc::new(self.fork.leaf_at(&self.volume, self.inode, block)?);
        *self.last.lock() = Some(leaf.clone());
        Ok(leaf)
    }

    fn block_log(&self) -> u8 {
        self.volume.superblock.block_log
    }

    fn block_of(&self, offset_bytes: u64) -> u64 {
        offset_bytes >> self.block_log()
    }

    fn bytes_of(&self, block: u64) -> u64 {
        block.saturating_mul(1 << self.block_log())
    }

    /// Returns the end of the run of data that begins with `leaf.extents[index]`, in the fork, and its offset on the
    /// volume. Only as many extents are joined as are needed to reach `wanted_end`.
    fn run(&self, leaf: &Leaf, index: usize, wanted_end: u64) -> Result<(u64, u64)> {
        let first = leaf.extents[index];
        let offset = |extent: &Extent| {
            let offset_bytes = self.volume.offset_of(extent.block, extent.count);
            offset_bytes
                .ok_or_else(|| Error::damaged(format!("inode {}: block {} is outside", self.inode, extent.block)))
        };
        let offset_bytes = offset(&first)?;
        let mut end = first.end();
        for next in leaf.extents.iter().skip(index + 1) {
            if end >= wanted_end || next.start != end || next.is_unwritten {
                break;
            }
            if offset(next).ok() != Some(offset_bytes + self.bytes_of(end - first.start)) {
                break;
            }
            end = next.end();
        }
        Ok((end, offset_bytes))
    }

    fn fill(&self, offset_bytes: u64, mut buf: &mut [u8]) -> Result<()> {
        let mut at_bytes = offset_bytes;
        let end_bytes = offset_bytes + buf.len() as u64;
        while !buf.is_empty() {
            let block = self.block_of(at_bytes);
            let leaf = self.leaf_at(block)?;
            let index = leaf.index_at_or_after(block);
            let (until, source) = match leaf.extents.get(index) {
                None => (leaf.covers.end, None),
                Some(extent) if extent.start > block => (extent.start, None),
                Some(extent) if extent.is_unwritten => (extent.end(), None),
                Some(extent) => {
                    let wanted_end = self.block_of(end_bytes - 1) + 1;
                    let (until, offset_bytes) = self.run(&leaf, index, wanted_end)?;
                    let skipped = at_bytes - self.bytes_of(extent.start);
                    (until, Some(offset_bytes + skipped))
                }
            };
            let len = (self.bytes_of(until).min(end_bytes) - at_bytes) as usize;
            let (piece, rest) = buf.split_at_mut(len);
            match source {
                Some(source) => self.volume.device.read_at(source, piece)?,
                None => piece.fill(0),
            }
            buf = rest;
            at_bytes += len as u64;
        }
        Ok(())
    }

    /// Returns the first extent with data that ends after `offset_bytes` and starts before the end of the file.
    fn data_at_or_after(&self, offset_bytes: u64) -> Result<Option<Extent>> {
        if offset_bytes >= self.size_bytes {
            return Ok(None);
        }
        let mut block = self.block_of(offset_bytes);
        while self.bytes_of(block) < self.size_bytes {
            let leaf = self.leaf_at(block)?;
            let rest = leaf.extents.get(leaf.index_at_or_after(block)..).unwrap_or_default();
            if let Some(extent) = rest.iter().find(|extent| !extent.is_unwritten) {
                return Ok(Some(*extent).filter(|extent| self.bytes_of(extent.start) < self.size_bytes));
            }
            block = leaf.covers.end;
        }
        Ok(None)
    }
}

impl Device for Content {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let end_bytes = offset_bytes.checked_add(buf.len() as u64);
        if end_bytes.is_none_or(|end_bytes| end_bytes > self.size_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.fill(offset_bytes, buf)?)
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        let extent = self.data_at_or_after(offset_bytes)?;
        Ok(extent.map(|extent| self.bytes_of(extent.start).max(offset_bytes)))
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        let mut at_bytes = offset_bytes;
        while at_bytes < self.size_bytes {
            match self.data_at_or_after(at_bytes)? {
                Some(extent) if self.bytes_of(extent.start) <= at_bytes => at_bytes = self.bytes_of(extent.end()),
                _ => return Ok(at_bytes),
            }
        }
        Ok(self.size_bytes.max(offset_bytes))
    }
}
