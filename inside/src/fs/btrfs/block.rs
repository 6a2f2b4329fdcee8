//! Tree blocks: read from any good copy, verified, and kept for a while.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::devices::Devices;
use super::key::Key;
use crate::btrfs::Fsid;
use crate::btrfs::checksum::Checksum;
use crate::btrfs::chunk::KEY_BYTES;
use crate::device::{le32, le64};
use crate::error::{Error, Result};

/// Levels of the highest tree (`BTRFS_MAX_LEVEL`).
pub(super) const MAX_LEVELS: u8 = 8;
/// Bytes of tree blocks that are kept. A lookup needs up to eight blocks of 64 KiB; a walk through a directory of
/// 100,000 entries needs its inodes again and again.
const CACHE_BYTES: usize = 16 << 20;

// `struct btrfs_header`, `struct btrfs_item`, `struct btrfs_key_ptr`.
const HEADER_BYTES: usize = 101;
const ITEM_BYTES: usize = 25;
const POINTER_BYTES: usize = 33;

/// Reference to a tree block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pointer {
    pub(super) logical: u64,
    /// Transaction in which the block was written.
    pub(super) generation: u64,
    pub(super) level: u8,
}

/// A verified tree block: its keys ascend, and all its items are inside of it.
pub(super) struct Block {
    bytes: Box<[u8]>,
    pointer: Pointer,
    count: usize,
}

impl Block {
    fn parse(
        bytes: Box<[u8]>,
        pointer: Pointer,
        checksum: Checksum,
        fsid: Fsid,
    ) -> std::result::Result<Self, &'static str> {
        if bytes.len() < HEADER_BYTES || !checksum.holds(&bytes) {
            return Err("checksum mismatch");
        }
        if bytes[32..48] != fsid.0 {
            return Err("it belongs to another file system");
        }
        if le64(&bytes, 48) != pointer.logical {
            return Err("it belongs to another address");
        }
        if le64(&bytes, 80) != pointer.generation {
            return Err("it is of another transaction");
        }
        if bytes[100] != pointer.level || pointer.level >= MAX_LEVELS {
            return Err("it has another level");
        }
        let count = usize::try_from(le32(&bytes, 96)).unwrap_or(usize::MAX);
        let each = if pointer.level == 0 { ITEM_BYTES } else { POINTER_BYTES };
        if count > (bytes.len() - HEADER_BYTES) / each {
            return Err("it has too many items");
        }
        let block = Self { bytes, pointer, count };
        if (1..count).any(|index| block.key(index - 1) >= block.key(index)) {
            return Err("its keys are not in order");
        }
        if pointer.level == 0 && (0..count).any(|index| block.range(index).is_none()) {
            return Err("an item is not inside of it");
        }
        Ok(block)
    }

    pub(super) fn level(&self) -> u8 {
        self.pointer.level
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Returns a key; the last possible one beyond the end.
    pub(super) fn key(&self, index: usize) -> Key {
        let key = self.entry(index).and_then(|entry| entry.first_chunk::<KEY_BYTES>());
        key.map_or(Key::LAST, Key::parse)
    }

    /// Returns the block below. The level must not be 0.
    pub(super) fn child(&self, index: usize) -> Option<Pointer> {
        let entry = self.entry(index).filter(|entry| entry.len() == POINTER_BYTES)?;
        Some(Pointer {
            logical: le64(entry, KEY_BYTES),
            generation: le64(entry, KEY_BYTES + 8),
            level: self.pointer.level.checked_sub(1)?,
        })
    }

    /// Returns the range of an item's data.
    pub(super) fn range(&self, index: usize) -> Option<Range<usize>> {
        let entry = self.entry(index).filter(|entry| entry.len() == ITEM_BYTES)?;
        let start = HEADER_BYTES.checked_add(usize::try_from(le32(entry, KEY_BYTES)).ok()?)?;
        let end = start.checked_add(usize::try_from(le32(entry, KEY_BYTES + 4)).ok()?)?;
        (end <= self.bytes.len()).then_some(start..end)
    }

    /// Returns the bytes of a range of [`Self::range`].
    pub(super) fn data(&self, range: Range<usize>) -> &[u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    /// Returns the number of keys before `key`.
    pub(super) fn keys_before(&self, key: Key) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle) < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Returns the index of the last key that is not after `key`.
    pub(super) fn floor(&self, key: Key) -> Option<usize> {
        let before = self.keys_before(key);
        if before < self.count && self.key(before) == key {
            return Some(before);
        }
        before.checked_sub(1)
    }

    fn entry(&self, index: usize) -> Option<&[u8]> {
        let each = if self.pointer.level == 0 {
            ITEM_BYTES
        } else {
            POINTER_BYTES
        };
        let at = (index < self.count).then_some(HEADER_BYTES + index * each)?;
        self.bytes.get(at..at + each)
    }
}

