//! Copies files out of a tree to this host, with all of their attributes that the caller may set.
//!
//! The names, links and modes come from a guest, which may be malicious. So nothing below the target directory is ever
//! named by a path: each directory is opened without following links, relative to the one above it, and each object is
//! made under a temporary name, gets its attributes, and then its own name, which must be free ([`CopyOptions::force`]:
//! or that of another object than a directory). A file therefore appears whole or not at all.

mod attributes;
mod content;
mod target;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use crate::error::Error;
use crate::fs::{FileKind, FileTree, Node, Stat, is_name};
use crate::walk::{Entered, Entries};

use attributes::Setter;
use target::{Made, Temporary};

#[cfg(test)]
mod tests;

/// Memory for the paths of files with several names whose other names are still to come.
const MAX_LINKED_BYTES: usize = 64 << 20;

/// Choices of a copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyOptions {
    /// Replace existing files, links and devices. Directories are never replaced.
    pub force: bool,
}

/// Event of a copy, with the path of the object below the target directory.
#[derive(Debug)]
pub enum CopyEvent<'a> {
    /// So many bytes of content were written.
    Written(u64),
    /// The object was copied, but not everything about it.
    Warning(&'a [u8], String),
    /// The object was not copied; the rest goes on.
    Failed(&'a [u8], &'a Fault),
}

/// Reason why one object was not copied.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It can't be read.
    #[error(transparent)]
    Source(#[from] Error),
    /// It can't be made at the target.
    #[error("can't write: {0}")]
    Target(#[from] std::io::Error),
    /// Another object has its name.
    #[error("exists already")]
    Exists,
    /// A directory has its name.
    #[error("a directory exists there")]
    ExistsAsDirectory,
    /// Another object than a directory has the name of a directory; a link to a directory is not followed.
    #[error("exists and is not a directory")]
    ExistsAsOther,
}

/// Reason why a copy ended early.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// The caller asked for it.
    #[error("interrupted")]
    Interrupted,
    /// Nothing more can be written there.
    #[error("can't write {}: {source}", path.display())]
    Target {
        /// Path below the target directory.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
}

/// Numbers of a finished copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Objects that were copied, other than directories.
    pub files: u64,
    /// Directories that were made, or existed.
    pub directories: u64,
    /// Bytes of content that were written; holes do not count.
    pub written_bytes: u64,
    /// Objects that were not copied.
    pub failed: u64,
    /// Warnings.
    pub warnings: u64,
}

/// Failure inside a copy.
enum Trouble {
    Fault(Fault),
    Stopped(Stopped),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Fault(error.into())
    }
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Errno> for Trouble {
    /// The caller adds the path: see [`Copier::settle`].
    fn from(errno: Errno) -> Self {
        Self::from(std::io::Error::from(errno))
    }
}

impl From<std::io::Error> for Trouble {
    fn from(source: std::io::Error) -> Self {
        let ends_all = [Errno::NOSPC, Errno::DQUOT, Errno::ROFS, Errno::IO];
        match source.raw_os_error() {
            Some(number) if ends_all.iter().any(|errno| errno.raw_os_error() == number) => {
                Self::Stopped(Stopped::Target {
                    path: PathBuf::new(),
                    source,
                })
            }
            _ => Self::Fault(source.into()),
        }
    }
}

/// A directory whose entries are being copied.
struct Level {
    node: Node,
    directory: OwnedFd,
    entries: Entries,
    path_length: usize,
    /// It was made here, so it gets the attributes at the end. An existing one keeps its own.
    is_new: bool,
    stat: Stat,
}

/// A copy of a file that has more names.
struct Linked {
    /// Path below the target. A later copy may have put another object there.
    path: Vec<u8>,
    identity: target::Identity,
    /// Names that are still to come.
    left: u32,
}

/// Copies objects of one tree into one directory of this host.
pub struct Copier<'a> {
    tree: Arc<dyn FileTree>,
    target: OwnedFd,
    options: CopyOptions,
    cancel: &'a AtomicBool,
    observer: &'a dyn Fn(CopyEvent<'_>),
    setter: Setter,
    copied: Copied,
    path: Vec<u8>,
    /// Copies of files that have more names.
    linked: HashMap<Node, Linked>,
    linked_bytes: usize,
    names: u64,
    buffer: Vec<u8>,
}

