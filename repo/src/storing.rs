//! The blocks that threads of this process store at this moment.
//!
//! Between the look-up of a block and its put, another thread may find the same block missing: two equal blocks of a
//! disk, or of two guests that were made from one image. The store keeps one of them, but both would be sealed, sent
//! and counted as new. So a thread first takes the blocks that it is about to look up, and leaves those that another
//! thread has until that is done with them.

use std::collections::HashSet;

use parking_lot::{Condvar, Mutex};

use crate::id::BlockId;

/// Blocks that are being stored. May be used by many threads.
#[derive(Debug, Default)]
pub struct Storing {
    ids: Mutex<HashSet<BlockId>>,
    released: Condvar,
}

impl Storing {
    /// Takes those of `ids` that no thread has, until the result is dropped. Waits only if others have all of them; one
    /// that was waited for may be stored then or not, as its thread may have failed.
    ///
    /// A thread that holds a result must drop it before it calls this again: two threads could wait for each other.
    pub fn take(&self, ids: &[BlockId]) -> Taken<'_> {
        let mut all = self.ids.lock();
        loop {
            let ids: HashSet<_> = ids.iter().copied().filter(|id| all.insert(*id)).collect();
            if !ids.is_empty() {
                return Taken { storing: self, ids };
            }
            self.released.wait(&mut all);
        }
    }
}

/// Blocks that one thread stores.
#[derive(Debug)]
pub struct Taken<'a> {
    storing: &'a Storing,
    ids: HashSet<BlockId>,
}

impl Taken<'_> {
    /// Returns whether the block was taken.
    pub fn has(&self, id: BlockId) -> bool {
        self.ids.contains(&id)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut all = self.storing.ids.lock();
        for id in &self.ids {
            all.remove(id);
        }
        self.storing.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn id(number: u8) -> BlockId {
        BlockId([number; 32])
    }

    #[test]
    fn a_block_is_taken_by_one_thread_at_a_time() {
        let storing = Storing::default();
        let holders = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let _taken = storing.take(&[id(1)]);
                        assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                        holders.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(storing.ids.lock().is_empty());
    }

    #[test]
    fn what_others_have_is_left_to_them() {
        let storing = Storing::default();
        let first = storing.take(&[id(1), id(2), id(2)]);
        let second = storing.take(&[id(2), id(3)]);
        assert!(first.has(id(1)) && first.has(id(2)) && !first.has(id(3)));
        assert!(!second.has(id(2)) && second.has(id(3)));
        drop(first);
        assert!(storing.take(&[id(2), id(3)]).has(id(2)));
    }
}
