//! Translates between [`FileFs`] and the kernel, and does nothing else.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};
use parking_lot::Mutex;
use vbk_inside::Error;
use vbk_inside::fs::{FileKind, Stat};

use super::{SEEK_DATA, SEEK_HOLE};
use crate::file_tree::{FileFs, Name};

/// Time for which the kernel may cache names and attributes: a backup does not change.
const TTL: Duration = Duration::from_secs(3600);
/// Names of a directory that are kept for a program that lists it; a larger one is read in parts of so many.
const KEPT_NAMES: usize = 100_000;

/// Part of a directory that a program lists.
#[derive(Default)]
struct Part {
    /// Number of the first name.
    from: usize,
    names: Vec<Name>,
}

impl Part {
    /// Returns the names from this number on; `None` if another part has them.
    fn names(&self, from: usize) -> Option<&[Name]> {
        let names = self.names.get(from.checked_sub(self.from)?..)?;
        let is_last = self.names.len() < KEPT_NAMES;
        (is_last || !names.is_empty()).then_some(names)
    }
}

pub(crate) struct FilesAdapter {
    tree: Arc<FileFs>,
    listings: Mutex<HashMap<u64, Arc<Part>>>,
    next_listing: AtomicU64,
    ended: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl FilesAdapter {
    /// Makes an adapter that calls `ended` when the kernel has released the file system.
    pub(crate) fn new(tree: Arc<FileFs>, ended: Box<dyn FnOnce() + Send + Sync>) -> Self {
        Self {
            tree,
            listings: Mutex::default(),
            next_listing: AtomicU64::new(1),
            ended: Some(ended),
        }
    }

    /// Reads up to [`KEPT_NAMES`] names of a directory, from the one with this number on.
    fn part(&self, directory: u64, from: usize) -> Result<Part, Error> {
        let mut names = Vec::new();
        let mut at = 0;
        let listed = self.tree.list(directory, &mut |name| {
            at += 1;
            if at > from {
                names.push(name);
            }
            match names.len() < KEPT_NAMES {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        // The names that can be read are of use without the rest.
        match listed {
            Err(error) if names.is_empty() => Err(error),
            Err(error) => {
                tracing::warn!("a directory is shown in part: {error}");
                Ok(Part { from, names })
            }
            Ok(()) => Ok(Part { from, names }),
        }
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
        let wanted = [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ];
        for flag in wanted {
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

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.tree.open_file(ino.0) {
            Ok(handle) => reply.opened(
                FileHandle(handle),
                FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
            ),
            Err(error) => {
                log("open a file", ino.0, &error);
                reply.error(errno(&error));
            }
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
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
        let content = match self.tree.opened(fh.0) {
            Ok(content) => content,
            Err(error) => return reply.error(errno(&error)),
        };
        let left = content.size_bytes().saturating_sub(offset);
        let len = (size as usize).min(usize::try_from(left).unwrap_or(usize::MAX));
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            match content.read_at(offset, &mut buffer[..len]) {
                Ok(()) => reply.data(&buffer[..len]),
                Err(error) => {
                    tracing::warn!(inode = ino.0, offset, "can't read a file: {error}");
                    reply.error(Errno::EIO);
                }
            }
        });
    }

    fn lseek(&self, _: &Request, _: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let (Ok(offset), Ok(content)) = (u64::try_from(offset), self.tree.opened(fh.0)) else {
            return reply.error(Errno::ENXIO);
        };
        let found = match whence {
            SEEK_DATA => content.next_data(offset),
            SEEK_HOLE if offset < content.size_bytes() => content.next_hole(offset).map(Some),
            SEEK_HOLE => Ok(None),
            _ => return reply.error(Errno::EINVAL),
        };
        match found {
            Ok(Some(found)) => reply.offset(found as i64),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(_) => reply.error(Errno::EIO),
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
        match self.part(ino.0, 0) {
            Ok(part) => {
                let handle = self.next_listing.fetch_add(1, Ordering::Relaxed);
                self.listings.lock().insert(handle, Arc::new(part));
                reply.opened(
                    FileHandle(handle),
                    FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
                );
            }
            Err(error) => {
                log("list a directory", ino.0, &error);
                reply.error(errno(&error));
            }
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, dot) in [".", ".."].iter().enumerate().skip(at) {
            if reply.add(ino, index as u64 + 1, FileType::Directory, dot) {
                return reply.ok();
            }
            at = index + 1;
        }
        let from = at - 2;
        let mut part = self.listings.lock().get(&fh.0).cloned().unwrap_or_default();
        if part.names(from).is_none() {
            part = match self.part(ino.0, from) {
                Ok(next) => Arc::new(next),
                Err(error) => return reply.error(errno(&error)),
            };
            self.listings.lock().insert(fh.0, Arc::clone(&part));
        }
        for (index, name) in part.names(from).unwrap_or_default().iter().enumerate() {
            // Programs take the number 0 for an erased entry.
            let number = INodeNo(name.number.max(1));
            let next = (from + index) as u64 + 3;
            if reply.add(number, next, file_type(name.kind), OsStr::from_bytes(&name.name)) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.listings.lock().remove(&fh.0);
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
