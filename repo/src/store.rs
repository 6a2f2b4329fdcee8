//! The one seam: the stores that keep a repository's bytes.
//!
//! A store keeps sealed blocks, nodes of manifests and records under the names it is given. It knows nothing of compression,
//! images or partitions.
//!
//! 1. Putting a block or node that exists succeeds and changes nothing.
//! 2. A put may return before its bytes are written; a store holds back the caller when too much is on its way. When `flush`
//!    returns Ok, everything put before survives loss of power. If a put could not be written, every later flush and commit
//!    fails. A store in another process loses what was put and not flushed when that is restarted: the commit of a backup that
//!    needs it fails with [`Error::Missing`].
//! 3. A record is visible whole or not at all, durable when `commit` returns, never replaced. Only its name removes it. A
//!    commit of the same name and bytes succeeds again, so that a caller can repeat one whose answer was lost.
//! 4. Every method may be called from many threads at once.
//! 5. A call that failed with an error of kind Unavailable may be repeated, but for point 2.
//! 6. Several writers may have a store open at once. A change that was made out of what a caller read carries the generation of
//!    that reading, and fails with [`Error::Moved`] if another writer was faster.
//!
//! Three traits are three rights: [`StoreReader`] reads, [`StoreWriter`] adds backups, [`StoreManager`] removes and changes
//! what is stored. Calls take many names at once, because a store may be 100 ms away ([`Distance`]).
//!
//! A block may be stored as its difference from another one, its *base* ([`crate::codec::Sealed::base`]). A store keeps and gives it
//! as it was put, and tells the base, so that no key is needed to see what a block depends on; [`whole`] reads both. What is
//! stored with a base that is not there is not stored.
//!
//! Nothing above a store trusts its answers: [`checked`] compares their number with that of the questions, and every
//! byte is proved against the name it was asked for.

use std::ops::Range;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::block::Hashing;
use crate::codec::Sealed;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, NodeId};

pub use crate::store::identity::{DIFFERENCES, ENCRYPTION, Identity, STORE_FORMAT, SUMS};
pub use crate::store::live::Live;
pub use crate::store::places::Place;

pub mod checked;
pub mod conformance;
pub mod delayed;
pub mod door;
pub mod encrypted;
#[cfg(test)]
pub(crate) mod faulty;
mod identity;
pub(crate) mod live;
pub mod memory;
pub mod places;
mod proof;
pub mod rocks;
pub mod whole;

/// The most blocks that a stored block may need in turn, each as the base of the one before. A backup makes differences from whole
/// blocks only; a copy that has no key takes them as they are, and the other store may have their bases as differences too.
pub const MOST_BASES: usize = 4;

/// The most that readers follow: a base that was lost and came back as a difference makes it longer for others.
pub(crate) const MOST_BASES_READ: usize = 4 * MOST_BASES;

/// Index entry of a stored block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Located {
    /// Position in the store.
    pub place: Place,
    /// Length of its plain bytes.
    pub plain_bytes: u32,
    /// Stored length, without the store's own overhead.
    pub stored_bytes: u32,
    /// The block that it is stored as a difference from, if so.
    pub base: Option<BlockId>,
}

/// Pages of a block to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The block.
    pub id: BlockId,
    /// Numbers of the wanted pages.
    pub pages: Range<usize>,
}

/// Answer to a [`Wanted`]. Not proved yet: [`crate::codec::Header`] does that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The block's header.
    pub header: Vec<u8>,
    /// The wanted pages; a page that is not stored is empty.
    pub pages: Vec<Vec<u8>>,
    /// The block that it is stored as a difference from, if so: see [`whole`].
    pub base: Option<BlockId>,
}

/// A backup's record under its key `GUEST@TIME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The name; records are listed in the order of their keys' bytes.
    pub key: String,
    /// The record.
    pub bytes: Vec<u8>,
}

