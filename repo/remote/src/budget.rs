//! A bound of the memory that all clients of a server take together. Each may take a little whatever the others do, so that none
//! can hold another up; a client that wants more waits while there is much in all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Bytes that all clients may have.
pub(crate) struct Budget {
    all_bytes: usize,
    each_bytes: usize,
    taken: AtomicUsize,
    freed: Notify,
}

impl Budget {
    /// A budget of `all_bytes`. A client that has less than `each_bytes` takes more in any case.
    pub(crate) fn new(all_bytes: usize, each_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            all_bytes,
            each_bytes,
            taken: AtomicUsize::new(0),
            freed: Notify::new(),
        })
    }
}

/// The part of one client, given back when it is dropped.
pub(crate) struct Share {
    budget: Arc<Budget>,
    taken: AtomicUsize,
}

impl Share {
    pub(crate) fn new(budget: &Arc<Budget>) -> Self {
        Self {
            budget: Arc::clone(budget),
            taken: AtomicUsize::new(0),
        }
    }

    /// Bytes that this client has.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    /// Takes bytes, also those that there is no room for: they are here already.
    pub(crate) fn take(&self, bytes: usize) {
        self.taken.fetch_add(bytes, Ordering::SeqCst);
        self.budget.taken.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Gives bytes back.
    pub(crate) fn give(&self, bytes: usize) {
        self.taken.fetch_sub(bytes, Ordering::SeqCst);
        self.budget.taken.fetch_sub(bytes, Ordering::SeqCst);
        self.budget.freed.notify_waiters();
    }

    fn has_room(&self) -> bool {
        let Budget {
            all_bytes,
            each_bytes,
            taken,
            ..
        } = &*self.budget;
        self.taken() < *each_bytes || taken.load(Ordering::SeqCst) < *all_bytes
    }

    /// Waits until this client may take more.
    pub(crate) async fn room(&self) {
        loop {
            let freed = self.budget.freed.notified();
            tokio::pin!(freed);
            // From now on: what is given back after the look is not missed.
            freed.as_mut().enable();
            if self.has_room() {
                return;
            }
            freed.await;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give(self.taken());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_takes_all_that_is_free_and_leaves_the_others_their_part() {
        let budget = Budget::new(100, 10);
        let (greedy, other) = (Share::new(&budget), Share::new(&budget));
        greedy.take(99);
        assert!(greedy.has_room());
        greedy.take(50);
        assert!(!greedy.has_room());
        assert!(other.has_room());
        other.take(10);
        assert!(!other.has_room());
        drop(greedy);
        assert!(other.has_room());
        drop(other);
        assert_eq!(budget.taken.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_client_that_waits_goes_on_when_there_is_room() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let budget = Budget::new(100, 10);
        let (one, other) = (Share::new(&budget), Share::new(&budget));
        one.take(60);
        other.take(60);
        runtime.block_on(async {
            let room = other.room();
            tokio::pin!(room);
            tokio::select! {
                biased;
                () = &mut room => panic!("there is none"),
                () = tokio::task::yield_now() => {}
            }
            one.give(60);
            room.await;
        });
    }
}
