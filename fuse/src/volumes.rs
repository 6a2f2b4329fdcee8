//! Mounts the file systems inside images below one directory, and takes everything down again. Keeps no state: what belongs to a directory
//! is read from the kernel, so that a teardown also works when the process that mounted it was killed.
//!
//! `vbk mount --files DIR` makes this stack, bottom first:
//!
//! 1. HIDDEN: a FUSE mount with the images, in a directory that nobody looks into.
//! 2. DIR: a tiny tmpfs whose source is `vbk-files:HIDDEN`. It ties DIR to HIDDEN and holds one directory per file system.
//! 3. /dev/loopN: one per file system, its backing file in HIDDEN, cleared by the kernel with its last user.
//! 4. DIR/p1 ...: the file systems. That of a disk without partitions stands on DIR itself, on top of the tmpfs.
//!
//! What a killed process leaves: after step 1 a FUSE mount that no `vbk-files:` names ([`clean_leftovers`] finds it), after step 2 and later
//! what [`unmount`] of DIR finds; a loop device that no mount holds ends with the process.
//!
//! The mounts keep the propagation of their surroundings: in a private one, a service with a mount namespace of its own would keep its copy,
//! and the loop devices with it, after ours is unmounted.

#![forbid(unsafe_code)]

mod checks;
mod ours;
mod teardown;
mod users;

#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::loopdev::{self, LoopDevice, SectorSize};
use crate::mount_error::{MountError, Result};
use crate::mountinfo;
use crate::sys::{self, Errno, Writable};

pub use checks::{check_fuse, check_loop_rights, check_mount_point};
pub use ours::{MountKind, OurMount, files_mounted_from, list_ours};
pub use teardown::{Cleaned, Unmounted, WhenBusy, clean_leftovers, unmount};

/// What is in a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A file system, by the kernel's name for it: `ext4`, `xfs`, `vfat`.
    FileSystem(String),
    /// Nothing to mount, and why, in words for the user: `swap`, `LVM physical volume`.
    NotMountable(String),
}

/// A partition, or a disk without partitions, that may hold a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its place below the directory: `p1`, `vda/p1`. Empty for the directory itself. Places must not lie in one another.
    pub name: PathBuf,
    /// The image of just this volume.
    pub image: PathBuf,
    /// The sector size of the disk.
    pub sector_size: SectorSize,
    /// What is in it.
    pub content: Content,
}

/// What became of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeReport {
    /// Its place below the directory.
    pub name: PathBuf,
    /// The file system, where there is one.
    pub fs: Option<String>,
    /// Whether it can be used now.
    pub outcome: Outcome,
}

/// Whether a volume was mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was.
    Mounted {
        /// All options, as mount(8) would take them.
        options: String,
        /// What the user must know about the content.
        warning: Option<String>,
    },
    /// It was not; the others were not held up.
    Skipped {
        /// Why, in words.
        reason: String,
    },
}

/// What a file system is told besides the flags that all get.
struct Options {
    /// Always.
    plain: &'static str,
    /// When it cannot be mounted as it is, because its journal would have to be replayed and the device is read-only.
    without_journal: Option<&'static str>,
}

fn options(fs: &str) -> Options {
    let (plain, without_journal) = match fs {
        // A superblock may ask for `errors=panic`, which stops this host when the guest's file system is damaged, read-only or not
        // (ext4_handle_error, fs/ext4/super.c). ext2 and ext3 are the same driver.
        "ext2" | "ext3" | "ext4" => ("errors=remount-ro", Some("errors=remount-ro,noload")),
        // Two days of one disk have one UUID, and xfs mounts a UUID only once.
        "xfs" => ("nouuid", Some("norecovery,nouuid")),
        "btrfs" => ("", Some("rescue=nologreplay")),
        "f2fs" | "nilfs2" => ("", Some("norecovery")),
        _ => ("", None),
    };
    Options { plain, without_journal }
}

// A minute, not seconds: what was synced may be in the journal only until the flusher writes it back, some 35 s later on ext4 and xfs.
const JOURNAL_WARNING: &str = "the journal was not replayed: files written in the last minute before the backup may be missing or \
     inconsistent";

