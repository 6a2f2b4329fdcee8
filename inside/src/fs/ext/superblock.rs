//! The superblock of ext2, ext3 and ext4: `struct ext4_super_block` of fs/ext4/ext4.h.

use std::io;

use super::checksum::{START, crc32c};
use crate::device::{Device, le16, le32, le64, read_array};
use crate::error::{Error, Result};

/// Length of a superblock, and the offset of the primary one.
pub(super) const SUPERBLOCK_BYTES: usize = 1024;

pub(super) const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;

pub(super) const INCOMPAT_FILETYPE: u32 = 0x2;
pub(super) const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
pub(super) const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
pub(super) const INCOMPAT_LARGEDIR: u32 = 0x4000;
/// FILETYPE, RECOVER, META_BG, EXTENTS, 64BIT, MMP, FLEX_BG, EA_INODE, CSUM_SEED, LARGEDIR, INLINE_DATA, ENCRYPT,
/// CASEFOLD.
const INCOMPAT_KNOWN: u32 =
    0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;

const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
pub(super) const RO_COMPAT_GDT_CSUM: u32 = 0x10;
pub(super) const RO_COMPAT_METADATA_CSUM: u32 = 0x400;

const FLAGS_UNSIGNED_HASH: u32 = 0x2;

/// Smallest inode, and the length of every inode in revision 0 (`EXT4_GOOD_OLD_INODE_SIZE`).
pub(super) const OLD_INODE_BYTES: usize = 128;

/// A superblock whose sizes are plausible.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    /// Block of the file system that holds it; its group descriptors follow.
    pub at_block: u64,
    pub block_bytes: u64,
    pub blocks: u64,
    pub first_data_block: u64,
    pub blocks_per_group: u64,
    pub groups: u64,
    pub inodes: u32,
    pub inodes_per_group: u32,
    pub inode_bytes: usize,
    pub first_inode: u32,
    pub descriptor_bytes: usize,
    pub first_meta_bg: u64,
    pub uuid: [u8; 16],
    pub label: Vec<u8>,
    /// Seed of all checksums but its own.
    pub seed: u32,
    /// Parameters of the index of directories.
    pub hash: HashSeed,
    pub journal_inode: u32,
    /// Copy of the journal's inode: its block map, then the length, high half first (`s_jnl_blocks`).
    pub journal_map: Option<[u8; 68]>,
    /// Group of which this is the copy.
    pub group: u16,
    compat: u32,
    incompat: u32,
    ro_compat: u32,
    backup_groups: [u32; 2],
    checksum_matches: bool,
}

/// Parameters of the hash that the superblock has.
#[derive(Debug, Clone)]
pub(super) struct HashSeed {
    /// `s_hash_seed`
    pub seed: [u32; 4],
    /// Bytes of names count as unsigned (`EXT2_FLAGS_UNSIGNED_HASH`), which depends on the machine that ran mke2fs.
    pub is_unsigned: bool,
}

impl Superblock {
    /// Reads the superblock at `offset_bytes`.
    pub fn read(device: &dyn Device, offset_bytes: u64) -> Result<Self> {
        let bytes = read_array::<SUPERBLOCK_BYTES>(device, offset_bytes)?;
        let bytes = bytes.ok_or_else(|| Error::damaged("superblock: the volume ends before it"))?;
        Self::parse(&bytes, offset_bytes)
    }

