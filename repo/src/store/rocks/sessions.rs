//! Sessions: writers that have the store open at the same time, and a sweep among them. Nobody waits for a sweep, and a sweep
//! waits for nobody.
//!
//! A session *uses* a block from the moment that the store told it that the block is there (`locate`, or a put that found it),
//! or that it put it, with all blocks that this one depends on (`bases.rs`), and a node of a manifest from the moment that it asked
//! for it or put it. It *builds on* the record that it names with `builds_on`: an unchanged part of a disk is neither asked for nor put again. Such a record is *held* when it is
//! removed.
//!
//! # Why a sweep removes nothing that a backup needs
//!
//! A sweep is made by a session, which opened before it read the records for its marks.
//!
//! 1. What a committed record names is marked, if the record was there when the records were read.
//! 2. Any other backup was, at that moment, still being made by an open session, or that session opened later. Each block that
//!    it names is used by that session, or named by the record that it builds on. That record is marked, or held, and then
//!    marked too. Whatever else it names is looked for at its commit (`store/proof.rs`).
//! 3. What a session used counts as used, and what was held for it stays held, until all sessions have ended that were open when
//!    it ended; the one that sweeps is among them. So a backup that is committed between the marks and the end of the sweep
//!    loses nothing.
//! 4. Nothing comes between the decision that a block is not used and the removal of its index row: both happen under the lock
//!    under which sessions note what they use. A `locate` whose answer is older than such a removal asks again.
//! 5. Blocks that were put after the sweep began have sequence numbers from its *horizon* on. It looks at none of them.
//!
//! What a session uses is forgotten with the process. A client that continues its backup in another session finds out at its
//! commit what is missing, see `store/proof.rs`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rocksdb::WriteBatch;

use super::bases::{Bases, follow};
use super::errors::{failed, is_damage};
use super::rows::{IndexRow, part_key};
use super::{BATCH_BYTES, Pending, RocksStore};
use crate::backup::Backup;
use crate::codec::Sealed;
use crate::error::Result;
use crate::id::{BlockId, NodeId};
use crate::store::encrypted::roots_below;
use crate::store::places::Places;
use crate::store::proof::Proved;
use crate::store::{
    Forgotten, Identity, Listing, Live, Located, MOST_BASES_READ, Note, Place, PruneOptions, Record, StoreManager,
    StoreReader, StoreWriter, Stored, Swept, Terms, Wanted,
};

/// Blocks and nodes that a session relies on.
#[derive(Default)]
pub(super) struct Used {
    pub(super) places: Places,
    pub(super) nodes: HashSet<NodeId>,
    /// Keys of the records that its backups build on.
    bases: HashSet<String>,
}

/// Something that stays until all sessions with lower numbers than `session`, but that of its maker, have ended.
struct Until<T> {
    session: u64,
    maker: Option<u64>,
    thing: T,
}

impl<T> Until<T> {
    fn stays(&self, open: &BTreeMap<u64, Used>) -> bool {
        let mut before = open.range(..self.session);
        before.any(|(number, _)| Some(*number) != self.maker)
    }
}

/// Rules of the argument above. The tests take each of them away, and find what is then lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// What open sessions use stays.
    Used,
    /// What ended sessions used stays until those that were open then have ended.
    Ended,
    /// Removed records are held.
    Held,
    /// A look-up that a removal overtook is repeated.
    Again,
    /// A sweep does not look at what was put since it began.
    Horizon,
}

/// The sessions of a store.
#[derive(Default)]
pub(super) struct Sessions {
    #[cfg(test)]
    without: Option<Rule>,
    next: u64,
    open: BTreeMap<u64, Used>,
    ended: Vec<Until<Used>>,
    held: Vec<Until<Record>>,
    /// Number of times that a sweep removed index rows.
    pub(super) removals: u64,
}

