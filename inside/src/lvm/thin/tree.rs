//! B-trees of dm's persistent data: nodes of one block, keys and values of 64 bits (drivers/md/persistent-data).

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::crc;
use super::Run;
use crate::device::{SharedDevice, le32, le64, read_array};
use crate::error::{Error, Result};

/// Length of a metadata block (`THIN_METADATA_BLOCK_SIZE`).
pub(super) const BLOCK_BYTES: u64 = 4096;
/// `BTREE_CSUM_XOR`.
const NODE_XOR: u32 = 121_107;
/// Length of `struct node_header`.
const HEADER_BYTES: usize = 32;
/// `INTERNAL_NODE` and `LEAF_NODE`.
const INTERNAL: u32 = 1;
const LEAF: u32 = 2;
/// Deepest tree: with 126 children a node, which is what half-full nodes have, it maps 2^69 blocks.
const MAX_DEPTH: usize = 10;
/// Nodes that are kept, in each of two generations: 4 MiB together, which map 8 GiB in blocks of 64 KiB.
const CACHED_NODES: usize = 512;

/// A node whose checksum matches and whose keys ascend.
struct Node {
    is_leaf: bool,
    keys: Vec<u64>,
    /// The first 64 bits of each value.
    values: Vec<u64>,
}

impl Node {
    fn parse(block: u64, bytes: &[u8; BLOCK_BYTES as usize], leaf_value_bytes: usize) -> Result<Self> {
        let damaged = || Error::damaged(format!("block {block} of the thin pool's metadata"));
        let sum_holds = crc::persistent_data(&bytes[4..], NODE_XOR) == le32(bytes, 0);
        if le64(bytes, 8) != block || !crate::proven(sum_holds) {
            return Err(damaged());
        }
        let (flags, count, max) = (le32(bytes, 4), le32(bytes, 16) as usize, le32(bytes, 20) as usize);
        let is_leaf = flags & LEAF != 0;
        let value_bytes = if is_leaf { leaf_value_bytes } else { 8 };
        let room = (BLOCK_BYTES as usize - HEADER_BYTES) / (8 + value_bytes);
        if flags & (INTERNAL | LEAF) == 0 || le32(bytes, 24) as usize != value_bytes || count > max || max > room {
            return Err(damaged());
        }
        let (keys, values) = bytes[HEADER_BYTES..].split_at(8 * max);
        let node = Self {
            is_leaf,
            keys: keys.chunks_exact(8).take(count).map(|key| le64(key, 0)).collect(),
            values: values
                .chunks_exact(value_bytes)
                .take(count)
                .map(|value| le64(value, 0))
                .collect(),
        };
        if node.keys.is_sorted_by(|a, b| a < b) {
            Ok(node)
        } else {
            Err(damaged())
        }
    }

    /// Returns the index of the last key that is not above `key`.
    fn at_or_before(&self, key: u64) -> Option<usize> {
        self.keys.partition_point(|known| *known <= key).checked_sub(1)
    }
}

/// Nodes by block, and the length of values in their leaves: one block can't be a node of two trees with different ones.
type Nodes = HashMap<(u64, usize), Arc<Node>>;

/// All trees of one pool.
pub(super) struct Tree {
    metadata: SharedDevice,
    blocks: u64,
    /// The nodes used lately, and those used before them.
    cache: Mutex<(Nodes, Nodes)>,
}

impl Tree {
    pub(super) fn new(metadata: SharedDevice, blocks: u64) -> Self {
        let whole_blocks = metadata.size_bytes() / BLOCK_BYTES;
        Self {
            metadata,
            blocks: blocks.min(whole_blocks),
            cache: Mutex::default(),
        }
    }

    fn node(&self, block: u64, value_bytes: usize) -> Result<Arc<Node>> {
        let key = (block, value_bytes);
        let mut cache = self.cache.lock();
        if let Some(node) = cache.0.get(&key) {
            return Ok(Arc::clone(node));
        }
        let known = cache.1.get(&key).cloned();
        drop(cache);
        let node = match known {
            Some(node) => node,
            None => self.read(block, value_bytes)?,
        };
        cache = self.cache.lock();
        if cache.0.len() >= CACHED_NODES {
            cache.1 = mem::take(&mut cache.0);
        }
        cache.0.insert(key, Arc::clone(&node));
        Ok(node)
    }

