//! Superblock of XFS: geometry and features, from the primary or from a copy at the start of an allocation group.
//!
//! Offsets are those of `struct xfs_dsb`, the checks those of `xfs_validate_sb_common` that reading needs
//! (libxfs/xfs_format.h, libxfs/xfs_sb.c).

use crate::device::{Device, be16, be32, be64, read_inside};
use crate::error::{Error, Result};

use super::checksum::{crc_holds, uuid_text};

/// Shortest sector, and the part of a superblock that holds all its fields.
const SECTOR_BYTES: usize = 512;
/// Longest sector (`XFS_MAX_SECTORSIZE`).
const MAX_SECTOR_BYTES: u64 = 32768;
/// Offset of the checksum (`XFS_SB_CRC_OFF`).
const CRC_AT: usize = 224;
/// Bytes from the start that are searched for a copy if the primary is damaged and mkfs's usual group sizes find none:
/// a cloud image of 4 GiB has groups of 1 GiB.
const SEARCHED_BYTES: u64 = 1 << 30;
/// Length of a read of that search.
const SEARCH_STEP_BYTES: u64 = 1 << 20;
/// Copies lie at starts of blocks; blocks are nearly always of this length.
const USUAL_BLOCK_BYTES: u64 = 4096;
/// Numbers of allocation groups that mkfs.xfs chooses by default (`calc_default_ag_geometry`), most usual first.
const USUAL_GROUPS: [u64; 9] = [4, 16, 32, 2, 8, 5, 6, 3, 1];

// `sb_versionnum` and `sb_features2`.
const VERSION_MASK: u16 = 0xf;
const VERSION_DIR2: u16 = 0x2000;
const VERSION_MORE_BITS: u16 = 0x8000;
const FEATURES2_FTYPE: u32 = 0x200;
/// Lazy counters, attr2, parent (never used), 32-bit projects, CRC, ftype (`XFS_SB_VERSION2_OKBITS` and old bits).
const FEATURES2_KNOWN: u32 = 0x39b;

// `sb_features_incompat`.
const INCOMPAT_FTYPE: u32 = 1;
const INCOMPAT_META_UUID: u32 = 1 << 2;
const INCOMPAT_NEEDS_REPAIR: u32 = 1 << 4;
/// ftype, sparse inodes, metadata UUID, bigtime, needs repair, nrext64, exchange-range, parent pointers.
const INCOMPAT_KNOWN: u32 = 0xff;

/// Largest allocation group, in bytes (`XFS_MAX_AG_BYTES` is 1 TiB).
const MAX_GROUP_BYTES: u64 = 1 << 40;

/// Geometry and features of a file system.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub block_log: u8,
    pub directory_block_log: u8,
    pub inode_bytes: usize,
    pub inodes_per_block_log: u8,
    pub group_log: u8,
    pub group_blocks: u64,
    pub groups: u64,
    pub blocks: u64,
    pub root: u64,
    pub log_start: u64,
    pub log_blocks: u64,
    pub has_checksums: bool,
    pub has_file_types: bool,
    pub needs_repair: bool,
    pub uuid: [u8; 16],
    /// UUID that metadata bears; another than `uuid` after `xfs_admin -U`.
    pub metadata_uuid: [u8; 16],
    pub label: Vec<u8>,
}

/// A superblock and its origin.
pub(super) struct Found {
    pub superblock: Superblock,
    pub remark: Option<String>,
}

