//! What to back up, and how.

use std::path::PathBuf;

use jiff::Timestamp;
use vbk_repo::backup::{Consistency, SnapshotKind};
use vbk_repo::codec::Compression;
use vbk_repo::name::{DiskName, GuestName};

use crate::hints::Hint;
use crate::limit::Pace;

/// What to back up.
#[derive(Debug, Clone)]
pub struct BackupPlan {
    /// The guest.
    pub guest: GuestName,
    /// Its disks.
    pub disks: Vec<DiskPlan>,
    /// Files that describe it, as `config.xml`.
    pub files: Vec<(DiskName, Vec<u8>)>,
    /// What the state of the disks corresponds to.
    pub consistency: Consistency,
    /// How new blocks are compressed.
    pub compression: Compression,
    /// The name of this machine, for the record.
    pub host: String,
    /// The version of the program, for the record.
    pub version: String,
    /// When the run started.
    pub started: Timestamp,
    /// How many threads may compute at once.
    pub threads: usize,
}

/// One disk to back up.
#[derive(Debug, Clone)]
pub struct DiskPlan {
    /// Its name.
    pub name: DiskName,
    /// The disk, for the record.
    pub source: PathBuf,
    /// What is read: the disk itself, or its snapshot.
    pub read: PathBuf,
    /// What `read` is, if not the disk itself.
    pub snapshot: Option<SnapshotKind>,
    /// How fast it is read.
    pub pace: Pace,
    /// What need not be read, if that is known.
    pub hint: Option<Hint>,
}