/// A small value that may change: the state of a backup, or of the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Name; at most one note has it.
    pub name: String,
    /// The value; `None` in a change removes the note.
    pub value: Option<Vec<u8>>,
}

/// All records of a store, and what is known of them as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// See [`StoreReader::records`].
    pub records: Vec<Record>,
    /// See [`StoreReader::notes`]; none if they were not asked for.
    pub notes: Vec<Note>,
    /// See [`StoreReader::foreign_changes`].
    pub foreign_changes: Vec<String>,
    /// See [`StoreReader::generation`]; no record came with a later one.
    pub generation: u64,
    /// Times of the commits of records, by their keys; those that an older vbk committed have none.
    pub received: Vec<(String, Received)>,
}

/// Time at which a record was committed, by the clock of the store's own host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The time.
    pub time: Timestamp,
    /// The client that committed the record may have made its time up.
    pub is_doubted: bool,
}

/// A record that was removed, in the store's bin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgotten {
    /// The record.
    pub record: Record,
    /// Time of its removal, by the store's clock.
    pub removed: Timestamp,
    /// Time until which it stays, whoever prunes.
    pub kept_until: Timestamp,
}

/// Conditions of a session that changes a store. The store's own host sets them: for clients that it does not trust.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Seconds for which a record stays in the bin after the session removed it.
    pub keep_removed_secs: u64,
    /// The times in the records that the session commits are not believed.
    pub doubts_times: bool,
    /// Nodes that are stored and can be read stay as they are, whatever the session puts under their names: the store can't
    /// prove those of an encrypted repository.
    pub keeps_nodes: bool,
}

/// Result of [`StoreManager::retain`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swept {
    /// Blocks that backups name.
    pub live_blocks: u64,
    /// Stored bytes of those.
    pub live_bytes: u64,
    /// Blocks that no backup names.
    pub unused_blocks: u64,
    /// Stored bytes of those.
    pub unused_bytes: u64,
    /// Unused blocks that were removed; the others stay where their removal would free too little.
    pub removed_blocks: u64,
    /// Stored bytes of those.
    pub removed_bytes: u64,
    /// Nodes of manifests that were removed.
    pub removed_nodes: u64,
}

/// Extent of [`StoreManager::retain`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PruneOptions {
    /// Share of unused bytes that may stay, of the live bytes.
    pub max_unused: f64,
    /// Only counts what would be removed.
    pub dry_run: bool,
    /// Empties the bin first, also of what should stay longer.
    pub empty_bin: bool,
}

impl PruneOptions {
    /// The usual `max_unused`: less is seldom worth the bytes that must be moved for it.
    pub const MAX_UNUSED: f64 = 0.05;
}

/// The way to a store: how long it takes to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Distance {
    /// A device of this machine answers in a millisecond. Few calls at once keep it busy, and each reads no more than it needs.
    #[default]
    Near,
    /// Another machine answers after a round trip of up to 100 ms. Many calls are in flight at once, and each asks for much.
    Far,
}

/// The right to read.
pub trait StoreReader: Send + Sync {
    /// The identity of the repository.
    fn identity(&self) -> Result<Identity>;

    /// Number of changes that readers have seen. A record that is committed next and alone becomes visible with the next
    /// generation. Never lower in a later state of the store.
    fn generation(&self) -> Result<u64>;

    /// Digits that tell the state with this generation apart from another one with the same: an older copy of the store was
    /// written to meanwhile. `None` if the store is at another generation, or does not know.
    fn state_at(&self, _generation: u64) -> Result<Option<String>> {
        Ok(None)
    }

    /// Names of stored things are made of their content in this way.
    fn hashing(&self) -> Hashing {
        Hashing::Plain
    }

    /// The way to the store. Callers choose the number and the size of their calls by it.
    fn distance(&self) -> Distance {
        Distance::Near
    }

    /// Looks blocks up in the index; `None` for one that is not stored, or whose base is not. Never reads a block.
    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>>;

