//! The content of a file, as a device.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::inode::{FLAG_INLINE_DATA, Inode};
use super::map::Leaf;
use super::ranges::Run;
use super::volume::Volume;
use super::{Ext, xattr_entries};
use crate::device::Device;
use crate::error::{Error, Result};

/// Leaves that an open file keeps: those of two readers. A leaf has 400 KB at most.
const RECENT_LEAVES: usize = 2;

/// The blocks of one file.
pub(super) struct Blocks {
    pub inode: Inode,
    recent: Mutex<[Option<Arc<Leaf>>; RECENT_LEAVES]>,
}

impl Blocks {
    pub fn new(inode: Inode) -> Self {
        Self {
            inode,
            recent: Mutex::default(),
        }
    }

    /// Returns the run or hole with a block of the file.
    pub fn run(&self, volume: &Volume, block: u64) -> Result<Run> {
        let found = self.recent.lock().iter().flatten().find_map(|leaf| leaf.run(block));
        if let Some(run) = found {
            return Ok(run);
        }
        let leaf = Leaf::of(volume, &self.inode, block)?;
        let run = leaf.run(block);
        let mut recent = self.recent.lock();
        recent.rotate_right(1);
        recent[0] = Some(Arc::new(leaf));
        run.ok_or_else(|| self.inode.damaged("a leaf without its own block"))
    }

    /// Fills `buf` with content. Bytes that are adjacent on the volume are read together.
    pub fn read(&self, volume: &Volume, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        let block_bytes = volume.superblock.block_bytes;
        // What was found adjacent so far: its offset on the volume, and its part of `buf`.
        let mut pending: (u64, Range<usize>) = (0, 0..0);
        let mut at = 0;
        while at < buf.len() {
            let position = offset_bytes + at as u64;
            let run = self.run(volume, position / block_bytes)?;
            let left = run.end.saturating_mul(block_bytes) - position;
            let end = at + usize::try_from(left).unwrap_or(usize::MAX).min(buf.len() - at);
            let source = run.block.map(|block| {
                block
                    .saturating_mul(block_bytes)
                    .saturating_add(position - run.first * block_bytes)
            });
            match source {
                Some(source)
                    if pending.1.end == at && pending.0.checked_add(pending.1.len() as u64) == Some(source) =>
                {
                    pending.1.end = end;
                }
                source => {
                    flush(volume, &pending, buf)?;
                    pending = (source.unwrap_or(0), at..end);
                    if source.is_none() {
                        buf[at..end].fill(0);
                        pending.1 = end..end;
                    }
                }
            }
            at = end;
        }
        flush(volume, &pending, buf)
    }

    /// Reads the whole content if it has at most `limit_bytes`.
    pub fn read_all(&self, volume: &Volume, limit_bytes: u64) -> Result<Vec<u8>> {
        let inode = &self.inode;
        if inode.size_bytes > limit_bytes {
            return Err(inode.damaged(format_args!(
                "{} bytes; at most {limit_bytes} are valid",
                inode.size_bytes
            )));
        }
        if inode.has(FLAG_INLINE_DATA) {
            return inline(inode);
        }
        let mut bytes = vec![0; inode.size_bytes as usize];
        self.read(volume, 0, &mut bytes)?;
        Ok(bytes)
    }
}

fn flush(volume: &Volume, pending: &(u64, Range<usize>), buf: &mut [u8]) -> Result<()> {
    match pending.1.is_empty() {
        true => Ok(()),
        false => volume.content(pending.0, &mut buf[pending.1.clone()]),
    }
}

/// Returns content that lies in the inode: first in place of the block numbers, then in an attribute
/// (fs/ext4/inline.c).
pub(super) fn inline(inode: &Inode) -> Result<Vec<u8>> {
    let mut bytes = inode.map().to_vec();
    bytes.extend(xattr_entries::inline_data(inode)?);
    let size = usize::try_from(inode.size_bytes).unwrap_or(usize::MAX);
    if size > bytes.len() {
        return Err(inode.damaged("longer than its content in the inode"));
    }
    bytes.truncate(size);
    Ok(bytes)
}

/// An open file.
pub(super) struct Content {
    tree: Arc<Ext>,
    blocks: Blocks,
}

impl Content {
    pub fn new(tree: Arc<Ext>, inode: Inode) -> Self {
        Self {
            tree,
            blocks: Blocks::new(inode),
        }
    }

    /// Returns the run or hole with a byte, in bytes.
    fn run(&self, offset_bytes: u64) -> Result<(Range<u64>, bool)> {
        let block_bytes = self.tree.volume.superblock.block_bytes;
        let run = self.blocks.run(&self.tree.volume, offset_bytes / block_bytes)?;
        let end = run.end.saturating_mul(block_bytes).min(self.size_bytes());
        Ok((offset_bytes..end, run.block.is_some()))
    }
}

impl Device for Content {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let end_bytes = offset_bytes.checked_add(buf.len() as u64);
        if end_bytes.is_none_or(|end_bytes| end_bytes > self.size_bytes()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.blocks.read(&self.tree.volume, offset_bytes, buf)?)
    }

    fn size_bytes(&self) -> u64 {
        self.blocks.inode.size_bytes
    }

    /// A part of the tree that is damaged counts as data: reading there fails, and all after it stays readable.
    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        let mut at = offset_bytes;
        while at < self.size_bytes() {
            match self.run(at) {
                Ok((run, false)) => at = run.end,
                Ok((_, true)) | Err(Error::Damaged(_)) => return Ok(Some(at)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        let mut at = offset_bytes;
        while at < self.size_bytes() {
            match self.run(at) {
                Ok((run, true)) => at = run.end,
                Ok((_, false)) => return Ok(at),
                Err(Error::Damaged(_)) => return Ok(self.size_bytes()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(at)
    }
}
