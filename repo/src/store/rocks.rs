//! The embedded store: RocksDB, with the pages of blocks in blob files. Only this file and its folder know RocksDB.
//!
//! | column family | key | value |
//! |---|---|---|
//! | `blocks` | sequence number (u64), part (u16), big-endian | part 0: block id and header; part n: page n - 1, no row for a page of zeros |
//! | `index` | block id | sequence number (u64), plain length (u32), stored length (u32), big-endian |
//! | `segments` | segment id | the segment |
//! | `backups` | `GUEST@TIME` | the record |
//! | `meta` | `identity`, `barrier`, `generation` | JSON; the first sequence number above the last barrier; the number of commits (u64, big-endian) |
//!
//! Blocks lie in the order in which they were stored, because their keys are sequence numbers and not hashes: what was
//! backed up together is read together. Block rows name their block, so the index can be rebuilt from them.
//!
//! # What is on disk after each step of a barrier
//!
//! 1. Blocks and segments go to RocksDB with its write-ahead log off. A crash loses them or leaves some of them, all
//!    with sequence numbers at or above the stored `barrier`.
//! 2. `flush_cfs` writes and syncs them. A crash now leaves rows that nothing names.
//! 3. One synced, logged batch writes their index rows, the new `barrier`, and for a commit the record and
//!    `generation`. RocksDB applies a batch whole or not at all, so a row or record never names a block that is not
//!    there.
//!
//! The next writer removes every block row at or above `barrier` and flushes that removal before it puts anything, so
//! sequence numbers can be used again. Segments left by a crash are named by their content and stay as they are.

mod options;
mod rows;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{ColumnFamily, DB, FlushOptions, IteratorMode, WriteBatch};

use self::rows::{IndexRow, part_key};
use super::{BlockStore, Identity, Place, Record, StoreReader, Stored, Wanted, failed_before};
use crate::codec::Sealed;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, SegmentId};

/// Bytes that one write hands to RocksDB, which keeps them twice until it is done.
const BATCH_BYTES: usize = 2 << 20;

/// A store opened for reading: a view, which no writer changes any more.
pub struct RocksReader {
    db: DB,
    /// Dropped after the database is closed.
    _guard: Option<File>,
}

/// A store opened for writing. One process at a time: RocksDB's own lock refuses a second.
pub struct RocksStore {
    reader: RocksReader,
    /// Held for reading by a put, for writing while a barrier decides what it covers.
    gate: RwLock<()>,
    /// One barrier at a time.
    barrier: Mutex<()>,
    /// Rows of blocks that no barrier covers yet.
    pending: Mutex<HashMap<BlockId, IndexRow>>,
    next_sequence: AtomicU64,
    failed: AtomicBool,
}

fn failed(doing: &'static str) -> impl Fn(rocksdb::Error) -> Error {
    move |error| {
        let message = error.to_string();
        let kind = if message.contains("No space left") || message.contains("Disk quota exceeded") {
            ErrorKind::NoSpace
        } else if message.contains("LOCK: ") {
            ErrorKind::Locked
        } else if message.contains("Permission denied") || message.contains("Read-only file system") {
            ErrorKind::Denied
        } else if is_damage(&error) {
            ErrorKind::Corrupt
        } else {
            ErrorKind::Unavailable
        };
        Error::Store { kind, doing, message }
    }
}

/// Whether an error says that what is stored is not what was written. A file that is gone is damage too: nobody but
/// RocksDB deletes its files.
fn is_damage(error: &rocksdb::Error) -> bool {
    error.kind() == rocksdb::ErrorKind::Corruption || error.as_ref().contains("No such file or directory")
}

impl RocksReader {
    /// Opens a checkpoint, or a store on a file system that can't be written to. `guard` is a file whose lock keeps
    /// the checkpoint; it is held as long as the reader.
    pub fn open(path: &Path, guard: Option<File>) -> Result<Self> {
        let (database, families) = options::database(false);
        let db = DB::open_cf_descriptors_read_only(&database, path, families, false).map_err(failed("open"))?;
        Ok(Self { db, _guard: guard })
    }

    fn family(&self, name: &'static str) -> &ColumnFamily {
        self.db
            .cf_handle(name)
            .expect("opening fails if a column family is missing")
    }