impl Superblock {
    /// Parses a superblock. `sector` starts at it and holds at least one sector of the file system.
    fn parse(sector: &[u8], device_bytes: u64) -> Result<Self> {
        let bad = |what: &str| Error::damaged(format!("superblock: {what}"));
        let head = sector.get(..SECTOR_BYTES).ok_or_else(|| bad("cut off"))?;
        if head[..4] != *b"XFSB" {
            return Err(bad("no magic number"));
        }
        let version_bits = be16(head, 100);
        let has_checksums = match version_bits & VERSION_MASK {
            4 => false,
            5 => true,
            1..4 => return Err(Error::unsupported("XFS of a version before 4")),
            version => return Err(Error::unsupported(format!("XFS of version {version}"))),
        };
        let sector_log = head[121];
        if !(9..=15).contains(&sector_log) || be16(head, 102) != 1 << sector_log {
            return Err(bad("invalid sector size"));
        }
        if has_checksums {
            let whole = sector.get(..1 << sector_log).ok_or_else(|| bad("cut off"))?;
            if !crc_holds(whole, CRC_AT) {
                return Err(bad("checksum does not match"));
            }
        }
        let features2 = be32(head, 200) | be32(head, 204);
        let more = if version_bits & VERSION_MORE_BITS != 0 {
            features2
        } else {
            0
        };
        let incompat = if has_checksums { be32(head, 216) } else { 0 };
        check_features(has_checksums, version_bits, more, incompat)?;
        let uuid = std::array::from_fn(|at| head[32 + at]);
        let superblock = Self {
            block_log: head[120],
            directory_block_log: head[192],
            inode_bytes: usize::from(be16(head, 104)),
            inodes_per_block_log: head[123],
            group_log: head[124],
            group_blocks: be32(head, 84).into(),
            groups: be32(head, 88).into(),
            blocks: be64(head, 8),
            root: be64(head, 56),
            log_start: be64(head, 48),
            log_blocks: be32(head, 96).into(),
            has_checksums,
            has_file_types: incompat & INCOMPAT_FTYPE != 0 || (!has_checksums && more & FEATURES2_FTYPE != 0),
            needs_repair: incompat & INCOMPAT_NEEDS_REPAIR != 0,
            uuid,
            metadata_uuid: if incompat & INCOMPAT_META_UUID != 0 {
                std::array::from_fn(|at| head[248 + at])
            } else {
                uuid
            },
            label: head[108..120]
                .split(|byte| *byte == 0)
                .next()
                .unwrap_or_default()
                .to_vec(),
        };
        let (inode_log, block_bytes) = (head[122], be32(head, 4));
        superblock.check(inode_log, block_bytes, device_bytes).map_err(bad)?;
        Ok(superblock)
    }

    fn check(&self, inode_log: u8, block_bytes: u32, device_bytes: u64) -> std::result::Result<(), &'static str> {
        if !(9..=16).contains(&self.block_log) || block_bytes != 1 << self.block_log {
            return Err("invalid block size");
        }
        // XFS_MAX_BLOCKSIZE bounds directory blocks as well.
        if self.directory_block_log > 16 - self.block_log {
            return Err("invalid size of directory blocks");
        }
        if !(8..=11).contains(&inode_log)
            || self.inode_bytes != 1 << inode_log
            || inode_log > self.block_log
            || self.inodes_per_block_log != self.block_log - inode_log
            || (self.has_checksums && self.inode_bytes < 512)
        {
            return Err("invalid inode size");
        }
        let log = self.group_blocks.checked_next_power_of_two().map(u64::ilog2);
        if self.group_blocks < 64
            || log != Some(self.group_log.into())
            || self.group_blocks << self.block_log > MAX_GROUP_BYTES
        {
            return Err("invalid size of allocation groups");
        }
        // At most 2^32 groups of 2^32 blocks each, so nothing here overflows.
        if self.groups == 0
            || self.blocks > self.groups * self.group_blocks
            || self.blocks <= (self.groups - 1) * self.group_blocks
            || self
                .blocks
                .checked_mul(1 << self.block_log)
                .is_none_or(|bytes| bytes > 1 << 62)
        {
            return Err("invalid number of allocation groups");
        }
        if self.group_blocks << self.block_log > device_bytes && self.groups > 1 {
            return Err("larger than its device");
        }
        Ok(())
    }

    /// Returns the length of a block.
    pub fn block_bytes(&self) -> usize {
        1 << self.block_log
    }

    fn group_bytes(&self) -> u64 {
        self.group_blocks << self.block_log
    }

    /// Returns the UUID as libblkid prints it.
    pub fn uuid_text(&self) -> String {
        uuid_text(&self.uuid)
    }
}

fn check_features(has_checksums: bool, version_bits: u16, more: u32, incompat: u32) -> Result<()> {
    if version_bits & VERSION_DIR2 == 0 && !has_checksums {
        return Err(Error::unsupported("directories of version 1"));
    }
    if more & !FEATURES2_KNOWN != 0 {
        return Err(Error::unsupported(format!(
            "XFS features2 {:#x}",
            more & !FEATURES2_KNOWN
        )));
    }
    // Read-only compatible and compatible bits change nothing that a reader needs.
    let unknown = incompat & !INCOMPAT_KNOWN;
    match unknown {
        0 => Ok(()),
        _ if unknown & 1 << 8 != 0 => Err(Error::unsupported("XFS feature metadir")),
        _ if unknown & 1 << 9 != 0 => Err(Error::unsupported("XFS feature zoned")),
        _ => Err(Error::unsupported(format!("XFS incompatible features {unknown:#x}"))),
    }
}

