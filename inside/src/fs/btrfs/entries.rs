//! Items as the replay of the log makes and changes them, and the references of inodes.

use super::item;
use super::key::{INODE_EXTREF, Key};
use super::tree::Item;
use crate::device::{le16, le64};
use crate::fs::FileKind;

/// A name in the reference of an inode (`struct btrfs_inode_ref`, `struct btrfs_inode_extref`).
pub(super) struct Reference<'a> {
    /// Directory of the name.
    pub(super) parent: u64,
    /// Offset of its DIR_INDEX.
    pub(super) index: u64,
    pub(super) name: &'a [u8],
    bytes: &'a [u8],
}

/// Parses the references of an item, up to the first that is cut off.
pub(super) fn references(item: &Item) -> impl Iterator<Item = Reference<'_>> {
    let key = item.key;
    let mut bytes: &[u8] = item;
    std::iter::from_fn(move || {
        let (parent, head) = match key.kind {
            INODE_EXTREF => (Some(le64(bytes.get(..8)?, 0)), bytes.get(8..18)?),
            _ => (None, bytes.get(..10)?),
        };
        let start = if parent.is_some() { 18 } else { 10 };
        let name = bytes.get(start..)?.get(..usize::from(le16(head, 8)))?;
        let (this, rest) = bytes.split_at_checked(start + name.len())?;
        bytes = rest;
        Some(Reference {
            parent: parent.unwrap_or(key.offset),
            index: le64(head, 0),
            name,
            bytes: this,
        })
    })
}

/// Returns an item of references without one of them.
pub(super) fn without_reference(item: &Item, parent: u64, name: &[u8]) -> Vec<u8> {
    let rest = references(item).filter(|it| it.parent != parent || it.name != name);
    rest.flat_map(|it| it.bytes).copied().collect()
}

/// Makes a reference of kind INODE_REF.
pub(super) fn reference(index: u64, name: &[u8]) -> Vec<u8> {
    let mut bytes = index.to_le_bytes().to_vec();
    bytes.extend(length(name));
    bytes.extend(name);
    bytes
}

/// Computes the offset in the key of an INODE_EXTREF (`btrfs_extref_hash`): CRC-32C that starts with the directory.
pub(super) fn reference_hash(directory: u64, name: &[u8]) -> u64 {
    // The crate inverts at both ends. The kernel's seed has 32 bits.
    let seed = (directory & u64::from(u32::MAX)) as u32;
    u64::from(!crc32c::crc32c_append(!seed, name))
}

/// Returns an item of names without one of them.
pub(super) fn without(item: &Item, name: &[u8]) -> Vec<u8> {
    let rest = item::names(item).flatten().filter(|named| named.name != name);
    rest.flat_map(|named| named.bytes).copied().collect()
}

/// Makes a directory entry (`struct btrfs_dir_item`).
pub(super) fn entry(location: Key, kind: u8, name: &[u8]) -> Vec<u8> {
    let mut bytes = location.object.to_le_bytes().to_vec();
    bytes.push(location.kind);
    bytes.extend(location.offset.to_le_bytes());
    // Transaction and length of the value.
    bytes.extend([0; 10]);
    bytes.extend(length(name));
    bytes.push(kind);
    bytes.extend(name);
    bytes
}

fn length(name: &[u8]) -> [u8; 2] {
    u16::try_from(name.len()).unwrap_or(u16::MAX).to_le_bytes()
}

/// Returns the number of a kind in a directory entry (`BTRFS_FT_*`).
pub(super) fn kind_number(kind: FileKind) -> u8 {
    let numbers = 1..=7;
    numbers
        .into_iter()
        .find(|number| item::file_kind(*number) == Some(kind))
        .unwrap_or(0)
}

/// Makes the item for `len_bytes` of a stored extent, from `skip_bytes` on. Shorter items are inline and stay as they
/// are.
pub(super) fn part_of_extent(extent: &[u8], skip_bytes: u64, len_bytes: u64) -> Vec<u8> {
    let mut bytes = extent.to_vec();
    if let Some(fields) = bytes.get_mut(21..53) {
        let offset = le64(fields, 16).saturating_add(skip_bytes);
        fields[16..24].copy_from_slice(&offset.to_le_bytes());
        fields[24..].copy_from_slice(&len_bytes.to_le_bytes());
    }
    bytes
}
