//! Inodes in the log: `struct xfs_log_dinode`, the inode of the disk in the byte order of the machine, and its forks.

use crate::device::{be16, be32, be64, le16, le32, le64};

use crate::fs::xfs::checksum::set_crc;
use crate::fs::xfs::inode::{CORE_BYTES, CORE3_BYTES, CRC_AT};
use crate::fs::xfs::log::transactions::Item;
use crate::fs::xfs::log::{BASIC_BLOCK_BYTES, LogResult};
use crate::fs::xfs::superblock::Superblock;

use super::Replay;

// `ilf_fields`.
const DATA_BYTES: u32 = 2;
const DATA_EXTENTS: u32 = 4;
const DATA_ROOT: u32 = 8;
const DEVICE: u32 = 0x10;
const ATTRIBUTE_BYTES: u32 = 0x40;
const ATTRIBUTE_EXTENTS: u32 = 0x80;
const ATTRIBUTE_ROOT: u32 = 0x100;
const DATA_ANY: u32 = DATA_BYTES | DATA_EXTENTS | DATA_ROOT;
const ATTRIBUTE_ANY: u32 = ATTRIBUTE_BYTES | ATTRIBUTE_EXTENTS | ATTRIBUTE_ROOT;

/// `XFS_DIFLAG2_BIGTIME` and `XFS_DIFLAG2_NREXT64`.
const FLAG2_BIGTIME: u64 = 1 << 3;
const FLAG2_LARGE_COUNTS: u64 = 1 << 4;
/// `DI_MAX_FLUSH`.
const MAX_FLUSHES: u16 = 0xffff;

/// Description of a changed inode (`struct xfs_inode_log_format`; older 32-bit kernels wrote it without padding).
struct Change {
    regions: u16,
    fields: u32,
    device: u32,
    /// First basic block and length of the cluster that holds the inode, and the offset in it.
    block: u64,
    blocks: u16,
    offset_bytes: usize,
}

impl Change {
    fn parse(bytes: &[u8]) -> LogResult<Self> {
        let padding = match bytes.len() {
            56 => 4,
            52 => 0,
            _ => return Err("an inode's description has an invalid length".into()),
        };
        let blocks = u16::try_from(le32(bytes, 44 + padding)).ok();
        Ok(Self {
            regions: le16(bytes, 2),
            fields: le32(bytes, 4),
            device: le32(bytes, 20 + padding),
            block: le64(bytes, 36 + padding),
            blocks: blocks.ok_or("an inode's cluster is too long")?,
            offset_bytes: le32(bytes, 48 + padding) as usize,
        })
    }
}

/// Applies a changed inode.
pub(super) fn apply(replay: &mut Replay<'_>, item: &Item, lsn: u64) -> LogResult<()> {
    let superblock = replay.superblock;
    let change = Change::parse(item.description())?;
    if replay.is_cancelled(change.block, change.blocks) {
        return Ok(());
    }
    let inode_bytes = superblock.inode_bytes;
    let is_inside = change.offset_bytes % inode_bytes == 0
        && change.offset_bytes + inode_bytes <= usize::from(change.blocks) * BASIC_BLOCK_BYTES;
    if !is_inside {
        return Err("an inode is outside of its cluster".into());
    }
    // Two inodes of 256 bytes share a basic block.
    let block = change
        .block
        .checked_add((change.offset_bytes / BASIC_BLOCK_BYTES) as u64);
    let block = block.ok_or("an inode is outside of the device")?;
    let blocks = inode_bytes.div_ceil(BASIC_BLOCK_BYTES) as u64;
    let mut bytes = replay.read(block, blocks)?;
    let start = change.offset_bytes % BASIC_BLOCK_BYTES;
    let target = bytes.get_mut(start..start + inode_bytes).ok_or("an inode is cut off")?;
    let core = item.region(1).ok_or("an inode has no core")?;
    let core_bytes = if superblock.has_checksums {
        CORE3_BYTES
    } else {
        CORE_BYTES
    };
    // The core of version 2 ends before the list of deleted inodes.
    let logged_bytes = if superblock.has_checksums { CORE3_BYTES } else { 96 };
    if core.len() < logged_bytes || le16(core, 0) != 0x494e || target[..2] != *b"IN" {
        return Err("an inode has no magic number".into());
    }
    if !replay.written.contains(&block) && is_newer(superblock, target, core, lsn) {
        return Ok(());
    }
    put_core(superblock, target, core, lsn)?;
    if change.fields & DEVICE != 0 {
        target[core_bytes..core_bytes + 4].copy_from_slice(&change.device.to_be_bytes());
    }
    put_forks(superblock, target, core_bytes, item, &change)?;
    if superblock.has_checksums {
        set_crc(target, CRC_AT);
    }
    replay.write(block, &bytes)
}

/// Tests whether the inode on disk is newer than the change.
fn is_newer(superblock: &Superblock, disk: &[u8], core: &[u8], lsn: u64) -> bool {
    if superblock.has_checksums {
        let found = be64(disk, 112);
        return found != 0 && found != u64::MAX && found > lsn;
    }
    let (logged, found) = (le16(core, 30), be16(disk, 30));
    let wrapped = found == MAX_FLUSHES && logged < MAX_FLUSHES >> 1;
    logged < found && !wrapped
}