    fn meta_number(&self, key: &str) -> Result<u64> {
        let row = self
            .db
            .get_cf(self.family("meta"), key)
            .map_err(failed("read its state"))?;
        Ok(row.map_or(0, |row| row.iter().take(8).fold(0, |n, byte| n << 8 | u64::from(*byte))))
    }

    /// How many backups were ever committed: tells an older view from a newer.
    pub fn generation(&self) -> Result<u64> {
        self.meta_number("generation")
    }

    fn index_rows(&self, ids: &[BlockId]) -> Result<Vec<Option<IndexRow>>> {
        let keys = ids.iter().map(|id| &id.0);
        self.db
            .batched_multi_get_cf(self.family("index"), keys, false)
            .into_iter()
            .zip(ids)
            .map(|(row, id)| match row.map_err(failed("read the index"))? {
                Some(row) => IndexRow::decode(*id, &row).map(Some),
                None => Ok(None),
            })
            .collect()
    }

    fn get_at(&self, wanted: &Wanted, row: Option<IndexRow>) -> Result<Stored> {
        let id = wanted.id;
        let row = row.ok_or(Error::BlockMissing(id))?;
        let keys: Vec<_> = std::iter::once(0)
            .chain(wanted.pages.clone().map(|page| page + 1))
            .map(|part| part_key(row.sequence, part))
            .collect();
        let mut parts = self
            .db
            .batched_multi_get_cf(self.family("blocks"), &keys, true)
            .into_iter()
            .map(|part| match part {
                Ok(Some(part)) => Ok(part.to_vec()),
                Ok(None) => Ok(Vec::new()),
                Err(error) if is_damage(&error) => Err(Error::BlockDamaged {
                    id,
                    what: error.to_string(),
                }),
                Err(error) => Err(failed("read a block")(error)),
            });
        let mut header = parts.next().unwrap_or_else(|| Ok(Vec::new()))?;
        // Part 0 names its block, so an index row that points elsewhere is found here and not taken for damage there.
        if header.len() < 32 || header[..32] != id.0 {
            return Err(Error::BlockDamaged {
                id,
                what: "its header is missing or that of another block".into(),
            });
        }
        header.drain(..32);
        Ok(Stored {
            header,
            pages: parts.collect::<Result<_>>()?,
        })
    }
}

impl StoreReader for RocksReader {
    fn identity(&self) -> Result<Identity> {
        let damaged = |message: String| Error::Store {
            kind: ErrorKind::Corrupt,
            doing: "read its identity",
            message,
        };
        let row = self
            .db
            .get_cf(self.family("meta"), "identity")
            .map_err(failed("read its identity"))?
            .ok_or_else(|| damaged("it is missing".into()))?;
        serde_json::from_slice(&row).map_err(|error| damaged(error.to_string()))
    }

    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Place>>> {
        let rows = self.index_rows(ids)?.into_iter();
        Ok(rows.map(|row| row.map(|row| Place(row.sequence))).collect())
    }

    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        get_each(wanted, |ids| self.index_rows(ids), self)
    }

    fn segments(&self, ids: &[SegmentId]) -> Vec<Result<Vec<u8>>> {
        let keys = ids.iter().map(|id| &id.0);
        self.db
            .batched_multi_get_cf(self.family("segments"), keys, false)
            .into_iter()
            .zip(ids)
            .map(|(segment, &id)| match segment {
                Ok(Some(segment)) => Ok(segment.to_vec()),
                Ok(None) => Err(Error::SegmentDamaged {
                    id,
                    what: "it is missing".into(),
                }),
                Err(error) if is_damage(&error) => Err(Error::SegmentDamaged {
                    id,
                    what: error.to_string(),
                }),
                Err(error) => Err(failed("read a manifest")(error)),
            })
            .collect()
    }

    fn records(&self) -> Result<Vec<Record>> {
        self.db
            .iterator_cf(self.family("backups"), IteratorMode::Start)
            .map(|row| {
                let (key, bytes) = row.map_err(failed("list the backups"))?;
                Ok(Record {
                    key: String::from_utf8_lossy(&key).into_owned(),
                    bytes: bytes.into(),
                })
            })
            .collect()
    }
}