    fn read(&self, block: u64, value_bytes: usize) -> Result<Arc<Node>> {
        let outside = || Error::damaged(format!("block {block} is outside of the thin pool's metadata"));
        if block >= self.blocks {
            return Err(outside());
        }
        // `blocks` is not more than the device has, so this product fits.
        let bytes = read_array::<{ BLOCK_BYTES as usize }>(self.metadata.as_ref(), block * BLOCK_BYTES)?;
        Ok(Arc::new(Node::parse(block, &bytes.ok_or_else(outside)?, value_bytes)?))
    }

    /// Returns the leaf that has `key`, if any has it, and the lowest key of the leaf after that one.
    fn leaf(&self, root: u64, key: u64, value_bytes: usize) -> Result<(Arc<Node>, Option<u64>)> {
        let (mut block, mut following) = (root, None);
        for _ in 0..MAX_DEPTH {
            let node = self.node(block, value_bytes)?;
            if node.is_leaf {
                return Ok((node, following));
            }
            // The first child has all keys below the second one's, though its own key may be above.
            let index = node.at_or_before(key).unwrap_or(0);
            let child = node.values.get(index);
            block = *child.ok_or_else(|| Error::damaged(format!("empty node {block} of the thin pool's metadata")))?;
            following = node.keys.get(index + 1).copied().or(following);
        }
        Err(Error::damaged(format!(
            "tree {root} of the thin pool's metadata is too deep"
        )))
    }

    /// Returns the start of the value of a key.
    pub(super) fn value(&self, root: u64, key: u64, value_bytes: usize) -> Result<Option<u64>> {
        let (leaf, _) = self.leaf(root, key, value_bytes)?;
        let index = leaf.keys.binary_search(&key).ok();
        Ok(index.and_then(|index| leaf.values.get(index)).copied())
    }

    /// Returns the first run of mapped blocks that reaches to or beyond `key`, from `key` on, as far as one leaf has it.
    pub(super) fn run(&self, root: u64, key: u64, value_bytes: usize) -> Result<Option<Run>> {
        let (mut leaf, following) = self.leaf(root, key, value_bytes)?;
        let mut index = leaf.keys.partition_point(|known| *known < key);
        // All keys of this leaf may be lower. The next leaf starts with the key that a node above has for it.
        if let Some(next) = following.filter(|next| index == leaf.keys.len() && *next > key) {
            leaf = self.leaf(root, next, value_bytes)?.0;
            index = leaf.keys.partition_point(|known| *known < next);
            if index == leaf.keys.len() {
                return Err(Error::damaged(format!("tree {root} of the thin pool's metadata")));
            }
        }
        // The time of the mapping is in the lower 24 bits (`unpack_block_time`).
        let entry = |index: usize| Some((*leaf.keys.get(index)?, leaf.values.get(index)? >> 24));
        let Some((block, data)) = entry(index) else {
            return Ok(None);
        };
        let follows = |count: &u64| {
            let next = usize::try_from(*count)
                .ok()
                .and_then(|count| entry(index.checked_add(count)?));
            next.is_some_and(|(key, value)| {
                key.checked_sub(block) == Some(*count) && value.checked_sub(data) == Some(*count)
            })
        };
        let count = (1..).find(|count| !follows(count)).unwrap_or(1);
        Ok(Some(Run { block, data, count }))
    }

    /// Returns the first key at or after `key` that has no value; `None` if it is not in the next `leaves` leaves.
    pub(super) fn gap(&self, root: u64, mut key: u64, value_bytes: usize, leaves: usize) -> Result<Option<u64>> {
        for _ in 0..leaves {
            let (leaf, following) = self.leaf(root, key, value_bytes)?;
            let from = leaf.keys.partition_point(|known| *known < key);
            let keys = leaf.keys.get(from..).unwrap_or_default();
            // Keys ascend, so those before the first gap are as far apart as their indexes.
            let follows = |index: usize| keys.get(index).is_some_and(|it| it - key == index as u64);
            let (mut low, mut high) = (0, keys.len());
            while low < high {
                let middle = (low + high) / 2;
                match follows(middle) {
                    true => low = middle + 1,
                    false => high = middle,
                }
            }
            let Some(end) = key.checked_add(low as u64) else {
                return Ok(None);
            };
            // The next leaf may continue the run.
            if low < keys.len() || following != Some(end) {
                return Ok(Some(end));
            }
            key = end;
        }
        Ok(None)
    }
}
