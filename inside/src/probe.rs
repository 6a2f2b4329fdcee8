//! Recognises the content of a partition or disk by the marks that programs leave on it. Opens nothing and trusts
//! nothing: a mark proves only that a driver may be tried.
//!
//! Reads the first 256 KiB and, for Linux RAID, a few KiB near the end. The results are those of libblkid: RAID members
//! and encrypted volumes end the search. Where libblkid finds several file systems and calls the volume ambiguous, the
//! mark nearest to the start counts, because every mkfs clears the start and few clear the rest; the others are
//! reported as well.
//!
//! Offsets and magic numbers are those of util-linux 2.39 (`libblkid/src/superblocks/*.c`, named at each) and of the
//! kernel headers that libblkid follows.

use std::fmt;
use std::io;

use crate::device::{Device, le16, le32, le64, read_array, read_inside};

pub mod containers;

#[cfg(test)]
mod tests;

/// Length of the probed start, past the last mark in it: ZFS writes its uberblocks from 128 to 256 KiB.
const HEAD_BYTES: u64 = 256 << 10;

/// Content of a volume, as far as its first and last bytes show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// A file system that Linux has a driver for.
    FileSystem(FsType),
    /// Swap space.
    Swap,
    /// The external journal of an ext4 file system.
    Journal,
    /// A physical volume of LVM2.
    LvmMember,
    /// A LUKS encrypted volume, version 1 or 2.
    Luks,
    /// A BitLocker encrypted volume.
    BitLocker,
    /// A member of a Linux RAID array.
    MdMember,
    /// A member of a ZFS pool.
    ZfsMember,
    /// A bcache device.
    BcacheMember,
    /// Windows' ReFS, for which Linux has no driver.
    Refs,
    /// All probed bytes are zero.
    Empty,
    /// None of the known marks.
    Unknown,
}

/// A file system that Linux has a driver for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsType {
    /// Linux ext2.
    Ext2,
    /// Linux ext3.
    Ext3,
    /// Linux ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// bcachefs.
    Bcachefs,
    /// FAT12, FAT16 or FAT32.
    Vfat,
    /// exFAT.
    Exfat,
    /// NTFS.
    Ntfs,
    /// ISO 9660.
    Iso9660,
    /// UDF.
    Udf,
    /// SquashFS 4.
    Squashfs,
    /// EROFS.
    Erofs,
    /// F2FS.
    F2fs,
    /// JFS of IBM.
    Jfs,
    /// ReiserFS 3.
    Reiserfs,
    /// HFS+.
    Hfsplus,
    /// UFS2 of FreeBSD.
    Ufs,
}

impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            FsType::Ext2 => "ext2",
            FsType::Ext3 => "ext3",
            FsType::Ext4 => "ext4",
            FsType::Xfs => "XFS",
            FsType::Btrfs => "Btrfs",
            FsType::Bcachefs => "bcachefs",
            FsType::Vfat => "FAT",
            FsType::Exfat => "exFAT",
            FsType::Ntfs => "NTFS",
            FsType::Iso9660 => "ISO 9660",
            FsType::Udf => "UDF",
            FsType::Squashfs => "SquashFS",
            FsType::Erofs => "EROFS",
            FsType::F2fs => "F2FS",
            FsType::Jfs => "JFS",
            FsType::Reiserfs => "ReiserFS",
            FsType::Hfsplus => "HFS+",
            FsType::Ufs => "UFS2",
        })
    }
}

impl Content {
    /// Says why this can't be mounted, in a few words that follow "is" or a colon; `None` for a file system.
    pub fn why_not_mountable(&self) -> Option<&'static str> {
        match self {
            Content::FileSystem(_) => None,
            Content::Swap => Some("swap space"),
            Content::Journal => Some("external journal of an ext4 file system"),
            Content::LvmMember => Some("LVM physical volume"),
            Content::Luks => Some("LUKS encrypted volume"),
            Content::BitLocker => Some("BitLocker encrypted volume"),
            Content::MdMember => Some("member of a Linux RAID array"),
            Content::ZfsMember => Some("member of a ZFS pool"),
            Content::BcacheMember => Some("bcache device"),
            Content::Refs => Some("ReFS file system, which Linux can't read"),
            Content::Empty => Some("empty"),
            Content::Unknown => Some("unknown content"),
        }
    }
}

impl Content {
    /// Tests for content that may hold files of the user, which a mount then does not show.
    pub fn may_hold_files(&self) -> bool {
        match self {
            Content::FileSystem(_)
            | Content::LvmMember
            | Content::Luks
            | Content::BitLocker
            | Content::MdMember
            | Content::ZfsMember
            | Content::BcacheMember
            | Content::Refs
            | Content::Unknown => true,
            Content::Swap | Content::Journal | Content::Empty => false,
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::FileSystem(fs) => write!(f, "{fs} file system"),
            other => f.write_str(other.why_not_mountable().unwrap_or_default()),
        }
    }
}

