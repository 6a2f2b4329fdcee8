//! Takes vbk's mounts down in the order that leaves nothing behind. Never looks into a mount, which may be dead or
//! hang: everything it knows comes from the kernel's tables of mounts and loop devices.
//!
//! The steps for a mount of files, and what a crash after each of them leaves:
//!
//! 1. The file systems, last mounted first. Left: the frame, which still names HIDDEN, so that the next `vbk umount`
//!    continues from here.
//! 2. The loop devices: the kernel clears them after the last unmount. We wait for that, because HIDDEN is busy until
//!    then. Left: the same.
//! 3. HIDDEN, the FUSE mount, whose process ends with it; then its directories. Left: the frame, empty.
//! 4. The frame. It is last because nothing else ties DIR to HIDDEN.
//!
//! A mount is never detached while it still has loop devices that must be found again: the kernel then shows their
//! files without the path of the mount (d_path of a mount that is attached nowhere).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use vbk_repo::mounts::Mount;

use super::ours::{self, FuseMount, MountKind};
use super::users::describe_users;
use crate::sys::{self, Errno};
use crate::volumes::error::{MountError, Result};
use crate::volumes::loopdev::{self, Attached, LoopDevice};

/// Time for which a busy mount is tried again: udev and blkid open new devices for a moment.
const BUSY_RETRY: Duration = Duration::from_secs(1);

/// Time that the kernel may take to clear a loop device after the last close.
pub(super) const LOOP_WAIT: Duration = Duration::from_secs(5);

/// Action for a mount that processes still use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenBusy {
    /// Report the processes and leave it mounted.
    Fail,
    /// Detach it at once: the processes keep what they have open, and the rest ends with them.
    Detach,
}

/// Result of a teardown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmounted {
    /// Mount point.
    pub point: PathBuf,
    /// Kind of the mount.
    pub kind: MountKind,
    /// The file system that a process served for it.
    pub served: Option<FuseMount>,
    /// True if a part of it lives on until its last user is done. Only after [`WhenBusy::Detach`], or where a dead
    /// mount was in use.
    pub detached: bool,
}

/// Leftovers that [`clean_leftovers`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Mounts with images that nothing referred to.
    pub mounts: Vec<PathBuf>,
    /// Loop devices of dead mounts.
    pub loops: Vec<PathBuf>,
}

/// Takes down a vbk mount at `dir`, alive or dead, and waits until its loop devices are gone. After a failure, the same
/// call continues where it stopped. A mount of files needs root; a mount of images needs root, or its owner with
/// fusermount3.
pub fn unmount(dir: &Path, when_busy: WhenBusy) -> Result<Unmounted> {
    let mounts = ours::read_mounts()?;
    let point = ours::resolve(&mounts, dir)?;
    let bottom = ours::bottom_at(&mounts, &point).ok_or_else(|| MountError::NotMounted { dir: dir.to_owned() })?;
    let kind = ours::kind_of(bottom).ok_or_else(|| MountError::NotOurs {
        dir: dir.to_owned(),
        fs_type: bottom.fs_type.clone(),
        origin: bottom.source.to_string_lossy().into_owned(),
    })?;
    let may_mount = sys::may_mount().map_err(|source| MountError::KernelTable {
        path: "/proc/self/status".into(),
        source,
    })?;
    let detached = match &kind {
        MountKind::Files { hidden } if may_mount => unmount_files(&mounts, bottom, hidden, when_busy)?,
        MountKind::Files { .. } => return Err(MountError::NotRoot),
        MountKind::Images => {
            free_images(&mounts, &point, when_busy)?;
            if may_mount {
                unmount_tree(&mounts, bottom, when_busy)?
            } else {
                unmount_as_user(&point, when_busy)?
            }
        }
    };
    Ok(Unmounted {
        served: ours::served_by(&mounts, bottom, &kind),
        point,
        kind,
        detached,
    })
}

