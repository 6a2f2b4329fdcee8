//! The log: what fsync(2) wrote since the last transaction. It is replayed into memory, as changes of the trees.
//!
//! The order and the rules are those of `btrfs_recover_log_trees` (fs/btrfs/tree-log.c): first the inodes, then the
//! indexes of logged directories, then everything else, then the numbers of links. The kernel sets the times of a
//! directory from which it removes a name to those of the replay; here they remain.

mod names;

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::Btrfs;
use super::block::Pointer;
use super::entries;
use super::item::{self, INODE_BYTES, Inode, Named};
use super::key::{
    CSUM_OBJECT, DIR_INDEX, EXTENT_CSUM, EXTENT_DATA, INODE_EXTREF, INODE_ITEM, INODE_REF, Key, LOG_OBJECT, ROOT_ITEM,
    XATTR_ITEM,
};
use super::tree::{Changes, Item, Tree};
use crate::device::{le32, le64};
use crate::error::{Error, Result};
use crate::fs::FileKind;

/// Bytes of all changes in memory. A transaction ends after 30 s, so a log of more means very fast writes.
const MAX_BYTES: usize = 64 << 20;
/// Names that are looked at; another item counts as many as [`ITEM_STEPS`]. Every rule of the replay takes a few steps
/// for each item of the log, unless the log was made to take long.
const MAX_STEPS: u32 = 1 << 24;
const ITEM_STEPS: u32 = 8;
/// Memory of a change besides its bytes.
const CHANGE_BYTES: usize = 96;

/// Changes that the log makes.
#[derive(Default)]
pub(super) struct Log {
    /// By subvolume.
    pub(super) subvolumes: HashMap<u64, Changes>,
    /// Of data that the log's extents refer to.
    pub(super) checksums: Changes,
}

/// Replays the log whose root is `root`; returns the number of inodes in it as well.
pub(super) fn replay(btrfs: &Btrfs, root: Pointer) -> Result<(Log, usize)> {
    let mut log = Log::default();
    let (mut inodes, mut bytes) = (0, 0);
    let logs = tree(btrfs, root).items_of(LOG_OBJECT, ROOT_ITEM, 0);
    for item in logs {
        let item = item?;
        let number = item.key.offset;
        if btrfs.roots().floor(Key::new(number, ROOT_ITEM, u64::MAX))?.is_none() {
            // The subvolume was deleted since.
            continue;
        }
        let mut replay = Replay {
            stored: btrfs.subvolume(number)?,
            log: tree(btrfs, item::root(number, &item)?),
            changes: Changes::new(),
            bytes,
            steps: Cell::new(0),
            to_count: BTreeSet::new(),
            sector_bytes: btrfs.sector_bytes as u64,
        };
        inodes += replay.run()?;
        for item in replay.log.items_of(CSUM_OBJECT, EXTENT_CSUM, 0) {
            let item = item?;
            replay.bytes += item.len() + CHANGE_BYTES;
            log.checksums.insert(item.key, Some(Arc::from(&*item)));
            replay.check_memory()?;
        }
        bytes = replay.bytes;
        log.subvolumes.insert(number, replay.changes);
    }
    Ok((log, inodes))
}

fn tree(btrfs: &Btrfs, root: Pointer) -> Tree<'_> {
    Tree {
        blocks: &btrfs.blocks,
        root: Some(root),
        changes: None,
    }
}

/// The replay of the log of one subvolume.
struct Replay<'a> {
    /// The subvolume without the log.
    stored: Tree<'a>,
    log: Tree<'a>,
    changes: Changes,
    /// Bytes of all changes, with those that were replaced.
    bytes: usize,
    steps: Cell<u32>,
    /// Inodes whose links must be counted again.
    to_count: BTreeSet<u64>,
    sector_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Inodes,
    DirectoryIndexes,
    All,
}

