//! Inodes: attributes, and the forks in which content, directories, links and attributes begin.
//!
//! Offsets are those of `struct xfs_dinode` (libxfs/xfs_format.h).

use jiff::Timestamp;

use crate::device::{be16, be32, be64};
use crate::error::{Error, Result};
use crate::fs::{FileKind, Stat};

use super::checksum::crc_holds;
use super::extents::{Extent, Fork};
use super::volume::Volume;

/// Length of the core of inodes of versions 1 and 2 (`offsetof(xfs_dinode, di_crc)`).
pub(super) const CORE_BYTES: usize = 100;
/// Length of the core of inodes of version 3.
pub(super) const CORE3_BYTES: usize = 176;
/// Offset of the checksum of inodes of version 3.
pub(super) const CRC_AT: usize = 100;

/// `XFS_DIFLAG_REALTIME`.
const FLAG_REALTIME: u16 = 1;
// `di_flags2`.
const FLAG2_BIGTIME: u64 = 1 << 3;
const FLAG2_LARGE_COUNTS: u64 = 1 << 4;
/// Seconds from which bigtime counts nanoseconds, before the epoch (`XFS_BIGTIME_EPOCH_OFFSET`).
const BIGTIME_EPOCH_SECONDS: i64 = 1 << 31;

/// `enum xfs_dinode_fmt`.
mod format {
    pub const LOCAL: u8 = 1;
    pub const EXTENTS: u8 = 2;
    pub const BTREE: u8 = 3;
}

/// An inode in use.
pub(super) struct Inode {
    pub number: u64,
    pub stat: Stat,
    pub is_realtime: bool,
    bytes: Vec<u8>,
    core_bytes: usize,
    has_large_counts: bool,
}

impl Inode {
    /// Reads an inode.
    pub fn read(volume: &Volume, number: u64) -> Result<Self> {
        let superblock = &volume.superblock;
        let bad = |what: &str| Error::damaged(format!("inode {number}: {what}"));
        let block = number >> superblock.inodes_per_block_log;
        let slot = number & ((1 << superblock.inodes_per_block_log) - 1);
        let offset_bytes = volume.offset_of(block, 1).ok_or_else(|| bad("no such block"))?;
        let bytes = volume.read(
            offset_bytes + slot * superblock.inode_bytes as u64,
            superblock.inode_bytes,
        )?;
        Self::parse(volume, number, bytes)
    }

    fn parse(volume: &Volume, number: u64, bytes: Vec<u8>) -> Result<Self> {
        let superblock = &volume.superblock;
        let bad = |what: &str| Error::damaged(format!("inode {number}: {what}"));
        if bytes.len() < CORE3_BYTES || bytes[..2] != *b"IN" {
            return Err(bad("no magic number"));
        }
        let version = bytes[4];
        let core_bytes = match (superblock.has_checksums, version) {
            (true, 3) => CORE3_BYTES,
            (false, 1 | 2) => CORE_BYTES,
            _ => return Err(bad("invalid version")),
        };
        let mut flags2 = 0;
        if version == 3 {
            if !crc_holds(&bytes, CRC_AT) {
                return Err(bad("checksum does not match"));
            }
            if be64(&bytes, 152) != number || bytes[160..176] != superblock.metadata_uuid {
                return Err(bad("belongs elsewhere"));
            }
            flags2 = be64(&bytes, 120);
        }
        let mode = be16(&bytes, 2);
        if mode == 0 {
            return Err(bad("not in use"));
        }
        let kind = match mode & 0o170_000 {
            0o010_000 => FileKind::Fifo,
            0o020_000 => FileKind::CharDevice,
            0o040_000 => FileKind::Directory,
            0o060_000 => FileKind::BlockDevice,
            0o100_000 => FileKind::File,
            0o120_000 => FileKind::Link,
            0o140_000 => FileKind::Socket,
            _ => return Err(bad("unknown kind")),
        };
        let has_bigtime = flags2 & FLAG2_BIGTIME != 0;
        let time = |at| timestamp(be64(&bytes, at), has_bigtime).ok_or_else(|| bad("invalid time"));
        let size_bytes = be64(&bytes, 56);
        if size_bytes > i64::MAX as u64 {
            return Err(bad("invalid size"));
        }
        let links = match version {
            1 => be16(&bytes, 6).into(),
            _ => be32(&bytes, 16),
        };
        let device = match kind {
            FileKind::CharDevice | FileKind::BlockDevice => {
                let device = be32(&bytes, core_bytes);
                // sysv_encode_dev (linux/kdev_t.h).
                (device >> 18, device & 0x3_ffff)
            }
            _ => (0, 0),
        };
        let stat = Stat {
            kind,
            mode: mode & 0o7777,
            uid: be32(&bytes, 8),
            gid: be32(&bytes, 12),
            links: links.max(1),
            size_bytes: match kind {
                FileKind::File | FileKind::Directory | FileKind::Link => size_bytes,
                _ => 0,
            },
            device,
            accessed: time(32)?,
            modified: time(40)?,
            changed: time(48)?,
        };
        Ok(Self {
            number,
            stat,
            is_realtime: kind == FileKind::File && be16(&bytes, 90) & FLAG_REALTIME != 0,
            core_bytes,
            has_large_counts: flags2 & FLAG2_LARGE_COUNTS != 0,
            bytes,
        })
    }

