//! More connections to the same server, for what is large. One TCP connection carries what fits into its buffers in a round trip,
//! and ssh what fits into the window of its channel (2 MiB): 26 and 15 MB/s at 100 ms, however fast the line is.
//!
//! Each is a client of its own: the server knows nothing of them. What is put on one of them is flushed there before another one
//! commits, so it is stored by then. A block that can't be read on one of them, whose snapshot may be a newer one, is asked for
//! on the first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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

    /// Returns the connection that is to read so many bytes: the one with the least to do. `None` is the first one, which has
    /// `load` bytes to do.
    pub(super) fn pick(&self, bytes: usize, load: usize) -> Option<Arc<RemoteStore>> {
        self.moves(bytes);
        let stores = self.stores.lock();
        let others = stores.open.iter().filter(|store| !store.is_over());
        let others = others.map(|store| (store.load(), store));
        let (least, store) = others.min_by_key(|(load, _)| *load)?;
        (least < load).then(|| Arc::clone(store))
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
