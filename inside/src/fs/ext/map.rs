//! The blocks of a file: extent trees, and the block numbers of ext2 and ext3.

use std::ops::Range;

use super::checksum::crc32c;
use super::inode::{FLAG_EXTENTS, Inode};
use super::ranges::Run;
use super::superblock::u32_at;
use super::volume::Volume;
use crate::device::{le16, le32};
use crate::error::Result;

/// `EXT4_MAX_EXTENT_DEPTH`.
const MAX_DEPTH: u16 = 5;
/// Number of blocks that a file can have: they have 32 bits in an extent.
pub(super) const MAX_BLOCKS: u64 = 1 << 32;
/// Longest extent with content; longer ones are allocated but not written (`EXT_INIT_MAX_LEN`).
const MAX_WRITTEN_BLOCKS: u64 = 1 << 15;

/// Part of a file that one node of its tree describes: at most 16384 runs.
#[derive(Debug)]
pub(super) struct Leaf {
    blocks: Range<u64>,
    /// The runs in order, without the holes.
    runs: Vec<Run>,
}

impl Leaf {
    /// Reads the leaf with a block of the file.
    pub fn of(volume: &Volume, inode: &Inode, block: u64) -> Result<Self> {
        if block >= MAX_BLOCKS {
            return Ok(Self::hole(block..u64::MAX));
        }
        let newer = inode.ranges.as_ref().map(|ranges| ranges.at(block));
        if let Some(Ok(run)) = newer {
            let runs = run.block.map(|_| run).into_iter().collect();
            let blocks = run.first..run.end;
            return Ok(Self { blocks, runs });
        }
        let mut leaf = match inode.has(FLAG_EXTENTS) {
            true => extents(volume, inode, block)?,
            false => pointers(volume, inode, block)?,
        };
        if let Some(Err((start, end))) = newer {
            leaf.clip(start..end);
        }
        Ok(leaf)
    }

    fn hole(blocks: Range<u64>) -> Self {
        Self {
            blocks,
            runs: Vec::new(),
        }
    }

    /// Returns the run or hole at a block of the file, if it belongs to this leaf.
    pub fn run(&self, block: u64) -> Option<Run> {
        if !self.blocks.contains(&block) {
            return None;
        }
        let after = self.runs.partition_point(|run| run.first <= block);
        let before = after.checked_sub(1).and_then(|index| self.runs.get(index)).copied();
        if let Some(run) = before.filter(|run| block < run.end) {
            return Some(run);
        }
        Some(Run {
            first: before.map_or(self.blocks.start, |run| run.end),
            end: self.runs.get(after).map_or(self.blocks.end, |run| run.first),
            block: None,
        })
    }

    /// Reduces the leaf to some blocks of the file.
    fn clip(&mut self, blocks: Range<u64>) {
        self.blocks = self.blocks.start.max(blocks.start)..self.blocks.end.min(blocks.end);
        self.runs.retain(|run| run.first < blocks.end && blocks.start < run.end);
        if let Some(first) = self.runs.first_mut()
            && first.first < blocks.start
        {
            first.block = first.block.map(|block| block + (blocks.start - first.first));
            first.first = blocks.start;
        }
        if let Some(last) = self.runs.last_mut() {
            last.end = last.end.min(blocks.end);
        }
    }

    /// Adds a run that lies after all others.
    fn push(&mut self, run: Run) {
        if let Some(last) = self.runs.last_mut() {
            let next = last.block.map(|block| block + (last.end - last.first));
            if last.end == run.first && next == run.block {
                last.end = run.end;
                return;
            }
        }
        self.runs.push(run);
    }
}