impl Replay<'_> {
    /// The subvolume with the changes up to now.
    fn now(&self) -> Tree<'_> {
        Tree {
            changes: Some(&self.changes),
            ..self.stored
        }
    }

    fn run(&mut self) -> Result<usize> {
        let mut inodes = 0;
        for stage in [Stage::Inodes, Stage::DirectoryIndexes, Stage::All] {
            let mut ignored = None;
            for item in self.log.items(Key::FIRST, Key::new(CSUM_OBJECT, 0, 0)) {
                let item = item?;
                let number = item.key.object;
                if item.key.kind == INODE_ITEM {
                    // A file without a name that was synced.
                    if item.get(40..44).is_none_or(|links| le32(links, 0) == 0) {
                        ignored = Some(number);
                    }
                    inodes += usize::from(stage == Stage::Inodes);
                }
                if ignored == Some(number) {
                    continue;
                }
                match (stage, item.key.kind) {
                    (Stage::Inodes, INODE_ITEM) => self.inode(&item)?,
                    (Stage::DirectoryIndexes, DIR_INDEX) => self.index(&item)?,
                    (Stage::All, XATTR_ITEM) => self.put(item.key, item.to_vec())?,
                    (Stage::All, INODE_REF | INODE_EXTREF) => self.reference(&item)?,
                    (Stage::All, EXTENT_DATA) => self.extent(&item)?,
                    _ => {}
                }
            }
        }
        self.count_links()?;
        Ok(inodes)
    }

    fn put(&mut self, key: Key, bytes: Vec<u8>) -> Result<()> {
        self.bytes += bytes.len() + CHANGE_BYTES;
        self.changes.insert(key, Some(bytes.into()));
        self.check_memory()
    }

    fn remove(&mut self, key: Key) -> Result<()> {
        self.bytes += CHANGE_BYTES;
        self.changes.insert(key, None);
        self.check_memory()
    }

    fn check_memory(&self) -> Result<()> {
        limited(self.bytes)
    }

    fn step(&self) -> Result<()> {
        self.steps(ITEM_STEPS)
    }

    fn steps(&self, count: u32) -> Result<()> {
        self.steps.set(self.steps.get().saturating_add(count));
        match self.steps.get() > MAX_STEPS {
            true => Err(Error::unsupported(format!(
                "log that takes more than {MAX_STEPS} steps"
            ))),
            false => Ok(()),
        }
    }

    /// Puts what is left of an item, or removes it if that is nothing.
    fn put_rest(&mut self, key: Key, bytes: Vec<u8>) -> Result<()> {
        match bytes.is_empty() {
            true => self.remove(key),
            false => self.put(key, bytes),
        }
    }

    fn inode_bytes(&self, number: u64) -> Result<Option<Vec<u8>>> {
        let item = self.now().get(Key::new(number, INODE_ITEM, 0))?;
        Ok(item
            .map(|item| item.to_vec())
            .filter(|bytes| bytes.len() >= INODE_BYTES))
    }

    fn change_inode(&mut self, number: u64, change: impl FnOnce(&mut [u8])) -> Result<()> {
        match self.inode_bytes(number)? {
            Some(mut bytes) => {
                change(&mut bytes);
                self.put(Key::new(number, INODE_ITEM, 0), bytes)
            }
            None => Ok(()),
        }
    }

    /// Stage 1 (`overwrite_item` and the deletions before it).
    fn inode(&mut self, item: &Item) -> Result<()> {
        let number = item.key.object;
        let logged = Inode::parse(number, item)?;
        self.delete_attributes(number)?;
        let is_directory = logged.stat.kind == FileKind::Directory;
        let old = self.inode_bytes(number)?;
        if is_directory && old.is_some() {
            self.delete_names(number)?;
        }
        let mut new = item.to_vec();
        let old = self.inode_bytes(number)?;
        match (&old, le64(item, 0)) {
            // Logged only so that it exists: what is stored remains, but for a size that was set.
            (Some(old), 0) => {
                new.clone_from(old);
                let was_file = Inode::parse(number, old)?.stat.kind == FileKind::File;
                if logged.stat.kind == FileKind::File && was_file && logged.stat.size_bytes != 0 {
                    new[16..24].copy_from_slice(&logged.stat.size_bytes.to_le_bytes());
                }
            }
            // The size of a directory follows from its names.
            (Some(old), _) if is_directory => new[16..24].copy_from_slice(&old[16..24]),
            (None, _) if is_directory => new[16..24].fill(0),
            _ => {}
        }
        let size = le64(&new, 16);
        self.put(item.key, new)?;
        if logged.stat.kind == FileKind::File {
            let end = size.checked_next_multiple_of(self.sector_bytes).unwrap_or(u64::MAX);
            self.drop_extents(number, end, u64::MAX)?;
        }
        self.to_count.insert(number);
        Ok(())
    }

    /// Removes the attributes that the log does not have (`replay_xattr_deletes`).
    fn delete_attributes(&mut self, number: u64) -> Result<()> {
        let mut rests = Vec::new();
        let mut bytes = 0;
        for item in self.now().items_of(number, XATTR_ITEM, 0) {
            let item = item?;
            self.step()?;
            let logged = self.log.get(item.key)?;
            let mut rest = Vec::new();
            for named in item::names(&item) {
                let named = named?;
                if logged.as_ref().is_some_and(|logged| find(logged, named.name).is_some()) {
                    rest.extend(named.bytes);
                }
            }
            if rest.len() != item.len() {
                bytes += rest.len() + CHANGE_BYTES;
                rests.push((item.key, rest));
            }
            limited(bytes)?;
        }
        rests.into_iter().try_for_each(|(key, rest)| self.put_rest(key, rest))
    }

    /// Stage 3: an extent (`replay_one_extent`).
    fn extent(&mut self, item: &Item) -> Result<()> {
        let (number, start) = (item.key.object, item.key.offset);
        let extent = item::Extent::parse(number, item)?;
        let end = start.checked_add(extent.len_bytes());
        let end = end.and_then(|end| end.checked_next_multiple_of(self.sector_bytes));
        let end =
            end.ok_or_else(|| Error::damaged(format!("inode {number}: an extent ends beyond the last address")))?;
        self.drop_extents(number, start, end)?;
        self.put(item.key, item.to_vec())
    }

    /// Cuts a range out of the extents of a file (`btrfs_drop_extents`).
    fn drop_extents(&mut self, number: u64, start: u64, end: u64) -> Result<()> {
        let range = Key::new(number, EXTENT_DATA, start)..Key::new(number, EXTENT_DATA, end.max(start));
        for _ in self.changes.range(range) {
            self.step()?;
        }
        let first = self.now().floor(Key::new(number, EXTENT_DATA, start))?;
        let first = first.map_or(start, |item| item.key.offset);
        let mut found = Vec::new();
        let mut bytes = 0;
        for item in self.now().items_of(number, EXTENT_DATA, first) {
            let item = item?;
            if item.key.offset >= end {
                break;
            }
            self.step()?;
            bytes += item.len() + CHANGE_BYTES;
            found.push((item.key, item.to_vec()));
            limited(bytes)?;
        }
        for (key, bytes) in found {
            let old = key.offset;
            let extent = item::Extent::parse(number, &bytes)?;
            let is_inline = matches!(extent.content, item::Content::Inline(_));
            let len = extent.len_bytes();
            let old_end = old.saturating_add(len);
            if old_end <= start && !(is_inline && old == start) {
                continue;
            }
            self.remove(key)?;
            if is_inline {
                continue;
            }
            if old < start {
                self.put(key, entries::part_of_extent(&bytes, 0, start - old))?;
            }
            if old_end > end {
                let key = Key::new(number, EXTENT_DATA, end);
                self.put(key, entries::part_of_extent(&bytes, end - old, old_end - end))?;
            }
        }
        Ok(())
    }
}

fn limited(bytes: usize) -> Result<()> {
    match bytes > MAX_BYTES {
        true => Err(Error::unsupported(format!("log of more than {MAX_BYTES} bytes"))),
        false => Ok(()),
    }
}

/// Finds a name in an item.
fn find<'a>(item: &'a Item, name: &[u8]) -> Option<Named<'a>> {
    item::names(item).flatten().find(|named| named.name == name)
}
