//! The embedded store: RocksDB, with the pages of blocks in blob files. Only this file and its folder use RocksDB.
//!
//! | column family | key | value |
//! |---|---|---|
//! | `blocks` | sequence number (u64), part (u16), big-endian | part 0: block id, plain and stored length (u32), header; part n: page n - 1, no row for a page of zeros |
//! | `index` | block id | sequence number (u64), plain length (u32), stored length (u32), big-endian |
//! | | | in both, if the block is a difference: the top bit of the stored length, and after that the id of the base |
//! | `nodes` | node id | the node of a manifest |
//! | `backups` | `GUEST@TIME` | the record |
//! | `notes` | the note's name | its value |
//! | `meta` | `identity` | JSON, see [`Identity`] |
//! | | `barrier` | the lowest sequence number that the last barrier does not cover |
//! | | `generation` | number of changes that readers see |
//! | | `state` | the generation (u64) that it belongs to, and 8 bytes of a hash, see `rocks/generations.rs` |
//! | | `sweeping` | ranges of sequence numbers whose unused blocks are being removed, see `rocks/sweep.rs` |
//! | | `tidying` | nothing: a sweep removed rows that are to be merged away |
//! | | `condemned/` and a block id | nothing: the block was found damaged |
//! | | `received/` and a record's key | the time of its commit, see `rocks/received.rs` |
//! | | `bin/`, and more | a record that was removed, see `rocks/bin.rs` |
//!
//! Numbers are big-endian, of 8 bytes unless stated otherwise.
//!
//! Blocks are stored in the order in which they were put, because their keys are sequence numbers and not hashes:
//! blocks that were backed up together are read together. A block's part 0 repeats its index row, so the index can be
//! rebuilt.
//!
//! # What is on disk after each step of a barrier
//!
//! 1. Blocks and nodes go to RocksDB with its write-ahead log off. A crash loses them or leaves some of them, all
//!    with sequence numbers at or above the stored `barrier`.
//! 2. `flush_cfs` writes and syncs them. A crash now leaves rows that nothing names.
//! 3. One synced, logged batch writes their index rows, the new `barrier`, and for a commit the record and
//!    `generation`. RocksDB applies a batch completely or not at all, so an index row or record never names a block
//!    that is not stored.
//!
//! A condemned block that is put again gets a new sequence number; the batch of step 3 replaces its index row and
//! removes the old rows. The base of a difference is put before it, so the same batch, or an earlier one, writes its index row; and
//! the first difference brings the feature that older versions refuse in the same batch, see `rocks/bases.rs`. `rocks/sweep.rs`
//! describes what a sweep leaves on disk.
//!
//! `rocks/published.rs` says what a view of the store contains.
//!
//! The next writer removes every block row at or above `barrier` and flushes that removal before it puts anything, so
//! sequence numbers can be used again. Nodes that a crash left are named by their content and stay as they are.

mod bases;
mod bin;
mod check;
mod errors;
mod generations;
pub(crate) mod manifest;
mod options;
mod published;
mod reader;
mod received;
mod rows;
mod sessions;
mod sweep;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{DB, FlushOptions, WriteBatch};

use self::errors::{damaged, failed};
pub use self::reader::RocksReader;
use self::reader::{CONDEMNED, get_each};
use self::rows::{IndexRow, part_key};
pub use self::sessions::RocksSession;
use self::sessions::Sessions;
pub(crate) use self::sweep::Estimate;
use super::{
    Forgotten, Identity, Listing, Live, Located, Note, Place, PruneOptions, Record, StoreManager, StoreReader,
    StoreWriter, Stored, Swept, Terms, Wanted, failed_before,
};
use crate::codec::Sealed;
use crate::error::{Error, Result};
use crate::id::{BlockId, NodeId};

/// Bytes that one write passes to RocksDB, which holds them twice until the write ends.
const BATCH_BYTES: usize = 2 << 20;

