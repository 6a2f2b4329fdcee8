//! The blocks of a file system as they are after the journal, with a cache of those that hold metadata.

use std::sync::Arc;

use quick_cache::sync::Cache;

use super::checksum::{START, crc16, crc32c, crc32c_without};
use super::fast_commit::FastCommits;
use super::replayed::Replayed;
use super::superblock::{INCOMPAT_META_BG, RO_COMPAT_GDT_CSUM, SUPERBLOCK_BYTES, Superblock, u16_at, u32_at};
use crate::device::SharedDevice;
use crate::error::{Error, Result};

/// Unit of the cache: the page of a backup, which is decoded whole for each of its bytes.
const PAGE_BYTES: u64 = 64 << 10;
/// Pages of the cache, together 8 MiB: inode tables and a few directories that are being read.
const PAGES: usize = 128;

/// Copies of the group descriptors that are tried when one is damaged.
const DESCRIPTOR_COPIES: usize = 4;

/// The blocks of a file system.
pub(super) struct Volume {
    pub superblock: Superblock,
    device: SharedDevice,
    replayed: Replayed,
    /// Changes on top of the blocks.
    pub fast_commits: FastCommits,
    pages: Cache<u64, Arc<[u8]>>,
}

impl Volume {
    /// Makes a volume whose journal has not been read.
    pub fn new(device: SharedDevice, superblock: Superblock) -> Self {
        Self {
            superblock,
            device,
            replayed: Replayed::default(),
            fast_commits: FastCommits::default(),
            pages: Cache::new(PAGES),
        }
    }

    /// Puts the blocks of the journal over those of the device.
    pub fn replay(&mut self, replayed: Replayed) {
        self.replayed = replayed;
    }

    /// Returns the superblock at an offset as the journal left it, if the journal holds it.
    pub fn replayed_superblock(&self, offset_bytes: u64) -> Result<Option<Box<[u8; SUPERBLOCK_BYTES]>>> {
        let block = offset_bytes / self.superblock.block_bytes;
        let Some(copy) = self.replayed.get(block) else {
            return Ok(None);
        };
        let bytes = self
            .replayed
            .read(self.device.as_ref(), copy, self.superblock.block_bytes)?;
        let at = (offset_bytes % self.superblock.block_bytes) as usize;
        let bytes = bytes.get(at..).and_then(|bytes| bytes.get(..SUPERBLOCK_BYTES));
        Ok(bytes.map(|bytes| Box::new(std::array::from_fn(|at| bytes[at]))))
    }

    /// Reads metadata that lies in one block.
    pub fn metadata(&self, block: u64, at: u64, buf: &mut [u8]) -> Result<()> {
        let block_bytes = self.superblock.block_bytes;
        if block >= self.superblock.blocks || at.saturating_add(buf.len() as u64) > block_bytes {
            return Err(outside(block));
        }
        if let Some(copy) = self.replayed.get(block) {
            let bytes = self.replayed.read(self.device.as_ref(), copy, block_bytes)?;
            let bytes = bytes.get(at as usize..).and_then(|bytes| bytes.get(..buf.len()));
            buf.copy_from_slice(bytes.ok_or_else(|| outside(block))?);
            return Ok(());
        }
        // A block is never longer than a page, and lies in one.
        let offset_bytes = block * block_bytes + at;
        let in_page = (offset_bytes % PAGE_BYTES) as usize;
        let page = self.page(offset_bytes / PAGE_BYTES);
        let cached = page.as_deref().and_then(|page| page.get(in_page..)?.get(..buf.len()));
        match cached {
            Some(cached) => buf.copy_from_slice(cached),
            // The page is not readable as a whole, but these bytes may be.
            None => self.device.read_at(offset_bytes, buf)?,
        }
        Ok(())
    }

