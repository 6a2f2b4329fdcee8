//! Fills a new repository with many tiny blocks, half of which only one of two backups names, forgets that backup, and
//! prunes. This measures the time and memory of a prune by the number of blocks alone. `scripts/bench-prune` runs it.
//!
//! Usage: `many_blocks DIRECTORY BLOCKS`

#![allow(clippy::print_stdout, reason = "this is a command")]

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use vbk_repo::backup::{Backup, Consistency, Image, RECORD_FORMAT};
use vbk_repo::block::{BlockIndex, BlockSize};
use vbk_repo::codec::{Compression, Sealer};
use vbk_repo::manifest::Slot;
use vbk_repo::repository::{CreateOptions, Manager, Repository};
use vbk_repo::store::PruneOptions;
use vbk_repo::writer::ImageWriter;

const RUN: u64 = 1024;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: many_blocks DIRECTORY BLOCKS";
    let directory = arguments.next().ok_or(usage)?;
    let blocks: u64 = arguments.next().ok_or(usage)?.parse()?;
    let threads = std::thread::available_parallelism()?.get();
    let repository = Repository::create(Path::new(&directory), &CreateOptions::plain(BlockSize::MIN))?;
    let mut writer = repository.manager("bench", &mut |_| false)?;
    let clock = Instant::now();
    fill(&writer, blocks / 2)?;
    let filled = clock.elapsed();
    writer.amend(&["old@2026-01-01T00-00-00Z".into()], &[])?;
    // clear_refs, see proc_pid_status(5): resets the peak.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let memory_before = memory_mib();
    let clock = Instant::now();
    let options = PruneOptions {
        max_unused: 0.0,
        dry_run: false,
        empty_bin: false,
    };
    let pruned = writer.prune(options, threads, &AtomicBool::new(false), &|_| ())?;
    let took = clock.elapsed();
    assert!(pruned.swept.live_blocks >= blocks / 2, "all that is used is kept");
    assert!(
        pruned.swept.removed_blocks >= blocks / 2 - blocks / 200,
        "all but a hundredth of what is unused is removed"
    );
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "{blocks} blocks, half of them unreferenced, {threads} threads: filled in {:.1} s; marked in {:.2} s, pruned in {:.1} s \
         in all; {} of {} MiB given back; {} MiB of memory before the prune, {} MiB at its peak",
        filled.as_secs_f64(),
        pruned.marked.as_secs_f64(),
        took.as_secs_f64(),
        mib(pruned.used_before_bytes - pruned.used_after_bytes),
        mib(pruned.used_before_bytes),
        memory_before,
        memory_mib()
    );
    Ok(())
}

/// Stores two images of `count` blocks each, alternately, so that every window of the store contains equal parts of
/// both.
fn fill(writer: &Manager, count: u64) -> Result<()> {
    let store = writer.store();
    let size_bytes = count << 16;
    let images = [0_u64, 1].map(|which| (which, ImageWriter::create(store, BlockSize::MIN, size_bytes)));
    let mut sealer = Sealer::new(Compression::None)?;
    for first in (0..count).step_by(RUN as usize) {
        for (which, image) in &images {
            let mut sealed = Vec::new();
            let mut slots: Vec<Slot> = Vec::new();
            for number in first..count.min(first + RUN) {
                let plain = [which.to_le_bytes(), (number + 1).to_le_bytes()].concat();
                let hashes = store.hashing().block(&plain);
                slots.push(Some(hashes.id));
                sealed.push(sealer.seal(&plain, &hashes)?);
            }
            store.put(sealed)?;
            image.set(BlockIndex(first), &slots)?;
        }
        // Barriers at the same interval as in a backup.
        if first % (RUN * 100) == 0 {
            store.flush()?;
        }
    }
    for (guest, (_, image)) in ["old", "new"].into_iter().zip(images) {
        let image = Image {
            data_bytes: size_bytes,
            new_bytes: size_bytes,
            ..Image::new("vda".parse()?, "bench", size_bytes, image.finish()?)
        };
        let backup = Backup {
            format: RECORD_FORMAT,
            guest: guest.parse()?,
            time: "2026-01-01T00-00-00Z".parse()?,
            sequence: 0,
            duration_ms: 0,
            host: String::new(),
            vbk_version: String::new(),
            consistency: Consistency::Live,
            images: vec![image],
            files: Vec::new(),
        };
        writer.writer().commit(backup)?;
    }
    Ok(())
}

/// Returns the peak memory of this process since its reset.
fn memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) >> 10
}
