//! Trees: items found by their keys, and walks over ranges of them, with what the log changes.

use std::collections::BTreeMap;
use std::collections::btree_map::Range as ChangedRange;
use std::iter::Peekable;
use std::ops::{Deref, Range};
use std::sync::Arc;

use super::block::{Block, Blocks, MAX_LEVELS, Pointer};
use super::key::Key;
use crate::error::{Error, Result};

/// Items that the log puts before those of a tree; `None` removes one.
pub(super) type Changes = BTreeMap<Key, Change>;

type Change = Option<Arc<[u8]>>;

/// A tree with its changes.
#[derive(Clone, Copy)]
pub(super) struct Tree<'a> {
    pub(super) blocks: &'a Blocks,
    /// `None` for a tree of changes alone.
    pub(super) root: Option<Pointer>,
    pub(super) changes: Option<&'a Changes>,
}

/// An item. Dereferences to its data.
pub(super) struct Item {
    pub(super) key: Key,
    data: Data,
}

enum Data {
    Stored(Arc<Block>, Range<usize>),
    Changed(Arc<[u8]>),
}

impl Deref for Item {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.data {
            Data::Stored(block, range) => block.data(range.clone()),
            Data::Changed(bytes) => bytes,
        }
    }
}

impl<'a> Tree<'a> {
    /// Finds the item of a key.
    pub(super) fn get(&self, key: Key) -> Result<Option<Item>> {
        if let Some(changed) = self.changes.and_then(|changes| changes.get(&key)) {
            return Ok(changed.as_ref().map(|bytes| Item::changed(key, bytes)));
        }
        Ok(self.stored_floor(key)?.filter(|item| item.key == key))
    }

    /// Finds the last item of the same object and kind whose key is not after `key`.
    pub(super) fn floor(&self, key: Key) -> Result<Option<Item>> {
        let start = Key::new(key.object, key.kind, 0);
        let changed = self.changes.and_then(|changes| {
            let mut range = changes.range(start..=key).rev();
            range.find_map(|(key, bytes)| Some(Item::changed(*key, bytes.as_ref()?)))
        });
        let mut at = key;
        let stored = loop {
            let found = self.stored_floor(at)?.filter(|item| item.key.is_beside(key));
            let Some(found) = found else { break None };
            // The changed one is nearer.
            if changed.as_ref().is_some_and(|changed| changed.key >= found.key) {
                break None;
            }
            if !self.changes.is_some_and(|changes| changes.contains_key(&found.key)) {
                break Some(found);
            }
            match found.key.offset.checked_sub(1) {
                Some(offset) => at.offset = offset,
                None => break None,
            }
        };
        Ok([stored, changed].into_iter().flatten().max_by_key(|item| item.key))
    }

    fn stored_floor(&self, key: Key) -> Result<Option<Item>> {
        let Some(root) = self.root else { return Ok(None) };
        let mut block = self.blocks.read_root(root)?;
        let mut end = None;
        for _ in 0..MAX_LEVELS {
            let Some(index) = block.floor(key) else { return Ok(None) };
            if block.level() == 0 {
                return Ok(Item::stored(&block, index));
            }
            if index + 1 < block.count() {
                end = Some(block.key(index + 1));
            }
            block = self.blocks.read_child(&block, index, end)?;
        }
        Err(Error::damaged("a tree has too many levels"))
    }

    /// Walks over all items from `first` to `last`. After the error of a damaged block come the items of the next.
    pub(super) fn items(&self, first: Key, last: Key) -> Items<'a> {
        Items {
            stored: Stored {
                blocks: self.blocks,
                root: self.root,
                path: Vec::new(),
                first,
                last,
            }
            .peekable(),
            changed: self
                .changes
                .filter(|_| first <= last)
                .map(|changes| changes.range(first..=last).peekable()),
        }
    }

    /// Walks over all items of an object and kind whose offset is not less than `offset`.
    pub(super) fn items_of(&self, object: u64, kind: u8, offset: u64) -> Items<'a> {
        self.items(Key::new(object, kind, offset), Key::new(object, kind, u64::MAX))
    }
}

impl Item {
    fn changed(key: Key, bytes: &Arc<[u8]>) -> Self {
        let data = Data::Changed(Arc::clone(bytes));
        Self { key, data }
    }

    fn stored(block: &Arc<Block>, index: usize) -> Option<Self> {
        let data = Data::Stored(Arc::clone(block), block.range(index)?);
        let key = block.key(index);
        Some(Self { key, data })
    }
}

/// Iterator over the items of a tree.
pub(super) struct Items<'a> {
    stored: Peekable<Stored<'a>>,
    changed: Option<Peekable<ChangedRange<'a, Key, Change>>>,
}

impl Iterator for Items<'_> {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Result<Item>> {
        let Some(changed) = &mut self.changed else {
            return self.stored.next();
        };
        loop {
            let Some((key, bytes)) = changed.peek() else {
                return self.stored.next();
            };
            match self.stored.peek() {
                Some(Err(_)) => return self.stored.next(),
                Some(Ok(item)) if item.key < **key => return self.stored.next(),
                Some(Ok(item)) if item.key == **key => {
                    self.stored.next();
                }
                _ => {}
            }
            let found = bytes.as_ref().map(|bytes| Item::changed(**key, bytes));
            changed.next();
            if found.is_some() {
                return found.map(Ok);
            }
        }
    }
}

/// Iterator over the items in the blocks of a tree.
struct Stored<'a> {
    blocks: &'a Blocks,
    /// `None` once it was read.
    root: Option<Pointer>,
    path: Vec<Step>,
    first: Key,
    last: Key,
}

struct Step {
    block: Arc<Block>,
    next: usize,
    /// All keys below are before it.
    end: Option<Key>,
}

impl Stored<'_> {
    /// Returns the first entry of `block` that may lead to `first`.
    fn start(&self, block: &Block) -> usize {
        match block.level() {
            0 => block.keys_before(self.first),
            _ => block.floor(self.first).unwrap_or(0),
        }
    }
}

impl Iterator for Stored<'_> {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Result<Item>> {
        if let Some(root) = self.root.take() {
            let block = match self.blocks.read_root(root) {
                Ok(block) => block,
                Err(error) => return Some(Err(error)),
            };
            let next = self.start(&block);
            let end = None;
            self.path.push(Step { block, next, end });
        }
        loop {
            let step = self.path.last_mut()?;
            let (index, block) = (step.next, Arc::clone(&step.block));
            if index >= block.count() {
                self.path.pop();
                continue;
            }
            if block.key(index) > self.last {
                self.path.clear();
                return None;
            }
            step.next += 1;
            if block.level() == 0 {
                return Item::stored(&block, index).map(Ok);
            }
            let end = if index + 1 < block.count() {
                Some(block.key(index + 1))
            } else {
                step.end
            };
            match self.blocks.read_child(&block, index, end) {
                Ok(block) => {
                    let next = self.start(&block);
                    self.path.push(Step { block, next, end });
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
