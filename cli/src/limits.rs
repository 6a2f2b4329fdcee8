//! Checks the limits of the system that the store needs. RocksDB ends the whole process without a useful message when it
//! can't start a thread, so they are checked first.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use parking_lot::Mutex;

use crate::context::threads;
use crate::exit::{Error, Result};
use crate::terminal::units;

/// Address space to ask for. On two processors a backup, restore or verify took up to 0.9 GB, most of it reserved and
/// never used.
const ADDRESS_SPACE_BYTES: u64 = 2 << 30;
/// Additional address space for each processor: stacks and blocks of its threads.
const PER_PROCESSOR_BYTES: u64 = 32 << 20;
/// Number of threads of the store: 16 to open its files, and a few more.
const THREADS: usize = 24;
/// Default stack size of C++ threads.
const STACK_BYTES: usize = 8 << 20;

/// Fails with the name of the limit if one is too low.
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

/// Starts as many threads as will be needed at once, and ends them.
fn start_threads(count: usize) -> Result<()> {
    let gate = Mutex::new(());
    let closed = gate.lock();
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
    fn checked_threads_are_started_and_joined() {
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
