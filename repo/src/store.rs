//! The one seam: what keeps a repository's bytes.
//!
//! A store keeps sealed blocks, segments and records under the names it is given. It knows nothing of compression,
//! images or partitions.
//!
//! 1. Putting a block or segment that exists succeeds and changes nothing.
//! 2. When `flush` returns Ok, everything put before survives loss of power. If a put could not
//!    be written, every later flush fails.
//! 3. A record is visible whole or not at all, durable when `commit` returns, never replaced.
//! 4. Every method may be called from many threads at once.
//! 5. An error of kind Unavailable may be retried as it is.
//!
//! Calls take many names at once, because a store may be 100 ms away.

use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::block::BlockSize;
use crate::codec::Sealed;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, SegmentId};

#[cfg(test)]
pub(crate) mod conformance;
pub mod memory;
pub mod rocks;

/// The newest store format that this vbk reads, and the one it writes.
pub const STORE_FORMAT: u32 = 1;

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
        if !self.features.is_empty() {
            return Err(Error::UnknownFeatures {
                path: path.into(),
                features: self.features.join(", "),
            });
        }
        Ok(())
    }
}

/// Where a block lies: places near each other are read together cheaply. Dense enough for a bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub u64);

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

/// The reading half of a store.
pub trait StoreReader: Send + Sync {
    /// What the repository is.
    fn identity(&self) -> Result<Identity>;

    /// Where each block lies; `None` for one that is not stored. Never reads a block.
    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Place>>>;

    /// One answer per wanted block, in order. One block's damage does not keep the others back.
    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>>;

    /// One answer per segment, in order.
    fn segments(&self, ids: &[SegmentId]) -> Vec<Result<Vec<u8>>>;

    /// All records.
    fn records(&self) -> Result<Vec<Record>>;
}

/// A store that can be added to.
pub trait BlockStore: StoreReader {
    /// Stores blocks.
    fn put(&self, blocks: Vec<Sealed>) -> Result<()>;

    /// Stores segments.
    fn put_segments(&self, segments: Vec<(SegmentId, Vec<u8>)>) -> Result<()>;

    /// The barrier: see point 2 of the seam.
    fn flush(&self) -> Result<()>;

    /// Flushes, then makes the record visible.
    fn commit(&self, record: &Record) -> Result<()>;
}

/// What a store answers for a put that came after a failed one.
fn failed_before() -> Error {
    Error::Store {
        kind: ErrorKind::Unavailable,
        doing: "flush",
        message: "an earlier write failed".into(),
    }
}
