//! A disk to read: a block device or a raw file. Reading it leaves the host's page cache unchanged, as far as the
//! kernel makes that possible.
//!
//! | kind | methods, in order of preference |
//! |---|---|
//! | block device | O_DIRECT, advice |
//! | file | O_DIRECT for ranges of which nothing is cached and RWF_DONTCACHE, without readahead, for the others; one of them; advice |
//!
//! A file may be cached by others, e.g. by a virtual machine that writes through the page cache. RWF_DONTCACHE copies what is
//! there; O_DIRECT would first write it to the disk, and then read it from there. Where nothing is cached, O_DIRECT takes half
//! of the processor time.
//!
//! Advice is posix_fadvise(2): SEQUENTIAL once, then after each read DONTNEED for a trailing window, and once for the
//! whole file at the end. Only this method also drops pages that other processes had cached; the other two do not.
//!
//! At most `MAX_IN_FLIGHT` reads of a disk are in flight, however many threads read it.

mod format;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Whence, lseek64};
use parking_lot::{Condvar, Mutex};

pub use self::format::check_raw;
use crate::disk::buffer::{ALIGN, AlignedBuffer};
use crate::error::{Error, Result};
use crate::host::device::size_of_file;
use crate::sys;

/// Length of the trailing window: DONTNEED skips a folio that crosses its edge, and readahead makes large folios
/// (mm/filemap.c).
const WINDOW_BYTES: u64 = 8 << 20;
/// Number of retries of a failed read.
const RETRIES: u32 = 3;

/// An open disk. May be read by many threads at once.
pub struct Source {
    /// Path for messages.
    path: PathBuf,
    /// Path with which it was opened.
    opened: PathBuf,
    file: File,
    /// The same file with O_DIRECT, if that works.
    direct: Option<File>,
    device: bool,
    size_bytes: u64,
    inode: (u64, u64),
    way: AtomicU8,
    flights: Flights,
}

/// Limit of reads in flight per disk: more gain nothing, and make other processes wait.
pub(crate) const MAX_IN_FLIGHT: u32 = 4;

/// O_DIRECT or RWF_DONTCACHE, whichever suits the range.
const BY_RANGE: u8 = 0;
const DONT_CACHE: u8 = 1;
const DIRECT: u8 = 2;
const ADVICE: u8 = 3;

