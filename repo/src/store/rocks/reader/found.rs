//! The blocks that were read last: a reader at random offsets comes back to them for other pages.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::id::BlockId;
use crate::store::rocks::rows::IndexRow;

/// Memory for the headers of blocks that were read: those of 10,000 blocks of 1 MiB.
const HEADERS_BYTES: u64 = 8 << 20;

/// The index row and the header of a block.
pub(super) struct Found {
    pub(super) row: IndexRow,
    pub(super) header: Vec<u8>,
}

#[derive(Clone)]
pub(super) struct ByLength;

impl Weighter<BlockId, Arc<Found>> for ByLength {
    fn weight(&self, _: &BlockId, found: &Arc<Found>) -> u64 {
        (size_of::<BlockId>() + size_of::<Found>() + found.header.len()) as u64
    }
}

pub(super) type FoundCache = Cache<BlockId, Arc<Found>, ByLength>;

pub(super) fn cache() -> FoundCache {
    Cache::with_weighter(HEADERS_BYTES as usize / 1024, HEADERS_BYTES, ByLength)
}
