//! Limits of the system under which the store can't work. RocksDB ends the whole process, without a word of what is missing,
//! when it can't start a thread; so they are asked for first.

use std::sync::{Mutex, PoisonError};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::context::threads;
use crate::exit::{Error, Result};
use crate::terminal::units;

/// On two processors a backup, restore or verify took up to 0.9 GB of address space; most of it is reserved and never used.
const ADDRESS_SPACE_BYTES: u64 = 2 << 30;
/// For each processor more: stacks and blocks of the threads that work for it.
const PER_PROCESSOR_BYTES: u64 = 32 << 20;
/// The store opens its files with 16 threads, and has a few for itself.
const THREADS: usize = 24;
/// What threads of C++ have by default.
const STACK_BYTES: usize = 8 << 20;

/// An error that names the limit, if there is one that is too low.
pub fn check() -> Result<()> {
    let need = ADDRESS_SPACE_BYTES + threads() as u64 * PER_PROCESSOR_BYTES;
    if let Ok((have, _)) = getrlimit(Resource::RLIMIT_AS)
        && have != RLIM_INFINITY
        && have < need
    {
        return Err(Error::Limit(format!(
            "the address space of this process is limited to {}, and vbk needs {} on this machine (most of it is never \
             used); raise it with `ulimit -v {}`, or LimitAS= of a systemd unit. To limit its memory, use MemoryMax=",
            units::size(have),
            units::size(need),
            need >> 10
        )));
    }
    start_threads(THREADS + 2 * threads())
}

/// Starts as many threads as will be needed at once, and ends them again.
fn start_threads(count: usize) -> Result<()> {
    let gate = Mutex::new(());
    let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        let mut started = Ok(());
        for number in 0..count {
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            let spawned = thread.spawn_scoped(scope, || drop(gate.lock()));
            if let Err(error) = spawned {
                started = Err(Error::Limit(format!(
                    "only {number} of {count} threads could be started: {error}; raise the limit of processes (`ulimit -u`, \
                     TasksMax= of a systemd unit, pids.max of a control group)"
                )));
                break;
            }
        }
        drop(closed);
        started
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_started_and_ended_again() {
        let count = || std::fs::read_dir("/proc/self/task").expect("lists").count();
        let before = count();
        start_threads(100).expect("starts");
        // A thread is in the list for a moment after it has ended. Other tests start and end a few at the same time.
        let begun = std::time::Instant::now();
        while count() >= before + 50 {
            assert!(
                begun.elapsed().as_secs() < 60,
                "{before} threads before, {} after",
                count()
            );
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
