//! Merges small files of `blocks` into larger ones.
//!
//! Each flush of `blocks` leaves a table and a blob file: of at most 48 MiB, and in a night of small guests often of a few blocks.
//! RocksDB never merges them by itself, because their keys do not overlap. But each commit and each opening of the store takes time
//! for every file that is there. So a sweep that finds many small tables merges neighbours, by a compaction that also moves their
//! blobs, into blob files of at most [`BLOB_FILE_BYTES`]. What was merged is no longer small: a byte is moved once, or a few times
//! where only little is stored in a day.
//!
//! A merge stays within a window, and leaves tables that reach into the next one alone: the files of a window without live blocks
//! go as a whole, and nothing else is in them.
//!
//! A compaction replaces files completely or not at all, and nothing is noted of a merge, so it may end at any moment. What it would
//! move is read before: a compaction that meets a damaged page would stop the store.
//!
//! The files that were merged stay on the disk until a view without them is published, and no reader uses one with them any more.
//! Merging ends when [`HELD_BYTES`] do not come back.
//!
//! [`BLOB_FILE_BYTES`]: super::super::options::BLOB_FILE_BYTES

use std::cmp::Reverse;

use super::super::rows::sequence_of;
use super::Sweep;
use super::compaction::{Keys, Table, flush_blocks, move_live, moved_bytes, rewritten, tables};
use crate::error::Result;
use crate::file_system::file_system;
use crate::store::Swept;

/// What is merged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Merging {
    /// Small tables that may stay, of those that could be merged.
    pub(super) may_stay: usize,
    /// Plain bytes from which on a table is not small.
    pub(super) small_bytes: u64,
    /// Plain bytes that are merged at once: a sweep can't be interrupted meanwhile.
    pub(super) run_bytes: u64,
    /// Plain bytes that are merged in one sweep.
    pub(super) all_bytes: u64,
}

impl Merging {
    /// A thousand files cost a commit a millisecond, a tenth of what its syncs take. Slow disks merge the most that one sweep may
    /// merge in about an hour.
    pub(super) const USUAL: Self = Self {
        // Few in tests, so that all that test sweeps merge too.
        may_stay: if cfg!(test) { 8 } else { 1000 },
        small_bytes: 256 << 20,
        run_bytes: 1 << 30,
        all_bytes: 128 << 30,
    };
}

/// Fewest tables that are worth a merge.
const FEWEST: usize = 8;
/// Most tables that are merged at once: a compaction holds two descriptors and some memory for each.
const MOST: usize = 1000;
/// Room that merged files may take before they are removed: four times what is merged at once.
const HELD_BYTES: u64 = 4 << 30;

/// Tables that follow each other.
#[derive(Debug, Clone, PartialEq)]
struct Run {
    keys: Keys,
    tables: usize,
    bytes: u64,
}

impl Sweep<'_> {
    /// Merges files until few small ones are left, or enough was done. Runs `step` before each merge; its error ends them.
    pub(super) fn merge(&mut self, merging: Merging, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<()> {
        flush_blocks(self.store)?;
        let runs = merging.choose(&tables(&self.store.reader)?, self.window_blocks);
        if runs.is_empty() {
            return Ok(());
        }
        let free_bytes = self.free_bytes()?;
        let has_room = |left_bytes| left_bytes >= HELD_BYTES.max(free_bytes.saturating_sub(HELD_BYTES));
        runs.iter().try_for_each(|run| {
            step(&self.swept)?;
            match has_room(self.free_bytes()?) {
                true => self.merge_run(run, step),
                false => Ok(()),
            }
        })
    }

    fn merge_run(&self, run: &Run, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<()> {
        let reader = &self.store.reader;
        // A compaction takes what overlaps too, which may have changed since.
        if rewritten(&tables(reader)?, &run.keys) != run.keys {
            return Ok(());
        }
        if moved_bytes(reader, &run.keys, &mut || step(&self.swept))?.is_none() {
            tracing::warn!("small files beside damaged blocks were not merged: `vbk verify` finds those blocks");
            return Ok(());
        }
        move_live(self.store, &run.keys)?;
        // A view that is published now leaves the old files out.
        self.note_begun()
    }

    pub(super) fn free_bytes(&self) -> Result<u64> {
        Ok(file_system(self.store.reader.db.path())?.free_bytes)
    }
}

impl Merging {
    /// Chooses which neighbours are merged, those with the smallest files first.
    fn choose(&self, tables: &[Table], window_blocks: u64) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        // The window of the last run, while it may grow.
        let mut open = None;
        let mut reached = None;
        for table in tables {
            let (first, last) = table.keys.clone().into_inner();
            let [window, end] = [first, last].map(|key| sequence_of(&key) / window_blocks);
            let overlaps = reached >= Some(first);
            reached = reached.max(Some(last));
            if overlaps || window != end || table.plain_bytes >= self.small_bytes {
                open = None;
                continue;
            }
            let fits = |run: &&mut Run| run.tables < MOST && run.bytes + table.plain_bytes <= self.run_bytes;
            match runs.last_mut().filter(|_| open == Some(window)).filter(fits) {
                Some(run) => {
                    run.keys = *run.keys.start()..=last;
                    run.tables += 1;
                    run.bytes += table.plain_bytes;
                }
                None => runs.push(Run {
                    keys: first..=last,
                    tables: 1,
                    bytes: table.plain_bytes,
                }),
            }
            open = Some(window);
        }
        runs.retain(|run| run.tables >= FEWEST);
        let mut small: usize = runs.iter().map(|run| run.tables).sum();
        let mut bytes = 0;
        runs.sort_by_key(|run| Reverse(run.tables));
        runs.retain(|run| {
            let is_chosen = small > self.may_stay && bytes < self.all_bytes;
            if is_chosen {
                small -= run.tables;
                bytes += run.bytes;
            }
            is_chosen
        });
        runs
    }
}

#[cfg(test)]
mod tests;
