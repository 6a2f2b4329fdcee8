//! The speed of a disk: configured, or measured once and remembered for 30 days.
//!
//! A measurement reads a little at three offsets with data, past the page cache. It measures the disk and never its
//! snapshot, whose identity changes each time. Unallocated space reads as zeros at the speed of memory, and so does a
//! read that is allocated only in part; therefore only reads that are mostly data count. If no such offset is found,
//! the speed of the reads that were made applies to one run and is not remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use vbk_repo::block::is_zero;
use vbk_repo::files::{self, Mode, Synced};

use crate::disk::buffer::{ALIGN, AlignedBuffer};
use crate::disk::source::Source;
use crate::error::Result;
use crate::host::device::DeviceNumber;
use crate::text;

/// Name of the file of measurements in the cache directory.
pub(crate) const CACHE_FILE: &str = "speed.json";
/// Validity of a measurement.
const VALID: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Number of offsets with data to read at.
const SAMPLES: usize = 3;
/// Number of offsets to try for them: with 4 MiB each, that takes at most a second of a thin volume's zeros.
const LOOKS: u64 = 256;
/// Time limit for one measurement; a read in flight may overrun it.
const TIME: Duration = Duration::from_millis(1500);
/// Length to read at one offset at most.
const SAMPLE_BYTES: u64 = 64 << 20;
/// Time limit for reading at one offset; a read in flight may overrun it.
const SAMPLE_TIME: Duration = Duration::from_millis(300);
/// Size of the pieces in which a read is examined: where it matters, thin pools and file systems allocate no less.
const PIECE_BYTES: usize = 64 << 10;
/// Size of a read, large enough for the kernel to have several requests in flight.
const READ_BYTES: usize = 4 << 20;
/// Speed assumed at most for a disk on which no data was found.
const EMPTY_BYTES_PER_SEC: u64 = 1 << 30;
/// Limit of the file's length: no host has disks for more measurements, so a larger file is not vbk's.
const MAX_CACHE_BYTES: u64 = 64 << 20;

/// Speed of a disk, and its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSpeed {
    /// Read speed in bytes per second.
    pub bytes_per_sec: u64,
    /// Source of the number.
    pub source: SpeedSource,
}

/// Source of a disk's speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpeedSource {
    /// The command line.
    Option,
    /// The configuration file.
    Config,
    /// The `<iotune>` of the libvirt domain.
    Libvirt,
    /// A measurement.
    Measured(Timestamp),
}

impl std::fmt::Display for DeviceSpeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let speed = text::rate(self.bytes_per_sec);
        match self.source {
            SpeedSource::Option => write!(f, "{speed} (--device-speed)"),
            SpeedSource::Config => write!(f, "{speed} (configured)"),
            SpeedSource::Libvirt => write!(f, "{speed} (libvirt iotune)"),
            SpeedSource::Measured(at) => write!(f, "{speed} (measured {})", at.strftime("%Y-%m-%d")),
        }
    }
}

/// Returns a disk's measured speed: a remembered one that is not too old, or a new one, which takes a second or two and
/// is remembered. `cache` is a directory, which is created if it does not exist; one that can't be read or written, or
/// a damaged file in it, only costs the measurement.
pub(crate) fn measured(disk: &Path, cache: Option<&Path>, now: Timestamp) -> Result<DeviceSpeed> {
    let mut source = Source::open(disk)?;
    source.pass_by_page_cache();
    let identity = identity(disk, source.size_bytes());
    // The next loop device of this number may be any other file.
    let cache = cache.filter(|_| !is_loop(disk));
    let known = cache.and_then(|cache| load(cache).devices.get(&identity).copied());
    if let Some(known) = known.filter(|known| known.holds(now)) {
        return Ok(known.speed());
    }
    let (bytes_per_sec, of_data) = measure(&source)?;
    let measurement = Measurement {
        bytes_per_sec,
        measured: now,
    };
    if let Some(cache) = cache
        && of_data
        && let Err(error) = remember(cache, identity, measurement, now)
    {
        tracing::debug!(%error, "can't remember the measured speed in {}", cache.display());
    }
    Ok(measurement.speed())
}