impl<'a> Copier<'a> {
    /// Makes a copier into an open directory.
    pub fn new(
        tree: Arc<dyn FileTree>,
        target: OwnedFd,
        options: CopyOptions,
        cancel: &'a AtomicBool,
        observer: &'a dyn Fn(CopyEvent<'_>),
    ) -> Self {
        Self {
            tree,
            target,
            options,
            cancel,
            observer,
            setter: Setter::new(),
            copied: Copied::default(),
            path: Vec::new(),
            linked: HashMap::new(),
            linked_bytes: 0,
            names: 0,
            buffer: Vec::new(),
        }
    }

    /// Returns the numbers so far.
    pub fn copied(&self) -> Copied {
        self.copied
    }

    /// Copies an object, with all that is below it, to a name in the target directory. A name from the tree must be
    /// one that [`crate::fs::Entry::name`] may have. Files with several names that are copied by one copier stay one
    /// file.
    pub fn copy(&mut self, node: Node, name: &[u8]) -> std::result::Result<(), Stopped> {
        self.path = name.to_vec();
        let target = self.target.try_clone();
        let target = target.map_err(|source| Stopped::Target {
            path: PathBuf::new(),
            source,
        })?;
        let mut levels = Vec::new();
        let mut entered = Entered::default();
        let started = self.one(&target, node, name, 0, &mut entered);
        levels.extend(self.settle(started)?.flatten());
        self.all(levels, entered)
    }

    /// Copies all that is in a directory into the target directory itself, which keeps its attributes.
    pub fn copy_entries(&mut self, directory: Node) -> std::result::Result<(), Stopped> {
        self.path.clear();
        let mut entered = Entered::default();
        let started = self.start(directory, &mut entered);
        let level = self.settle(started)?;
        self.all(level.into_iter().collect(), entered)
    }

    fn start(&mut self, node: Node, entered: &mut Entered) -> std::result::Result<Level, Trouble> {
        let stat = self.tree.stat(node)?;
        entered.enter(node, 0)?;
        Ok(Level {
            node,
            directory: self.target.try_clone()?,
            entries: Entries::new(node, 0),
            path_length: 0,
            is_new: false,
            stat,
        })
    }

    fn all(&mut self, mut levels: Vec<Level>, mut entered: Entered) -> std::result::Result<(), Stopped> {
        while let Some(level) = levels.last_mut() {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Stopped::Interrupted);
            }
            self.path.truncate(level.path_length);
            let entry = level.entries.next(&*self.tree);
            if let Some(error) = level.entries.take_error() {
                self.settle::<()>(Err(error.into()))?;
            }
            let Some(level) = levels.last() else { break };
            let Some(entry) = entry else {
                let done = self.leave(level);
                self.settle(done)?;
                levels.pop();
                continue;
            };
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend(&entry.name);
            let depth = levels.len();
            let copied = self.one(&level.directory, entry.node, &entry.name, depth, &mut entered);
            levels.extend(self.settle(copied)?.flatten());
        }
        Ok(())
    }

    /// Counts and reports what one object came to.
    fn settle<T>(&mut self, result: std::result::Result<T, Trouble>) -> std::result::Result<Option<T>, Stopped> {
        match result {
            Ok(done) => Ok(Some(done)),
            Err(Trouble::Stopped(Stopped::Target { source, .. })) => Err(Stopped::Target {
                path: target::path_of(&self.path),
                source,
            }),
            Err(Trouble::Stopped(stopped)) => Err(stopped),
            Err(Trouble::Fault(fault)) => {
                self.copied.failed += 1;
                (self.observer)(CopyEvent::Failed(&self.path, &fault));
                Ok(None)
            }
        }
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.copied.warnings += 1;
        (self.observer)(CopyEvent::Warning(&self.path, text.into()));
    }

    /// Copies one object; returns a directory whose entries are to follow.
    fn one(
        &mut self,
        directory: &OwnedFd,
        node: Node,
        name: &[u8],
        depth: usize,
        entered: &mut Entered,
    ) -> std::result::Result<Option<Level>, Trouble> {
        // The readers promise it. Here it decides where bytes are written.
        if !is_name(name) {
            return Err(Error::damaged("a name that no file can have").into());
        }
        let stat = self.tree.stat(node)?;
        if stat.kind == FileKind::Directory {
            entered.enter(node, depth)?;
            let (made, is_new) = target::make_directory(directory, name)?;
            self.copied.directories += 1;
            return Ok(Some(Level {
                node,
                directory: made,
                entries: Entries::new(node, depth),
                path_length: self.path.len(),
                is_new,
                stat,
            }));
        }
        if let Some(text) = self.left_out(&stat) {
            self.warn(text);
            return Ok(None);
        }
        target::check_free(directory, name, self.options.force)?;
        let temporary = match self.link_to_copy(directory, node, &stat)? {
            Some(linked) => linked,
            None => {
                let made = self.make(directory, node, &stat)?;
                self.attributes(
                    node,
                    &stat,
                    made.object.as_ref().map_or(directory.as_fd(), AsFd::as_fd),
                    &made,
                )?;
                made
            }
        };
        let identity = temporary.identity()?;
        temporary.rename(name, self.options.force)?;
        self.copied.files += 1;
        self.remember(node, &stat, identity);
        Ok(None)
    }

    /// Returns the reason why an object is not copied at all.
    fn left_out(&self, stat: &Stat) -> Option<&'static str> {
        match stat.kind {
            FileKind::Socket => Some("left out: a socket is only of use to the program that made it"),
            FileKind::CharDevice | FileKind::BlockDevice | FileKind::Fifo if !self.setter.is_root() => {
                Some("left out: only root can copy devices and named pipes")
            }
            _ => None,
        }
    }

    /// Makes an object under a temporary name.
    fn make<'d>(
        &mut self,
        directory: &'d OwnedFd,
        node: Node,
        stat: &Stat,
    ) -> std::result::Result<Temporary<'d>, Trouble> {
        let names = &mut self.names;
        match stat.kind {
            FileKind::File => {
                let made = Temporary::file(directory, names)?;
                let content = Arc::clone(&self.tree).open(node)?;
                let written = content::copy(
                    &*content,
                    &made.file_handle()?,
                    &mut self.buffer,
                    self.cancel,
                    &|bytes| {
                        (self.observer)(CopyEvent::Written(bytes));
                    },
                )?;
                self.copied.written_bytes += written;
                Ok(made)
            }
            FileKind::Link => {
                let to = self.tree.read_link(node)?;
                Ok(Temporary::make(directory, names, &Made::Link(&to))?)
            }
            _ => Ok(Temporary::make(directory, names, &Made::Node(stat.kind, stat.device))?),
        }
    }

    fn attributes(
        &mut self,
        node: Node,
        stat: &Stat,
        object: std::os::fd::BorrowedFd<'_>,
        made: &Temporary<'_>,
    ) -> std::result::Result<(), Trouble> {
        let xattrs = self.tree.xattrs(node);
        let warnings = self.setter.set(object, made.is_path_only(), stat, xattrs);
        for warning in warnings? {
            self.warn(warning);
        }
        Ok(())
    }

    /// Gives a directory its attributes, after all that was made in it.
    fn leave(&mut self, level: &Level) -> std::result::Result<(), Trouble> {
        if !level.is_new {
            return Ok(());
        }
        let xattrs = self.tree.xattrs(level.node);
        let warnings = self.setter.set(level.directory.as_fd(), false, &level.stat, xattrs);
        for warning in warnings? {
            self.warn(warning);
        }
        Ok(())
    }

    /// Links to the copy of the same file under another name, if there is one.
    fn link_to_copy<'d>(
        &mut self,
        directory: &'d OwnedFd,
        node: Node,
        stat: &Stat,
    ) -> std::result::Result<Option<Temporary<'d>>, Trouble> {
        if stat.links < 2 {
            return Ok(None);
        }
        let Some(linked) = self.linked.get(&node) else {
            return Ok(None);
        };
        match Temporary::link(&self.target, &linked.path, directory, &mut self.names) {
            Ok(made) if made.identity()? == linked.identity => Ok(Some(made)),
            Ok(_) => {
                self.forget(node);
                Ok(None)
            }
            // The target's file system has no such links, or one file there has too many.
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK | Errno::XDEV | Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Remembers the path of a file that has more names.
    fn remember(&mut self, node: Node, stat: &Stat, identity: target::Identity) {
        if stat.links < 2 {
            return;
        }
        if let Some(linked) = self.linked.get_mut(&node) {
            linked.left = linked.left.saturating_sub(1);
            if linked.left == 0 {
                self.forget(node);
            }
            return;
        }
        let path = self.path.clone();
        if self.linked_bytes + path.len() > MAX_LINKED_BYTES {
            if let Some(text) = self
                .setter
                .once("too many files with several names: the rest is copied once for each name")
            {
                self.warn(text);
            }
            return;
        }
        self.linked_bytes += path.len();
        let left = stat.links - 1;
        self.linked.insert(node, Linked { path, identity, left });
    }

    fn forget(&mut self, node: Node) {
        if let Some(linked) = self.linked.remove(&node) {
            self.linked_bytes -= linked.path.len();
        }
    }
}

/// Opens an existing directory as the target of a copy. Links in its path are the caller's, and followed.
pub fn open_target(path: &std::path::Path) -> std::io::Result<OwnedFd> {
    Ok(target::open(path)?)
}
