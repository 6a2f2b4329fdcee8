//! Items of transactions, applied to the blocks that they changed (fs/xfs/xfs_buf_item_recover.c,
//! xfs_inode_item_recover.c, xfs_icreate_item.c). Only what reading needs: quotas, lists of deleted inodes and the
//! accounting of space stay as they are.

use std::collections::{BTreeMap, HashSet};

use crate::device::{Device, be16, be32, be64, le16, le32, le64};

use super::super::checksum::set_crc;
use super::super::superblock::Superblock;
use super::overlay::Overlay;
use super::transactions::{Item, Transaction};
use super::{BASIC_BLOCK_BYTES, LogResult};

mod inodes;

// Kinds of items (`XFS_LI_*`).
const INODE: u16 = 0x123b;
const BUFFER: u16 = 0x123c;
const DQUOT: u16 = 0x123d;
const QUOTA_OFF: u16 = 0x123e;
const INODE_CREATE: u16 = 0x123f;

/// Bound of the cancelled buffers and of the unfinished operations that are remembered.
const MAX_REMEMBERED: usize = 1 << 20;

/// Unit of a buffer's map of changes (`XFS_BLF_CHUNK`).
const CHUNK_BYTES: usize = 128;
/// Longest buffer: a directory block or a cluster of inodes has 64 KiB at most.
const MAX_BUFFER_BLOCKS: u16 = 256;

// `blf_flags`.
const INODE_BUFFER: u16 = 1;
const CANCEL: u16 = 2;
const QUOTA_BUFFERS: u16 = 4 | 8 | 16;

/// Types of buffers, the upper five bits of `blf_flags`, that no reader looks at: quotas, headers of allocation groups,
/// free space of directories, and the maps of the realtime device (`enum xfs_blft`).
const UNREAD_TYPES: [u16; 9] = [1, 2, 3, 5, 6, 7, 12, 19, 20];

/// The state of a replay.
pub(in crate::fs::xfs) struct Replay<'a> {
    pub superblock: &'a Superblock,
    pub overlay: Overlay,
    /// Buffers that were freed, by first block and length, with the number of times that this is still to come.
    cancelled: BTreeMap<(u64, u16), u32>,
    /// Blocks and inodes that this replay wrote. What it wrote is older than all that follows in the log; what it did
    /// not write may be newer, and then its sequence number says so.
    pub written: HashSet<u64>,
    /// Announced operations without the item that ends them: kind and number.
    unfinished: HashSet<(u16, u64)>,
    pub transactions: u64,
}

impl<'a> Replay<'a> {
    pub fn new(superblock: &'a Superblock, overlay: Overlay) -> Self {
        Self {
            superblock,
            overlay,
            cancelled: BTreeMap::new(),
            written: HashSet::new(),
            unfinished: HashSet::new(),
            transactions: 0,
        }
    }

    /// Returns the number of operations that the log announces and does not end.
    pub fn unfinished(&self) -> usize {
        self.unfinished.len()
    }

    /// Remembers what a transaction cancels. To be called for all of them before [`Self::apply`].
    pub fn note(&mut self, transaction: &Transaction) -> LogResult<()> {
        for item in &transaction.items {
            if item.kind() == BUFFER {
                let buffer = Buffer::parse(item)?;
                if buffer.flags & CANCEL != 0 {
                    *self.cancelled.entry((buffer.block, buffer.blocks)).or_default() += 1;
                }
            }
        }
        match self.cancelled.len() > MAX_REMEMBERED {
            true => Err("it frees too many blocks".into()),
            false => Ok(()),
        }
    }

    /// Tests for a cancelled buffer that the replay must leave as it is.
    pub fn is_cancelled(&self, block: u64, blocks: u16) -> bool {
        self.cancelled.contains_key(&(block, blocks))
    }

    /// Tests for any cancelled buffer that starts in a range of basic blocks.
    fn has_cancelled(&self, start: u64, end: u64) -> bool {
        self.cancelled.range((start, 0)..(end, 0)).next().is_some()
    }

