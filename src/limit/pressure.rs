//! Back-off: reads slower than the limit allows while other processes wait for their disks.
//!
//! Once a second the load of the host is checked. Under high strain the rate is cut by `CUT`, down to `LEAST` of the
//! limit; under low strain it grows by `GROWTH` of the limit. Two measures count:
//!
//! - **Stall** (Linux PSI, Documentation/accounting/psi.rst): the share of time in which some task waited for I/O. Our
//!   own reads are such waits, on a slow disk most of the time, so their share is subtracted (`stall_of_others`). PSI
//!   describes only the host as a whole, so it counts only while the disks that we read from are busy too.
//! - **Latency** of the disk that is backed up, which is what the guest feels. If a snapshot is read, the counters of
//!   its origin contain only the guest's requests. If the disk itself is read, they also contain ours, which are reads,
//!   so only writes count.
//!
//! A measure that the kernel does not provide is ignored.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::disk::source;
use crate::host::device::DeviceNumber;

/// Factor applied to the rate under high strain.
const CUT: f64 = 0.7;
/// Share of the limit that is restored in each second of low strain: from the least to all in 18 s.
const GROWTH: f64 = 0.05;
/// Share of the limit that always remains: a backup that never ends helps nobody.
const LEAST: f64 = 0.1;
/// Number of seconds with reads whose median is the speed of a disk without a limit. A single second may have been
/// spent waiting for the store, or reading unallocated space.
const SECONDS: usize = 15;
/// Minimum of the speed assumed for a disk without a limit: `LEAST` of it reads 1 TB in 56 hours.
const LEAST_CEILING: u64 = 50_000_000;
/// Number of requests below which a latency says nothing.
const ENOUGH_REQUESTS: u64 = 5;
/// Share of time with our own reads in flight above which the stall of others can't be determined.
const MOST_OWN: f64 = 0.8;
/// Share of time below which a disk is not busy enough to be the cause of the stall.
const BUSY: f64 = 0.5;

/// Thresholds of the back-off.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Backoff {
    /// No back-off.
    Off,
    /// Back off when one of these is exceeded for a second.
    Above {
        /// Share of time in which processes other than vbk wait for I/O: 0.2 for 20 %.
        stall: f64,
        /// Time that a request of the disk takes, in milliseconds.
        latency_ms: f64,
    },
}

impl Default for Backoff {
    /// 20 %: users notice a host whose tasks wait one second in five, while a healthy busy host waits for 5 to 10 %. 30
    /// ms: a spinning disk answers within 10 to 15 ms as long as it keeps up.
    fn default() -> Self {
        Self::Above {
            stall: 0.2,
            latency_ms: 30.0,
        }
    }
}

/// Measures of one second, as far as the kernel provides them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Second {
    /// Share of time in which other processes waited for I/O.
    pub stall: Option<f64>,
    /// Share of time in which the underlying disks were busy.
    pub busy: Option<f64>,
    /// Average time of the disk's requests.
    pub latency_ms: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strain {
    High,
    /// Between the thresholds: the rate stays.
    Medium,
    Low,
}

impl Backoff {
    /// Judges one second.
    pub(super) fn judge(self, second: &Second) -> Strain {
        let Self::Above { stall, latency_ms } = self else {
            return Strain::Low;
        };
        let ours = second.busy.is_none_or(|busy| busy >= BUSY);
        let stalled = second.stall.filter(|_| ours).unwrap_or(0.0) / stall;
        let slow = second.latency_ms.unwrap_or(0.0) / latency_ms;
        // Low only from half of the threshold down, or the rate would swing around it.
        match stalled.max(slow) {
            worst if worst > 1.0 => Strain::High,
            worst if worst > 0.5 => Strain::Medium,
            _ => Strain::Low,
        }
    }
}

/// Computes the share of time in which other processes waited, from the shares in which any process and in which vbk
/// waited. The two are treated as independent: any = 1 - (1 - others)(1 - own).
pub(super) fn stall_of_others(any: f64, own: f64) -> Option<f64> {
    (own <= MOST_OWN).then(|| ((any - own) / (1.0 - own)).clamp(0.0, 1.0))
}

/// Controls how much of one disk's limit is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Governor {
    share: f64,
    /// Speed of a disk without a limit before the back-off began.
    ceiling_bytes_per_sec: Option<u64>,
    /// Bytes read in the latest seconds without back-off, and the number of such seconds in all.
    recent: [u64; SECONDS],
    seconds: usize,
}

