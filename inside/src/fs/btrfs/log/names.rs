//! Names in the replay of the log: entries of directories and the references of inodes to them.

use std::collections::HashSet;

use super::{CHANGE_BYTES, Replay, find, limited};
use crate::device::le64;
use crate::error::{Error, Result};
use crate::fs::FileKind;
use crate::fs::btrfs::entries;
use crate::fs::btrfs::item::{self, Inode};
use crate::fs::btrfs::key::{DIR_INDEX, DIR_ITEM, DIR_LOG_INDEX, INODE_EXTREF, INODE_ITEM, INODE_REF, Key, name_hash};
use crate::fs::btrfs::tree::{Item, Items};

impl Replay<'_> {
    /// Removes the names of a directory that are in the ranges that were logged as a whole, but not in the log
    /// (`replay_dir_deletes`).
    pub(super) fn delete_names(&mut self, directory: u64) -> Result<()> {
        for range in self.log.items_of(directory, DIR_LOG_INDEX, 0) {
            let range = range?;
            let Some(end) = range.get(..8).map(|bytes| le64(bytes, 0)) else {
                return Err(Error::damaged("a range of the log is cut off"));
            };
            self.delete_range(directory, range.key.offset, end, true)?;
        }
        Ok(())
    }

    fn delete_range(&mut self, directory: u64, first: u64, last: u64, unless_logged: bool) -> Result<()> {
        let mut gone = Vec::new();
        let mut bytes = 0;
        let items = self.now().items(
            Key::new(directory, DIR_INDEX, first),
            Key::new(directory, DIR_INDEX, last),
        );
        for item in items {
            let item = item?;
            let logged = match unless_logged {
                true => self.log.get(item.key)?,
                false => None,
            };
            self.step()?;
            for named in item::names(&item) {
                let named = named?;
                if logged.as_ref().is_some_and(|logged| find(logged, named.name).is_some()) {
                    continue;
                }
                gone.push((item.key, named.location, named.name.to_vec()));
                bytes += named.name.len() + CHANGE_BYTES;
                limited(bytes)?;
            }
        }
        for (index, location, name) in gone {
            self.unlink(directory, location, &name)?;
            self.remove_name(index, &name)?;
        }
        Ok(())
    }

    /// Removes a name from a directory (`drop_one_dir_item`, `btrfs_unlink_inode`).
    fn unlink(&mut self, directory: u64, location: Key, name: &[u8]) -> Result<()> {
        let number = location.object;
        self.remove_name(Key::new(directory, DIR_ITEM, name_hash(name)), name)?;
        // The index is in the reference.
        let mut index = None;
        for item in self.references(number) {
            self.step()?;
            let item = item?;
            if let Some(found) = entries::references(&item).find(|it| it.parent == directory && it.name == name) {
                let rest = entries::without_reference(&item, directory, name);
                index = Some((found.index, item.key, rest));
                break;
            }
        }
        if let Some((index, key, rest)) = index {
            self.put_rest(key, rest)?;
            self.remove_name(Key::new(directory, DIR_INDEX, index), name)?;
        }
        self.resize(directory, name, false)?;
        self.to_count.insert(number);
        Ok(())
    }

    fn remove_name(&mut self, key: Key, name: &[u8]) -> Result<()> {
        match self.now().get(key)? {
            Some(item) if find(&item, name).is_some() => {
                let rest = entries::without(&item, name);
                self.put_rest(key, rest)
            }
            _ => Ok(()),
        }
    }

    /// Returns all references of an inode.
    fn references(&self, number: u64) -> Items<'_> {
        let (first, last) = (Key::new(number, INODE_REF, 0), Key::new(number, INODE_EXTREF, u64::MAX));
        self.now().items(first, last)
    }

    /// Adds a name to a directory, unless it exists (`btrfs_add_link`).
    fn link(&mut self, directory: u64, number: u64, name: &[u8], index: u64) -> Result<bool> {
        let by_name = Key::new(directory, DIR_ITEM, name_hash(name));
        let inode = self.inode_bytes(number)?;
        let Some(inode) = inode.filter(|_| self.location(by_name, name).is_ok_and(|found| found.is_none())) else {
            return Ok(false);
        };
        let kind = entries::kind_number(Inode::parse(number, &inode)?.stat.kind);
        let entry = entries::entry(Key::new(number, INODE_ITEM, 0), kind, name);
        // Names with equal hashes share an item.
        let mut all = self.now().get(by_name)?.map(|item| item.to_vec()).unwrap_or_default();
        all.extend(&entry);
        self.put(by_name, all)?;
        self.put(Key::new(directory, DIR_INDEX, index), entry)?;
        self.resize(directory, name, true)?;
        Ok(true)
    }

    /// Returns the location that a name of a directory has.
    fn location(&self, key: Key, name: &[u8]) -> Result<Option<Key>> {
        let item = self.now().get(key)?;
        Ok(item.and_then(|item| find(&item, name).map(|named| named.location)))
    }

    /// Stage 2: an index entry of a directory (`replay_one_dir_item`).
    pub(super) fn index(&mut self, item: &Item) -> Result<()> {
        let (directory, index) = (item.key.object, item.key.offset);
        for named in item::names(item) {
            let named = named?;
            let (name, location) = (named.name, named.location);
            let exists = location.kind == INODE_ITEM && self.inode_bytes(location.object)?.is_some();
            let mut matches = 0;
            for key in [Key::new(directory, DIR_ITEM, name_hash(name)), item.key] {
                match self.location(key, name)? {
                    Some(found) if found == location => matches += 1,
                    Some(found) if exists => self.unlink(directory, found, name)?,
                    _ => {}
                }
            }
            // A name whose reference is logged is added with it.
            if matches == 2 || !exists || self.is_logged(location.object, directory, name)? {
                continue;
            }
            if !self.link(directory, location.object, name, index)? {
                continue;
            }
            let key = Key::new(location.object, INODE_REF, directory);
            let mut bytes = self.now().get(key)?.map(|item| item.to_vec()).unwrap_or_default();
            bytes.extend(entries::reference(index, name));
            self.put(key, bytes)?;
            self.to_count.insert(location.object);
        }
        Ok(())
    }

    /// Tests for a reference in the log (`backref_in_log`).
    fn is_logged(&self, number: u64, directory: u64, name: &[u8]) -> Result<bool> {
        let keys = [
            Key::new(number, INODE_REF, directory),
            Key::new(number, INODE_EXTREF, entries::reference_hash(directory, name)),
        ];
        for key in keys {
            self.step()?;
            let Some(item) = self.log.get(key)? else { continue };
            for found in entries::references(&item) {
                self.steps(1)?;
                if found.parent == directory && found.name == name {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Stage 3: the names of an inode (`add_inode_ref`).
    pub(super) fn reference(&mut self, item: &Item) -> Result<()> {
        let number = item.key.object;
        if item.key.kind == INODE_REF && self.inode_bytes(item.key.offset)?.is_none() {
            // The directory was neither logged nor stored.
            return Ok(());
        }
        if number == item.key.offset && item.key.kind == INODE_REF {
            // The top directory refers to itself.
            return Ok(());
        }
        let mut kept = HashSet::new();
        for found in entries::references(item) {
            let (directory, name) = (found.parent, found.name);
            if self.inode_bytes(directory)?.is_none() {
                continue;
            }
            kept.insert((directory, name.to_vec()));
            let by_name = Key::new(directory, DIR_ITEM, name_hash(name));
            let by_index = Key::new(directory, DIR_INDEX, found.index);
            let is_this = |found: Option<Key>| found.is_some_and(|it| it.kind == INODE_ITEM && it.object == number);
            if is_this(self.location(by_name, name)?) && is_this(self.location(by_index, name)?) {
                continue;
            }
            self.unlink_unlogged(number, directory)?;
            for key in [by_index, by_name] {
                if let Some(other) = self.location(key, name)? {
                    self.unlink(directory, other, name)?;
                }
            }
            self.link(directory, number, name, found.index)?;
        }
        // Names of the reference that is now overwritten (`unlink_old_inode_refs`).
        if let Some(old) = self.now().get(item.key)? {
            let old: Vec<_> = entries::references(&old)
                .map(|it| (it.parent, it.name.to_vec()))
                .collect();
            for (directory, name) in old {
                if !kept.contains(&(directory, name.clone())) && !self.is_logged(number, directory, &name)? {
                    self.unlink(directory, Key::new(number, INODE_ITEM, 0), &name)?;
                }
            }
        }
        self.to_count.insert(number);
        self.put(item.key, item.to_vec())
    }

    /// Removes the names of an inode in a directory that its references in the log do not have.
    fn unlink_unlogged(&mut self, number: u64, directory: u64) -> Result<()> {
        let mut gone = Vec::new();
        let mut bytes = 0;
        for item in self.references(number) {
            self.step()?;
            let item = item?;
            for found in entries::references(&item).filter(|it| it.parent == directory) {
                if !self.is_logged(number, directory, found.name)? {
                    gone.push(found.name.to_vec());
                    bytes += found.name.len() + CHANGE_BYTES;
                    limited(bytes)?;
                }
            }
        }
        for name in gone {
            self.unlink(directory, Key::new(number, INODE_ITEM, 0), &name)?;
        }
        Ok(())
    }

    /// Adds twice the length of a name to the size of its directory, as the kernel counts it.
    fn resize(&mut self, directory: u64, name: &[u8], added: bool) -> Result<()> {
        let twice = 2 * name.len() as u64;
        self.change_inode(directory, |inode| {
            let size = le64(inode, 16);
            let size = if added {
                size.saturating_add(twice)
            } else {
                size.saturating_sub(twice)
            };
            inode[16..24].copy_from_slice(&size.to_le_bytes());
        })
    }

    /// Sets the numbers of links to those of the references (`fixup_inode_link_counts`). A directory without one loses
    /// its names.
    pub(super) fn count_links(&mut self) -> Result<()> {
        while let Some(number) = self.to_count.pop_last() {
            let mut links = 0_u32;
            for item in self.references(number) {
                self.step()?;
                let count = u32::try_from(entries::references(&item?).count()).unwrap_or(u32::MAX);
                links = links.saturating_add(count);
            }
            let Some(inode) = self.inode_bytes(number)? else {
                continue;
            };
            self.change_inode(number, |inode| inode[40..44].copy_from_slice(&links.to_le_bytes()))?;
            if links == 0 && Inode::parse(number, &inode)?.stat.kind == FileKind::Directory {
                self.delete_range(number, 0, u64::MAX, false)?;
            }
        }
        Ok(())
    }
}
