//! Thin pools: volumes whose blocks are mapped by B-trees in the pool's metadata (drivers/md/dm-thin-metadata.c,
//! drivers/md/persistent-data/dm-btree*). The space maps are not needed to read.

mod tree;

use std::io;
use std::sync::Arc;

use super::crc;
use super::map::check;
use crate::device::{Device, SharedDevice, le32, le64, read_array};
use crate::error::{Error, Result};
use tree::{BLOCK_BYTES, Tree};

/// `THIN_SUPERBLOCK_MAGIC`.
const MAGIC: u64 = 27_022_010;
/// `SUPERBLOCK_CSUM_XOR`.
const SUPERBLOCK_XOR: u32 = 160_774;
/// `THIN_METADATA_NEEDS_CHECK_FLAG`.
const NEEDS_CHECK: u32 = 1;
/// Smallest and largest block of data, in sectors (`DATA_DEV_BLOCK_SIZE_*_SECTORS`, drivers/md/dm-thin.c).
const BLOCK_SECTORS: std::ops::RangeInclusive<u64> = 128..=(1 << 21);
/// Lengths of values in the trees: a block number, and `struct disk_device_details`.
const POINTER_BYTES: usize = 8;
const DETAILS_BYTES: usize = 24;

/// Leaves that a search for a hole reads, 64 MiB: two million blocks that are all mapped. What comes after them counts
/// as data.
const MAX_LEAVES: usize = 1 << 14;

/// A pool whose superblock is valid.
pub(super) struct Pool {
    tree: Tree,
    data: SharedDevice,
    mapping_root: u64,
    details_root: u64,
    /// Length of a data block.
    pub(super) block_bytes: u64,
    /// Number of the last change that LVM made.
    pub(super) transaction: u64,
    /// The kernel found the metadata damaged, and has not changed them since.
    pub(super) needs_check: bool,
}

impl Pool {
    pub(super) fn open(metadata: SharedDevice, data: SharedDevice) -> Result<Self> {
        let Some(sb) = read_array::<{ BLOCK_BYTES as usize }>(metadata.as_ref(), 0)? else {
            return Err(Error::damaged("metadata of the thin pool are too short"));
        };
        let sum_holds = crc::persistent_data(&sb[4..], SUPERBLOCK_XOR) == le32(&sb, 0);
        if le64(&sb, 32) != MAGIC || le64(&sb, 8) != 0 || !crate::proven(sum_holds) {
            return Err(Error::damaged("superblock of the thin pool"));
        }
        let (version, incompatible) = (le32(&sb, 40), le32(&sb, 360));
        if !(1..=2).contains(&version) || incompatible != 0 {
            return Err(Error::unsupported("thin pool of an unknown version"));
        }
        let (block_sectors, metadata_sectors) = (u64::from(le32(&sb, 336)), le32(&sb, 340));
        // thin_restore writes the block size of the metadata in sectors, the kernel in bytes.
        if !BLOCK_SECTORS.contains(&block_sectors) || !matches!(metadata_sectors, 8 | 4096) {
            return Err(Error::damaged("block size of the thin pool"));
        }
        Ok(Self {
            tree: Tree::new(metadata, le64(&sb, 344)),
            data,
            mapping_root: le64(&sb, 320),
            details_root: le64(&sb, 328),
            block_bytes: block_sectors * 512,
            transaction: le64(&sb, 48),
            needs_check: le32(&sb, 4) & NEEDS_CHECK != 0,
        })
    }
}

/// A volume of a pool.
pub(super) struct Thin {
    pool: Arc<Pool>,
    root: u64,
    size_bytes: u64,
    /// Volume outside of the pool that has the bytes of unmapped blocks.
    origin: Option<SharedDevice>,
}

