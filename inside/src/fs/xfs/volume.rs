//! Volume below the files: blocks by number, metadata through a small cache, and the seals of version 5 metadata.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::device::{SharedDevice, be64};
use crate::error::{Error, Result};

use super::checksum::crc_holds;
use super::superblock::Superblock;

/// Length of a cached part: a page of a backup, which is read whole in any case.
const PART_BYTES: u64 = 64 << 10;
/// Cached parts: 4 MiB, enough for the inodes and directory blocks that a walk needs again.
const PARTS: usize = 64;

/// Blocks of a file system.
pub(super) struct Volume {
    pub device: SharedDevice,
    pub superblock: Superblock,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    parts: HashMap<u64, (Arc<[u8]>, u64)>,
    uses: u64,
}

/// Offsets of the fields that prove a block of version 5 to be itself.
pub(super) struct Seal {
    pub crc_at: usize,
    pub address_at: usize,
    pub uuid_at: usize,
}

/// Seal of the blocks of directories' data (`struct xfs_dir3_blk_hdr`).
pub(super) const DIRECTORY_SEAL: Seal = Seal {
    crc_at: 4,
    address_at: 8,
    uuid_at: 24,
};
/// Seal of blocks of hash trees (`struct xfs_da3_blkinfo`).
pub(super) const HASH_TREE_SEAL: Seal = Seal {
    crc_at: 12,
    address_at: 16,
    uuid_at: 32,
};
/// Seal of blocks of extent trees (`struct xfs_btree_block_lhdr`).
pub(super) const EXTENT_TREE_SEAL: Seal = Seal {
    crc_at: 64,
    address_at: 24,
    uuid_at: 40,
};
/// Seal of remote symbolic links (`struct xfs_dsymlink_hdr`) and remote attribute values (`struct xfs_attr3_rmt_hdr`).
pub(super) const REMOTE_SEAL: Seal = Seal {
    crc_at: 12,
    address_at: 40,
    uuid_at: 16,
};

impl Volume {
    pub fn new(device: SharedDevice, superblock: Superblock) -> Self {
        Self {
            device,
            superblock,
            cache: Mutex::default(),
        }
    }

    /// Returns the offset of `count` blocks that lie one after the other in one allocation group.
    pub fn offset_of(&self, block: u64, count: u64) -> Option<u64> {
        let superblock = &self.superblock;
        let (group, inside) = (block >> superblock.group_log, block & ((1 << superblock.group_log) - 1));
        let end = inside.checked_add(count)?;
        if group >= superblock.groups || end > superblock.group_blocks {
            return None;
        }
        // Both factors have 32 bits.
        let linear = group * superblock.group_blocks + inside;
        if linear.checked_add(count)? > superblock.blocks {
            return None;
        }
        Some(linear << superblock.block_log)
    }

    /// Reads metadata through the cache.
    pub fn read(&self, offset_bytes: u64, len: usize) -> Result<Vec<u8>> {
        let end_bytes = offset_bytes.checked_add(len as u64);
        let end_bytes = end_bytes.filter(|end_bytes| *end_bytes <= self.device.size_bytes());
        let end_bytes = end_bytes.ok_or_else(|| Error::damaged(format!("no byte {offset_bytes} on the device")))?;
        let mut bytes = Vec::with_capacity(len);
        let mut at_bytes = offset_bytes;
        while at_bytes < end_bytes {
            let part = self.part(at_bytes / PART_BYTES)?;
            let from = (at_bytes % PART_BYTES) as usize;
            let to = part.len().min(from + (end_bytes - at_bytes) as usize);
            let piece = part.get(from..to).filter(|piece| !piece.is_empty());
            let piece = piece.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
            bytes.extend_from_slice(piece);
            at_bytes += piece.len() as u64;
        }
        Ok(bytes)
    }

    fn part(&self, number: u64) -> Result<Arc<[u8]>> {
        {
            let mut cache = self.cache.lock();
            cache.uses += 1;
            let now = cache.uses;
            if let Some((part, used)) = cache.parts.get_mut(&number) {
                *used = now;
                return Ok(part.clone());
            }
        }
        let offset_bytes = number * PART_BYTES;
        let len = PART_BYTES.min(self.device.size_bytes().saturating_sub(offset_bytes));
        let mut part = vec![0; len as usize];
        self.device.read_at(offset_bytes, &mut part)?;
        let part: Arc<[u8]> = part.into();
        let mut cache = self.cache.lock();
        if cache.parts.len() >= PARTS {
            let oldest = cache.parts.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(number, _)| *number) {
                cache.parts.remove(&oldest);
            }
        }
        let now = cache.uses;
        cache.parts.insert(number, (part.clone(), now));
        Ok(part)
    }

    /// Reads `count` blocks of metadata. `what` names them in errors.
    pub fn read_blocks(&self, block: u64, count: u64, what: &str) -> Result<(u64, Vec<u8>)> {
        let offset_bytes = self.offset_of(block, count);
        let offset_bytes = offset_bytes.ok_or_else(|| Error::damaged(format!("{what}: block {block} is outside")))?;
        Ok((
            offset_bytes,
            self.read(offset_bytes, (count << self.superblock.block_log) as usize)?,
        ))
    }

    /// Tests that a block of version 5 has its checksum, and bears its own address and the file system's UUID.
    pub fn check_seal(&self, bytes: &[u8], offset_bytes: u64, seal: &Seal) -> std::result::Result<(), &'static str> {
        if !crc_holds(bytes, seal.crc_at) {
            return Err("checksum does not match");
        }
        // Addresses count basic blocks of 512 bytes.
        let address = bytes
            .get(seal.address_at..seal.address_at + 8)
            .map(|bytes| be64(bytes, 0));
        if address != Some(offset_bytes >> 9) {
            return Err("belongs elsewhere");
        }
        if bytes.get(seal.uuid_at..seal.uuid_at + 16) != Some(&self.superblock.metadata_uuid) {
            return Err("belongs to another file system");
        }
        Ok(())
    }
}
