//! Mount options of each file system, chosen from its superblock before the kernel sees it.
//!
//! A superblock may name other devices: a journal by number, parts of the file system by path. The kernel would open
//! the devices of this host. So a file system that names one is mounted such that the name is not used, or not at all.
//! Only the types listed here are ever passed to mount(2).

use std::io;

use vbk_inside::device::{Device, le16, le32, le64, read_array, read_inside};
use vbk_inside::probe::FsType;

#[cfg(test)]
mod tests;

/// Mount options of one file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// Kernel's name of the file system: `ext4`, `xfs`, `vfat`.
    pub kind: String,
    /// Options that are always used.
    pub options: String,
    /// Options to try if the first attempt fails as it does for a journal that needs replay: the device is read-only.
    pub without_journal: Option<String>,
    /// Restriction on the content that the user must know.
    pub warning: Option<String>,
}

// A minute, not seconds: synced data may be only in the journal until the flusher writes it back, about 35 s later on
// ext4 and xfs.
pub(crate) const JOURNAL_WARNING: &str = "the journal was not replayed: files written in the last minute before the \
     backup may be missing or inconsistent";

impl FileSystem {
    fn new(kind: &str, options: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            options: options.to_owned(),
            without_journal: None,
            warning: None,
        }
    }

    fn or_without_journal(mut self, options: &str) -> Self {
        self.without_journal = Some(options.to_owned());
        self
    }

    /// Appends a warning to those that are already there.
    pub(crate) fn warn(&mut self, warning: impl Into<String>) {
        let warning = warning.into();
        self.warning = Some(match self.warning.take() {
            Some(before) => format!("{before}; {warning}"),
            None => warning,
        });
    }

    /// Warns that the journal is left alone, if it is not empty.
    pub(crate) fn leave_journal(&mut self, dirty: bool) {
        if dirty {
            self.warn(format!("mounted with {}: {JOURNAL_WARNING}", self.options));
        }
    }
}

/// Returns the mount options for a volume of this type; the inner error says why it must not be mounted.
pub(crate) fn how_to_mount(fs: FsType, volume: &dyn Device) -> io::Result<Result<FileSystem, String>> {
    let how = FileSystem::new;
    Ok(Ok(match fs {
        FsType::Ext2 | FsType::Ext3 | FsType::Ext4 => return ext(volume).map(Ok),
        FsType::Xfs => return xfs(volume),
        // `device=` is missing because its devices are found elsewhere. The top subvolume reaches all others, whichever
        // one the guest made its default.
        FsType::Btrfs => how("btrfs", "rescue=nologreplay,subvolid=5"),
        // Replays its journal in memory.
        FsType::Bcachefs => how("bcachefs", "nochanges"),
        FsType::F2fs => match f2fs_devices(volume)? {
            true => return refuse("it spans several devices, which its superblock names by path"),
            false => how("f2fs", "").or_without_journal("norecovery"),
        },
        FsType::Erofs => match erofs_devices(volume)? {
            true => return refuse("parts of it are on other devices, which its superblock names by path"),
            false => how("erofs", ""),
        },
        FsType::Reiserfs => match reiserfs_journal_device(volume)? {
            true => return refuse("its journal is on another device, which its superblock names by number"),
            false => how("reiserfs", ""),
        },
        // Opens an external journal only when it is mounted for writing (jfs_mount_rw, fs/jfs/jfs_mount.c).
        FsType::Jfs => how("jfs", ""),
        FsType::Vfat => how("vfat", ""),
        FsType::Exfat => how("exfat", ""),
        FsType::Ntfs => how("ntfs3", ""),
        FsType::Iso9660 => how("iso9660", ""),
        FsType::Udf => how("udf", ""),
        FsType::Squashfs => how("squashfs", ""),
        FsType::Hfsplus => how("hfsplus", ""),
        FsType::Ufs => how("ufs", "ufstype=ufs2"),
    }))
}

