//! Btrfs, read in user space: all devices of one file system, all its subvolumes, no write.
//!
//! The top directory is that of subvolume 5, which contains all others. A [`Node`] has the subvolume as its space and
//! the inode as its number. Everything is verified as the kernel does it: tree blocks by their checksum, address,
//! transaction and keys, data by the tree of checksums; whatever is damaged is read from another copy. Format facts are
//! those of linux/btrfs_tree.h and fs/btrfs.
//!
//! | module | content |
//! |---|---|
//! | `devices` | logical addresses on devices |
//! | `block`, `tree`, `key` | tree blocks, trees, the order of items |
//! | `item` | parsers of items |
//! | `data`, `content` | verified data, files as a sequence of extents |
//! | `compress`, `lzo` | compressed extents |
//! | `log`, `entries` | the log of fsync(2) |
//! | `members` | superblocks, the chunk tree |
//! | `names` | directories, subvolumes in directories, attributes |

mod block;
mod compress;
mod content;
mod data;
mod devices;
mod entries;
mod item;
mod key;
mod log;
mod lzo;
mod members;
mod names;
mod tree;

#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;

use block::{Blocks, Pointer};
use content::File;
use devices::Devices;
use item::Inode;
use key::{CSUM_TREE, FIRST_INODE, INODE_ITEM, Key, ROOT_ITEM, TOP_SUBVOLUME};
use log::Log;
use tree::Tree;

use super::{Entry, FileKind, FileTree, Identity, MAX_LINK_BYTES, Node, Stat, Xattr};
use crate::btrfs::Superblock;
use crate::device::SharedDevice;
use crate::error::{Error, Result};

/// A btrfs that can be read.
pub struct Btrfs {
    blocks: Blocks,
    /// Root of the tree of trees.
    roots: Pointer,
    sector_bytes: usize,
    identity: Identity,
    remarks: Vec<String>,
    superblock: Superblock,
    log: Log,
}

/// Unpacks an extent by each of its compressions.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_extent(packed: &[u8]) {
    use item::Compression::{Lzo, Zlib, Zstd};
    for kind in [Zlib, Lzo, Zstd] {
        for len in [4096, compress::MAX_EXTENT_BYTES] {
            if let Some(out) = compress::unpack(kind, packed, len, 4096) {
                assert_eq!(out.len() as u64, len);
            }
        }
    }
}

/// Opens a file system by all its devices, in any order. One that is missing is tolerated where its data has a copy.
pub fn open(devices: Vec<SharedDevice>) -> Result<Btrfs> {
    let mut btrfs = members::open(devices)?;
    btrfs.subvolume(TOP_SUBVOLUME)?;
    let root_directory = btrfs.superblock.root_directory();
    btrfs.remark_default(root_directory);
    btrfs.replay_log();
    Ok(btrfs)
}

impl Btrfs {
    fn devices(&self) -> &Devices {
        &self.blocks.devices
    }

