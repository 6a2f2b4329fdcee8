//! Directories: inside the inode, or in blocks that are read one after the other. The hash trees beside those blocks
//! serve look-ups of the kernel only and are not read.
//!
//! libxfs/xfs_da_format.h: `struct xfs_dir2_sf_hdr`, `struct xfs_dir2_data_entry`, `struct xfs_dir3_data_hdr`.

use std::ops::ControlFlow;

use crate::device::{be16, be32};
use crate::error::{Error, Result};
use crate::fs::{Entry, FileKind, Node, is_name};

use super::extents::Fork;
use super::inode::Inode;
use super::volume::{DIRECTORY_SEAL, Volume};

/// Offset in the fork where entries end and the hash tree begins (`XFS_DIR2_LEAF_OFFSET`).
const DATA_END_BYTES: u64 = 1 << 35;
/// `XFS_DIR2_DATA_FREE_TAG`.
const FREE_TAG: u16 = 0xffff;

type Each<'a> = dyn FnMut(Entry) -> ControlFlow<()> + 'a;

/// Result of a block: the caller had enough, or the block is damaged from some point on.
enum Stop {
    Enough,
    Damaged(&'static str),
}

/// Calls `each` for every entry. Damage is reported at the end.
pub(super) fn list(volume: &Volume, inode: &Inode, each: &mut Each<'_>) -> Result<()> {
    if inode.stat.kind != FileKind::Directory {
        return Err(Error::NotADirectory);
    }
    let fork = inode.data_fork()?;
    if let Fork::Local(bytes) = &fork {
        let len = usize::try_from(inode.stat.size_bytes).ok();
        let bytes = len.and_then(|len| bytes.get(..len));
        let result = bytes.ok_or(Stop::Damaged("longer than its inode"));
        let result = result.and_then(|bytes| list_short(volume, bytes, each));
        return match result {
            Ok(()) | Err(Stop::Enough) => Ok(()),
            Err(Stop::Damaged(what)) => Err(damaged(inode, what)),
        };
    }
    list_blocks(volume, inode, &fork, each)
}

fn damaged(inode: &Inode, what: &str) -> Error {
    Error::damaged(format!("directory {}: {what}", inode.number))
}

fn list_short(volume: &Volume, bytes: &[u8], each: &mut Each<'_>) -> std::result::Result<(), Stop> {
    let cut = || Stop::Damaged("cut off");
    let (head, _) = bytes.split_at_checked(2).ok_or_else(cut)?;
    let number_bytes = if head[1] == 0 { 4 } else { 8 };
    let type_bytes = usize::from(volume.superblock.has_file_types);
    let mut rest = bytes.get(2 + number_bytes..).ok_or_else(cut)?;
    let mut damage = Ok(());
    for _ in 0..head[0] {
        let name_bytes = usize::from(*rest.first().ok_or_else(cut)?);
        let name = rest.get(3..3 + name_bytes).ok_or_else(cut)?;
        let after = &rest[3 + name_bytes..];
        let kind = if type_bytes == 1 { after.first().copied() } else { None };
        let number = after.get(type_bytes..type_bytes + number_bytes).ok_or_else(cut)?;
        let number = number.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        if let Err(stop) = give(name, number, kind, each) {
            match stop {
                Stop::Enough => return Err(Stop::Enough),
                damaged => damage = Err(damaged),
            }
        }
        rest = &after[type_bytes + number_bytes..];
    }
    damage
}

fn give(name: &[u8], number: u64, kind: Option<u8>, each: &mut Each<'_>) -> std::result::Result<(), Stop> {
    if name == b"." || name == b".." {
        return Ok(());
    }
    if !is_name(name) {
        return Err(Stop::Damaged("invalid name"));
    }
    let entry = Entry {
        name: name.to_vec(),
        node: Node { space: 0, number },
        kind: kind.and_then(kind_of),
    };
    match each(entry) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Stop::Enough),
    }
}

/// Returns the kind by its number (`XFS_DIR3_FT_*`).
fn kind_of(file_type: u8) -> Option<FileKind> {
    match file_type {
        1 => Some(FileKind::File),
        2 => Some(FileKind::Directory),
        // A whiteout of overlayfs is a character device with number 0, 0.
        3 | 8 => Some(FileKind::CharDevice),
        4 => Some(FileKind::BlockDevice),
        5 => Some(FileKind::Fifo),
        6 => Some(FileKind::Socket),
        7 => Some(FileKind::Link),
        _ => None,
    }
}

