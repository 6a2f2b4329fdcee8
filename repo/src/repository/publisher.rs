//! Shows backups to readers while others are made: at most once a second.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};

/// Time between the end of a publication and the beginning of the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// Time after which a publication that failed is tried again, also if nothing else is committed.
const AGAIN: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 10_000 });

/// Publishes for those who commit.
#[derive(Default)]
pub(super) struct Publisher {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// There is a thread that publishes.
    is_open: bool,
    /// Something was committed that no publication has, and none is being made of.
    is_due: bool,
}

impl Publisher {
    /// Calls `work`. What it commits is published by a thread, at last when `work` is done. Also returns why the last publication
    /// failed, if it did.
    pub(super) fn during<T>(
        &self,
        publish: &(dyn Fn() -> Result<()> + Sync),
        work: impl FnOnce() -> T,
    ) -> (T, Option<Error>) {
        self.state.lock().is_open = true;
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("vbk-publish".into());
            let Ok(thread) = thread.spawn_scoped(scope, || self.run(publish)) else {
                // Then whoever commits publishes too.
                self.state.lock().is_open = false;
                return (work(), None);
            };
            // Also if `work` panics.
            let end = End(self);
            let done = work();
            drop(end);
            let failed = thread.join().unwrap_or_else(|_| {
                Some(Error::Internal {
                    doing: "show backups to readers",
                    message: "a thread has panicked".into(),
                })
            });
            (done, failed)
        })
    }

    /// Returns whether a thread publishes what is committed.
    pub(super) fn is_at_work(&self) -> bool {
        self.state.lock().is_open
    }

    /// Tells the thread that there is something to publish; false if there is no thread.
    pub(super) fn tell(&self) -> bool {
        let mut state = self.state.lock();
        state.is_due |= state.is_open;
        self.changed.notify_all();
        state.is_open
    }

    /// Publishes until the end; returns why the last commits could not be published.
    fn run(&self, publish: &dyn Fn() -> Result<()>) -> Option<Error> {
        let mut failed = None;
        loop {
            let (is_due, is_last) = {
                let mut state = self.state.lock();
                let waits = |state: &mut State| state.is_open && !state.is_due;
                match &failed {
                    None => self.changed.wait_while(&mut state, waits),
                    Some(_) => _ = self.changed.wait_while_for(&mut state, waits, AGAIN),
                }
                (std::mem::take(&mut state.is_due), !state.is_open)
            };
            if !is_due && failed.is_none() {
                return None;
            }
            let is_first = failed.is_none();
            failed = publish().err();
            if is_last {
                return failed;
            }
            if let Some(error) = failed.as_ref().filter(|_| is_first) {
                tracing::warn!("the latest backups are stored, but can't be listed yet: {error}");
            }
            let goes_on = |state: &mut State| state.is_open;
            self.changed.wait_while_for(&mut self.state.lock(), goes_on, INTERVAL);
        }
    }
}

/// Ends the thread when it is dropped.
struct End<'a>(&'a Publisher);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.state.lock().is_open = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn what_is_committed_is_published_soon_and_the_last_at_the_end() {
        let publisher = Publisher::default();
        assert!(!publisher.tell(), "nobody publishes for others");
        let (committed, published, times) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        let publish = || {
            published.store(committed.load(Ordering::SeqCst), Ordering::SeqCst);
            times.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        let commit = || {
            committed.fetch_add(1, Ordering::SeqCst);
            assert!(publisher.tell());
        };
        let ((), failed) = publisher.during(&publish, || {
            commit();
            // Without another commit.
            while published.load(Ordering::SeqCst) < 1 {
                std::thread::yield_now();
            }
            (0..1000).for_each(|_| commit());
        });
        assert!(failed.is_none());
        assert_eq!(published.load(Ordering::SeqCst), 1001);
        assert!(times.load(Ordering::SeqCst) < 100);
        let before = times.load(Ordering::SeqCst);
        publisher.during(&publish, || ());
        assert_eq!(times.load(Ordering::SeqCst), before, "there was nothing");
        assert!(!publisher.tell());
    }

    #[test]
    fn a_publication_that_failed_is_tried_again_and_its_error_tell() {
        let publisher = Publisher::default();
        let (tries, fails) = (AtomicU32::new(0), AtomicU32::new(1));
        let publish = || match tries.fetch_add(1, Ordering::SeqCst) < fails.load(Ordering::SeqCst) {
            true => Err(Error::Interrupted),
            false => Ok(()),
        };
        let work = || {
            assert!(publisher.tell());
            while tries.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
        };
        assert!(publisher.during(&publish, work).1.is_none());
        assert_eq!(tries.load(Ordering::SeqCst), 2);
        // Also if nothing else is committed.
        tries.store(0, Ordering::SeqCst);
        let work = || {
            assert!(publisher.tell());
            while tries.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
        };
        assert!(publisher.during(&publish, work).1.is_none());
        fails.store(9, Ordering::SeqCst);
        assert!(publisher.during(&publish, || assert!(publisher.tell())).1.is_some());
    }
}
