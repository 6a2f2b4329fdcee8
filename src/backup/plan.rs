//! The plan of a backup: its disks, files and options.

use std::path::PathBuf;

use jiff::Timestamp;
use vbk_repo::backup::{Consistency, SnapshotKind};
use vbk_repo::codec::Compression;
use vbk_repo::name::{DiskName, GuestName};

use crate::disk::buffer::Buffers;
use crate::hints::Hint;
use crate::limit::Pace;

/// Plan of a backup.
#[derive(Debug, Clone)]
pub struct BackupPlan {
    /// The guest.
    pub guest: GuestName,
    /// Its disks.
    pub disks: Vec<DiskPlan>,
    /// Files that describe the guest, e.g. `config.xml`.
    pub files: Vec<(DiskName, Vec<u8>)>,
    /// Degree to which the disks agree with themselves and with each other.
    pub consistency: Consistency,
    /// Compression of new blocks.
    pub compression: Compression,
    /// The name of this machine, for the record.
    pub host: String,
    /// The version of the program, for the record.
    pub version: String,
    /// Start of the run.
    pub started: Timestamp,
    /// Number of threads that may compute at once.
    pub threads: usize,
    /// Memory to read into, which backups that run one after the other share.
    pub buffers: Buffers,
}

/// One disk to back up.
#[derive(Debug, Clone)]
pub struct DiskPlan {
    /// Its name.
    pub name: DiskName,
    /// The disk, for the record.
    pub source: PathBuf,
    /// Path that is read: the disk itself, or its snapshot.
    pub read: PathBuf,
    /// Kind of snapshot that `read` is, if it is not the disk itself.
    pub snapshot: Option<SnapshotKind>,
    /// Speed at which it is read.
    pub pace: Pace,
    /// Blocks that need not be read, if they are known.
    pub hint: Option<Hint>,
}
