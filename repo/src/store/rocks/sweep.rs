//! Removes what no backup names, and gives its space back to the file system.
//!
//! The sequence numbers are cut into windows of about 2 GiB of plain blocks. A window is swept where enough in it is
//! unused; elsewhere unused blocks stay, known and ready to be used again. So the index says at any time just which
//! blocks are there.
//!
//! What is on disk after each step of sweeping neighbouring windows:
//!
//! 1. One synced, logged batch removes the index rows and the block rows of what is unused, and names the windows in
//!    `sweeping`. Before it nothing is changed; after it the blocks are gone for every reader of the store (views keep
//!    theirs), and only their space is still taken.
//! 2. A forced compaction of the windows writes the live blocks that shared files with unused ones to new blob files and
//!    drops the old files. RocksDB does that for each file whole or not at all.
//! 3. `sweeping` is removed. A crash between 1 and 3 leaves it, and the next sweep begins with step 2 for it.
//!
//! Segments are removed in batches; each is a row of its own that nothing names any more.
//!
//! Memory: 40 bytes per window of 2 GiB, besides the live set.

use std::collections::BTreeMap;
use std::ops::Range;

use rocksdb::{BottommostLevelCompaction, CompactOptions, FlushOptions, IteratorMode, WriteBatch};

use super::RocksStore;
use super::reader::{RocksReader, failed, scan};
use super::rows::{HEADER_AT, IndexRow, part_key, sequence_of};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, SegmentId};
use crate::store::{BlockStore, Live, Place, StoreReader, Swept, Thrift};

/// Plain bytes of a window.
const WINDOW_BYTES: u64 = 2 << 30;
/// Windows that are compacted together: what a sweep may need of free space is what is live in them.
const WINDOWS_AT_ONCE: u64 = 4;
/// Blocks or segments that are removed in one batch.
const BATCH_ROWS: usize = 10_000;
/// In `meta`: the range of sequence numbers whose space is to be given back.
const SWEEPING: &str = "sweeping";

/// What lies in one window.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    live_bytes: u64,
    unused_bytes: u64,
    unused_blocks: u64,
}

