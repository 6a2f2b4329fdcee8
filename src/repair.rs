//! Looks for damaged blocks of a repository on a disk as it is now.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use vbk_repo::block::{BlockIndex, BlockSize, is_zero};
use vbk_repo::repair::Repair;

use crate::disk::buffer::AlignedBuffer;
use crate::disk::source::Source;
use crate::error::{Error, Result};

/// Reads the disk at `path` and offers each of its blocks to `repair`, until nothing is missing any more. The disk may
/// be in use: a block is taken only if it is just what is missing.
pub fn offer_disk(repair: &mut Repair<'_>, path: &Path, block_size: BlockSize, cancel: &AtomicBool) -> Result<()> {
    let source = Source::open(path)?;
    let size_bytes = source.size_bytes();
    let mut buffer = AlignedBuffer::new(block_size.bytes());
    let mut next = 0;
    while let Some(data) = source.next_data(next) {
        let blocks = block_size.index_of(data.start).0..block_size.blocks_in(data.end);
        for index in blocks {
            if cancel.load(Ordering::SeqCst) {
                return Err(Error::Interrupted);
            }
            if repair.missing().0 == 0 {
                return Ok(());
            }
            let index = BlockIndex(index);
            let len = block_size.len_of(index, size_bytes);
            source.read(block_size.offset_of(index), len, &mut buffer)?;
            let plain = &buffer.as_slice()[..len];
            if !is_zero(plain) {
                repair.offer(plain)?;
            }
        }
        next = data.end;
    }
    Ok(())
}