/// A store opened for writing, by one process at a time: RocksDB's own lock refuses a second.
pub struct RocksStore {
    reader: RocksReader,
    /// Held for reading by a put, and for writing while a barrier determines the rows that it covers.
    gate: RwLock<()>,
    /// Admits one barrier, and one change of records and notes, at a time.
    barrier: Mutex<()>,
    /// Admits one sweep at a time.
    sweep: Mutex<()>,
    /// Held by a sweep while it removes index rows or nodes; of the other locks, only `log` is taken meanwhile.
    sessions: Mutex<Sessions>,
    /// Held while the write-ahead log grows and while a view is made; no other lock is taken meanwhile.
    log: Mutex<()>,
    /// Rows of blocks that no barrier covers yet.
    pending: Mutex<HashMap<BlockId, Pending>>,
    /// Blocks to store again, see [`StoreManager::condemn`].
    condemned: RwLock<HashSet<BlockId>>,
    next_sequence: AtomicU64,
    failed: AtomicBool,
    /// Runs when a look-up has read its rows and has not noted them yet.
    #[cfg(test)]
    pause: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

/// A block that no barrier covers yet.
#[derive(Clone, Copy)]
struct Pending {
    row: IndexRow,
    /// Sequence number of the damaged block that it replaces.
    replaces: Option<u64>,
}

/// What a barrier makes visible.
#[derive(Clone, Copy)]
struct Commit<'a> {
    record: &'a Record,
    notes: &'a [Note],
    /// The generation that it was made out of.
    at: Option<u64>,
    terms: Terms,
}

impl Pending {
    fn place(&self) -> Place {
        Place(self.row.sequence)
    }
}

impl RocksStore {
    /// Creates a new store in `path`, which must not contain one.
    pub fn create(path: &Path, identity: &Identity) -> Result<Self> {
        std::fs::create_dir(path).map_err(Error::io("create", path))?;
        let store = Self::over(Self::open_or_create(path, true)?)?;
        let identity = serde_json::to_vec(identity).expect("an identity has only plain fields");
        store
            .reader
            .db
            .put_cf_opt(store.reader.family("meta"), "identity", identity, &options::logged())
            .map_err(failed("write its identity"))?;
        Ok(store)
    }

