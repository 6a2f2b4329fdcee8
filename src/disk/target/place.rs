//! A name in a directory that is held open. Never follows a link or waits for a pipe that another user put on the path.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, readlinkat, renameat2};
use nix::sys::stat::{FileStat, Mode, fstatat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use crate::error::{Error, Result};
use crate::host::device::DeviceNumber;
use crate::host::run;

/// Limit of links to follow, the same as the kernel's (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// Device and inode, which identify a file whatever its name.
pub(super) type Identity = (u64, u64);

/// A name in a directory.
pub(super) struct Place {
    /// Path as given, for messages.
    pub(super) path: PathBuf,
    /// Used only to look up names (`O_PATH`).
    directory: File,
    name: OsString,
    /// File with that name; not opened, only held (`O_PATH`).
    pub(super) found: Option<File>,
}

impl Place {
    /// Finds the directory and the file that now has the name. Follows only links of root and of the caller: another
    /// user could point a link to any file or disk, at any moment.
    pub(super) fn find(path: &Path) -> Result<Self> {
        let failed = |errno: Errno| Error::target("open", path)(errno.into());
        let mut left: VecDeque<OsString> = VecDeque::new();
        let mut directory = begin(path, &mut left).map_err(failed)?;
        let mut links = 0;
        let mut is_linked = false;
        while let Some(name) = left.pop_front() {
            let handle = match open(&directory, &name, OFlag::O_PATH) {
                Err(Errno::ENOENT) if is_linked => return Err(Error::DanglingLink(path.to_owned())),
                Err(Errno::ENOENT) if left.is_empty() && name != ".." => {
                    return Ok(Self {
                        path: path.to_owned(),
                        directory,
                        name,
                        found: None,
                    });
                }
                result => result.map_err(failed)?,
            };
            let metadata = handle.metadata().map_err(Error::target("open", path))?;
            if metadata.is_symlink() {
                let owner = metadata.uid();
                if owner != 0 && owner != geteuid().as_raw() {
                    return Err(Error::ForeignLink {
                        path: path.to_owned(),
                        link: name.into(),
                        owner,
                    });
                }
                links += 1;
                if links > MAX_LINKS {
                    return Err(failed(Errno::ELOOP));
                }
                is_linked |= left.is_empty();
                let target = PathBuf::from(readlinkat(&handle, "").map_err(failed)?);
                let rest = std::mem::take(&mut left);
                let start = begin(&target, &mut left).map_err(failed)?;
                if target.is_absolute() {
                    directory = start;
                }
                left.extend(rest);
            } else if left.is_empty() && !metadata.is_dir() {
                return Ok(Self {
                    path: path.to_owned(),
                    directory,
                    name,
                    found: Some(handle),
                });
            } else {
                directory = handle;
            }
        }
        Err(Error::NotADisk {
            path: path.to_owned(),
            what: "a directory",
        })
    }

    /// Opens the directory itself, to list and to sync it.
    pub(super) fn open_directory(&self) -> Result<File> {
        let opened = open(&self.directory, OsStr::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY);
        opened.map_err(|errno| Error::target("create a file in", self.shown_directory())(errno.into()))
    }

    /// Returns the directory's path, for messages.
    pub(super) fn shown_directory(&self) -> PathBuf {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => ".".into(),
        }
    }

    /// Returns device and inode of the file that now has the name.
    pub(super) fn identity(&self) -> Option<Identity> {
        identity_in(&self.directory, &self.name)
    }

    /// Returns the name without its directory.
    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }
}

/// Opens the directory where a path begins, and appends the names in the path.
fn begin(path: &Path, names: &mut VecDeque<OsString>) -> nix::Result<File> {
    let mut start = ".";
    for part in path.components() {
        match part {
            Component::RootDir => start = "/",
            Component::CurDir => {}
            part => names.push_back(part.as_os_str().to_owned()),
        }
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(start, flags, Mode::empty()).map(File::from)
}

/// Opens a name in a directory. Does not follow a link, and does not wait for the other end of a pipe.
fn open(directory: &File, name: &OsStr, flags: OFlag) -> nix::Result<File> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    openat(directory, name, flags, Mode::empty()).map(File::from)
}

