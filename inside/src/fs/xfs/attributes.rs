//! Extended attributes: inside the inode, in one leaf, or in a tree of leaves; long values in blocks of their own.
//!
//! libxfs/xfs_da_format.h: `struct xfs_attr_sf_hdr`, `struct xfs_attr_leafblock`, `struct xfs_da3_intnode`,
//! `struct xfs_attr3_rmt_hdr`. Lists of access rights are `struct xfs_acl` (libxfs/xfs_format.h) and become
//! `struct posix_acl_xattr_header` (linux/posix_acl_xattr.h).

use crate::device::{be16, be32, be64};
use crate::error::{Error, Result};
use crate::fs::Xattr;

use super::extents::Fork;
use super::inode::Inode;
use super::volume::{HASH_TREE_SEAL, REMOTE_SEAL, Volume};

/// Longest value (`XFS_XATTR_SIZE_MAX`).
const MAX_VALUE_BYTES: usize = 64 << 10;
/// Bound of all names and values of an inode that are returned. Linux lists 64 KiB of names at most
/// (`XATTR_LIST_MAX`), so no program can use more than a few hundred long values.
const MAX_TOTAL_BYTES: usize = 16 << 20;
/// Bound of the leaves that are read: with the smallest blocks, names of `MAX_TOTAL_BYTES` fill fewer.
const MAX_LEAVES: usize = 1 << 16;
/// Deepest hash tree (`XFS_DA_NODE_MAXDEPTH`).
const MAX_DEPTH: usize = 5;
/// Length of the header of a block of a long value.
const REMOTE_HEADER_BYTES: usize = 56;

// Flags of an attribute.
const LOCAL: u8 = 1;
const ROOT: u8 = 2;
const SECURE: u8 = 4;
/// A parent pointer, which getxattr(2) does not show.
const PARENT: u8 = 8;
const INCOMPLETE: u8 = 0x80;

/// Returns the attributes of an inode. Damage of one is an error for all: a file without some of its attributes, e.g.
/// its access control list, could be open to the wrong users.
pub(super) fn read(volume: &Volume, inode: &Inode) -> Result<Vec<Xattr>> {
    let Some(fork) = inode.attribute_fork()? else {
        return Ok(Vec::new());
    };
    let mut found = Found {
        volume,
        inode,
        fork: &fork,
        xattrs: Vec::new(),
        total_bytes: 0,
    };
    match &fork {
        Fork::Local(bytes) => found.short(bytes)?,
        Fork::Extents(extents) if extents.is_empty() => {}
        Fork::Extents(_) | Fork::Tree(_) => found.leaves()?,
    }
    Ok(found.xattrs)
}

struct Found<'a> {
    volume: &'a Volume,
    inode: &'a Inode,
    fork: &'a Fork,
    xattrs: Vec<Xattr>,
    total_bytes: usize,
}

