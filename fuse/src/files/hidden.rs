//! The directory with the images for a mount of files, which only its owner may enter.
//!
//! The process that makes the mount holds a lock on it from its creation until the mount of files refers to it. The kernel
//! releases the lock when the process ends, however it ends. So another process can tell an unfinished mount, however slow,
//! from one whose process was killed.
//!
//! The process that serves the images holds a lock on their mount point, below the mount, as long as it lives. Another mount
//! namespace may share the directories and not the mounts: an empty directory there is a mount here, and its removal would
//! detach that mount (rmdir(2) fails with EBUSY only for mounts of its own namespace). A process outlives its mounts in all
//! of them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::volumes::{abandoned, remove_directories};

/// Mount point of the images.
const IMAGES: &str = "images";
/// Attempts to create the directory. Another process can remove it only in the moment before its lock is taken.
const ATTEMPTS: u32 = 16;

/// A directory for the images, with a unique name.
pub(super) struct Hidden {
    path: PathBuf,
    /// The lock on the directory above `path`.
    _lock: File,
}

impl Hidden {
    pub(super) fn create(root: &Path) -> Result<Self> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Runtime { path, source }
        };
        let make = |path: &Path, recursive| fs::DirBuilder::new().mode(0o700).recursive(recursive).create(path);
        make(root, true).map_err(failed(root))?;
        let stamp = jiff::Timestamp::now().as_nanosecond();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let own = root.join(format!("files-{}-{stamp:x}-{attempt}", std::process::id()));
            make(&own, false).map_err(failed(&own))?;
            match locked(&own) {
                Ok(lock) => {
                    let path = own.join(IMAGES);
                    make(&path, false).map_err(failed(&path))?;
                    return Ok(Self { path, _lock: lock });
                }
                Err(error) if attempt == ATTEMPTS => return Err(failed(&own)(error)),
                Err(_) => {}
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Locks a new directory, and fails if it was removed in the meantime.
fn locked(directory: &Path) -> io::Result<File> {
    let lock = File::open(directory)?;
    lock.lock()?;
    let (held, named) = (lock.metadata()?, fs::metadata(directory)?);
    match (held.dev(), held.ino()) == (named.dev(), named.ino()) {
        true => Ok(lock),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

/// The directory with the images, from the side of the process that serves them. Dropped, it is removed; the mount must be
/// gone.
pub struct Served {
    images: PathBuf,
    lock: Option<File>,
}

impl Served {
    /// Takes the mount point, before anything is mounted there.
    pub fn take(images: &Path) -> io::Result<Self> {
        let lock = File::open(images)?;
        lock.try_lock()?;
        Ok(Self {
            images: images.to_owned(),
            lock: Some(lock),
        })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.lock = None;
        remove_directories(&self.images);
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // Fails, as it should, while something is mounted there; unmounting then removes them.
        let _ = fs::remove_dir(&self.path);
        let _ = self.path.parent().map(fs::remove_dir);
    }
}

/// Removes the directories below `root` of mounts whose processes were killed. Never more than empty directories.
pub fn clean_directories(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let own = entry.path();
        if entry.file_name().to_string_lossy().starts_with("files-")
            && let Some(_lock) = abandoned(&own)
        {
            remove_directories(&own.join(IMAGES));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_mount_of_a_live_process_is_not_removed() {
        let root = tempfile::tempdir().expect("a directory");
        let hidden = Hidden::create(root.path()).expect("made");
        let path = hidden.path().to_owned();
        // Old enough for any clock.
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        let own = File::open(path.parent().expect("a parent")).expect("opens");
        own.set_modified(long_ago).expect("sets the time");
        clean_directories(root.path());
        assert!(path.exists());
        drop(hidden);
        assert!(!path.exists());
    }

    #[test]
    fn the_directory_of_a_process_that_serves_images_is_not_removed() {
        let root = tempfile::tempdir().expect("a directory");
        // As another mount namespace sees it after the command has ended.
        let images = root.path().join("files-1-2-1").join(IMAGES);
        fs::create_dir_all(&images).expect("made");
        let served = Served::take(&images).expect("no other process has it");
        clean_directories(root.path());
        assert!(images.exists());
        drop(served);
        assert!(!images.parent().expect("a parent").exists());
    }

    #[test]
    fn leftovers_of_a_killed_process_are_removed_at_once() {
        let root = tempfile::tempdir().expect("a directory");
        let left = root.path().join("files-1-2-1/images");
        fs::create_dir_all(&left).expect("made");
        let other = root.path().join("other");
        fs::create_dir(&other).expect("made");
        clean_directories(root.path());
        assert!(!left.exists() && !left.parent().expect("a parent").exists());
        assert!(other.exists());
    }
}
