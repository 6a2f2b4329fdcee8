//! The record of one backup: what was taken, when, from where, and the manifests of its images.
//!
//! A record is stored as JSON, so that it can be read without vbk. Its id is the BLAKE3-256 hash of those bytes.
//! Fields that a reader does not know are ignored; a change that must not be ignored gets a new `format` number.

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::block::Hashing;
use crate::error::{Error, Result};
use crate::id::{BackupId, SegmentId};
use crate::name::{BackupTime, DiskName, GuestName};

/// The newest record format that this vbk reads, and the one it writes.
pub const RECORD_FORMAT: u32 = 1;

/// One point in time of a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Backup {
    /// Layout of this record.
    pub format: u32,
    /// The guest.
    pub guest: GuestName,
    /// When the disks looked like this: the start of the run. Unique within the guest.
    pub time: BackupTime,
    /// How long the run took, in milliseconds.
    pub duration_ms: u64,
    /// The machine it was made on.
    pub host: String,
    /// The vbk that made it.
    pub vbk_version: String,
    /// How far the disks agree with themselves and each other.
    pub consistency: Consistency,
    /// The disks, in the order they were given.
    pub images: Vec<Image>,
}

/// What the state of the disks corresponds to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// The sources were read as they were, without a snapshot: only as good as the sources were quiet.
    Live,
}

impl std::fmt::Display for Consistency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Live => "live (read without a snapshot)",
        })
    }
}

/// The content of one disk at one time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// The disk's name.
    pub disk: DiskName,
    /// Where it was read from.
    pub source: String,
    /// The disk's size.
    pub size_bytes: u64,
    /// The root of the image's manifest.
    pub manifest: SegmentId,
    /// Bytes that were not zero.
    pub data_bytes: u64,
    /// Plain bytes of the blocks that the repository did not have.
    pub new_bytes: u64,
    /// What those took in the store, sealed.
    pub stored_bytes: u64,
}

/// A backup together with its id.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// BLAKE3-256 of the record's bytes.
    pub id: BackupId,
    /// The record.
    pub backup: Backup,
}

impl Backup {
    /// The bytes that are stored.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record has only strings and numbers in it")
    }

    /// `GUEST@TIME`, which names this backup on the command line.
    pub fn spec(&self) -> String {
        format!("{}@{}", self.guest, self.time)
    }

    /// Sizes of all disks together.
    pub fn size_bytes(&self) -> u64 {
        self.sum(|image| image.size_bytes)
    }

    /// Plain bytes of new blocks of all disks together.
    pub fn new_bytes(&self) -> u64 {
        self.sum(|image| image.new_bytes)
    }

    /// Stored bytes of new blocks of all disks together.
    pub fn stored_bytes(&self) -> u64 {
        self.sum(|image| image.stored_bytes)
    }

    fn sum(&self, of: impl Fn(&Image) -> u64) -> u64 {
        self.images.iter().map(of).fold(0, u64::saturating_add)
    }

    /// How long the run took.
    pub fn duration(&self) -> SignedDuration {
        SignedDuration::from_millis(i64::try_from(self.duration_ms).unwrap_or(i64::MAX))
    }

    /// The image of a disk.
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
    /// Reads a stored record; `key` is the name it was stored under, `GUEST@TIME`.
    pub fn decode(hashing: Hashing, key: &str, bytes: &[u8]) -> Result<Self> {
        let damaged = |what: String| Error::RecordDamaged {
            backup: key.to_owned(),
            what,
        };
        let backup: Backup = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if backup.format > RECORD_FORMAT {
            return Err(damaged(format!(
                "it has format {}, this vbk reads up to {RECORD_FORMAT}",
                backup.format
            )));
        }
        if backup.spec() != key {
            return Err(damaged(format!("it is the record of {}", backup.spec())));
        }
        Ok(Self {
            id: BackupId(hashing.content(bytes)),
            backup,
        })
    }
}