    fn roots(&self) -> Tree<'_> {
        Tree {
            blocks: &self.blocks,
            root: Some(self.roots),
            changes: None,
        }
    }

    fn tree(&self, number: u64) -> Result<Tree<'_>> {
        let item = self.roots().floor(Key::new(number, ROOT_ITEM, u64::MAX))?;
        let item = item.ok_or_else(|| Error::damaged(format!("tree {number} is missing")))?;
        Ok(Tree {
            blocks: &self.blocks,
            root: Some(item::root(number, &item)?),
            changes: None,
        })
    }

    /// Returns the trees of checksums, first that of the last transaction.
    fn checksum_trees(&self) -> Result<[Tree<'_>; 2]> {
        let logged = Tree {
            blocks: &self.blocks,
            root: None,
            changes: Some(&self.log.checksums),
        };
        Ok([self.tree(CSUM_TREE)?, logged])
    }

    /// Returns the tree of a subvolume.
    fn subvolume(&self, number: u64) -> Result<Tree<'_>> {
        Ok(Tree {
            changes: self.log.subvolumes.get(&number),
            ..self.tree(number)?
        })
    }

    fn replay_log(&mut self) {
        let (logical, level) = self.superblock.log_root();
        if logical == 0 {
            return;
        }
        // The log belongs to the transaction that was not completed.
        let generation = self.superblock.generation().saturating_add(1);
        let root = Pointer {
            logical,
            generation,
            level,
        };
        let remark = match log::replay(self, root) {
            Ok((log, inodes)) => {
                self.log = log;
                format!("the log tree was replayed ({inodes} inodes)")
            }
            Err(error) => format!(
                "the log tree was not replayed: files synced in the last 30 s before the backup may be missing ({error})"
            ),
        };
        self.remarks.push(remark);
    }

    fn inode(&self, node: Node) -> Result<Inode> {
        let item = self
            .subvolume(node.space)?
            .get(Key::new(node.number, INODE_ITEM, 0))?
            .ok_or_else(|| Error::damaged(format!("inode {} of subvolume {} is missing", node.number, node.space)))?;
        Inode::parse(node.number, &item)
    }
}

impl FileTree for Btrfs {
    fn root(&self) -> Node {
        Node {
            space: TOP_SUBVOLUME,
            number: FIRST_INODE,
        }
    }

    fn default_root(&self) -> Node {
        let found = self.default_subvolume(self.superblock.root_directory());
        let named = found.ok().flatten().map(|space| Node {
            space,
            number: FIRST_INODE,
        });
        named
            .filter(|node| {
                self.inode(*node)
                    .is_ok_and(|inode| inode.stat.kind == FileKind::Directory)
            })
            .unwrap_or_else(|| self.root())
    }

    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn remarks(&self) -> Vec<String> {
        self.remarks.clone()
    }

    fn stat(&self, node: Node) -> Result<Stat> {
        match names::is_stub(node) {
            true => self.stub_stat(node),
            false => Ok(self.inode(node)?.stat),
        }
    }

    fn list(&self, directory: Node, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        self.list_names(directory, each)
    }

    fn lookup(&self, directory: Node, name: &[u8]) -> Result<Node> {
        self.find_name(directory, name)
    }

    fn read_link(&self, node: Node) -> Result<Vec<u8>> {
        let inode = self.inode(node)?;
        let number = node.number;
        let length = 1..=MAX_LINK_BYTES as u64;
        if inode.stat.kind != FileKind::Link || !length.contains(&inode.stat.size_bytes) {
            return Err(Error::damaged(format!("inode {number}: invalid symbolic link")));
        }
        let tree = self.subvolume(node.space)?;
        let item = tree.get(Key::new(number, key::EXTENT_DATA, 0))?;
        let item = item.ok_or_else(|| Error::damaged(format!("inode {number}: a link without a target")))?;
        // Linux writes targets of links only like this (`btrfs_symlink`, fs/btrfs/inode.c).
        let extent = item::Extent::parse(number, &item)?;
        let target = match extent.content {
            item::Content::Inline(data) if extent.compression == item::Compression::None => {
                data.get(..inode.stat.size_bytes as usize)
            }
            _ => None,
        };
        let target = target.filter(|target| !target.contains(&0));
        target
            .map(<[u8]>::to_vec)
            .ok_or_else(|| Error::damaged(format!("inode {number}: invalid symbolic link")))
    }

    fn open(self: Arc<Self>, node: Node) -> Result<SharedDevice> {
        if names::is_stub(node) {
            return Err(Error::NotAFile);
        }
        let inode = self.inode(node)?;
        match inode.stat.kind {
            FileKind::File => Ok(Arc::new(File::new(
                self,
                node,
                inode.stat.size_bytes,
                inode.has_checksums,
            ))),
            _ => Err(Error::NotAFile),
        }
    }

    fn xattrs(&self, node: Node) -> Result<Vec<Xattr>> {
        match names::is_stub(node) {
            true => Ok(Vec::new()),
            false => self.attributes(node),
        }
    }
}