impl Default for Governor {
    fn default() -> Self {
        Self {
            share: 1.0,
            ceiling_bytes_per_sec: None,
            recent: [0; SECONDS],
            seconds: 0,
        }
    }
}

impl Governor {
    /// Returns the rate for the next second, in bytes per second. `read` is the rate of the last second.
    pub(super) fn next(&mut self, strain: Strain, limit: Option<u64>, read: u64) -> Option<u64> {
        if self.share >= 1.0 && read > 0 {
            self.recent[self.seconds % SECONDS] = read;
            self.seconds += 1;
        }
        self.share = match strain {
            Strain::High => (self.share * CUT).max(LEAST),
            Strain::Medium => self.share,
            Strain::Low => (self.share + GROWTH).min(1.0),
        };
        if self.share >= 1.0 {
            self.ceiling_bytes_per_sec = None;
        } else {
            let usual = self.usual();
            self.ceiling_bytes_per_sec.get_or_insert(usual.max(LEAST_CEILING));
        }
        self.now(limit)
    }

    fn usual(&self) -> u64 {
        let mut known = self.recent;
        let known = &mut known[..self.seconds.min(SECONDS)];
        known.sort_unstable();
        known.get(known.len() / 2).copied().unwrap_or(0)
    }

    /// Returns the present rate for a limit.
    pub(super) fn now(&self, limit: Option<u64>) -> Option<u64> {
        let ceiling = limit.or(self.ceiling_bytes_per_sec)?;
        Some(if self.share >= 1.0 {
            ceiling
        } else {
            (ceiling as f64 * self.share) as u64
        })
    }

    /// Returns the share of the limit that is in use.
    pub(super) fn share(&self) -> f64 {
        self.share
    }
}

/// Counters of a block device (Documentation/block/stat.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct DiskCounters {
    reads: u64,
    read_ms: u64,
    writes: u64,
    write_ms: u64,
    busy_ms: u64,
}

impl DiskCounters {
    fn parse(text: &str) -> Option<Self> {
        let numbers: Vec<u64> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let at = |index: usize| numbers.get(index).copied();
        Some(Self {
            reads: at(0)?,
            read_ms: at(3)?,
            writes: at(4)?,
            write_ms: at(7)?,
            busy_ms: at(9)?,
        })
    }

    fn of(device: DeviceNumber) -> Option<Self> {
        Self::parse(&device.attribute("stat")?)
    }

    /// Returns the milliseconds per request since earlier counters.
    fn latency_ms(&self, before: &Self, writes_only: bool) -> Option<f64> {
        let mut requests = self.writes.saturating_sub(before.writes);
        let mut ms = self.write_ms.saturating_sub(before.write_ms);
        if !writes_only {
            requests += self.reads.saturating_sub(before.reads);
            ms += self.read_ms.saturating_sub(before.read_ms);
        }
        (requests >= ENOUGH_REQUESTS).then(|| ms as f64 / requests as f64)
    }
}

/// Observes one disk.
pub(super) struct DiskWatch {
    /// Number of the disk, if it is a block device.
    device: Option<DeviceNumber>,
    writes_only: bool,
    leaves: Vec<DeviceNumber>,
    counters: Option<DiskCounters>,
    leaf_counters: Vec<Option<DiskCounters>>,
}

impl DiskWatch {
    /// Observes a disk that is backed up by reading itself or a snapshot.
    pub(super) fn new(origin: &Path, read: &Path) -> Self {
        let device = DeviceNumber::of_block_device(origin);
        let mut watch = Self {
            device,
            writes_only: DeviceNumber::of_block_device(read) == device,
            leaves: DeviceNumber::beneath(origin).map_or_else(Vec::new, DeviceNumber::leaves),
            counters: None,
            leaf_counters: Vec::new(),
        };
        watch.look(Duration::from_secs(1));
        watch
    }

