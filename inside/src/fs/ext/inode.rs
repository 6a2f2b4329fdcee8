//! Inodes: `struct ext4_inode` of fs/ext4/ext4.h.

use std::ops::Range;
use std::sync::Arc;

use jiff::Timestamp;

use super::checksum::{crc32c, crc32c_without};
use super::ranges::Ranges;
use super::superblock::{INCOMPAT_LARGEDIR, OLD_INODE_BYTES};
use super::volume::Volume;
use crate::device::{le16, le32};
use crate::error::{Error, Result};
use crate::fs::{FileKind, Stat};

/// The inode of the top directory (`EXT4_ROOT_INO`).
pub(super) const ROOT: u32 = 2;

pub(super) const FLAG_ENCRYPT: u32 = 0x800;
pub(super) const FLAG_INDEX: u32 = 0x1000;
pub(super) const FLAG_EXTENTS: u32 = 0x8_0000;
pub(super) const FLAG_EA_INODE: u32 = 0x20_0000;
pub(super) const FLAG_INLINE_DATA: u32 = 0x1000_0000;
pub(super) const FLAG_CASEFOLD: u32 = 0x4000_0000;

const CHECKSUM_LOW: Range<usize> = 0x7c..0x7e;
const CHECKSUM_HIGH: Range<usize> = 0x82..0x84;
const BLOCK_MAP: Range<usize> = 0x28..0x64;
/// Offset of a number that every new inode gets at random.
const GENERATION: usize = 0x64;

/// An inode whose checksum matches.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub number: u32,
    pub kind: FileKind,
    pub flags: u32,
    pub size_bytes: u64,
    /// Seed of the checksums of its blocks.
    pub seed: u32,
    /// Blocks that are others than those of the map.
    pub ranges: Option<Arc<Ranges>>,
    bytes: Box<[u8]>,
}

impl Inode {
    /// Reads an inode to which a directory or a caller refers.
    pub fn read(volume: &Volume, number: u32) -> Result<Self> {
        if number != ROOT && number < volume.superblock.first_inode {
            return Err(Error::damaged(format!("inode {number}: reserved")));
        }
        let inode = Self::read_any(volume, number)?;
        if le16(&inode.bytes, 0x1a) == 0 || inode.flags & FLAG_EA_INODE != 0 {
            return Err(inode.damaged("not in use"));
        }
        Ok(inode)
    }

    /// Reads an inode that may be one of the file system's own.
    pub fn read_any(volume: &Volume, number: u32) -> Result<Self> {
        let (block, at) = volume.inode_position(number)?;
        let mut bytes = vec![0; volume.superblock.inode_bytes].into_boxed_slice();
        volume.metadata(block, at, &mut bytes)?;
        let damaged = |what| Error::damaged(format!("inode {number}: {what}"));
        let mut seed = volume.inode_seed(number, le32(&bytes, GENERATION));
        let is_intact = !volume.superblock.has_checksums() || crate::proven(checksum_holds(seed, &bytes));
        let changed = volume.fast_commits.inode(number);
        match changed.and_then(|changed| changed.record.as_deref()) {
            // The inode below may be an older one, or never have been written.
            Some(record) if le32(record, GENERATION) != le32(&bytes, GENERATION) => {
                bytes.fill(0);
                lay_over(&mut bytes, record);
                seed = volume.inode_seed(number, le32(&bytes, GENERATION));
            }
            _ if !is_intact => return Err(damaged("wrong checksum")),
            Some(record) => lay_over(&mut bytes, record),
            None => {}
        }
        if bytes.len() > OLD_INODE_BYTES {
            let extra_bytes = usize::from(le16(&bytes, 0x80));
            if extra_bytes % 4 != 0 || OLD_INODE_BYTES + extra_bytes > bytes.len() {
                return Err(damaged("invalid length of the extra fields"));
            }
        }
        let kind = match le16(&bytes, 0) >> 12 {
            0x1 => FileKind::Fifo,
            0x2 => FileKind::CharDevice,
            0x4 => FileKind::Directory,
            0x6 => FileKind::BlockDevice,
            0x8 => FileKind::File,
            0xa => FileKind::Link,
            0xc => FileKind::Socket,
            0 => return Err(damaged("not in use")),
            _ => return Err(damaged("unknown type")),
        };
        // ext4_isize: the high half is another field in other inodes.
        let has_high_size = kind == FileKind::File || volume.superblock.has_incompat(INCOMPAT_LARGEDIR);
        let high = if has_high_size { le32(&bytes, 0x6c) } else { 0 };
        let size_bytes = u64::from(le32(&bytes, 4)) | u64::from(high) << 32;
        if i64::try_from(size_bytes).is_err() {
            return Err(damaged("negative length"));
        }
        Ok(Self {
            number,
            kind,
            flags: le32(&bytes, 0x20),
            size_bytes,
            seed,
            ranges: changed.map(|changed| Arc::clone(&changed.ranges)),
            bytes,
        })
    }