/// The file of measurements.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct Cache {
    devices: BTreeMap<String, Measurement>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Measurement {
    bytes_per_sec: u64,
    measured: Timestamp,
}

impl Measurement {
    /// Tests that a measurement is valid. One from the future was made with a wrong clock, so its age is unknown.
    fn holds(&self, now: Timestamp) -> bool {
        let age = now.duration_since(self.measured);
        self.bytes_per_sec > 0 && age >= SignedDuration::ZERO && age <= VALID
    }

    fn speed(self) -> DeviceSpeed {
        DeviceSpeed {
            bytes_per_sec: self.bytes_per_sec,
            source: SpeedSource::Measured(self.measured),
        }
    }
}

/// Returns a unique identity of a disk that survives a reboot: device mapper's uuid, or path, number and size. A disk
/// that grew may have moved, so the size is always part of it.
fn identity(disk: &Path, size_bytes: u64) -> String {
    let number = DeviceNumber::of_block_device(disk);
    match number.map(|number| (number, number.attribute("dm/uuid"))) {
        Some((_, Some(uuid))) if !uuid.is_empty() => format!("dm {uuid} {size_bytes}"),
        Some((number, _)) => format!("device {number} {size_bytes} {}", disk.display()),
        None => {
            let inode = fs::metadata(disk).map_or(0, |file| file.ino());
            format!("file {inode} {size_bytes} {}", disk.display())
        }
    }
}

/// Returns whether a disk is a loop device.
fn is_loop(disk: &Path) -> bool {
    let number = DeviceNumber::of_block_device(disk);
    number.is_some_and(|number| number.attribute("loop/backing_file").is_some())
}

