//! A token bucket shared by the threads that read one disk: a read starts when enough time has passed to pay for the
//! bytes of the reads before it.
//!
//! # Limits
//!
//! A read starts while the credit is not negative. Unused time is credited up to `CREDIT_SECS`, because threads wake
//! late. What they lose beyond that on a busy machine while they wait for their turn is repaid too, but slowly: at
//! `REPAY` of the rate, up to `OWED_SECS`. So one second sees at most the rate times (1 s + repayment + credit + one
//! read). With reads of [`Bucket::piece_bytes`] that is 1.085: never above 110 %, and in the long run the rate itself.
//! A pause in which no thread wanted to read is not made up for.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Unused time that is credited at most, in seconds.
const CREDIT_SECS: f64 = 0.03;
/// Sum of credit and one read that may be added to a second.
const BURST_SECS: f64 = 0.055;
/// Credit that remains when one read takes longer than that: a thread wakes a little late even on an idle machine.
const LEAST_CREDIT_SECS: f64 = 0.005;
/// Longest time that one read should take.
const PIECE_SECS: f64 = 0.025;
/// Share of the rate at which time lost by waking late is repaid.
const REPAY: f64 = 0.03;
/// Lost time that is repaid at most.
const OWED_SECS: f64 = 0.3;
/// Size of the smallest read: the alignment that O_DIRECT requires.
const LEAST_PIECE_BYTES: u64 = 4096;
/// Interval at which a waiting thread checks whether to stop.
const LOOK: Duration = Duration::from_millis(20);

/// Paces reads to a rate that can be changed at any time. Shared by threads.
#[derive(Debug)]
pub struct Bucket {
    start: Instant,
    /// Held by the one thread that waits for time; the others wait for that thread. Otherwise all would wake for each
    /// read.
    turn: Mutex<()>,
    level: Mutex<Level>,
    changed: Condvar,
}

impl Bucket {
    /// Makes a bucket for this many bytes per second; with `None` it lets everything pass.
    pub fn new(bytes_per_sec: Option<u64>) -> Self {
        Self {
            start: Instant::now(),
            turn: Mutex::default(),
            level: Mutex::new(Level::new(bytes_per_sec)),
            changed: Condvar::new(),
        }
    }

    /// Changes the rate, also for a thread that is waiting.
    pub fn set(&self, bytes_per_sec: Option<u64>) {
        self.level.lock().set(self.start.elapsed(), bytes_per_sec);
        self.changed.notify_all();
    }

    /// Returns the present rate.
    pub fn bytes_per_sec(&self) -> Option<u64> {
        self.level.lock().rate
    }

    /// Returns the bytes taken since the bucket was made.
    pub fn taken_bytes(&self) -> u64 {
        self.level.lock().taken_bytes
    }

    /// Returns the number of bytes to take at once for smooth reading: a power of two from 4 KiB up, at most 25 ms of
    /// the rate.
    pub fn piece_bytes(&self) -> usize {
        match self.level.lock().rate {
            None => usize::MAX,
            Some(rate) => {
                let most = ((rate as f64 * PIECE_SECS) as u64).max(LEAST_PIECE_BYTES);
                // The greatest power of two not above it.
                1_usize << most.ilog2()
            }
        }
    }

    /// Waits until this many bytes may be read; returns false if `stop` returns true first. `stop` is called every 20
    /// ms.
    pub fn take(&self, bytes: u64, stop: &dyn Fn() -> bool) -> bool {
        let asked = self.start.elapsed();
        let _turn = self.turn.lock();
        let mut level = self.level.lock();
        loop {
            if stop() {
                return false;
            }
            let Some(wait) = level.take(asked, self.start.elapsed(), bytes) else {
                return true;
            };
            self.changed.wait_for(&mut level, wait.min(LOOK));
        }
    }
}

/// The arithmetic of a bucket, without threads. Times are relative to its start.
#[derive(Debug)]
struct Level {
    rate: Option<u64>,
    /// Negative while the last read is being paid for.
    credit_bytes: f64,
    /// Bytes lost by waking late, which are repaid slowly.
    owed_bytes: f64,
    at: Duration,
    taken_bytes: u64,
}

impl Level {
    fn new(rate: Option<u64>) -> Self {
        Self {
            rate,
            credit_bytes: 0.0,
            owed_bytes: 0.0,
            at: Duration::ZERO,
            taken_bytes: 0,
        }
    }

