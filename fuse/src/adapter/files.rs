//! Translates between [`FileFs`] and the kernel, and does nothing else.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use jiff::Timestamp;
use vbk_inside::Error;
use vbk_inside::device::SharedDevice;
use vbk_inside::fs::{FileKind, Stat};

use super::shared::{Line, Listed, Listings, Part, configure, seek, with_buffer};
use crate::file_tree::{FileFs, Object};

/// Time for which the kernel may cache names and attributes: a backup does not change.
const TTL: Duration = Duration::from_secs(3600);
/// Names of a directory that are read at once: a larger one is read in parts, each from the start of the directory.
const PART_NAMES: usize = 50_000;

pub(crate) struct FilesAdapter {
    tree: Arc<FileFs>,
    checks_modes: bool,
    listings: Listings<Object>,
    ended: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl FilesAdapter {
    /// Makes an adapter that calls `ended` when the kernel has released the file system. With `checks_modes`, the kernel
    /// checks the rights of each user by modes and ACLs.
    pub(crate) fn new(tree: Arc<FileFs>, checks_modes: bool, ended: Box<dyn FnOnce() + Send + Sync>) -> Self {
        Self {
            tree,
            checks_modes,
            listings: Listings::default(),
            ended: Some(ended),
        }
    }

    fn content(&self, ino: INodeNo) -> Result<SharedDevice, Errno> {
        self.tree.content(ino.0).map_err(|error| {
            log("open a file", ino.0, &error);
            errno(&error)
        })
    }

    /// Reads up to [`PART_NAMES`] names of a directory, from the one with this number on.
    fn part(&self, directory: u64, from: usize) -> Result<Part<Object>, Errno> {
        let mut names = Vec::new();
        let mut at = 0;
        let listed = self.tree.list(directory, &mut |name| {
            at += 1;
            if at > from {
                names.push(Listed {
                    object: name.object,
                    number: name.number,
                    kind: file_type(name.kind),
                    name: name.name,
                });
            }
            match names.len() < PART_NAMES {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        match listed {
            Err(error) if names.is_empty() => {
                log("list a directory", directory, &error);
                Err(errno(&error))
            }
            // The names that can be read are of use without the rest; the next part is then the error.
            _ => Ok(Part {
                from,
                is_last: listed.is_ok() && names.len() < PART_NAMES,
                names,
            }),
        }
    }
}

/// Returns attributes for an object that has none.
fn unknown(number: u64, kind: FileType) -> FileAttr {
    FileAttr {
        kind,
        perm: 0,
        ..attr(number, &Stat::of_directory(Timestamp::UNIX_EPOCH))
    }
}

fn attr(number: u64, of: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(number),
        size: of.size_bytes,
        blocks: of.size_bytes.div_ceil(512),
        atime: SystemTime::from(of.accessed),
        mtime: SystemTime::from(of.modified),
        ctime: SystemTime::from(of.changed),
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(of.kind),
        perm: of.mode,
        nlink: of.links,
        uid: of.uid,
        gid: of.gid,
        rdev: rdev(of.device),
        blksize: 128 << 10,
        flags: 0,
    }
}

/// Encodes a device number as the kernel's `new_encode_dev` (linux/kdev_t.h).
fn rdev((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xfff00) << 12
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Link => FileType::Symlink,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

fn errno(error: &Error) -> Errno {
    match error {
        Error::Io(_) | Error::Damaged(_) => Errno::EIO,
        Error::Unsupported(_) => Errno::EOPNOTSUPP,
        Error::NotFound => Errno::ENOENT,
        Error::NotADirectory => Errno::ENOTDIR,
        Error::NotAFile => Errno::EISDIR,
    }
}

/// Logs what a program can't tell from its error number.
fn log(doing: &str, number: u64, error: &Error) {
    if matches!(error, Error::Io(_) | Error::Damaged(_) | Error::Unsupported(_)) {
        tracing::warn!(inode = number, "can't {doing}: {error}");
    }
}

impl Filesystem for FilesAdapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // A program that walks a tree gets the attributes of the files with their names.
        let plus = InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO;
        configure(config, InitFlags::FUSE_CACHE_SYMLINKS | plus);
        if self.checks_modes {
            // The group bits of a file with an ACL are its mask and not the rights of its group, which may have none.
            let added = config.add_capabilities(InitFlags::FUSE_POSIX_ACL);
            added.map_err(|_| std::io::Error::other("the kernel checks no ACLs on FUSE mounts"))?;
        }
        Ok(())
    }

    fn destroy(&mut self) {
        if let Some(ended) = self.ended.take() {
            ended();
        }
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.tree.lookup(parent.0, name.as_bytes()) {
            Ok((number, stat)) => reply.entry(&TTL, &attr(number, &stat), Generation(0)),
            Err(error) => {
                log("look up a name", parent.0, &error);
                reply.error(errno(&error));
            }
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, times: u64) {
        self.tree.forget(ino.0, times);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree.stat(ino.0) {
            Ok(stat) => reply.attr(&TTL, &attr(ino.0, &stat)),
            Err(error) => {
                log("read attributes", ino.0, &error);
                reply.error(errno(&error));
            }
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.tree.read_link(ino.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(&error)),
        }
    }

    /// The kernel then opens and closes files on its own, and asks no more (`FUSE_NO_OPEN_SUPPORT`, Linux 3.15).
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let content = match self.content(ino) {
            Ok(content) => content,
            Err(errno) => return reply.error(errno),
        };
        let left = content.size_bytes().saturating_sub(offset);
        let len = (size as usize).min(usize::try_from(left).unwrap_or(usize::MAX));
        with_buffer(len, |buffer| match content.read_at(offset, buffer) {
            Ok(()) => reply.data(buffer),
            Err(error) => {
                tracing::warn!(inode = ino.0, offset, "can't read a file: {error}");
                reply.error(Errno::EIO);
            }
        });
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let content = match self.content(ino) {
            Ok(content) => content,
            Err(errno) => return reply.error(errno),
        };
        let data = |offset| content.next_data(offset).map_err(|_| Errno::EIO);
        let hole = |offset| match offset < content.size_bytes() {
            true => content.next_hole(offset).map(Some).map_err(|_| Errno::EIO),
            false => Ok(None),
        };
        match seek((offset, whence), data, hole) {
            Ok(found) => reply.offset(found),
            Err(errno) => reply.error(errno),
        }
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.part(ino.0, 0) {
            Ok(part) => reply.opened(
                self.listings.open(part),
                FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.listings
            .reply((ino, fh, offset), |from| self.part(ino.0, from), reply);
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let read = |from| self.part(ino.0, from);
        let listed = self.listings.each((fh, offset), read, |line, next| {
            let name = match line {
                Line::Dot(dot) => {
                    let attr = unknown(ino.0, FileType::Directory);
                    return reply.add(ino, next, dot, &Duration::ZERO, &attr, Generation(0));
                }
                Line::Name(name) => name,
            };
            let (number, stat) = self.tree.found(name.object);
            let (attr, ttl) = match &stat {
                Ok(stat) => (attr(number, stat), TTL),
                // The name is listed, and the kernel asks again when a program wants more of it: that is the error.
                Err(_) => (unknown(number, name.kind), Duration::ZERO),
            };
            let is_full = reply.add(INodeNo(number), next, name.name(), &ttl, &attr, Generation(0));
            // The kernel never sees this entry.
            if is_full {
                self.tree.forget(number, 1);
            }
            is_full
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.listings.close(fh);
        reply.ok();
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.tree.xattrs(ino.0) {
            Ok(all) => match all.iter().find(|xattr| xattr.name == name.as_bytes()) {
                Some(xattr) => reply_xattr(&xattr.value, size, reply),
                None => reply.error(Errno::ENODATA),
            },
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.tree.xattrs(ino.0) {
            Ok(all) => {
                let names: Vec<u8> = all
                    .iter()
                    .flat_map(|xattr| xattr.name.iter().copied().chain([0]))
                    .collect();
                reply_xattr(&names, size, reply);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 512, 255, 512);
    }
}

/// Answers as getxattr(2) and listxattr(2): a size of 0 asks for the length.
fn reply_xattr(bytes: &[u8], size: u32, reply: ReplyXattr) {
    match size as usize {
        0 => reply.size(bytes.len() as u32),
        size if size < bytes.len() => reply.error(Errno::ERANGE),
        _ => reply.data(bytes),
    }
}
