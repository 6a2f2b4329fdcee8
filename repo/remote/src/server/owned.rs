//! The repositories that this process has open for all writers: those of this machine come through a socket, those over TLS use the
//! same store without a way in between.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, interval};
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::directory::shared::SharedDirectory;
use vbk_repo::repository::home::Home;

use super::local::Socket;

/// Time between two looks at what nobody uses any more.
const TICK: Duration = Duration::from_millis(500);

/// The repositories of this process, by their directories.
#[derive(Default)]
pub(super) struct Owned(Mutex<HashMap<PathBuf, Owner>>);

/// A repository that this process has open for all.
#[derive(Clone)]
pub(super) struct Owner {
    shared: Arc<SharedDirectory>,
    clients: Arc<AtomicUsize>,
}

/// A client of such a repository, until it is dropped.
pub(super) struct Client(Arc<AtomicUsize>);

impl Drop for Client {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Owner {
    /// The repository for one more client.
    pub(super) fn enter(&self) -> (Arc<dyn Home>, Client) {
        self.clients.fetch_add(1, Ordering::SeqCst);
        (self.shared.home(), Client(Arc::clone(&self.clients)))
    }
}

impl Owned {
    /// Has a repository open for all from now on; `None` if another process has. Has to be called on a runtime.
    pub(super) fn begin(&self, directory: &Path) -> vbk_repo::Result<Option<(Owner, Socket)>> {
        let opened = Directory::open(directory)?;
        let socket = match Socket::bind(directory) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(None),
            socket => socket.map_err(vbk_repo::Error::io("listen in", directory))?,
        };
        let owner = Owner {
            shared: Arc::new(SharedDirectory::new(Arc::new(opened))),
            clients: Arc::default(),
        };
        match self.0.lock().entry(directory.to_owned()) {
            // One that was there before, and is still in use.
            Entry::Occupied(_) => Ok(None),
            Entry::Vacant(place) => {
                place.insert(owner.clone());
                Ok(Some((owner, socket)))
            }
        }
    }

    /// One more client of a repository that this process has open.
    pub(super) fn enter(&self, directory: &Path) -> Option<(Arc<dyn Home>, Client)> {
        // Not locked while the disk is asked: a slow one must not hold up the clients of the others.
        let (home, client) = self.0.lock().get(directory)?.enter();
        // It may be another one in the place of one that was removed.
        let now = Directory::open(directory).ok()?;
        (now.marker() == home.marker()).then_some((home, client))
    }

    /// Closes the store of a repository whenever no writer uses it. With `idle`, completes when there was no client for that long: it
    /// is not one of this process any more.
    pub(super) async fn end_unused(&self, directory: &Path, owner: Owner, idle: Option<Duration>) {
        let mut ticks = interval(TICK);
        let mut last_used = Instant::now();
        loop {
            ticks.tick().await;
            let shared = Arc::clone(&owner.shared);
            // A panic of it was reported there.
            let _ = tokio::task::spawn_blocking(move || shared.close_if_unused()).await;
            // Under the lock under which clients enter.
            let mut owned = self.0.lock();
            if owner.clients.load(Ordering::SeqCst) > 0 {
                last_used = Instant::now();
            }
            if idle.is_some_and(|idle| last_used.elapsed() >= idle) {
                owned.remove(directory);
                return;
            }
        }
    }
}
