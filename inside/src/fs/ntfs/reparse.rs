//! Meaning of reparse points, and of the special files that Interix and ntfs-3g make.

use crate::device::{le16, le32, le64};
use crate::error::{Error, Result};
use crate::fs::{FileKind, MAX_LINK_BYTES, utf16};

/// Longest reparse point (`MAXIMUM_REPARSE_DATA_BUFFER_SIZE`).
pub(super) const MAX_REPARSE_BYTES: u64 = 16 << 10;
/// Longest special file of Interix: its mark, and a target of `PATH_MAX` units.
pub(super) const MAX_INTERIX_BYTES: u64 = 8 + 2 * 4096;

/// Something else than a regular file or directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Special {
    /// None of this.
    None,
    /// A symbolic link or junction.
    Link(Vec<u8>),
    /// A device with its numbers.
    Device(FileKind, u32, u32),
    /// A pipe or socket.
    Other(FileKind),
    /// Content that a driver of Windows stores in its own way.
    Foreign(String),
}

/// Interprets the content of a reparse point (`REPARSE_DATA_BUFFER`, [MS-FSCC] 2.1.2).
pub(super) fn parse(bytes: &[u8]) -> Result<Special> {
    let bad = || Error::damaged("reparse point");
    if bytes.len() < 8 {
        return Err(bad());
    }
    let part = |start: usize, at: usize| {
        let (from, len) = (usize::from(le16(bytes, at)), usize::from(le16(bytes, at + 2)));
        bytes.get(start + from..start + from + len)
    };
    let foreign = |what: &str| Ok(Special::Foreign(what.to_owned()));
    match le32(bytes, 0) {
        // IO_REPARSE_TAG_SYMLINK and _MOUNT_POINT: the name that the kernel follows, then the one that people see.
        tag @ (0xa000_000c | 0xa000_0003) => {
            let start = if tag == 0xa000_000c { 20 } else { 16 };
            if bytes.len() < start {
                return Err(bad());
            }
            let substitute = part(start, 8).ok_or_else(bad)?;
            link(utf16::units(substitute)).ok_or_else(bad)
        }
        // _LX_SYMLINK: a version, then UTF-8.
        0xa000_001d => match bytes.get(12..) {
            Some(target) if is_target(target) => Ok(Special::Link(target.to_vec())),
            _ => Err(bad()),
        },
        // _AF_UNIX, _LX_FIFO, _LX_CHR, _LX_BLK. The numbers of the devices are in an extended attribute.
        0x8000_0023 => Ok(Special::Other(FileKind::Socket)),
        0x8000_0024 => Ok(Special::Other(FileKind::Fifo)),
        0x8000_0025 => Ok(Special::Other(FileKind::CharDevice)),
        0x8000_0026 => Ok(Special::Other(FileKind::BlockDevice)),
        // _WOF, _DEDUP, _CLOUD and its 15 variants.
        0x8000_0017 => foreign("file compressed by Windows (WOF)"),
        0x8000_0013 => foreign("deduplicated file"),
        tag if tag & 0xffff_0fff == 0x9000_001a => foreign("file kept in a cloud"),
        tag => Ok(Special::Foreign(format!("file with the reparse tag {tag:#x}"))),
    }
}

fn is_target(target: &[u8]) -> bool {
    (1..=MAX_LINK_BYTES).contains(&target.len()) && !target.contains(&0)
}

/// Returns a link with slashes. An absolute target keeps its drive, `C:/Users`: the drive's letter is not known here.
fn link(units: impl Iterator<Item = u16>) -> Option<Special> {
    let mut target = utf16::to_utf8(units);
    if target.starts_with(br"\??\") {
        target.drain(..4);
    }
    for byte in &mut target {
        if *byte == b'\\' {
            *byte = b'/';
        }
    }
    is_target(&target).then_some(Special::Link(target))
}

/// Interprets the content of a system file (`INTX_*` of layout.h).
pub(super) fn parse_interix(bytes: &[u8]) -> Special {
    let Some((mark, rest)) = bytes.split_at_checked(8) else {
        return Special::None;
    };
    let kind = match mark {
        b"IntxLNK\x01" => {
            let target = utf16::to_utf8(utf16::units(rest));
            return if is_target(&target) {
                Special::Link(target)
            } else {
                Special::None
            };
        }
        b"IntxCHR\0" => FileKind::CharDevice,
        b"IntxBLK\0" => FileKind::BlockDevice,
        _ => return Special::None,
    };
    if rest.len() != 16 {
        return Special::None;
    }
    match (u32::try_from(le64(rest, 0)), u32::try_from(le64(rest, 8))) {
        (Ok(major), Ok(minor)) => Special::Device(kind, major, minor),
        _ => Special::None,
    }
}
