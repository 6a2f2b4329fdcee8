//! Mounts the file systems inside images below one directory, and takes everything down again. Keeps no state: teardown
//! reads from the kernel what belongs to a directory, so it also works after the process that mounted it was killed.
//!
//! `vbk mount --files DIR` makes this stack, bottom first:
//!
//! 1. HIDDEN: a FUSE mount with the images, in a directory that users never see.
//! 2. DIR: a tiny tmpfs whose source is `vbk-files:HIDDEN`. It ties DIR to HIDDEN and holds one directory per file
//!    system.
//! 3. /dev/loopN: one per file system, or per device of a btrfs. Its backing file is in HIDDEN; the kernel clears it
//!    after its last user closes it.
//! 4. DIR/p1 ...: the file systems. That of a disk without partitions may stand on DIR itself, on top of the tmpfs.
//!
//! The tmpfs admits root only, like a FUSE mount without `allow_other`: on this host, the owner ids of a guest's files
//! belong to other people.
//!
//! A killed process leaves, after step 1, a FUSE mount that no `vbk-files:` names ([`clean_leftovers`] finds it), and
//! after step 2 or later, a stack that [`unmount`] of DIR finds. A loop device that no mount holds ends with the
//! process.
//!
//! The mounts keep the propagation of their parent: if they were private, a service with its own mount namespace would
//! keep its copy of them, and the loop devices with it, after ours are unmounted.

mod checks;
mod error;
mod loopdev;
mod mounting;
mod ntfs3g;
mod ours;
mod teardown;
mod users;

#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::drivers::FileSystem;
use crate::sys::{self, Writable};
use error::Result;

pub use checks::{check_fuse, check_mount_point};
pub(crate) use checks::{check_loop_rights, only_root_reaches};
pub use error::MountError;
pub use loopdev::SectorSize;
pub use ours::{FuseMount, MountKind, OurMount, device_at, files_mounted_from, list_ours, mount_point, users_of_ours};
pub use teardown::{Cleaned, Unmounted, WhenBusy, clean_leftovers, unmount};
pub(crate) use teardown::{abandoned, remove_directories};

/// Decision for a volume: to mount it, or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Mount this file system, with its mount options.
    Mount(FileSystem),
    /// Leave it out, because it can't be mounted.
    Skip {
        /// Reason, in words for the user: `swap space`, `LVM physical volume of group vg0`.
        reason: String,
        /// True if it may hold files of the user.
        may_hold_files: bool,
    },
}

/// A partition, or a disk without partitions, that may hold a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Path below the directory: `p1`, `vda/p1`. Empty for the directory itself. No volume's path may lie inside
    /// another's.
    pub name: PathBuf,
    /// Image of this volume alone.
    pub image: PathBuf,
    /// Images of the file system's other devices.
    pub others: Vec<PathBuf>,
    /// Sector size of the disk.
    pub sector_size: SectorSize,
    /// Decision for the volume.
    pub action: Action,
}

/// Result of mounting one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeReport {
    /// Path below the directory.
    pub name: PathBuf,
    /// File system, if the volume has one.
    pub fs: Option<String>,
    /// Mounted or skipped.
    pub outcome: Outcome,
}

/// Outcome of mounting one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The volume is mounted.
    Mounted {
        /// All options, in the form that mount(8) takes.
        options: String,
        /// Restriction on the content that the user must know.
        warning: Option<String>,
        /// Repair that was done on the scratch copy: `its journal was replayed`.
        repaired: Option<String>,
        /// Path of the guest's root inside the file system, if that is not the top: the default subvolume of a btrfs.
        root: Option<PathBuf>,
    },
    /// The volume is not mounted; the others are not affected.
    Skipped {
        /// Reason, in words.
        reason: String,
        /// True if it may hold files of the user.
        may_hold_files: bool,
    },
}

/// Users who may enter the mounted file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Root.
    Owner,
    /// All users of this machine, as far as the owners and modes of the guest's files let them.
    Everyone,
}