    /// Applies a transaction: buffers, then inodes, then cancellations (`xlog_recover_reorder_trans`).
    pub fn apply(&mut self, transaction: &Transaction) -> LogResult<()> {
        self.transactions += 1;
        let mut later = Vec::new();
        let mut cancellations = Vec::new();
        for item in &transaction.items {
            match item.kind() {
                BUFFER => {
                    let buffer = Buffer::parse(item)?;
                    match buffer.flags & CANCEL != 0 {
                        true => cancellations.push(buffer),
                        false => self.buffer(&buffer, item, transaction.lsn)?,
                    }
                }
                INODE_CREATE => self.create_inodes(item.description())?,
                _ => later.push(item),
            }
        }
        for item in later {
            match item.kind() {
                INODE => inodes::apply(self, item, transaction.lsn)?,
                DQUOT | QUOTA_OFF => {}
                kind => self.intent(kind, item.description())?,
            }
        }
        for buffer in cancellations {
            let key = (buffer.block, buffer.blocks);
            if let Some(count) = self.cancelled.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.cancelled.remove(&key);
                }
            }
        }
        Ok(())
    }

    /// Remembers an announced operation, or forgets it at its end. The kinds come in pairs, the end after the
    /// announcement; all have their number at the same offset.
    fn intent(&mut self, kind: u16, description: &[u8]) -> LogResult<()> {
        let number = description.get(8..16).ok_or("an item is cut off")?;
        let number = le64(number, 0);
        match kind {
            // EFI, RUI, CUI, BUI, ATTRI, XMI, and those of the realtime device.
            0x1236 | 0x1240 | 0x1242 | 0x1244 | 0x1246 | 0x1248 | 0x124a | 0x124c | 0x124e => {
                self.unfinished.insert((kind, number));
            }
            0x1237 | 0x1241 | 0x1243 | 0x1245 | 0x1247 | 0x1249 | 0x124b | 0x124d | 0x124f => {
                self.unfinished.remove(&(kind - 1, number));
            }
            _ => {
                return Err(super::Refusal::Because(format!(
                    "an item is of the unknown kind {kind:#x}"
                )));
            }
        }
        match self.unfinished.len() > MAX_REMEMBERED {
            true => Err("it has too many unfinished operations".into()),
            false => Ok(()),
        }
    }

    /// Reads basic blocks with the changes up to now.
    pub fn read(&self, block: u64, blocks: u64) -> LogResult<Vec<u8>> {
        let start = block.checked_mul(BASIC_BLOCK_BYTES as u64);
        let len = blocks * BASIC_BLOCK_BYTES as u64;
        let end = start.and_then(|start| start.checked_add(len));
        let inside = end.is_some_and(|end| end <= self.overlay.size_bytes());
        let start = start
            .filter(|_| inside)
            .ok_or("an item names a block outside of the device")?;
        let mut bytes = vec![0; len as usize];
        self.overlay.read_at(start, &mut bytes)?;
        Ok(bytes)
    }

    fn buffer(&mut self, buffer: &Buffer, item: &Item, lsn: u64) -> LogResult<()> {
        let is_unread = UNREAD_TYPES.contains(&(buffer.flags >> 11)) || buffer.flags & QUOTA_BUFFERS != 0;
        // Of buffers of inodes, only the lists of deleted inodes are replayed.
        if is_unread || buffer.flags & INODE_BUFFER != 0 || self.is_cancelled(buffer.block, buffer.blocks) {
            return Ok(());
        }
        let mut bytes = self.read(buffer.block, buffer.blocks.into())?;
        if !self.written.contains(&buffer.block)
            && let Some(found) = self.lsn_of(&bytes)
            && found >= lsn
        {
            return Ok(());
        }
        let mut regions = 1;
        let mut chunk = 0;
        while let Some(run) = buffer.run(chunk) {
            let region = item.region(regions).ok_or("a buffer has fewer regions than its map")?;
            // A run may be logged as two regions, where the buffer crosses a page.
            let len = (run.len() * CHUNK_BYTES).min(region.len() / CHUNK_BYTES * CHUNK_BYTES);
            let target = bytes.get_mut(run.start * CHUNK_BYTES..run.start * CHUNK_BYTES + len);
            let target = target.filter(|_| len > 0).ok_or("a buffer's change is outside of it")?;
            target.copy_from_slice(&region[..len]);
            chunk = run.start + len / CHUNK_BYTES;
            regions += 1;
        }
        seal(self.superblock, &mut bytes);
        self.write(buffer.block, &bytes)
    }

    /// Replaces basic blocks.
    pub fn write(&mut self, block: u64, bytes: &[u8]) -> LogResult<()> {
        self.written.insert(block);
        self.overlay.replace(block, bytes)
    }

    /// Returns the sequence number of a block on disk, if it has one and is of this file system
    /// (`xlog_recover_get_buf_lsn`).
    fn lsn_of(&self, bytes: &[u8]) -> Option<u64> {
        if !self.superblock.has_checksums {
            return None;
        }
        let (lsn_at, uuid_at) = match (bytes.first_chunk::<4>()?, be16(bytes, 8)) {
            (b"AB3B" | b"AB3C" | b"IAB3" | b"FIB3" | b"RMB3" | b"R3FC", _) => (24, 32),
            (b"BMA3", _) => (32, 40),
            (b"XDB3" | b"XDD3" | b"XDF3", _) => (16, 24),
            (b"XSLM", _) => (48, 16),
            (b"XFSB", _) => (
                240,
                if self.superblock.uuid == self.superblock.metadata_uuid {
                    32
                } else {
                    248
                },
            ),
            (_, 0x3df1 | 0x3dff | 0x3ebe | 0x3bee) => (24, 32),
            _ => return None,
        };
        let lsn = be64(bytes, lsn_at);
        let is_ours = bytes[uuid_at..uuid_at + 16] == self.superblock.metadata_uuid;
        Some(lsn).filter(|lsn| is_ours && *lsn != 0 && *lsn != u64::MAX)
    }

    /// Makes the empty inodes of a new chunk (`struct xfs_icreate_log`, `xfs_ialloc_inode_init`).
    fn create_inodes(&mut self, description: &[u8]) -> LogResult<()> {
        let fields = description.get(..28).ok_or("an item is cut off")?;
        let superblock = self.superblock;
        let (group, block, count) = (be32(fields, 4), be32(fields, 8), be32(fields, 12));
        let (inode_bytes, blocks, generation) = (be32(fields, 16), be32(fields, 20), be32(fields, 24));
        let (group, block, blocks) = (u64::from(group), u64::from(block), u64::from(blocks));
        let room = u64::from(count) << (superblock.inode_bytes.ilog2());
        if group >= superblock.groups
            || block + blocks > superblock.group_blocks
            || inode_bytes as usize != superblock.inode_bytes
            || room != blocks << superblock.block_log
            // 64 inodes a chunk; the longest are of 2 KiB, and a block of 64 KiB holds more than a chunk.
            || room > 512 << 10
        {
            return Err("new inodes are outside of their group".into());
        }
        let first = (group * superblock.group_blocks + block) << (superblock.block_log - 9);
        let end = first + (blocks << (superblock.block_log - 9));
        if self.has_cancelled(first, end) {
            return Ok(());
        }
        let mut bytes = vec![0; room as usize];
        let number = (group << superblock.group_log | block) << superblock.inodes_per_block_log;
        for (number, inode) in (number..).zip(bytes.chunks_exact_mut(superblock.inode_bytes)) {
            inodes::make_empty(superblock, inode, number, generation);
        }
        self.write(first, &bytes)?;
        self.written.extend(first..end);
        Ok(())
    }
}