fn stat_in(directory: &File, name: &OsStr) -> nix::Result<FileStat> {
    fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

fn identity_in(directory: &File, name: &OsStr) -> Option<Identity> {
    stat_in(directory, name).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

/// Returns device and inode of an open file.
pub(super) fn identity_of(file: &File) -> io::Result<Identity> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Opens the file of a descriptor again, with other flags. No name is looked up, so it is the same file or device.
pub(super) fn reopen(held: &File, write: bool, flags: OFlag) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(flags.bits())
        .open(format!("/proc/self/fd/{}", held.as_raw_fd()))
}

/// Returns the number of a block device; `None` for another file.
pub(super) fn is_device(held: &File) -> io::Result<Option<DeviceNumber>> {
    let metadata = held.metadata()?;
    Ok(metadata
        .file_type()
        .is_block_device()
        .then(|| DeviceNumber::from_raw(metadata.rdev())))
}

const PART_PREFIX: &str = ".vbk-part-";

/// An unfinished file, under a temporary name in its final directory.
pub(super) struct Part {
    directory: File,
    name: String,
    identity: Identity,
}

impl Part {
    /// Creates the file, readable only for the caller, and removes the leftovers of killed restores to the same name.
    pub(super) fn create(place: &Place) -> Result<(Self, File)> {
        let directory = place.open_directory()?;
        // The number can't be guessed, so no other user can have created the file.
        let name = part_name(run::random()? as u32, place.name());
        let failed = |doing| Error::target(doing, place.shown_directory().join(&name));
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = openat(&directory, name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let file = File::from(made.map_err(|errno| failed("create")(errno.into()))?);
        let identity = identity_of(&file).map_err(failed("create"))?;
        let part = Self {
            directory,
            name,
            identity,
        };
        // The lock tells the next restore that this one is running.
        let locked = file.try_lock().map_err(io::Error::from);
        locked.map_err(Error::target("lock", place.shown_directory().join(&part.name)))?;
        let owner = file.metadata().map_err(Error::target("create", &place.path))?.uid();
        part.remove_leftovers(place.name(), owner);
        Ok((part, file))
    }

    /// Returns its directory.
    pub(super) fn directory(&self) -> &File {
        &self.directory
    }

    /// Renames it to its final name; with `replace`, it replaces the file with that name. The file itself is compared
    /// before and after, because the owner of the directory may replace its entries.
    pub(super) fn rename(&self, place: &Place, replace: bool) -> Result<()> {
        let exchanged = |what| Error::TargetExchanged {
            path: place.path.clone(),
            what,
        };
        if identity_in(&self.directory, OsStr::new(&self.name)) != Some(self.identity) {
            return Err(exchanged(
                "can't be created: the restored file was moved away before it was renamed",
            ));
        }
        let rename = |flags| {
            let (from, to) = (self.name.as_str(), place.name());
            renameat2(&self.directory, from, &self.directory, to, flags)
        };
        let renamed = match replace {
            true => rename(RenameFlags::empty()),
            false => match rename(RenameFlags::RENAME_NOREPLACE) {
                // Not every file system can rename without replacing.
                Err(Errno::EINVAL) if stat_in(&self.directory, place.name()).is_ok() => Err(Errno::EEXIST),
                Err(Errno::EINVAL) => rename(RenameFlags::empty()),
                result => result,
            },
        };
        match renamed {
            Err(Errno::EEXIST) => return Err(Error::TargetExists(place.path.clone())),
            result => {
                result.map_err(|errno| Error::target("rename the restored file to", &place.path)(errno.into()))?
            }
        }
        match identity_in(&self.directory, place.name()) == Some(self.identity) {
            true => Ok(()),
            false => Err(exchanged("is not the restored file")),
        }
    }

    /// Removes the file.
    pub(super) fn remove(&self) {
        if identity_in(&self.directory, OsStr::new(&self.name)) != Some(self.identity) {
            return;
        }
        if let Err(error) = unlinkat(&self.directory, self.name.as_str(), UnlinkatFlags::NoRemoveDir) {
            tracing::warn!("can't remove the unfinished {}: {error}", self.name);
        }
    }

    /// Removes leftovers; those that can't be removed cost only space. Other users may have created anything under such
    /// a name, so only files with the same owner are touched.
    fn remove_leftovers(&self, target: &OsStr, owner: u32) {
        let listed = std::fs::read_dir(format!("/proc/self/fd/{}", self.directory.as_raw_fd()));
        for entry in listed.into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name == *self.name || !is_part_of(&name, target) {
                continue;
            }
            let Ok(stat) = stat_in(&self.directory, &name) else {
                continue;
            };
            // Before opening, because opening a device may have an effect.
            if stat.st_mode & nix::libc::S_IFMT != nix::libc::S_IFREG {
                continue;
            }
            let Ok(file) = open(&self.directory, &name, OFlag::O_RDONLY) else {
                continue;
            };
            let is_left = file
                .metadata()
                .is_ok_and(|found| found.is_file() && found.uid() == owner && found.nlink() == 1);
            if is_left && file.try_lock().is_ok() {
                let _ = unlinkat(&self.directory, &*name, UnlinkatFlags::NoRemoveDir);
            }
        }
    }
}

/// Returns the name of an unfinished file: short enough for every file system, whatever its final name.
fn part_name(number: u32, name: &OsStr) -> String {
    let name: String = name.to_string_lossy().chars().take(50).collect();
    format!("{PART_PREFIX}{number}-{name}")
}

fn is_part_of(found: &OsStr, target: &OsStr) -> bool {
    let found = found.to_string_lossy();
    let number = found.strip_prefix(PART_PREFIX).and_then(|rest| rest.split('-').next());
    number
        .and_then(|number| number.parse().ok())
        .is_some_and(|number| part_name(number, target) == found)
}