    /// Opens the store for writing and removes the rows that a crash left above the last barrier. Refuses a store that
    /// a newer vbk made, before anything is changed.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_at_least(path, 0)
    }

    /// Opens the store for writing, and refuses, as damaged, a store with a lower generation than `least`.
    pub(crate) fn open_at_least(path: &Path, least: u64) -> Result<Self> {
        // Never created if it is missing: an empty store in place of a damaged one would be published to readers.
        let reader = Self::open_or_create(path, false)?;
        reader.identity()?.check(path)?;
        let generation = reader.generation()?;
        if generation < least {
            return Err(damaged(format!(
                "its generation is {generation}, but a view of it has {least}: changes made in between are missing"
            )));
        }
        Self::over(reader)
    }

    fn open_or_create(path: &Path, create: bool) -> Result<RocksReader> {
        let (database, families) = options::database(options::can_write_direct(path), create);
        let db = DB::open_cf_descriptors(&database, path, families).map_err(failed("open"))?;
        Ok(RocksReader::new(db, None))
    }

    fn over(reader: RocksReader) -> Result<Self> {
        let barrier = reader.barrier()?;
        let condemned = reader.condemned()?.into_iter().collect();
        let store = Self {
            reader,
            gate: RwLock::default(),
            barrier: Mutex::default(),
            sweep: Mutex::default(),
            sessions: Mutex::default(),
            log: Mutex::default(),
            pending: Mutex::default(),
            condemned: RwLock::new(condemned),
            next_sequence: AtomicU64::new(barrier),
            failed: AtomicBool::new(false),
            #[cfg(test)]
            pause: Mutex::default(),
        };
        store.drop_uncovered(barrier)?;
        Ok(store)
    }

    #[cfg(test)]
    fn pause(&self) {
        let run = self.pause.lock().take();
        run.into_iter().for_each(|run| run());
    }

    /// Returns whether a write has failed, after which no barrier succeeds.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
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
            .map_err(failed("remove the rows of an interrupted run"))?;
        // No index row names them, so no sweep would look for their space.
        sweep::compact(reader, &sweep::keys(&(barrier..u64::MAX)));
        Ok(())
    }

    /// Links all files of the store at `path`, which costs as much as the store has files, and copies its list.
    pub fn checkpoint(&self, path: &Path) -> Result<()> {
        let _nothing_is_logged = self.log.lock();
        self.checkpoint_while_still(path)
    }

    /// The caller holds `log`.
    fn checkpoint_while_still(&self, path: &Path) -> Result<()> {
        Checkpoint::new(&self.reader.db)
            .and_then(|checkpoint| checkpoint.create_checkpoint(path))
            .map_err(failed("list its files"))
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<BlockId, Pending>> {
        self.pending.lock()
    }

    fn rows(&self, ids: &[BlockId]) -> Result<Vec<Option<IndexRow>>> {
        // Pending rows are read first: a barrier moves a row to the index before it leaves `pending`, so none is
        // missed.
        let mut rows: Vec<_> = {
            let pending = self.pending();
            ids.iter()
                .map(|id| pending.get(id).map(|pending| pending.row))
                .collect()
        };
        let stored = self.reader.index_rows(ids)?;
        for (row, stored) in rows.iter_mut().zip(stored) {
            *row = row.or(stored);
        }
        Ok(rows)
    }

    /// Sweeps for a session.
    fn retain_for(
        &self,
        session: Option<u64>,
        live: &Live,
        options: PruneOptions,
        step: &mut dyn FnMut(&Swept) -> Result<()>,
    ) -> Result<Swept> {
        let _one = self.sweep.lock();
        sweep::sweep(self, session, live, options, step)
    }

    fn write(&self, doing: &'static str, batch: WriteBatch) -> Result<()> {
        let written = self.reader.db.write_opt(batch, &options::unlogged());
        written.map_err(self.broken(doing))
    }

    /// Translates the error of something that RocksDB did not write. It writes nothing any more before it is opened again, also
    /// if the reason has gone.
    fn broken(&self, doing: &'static str) -> impl FnOnce(rocksdb::Error) -> Error + '_ {
        move |error| {
            self.failed.store(true, Ordering::SeqCst);
            failed(doing)(error)
        }
    }

    fn barrier(&self, commit: Option<Commit<'_>>) -> Result<()> {
        let _one = self.barrier.lock();
        if let Some(Commit { record, at, .. }) = commit {
            let family = self.reader.family("backups");
            let known = self.reader.db.get_pinned_cf(family, &record.key);
            match known.map_err(failed("list the backups"))? {
                // It is durable since it was first committed.
                Some(stored) if *stored == *record.bytes => return Ok(()),
                Some(_) => return Err(Error::BackupExists(record.key.clone())),
                None => self.check_at(at)?,
            }
        }
        let (covered, next) = {
            let _no_puts = self.gate.write();
            let covered: Vec<_> = self.pending().iter().map(|(id, pending)| (*id, *pending)).collect();
            (covered, self.next_sequence.load(Ordering::SeqCst))
        };
        let reader = &self.reader;
        let families = ["blocks", "nodes"].map(|name| reader.family(name));
        reader
            .db
            .flush_cfs_opt(&families, &FlushOptions::default())
            .map_err(self.broken("flush"))?;
        if self.failed.load(Ordering::SeqCst) {
            return Err(failed_before());
        }
        let mut batch = WriteBatch::default();
        // A sweep that was interrupted leaves marks of blocks that it removed; one that is put again is whole.
        let marked: Vec<_> = {
            let condemned = self.condemned.read();
            let ids = covered.iter().map(|(id, _)| *id);
            ids.filter(|id| condemned.contains(id)).collect()
        };
        for id in &marked {
            batch.delete_cf(reader.family("meta"), CONDEMNED.key(*id));
        }
        for (id, Pending { row, replaces }) in &covered {
            batch.put_cf(reader.family("index"), id.0, row.encode());
            if let Some(old) = replaces.filter(|old| reader.is_at(*id, *old)) {
                batch.delete_range_cf(reader.family("blocks"), part_key(old, 0), part_key(old + 1, 0));
            }
        }
        if covered.iter().any(|(_, pending)| pending.row.base.is_some()) {
            reader.note_differences(&mut batch)?;
        }
        batch.put_cf(reader.family("meta"), "barrier", next.to_be_bytes());
        if let Some(Commit {
            record, notes, terms, ..
        }) = commit
        {
            batch.put_cf(reader.family("backups"), &record.key, &record.bytes);
            reader.note_received(&record.key, terms.doubts_times, &mut batch);
            self.change_notes(notes, &mut batch);
            self.next_generation(&mut batch)?;
        }
        self.write_logged("commit", batch)?;
        let _no_puts = self.gate.write();
        let mut pending = self.pending();
        let mut condemned = self.condemned.write();
        covered.iter().for_each(|(id, _)| _ = pending.remove(id));
        marked.iter().for_each(|id| _ = condemned.remove(id));
        Ok(())
    }

    /// Commits for a session.
    fn commit_for(&self, terms: Terms, record: &Record, notes: &[Note], at: Option<u64>) -> Result<()> {
        self.barrier(Some(Commit {
            record,
            notes,
            at,
            terms,
        }))
    }

    /// An error if readers have seen a change since generation `at`. The caller holds `barrier`.
    fn check_at(&self, at: Option<u64>) -> Result<()> {
        match at {
            Some(at) if at != self.reader.generation()? => Err(Error::Moved),
            _ => Ok(()),
        }
    }

    fn change_notes(&self, notes: &[Note], batch: &mut WriteBatch) {
        let family = self.reader.family("notes");
        for note in notes {
            match &note.value {
                Some(value) => batch.put_cf(family, &note.name, value),
                None => batch.delete_cf(family, &note.name),
            }
        }
    }

    /// Writes a batch that is durable when this returns. All writes with the log on use this function.
    fn write_logged(&self, doing: &'static str, batch: WriteBatch) -> Result<()> {
        let _no_view = self.log.lock();
        let written = self.reader.db.write_opt(batch, &options::logged());
        written.map_err(self.broken(doing))
    }
}

impl StoreReader for RocksStore {
    fn identity(&self) -> Result<Identity> {
        self.reader.identity()
    }

    fn generation(&self) -> Result<u64> {
        self.reader.generation()
    }

    fn state_at(&self, generation: u64) -> Result<Option<String>> {
        self.reader.state_of(generation)
    }

    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>> {
        self.locate_for(None, ids)
    }

    fn survey_from(&self, from: BlockId, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()> {
        self.reader.survey_from(from, each)
    }

    fn condemned(&self) -> Result<Vec<BlockId>> {
        self.reader.condemned()
    }

    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        get_each(wanted, |ids| self.rows(ids), &self.reader)
    }

    fn nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
        self.reader.nodes(ids)
    }

    fn records(&self) -> Result<Vec<Record>> {
        self.reader.records()
    }

    fn notes(&self) -> Result<Vec<Note>> {
        self.reader.notes()
    }

    fn forgotten(&self) -> Result<Vec<Forgotten>> {
        self.reader.forgotten_records()
    }

    fn listing(&self, with_notes: bool) -> Result<Listing> {
        self.reader.listing(with_notes)
    }

    fn lookup(&self, record_keys: &[String], note_names: &[String]) -> Result<Listing> {
        self.reader.lookup(record_keys, note_names)
    }
}

