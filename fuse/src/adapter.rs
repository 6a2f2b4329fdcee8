//! Translates between [`ImageFs`] and the kernel, and does nothing else.

pub(crate) mod files;
mod shared;

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use vbk_repo::Error;
use vbk_repo::ErrorKind;

use self::shared::{Listed, Listings, Part, configure, seek, with_buffer};
use crate::tree::{Attributes, ImageFs, Kind};

/// Time for which the kernel may cache a name: short enough that a forgotten backup disappears, and `latest` moves, at
/// once for people.
const TTL: Duration = Duration::from_secs(1);

pub(crate) struct Adapter {
    tree: Arc<ImageFs>,
    /// Owner of all files: user and group.
    owner: (u32, u32),
    /// Content of each open directory at the time it was opened, so that a listing in several parts is consistent.
    listings: Listings<()>,
    ended: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Adapter {
    /// Makes an adapter that calls `ended` when the kernel has released the file system.
    pub(crate) fn new(tree: Arc<ImageFs>, ended: Box<dyn FnOnce() + Send + Sync>) -> Self {
        Self {
            tree,
            owner: (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw()),
            listings: Listings::default(),
            ended: Some(ended),
        }
    }

    /// Lists a directory.
    fn list(&self, directory: u64) -> Result<Part<()>, Errno> {
        let names = self.tree.list(directory).map_err(|error| errno(&error))?;
        let listed = names.into_iter().map(|name| Listed {
            object: (),
            number: name.number,
            kind: file_type(name.kind),
            name: name.name.into_bytes(),
        });
        Ok(Part {
            from: 0,
            names: listed.collect(),
            is_last: true,
        })
    }

    fn attr(&self, of: &Attributes) -> FileAttr {
        let modified = SystemTime::from(of.modified);
        FileAttr {
            ino: INodeNo(of.number),
            size: of.size_bytes,
            blocks: of.data_bytes.div_ceil(512),
            atime: modified,
            mtime: modified,
            ctime: modified,
            crtime: modified,
            kind: file_type(of.kind),
            perm: match of.kind {
                Kind::Directory => 0o555,
                Kind::File if self.tree.is_writable() => 0o644,
                Kind::File => 0o444,
                Kind::Link => 0o777,
            },
            nlink: if of.kind == Kind::Directory { 2 } else { 1 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            // Size in which programs should read.
            blksize: 1 << 20,
            flags: 0,
        }
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Link => FileType::Symlink,
    }
}

fn errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::NotFound => Errno::ENOENT,
        ErrorKind::Corrupt | ErrorKind::Unavailable | ErrorKind::Internal => Errno::EIO,
        ErrorKind::Locked => Errno::EBUSY,
        ErrorKind::NoSpace => Errno::ENOSPC,
        ErrorKind::Denied => Errno::EACCES,
        ErrorKind::ReadOnly => Errno::EROFS,
        ErrorKind::Invalid => Errno::EINVAL,
        ErrorKind::Unsupported => Errno::EOPNOTSUPP,
        ErrorKind::Interrupted => Errno::EINTR,
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        configure(config, InitFlags::empty());
        Ok(())
    }

    fn destroy(&mut self) {
        if let Some(ended) = self.ended.take() {
            ended();
        }
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some(name) = name.to_str() else {
            return reply.error(Errno::ENOENT);
        };
        match self.tree.lookup(parent.0, name) {
            Ok(found) => reply.entry(&TTL, &self.attr(&found), Generation(0)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree.attributes(ino.0) {
            Ok(found) => reply.attr(&TTL, &self.attr(&found)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.tree.link(ino.0) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.tree.open_file(ino.0) {
            // Requests of 1 MiB instead of 128 KiB, and no second copy in the page cache. Closing a file sends no
            // request.
            Ok(handle) => reply.opened(
                FileHandle(handle),
                FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
            ),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        with_buffer(size as usize, |buffer| match self.tree.read(fh.0, offset, buffer) {
            Ok(len) => reply.data(&buffer[..len]),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.tree.write(fh.0, offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(errno(&error)),
        }
    }

    /// Accepts what changes nothing: programs set times, and the size that the file has.
    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        fh: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let same_size = match (size, self.tree.attributes(ino.0)) {
            (None, _) => true,
            (Some(size), Ok(found)) => found.kind == Kind::File && found.size_bytes == size,
            (Some(_), Err(_)) => false,
        };
        if mode.is_some() || uid.is_some() || gid.is_some() || !same_size {
            return reply.error(Errno::EPERM);
        }
        self.getattr(request, ino, fh, reply);
    }

    fn lseek(&self, _: &Request, _: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let data = |offset| self.tree.next_data(fh.0, offset).map_err(|error| errno(&error));
        let hole = |offset| self.tree.next_hole(fh.0, offset).map_err(|error| errno(&error));
        match seek((offset, whence), data, hole) {
            Ok(found) => reply.offset(found),
            Err(errno) => reply.error(errno),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.tree.close_file(fh.0);
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.list(ino.0) {
            Ok(names) => reply.opened(self.listings.open(names), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.listings.reply((ino, fh, offset), |_| self.list(ino.0), reply);
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.listings.close(fh);
        reply.ok();
    }

    // The file stays open on the other handles: what matters is `fsync`.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.tree.flush(fh.0) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // Full and without free space, as df shows every read-only file system.
        reply.statfs(0, 0, 0, 0, 0, 512, 255, 512);
    }
}
