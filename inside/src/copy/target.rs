//! Names in directories of this host. Every call is relative to an open directory and follows no link.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, fstat, linkat, makedev, mkdirat, mknodat, openat, renameat,
    renameat_with, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::{Fault, Trouble};
use crate::fs::FileKind;

/// Attempts to find a free temporary name; another process of the same number may have left some.
const MAX_NAMES: u64 = 1000;

/// Flags with which a directory below the target is opened.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Returns a path of the guest's bytes for messages.
pub(super) fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// Device and inode of an object in the target.
pub(super) type Identity = (u64, u64);

/// Opens the target itself.
pub(super) fn open(path: &Path) -> Result<OwnedFd, Errno> {
    openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Makes a directory that only its owner can enter, or opens an existing one; returns whether it is new.
pub(super) fn make_directory(above: &OwnedFd, name: &[u8]) -> Result<(OwnedFd, bool), Trouble> {
    let is_new = match mkdirat(above, name, Mode::RWXU) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(errno.into()),
    };
    match openat(above, name, DIRECTORY, Mode::empty()) {
        Ok(opened) => Ok((opened, is_new)),
        Err(Errno::NOTDIR | Errno::LOOP) => Err(Fault::ExistsAsOther.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// Tests that a name may be given to a new object, before its content is copied.
pub(super) fn check_free(directory: &OwnedFd, name: &[u8], force: bool) -> Result<(), Trouble> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            Err(Fault::ExistsAsDirectory.into())
        }
        Ok(_) if force => Ok(()),
        Ok(_) => Err(Fault::Exists.into()),
    }
}

/// Object without content.
pub(super) enum Made<'a> {
    /// A symbolic link with its target.
    Link(&'a [u8]),
    /// A device or named pipe.
    Node(FileKind, (u32, u32)),
}

/// An object under a temporary name, which is removed unless it gets its own.
pub(super) struct Temporary<'d> {
    directory: &'d OwnedFd,
    name: String,
    /// The object: open for writing if it is a file, otherwise only as a path (`O_PATH`).
    pub object: Option<OwnedFd>,
    is_file: bool,
    is_renamed: bool,
}

impl<'d> Temporary<'d> {
    fn new<T>(
        directory: &'d OwnedFd,
        names: &mut u64,
        mut make: impl FnMut(&str) -> Result<T, Errno>,
    ) -> Result<(Self, T), Errno> {
        for _ in 0..MAX_NAMES {
            *names += 1;
            let name = format!(".vbk-{}-{names}", std::process::id());
            match make(&name) {
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
                Ok(made) => {
                    let temporary = Self {
                        directory,
                        name,
                        object: None,
                        is_file: false,
                        is_renamed: false,
                    };
                    return Ok((temporary, made));
                }
            }
        }
        Err(Errno::EXIST)
    }

    /// Makes an empty file that only its owner can read.
    pub fn file(directory: &'d OwnedFd, names: &mut u64) -> Result<Self, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (mut made, file) = Self::new(directory, names, |name| {
            openat(directory, name, flags, Mode::RUSR | Mode::WUSR)
        })?;
        made.object = Some(file);
        made.is_file = true;
        Ok(made)
    }

    /// Makes an object without content.
    pub fn make(directory: &'d OwnedFd, names: &mut u64, what: &Made<'_>) -> Result<Self, Errno> {
        let (mut made, ()) = Self::new(directory, names, |name| match what {
            Made::Link(to) => symlinkat(*to, directory, name),
            Made::Node(kind, (major, minor)) => {
                let file_type = match kind {
                    FileKind::CharDevice => FileType::CharacterDevice,
                    FileKind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                mknodat(
                    directory,
                    name,
                    file_type,
                    Mode::RUSR | Mode::WUSR,
                    makedev(*major, *minor),
                )
            }
        })?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let object = openat(directory, &made.name[..], flags, Mode::empty())?;
        // Another user who may write here could have put something of another user's in its place, and it is about to get
        // an owner and a mode.
        let found = fstat(&object)?;
        let expected = match what {
            Made::Link(_) => FileType::Symlink,
            Made::Node(FileKind::CharDevice, _) => FileType::CharacterDevice,
            Made::Node(FileKind::BlockDevice, _) => FileType::BlockDevice,
            Made::Node(..) => FileType::Fifo,
        };
        let is_ours = found.st_uid == rustix::process::geteuid().as_raw() && found.st_nlink == 1;
        if FileType::from_raw_mode(found.st_mode) != expected || !is_ours {
            made.is_renamed = true;
            return Err(Errno::STALE);
        }
        made.object = Some(object);
        Ok(made)
    }

    /// Makes another name of a file that was copied to a path below the target.
    pub fn link(target: &OwnedFd, path: &[u8], directory: &'d OwnedFd, names: &mut u64) -> Result<Self, Errno> {
        let mut above: Option<OwnedFd> = None;
        let mut parts = path.split(|byte| *byte == b'/').peekable();
        while let Some(part) = parts.next() {
            let from = above.as_ref().unwrap_or(target);
            if parts.peek().is_none() {
                let link = |name: &str| linkat(from, part, directory, name, AtFlags::empty());
                return Self::new(directory, names, link).map(|(made, ())| made);
            }
            above = Some(openat(from, part, DIRECTORY, Mode::empty())?);
        }
        Err(Errno::NOENT)
    }

    /// Returns the file for writing.
    pub fn file_handle(&self) -> std::io::Result<File> {
        match &self.object {
            Some(object) => Ok(File::from(object.try_clone()?)),
            None => Err(std::io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Returns whether the object is open only as a path.
    pub fn is_path_only(&self) -> bool {
        !self.is_file
    }

    /// Returns device and inode of the object.
    pub fn identity(&self) -> Result<Identity, Errno> {
        let stat = statat(self.directory, &self.name[..], AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Gives the object its own name.
    pub fn rename(mut self, name: &[u8], force: bool) -> Result<(), Trouble> {
        let from = &self.name[..];
        let renamed = match force {
            true => renameat(self.directory, from, self.directory, name),
            false => match renameat_with(self.directory, from, self.directory, name, RenameFlags::NOREPLACE) {
                // The file system does not know this flag. Only a process of this host could take the name meanwhile.
                Err(Errno::INVAL | Errno::NOSYS) => {
                    check_free(self.directory, name, false)?;
                    renameat(self.directory, from, self.directory, name)
                }
                renamed => renamed,
            },
        };
        match renamed {
            Ok(()) => {
                // Renaming one name of a file to another of the same file does nothing: rename(2).
                self.is_renamed = matches!(
                    statat(self.directory, from, AtFlags::SYMLINK_NOFOLLOW),
                    Err(Errno::NOENT)
                );
                Ok(())
            }
            Err(Errno::EXIST) => Err(Fault::Exists.into()),
            Err(Errno::ISDIR) => Err(Fault::ExistsAsDirectory.into()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.is_renamed {
            let _ = unlinkat(self.directory.as_fd(), &self.name[..], AtFlags::empty());
        }
    }
}
