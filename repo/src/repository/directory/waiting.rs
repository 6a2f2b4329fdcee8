//! The processes that wait for the writer's lock, as its holder sees them: a prune lets others in between its steps.
//!
//! A process that waits holds a shared flock(2) lock on `REPO/waiting`, so the kernel forgets it however it ends. The holder of
//! the writer's lock finds out by trying to take that lock alone. An older vbk waits unseen.
//!
//! A server does not wait for the lock: its clients ask again and again. It counts as a process that waits in between
//! ([`Asking`]).

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Time within which a process that waits notices that the lock is free, and then some.
const TURN: Duration = Duration::from_secs(10);

const POLL: Duration = Duration::from_millis(50);

/// Time within which a client that still waits asks again.
const ASKS_WITHIN: Duration = Duration::from_secs(3);

fn path_in(repository: &Path) -> PathBuf {
    repository.join("waiting")
}

/// A process that waits, until this is dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    _file: File,
}

impl Waiting {
    /// Shows the holder that this process waits; `None` if that is not possible. Waiting works all the same.
    pub(super) fn begin(repository: &Path) -> Option<Self> {
        let open = File::options().create(true).append(true).open(path_in(repository));
        // The holder has it to itself for a moment only.
        let locked = open.and_then(|file| file.lock_shared().map(|()| file));
        locked
            .inspect_err(|error| tracing::debug!(%error, "waiting unseen"))
            .ok()
            .map(|file| Self { _file: file })
    }
}

/// Whether this process waits because its clients ask for the lock, and since when none has.
#[derive(Debug, Default)]
pub(super) struct Asking(Mutex<Option<(Waiting, Instant)>>);

impl Asking {
    /// Notes that the lock was asked for in vain.
    pub(super) fn begin(&self, repository: &Path) {
        let mut asking = self.0.lock();
        let waiting = asking.take().map(|(waiting, _)| waiting);
        *asking = waiting
            .or_else(|| Waiting::begin(repository))
            .map(|waiting| (waiting, Instant::now()));
    }

    /// Notes that the lock is about to be taken, or that nobody wants it any more.
    pub(super) fn end(&self) {
        *self.0.lock() = None;
    }

    /// Ends it if nobody has asked for a while.
    pub(super) fn end_if_silent(&self) {
        self.0.lock().take_if(|(_, asked)| asked.elapsed() > ASKS_WITHIN);
    }
}

/// Returns whether a process waits.
pub(super) fn is_any(repository: &Path) -> bool {
    // Dropping the file releases the lock, if it was free.
    let open = File::open(path_in(repository));
    open.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Waits until those that wait have had their turn: for ten seconds at most, because one of them may be stopped.
pub(super) fn let_go_first(repository: &Path) {
    let started = Instant::now();
    while is_any(repository) && started.elapsed() < TURN {
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_seen_until_the_last_one_ends() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(!is_any(directory.path()));
        let one = Waiting::begin(directory.path()).expect("waits");
        let other = Waiting::begin(directory.path()).expect("waits");
        assert!(is_any(directory.path()) && is_any(directory.path()));
        drop(one);
        assert!(is_any(directory.path()));
        drop(other);
        assert!(!is_any(directory.path()));
        let_go_first(directory.path());
    }

    #[test]
    fn where_nothing_can_be_written_nobody_is_seen() {
        let gone = Path::new("/nonexistent/repository");
        assert!(Waiting::begin(gone).is_none() && !is_any(gone));
    }
}
