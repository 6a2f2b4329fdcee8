//! Sealers that many threads share.
//!
//! A compressor works in tables of half a megabyte, which fit into a processor's cache a few times at most. The threads
//! of a backup outnumber the processors, because most of them wait for a disk, and with a sealer each they would push
//! each other's tables out of the cache. So there are as many sealers as processors, and the one that was used last goes
//! out first.

use std::thread::available_parallelism;

use parking_lot::Mutex;

use super::{Compression, Sealer};
use crate::error::Error;
use crate::turns::Turns;

/// As many sealers as threads can run at once. May be used by many threads.
pub struct Sealers {
    most: usize,
    turns: Turns,
    /// Those that are not in use, the one that was used last at the end.
    idle: Mutex<Vec<(Compression, Sealer)>>,
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
            turns: Turns::new(most),
            idle: Mutex::default(),
        }
    }

    /// Waits for a sealer and calls `work` with it. `work` should do nothing but compute, because others wait meanwhile.
    pub fn with<T, E: From<Error>>(
        &self,
        compression: Compression,
        work: impl FnOnce(&mut Sealer) -> Result<T, E>,
    ) -> Result<T, E> {
        let _turn = self.turns.take();
        let idle = {
            let mut idle = self.idle.lock();
            let place = idle.iter().rposition(|(made_for, _)| *made_for == compression);
            place.map(|place| idle.remove(place).1)
        };
        let mut sealer = match idle {
            Some(sealer) => sealer,
            None => Sealer::new(compression)?,
        };
        let result = work(&mut sealer);
        let mut idle = self.idle.lock();
        idle.push((compression, sealer));
        // Guests may differ in compression: those that were used long ago go.
        let surplus = idle.len().saturating_sub(self.most);
        idle.drain(..surplus);
        result
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
        assert!(sealers.turns.free() == 2 && (1..=2).contains(&sealers.idle.into_inner().len()));
    }

    #[test]
    fn a_panic_gives_the_turn_back() {
        let sealers = Sealers::new(1);
        let panics = std::panic::AssertUnwindSafe(|| sealers.with::<(), Error>(Compression::None, |_| panic!("a bug")));
        assert!(std::panic::catch_unwind(panics).is_err());
        assert!(sealers.with::<_, Error>(Compression::None, |_| Ok(())).is_ok());
    }
}
