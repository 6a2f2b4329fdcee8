//! Extents: the map from a fork's blocks to those of the volume. A large map is a tree, of which one leaf at a time is
//! in memory.
//!
//! `struct xfs_bmbt_rec`, `struct xfs_bmdr_block`, `struct xfs_btree_block` (libxfs/xfs_format.h).

use std::ops::Range;

use crate::device::{be16, be32, be64};
use crate::error::{Error, Result};

use super::volume::{EXTENT_TREE_SEAL, Volume};

/// Deepest tree: `XFS_BTREE_MAXLEVELS` is 9.
const MAX_DEPTH: u16 = 9;
/// Length of a record, and of a key with its pointer.
const RECORD_BYTES: usize = 16;

/// Blocks that are consecutive in the fork and in the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// First block in the fork.
    pub start: u64,
    /// First block in the volume.
    pub block: u64,
    pub count: u64,
    /// Space was reserved and nothing written: reads as zeros.
    pub is_unwritten: bool,
}

impl Extent {
    fn parse(record: &[u8; RECORD_BYTES]) -> Self {
        let (high, low) = (be64(record, 0), be64(record, 8));
        Self {
            start: (high & (u64::MAX >> 1)) >> 9,
            block: (high & 0x1ff) << 43 | low >> 21,
            count: low & 0x1f_ffff,
            is_unwritten: high >> 63 != 0,
        }
    }

    /// Parses records; tests that they are in order and do not overlap.
    pub fn parse_all(records: &[u8]) -> std::result::Result<Vec<Self>, &'static str> {
        let (records, _) = records.as_chunks();
        let extents: Vec<_> = records.iter().map(Self::parse).collect();
        let in_order = extents.is_sorted_by(|a, b| a.end() <= b.start);
        match in_order && extents.iter().all(|extent| extent.count > 0) {
            true => Ok(extents),
            false => Err("extents out of order"),
        }
    }

    /// Returns the block in the fork after the last.
    pub fn end(&self) -> u64 {
        // 54 bits and 21 bits.
        self.start + self.count
    }
}

/// One of the two byte sequences of an inode.
pub(super) enum Fork {
    /// The bytes are in the inode.
    Local(Vec<u8>),
    /// All extents are in the inode.
    Extents(Vec<Extent>),
    /// The root of a tree of extents is in the inode.
    Tree(Vec<u8>),
}

/// A part of a fork's map.
pub(super) struct Leaf {
    /// Blocks of the fork that this part describes.
    pub covers: Range<u64>,
    /// Extents in these blocks, in order. Blocks between them are holes.
    pub extents: Vec<Extent>,
}

impl Leaf {
    /// Returns the first extent that ends after `block`.
    pub fn at_or_after(&self, block: u64) -> Option<&Extent> {
        self.extents.get(self.index_at_or_after(block)..)?.first()
    }

    /// Returns the index of the first extent that ends after `block`.
    pub fn index_at_or_after(&self, block: u64) -> usize {
        self.extents.partition_point(|extent| extent.end() <= block)
    }
}

impl Fork {
    /// Returns the part of the map that describes `block`. Its end is greater than `block`.
    pub fn leaf_at(&self, volume: &Volume, inode: u64, block: u64) -> Result<Leaf> {
        match self {
            Self::Local(_) => Err(Error::damaged(format!("inode {inode}: content inside the inode"))),
            Self::Extents(extents) => Ok(Leaf {
                covers: 0..u64::MAX,
                extents: extents.clone(),
            }),
            Self::Tree(root) => descend(volume, root, block).map_err(|error| match error {
                Descent::Damaged(what) => Error::damaged(format!("inode {inode}: extent tree: {what}")),
                Descent::Other(error) => error,
            }),
        }
    }

    /// Returns the first extent that ends after `block`, from any part of the map.
    pub fn extent_at_or_after(&self, volume: &Volume, inode: u64, block: u64) -> Result<Option<Extent>> {
        let mut at = block;
        while at < u64::MAX {
            let leaf = self.leaf_at(volume, inode, at)?;
            if let Some(extent) = leaf.at_or_after(at) {
                return Ok(Some(*extent));
            }
            at = leaf.covers.end;
        }
        Ok(None)
    }