    fn set(&mut self, now: Duration, rate: Option<u64>) {
        self.refill(now, now, CREDIT_SECS);
        // A debt in bytes stays and is paid at the new rate; credit from a high rate would be a burst at a low one.
        self.credit_bytes = self.credit_bytes.min(0.0);
        self.owed_bytes = 0.0;
        self.rate = rate;
    }

    /// Brings the level up to date, for a thread that has been waiting since `asked`.
    fn refill(&mut self, asked: Duration, now: Duration, most_secs: f64) {
        let rate = self.rate.map_or(0.0, |rate| rate as f64);
        let gain = now.saturating_sub(self.at).as_secs_f64() * rate;
        let repaid = (gain * REPAY).min(self.owed_bytes);
        self.owed_bytes -= repaid;
        self.credit_bytes += gain + repaid;
        let excess = (self.credit_bytes - most_secs * rate).max(0.0);
        self.credit_bytes -= excess;
        // Of the excess, only what accrued while the thread waited counts as lost.
        let lost = excess.min(now.saturating_sub(asked).as_secs_f64() * rate);
        self.owed_bytes = (self.owed_bytes + lost).min(OWED_SECS * rate);
        self.at = self.at.max(now);
    }

    /// Takes bytes; otherwise returns how long to wait before the next attempt. `asked` is the time of the first
    /// attempt.
    fn take(&mut self, asked: Duration, now: Duration, bytes: u64) -> Option<Duration> {
        let Some(rate) = self.rate.map(|rate| rate.max(1) as f64) else {
            self.at = self.at.max(now);
            self.credit_bytes = 0.0;
            self.taken_bytes += bytes;
            return None;
        };
        let read_secs = bytes as f64 / rate;
        self.refill(
            asked,
            now,
            (BURST_SECS - read_secs).clamp(LEAST_CREDIT_SECS, CREDIT_SECS),
        );
        if self.credit_bytes >= 0.0 {
            self.credit_bytes -= bytes as f64;
            self.taken_bytes += bytes;
            return None;
        }
        // One minute is the longest wait: the rate can be 1 byte per second, and its debt years.
        Some(Duration::from_secs_f64((-self.credit_bytes / rate).min(60.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    const MB: u64 = 1_000_000;

    /// Reads of `bytes` for some seconds on a clock of its own, by a thread that wakes up to `late_ms` too late, and
    /// now and then by 100 ms. Returns the start of each read.
    fn simulate(level: &mut Level, from: Duration, secs: u64, bytes: u64, late_ms: u64, hiccup_every: u64) -> Vec<f64> {
        let (mut now, end) = (from, from + Duration::from_secs(secs));
        let mut begun = Vec::new();
        let mut random = 1_u64;
        let (mut asked, mut waits) = (now, 0_u64);
        while now < end {
            match level.take(asked, now, bytes) {
                None => {
                    begun.push(now.as_secs_f64());
                    // The read itself, and the work on it.
                    now += Duration::from_micros(50);
                    asked = now;
                }
                Some(wait) => {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    now += wait.min(LOOK) + Duration::from_micros((random >> 33) % (late_ms * 1000 + 1));
                    waits += 1;
                    if waits % hiccup_every == 0 {
                        now += Duration::from_millis(100);
                    }
                }
            }
        }
        begun
    }

    /// The most bytes of any one second.
    fn worst_second(begun: &[f64], bytes: u64) -> u64 {
        let in_a_second = |first: usize| begun[first..].iter().take_while(|at| **at < begun[first] + 1.0).count();
        (0..begun.len()).map(in_a_second).max().unwrap_or(0) as u64 * bytes
    }

    #[test]
    fn the_rate_is_kept_within_three_percent_and_no_second_exceeds_110_percent() {
        const NO_HICCUPS: u64 = u64::MAX;
        for (rate, bytes, late_ms, hiccup_every) in [
            (5 * MB, 1 << 20, 4, NO_HICCUPS),
            (5 * MB, 128 << 10, 15, NO_HICCUPS),
            (60 * MB, 1 << 20, 15, NO_HICCUPS),
            (120 * MB, 1 << 20, 25, NO_HICCUPS),
            (2000 * MB, 1 << 20, 30, NO_HICCUPS),
            (2000 * MB, 16 << 20, 25, NO_HICCUPS),
            // Without repayment these would lose more than allowed.
            (500 * MB, 1 << 20, 10, 400),
            (60 * MB, 1 << 20, 2, 100),
        ] {
            // The time before the first read must not be made up for.
            let begun = simulate(
                &mut Level::new(Some(rate)),
                Duration::from_secs(1000),
                10,
                bytes,
                late_ms,
                hiccup_every,
            );
            let total = begun.len() as u64 * bytes;
            let wanted = 10 * rate;
            assert!(
                total.abs_diff(wanted) * 100 <= wanted * 3,
                "{rate} in pieces of {bytes}: {total} in 10 s"
            );
            let worst = worst_second(&begun, bytes);
            assert!(
                worst * 100 <= rate * 110,
                "{rate} in pieces of {bytes}: {worst} in a second"
            );
        }
    }

    #[test]
    fn unused_bandwidth_is_not_saved_up() {
        let rate = 60 * MB;
        let mut level = Level::new(Some(rate));
        simulate(&mut level, Duration::ZERO, 2, 1 << 20, 1, u64::MAX);
        let begun = simulate(&mut level, Duration::from_secs(600), 2, 1 << 20, 1, u64::MAX);
        assert!(worst_second(&begun, 1 << 20) * 100 <= rate * 110);
    }

    #[test]
    fn a_new_rate_applies_from_the_next_read() {
        let mut level = Level::new(Some(1));
        assert_eq!(level.take(Duration::ZERO, Duration::ZERO, 1 << 20), None);
        assert!(
            level
                .take(Duration::ZERO, Duration::ZERO, 1)
                .is_some_and(|wait| wait >= Duration::from_secs(60))
        );
        level.set(Duration::from_secs(1), Some(100 << 20));
        let wait = level
            .take(Duration::from_secs(1), Duration::from_secs(1), 1)
            .expect("the first read is paid for");
        assert!(wait <= Duration::from_millis(11), "{wait:?}");
        level.set(Duration::from_secs(2), Some(1 << 20));
        assert_eq!(
            level.take(Duration::from_secs(2), Duration::from_secs(2), 1 << 20),
            None
        );
        assert!(
            level
                .take(Duration::from_millis(2900), Duration::from_millis(2900), 1)
                .is_some()
        );
        level.set(Duration::from_secs(3), None);
        assert_eq!(
            level.take(Duration::from_secs(3), Duration::from_secs(3), u64::MAX / 2),
            None
        );
    }

    #[test]
    fn pieces_are_25_milliseconds_at_most() {
        let of = |rate| Bucket::new(rate).piece_bytes();
        assert_eq!(of(None), usize::MAX);
        assert_eq!(of(Some(5 * MB)), 64 << 10);
        assert_eq!(of(Some(60 * MB)), 1 << 20);
        assert_eq!(of(Some(1)), 4096);
    }

    #[test]
    fn many_threads_are_never_faster_than_the_limit_allows() {
        let (rate, bytes) = (40 << 20, 1 << 20);
        let bucket = Bucket::new(Some(rate));
        let clock = Instant::now();
        let taken = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while clock.elapsed() < Duration::from_millis(1500) {
                        assert!(bucket.take(bytes, &|| false));
                        taken.fetch_add(bytes, Ordering::SeqCst);
                    }
                });
            }
        });
        // The credit is zero at first, and each read but the last is paid for.
        let allowed = clock.elapsed().as_secs_f64() * rate as f64 + bytes as f64;
        let taken = taken.load(Ordering::SeqCst);
        assert!(taken as f64 <= allowed, "{taken} of {allowed}");
        assert_eq!(bucket.taken_bytes(), taken);
    }

    #[test]
    fn a_waiting_reader_reacts_to_cancel_and_to_a_new_rate() {
        let bucket = Bucket::new(Some(1));
        let stop = AtomicBool::new(false);
        assert!(bucket.take(1 << 30, &|| false));
        std::thread::scope(|scope| {
            // Both would wait for 34 years.
            let waiting: Vec<_> = (0..2)
                .map(|_| scope.spawn(|| bucket.take(1, &|| stop.load(Ordering::SeqCst))))
                .collect();
            std::thread::sleep(Duration::from_millis(50));
            stop.store(true, Ordering::SeqCst);
            assert!(waiting.into_iter().all(|thread| !thread.join().expect("ends")));
            let waiting = scope.spawn(|| bucket.take(1, &|| false));
            std::thread::sleep(Duration::from_millis(50));
            bucket.set(None);
            assert!(waiting.join().expect("ends"));
        });
    }
}
