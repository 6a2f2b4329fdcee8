//! Applies all limits of a run: buckets, kernel limits, and a thread that updates both once a second.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::{Condvar, Mutex};
use vbk_repo::name::{DiskName, GuestName};

use super::bucket::Bucket;
use super::kernel::KernelLimit;
use super::pressure::{Backoff, DiskWatch, Governor, HostWatch, Second, Strain};
use super::requests::Requests;
use super::speed::{self, DeviceSpeed};
use super::{Pace, ReadLimit};
use crate::error::Result;
use crate::host::device::DeviceNumber;
use crate::text;

/// Interval of the updates.
const LOOK: Duration = Duration::from_secs(1);

/// A disk of a guest, and how fast it may be read.
#[derive(Debug, Clone)]
pub struct GuestDisk {
    /// Name.
    pub name: DiskName,
    /// Path of the disk itself, whose speed is measured and whose latency counts; its snapshot may be read instead.
    pub path: PathBuf,
    /// Limit of reading it.
    pub limit: ReadLimit,
    /// Configured speed; without it, the speed is measured if the limit is a share of it.
    pub speed: Option<DeviceSpeed>,
}

/// Callback for a new limit of a guest's disk, e.g. after SIGHUP, called once a second; `None` means no change. A new
/// limit holds until the next one, but limits requested by `vbk limit` take precedence. Called from a thread of the
/// limiter with the disk itself and not its snapshot; must not block.
pub type Reload = Arc<dyn Fn(&GuestName, &Path) -> Option<ReadLimit> + Send + Sync>;

/// Options of the limits.
#[derive(Clone)]
pub struct LimitOptions {
    /// True if the kernel limits too.
    pub kernel: bool,
    /// True if the reading threads get the idle I/O class and niceness 19.
    pub idle: bool,
    /// Thresholds for reading slower than the limit.
    pub backoff: Backoff,
    /// Directory for measured speeds, e.g. `/var/cache/vbk`.
    pub cache: Option<PathBuf>,
    /// Path of the file that `vbk limit` writes: [`FILE`](super::requests::FILE) in the run's directory.
    pub requests: Option<PathBuf>,
    /// Callback for new limits during the run.
    pub reload: Option<Reload>,
}

impl Default for LimitOptions {
    /// All limits, without a cache and without changes during the run.
    fn default() -> Self {
        Self {
            kernel: true,
            idle: true,
            backoff: Backoff::default(),
            cache: None,
            requests: None,
            reload: None,
        }
    }
}

impl fmt::Debug for LimitOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitOptions")
            .field("kernel", &self.kernel)
            .field("idle", &self.idle)
            .field("backoff", &self.backoff)
            .field("cache", &self.cache)
            .field("requests", &self.requests)
            .finish_non_exhaustive()
    }
}