    /// Makes the inode of a journal from the copy of its block map in the superblock.
    pub fn of_journal(volume: &Volume, number: u32, map: &[u8; 68]) -> Self {
        let mut bytes = vec![0; OLD_INODE_BYTES].into_boxed_slice();
        bytes[BLOCK_MAP].copy_from_slice(&map[..60]);
        Self {
            number,
            kind: FileKind::File,
            flags: if map.starts_with(&[0x0a, 0xf3]) {
                FLAG_EXTENTS
            } else {
                0
            },
            size_bytes: u64::from(le32(map, 60)) << 32 | u64::from(le32(map, 64)),
            seed: volume.inode_seed(number, 0),
            ranges: None,
            bytes,
        }
    }

    /// Makes an error about this inode.
    pub fn damaged(&self, what: impl std::fmt::Display) -> Error {
        Error::damaged(format!("inode {}: {what}", self.number))
    }

    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Returns the 60 bytes that hold block numbers, the root of the extent tree, a device number or content.
    pub fn map(&self) -> &[u8] {
        &self.bytes[BLOCK_MAP]
    }

    /// Returns the block of extended attributes; 0 if there is none.
    pub fn xattr_block(&self) -> u64 {
        u64::from(le32(&self.bytes, 0x68)) | u64::from(le16(&self.bytes, 0x76)) << 32
    }

    /// Returns the bytes after the fields, where extended attributes may lie.
    pub fn body(&self) -> &[u8] {
        let fields = match self.bytes.len() > OLD_INODE_BYTES {
            true => OLD_INODE_BYTES + usize::from(le16(&self.bytes, 0x80)),
            false => OLD_INODE_BYTES,
        };
        // A length of 0 was written by kernels that did not use these bytes.
        let body = if fields == OLD_INODE_BYTES {
            None
        } else {
            self.bytes.get(fields..)
        };
        body.unwrap_or_default()
    }

    /// Returns an extra field, if the inode is long enough to have it (`EXT4_FITS_IN_INODE`).
    fn extra(&self, at: usize) -> Option<u32> {
        let has_extra = self.bytes.len() > OLD_INODE_BYTES;
        let end = OLD_INODE_BYTES
            + if has_extra {
                usize::from(le16(&self.bytes, 0x80))
            } else {
                0
            };
        (at + 4 <= end && end <= self.bytes.len()).then(|| le32(&self.bytes, at))
    }

    /// Returns a time: 32 signed bits, two more for the years after 2038, and nanoseconds (`ext4_decode_extra_time`).
    fn time(&self, at: usize, extra_at: usize) -> Timestamp {
        let extra = self.extra(extra_at).unwrap_or(0);
        let seconds = i64::from(le32(&self.bytes, at) as i32) + (i64::from(extra & 3) << 32);
        let nanoseconds = ((extra >> 2) as i32).clamp(0, 999_999_999);
        Timestamp::new(seconds, nanoseconds).unwrap_or_default()
    }