fn get_each(
    wanted: &[Wanted],
    rows: impl Fn(&[BlockId]) -> Result<Vec<Option<IndexRow>>>,
    reader: &RocksReader,
) -> Vec<Result<Stored>> {
    let ids: Vec<_> = wanted.iter().map(|wanted| wanted.id).collect();
    match rows(&ids) {
        Ok(rows) => wanted
            .iter()
            .zip(rows)
            .map(|(wanted, row)| reader.get_at(wanted, row))
            .collect(),
        // A damaged index row fails the whole look-up; asked one by one only its own block suffers.
        Err(_) => wanted
            .iter()
            .map(|wanted| reader.get_at(wanted, rows(&[wanted.id])?.remove(0)))
            .collect(),
    }
}

impl RocksStore {
    /// Makes a new store in `path`, which must not have one.
    pub fn create(path: &Path, identity: &Identity) -> Result<Self> {
        std::fs::create_dir(path).map_err(Error::io("create", path))?;
        let store = Self::open(path)?;
        let identity = serde_json::to_vec(identity).expect("an identity has only plain fields");
        store
            .reader
            .db
            .put_cf_opt(store.reader.family("meta"), "identity", identity, &options::logged())
            .map_err(failed("write its identity"))?;
        Ok(store)
    }

    /// Opens the store for writing and removes what a crash left above the last barrier.
    pub fn open(path: &Path) -> Result<Self> {
        let (database, families) = options::database(options::can_write_direct(path));
        let db = DB::open_cf_descriptors(&database, path, families).map_err(failed("open"))?;
        let reader = RocksReader { db, _guard: None };
        let barrier = reader.meta_number("barrier")?;
        let store = Self {
            reader,
            gate: RwLock::default(),
            barrier: Mutex::default(),
            pending: Mutex::default(),
            next_sequence: AtomicU64::new(barrier),
            failed: AtomicBool::new(false),
        };
        store.drop_uncovered(barrier)?;
        Ok(store)
    }

    fn drop_uncovered(&self, barrier: u64) -> Result<()> {
        let reader = &self.reader;
        let blocks = reader.family("blocks");
        let mut rows = reader.db.raw_iterator_cf(blocks);
        rows.seek(part_key(barrier, 0));
        if !rows.valid() {
            return rows.status().map_err(failed("read the blocks"));
        }
        drop(rows);
        tracing::debug!(barrier, "removing blocks that an interrupted run left");
        reader
            .db
            .delete_range_cf_opt(blocks, &part_key(barrier, 0)[..], &[0xFF; 10][..], &options::unlogged())
            .and_then(|()| reader.db.flush_cf_opt(blocks, &FlushOptions::default()))
            .map_err(failed("remove what an interrupted run left"))
    }

    /// Makes a view at `path`: hard links to the store's files, readable whatever happens to the store afterwards.
    pub fn checkpoint(&self, path: &Path) -> Result<()> {
        Checkpoint::new(&self.reader.db)
            .and_then(|checkpoint| checkpoint.create_checkpoint(path))
            .map_err(failed("make a view"))
    }

