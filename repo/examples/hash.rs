//! Hashes a file by BLAKE3 on all processors, one block at a time, for the limits of `scripts/bench`: the time that this takes
//! from the page cache is the least that a backup can take.
//!
//! Usage: `hash FILE`

#![allow(clippy::print_stdout, reason = "this is a command")]

use std::fs::File;
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use vbk_repo::block::{BlockIndex, BlockSize, Hashing};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    let path = std::env::args().nth(1).ok_or("usage: hash FILE")?;
    let file = File::open(&path)?;
    let (size_bytes, next) = (file.metadata()?.len(), AtomicU64::new(0));
    let count = thread::available_parallelism().map_or(1, NonZero::get);
    let ids = thread::scope(|scope| {
        let workers: Vec<_> = (0..count)
            .map(|_| scope.spawn(|| hash_blocks(&file, size_bytes, &next)))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| "a worker panicked")?)
            .sum::<Result<u64>>()
    })?;
    println!("{path}: {ids} blocks");
    Ok(())
}

/// Hashes blocks until none is left, and returns their number.
fn hash_blocks(file: &File, size_bytes: u64, next: &AtomicU64) -> Result<u64> {
    let size = BlockSize::DEFAULT;
    let mut plain = vec![0; size.bytes()];
    let mut done = 0;
    loop {
        let index = BlockIndex(next.fetch_add(1, Ordering::Relaxed));
        let len = size.len_of(index, size_bytes);
        if len == 0 {
            return Ok(done);
        }
        file.read_exact_at(&mut plain[..len], size.offset_of(index))?;
        std::hint::black_box(Hashing::Plain.block(&plain[..len]));
        done += 1;
    }
}