/// Removes what killed processes left: mounts with images below `hidden_root` that no mount of files refers to, and
/// loop devices on dead mounts from which nothing is mounted. A dead mount of files or images stays for [`unmount`],
/// because the user knows its name. Logs and leaves what it can't remove.
pub fn clean_leftovers(hidden_root: &Path) -> Result<Cleaned> {
    let mounts = ours::read_mounts()?;
    let root = ours::resolve(&mounts, hidden_root)?;
    let mut cleaned = Cleaned::default();
    let images = mounts
        .iter()
        .filter(|mount| ours::kind_of(mount) == Some(MountKind::Images));
    for mount in images {
        let point = &mount.mount_point;
        let dead = sys::is_dead(point);
        // Locked first, then examined: its process makes the mount of files before it releases the lock.
        let lock = mount
            .at_or_below(&root)
            .then(|| point.parent().and_then(abandoned))
            .flatten();
        let abandoned = lock.is_some() && ours::files_mount_of(&ours::read_mounts()?, point).is_none();
        if !dead && !abandoned {
            continue;
        }
        let attached = loopdev::attached_below(point)?;
        let (used, unused): (Vec<_>, Vec<_>) = attached
            .into_iter()
            .partition(|it| mounts.iter().any(|mount| mount.is_on_loop(it.number)));
        for device in unused {
            match clear(&device) {
                Ok(true) => cleaned.loops.push(device.node()),
                Ok(false) => {
                    tracing::warn!(device = %device.node().display(), "loop device of a dead mount is in use")
                }
                Err(error) => {
                    tracing::warn!(device = %device.node().display(), %error, "can't clear a loop device")
                }
            }
        }
        if abandoned && used.is_empty() {
            match unmount_tree(&mounts, mount, WhenBusy::Fail) {
                Ok(_) => {
                    remove_directories(point);
                    cleaned.mounts.push(point.clone());
                }
                Err(error) => {
                    tracing::warn!(mount = %point.display(), %error, "can't remove an abandoned mount");
                }
            }
        }
    }
    Ok(cleaned)
}

/// Undoes a mount of files that failed half-way, but leaves its images mounted, because they were mounted before.
pub(super) fn drop_frame(dir: &Path) -> Result<()> {
    let mounts = ours::read_mounts()?;
    let Some(bottom) = ours::bottom_at(&mounts, dir) else {
        return Ok(());
    };
    let loops = loops_of_tree(&mounts, bottom);
    unmount_tree(&mounts, bottom, WhenBusy::Detach)?;
    for device in loops {
        device.wait_cleared(LOOP_WAIT);
    }
    Ok(())
}

fn unmount_files(mounts: &[Mount], frame: &Mount, hidden: &Path, when_busy: WhenBusy) -> Result<bool> {
    let dir = &frame.mount_point;
    let mut loops = loopdev::attached_below(hidden)?;
    for device in loops_of_tree(mounts, frame) {
        if !loops.contains(&device) {
            loops.push(device);
        }
    }
    // Held, so that no other process gets these numbers before the kernel has forgotten the btrfs on them.
    let is_btrfs = |mount: &Mount| mount.parent == frame.id && mount.fs_type == "btrfs";
    let with_btrfs: Vec<LoopDevice> = match mounts.iter().any(is_btrfs) {
        true => loops
            .iter()
            .filter_map(|device| LoopDevice::hold(device).ok())
            .collect(),
        false => Vec::new(),
    };
    let mut detached = false;
    for mount in tree(mounts, frame) {
        if mount.id != frame.id {
            detached |= unmount_one(&mount.mount_point, when_busy)?;
        }
    }
    with_btrfs.iter().for_each(LoopDevice::forget_btrfs);
    drop(with_btrfs);
    // A detached file system keeps its loop device, and that keeps HIDDEN: both end with the last user.
    let when_busy = if detached { WhenBusy::Detach } else { when_busy };
    detached |= clear_all(dir, &loops, when_busy)?;

    let mounts = ours::read_mounts()?;
    // Another frame on the same images. A copy of this frame made by mount propagation does not count: it goes with
    // this one.
    let shared = mounts.iter().any(|mount| {
        let theirs = ours::kind_of(mount);
        mount.id != frame.id
            && matches!(theirs, Some(MountKind::Files { hidden: theirs }) if theirs == hidden)
            && mount.device != frame.device
    });
    if !shared && let Some(images) = ours::images_at(&mounts, hidden) {
        detached |= unmount_tree(&mounts, images, when_busy)?;
        remove_directories(hidden);
    }
    detached |= unmount_one(dir, when_busy)?;
    Ok(detached)
}

