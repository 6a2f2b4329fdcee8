//! Writes blocks of an image to a target, and what can be read of damaged ones.

use vbk_repo::block::BlockIndex;
use vbk_repo::reader::ImageReader;

use super::Damaged;
use super::damage::{Damage, Piece};
use crate::disk::qcow2::Qcow2;
use crate::disk::target::Target;
use crate::error::Result;

/// Destination of a disk's bytes. Many threads may write to it at once, each to its own range.
pub(super) trait Sink: Sync {
    /// Writes at a multiple of 64 KiB. `bytes` starts at an aligned address.
    fn write(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()>;

    /// Makes a range read as zeros.
    fn zero(&self, offset_bytes: u64, len_bytes: u64) -> Result<()>;

    /// Leaves a range as it was before the restore, if there was one.
    fn keep(&self, offset_bytes: u64, len_bytes: u64) -> Result<()>;
}

/// The raw disk.
impl Sink for Target {
    fn write(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        self.write(offset_bytes, bytes)
    }

    fn zero(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.zero(offset_bytes, len_bytes)
    }

    fn keep(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.keep(offset_bytes, len_bytes)
    }
}

/// A qcow2 image, in which everything that is not written reads as zeros.
impl Sink for Qcow2<'_> {
    fn write(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        self.write(offset_bytes, bytes)
    }

    fn zero(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn keep(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }
}

/// An image on its way to a target.
pub(super) struct BlockWrite<'a> {
    pub(super) image: &'a ImageReader,
    pub(super) sink: &'a dyn Sink,
    pub(super) damage: &'a Damage<'a>,
}

impl BlockWrite<'_> {
    /// Copies stored blocks that follow each other, through a buffer of exactly their length: with one call of the store, and
    /// with one write if all of them are whole. ext4 writes to a new file one at a time.
    pub(super) fn copy_run(&self, first: BlockIndex, buffer: &mut [u8]) -> Result<()> {
        let size = self.image.block_size();
        let indices = (first.0..).map(BlockIndex);
        let mut blocks: Vec<_> = indices.zip(buffer.chunks_mut(size.bytes())).collect();
        let read = self.image.read_blocks(&mut blocks);
        match read.iter().all(|read| read.is_ok()) {
            true => self.sink.write(size.offset_of(first), buffer),
            false => self.write_each(&mut blocks, read).map(|_| ()),
        }
    }

    /// Reads stored blocks with one call of the store, each into its buffer, and writes them. Returns their bytes.
    pub(super) fn copy(&self, blocks: &mut [(BlockIndex, &mut [u8])]) -> Result<u64> {
        let read = self.image.read_blocks(blocks);
        self.write_each(blocks, read)
    }

    fn write_each(
        &self,
        blocks: &mut [(BlockIndex, &mut [u8])],
        read: Vec<std::result::Result<(), vbk_repo::Error>>,
    ) -> Result<u64> {
        let mut copied = 0;
        for ((index, plain), read) in blocks.iter_mut().zip(read) {
            let offset_bytes = self.image.block_size().offset_of(*index);
            copied += plain.len() as u64;
            match read {
                Ok(()) => self.sink.write(offset_bytes, plain)?,
                Err(error) => self.rescue(offset_bytes, plain, error)?,
            }
        }
        Ok(copied)
    }

    /// Writes what can be read of a damaged block.
    fn rescue(&self, offset_bytes: u64, plain: &mut [u8], error: vbk_repo::Error) -> Result<()> {
        for piece in self.damage.rescue(self.image, offset_bytes, plain, error)? {
            match piece {
                Piece::Good { offset_bytes, bytes } => self.sink.write(offset_bytes, bytes)?,
                Piece::Lost {
                    offset_bytes,
                    len_bytes,
                } => self.fill_lost(offset_bytes, len_bytes)?,
            }
        }
        Ok(())
    }

    /// Gives a range that can't be read back the content that the caller wants there.
    pub(super) fn fill_lost(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        match self.damage.wish() {
            Damaged::Keep => self.sink.keep(offset_bytes, len_bytes),
            Damaged::Zeros | Damaged::Refuse => self.sink.zero(offset_bytes, len_bytes),
        }
    }
}

/// Returns the bytes of some blocks of an image, as offset and length.
pub(super) fn range_of(image: &ImageReader, first: BlockIndex, count: u64) -> (u64, u64) {
    let size = image.block_size();
    let start = size.offset_of(first);
    let end = size.offset_of(BlockIndex(first.0 + count));
    (start, end.min(image.size_bytes()) - start)
}