/// Mounts the volumes below `dir` with `nodev,nosuid,noexec`, read-only unless a plan says otherwise, and reports on each in the given order. A volume that
/// can't be mounted is reported and does not stop the others. An error means that nothing could be mounted at all, and
/// that nothing is left behind.
///
/// `hidden` is the mount with the images. It and its parent directory must have been made for this mount alone, because
/// teardown removes both. If no report says mounted, only an empty frame is at `dir`: the caller then reports the
/// reasons and unmounts it.
pub fn mount_volumes(dir: &Path, hidden: &Path, volumes: &[Volume], access: Access) -> Result<Vec<VolumeReport>> {
    check_places(volumes)?;
    checks::check_mount_point(dir)?;
    checks::check_loop_rights()?;
    // The kernel's tables have no symbolic links in their names; all parts of the paths answer now, later they may not.
    let frame_error = |source| MountError::Frame {
        dir: dir.to_owned(),
        source,
    };
    let dir = &fs::canonicalize(dir).map_err(frame_error)?;
    let hidden = &fs::canonicalize(hidden).map_err(frame_error)?;
    let source = ours::files_source(hidden);
    let options = match access {
        Access::Owner => "mode=700,size=1m",
        Access::Everyone => "mode=755,size=1m",
    };
    sys::mount(Path::new(&source), dir, "tmpfs", Writable::Yes, options).map_err(|errno| frame_error(errno.into()))?;
    fill_frame(dir, volumes).map_err(|errno| {
        if let Err(error) = teardown::drop_frame(dir) {
            tracing::warn!(dir = %dir.display(), %error, "can't undo a mount that failed");
        }
        frame_error(errno)
    })
}

/// Mounts the volumes that have their own directory, remounts the frame read-only, then mounts the volume that stands
/// on the frame itself and hides it.
fn fill_frame(dir: &Path, volumes: &[Volume]) -> std::io::Result<Vec<VolumeReport>> {
    let on_frame = |volume: &Volume| volume.name.as_os_str().is_empty();
    let mut reports = Vec::with_capacity(volumes.len());
    for volume in volumes.iter().filter(|volume| !on_frame(volume)) {
        let point = dir.join(&volume.name);
        if matches!(volume.action, Action::Mount(_)) {
            fs::create_dir_all(&point)?;
        }
        let report = mounting::mount_volume(&point, volume);
        if matches!(report.outcome, Outcome::Skipped { .. }) {
            // An empty directory would look like an empty file system.
            remove_empty(&point, dir);
        }
        reports.push(report);
    }
    sys::remount_read_only(dir)?;
    for volume in volumes.iter().filter(|volume| on_frame(volume)) {
        reports.push(mounting::mount_volume(dir, volume));
    }
    let position = |report: &VolumeReport| volumes.iter().position(|it| it.name == report.name);
    reports.sort_by_key(position);
    Ok(reports)
}

/// Removes a directory and its parents up to `dir`, as long as they are empty.
fn remove_empty(point: &Path, dir: &Path) {
    let below = |it: &&Path| it.starts_with(dir) && *it != dir;
    for empty in point.ancestors().take_while(below) {
        if fs::remove_dir(empty).is_err() {
            return;
        }
    }
}

/// Checks the volumes' paths, which come from disk names: none may leave the directory or lie inside another.
fn check_places(volumes: &[Volume]) -> Result<()> {
    let bad = |volume: &Volume, why| {
        Err(MountError::BadPlace {
            name: volume.name.clone(),
            why,
        })
    };
    let to_mount: Vec<_> = volumes
        .iter()
        .filter(|volume| matches!(volume.action, Action::Mount(_)))
        .collect();
    for (index, volume) in to_mount.iter().enumerate() {
        let mut parts = volume.name.components();
        if !parts.all(|part| matches!(part, Component::Normal(_))) {
            return bad(volume, "it is not a path below the mount point");
        }
        let others = to_mount[..index].iter();
        let mut inside = others.map(|other| (&other.name, &volume.name));
        if inside.any(|(a, b)| a.starts_with(b) || b.starts_with(a)) {
            return bad(volume, "another one has this path, or one path lies inside the other");
        }
    }
    Ok(())
}
