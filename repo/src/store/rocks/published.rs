//! What the publication of a view needs from the store: see `repository/directory/views.rs`.
//!
//! # Content of a view
//!
//! A view is a state of RocksDB's list of files ([`super::manifest`]) and has no write-ahead log, so it contains what is
//! in tables. Blocks and nodes are written to tables before a logged batch names them; everything else comes in logged
//! batches. [`RocksStore::still`] writes the latter to tables too, and nothing is logged (`log`) until the list is read:
//!
//! 1. A batch that was logged before is in the view. The blocks and nodes that it names were flushed before it was logged.
//! 2. A batch that waits is not in the view, nor a part of it: RocksDB writes the tables of one column family after the
//!    other. Those of its blocks that are in the view are rows that nothing names.
//! 3. Index rows are removed by logged batches before the rows of their blocks, so a view that lacks rows of a swept
//!    block lacks its index row too.
//!
//! The tables of blocks are not written for a view: each would leave a blob file of what other writers have put so far.

use std::collections::BTreeSet;
use std::path::Path;

use rocksdb::FlushOptions;

use super::RocksStore;
use super::errors::failed;
use super::manifest::StoreFile;
use super::options;
use crate::error::{Error, Result};

/// Column families whose rows come in logged batches.
const LOGGED: [&str; 4] = ["index", "backups", "notes", "meta"];
/// RocksDB's default, which this store does not change.
const LEVELS: u32 = 7;

impl RocksStore {
    /// Writes all that was committed to tables, and calls `read` before anything else is committed.
    pub(crate) fn still<T>(&self, read: impl FnOnce() -> Result<T>) -> Result<T> {
        let _nothing_is_logged = self.log.lock();
        let families = LOGGED.map(|name| self.reader.family(name));
        self.reader
            .db
            .flush_cfs_opt(&families, &FlushOptions::default())
            .map_err(self.broken("flush"))?;
        read()
    }

    /// Merges all tables.
    #[cfg(test)]
    pub(crate) fn compact(&self) {
        for name in options::FAMILIES {
            let none: Option<&[u8]> = None;
            self.reader.db.compact_range_cf(self.reader.family(name), none, none);
        }
    }

    /// Numbers of tables and of blob files that RocksDB uses at this moment.
    pub(crate) fn counts(&self) -> Result<(u64, u64)> {
        let db = &self.reader.db;
        let (mut tables, mut blobs) = (0, 0);
        for name in options::FAMILIES.into_iter().chain(["default"]) {
            let Some(family) = db.cf_handle(name) else {
                continue;
            };
            for level in 0..LEVELS {
                // A text, unlike other numbers.
                let count = db.property_value_cf(family, &format!("rocksdb.num-files-at-level{level}"));
                let count = count.map_err(failed("count its files"))?;
                tables += count.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0);
            }
            let count = db.property_int_value_cf(family, "rocksdb.num-blob-files");
            blobs += count.map_err(failed("count its files"))?.unwrap_or(0);
        }
        Ok((tables, blobs))
    }

    /// Lists the files of the store by a checkpoint at `scratch`, which costs a link for each: for a list that
    /// [`super::manifest`] can't read. The checkpoint stays, for its files to be linked from there.
    pub(crate) fn list_by_checkpoint(&self, scratch: &Path) -> Result<BTreeSet<StoreFile>> {
        super::remove_checkpoint(scratch);
        self.checkpoint_while_still(scratch)?;
        let entries = std::fs::read_dir(scratch).map_err(Error::io("list", scratch))?;
        Ok(entries
            .filter_map(|entry| StoreFile::of_name(&entry.ok()?.file_name()))
            .collect())
    }
}
