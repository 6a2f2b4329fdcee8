//! Mount options of each file system, chosen from its superblock before the kernel sees it.
//!
//! A superblock may name other devices: a journal by number, parts of the file system by path. The kernel would open
//! the devices of this host. So a file system that names one is mounted such that the name is not used, or not at all.
//! Only the types listed here are ever passed to mount(2).

use std::io;

use vbk_inside::device::{Device, le16, le32, le64, read_array, read_inside};
use vbk_inside::fs::ext::backup_superblock;
use vbk_inside::probe::FsType;

#[cfg(test)]
mod tests;

/// Use of the image behind a loop device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backing {
    /// The device is read-only.
    #[default]
    ReadOnly,
    /// Writes to the device go to the image.
    Writable,
}

/// Way of mounting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Way {
    /// The device is read-only: a journal is left alone.
    #[default]
    AsItIs,
    /// The device is writable, and the mount is read-only: the kernel replays the journal.
    Replayed,
    /// The mount is writable, where the file system can be.
    Writable,
}

/// Mount options of one file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// Kernel's name of the file system: `ext4`, `xfs`, `vfat`.
    pub kind: String,
    /// Options that are always used.
    pub options: String,
    /// Options to try if the first attempt fails as it does for a journal that needs replay, and can't be replayed.
    pub without_journal: Option<String>,
    /// Restriction on the content that the user must know.
    pub warning: Option<String>,
    /// Repair that the mount does on the scratch copy: `its journal was replayed`.
    pub repaired: Option<String>,
    /// Use of the images behind its devices.
    pub backing: Backing,
    /// The mount is writable.
    pub read_write: bool,
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
            repaired: None,
            backing: Backing::ReadOnly,
            read_write: false,
        }
    }

    /// Makes the device writable if the journal may have to be replayed, and the mount too if that is wanted.
    fn replayed(mut self, way: Way) -> Self {
        self.backing = match way {
            Way::AsItIs => Backing::ReadOnly,
            Way::Replayed | Way::Writable => Backing::Writable,
        };
        self.writable(way)
    }

    /// Makes device and mount writable if that is wanted.
    fn writable(mut self, way: Way) -> Self {
        if way == Way::Writable {
            self.backing = Backing::Writable;
            self.read_write = true;
        }
        self
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

    /// Replays the log of fsyncs of a btrfs, if it has one and the device is writable.
    pub(crate) fn replay_log(&mut self, has_log: bool, way: Way) {
        match way {
            Way::Replayed if has_log => self.backing = Backing::Writable,
            Way::Writable => {}
            Way::AsItIs | Way::Replayed => {
                self.options.insert_str(0, "rescue=nologreplay,");
                self.leave_journal(has_log);
                return;
            }
        }
        if has_log {
            self.repaired = Some("its log was replayed".to_owned());
        }
    }

    /// Warns that the journal is left alone, if it is not empty.
    pub(crate) fn leave_journal(&mut self, dirty: bool) {
        if dirty {
            self.warn(format!("mounted with {}: {JOURNAL_WARNING}", self.options));
        }
    }
}

