//! ext2, ext3 and ext4 without the kernel: all features that mke2fs and Linux know, except for decryption.
//!
//! A journal is replayed in memory, with its fast commits, so that a backup of a running guest shows what the guest would
//! find after a crash. Every checksum is verified, and one that does not match is damage of that inode, directory block
//! or tree node alone. Where the primary superblock or a group descriptor is damaged, a copy serves.
//!
//! The format is that of fs/ext4/ext4.h and Documentation/filesystems/ext4 of Linux.

mod checksum;
mod content;
mod directory;
mod fast_commit;
mod inode;
mod journal;
mod map;
mod ranges;
mod replayed;
mod superblock;
mod volume;
mod xattr;
mod xattr_entries;

#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::device::SharedDevice;
use crate::error::{Error, Result};
use crate::fs::{Entry, FileKind, FileTree, Identity, MAX_LINK_BYTES, Node, Stat, Xattr};
use content::{Blocks, Content};
use inode::{FLAG_ENCRYPT, FLAG_EXTENTS, FLAG_INLINE_DATA, Inode};
use superblock::{COMPAT_HAS_JOURNAL, INCOMPAT_RECOVER, Superblock};
use volume::Volume;

pub(crate) use superblock::uuid_text;
pub use superblock::{BackupSuperblock, backup_superblock};

/// Offset of the primary superblock.
const PRIMARY_BYTES: u64 = 1024;

/// The files of an ext2, ext3 or ext4.
pub struct Ext {
    volume: Volume,
    remarks: Vec<String>,
}

/// Opens a file system, by a copy of the superblock if the primary one is damaged, and replays its journal in memory.
pub fn open(device: SharedDevice) -> Result<Ext> {
    let mut remarks = Vec::new();
    let superblock = find_superblock(&device, &mut remarks)?;
    superblock.check_features()?;
    let size_bytes = device.size_bytes();
    let mut volume = Volume::new(device, superblock);
    replay(&mut volume, &mut remarks);
    let (blocks, block_bytes) = (volume.superblock.blocks, volume.superblock.block_bytes);
    if blocks * block_bytes > size_bytes {
        remarks.push(format!(
            "the file system has {blocks} blocks of {block_bytes} bytes, but the volume ends after {size_bytes} bytes"
        ));
    }
    Ok(Ext { volume, remarks })
}

/// Returns the primary superblock, or else a copy.
fn find_superblock(device: &SharedDevice, remarks: &mut Vec<String>) -> Result<Superblock> {
    let primary = Superblock::read(device.as_ref(), PRIMARY_BYTES);
    if let Ok(superblock) = &primary
        && superblock.checksum_matches()
    {
        return primary;
    }
    if let Some(copy) = backup_superblock(device.as_ref())? {
        remarks.push(format!(
            "the superblock is damaged; opened by the copy at block {}",
            copy.block
        ));
        return Superblock::parse(&copy.bytes, copy.offset_bytes);
    }
    let superblock = primary?;
    remarks.push("the checksum of the superblock is wrong, and there is no copy of it".to_owned());
    Ok(superblock)
}

/// Replays the journal if the superblock says so. A copy of the superblock does not know, so that then the journal
/// decides. A journal that can't be read does not hide the files.
fn replay(volume: &mut Volume, remarks: &mut Vec<String>) {
    const INCOMPLETE: &str = "files that were changed shortly before the backup may be old or damaged";

    let superblock = &volume.superblock;
    let asks = superblock.has_incompat(INCOMPAT_RECOVER);
    // The kernel ignores a log that the primary superblock does not ask for (`ext4_load_journal`).
    if !superblock.has_compat(COMPAT_HAS_JOURNAL) || !asks && superblock.group == 0 {
        return;
    }
    if superblock.journal_inode == 0 {
        if asks {
            remarks.push(format!(
                "the journal is on another device and was not replayed; {INCOMPLETE}"
            ));
        }
        return;
    }
    let log = match journal_blocks(volume).and_then(|blocks| journal::read(volume, &blocks)) {
        Ok(log) => log,
        Err(error) => {
            remarks.push(format!("the journal was not replayed ({error}); {INCOMPLETE}"));
            return;
        }
    };
    let (blocks, transactions, fast) = (log.blocks, log.transactions, log.fast_commits.commits);
    if transactions > 0 || fast > 0 {
        let fast = match fast {
            0 => String::new(),
            fast => format!(", and {fast} fast commits"),
        };
        remarks.push(format!(
            "the journal was replayed ({blocks} blocks of {transactions} transactions{fast})"
        ));
    }
    if let Some(reason) = &log.cut {
        remarks.push(format!("the journal is damaged ({reason}); {INCOMPLETE}"));
    }
    if let Some(reason) = &log.fast_cut {
        remarks.push(format!(
            "the journal ends with a fast commit that is not complete ({reason}); {INCOMPLETE}"
        ));
    }
    volume.replay(log.replayed);
    volume.fast_commits = log.fast_commits;
    // The journal may hold the superblock too, e.g. one that a resize has changed.
    let newer = match volume.replayed_superblock(PRIMARY_BYTES) {
        Ok(None) => return,
        Ok(Some(bytes)) => Superblock::parse(&bytes, PRIMARY_BYTES),
        Err(error) => Err(error),
    };
    let old = &volume.superblock;
    match newer {
        Ok(newer)
            if newer.checksum_matches()
                && newer.check_features().is_ok()
                && (newer.block_bytes, newer.uuid) == (old.block_bytes, old.uuid) =>
        {
            volume.superblock = newer;
        }
        _ => remarks.push("the superblock in the journal is damaged; the one outside was used".to_owned()),
    }
}

