//! A bound of the memory that all clients of a server take together, in the order in which they ask for it. A client that has
//! nothing yet gets its part soon, whether there is room or not: others that hold theirs for long must not hold it up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// Longest wait of a client that has something. Shorter than the time after which a silent client is given up.
const MORE_WITHIN: Duration = Duration::from_secs(40);

/// Bytes that all clients may have.
pub(crate) struct Budget {
    free_kib: Arc<Semaphore>,
    all_kib: u32,
    /// Longest wait of a client that has nothing.
    first_within: Duration,
}

impl Budget {
    pub(crate) fn new(all_bytes: usize, first_within: Duration) -> Arc<Self> {
        let all_kib = kib(all_bytes);
        Arc::new(Self {
            free_kib: Arc::new(Semaphore::new(all_kib as usize)),
            all_kib,
            first_within,
        })
    }
}

fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

/// The part of one client.
pub(crate) struct Share {
    budget: Arc<Budget>,
    /// Number of its reservations.
    held: Arc<AtomicUsize>,
}

/// Bytes of a client, given back when this is dropped.
pub(crate) struct Reserved {
    /// None if there was no room in time, or if its own time is over.
    permit: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
    timer: Option<AbortHandle>,
    held: Arc<AtomicUsize>,
}

impl Share {
    pub(crate) fn new(budget: &Arc<Budget>) -> Self {
        Self {
            budget: Arc::clone(budget),
            held: Arc::default(),
        }
    }

    /// Waits for bytes.
    pub(crate) async fn reserve(&self, bytes: usize) -> Reserved {
        let within = match self.held.load(Ordering::SeqCst) {
            0 => self.budget.first_within,
            _ => MORE_WITHIN,
        };
        let free = Arc::clone(&self.budget.free_kib);
        let wanted = kib(bytes).min(self.budget.all_kib);
        let permit = timeout(within, free.acquire_many_owned(wanted)).await;
        self.held.fetch_add(1, Ordering::SeqCst);
        Reserved {
            permit: Arc::new(Mutex::new(permit.ok().and_then(Result::ok))),
            timer: None,
            held: Arc::clone(&self.held),
        }
    }
}

impl Reserved {
    /// Returns whether there was room.
    pub(crate) fn is_counted(&self) -> bool {
        self.permit.lock().is_some()
    }

    /// Gives the bytes back after a time, though they are still taken: one that is slow must not keep the others waiting.
    pub(crate) fn expires(mut self, within: Duration) -> Self {
        let permit = Arc::clone(&self.permit);
        let timer = tokio::spawn(async move {
            sleep(within).await;
            *permit.lock() = None;
        });
        self.timer = Some(timer.abort_handle());
        self
    }

    /// Takes that back.
    pub(crate) fn stays(mut self) -> Self {
        if let Some(timer) = self.timer.take() {
            timer.abort();
        }
        self
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(timer) = &self.timer {
            timer.abort();
        }
        // A timer that was stopped may have it a little longer.
        *self.permit.lock() = None;
        self.held.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const FIRST_WITHIN: Duration = Duration::from_secs(3);

    #[test]
    fn a_client_waits_while_there_is_no_room_and_long_only_for_more_than_it_has() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let budget = Budget::new(100 << 10, FIRST_WITHIN);
            let (greedy, other) = (Share::new(&budget), Share::new(&budget));
            let started = Instant::now();
            let all = [greedy.reserve(60 << 10).await, greedy.reserve(40 << 10).await];
            assert_eq!(started.elapsed(), Duration::ZERO);
            let first = other.reserve(1).await;
            assert_eq!(started.elapsed(), FIRST_WITHIN);
            let _more = other.reserve(1).await;
            assert_eq!(started.elapsed(), FIRST_WITHIN + MORE_WITHIN);
            // What was not there is not given back.
            drop(first);
            assert_eq!(budget.free_kib.available_permits(), 0);
            drop(all);
            {
                let slow = other.reserve(100 << 10).await.expires(MORE_WITHIN);
                sleep(2 * MORE_WITHIN).await;
                assert_eq!(budget.free_kib.available_permits(), 100, "it is over");
                drop(slow);
                let quick = other.reserve(100 << 10).await.expires(MORE_WITHIN).stays();
                sleep(2 * MORE_WITHIN).await;
                assert!(quick.is_counted());
            }
            let started = Instant::now();
            // More than all is all.
            let _all = other.reserve(1 << 30).await;
            assert_eq!(budget.free_kib.available_permits(), 0);
            assert_eq!(started.elapsed(), Duration::ZERO);
        });
    }
}