/// Computes the checksum of a block, of the kinds that the reader will verify.
pub(in crate::fs::xfs) fn seal(superblock: &Superblock, bytes: &mut [u8]) {
    if !superblock.has_checksums {
        return;
    }
    let crc_at = match (&bytes[..4], be16(bytes, 8)) {
        (b"BMA3", _) => 64,
        (b"XDB3" | b"XDD3" | b"XDF3", _) => 4,
        (b"XSLM" | b"XARM", _) => 12,
        (b"XFSB", _) => 224,
        ([b'I', b'N', ..], _) => {
            for inode in bytes.chunks_exact_mut(superblock.inode_bytes) {
                set_crc(inode, super::super::inode::CRC_AT);
            }
            return;
        }
        (_, 0x3df1 | 0x3dff | 0x3ebe | 0x3bee) => 12,
        _ => return,
    };
    set_crc(bytes, crc_at);
}

/// Description of a changed buffer (`struct xfs_buf_log_format`).
struct Buffer {
    flags: u16,
    /// First basic block.
    block: u64,
    /// Number of basic blocks.
    blocks: u16,
    /// A bit for each changed chunk.
    map: Vec<u8>,
}

impl Buffer {
    fn parse(item: &Item) -> LogResult<Self> {
        let (head, rest) = item
            .description()
            .split_first_chunk::<20>()
            .ok_or("an item is cut off")?;
        let words = le32(head, 16) as usize;
        let map = words.checked_mul(4).and_then(|len| rest.get(..len));
        let buffer = Self {
            flags: le16(head, 4),
            block: le64(head, 8),
            blocks: le16(head, 6),
            map: map.ok_or("a buffer's map is cut off")?.to_vec(),
        };
        match buffer.blocks {
            1..=MAX_BUFFER_BLOCKS => Ok(buffer),
            _ => Err("a buffer has an invalid length".into()),
        }
    }

    fn is_set(&self, chunk: usize) -> bool {
        self.map.get(chunk / 8).is_some_and(|byte| byte >> (chunk % 8) & 1 != 0)
    }

    /// Returns the next run of changed chunks.
    fn run(&self, from: usize) -> Option<std::ops::Range<usize>> {
        let end = self.map.len() * 8;
        let start = (from..end).find(|chunk| self.is_set(*chunk))?;
        let stop = (start..end).find(|chunk| !self.is_set(*chunk)).unwrap_or(end);
        Some(start..stop)
    }
}