/// Limits the reading of a guest's disks until it is dropped.
pub struct Limiter {
    paces: Vec<(DiskName, Pace)>,
    limits: Vec<String>,
    details: Vec<String>,
    end: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Limiter {
    /// Sets the limits of a guest's disks, each given with the path that is read. Measures speeds that are needed and not known, which takes a second or two
    /// for each disk; fails if a measurement fails. `now` is the measurement's date.
    pub fn start(
        guest: &GuestName,
        disks: Vec<(GuestDisk, PathBuf)>,
        options: &LimitOptions,
        now: Timestamp,
    ) -> Result<Self> {
        let mut keeper = Keeper {
            guest: guest.clone(),
            disks: disks.into_iter().map(Kept::new).collect(),
            options: options.clone(),
            asked: None,
            complaint: None,
        };
        let asked = keeper.requested();
        for disk in &mut keeper.disks {
            let wanted = asked.unwrap_or(disk.limited.limit);
            disk.set(wanted, options, now)?;
        }
        keeper.asked = asked;
        let one = keeper.disks.len() == 1;
        let of = |disk: &Kept, text: &str| match one {
            true => text.to_owned(),
            false => format!("{}: {text}", disk.limited.name),
        };
        let limits = keeper.disks.iter().map(|disk| of(disk, &disk.limit_text)).collect();
        let details = keeper.disks.iter().map(|disk| of(disk, &disk.kernel_text)).collect();
        let pace = |disk: &Kept| Pace {
            bucket: Some(Arc::clone(&disk.bucket)),
            idle: options.idle,
        };
        let paces = keeper
            .disks
            .iter()
            .map(|disk| (disk.limited.name.clone(), pace(disk)))
            .collect();
        let end = Arc::new((Mutex::new(false), Condvar::new()));
        let ended = Arc::clone(&end);
        let thread = std::thread::Builder::new()
            .name("vbk-limit".into())
            .spawn(move || keeper.keep(&ended))
            .expect("the system can start a thread");
        Ok(Self {
            paces,
            limits,
            details,
            end,
            thread: Some(thread),
        })
    }

    /// Returns the limits of a disk. An unknown disk has none.
    pub fn pace(&self, disk: &DiskName) -> Pace {
        let found = self.paces.iter().find(|(name, _)| name == disk);
        found.map(|(_, pace)| pace.clone()).unwrap_or_default()
    }

    /// Returns a line for each disk with its limit at the start and the limit's source: `read limit 120 MB/s: 60% of
    /// 200 MB/s (measured 2026-11-20)`.
    pub fn describe(&self) -> &[String] {
        &self.limits
    }

    /// Returns a line for each disk that says whether the kernel limits too, or why not.
    pub fn details(&self) -> &[String] {
        &self.details
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        *self.end.0.lock() = true;
        self.end.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // It took its kernel limits with it.
            let _ = thread.join();
        }
    }
}

/// State of the limiter's thread.
struct Keeper {
    guest: GuestName,
    disks: Vec<Kept>,
    options: LimitOptions,
    /// Limit requested by `vbk limit`.
    asked: Option<ReadLimit>,
    /// Latest error of its file, so that each is logged once.
    complaint: Option<String>,
}

/// A disk and its limits.
struct Kept {
    limited: GuestDisk,
    /// Path that is read: that of the disk or of its snapshot.
    read: PathBuf,
    bucket: Arc<Bucket>,
    kernel: Option<KernelLimit>,
    /// Rate before back-off.
    bytes_per_sec: Option<u64>,
    limit_text: String,
    kernel_text: String,
    governor: Governor,
    taken_bytes: u64,
}

impl Kept {
    fn new((limited, read): (GuestDisk, PathBuf)) -> Self {
        Self {
            limited,
            read,
            bucket: Arc::new(Bucket::new(None)),
            kernel: None,
            bytes_per_sec: None,
            limit_text: String::new(),
            kernel_text: String::new(),
            governor: Governor::default(),
            taken_bytes: 0,
        }
    }

    /// Sets the limit; measures the disk if its speed is needed and not known.
    fn set(&mut self, limit: ReadLimit, options: &LimitOptions, now: Timestamp) -> Result<()> {
        let (rate, text) = match limit {
            ReadLimit::Unlimited => (None, "no read limit".to_owned()),
            ReadLimit::BytesPerSec(rate) => (Some(rate), format!("read limit {}", text::rate(rate))),
            ReadLimit::Share(share) => {
                let speed = match self.limited.speed {
                    Some(speed) => speed,
                    None => speed::measured(&self.limited.path, options.cache.as_deref(), now)?,
                };
                self.limited.speed = Some(speed);
                let rate = ((speed.bytes_per_sec as f64 * share) as u64).max(1);
                (
                    Some(rate),
                    format!("read limit {}: {limit} of {speed}", text::rate(rate)),
                )
            }
        };
        self.bytes_per_sec = rate;
        self.limit_text = text;
        self.bucket.set(self.governor.now(rate));
        self.set_kernel(options);
        Ok(())
    }

