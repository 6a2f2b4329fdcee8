//! Manifests: the lists of the blocks that images consist of.
//!
//! A manifest is a tree of nodes. A backup's record names the root of each image; a root names pages; a page names
//! segments; a segment names blocks. Each node is stored under the hash of its bytes, so backups share what did not
//! change. What a backup adds follows what changed on the disk, not the size of the disk:
//!
//! | node | covers, with blocks of 1 MiB | stored anew |
//! |---|---|---|
//! | full segment | 1024 slots: 1 GiB | for new data, and where a delta would be too large |
//! | delta | the slots of a segment that differ from a full one | when the segment changed |
//! | page | 64 segments: 64 GiB | when one of its segments changed |
//! | root | the image | when one of its pages changed |
//!
//! A segment is a full one, alone or with a single delta ([`Segment`]): reading it takes one call of the store, however
//! old the full one is. A delta of more than an eighth of the full segment's length ([`MAX_DELTA`]) is not written; a
//! new full segment is.
//!
//! A backup of a disk of a TiB adds 8 MiB if 3 % of its blocks changed at random (0.025 % of what changed), 5 KiB if one
//! block changed, and nothing if none did; the tests of [`crate::writer`] measure it.
//!
//! # Bytes of a node
//!
//! | bytes | what |
//! |---|---|
//! | 1 | kind: `S` full segment, `D` delta, `P` page, `R` root |
//! | 1 | version: 1 |
//! | 2 | number of drops, 0 but in a delta |
//! | 4 | number of names |
//! | 32 each | names |
//! | 2 each | drops |
//! | rest | body |
//!
//! All up to the body is the head ([`Head`]). It tells what a node needs, but not where it stands on the disk. An
//! encrypted repository seals the body only, so a store follows the heads without the key: it can mark, copy and check
//! that nothing is missing. The node's name covers head and body, and whoever reads a node with the key compares the
//! head with the body; a false head makes its own backup unreadable and takes nothing from another backup.
//!
//! | node | names | body |
//! |---|---|---|
//! | full segment | its blocks, ascending, each once | slots (u16); for each slot (u16) the number of its name |
//! | delta | blocks that the full segment does not name, ascending, each once | changes (u16); for each, in order, the slot (u16) and the number of its name (u16), counted through the names of the full segment and then the delta's own |
//! | page | pairs of a full segment and its delta, or zeros; ascending, each once | for each segment (u16) the number of its pair |
//! | root | pages, ascending, each once | block size (u32); image size in bytes (u64); for each page (u32) the number of its name |
//!
//! The largest number stands for zeros: a slot, segment or page without data, which names nothing. A delta's drops are
//! the numbers of the full segment's names that no slot uses any more, ascending: such a block is needed only as long as
//! another delta of the same segment, or the full segment alone, uses it. Numbers are little-endian.

mod segment;
mod tree;

pub use segment::{Delta, Full, MAX_DELTA, SEGMENT_SLOTS, SegmentSlots, Slot};
pub use tree::{Manifest, PAGE_SEGMENTS, Page, Root, Segment, segment_count, slots_in};

use crate::block::Hashing;
use crate::error::{Error, Result};
use crate::id::NodeId;

const VERSION: u8 = 1;

/// Length of a head without names and drops.
const HEAD_BYTES: usize = 8;

/// Kind of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A full segment.
    Full = b'S' as isize,
    /// The difference of a segment from a full one.
    Delta = b'D' as isize,
    /// Consecutive segments.
    Page = b'P' as isize,
    /// An image.
    Root = b'R' as isize,
}

/// The part of a node that can be read without the key: what the node needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Kind of the node.
    pub kind: Kind,
    /// Blocks of a full segment or delta; pages of a root; pairs of a page, one after the other.
    pub names: Vec<[u8; 32]>,
    /// Numbers of the names of the full segment that a delta's slots do not use.
    pub drops: Vec<u16>,
}

impl Head {
    /// Reads the head of a node, and returns it with the rest of the bytes. Proves nothing. `None` if it is cut off or of
    /// an unknown kind or version.
    pub fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (fixed, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let kind = match fixed[0] {
            b'S' => Kind::Full,
            b'D' => Kind::Delta,
            b'P' => Kind::Page,
            b'R' => Kind::Root,
            _ => return None,
        };
        if fixed[1] != VERSION {
            return None;
        }
        let (names, drops) = lengths(fixed)?;
        let (names, rest) = rest.split_at_checked(names)?;
        let (drops, rest) = rest.split_at_checked(drops)?;
        let head = Self {
            kind,
            names: names.as_chunks().0.to_vec(),
            drops: numbers(drops),
        };
        Some((head, rest))
    }

    /// Returns the length of the head at the start of a node's bytes.
    pub fn len_in(bytes: &[u8]) -> Option<usize> {
        let (fixed, _) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let (names, drops) = lengths(fixed)?;
        let len = HEAD_BYTES + names + drops;
        (len <= bytes.len()).then_some(len)
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.kind as u8, VERSION];
        bytes.extend((self.drops.len() as u16).to_le_bytes());
        bytes.extend((self.names.len() as u32).to_le_bytes());
        bytes.extend(self.names.as_flattened());
        bytes.extend(self.drops.iter().flat_map(|drop| drop.to_le_bytes()));
        bytes
    }
}

/// Returns the lengths of the names and of the drops that the start of a head announces.
fn lengths(fixed: &[u8; HEAD_BYTES]) -> Option<(usize, usize)> {
    let drops = usize::from(u16::from_le_bytes([fixed[2], fixed[3]]));
    let names = u32::from_le_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]) as usize;
    Some((names.checked_mul(32)?, 2 * drops))
}

/// Reads a node, proves that it has this name, and returns its head and body.
pub fn prove(hashing: Hashing, id: NodeId, bytes: &[u8]) -> Result<(Head, &[u8])> {
    if hashing.content(bytes) != id.0 {
        return Err(damaged(id, "it does not match its hash"));
    }
    Head::split(bytes).ok_or_else(|| damaged(id, "it is of an unknown kind or version, or cut off"))
}

fn prove_kind(hashing: Hashing, id: NodeId, kind: Kind, bytes: &[u8]) -> Result<(Head, &[u8])> {
    match prove(hashing, id, bytes)? {
        (head, body) if head.kind == kind && is_ascending(&head.drops) => Ok((head, body)),
        _ => Err(damaged(id, "another kind of node has this name")),
    }
}

pub(crate) fn damaged(id: NodeId, what: &str) -> Error {
    Error::NodeDamaged {
        id,
        what: what.to_owned(),
    }
}

/// Returns the name of a node and its bytes.
fn named(hashing: Hashing, bytes: Vec<u8>) -> (NodeId, Vec<u8>) {
    (NodeId(hashing.content(&bytes)), bytes)
}

fn numbers(bytes: &[u8]) -> Vec<u16> {
    let (pairs, _) = bytes.as_chunks();
    pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect()
}

fn is_ascending<T: PartialOrd>(list: &[T]) -> bool {
    list.is_sorted_by(|one, next| one < next)
}

#[cfg(test)]
mod tests;
