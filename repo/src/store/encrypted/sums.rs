//! Sums: they show damage of a sealed thing to those who do not have the key.
//!
//! In a repository with the feature [`SUMS`](crate::store::SUMS) the last 32 bytes of a block's header, and of a node, record or
//! note, are the sum of the thing as it is stored:
//!
//! ```text
//! sum = BLAKE3 (derive-key mode, context CONTEXT) over kind || length of the name || name || for each part: its length || part
//! ```
//!
//! Lengths are u64, little-endian. `encrypted.rs` lists kinds and names; that of a difference includes its base. A block has the parts plain length (as it is stored;
//! u32, little-endian), header without the sum, and each row. Everything else has one part: its bytes without the sum.
//!
//! [`crate::store::door`] compares sums: that of what a client puts, of what is on the disk, and of what is copied. So bytes that
//! change anywhere on the way from the client's memory are noticed. A sum is not a signature: whoever changes bytes on purpose
//! can make the sum fit. Only opening a thing with the key proves who sealed it.

use super::rows::{ROW_BYTES, STEP_BYTES, most_rows};
use super::{BLOCK, NODE, NOTE, RECORD};
use crate::block::{pages_in, purposed_hash};
use crate::cipher::{SALT_BYTES, TAG_BYTES};
use crate::codec::{Sealed, full_header_bytes};
use crate::error::{Error, Result};
use crate::id::{BlockId, NodeId};
use crate::manifest::damaged;
use crate::store::{Identity, Note, Record, SUMS};

const CONTEXT: &str = "vbk 2026-11-29 sum of a sealed thing";

pub(super) const SUM_BYTES: usize = 32;

const MISMATCH: &str = "it does not match its sum";

const DIFFERENCE: u8 = b'D';

/// Kind and name that a block is sealed with: a difference with another base can't be opened.
pub(super) fn block_name(id: BlockId, base: Option<BlockId>) -> (u8, Vec<u8>) {
    match base {
        None => (BLOCK, id.0.to_vec()),
        Some(base) => (DIFFERENCE, [id.0, base.0].concat()),
    }
}

/// The lengths and sums of one encrypted repository.
#[derive(Debug, Clone, Copy)]
pub struct Sums {
    /// Length of a block's stored header.
    header_bytes: usize,
    max_rows: usize,
    has_sums: bool,
}

impl Sums {
    /// Returns those of the repository with this identity.
    pub fn of(identity: &Identity) -> Self {
        let block_bytes = identity.block_size.bytes();
        let has_sums = identity.has(SUMS);
        let sum_bytes = if has_sums { SUM_BYTES } else { 0 };
        Self {
            header_bytes: SALT_BYTES + full_header_bytes(block_bytes) + TAG_BYTES + sum_bytes,
            max_rows: most_rows(pages_in(block_bytes)),
            has_sums,
        }
    }

    /// Returns whether things have sums; otherwise only lengths are checked.
    pub fn has_sums(&self) -> bool {
        self.has_sums
    }

    /// Returns the largest number of rows of a block.
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// An error if a block is not as it was sealed.
    pub fn check_block(&self, block: &Sealed) -> Result<()> {
        let damaged = |what: &str| Error::BlockDamaged {
            id: block.id,
            what: what.into(),
        };
        let rows = &block.pages;
        let is_step = !rows.is_empty() && (rows.len() * ROW_BYTES).is_multiple_of(STEP_BYTES);
        let are_rows = rows.iter().all(|row| row.len() == ROW_BYTES + TAG_BYTES);
        if block.header.len() != self.header_bytes || rows.len() > self.max_rows || !is_step || !are_rows {
            return Err(damaged("it does not have the lengths of a sealed block"));
        }
        match !self.has_sums || fits_block(block) {
            true => Ok(()),
            false => Err(damaged(MISMATCH)),
        }
    }

    /// An error if a node is not as it was sealed.
    pub fn check_node(&self, id: NodeId, bytes: &[u8]) -> Result<()> {
        match self.fits(NODE, &id.0, bytes) {
            true => Ok(()),
            false => Err(damaged(id, MISMATCH)),
        }
    }

    /// Returns whether a record is as it was sealed.
    pub fn fits_record(&self, record: &Record) -> bool {
        self.fits(RECORD, record.key.as_bytes(), &record.bytes)
    }

    /// Returns whether a note is as it was sealed.
    pub fn fits_note(&self, note: &Note) -> bool {
        let value = note.value.as_deref();
        value.is_none_or(|value| self.fits(NOTE, note.name.as_bytes(), value))
    }

    fn fits(&self, kind: u8, name: &[u8], bytes: &[u8]) -> bool {
        !self.has_sums || without_sum(kind, name, bytes).is_some()
    }
}

/// Adds the sum to a block that was sealed.
pub(super) fn add_to_block(block: &mut Sealed) {
    let sum = sum_of_block(block, &block.header);
    block.header.extend(sum);
}

/// Adds the sum to the bytes of a node, record or note.
pub(super) fn add(kind: u8, name: &[u8], bytes: &mut Vec<u8>) {
    let sum = sum_of(kind, name, [&bytes[..]]);
    bytes.extend(sum);
}

/// Returns the bytes of a node, record or note without their sum; `None` if it does not match.
pub(super) fn without_sum<'a>(kind: u8, name: &[u8], bytes: &'a [u8]) -> Option<&'a [u8]> {
    let (bytes, sum) = bytes.split_last_chunk()?;
    (sum_of(kind, name, [bytes]) == *sum).then_some(bytes)
}

/// Returns whether the sum of a block matches.
fn fits_block(block: &Sealed) -> bool {
    let split = block.header.split_last_chunk();
    split.is_some_and(|(header, sum)| sum_of_block(block, header) == *sum)
}

fn sum_of_block(block: &Sealed, header: &[u8]) -> [u8; SUM_BYTES] {
    let plain_bytes = block.plain_bytes.to_le_bytes();
    let rows = block.pages.iter().map(Vec::as_slice);
    let (kind, name) = block_name(block.id, block.base);
    sum_of(kind, &name, [&plain_bytes[..], header].into_iter().chain(rows))
}

fn sum_of<'a>(kind: u8, name: &'a [u8], parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; SUM_BYTES] {
    let parts: Vec<&[u8]> = std::iter::once(name).chain(parts).collect();
    let lengths: Vec<_> = parts.iter().map(|part| (part.len() as u64).to_le_bytes()).collect();
    let pieces = lengths.iter().zip(parts).flat_map(|(length, part)| [&length[..], part]);
    purposed_hash(CONTEXT, std::iter::once(&[kind][..]).chain(pieces))
}
