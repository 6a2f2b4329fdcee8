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

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// Nobody publishes for others.
    #[default]
    Off,
    /// All that was committed is published, or is being published.
    Idle,
    /// Something else was committed.
    Due,
    /// Nothing more will be committed.
    Ending { is_due: bool },
}

impl Publisher {
    /// Calls `work`. What it commits is published by a thread, at last when `work` is done. Also returns why the last publication
    /// failed, if it did.
    pub(super) fn during<T>(
        &self,
        publish: &(dyn Fn() -> Result<()> + Sync),
        work: impl FnOnce() -> T,
    ) -> (T, Option<Error>) {
        self.set(State::Idle);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("vbk-publish".into());
            let Ok(thread) = thread.spawn_scoped(scope, || self.run(publish)) else {
                // Then whoever commits publishes too.
                self.set(State::Off);
                return (work(), None);
            };
            // Also if `work` panics.
            let ends = Ends(self);
            let done = work();
            drop(ends);
            let failed = thread.join().unwrap_or_else(|_| {
                Some(Error::Internal {
                    doing: "show backups to readers",
                    message: "a thread has panicked".into(),
                })
            });
            self.set(State::Off);
            (done, failed)
        })
    }

    fn set(&self, state: State) {
        *self.state.lock() = state;
        self.changed.notify_all();
    }

    pub(super) fn is_at_work(&self) -> bool {
        *self.state.lock() != State::Off
    }

    /// Tells the thread that there is something to publish; false if there is no thread.
    pub(super) fn is_told(&self) -> bool {
        let mut state = self.state.lock();
        match *state {
            State::Off | State::Ending { .. } => return false,
            State::Idle | State::Due => *state = State::Due,
        }
        self.changed.notify_all();
        true
    }

    /// Publishes until the end; returns why the last commits could not be published.
    fn run(&self, publish: &dyn Fn() -> Result<()>) -> Option<Error> {
        let mut failed = None;
        loop {
            let is_last = {
                let mut state = self.state.lock();
                let is_idle = |state: &mut State| *state == State::Idle;
                match &failed {
                    None => self.changed.wait_while(&mut state, is_idle),
                    Some(_) => _ = self.changed.wait_while_for(&mut state, is_idle, AGAIN),
                }
                let is_last = matches!(*state, State::Ending { .. });
                if *state == (State::Ending { is_due: false }) && failed.is_none() {
                    return None;
                }
                if !is_last {
                    *state = State::Idle;
                }
                is_last
            };
            let is_first = failed.is_none();
            failed = publish().err();
            if let Some(error) = failed.as_ref().filter(|_| is_first && !is_last) {
                tracing::warn!("the latest backups are stored, but can't be listed yet: {error}");
            }
            if is_last {
                return failed;
            }
            let goes_on = |state: &mut State| !matches!(state, State::Ending { .. });
            self.changed.wait_while_for(&mut self.state.lock(), goes_on, INTERVAL);
        }
    }
}

/// Ends the thread when it is dropped.
struct Ends<'a>(&'a Publisher);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        *state = State::Ending {
            is_due: *state == State::Due,
        };
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
        assert!(!publisher.is_told(), "nobody publishes for others");
        let (committed, published, times) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        let publish = || {
            published.store(committed.load(Ordering::SeqCst), Ordering::SeqCst);
            times.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        let commit = || {
            committed.fetch_add(1, Ordering::SeqCst);
            assert!(publisher.is_told());
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
        assert!(!publisher.is_told());
    }

    #[test]
    fn a_publication_that_failed_is_tried_again_and_its_error_is_told() {
        let publisher = Publisher::default();
        let (tries, fails) = (AtomicU32::new(0), AtomicU32::new(1));
        let publish = || match tries.fetch_add(1, Ordering::SeqCst) < fails.load(Ordering::SeqCst) {
            true => Err(Error::Interrupted),
            false => Ok(()),
        };
        let work = || {
            assert!(publisher.is_told());
            while tries.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
        };
        assert!(publisher.during(&publish, work).1.is_none());
        assert_eq!(tries.load(Ordering::SeqCst), 2);
        // Also if nothing else is committed.
        tries.store(0, Ordering::SeqCst);
        let work = || {
            assert!(publisher.is_told());
            while tries.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
        };
        assert!(publisher.during(&publish, work).1.is_none());
        fails.store(9, Ordering::SeqCst);
        assert!(publisher.during(&publish, || assert!(publisher.is_told())).1.is_some());
    }
}