/// Every block of the trees.
pub(super) struct Blocks {
    pub(super) devices: Devices,
    pub(super) checksum: Checksum,
    pub(super) fsid: Fsid,
    pub(super) node_bytes: usize,
    pub(super) cache: Mutex<Cache>,
}

impl Blocks {
    /// Reads the root of a tree.
    pub(super) fn read_root(&self, pointer: Pointer) -> Result<Arc<Block>> {
        if let Some(block) = self.cache.lock().get(pointer) {
            return Ok(block);
        }
        let block = Arc::new(self.read_copies(pointer)?);
        self.cache.lock().put(Arc::clone(&block), self.node_bytes);
        Ok(block)
    }

    /// Reads a block below another one. Its keys must start with the pointer's and end before those of the next: so
    /// no block is found twice, and a walk through a tree ends.
    pub(super) fn read_child(&self, parent: &Block, index: usize, end: Option<Key>) -> Result<Arc<Block>> {
        let pointer = parent.child(index);
        let pointer = pointer.ok_or_else(|| Error::damaged("a tree block has no block below"))?;
        let block = self.read_root(pointer)?;
        let last = block.count.checked_sub(1).map(|last| block.key(last));
        let bounded = last.is_some_and(|last| end.is_none_or(|end| last < end));
        if block.key(0) != parent.key(index) || !bounded {
            return Err(damaged(pointer, "its keys are not those of its parent"));
        }
        Ok(block)
    }

    fn read_copies(&self, pointer: Pointer) -> Result<Block> {
        let run = self.devices.run(pointer.logical)?;
        let mut failed: Option<io::Error> = None;
        let mut why = "";
        for source in &run.sources {
            let mut bytes = vec![0; self.node_bytes].into_boxed_slice();
            if let Err(error) = self.devices.read(source, 0, &mut bytes) {
                failed.get_or_insert(error);
                continue;
            }
            match Block::parse(bytes, pointer, self.checksum, self.fsid) {
                Ok(block) => return Ok(block),
                Err(text) => why = text,
            }
        }
        match failed.filter(|error| error.kind() != io::ErrorKind::UnexpectedEof) {
            Some(error) => Err(error.into()),
            None if why.is_empty() => Err(damaged(pointer, "it is beyond the end of its device")),
            None => Err(damaged(pointer, why)),
        }
    }
}

fn damaged(pointer: Pointer, why: &str) -> Error {
    Error::damaged(format!("tree block {}: {why}", pointer.logical))
}

/// Blocks that were used last. Holds [`CACHE_BYTES`] at most.
#[derive(Default)]
pub(super) struct Cache {
    /// Used since the last change of the halves.
    young: HashMap<u64, Arc<Block>>,
    old: HashMap<u64, Arc<Block>>,
}

impl Cache {
    fn get(&mut self, pointer: Pointer) -> Option<Arc<Block>> {
        let found = match self.young.get(&pointer.logical) {
            Some(block) => Arc::clone(block),
            None => {
                let block = self.old.remove(&pointer.logical)?;
                self.young.insert(pointer.logical, Arc::clone(&block));
                block
            }
        };
        (found.pointer == pointer).then_some(found)
    }

    fn put(&mut self, block: Arc<Block>, node_bytes: usize) {
        if (self.young.len() + 1) * node_bytes > CACHE_BYTES / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(block.pointer.logical, block);
    }
}