/// Mounts the volumes below `dir`, read-only, `nodev,nosuid,noexec`; reports on each in the order given. A volume that cannot be mounted is
/// reported and holds nobody up. An error means that nothing could be mounted at all, and that nothing is left.
///
/// `hidden` is the mount with the images. It and the directory right above it must be made for this mount alone: teardown removes both.
/// Where no report says mounted, there is only an empty frame at `dir`: the caller then says why and unmounts it.
pub fn mount_volumes(dir: &Path, hidden: &Path, volumes: &[Volume]) -> Result<Vec<VolumeReport>> {
    check_places(volumes)?;
    checks::check_mount_point(dir)?;
    checks::check_loop_rights()?;
    // Names in the kernel's tables have no symbolic links in them; all this is alive now, later it may not be.
    let frame_error = |source| MountError::Frame {
        dir: dir.to_owned(),
        source,
    };
    let dir = &fs::canonicalize(dir).map_err(frame_error)?;
    let hidden = &fs::canonicalize(hidden).map_err(frame_error)?;
    let source = ours::files_source(hidden);
    sys::mount(Path::new(&source), dir, "tmpfs", Writable::Yes, "mode=755,size=1m")
        .map_err(|errno| frame_error(errno.into()))?;
    fill_frame(dir, volumes).map_err(|errno| {
        if let Err(error) = teardown::drop_frame(dir) {
            tracing::warn!(dir = %dir.display(), %error, "cannot undo a mount that failed");
        }
        frame_error(errno)
    })
}

/// Mounts what has a directory of its own, closes the frame for writing, then mounts what stands on the frame itself and hides it.
fn fill_frame(dir: &Path, volumes: &[Volume]) -> std::io::Result<Vec<VolumeReport>> {
    let on_frame = |volume: &Volume| volume.name.as_os_str().is_empty();
    let mut reports = Vec::with_capacity(volumes.len());
    for volume in volumes.iter().filter(|volume| !on_frame(volume)) {
        let point = dir.join(&volume.name);
        if matches!(volume.content, Content::FileSystem(_)) {
            fs::create_dir_all(&point)?;
        }
        let report = mount_volume(&point, volume);
        if matches!(report.outcome, Outcome::Skipped { .. }) {
            // No empty directory that looks like an empty file system.
            remove_empty(&point, dir);
        }
        reports.push(report);
    }
    sys::remount_read_only(dir)?;
    for volume in volumes.iter().filter(|volume| on_frame(volume)) {
        reports.push(mount_volume(dir, volume));
    }
    let place = |report: &VolumeReport| volumes.iter().position(|it| it.name == report.name);
    reports.sort_by_key(place);
    Ok(reports)
}

/// Removes a directory and those above it below `dir`, as far as they are empty.
fn remove_empty(point: &Path, dir: &Path) {
    let below = |it: &&Path| it.starts_with(dir) && *it != dir;
    for empty in point.ancestors().take_while(below) {
        if fs::remove_dir(empty).is_err() {
            return;
        }
    }
}

fn mount_volume(point: &Path, volume: &Volume) -> VolumeReport {
    let (fs, outcome) = match &volume.content {
        Content::NotMountable(reason) => (None, Outcome::Skipped { reason: reason.clone() }),
        Content::FileSystem(fs) => (Some(fs.clone()), mount_file_system(point, volume, fs)),
    };
    VolumeReport {
        name: volume.name.clone(),
        fs,
        outcome,
    }
}

fn mount_file_system(point: &Path, volume: &Volume, fs: &str) -> Outcome {
    let device = match LoopDevice::attach(&volume.image, volume.sector_size) {
        Ok(device) => device,
        Err(error) => {
            let reason = match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            };
            return Outcome::Skipped { reason };
        }
    };
    let outcome = mount_device(&device, point, fs);
    if matches!(outcome, Outcome::Skipped { .. }) {
        // The kernel clears it after the last close; wait, so that the image is free when this returns.
        let attached = loopdev::Attached::of_number(device.number());
        drop(device);
        if let Some(attached) = attached.filter(|it| it.backing == volume.image) {
            attached.wait_cleared(teardown::LOOP_WAIT);
        }
    }
    outcome
}

