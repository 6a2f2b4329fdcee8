//! Fills a new repository with the backups of many guests over many days, of tiny blocks, and measures what grows with them: a
//! backup of the next day, the marking of a prune, a verification's walk, and the statistics, each with its memory.
//! `scripts/bench-growth` runs it.
//!
//! Usage: `many_guests DIRECTORY GUESTS DAYS BLOCKS`: so many blocks in the disk of each guest, of which 3 % change each day, in
//! scattered places

#![allow(clippy::print_stdout, reason = "this is a command")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use vbk_repo::backup::{Backup, Consistency, Image, RECORD_FORMAT};
use vbk_repo::block::{BlockIndex, BlockSize};
use vbk_repo::codec::{Compression, Sealed, Sealer};
use vbk_repo::id::BlockId;
use vbk_repo::manifest::{SEGMENT_SLOTS, SegmentSlots};
use vbk_repo::name::BackupTime;
use vbk_repo::repository::{CreateOptions, Manager, Repository};
use vbk_repo::slots::SlotReader;
use vbk_repo::stats::stats;
use vbk_repo::store::PruneOptions;
use vbk_repo::verify::{Scope, verify};
use vbk_repo::writer::{Base, ImageWriter};

/// One block of so many changes each day.
const CHANGED: u64 = 33;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: many_guests DIRECTORY GUESTS DAYS BLOCKS";
    let directory = arguments.next().ok_or(usage)?;
    let mut number = || -> Result<u64> { Ok(arguments.next().ok_or(usage)?.parse()?) };
    let (guests, days, blocks) = (number()?, number()?, number()?);
    let repository = Repository::create(Path::new(&directory), &CreateOptions::plain(BlockSize::MIN))?;
    let clock = Instant::now();
    let took = {
        let manager = repository.manager("bench", &mut |_| false)?;
        let mut guests: Vec<_> = (0..guests).map(|guest| Guest::new(guest, blocks)).collect();
        let mut took = Vec::new();
        for day in 0..days {
            for guest in &mut guests {
                took.push(guest.back_up(&manager, day)?);
            }
        }
        took
    };
    println!(
        "{} backups of {guests} guests with {blocks} blocks each: filled in {:.0} s",
        guests * days,
        clock.elapsed().as_secs_f64()
    );
    if days > 20 {
        // Single backups differ by what RocksDB does beside them.
        let early = median(&took[guests as usize..][..10 * guests as usize]);
        let late = median(&took[took.len() - 10 * guests as usize..]);
        println!(
            "a next day: {:.1} ms at first (2nd to 11th backup), {:.1} ms at last, {:.2} times as long",
            ms(early),
            ms(late),
            late.as_secs_f64() / early.as_secs_f64()
        );
    }
    measure(&repository)
}

fn measure(repository: &Repository) -> Result<()> {
    let threads = std::thread::available_parallelism()?.get();
    let never = AtomicBool::new(false);
    let mut manager = repository.manager("bench", &mut |_| false)?;
    let before = reset_memory()?;
    let options = PruneOptions {
        max_unused: 0.0,
        dry_run: true,
        empty_bin: false,
    };
    let pruned = manager.prune(options, threads, &never, &|_| ())?;
    let stored = pruned.swept.live_blocks + pruned.swept.unused_blocks;
    report("mark", pruned.marked, before, stored);
    drop(manager);
    let view = repository.view()?;
    let catalogue = view.catalogue()?;
    let before = reset_memory()?;
    let clock = Instant::now();
    // Hardly a block: the walk counts.
    let scope = Scope::sample(1e-9, Timestamp::now());
    let verified = verify(&*view.store(), catalogue.entries(), &scope, threads, &|_| (), &never)?;
    assert!(verified.damage.is_empty(), "all is good");
    report("walk of verify", clock.elapsed(), before, stored);
    let before = reset_memory()?;
    let clock = Instant::now();
    let counted = stats(&*view.store(), &catalogue, threads, Timestamp::now(), &never)?;
    assert_eq!(counted.unique.blocks, pruned.swept.live_blocks, "both count the same");
    report("stats", clock.elapsed(), before, stored);
    Ok(())
}

