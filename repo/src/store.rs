//! The one seam: what keeps a repository's bytes.
//!
//! A store keeps sealed blocks, segments and records under the names it is given. It knows nothing of compression,
//! images or partitions.
//!
//! 1. Putting a block or segment that exists succeeds and changes nothing.
//! 2. When `flush` returns Ok, everything put before survives loss of power. If a put could not
//!    be written, every later flush fails.
//! 3. A record is visible whole or not at all, durable when `commit` returns, never replaced. It goes only by name.
//! 4. Every method may be called from many threads at once.
//! 5. An error of kind Unavailable may be retried as it is.
//!
//! Calls take many names at once, because a store may be 100 ms away.

use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::block::{BlockSize, Hashing};
use crate::codec::Sealed;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, SegmentId};
use crate::store::places::Places;

pub use crate::store::places::Place;

pub mod checked;
#[cfg(test)]
pub(crate) mod conformance;
pub mod encrypted;
#[cfg(test)]
pub(crate) mod faulty;
pub mod memory;
pub mod places;
pub mod rocks;

/// The newest store format that this vbk reads, and the one it writes.
pub const STORE_FORMAT: u32 = 1;

/// The feature of an encrypted repository.
pub const ENCRYPTION: &str = "encryption";

/// All features that this vbk knows.
const FEATURES: [&str; 1] = [ENCRYPTION];

/// What a repository is, fixed when it is made. Kept in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Layout of the store.
    pub format: u32,
    /// Names of features that a reader must know, or refuse.
    #[serde(default)]
    pub features: Vec<String>,
    /// Random hexadecimal digits that tell repositories apart.
    pub id: String,
    /// The size of every block but an image's last.
    pub block_size: BlockSize,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// In an encrypted repository: tells the right master key from a wrong one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_check: Option<String>,
}

impl Identity {
    /// Refuses what a newer vbk made. `path` is only for the message.
    pub(crate) fn check(&self, path: impl Into<PathBuf>) -> Result<()> {
        if self.format > STORE_FORMAT {
            return Err(Error::NewerFormat {
                path: path.into(),
                found: self.format,
                supported: STORE_FORMAT,
            });
        }
        let known = |feature: &&String| FEATURES.contains(&feature.as_str());
        let unknown: Vec<_> = self
            .features
            .iter()
            .filter(|feature| !known(feature))
            .cloned()
            .collect();
        if !unknown.is_empty() {
            return Err(Error::UnknownFeatures {
                path: path.into(),
                features: unknown.join(", "),
            });
        }
        Ok(())
    }
}

/// What is known of a stored block without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Located {
    /// Where it lies.
    pub place: Place,
    /// The length of its plain bytes.
    pub plain_bytes: u32,
    /// What it takes in the store, without the store's own overhead.
    pub stored_bytes: u32,
}

/// Pages of a block to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The block.
    pub id: BlockId,
    /// Numbers of the wanted pages.
    pub pages: Range<usize>,
}

/// What a store has of a [`Wanted`]. Nothing of it is proved yet; [`crate::codec::Header`] does that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The block's header.
    pub header: Vec<u8>,
    /// The wanted pages; empty where nothing is stored.
    pub pages: Vec<Vec<u8>>,
}

/// A backup's record under its key `GUEST@TIME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The name; records are listed in the order of their keys' bytes.
    pub key: String,
    /// The record.
    pub bytes: Vec<u8>,
}

/// A small value that may change: what is known of a backup besides its record, or of the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Its name; at most one note has it.
    pub name: String,
    /// The value; `None` in a change removes the note.
    pub value: Option<Vec<u8>>,
}

/// What backups name, for [`BlockStore::retain`]. It may hold too much, never too little.
#[derive(Debug, Default)]
pub struct Live {
    /// Where their blocks lie.
    pub places: Places,
    /// Their segments and roots.
    pub segments: HashSet<SegmentId>,
}

/// What was found and removed by [`BlockStore::retain`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Blocks that backups name.
    pub live_blocks: u64,
    /// What they take.
    pub live_bytes: u64,
    /// Blocks that no backup names.
    pub unused_blocks: u64,
    /// What they took.
    pub unused_bytes: u64,
    /// Unused blocks that were removed; the others lie where too little is to be gained.
    pub removed_blocks: u64,
    /// What those took.
    pub removed_bytes: u64,
    /// Segments and roots that were removed.
    pub removed_segments: u64,
}