    /// Reads the fields of a superblock that was found at `offset_bytes`. The checksum and most features are not
    /// examined yet; the device of a journal has no sizes to examine.
    pub fn parse(bytes: &[u8; SUPERBLOCK_BYTES], offset_bytes: u64) -> Result<Self> {
        let damaged = |what: &str| Err(Error::damaged(format!("superblock: {what}")));
        if le16(bytes, 0x38) != 0xef53 {
            return damaged("no magic number");
        }
        let (revision, log_block_kib) = (le32(bytes, 0x4c), le32(bytes, 0x18));
        let (compat, incompat, ro_compat) = (le32(bytes, 0x5c), le32(bytes, 0x60), le32(bytes, 0x64));
        if incompat & INCOMPAT_JOURNAL_DEV != 0 {
            return Err(Error::unsupported("journal of another ext4 file system"));
        }
        // EXT4_MAX_BLOCK_SIZE is 64 KiB.
        if log_block_kib > 6 {
            return damaged("invalid block size");
        }
        let block_bytes = 1024_u64 << log_block_kib;
        let is_64bit = incompat & INCOMPAT_64BIT != 0;
        let blocks_high = if is_64bit { le32(bytes, 0x150) } else { 0 };
        let blocks = u64::from(le32(bytes, 0x4)) | u64::from(blocks_high) << 32;
        let (first_data_block, blocks_per_group) = (u64::from(le32(bytes, 0x14)), u64::from(le32(bytes, 0x20)));
        if first_data_block > 1 || blocks <= first_data_block || blocks_per_group == 0 {
            return damaged("invalid number of blocks");
        }
        // Every byte of the file system then has an offset.
        if blocks > u64::MAX >> 17 {
            return damaged("more blocks than a volume can have");
        }
        let groups = (blocks - first_data_block).div_ceil(blocks_per_group);
        let (inodes, inodes_per_group) = (le32(bytes, 0), le32(bytes, 0x28));
        // One block of bitmap counts the inodes of a group.
        if inodes == 0 || inodes_per_group == 0 || u64::from(inodes_per_group) > block_bytes * 8 {
            return damaged("invalid number of inodes");
        }
        let (inode_bytes, first_inode) = match revision {
            0 => (OLD_INODE_BYTES, 11),
            _ => (usize::from(le16(bytes, 0x58)), le32(bytes, 0x54)),
        };
        if !inode_bytes.is_power_of_two() || inode_bytes < OLD_INODE_BYTES || inode_bytes as u64 > block_bytes {
            return damaged("invalid inode size");
        }
        let descriptor_bytes = match is_64bit {
            true => usize::from(le16(bytes, 0xfe)),
            false => 32,
        };
        if !descriptor_bytes.is_power_of_two() || !(32..=1024).contains(&descriptor_bytes) {
            return damaged("invalid size of group descriptors");
        }
        let uuid: [u8; 16] = std::array::from_fn(|at| bytes[0x68 + at]);
        let label = &bytes[0x78..0x88];
        let seed = match incompat & INCOMPAT_CSUM_SEED {
            0 => crc32c(START, &uuid),
            _ => le32(bytes, 0x270),
        };
        let checksum_matches = ro_compat & RO_COMPAT_METADATA_CSUM == 0
            || crate::proven(crc32c(START, &bytes[..0x3fc]) == le32(bytes, 0x3fc));
        Ok(Self {
            at_block: offset_bytes / block_bytes,
            block_bytes,
            blocks,
            first_data_block,
            blocks_per_group,
            groups,
            inodes,
            inodes_per_group,
            inode_bytes,
            first_inode,
            descriptor_bytes,
            first_meta_bg: u64::from(le32(bytes, 0x104)),
            uuid,
            label: label.iter().copied().take_while(|byte| *byte != 0).collect(),
            seed,
            hash: HashSeed {
                seed: std::array::from_fn(|word| le32(bytes, 0xec + word * 4)),
                is_unsigned: le32(bytes, 0x160) & FLAGS_UNSIGNED_HASH != 0,
            },
            journal_inode: le32(bytes, 0xe0),
            // EXT3_JNL_BACKUP_BLOCKS
            journal_map: (bytes[0xfd] == 1).then(|| std::array::from_fn(|at| bytes[0x10c + at])),
            group: le16(bytes, 0x5a),
            compat,
            incompat,
            ro_compat,
            backup_groups: [le32(bytes, 0x24c), le32(bytes, 0x250)],
            checksum_matches,
        })
    }

    /// Tests that the checksum matches, or that the file system has none.
    pub fn checksum_matches(&self) -> bool {
        self.checksum_matches
    }

    /// Refuses features without which the files can't be read right. Of the features in `ro_compat` none forbids
    /// reading.
    pub fn check_features(&self) -> Result<()> {
        let unsupported = |what: String| Err(Error::unsupported(what));
        let unknown = self.incompat & !INCOMPAT_KNOWN;
        for (feature, name) in [(0x1, "compression"), (0x1000, "dirdata")] {
            if unknown & feature != 0 {
                return unsupported(format!("ext4 with the feature {name}"));
            }
        }
        match unknown {
            0 => Ok(()),
            unknown => unsupported(format!("ext4 with the unknown incompatible features {unknown:#x}")),
        }
    }

    pub fn has_compat(&self, feature: u32) -> bool {
        self.compat & feature != 0
    }

    pub fn has_incompat(&self, feature: u32) -> bool {
        self.incompat & feature != 0
    }

    pub fn has_ro_compat(&self, feature: u32) -> bool {
        self.ro_compat & feature != 0
    }

    /// Tests for checksums of all metadata.
    pub fn has_checksums(&self) -> bool {
        self.has_ro_compat(RO_COMPAT_METADATA_CSUM)
    }

    /// Returns the first block of a group.
    pub fn first_block_of(&self, group: u64) -> u64 {
        let before = group.saturating_mul(self.blocks_per_group);
        before.saturating_add(self.first_data_block)
    }

    /// Tests for a superblock at the start of a group (`ext4_bg_has_super`).
    pub fn is_superblock_in(&self, group: u64) -> bool {
        if group == 0 {
            return true;
        }
        if self.has_compat(COMPAT_SPARSE_SUPER2) {
            return self.backup_groups.iter().any(|backup| u64::from(*backup) == group);
        }
        let is_power_of = |base: u64| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        !self.has_ro_compat(RO_COMPAT_SPARSE_SUPER) || group == 1 || [3, 5, 7].into_iter().any(is_power_of)
    }
}