    /// Reads `count` blocks of metadata from `start`, wherever each is. Returns the address of the first block too.
    pub fn read(&self, volume: &Volume, inode: u64, start: u64, count: u64) -> Result<(u64, Vec<u8>)> {
        let bad = |what: &str| Error::damaged(format!("inode {inode}: block {start}: {what}"));
        let mut bytes = Vec::new();
        let mut address = None;
        let mut at = start;
        let end = start.checked_add(count).ok_or_else(|| bad("not mapped"))?;
        while at < end {
            let extent = self.extent_at_or_after(volume, inode, at)?;
            let extent = extent.filter(|extent| extent.start <= at && !extent.is_unwritten);
            let extent = extent.ok_or_else(|| bad("not mapped"))?;
            let run = end.min(extent.end()) - at;
            let block = extent.block.checked_add(at - extent.start);
            let block = block.ok_or_else(|| bad("outside"))?;
            let (offset_bytes, run_bytes) = volume.read_blocks(block, run, &format!("inode {inode}"))?;
            address.get_or_insert(offset_bytes);
            bytes.extend(run_bytes);
            at += run;
        }
        Ok((address.unwrap_or_default(), bytes))
    }
}

enum Descent {
    Damaged(&'static str),
    Other(Error),
}

impl From<&'static str> for Descent {
    fn from(what: &'static str) -> Self {
        Self::Damaged(what)
    }
}

impl From<Error> for Descent {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// Descends from the root in an inode to the leaf that describes `block`.
///
/// A hostile tree can't make a walk endless: the bounds of a leaf grow strictly, and a leaf must have all its extents
/// inside its bounds, so no leaf serves twice.
fn descend(volume: &Volume, root: &[u8], block: u64) -> std::result::Result<Leaf, Descent> {
    let head = root.get(..4).ok_or("cut off")?;
    let (mut level, count) = (be16(head, 0), be16(head, 2).into());
    if level == 0 || level > MAX_DEPTH {
        return Err("invalid depth".into());
    }
    let (mut child, mut covers) = choose(&root[4..], count, &(0..u64::MAX), block)?;
    loop {
        level -= 1;
        let (offset_bytes, bytes) = volume.read_blocks(child, 1, "extent tree")?;
        let records = node_records(volume, offset_bytes, &bytes, level)?;
        let count = usize::from(be16(&bytes, 6));
        if level > 0 {
            (child, covers) = choose(records, count, &covers, block)?;
            continue;
        }
        let len = count.checked_mul(RECORD_BYTES).ok_or("cut off")?;
        let extents = Extent::parse_all(records.get(..len).ok_or("cut off")?)?;
        let inside = |extent: &Extent| covers.start <= extent.start && extent.end() <= covers.end;
        if extents.is_empty() || !extents.iter().all(inside) {
            return Err("extents outside their part".into());
        }
        return Ok(Leaf { covers, extents });
    }
}

/// Checks a block of the tree and returns its records.
fn node_records<'a>(
    volume: &Volume,
    offset_bytes: u64,
    bytes: &'a [u8],
    level: u16,
) -> std::result::Result<&'a [u8], &'static str> {
    let (magic, header_bytes) = match volume.superblock.has_checksums {
        true => (0x424d_4133, 72),
        false => (0x424d_4150, 24),
    };
    let records = bytes.get(header_bytes..).ok_or("cut off")?;
    if be32(bytes, 0) != magic || be16(bytes, 4) != level {
        return Err("a block is not of the tree");
    }
    if volume.superblock.has_checksums {
        volume.check_seal(bytes, offset_bytes, &EXTENT_TREE_SEAL)?;
    }
    Ok(records)
}

/// Chooses the child that describes `block`: its block in the volume and its bounds. Keys fill the first half of a node
/// that could be full, pointers the second.
fn choose(
    records: &[u8],
    count: usize,
    covers: &Range<u64>,
    block: u64,
) -> std::result::Result<(u64, Range<u64>), &'static str> {
    let most = records.len() / RECORD_BYTES;
    if count == 0 || count > most {
        return Err("invalid number of children");
    }
    let (keys, pointers) = records.split_at(most * 8);
    let number = |of: &[u8], at: usize| of.get(at * 8..).and_then(|rest| rest.first_chunk()).map(be64_of);
    let key = |at| number(keys, at).ok_or("cut off");
    let mut chosen = 0;
    let mut end = covers.end;
    let mut before = key(0)?;
    for at in 1..count {
        let next = key(at)?;
        if next <= before {
            return Err("keys out of order");
        }
        if next > block {
            end = end.min(next);
            break;
        }
        (chosen, before) = (at, next);
    }
    let start = if chosen == 0 {
        covers.start
    } else {
        before.max(covers.start)
    };
    if !(start..end).contains(&block) {
        return Err("keys outside their part");
    }
    Ok((number(pointers, chosen).ok_or("cut off")?, start..end))
}

fn be64_of(bytes: &[u8; 8]) -> u64 {
    u64::from_be_bytes(*bytes)
}
