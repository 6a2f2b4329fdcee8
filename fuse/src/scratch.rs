//! The scratch file of a writable mount.
//!
//! It must never fill the host's disk, and must not survive a mount that did not ask for that, however the mount ends.
//! So it has a limit, leaves a part of the free space free, and has no name; the kernel frees it with its process.
//!
//! Writeback: dirty pages of a file system on such a mount are written to a loop device, through FUSE, to this file, by
//! our own threads. If those waited for writeback themselves, e.g. because an allocation reclaims memory, they would
//! wait for each other for ever. [`enter_writeback`] makes the kernel treat our threads as those of a block device: their
//! allocations never start I/O (`PF_MEMALLOC_NOIO`), also in the file system that holds the scratch file, and are
//! throttled by that file system alone and not by the dirty pages above us (`PF_LOCAL_THROTTLE`; kernel/sys.c). A page
//! fault of ours on swapped memory reads from the swap device, which is not ours.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vbk_inside::overlay::{ChangedDisk, Limits, Scratch};
use vbk_repo::backup::Entry;

use crate::error::{Error, Result};
use crate::sys;

/// Limit unless the user sets one: enough for journals and repairs, and 64 MiB of memory for its index.
const DEFAULT_BYTES: u64 = 8 << 30;

/// A scratch file to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScratchFile {
    /// One without a name, in this directory.
    Temporary(PathBuf),
    /// A new file, which is kept.
    Kept(PathBuf),
}

/// Makes this thread, and those that it starts, safe for serving writes of the kernel's writeback. Only root can; the
/// mounts of other users are not under loop devices that the host's writeback waits for.
pub fn enter_writeback() {
    if let Err(error) = sys::set_io_flusher() {
        tracing::debug!(%error, "this process is not an I/O flusher");
    }
}

/// The name of a file that was just created to be kept. The name is removed again unless the mount starts.
#[derive(Debug)]
pub struct NewName {
    kept: Option<KeptFile>,
}

/// A file that was created to be kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptFile {
    /// Its path.
    pub path: PathBuf,
    /// Device and inode number.
    pub identity: (u64, u64),
}

impl KeptFile {
    /// Removes the file, if the path still leads to it. Logs what prevents that.
    pub fn remove(&self) {
        let found = std::fs::symlink_metadata(&self.path);
        if !found.is_ok_and(|found| (found.dev(), found.ino()) == self.identity) {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!("can't remove {}: {error}", self.path.display());
        }
    }
}

impl NewName {
    /// Returns the file; `None` for one without a name.
    pub fn file(&self) -> Option<KeptFile> {
        self.kept.clone()
    }

    /// Leaves the name, because the mount has started.
    pub fn keep(mut self) {
        self.kept = None;
    }
}

impl Drop for NewName {
    fn drop(&mut self) {
        if let Some(kept) = &self.kept {
            kept.remove();
        }
    }
}

/// Creates the scratch file for the disks of a backup. At most `limit_bytes` are written to it, and a tenth of the space
/// that is free now stays free.
pub fn create(entry: &Entry, file: &ScratchFile, limit_bytes: Option<u64>) -> Result<(Scratch, NewName)> {
    let (ScratchFile::Temporary(path) | ScratchFile::Kept(path)) = file;
    let failed = |source| Error::Scratch {
        path: path.clone(),
        source,
    };
    let opened = match file {
        ScratchFile::Temporary(directory) => without_name(directory),
        ScratchFile::Kept(path) => {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(0o600).open(path)
        }
    };
    let opened = opened.map_err(failed)?;
    let mut name = NewName { kept: None };
    if let ScratchFile::Kept(path) = file {
        let made = opened.metadata().map_err(failed)?;
        name.kept = Some(KeptFile {
            path: path.clone(),
            identity: (made.dev(), made.ino()),
        });
    }
    let stat = nix::sys::statvfs::fstatvfs(&opened).map_err(|errno| failed(errno.into()))?;
    let free_bytes = stat.blocks_available() as u64 * stat.fragment_size() as u64;
    let limits = Limits {
        bytes: limit_bytes.unwrap_or(DEFAULT_BYTES),
        floor_bytes: free_bytes / 10,
    };
    let disk = |image: &vbk_repo::backup::Image| ChangedDisk {
        name: image.disk.to_string(),
        size_bytes: image.size_bytes,
    };
    let disks: Vec<_> = entry.backup.images.iter().map(disk).collect();
    let id = entry.id.to_string();
    let keep = match file {
        ScratchFile::Temporary(_) => None,
        ScratchFile::Kept(_) => Some((id.as_str(), disks.as_slice())),
    };
    let scratch = Scratch::create(opened, limits, keep).map_err(failed)?;
    Ok((scratch, name))
}

/// Creates a file that has no name (`O_TMPFILE`); where the file system has no such files, removes its name at once.
fn without_name(directory: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let mut nameless = options.clone();
    match nameless.custom_flags(nix::libc::O_TMPFILE).open(directory) {
        Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EOPNOTSUPP | nix::libc::EISDIR)) => {}
        result => return result,
    }
    let path = directory.join(format!(".vbk-scratch-{}", std::process::id()));
    let file = options.create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
