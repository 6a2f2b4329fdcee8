//! Bodies of messages: rows of fixed length, or byte strings one after the other, whose lengths the head states.
//!
//! | row | bytes |
//! |---|---|
//! | id | 32 |
//! | index entry | place (u64), plain length (u32), stored length (u32); all ones in the place: not stored |
//! | id and index entry | both |
//!
//! Numbers are little-endian.

use vbk_repo::codec::Sealed;
use vbk_repo::id::BlockId;
use vbk_repo::store::{Located, Place, Stored};

use crate::message::{BlockShape, StoredShape};

const ENTRY_BYTES: usize = 16;
const NOT_STORED: u64 = u64::MAX;

/// Concatenates ids.
pub(crate) fn ids(ids: impl IntoIterator<Item = [u8; 32]>) -> Vec<u8> {
    ids.into_iter().flatten().collect()
}

/// Reads ids; `None` if the body is something else.
pub(crate) fn read_ids(body: &[u8]) -> Option<Vec<[u8; 32]>> {
    let (ids, rest) = body.as_chunks();
    rest.is_empty().then(|| ids.to_vec())
}

fn entry(located: Option<Located>) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0xFF; ENTRY_BYTES];
    if let Some(located) = located {
        bytes[..8].copy_from_slice(&located.place.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&located.plain_bytes.to_le_bytes());
        bytes[12..].copy_from_slice(&located.stored_bytes.to_le_bytes());
    }
    bytes
}

fn read_entry(bytes: &[u8; ENTRY_BYTES]) -> Option<Located> {
    let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let place = u64::from(number(0)) | u64::from(number(4)) << 32;
    (place != NOT_STORED).then(|| Located {
        place: Place(place),
        plain_bytes: number(8),
        stored_bytes: number(12),
    })
}

/// Concatenates index entries.
pub(crate) fn entries(located: &[Option<Located>]) -> Vec<u8> {
    located.iter().flat_map(|located| entry(*located)).collect()
}

/// Reads index entries; `None` if the body is something else.
pub(crate) fn read_entries(body: &[u8]) -> Option<Vec<Option<Located>>> {
    let (entries, rest) = body.as_chunks();
    rest.is_empty().then(|| entries.iter().map(read_entry).collect())
}

/// Adds an id and its index entry.
pub(crate) fn add_row(id: BlockId, located: Located, body: &mut Vec<u8>) {
    body.extend(id.0);
    body.extend(entry(Some(located)));
}

/// Reads ids and index entries; `None` if the body is something else.
pub(crate) fn read_rows(body: &[u8]) -> Option<Vec<(BlockId, Located)>> {
    let (rows, rest) = body.as_chunks::<{ 32 + ENTRY_BYTES }>();
    let row = |row: &[u8; 32 + ENTRY_BYTES]| {
        let (id, entry) = row.split_first_chunk()?;
        Some((BlockId(*id), read_entry(entry.first_chunk()?)?))
    };
    match rest.is_empty() {
        true => rows.iter().map(row).collect(),
        false => None,
    }
}

/// Takes byte strings off a body, one after the other.
pub(crate) struct Strings<'a>(pub(crate) &'a [u8]);

impl Strings<'_> {
    /// The next one; `None` if the body is shorter.
    pub(crate) fn take(&mut self, len: u32) -> Option<Vec<u8>> {
        let (taken, rest) = self.0.split_at_checked(len as usize)?;
        self.0 = rest;
        Some(taken.to_vec())
    }

    /// The next ones.
    pub(crate) fn take_shape(&mut self, shape: &StoredShape) -> Option<Stored> {
        Some(Stored {
            header: self.take(shape.header)?,
            pages: shape.pages.iter().map(|len| self.take(*len)).collect::<Option<_>>()?,
        })
    }
}

/// Adds a header and pages to a body, and returns their lengths.
pub(crate) fn add_stored(header: &[u8], pages: &[Vec<u8>], body: &mut Vec<u8>) -> StoredShape {
    body.reserve(header.len() + pages.iter().map(Vec::len).sum::<usize>());
    body.extend_from_slice(header);
    // Not as an iterator over bytes, which takes a third of the time that a server has for a block.
    pages.iter().for_each(|page| body.extend_from_slice(page));
    StoredShape {
        header: header.len() as u32,
        pages: pages.iter().map(|page| page.len() as u32).collect(),
    }
}

/// Adds a sealed block to a body, and returns its lengths.
pub(crate) fn add_sealed(block: &Sealed, body: &mut Vec<u8>) -> BlockShape {
    BlockShape {
        id: block.id.0,
        plain_bytes: block.plain_bytes,
        lengths: add_stored(&block.header, &block.pages, body),
    }
}

/// Takes sealed blocks off a body; `None` unless it has exactly these.
pub(crate) fn read_sealed(shapes: &[BlockShape], body: &[u8]) -> Option<Vec<Sealed>> {
    let mut strings = Strings(body);
    let sealed = shapes.iter().map(|shape| {
        let Stored { header, pages } = strings.take_shape(&shape.lengths)?;
        Some(Sealed {
            id: BlockId(shape.id),
            plain_bytes: shape.plain_bytes,
            header,
            pages,
        })
    });
    let sealed = sealed.collect::<Option<_>>()?;
    strings.0.is_empty().then_some(sealed)
}
