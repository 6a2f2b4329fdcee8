//! The files inside a volume, read in user space: no mount, no kernel, no right but reading the volume.
//!
//! Each reader trusts nothing it reads: a volume is a customer's, and may be made to attack. No input makes a reader
//! panic, loop for ever, or hold more memory than a bound that is written beside it.

pub mod btrfs;
mod chain;
pub mod exfat;
pub mod ext;
pub mod fat;
pub mod iso9660;
pub mod ntfs;
mod pages;
mod runs;
mod utf16;
pub mod xfs;

#[cfg(test)]
pub(crate) mod compared;

use std::ops::ControlFlow;
use std::sync::Arc;

use jiff::Timestamp;

use crate::device::SharedDevice;
use crate::error::{Error, Result};

/// Longest name of a file that a reader returns, in bytes. NTFS and exFAT have 255 UTF-16 units, three bytes each.
pub const MAX_NAME_BYTES: usize = 765;
/// Longest target of a symbolic link that a reader returns, in bytes (`PATH_MAX`).
pub const MAX_LINK_BYTES: usize = 4096;

/// A file, a directory or another object of a file system. The numbers mean something to its reader alone, except that
/// equal nodes are the same object: two names of one node are hard links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    /// Subvolume, or whatever else divides the file system; 0 if nothing does.
    pub space: u64,
    /// Number in it, e.g. of the inode.
    pub number: u64,
}

/// Kind of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Attributes of a node, as stat(2) would return them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Kind of the node.
    pub kind: FileKind,
    /// The lower twelve bits of the mode: permissions, set-user-ID, set-group-ID, sticky. File systems without modes
    /// have 0o644 for files and 0o755 for directories.
    pub mode: u16,
    /// Owner; 0 in file systems without owners.
    pub uid: u32,
    /// Group; 0 in file systems without groups.
    pub gid: u32,
    /// Number of names; at least 1.
    pub links: u32,
    /// Length of a file's content or a link's target.
    pub size_bytes: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Time of the last change of the content.
    pub modified: Timestamp,
    /// Time of the last change of these attributes; that of the content where the file system has no such time.
    pub changed: Timestamp,
    /// Time of the last reading; that of the content where the file system has no such time.
    pub accessed: Timestamp,
}

impl Stat {
    /// Attributes of a directory for which the disk has none.
    pub fn of_directory(time: Timestamp) -> Self {
        Self {
            kind: FileKind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            links: 1,
            size_bytes: 0,
            device: (0, 0),
            modified: time,
            changed: time,
            accessed: time,
        }
    }
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name: 1 to [`MAX_NAME_BYTES`] bytes, never `.` or `..`, without `/` and NUL.
    pub name: Vec<u8>,
    /// The object of that name.
    pub node: Node,
    /// Its kind, where the directory says so.
    pub kind: Option<FileKind>,
}

/// An extended attribute, as getxattr(2) would return it: the name with its namespace, the value in Linux's form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xattr {
    /// Name, e.g. `user.comment`.
    pub name: Vec<u8>,
    /// Value; for `system.posix_acl_*` in the form of linux/posix_acl_xattr.h.
    pub value: Vec<u8>,
}

/// Names by which `/etc/fstab` finds a file system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// UUID as libblkid prints it, e.g. `6b1a…` with dashes, `1A2B-3C4D` for FAT.
    pub uuid: Option<String>,
    /// Label.
    pub label: Option<String>,
}

/// The files of one volume. May be used by many threads at once.
pub trait FileTree: Send + Sync {
    /// Returns the top directory.
    fn root(&self) -> Node;

    /// Returns the directory that a guest sees as the top if its mount options name none: the default subvolume of a
    /// btrfs.
    fn default_root(&self) -> Node {
        self.root()
    }

    /// Returns the names by which a guest finds this file system.
    fn identity(&self) -> Identity;

    /// Returns remarks for people on how the volume was opened: `the journal was replayed (12 blocks)`, `the
    /// superblock is damaged; opened by the copy at block 32768`.
    fn remarks(&self) -> Vec<String>;

    /// Returns the attributes of a node.
    fn stat(&self, node: Node) -> Result<Stat>;

    /// Calls `each` for every entry of a directory, in the order of the disk, until it breaks. A damaged part of the
    /// directory does not hide the rest: the error comes after all that could be read.
    fn list(&self, directory: Node, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()>;

    /// Finds a name in a directory; `Error::NotFound` if it is not there.
    fn lookup(&self, directory: Node, name: &[u8]) -> Result<Node> {
        let mut found = None;
        let listed = self.list(directory, &mut |entry| {
            if entry.name == name {
                found = Some(entry.node);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        match found {
            Some(node) => Ok(node),
            None => listed.and(Err(Error::NotFound)),
        }
    }

    /// Returns the target of a symbolic link: 1 to [`MAX_LINK_BYTES`] bytes without NUL.
    fn read_link(&self, node: Node) -> Result<Vec<u8>>;

    /// Opens the content of a regular file. Its holes are those of the file ([`crate::device::Device::next_data`]).
    fn open(self: Arc<Self>, node: Node) -> Result<SharedDevice>;

    /// Returns the extended attributes of a node.
    fn xattrs(&self, node: Node) -> Result<Vec<Xattr>> {
        let _ = node;
        Ok(Vec::new())
    }
}

/// Tests that a name from a disk is one that [`Entry::name`] may have.
pub(crate) fn is_name(name: &[u8]) -> bool {
    let length = 1..=MAX_NAME_BYTES;
    length.contains(&name.len()) && name != b"." && name != b".." && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}
