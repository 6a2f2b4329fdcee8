//! Extended attributes: in the inode, in a block, and in inodes of their own (fs/ext4/xattr.h).

use super::checksum::{crc32c, crc32c_without};
use super::content::Blocks;
use super::inode::{FLAG_EA_INODE, Inode};
use super::superblock::{u16_at, u32_at};
use super::volume::Volume;
use super::xattr_entries::{Entry, MAGIC, entries, in_body};
use crate::error::Result;
use crate::fs::Xattr;

/// Length of the header of a block of attributes.
const HEADER_BYTES: usize = 32;
/// Longest value that getxattr(2) returns (`XATTR_SIZE_MAX`).
const MAX_VALUE_BYTES: u64 = 64 << 10;
/// Bytes of all values together. listxattr(2) returns 64 KiB of names, but a hostile block could name the same long
/// value thousands of times.
const MAX_VALUES_BYTES: usize = 16 << 20;

/// Returns all attributes of an inode that listxattr(2) would name.
pub(super) fn all(volume: &Volume, inode: &Inode) -> Result<Vec<Xattr>> {
    let mut found = Vec::new();
    let mut total_bytes = 0;
    for entry in in_body(inode)? {
        found.extend(xattr(volume, inode, &entry, &mut total_bytes)?);
    }
    let number = inode.xattr_block();
    if number != 0 {
        let block = volume.block(number)?;
        if u32_at(&block, 0) != Some(MAGIC) {
            return Err(inode.damaged("no extended attributes in their block"));
        }
        if volume.superblock.has_checksums() {
            let seed = crc32c(volume.superblock.seed, &number.to_le_bytes());
            let sum = crc32c_without(seed, &block, 0x10..0x14);
            if !crate::proven(u32_at(&block, 0x10) == Some(sum)) {
                return Err(inode.damaged("wrong checksum of the extended attributes"));
            }
        }
        for entry in entries(inode, &block, HEADER_BYTES, 0)? {
            found.extend(xattr(volume, inode, &entry, &mut total_bytes)?);
        }
    }
    Ok(found)
}

/// Makes an attribute of an entry; `None` for those that are not for programs.
fn xattr(volume: &Volume, inode: &Inode, entry: &Entry<'_>, total_bytes: &mut usize) -> Result<Option<Xattr>> {
    // EXT4_XATTR_INDEX_*, and the prefixes of linux/xattr.h. The kernel does not list those of Lustre and of its own.
    let (prefix, is_acl) = match entry.prefix {
        1 => ("user.", false),
        2 => ("system.posix_acl_access", true),
        3 => ("system.posix_acl_default", true),
        4 => ("trusted.", false),
        6 => ("security.", false),
        10 => ("gnu.", false),
        _ => return Ok(None),
    };
    // The names of ACLs are whole.
    if is_acl != entry.name.is_empty() {
        return Ok(None);
    }
    if entry.name.contains(&0) {
        return Err(inode.damaged("name of an extended attribute with a zero byte"));
    }
    let stored = match entry.value_inode {
        0 => entry.value.to_vec(),
        number => in_inode(volume, inode, number, entry.value_bytes)?,
    };
    *total_bytes += stored.len();
    if *total_bytes > MAX_VALUES_BYTES {
        return Err(inode.damaged("too many extended attributes"));
    }
    let value = match is_acl {
        true => acl(&stored).ok_or_else(|| inode.damaged("invalid access control list"))?,
        false => stored,
    };
    let name = [prefix.as_bytes(), entry.name].concat();
    Ok(Some(Xattr { name, value }))
}

/// Reads a value that is the content of an inode.
fn in_inode(volume: &Volume, inode: &Inode, number: u32, value_bytes: u32) -> Result<Vec<u8>> {
    let value = Inode::read_any(volume, number)?;
    if !value.has(FLAG_EA_INODE) || value.size_bytes != u64::from(value_bytes) {
        return Err(inode.damaged(format_args!(
            "inode {number} is not the value of its extended attribute"
        )));
    }
    Blocks::new(value).read_all(volume, MAX_VALUE_BYTES)
}

/// Converts an access control list (`ext4_acl_from_disk`): on the disk, entries for no particular user or group lack
/// the number; in linux/posix_acl_xattr.h it is all ones.
fn acl(stored: &[u8]) -> Option<Vec<u8>> {
    const DISK_VERSION: u32 = 1;
    const XATTR_VERSION: u32 = 2;
    if u32_at(stored, 0)? != DISK_VERSION {
        return None;
    }
    let mut value = XATTR_VERSION.to_le_bytes().to_vec();
    let mut at = 4;
    while at < stored.len() {
        let tag = u16_at(stored, at)?;
        value.extend(stored.get(at..at + 4)?);
        at += 4;
        match tag {
            // ACL_USER, ACL_GROUP
            0x2 | 0x8 => {
                value.extend(stored.get(at..at + 4)?);
                at += 4;
            }
            // ACL_USER_OBJ, ACL_GROUP_OBJ, ACL_MASK, ACL_OTHER
            0x1 | 0x4 | 0x10 | 0x20 => value.extend([0xff; 4]),
            _ => return None,
        }
    }
    Some(value)
}