    /// Returns the busy share of the underlying disks and the latency in milliseconds since the last look.
    pub(super) fn look(&mut self, elapsed: Duration) -> (Option<f64>, Option<f64>) {
        let counters = self.device.and_then(DiskCounters::of);
        let latency = match (&counters, &self.counters) {
            (Some(now), Some(before)) => now.latency_ms(before, self.writes_only),
            _ => None,
        };
        let leaf_counters: Vec<_> = self.leaves.iter().map(|leaf| DiskCounters::of(*leaf)).collect();
        let busy = leaf_counters
            .iter()
            .zip(&self.leaf_counters)
            .filter_map(|(now, before)| {
                let ms = now.as_ref()?.busy_ms.saturating_sub(before.as_ref()?.busy_ms);
                Some(ms as f64 / 1000.0 / elapsed.as_secs_f64().max(1e-3))
            });
        let busy = busy.reduce(f64::max);
        self.counters = counters;
        self.leaf_counters = leaf_counters;
        (busy, latency)
    }
}

/// Observes the host as a whole.
pub(super) struct HostWatch {
    /// Pressure file of our own cgroup, if there is one.
    own: Option<PathBuf>,
    last: HostCounters,
}

#[derive(Clone, Copy)]
struct HostCounters {
    at: Instant,
    any: Option<Duration>,
    own_cgroup: Option<Duration>,
    own_reads: Duration,
}

/// Pressure file of the host. It exists from Linux 4.20 on, unless PSI is compiled out or off (`psi=0`).
const HOST_PRESSURE: &str = "/proc/pressure/io";

impl HostWatch {
    pub(super) fn new() -> Self {
        let own = super::kernel::own_unified_group().map(|group| group.join("io.pressure"));
        // The root's file counts all processes; there it has this other name, and equals the host's.
        let own = own.filter(|path| path.with_file_name("cgroup.type").exists());
        Self {
            last: HostCounters::now(own.as_deref()),
            own,
        }
    }

    /// Returns the time since the last look, and the share of it in which other processes waited.
    pub(super) fn look(&mut self) -> (Duration, Option<f64>) {
        let before = std::mem::replace(&mut self.last, HostCounters::now(self.own.as_deref()));
        let elapsed = self.last.at - before.at;
        let share = |now: Option<Duration>, before: Option<Duration>| {
            let waited = now?.saturating_sub(before?).as_secs_f64();
            Some((waited / elapsed.as_secs_f64().max(1e-3)).min(1.0))
        };
        let stall = share(self.last.any, before.any).and_then(|any| {
            let reads = share(Some(self.last.own_reads), Some(before.own_reads)).unwrap_or(0.0);
            // The cgroup also counts the waits of the store, but may not exist.
            let own = share(self.last.own_cgroup, before.own_cgroup).unwrap_or(0.0);
            stall_of_others(any, own.max(reads))
        });
        (elapsed, stall)
    }
}

impl HostCounters {
    fn now(own: Option<&Path>) -> Self {
        Self {
            at: Instant::now(),
            any: stalled(Path::new(HOST_PRESSURE)),
            own_cgroup: own.and_then(stalled),
            own_reads: source::time_reading(),
        }
    }
}

/// Returns the time for which some task has waited, from a file of PSI.
fn stalled(path: &Path) -> Option<Duration> {
    parse_stalled(&fs::read_to_string(path).ok()?)
}