fn report(what: &str, took: Duration, before: u64, blocks: u64) {
    let more = peak_bytes().saturating_sub(before);
    println!(
        "{what}: {blocks} blocks in {:.2} s ({:.2} s for 10 million), {} MiB more memory ({:.2} bytes a block)",
        took.as_secs_f64(),
        took.as_secs_f64() * 1e7 / blocks as f64,
        more >> 20,
        more as f64 / blocks as f64
    );
}

/// A guest with one disk, as it is in its last backup.
struct Guest {
    number: u64,
    blocks: Vec<BlockId>,
    last: Option<Image>,
}

impl Guest {
    fn new(number: u64, blocks: u64) -> Self {
        Self {
            number,
            blocks: vec![BlockId([0; 32]); blocks as usize],
            last: None,
        }
    }

    /// Stores what changed, and commits the backup of a day. Returns the time that this took.
    fn back_up(&mut self, manager: &Manager, day: u64) -> Result<Duration> {
        let store = manager.writer().store();
        let count = self.blocks.len() as u64;
        let changed: Vec<u64> = (0..count).filter(|block| self.changes(*block, day)).collect();
        let mut sealer = Sealer::new(Compression::None)?;
        let mut sealed: Vec<Sealed> = Vec::with_capacity(changed.len());
        for &block in &changed {
            let plain = [self.number, block, day + 1].map(u64::to_le_bytes).concat();
            let hashes = store.hashing().block(&plain);
            self.blocks[block as usize] = hashes.id;
            sealed.push(sealer.seal(&plain, &hashes)?);
        }
        let clock = Instant::now();
        while !sealed.is_empty() {
            let rest = sealed.split_off(sealed.len().min(1024));
            store.put(std::mem::replace(&mut sealed, rest))?;
        }
        let size_bytes = count << 16;
        let base = match &self.last {
            Some(image) => Some(Arc::new(Before(SlotReader::open(store, image.manifest)?))),
            None => None,
        };
        let base = base.map(|base| base as Arc<dyn Base + '_>);
        let image = ImageWriter::after(store, BlockSize::MIN, size_bytes, base);
        for (number, slots) in self.blocks.chunks(SEGMENT_SLOTS).enumerate() {
            let slots: Vec<_> = slots.iter().copied().map(Some).collect();
            image.set(BlockIndex((number * SEGMENT_SLOTS) as u64), &slots)?;
        }
        let mut image = Image::new("vda".parse()?, "bench", size_bytes, image.finish()?);
        image.data_bytes = size_bytes;
        image.new_bytes = (changed.len() as u64) << 16;
        let start: Timestamp = "2026-01-01T00:00:00Z".parse()?;
        let committed = manager.writer().commit(Backup {
            format: RECORD_FORMAT,
            guest: format!("guest{}", self.number).parse()?,
            time: BackupTime::new(start + SignedDuration::from_hours(24 * i64::try_from(day)?)),
            sequence: 0,
            duration_ms: 0,
            host: String::new(),
            vbk_version: String::new(),
            consistency: Consistency::Live,
            images: vec![image.clone()],
            files: Vec::new(),
        })?;
        let took = clock.elapsed();
        committed.unpublished.map_or(Ok(()), Err)?;
        self.last = Some(image);
        Ok(took)
    }

    fn changes(&self, block: u64, day: u64) -> bool {
        let mixed = (block + self.number)
            .wrapping_mul(day | 1)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(31)
            .wrapping_mul(0xD6E8_FEB8_6659_FD93);
        day == 0 || (mixed >> 32).is_multiple_of(CHANGED)
    }
}

/// The image before, which is read as it is compared.
struct Before<'a>(SlotReader<'a>);

impl Base for Before<'_> {
    fn reader(&self) -> &SlotReader<'_> {
        &self.0
    }

    fn segment(&self, number: usize) -> Option<Arc<SegmentSlots>> {
        let read = self.0.segments(number..number + 1).pop()?;
        read.ok().map(Arc::new)
    }
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Resets the peak of this process's memory to what it has now, and returns that. See `proc_pid_clear_refs(5)`.
fn reset_memory() -> Result<u64> {
    std::fs::write("/proc/self/clear_refs", "5")?;
    Ok(peak_bytes())
}

fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
