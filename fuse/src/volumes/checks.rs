//! Checks before a mount, so that the message names the missing thing and not the system call that failed.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::ours;
use crate::sys;
use crate::volumes::error::{MountError, Result};
use crate::volumes::loopdev;

/// Paths of fusermount3 in the distributions.
const FUSERMOUNT: [&str; 4] = [
    "/usr/bin/fusermount3",
    "/bin/fusermount3",
    "/usr/local/bin/fusermount3",
    "/run/wrappers/bin/fusermount3",
];

/// Fails unless `dir` is an empty directory where nothing is mounted. Touches no dead mount.
pub fn check_mount_point(dir: &Path) -> Result<()> {
    let mounts = ours::read_mounts()?;
    let point = ours::resolve(&mounts, dir)?;
    if let Some(mount) = ours::bottom_at(&mounts, &point) {
        let dir = dir.to_owned();
        return Err(match ours::kind_of(mount) {
            Some(_) => MountError::AlreadyOurs { dir },
            None => MountError::AlreadyMounted {
                dir,
                fs_type: mount.fs_type.clone(),
                origin: mount.source.to_string_lossy().into_owned(),
            },
        });
    }
    let look = |source: io::Error| {
        let dir = dir.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => MountError::NoDirectory { dir },
            io::ErrorKind::NotADirectory => MountError::NotADirectory { dir },
            _ => MountError::Look { dir, source },
        }
    };
    match fs::read_dir(&point).map_err(look)?.next() {
        None => Ok(()),
        Some(Err(source)) => Err(look(source)),
        Some(Ok(_)) => Err(MountError::NotEmpty { dir: dir.to_owned() }),
    }
}

/// Tests that a directory above `dir` admits root only, so that other users can't reach a mount at `dir`.
pub(crate) fn only_root_reaches(dir: &Path) -> bool {
    // The bits of the group also bound what an access control list gives to others (acl(5)).
    const PASS_BY_OTHERS: u32 = 0o011;
    let closed = |above: &Path| fs::metadata(above).is_ok_and(|it| it.uid() == 0 && it.mode() & PASS_BY_OTHERS == 0);
    // By its real path, and not `dir` itself, which the mount hides.
    fs::canonicalize(dir).is_ok_and(|dir| dir.ancestors().skip(1).any(closed))
}

/// Fails unless this process may mount and can get a loop device.
pub(crate) fn check_loop_rights() -> Result<()> {
    if !may_mount()? {
        return Err(MountError::NotRoot);
    }
    loopdev::check_rights()
}

/// Fails unless this process can make a FUSE mount, itself or through fusermount3.
pub fn check_fuse() -> Result<()> {
    const DEVICE: &str = "/dev/fuse";
    let opened = OpenOptions::new().read(true).write(true).open(DEVICE);
    opened.map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => MountError::FuseDenied { source },
        _ => MountError::NoFuse { source },
    })?;
    if may_mount()? || FUSERMOUNT.iter().any(|path| Path::new(path).exists()) {
        Ok(())
    } else {
        Err(MountError::NoFusermount)
    }
}

fn may_mount() -> Result<bool> {
    sys::may_mount().map_err(|source| MountError::KernelTable {
        path: "/proc/self/status".into(),
        source,
    })
}
