//! A directory that one process has open for many writers at once.
//!
//! The process takes the writer's lock when the first writer comes, and releases it when none has come for a while, so that
//! commands that need the directory for themselves (a repair) find their turn. `sessions.rs` of the store says why the
//! writers do not harm each other.
//!
//! What a writer put and did not flush stays when its session ends, also when the store is closed in order.
//!
//! After a failed write no barrier of the store succeeds any more, for no writer. The store is then opened again, as soon as the
//! writers that met the error have ended.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::through::{Through, Writers};
use super::{Directory, Opened, ballast};
use crate::error::{Error, Result};
use crate::repository::home::{Home, Session, Wait};
use crate::store::{StoreManager, StoreWriter};

/// Time for which the store stays open after its last writer: opening it takes a moment.
const OPEN_FOR: Duration = Duration::from_secs(10);

/// Name in the directory of the socket on which the process is found.
pub const SOCKET: &str = "serve.sock";

/// A repository for many writers at once.
pub struct SharedDirectory {
    directory: Arc<Directory>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    opened: Option<Arc<Opened>>,
    /// Since when nobody but this process has it open.
    unused_since: Option<Instant>,
}

impl fmt::Debug for SharedDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedDirectory")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl SharedDirectory {
    /// Shares a directory among the writers of this process. Nothing else of this process may write to it.
    pub fn new(directory: Arc<Directory>) -> Self {
        Self {
            directory,
            state: Mutex::default(),
        }
    }

    /// The repository as a home. Readers open views, as always.
    pub fn home(self: &Arc<Self>) -> Arc<dyn Home> {
        Arc::new(Through::new(Arc::clone(&self.directory), Arc::clone(self)))
    }

    /// Closes the store if no writer has used it for ten seconds, and releases the writer's lock. To be called now and then.
    /// Returns whether it is closed.
    pub fn close_if_unused(&self) -> bool {
        self.directory.asking.end_if_silent();
        let mut state = self.state.lock();
        let State { opened, unused_since } = &mut *state;
        let Some(store) = opened else {
            return true;
        };
        if Arc::strong_count(store) > 1 {
            *unused_since = None;
            return false;
        }
        let since = *unused_since.get_or_insert_with(Instant::now);
        if since.elapsed() < OPEN_FOR && !store.store.has_failed() {
            return false;
        }
        flush(store);
        *state = State::default();
        true
    }

    fn session(&self, command: &str, wait: Wait<'_>, to_manage: bool) -> Result<Session<dyn StoreManager>> {
        let mut state = self.state.lock();
        if let Some(failed) = state.opened.take_if(|opened| opened.store.has_failed())
            && Arc::strong_count(&failed) > 1
        {
            state.opened = Some(failed);
            return Err(Error::Locked {
                path: self.directory.path.clone(),
                holder: "writers that end because a write failed".into(),
            });
        }
        state.unused_since = None;
        if let Some(opened) = &state.opened {
            let opened = Arc::clone(opened);
            // A publication may take long, and has what the next line waits for.
            drop(state);
            match to_manage {
                true if opened.is_full()? => drop(ballast::release(&self.directory.path)?),
                true => {}
                false => opened.keep_room()?,
            }
            return opened.session();
        }
        let opened = self.directory.asks(command, || match to_manage {
            true => self.directory.opened_to_manage("serve", wait),
            false => self.directory.opened("serve", wait),
        })?;
        state.opened = Some(Arc::clone(&opened));
        if !to_manage {
            opened.keep_room()?;
        }
        opened.session()
    }
}

/// Writes what was put and not flushed, before a store is closed: a client whose connection was lost need not send it again.
fn flush(opened: &Opened) {
    if opened.store.has_pending()
        && let Err(error) = opened.store.flush()
    {
        tracing::debug!(%error, "what an unfinished backup stored will have to be sent again");
    }
}

impl Drop for SharedDirectory {
    fn drop(&mut self) {
        self.state.get_mut().opened.iter().for_each(|opened| flush(opened));
    }
}

impl Writers for Arc<SharedDirectory> {
    fn write(&self, command: &str, wait: Wait<'_>) -> Result<Session<dyn StoreWriter>> {
        Ok(self.session(command, wait, false)?.to_write())
    }

    fn manage(&self, command: &str, wait: Wait<'_>) -> Result<Session<dyn StoreManager>> {
        self.session(command, wait, true)
    }
}

#[cfg(test)]
mod tests;
