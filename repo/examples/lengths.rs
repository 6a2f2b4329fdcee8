//! Measures what the lengths of stored rows reveal about a file in an encrypted repository, and the cost of hiding
//! them, for the scheme in use and for others.
//!
//! Usage: `lengths FILE`; a tar of /usr/lib or the image of a file system is a representative example.
//!
//! A block is recognized if no other block of the file has the same lengths. The bits are the entropy of a block's
//! lengths within the file, at most log2 of the number of blocks.

#![allow(clippy::print_stdout, reason = "this is a command")]

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;

use vbk_repo::block::{BlockSize, Hashing, is_zero};
use vbk_repo::codec::{Compression, Sealer};
use vbk_repo::store::encrypted::rows::{ROW_BYTES, STEP_BYTES, padded};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Maps the stored lengths of a block's pages to the observable lengths: those of its rows.
type Scheme = Box<dyn Fn(&[usize]) -> Vec<usize>>;

fn main() -> Result<()> {
    let path = std::env::args().nth(1).ok_or("usage: lengths FILE")?;
    let blocks = stored_lengths(&path)?;
    let plain: usize = blocks.iter().flatten().sum();
    println!(
        "{path}: {} blocks of 1 MiB that are not zeros, {} MiB compressed",
        blocks.len(),
        plain >> 20
    );
    println!(
        "{:34} {:>7} {:>8} {:>6} {:>11} {:>9} {:>9}",
        "rows", "cost", "classes", "bits", "recognized", "4 in row", "16 in row"
    );
    for (name, scheme) in schemes() {
        let seen: Vec<_> = blocks.iter().map(|lengths| scheme(lengths)).collect();
        let stored: usize = seen.iter().flatten().sum();
        println!(
            "{name:34} {:>6.1}% {:>8} {:>6.1} {:>11} {:>9} {:>9}",
            (stored as f64 / plain as f64 - 1.0) * 100.0,
            counts(&seen, 1).len(),
            bits(&seen),
            unique(&seen, 1),
            unique(&seen, 4),
            unique(&seen, 16),
        );
    }
    println!(
        "in use: rows of {} KiB, steps of {} KiB",
        ROW_BYTES >> 10,
        STEP_BYTES >> 10
    );
    Ok(())
}

fn schemes() -> Vec<(String, Scheme)> {
    let mut all: Vec<(String, Scheme)> = vec![("a page each, not padded".into(), Box::new(<[usize]>::to_vec))];
    for kib in [4, 8, 16] {
        // Pages of zeros are stored, so that they can't be recognized.
        let page = move |length: &usize| (*length).max(1).next_multiple_of(kib << 10);
        let scheme = move |lengths: &[usize]| lengths.iter().map(page).collect();
        all.push((format!("a page each, steps of {kib} KiB"), Box::new(scheme)));
    }
    all.push((
        "a page each, PADME".into(),
        Box::new(|lengths| lengths.iter().map(|length| padme((*length).max(1))).collect()),
    ));
    for kib in [4, 16, 32, 128] {
        let block = move |lengths: &[usize]| vec![lengths.iter().sum::<usize>().max(1).next_multiple_of(kib << 10)];
        all.push((format!("equal rows, steps of {kib} KiB"), Box::new(block)));
    }
    all.push((
        format!("equal rows, steps of {} KiB (in use)", STEP_BYTES >> 10),
        Box::new(|lengths| vec![padded(lengths.iter().sum())]),
    ));
    all
}

/// Nikitin et al., Reducing Metadata Leakage from Encrypted Files, 2019: keeps as many leading bits as the length of
/// the length has.
fn padme(length: usize) -> usize {
    let exponent = length.ilog2();
    let kept = exponent.checked_ilog2().unwrap_or(0) + 1;
    length.next_multiple_of(1 << exponent.saturating_sub(kept))
}

fn stored_lengths(path: &str) -> Result<Vec<Vec<usize>>> {
    let mut file = File::open(path)?;
    let mut sealer = Sealer::new(Compression::default())?;
    let mut blocks = Vec::new();
    let size = BlockSize::DEFAULT.bytes() as u64;
    loop {
        let mut plain = Vec::new();
        if file.by_ref().take(size).read_to_end(&mut plain)? == 0 {
            return Ok(blocks);
        }
        if !is_zero(&plain) {
            let sealed = sealer.seal(&plain, &Hashing::Plain.block(&plain))?;
            blocks.push(sealed.pages.iter().map(Vec::len).collect());
        }
    }
}

fn counts(seen: &[Vec<usize>], run: usize) -> HashMap<&[Vec<usize>], usize> {
    let mut counts = HashMap::new();
    for window in seen.windows(run) {
        *counts.entry(window).or_insert(0) += 1;
    }
    counts
}

/// Returns the number of runs of blocks whose lengths no other run has.
fn unique(seen: &[Vec<usize>], run: usize) -> usize {
    counts(seen, run).values().filter(|count| **count == 1).count()
}

fn bits(seen: &[Vec<usize>]) -> f64 {
    let all = seen.len() as f64;
    counts(seen, 1)
        .values()
        .map(|count| *count as f64 / all)
        .map(|share| -share * share.log2())
        .sum()
}