fn list_blocks(volume: &Volume, inode: &Inode, fork: &Fork, each: &mut Each<'_>) -> Result<()> {
    let superblock = &volume.superblock;
    let step = 1u64 << superblock.directory_block_log;
    let end = DATA_END_BYTES >> superblock.block_log;
    let mut damage = Ok(());
    // No directory has more blocks than the volume; a hostile map may name one of them many times.
    let mut left = superblock.blocks;
    let mut at = 0;
    let mut leaf = fork.leaf_at(volume, inode.number, 0)?;
    while at < end {
        if !leaf.covers.contains(&at) {
            leaf = fork.leaf_at(volume, inode.number, at)?;
        }
        let Some(extent) = leaf.at_or_after(at) else {
            at = leaf.covers.end.checked_next_multiple_of(step).unwrap_or(end);
            continue;
        };
        // Directory blocks are aligned in the fork; each of their blocks is mapped.
        at = at.max(extent.start / step * step);
        if at >= end {
            break;
        }
        left = left.checked_sub(step).ok_or_else(|| damaged(inode, "endless"))?;
        let whole = extent.start <= at && at + step <= extent.end() && !extent.is_unwritten;
        let block = whole.then(|| extent.block.checked_add(at - extent.start)).flatten();
        let read = match block {
            Some(block) => volume.read_blocks(block, step, &format!("directory {}", inode.number)),
            None => fork.read(volume, inode.number, at, step),
        };
        let listed = read.map(|(offset_bytes, bytes)| list_block(volume, offset_bytes, &bytes, each));
        match listed {
            Ok(Ok(())) => {}
            Ok(Err(Stop::Enough)) => return Ok(()),
            Ok(Err(Stop::Damaged(what))) => damage = Err(damaged(inode, what)),
            Err(error) => damage = Err(error),
        }
        at += step;
    }
    damage
}

fn list_block(volume: &Volume, offset_bytes: u64, bytes: &[u8], each: &mut Each<'_>) -> std::result::Result<(), Stop> {
    let superblock = &volume.superblock;
    let cut = || Stop::Damaged("cut off");
    let magic = bytes.first_chunk::<4>().ok_or_else(cut)?;
    let is_single = match (superblock.has_checksums, magic) {
        (false, b"XD2D") | (true, b"XDD3") => false,
        (false, b"XD2B") | (true, b"XDB3") => true,
        _ => return Err(Stop::Damaged("a block has no magic number")),
    };
    let header_bytes = if superblock.has_checksums { 64 } else { 16 };
    if superblock.has_checksums {
        volume
            .check_seal(bytes, offset_bytes, &DIRECTORY_SEAL)
            .map_err(Stop::Damaged)?;
    }
    let mut end = bytes.len();
    if is_single {
        // A tail of two numbers, before it a hash table of that many entries.
        let tail = bytes.len().checked_sub(8).ok_or_else(cut)?;
        let hashes = be32(&bytes[tail..], 0) as usize;
        end = hashes
            .checked_mul(8)
            .and_then(|len| tail.checked_sub(len))
            .ok_or_else(cut)?;
    }
    list_entries(
        bytes.get(..end).ok_or_else(cut)?,
        header_bytes,
        superblock.has_file_types,
        each,
    )
}

fn list_entries(
    bytes: &[u8],
    header_bytes: usize,
    has_file_types: bool,
    each: &mut Each<'_>,
) -> std::result::Result<(), Stop> {
    let cut = || Stop::Damaged("cut off");
    let mut damage = Ok(());
    let mut at = header_bytes;
    while at < bytes.len() {
        // Everything in a block is aligned to 8 bytes and ends with a tag, its own offset.
        let rest = &bytes[at..];
        let head = rest.first_chunk::<8>().ok_or_else(cut)?;
        if be16(head, 0) == FREE_TAG {
            let len = usize::from(be16(head, 2));
            if len < 8 || len % 8 != 0 {
                return Err(Stop::Damaged("free space of no length"));
            }
            at += len;
            continue;
        }
        let number = u64::from_be_bytes(*head);
        let name_bytes = usize::from(*rest.get(8).ok_or_else(cut)?);
        let type_bytes = usize::from(has_file_types);
        let len = (9 + name_bytes + type_bytes + 2).next_multiple_of(8);
        let entry = rest.get(..len).ok_or_else(cut)?;
        if usize::from(be16(&entry[len - 2..], 0)) != at {
            return Err(Stop::Damaged("entries out of step"));
        }
        let name = &entry[9..9 + name_bytes];
        let kind = has_file_types.then(|| entry[9 + name_bytes]);
        match give(name, number, kind, each) {
            Ok(()) => {}
            Err(Stop::Enough) => return Err(Stop::Enough),
            Err(damaged) => damage = Err(damaged),
        }
        at += len;
    }
    damage
}