/// How much [`BlockStore::retain`] does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thrift {
    /// How much unused may stay, as a share of what is live.
    pub max_unused: f64,
    /// Only find out what would be removed.
    pub dry_run: bool,
}

/// The reading half of a store.
pub trait StoreReader: Send + Sync {
    /// What the repository is.
    fn identity(&self) -> Result<Identity>;

    /// How often what readers see was changed. A record that is committed next and alone is visible from the next generation
    /// on. Never lower in a later state of the store.
    fn generation(&self) -> Result<u64>;

    /// How the names of what is stored are made of its content.
    fn hashing(&self) -> Hashing {
        Hashing::Plain
    }

    /// What is known of each block; `None` for one that is not stored. Never reads a block.
    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>>;

    /// Gives each stored block, in any order. Never reads a block. Ends with the first error of `each`.
    fn survey(&self, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()>;

    /// Blocks that were found damaged and not stored anew since.
    fn condemned(&self) -> Result<Vec<BlockId>>;

    /// One answer per wanted block, in order. One block's damage does not keep the others back.
    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>>;

    /// One answer per segment, in order.
    fn segments(&self, ids: &[SegmentId]) -> Vec<Result<Vec<u8>>>;

    /// All records.
    fn records(&self) -> Result<Vec<Record>>;

    /// All notes. One that can't be read is among them as it is stored, under [`StoreReader::stored_note_name`].
    fn notes(&self) -> Result<Vec<Note>>;

    /// What is wrong with the set of records and notes as a whole: a line for each kind of change that no writer made. Only an
    /// encrypted store knows.
    fn foreign_changes(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// How often the set of records and notes was written, as only the holder of the key can have counted; it grows with
    /// every commit and change. `None` in a plain store, and where it can't be read.
    fn epoch(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// The name under which a note is stored, so that it can be told of what one is that can't be read.
    fn stored_note_name(&self, name: &str) -> String {
        name.to_owned()
    }
}

/// A store that can be added to.
pub trait BlockStore: StoreReader {
    /// Stores blocks. One that is stored is left as it is, unless it is condemned.
    fn put(&self, blocks: Vec<Sealed>) -> Result<()>;

    /// Stores segments. One that is stored is left as it is, unless it is not these bytes any more.
    fn put_segments(&self, segments: Vec<(SegmentId, Vec<u8>)>) -> Result<()>;

    /// The barrier: see point 2 of the seam.
    fn flush(&self) -> Result<()>;

    /// Flushes, then makes the record visible.
    fn commit(&self, record: &Record) -> Result<()> {
        self.commit_with(record, &[])
    }

    /// As [`BlockStore::commit`], and changes notes with it: all of it or nothing.
    fn commit_with(&self, record: &Record, notes: &[Note]) -> Result<()>;

    /// Takes the set of records and notes as it is from now on. Gives what [`StoreReader::foreign_changes`] said before. Durable
    /// when this returns.
    fn accept(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Removes records and changes notes: all of it or nothing, durable when this returns. Names that are not there are
    /// no error.
    fn amend(&self, remove_records: &[String], notes: &[Note]) -> Result<()>;

    /// Notes that blocks are damaged, so that the next put of each stores it anew. Durable when this returns.
    fn condemn(&self, ids: &[BlockId]) -> Result<()>;

    /// Takes [`BlockStore::condemn`] back for blocks that turned out to be whole. Durable when this returns.
    fn pardon(&self, ids: &[BlockId]) -> Result<()>;

    /// Removes blocks and segments that are not in `live`, and gives their space back. `live` must be of this store as it
    /// is, marked after a barrier and with nothing put since. May be ended at any moment, by an error of `step`, a crash or loss of power, without
    /// harm; the next call goes on. `step` is called with the bytes removed so far, whenever space was given back.
    fn retain(&self, live: &Live, thrift: Thrift, step: &mut dyn FnMut(u64) -> Result<()>) -> Result<Swept>;
}

/// What a store answers for a put that came after a failed one.
fn failed_before() -> Error {
    Error::Store {
        kind: ErrorKind::Unavailable,
        doing: "flush",
        message: "an earlier write failed".into(),
    }
}
