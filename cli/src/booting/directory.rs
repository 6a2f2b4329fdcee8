//! The private directory of a boot: the mount of the disks, QEMU's sockets and its UEFI variables.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use vbk_fuse::volumes::{self, WhenBusy};

use crate::exit::{Error, Result};
use crate::machine::runtime_directory;

/// Root's directory of them. Not below /run/vbk, whose mounts `vbk mount --files` examines as its own.
const ROOT: &str = "/run/vbk-boot";
/// File that the run holds a lock on, to its end.
const LOCK: &str = "lock";
/// Mount point of the disks.
const DISKS: &str = "disks";

/// A directory that is removed when this is dropped, with the mount in it.
pub struct BootDirectory {
    path: PathBuf,
    _lock: File,
}

impl BootDirectory {
    /// Creates one, and removes those of runs that were killed.
    pub fn create() -> Result<Self> {
        let root = root()?;
        make(&root, true)?;
        clean_leftovers(&root);
        let stamp = jiff::Timestamp::now().as_nanosecond();
        let path = root.join(format!("{}-{stamp:x}", std::process::id()));
        make(&path, false)?;
        let lock = path.join(LOCK);
        let failed = || Error::io(format!("lock {}", lock.display()));
        let file = File::create(&lock).map_err(failed())?;
        file.try_lock().map_err(|error| failed()(error.into()))?;
        let directory = Self { path, _lock: file };
        make(&directory.disks(), false)?;
        Ok(directory)
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the mount point of the disks.
    pub fn disks(&self) -> PathBuf {
        self.path.join(DISKS)
    }
}

impl Drop for BootDirectory {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn root() -> Result<PathBuf> {
    match geteuid().is_root() {
        true => Ok(PathBuf::from(ROOT)),
        false => Ok(runtime_directory()?.join("boot")),
    }
}

fn make(path: &Path, is_parent: bool) -> Result<()> {
    let made = DirBuilder::new().mode(0o700).recursive(is_parent).create(path);
    made.map_err(Error::io(format!("create {}", path.display())))
}

/// Removes the directories of runs that were killed. QEMU and the process with the disks end with their run.
fn clean_leftovers(root: &Path) {
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        // A directory without a lock is being made.
        let Ok(lock) = File::open(entry.path().join(LOCK)) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            remove(&entry.path());
            tracing::info!("removed {}, which a killed run left behind", entry.path().display());
        }
    }
}

/// Removes a directory. Never removes anything below a mount.
fn remove(path: &Path) {
    let disks = path.join(DISKS);
    // Nothing is mounted there after a clean end.
    let _ = volumes::unmount(&disks, WhenBusy::Detach);
    // The system refuses to remove a mount point.
    let gone = match std::fs::remove_dir(&disks) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::fs::remove_dir_all(path),
    };
    if let Err(error) = gone {
        tracing::warn!("can't remove {}: {error}", path.display());
    }
}