    /// Returns the attributes.
    pub fn stat(&self) -> Stat {
        let half = |low, high| u32::from(le16(&self.bytes, low)) | u32::from(le16(&self.bytes, high)) << 16;
        let is_device = matches!(self.kind, FileKind::CharDevice | FileKind::BlockDevice);
        Stat {
            kind: self.kind,
            mode: le16(&self.bytes, 0) & 0o7777,
            uid: half(0x2, 0x78),
            gid: half(0x18, 0x7a),
            links: u32::from(le16(&self.bytes, 0x1a)).max(1),
            size_bytes: self.size_bytes,
            device: if is_device { self.device() } else { (0, 0) },
            modified: self.time(0x10, 0x88),
            changed: self.time(0xc, 0x84),
            accessed: self.time(0x8, 0x8c),
        }
    }

    /// Returns the device number: of 16 bits in the first word, else of 32 bits in the second (`old_decode_dev`,
    /// `new_decode_dev` of linux/kdev_t.h).
    fn device(&self) -> (u32, u32) {
        let (old, new) = (le32(self.map(), 0), le32(self.map(), 4));
        match old {
            0 => ((new >> 8) & 0xfff, (new & 0xff) | ((new >> 12) & 0xf_ff00)),
            old => ((old >> 8) & 0xff, old & 0xff),
        }
    }
}

/// Lays the record of a fast commit over an inode (`ext4_fc_replay_inode`). Blocks have records of their own, so that the
/// map stays, unless the record has no map but the content, the target of a short link or the number of a device. Only a
/// map stays: content that lay in the inode would make block numbers that its writer has chosen.
fn lay_over(inode: &mut [u8], record: &[u8]) {
    let format = |inode: &[u8]| {
        (
            le16(inode, 0) >> 12,
            le32(inode, 0x20) & (FLAG_EXTENTS | FLAG_INLINE_DATA),
        )
    };
    let (kind, flags) = format(record);
    let has_map = flags & FLAG_INLINE_DATA == 0 && (matches!(kind, 0x4 | 0x8) || flags & FLAG_EXTENTS != 0);
    let mut map = [0; BLOCK_MAP.end - BLOCK_MAP.start];
    if format(inode) == (kind, flags) {
        map.copy_from_slice(&inode[BLOCK_MAP]);
    }
    if flags & FLAG_EXTENTS != 0 && !map.starts_with(&[0x0a, 0xf3]) {
        // The root of an empty tree, with space for four extents.
        map[..12].copy_from_slice(&[0x0a, 0xf3, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    }
    // The journal may hold a superblock with shorter inodes.
    let length = record.len().min(inode.len());
    inode[..length].copy_from_slice(&record[..length]);
    if has_map {
        inode[BLOCK_MAP].copy_from_slice(&map);
    }
}

/// `ext4_inode_csum_verify`: inodes without the high half have 16 bits of checksum.
fn checksum_holds(seed: u32, bytes: &[u8]) -> bool {
    let low = u32::from(le16(bytes, CHECKSUM_LOW.start));
    let old = bytes.get(..OLD_INODE_BYTES).unwrap_or_default();
    let more = bytes.get(OLD_INODE_BYTES..).unwrap_or_default();
    let checksum = crc32c_without(seed, old, CHECKSUM_LOW);
    if bytes.len() == OLD_INODE_BYTES {
        return checksum & 0xffff == low;
    }
    if le16(bytes, 0x80) < 4 {
        return crc32c(checksum, more) & 0xffff == low;
    }
    let high = u32::from(le16(bytes, CHECKSUM_HIGH.start)) << 16;
    let field = CHECKSUM_HIGH.start - OLD_INODE_BYTES..CHECKSUM_HIGH.end - OLD_INODE_BYTES;
    crc32c_without(checksum, more, field) == low | high
}
