//! Decoded blocks that readers return to. Many small files lie in one block, and a program that reads one after the other
//! would otherwise have its pages decoded again and again, or a whole block ahead of each short run.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Promise;
use crate::id::BlockId;

/// Memory for these blocks, a part of [`crate::reader::DECODED_BYTES`].
const KEPT_BYTES: usize = 48 << 20;
/// Reads that are remembered, because a page had to be decoded for them.
const REMEMBERED: usize = 64;
/// Number of those reads in one block after which the whole block is decoded. Reads at random offsets of a disk of
/// 2 GiB get there once in 2000 times: a block costs as much as 16 pages.
const OFTEN: usize = 3;

/// The blocks, by content: all images of a process share them.
#[derive(Default)]
pub(super) struct Kept(Mutex<State>);

#[derive(Default)]
struct State {
    blocks: HashMap<BlockId, (Arc<Promise>, Instant)>,
    bytes: usize,
    /// Blocks of the last reads, the newest at the end.
    recent: VecDeque<BlockId>,
}

impl Kept {
    /// Returns a block, which may still be on its way, or could not be decoded. The latter is kept as well, because each read
    /// in it would try that again, but not for longer because it is read: the store may have been out of reach for a moment.
    pub(super) fn get(&self, id: BlockId) -> Option<Arc<Promise>> {
        let mut state = self.0.lock();
        let (promise, used) = state.blocks.get_mut(&id)?;
        if !promise.has_failed() {
            *used = Instant::now();
        }
        Some(Arc::clone(promise))
    }

    /// Keeps a block, instead of those not used for longest.
    pub(super) fn keep(&self, id: BlockId, promise: Arc<Promise>) {
        let mut state = self.0.lock();
        state.bytes += promise.len;
        if let Some((old, _)) = state.blocks.insert(id, (promise, Instant::now())) {
            state.bytes -= old.len;
        }
        while state.bytes > KEPT_BYTES {
            state.drop_oldest();
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().blocks.len()
    }

    /// Records a read for which a page of the block must be decoded. Returns true if there were enough of them.
    pub(super) fn is_read_often(&self, id: BlockId) -> bool {
        let mut state = self.0.lock();
        state.recent.push_back(id);
        if state.recent.len() > REMEMBERED {
            state.recent.pop_front();
        }
        state.recent.iter().filter(|recent| **recent == id).count() >= OFTEN
    }

    /// Drops the block that was not used for longest. Returns false if there is none.
    pub(super) fn drop_oldest(&self) -> bool {
        self.0.lock().drop_oldest()
    }

    /// Drops the blocks that were not used for this time.
    pub(super) fn drop_idle(&self, idle: Duration) {
        let mut state = self.0.lock();
        state.blocks.retain(|_, (_, used)| used.elapsed() < idle);
        state.bytes = state.blocks.values().map(|(promise, _)| promise.len).sum();
    }
}

impl State {
    fn drop_oldest(&mut self) -> bool {
        let oldest = self.blocks.iter().min_by_key(|(_, (_, used))| *used);
        let Some(id) = oldest.map(|(id, _)| *id) else {
            return false;
        };
        if let Some((promise, _)) = self.blocks.remove(&id) {
            self.bytes -= promise.len;
        }
        true
    }
}