/// Walks an extent tree (fs/ext4/ext4_extents.h) to the leaf with a block. An index covers the blocks up to the next
/// one; nothing of a node counts outside the blocks of its parent, so no two leaves overlap.
fn extents(volume: &Volume, inode: &Inode, block: u64) -> Result<Leaf> {
    let mut node = inode.map().to_vec();
    let mut covered = 0..MAX_BLOCKS;
    let mut expected_depth = None;
    loop {
        let magic = le16(&node, 0);
        let (entries, depth) = (usize::from(le16(&node, 2)), le16(&node, 6));
        let most = node.len() / 12 - 1;
        if magic != 0xf30a || entries > most || depth > MAX_DEPTH || expected_depth.is_some_and(|it| it != depth) {
            return Err(inode.damaged("invalid node in the extent tree"));
        }
        let entries = node.get(12..12 + entries * 12).unwrap_or_default();
        if depth == 0 {
            // An empty leaf below an index would make a search for data walk through any number of them; the kernel
            // refuses it too (`ext4_ext_map_blocks`).
            if entries.is_empty() && expected_depth.is_some() {
                return Err(inode.damaged("empty leaf in the extent tree"));
            }
            return leaf_of(inode, covered, entries);
        }
        let mut child = None;
        for entry in entries.chunks_exact(12) {
            let first = u64::from(le32(entry, 0));
            if first > block {
                covered.end = covered.end.min(first);
                break;
            }
            covered.start = covered.start.max(first);
            child = Some(u64::from(le32(entry, 4)) | u64::from(le16(entry, 8)) << 32);
        }
        let Some(child) = child else {
            return Ok(Leaf::hole(covered));
        };
        node = volume.block(child)?;
        expected_depth = Some(depth - 1);
        if volume.superblock.has_checksums() {
            verify(inode, &node)?;
        }
    }
}

/// `ext4_extent_block_csum_verify`: the checksum follows the space for entries.
fn verify(inode: &Inode, node: &[u8]) -> Result<()> {
    let tail = 12 + 12 * usize::from(le16(node, 4));
    let (content, checksum) = (node.get(..tail), u32_at(node, tail));
    match content {
        Some(content) if crate::proven(checksum == Some(crc32c(inode.seed, content))) => Ok(()),
        _ => Err(inode.damaged("wrong checksum in the extent tree")),
    }
}

fn leaf_of(inode: &Inode, covered: Range<u64>, entries: &[u8]) -> Result<Leaf> {
    let mut end = covered.start;
    let mut leaf = Leaf::hole(covered);
    for entry in entries.chunks_exact(12) {
        let (first, length) = (u64::from(le32(entry, 0)), u64::from(le16(entry, 4)));
        let is_written = length <= MAX_WRITTEN_BLOCKS;
        let length = if is_written {
            length
        } else {
            length - MAX_WRITTEN_BLOCKS
        };
        if first < end || length == 0 || first + length > leaf.blocks.end {
            return Err(inode.damaged("extents that overlap or are empty"));
        }
        end = first + length;
        if is_written {
            let block = u64::from(le32(entry, 8)) | u64::from(le16(entry, 6)) << 32;
            leaf.push(Run {
                first,
                end,
                block: Some(block),
            });
        }
    }
    Ok(leaf)
}

/// Walks the block numbers of ext2 and ext3: twelve, then a block of them, a block of such blocks, and one level more.
fn pointers(volume: &Volume, inode: &Inode, block: u64) -> Result<Leaf> {
    const DIRECT: u64 = 12;
    let map = inode.map();
    if block < DIRECT {
        return Ok(pointer_leaf(0, map.get(..48).unwrap_or_default()));
    }
    let per_block = volume.superblock.block_bytes / 4;
    let (mut first, mut span, mut root) = (DIRECT, per_block, 48);
    for levels in 1..=3 {
        if block < first + span {
            let mut pointer = u32_at(map, root).unwrap_or(0);
            for _ in 0..levels {
                if pointer == 0 {
                    return Ok(Leaf::hole(first..first + span));
                }
                let node = volume.block(u64::from(pointer))?;
                if span == per_block {
                    return Ok(pointer_leaf(first, &node));
                }
                span /= per_block;
                let index = (block - first) / span;
                first += index * span;
                pointer = u32_at(&node, index as usize * 4).unwrap_or(0);
            }
        }
        first += span;
        span *= per_block;
        root += 4;
    }
    Ok(Leaf::hole(first..u64::MAX))
}

fn pointer_leaf(first: u64, pointers: &[u8]) -> Leaf {
    let mut leaf = Leaf::hole(first..first + pointers.len() as u64 / 4);
    for (at, pointer) in (first..).zip(pointers.chunks_exact(4)) {
        let pointer = u64::from(le32(pointer, 0));
        if pointer != 0 {
            leaf.push(Run {
                first: at,
                end: at + 1,
                block: Some(pointer),
            });
        }
    }
    leaf
}