    fn set_kernel(&mut self, options: &LimitOptions) {
        let refusal = match (self.bytes_per_sec, &self.kernel) {
            _ if !options.kernel => "disabled".to_owned(),
            (None, _) => {
                self.kernel = None;
                "there is no limit".to_owned()
            }
            (Some(rate), Some(kernel)) => match kernel.set(rate) {
                Ok(()) => return,
                Err(refusal) => {
                    self.kernel = None;
                    refusal.to_string()
                }
            },
            (Some(rate), None) => match DeviceNumber::of_block_device(&self.read) {
                None => format!("{} is not a block device", self.read.display()),
                Some(device) => match KernelLimit::begin(device, rate) {
                    Ok(kernel) => {
                        self.kernel_text = format!("the kernel limits too: {kernel}");
                        self.kernel = Some(kernel);
                        return;
                    }
                    Err(refusal) => refusal.to_string(),
                },
            },
        };
        self.kernel_text = format!("the kernel does not limit: {refusal}");
    }

    /// Backs off or recovers.
    fn follow(&mut self, strain: Strain, elapsed: Duration) {
        let taken_bytes = self.bucket.taken_bytes();
        let read = (taken_bytes - self.taken_bytes) as f64 / elapsed.as_secs_f64().max(1e-3);
        self.taken_bytes = taken_bytes;
        let before = self.governor.share();
        let rate = self.governor.next(strain, self.bytes_per_sec, read as u64);
        if rate != self.bucket.bytes_per_sec() {
            self.bucket.set(rate);
        }
        let (name, share) = (&self.limited.name, self.governor.share());
        if before >= 1.0 && share < 1.0 {
            tracing::info!("{name}: other processes wait for their disks; vbk reads more slowly");
        } else if before < 1.0 && share >= 1.0 {
            tracing::info!("{name}: no process waits for its disks any more; vbk reads at its limit again");
        }
    }
}

impl Keeper {
    /// Runs the thread.
    fn keep(mut self, end: &(Mutex<bool>, Condvar)) {
        let mut host = HostWatch::new();
        let mut watches: Vec<_> = self
            .disks
            .iter()
            .map(|disk| DiskWatch::new(&disk.limited.path, &disk.read))
            .collect();
        loop {
            let mut ended = end.0.lock();
            end.1.wait_while_for(&mut ended, |ended| !*ended, LOOK);
            if *ended {
                return;
            }
            drop(ended);
            self.follow_requests();
            if self.options.backoff == Backoff::Off {
                continue;
            }
            let (elapsed, stall) = host.look();
            for (disk, watch) in self.disks.iter_mut().zip(&mut watches) {
                let (busy, latency_ms) = watch.look(elapsed);
                let second = Second {
                    stall,
                    busy,
                    latency_ms,
                };
                let strain = self.options.backoff.judge(&second);
                tracing::trace!(?second, ?strain, "{}", disk.limited.name);
                disk.follow(strain, elapsed);
            }
        }
    }

    /// Returns the limit that `vbk limit` requests now; the earlier one, if the request can't be read.
    fn requested(&mut self) -> Option<ReadLimit> {
        let requests = self.options.requests.as_deref().map(Requests::load)?;
        match requests {
            Ok(requests) => {
                self.complaint = None;
                requests.of(&self.guest)
            }
            Err(error) => {
                let complaint = error.to_string();
                if self.complaint.as_ref() != Some(&complaint) {
                    tracing::warn!("the read limit stays unchanged: {complaint}");
                }
                self.complaint = Some(complaint);
                self.asked
            }
        }
    }

