//! Cuts what is asked and put into pieces that fit into a message.

use vbk_repo::block::PAGE_BYTES;
use vbk_repo::store::Wanted;

use crate::message::{MAX_NAMES, MAX_PAGES};

/// Bytes of blocks in one question, at least one block.
pub(super) const PIECE_BYTES: usize = MAX_PAGES * PAGE_BYTES / 2;

/// Plain bytes of pages.
pub(super) fn bytes_of(wanted: &[Wanted]) -> usize {
    wanted.iter().map(|wanted| wanted.pages.len() * PAGE_BYTES).sum()
}

/// Cuts a list into pieces of so many bytes, each of one thing at least.
pub(super) fn split<T>(all: &[T], piece_bytes: usize, bytes_of: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut pieces = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, one) in all.iter().enumerate() {
        let more = bytes_of(one);
        if at > start && (bytes + more > piece_bytes || at - start == MAX_NAMES) {
            pieces.push(&all[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += more;
    }
    if start < all.len() {
        pieces.push(&all[start..]);
    }
    pieces
}

/// Returns the id after this one; `None` after the last.
pub(super) fn after(mut id: [u8; 32]) -> Option<[u8; 32]> {
    for byte in id.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(id);
        }
    }
    None
}