/// Converts the core (`xfs_log_dinode_to_disk`). The list of deleted inodes is not part of it.
fn put_core(superblock: &Superblock, disk: &mut [u8], core: &[u8], lsn: u64) -> LogResult<()> {
    let version = core[4];
    if (version == 3) != superblock.has_checksums || !(2..=3).contains(&version) {
        return Err("an inode has an invalid version".into());
    }
    let flags2 = if version == 3 { le64(core, 120) } else { 0 };
    // Mode, then after version and format: owner, group, links, project.
    for (at, len) in [
        (0, 2),
        (2, 2),
        (4, 1),
        (5, 1),
        (8, 4),
        (12, 4),
        (16, 4),
        (20, 2),
        (22, 2),
    ] {
        swap_into(disk, core, at, len);
    }
    let times: &[usize] = if version == 3 {
        &[32, 40, 48, 144]
    } else {
        &[32, 40, 48]
    };
    for at in times {
        match flags2 & FLAG2_BIGTIME != 0 {
            true => swap_into(disk, core, *at, 8),
            false => {
                swap_into(disk, core, *at, 4);
                swap_into(disk, core, at + 4, 4);
            }
        }
    }
    // Size, blocks, extent size hint, extents, offset and format of the attributes, DMAPI, flags, generation.
    for (at, len) in [
        (56, 8),
        (64, 8),
        (72, 4),
        (76, 4),
        (80, 2),
        (82, 1),
        (83, 1),
        (84, 4),
        (88, 2),
        (90, 2),
        (92, 4),
    ] {
        swap_into(disk, core, at, len);
    }
    disk[6..8].fill(0);
    disk[24..32].fill(0);
    if version == 3 {
        for (at, len) in [(104, 8), (120, 8), (128, 4), (152, 8)] {
            swap_into(disk, core, at, len);
        }
        if flags2 & FLAG2_LARGE_COUNTS != 0 {
            swap_into(disk, core, 24, 8);
        }
        disk[112..120].copy_from_slice(&lsn.to_be_bytes());
        disk[132..144].fill(0);
        disk[160..176].copy_from_slice(&core[160..176]);
    }
    Ok(())
}

fn swap_into(disk: &mut [u8], core: &[u8], at: usize, len: usize) {
    disk[at..at + len].copy_from_slice(&core[at..at + len]);
    disk[at..at + len].reverse();
}

fn put_forks(
    superblock: &Superblock,
    disk: &mut [u8],
    core_bytes: usize,
    item: &Item,
    change: &Change,
) -> LogResult<()> {
    if change.regions <= 2 {
        return Ok(());
    }
    let attributes_at = match disk[82] {
        0 => disk.len(),
        units => core_bytes + usize::from(units) * 8,
    };
    if attributes_at > disk.len() {
        return Err("an inode has an invalid offset of the attributes".into());
    }
    let (data, attributes) = disk.split_at_mut(attributes_at);
    let data = data.get_mut(core_bytes..).unwrap_or_default();
    let mut index = 2;
    if change.fields & DATA_ANY != 0 {
        let region = item.region(index).ok_or("an inode has fewer regions than its fields")?;
        put_fork(superblock, data, region, change.fields & DATA_ROOT != 0)?;
        index += 1;
    }
    if change.fields & ATTRIBUTE_ANY != 0 {
        let region = item.region(index).ok_or("an inode has fewer regions than its fields")?;
        put_fork(superblock, attributes, region, change.fields & ATTRIBUTE_ROOT != 0)?;
    }
    Ok(())
}

fn put_fork(superblock: &Superblock, fork: &mut [u8], region: &[u8], is_root: bool) -> LogResult<()> {
    if is_root {
        return put_root(superblock, fork, region).ok_or_else(|| "the root of an extent tree is cut off".into());
    }
    // Regions are padded to four bytes (`xlog_calc_iovec_len`), so at the end of an inode one may be longer.
    let len = region.len().min(fork.len());
    if region.len() - len >= 4 {
        return Err("a fork is longer than its inode".into());
    }
    fork[..len].copy_from_slice(&region[..len]);
    Ok(())
}

/// Converts the root of an extent tree from a block to the form inside an inode (`xfs_bmbt_to_bmdr`).
fn put_root(superblock: &Superblock, fork: &mut [u8], block: &[u8]) -> Option<()> {
    let header_bytes = if superblock.has_checksums { 72 } else { 24 };
    let most_logged = block.len().checked_sub(header_bytes)? / 16;
    let most = fork.len().checked_sub(4)? / 16;
    let count = usize::from(be16(block.get(..header_bytes)?, 6));
    if count > most || count > most_logged || be32(block, 0) >> 16 != 0x424d {
        return None;
    }
    fork[..4].copy_from_slice(&block[4..8]);
    let keys = block.get(header_bytes..header_bytes + count * 8)?;
    fork.get_mut(4..4 + count * 8)?.copy_from_slice(keys);
    let pointers_at = header_bytes + most_logged * 8;
    let pointers = block.get(pointers_at..pointers_at + count * 8)?;
    let at = 4 + most * 8;
    fork.get_mut(at..at + count * 8)?.copy_from_slice(pointers);
    Some(())
}

/// Makes an inode that is not in use (`xfs_ialloc_inode_init`). `inode` is zero.
pub(super) fn make_empty(superblock: &Superblock, inode: &mut [u8], number: u64, generation: u32) {
    inode[..2].copy_from_slice(b"IN");
    inode[4] = if superblock.has_checksums { 3 } else { 2 };
    inode[92..96].copy_from_slice(&generation.to_be_bytes());
    inode[96..100].fill(0xff);
    if superblock.has_checksums {
        inode[152..160].copy_from_slice(&number.to_be_bytes());
        inode[160..176].copy_from_slice(&superblock.metadata_uuid);
        set_crc(inode, CRC_AT);
    }
}
