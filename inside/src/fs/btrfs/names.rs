//! Names: the entries of directories, the subvolumes among them, and extended attributes.

use std::ops::ControlFlow;

use super::Btrfs;
use super::item::{self, Named};
use super::key::{
    DIR_INDEX, DIR_ITEM, FIRST_INODE, INODE_EXTREF, INODE_ITEM, INODE_REF, Key, ROOT_BACKREF, ROOT_ITEM, ROOT_REF,
    TOP_SUBVOLUME, XATTR_ITEM, name_hash,
};
use super::tree::Item;
use crate::device::{le16, le64};
use crate::error::{Error, Result};
use crate::fs::{Entry, FileKind, Node, Stat, Xattr, is_name};

/// Bytes of all attributes of a node. Linux returns 64 KiB of names (`XATTR_LIST_MAX`).
const MAX_ATTRIBUTES_BYTES: usize = 16 << 20;
/// Directories and subvolumes above the default subvolume that are named in the remark.
const MAX_DEPTH: usize = 256;

/// Mark in the number of a node for the empty directory in place of a subvolume that a snapshot does not contain. No
/// inode has it: `BTRFS_LAST_FREE_OBJECTID` is -256, but the kernel counts up from 256.
const STUB: u64 = 1 << 63;

/// Tests for the empty directory that a snapshot has in place of a subvolume.
pub(super) fn is_stub(node: Node) -> bool {
    node.number & STUB != 0
}

impl Btrfs {
    fn is_directory(&self, node: Node) -> Result<()> {
        match self.inode(node)?.stat.kind {
            FileKind::Directory => Ok(()),
            _ => Err(Error::NotADirectory),
        }
    }