/// Fails if images of the mount at `point` are used through a loop device. If the mount is dead, clears the devices
/// that are not mounted.
fn free_images(mounts: &[Mount], point: &Path, when_busy: WhenBusy) -> Result<()> {
    if when_busy == WhenBusy::Detach {
        return Ok(());
    }
    let in_use = |users| MountError::ImagesInUse {
        dir: point.to_owned(),
        users,
    };
    if let Some(files) = ours::files_mount_of(mounts, point) {
        let files = files.mount_point.display();
        return Err(in_use(format!("{files} (`vbk umount {files}`)")));
    }
    let mut used = Vec::new();
    for device in loopdev::attached_below(point)? {
        let mounted = mounts.iter().any(|mount| mount.is_on_loop(device.number));
        if mounted || !sys::is_dead(point) || !matches!(clear(&device), Ok(true)) {
            used.push(device);
        }
    }
    if used.is_empty() {
        return Ok(());
    }
    Err(in_use(describe_loops(mounts, &used)))
}

/// Returns a mount and all mounts on top of it, in the order in which they can be unmounted.
fn tree<'a>(mounts: &'a [Mount], bottom: &'a Mount) -> Vec<&'a Mount> {
    let mut tree = vec![bottom];
    let mut next = 0;
    while let Some(parent) = tree.get(next).map(|mount| mount.id) {
        // The root of a mount namespace may be its own parent.
        let on_it = |mount: &&Mount| mount.parent == parent && mount.id != parent;
        tree.extend(mounts.iter().filter(on_it));
        next += 1;
    }
    tree.reverse();
    tree
}

/// Returns the loop devices of the file systems that stand directly on a frame. Also finds those whose image mount was
/// detached by hand.
fn loops_of_tree(mounts: &[Mount], frame: &Mount) -> Vec<Attached> {
    let on_frame = mounts.iter().filter(|mount| mount.parent == frame.id);
    let number = |mount: &Mount| {
        let name = mount.source.to_str()?.strip_prefix("/dev/loop")?;
        Attached::of_number(name.parse().ok()?)
    };
    on_frame.filter_map(number).collect()
}

fn unmount_tree(mounts: &[Mount], bottom: &Mount, when_busy: WhenBusy) -> Result<bool> {
    let mut detached = false;
    for mount in tree(mounts, bottom) {
        detached |= unmount_one(&mount.mount_point, when_busy)?;
    }
    Ok(detached)
}

/// Unmounts the top mount at `point`; true if it was in use and had to be detached.
fn unmount_one(point: &Path, when_busy: WhenBusy) -> Result<bool> {
    let unmount_error = |errno: Errno| MountError::Unmount {
        dir: point.to_owned(),
        source: errno.into(),
    };
    let end = Instant::now() + BUSY_RETRY;
    loop {
        match sys::unmount(point, false) {
            Ok(()) => return Ok(false),
            // EINVAL: already unmounted. The others: it stands on a dead mount, which is detached later together with
            // it.
            Err(Errno::EINVAL | Errno::ENOENT | Errno::ENOTCONN) => return Ok(false),
            Err(Errno::EBUSY) if when_busy == WhenBusy::Fail && Instant::now() < end => {
                thread::sleep(Duration::from_millis(50));
            }
            Err(Errno::EBUSY) => break,
            Err(errno) => return Err(unmount_error(errno)),
        }
    }
    if when_busy == WhenBusy::Fail && !sys::is_dead(point) {
        return Err(MountError::Busy {
            dir: point.to_owned(),
            users: describe_users(point),
        });
    }
    sys::unmount(point, true).map_err(unmount_error)?;
    Ok(true)
}