/// Returns the content of the journal: by its inode, or else by the copy of its block map in the superblock.
fn journal_blocks(volume: &Volume) -> Result<Blocks> {
    let superblock = &volume.superblock;
    match (
        Inode::read_any(volume, superblock.journal_inode),
        &superblock.journal_map,
    ) {
        (Ok(inode), _) => Ok(Blocks::new(inode)),
        (Err(_), Some(map)) => Ok(Blocks::new(Inode::of_journal(volume, superblock.journal_inode, map))),
        (Err(error), None) => Err(error),
    }
}

impl Ext {
    fn inode(&self, node: Node) -> Result<Inode> {
        let number = u32::try_from(node.number).ok().filter(|_| node.space == 0);
        let number = number.ok_or_else(|| Error::damaged(format!("inode {}: no such number", node.number)))?;
        Inode::read(&self.volume, number)
    }

    fn directory(&self, node: Node) -> Result<Inode> {
        let inode = self.inode(node)?;
        match inode.kind {
            FileKind::Directory => Ok(inode),
            _ => Err(Error::NotADirectory),
        }
    }
}

impl FileTree for Ext {
    fn root(&self) -> Node {
        directory::node(inode::ROOT)
    }

    fn identity(&self) -> Identity {
        Identity {
            uuid: superblock::uuid_text(&self.volume.superblock.uuid),
            label: superblock::text_of(&self.volume.superblock.label),
        }
    }

    fn remarks(&self) -> Vec<String> {
        self.remarks.clone()
    }

    fn stat(&self, node: Node) -> Result<Stat> {
        Ok(self.inode(node)?.stat())
    }

    /// In an encrypted directory, names are those of the disk where they are valid; the others count as unsupported.
    fn list(&self, directory: Node, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        directory::list(&self.volume, self.directory(directory)?, each)
    }

    fn lookup(&self, directory: Node, name: &[u8]) -> Result<Node> {
        directory::lookup(&self.volume, self.directory(directory)?, name)
    }

    fn read_link(&self, node: Node) -> Result<Vec<u8>> {
        let inode = self.inode(node)?;
        if inode.kind != FileKind::Link {
            return Err(inode.damaged("not a symbolic link"));
        }
        if inode.has(FLAG_ENCRYPT) {
            return Err(Error::unsupported("encrypted symbolic link"));
        }
        let size = usize::try_from(inode.size_bytes).unwrap_or(usize::MAX);
        // A short target lies in place of the block numbers (`ext2fs_is_fast_symlink` of e2fsprogs).
        let is_short = size < inode.map().len() && !inode.has(FLAG_EXTENTS) && !inode.has(FLAG_INLINE_DATA);
        let target = match inode.map().get(..size).filter(|_| is_short) {
            Some(target) => target.to_vec(),
            None => Blocks::new(inode.clone()).read_all(&self.volume, MAX_LINK_BYTES as u64)?,
        };
        if target.is_empty() || target.contains(&0) {
            return Err(inode.damaged("invalid target of a symbolic link"));
        }
        Ok(target)
    }

    fn open(self: Arc<Self>, node: Node) -> Result<SharedDevice> {
        let inode = self.inode(node)?;
        if inode.kind != FileKind::File {
            return Err(Error::NotAFile);
        }
        if inode.has(FLAG_ENCRYPT) {
            return Err(Error::unsupported("encrypted file"));
        }
        if inode.has(FLAG_INLINE_DATA) {
            return Ok(Arc::new(content::inline(&inode)?));
        }
        Ok(Arc::new(Content::new(self, inode)))
    }

    fn xattrs(&self, node: Node) -> Result<Vec<Xattr>> {
        xattr::all(&self.volume, &self.inode(node)?)
    }
}
