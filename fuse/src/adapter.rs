//! Translates between [`ImageFs`] and the kernel, and does nothing else.

pub(crate) mod files;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use vbk_repo::Error;
use vbk_repo::ErrorKind;

use crate::tree::{Attributes, ImageFs, Kind, Name};

/// Time for which the kernel may cache a name: short enough that a forgotten backup disappears, and `latest` moves, at
/// once for people.
const TTL: Duration = Duration::from_secs(1);
/// lseek(2): linux/fs.h.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

pub(crate) struct Adapter {
    tree: Arc<ImageFs>,
    /// Owner of all files: user and group.
    owner: (u32, u32),
    /// Content of each open directory at the time it was opened, so that a listing in several parts is consistent.
    listings: Mutex<HashMap<u64, Arc<Vec<Name>>>>,
    next_listing: AtomicU64,
    ended: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Adapter {
    /// Makes an adapter that calls `ended` when the kernel has released the file system.
    pub(crate) fn new(tree: Arc<ImageFs>, ended: Box<dyn FnOnce() + Send + Sync>) -> Self {
        Self {
            tree,
            owner: (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw()),
            listings: Mutex::default(),
            next_listing: AtomicU64::new(1),
            ended: Some(ended),
        }
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
        // Without ASYNC_DIO, the kernel sends a direct read to us one piece at a time (fs/fuse/file.c, fuse_direct_IO).
        for flag in [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_PARALLEL_DIROPS] {
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_background(128);
        let _ = config.set_congestion_threshold(96);
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
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size as usize {
                buffer.resize(size as usize, 0);
            }
            match self.tree.read(fh.0, offset, &mut buffer[..size as usize]) {
                Ok(len) => reply.data(&buffer[..len]),
                Err(error) => reply.error(errno(&error)),
            }
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
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let found = match whence {
            SEEK_DATA => self.tree.next_data(fh.0, offset),
            SEEK_HOLE => self.tree.next_hole(fh.0, offset),
            _ => return reply.error(Errno::EINVAL),
        };
        match found {
            Ok(Some(found)) => reply.offset(found as i64),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(errno(&error)),
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
        match self.tree.list(ino.0) {
            Ok(names) => {
                let handle = self.next_listing.fetch_add(1, Ordering::Relaxed);
                let mut listings = self.listings.lock();
                listings.insert(handle, Arc::new(names));
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listing = {
            let listings = self.listings.lock();
            listings.get(&fh.0).cloned().unwrap_or_default()
        };
        let dots = [".", ".."].map(|name| (ino, FileType::Directory, name));
        let names = listing
            .iter()
            .map(|name| (INodeNo(name.number), file_type(name.kind), name.name.as_str()));
        let all = dots.into_iter().chain(names).enumerate();
        for (index, (number, kind, name)) in all.skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if reply.add(number, index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        let mut listings = self.listings.lock();
        listings.remove(&fh.0);
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
