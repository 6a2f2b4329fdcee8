//! Merges small files of `blocks` into larger ones.
//!
//! Each flush of `blocks` leaves a table and a blob file, of a night of small guests often only a few blocks. RocksDB never merges
//! them by itself: their keys do not overlap. But each further flush, and each opening of the store, costs time for every file
//! that is there. So a sweep merges the smallest files once a store has many of them, and those of a large store in the end have
//! the size of [`BLOB_FILE_BYTES`], or a little less. Each byte is written twice then, and no more: a merged table is not small.
//!
//! A compaction replaces files completely or not at all, so a merge may end at any moment, and nothing is noted of it.
//!
//! [`BLOB_FILE_BYTES`]: super::super::options::BLOB_FILE_BYTES

use std::cmp::Reverse;

use nix::sys::statvfs::statvfs;
use rocksdb::WriteBatch;

use super::super::RocksStore;
use super::super::options::TABLE_BYTES;
use super::compaction::{Keys, Table, collect_garbage, is_whole, move_live, tables};
use super::write_next;
use crate::error::{Error, Result};

/// What is merged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Merging {
    /// Small tables that may stay.
    pub(super) may_stay: usize,
    /// Bytes of a table from which on it is not small.
    pub(super) small_bytes: u64,
    /// Bytes of tables that are merged at once.
    pub(super) merged_bytes: u64,
}

impl Merging {
    /// 2,000 files cost a flush less than its syncs do. The tables that are merged at once stand for up to 2 GiB of plain blocks,
    /// which are moved within seconds.
    pub(super) const USUAL: Self = Self {
        may_stay: 1000,
        small_bytes: TABLE_BYTES / 4,
        merged_bytes: TABLE_BYTES,
    };
}

/// Fewest tables that are worth a merge.
const FEWEST: usize = 8;
/// Room that must be free: twice what is moved at once.
const ROOM_BYTES: u64 = 4 << 30;

/// Merges files until few small ones are left. Leaves damaged ones alone, and does nothing where little room is free. Runs
/// `step` before each merge.
pub(super) fn merge(store: &RocksStore, merging: Merging, step: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    let tables = tables(&store.reader)?;
    let runs = merging.choose(&tables);
    if runs.is_empty() {
        return Ok(());
    }
    collect_garbage(store, true)?;
    let result = runs.iter().try_fold(0, |damaged, run| {
        step()?;
        Ok(damaged + usize::from(!merge_run(store, &tables, run)?))
    });
    collect_garbage(store, false)?;
    if result? > 0 {
        tracing::warn!("small files with damaged blocks in them were not merged: `vbk verify` finds those blocks");
    }
    Ok(())
}

/// Returns `false` if something in the run is damaged.
fn merge_run(store: &RocksStore, tables: &[Table], run: &Run) -> Result<bool> {
    let path = store.reader.db.path();
    let stat = statvfs(path).map_err(|errno| Error::io("read", path)(errno.into()))?;
    if stat.blocks_available() * stat.fragment_size() < ROOM_BYTES {
        tracing::debug!("small files stay: there is little room");
        return Ok(true);
    }
    if !is_whole(&store.reader, tables, &run.keys, &[])? {
        return Ok(false);
    }
    move_live(store, &run.keys)?;
    // A view that is published now leaves the old files out, which frees their space.
    write_next(store, "give space back", WriteBatch::default())?;
    Ok(true)
}

/// Tables that follow each other.
#[derive(Debug, Clone, PartialEq)]
struct Run {
    keys: Keys,
    tables: usize,
    bytes: u64,
}

impl Merging {
    /// Chooses which neighbours are merged: those with the smallest files first.
    fn choose(&self, tables: &[Table]) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let mut may_grow = false;
        for table in tables {
            let is_small = table.bytes < self.small_bytes;
            match runs.last_mut() {
                Some(run) if may_grow && is_small && run.bytes < self.merged_bytes => {
                    run.keys = *run.keys.start()..=*run.keys.end().max(table.keys.end());
                    run.tables += 1;
                    run.bytes += table.bytes;
                }
                _ if is_small => runs.push(Run {
                    keys: table.keys.clone(),
                    tables: 1,
                    bytes: table.bytes,
                }),
                _ => {}
            }
            may_grow = is_small;
        }
        runs.retain(|run| run.tables >= FEWEST);
        let mut small: usize = runs.iter().map(|run| run.tables).sum();
        // What a backup stores next follows there.
        if may_grow {
            runs.pop_if(|run| run.bytes < self.merged_bytes);
        }
        runs.sort_by_key(|run| Reverse(run.tables));
        runs.retain(|run| {
            let is_needed = small > self.may_stay;
            small -= if is_needed { run.tables } else { 0 };
            is_needed
        });
        runs
    }
}

#[cfg(test)]
mod tests;