impl Source {
    /// Opens a disk for reading.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::OpenSource {
            path: path.to_owned(),
            source,
        };
        // Before opening, because opening a pipe or a terminal could block for ever. The checked file is then opened
        // without looking up a name again: the owner of the directory may replace the file with that name.
        let held = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_PATH.bits())
            .open(path);
        let held = held.map_err(failed)?;
        let metadata = held.metadata().map_err(failed)?;
        let kind = metadata.file_type();
        let device = kind.is_block_device();
        if !device && !kind.is_file() {
            return Err(Error::NotADisk {
                path: path.to_owned(),
                what: describe(kind),
            });
        }
        let open = |flags: OFlag| {
            let name = format!("/proc/self/fd/{}", held.as_raw_fd());
            OpenOptions::new().read(true).custom_flags(flags.bits()).open(name)
        };
        let file = open(OFlag::empty()).map_err(failed)?;
        let direct = open(OFlag::O_DIRECT).ok();
        let size_bytes = size_of_file(&file).map_err(failed)?;
        if device && size_bytes == 0 {
            return Err(Error::NotADisk {
                path: path.to_owned(),
                what: "a block device of size 0, with nothing attached",
            });
        }
        let way = match (device, direct.is_some()) {
            (false, true) => BY_RANGE,
            (false, false) => DONT_CACHE,
            (true, true) => DIRECT,
            (true, false) => ADVICE,
        };
        let source = Self {
            path: match path.starts_with("/proc/self/fd") {
                true => std::fs::read_link(path).unwrap_or_else(|_| path.to_owned()),
                false => path.to_owned(),
            },
            opened: path.to_owned(),
            file,
            direct,
            device,
            size_bytes,
            inode: (metadata.dev(), metadata.ino()),
            way: AtomicU8::new(way),
            flights: Flights::default(),
        };
        source.go(way);
        Ok(source)
    }

    /// Switches to a method and gives the matching advice; if the advice is refused, reading works all the same.
    fn go(&self, way: u8) {
        // Readahead for one thread would fetch pages that another reads with RWF_DONTCACHE at the same time, and the
        // kernel does not drop a page that both want: of 2 GiB, 100 MiB stayed. Reads are large, so nothing is lost
        // without readahead.
        let advice = match way {
            BY_RANGE | DONT_CACHE => PosixFadviseAdvice::POSIX_FADV_RANDOM,
            _ => PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL,
        };
        let _ = posix_fadvise(&self.file, 0, 0, advice);
        self.way.store(way, Ordering::Relaxed);
    }

    /// From now on, reads the disk itself even if other processes have cached it, for measuring. Files on a file system
    /// without O_DIRECT are read as before.
    pub(crate) fn pass_by_page_cache(&mut self) {
        if self.direct.is_some() {
            self.go(DIRECT);
        }
    }

    /// Returns the size it had when it was opened.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Tests that it is a block device, and not a file.
    pub(crate) fn is_device(&self) -> bool {
        self.device
    }

    /// Returns the path with which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads `len` bytes from `offset_bytes`, a multiple of 4096, to the start of `buffer`. Reads all of them or fails.
    /// Waits while [`MAX_IN_FLIGHT`] reads of this disk are in flight.
    pub(crate) fn read(&self, offset_bytes: u64, len: usize, buffer: &mut AlignedBuffer) -> Result<()> {
        self.read_part(offset_bytes, len, buffer.as_mut_slice())
    }

    /// Like [`Self::read`], for the part of an [`AlignedBuffer`] from a multiple of 4096 to its end.
    pub(crate) fn read_part(&self, offset_bytes: u64, len: usize, buffer: &mut [u8]) -> Result<()> {
        let _flight = self.flights.begin();
        let mut done = 0;
        let mut failures = 0;
        while done < len {
            let at = offset_bytes + done as u64;
            match self.read_once(at, len - done, &mut buffer[done..]) {
                Ok(0) => return Err(self.changed("became smaller")),
                // O_DIRECT continues only at an aligned offset; the bytes after the last one are read again.
                Ok(read) if done + read >= len => return Ok(()),
                Ok(read) if read < ALIGN => return Err(self.changed("became smaller")),
                Ok(read) => done += read / ALIGN * ALIGN,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if failures < RETRIES => failures += 1,
                Err(source) => {
                    return Err(Error::ReadSource {
                        path: self.path.clone(),
                        offset_bytes: at,
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    fn read_once(&self, offset: u64, len: usize, buffer: &mut [u8]) -> io::Result<usize> {
        let way = self.way.load(Ordering::Relaxed);
        // Where the kernel does not tell, something may be cached.
        let is_cached = || sys::is_cached(&self.file, offset, len).unwrap_or(true);
        let (read, next) = match (way, &self.direct) {
            (BY_RANGE, Some(file)) if !is_cached() => (read_direct(file, offset, len, buffer), DONT_CACHE),
            (BY_RANGE, _) => (sys::read_dont_cache(&self.file, &mut buffer[..len], offset), DIRECT),
            (DONT_CACHE, _) => (sys::read_dont_cache(&self.file, &mut buffer[..len], offset), ADVICE),
            (DIRECT, Some(file)) => (read_direct(file, offset, len, buffer), ADVICE),
            _ => {
                let read = self.file.read_at(&mut buffer[..len], offset)?;
                let end = offset + read as u64;
                let start = end.saturating_sub(WINDOW_BYTES);
                let (start, len) = (start as i64, (end - start) as i64);
                let _ = posix_fadvise(&self.file, start, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
                return Ok(read);
            }
        };
        match read {
            Err(error) if is_refusal(&error) => {
                // Another thread may have met the refusal already.
                if self.way.load(Ordering::Relaxed) == way {
                    self.go(next);
                }
                self.read_once(offset, len, buffer)
            }
            read => read,
        }
    }

    /// Returns the next range at or after `offset_bytes` that may hold data; `None` if only holes follow.
    pub(crate) fn next_data(&self, offset_bytes: u64) -> Option<std::ops::Range<u64>> {
        if offset_bytes >= self.size_bytes {
            return None;
        }
        let all = Some(offset_bytes..self.size_bytes);
        if self.device {
            return all;
        }
        let Ok(offset) = i64::try_from(offset_bytes) else {
            return all;
        };
        match lseek64(&self.file, offset, Whence::SeekData) {
            // The file grew in the meantime; the check at the end reports that.
            Ok(start) if start as u64 >= self.size_bytes => None,
            Ok(start) => {
                let end = lseek64(&self.file, start, Whence::SeekHole).map_or(self.size_bytes, |end| end as u64);
                Some(start as u64..end.min(self.size_bytes))
            }
            // Only a hole up to the end of the file; the check at the end detects a file that shrank.
            Err(nix::errno::Errno::ENXIO) => None,
            // The file system does not support holes.
            Err(_) => all,
        }
    }

    /// Fails unless the source still exists with its original size.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        let Ok(metadata) = std::fs::metadata(&self.opened) else {
            return Err(self.changed("vanished"));
        };
        if (metadata.dev(), metadata.ino()) != self.inode {
            return Err(self.changed("was replaced by another"));
        }
        match size_of_file(&self.file) {
            Ok(size) if size == self.size_bytes => Ok(()),
            Ok(size) => Err(self.changed(&format!("went from {} to {size} bytes", self.size_bytes))),
            Err(_) => Err(self.changed("vanished")),
        }
    }

    fn changed(&self, what: &str) -> Error {
        Error::SourceChanged {
            path: self.path.clone(),
            what: what.to_owned(),
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if self.way.load(Ordering::Relaxed) == ADVICE {
            // Pages that readahead fetched beyond the last read, and pages on the edges of several threads' windows.
            let _ = posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
    }
}

/// The reads in flight of one disk.
#[derive(Default)]
struct Flights {
    count: Mutex<u32>,
    landed: Condvar,
}

/// One read in flight; it ends when this is dropped.
struct Flight<'a>(&'a Flights);

impl Flights {
    fn begin(&self) -> Flight<'_> {
        let mut count = self.count.lock();
        self.landed.wait_while(&mut count, |count| *count >= MAX_IN_FLIGHT);
        *count += 1;
        READING.lock().change(1);
        Flight(self)
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        READING.lock().change(-1);
        *self.0.count.lock() -= 1;
        self.0.landed.notify_one();
    }
}

/// Time during which this process had reads in flight, of any disk.
struct Reading {
    in_flight: i64,
    since: Option<Instant>,
    before: Duration,
}

/// One for the process and not for each disk: it is compared with the time for which the kernel saw processes wait.
static READING: Mutex<Reading> = Mutex::new(Reading {
    in_flight: 0,
    since: None,
    before: Duration::ZERO,
});

impl Reading {
    fn change(&mut self, by: i64) {
        self.in_flight += by;
        match (self.in_flight, self.since) {
            (0, Some(since)) => {
                self.before += since.elapsed();
                self.since = None;
            }
            (1, None) => self.since = Some(Instant::now()),
            _ => {}
        }
    }
}

/// Returns the time since its start during which this process had at least one read of a disk in flight.
pub(crate) fn time_reading() -> Duration {
    let reading = READING.lock();
    reading.before + reading.since.map_or(Duration::ZERO, |since| since.elapsed())
}

fn read_direct(file: &File, offset: u64, len: usize, buffer: &mut [u8]) -> io::Result<usize> {
    let aligned = len.next_multiple_of(ALIGN).min(buffer.len());
    // It can return more than requested if the file grew; that is not part of the backup.
    file.read_at(&mut buffer[..aligned], offset).map(|read| read.min(len))
}

fn is_refusal(error: &io::Error) -> bool {
    use nix::libc::{EINVAL, ENOSYS, EOPNOTSUPP};
    matches!(error.raw_os_error(), Some(EINVAL | ENOSYS | EOPNOTSUPP))
}

/// Describes a kind of file, for a message.
pub(crate) fn describe(kind: std::fs::FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_fifo() {
        "a pipe"
    } else {
        "a socket"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        // Not in /tmp, which may be a tmpfs without direct I/O.
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        file.write_all(bytes).expect("writes");
        file
    }

    fn read(source: &Source, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut buffer = AlignedBuffer::new(len);
        source.read(offset, len, &mut buffer)?;
        Ok(buffer.as_slice()[..len].to_vec())
    }

    #[test]
    fn every_read_mode_returns_the_same_bytes_up_to_an_odd_end() {
        let bytes: Vec<u8> = (0..3_000_001_u32).map(|i| (i % 253) as u8).collect();
        let file = file(&bytes);
        let source = Source::open(file.path()).expect("opens");
        for way in [BY_RANGE, DONT_CACHE, DIRECT, ADVICE] {
            source.go(way);
            assert_eq!(read(&source, 0, 1 << 20).expect("reads"), bytes[..1 << 20]);
            let tail = bytes.len() - (2 << 20);
            assert_eq!(
                read(&source, 2 << 20, tail).expect("reads"),
                bytes[2 << 20..],
                "way {way}"
            );
        }
    }

    #[test]
    fn what_is_cached_is_told_apart() {
        let file = file(&vec![1; 4 << 20]);
        file.as_file().sync_all().expect("syncs");
        let advise = |advice| posix_fadvise(file.as_file(), 0, 0, advice).expect("advises");
        // The tests need Linux 6.5.
        let is_cached = |offset| sys::is_cached(file.as_file(), offset, 1 << 20).expect("tells");
        // No readahead, so that only what is read gets cached.
        advise(PosixFadviseAdvice::POSIX_FADV_RANDOM);
        advise(PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        assert_eq!([0, 2 << 20].map(is_cached), [false; 2]);
        let mut buffer = vec![0; 4096];
        file.as_file().read_exact_at(&mut buffer, 2 << 20).expect("reads");
        assert_eq!([0, 2 << 20].map(is_cached), [false, true]);
    }

    #[test]
    fn at_most_four_reads_are_in_flight_and_their_time_is_counted_once() {
        let flights = Flights::default();
        let most = std::sync::atomic::AtomicU32::new(0);
        let before = time_reading();
        std::thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let _flight = flights.begin();
                        most.fetch_max(*flights.count.lock(), Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(2));
                    }
                });
            }
        });
        assert!((1..=MAX_IN_FLIGHT).contains(&most.into_inner()));
        assert_eq!(*flights.count.lock(), 0);
        // 60 flights of 2 ms, 4 at a time.
        assert!(time_reading() - before >= Duration::from_millis(30));
    }

    #[test]
    fn holes_are_found() {
        let file = file(b"x");
        file.as_file().set_len(10 << 20).expect("grows");
        file.as_file().write_all_at(b"y", 5 << 20).expect("writes");
        let source = Source::open(file.path()).expect("opens");
        assert_eq!(source.next_data(0).expect("data").start, 0);
        let second = source.next_data(1 << 20).expect("data");
        assert!(second.contains(&(5 << 20)) && second.start > 1 << 20, "{second:?}");
        assert_eq!(source.next_data(6 << 20), None);
        assert_eq!(source.next_data(10 << 20), None);
    }

    #[test]
    fn a_source_that_shrinks_grows_or_vanishes_is_detected() {
        let file = file(&[1; 100_000]);
        let source = Source::open(file.path()).expect("opens");
        source.check_unchanged().expect("is unchanged");
        file.as_file().set_len(50_000).expect("shrinks");
        assert!(matches!(read(&source, 0, 100_000), Err(Error::SourceChanged { .. })));
        assert!(source.check_unchanged().is_err());
        file.as_file().set_len(100_001).expect("grows");
        assert!(source.check_unchanged().is_err());
        file.close().expect("removes");
        let error = source.check_unchanged().expect_err("is gone").to_string();
        assert!(error.contains("vanished"), "{error}");
    }

    #[test]
    fn a_source_that_is_not_a_disk_is_refused() {
        let of = |path: &str| Source::open(Path::new(path)).err().map(|error| error.to_string());
        assert!(of("/tmp").is_some_and(|text| text.contains("a directory")));
        assert!(of("/dev/null").is_some_and(|text| text.contains("a character device")));
        assert!(of("/nowhere").is_some_and(|text| text.contains("can't open /nowhere")));
    }
}