    fn follow_requests(&mut self) {
        let mut is_new = false;
        for disk in &mut self.disks {
            let reload = self.options.reload.as_ref();
            if let Some(limit) = reload.and_then(|reload| reload(&self.guest, &disk.limited.path)) {
                disk.limited.limit = limit;
                is_new = true;
            }
        }
        let asked = self.requested();
        if asked == self.asked && !is_new {
            return;
        }
        self.asked = asked;
        for disk in &mut self.disks {
            let wanted = asked.unwrap_or(disk.limited.limit);
            match disk.set(wanted, &self.options, Timestamp::now()) {
                Ok(()) => tracing::info!("{}: {}", disk.limited.name, disk.limit_text),
                Err(error) => tracing::warn!("{}: the read limit stays unchanged: {error}", disk.limited.name),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::requests::FILE;
    use crate::limit::speed::SpeedSource;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    fn disk(name: &str, limit: ReadLimit) -> (GuestDisk, PathBuf) {
        let disk = GuestDisk {
            name: name.parse().expect("a name"),
            path: "/nowhere".into(),
            limit,
            speed: Some(DeviceSpeed {
                bytes_per_sec: 200_000_000,
                source: SpeedSource::Option,
            }),
        };
        (disk, "/nowhere".into())
    }

    fn guest() -> GuestName {
        "web1".parse().expect("a name")
    }

    fn options() -> LimitOptions {
        LimitOptions {
            backoff: Backoff::Off,
            ..LimitOptions::default()
        }
    }

    fn rate_of(limiter: &Limiter, name: &str) -> Option<u64> {
        limiter
            .pace(&name.parse().expect("a name"))
            .bucket
            .expect("a bucket")
            .bytes_per_sec()
    }

    #[track_caller]
    fn wait_for(limiter: &Limiter, rate: Option<u64>) {
        let clock = Instant::now();
        while rate_of(limiter, "vda") != rate {
            assert!(
                clock.elapsed() < Duration::from_secs(30),
                "{:?} is not {rate:?}",
                rate_of(limiter, "vda")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn limits_are_reported_with_their_source() {
        let disks = vec![
            disk("vda", ReadLimit::Share(0.6)),
            disk("vdb", ReadLimit::BytesPerSec(5_000_000)),
            disk("vdc", ReadLimit::Unlimited),
        ];
        let limiter = Limiter::start(&guest(), disks, &options(), Timestamp::now()).expect("starts");
        assert_eq!(
            limiter.describe(),
            [
                "vda: read limit 120 MB/s: 60% of 200 MB/s (--device-speed)",
                "vdb: read limit 5 MB/s",
                "vdc: no read limit"
            ]
        );
        assert!(
            limiter.details()[0].contains("/nowhere is not a block device"),
            "{:?}",
            limiter.details()
        );
        assert_eq!(rate_of(&limiter, "vda"), Some(120_000_000));
        assert_eq!(rate_of(&limiter, "vdc"), None);
        assert!(limiter.pace(&"vdx".parse().expect("a name")).bucket.is_none());
    }

    #[test]
    fn a_share_of_an_unmeasurable_disk_is_an_error() {
        let mut unknown = disk("vda", ReadLimit::Share(0.6));
        unknown.0.speed = None;
        assert!(Limiter::start(&guest(), vec![unknown.clone()], &options(), Timestamp::now()).is_err());
        unknown.0.limit = ReadLimit::BytesPerSec(1);
        Limiter::start(&guest(), vec![unknown], &options(), Timestamp::now()).expect("needs no speed");
    }

    #[test]
    fn a_running_limiter_follows_the_file_and_new_settings() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join(FILE);
        let reload = Arc::new(AtomicBool::new(false));
        let reloaded = Arc::clone(&reload);
        let options = LimitOptions {
            requests: Some(file.clone()),
            reload: Some(Arc::new(move |_, _| {
                reloaded
                    .swap(false, Ordering::SeqCst)
                    .then_some(ReadLimit::BytesPerSec(7))
            })),
            ..options()
        };
        let disks = vec![disk("vda", ReadLimit::Share(0.5))];
        let limiter = Limiter::start(&guest(), disks, &options, Timestamp::now()).expect("starts");
        assert_eq!(rate_of(&limiter, "vda"), Some(100_000_000));
        let ask = |limit| {
            let mut requests = Requests::default();
            requests.ask(Some(&guest()), limit);
            requests.store(&file).expect("stores");
        };
        ask(Some(ReadLimit::Unlimited));
        wait_for(&limiter, None);
        ask(Some(ReadLimit::Share(0.1)));
        wait_for(&limiter, Some(20_000_000));
        // A request takes precedence over the configuration, and survives an invalid line in the file.
        reload.store(true, Ordering::SeqCst);
        std::fs::write(&file, "nonsense").expect("writes");
        std::thread::sleep(Duration::from_millis(2500));
        assert_eq!(rate_of(&limiter, "vda"), Some(20_000_000));
        ask(None);
        wait_for(&limiter, Some(7));
    }
}
