//! Directories: `struct ext4_dir_entry_2`, in the order of the disk. The index of a large directory lies inside entries
//! that look unused, so that reading block after block finds every name.

use std::ops::ControlFlow;

use super::checksum::crc32c;
use super::content::Blocks;
use super::fast_commit::{Name, Names};
use super::inode::{FLAG_ENCRYPT, FLAG_INDEX, FLAG_INLINE_DATA, Inode};
use super::superblock::{INCOMPAT_FILETYPE, u16_at, u32_at};
use super::volume::Volume;
use super::xattr_entries;

pub(super) mod index;
use crate::error::{Error, Result};
use crate::fs::{Entry, FileKind, Node, is_name};

/// Most blocks of a directory that are read: with blocks of 4 KiB, 100 million names or more. Hostile extents could
/// show the same blocks again and again.
const MAX_BLOCKS: u64 = 1 << 20;

/// Bytes of an entry before its name.
const FIXED_BYTES: usize = 8;
/// `struct ext4_dir_entry_tail`.
const TAIL_BYTES: usize = 12;

type Each<'a> = &'a mut dyn FnMut(Entry) -> ControlFlow<()>;

/// Calls `each` for every entry. The first error is returned when all other parts have been read.
pub(super) fn list(volume: &Volume, inode: Inode, each: Each<'_>) -> Result<()> {
    let blocks = Blocks::new(inode);
    let names = volume.fast_commits.names(blocks.inode.number);
    let mut is_done = false;
    let mut each_that_counts = |entry: Entry| {
        if names.is_some_and(|names| !counts(names, &entry)) {
            return ControlFlow::Continue(());
        }
        let flow = each(entry);
        is_done |= flow.is_break();
        flow
    };
    let mut listing = Listing {
        volume,
        inode: &blocks.inode,
        error: None,
        each: &mut each_that_counts,
    };
    let _: ControlFlow<()> = listing.all(&blocks);
    let error = listing.error;
    for (name, change) in names.into_iter().flatten() {
        if let Name::Of(number) = change
            && !is_done
        {
            let entry = Entry {
                name: name.clone(),
                node: node(*number),
                kind: None,
            };
            is_done = each(entry).is_break();
        }
    }
    error.map_or(Ok(()), Err)
}

/// Tests that an entry on the disk has no newer state in a fast commit.
fn counts(names: &Names, entry: &Entry) -> bool {
    match names.get(&entry.name) {
        None => true,
        Some(Name::NotOf(number)) => entry.node != node(*number),
        Some(Name::Of(_) | Name::Removed) => false,
    }
}

