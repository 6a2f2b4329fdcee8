//! Fills a new repository with many tiny blob files, and prunes it now and then, which merges such files. Measures at several
//! numbers of them what a commit costs, and the opening of a writer and of a reader. `scripts/bench-growth` runs it.
//!
//! Usage: `many_files DIRECTORY COUNT...`, counts of written files in ascending order

#![allow(clippy::print_stdout, reason = "this is a command")]

use std::fs::DirEntry;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use vbk_repo::backup::{Backup, Consistency, Image, RECORD_FORMAT};
use vbk_repo::block::{BlockIndex, BlockSize};
use vbk_repo::codec::{Compression, Sealer};
use vbk_repo::name::BackupTime;
use vbk_repo::repository::{CreateOptions, Repository, Writer};
use vbk_repo::store::PruneOptions;
use vbk_repo::writer::ImageWriter;

/// Blob files that are written between two prunes.
const NIGHT: u64 = 2000;
/// Commits that are measured at each number of files.
const COMMITS: usize = 41;
/// A page that is smaller lies in no blob file.
const PLAIN_BYTES: usize = 2000;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: many_files DIRECTORY COUNT...";
    let directory = arguments.next().ok_or(usage)?;
    let counts = arguments
        .map(|count| count.parse())
        .collect::<std::result::Result<Vec<u64>, _>>()?;
    let repository = Repository::create(Path::new(&directory), &CreateOptions::plain(BlockSize::MIN))?;
    let store = Path::new(&directory).join("store");
    let mut made = Made(1);
    // Something that a backup names, so that a prune may leave the rest unused.
    made.commit(&repository.writer("bench", &mut |_| false)?)?;
    let mut written = 0;
    for count in counts {
        let clock = Instant::now();
        let mut pruned = Duration::ZERO;
        while written < count {
            let night = count.min(written + NIGHT);
            let writer = repository.writer("bench", &mut |_| false)?;
            while written < night {
                made.block(&writer)?;
                writer.store().flush()?;
                written += 1;
            }
            drop(writer);
            pruned += prune(&repository)?;
        }
        let filled = clock.elapsed() - pruned;
        let files = blob_files(&store)?;
        let writer = repository.writer("bench", &mut |_| false)?;
        // The first commit after a pause shows all that is new since the last one.
        made.commit(&writer)?;
        let commits = timed(COMMITS, || made.commit(&writer))?;
        drop(writer);
        let writers = timed(3, || {
            repository.writer("bench", &mut |_| false).map(drop).map_err(Into::into)
        })?;
        let readers = timed(3, || repository.view().map(drop).map_err(Into::into))?;
        println!(
            "{count} blob files, {files} are there: a commit {:.1} ms (the slowest of {COMMITS} {:.1} ms), a writer opens in {:.0} \
             ms, a reader in {:.0} ms; filled in {:.0} s and {:.0} s of prunes; {} MiB of memory at the peak",
            ms(commits[COMMITS / 2]),
            ms(commits[COMMITS - 1]),
            ms(writers[1]),
            ms(readers[1]),
            filled.as_secs_f64(),
            pruned.as_secs_f64(),
            memory_mib(),
        );
    }
    Ok(())
}

fn prune(repository: &Repository) -> Result<Duration> {
    let clock = Instant::now();
    let mut manager = repository.manager("bench", &mut |_| false)?;
    // Most blocks are those of no backup, and have to stay.
    let options = PruneOptions {
        max_unused: f64::MAX,
        dry_run: false,
        empty_bin: false,
    };
    manager.prune(options, 2, &AtomicBool::new(false), &|_| ())?;
    drop(manager);
    Ok(clock.elapsed())
}

fn blob_files(store: &Path) -> Result<usize> {
    let is_blob = |file: &DirEntry| file.path().extension().is_some_and(|end| end == "blob");
    let files = std::fs::read_dir(store)?.filter_map(std::result::Result::ok);
    Ok(files.filter(is_blob).count())
}

/// Number of the next block.
struct Made(u64);

impl Made {
    /// Puts a block of noise.
    fn block(&mut self, writer: &Writer) -> Result<vbk_repo::id::BlockId> {
        let mut noise = self.0;
        self.0 += 1;
        let mut next = || {
            noise = noise
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (noise >> 56) as u8
        };
        let plain: Vec<u8> = (0..PLAIN_BYTES).map(|_| next()).collect();
        let hashes = writer.store().hashing().block(&plain);
        writer
            .store()
            .put(vec![Sealer::new(Compression::None)?.seal(&plain, &hashes)?])?;
        Ok(hashes.id)
    }

    /// Commits a backup of a disk with one new block.
    fn commit(&mut self, writer: &Writer) -> Result<()> {
        let id = self.block(writer)?;
        let size_bytes = 1 << 16;
        let image = ImageWriter::create(writer.store(), BlockSize::MIN, size_bytes);
        image.set(BlockIndex(0), &[Some(id)])?;
        let seconds = SignedDuration::from_secs(i64::try_from(self.0)?);
        let start: Timestamp = "2026-01-01T00:00:00Z".parse()?;
        let committed = writer.commit(Backup {
            format: RECORD_FORMAT,
            guest: "bench".parse()?,
            time: BackupTime::new(start + seconds),
            sequence: 0,
            duration_ms: 0,
            host: String::new(),
            vbk_version: String::new(),
            consistency: Consistency::Live,
            images: vec![Image::new("vda".parse()?, "bench", size_bytes, image.finish()?)],
            files: Vec::new(),
        })?;
        match committed.unpublished {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}

/// Times of so many runs, in order.
fn timed(count: usize, mut run: impl FnMut() -> Result<()>) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for _ in 0..count {
        let clock = Instant::now();
        run()?;
        times.push(clock.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Returns the peak memory of this process.
fn memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) >> 10
}
