//! The content of items: inodes, names, roots, file extents (linux/btrfs_tree.h). Every parser takes any bytes.

use jiff::Timestamp;

use super::block::{MAX_LEVELS, Pointer};
use super::key::Key;
use crate::btrfs::chunk::KEY_BYTES;
use crate::device::{le16, le32, le64};
use crate::error::{Error, Result};
use crate::fs::{FileKind, Stat};

/// `struct btrfs_inode_item`.
pub(super) const INODE_BYTES: usize = 160;
/// `struct btrfs_file_extent_item` up to the data of an inline extent.
const EXTENT_HEAD_BYTES: usize = 21;
const EXTENT_BYTES: usize = 53;
/// `struct btrfs_dir_item`.
const NAME_HEAD_BYTES: usize = 30;
/// `struct btrfs_root_item` up to the level.
const ROOT_BYTES: usize = 239;
/// `BTRFS_INODE_NODATASUM`.
const NODATASUM: u64 = 1;

/// An inode.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub(super) stat: Stat,
    /// False if the content has no checksums.
    pub(super) has_checksums: bool,
}

impl Inode {
    /// Parses an inode item.
    pub(super) fn parse(number: u64, bytes: &[u8]) -> Result<Self> {
        let bytes = bytes
            .get(..INODE_BYTES)
            .ok_or_else(|| Error::damaged(format!("inode {number}: its item is too short")))?;
        let mode = le32(bytes, 52);
        let kind = match mode & 0o170000 {
            0o100000 => FileKind::File,
            0o040000 => FileKind::Directory,
            0o120000 => FileKind::Link,
            0o020000 => FileKind::CharDevice,
            0o060000 => FileKind::BlockDevice,
            0o010000 => FileKind::Fifo,
            0o140000 => FileKind::Socket,
            _ => return Err(Error::damaged(format!("inode {number}: mode {mode:o}"))),
        };
        // The number is the kernel's own dev_t: 20 bits of minor number (linux/kdev_t.h).
        let device = match kind {
            FileKind::CharDevice | FileKind::BlockDevice => le32(bytes, 56),
            _ => 0,
        };
        let size_bytes = le64(bytes, 16);
        if i64::try_from(size_bytes).is_err() {
            return Err(Error::damaged(format!("inode {number}: size {size_bytes}")));
        }
        Ok(Self {
            stat: Stat {
                kind,
                mode: le16(bytes, 52) & 0o7777,
                uid: le32(bytes, 44),
                gid: le32(bytes, 48),
                links: le32(bytes, 40).max(1),
                size_bytes,
                device: (device >> 20, device & 0xf_ffff),
                modified: time(bytes, 136),
                changed: time(bytes, 124),
                accessed: time(bytes, 112),
            },
            has_checksums: le64(bytes, 64) & NODATASUM == 0,
        })
    }
}

/// Parses a time (`struct btrfs_timespec`). One that no calendar has becomes the nearest.
fn time(bytes: &[u8], at: usize) -> Timestamp {
    let seconds = le64(bytes, at).cast_signed();
    let nanoseconds = i32::try_from(le32(bytes, at + 8).min(999_999_999)).unwrap_or(0);
    Timestamp::new(seconds, nanoseconds).unwrap_or(if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

/// A name in a directory, or an extended attribute (`struct btrfs_dir_item`).
pub(super) struct Named<'a> {
    /// Key of the inode or of the root of a subvolume.
    pub(super) location: Key,
    pub(super) kind: u8,
    pub(super) name: &'a [u8],
    /// Value of an attribute.
    pub(super) value: &'a [u8],
    /// This entry and those after it, without the rest of the item.
    pub(super) bytes: &'a [u8],
}

/// Parses all names of an item: more than one if their hashes are equal. The last is an error if the item ends inside
/// of it.
pub(super) fn names(mut bytes: &[u8]) -> impl Iterator<Item = Result<Named<'_>>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let taken = take_name(bytes);
        bytes = taken.as_ref().map_or(&[], |(_, rest)| *rest);
        Some(
            taken
                .map(|(named, _)| named)
                .ok_or_else(|| Error::damaged("a name is cut off")),
        )
    })
}

fn take_name(bytes: &[u8]) -> Option<(Named<'_>, &[u8])> {
    let (head, after) = bytes.split_at_checked(NAME_HEAD_BYTES)?;
    let (name, after) = after.split_at_checked(usize::from(le16(head, 27)))?;
    let (value, rest) = after.split_at_checked(usize::from(le16(head, 25)))?;
    let named = Named {
        location: Key::parse(head.first_chunk::<KEY_BYTES>()?),
        kind: head[29],
        name,
        value,
        bytes: &bytes[..bytes.len() - rest.len()],
    };
    Some((named, rest))
}