    fn bad(&self, what: &str) -> Error {
        Error::damaged(format!("inode {}: {what}", self.number))
    }

    /// Returns the offset of the attribute fork; `None` if there is none.
    fn attributes_at(&self) -> Result<Option<usize>> {
        match self.bytes[82] {
            0 => Ok(None),
            units => {
                let at = self.core_bytes + usize::from(units) * 8;
                if at >= self.bytes.len() {
                    return Err(self.bad("invalid offset of the attributes"));
                }
                Ok(Some(at))
            }
        }
    }

    /// Returns the fork of the content.
    pub fn data_fork(&self) -> Result<Fork> {
        let end = self.attributes_at()?.unwrap_or(self.bytes.len());
        let count = match self.has_large_counts {
            true => be64(&self.bytes, 24),
            false => be32(&self.bytes, 76).into(),
        };
        self.fork(&self.bytes[self.core_bytes..end], self.bytes[5], count)
    }

    /// Returns the fork of the extended attributes, if there is one.
    pub fn attribute_fork(&self) -> Result<Option<Fork>> {
        let Some(at) = self.attributes_at()? else {
            return Ok(None);
        };
        let count = match self.has_large_counts {
            true => be32(&self.bytes, 76).into(),
            false => be16(&self.bytes, 80).into(),
        };
        self.fork(&self.bytes[at..], self.bytes[83], count).map(Some)
    }

    fn fork(&self, bytes: &[u8], fork_format: u8, extent_count: u64) -> Result<Fork> {
        match fork_format {
            format::LOCAL => Ok(Fork::Local(bytes.to_vec())),
            format::EXTENTS => {
                let len = extent_count.checked_mul(16).and_then(|len| usize::try_from(len).ok());
                let records = len.and_then(|len| bytes.get(..len));
                let records = records.ok_or_else(|| self.bad("more extents than fit"))?;
                let extents = Extent::parse_all(records).map_err(|what| self.bad(what))?;
                Ok(Fork::Extents(extents))
            }
            format::BTREE => Ok(Fork::Tree(bytes.to_vec())),
            _ => Err(self.bad("unknown format of a fork")),
        }
    }
}

/// Converts a time (`xfs_inode_from_disk_ts`).
fn timestamp(stored: u64, has_bigtime: bool) -> Option<Timestamp> {
    if has_bigtime {
        let seconds = i64::try_from(stored / 1_000_000_000).ok()? - BIGTIME_EPOCH_SECONDS;
        return Timestamp::new(seconds, i32::try_from(stored % 1_000_000_000).ok()?).ok();
    }
    let seconds = (stored >> 32) as u32 as i32;
    let nanoseconds = (stored as u32).min(999_999_999);
    // The sum of both: jiff wants the same sign for both parts.
    let whole = Timestamp::from_second(seconds.into()).ok()?;
    whole
        .checked_add(jiff::SignedDuration::from_nanos(nanoseconds.into()))
        .ok()
}
