//! Back-off: reads less than the limit allows while others wait for their disks.
//!
//! Once a second it is asked how the host fares; while it suffers the rate is cut by `CUT`, down to `LEAST` of the
//! limit, and while it is calm it grows by `GROWTH` of the limit. Two things are looked at:
//!
//! - **Stall** (Linux PSI, Documentation/accounting/psi.rst): the share of time in which some task waited for I/O. Our own
//!   reads are such waits, on a slow disk most of the time, so their share is taken out (`stall_of_others`). PSI knows
//!   only the host as a whole: it counts while the disks that we read from are busy too.
//! - **Latency** of the disk that is backed up, which is what the guest feels. Where a snapshot is read, the counters of
//!   its origin have the guest's requests alone. Where the disk itself is read they are mixed with ours, which only read,
//!   so the writes alone count.
//!
//! What the kernel does not tell is not looked at.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::disk::source;
use crate::host::device::DeviceNumber;

/// What the rate is multiplied with while the host suffers.
const CUT: f64 = 0.7;
/// The share of the limit that comes back each calm second: from the least to all in 18 s.
const GROWTH: f64 = 0.05;
/// The share of the limit that is always left: a backup that never ends helps nobody.
const LEAST: f64 = 0.1;
/// Of so many seconds with reads the middle one tells how fast a disk without a limit is read. One alone may have been spent
/// waiting for the store, or reading what is not allocated.
const SECONDS: usize = 15;
/// What a disk without a limit is taken to be read at, at the least: `LEAST` of it reads 1 TB in 56 hours.
const LEAST_CEILING: u64 = 50_000_000;
/// A latency of fewer requests says nothing.
const ENOUGH_REQUESTS: u64 = 5;
/// With our own reads in flight for more of the time, the rest says nothing about the others.
const MOST_OWN: f64 = 0.8;
/// A disk that is less busy is not what the host waits for.
const BUSY: f64 = 0.5;

/// Whether and when to back off.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Backoff {
    /// Never.
    Off,
    /// When one of these is exceeded for a second.
    Above {
        /// The share of time in which others than vbk wait for I/O: 0.2 for 20 %.
        stall: f64,
        /// How long a request of the disk takes, in milliseconds.
        latency_ms: f64,
    },
}

impl Default for Backoff {
    /// 20 %: a host whose tasks wait one second in five is felt to be slow, and a busy one that is well waits for 5 to 10 %.
    /// 30 ms: a spinning disk answers within 10 to 15 ms as long as it keeps up.
    fn default() -> Self {
        Self::Above {
            stall: 0.2,
            latency_ms: 30.0,
        }
    }
}

/// What one second was like, as far as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Second {
    /// The share of time in which others waited for I/O.
    pub stall: Option<f64>,
    /// The share of time in which the disks beneath were busy.
    pub busy: Option<f64>,
    /// How long the requests of the disk took.
    pub latency_ms: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Suffers,
    /// Neither: the rate stays.
    Between,
    Calm,
}

impl Backoff {
    /// What to make of a second.
    pub(super) fn judge(self, second: &Second) -> Mood {
        let Self::Above { stall, latency_ms } = self else {
            return Mood::Calm;
        };
        let ours = second.busy.is_none_or(|busy| busy >= BUSY);
        let stalled = second.stall.filter(|_| ours).unwrap_or(0.0) / stall;
        let slow = second.latency_ms.unwrap_or(0.0) / latency_ms;
        // Calm only from half of it down, or the rate would swing around the threshold.
        match stalled.max(slow) {
            worst if worst > 1.0 => Mood::Suffers,
            worst if worst > 0.5 => Mood::Between,
            _ => Mood::Calm,
        }
    }
}

/// The share of time in which others waited, out of the share in which anybody did and the one in which we did. The two
/// are taken as independent: anybody = 1 - (1 - others)(1 - own).
pub(super) fn stall_of_others(anybody: f64, own: f64) -> Option<f64> {
    (own <= MOST_OWN).then(|| ((anybody - own) / (1.0 - own)).clamp(0.0, 1.0))
}