fn mount_device(device: &LoopDevice, point: &Path, fs: &str) -> Outcome {
    let Options { plain, without_journal } = options(fs);
    let mounted = |data: &str, warning: Option<String>| {
        let comma = if data.is_empty() { "" } else { "," };
        Outcome::Mounted {
            options: format!("ro,nodev,nosuid,noexec{comma}{data}"),
            warning,
        }
    };
    let skipped = |errno| Outcome::Skipped {
        reason: reason(fs, errno),
    };
    let first = match try_mount(device, point, fs, plain) {
        Ok(()) => return mounted(plain, None),
        Err(errno) => errno,
    };
    let Some(data) = without_journal.filter(|_| may_be_the_journal(first)) else {
        return skipped(first);
    };
    match try_mount(device, point, fs, data) {
        Ok(()) => mounted(data, Some(format!("mounted with {data}: {JOURNAL_WARNING}"))),
        // Refused for another reason: with a good journal the first error says more, after a dirty one only the second does.
        Err(second) if first == Errno::EROFS => skipped(second),
        Err(_) => skipped(first),
    }
}

/// Whether a file system that needs its journal replayed, or has a broken one, may fail like this on a read-only device: ext4 and xfs with
/// EROFS, btrfs with EIO; seen on 6.18. The others are those of a journal that cannot be read.
fn may_be_the_journal(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EROFS | Errno::EIO | Errno::EINVAL | Errno::EUCLEAN | Errno::EBADMSG
    )
}

fn try_mount(device: &LoopDevice, point: &Path, fs: &str, data: &str) -> std::result::Result<(), Errno> {
    sys::mount(&device.node(), point, fs, Writable::No, data)?;
    if shows_device(device, point) {
        return Ok(());
    }
    // A btrfs older than Linux 6.7 knows a file system by its UUID only, and may show another day's device that is mounted already.
    if let Err(error) = sys::unmount(point, true) {
        tracing::warn!(point = %point.display(), %error, "cannot unmount a file system of another device");
    }
    Err(Errno::EEXIST)
}

/// Whether the file system at `point` reads from our device: by the kernel's table, not by asking the file system.
fn shows_device(device: &LoopDevice, point: &Path) -> bool {
    mountinfo::read().is_ok_and(|mounts| {
        mounts
            .iter()
            .any(|mount| mount.mount_point == point && mount.is_on_loop(device.number()))
    })
}

/// Why the kernel did not mount a file system, in words.
fn reason(fs: &str, errno: Errno) -> String {
    match errno {
        Errno::ENODEV => format!("this kernel has no {fs} file system (`modprobe {fs}`?)"),
        Errno::EINVAL => format!(
            "the kernel does not take it for {fs}: damaged, or with features newer than this kernel (`dmesg` says which)"
        ),
        Errno::EUCLEAN | Errno::EBADMSG => {
            format!("the {fs} file system is damaged (`dmesg` says where)")
        }
        Errno::EIO => format!(
            "reading the {fs} file system failed: damaged, or the backup cannot be read (see the log of vbk and `dmesg`)"
        ),
        Errno::EROFS => format!("{fs} has to be repaired first, and backups are read-only"),
        Errno::EEXIST => {
            format!("the same {fs} file system is mounted from another backup; unmount that first")
        }
        Errno::ENOENT => format!("parts of the {fs} file system are on other disks"),
        Errno::EOPNOTSUPP => format!("the {fs} file system uses what this kernel cannot do"),
        Errno::ENOMEM => "there is not enough memory to mount it".to_owned(),
        Errno::EPERM | Errno::EACCES => "the right to mount it is missing (CAP_SYS_ADMIN)".to_owned(),
        other => format!("mounting {fs} failed: {}", other.desc()),
    }
}

/// Places come from disk names: none may leave the directory or lie in another.
fn check_places(volumes: &[Volume]) -> Result<()> {
    let bad = |volume: &Volume, why| {
        Err(MountError::BadPlace {
            name: volume.name.clone(),
            why,
        })
    };
    let to_mount: Vec<_> = volumes
        .iter()
        .filter(|volume| matches!(volume.content, Content::FileSystem(_)))
        .collect();
    for (index, volume) in to_mount.iter().enumerate() {
        let mut parts = volume.name.components();
        if !parts.all(|part| matches!(part, Component::Normal(_))) {
            return bad(volume, "it is not a path below the mount point");
        }
        let others = to_mount[..index].iter();
        let mut inside = others.map(|other| (&other.name, &volume.name));
        if inside.any(|(a, b)| a.starts_with(b) || b.starts_with(a)) {
            return bad(volume, "another one has this place or lies in it");
        }
    }
    Ok(())
}