    /// Reads a block of metadata.
    pub fn block(&self, block: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.superblock.block_bytes as usize];
        self.metadata(block, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads the content of a file: all of `buf` from adjacent blocks, with one read of the device and one for each
    /// block of it in the journal.
    pub fn content(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        let block_bytes = self.superblock.block_bytes;
        let end_bytes = offset_bytes.saturating_add(buf.len() as u64);
        if end_bytes > self.superblock.blocks * block_bytes {
            return Err(outside(offset_bytes / block_bytes));
        }
        self.device.read_at(offset_bytes, buf)?;
        let blocks = offset_bytes / block_bytes..end_bytes.div_ceil(block_bytes);
        for copy in self.replayed.of(blocks) {
            let bytes = self.replayed.read(self.device.as_ref(), copy, block_bytes)?;
            let start = copy.block * block_bytes;
            let (from, to) = (start.max(offset_bytes), (start + block_bytes).min(end_bytes));
            let target = (from - offset_bytes) as usize..(to - offset_bytes) as usize;
            buf[target].copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }

    fn page(&self, number: u64) -> Option<Arc<[u8]>> {
        if let Some(page) = self.pages.get(&number) {
            return Some(page);
        }
        let offset_bytes = number * PAGE_BYTES;
        let left = self.device.size_bytes().saturating_sub(offset_bytes);
        let mut page = vec![0; left.min(PAGE_BYTES) as usize];
        self.device.read_at(offset_bytes, &mut page).ok()?;
        let page: Arc<[u8]> = page.into();
        self.pages.insert(number, Arc::clone(&page));
        Some(page)
    }

    /// Returns the block and the offset in it where an inode lies.
    pub fn inode_position(&self, inode: u32) -> Result<(u64, u64)> {
        let superblock = &self.superblock;
        let index = inode.checked_sub(1).filter(|_| inode <= superblock.inodes);
        let index = index.ok_or_else(|| Error::damaged(format!("inode {inode}: no such number")))?;
        let group = u64::from(index / superblock.inodes_per_group);
        let inode_table = self.inode_table(group)?;
        let offset_bytes = u64::from(index % superblock.inodes_per_group) * superblock.inode_bytes as u64;
        let block = inode_table.saturating_add(offset_bytes / superblock.block_bytes);
        Ok((block, offset_bytes % superblock.block_bytes))
    }

    /// Reads from a group descriptor where the inodes are: beside the superblock, or else from one of the copies. Of a
    /// descriptor nothing else is true in a copy, nor needed.
    fn inode_table(&self, group: u64) -> Result<u64> {
        let superblock = &self.superblock;
        if group >= superblock.groups {
            return Err(Error::damaged(format!("group {group}: no such number")));
        }
        let mut found = self.descriptor_at(group, superblock.at_block, 0);
        if found.is_err() {
            let others = (0..superblock.groups.min(100)).filter(|group| superblock.is_superblock_in(*group));
            for (number, other) in others.take(DESCRIPTOR_COPIES).enumerate() {
                let block = superblock.first_block_of(other);
                match self.descriptor_at(group, block, number as u64) {
                    Ok(copy) => return Ok(copy),
                    Err(error) => found = found.or(Err(error)),
                }
            }
        }
        found
    }

    /// Reads a group descriptor that belongs to the superblock at a block, or, with META_BG, the copy of this number.
    fn descriptor_at(&self, group: u64, superblock_at: u64, copy: u64) -> Result<u64> {
        let superblock = &self.superblock;
        let per_block = superblock.block_bytes / superblock.descriptor_bytes as u64;
        let index = group / per_block;
        let block = if superblock.has_incompat(INCOMPAT_META_BG) && index >= superblock.first_meta_bg {
            // Each block of descriptors lies in the first, second and last group of those that it describes
            // (`descriptor_loc`, fs/ext4/super.c; Documentation/filesystems/ext4/blockgroup.rst).
            let first = index * per_block;
            let member = first + [0, 1, per_block - 1].get(copy as usize).copied().unwrap_or(0);
            let member = if member < superblock.groups { member } else { first };
            let is_first_of_1k = superblock.block_bytes == 1024 && member == 0 && superblock.first_data_block == 0;
            let skipped = u64::from(superblock.is_superblock_in(member)) + u64::from(is_first_of_1k);
            superblock.first_block_of(member).saturating_add(skipped)
        } else {
            superblock_at.saturating_add(1 + index)
        };
        let mut bytes = vec![0; superblock.descriptor_bytes];
        let at = group % per_block * superblock.descriptor_bytes as u64;
        self.metadata(block, at, &mut bytes)?;
        self.parse_descriptor(group, &bytes)
    }

    /// `struct ext4_group_desc`, and `ext4_group_desc_csum`.
    fn parse_descriptor(&self, group: u64, bytes: &[u8]) -> Result<u64> {
        const CHECKSUM: std::ops::Range<usize> = 0x1e..0x20;
        let damaged = |what| Error::damaged(format!("descriptor of group {group}: {what}"));
        let superblock = &self.superblock;
        let number = u32::try_from(group)
            .map_err(|_| damaged("no such number"))?
            .to_le_bytes();
        let checksum = if superblock.has_checksums() {
            let seed = crc32c(superblock.seed, &number);
            Some((crc32c_without(seed, bytes, CHECKSUM) & 0xffff) as u16)
        } else if superblock.has_ro_compat(RO_COMPAT_GDT_CSUM) {
            let (before, after) = (bytes.get(..CHECKSUM.start), bytes.get(CHECKSUM.end..));
            let pieces = [
                &superblock.uuid[..],
                &number,
                before.unwrap_or_default(),
                after.unwrap_or_default(),
            ];
            Some(crc16(&pieces))
        } else {
            None
        };
        if !crate::proven(checksum.is_none() || checksum == u16_at(bytes, CHECKSUM.start)) {
            return Err(damaged("wrong checksum"));
        }
        let low = u32_at(bytes, 0x8).unwrap_or(0);
        let high = if bytes.len() >= 64 { u32_at(bytes, 0x28) } else { None };
        let inode_table = u64::from(low) | u64::from(high.unwrap_or(0)) << 32;
        if inode_table == 0 || inode_table >= superblock.blocks {
            return Err(damaged("inode table outside the file system"));
        }
        Ok(inode_table)
    }

    /// Returns the seed of an inode's checksums (`i_csum_seed`).
    pub fn inode_seed(&self, inode: u32, generation: u32) -> u32 {
        let seed = match self.superblock.has_checksums() {
            true => self.superblock.seed,
            false => START,
        };
        crc32c(crc32c(seed, &inode.to_le_bytes()), &generation.to_le_bytes())
    }
}

fn outside(block: u64) -> Error {
    Error::damaged(format!("block {block}: outside the file system"))
}