/// Parses `some avg10=11.67 avg60=3.01 avg300=1.27 total=1461110757`, the total in microseconds.
fn parse_stalled(text: &str) -> Option<Duration> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = some.split(' ').find_map(|word| word.strip_prefix("total="))?;
    total.parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(stall: f64, busy: f64, latency_ms: f64) -> Second {
        Second {
            stall: Some(stall),
            busy: Some(busy),
            latency_ms: Some(latency_ms),
        }
    }

    #[test]
    fn a_second_is_judged_by_the_worse_of_stall_and_latency() {
        let backoff = Backoff::default();
        for (second, strain) in [
            (second(0.0, 0.0, 0.0), Strain::Low),
            (second(0.1, 1.0, 15.0), Strain::Low),
            (second(0.15, 1.0, 1.0), Strain::Medium),
            (second(0.25, 1.0, 1.0), Strain::High),
            (second(0.0, 1.0, 31.0), Strain::High),
            // The host waits, but for another disk.
            (second(0.9, 0.3, 1.0), Strain::Low),
            (
                Second {
                    stall: Some(0.9),
                    ..Second::default()
                },
                Strain::High,
            ),
            (Second::default(), Strain::Low),
        ] {
            assert_eq!(backoff.judge(&second), strain, "{second:?}");
        }
        assert_eq!(Backoff::Off.judge(&second(1.0, 1.0, 1000.0)), Strain::Low);
    }

    #[test]
    fn own_reads_alone_are_not_pressure() {
        assert_eq!(stall_of_others(0.6, 0.6), Some(0.0));
        assert_eq!(stall_of_others(0.5, 0.6), Some(0.0));
        assert_eq!(stall_of_others(0.3, 0.0), Some(0.3));
        let others = stall_of_others(0.8, 0.6).expect("is known");
        assert!((others - 0.5).abs() < 1e-9, "{others}");
        assert_eq!(stall_of_others(1.0, 0.95), None);
    }

    #[test]
    fn the_rate_falls_fast_to_a_tenth_and_recovers() {
        let mut governor = Governor::default();
        let limit = Some(100_000_000);
        assert_eq!(governor.next(Strain::Low, limit, 0), limit);
        assert_eq!(governor.next(Strain::High, limit, 0), Some(70_000_000));
        assert_eq!(governor.next(Strain::Medium, limit, 0), Some(70_000_000));
        for _ in 0..20 {
            governor.next(Strain::High, limit, 0);
        }
        assert_eq!(governor.next(Strain::High, limit, 0), Some(10_000_000));
        for _ in 0..18 {
            governor.next(Strain::Low, limit, 0);
        }
        assert_eq!(governor.next(Strain::Low, limit, 0), limit);
    }

    #[test]
    fn an_unlimited_disk_backs_off_from_its_measured_rate() {
        let mut governor = Governor::default();
        assert_eq!(governor.next(Strain::Low, None, 500_000_000), None);
        assert_eq!(governor.next(Strain::High, None, 500_000_000), Some(350_000_000));
        assert_eq!(governor.next(Strain::Low, None, 350_000_000), Some(375_000_000));
        for _ in 0..6 {
            governor.next(Strain::Low, None, 0);
        }
        assert_eq!(governor.next(Strain::Low, None, 0), None);
    }

    #[test]
    fn one_slow_second_does_not_slow_a_backup_down() {
        let backs_off = |reads: &[u64]| {
            let mut governor = Governor::default();
            let (last, before) = reads.split_last().expect("seconds");
            for read in before {
                assert_eq!(governor.next(Strain::Low, None, *read), None);
            }
            governor.next(Strain::High, None, *last)
        };
        // The store was slow, or the disk was unallocated there.
        for odd in [0, 1, 3_000_000_000] {
            assert_eq!(
                backs_off(&[200_000_000, 200_000_000, 200_000_000, odd]),
                Some(140_000_000)
            );
        }
        for slow in [0, 1_000_000] {
            assert_eq!(backs_off(&[slow; 20]), Some(35_000_000));
        }
        let mut governor = Governor::default();
        for _ in 0..100 {
            governor.next(Strain::High, None, 0);
        }
        assert_eq!(governor.next(Strain::Medium, None, 0), Some(5_000_000));
    }

    #[test]
    fn kernel_pressure_files_are_parsed_and_others_refused() {
        let some = "some avg10=11.67 avg60=3.01 avg300=1.27 total=1461110757\nfull avg10=0.00 total=5\n";
        assert_eq!(parse_stalled(some), Some(Duration::from_micros(1_461_110_757)));
        for bad in ["", "full avg10=0 total=5", "some avg10=1", "some total=x"] {
            assert_eq!(parse_stalled(bad), None, "{bad}");
        }
        let stat =
            "     100        0   204800     400       10        0     2048      900        0      321     1300\n";
        let counters = DiskCounters::parse(stat).expect("parses");
        let expected = DiskCounters {
            reads: 100,
            read_ms: 400,
            writes: 10,
            write_ms: 900,
            busy_ms: 321,
        };
        assert_eq!(counters, expected);
        assert_eq!(DiskCounters::parse("1 2 3"), None);
        let before = DiskCounters::default();
        assert_eq!(counters.latency_ms(&before, true), Some(90.0));
        assert_eq!(counters.latency_ms(&before, false), Some(1300.0 / 110.0));
        assert_eq!(counters.latency_ms(&counters, false), None);
        // A device that was replaced by another with the same number.
        assert_eq!(before.latency_ms(&counters, false), None);
    }
}