    /// See [`RocksReader::generation`].
    pub fn generation(&self) -> Result<u64> {
        self.reader.generation()
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<BlockId, IndexRow>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rows(&self, ids: &[BlockId]) -> Result<Vec<Option<IndexRow>>> {
        // Pending rows first: a barrier moves a row to the index before it leaves `pending`, so none is missed.
        let mut rows: Vec<_> = {
            let pending = self.pending();
            ids.iter().map(|id| pending.get(id).copied()).collect()
        };
        let stored = self.reader.index_rows(ids)?;
        for (row, stored) in rows.iter_mut().zip(stored) {
            *row = row.or(stored);
        }
        Ok(rows)
    }

    fn write(&self, doing: &'static str, batch: WriteBatch) -> Result<()> {
        let written = self.reader.db.write_opt(batch, &options::unlogged());
        written.map_err(|error| {
            self.failed.store(true, Ordering::SeqCst);
            failed(doing)(error)
        })
    }

    fn barrier(&self, record: Option<&Record>) -> Result<()> {
        let _one = self.barrier.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(record) = record {
            let family = self.reader.family("backups");
            let known = self.reader.db.get_pinned_cf(family, &record.key);
            if known.map_err(failed("list the backups"))?.is_some() {
                return Err(Error::BackupExists(record.key.clone()));
            }
        }
        let (covered, next) = {
            let _no_puts = self.gate.write().unwrap_or_else(PoisonError::into_inner);
            let covered: Vec<_> = self.pending().iter().map(|(id, row)| (*id, *row)).collect();
            (covered, self.next_sequence.load(Ordering::SeqCst))
        };
        let reader = &self.reader;
        let families = ["blocks", "segments"].map(|name| reader.family(name));
        reader
            .db
            .flush_cfs_opt(&families, &FlushOptions::default())
            .map_err(failed("flush"))?;
        if self.failed.load(Ordering::SeqCst) {
            return Err(failed_before());
        }
        let mut batch = WriteBatch::default();
        for (id, row) in &covered {
            batch.put_cf(reader.family("index"), id.0, row.encode());
        }
        batch.put_cf(reader.family("meta"), "barrier", next.to_be_bytes());
        if let Some(record) = record {
            let generation = reader.generation()? + 1;
            batch.put_cf(reader.family("backups"), &record.key, &record.bytes);
            batch.put_cf(reader.family("meta"), "generation", generation.to_be_bytes());
        }
        reader
            .db
            .write_opt(batch, &options::logged())
            .map_err(failed("commit"))?;
        let _no_puts = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let mut pending = self.pending();
        for (id, _) in &covered {
            pending.remove(id);
        }
        Ok(())
    }
}

impl StoreReader for RocksStore {
    fn identity(&self) -> Result<Identity> {
        self.reader.identity()
    }

    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Place>>> {
        let rows = self.rows(ids)?.into_iter();
        Ok(rows.map(|row| row.map(|row| Place(row.sequence))).collect())
    }

    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        get_each(wanted, |ids| self.rows(ids), &self.reader)
    }

    fn segments(&self, ids: &[SegmentId]) -> Vec<Result<Vec<u8>>> {
        self.reader.segments(ids)
    }

    fn records(&self) -> Result<Vec<Record>> {
        self.reader.records()
    }
}

impl BlockStore for RocksStore {
    fn put(&self, blocks: Vec<Sealed>) -> Result<()> {
        // No barrier decides or forgets what it covers between the look-up and the write.
        let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let ids: Vec<_> = blocks.iter().map(|block| block.id).collect();
        let stored = self.reader.index_rows(&ids)?;
        let mut batch = WriteBatch::default();
        for (block, stored) in blocks.into_iter().zip(stored) {
            let mut pending = self.pending();
            if stored.is_some() || pending.contains_key(&block.id) {
                continue;
            }
            let row = IndexRow {
                sequence: self.next_sequence.fetch_add(1, Ordering::SeqCst),
                plain_bytes: block.plain_bytes,
                stored_bytes: u32::try_from(block.stored_bytes()).unwrap_or(u32::MAX),
            };
            pending.insert(block.id, row);
            drop(pending);
            let header = [&block.id.0[..], &block.header].concat();
            let parts = std::iter::once(&header).chain(&block.pages);
            for (part, bytes) in parts.enumerate().filter(|(_, bytes)| !bytes.is_empty()) {
                batch.put_cf(self.reader.family("blocks"), part_key(row.sequence, part), bytes);
                // The rows of a block need not be written together: none counts before its index row.
                if batch.size_in_bytes() >= BATCH_BYTES {
                    self.write("store a block", std::mem::take(&mut batch))?;
                }
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.write("store a block", batch)
    }

    fn put_segments(&self, segments: Vec<(SegmentId, Vec<u8>)>) -> Result<()> {
        let family = self.reader.family("segments");
        let mut batch = WriteBatch::default();
        for (id, bytes) in segments {
            // Asked for by name, so that a manifest that did not change is not written again every day.
            match self.reader.db.get_pinned_cf(family, id.0) {
                Ok(Some(_)) => {}
                Ok(None) => batch.put_cf(family, id.0, bytes),
                // Its name is its content: to store it anew mends every backup that has it.
                Err(error) if is_damage(&error) => batch.put_cf(family, id.0, bytes),
                Err(error) => return Err(failed("read a manifest")(error)),
            }
        }
        self.write("store a manifest", batch)
    }

    fn flush(&self) -> Result<()> {
        self.barrier(None)
    }

    fn commit(&self, record: &Record) -> Result<()> {
        self.barrier(Some(record))
    }
}

/// Where the store lies in a repository's directory.
pub fn path_in(repository: &Path) -> PathBuf {
    repository.join("store")
}

#[cfg(test)]
mod tests;