impl StoreWriter for RocksStore {
    fn put(&self, blocks: Vec<Sealed>) -> Result<()> {
        self.put_for(None, blocks)
    }

    fn takes_differences(&self) -> bool {
        true
    }

    fn put_nodes(&self, nodes: Vec<(NodeId, Vec<u8>)>) -> Result<()> {
        self.put_nodes_for(None, Terms::default(), nodes)
    }

    fn flush(&self) -> Result<()> {
        self.barrier(None)
    }

    fn commit_at(&self, record: &Record, notes: &[Note], at: Option<u64>) -> Result<()> {
        self.commit_for(Terms::default(), record, notes, at)
    }
}

impl StoreManager for RocksStore {
    fn amend_at(&self, remove_records: &[String], notes: &[Note], at: Option<u64>) -> Result<()> {
        self.amend_for(None, Terms::default(), remove_records, notes, at)
    }

    fn empty_bin(&self, time: jiff::Timestamp, up_to: u64) -> Result<()> {
        self.empty_bin_until(time, up_to)
    }

    fn condemn(&self, ids: &[BlockId]) -> Result<()> {
        let ids = &self.reader.with_dependents(ids)?;
        let mut batch = WriteBatch::default();
        for id in ids {
            batch.put_cf(self.reader.family("meta"), CONDEMNED.key(*id), []);
        }
        self.write_logged("record damaged blocks", batch)?;
        let mut condemned = self.condemned.write();
        condemned.extend(ids);
        Ok(())
    }

    fn pardon(&self, ids: &[BlockId]) -> Result<()> {
        let mut batch = WriteBatch::default();
        for id in ids {
            batch.delete_cf(self.reader.family("meta"), CONDEMNED.key(*id));
        }
        self.write_logged("clear the record of damaged blocks", batch)?;
        let mut condemned = self.condemned.write();
        condemned.retain(|id| !ids.contains(id));
        Ok(())
    }

    fn retain(&self, live: &Live, options: PruneOptions, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<Swept> {
        self.retain_for(None, live, options, step)
    }
}

/// Removes a checkpoint, finished or not.
pub(crate) fn remove_checkpoint(path: &Path) {
    // RocksDB builds it under the second name.
    let mut draft = path.as_os_str().to_owned();
    draft.push(".tmp");
    for path in [path, Path::new(&draft)] {
        let _ = std::fs::remove_dir_all(path);
    }
}

/// Returns the directory of the store within a repository's directory.
pub fn path_in(repository: &Path) -> PathBuf {
    repository.join("store")
}

#[cfg(test)]
mod tests;
