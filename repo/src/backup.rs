//! The record of one backup: its guest, time, host, and the manifests of its images.
//!
//! A record is stored as JSON, so that it can be read without vbk. Its id is the BLAKE3-256 hash of those bytes.
//! Fields that a reader does not know are ignored; a change that must not be ignored gets a new `format` number.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::block::Hashing;
use crate::error::{Error, Result};
use crate::id::{BackupId, NodeId};
use crate::name::{BackupTime, DiskName, GuestName, check_file_name};

/// The newest record format that this vbk reads, and the one it writes.
pub const RECORD_FORMAT: u32 = 1;

/// Size limit of a file that is stored with a backup: its readers hold all of it in memory.
pub const MAX_FILE_BYTES: u64 = 16 << 20;

/// One point in time of a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Backup {
    /// Format number of this record.
    pub format: u32,
    /// Name of the guest.
    pub guest: GuestName,
    /// Time of the disks' state, by the host's clock: the start of the run. Unique within the guest.
    pub time: BackupTime,
    /// Generation of the store that this backup came with, set by [`crate::repository::Writer::commit`]: of two backups
    /// the one with the higher number was made later, whatever their times say. 0 in a record without one.
    #[serde(default, skip_serializing_if = "is_none")]
    pub sequence: u64,
    /// Duration of the run, in milliseconds.
    pub duration_ms: u64,
    /// Name of the machine that made it.
    pub host: String,
    /// Version of the vbk that made it.
    pub vbk_version: String,
    /// Degree to which the disks agree with themselves and with each other.
    pub consistency: Consistency,
    /// The disks, in the order in which they were given.
    pub images: Vec<Image>,
    /// Files that describe the guest, e.g. `config.xml`: stored like images, with the file's name in place of the
    /// disk's. No file has the name of a disk, or a name that a mount uses for something else: see [`Backup::check`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<Image>,
}

/// Degree to which the disks of a backup agree with themselves and with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// The sources were read as they were, without a snapshot: the result is consistent only if nothing wrote to them
    /// meanwhile.
    Live,
    /// Each disk shows one moment, as after a power cut. Nothing froze the guest, so several disks are a moment apart:
    /// their snapshots are made one after the other.
    Crash,
    /// All disks show the same moment, at which the guest's file systems were frozen with everything written.
    FileSystem,
    /// As `FileSystem`, and the administrator's pre-freeze command had succeeded.
    Application,
}

impl std::fmt::Display for Consistency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Live => "live (read without a snapshot)",
            Self::Crash => "crash-consistent (each disk as after a power cut; several disks a moment apart)",
            Self::FileSystem => "file-system-consistent (file systems frozen for the snapshot)",
            Self::Application => "application-consistent (pre-freeze command done, file systems frozen or at rest)",
        })
    }
}

/// The content of one disk at one time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// The disk's name.
    pub disk: DiskName,
    /// Path of the disk that was read.
    pub source: String,
    /// The disk's size.
    pub size_bytes: u64,
    /// The root of the image's manifest. Equal roots have equal content; equal content may have different roots, because
    /// a manifest may refer to segments of an earlier one.
    pub manifest: NodeId,
    /// Bytes that are not zero.
    pub data_bytes: u64,
    /// Plain bytes of the blocks that the repository did not have.
    pub new_bytes: u64,
    /// Bytes of those blocks in the store, sealed.
    pub stored_bytes: u64,
    /// Kind of snapshot that was read; `None` if the disk itself was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotKind>,
    /// Peak use of a thick snapshot's space.
    #[serde(default, skip_serializing_if = "is_none")]
    pub snapshot_used_bytes: u64,
    /// Bytes that were not read, because change hints said that they are the same as in the backup before.
    #[serde(default, skip_serializing_if = "is_none")]
    pub skipped_bytes: u64,
    /// The change hints were found to be wrong, so the whole disk was read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hints_wrong: bool,
}

impl Image {
    /// An image of which nothing else is recorded.
    pub fn new(disk: DiskName, source: impl Into<String>, size_bytes: u64, manifest: NodeId) -> Self {
        Self {
            disk,
            source: source.into(),
            size_bytes,
            manifest,
            data_bytes: 0,
            new_bytes: 0,
            stored_bytes: 0,
            snapshot: None,
            snapshot_used_bytes: 0,
            skipped_bytes: 0,
            hints_wrong: false,
        }
    }
}

fn is_none(number: &u64) -> bool {
    *number == 0
}

/// Kind of a snapshot, which keeps the content of a disk unchanged while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotKind {
    /// An LVM snapshot with space of its own, which it can exhaust.
    Thick,
    /// An LVM snapshot in a thin pool.
    Thin,
    /// A copy of a file that shares its extents.
    Reflink,
}

impl std::fmt::Display for SnapshotKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Thick => "LVM snapshot",
            Self::Thin => "LVM thin snapshot",
            Self::Reflink => "reflink copy",
        })
    }
}