impl Found<'_> {
    fn bad(&self, what: &str) -> Error {
        Error::damaged(format!("attributes of inode {}: {what}", self.inode.number))
    }

    fn short(&mut self, bytes: &[u8]) -> Result<()> {
        let cut = || Error::damaged(format!("attributes of inode {}: cut off", self.inode.number));
        let head = bytes.first_chunk::<4>().ok_or_else(cut)?;
        let total = usize::from(be16(head, 0));
        let mut rest = bytes.get(4..total).ok_or_else(cut)?;
        for _ in 0..head[2] {
            let (entry, after) = rest.split_first_chunk::<3>().ok_or_else(cut)?;
            let [name_bytes, value_bytes, flags] = *entry;
            let (name, after) = after.split_at_checked(name_bytes.into()).ok_or_else(cut)?;
            let (value, after) = after.split_at_checked(value_bytes.into()).ok_or_else(cut)?;
            self.add(flags, name, value.to_vec())?;
            rest = after;
        }
        Ok(())
    }

    fn add(&mut self, flags: u8, name: &[u8], value: Vec<u8>) -> Result<()> {
        if flags & (INCOMPLETE | PARENT) != 0 {
            return Ok(());
        }
        if name.is_empty() || name.contains(&0) {
            return Err(self.bad("invalid name"));
        }
        self.total_bytes += name.len() + value.len();
        if self.total_bytes > MAX_TOTAL_BYTES {
            return Err(Error::unsupported("extended attributes of more than 16 MiB"));
        }
        let xattr = match (flags & (ROOT | SECURE), name) {
            (0, _) => named(b"user.", name, value),
            (ROOT, b"SGI_ACL_FILE") => named(b"system.", b"posix_acl_access", self.acl(&value)?),
            (ROOT, b"SGI_ACL_DEFAULT") => named(b"system.", b"posix_acl_default", self.acl(&value)?),
            (ROOT, _) => named(b"trusted.", name, value),
            (SECURE, _) => named(b"security.", name, value),
            _ => return Err(self.bad("an attribute of two namespaces")),
        };
        self.xattrs.push(xattr);
        Ok(())
    }

    fn acl(&self, value: &[u8]) -> Result<Vec<u8>> {
        acl(value).ok_or_else(|| self.bad("invalid access control list"))
    }

    fn leaves(&mut self) -> Result<()> {
        let mut block = self.first_leaf()?;
        for _ in 0..MAX_LEAVES {
            let bytes = self.block(block)?;
            self.leaf(&bytes)?;
            match be32(&bytes, 0) {
                0 => return Ok(()),
                next => block = next.into(),
            }
        }
        Err(self.bad("endless"))
    }

    /// Reads a block of the hash tree.
    fn block(&self, block: u64) -> Result<Vec<u8>> {
        let (offset_bytes, bytes) = self.fork.read(self.volume, self.inode.number, block, 1)?;
        if self.volume.superblock.has_checksums {
            let sealed = self.volume.check_seal(&bytes, offset_bytes, &HASH_TREE_SEAL);
            sealed.map_err(|what| self.bad(what))?;
        }
        Ok(bytes)
    }

    fn first_leaf(&self) -> Result<u64> {
        let mut block = 0;
        let (magic, header_bytes) = match self.volume.superblock.has_checksums {
            true => (0x3ebe, 64),
            false => (0xfebe, 16),
        };
        for _ in 0..=MAX_DEPTH {
            let bytes = self.block(block)?;
            // Blocks have 512 bytes at least.
            if be16(&bytes, 8) != magic {
                return Ok(block);
            }
            // The first child has the smallest hashes.
            block = be32(&bytes, header_bytes + 4).into();
        }
        Err(self.bad("a hash tree too deep"))
    }

    fn leaf(&mut self, bytes: &[u8]) -> Result<()> {
        let (magic, header_bytes, count_at) = match self.volume.superblock.has_checksums {
            true => (0x3bee, 80, 56),
            false => (0xfbee, 32, 12),
        };
        if be16(bytes, 8) != magic {
            return Err(self.bad("a block is not of the attributes"));
        }
        let count = usize::from(be16(bytes, count_at));
        let entries = bytes.get(header_bytes..header_bytes + count * 8);
        let (entries, _) = entries.ok_or_else(|| self.bad("cut off"))?.as_chunks::<8>();
        for entry in entries {
            let flags = entry[6];
            if flags & (INCOMPLETE | PARENT) != 0 {
                continue;
            }
            let at = usize::from(be16(entry, 4));
            let rest = bytes.get(at..).unwrap_or_default();
            let parsed = match flags & LOCAL {
                0 => parse_remote(rest),
                _ => parse_local(rest),
            };
            let (name, place) = parsed.ok_or_else(|| self.bad("cut off"))?;
            let value = match place {
                Place::Here(value) => value.to_vec(),
                Place::Blocks { start, len } => self.remote_value(start, len)?,
            };
            self.add(flags & !LOCAL, name, value)?;
        }
        Ok(())
    }

    fn remote_value(&self, start: u64, len: usize) -> Result<Vec<u8>> {
        if len > MAX_VALUE_BYTES {
            return Err(self.bad("a value too long"));
        }
        let superblock = &self.volume.superblock;
        let header_bytes = if superblock.has_checksums {
            REMOTE_HEADER_BYTES
        } else {
            0
        };
        let mut value = Vec::with_capacity(len);
        let mut block = start;
        while value.len() < len {
            let (offset_bytes, bytes) = self.fork.read(self.volume, self.inode.number, block, 1)?;
            if superblock.has_checksums {
                let sealed = self.volume.check_seal(&bytes, offset_bytes, &REMOTE_SEAL);
                sealed.map_err(|what| self.bad(what))?;
                if bytes[..4] != *b"XARM"
                    || be32(&bytes, 4) as usize != value.len()
                    || be64(&bytes, 32) != self.inode.number
                {
                    return Err(self.bad("a block of a value belongs elsewhere"));
                }
            }
            let piece = &bytes[header_bytes..];
            value.extend_from_slice(&piece[..piece.len().min(len - value.len())]);
            block += 1;
        }
        Ok(value)
    }
}

enum Place<'a> {
    Here(&'a [u8]),
    Blocks { start: u64, len: usize },
}

/// Parses `struct xfs_attr_leaf_name_local`.
fn parse_local(bytes: &[u8]) -> Option<(&[u8], Place<'_>)> {
    let (head, rest) = bytes.split_first_chunk::<3>()?;
    let (name, rest) = rest.split_at_checked(head[2].into())?;
    Some((name, Place::Here(rest.get(..be16(head, 0).into())?)))
}

/// Parses `struct xfs_attr_leaf_name_remote`.
fn parse_remote(bytes: &[u8]) -> Option<(&[u8], Place<'_>)> {
    let (head, rest) = bytes.split_first_chunk::<9>()?;
    let place = Place::Blocks {
        start: be32(head, 0).into(),
        len: be32(head, 4) as usize,
    };
    Some((rest.get(..head[8].into())?, place))
}

fn named(namespace: &[u8], name: &[u8], value: Vec<u8>) -> Xattr {
    Xattr {
        name: [namespace, name].concat(),
        value,
    }
}

/// Converts a `struct xfs_acl` to the form of getxattr(2) (`xfs_acl_from_disk`, `posix_acl_to_xattr`).
fn acl(value: &[u8]) -> Option<Vec<u8>> {
    const VERSION: u32 = 2;
    const USER: u32 = 2;
    const GROUP: u32 = 8;
    let (head, entries) = value.split_first_chunk::<4>()?;
    let count = u32::from_be_bytes(*head) as usize;
    let (entries, rest) = entries.as_chunks::<12>();
    if entries.len() != count || !rest.is_empty() {
        return None;
    }
    let mut out = VERSION.to_le_bytes().to_vec();
    for entry in entries {
        let tag = be32(entry, 0);
        // Only named users and groups have an ID (`ACL_UNDEFINED_ID`).
        let id = if matches!(tag, USER | GROUP) {
            be32(entry, 4)
        } else {
            u32::MAX
        };
        out.extend(u16::try_from(tag).ok()?.to_le_bytes());
        out.extend(be16(entry, 8).to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    Some(out)
}
