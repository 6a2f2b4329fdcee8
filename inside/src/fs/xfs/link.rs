//! Symbolic links: inside the inode, or in blocks that have a header in version 5 (`struct xfs_dsymlink_hdr`).

use crate::device::{be32, be64};
use crate::error::{Error, Result};
use crate::fs::{FileKind, MAX_LINK_BYTES};

use super::extents::Fork;
use super::inode::Inode;
use super::volume::{REMOTE_SEAL, Volume};

/// Length of the header of a block.
const HEADER_BYTES: usize = 56;

/// Returns the target of a link.
pub(super) fn read(volume: &Volume, inode: &Inode) -> Result<Vec<u8>> {
    let bad = |what: &str| Error::damaged(format!("symbolic link {}: {what}", inode.number));
    if inode.stat.kind != FileKind::Link {
        return Err(bad("not a symbolic link"));
    }
    let len = usize::try_from(inode.stat.size_bytes).ok();
    let len = len.filter(|len| (1..=MAX_LINK_BYTES).contains(len));
    let len = len.ok_or_else(|| bad("invalid length"))?;
    let fork = inode.data_fork()?;
    let target = match &fork {
        Fork::Local(bytes) => bytes.get(..len).ok_or_else(|| bad("longer than its inode"))?.to_vec(),
        Fork::Extents(_) | Fork::Tree(_) => remote(volume, inode, &fork, len)?,
    };
    match target.contains(&0) {
        true => Err(bad("a NUL in the target")),
        false => Ok(target),
    }
}

fn remote(volume: &Volume, inode: &Inode, fork: &Fork, len: usize) -> Result<Vec<u8>> {
    let bad = |what: &str| Error::damaged(format!("symbolic link {}: {what}", inode.number));
    let has_headers = volume.superblock.has_checksums;
    let header_bytes = if has_headers { HEADER_BYTES } else { 0 };
    let mut target = Vec::new();
    let mut at = 0;
    while target.len() < len {
        let extent = fork.extent_at_or_after(volume, inode.number, at)?;
        let extent = extent.filter(|extent| extent.start == at && !extent.is_unwritten);
        let extent = extent.ok_or_else(|| bad("not mapped"))?;
        // A target has a few blocks at most; each extent of them is one buffer with one header.
        let needed = (len - target.len() + header_bytes).div_ceil(volume.superblock.block_bytes()) as u64;
        let count = if has_headers {
            extent.count
        } else {
            extent.count.min(needed)
        };
        if count > needed {
            return Err(bad("longer than its target"));
        }
        let (offset_bytes, bytes) = volume.read_blocks(extent.block, count, "symbolic link")?;
        if has_headers {
            volume.check_seal(&bytes, offset_bytes, &REMOTE_SEAL).map_err(bad)?;
            if bytes[..4] != *b"XSLM" || be32(&bytes, 4) as usize != target.len() || be64(&bytes, 32) != inode.number {
                return Err(bad("a block belongs elsewhere"));
            }
        }
        let piece = bytes.get(header_bytes..).unwrap_or_default();
        target.extend_from_slice(&piece[..piece.len().min(len - target.len())]);
        at = extent.end();
    }
    Ok(target)
}
