//! More connections to the same server, for what is large. One TCP connection carries what fits into its buffers in a round trip,
//! and ssh what fits into the window of its channel (2 MiB): 26 and 15 MB/s at 100 ms, however fast the line is.
//!
//! Each is a client of its own: the server knows nothing of them. What is put on one of them is flushed there before another one
//! commits, so it is stored by then. A block that can't be read on one of them, whose snapshot may be a newer one, is asked for
//! on the first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use vbk_repo::Result;

use super::store::RemoteStore;

/// Limits of the connections of one command.
#[derive(Debug, Clone, Copy)]
pub struct LaneOptions {
    /// The most connections, with the first one.
    pub most: usize,
    /// Bytes after which the others are made: less is not worth it.
    pub after_bytes: u64,
}

impl LaneOptions {
    /// The usual number.
    pub const MOST: usize = 4;
}

impl Default for LaneOptions {
    fn default() -> Self {
        Self {
            most: Self::MOST,
            after_bytes: 8 << 20,
        }
    }
}

/// Connects again, and opens the same store there.
pub(super) type Opener = Arc<dyn Fn() -> Result<RemoteStore> + Send + Sync>;

/// The other connections of a store.
pub(super) struct Lanes {
    options: LaneOptions,
    /// `None` once the others are being made, or if there are to be none.
    opener: Mutex<Option<Opener>>,
    moved_bytes: AtomicU64,
    stores: Arc<Mutex<Stores>>,
}

#[derive(Default)]
struct Stores {
    open: Vec<Arc<RemoteStore>>,
    is_closed: bool,
}

impl Lanes {
    pub(super) fn new(options: LaneOptions, opener: Option<Opener>) -> Self {
        Self {
            options,
            opener: Mutex::new(opener),
            moved_bytes: AtomicU64::new(0),
            stores: Arc::default(),
        }
    }

    /// The other connections that are there.
    pub(super) fn all(&self) -> Vec<Arc<RemoteStore>> {
        self.stores.lock().open.clone()
    }

    /// Counts bytes that are to be moved; makes the other connections once they are worth it.
    pub(super) fn moves(&self, bytes: usize) {
        let moved = self.moved_bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        if moved >= self.options.after_bytes {
            self.start();
        }
    }

    /// Returns the connection that is to read so many bytes: the one that probably has them soonest. `None` is `first`.
    pub(super) fn pick(&self, bytes: usize, first: &RemoteStore) -> Option<Arc<RemoteStore>> {
        self.moves(bytes);
        let stores = self.stores.lock();
        let others: Vec<_> = stores.open.iter().filter(|store| !store.is_over()).collect();
        let all = std::iter::once(first).chain(others.iter().map(|store| &***store));
        let queues: Vec<_> = all.map(|store| (store.load(), store.pace.get())).collect();
        let at = soonest(&queues, bytes).checked_sub(1)?;
        others.get(at).map(|store| Arc::clone(store))
    }

    /// Makes the other connections, in a thread of its own.
    fn start(&self) {
        let Some(open) = self.opener.lock().take() else { return };
        let (stores, others) = (Arc::clone(&self.stores), self.options.most.saturating_sub(1));
        let connect = move || {
            for _ in 0..others {
                let store = match open() {
                    Ok(store) => store,
                    // One connection does the work too, only slower.
                    Err(error) => return tracing::debug!("no more connections: {error}"),
                };
                let mut stores = stores.lock();
                if stores.is_closed {
                    return;
                }
                stores.open.push(Arc::new(store));
            }
        };
        let started = std::thread::Builder::new().name("vbk-lanes".into()).spawn(connect);
        if let Err(error) = started {
            tracing::debug!("no more connections: {error}");
        }
    }
}

/// Returns the queue that probably ends soonest with so many bytes more. Each is given as its bytes, and its nanoseconds for a MiB
/// if they are known. A queue of which nothing is known gets bytes only when it is empty, once something is known of another one: it
/// may be a slow one, and at the end all would wait for it.
fn soonest(queues: &[(usize, Option<u64>)], bytes: usize) -> usize {
    let fastest = queues.iter().filter_map(|(_, pace)| *pace).min();
    let time = |(load, pace): &(usize, Option<u64>)| match (fastest, pace) {
        (None, _) => *load as u128,
        (Some(_), Some(pace)) => (load + bytes) as u128 * u128::from(*pace),
        (Some(fastest), None) if *load == 0 => bytes as u128 * u128::from(fastest),
        (Some(_), None) => u128::MAX,
    };
    let times = queues.iter().map(time).enumerate();
    times.min_by_key(|(_, time)| *time).map_or(0, |(at, _)| at)
}

/// How fast a connection answered lately: nanoseconds for a MiB of those that were asked for together; 0 if that is not known.
#[derive(Default)]
pub(super) struct Pace(AtomicU64);

impl Pace {
    fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|pace| *pace > 0)
    }

    /// Notes the time of the last answer to questions for `load` bytes.
    pub(super) fn note(&self, load: usize, took: Duration) {
        // The time of less is that of the way, and tells nothing about more.
        if load < MIB {
            return;
        }
        let sample = took.as_nanos() * MIB as u128 / load as u128;
        let sample = u64::try_from(sample).unwrap_or(u64::MAX / 4).max(1);
        let pace = self.get().map_or(sample, |before| before - before / 4 + sample / 4);
        self.0.store(pace, Ordering::Relaxed);
    }
}

const MIB: usize = 1 << 20;

impl Drop for Lanes {
    fn drop(&mut self) {
        let mut stores = self.stores.lock();
        stores.is_closed = true;
        let open = std::mem::take(&mut stores.open);
        // The end of a connection takes time.
        drop(stores);
        drop(open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_connection_gets_little_and_an_unknown_one_a_first_piece() {
        let (fast, slow) = (Some(10_000_000), Some(1_000_000_000));
        assert_eq!(soonest(&[(5 * MIB, None), (2 * MIB, None)], MIB), 1);
        assert_eq!(soonest(&[(90 * MIB, fast), (0, slow)], MIB), 0);
        assert_eq!(soonest(&[(120 * MIB, fast), (0, slow)], MIB), 1);
        assert_eq!(soonest(&[(5 * MIB, fast), (0, None)], MIB), 1);
        assert_eq!(soonest(&[(5 * MIB, fast), (1, None)], MIB), 0);
        assert_eq!(soonest(&[], MIB), 0);
    }

    #[test]
    fn a_pace_follows_what_is_seen() {
        let pace = Pace::default();
        pace.note(MIB - 1, Duration::from_secs(1));
        assert_eq!(pace.get(), None);
        pace.note(4 * MIB, Duration::from_secs(4));
        assert_eq!(pace.get(), Some(1_000_000_000));
        for _ in 0..50 {
            pace.note(4 * MIB, Duration::from_millis(40));
        }
        assert!((9_000_000..12_000_000).contains(&pace.get().expect("is known")));
    }
}
