//! The volume descriptors (ECMA-119 8): size of a block, the top directories, and the names of the volume.

use crate::device::le16;
use crate::error::{Error, Result};
use crate::fs::pages::Pages;
use crate::fs::{Identity, utf16};

use super::SECTOR_BYTES;

/// The first descriptor, and the most that are read.
const FIRST_SECTOR: u64 = 16;
const MAX_DESCRIPTORS: u64 = 64;

const PRIMARY: u8 = 1;
const SUPPLEMENTARY: u8 = 2;
const TERMINATOR: u8 = 255;

/// Offset of the top directory's record in a descriptor.
const ROOT_RECORD: u64 = 156;

pub(super) struct Descriptors {
    pub(super) block_bytes: u64,
    /// Offsets of the records of the top directories.
    pub(super) primary_root: u64,
    pub(super) joliet_root: Option<u64>,
    pub(super) identity: Identity,
}

impl Descriptors {
    pub(super) fn read(pages: &Pages) -> Result<Self> {
        let (mut primary, mut joliet) = (None, None);
        for sector in FIRST_SECTOR..FIRST_SECTOR + MAX_DESCRIPTORS {
            let at = sector * SECTOR_BYTES;
            let Ok(bytes) = pages.array::<{ SECTOR_BYTES as usize }>(at) else {
                break;
            };
            if bytes[1..6] != *b"CD001" || bytes[0] == TERMINATOR {
                break;
            }
            // Escape sequences of the three levels of Joliet.
            let is_joliet = matches!(&bytes[88..91], b"%/@" | b"%/C" | b"%/E");
            match bytes[0] {
                PRIMARY if primary.is_none() => primary = Some((at, bytes)),
                SUPPLEMENTARY if is_joliet && joliet.is_none() => joliet = Some((at, bytes)),
                _ => {}
            }
        }
        let (at, primary) = primary.ok_or_else(|| Error::damaged("no primary volume descriptor"))?;
        let block_bytes = u64::from(le16(&primary, 128));
        if !matches!(block_bytes, 512 | 1024 | 2048) {
            return Err(Error::damaged(format!("blocks of {block_bytes} bytes")));
        }
        Ok(Self {
            block_bytes,
            primary_root: at + ROOT_RECORD,
            joliet_root: joliet.map(|(at, _)| at + ROOT_RECORD),
            identity: Identity {
                uuid: uuid(&primary[830..847]).or_else(|| uuid(&primary[813..830])),
                label: label(&primary[40..72], joliet.as_ref().map(|(_, bytes)| &bytes[40..72])),
            },
        })
    }
}

/// Returns the UUID that libblkid makes of the time of the last change, or else of creation (iso9660.c).
fn uuid(date: &[u8]) -> Option<String> {
    let (digits, zone) = date.split_at_checked(16)?;
    let is_none = digits.iter().all(|digit| *digit == b'0') && zone == [0];
    let text = std::str::from_utf8(digits)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    let (year, rest) = text.split_at(4);
    let pairs = rest.as_bytes().chunks(2).map(String::from_utf8_lossy);
    let parts: Vec<_> = std::iter::once(year.into()).chain(pairs).collect();
    (!is_none).then(|| parts.join("-"))
}

/// Returns the label as libblkid does: that of Joliet, which has lower case, with the rest of the longer primary one if
/// they agree.
fn label(primary: &[u8], joliet: Option<&[u8]>) -> Option<String> {
    let mut name = primary.to_vec();
    if let Some(joliet) = joliet {
        let units: Vec<u16> = joliet
            .as_chunks()
            .0
            .iter()
            .map(|unit| u16::from_be_bytes(*unit))
            .collect();
        let agrees = units
            .iter()
            .zip(primary)
            .all(|(unit, byte)| *unit == u16::from(*byte) || *byte == b'_');
        name = utf16::to_utf8(units.iter().copied());
        if agrees {
            name.extend_from_slice(primary.get(units.len()..).unwrap_or_default());
        }
    }
    let name = String::from_utf8_lossy(&name);
    let name = name.split('\0').next().unwrap_or_default().trim_end();
    (!name.is_empty()).then(|| name.to_owned())
}