fn refuse(why: &str) -> io::Result<Result<FileSystem, String>> {
    Ok(Err(why.to_owned()))
}

/// Options for ext2, ext3 and ext4, which one driver mounts; a kernel may be built without the other names. The journal
/// is never used: an external one is named by device number, and the kernel would open and empty this host's device
/// with that number (ext4_open_dev_journal, fs/ext4/super.c). On a read-only device `noload` costs nothing, because a
/// journal that is not empty can't be replayed anyway.
///
/// A superblock may also ask for `errors=panic`, which stops this host when the guest's file system is damaged, even if
/// it is mounted read-only (ext4_handle_error).
fn ext(volume: &dyn Device) -> io::Result<FileSystem> {
    const INCOMPAT_RECOVER: u32 = 0x4;
    let superblock = read_array::<1024>(volume, 1024)?.unwrap_or([0; 1024]);
    let mut how = FileSystem::new("ext4", "errors=remount-ro,noload");
    how.leave_journal(le32(&superblock, 96) & INCOMPAT_RECOVER != 0);
    Ok(how)
}

/// Options for xfs. Two backups of one disk have the same UUID, and xfs mounts a UUID only once: `nouuid`. Only the
/// kernel can tell whether the log is empty.
fn xfs(volume: &dyn Device) -> io::Result<Result<FileSystem, String>> {
    let superblock = read_array::<512>(volume, 0)?.unwrap_or([0; 512]);
    // sb_logstart and sb_rblocks of `struct xfs_dsb`: the kernel needs the other devices as options.
    if le64(&superblock, 48) == 0 {
        return refuse(
            "its log is on another device; mount the images with `vbk mount DIR`, attach both with `losetup -r`, and \
             use `mount -o ro,norecovery,nouuid,logdev=LOG`",
        );
    }
    if le64(&superblock, 16) != 0 {
        return refuse(
            "it has a realtime device; mount the images with `vbk mount DIR`, attach both with `losetup -r`, and use \
             `mount -o ro,norecovery,nouuid,rtdev=DEVICE`",
        );
    }
    Ok(Ok(
        FileSystem::new("xfs", "nouuid").or_without_journal("norecovery,nouuid")
    ))
}

/// Tests that an f2fs names other devices. `struct f2fs_super_block` of linux/f2fs_fs.h has eight devices with a path
/// of 64 bytes each; either copy of the superblock counts.
fn f2fs_devices(volume: &dyn Device) -> io::Result<bool> {
    const DEVICES: usize = 2201;
    for at in [1024, 4096 + 1024] {
        let superblock = read_array::<3072>(volume, at)?.unwrap_or([0; 3072]);
        if (0..8).any(|device| superblock[DEVICES + 68 * device] != 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Tests that an erofs has extra devices: the feature flag and the device count of `struct erofs_super_block`
/// (fs/erofs/erofs_fs.h). The kernel opens their tags as paths (erofs_init_device, fs/erofs/super.c).
fn erofs_devices(volume: &dyn Device) -> io::Result<bool> {
    const INCOMPAT_DEVICE_TABLE: u32 = 0x8;
    let superblock = read_array::<128>(volume, 1024)?.unwrap_or([0; 128]);
    Ok(le32(&superblock, 80) & INCOMPAT_DEVICE_TABLE != 0 || le16(&superblock, 86) != 0)
}

/// Tests that a reiserfs has an external journal: the device number in `struct reiserfs_super_block_v1`, at each offset
/// where the superblock can be.
fn reiserfs_journal_device(volume: &dyn Device) -> io::Result<bool> {
    for at in [8 << 10, 64 << 10] {
        let mut superblock = [0; 64];
        if read_inside(volume, at, &mut superblock)? && superblock[52..58] == *b"ReIsEr" && le32(&superblock, 16) != 0 {
            return Ok(true);
        }
    }
    Ok(false)
}