    /// Gives the stored blocks whose ids are not below `from`, in the order of their ids. Never reads a block. Ends with the first
    /// error of `each`.
    fn survey_from(&self, from: BlockId, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()>;

    /// Like [`StoreReader::survey_from`], with all blocks.
    fn survey(&self, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()> {
        self.survey_from(BlockId([0; 32]), each)
    }

    /// Blocks that were found damaged and not stored again since.
    fn condemned(&self) -> Result<Vec<BlockId>>;

    /// One answer per wanted block, in order, as they are stored: [`whole::get`] is for who wants their content. An error for one
    /// block leaves the others readable.
    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>>;

    /// One answer per node of a manifest, in order.
    fn nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>>;

    /// The same store for a caller that reads much of it, each block once. Its blocks come from the disk, past the page cache of
    /// this host, in larger reads; it takes 2 MiB more for each thread that reads. `None` where this makes no difference.
    fn to_scan(self: Arc<Self>) -> Option<Arc<dyn StoreReader>> {
        None
    }

    /// The same store, whose blocks and nodes come from copies on this host where there are some; what does not is copied, as it is
    /// sealed. `None` if there are no copies. A copy may be wrong: a caller who finds that out drops it, and asks this store.
    fn with_copies(self: Arc<Self>) -> Option<Arc<dyn StoreReader>> {
        None
    }

    /// Drops the copies of these, if this store has copies.
    fn drop_copies(&self, _blocks: &[BlockId], _nodes: &[NodeId]) {}

    /// All records.
    fn records(&self) -> Result<Vec<Record>>;

    /// All notes. A note that can't be read is included as it is stored, under [`StoreReader::stored_note_name`].
    fn notes(&self) -> Result<Vec<Note>>;

    /// The records in the bin, in the order of their removal; see [`StoreManager::amend_at`].
    fn forgotten(&self) -> Result<Vec<Forgotten>> {
        Ok(Vec::new())
    }

    /// Faults in the set of records and notes as a whole: a line for each kind of change that no writer made. Only an
    /// encrypted store can find them.
    fn foreign_changes(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// The records, the notes if they are asked for, their faults and the generation in one answer: a far store gives it
    /// with one call.
    fn listing(&self, with_notes: bool) -> Result<Listing> {
        Ok(Listing {
            records: self.records()?,
            notes: match with_notes {
                true => self.notes()?,
                false => Vec::new(),
            },
            foreign_changes: self.foreign_changes()?,
            generation: self.generation()?,
            received: Vec::new(),
        })
    }

    /// The named ones of all records and notes, and the generation that they belong to.
    fn lookup(&self, record_keys: &[String], note_names: &[String]) -> Result<Listing> {
        // A change in between makes them newer than the generation says, which is then refused.
        let generation = self.generation()?;
        let mut records = self.records()?;
        records.retain(|record| record_keys.contains(&record.key));
        let mut notes = match note_names {
            [] => Vec::new(),
            _ => self.notes()?,
        };
        notes.retain(|note| note_names.contains(&note.name));
        Ok(Listing {
            records,
            notes,
            foreign_changes: Vec::new(),
            generation,
            received: Vec::new(),
        })
    }

    /// Number of times that the set of records and notes was written. Only the holder of the key can have counted it; it grows
    /// with every commit and change. `None` in a plain store, and where it can't be read.
    fn epoch(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Name under which a note is stored. It identifies a note that can't be read.
    fn stored_note_name(&self, name: &str) -> String {
        name.to_owned()
    }
}

/// The right to add backups. It changes and removes nothing that is stored.
pub trait StoreWriter: StoreReader {
    /// Stores blocks. A block that is stored already stays as it is, unless it is condemned, or its base is gone. The base of a
    /// difference must have been put by an earlier call, have fewer than [`MOST_BASES`] below it, not be condemned, and not depend
    /// on the block itself. Otherwise [`Error::BlockMissing`] names the base, and none of the blocks is stored; with a store that is far away only
    /// the commit says so.
    fn put(&self, blocks: Vec<Sealed>) -> Result<()>;

    /// Returns whether a backup had better store differences here. Not if the store is far away, because their bases are read; and
    /// not if what keeps it does not know them.
    fn takes_differences(&self) -> bool {
        false
    }

    /// Stores nodes of manifests. A node that is stored already stays as it is, unless its bytes differ from these.
    fn put_nodes(&self, nodes: Vec<(NodeId, Vec<u8>)>) -> Result<()>;

    /// Names the stored backup that the next one builds on, by the key of its record. What that needs is not looked for again at
    /// the commit. Without effect if there is none of that name.
    fn builds_on(&self, _record_key: &str) -> Result<()> {
        Ok(())
    }

    /// Sets the conditions of this session.
    fn set_terms(&self, _terms: Terms) {}

    /// The barrier: see point 2 of the seam.
    fn flush(&self) -> Result<()>;

    /// Flushes, then makes the record visible. Succeeds again for a record that is stored with the same bytes. Fails with
    /// [`Error::Missing`] if the store can tell that something is not stored that the backup needs.
    fn commit(&self, record: &Record) -> Result<()> {
        self.commit_at(record, &[], None)
    }

    /// Like [`StoreWriter::commit`], and changes notes in the same step: all of it or nothing. With `at`, only while that is the
    /// store's generation; otherwise [`Error::Moved`].
    fn commit_at(&self, record: &Record, notes: &[Note], at: Option<u64>) -> Result<()>;
}

/// The right to change and remove what is stored: for forget, prune, verify and repair.
pub trait StoreManager: StoreWriter {
    /// Removes records and changes notes: all of it or nothing, durable when this returns. Ignores names that do not exist.
    fn amend(&self, remove_records: &[String], notes: &[Note]) -> Result<()> {
        self.amend_at(remove_records, notes, None)
    }

    /// Like [`StoreManager::amend`]; with `at`, only while that is the store's generation; otherwise [`Error::Moved`]. Removed
    /// records are in the bin from then on. A prune keeps what those name that must stay, and removes the others from it.
    fn amend_at(&self, remove_records: &[String], notes: &[Note], at: Option<u64>) -> Result<()>;

    /// Records that were removed while other writers had the store open, whose backups may build on them. What they name must
    /// stay.
    fn held(&self) -> Vec<Record> {
        Vec::new()
    }

    /// Removes from the bin what need not stay after `time`, of what came there with the generation `up_to` or before. Durable when
    /// this returns.
    fn empty_bin(&self, _time: Timestamp, _up_to: u64) -> Result<()> {
        Ok(())
    }

    /// Accepts the present set of records and notes. Gives the former [`StoreReader::foreign_changes`]. Durable when this
    /// returns.
    fn accept(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Marks blocks as damaged, and those that depend on them, so that the next put of each stores it again. Durable when this
    /// returns.
    fn condemn(&self, ids: &[BlockId]) -> Result<()>;

    /// Takes back [`StoreManager::condemn`] for blocks that proved to be whole. Durable when this returns.
    fn pardon(&self, ids: &[BlockId]) -> Result<()>;

    /// Removes blocks and nodes that are not in `live` and that no other writer uses, and frees their space. `live` must have
    /// been marked by records that were read since this writer opened the store, and by those of [`StoreManager::held`] after
    /// that. This writer has put nothing meanwhile. An error of `step`, a crash or loss of power at any moment does no
    /// harm; the next call continues. `step` gets what was removed so far, each time that space was freed, and every few seconds
    /// at least, or about once a minute where a disk is slow.
    fn retain(&self, live: &Live, options: PruneOptions, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<Swept>;
}

/// Answer to a put after a failed one.
fn failed_before() -> Error {
    Error::Store {
        kind: ErrorKind::Unavailable,
        doing: "flush",
        message: "an earlier write failed".into(),
    }
}