impl Sessions {
    /// Returns whether a rule stands.
    #[cfg(test)]
    pub(super) fn keep(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    #[cfg(not(test))]
    pub(super) fn keep(&self, _: Rule) -> bool {
        true
    }

    fn begin(&mut self) -> u64 {
        self.next += 1;
        self.open.insert(self.next, Used::default());
        self.next
    }

    fn end(&mut self, session: u64) {
        let Some(used) = self.open.remove(&session) else {
            return;
        };
        for held in &mut self.held {
            if used.bases.contains(&held.thing.key) {
                // Its backup may be in no record that the present sessions have read.
                (held.session, held.maker) = (self.next + 1, None);
            }
        }
        if self.keep(Rule::Ended) {
            self.ended.push(self.until(None, used));
        }
        self.ended.retain(|ended| ended.stays(&self.open));
        self.held.retain(|held| held.stays(&self.open));
    }

    /// The notes of a session; `None` for a caller without one.
    pub(super) fn of(&mut self, session: Option<u64>) -> Option<&mut Used> {
        self.open.get_mut(&session?)
    }

    fn until<T>(&self, maker: Option<u64>, thing: T) -> Until<T> {
        Until {
            session: self.next + 1,
            maker,
            thing,
        }
    }

    /// Keeps a record that a session removes, if another one builds on it.
    pub(super) fn hold(&mut self, maker: Option<u64>, record: Record) {
        let is_base = self.others(maker).any(|used| used.bases.contains(&record.key));
        if is_base && self.keep(Rule::Held) {
            self.held.push(self.until(maker, record));
        }
    }

    /// Notes of all sessions but one.
    fn others(&self, session: Option<u64>) -> impl Iterator<Item = &Used> {
        let counts = move |(number, _): &(&u64, &Used)| Some(**number) != session && self.keep(Rule::Used);
        let open = self.open.iter().filter(counts);
        let ended = self.ended.iter().map(|ended| &ended.thing);
        open.map(|(_, used)| used).chain(ended)
    }

    /// Returns whether a session, but that of the sweep itself, uses a block.
    pub(super) fn use_place(&self, sweep: Option<u64>, place: Place) -> bool {
        self.others(sweep).any(|used| used.places.contains(place))
    }

    /// Returns whether a block that no barrier covers was put by this session, or by a caller without one.
    pub(super) fn is_put_by(&self, session: Option<u64>, place: Place) -> bool {
        match session {
            Some(session) => self.open.get(&session).is_some_and(|used| used.places.contains(place)),
            None => !self.use_place(None, place),
        }
    }

    /// Returns whether a session, but that of the sweep itself, uses a node.
    pub(super) fn use_node(&self, sweep: Option<u64>, id: &NodeId) -> bool {
        self.others(sweep).any(|used| used.nodes.contains(id))
    }
}

/// Calls of sessions, and of callers without one.
impl RocksStore {
    /// Returns whether there are blocks that no barrier covers yet.
    pub fn has_pending(&self) -> bool {
        !self.pending().is_empty()
    }

    /// Looks blocks up for a session, which uses those that are there from now on.
    pub(super) fn locate_for(&self, session: Option<u64>, ids: &[BlockId]) -> Result<Vec<Option<Located>>> {
        let read = || {
            let mut rows = self.rows(ids)?;
            let bases = follow(&mut rows, MOST_BASES_READ, |ids| self.rows(ids))?;
            Ok((rows, bases))
        };
        let removals = self.sessions.lock().removals;
        let (mut rows, mut bases) = read()?;
        #[cfg(test)]
        self.pause();
        let mut sessions = self.sessions.lock();
        if sessions.removals != removals && sessions.keep(Rule::Again) {
            (rows, bases) = read()?;
        }
        if let Some(used) = sessions.of(session) {
            let places = rows.iter().flatten().map(|row| Place(row.sequence));
            places.chain(bases).for_each(|place| _ = used.places.insert(place));
        }
        Ok(rows.into_iter().map(|row| row.map(IndexRow::located)).collect())
    }