/// A backup together with its id.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// BLAKE3-256 of the record's bytes.
    pub id: BackupId,
    /// The record. Clones share it: lists of many are made again and again.
    pub backup: Arc<Backup>,
}

impl Backup {
    /// Returns the bytes to store.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record has only strings and numbers in it")
    }

    /// `GUEST@TIME`, which names this backup on the command line.
    pub fn spec(&self) -> String {
        format!("{}@{}", self.guest, self.time)
    }

    /// Returns the sort key for the order in which the backups of a guest were made. Times do not give it: a clock may
    /// have been wrong.
    pub fn order(&self) -> (u64, BackupTime) {
        (self.sequence, self.time)
    }

    /// Returns the sum of the disks' sizes.
    pub fn size_bytes(&self) -> u64 {
        self.sum(|image| image.size_bytes)
    }

    /// Returns the plain bytes of all disks that are not zero.
    pub fn data_bytes(&self) -> u64 {
        self.sum(|image| image.data_bytes)
    }

    /// Returns the plain bytes of the new blocks of all disks.
    pub fn new_bytes(&self) -> u64 {
        self.sum(|image| image.new_bytes)
    }

    /// Returns the stored bytes of the new blocks of all disks and files.
    pub fn stored_bytes(&self) -> u64 {
        let files = self.files.iter().map(|file| file.stored_bytes);
        files.fold(self.sum(|image| image.stored_bytes), u64::saturating_add)
    }

    /// Returns everything that is stored as blocks: disks and files.
    pub fn stored(&self) -> impl Iterator<Item = &Image> {
        self.images.iter().chain(&self.files)
    }

    fn sum(&self, of: impl Fn(&Image) -> u64) -> u64 {
        self.images.iter().map(of).fold(0, u64::saturating_add)
    }

    /// Returns the duration of the run.
    pub fn duration(&self) -> SignedDuration {
        SignedDuration::from_millis(i64::try_from(self.duration_ms).unwrap_or(i64::MAX))
    }

    /// Refuses names that would hide each other: `BACKUP/NAME` is a disk or a file, and a mount shows a file next to
    /// `backup.json`, `vda.img` and `vda.p1.img`. Records that are read are checked too, because they may come from
    /// elsewhere.
    pub fn check(&self) -> Result<()> {
        let mut seen = HashSet::new();
        for file in &self.files {
            check_file_name(&file.disk)?;
        }
        for image in self.stored() {
            if !seen.insert(&image.disk) {
                return Err(Error::BadName {
                    what: "file or disk",
                    name: image.disk.to_string(),
                    reason: "is used twice in one backup",
                });
            }
        }
        Ok(())
    }

    /// Returns the backup with only one disk or file in it.
    pub fn only(&self, name: &str) -> Result<Self> {
        let keep = |images: &[Image]| -> Vec<Image> {
            let named = images.iter().filter(|image| image.disk.as_str() == name);
            named.cloned().collect()
        };
        let (images, files) = (keep(&self.images), keep(&self.files));
        if images.is_empty() && files.is_empty() {
            return self.image(name).map(|_| self.clone());
        }
        Ok(Self {
            images,
            files,
            ..self.clone()
        })
    }

    /// Returns a file that is stored with the backup.
    pub fn file(&self, name: &str) -> Result<&Image> {
        let found = self.files.iter().find(|file| file.disk.as_str() == name);
        found.ok_or_else(|| Error::NoSuchFile {
            backup: self.spec(),
            file: name.to_owned(),
            known: match &self.files[..] {
                [] => "none".to_owned(),
                files => files
                    .iter()
                    .map(|file| file.disk.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            },
        })
    }

    /// Returns the image of a disk.
    pub fn image(&self, disk: &str) -> Result<&Image> {
        self.images
            .iter()
            .find(|image| image.disk.as_str() == disk)
            .ok_or_else(|| Error::NoSuchDisk {
                backup: self.spec(),
                disk: disk.to_owned(),
                known: self
                    .images
                    .iter()
                    .map(|image| image.disk.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }
}

impl Entry {
    /// Reads a stored record; `key` is the name that it is stored under, `GUEST@TIME`.
    pub fn decode(hashing: Hashing, key: &str, bytes: &[u8]) -> Result<Self> {
        let damaged = |what: String| Error::RecordDamaged {
            backup: key.to_owned(),
            what,
        };
        let backup: Backup = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if backup.format > RECORD_FORMAT {
            return Err(damaged(format!(
                "it has format {}, but this vbk reads formats up to {RECORD_FORMAT}",
                backup.format
            )));
        }
        if backup.spec() != key {
            return Err(damaged(format!("it is the record of {}", backup.spec())));
        }
        backup.check().map_err(|error| damaged(error.to_string()))?;
        Ok(Self {
            id: BackupId(hashing.content(bytes)),
            backup: Arc::new(backup),
        })
    }
}

#[cfg(test)]
mod tests;