/// Returns the kind of file that a directory entry names (`BTRFS_FT_*`).
pub(super) fn file_kind(kind: u8) -> Option<FileKind> {
    match kind {
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

/// Parses the root of a tree.
pub(super) fn root(number: u64, bytes: &[u8]) -> Result<Pointer> {
    let bytes = bytes
        .get(..ROOT_BYTES)
        .ok_or_else(|| Error::damaged(format!("tree {number}: its root item is too short")))?;
    let pointer = Pointer {
        logical: le64(bytes, 176),
        generation: le64(bytes, 160),
        level: bytes[238],
    };
    if pointer.level >= MAX_LEVELS {
        return Err(Error::damaged(format!("tree {number}: level {}", pointer.level)));
    }
    Ok(pointer)
}

/// Place of a subvolume: the directory and the name (`struct btrfs_root_ref`).
pub(super) fn root_ref(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let head = bytes.get(..18)?;
    let name = bytes.get(18..)?.get(..usize::from(le16(head, 16)))?;
    Some((le64(head, 0), name))
}

/// Compression of an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Zlib,
    Lzo,
    Zstd,
}

/// A part of a file's content (`struct btrfs_file_extent_item`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent<'a> {
    pub(super) compression: Compression,
    /// Length of the whole extent before compression.
    pub(super) ram_bytes: u64,
    pub(super) content: Content<'a>,
}

/// Location of the bytes of an extent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content<'a> {
    /// In the item.
    Inline(&'a [u8]),
    /// On disk: `len_bytes` from `skip_bytes` of the extent, which has `disk_bytes` at the address `logical`.
    Stored {
        logical: u64,
        disk_bytes: u64,
        skip_bytes: u64,
        len_bytes: u64,
    },
    /// Zeros: a hole, or space that was reserved and not written.
    Zeros(u64),
}

impl<'a> Extent<'a> {
    /// Parses an extent. The error is for the file's part that it describes.
    pub(super) fn parse(number: u64, bytes: &'a [u8]) -> Result<Self> {
        let short = || Error::damaged(format!("inode {number}: an extent's item is too short"));
        let (head, data) = bytes.split_at_checked(EXTENT_HEAD_BYTES).ok_or_else(short)?;
        let compression = match head[16] {
            0 => Compression::None,
            1 => Compression::Zlib,
            2 => Compression::Lzo,
            3 => Compression::Zstd,
            kind => return Err(Error::unsupported(format!("compression of kind {kind}"))),
        };
        if head[17] != 0 {
            return Err(Error::unsupported("encrypted file"));
        }
        if le16(head, 18) != 0 {
            return Err(Error::unsupported("encoding of an unknown kind"));
        }
        let ram_bytes = le64(head, 8);
        let content = match head[20] {
            0 => Content::Inline(data),
            kind @ (1 | 2) => {
                let bytes = bytes.get(..EXTENT_BYTES).ok_or_else(short)?;
                let (logical, disk_bytes) = (le64(bytes, 21), le64(bytes, 29));
                let (skip_bytes, len_bytes) = (le64(bytes, 37), le64(bytes, 45));
                let end = skip_bytes.checked_add(len_bytes);
                if kind == 2 || logical == 0 {
                    Content::Zeros(len_bytes)
                } else if end.is_none_or(|end| end > ram_bytes) || logical.checked_add(disk_bytes).is_none() {
                    return Err(Error::damaged(format!(
                        "inode {number}: an extent ends outside of its data"
                    )));
                } else {
                    Content::Stored {
                        logical,
                        disk_bytes,
                        skip_bytes,
                        len_bytes,
                    }
                }
            }
            kind => return Err(Error::damaged(format!("inode {number}: extent of kind {kind}"))),
        };
        Ok(Self {
            compression,
            ram_bytes,
            content,
        })
    }

    /// Returns the number of bytes of the file that it describes.
    pub(super) fn len_bytes(&self) -> u64 {
        match self.content {
            Content::Inline(data) if self.compression == Compression::None => data.len() as u64,
            Content::Inline(_) => self.ram_bytes,
            Content::Stored { len_bytes, .. } | Content::Zeros(len_bytes) => len_bytes,
        }
    }
}
