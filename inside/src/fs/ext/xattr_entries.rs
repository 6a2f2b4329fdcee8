//! Entries of extended attributes as the disk has them (fs/ext4/xattr.h).

use super::inode::Inode;
use super::superblock::u32_at;
use crate::device::{le16, le32};
use crate::error::Result;

pub(super) const MAGIC: u32 = 0xea02_0000;

/// An attribute as the disk has it.
pub(super) struct Entry<'a> {
    /// Number of the name's prefix.
    pub prefix: u8,
    pub name: &'a [u8],
    /// Inode of the value; 0 if it is beside the entries.
    pub value_inode: u32,
    pub value_bytes: u32,
    /// The value, if it is beside the entries.
    pub value: &'a [u8],
}

/// Reads the entries from `start` on; the offsets of values count from `base`.
pub(super) fn entries<'a>(inode: &Inode, bytes: &'a [u8], start: usize, base: usize) -> Result<Vec<Entry<'a>>> {
    let damaged = || inode.damaged("invalid extended attributes");
    let mut found = Vec::new();
    let mut at = start;
    // Four zero bytes end the list; in an inode its end may do so too.
    while u32_at(bytes, at).is_some_and(|word| word != 0) {
        let fixed = bytes.get(at..at + 16).ok_or_else(damaged)?;
        let (name_bytes, prefix) = (usize::from(fixed[0]), fixed[1]);
        let (value_at, value_inode, value_bytes) = (usize::from(le16(fixed, 2)), le32(fixed, 4), le32(fixed, 8));
        let name = bytes.get(at + 16..at + 16 + name_bytes).ok_or_else(damaged)?;
        let value = match value_inode {
            0 if value_bytes > 0 => bytes
                .get(base + value_at..)
                .and_then(|from| from.get(..value_bytes as usize))
                .ok_or_else(damaged)?,
            _ => &[],
        };
        found.push(Entry {
            prefix,
            name,
            value_inode,
            value_bytes,
            value,
        });
        at += 16 + name_bytes.next_multiple_of(4);
    }
    Ok(found)
}

/// Reads the entries in the inode itself.
pub(super) fn in_body(inode: &Inode) -> Result<Vec<Entry<'_>>> {
    match u32_at(inode.body(), 0) {
        Some(MAGIC) => entries(inode, inode.body(), 4, 4),
        _ => Ok(Vec::new()),
    }
}

/// Returns the content of a file or directory in the inode after the first 60 bytes.
pub(super) fn inline_data(inode: &Inode) -> Result<Vec<u8>> {
    const PREFIX_SYSTEM: u8 = 7;
    let entries = in_body(inode)?;
    let found = entries
        .iter()
        .find(|it| it.prefix == PREFIX_SYSTEM && it.name == b"data");
    Ok(found.map(|it| it.value.to_vec()).unwrap_or_default())
}