/// A copy of the superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupSuperblock {
    /// Block of the file system that holds the copy.
    pub block: u64,
    /// Length of the file system's blocks.
    pub block_size_bytes: u32,
    /// Offset of the copy in the volume. The kernel's mount option `sb=` counts it in units of 1024 bytes.
    pub offset_bytes: u64,
    /// The superblock.
    pub bytes: Box<[u8; SUPERBLOCK_BYTES]>,
}

/// Groups that have a copy of the superblock in most file systems (`sparse_super`): 1 and powers of 3, 5 and 7.
const GROUPS: [u64; 10] = [1, 3, 5, 7, 9, 25, 27, 49, 81, 125];
/// Groups of file systems with bigalloc are longer by the number of blocks in a cluster. mke2fs makes 16 by default.
const CLUSTER_BLOCKS: [u64; 7] = [16, 2, 4, 8, 32, 64, 128];
/// Logarithms of block sizes in KiB, the usual ones first.
const LOG_BLOCK_KIB: [u32; 7] = [2, 0, 1, 4, 3, 5, 6];

/// Finds a copy of the superblock where mke2fs writes them, without the primary one.
///
/// Reads 1 KiB at no more than 168 offsets. A file system whose groups have another length than the default
/// (`mke2fs -g`) is not found, nor one of a single group, which has no copy.
pub fn backup_superblock(device: &dyn Device) -> Result<Option<BackupSuperblock>> {
    let usual = GROUPS.map(|group| (group, 1));
    let bigalloc = CLUSTER_BLOCKS.into_iter().flat_map(|blocks| [(1, blocks), (3, blocks)]);
    let candidate = |(group, cluster_blocks): (u64, u64), log_block_kib: u32| {
        let block_bytes = 1024_u64 << log_block_kib;
        // One block of bitmap counts the clusters of a group, up to EXT2_MAX_CLUSTERS_PER_GROUP of e2fsprogs.
        let group_blocks = (block_bytes * 8).min((1 << 16) - 8) * cluster_blocks;
        // Only with blocks of 1 KiB does the primary superblock have a block of its own.
        let first_data_block = u64::from(log_block_kib == 0 && cluster_blocks == 1);
        (group * group_blocks + first_data_block, block_bytes, group)
    };
    let groups = usual.into_iter().chain(bigalloc);
    let candidates: Vec<(u64, u64, u64)> = groups
        .flat_map(|groups| LOG_BLOCK_KIB.map(|log_block_kib| candidate(groups, log_block_kib)))
        .collect();
    let offsets: Vec<_> = candidates.iter().map(|(block, bytes, _)| block * bytes).collect();
    device.will_read(&offsets);
    for (block, block_bytes, group) in candidates {
        if let Some(found) = copy_at(device, block, block_bytes, group)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Reads a copy if there is one at a block, whose own fields say that it belongs there: a file may hold the image of
/// another file system.
fn copy_at(device: &dyn Device, block: u64, block_bytes: u64, group: u64) -> Result<Option<BackupSuperblock>> {
    let offset_bytes = block * block_bytes;
    let bytes = match read_array::<SUPERBLOCK_BYTES>(device, offset_bytes) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(None),
        // The next copy may be readable.
        Err(error) if error.kind() != io::ErrorKind::Interrupted => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Ok(superblock) = Superblock::parse(&bytes, offset_bytes) else {
        return Ok(None);
    };
    let fits = superblock.block_bytes == block_bytes
        && u64::from(superblock.group) == group
        && superblock.first_block_of(group) == block
        && superblock.checksum_matches();
    Ok(fits.then(|| BackupSuperblock {
        block,
        block_size_bytes: u32::try_from(block_bytes).expect("at most 64 KiB"),
        offset_bytes,
        bytes: Box::new(bytes),
    }))
}

/// Returns the label as text: ext4 does not define its character set.
pub(super) fn text_of(label: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(label).into_owned();
    (!text.is_empty()).then_some(text)
}

/// Returns a UUID as libblkid prints it; `None` if all bytes are zero.
pub(crate) fn uuid_text(uuid: &[u8; 16]) -> Option<String> {
    let number = u128::from_be_bytes(*uuid);
    let hex = format!("{number:032x}");
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default();
    let parts = [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)];
    (number != 0).then(|| parts.join("-"))
}

/// Returns the little-endian number at an offset that came from a disk.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..)?.get(..2)?;
    Some(le16(field, 0))
}

/// Returns the little-endian number at an offset that came from a disk.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..)?.get(..4)?;
    Some(le32(field, 0))
}

/// Returns the big-endian number at an offset that came from a disk.
pub(super) fn be32_at(bytes: &[u8], at: usize) -> Option<u32> {
    u32_at(bytes, at).map(u32::swap_bytes)
}

/// Returns the big-endian number at an offset that came from a disk.
pub(super) fn be64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..)?.get(..8)?;
    Some(le64(field, 0).swap_bytes())
}
