//! A pool of named threads that share one task and end together.
//!
//! The first error wins: it is stored before the stop flag is set, so a thread that fails only because it was stopped
//! never hides the reason. All threads are joined before a call returns, and a panic of one is passed on to the caller.
//!
//! A pool that gets fewer threads than it asked for works with those it has, and says so in the log. A pool that gets
//! none returns an error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, Scope};

use parking_lot::Mutex;

use crate::error::Error;

/// Calls `work` in `threads` threads named `NAME-0`, `NAME-1` and so on, and waits for all of them. `work` gets the
/// thread's number, and the flag that the first error sets; it should return soon once the flag is set.
pub fn run<E>(name: &str, threads: usize, work: &(dyn Fn(usize, &AtomicBool) -> Result<(), E> + Sync)) -> Result<(), E>
where
    E: From<Error> + Send,
{
    let failure = Failure::default();
    std::thread::scope(|scope| {
        start(scope, name, threads, &failure, |number| {
            let failure = &failure;
            move || work(number, &failure.stop)
        });
    });
    failure.into_result()
}

/// Calls `produce` in the caller's thread and `work` in `threads` threads, for each item that `produce` sends. At most
/// `capacity` items wait. Returns the result of `produce` once all items are done.
///
/// `send` returns `false` once a thread has failed. `produce` should return then, and its result no longer counts. When
/// `produce` itself fails, items that still wait are dropped.
pub fn feed<I, T, E>(
    name: &str,
    threads: usize,
    capacity: usize,
    produce: impl FnOnce(&mut dyn FnMut(I) -> bool) -> Result<T, E>,
    work: &(dyn Fn(I) -> Result<(), E> + Sync),
) -> Result<T, E>
where
    I: Send,
    E: From<Error> + Send,
{
    let failure = Failure::default();
    let (sender, receiver) = crossbeam_channel::bounded::<I>(capacity);
    let produced = std::thread::scope(|scope| {
        start(scope, name, threads, &failure, |_| {
            let (receiver, failure) = (receiver.clone(), &failure);
            move || receiver.iter().take_while(|_| !failure.is_stopped()).try_for_each(work)
        });
        // The threads hold clones; with this one gone, `send` notices that all threads have ended.
        drop(receiver);
        let produced = produce(&mut |item| !failure.is_stopped() && sender.send(item).is_ok());
        drop(sender);
        produced.map_err(|error| failure.set(error)).ok()
    });
    failure.into_result()?;
    Ok(produced.expect("without an error there is a result"))
}

/// Starts the threads of a pool; `make` returns the work of the thread with a number.
fn start<'scope, 'env, E, W>(
    scope: &'scope Scope<'scope, 'env>,
    name: &str,
    threads: usize,
    failure: &'scope Failure<E>,
    make: impl Fn(usize) -> W,
) where
    E: From<Error> + Send + 'scope,
    W: FnOnce() -> Result<(), E> + Send + 'scope,
{
    let threads = threads.max(1);
    for number in 0..threads {
        let work = make(number);
        let thread = Builder::new().name(format!("{name}-{number}"));
        let started = thread.spawn_scoped(scope, move || work().unwrap_or_else(|error| failure.set(error)));
        match started {
            Ok(_) => {}
            Err(error) if number == 0 => {
                return failure.set(Error::io("start thread", format!("{name}-0"))(error).into());
            }
            Err(error) => {
                tracing::warn!("only {number} of {threads} threads {name} could be started: {error}");
                return;
            }
        }
    }
}

/// The first error of a pool, and the flag that ends it.
struct Failure<E> {
    first: Mutex<Option<E>>,
    stop: AtomicBool,
}

impl<E> Default for Failure<E> {
    fn default() -> Self {
        Self {
            first: Mutex::new(None),
            stop: AtomicBool::new(false),
        }
    }
}

impl<E> Failure<E> {
    fn set(&self, error: E) {
        // Before the flag: threads that are stopped by it may return errors too, and theirs must not win.
        self.first.lock().get_or_insert(error);
        self.stop.store(true, Ordering::SeqCst);
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn into_result(self) -> Result<(), E> {
        match self.first.into_inner() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::error::Result;

    /// An error that no stopped thread returns.
    fn broken() -> Error {
        Error::NotARepository { path: "x".into() }
    }

    #[test]
    fn every_thread_has_a_number_and_a_name() {
        let seen: Mutex<BTreeSet<(usize, String)>> = Mutex::default();
        let note = |number, _: &AtomicBool| {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            seen.lock().insert((number, name));
            Ok::<(), Error>(())
        };
        run("pool", 3, &note).expect("runs");
        let expected: BTreeSet<_> = (0..3).map(|number| (number, format!("pool-{number}"))).collect();
        assert_eq!(seen.into_inner(), expected);
    }

    #[test]
    fn the_first_error_stops_the_others_and_wins() {
        let work = |number, stop: &AtomicBool| {
            if number == 1 {
                return Err(broken());
            }
            while !stop.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            Err(Error::Interrupted)
        };
        assert!(matches!(run("pool", 4, &work), Err(Error::NotARepository { .. })));
    }

    #[test]
    fn every_item_is_worked_on_once() {
        let sum = AtomicU64::new(0);
        let add = |item: u64| {
            sum.fetch_add(item, Ordering::SeqCst);
            Ok::<(), Error>(())
        };
        let sent = feed(
            "pool",
            3,
            2,
            |send| Ok((1..=100).filter(|&item| send(item)).count()),
            &add,
        );
        assert_eq!((sent.expect("runs"), sum.into_inner()), (100, 5050));
    }

    #[test]
    fn a_failed_thread_ends_a_producer_that_waits_for_room() {
        let produce = |send: &mut dyn FnMut(u64) -> bool| match (0..).all(send) {
            true => Ok(()),
            false => Err(Error::Interrupted),
        };
        let work = |item| if item < 5 { Ok(()) } else { Err(broken()) };
        assert!(matches!(
            feed("pool", 2, 1, produce, &work),
            Err(Error::NotARepository { .. })
        ));
    }

    #[test]
    fn a_failed_producer_drops_what_still_waits() {
        let done = AtomicU64::new(0);
        let has_failed = AtomicBool::new(false);
        let produce = |send: &mut dyn FnMut(u64) -> bool| {
            (0..4).for_each(|item| assert!(send(item)));
            has_failed.store(true, Ordering::SeqCst);
            Err::<(), Error>(Error::Interrupted)
        };
        let work = |_| {
            // Holds the first item until the producer has failed and the pool has been told.
            while !has_failed.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
            done.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        let result: Result<()> = feed("pool", 1, 4, produce, &work);
        assert!(matches!(result, Err(Error::Interrupted)));
        assert!(done.into_inner() <= 1);
    }
}
