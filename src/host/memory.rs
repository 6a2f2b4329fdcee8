//! The memory of this process.

use crate::sys;

/// Sizes from which a block counts as large.
const LARGE_BYTES: usize = 4 << 20;

/// Prepares for blocks of this size. glibc keeps what one thread has freed for that thread: of blocks of 16 MiB, which many threads
/// read at the same time, a mount held twice as much as it used. Blocks of the usual size are allocated as ever, which is faster.
pub fn prepare_for_blocks_of(bytes: usize) {
    if bytes >= LARGE_BYTES {
        sys::map_allocations_from(LARGE_BYTES);
    }
}