/// Unmounts as a user other than root, through the helper that also mounted; true if it was in use and had to be
/// detached.
fn unmount_as_user(point: &Path, when_busy: WhenBusy) -> Result<bool> {
    match (fusermount(point, &["-u"]), when_busy) {
        (Ok(()), _) => Ok(false),
        (Err(_), WhenBusy::Detach) => fusermount(point, &["-u", "-z"]).map(|()| true),
        (Err(error), WhenBusy::Fail) => Err(error),
    }
}

fn fusermount(point: &Path, options: &[&str]) -> Result<()> {
    let output = Command::new("fusermount3").args(options).arg("--").arg(point).output();
    let output = output.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => MountError::NoFusermount,
        _ => MountError::Unmount {
            dir: point.to_owned(),
            source,
        },
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(MountError::Unmount {
        dir: point.to_owned(),
        source: io::Error::other(said),
    })
}

/// Waits until the loop devices are cleared. Returns true if some live on because their users were detached.
fn clear_all(dir: &Path, loops: &[Attached], when_busy: WhenBusy) -> Result<bool> {
    let mut stuck = Vec::new();
    for device in loops {
        let cleared = match when_busy {
            WhenBusy::Fail => device.wait_cleared(LOOP_WAIT) || matches!(clear(device), Ok(true)),
            WhenBusy::Detach => device.wait_cleared(BUSY_RETRY),
        };
        if !cleared {
            stuck.push(device.clone());
        }
    }
    if stuck.is_empty() || when_busy == WhenBusy::Detach {
        return Ok(!stuck.is_empty());
    }
    let mounts = ours::read_mounts()?;
    let users = describe_loops(&mounts, &stuck);
    let dir = dir.to_owned();
    let mounted = |device: &Attached| mounts.iter().any(|mount| mount.is_on_loop(device.number));
    Err(if stuck.iter().any(mounted) {
        MountError::ImagesInUse { dir, users }
    } else {
        MountError::LoopStays { dir, users }
    })
}

fn clear(device: &Attached) -> io::Result<bool> {
    device.clear()?;
    Ok(device.wait_cleared(BUSY_RETRY))
}

fn describe_loops(mounts: &[Mount], loops: &[Attached]) -> String {
    let describe = |device: &Attached| {
        let node = device.node();
        let mut on_it = mounts.iter().filter(|it| it.is_on_loop(device.number));
        match on_it.next() {
            Some(mount) => format!("{} (mounted at {})", node.display(), mount.mount_point.display()),
            None => node.display().to_string(),
        }
    };
    loops.iter().map(describe).collect::<Vec<_>>().join(", ")
}

/// Removes the directory of a mount with images and its parent, which were made for it, unless the process that serves the
/// images lives, which then removes them. Never more than empty directories.
pub(crate) fn remove_directories(images: &Path) {
    // One that is mounted is not examined: it may be dead.
    let is_mounted = |mounts: Vec<Mount>| Ok(ours::bottom_at(&mounts, &ours::resolve(&mounts, images)?).is_some());
    if !matches!(ours::read_mounts().and_then(is_mounted), Ok(false)) {
        return;
    }
    let _lock = match File::open(images) {
        Ok(directory) if directory.try_lock().is_ok() => Some(directory),
        // Its process may have been killed in between.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        _ => return,
    };
    for dir in images.ancestors().take(2) {
        if let Err(error) = fs::remove_dir(dir) {
            // The process that served it may have removed it first.
            tracing::debug!(dir = %dir.display(), %error, "directory stays");
        }
    }
}

/// Locks the directory of a mount of images, if the process that made it no longer holds the lock: it ended, or its
/// mount of files exists. No process starts to use the directory while this lock is held.
pub(crate) fn abandoned(directory: &Path) -> Option<File> {
    let directory = File::open(directory).ok()?;
    directory.try_lock().ok()?;
    Some(directory)
}