/// How much of the limit of one disk is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Governor {
    share: f64,
    /// What a disk without a limit was read at before the host began to suffer.
    ceiling_bytes_per_sec: Option<u64>,
    /// What the last seconds read in which nothing was held back, and how many there were in all.
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
    /// The rate for the next second, in bytes per second. `read` is what the last one read.
    pub(super) fn next(&mut self, mood: Mood, limit: Option<u64>, read: u64) -> Option<u64> {
        if self.share >= 1.0 && read > 0 {
            self.recent[self.seconds % SECONDS] = read;
            self.seconds += 1;
        }
        self.share = match mood {
            Mood::Suffers => (self.share * CUT).max(LEAST),
            Mood::Between => self.share,
            Mood::Calm => (self.share + GROWTH).min(1.0),
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

    /// The rate with a limit as things are.
    pub(super) fn now(&self, limit: Option<u64>) -> Option<u64> {
        let ceiling = limit.or(self.ceiling_bytes_per_sec)?;
        Some(if self.share >= 1.0 {
            ceiling
        } else {
            (ceiling as f64 * self.share) as u64
        })
    }

    /// The share of the limit that is used now.
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

    /// Milliseconds per request since an earlier look.
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

/// Looks at one disk.
pub(super) struct DiskWatch {
    /// The disk, if it is a block device.
    device: Option<DeviceNumber>,
    writes_only: bool,
    leaves: Vec<DeviceNumber>,
    counters: Option<DiskCounters>,
    leaf_counters: Vec<Option<DiskCounters>>,
}

impl DiskWatch {
    /// Of a disk that is backed up, by reading itself or something else.
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

    /// How the disk was since the last look: how busy what is beneath it, and its latency in milliseconds.
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

/// Looks at the host as a whole.
pub(super) struct HostWatch {
    /// The pressure of our own cgroup, if we have one.
    own: Option<PathBuf>,
    last: HostCounters,
}

#[derive(Clone, Copy)]
struct HostCounters {
    at: Instant,
    anybody: Option<Duration>,
    own_cgroup: Option<Duration>,
    own_reads: Duration,
}

/// The host's pressure. There from Linux 4.20 on, unless it is compiled out or off (`psi=0`).
const HOST_PRESSURE: &str = "/proc/pressure/io";

impl HostWatch {
    pub(super) fn new() -> Self {
        let own = super::kernel::own_unified_group().map(|group| group.join("io.pressure"));
        // The file of the root is that of all processes; it has this other name there, and is the host's again.
        let own = own.filter(|path| path.with_file_name("cgroup.type").exists());
        Self {
            last: HostCounters::now(own.as_deref()),
            own,
        }
    }

    /// How long since the last look, and the share of it in which others waited.
    pub(super) fn look(&mut self) -> (Duration, Option<f64>) {
        let before = std::mem::replace(&mut self.last, HostCounters::now(self.own.as_deref()));
        let elapsed = self.last.at - before.at;
        let share = |now: Option<Duration>, before: Option<Duration>| {
            let waited = now?.saturating_sub(before?).as_secs_f64();
            Some((waited / elapsed.as_secs_f64().max(1e-3)).min(1.0))
        };
        let stall = share(self.last.anybody, before.anybody).and_then(|anybody| {
            let reads = share(Some(self.last.own_reads), Some(before.own_reads)).unwrap_or(0.0);
            // The cgroup knows the waits of the store as well, but may not be there.
            let own = share(self.last.own_cgroup, before.own_cgroup).unwrap_or(0.0);
            stall_of_others(anybody, own.max(reads))
        });
        (elapsed, stall)
    }
}

impl HostCounters {
    fn now(own: Option<&Path>) -> Self {
        Self {
            at: Instant::now(),
            anybody: stalled(Path::new(HOST_PRESSURE)),
            own_cgroup: own.and_then(stalled),
            own_reads: source::time_reading(),
        }
    }
}

/// For how long some task has waited, by a file of PSI.
fn stalled(path: &Path) -> Option<Duration> {
    parse_stalled(&fs::read_to_string(path).ok()?)
}

/// `some avg10=11.67 avg60=3.01 avg300=1.27 total=1461110757`, the total in microseconds.
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
        for (second, mood) in [
            (second(0.0, 0.0, 0.0), Mood::Calm),
            (second(0.1, 1.0, 15.0), Mood::Calm),
            (second(0.15, 1.0, 1.0), Mood::Between),
            (second(0.25, 1.0, 1.0), Mood::Suffers),
            (second(0.0, 1.0, 31.0), Mood::Suffers),
            // The host waits, but for another disk.
            (second(0.9, 0.3, 1.0), Mood::Calm),
            (
                Second {
                    stall: Some(0.9),
                    ..Second::default()
                },
                Mood::Suffers,
            ),
            (Second::default(), Mood::Calm),
        ] {
            assert_eq!(backoff.judge(&second), mood, "{second:?}");
        }
        assert_eq!(Backoff::Off.judge(&second(1.0, 1.0, 1000.0)), Mood::Calm);
    }

    #[test]
    fn our_own_reads_alone_are_no_pressure() {
        assert_eq!(stall_of_others(0.6, 0.6), Some(0.0));
        assert_eq!(stall_of_others(0.5, 0.6), Some(0.0));
        assert_eq!(stall_of_others(0.3, 0.0), Some(0.3));
        let others = stall_of_others(0.8, 0.6).expect("is known");
        assert!((others - 0.5).abs() < 1e-9, "{others}");
        assert_eq!(stall_of_others(1.0, 0.95), None);
    }

    #[test]
    fn the_rate_falls_fast_to_a_tenth_and_comes_back() {
        let mut governor = Governor::default();
        let limit = Some(100_000_000);
        assert_eq!(governor.next(Mood::Calm, limit, 0), limit);
        assert_eq!(governor.next(Mood::Suffers, limit, 0), Some(70_000_000));
        assert_eq!(governor.next(Mood::Between, limit, 0), Some(70_000_000));
        for _ in 0..20 {
            governor.next(Mood::Suffers, limit, 0);
        }
        assert_eq!(governor.next(Mood::Suffers, limit, 0), Some(10_000_000));
        for _ in 0..18 {
            governor.next(Mood::Calm, limit, 0);
        }
        assert_eq!(governor.next(Mood::Calm, limit, 0), limit);
    }

    #[test]
    fn a_disk_without_a_limit_backs_off_from_what_it_was_read_at() {
        let mut governor = Governor::default();
        assert_eq!(governor.next(Mood::Calm, None, 500_000_000), None);
        assert_eq!(governor.next(Mood::Suffers, None, 500_000_000), Some(350_000_000));
        assert_eq!(governor.next(Mood::Calm, None, 350_000_000), Some(375_000_000));
        for _ in 0..6 {
            governor.next(Mood::Calm, None, 0);
        }
        assert_eq!(governor.next(Mood::Calm, None, 0), None);
    }

    #[test]
    fn one_odd_second_does_not_make_a_backup_crawl() {
        let backs_off = |reads: &[u64]| {
            let mut governor = Governor::default();
            let (last, before) = reads.split_last().expect("seconds");
            for read in before {
                assert_eq!(governor.next(Mood::Calm, None, *read), None);
            }
            governor.next(Mood::Suffers, None, *last)
        };
        // The store was slow, or what was read is not allocated.
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
            governor.next(Mood::Suffers, None, 0);
        }
        assert_eq!(governor.next(Mood::Between, None, 0), Some(5_000_000));
    }

    #[test]
    fn the_kernel_s_files_are_understood_and_others_refused() {
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
        // A device that was replaced by another with its number.
        assert_eq!(before.latency_ms(&counters, false), None);
    }
}