/// Content of a volume, and the other contents whose marks it bears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// Content that counts.
    pub content: Content,
    /// Other contents with a mark: left by an earlier use, or by chance inside a file of the guest.
    pub also: Vec<Content>,
}

/// Returns the content of a volume: see [`probe_all`].
#[cfg(test)]
pub fn probe(volume: &dyn Device) -> io::Result<Content> {
    probe_all(volume).map(|probed| probed.content)
}

/// Probes the start and the end of `volume`. An error means that it could not be read; a volume too small for a mark
/// simply lacks it.
pub fn probe_all(volume: &dyn Device) -> io::Result<Probed> {
    let alone = |content| {
        Ok(Probed {
            content,
            also: Vec::new(),
        })
    };
    let mut bytes = vec![0; volume.size_bytes().min(HEAD_BYTES) as usize];
    read_inside(volume, 0, &mut bytes)?;
    let head = Head(&bytes);
    if containers::md_member(volume)?.is_some() {
        return alone(Content::MdMember);
    }
    if let Some(found) = head.container() {
        return alone(found);
    }
    if is_bitlocker_to_go(volume, &head)? {
        return alone(Content::BitLocker);
    }
    let mut marks = head.marks();
    marks.sort_by_key(|(offset, _)| *offset);
    let mut marks = marks.into_iter().map(|(_, content)| content);
    if let Some(content) = marks.next() {
        // A disc of both kinds is read as UDF, and its own descriptors say so.
        let tolerated = [Content::FileSystem(FsType::Iso9660), Content::FileSystem(FsType::Udf)];
        let also = marks.filter(|it| *it != content && !tolerated.contains(it)).collect();
        return Ok(Probed { content, also });
    }
    let empty = bytes.iter().all(|byte| *byte == 0) && containers::end_is_zero(volume)?;
    alone(if empty { Content::Empty } else { Content::Unknown })
}

/// The first bytes of a volume. A mark beyond their end counts as missing.
struct Head<'a>(&'a [u8]);