/// Returns the inode of a name, by the index if there is one. If the index does not lead to the name, it may be damaged,
/// so that the whole directory is read.
pub(super) fn lookup(volume: &Volume, inode: Inode, name: &[u8]) -> Result<Node> {
    let blocks = Blocks::new(inode);
    let names = volume.fast_commits.names(blocks.inode.number);
    match names.and_then(|names| names.get(name)) {
        Some(Name::Of(number)) => return Ok(node(*number)),
        Some(Name::Removed) => return Err(Error::NotFound),
        Some(Name::NotOf(_)) | None => {}
    }
    let mut found = None;
    let mut each = |entry: Entry| {
        if entry.name == name && names.is_none_or(|names| counts(names, &entry)) {
            found = Some(entry.node);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    let mut listing = Listing {
        volume,
        inode: &blocks.inode,
        error: None,
        each: &mut each,
    };
    let candidates = index::blocks_of(volume, &blocks, name);
    let walked = candidates.iter().try_for_each(|number| listing.block(&blocks, *number));
    if walked.is_continue() {
        // The errors of those blocks come up again.
        listing.error = None;
        let _: ControlFlow<()> = listing.all(&blocks);
    }
    let error = listing.error;
    match (found, error) {
        (Some(node), _) => Ok(node),
        (None, Some(error)) => Err(error),
        (None, None) => Err(Error::NotFound),
    }
}

struct Listing<'a> {
    volume: &'a Volume,
    inode: &'a Inode,
    error: Option<Error>,
    each: Each<'a>,
}

impl Listing<'_> {
    fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }

    fn all(&mut self, blocks: &Blocks) -> ControlFlow<()> {
        match self.inode.has(FLAG_INLINE_DATA) {
            true => self.inline(),
            false => self.blocks(blocks),
        }
    }

    /// Reads one block of the directory, if it has it.
    fn block(&mut self, blocks: &Blocks, number: u64) -> ControlFlow<()> {
        match blocks.run(self.volume, number) {
            Ok(run) => match run.block {
                Some(first) => self.block_at(first + (number - run.first), number),
                None => ControlFlow::Continue(()),
            },
            Err(error) => {
                self.fail(error);
                ControlFlow::Continue(())
            }
        }
    }

    fn block_at(&mut self, at: u64, number: u64) -> ControlFlow<()> {
        match self.volume.block(at) {
            Ok(bytes) if self.is_intact(&bytes) => self.entries(&bytes)?,
            Ok(_) => self.fail(
                self.inode
                    .damaged(format_args!("wrong checksum of block {number} of the directory")),
            ),
            Err(error) => self.fail(error),
        }
        ControlFlow::Continue(())
    }

    /// The number of the parent, then entries; more entries in an attribute (fs/ext4/inline.c).
    fn inline(&mut self) -> ControlFlow<()> {
        let inode = self.inode;
        self.entries(inode.map().get(4..).unwrap_or_default())?;
        match xattr_entries::inline_data(inode) {
            Ok(more) => self.entries(&more)?,
            Err(error) => self.fail(error),
        }
        ControlFlow::Continue(())
    }

    fn blocks(&mut self, blocks: &Blocks) -> ControlFlow<()> {
        let superblock = &self.volume.superblock;
        let end = self.inode.size_bytes.div_ceil(superblock.block_bytes);
        let mut left = MAX_BLOCKS.min(superblock.blocks);
        let mut at = 0;
        while at < end {
            let run = match blocks.run(self.volume, at) {
                Ok(run) => run,
                Err(error) => {
                    // Other nodes of the tree may be whole, but how many blocks this one covers is unknown.
                    self.fail(error);
                    at += 1;
                    left = left.saturating_sub(1);
                    if left == 0 {
                        break;
                    }
                    continue;
                }
            };
            let Some(first) = run.block else {
                at = run.end;
                continue;
            };
            for in_file in at..run.end.min(end) {
                if left == 0 {
                    self.fail(self.inode.damaged("directory with more blocks than are read"));
                    return ControlFlow::Break(());
                }
                left -= 1;
                self.block_at(first + (in_file - run.first), in_file)?;
            }
            at = run.end;
        }
        ControlFlow::Continue(())
    }

    /// Tests the checksum of a block: of entries (`ext4_dirblk_csum_verify`) or of an index.
    fn is_intact(&self, block: &[u8]) -> bool {
        if !self.volume.superblock.has_checksums() {
            return true;
        }
        if self.inode.has(FLAG_INDEX)
            && let Some(index) = index_at(block)
        {
            return crate::proven(index_holds(self.inode.seed, block, index));
        }
        let Some((entries, tail)) = block.split_at_checked(block.len() - TAIL_BYTES) else {
            return false;
        };
        // An unused entry of 12 bytes with the type 0xde.
        let is_tail = tail.starts_with(&[0, 0, 0, 0, 12, 0, 0, 0xde]);
        is_tail && crate::proven(u32_at(tail, 8) == Some(crc32c(self.inode.seed, entries)))
    }

    fn entries(&mut self, bytes: &[u8]) -> ControlFlow<()> {
        let has_kinds = self.volume.superblock.has_incompat(INCOMPAT_FILETYPE);
        let mut at = 0;
        while at < bytes.len() {
            let length = u16_at(bytes, at + 4).map_or(0, |length| entry_bytes(length, bytes.len()));
            let entry = bytes.get(at..).and_then(|from| from.get(..length));
            let Some(entry) = entry.filter(|entry| entry.len() >= FIXED_BYTES && length.is_multiple_of(4)) else {
                self.fail(self.inode.damaged("invalid entry in the directory"));
                break;
            };
            at += length;
            let (number, name_bytes) = (u32_at(entry, 0).unwrap_or(0), usize::from(entry[6]));
            if number == 0 {
                continue;
            }
            let Some(name) = entry.get(FIXED_BYTES..FIXED_BYTES + name_bytes) else {
                self.fail(self.inode.damaged("name longer than its entry in the directory"));
                continue;
            };
            if name == b"." || name == b".." {
                continue;
            }
            if !is_name(name) {
                self.fail(match self.inode.has(FLAG_ENCRYPT) {
                    true => Error::unsupported("encrypted name"),
                    false => self.inode.damaged("invalid name in the directory"),
                });
                continue;
            }
            if number > self.volume.superblock.inodes {
                self.fail(
                    self.inode
                        .damaged(format_args!("entry of inode {number}, which can't exist")),
                );
                continue;
            }
            (self.each)(Entry {
                name: name.to_vec(),
                node: node(number),
                kind: if has_kinds { kind(entry[7]) } else { None },
            })?;
        }
        ControlFlow::Continue(())
    }
}

