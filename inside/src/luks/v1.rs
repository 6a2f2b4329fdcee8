//! The header of LUKS1: `struct luks_phdr`, big-endian (LUKS1 specification 1.2.3, section 3.1).

use super::cipher::SECTOR_BYTES;
use super::key::{Hash, Kdf};
use super::{Area, Digest, Header, Refused, STRIPES, Segment, Slot, text};
use crate::device::{be16, be32};

/// Length of the header.
pub(super) const HEADER_BYTES: usize = 592;
/// Mark at offset 0 of both versions.
pub(super) const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
/// Mark that cryptsetup-reencrypt of old leaves while it works (`MAGIC` with `\xde\xad`; src/cryptsetup_reencrypt.c).
pub(super) const MAGIC_REENCRYPTING: &[u8; 6] = b"LUKS\xde\xad";

const SLOTS: usize = 8;
const SLOT_BYTES: usize = 48;
const SLOT_ENABLED: u32 = 0x00ac_71f3;
const SLOT_DISABLED: u32 = 0x0000_dead;

/// Parses a header whose magic number and version were seen.
pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Header {
    let uuid = text(&bytes[168..208]).unwrap_or_default();
    let segment = segment(bytes);
    let slots = (0..SLOTS).filter_map(|number| {
        let at = 208 + number * SLOT_BYTES;
        let slot = slot(bytes, &bytes[at..at + SLOT_BYTES], &segment)?;
        Some((number as u32, slot))
    });
    Header {
        version: 1,
        uuid,
        label: None,
        slots: slots.collect(),
        digest: digest(bytes),
        segment,
        remark: None,
    }
}

fn name(bytes: &[u8], what: &str) -> Result<String, Refused> {
    text(bytes).ok_or_else(|| Refused::Damaged(format!("name of the {what}")))
}

fn hash(bytes: &[u8; HEADER_BYTES]) -> Result<Hash, Refused> {
    Hash::known(&name(&bytes[72..104], "hash")?)
}

fn segment(bytes: &[u8; HEADER_BYTES]) -> Result<Segment, Refused> {
    let cipher = name(&bytes[8..40], "cipher")?;
    let mode = name(&bytes[40..72], "cipher's mode")?;
    let offset_bytes = u64::from(be32(bytes, 104)) * SECTOR_BYTES as u64;
    if offset_bytes == 0 {
        return Err(Refused::Unsupported("detached LUKS header".into()));
    }
    Ok(Segment {
        encryption: format!("{cipher}-{mode}"),
        offset_bytes,
        size_bytes: None,
        sector_bytes: SECTOR_BYTES,
        first: 0,
    })
}

fn digest(bytes: &[u8; HEADER_BYTES]) -> Result<Digest, Refused> {
    Ok(Digest {
        kdf: Kdf::Pbkdf2 {
            hash: hash(bytes)?,
            iterations: u64::from(be32(bytes, 164)),
        },
        salt: bytes[132..164].to_vec(),
        digest: bytes[112..132].to_vec(),
    })
}

/// Parses a key slot; `None` if it is not in use.
fn slot(
    header: &[u8; HEADER_BYTES],
    bytes: &[u8],
    segment: &Result<Segment, Refused>,
) -> Option<Result<Slot, Refused>> {
    match be32(bytes, 0) {
        SLOT_DISABLED => return None,
        SLOT_ENABLED => {}
        state => return Some(Err(Refused::Damaged(format!("state {state:#010x}")))),
    }
    if be32(bytes, 44) != STRIPES {
        return Some(Err(Refused::Damaged(format!("{} stripes", be32(bytes, 44)))));
    }
    let key_bytes = be32(header, 108) as usize;
    Some((|| {
        let hash = hash(header)?;
        Ok(Slot {
            priority: 1,
            key_bytes,
            splitter: hash,
            kdf: Kdf::Pbkdf2 {
                hash,
                iterations: u64::from(be32(bytes, 4)),
            },
            salt: bytes[8..40].to_vec(),
            area: Area {
                encryption: segment.clone()?.encryption,
                key_bytes,
                offset_bytes: u64::from(be32(bytes, 40)) * SECTOR_BYTES as u64,
                // The area of a LUKS1 slot has no length of its own.
                size_bytes: u64::MAX,
            },
        })
    })())
}

/// Returns the version of a header, if it is one.
pub(super) fn version(bytes: &[u8; 8]) -> Option<u16> {
    bytes.starts_with(MAGIC).then(|| be16(bytes, 6))
}