fn load(directory: &Path) -> Cache {
    let path = directory.join(CACHE_FILE);
    let small = fs::metadata(&path).is_ok_and(|file| file.is_file() && file.len() <= MAX_CACHE_BYTES);
    let text = small.then(|| fs::read(&path).ok()).flatten().unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Lock of the file: guests of one run are measured at the same time and share one file and its draft.
static REMEMBERING: Mutex<()> = Mutex::new(());

/// Adds a measurement to the file, which is replaced as a whole. If two processes do so at once, one may lose its
/// measurement, and measures again next time.
fn remember(directory: &Path, identity: String, measurement: Measurement, now: Timestamp) -> std::io::Result<()> {
    let _turn = REMEMBERING.lock();
    fs::create_dir_all(directory)?;
    let mut cache = load(directory);
    // Otherwise the file would grow with disks that no longer exist.
    cache.devices.retain(|_, known| known.holds(now));
    cache.devices.insert(identity, measurement);
    // Each process has its own draft, because the lock is one of this process.
    let draft = directory.join(format!("{CACHE_FILE}.{}", std::process::id()));
    let text = serde_json::to_vec_pretty(&cache)?;
    files::write_by_draft(&directory.join(CACHE_FILE), &draft, &text, Mode::Umask, Synced::File)
}

/// Reads at several offsets with data and returns the median speed, because the first may be in the disk's cache and
/// one may be busy. The flag is true if that is the speed of data.
fn measure(source: &Source) -> Result<(u64, bool)> {
    let (clock, mut buffer) = (Instant::now(), AlignedBuffer::new(READ_BYTES));
    let (mut samples, mut empty) = (Vec::new(), Amount::default());
    let mut seen = BTreeSet::new();
    for look in 1..=LOOKS {
        if samples.len() >= SAMPLES || clock.elapsed() >= TIME {
            break;
        }
        let Some(start) = offset_of(source, look).filter(|start| seen.insert(*start)) else {
            continue;
        };
        let data = measure_at(source, start, &mut buffer, &mut empty)?;
        if data.bytes > 0 {
            samples.push(data.rate());
        }
    }
    samples.sort_by(f64::total_cmp);
    Ok(match samples.get(samples.len().saturating_sub(1) / 2) {
        Some(rate) => ((*rate as u64).max(1), true),
        None if empty.bytes == 0 => (EMPTY_BYTES_PER_SEC, false),
        None => ((empty.rate() as u64).clamp(1, EMPTY_BYTES_PER_SEC), false),
    })
}

/// Returns the offset for an attempt: the middle, the quarters, the eighths and so on, and from there the next byte
/// outside a hole.
fn offset_of(source: &Source, look: u64) -> Option<u64> {
    let reversed = look.reverse_bits() >> 32;
    let wanted = ((u128::from(source.size_bytes()) * u128::from(reversed)) >> 32) as u64;
    let data = source.next_data(wanted).or_else(|| source.next_data(0))?;
    Some(data.start / ALIGN as u64 * ALIGN as u64)
}

/// Bytes read, and the time that took.
#[derive(Default)]
struct Amount {
    bytes: u64,
    secs: f64,
}

impl Amount {
    fn add(&mut self, bytes: u64, took: Duration) {
        self.bytes += bytes;
        self.secs += took.as_secs_f64();
    }

    fn rate(&self) -> f64 {
        self.bytes as f64 / self.secs.max(1e-6)
    }
}

/// Reads from an offset on as long as there is data. Reads without data are added to `empty`.
fn measure_at(source: &Source, start: u64, buffer: &mut AlignedBuffer, empty: &mut Amount) -> Result<Amount> {
    let (clock, mut at, mut data) = (Instant::now(), start, Amount::default());
    while at < source.size_bytes() && at - start < SAMPLE_BYTES && clock.elapsed() < SAMPLE_TIME {
        let len = (source.size_bytes() - at).min(READ_BYTES as u64) as usize;
        let begun = Instant::now();
        source.read(at, len, buffer)?;
        let took = begun.elapsed();
        if !is_mostly_data(&buffer.as_slice()[..len]) {
            empty.add(len as u64, took);
            break;
        }
        data.add(len as u64, took);
        at += len as u64;
    }
    Ok(data)
}

fn is_mostly_data(bytes: &[u8]) -> bool {
    let pieces = bytes.chunks(PIECE_BYTES);
    let count = pieces.len();
    pieces.filter(|piece| !is_zero(piece)).count() * 2 > count
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn disk(len: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        file.write_all(&vec![7; len]).expect("writes");
        file
    }

    fn day(number: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + number * 86_400).expect("a time")
    }

    fn measured_on(speed: DeviceSpeed) -> Timestamp {
        match speed.source {
            SpeedSource::Measured(at) => at,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_measurement_is_valid_for_thirty_days_and_one_size() {
        let (disk, cache) = (disk(9 << 20), tempfile::tempdir().expect("a directory"));
        let cache = cache.path().join("made");
        let of = |now| measured(disk.path(), Some(&cache), now).expect("measures");
        let first = of(day(0));
        assert!(first.bytes_per_sec > 1 << 20, "{first:?}");
        assert_eq!(measured_on(first), day(0));
        assert_eq!(of(day(30)), first);
        assert_eq!(measured_on(of(day(31))), day(31));
        // The clock was wrong when that was measured.
        assert_eq!(measured_on(of(day(5))), day(5));
        disk.as_file().set_len(10 << 20).expect("grows");
        assert_eq!(measured_on(of(day(6))), day(6));
        let left: Vec<_> = fs::read_dir(&cache)
            .expect("lists")
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert_eq!(left, [CACHE_FILE]);
    }

    #[test]
    fn an_unusable_cache_only_costs_a_new_measurement() {
        let (disk, cache) = (disk(1 << 20), tempfile::tempdir().expect("a directory"));
        let file = cache.path().join(CACHE_FILE);
        for damage in ["", "{", "[]", "{\"devices\": {\"x\": 1}}", "\0\0\0"] {
            fs::write(&file, damage).expect("writes");
            let speed = measured(disk.path(), Some(cache.path()), day(1)).expect("measures");
            assert_eq!(measured_on(speed), day(1));
            assert_eq!(measured(disk.path(), Some(cache.path()), day(2)).expect("knows"), speed);
        }
        let no_directory = file.join("below a file");
        measured(disk.path(), Some(&no_directory), day(1)).expect("measures");
        measured(disk.path(), None, day(1)).expect("measures");
        assert!(measured(Path::new("/nowhere"), None, day(1)).is_err());
    }

    #[test]
    fn an_empty_disk_is_measured_again_once_it_has_data() {
        let (disk, cache) = (disk(0), tempfile::tempdir().expect("a directory"));
        let of = |now| measured(disk.path(), Some(cache.path()), now).expect("measures");
        disk.as_file().set_len(1 << 30).expect("grows");
        assert!(of(day(0)).bytes_per_sec <= EMPTY_BYTES_PER_SEC);
        assert_eq!(measured_on(of(day(1))), day(1));
        // At none of the offsets that are read in a file without holes.
        let data = vec![7; 8 << 20];
        std::os::unix::fs::FileExt::write_all_at(disk.as_file(), &data, 300 << 20).expect("writes");
        let found = of(day(2));
        assert_eq!(of(day(3)), found);
    }

    #[test]
    fn sparse_data_is_found_and_crumbs_are_ignored() {
        let (disk, cache) = (disk(0), tempfile::tempdir().expect("a directory"));
        let write = |offset: u64, len: usize| {
            std::os::unix::fs::FileExt::write_all_at(disk.as_file(), &vec![7; len], offset).expect("writes");
        };
        let of = |now| measured(disk.path(), Some(cache.path()), now).expect("measures");
        disk.as_file().set_len(1 << 30).expect("grows");
        // Like a thin volume with few mapped blocks: hardly any of a read comes from the disk.
        for place in 0..64 {
            write(place << 24, PIECE_BYTES);
        }
        assert_eq!(measured_on(of(day(0))), day(0));
        assert_eq!(measured_on(of(day(1))), day(1), "is not remembered");
        write(777 << 20, 32 << 20);
        assert_eq!(measured_on(of(day(2))), day(2));
        assert_eq!(measured_on(of(day(3))), day(2));
    }

    #[test]
    fn concurrent_measurements_are_all_remembered() {
        let cache = tempfile::tempdir().expect("a directory");
        let measurement = Measurement {
            bytes_per_sec: 1,
            measured: day(0),
        };
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let cache = cache.path();
                scope.spawn(move || {
                    for disk in 0..20 {
                        remember(cache, format!("{thread} {disk}"), measurement, day(0)).expect("remembers");
                    }
                });
            }
        });
        assert_eq!(load(cache.path()).devices.len(), 160);
    }

    #[test]
    fn sample_offsets_are_spread_over_the_disk() {
        let disk = disk(16 << 20);
        let source = Source::open(disk.path()).expect("opens");
        let places: Vec<_> = (1..=7)
            .map(|look| offset_of(&source, look).map(|start| start >> 20))
            .collect();
        assert_eq!(places, [8, 4, 12, 2, 10, 6, 14].map(Some));
    }

    #[test]
    fn empty_and_tiny_disks_have_a_speed() {
        for len in [0, 1, 5000] {
            let speed = measured(disk(len).path(), None, day(0)).expect("measures");
            assert!(speed.bytes_per_sec > 0);
        }
    }

    #[test]
    fn a_speed_is_formatted_with_its_source() {
        let speed = |source| {
            DeviceSpeed {
                bytes_per_sec: 200_000_000,
                source,
            }
            .to_string()
        };
        assert_eq!(speed(SpeedSource::Option), "200 MB/s (--device-speed)");
        assert_eq!(speed(SpeedSource::Measured(day(0))), "200 MB/s (measured 2027-01-15)");
    }
}