impl Thin {
    /// Opens a volume by its number in the pool; `Error::NotFound` if the pool has none of that number.
    pub(super) fn open(pool: Arc<Pool>, device: u64, size_bytes: u64, origin: Option<SharedDevice>) -> Result<Self> {
        pool.tree
            .value(pool.details_root, device, DETAILS_BYTES)?
            .ok_or(Error::NotFound)?;
        let root = pool.tree.value(pool.mapping_root, device, POINTER_BYTES)?;
        Ok(Self {
            root: root.ok_or(Error::NotFound)?,
            pool,
            size_bytes,
            origin,
        })
    }

    /// Returns the first run of mapped blocks at or after `block`.
    fn run(&self, block: u64) -> io::Result<Option<Run>> {
        Ok(self.pool.tree.run(self.root, block, POINTER_BYTES)?)
    }

    /// Reads unmapped bytes: those of the origin as far as it reaches, else zeros.
    fn read_unmapped(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let known = self
            .origin
            .as_ref()
            .map_or(0, |origin| origin.size_bytes().saturating_sub(at));
        let (piece, zeros) = buf.split_at_mut(known.min(buf.len() as u64) as usize);
        zeros.fill(0);
        match &self.origin {
            Some(origin) if !piece.is_empty() => origin.read_at(at, piece),
            _ => Ok(()),
        }
    }
}

/// Consecutive blocks of a volume whose data are consecutive too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First block of the volume.
    pub(super) block: u64,
    /// First block of the pool's data.
    pub(super) data: u64,
    /// Number of blocks; at least 1.
    pub(super) count: u64,
}

impl Device for Thin {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        check(offset_bytes, buf.len(), self.size_bytes)?;
        let block_bytes = self.pool.block_bytes;
        let (mut at, mut rest) = (offset_bytes, buf);
        while !rest.is_empty() {
            let block = at / block_bytes;
            let run = self.run(block)?;
            let (mapped, end_block) = match run {
                Some(run) if run.block == block => (Some(run.data), block.saturating_add(run.count)),
                Some(run) => (None, run.block),
                None => (None, u64::MAX),
            };
            let len = end_block.saturating_mul(block_bytes) - at;
            let (piece, others) = rest.split_at_mut(len.min(rest.len() as u64) as usize);
            match mapped {
                Some(data) => {
                    let start = data
                        .checked_mul(block_bytes)
                        .and_then(|start| start.checked_add(at % block_bytes));
                    let start = start.ok_or(io::ErrorKind::InvalidData)?;
                    check(start, piece.len(), self.pool.data.size_bytes())?;
                    self.pool.data.read_at(start, piece)?;
                }
                None => self.read_unmapped(at, piece)?,
            }
            at += piece.len() as u64;
            rest = others;
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        if offset_bytes >= self.size_bytes {
            return Ok(None);
        }
        if self.origin.is_some() {
            return Ok(Some(offset_bytes));
        }
        let block = offset_bytes / self.pool.block_bytes;
        let run = self.run(block)?;
        // In a damaged tree, another leaf than that which has a block may be in charge of it: its reader would find a hole.
        if let Some(run) = run.filter(|run| run.block != block)
            && self.pool.tree.value(self.root, run.block, POINTER_BYTES)?.is_none()
        {
            return Err(Error::damaged(format!("mapping of block {} of the thin volume", run.block)).into());
        }
        let found = run.map(|run| run.block.saturating_mul(self.pool.block_bytes).max(offset_bytes));
        Ok(found.filter(|found| *found < self.size_bytes))
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        if offset_bytes >= self.size_bytes || self.origin.is_some() {
            return Ok(offset_bytes.max(self.size_bytes));
        }
        let block = offset_bytes / self.pool.block_bytes;
        let gap = self.pool.tree.gap(self.root, block, POINTER_BYTES, MAX_LEAVES)?;
        let found = gap.map_or(u64::MAX, |block| block.saturating_mul(self.pool.block_bytes));
        Ok(found.clamp(offset_bytes, self.size_bytes))
    }
}