impl Head<'_> {
    fn has(&self, offset: usize, magic: &[u8]) -> bool {
        self.get(offset, magic.len()) == Some(magic)
    }

    fn get(&self, offset: usize, len: usize) -> Option<&[u8]> {
        self.0.get(offset..)?.get(..len)
    }

    fn u16(&self, offset: usize) -> Option<u16> {
        self.get(offset, 2).map(|bytes| le16(bytes, 0))
    }

    fn u32(&self, offset: usize) -> Option<u32> {
        self.get(offset, 4).map(|bytes| le32(bytes, 0))
    }

    fn container(&self) -> Option<Content> {
        // bcache.c; also for the old bcachefs, which had the same magic.
        if self.has(
            4096 + 24,
            b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
        ) {
            return Some(Content::BcacheMember);
        }
        // lvm.c, LVM's label.h: the label is in one of the first four sectors.
        let mut sectors = (0..4).map(|sector| sector * 512);
        if sectors.any(|at| self.has(at, b"LABELONE") && self.has(at + 24, b"LVM2 001")) {
            return Some(Content::LvmMember);
        }
        // luks.c: LUKS1 and LUKS2 alike.
        if self.has(0, b"LUKS\xba\xbe") {
            return Some(Content::Luks);
        }
        // bitlocker.c: Vista, then Windows 7 and later.
        if self.has(0, b"\xeb\x52\x90-FVE-FS-") || self.has(0, b"\xeb\x58\x90-FVE-FS-") {
            return Some(Content::BitLocker);
        }
        None
    }

    /// Returns every mark with its offset, in the order of libblkid.
    fn marks(&self) -> Vec<(usize, Content)> {
        let fs = |there: bool, at: usize, fs_type| there.then_some((at, Content::FileSystem(fs_type)));
        let reiser = [(8 << 10, 0x34), (8 << 10, 20), (64 << 10, 0x34)];
        let is_reiser = |(sb, at): (usize, usize)| self.is_reiser_name(sb + at);
        let bcachefs = b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef";
        let marks = [
            // bcache.c
            fs(self.has(4096 + 24, bcachefs), 4096 + 24, FsType::Bcachefs),
            fs(self.is_fat(), 0, FsType::Vfat),
            self.is_swap().then_some((4086, Content::Swap)),
            fs(self.is_xfs(), 0, FsType::Xfs),
            self.ext().map(|ext| (1024 + 56, ext)),
            // reiserfs.c: version 3.5 at 8 KiB, later ones at 64 KiB.
            reiser
                .into_iter()
                .find(|it| is_reiser(*it))
                .and_then(|(sb, at)| fs(true, sb + at, FsType::Reiserfs)),
            // jfs.c
            fs(self.is_jfs(), 32 << 10, FsType::Jfs),
            // udf.c, iso9660.c: a disc of both kinds is read as UDF.
            fs(self.is_udf(), 32 << 10, FsType::Udf),
            fs(self.has(0x8001, b"CD001"), 0x8001, FsType::Iso9660),
            self.is_zfs().then_some((128 << 10, Content::ZfsMember)),
            // hfs.c, TN1150: the version that belongs to the signature.
            fs(
                self.has(1024, b"H+\x00\x04") || self.has(1024, b"HX\x00\x05"),
                1024,
                FsType::Hfsplus,
            ),
            // ufs.c: UFS2 of FreeBSD, whose superblock is at 64 KiB.
            fs(
                self.u32((64 << 10) + 1372) == Some(0x1954_0119),
                (64 << 10) + 1372,
                FsType::Ufs,
            ),
            // ntfs.c: the FAT fields, which NTFS does not use, are zero.
            fs(self.has(3, b"NTFS    ") && self.has(14, &[0; 7]), 3, FsType::Ntfs),
            // refs.c
            self.has(0, b"\x00\x00\x00ReFS\x00").then_some((0, Content::Refs)),
            // squashfs.c: the kernel reads major version 4 only.
            fs(self.has(0, b"hsqs") && self.u16(28) == Some(4), 0, FsType::Squashfs),
            // btrfs.c: the superblock is at 64 KiB.
            fs(self.has((64 << 10) + 64, b"_BHRfS_M"), (64 << 10) + 64, FsType::Btrfs),
            // exfat.c: the bytes of the FAT fields must be zero.
            fs(self.has(3, b"EXFAT   ") && self.has(11, &[0; 53]), 3, FsType::Exfat),
            // f2fs.c, erofs.c; linux/magic.h
            fs(self.u32(1024) == Some(0xf2f5_2010), 1024, FsType::F2fs),
            fs(self.u32(1024) == Some(0xe0f5_e1e2), 1024, FsType::Erofs),
        ];
        marks.into_iter().flatten().collect()
    }

    /// Recognises XFS (xfs.c, xfs_format.h): big-endian; sizes are powers of two, stored with their logarithms.
    fn is_xfs(&self) -> bool {
        let (Some(sb), true) = (self.get(0, 264), self.has(0, b"XFSB")) else {
            return false;
        };
        let block_bytes = le32(sb, 4).swap_bytes();
        let (sector_bytes, inode_bytes) = (le16(sb, 102).swap_bytes(), le16(sb, 104).swap_bytes());
        let is_power = |bytes: u32, log: u8| bytes.is_power_of_two() && bytes.trailing_zeros() == u32::from(log);
        let groups = le32(sb, 88);
        groups != 0
            && le64(sb, 8) != 0
            && (512..=65536).contains(&block_bytes)
            && is_power(block_bytes, sb[120])
            && (512..=32768).contains(&sector_bytes)
            && is_power(sector_bytes.into(), sb[121])
            && (256..=2048).contains(&inode_bytes)
            && is_power(inode_bytes.into(), sb[122])
    }

    /// Recognises JFS (jfs.c): the magic has only four bytes, so sizes and their logarithms must agree.
    fn is_jfs(&self) -> bool {
        let Some(sb) = self.get(32 << 10, 36).filter(|sb| sb.starts_with(b"JFS1")) else {
            return false;
        };
        let is_power = |bytes: u32, log: u16| bytes.is_power_of_two() && bytes.trailing_zeros() == u32::from(log);
        is_power(le32(sb, 16), le16(sb, 20)) && is_power(le32(sb, 24), le16(sb, 28))
    }

    /// Recognises FAT (vfat.c, and fat_read_bpb of fs/fat/inode.c): the fields are valid, and either FAT's name or the
    /// mark of any boot sector is present.
    fn is_fat(&self) -> bool {
        let Some(sector) = self.get(0, 512) else {
            return false;
        };
        let (sector_bytes, cluster_sectors) = (le16(sector, 0x0b), sector[0x0d]);
        let (reserved_sectors, fats, media) = (le16(sector, 0x0e), sector[0x10], sector[0x15]);
        let no_fat = le16(sector, 0x16) == 0 && le32(sector, 0x24) == 0;
        let bootable = matches!(sector[0], 0xeb | 0xe9) && self.has(510, b"\x55\xaa");
        // JFS and HPFS of OS/2 carry these fields too.
        let foreign = self.has(0x36, b"JFS     ") || self.has(0x36, b"HPFS    ");
        (self.has(0x36, b"FAT") || self.has(0x52, b"FAT32") || (bootable && !foreign))
            && matches!(sector_bytes, 512 | 1024 | 2048 | 4096)
            && cluster_sectors.is_power_of_two()
            && (reserved_sectors != 0 && fats != 0 && !no_fat)
            && matches!(media, 0xf0 | 0xf8..)
    }

    /// Recognises ext2, ext3 and ext4 (ext.c, fs/ext4/ext4.h): the superblock is at 1024. The magic has only two bytes,
    /// so the other fields must be valid too.
    fn ext(&self) -> Option<Content> {
        const COMPAT_HAS_JOURNAL: u32 = 0x4;
        const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
        // FILETYPE, RECOVER, META_BG; SPARSE_SUPER, LARGE_FILE, BTREE_DIR: the features of ext3. ext4 has more.
        const INCOMPAT_OF_EXT3: u32 = 0x2 | 0x4 | 0x10;
        const RO_COMPAT_OF_EXT3: u32 = 0x1 | 0x2 | 0x4;

        let superblock = self.get(1024, 1024)?;
        let (blocks, log_block_kib, revision) = (le32(superblock, 4), le32(superblock, 24), le32(superblock, 76));
        if le16(superblock, 56) != 0xef53 || blocks == 0 || log_block_kib > 6 || revision > 1 {
            return None;
        }
        let (compat, incompat, ro_compat) = (le32(superblock, 92), le32(superblock, 96), le32(superblock, 100));
        Some(if incompat & INCOMPAT_JOURNAL_DEV != 0 {
            Content::Journal
        } else if incompat & !INCOMPAT_OF_EXT3 != 0 || ro_compat & !RO_COMPAT_OF_EXT3 != 0 {
            Content::FileSystem(FsType::Ext4)
        } else if compat & COMPAT_HAS_JOURNAL != 0 {
            Content::FileSystem(FsType::Ext3)
        } else {
            Content::FileSystem(FsType::Ext2)
        })
    }

    /// Recognises swap space (swap.c), including one with a hibernated system's memory. The mark is in the last ten
    /// bytes of the first page, whose size depends on the machine. Other data may have these bytes too, so the header
    /// at 1 KiB must be valid.
    fn is_swap(&self) -> bool {
        let names: [&[u8]; 5] = [b"SWAPSPACE2", b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001"];
        let (version, last_page) = (self.u32(1024).unwrap_or(0), self.u32(1028).unwrap_or(0));
        let is_header = last_page != 0 && (version == 1 || version.swap_bytes() == 1);
        let ends = [4096, 8192, 16384, 32768, 65536];
        let mut marks = ends.into_iter().map(|end| end - 10);
        marks.any(|at| self.has(at, b"SWAP-SPACE") || is_header && names.into_iter().any(|name| self.has(at, name)))
    }

    fn is_reiser_name(&self, at: usize) -> bool {
        [&b"ReIsErFs"[..], b"ReIsEr2Fs", b"ReIsEr3Fs"]
            .into_iter()
            .any(|name| self.has(at, name))
    }

    /// Recognises UDF (ECMA-167 2/8.3): descriptors of 2048 bytes, or of a block if that is larger, from 32 KiB on.
    fn is_udf(&self) -> bool {
        [2048, 4096].into_iter().any(|step| {
            let mut names = (0..64).map_while(|index| self.get((32 << 10) + index * step + 1, 5));
            let known = [b"BEA01", b"BOOT2", b"CD001", b"CDW02", b"TEA01"];
            let end = names.find(|name| !known.iter().any(|known| name == known));
            end.is_some_and(|name| name == b"NSR02" || name == b"NSR03")
        })
    }

    /// Recognises ZFS (zfs.c): uberblocks are at multiples of 1 KiB in the second half of the first label, in the byte
    /// order of the machine that wrote them. Tested last, because mkfs leaves old ones in place.
    fn is_zfs(&self) -> bool {
        let magic = 0x00ba_b10c_u64;
        let mut slots = (128..256).map(|kib| kib << 10);
        slots.any(|at| self.has(at, &magic.to_le_bytes()) || self.has(at, &magic.to_be_bytes()))
    }
}

/// Recognises BitLocker on a removable disk (bitlocker.c), which looks like FAT except for one pointer.
fn is_bitlocker_to_go(volume: &dyn Device, head: &Head) -> io::Result<bool> {
    if !head.has(0, b"\xeb\x58\x90MSWIN4.1") {
        return Ok(false);
    }
    let Some(metadata_bytes) = head.get(440, 8).map(|bytes| le64(bytes, 0)) else {
        return Ok(false);
    };
    Ok(read_array::<8>(volume, metadata_bytes)?.is_some_and(|magic| &magic == b"-FVE-FS-"))
}
