//! Forced compactions of `blocks`: they drop removed rows, and move live blobs out of the files that these were in.

use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;

use rocksdb::{BottommostLevelCompaction, CompactOptions, FlushOptions, LiveFile};

use super::super::RocksStore;
use super::super::errors::{failed, is_damage};
use super::super::options::BLOCKS;
use super::super::reader::{RocksReader, scan};
use crate::block::PAGE_BYTES;
use crate::error::{Error, ErrorKind, Result};

/// Pages that are read between two steps.
const STEP_PAGES: u64 = if cfg!(test) { 7 } else { 256 };

/// Keys of `blocks`.
pub(super) type Keys = RangeInclusive<[u8; 10]>;

/// A table of `blocks`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Table {
    pub(super) keys: Keys,
    /// Plain bytes of the pages that it names, or a little more.
    pub(super) plain_bytes: u64,
}

/// Returns the tables of `blocks`, in the order of their first keys. Takes 300 bytes for each table of the store meanwhile.
pub(super) fn tables(reader: &RocksReader) -> Result<Vec<Table>> {
    let files = reader.db.live_files().map_err(failed("list its files"))?;
    let key = |key: Option<Vec<u8>>| <[u8; 10]>::try_from(key?).ok();
    let table = |file: LiveFile| {
        Some(Table {
            keys: key(file.start_key)?..=key(file.end_key)?,
            plain_bytes: file.num_entries * PAGE_BYTES as u64,
        })
    };
    let blocks = files.into_iter().filter(|file| file.column_family_name == BLOCKS);
    let mut tables: Vec<_> = blocks.filter_map(table).collect();
    tables.sort_unstable_by_key(|table| *table.keys.start());
    Ok(tables)
}

/// Returns the keys of all tables that a compaction of some keys rewrites: it rewrites whole tables.
pub(super) fn rewritten(tables: &[Table], keys: &Keys) -> Keys {
    let (mut first, mut last) = keys.clone().into_inner();
    loop {
        let before = (first, last);
        let all = tables.iter().map(|table| &table.keys);
        for keys in all.filter(|keys| *keys.start() <= before.1 && before.0 <= *keys.end()) {
            first = first.min(*keys.start());
            last = last.max(*keys.end());
        }
        if (first, last) == before {
            return first..=last;
        }
    }
}

/// Switches whether compactions move live blobs: a backup would write everything several times if they always did.
fn collect_garbage(store: &RocksStore, on: bool) -> Result<()> {
    let options = [
        ("enable_blob_garbage_collection", if on { "true" } else { "false" }),
        ("blob_garbage_collection_age_cutoff", if on { "1.0" } else { "0.25" }),
    ];
    let reader = &store.reader;
    let set = reader.db.set_options_cf(reader.family(BLOCKS), &options);
    set.map_err(failed("prepare to give space back"))
}

/// Reads what a compaction of some keys moves: all of the tables that it rewrites. All of `blocks` is in tables. Returns the bytes;
/// `None` if something is damaged. The compaction that follows finds most of it in the page cache. Calls `step` between rows; its
/// error ends the reading.
pub(super) fn moved_bytes(
    reader: &RocksReader,
    keys: &Keys,
    step: &mut dyn FnMut() -> Result<()>,
) -> Result<Option<u64>> {
    let (first, last) = rewritten(&tables(reader)?, keys).into_inner();
    let mut options = scan();
    options.set_iterate_upper_bound([&last[..], &[0]].concat());
    let mut rows = reader.db.raw_iterator_cf_opt(reader.family(BLOCKS), options);
    rows.seek(first);
    let (mut read, mut bytes) = (0, 0);
    while let Some((key, value)) = rows.item() {
        read += 1;
        bytes += (key.len() + value.len()) as u64;
        if read % STEP_PAGES == 0 {
            step()?;
        }
        rows.next();
    }
    match rows.status() {
        Err(error) if is_damage(&error) => {
            tracing::debug!("a part of the store stays where it is, because it is damaged: {error}");
            Ok(None)
        }
        read => read.map_err(failed("read the blocks")).map(|()| Some(bytes)),
    }
}

/// Bytes of removed pages in blob files that are there because of other pages.
pub(super) fn garbage_bytes(reader: &RocksReader) -> Result<u64> {
    let bytes = reader
        .db
        .property_int_value_cf(reader.family(BLOCKS), "rocksdb.live-blob-file-garbage-size");
    Ok(bytes.map_err(failed("read its state"))?.unwrap_or(0))
}

/// Writes the rows of `blocks` that are in memory to a table.
pub(super) fn flush_blocks(store: &RocksStore) -> Result<()> {
    let reader = &store.reader;
    let flushed = reader.db.flush_cf_opt(reader.family(BLOCKS), &FlushOptions::default());
    flushed.map_err(store.broken("give space back"))
}

/// Drops the removed rows in a range, and all files in which there is nothing else.
pub(super) fn drop_removed(store: &RocksStore, keys: &Keys) -> Result<()> {
    let reader = &store.reader;
    let before = background_errors(reader)?;
    compact(reader, keys);
    // The compaction call itself reports neither a full disk nor a damaged file.
    if background_errors(reader)? != before {
        store.failed.store(true, Ordering::SeqCst);
        return Err(Error::Store {
            kind: ErrorKind::NoSpace,
            doing: "give space back",
            message: "a compaction failed: there is no space left, or a file of the store is damaged".into(),
        });
    }
    Ok(())
}

/// Moves the blobs of a range, which are whole, so that removed ones take no space beside them.
pub(super) fn move_live(store: &RocksStore, keys: &Keys) -> Result<()> {
    collect_garbage(store, true)?;
    let moved = drop_removed(store, keys);
    // Setting the option writes a file, which may fail even if everything else succeeds.
    let off = collect_garbage(store, false);
    moved.and(off)
}

fn background_errors(reader: &RocksReader) -> Result<u64> {
    let count = reader.db.property_int_value("rocksdb.background-errors");
    Ok(count.map_err(failed("read its state"))?.unwrap_or(0))
}

/// Merges away the removed rows in a range.
pub(in super::super) fn compact(reader: &RocksReader, keys: &Keys) {
    let mut options = CompactOptions::default();
    // Not plain `Force`, which moves once more what it has just moved to the last level.
    options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
    reader
        .db
        .compact_range_cf_opt(reader.family(BLOCKS), Some(keys.start()), Some(keys.end()), &options);
}