/// Returns the mount options for a volume of this type; the inner error says why it must not be mounted.
pub(crate) fn how_to_mount(fs: FsType, volume: &dyn Device, way: Way) -> io::Result<Result<FileSystem, String>> {
    let how = FileSystem::new;
    Ok(Ok(match fs {
        FsType::Ext2 | FsType::Ext3 | FsType::Ext4 => return ext(volume, way).map(Ok),
        FsType::Xfs => return xfs(volume, way),
        // `device=` is missing because its devices are found elsewhere, and with them whether there is a log to replay.
        // The top subvolume reaches all others, whichever one the guest made its default.
        FsType::Btrfs => how("btrfs", "subvolid=5").writable(way),
        // Replays its journal in memory.
        FsType::Bcachefs => how("bcachefs", "nochanges"),
        FsType::F2fs => match f2fs_devices(volume)? {
            true => return refuse("it spans several devices, which its superblock names by path"),
            false => how("f2fs", "").or_without_journal("norecovery").replayed(way),
        },
        FsType::Erofs => match erofs_devices(volume)? {
            true => return refuse("parts of it are on other devices, which its superblock names by path"),
            false => how("erofs", ""),
        },
        FsType::Reiserfs => match reiserfs_journal_device(volume)? {
            true => return refuse("its journal is on another device, which its superblock names by number"),
            false => how("reiserfs", "").replayed(way),
        },
        // Opens an external journal only when it is mounted for writing (jfs_mount_rw, fs/jfs/jfs_mount.c): never.
        FsType::Jfs => how("jfs", ""),
        FsType::Vfat => how("vfat", "").writable(way),
        FsType::Exfat => how("exfat", "").writable(way),
        FsType::Ntfs => how("ntfs3", "").writable(way),
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

/// Options for ext2, ext3 and ext4, which one driver mounts; a kernel may be built without the other names.
///
/// An external journal is named by device number, and the kernel would open and empty this host's device with that
/// number (ext4_open_dev_journal, fs/ext4/super.c). So a journal is replayed only if the superblock names no device; in
/// all other cases `noload` leaves it alone.
///
/// A superblock may also ask for `errors=panic`, which stops this host when the guest's file system is damaged, even if
/// it is mounted read-only (ext4_handle_error).
fn ext(volume: &dyn Device, way: Way) -> io::Result<FileSystem> {
    const COMPAT_HAS_JOURNAL: u32 = 0x4;
    const INCOMPAT_RECOVER: u32 = 0x4;
    let superblock = read_array::<1024>(volume, 1024)?.unwrap_or([0; 1024]);
    if le16(&superblock, 56) != 0xef53 {
        return ext_by_copy(volume);
    }
    let has_journal = le32(&superblock, 92) & COMPAT_HAS_JOURNAL != 0;
    let is_dirty = le32(&superblock, 96) & INCOMPAT_RECOVER != 0;
    // s_journal_inum and s_journal_dev.
    let is_inside = le32(&superblock, 224) != 0 && le32(&superblock, 228) == 0;
    let is_needed = match way {
        Way::AsItIs => false,
        Way::Replayed => is_dirty,
        Way::Writable => true,
    };
    if is_needed && (is_inside || !(has_journal || is_dirty)) {
        let mut how = FileSystem::new("ext4", "errors=remount-ro").replayed(way);
        how.repaired = is_dirty.then(|| "its journal was replayed".to_owned());
        return Ok(how);
    }
    let mut how = FileSystem::new("ext4", "errors=remount-ro,noload");
    how.leave_journal(is_dirty);
    if way == Way::Writable {
        how.warn("mounted read-only: its journal is on another device");
    }
    Ok(how)
}

/// Options for an ext file system that lost its first superblock: the kernel opens it by a copy. The copies do not say
/// whether the journal is empty, so it is left alone; the reader in user space looks for itself.
fn ext_by_copy(volume: &dyn Device) -> io::Result<FileSystem> {
    let copy = backup_superblock(volume).map_err(io::Error::from)?;
    let copy = copy.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it has no superblock"))?;
    let options = format!("errors=remount-ro,noload,sb={}", copy.offset_bytes / 1024);
    let mut how = FileSystem::new("ext4", &options);
    how.warn(format!(
        "its superblock is damaged; mounted by the copy at block {}, without its journal: files written in the last \
         minute before the backup may be missing or inconsistent",
        copy.block
    ));
    Ok(how)
}

/// Options for xfs. Two backups of one disk have the same UUID, and xfs mounts a UUID only once: `nouuid`. Only the
/// kernel can tell whether the log is empty.
fn xfs(volume: &dyn Device, way: Way) -> io::Result<Result<FileSystem, String>> {
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
    Ok(Ok(FileSystem::new("xfs", "nouuid")
        .or_without_journal("norecovery,nouuid")
        .replayed(way)))
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