/// Finds the superblock: the primary, or a copy if that is damaged.
pub(super) fn find(device: &dyn Device) -> Result<Found> {
    let damage = match read(device, 0) {
        Ok(superblock) => {
            return Ok(Found {
                superblock,
                remark: None,
            });
        }
        Err(damage @ Error::Damaged(_)) => damage,
        Err(other) => return Err(other),
    };
    let Some((offset_bytes, copy)) = find_copy(device)? else {
        return Err(damage);
    };
    let remark = format!("{damage}; opened by the copy at byte {offset_bytes}");
    let remark = remark.trim_start_matches("damaged: ").to_owned();
    Ok(Found {
        superblock: copy,
        remark: Some(remark),
    })
}

fn read(device: &dyn Device, offset_bytes: u64) -> Result<Superblock> {
    let left = device.size_bytes().saturating_sub(offset_bytes);
    let mut sector = vec![0; left.min(MAX_SECTOR_BYTES) as usize];
    read_inside(device, offset_bytes, &mut sector)?;
    Superblock::parse(&sector, device.size_bytes())
}

/// Returns the superblock at `offset_bytes` if it is the copy of a group that starts there.
fn read_copy(device: &dyn Device, offset_bytes: u64) -> Result<Option<Superblock>> {
    match read(device, offset_bytes) {
        Ok(copy) => {
            let group = offset_bytes / copy.group_bytes();
            let is_start = offset_bytes.is_multiple_of(copy.group_bytes()) && group > 0 && group < copy.groups;
            Ok(is_start.then_some(copy))
        }
        Err(Error::Io(error)) => Err(error.into()),
        Err(_) => Ok(None),
    }
}

fn find_copy(device: &dyn Device) -> Result<Option<(u64, Superblock)>> {
    let Some((offset_bytes, copy)) = find_any_copy(device)? else {
        return Ok(None);
    };
    // mkfs.xfs writes the root inode's number only into the last and the middle copy (`rewrite_secondary_superblocks`).
    for group in [copy.groups - 1, (copy.groups - 1) / 2, 1] {
        let offset_bytes = group * copy.group_bytes();
        if let Some(other) = read_copy(device, offset_bytes)?
            && other.uuid == copy.uuid
            && other.root != u64::MAX
            && other.root != 0
        {
            return Ok(Some((offset_bytes, other)));
        }
    }
    Ok(Some((offset_bytes, copy)))
}

fn find_any_copy(device: &dyn Device) -> Result<Option<(u64, Superblock)>> {
    let blocks = device.size_bytes() / USUAL_BLOCK_BYTES;
    let mut guesses = Vec::new();
    // A damaged primary may still have the right sizes.
    let mut head = [0; SECTOR_BYTES];
    if read_inside(device, 0, &mut head)? {
        guesses.extend(u64::from(be32(&head, 4)).checked_mul(be32(&head, 84).into()));
    }
    for groups in USUAL_GROUPS {
        guesses.push(blocks.div_ceil(groups) * USUAL_BLOCK_BYTES);
        guesses.push(blocks / groups * USUAL_BLOCK_BYTES);
    }
    for guess in guesses {
        if guess > 0
            && let Some(copy) = read_copy(device, guess)?
        {
            return Ok(Some((guess, copy)));
        }
    }
    let end_bytes = device.size_bytes().min(SEARCHED_BYTES);
    let mut step = vec![0; SEARCH_STEP_BYTES as usize];
    let mut at_bytes = SEARCH_STEP_BYTES;
    while at_bytes + SEARCH_STEP_BYTES <= end_bytes {
        let data = device.next_data(at_bytes)?.unwrap_or(end_bytes);
        if data >= at_bytes + SEARCH_STEP_BYTES {
            at_bytes = data / SEARCH_STEP_BYTES * SEARCH_STEP_BYTES;
            continue;
        }
        device.read_at(at_bytes, &mut step)?;
        for (block, bytes) in step.chunks_exact(USUAL_BLOCK_BYTES as usize).enumerate() {
            let offset_bytes = at_bytes + block as u64 * USUAL_BLOCK_BYTES;
            if bytes.starts_with(b"XFSB")
                && let Some(copy) = read_copy(device, offset_bytes)?
            {
                return Ok(Some((offset_bytes, copy)));
            }
        }
        at_bytes += SEARCH_STEP_BYTES;
    }
    Ok(None)
}
