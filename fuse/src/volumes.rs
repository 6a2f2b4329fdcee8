//! Mounts the file systems inside images below one directory, and takes everything down again. Keeps no state: what belongs to a directory
//! is read from the kernel, so that a teardown also works when the process that mounted it was killed.
//!
//! `vbk mount --files DIR` makes this stack, bottom first:
//!
//! 1. HIDDEN: a FUSE mount with the images, in a directory that nobody looks into.
//! 2. DIR: a tiny tmpfs whose source is `vbk-files:HIDDEN`. It ties DIR to HIDDEN and holds one directory per file system.
//! 3. /dev/loopN: one per file system, or per device of a btrfs, its backing file in HIDDEN, cleared by the kernel with its last user.
//! 4. DIR/p1 ...: the file systems. That of a disk without partitions may stand on DIR itself, on top of the tmpfs.
//!
//! The tmpfs lets only root in, as a FUSE mount does without `allow_other`: a guest's files have owners who are other people here.
//!
//! What a killed process leaves: after step 1 a FUSE mount that no `vbk-files:` names ([`clean_leftovers`] finds it), after step 2 and later
//! what [`unmount`] of DIR finds; a loop device that no mount holds ends with the process.
//!
//! The mounts keep the propagation of their surroundings: in a private one, a service with a mount namespace of its own would keep its copy,
//! and the loop devices with it, after ours is unmounted.

#![forbid(unsafe_code)]

mod checks;
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
use crate::loopdev::{SectorSize, Window};
use crate::mount_error::{MountError, Result};
use crate::sys::{self, Writable};

pub use checks::{check_fuse, check_loop_rights, check_mount_point, only_root_reaches};
pub use ours::{MountKind, OurMount, files_mounted_from, list_ours};
pub use teardown::{Cleaned, Unmounted, WhenBusy, abandoned, clean_leftovers, unmount};

/// What is in a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A file system, and how it is mounted.
    FileSystem(FileSystem),
    /// Nothing to mount.
    NotMountable {
        /// Why, in words for the user: `swap space`, `LVM physical volume of group vg0`.
        reason: String,
        /// Whether files of the user may be in it.
        may_hold_files: bool,
    },
}

/// A partition, or a disk without partitions, that may hold a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its place below the directory: `p1`, `vda/p1`. Empty for the directory itself. Places must not lie in one another.
    pub name: PathBuf,
    /// The image of just this volume.
    pub image: PathBuf,
    /// The part of the image that holds the content.
    pub window: Window,
    /// The images of the file system's other devices, and the parts of them.
    pub others: Vec<(PathBuf, Window)>,
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
        /// Where in it the guest's root is, if that is not the top: the default subvolume of a btrfs.
        root: Option<PathBuf>,
    },
    /// It was not; the others were not held up.
    Skipped {
        /// Why, in words.
        reason: String,
        /// Whether files of the user may be in it.
        may_hold_files: bool,
    },
}

/// Who may look into the file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Root.
    Owner,
    /// All users of this machine, as far as the owners and modes of the guest's files let them.
    Everyone,
}

/// Mounts the volumes below `dir`, read-only, `nodev,nosuid,noexec`; reports on each in the order given. A volume that cannot be mounted is
/// reported and holds nobody up. An error means that nothing could be mounted at all, and that nothing is left.
///
/// `hidden` is the mount with the images. It and the directory right above it must be made for this mount alone: teardown removes both.
/// Where no report says mounted, there is only an empty frame at `dir`: the caller then says why and unmounts it.
pub fn mount_volumes(dir: &Path, hidden: &Path, volumes: &[Volume], access: Access) -> Result<Vec<VolumeReport>> {
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
    let options = match access {
        Access::Owner => "mode=700,size=1m",
        Access::Everyone => "mode=755,size=1m",
    };
    sys::mount(Path::new(&source), dir, "tmpfs", Writable::Yes, options).map_err(|errno| frame_error(errno.into()))?;
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
        let report = mounting::mount_volume(&point, volume);
        if matches!(report.outcome, Outcome::Skipped { .. }) {
            // No empty directory that looks like an empty file system.
            remove_empty(&point, dir);
        }
        reports.push(report);
    }
    sys::remount_read_only(dir)?;
    for volume in volumes.iter().filter(|volume| on_frame(volume)) {
        reports.push(mounting::mount_volume(dir, volume));
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
