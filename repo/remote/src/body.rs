//! Bodies of messages: rows, or byte strings one after the other, whose lengths the head states.
//!
//! | row | bytes |
//! |---|---|
//! | id | 32 |
//! | index entry | place (u64), plain length (u32), stored length (u32); all ones in the place: not stored |
//! | id and index entry | both |
//!
//! Numbers are little-endian. The top bit of the stored length says that the block is a difference, and that the id of its base
//! follows; that of the length of a header ([`StoredShape`]) that this id precedes it.

use vbk_repo::codec::Sealed;
use vbk_repo::id::BlockId;
use vbk_repo::store::{Located, Place, Stored};

use crate::message::{BlockShape, StoredShape};

const NOT_STORED: u64 = u64::MAX;
const HAS_BASE: u32 = 1 << 31;

/// Concatenates ids.
pub(crate) fn ids(ids: impl IntoIterator<Item = [u8; 32]>) -> Vec<u8> {
    ids.into_iter().flatten().collect()
}

/// Reads ids; `None` if the body is something else.
pub(crate) fn read_ids(body: &[u8]) -> Option<Vec<[u8; 32]>> {
    let (ids, rest) = body.as_chunks();
    rest.is_empty().then(|| ids.to_vec())
}

fn add_entry(located: Option<Located>, body: &mut Vec<u8>) {
    let Some(located) = located else {
        return body.extend([0xFF; 16]);
    };
    body.extend(located.place.0.to_le_bytes());
    body.extend(located.plain_bytes.to_le_bytes());
    let has_base = located.base.map_or(0, |_| HAS_BASE);
    body.extend((located.stored_bytes & !HAS_BASE | has_base).to_le_bytes());
    body.extend(located.base.iter().flat_map(|base| base.0));
}

/// Takes an index entry off a body; `None` if the body is something else.
fn take_entry(body: &mut &[u8]) -> Option<Option<Located>> {
    let place = u64::from_le_bytes(take(body)?);
    let plain_bytes = u32::from_le_bytes(take(body)?);
    let stored_bytes = u32::from_le_bytes(take(body)?);
    if place == NOT_STORED {
        return Some(None);
    }
    let base = match stored_bytes & HAS_BASE {
        0 => None,
        _ => Some(BlockId(take(body)?)),
    };
    Some(Some(Located {
        place: Place(place),
        plain_bytes,
        stored_bytes: stored_bytes & !HAS_BASE,
        base,
    }))
}

fn take<const N: usize>(body: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = body.split_first_chunk()?;
    *body = rest;
    Some(*taken)
}

/// Concatenates index entries.
pub(crate) fn entries(located: &[Option<Located>]) -> Vec<u8> {
    let mut body = Vec::with_capacity(16 * located.len());
    located.iter().for_each(|located| add_entry(*located, &mut body));
    body
}

/// Reads index entries; `None` if the body is something else.
pub(crate) fn read_entries(mut body: &[u8]) -> Option<Vec<Option<Located>>> {
    let mut entries = Vec::new();
    while !body.is_empty() {
        entries.push(take_entry(&mut body)?);
    }
    Some(entries)
}

/// Adds an id and its index entry.
pub(crate) fn add_row(id: BlockId, located: Located, body: &mut Vec<u8>) {
    body.extend(id.0);
    add_entry(Some(located), body);
}

/// Reads ids and index entries; `None` if the body is something else.
pub(crate) fn read_rows(mut body: &[u8]) -> Option<Vec<(BlockId, Located)>> {
    let mut rows = Vec::new();
    while !body.is_empty() {
        rows.push((BlockId(take(&mut body)?), take_entry(&mut body)??));
    }
    Some(rows)
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
        let base = match shape.header & HAS_BASE {
            0 => None,
            _ => Some(BlockId(take(&mut self.0)?)),
        };
        Some(Stored {
            base,
            header: self.take(shape.header & !HAS_BASE)?,
            pages: shape.pages.iter().map(|len| self.take(*len)).collect::<Option<_>>()?,
        })
    }
}

/// Adds a header and pages to a body, and returns their lengths.
pub(crate) fn add_stored(base: Option<BlockId>, header: &[u8], pages: &[Vec<u8>], body: &mut Vec<u8>) -> StoredShape {
    body.reserve(32 + header.len() + pages.iter().map(Vec::len).sum::<usize>());
    body.extend(base.iter().flat_map(|base| base.0));
    body.extend_from_slice(header);
    // Not as an iterator over bytes, which takes a third of the time that a server has for a block.
    pages.iter().for_each(|page| body.extend_from_slice(page));
    StoredShape {
        header: header.len() as u32 | base.map_or(0, |_| HAS_BASE),
        pages: pages.iter().map(|page| page.len() as u32).collect(),
    }
}

/// Adds a sealed block to a body, and returns its lengths.
pub(crate) fn add_sealed(block: &Sealed, body: &mut Vec<u8>) -> BlockShape {
    BlockShape {
        id: block.id.0,
        plain_bytes: block.plain_bytes,
        lengths: add_stored(block.base, &block.header, &block.pages, body),
    }
}

/// Takes sealed blocks off a body; `None` unless it has exactly these.
pub(crate) fn read_sealed(shapes: &[BlockShape], body: &[u8]) -> Option<Vec<Sealed>> {
    let mut strings = Strings(body);
    let sealed = shapes.iter().map(|shape| {
        let Stored { header, pages, base } = strings.take_shape(&shape.lengths)?;
        Some(Sealed {
            id: BlockId(shape.id),
            plain_bytes: shape.plain_bytes,
            header,
            pages,
            base,
        })
    });
    let sealed = sealed.collect::<Option<_>>()?;
    strings.0.is_empty().then_some(sealed)
}
