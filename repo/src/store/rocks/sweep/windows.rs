//! The windows of a sweep: which ones are swept, and which of them at once.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::store::{Located, Swept};

/// Windows that are compacted together: the live blocks in them bound the free space that a sweep needs.
const WINDOWS_AT_ONCE: u64 = 4;
/// Live bytes that are moved at once, besides those that share files with them, and one window at least. A sweep can't be
/// interrupted while they are written, so this is how long a backup waits for it.
const MOVED_BYTES: u64 = 1 << 30;

/// Content of one window.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Window {
    pub(super) live_bytes: u64,
    pub(super) unused_bytes: u64,
    pub(super) unused_blocks: u64,
}

impl Window {
    /// Counts a block here, and in the sums.
    pub(super) fn add(&mut self, located: &Located, is_live: bool, sums: &mut Swept) {
        let bytes = u64::from(located.stored_bytes);
        if is_live {
            self.live_bytes += bytes;
            sums.live_blocks += 1;
            sums.live_bytes += bytes;
        } else {
            self.unused_bytes += bytes;
            self.unused_blocks += 1;
            sums.unused_blocks += 1;
            sums.unused_bytes += bytes;
        }
    }
}

/// Returns the windows with the largest unused shares, until the rest is small enough.
pub(super) fn choose(windows: &BTreeMap<u64, Window>, live_bytes: u64, max_unused: f64) -> Vec<u64> {
    let mut unused: u64 = windows.values().map(|window| window.unused_bytes).sum();
    let may_stay = (live_bytes as f64 * max_unused) as u64;
    let mut by_share: Vec<_> = windows.iter().filter(|(_, window)| window.unused_blocks > 0).collect();
    by_share.sort_by(|(_, one), (_, other)| share(other).total_cmp(&share(one)));
    let mut chosen = Vec::new();
    for (number, window) in by_share {
        if unused <= may_stay {
            break;
        }
        unused -= window.unused_bytes;
        chosen.push(*number);
    }
    chosen
}

fn share(window: &Window) -> f64 {
    window.unused_bytes as f64 / (window.unused_bytes + window.live_bytes).max(1) as f64
}

/// Returns the number of windows in a pass with at most `most_blocks` unused blocks; at least one window.
pub(super) fn length_of_pass(numbers: &[u64], windows: &BTreeMap<u64, Window>, most_blocks: u64) -> usize {
    let mut blocks = 0;
    let fits = |number: &&u64| {
        blocks += windows[*number].unused_blocks;
        blocks <= most_blocks
    };
    numbers.iter().take_while(fits).count().max(1)
}

/// Cuts sorted numbers into runs of at most [`WINDOWS_AT_ONCE`], and of about [`MOVED_BYTES`].
pub(super) fn neighbours(numbers: &[u64], live_bytes: &dyn Fn(u64) -> u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut moved_bytes = 0;
    for &number in numbers {
        let more_bytes = live_bytes(number);
        match runs.last_mut() {
            Some(run)
                if run.end == number
                    && run.end - run.start < WINDOWS_AT_ONCE
                    && moved_bytes + more_bytes <= MOVED_BYTES =>
            {
                run.end += 1;
                moved_bytes += more_bytes;
            }
            _ => {
                runs.push(number..number + 1);
                moved_bytes = more_bytes;
            }
        }
    }
    runs
}

pub(super) fn encode(ranges: &[Range<u64>]) -> Vec<u8> {
    let numbers = ranges.iter().flat_map(|range| [range.start, range.end]);
    numbers.flat_map(u64::to_be_bytes).collect()
}

pub(super) fn decode(row: &[u8]) -> Vec<Range<u64>> {
    let (numbers, _) = row.as_chunks::<8>();
    let (ranges, _) = numbers.as_chunks::<2>();
    ranges
        .iter()
        .map(|[start, end]| u64::from_be_bytes(*start)..u64::from_be_bytes(*end))
        .collect()
}