/// Returns the node of an inode.
pub(super) fn node(number: u32) -> Node {
    Node {
        space: 0,
        number: number.into(),
    }
}

/// Decodes the length of an entry (`ext4_rec_len_from_disk`): in blocks of 64 KiB, the lower two bits are the highest.
fn entry_bytes(stored: u16, block_bytes: usize) -> usize {
    let stored = usize::from(stored);
    match (block_bytes, stored) {
        (0x1_0000, 0 | 0xffff) => block_bytes,
        (0x1_0000, stored) => (stored & 0xfffc) | (stored & 3) << 16,
        (_, stored) => stored,
    }
}

/// `EXT4_FT_*`
fn kind(stored: u8) -> Option<FileKind> {
    match stored {
        1 => Some(FileKind::File),
        2 => Some(FileKind::Directory),
        3 => Some(FileKind::CharDevice),
        4 => Some(FileKind::BlockDevice),
        5 => Some(FileKind::Fifo),
        6 => Some(FileKind::Socket),
        7 => Some(FileKind::Link),
        _ => None,
    }
}

/// Returns the offset of the index in a block that has one (`get_dx_countlimit`, fs/ext4/namei.c): after an unused entry
/// as long as the block, or after `.`, `..` and eight bytes of information.
pub(super) fn index_at(block: &[u8]) -> Option<usize> {
    let length = |at: usize| Some(entry_bytes(u16_at(block, at + 4)?, block.len()));
    match length(0)? {
        whole if whole == block.len() => Some(8),
        12 if length(12)? == block.len() - 12 && u32_at(block, 24)? == 0 && block.get(29) == Some(&8) => Some(32),
        _ => None,
    }
}

/// `ext4_dx_csum_verify`: the checksum covers the block up to the used entries, and its own first four bytes.
fn index_holds(seed: u32, block: &[u8], index: usize) -> bool {
    let (Some(limit), Some(count)) = (u16_at(block, index), u16_at(block, index + 2)) else {
        return false;
    };
    let (used, tail) = (index + usize::from(count) * 8, index + usize::from(limit) * 8);
    let (Some(used), Some(reserved), true) = (block.get(..used), block.get(tail..tail + 4), count <= limit) else {
        return false;
    };
    let checksum = crc32c(crc32c(crc32c(seed, used), reserved), &[0; 4]);
    u32_at(block, tail + 4) == Some(checksum)
}
