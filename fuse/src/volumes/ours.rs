//! Distinguishes vbk's mounts from others by the kernel's table alone. Unmounts nothing.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use vbk_repo::mounts::{self, Mount};

use crate::sys;
use crate::volumes::error::{MountError, Result};

/// Prefix of the source of a tmpfs that holds file systems; the path of the mount with the images follows.
const FILES_SOURCE: &str = "vbk-files:";

/// Content of a vbk mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// Images, through FUSE.
    Images,
    /// The file systems in the images of the mount `hidden`.
    Files {
        /// Mount point of the images.
        hidden: PathBuf,
    },
}

/// A file system that a process serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FuseMount {
    /// Number, as `stat` shows it. The kernel gives it to another file system after this one was unmounted.
    pub device: (u32, u32),
    /// User who mounted it, if the kernel says so.
    pub user: Option<u32>,
}

/// A mount of vbk on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OurMount {
    /// Mount point.
    pub point: PathBuf,
    /// Content.
    pub kind: MountKind,
    /// Source, as the kernel lists it.
    pub source: OsString,
    /// The FUSE file system with the images or files; `None` if it is gone.
    pub served: Option<FuseMount>,
    /// True if the process that served it is gone: nothing in it can be read, and it should be unmounted.
    pub dead: bool,
}

/// Lists every vbk mount on this machine, without the mounts with the images of a mount of files. Asks each FUSE mount
/// for an answer, so a slow one delays the list.
pub fn list_ours() -> Result<Vec<OurMount>> {
    let mounts = read_mounts()?;
    let listed = mounts.iter().filter_map(|mount| {
        let kind = kind_of(mount)?;
        let dead = match &kind {
            MountKind::Images if files_mount_of(&mounts, &mount.mount_point).is_some() => {
                return None;
            }
            MountKind::Images => sys::is_dead(&mount.mount_point),
            MountKind::Files { hidden } => match images_at(&mounts, hidden) {
                Some(images) => sys::is_dead(&images.mount_point),
                None => !hidden.exists(),
            },
        };
        Some(OurMount {
            point: mount.mount_point.clone(),
            served: served_by(&mounts, mount, &kind),
            kind,
            source: mount.source.clone(),
            dead,
        })
    });
    Ok(listed.collect())
}

/// Returns the file system that a process serves for a mount of vbk.
pub(super) fn served_by(mounts: &[Mount], mount: &Mount, kind: &MountKind) -> Option<FuseMount> {
    let served = match kind {
        MountKind::Images => mount,
        MountKind::Files { hidden } => images_at(mounts, hidden)?,
    };
    let mut options = served.options.1.split(',');
    let user = options.find_map(|option| option.strip_prefix("user_id="));
    Some(FuseMount {
        device: served.device,
        user: user.and_then(|user| user.parse().ok()),
    })
}

/// Returns the users who have mounted something with vbk. Touches no mount.
pub fn users_of_ours() -> Result<BTreeSet<u32>> {
    let mounts = read_mounts()?;
    let users = mounts
        .iter()
        .filter_map(|mount| served_by(&mounts, mount, &kind_of(mount)?)?.user);
    Ok(users.collect())
}

/// Returns a directory as the kernel's table of mounts writes it. Touches no mount.
pub fn mount_point(dir: &Path) -> Result<PathBuf> {
    resolve(&read_mounts()?, dir)
}

/// Returns the number of the file system that is mounted at exactly `point`, as `stat` shows it.
pub fn device_at(point: &Path) -> Result<Option<(u32, u32)>> {
    let mounts = read_mounts()?;
    Ok(bottom_at(&mounts, point).map(|mount| mount.device))
}

/// Returns the mount point of the file systems that are mounted from the images at `hidden`. Touches no mount.
pub fn files_mounted_from(hidden: &Path) -> Result<Option<PathBuf>> {
    let mounts = read_mounts()?;
    let hidden = resolve(&mounts, hidden)?;
    Ok(files_mount_of(&mounts, &hidden).map(|mount| mount.mount_point.clone()))
}

