//! Names of Windows' file systems as bytes.

use std::ops::ControlFlow;

use crate::error::{Error, Result};
use crate::fs::{Entry, Node};

/// Returns UTF-16 as UTF-8. A surrogate without its pair becomes the three bytes that WTF-8 gives it, so that different
/// names stay different.
pub(crate) fn to_utf8(units: impl IntoIterator<Item = u16>) -> Vec<u8> {
    let mut name = Vec::new();
    for decoded in char::decode_utf16(units) {
        match decoded {
            Ok(decoded) => name.extend_from_slice(decoded.encode_utf8(&mut [0; 4]).as_bytes()),
            Err(lone) => {
                let unit = lone.unpaired_surrogate();
                let low = |bits: u16| 0x80 | (bits & 0x3f) as u8;
                name.extend_from_slice(&[0xe0 | (unit >> 12) as u8, low(unit >> 6), low(unit)]);
            }
        }
    }
    name
}

/// Returns the little-endian UTF-16 units in `bytes`.
pub(crate) fn units(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
}

/// Finds a name as Windows does: the exact name, or else the first one that differs in the case of ASCII letters only.
pub(crate) fn find(
    name: &[u8],
    list: impl FnOnce(&mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()>,
) -> Result<Node> {
    let (mut exact, mut other) = (None, None);
    let listed = list(&mut |entry| {
        if entry.name == name {
            exact = Some(entry.node);
            return ControlFlow::Break(());
        }
        if other.is_none() && entry.name.eq_ignore_ascii_case(name) {
            other = Some(entry.node);
        }
        ControlFlow::Continue(())
    });
    match exact.or(other) {
        Some(node) => Ok(node),
        None => listed.and(Err(Error::NotFound)),
    }
}
