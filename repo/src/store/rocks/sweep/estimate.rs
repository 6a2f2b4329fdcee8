//! Counts what a sweep would remove, for a reader that sees the blocks of a store and not the store itself.

use std::collections::BTreeMap;

use super::WINDOW_BYTES;
use super::windows::{Window, choose};
use crate::store::{Identity, Located, Swept};

/// Blocks that were counted so far. Memory: 40 bytes per window of 2 GiB.
pub(crate) struct Estimate {
    windows: BTreeMap<u64, Window>,
    window_blocks: u64,
    swept: Swept,
}

impl Estimate {
    /// Begins to count the blocks of a store.
    pub(crate) fn new(identity: &Identity) -> Self {
        Self {
            windows: BTreeMap::new(),
            window_blocks: (WINDOW_BYTES / u64::from(identity.block_size)).max(1),
            swept: Swept::default(),
        }
    }

    /// Counts a block.
    pub(crate) fn add(&mut self, located: &Located, is_live: bool) {
        let window = self.windows.entry(located.place.0 / self.window_blocks).or_default();
        window.add(located, is_live, &mut self.swept);
    }

    /// Returns what a sweep that leaves this share of the live bytes unused would remove; nodes are not counted.
    pub(crate) fn finish(mut self, max_unused: f64) -> Swept {
        for number in choose(&self.windows, self.swept.live_bytes, max_unused) {
            self.swept.removed_blocks += self.windows[&number].unused_blocks;
            self.swept.removed_bytes += self.windows[&number].unused_bytes;
        }
        self.swept
    }
}