pub(super) fn sweep(
    store: &RocksStore,
    live: &Live,
    thrift: Thrift,
    step: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Swept> {
    let window_blocks = WINDOW_BYTES / u64::from(store.identity()?.block_size);
    sweep_windows(store, live, thrift, window_blocks, step)
}

fn sweep_windows(
    store: &RocksStore,
    live: &Live,
    thrift: Thrift,
    window_blocks: u64,
    step: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Swept> {
    let mut sweep = Sweep {
        store,
        live,
        window_blocks,
        swept: Swept::default(),
    };
    let windows = sweep.count()?;
    let chosen = choose(&windows, sweep.swept.live_bytes, thrift.max_unused);
    if thrift.dry_run {
        for number in &chosen {
            sweep.swept.removed_blocks += windows[number].unused_blocks;
            sweep.swept.removed_bytes += windows[number].unused_bytes;
        }
        sweep.swept.removed_segments = sweep.segments(true)?;
        return Ok(sweep.swept);
    }
    let result = sweep.run(&windows, &chosen, step);
    // Setting it writes a file, which may fail where nothing else does.
    let off = collect_garbage(store, false);
    result.and(off)?;
    Ok(sweep.swept)
}

/// The fullest of unused blocks first, until what stays is little enough.
fn choose(windows: &BTreeMap<u64, Window>, live_bytes: u64, max_unused: f64) -> Vec<u64> {
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

/// Whether compactions move live blobs out of files that have unused ones. Off but for a sweep: a backup would write
/// everything several times.
fn collect_garbage(store: &RocksStore, on: bool) -> Result<()> {
    let options = [
        ("enable_blob_garbage_collection", if on { "true" } else { "false" }),
        ("blob_garbage_collection_age_cutoff", if on { "1.0" } else { "0.25" }),
    ];
    let reader = &store.reader;
    let set = reader.db.set_options_cf(reader.family("blocks"), &options);
    set.map_err(failed("prepare to give space back"))
}

struct Sweep<'a> {
    store: &'a RocksStore,
    live: &'a Live,
    window_blocks: u64,
    swept: Swept,
}

impl Sweep<'_> {
    /// What is live and what is not, by window.
    fn count(&mut self) -> Result<BTreeMap<u64, Window>> {
        let mut windows: BTreeMap<u64, Window> = BTreeMap::new();
        let (live, swept, window_blocks) = (self.live, &mut self.swept, self.window_blocks);
        self.store.reader.survey(&mut |_, located| {
            let window = windows.entry(located.place.0 / window_blocks).or_default();
            let bytes = u64::from(located.stored_bytes);
            if live.places.contains(located.place) {
                window.live_bytes += bytes;
                swept.live_blocks += 1;
                swept.live_bytes += bytes;
            } else {
                window.unused_bytes += bytes;
                window.unused_blocks += 1;
                swept.unused_blocks += 1;
                swept.unused_bytes += bytes;
            }
            Ok(())
        })?;
        Ok(windows)
    }

    fn run(
        &mut self,
        windows: &BTreeMap<u64, Window>,
        chosen: &[u64],
        step: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        if let Some(range) = self.left_over()? {
            collect_garbage(self.store, true)?;
            self.give_back(range)?;
            step(0)?;
            collect_garbage(self.store, false)?;
        }
        // Windows without anything live first: they give space back and need none, which counts when the disk is full.
        let (mut dead, mut mixed): (Vec<_>, Vec<_>) = chosen
            .iter()
            .copied()
            .partition(|number| windows[number].live_bytes == 0);
        dead.sort_unstable();
        mixed.sort_unstable();
        for (groups, moves_live) in [(neighbours(&dead), false), (neighbours(&mixed), true)] {
            if moves_live && !groups.is_empty() {
                collect_garbage(self.store, true)?;
            }
            for group in groups {
                let range = group.start * self.window_blocks..group.end * self.window_blocks;
                self.remove(&range)?;
                self.give_back(range)?;
                step(self.swept.removed_bytes)?;
            }
        }
        self.swept.removed_segments = self.segments(false)?;
        self.tidy()?;
        step(self.swept.removed_bytes)
    }

    /// Step 1. Index rows are found by part 0 of each block, which names it.
    fn remove(&mut self, range: &Range<u64>) -> Result<()> {
        let reader = &self.store.reader;
        let (index, blocks, meta) = (reader.family("index"), reader.family("blocks"), reader.family("meta"));
        // Not as in a scan: each seek would read ahead.
        let mut rows = reader.db.raw_iterator_cf(blocks);
        let mut batch = WriteBatch::default();
        batch.put_cf(meta, SWEEPING, encode(range));
        // Neighbours go with one deletion.
        let mut run: Option<Range<u64>> = None;
        let mut next = range.start;
        loop {
            while next < range.end && self.live.places.contains(Place(next)) {
                next += 1;
            }
            if next >= range.end {
                break;
            }
            rows.seek(part_key(next, 0));
            let Some((key, value)) = rows.item() else {
                rows.status().map_err(failed("read the blocks"))?;
                break;
            };
            let found = sequence_of(key);
            if found >= range.end {
                break;
            }
            next = found + 1;
            if self.live.places.contains(Place(found)) {
                continue;
            }
            if key == part_key(found, 0)
                && let Some(row) = known(self.store, found, value)?
            {
                batch.delete_cf(index, row.0.0);
                self.swept.removed_blocks += 1;
                self.swept.removed_bytes += u64::from(row.1.stored_bytes);
            }
            match &mut run {
                Some(run) if run.end == found => run.end += 1,
                _ => {
                    if let Some(run) = run.replace(found..found + 1) {
                        batch.delete_range_cf(blocks, part_key(run.start, 0), part_key(run.end, 0));
                    }
                }
            }
            if batch.len() >= BATCH_ROWS {
                if let Some(run) = run.take() {
                    batch.delete_range_cf(blocks, part_key(run.start, 0), part_key(run.end, 0));
                }
                self.store.write_logged("remove blocks", std::mem::take(&mut batch))?;
            }
        }
        if let Some(run) = run {
            batch.delete_range_cf(blocks, part_key(run.start, 0), part_key(run.end, 0));
        }
        self.store.write_logged("remove blocks", batch)
    }

    /// Steps 2 and 3.
    fn give_back(&self, range: Range<u64>) -> Result<()> {
        let reader = &self.store.reader;
        let (blocks, meta) = (reader.family("blocks"), reader.family("meta"));
        let doing = || failed("give space back");
        reader
            .db
            .flush_cf_opt(blocks, &FlushOptions::default())
            .map_err(doing())?;
        let before = self.background_errors()?;
        compact(reader, &range);
        // It says nothing of its own about a full disk or a damaged file.
        if self.background_errors()? != before {
            return Err(Error::Store {
                kind: ErrorKind::NoSpace,
                doing: "give space back",
                message: "a compaction failed: there is no space left, or a file of the store is damaged".into(),
            });
        }
        let mut batch = WriteBatch::default();
        batch.delete_cf(meta, SWEEPING);
        // A view that is published now leaves the old files out, and so gives their space back.
        self.store.next_generation(&mut batch)?;
        self.store.write_logged("give space back", batch)
    }

    fn background_errors(&self) -> Result<u64> {
        let count = self.store.reader.db.property_int_value("rocksdb.background-errors");
        Ok(count.map_err(failed("read its state"))?.unwrap_or(0))
    }

    fn left_over(&self) -> Result<Option<Range<u64>>> {
        let reader = &self.store.reader;
        let row = reader.db.get_cf(reader.family("meta"), SWEEPING);
        Ok(row.map_err(failed("read its state"))?.and_then(|row| decode(&row)))
    }

    /// Removes segments that are not live; gives how many.
    fn segments(&self, dry_run: bool) -> Result<u64> {
        let reader = &self.store.reader;
        let family = reader.family("segments");
        let mut batch = WriteBatch::default();
        let mut removed = 0;
        for row in reader.db.iterator_cf_opt(family, scan(), IteratorMode::Start) {
            let (key, _) = row.map_err(failed("read the manifests"))?;
            let live = <[u8; 32]>::try_from(&key[..]).is_ok_and(|id| self.live.segments.contains(&SegmentId(id)));
            if live {
                continue;
            }
            removed += 1;
            if dry_run {
                continue;
            }
            batch.delete_cf(family, &key);
            if batch.len() >= BATCH_ROWS {
                self.store
                    .write_logged("remove manifests", std::mem::take(&mut batch))?;
            }
        }
        if !batch.is_empty() {
            self.store.write_logged("remove manifests", batch)?;
        }
        Ok(removed)
    }

    /// What was removed from the small column families takes space until it is merged away. A block that is gone is
    /// damaged no more.
    fn tidy(&self) -> Result<()> {
        let condemned = self.store.condemned()?;
        let rows = self.store.reader.index_rows(&condemned)?;
        let gone = condemned.iter().zip(rows).filter(|(_, row)| row.is_none());
        self.store.pardon(&gone.map(|(id, _)| *id).collect::<Vec<_>>())?;
        let mut batch = WriteBatch::default();
        self.store.next_generation(&mut batch)?;
        self.store.write_logged("give space back", batch)?;
        let reader = &self.store.reader;
        if self.swept.removed_blocks > 0 {
            let index = reader.family("index");
            reader.db.compact_range_cf(index, None::<&[u8]>, None::<&[u8]>);
        }
        if self.swept.removed_segments > 0 {
            let segments = reader.family("segments");
            reader.db.compact_range_cf(segments, None::<&[u8]>, None::<&[u8]>);
        }
        Ok(())
    }
}

/// Merges away what was removed in a range of sequence numbers.
pub(super) fn compact(reader: &RocksReader, range: &Range<u64>) {
    let mut options = CompactOptions::default();
    options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
    let (from, to) = (part_key(range.start, 0), part_key(range.end, 0));
    let blocks = reader.family("blocks");
    reader.db.compact_range_cf_opt(blocks, Some(from), Some(to), &options);
}

/// The block whose part 0 this is, if the index says so too.
fn known(store: &RocksStore, sequence: u64, part_zero: &[u8]) -> Result<Option<(BlockId, IndexRow)>> {
    let id = part_zero.get(..32).and_then(|id| <[u8; 32]>::try_from(id).ok());
    let Some(id) = id.filter(|_| part_zero.len() >= HEADER_AT).map(BlockId) else {
        return Err(Error::Store {
            kind: ErrorKind::Corrupt,
            doing: "read the blocks",
            message: format!("block {sequence} has no name"),
        });
    };
    let row = store.reader.index_rows(&[id])?.remove(0);
    Ok(row.filter(|row| row.sequence == sequence).map(|row| (id, row)))
}

/// Cuts sorted numbers into runs of at most [`WINDOWS_AT_ONCE`].
fn neighbours(numbers: &[u64]) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some(run) if run.end == number && run.end - run.start < WINDOWS_AT_ONCE => run.end += 1,
            _ => runs.push(number..number + 1),
        }
    }
    runs
}

fn encode(range: &Range<u64>) -> [u8; 16] {
    let mut row = [0; 16];
    row[..8].copy_from_slice(&range.start.to_be_bytes());
    row[8..].copy_from_slice(&range.end.to_be_bytes());
    row
}

fn decode(row: &[u8]) -> Option<Range<u64>> {
    let (start, end) = row.split_first_chunk()?;
    Some(u64::from_be_bytes(*start)..u64::from_be_bytes(end.try_into().ok()?))
}

#[cfg(test)]
mod tests;