/// Returns the source string of a tmpfs for images in `hidden`.
pub(super) fn files_source(hidden: &Path) -> OsString {
    let mut source = OsString::from(FILES_SOURCE);
    source.push(hidden);
    source
}

/// Returns the kind of a vbk mount; `None` for another mount.
pub(super) fn kind_of(mount: &Mount) -> Option<MountKind> {
    let source = mount.source.as_bytes();
    match mount.fs_type.as_str() {
        "fuse.vbk" => Some(MountKind::Images),
        // As root, fuser 0.18 leaves the subtype out (fuse_mount_sys in its mnt/fuse_pure.rs).
        "fuse" if source.starts_with(b"vbk") => Some(MountKind::Images),
        "tmpfs" => {
            let hidden = source.strip_prefix(FILES_SOURCE.as_bytes())?;
            let hidden = OsString::from_vec(hidden.to_vec()).into();
            Some(MountKind::Files { hidden })
        }
        _ => None,
    }
}

/// Returns the lowest mount at exactly `dir`: the one whose parent has another mount point.
pub(super) fn bottom_at<'a>(mounts: &'a [Mount], dir: &Path) -> Option<&'a Mount> {
    let here = |mount: &&Mount| mount.mount_point == dir;
    mounts.iter().filter(here).find(|mount| {
        let stands_on = |other: &Mount| other.id == mount.parent && other.id != mount.id;
        !mounts.iter().filter(here).any(stands_on)
    })
}

/// Returns the mount with images at exactly `hidden`.
pub(super) fn images_at<'a>(mounts: &'a [Mount], hidden: &Path) -> Option<&'a Mount> {
    bottom_at(mounts, hidden).filter(|mount| kind_of(mount) == Some(MountKind::Images))
}

/// Returns the mount of files whose images are in the mount at `hidden`.
pub(super) fn files_mount_of<'a>(mounts: &'a [Mount], hidden: &Path) -> Option<&'a Mount> {
    mounts
        .iter()
        .find(|mount| matches!(kind_of(mount), Some(MountKind::Files { hidden: theirs }) if theirs == hidden))
}

/// Returns the path of a mount as the kernel's table writes it. Examines `dir` itself only if nothing is mounted there,
/// because a mount may be dead.
pub(super) fn resolve(mounts: &[Mount], dir: &Path) -> Result<PathBuf> {
    let look_error = |source| MountError::Look {
        dir: dir.to_owned(),
        source,
    };
    let absolute = std::path::absolute(dir).map_err(look_error)?;
    let is_mount = |path: &Path| mounts.iter().any(|mount| mount.mount_point == path);
    // The path as given comes first: it reaches a dead mount without touching anything on the way.
    if is_mount(&absolute) {
        return Ok(absolute);
    }
    let point = with_real_parent(&absolute);
    if is_mount(&point) {
        return Ok(point);
    }
    // Nothing is mounted at this exact name, but it may be a symbolic link to a mount point.
    Ok(match point.read_link() {
        Ok(target) => with_real_parent(&point.parent().unwrap_or(&point).join(target)),
        Err(_) => point,
    })
}

/// Resolves the symbolic links in all parts of a path but the last, which is not examined.
fn with_real_parent(path: &Path) -> PathBuf {
    let real = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => parent.canonicalize().map(|parent| parent.join(name)),
        // `/`, or a path that ends in `..`.
        _ => path.canonicalize(),
    };
    real.unwrap_or_else(|_| path.to_owned())
}

/// Reads the kernel's table of mounts.
pub(super) fn read_mounts() -> Result<Vec<Mount>> {
    mounts::read().map_err(|source| MountError::KernelTable {
        path: "/proc/self/mountinfo".into(),
        source,
    })
}
