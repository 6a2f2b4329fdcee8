//! Sealers that many threads share.
//!
//! A compressor works in tables of half a megabyte, which fit into a processor's cache a few times at most. The threads
//! of a backup outnumber the processors, because most of them wait for a disk, and with a sealer each they would push
//! each other's tables out of the cache. So there are as many sealers as processors, and the one that was used last goes
//! out first.

use std::thread::available_parallelism;

use parking_lot::{Condvar, Mutex};

use super::{Compression, Sealer};
use crate::error::Error;

/// As many sealers as threads can run at once. May be used by many threads.
pub struct Sealers {
    most: usize,
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Default)]
struct State {
    /// Number of sealers in use.
    taken: usize,
    /// The others, the one that was used last at the end.
    idle: Vec<(Compression, Sealer)>,
}

impl Default for Sealers {
    fn default() -> Self {
        Self::new(available_parallelism().map_or(1, usize::from))
    }
}

impl Sealers {
    fn new(most: usize) -> Self {
        Self {
            most,
            state: Mutex::default(),
            returned: Condvar::new(),
        }
    }

    /// Waits for a sealer and calls `work` with it. `work` should do nothing but compute, because others wait meanwhile.
    pub fn with<T, E: From<Error>>(
        &self,
        compression: Compression,
        work: impl FnOnce(&mut Sealer) -> Result<T, E>,
    ) -> Result<T, E> {
        let _turn = self.turn();
        let idle = {
            let mut state = self.state.lock();
            let place = state.idle.iter().rposition(|(made_for, _)| *made_for == compression);
            place.map(|place| state.idle.remove(place).1)
        };
        let mut sealer = match idle {
            Some(sealer) => sealer,
            None => Sealer::new(compression)?,
        };
        let result = work(&mut sealer);
        let mut state = self.state.lock();
        state.idle.push((compression, sealer));
        // Guests may differ in compression: those that were used long ago go.
        let surplus = state.idle.len().saturating_sub(self.most);
        state.idle.drain(..surplus);
        result
    }

    fn turn(&self) -> Turn<'_> {
        let mut state = self.state.lock();
        self.returned.wait_while(&mut state, |state| state.taken >= self.most);
        state.taken += 1;
        Turn(self)
    }
}

/// The right to use a sealer; it ends when this is dropped, also by a panic.
struct Turn<'a>(&'a Sealers);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state.lock().taken -= 1;
        self.0.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::block::Hashing;

    #[test]
    fn no_more_seal_at_once_than_there_are_sealers() {
        let sealers = Sealers::new(2);
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let plain = vec![7; 1 << 20];
        let hashes = Hashing::Plain.block(&plain);
        let levels = [Compression::None, Compression::Zstd(1), Compression::Zstd(3)];
        std::thread::scope(|scope| {
            for thread in 0..6 {
                let (sealers, now, most, plain, hashes) = (&sealers, &now, &most, &plain, &hashes);
                scope.spawn(move || {
                    for turn in 0..20 {
                        let compression = levels[(thread + turn) % levels.len()];
                        let sealed = sealers.with::<_, Error>(compression, |sealer| {
                            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            let sealed = sealer.seal(plain, hashes);
                            now.fetch_sub(1, Ordering::SeqCst);
                            sealed
                        });
                        let is_small = sealed.expect("seals").stored_bytes() < plain.len() as u64;
                        assert_eq!(is_small, compression != Compression::None);
                    }
                });
            }
        });
        assert!(most.into_inner() <= 2);
        let state = sealers.state.into_inner();
        assert!(state.taken == 0 && (1..=2).contains(&state.idle.len()));
    }

    #[test]
    fn a_panic_gives_the_turn_back() {
        let sealers = Sealers::new(1);
        let panics = std::panic::AssertUnwindSafe(|| sealers.with::<(), Error>(Compression::None, |_| panic!("a bug")));
        assert!(std::panic::catch_unwind(panics).is_err());
        assert!(sealers.with::<_, Error>(Compression::None, |_| Ok(())).is_ok());
    }
}