    /// Stores blocks for a session.
    pub(super) fn put_for(&self, session: Option<u64>, blocks: Vec<Sealed>) -> Result<()> {
        // Keeps barriers from determining or dropping their rows between the look-up and the write.
        let _gate = self.gate.read();
        let ids: Vec<_> = blocks.iter().map(|block| block.id).collect();
        let removals = self.sessions.lock().removals;
        let mut stored = self.reader.index_rows(&ids)?;
        let condemned = self.condemned.read();
        let mut batch = WriteBatch::default();
        let mut new = Vec::new();
        {
            let mut sessions = self.sessions.lock();
            if sessions.removals != removals && sessions.keep(Rule::Again) {
                stored = self.reader.index_rows(&ids)?;
            }
            let mut used = sessions.of(session);
            let mut pending = self.pending();
            let rows_with = |ids: &[BlockId]| {
                let stored = self.reader.index_rows(ids)?.into_iter().zip(ids);
                let row = |(stored, id)| pending.get(id).map(|pending| pending.row).or(stored);
                Ok(stored.map(row).collect())
            };
            // Before anything is noted: an error leaves nothing of these blocks.
            let is_pending = |id: &BlockId| pending.contains_key(id);
            let bases = Bases::of(&blocks, &stored, &condemned, &is_pending, &rows_with)?;
            let mut note = |sequence| used.as_mut().map(|used| used.places.insert(Place(sequence)));
            bases.places.iter().for_each(|place| _ = note(place.0));
            for ((block, stored), is_lost) in blocks.into_iter().zip(stored).zip(bases.lost) {
                if let Some(stored) = stored {
                    note(stored.sequence);
                }
                let replaces = stored
                    .filter(|_| is_lost || condemned.contains(&block.id))
                    .map(|stored| stored.sequence);
                if let Some(pending) = pending.get(&block.id) {
                    note(pending.row.sequence);
                    continue;
                }
                if stored.is_some() && replaces.is_none() {
                    continue;
                }
                let row = IndexRow {
                    sequence: self.next_sequence.fetch_add(1, Ordering::SeqCst),
                    plain_bytes: block.plain_bytes,
                    // A block has at most 16 MiB, and its header less than one.
                    stored_bytes: block.stored_bytes().min(i32::MAX as u64) as u32,
                    base: block.base,
                };
                note(row.sequence);
                pending.insert(block.id, Pending { row, replaces });
                new.push((block, row));
            }
        }
        for (block, row) in new {
            let header = [&row.part_zero(block.id)[..], &block.header].concat();
            let parts = std::iter::once(&header).chain(&block.pages);
            for (part, bytes) in parts.enumerate().filter(|(_, bytes)| !bytes.is_empty()) {
                batch.put_cf(self.reader.family("blocks"), part_key(row.sequence, part), bytes);
                // The rows of a block need not be written together: none of them counts before the block's index row
                // exists.
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

    /// Stores nodes for a session.
    pub(super) fn put_nodes_for(
        &self,
        session: Option<u64>,
        terms: Terms,
        nodes: Vec<(NodeId, Vec<u8>)>,
    ) -> Result<()> {
        if let Some(used) = self.sessions.lock().of(session) {
            used.nodes.extend(nodes.iter().map(|(id, _)| *id));
        }
        let family = self.reader.family("nodes");
        let mut batch = WriteBatch::default();
        for (id, bytes) in nodes {
            // The stored node is read first, so that an unchanged manifest is not written again every day. A node
            // that differs from what it was is written again, which repairs every backup that uses it.
            match self.reader.db.get_pinned_cf(family, id.0) {
                Ok(Some(stored)) if terms.keeps_nodes || *stored == *bytes => {}
                Ok(_) => batch.put_cf(family, id.0, bytes),
                Err(error) if is_damage(&error) => batch.put_cf(family, id.0, bytes),
                Err(error) => return Err(failed("read a manifest")(error)),
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.write("store a manifest", batch)
    }

    /// Changes records and notes for a session.
    pub(super) fn amend_for(
        &self,
        session: Option<u64>,
        terms: Terms,
        remove_records: &[String],
        notes: &[Note],
        at: Option<u64>,
    ) -> Result<()> {
        let _one = self.barrier.lock();
        self.check_at(at)?;
        let mut batch = WriteBatch::default();
        for key in remove_records {
            let family = self.reader.family("backups");
            // No backup builds on one that can't be read, and none can be brought back.
            if let Ok(Some(bytes)) = self.reader.db.get_cf(family, key) {
                let key = key.clone();
                let record = Record { key, bytes };
                self.throw(&record, terms.keep_removed_secs, &mut batch)?;
                self.sessions.lock().hold(session, record);
            }
            batch.delete_cf(family, key);
            self.reader.drop_received(key, &mut batch);
        }
        self.change_notes(notes, &mut batch);
        self.next_generation(&mut batch)?;
        self.write_logged("change its notes", batch)
    }
}

/// A store as one of its writers has it open. Dropping it ends the session.
pub struct RocksSession {
    store: Arc<RocksStore>,
    number: u64,
    is_encrypted: bool,
    terms: Mutex<Terms>,
    /// Parts of manifests that need no proof at a commit.
    proved: Mutex<Proved>,
}

impl RocksSession {
    /// Opens a session of a store.
    pub fn open(store: Arc<RocksStore>) -> Result<Self> {
        let is_encrypted = store.identity()?.is_encrypted();
        let number = store.sessions.lock().begin();
        Ok(Self {
            store,
            number,
            is_encrypted,
            terms: Mutex::default(),
            proved: Mutex::default(),
        })
    }
}

/// The manifests that a record names as it is stored; none if it can't be read.
pub(super) fn roots_of(is_encrypted: bool, record: &[u8]) -> Vec<NodeId> {
    match is_encrypted {
        true => roots_below(record).unwrap_or_default(),
        false => {
            let backup = serde_json::from_slice::<Backup>(record);
            let images = backup.iter().flat_map(Backup::stored);
            images.map(|image| image.manifest).collect()
        }
    }
}

impl Drop for RocksSession {
    fn drop(&mut self) {
        self.store.sessions.lock().end(self.number);
    }
}

impl StoreReader for RocksSession {
    fn identity(&self) -> Result<Identity> {
        self.store.identity()
    }

    fn generation(&self) -> Result<u64> {
        self.store.generation()
    }

    fn state_at(&self, generation: u64) -> Result<Option<String>> {
        self.store.state_at(generation)
    }

    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>> {
        self.store.locate_for(Some(self.number), ids)
    }

    fn survey_from(&self, from: BlockId, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()> {
        self.store.survey_from(from, each)
    }

    fn condemned(&self) -> Result<Vec<BlockId>> {
        self.store.condemned()
    }

    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        self.store.get(wanted)
    }

    fn nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
        if let Some(used) = self.store.sessions.lock().of(Some(self.number)) {
            used.nodes.extend(ids);
        }
        self.store.nodes(ids)
    }

    fn records(&self) -> Result<Vec<Record>> {
        self.store.records()
    }

    fn notes(&self) -> Result<Vec<Note>> {
        self.store.notes()
    }

    fn forgotten(&self) -> Result<Vec<Forgotten>> {
        self.store.forgotten()
    }

    fn listing(&self, with_notes: bool) -> Result<Listing> {
        self.store.listing(with_notes)
    }

    fn lookup(&self, record_keys: &[String], note_names: &[String]) -> Result<Listing> {
        self.store.lookup(record_keys, note_names)
    }
}

impl StoreWriter for RocksSession {
    fn takes_differences(&self) -> bool {
        true
    }

    fn put(&self, blocks: Vec<Sealed>) -> Result<()> {
        self.store.put_for(Some(self.number), blocks)
    }

    fn put_nodes(&self, nodes: Vec<(NodeId, Vec<u8>)>) -> Result<()> {
        let terms = *self.terms.lock();
        self.store.put_nodes_for(Some(self.number), terms, nodes)
    }

    fn builds_on(&self, record_key: &str) -> Result<()> {
        let found = {
            // Whoever removes the record from now on finds that it has to be held.
            let _no_change = self.store.barrier.lock();
            let found = self.store.lookup(&[record_key.to_owned()], &[])?.records;
            // Names of nothing would only take memory.
            if !found.is_empty()
                && let Some(used) = self.store.sessions.lock().of(Some(self.number))
            {
                used.bases.insert(record_key.to_owned());
            }
            found
        };
        for record in found {
            self.proved
                .lock()
                .trust(&*self.store, &roots_of(self.is_encrypted, &record.bytes))?;
        }
        Ok(())
    }

    fn set_terms(&self, terms: Terms) {
        *self.terms.lock() = terms;
    }

    fn flush(&self) -> Result<()> {
        self.store.flush()
    }

    fn commit_at(&self, record: &Record, notes: &[Note], at: Option<u64>) -> Result<()> {
        // Of what it finds to be there, nothing is removed until this session has ended.
        self.proved
            .lock()
            .prove(self, &roots_of(self.is_encrypted, &record.bytes))?;
        let terms = *self.terms.lock();
        self.store.commit_for(terms, record, notes, at)
    }
}

impl StoreManager for RocksSession {
    fn amend_at(&self, remove_records: &[String], notes: &[Note], at: Option<u64>) -> Result<()> {
        let terms = *self.terms.lock();
        self.store
            .amend_for(Some(self.number), terms, remove_records, notes, at)?;
        if !remove_records.is_empty() {
            // A record that its own session removes is not held, and a sweep may then take what it names.
            *self.proved.lock() = Proved::default();
        }
        Ok(())
    }

    fn empty_bin(&self, time: jiff::Timestamp, up_to: u64) -> Result<()> {
        self.store.empty_bin(time, up_to)
    }

    fn held(&self) -> Vec<Record> {
        let sessions = self.store.sessions.lock();
        sessions.held.iter().map(|held| held.thing.clone()).collect()
    }

    fn condemn(&self, ids: &[BlockId]) -> Result<()> {
        self.store.condemn(ids)
    }

    fn pardon(&self, ids: &[BlockId]) -> Result<()> {
        self.store.pardon(ids)
    }

    fn retain(&self, live: &Live, options: PruneOptions, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<Swept> {
        // A sweep does not keep what its own session has used.
        *self.proved.lock() = Proved::default();
        self.store.retain_for(Some(self.number), live, options, step)
    }
}

#[cfg(test)]
mod tests;