    pub(super) fn list_names(&self, directory: Node, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        if is_stub(directory) {
            return Ok(());
        }
        self.is_directory(directory)?;
        let tree = self.subvolume(directory.space)?;
        let mut failed = None;
        for item in tree.items_of(directory.number, DIR_INDEX, 0) {
            let item = match item {
                Ok(item) => item,
                Err(error) => {
                    failed.get_or_insert(error);
                    continue;
                }
            };
            for named in item::names(&item) {
                match named.and_then(|named| self.entry(directory, &named)) {
                    Ok(entry) => {
                        if each(entry).is_break() {
                            return Ok(());
                        }
                    }
                    Err(error) => {
                        failed.get_or_insert(error);
                    }
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    pub(super) fn find_name(&self, directory: Node, name: &[u8]) -> Result<Node> {
        if is_stub(directory) {
            return Err(Error::NotFound);
        }
        self.is_directory(directory)?;
        let tree = self.subvolume(directory.space)?;
        let item = tree.get(Key::new(directory.number, DIR_ITEM, name_hash(name)))?;
        let item = item.ok_or(Error::NotFound)?;
        for named in item::names(&item) {
            let named = named?;
            if named.name == name {
                return Ok(self.entry(directory, &named)?.node);
            }
        }
        Err(Error::NotFound)
    }

    fn entry(&self, directory: Node, named: &Named<'_>) -> Result<Entry> {
        let of = directory.number;
        if !is_name(named.name) {
            return Err(Error::damaged(format!("directory {of}: an invalid name")));
        }
        let location = named.location;
        let node = match location.kind {
            INODE_ITEM if location.object & STUB == 0 => Node {
                space: directory.space,
                number: location.object,
            },
            ROOT_ITEM => self.subvolume_node(directory, named)?,
            kind => {
                let name = String::from_utf8_lossy(named.name);
                return Err(Error::damaged(format!(
                    "directory {of}: {name} refers to an item of kind {kind}"
                )));
            }
        };
        Ok(Entry {
            name: named.name.to_vec(),
            node,
            kind: item::file_kind(named.kind),
        })
    }

    /// Returns the top directory of a subvolume, or an empty directory where the entry was copied by a snapshot: then
    /// the tree of trees does not confirm it (`btrfs_lookup_dentry`, `new_simple_dir`, fs/btrfs/inode.c).
    fn subvolume_node(&self, directory: Node, named: &Named<'_>) -> Result<Node> {
        let number = named.location.object;
        let key = Key::new(directory.space, ROOT_REF, number);
        let item = self.roots().get(key)?;
        let confirmed = item.is_some_and(|item| item::root_ref(&item) == Some((directory.number, named.name)));
        Ok(match confirmed {
            true => Node {
                space: number,
                number: FIRST_INODE,
            },
            false => Node {
                space: directory.space,
                number: STUB | number,
            },
        })
    }

    /// Returns the attributes of an empty directory in place of a subvolume.
    pub(super) fn stub_stat(&self, node: Node) -> Result<Stat> {
        let top = Node {
            space: node.space,
            number: FIRST_INODE,
        };
        Ok(Stat {
            mode: 0o755,
            uid: 0,
            gid: 0,
            links: 1,
            size_bytes: 0,
            ..self.inode(top)?.stat
        })
    }

    pub(super) fn attributes(&self, node: Node) -> Result<Vec<Xattr>> {
        self.inode(node)?;
        let tree = self.subvolume(node.space)?;
        let mut attributes = Vec::new();
        let mut bytes = 0;
        for item in tree.items_of(node.number, XATTR_ITEM, 0) {
            let item = item?;
            for named in item::names(&item) {
                let named = named?;
                bytes += named.bytes.len();
                if bytes > MAX_ATTRIBUTES_BYTES {
                    let what = format!(
                        "inode {} with more than {MAX_ATTRIBUTES_BYTES} bytes of attributes",
                        node.number
                    );
                    return Err(Error::unsupported(what));
                }
                attributes.push(Xattr {
                    name: named.name.to_vec(),
                    value: named.value.to_vec(),
                });
            }
        }
        Ok(attributes)
    }

    /// Remarks on the default subvolume if it is not the top one: the guest mounts it unless it says otherwise.
    pub(super) fn remark_default(&mut self, root_directory: u64) {
        let Ok(Some(number)) = self.default_subvolume(root_directory) else {
            return;
        };
        if number == TOP_SUBVOLUME {
            return;
        }
        let path = match self.path_of(number) {
            Ok(path) => String::from_utf8_lossy(&path).into_owned(),
            Err(error) => format!("unknown ({error})"),
        };
        let remark = format!("the default subvolume is not the top one but number {number}, path {path}");
        self.remarks.push(remark);
    }

    pub(super) fn default_subvolume(&self, root_directory: u64) -> Result<Option<u64>> {
        const NAME: &[u8] = b"default";
        let item = self.roots().get(Key::new(root_directory, DIR_ITEM, name_hash(NAME)))?;
        let Some(item) = item else { return Ok(None) };
        let found = item::names(&item).flatten().find(|named| named.name == NAME);
        Ok(found.map(|named| named.location.object))
    }

    /// Finds the path of a subvolume from the top.
    fn path_of(&self, mut subvolume: u64) -> Result<Vec<u8>> {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        while subvolume != TOP_SUBVOLUME {
            let first = self.roots().items_of(subvolume, ROOT_BACKREF, 0).next().transpose()?;
            let first = first.ok_or_else(|| Error::damaged(format!("subvolume {subvolume} is in no directory")))?;
            let parent = first.key.offset;
            let (mut directory, name) = item::root_ref(&first).ok_or_else(|| Error::damaged("a name is cut off"))?;
            parts.push(name.to_vec());
            let tree = self.subvolume(parent)?;
            while directory != FIRST_INODE {
                let first = tree
                    .items(
                        Key::new(directory, INODE_REF, 0),
                        Key::new(directory, INODE_EXTREF, u64::MAX),
                    )
                    .next()
                    .transpose()?;
                let found = first.as_ref().and_then(parent_and_name);
                let (parent, name) = found.ok_or_else(|| Error::damaged(format!("inode {directory} has no name")))?;
                parts.push(name.to_vec());
                directory = parent;
                if parts.len() > MAX_DEPTH {
                    break;
                }
            }
            subvolume = parent;
            if parts.len() > MAX_DEPTH {
                return Err(Error::damaged(format!("more than {MAX_DEPTH} directories")));
            }
        }
        parts.reverse();
        Ok(parts.join(&b'/'))
    }
}

/// Returns the directory and the name in the first reference of an inode (`struct btrfs_inode_ref`).
fn parent_and_name(item: &Item) -> Option<(u64, &[u8])> {
    let (parent, head) = match item.key.kind {
        INODE_REF => (item.key.offset, 10),
        _ => (le64(item.get(..8)?, 0), 18),
    };
    let len = le16(item.get(head - 2..head)?, 0);
    Some((parent, item.get(head..)?.get(..usize::from(len))?))
}
