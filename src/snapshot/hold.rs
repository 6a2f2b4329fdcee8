//! The promises of a method that holds disks still. Each method is one file that implements [`HoldMethod`], and
//! [`Hold`] for one disk; `methods.rs` lists them, and `tests/conformance.rs` runs all of them through these promises:
//!
//! 1. What is read does not change while the disk is written. A method that can't promise that is live, or its
//!    [`Hold::check`] reports the write.
//! 2. [`Hold::check`] reports a disk that is not held still any more, and one that was not for a moment.
//! 3. [`Hold::release`] removes whatever [`Hold::make`] has made, also when that failed half way; a second call does
//!    nothing.
//! 4. What is kept as a base is found again by [`HoldMethod::bases`].
//! 5. What a killed run leaves is found by [`HoldMethod::leftovers`], and can be removed.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use vbk_repo::backup::SnapshotKind;
use vbk_repo::name::DiskName;

use super::SnapshotError;
use super::gauge::Gauged;
use super::options::SnapshotOptions;
use super::remains::{Directories, Leftover, Remains, Room};
use crate::host::device::DeviceNumber;
use crate::host::lvm::Volume;
use crate::host::program::Programs;
use crate::host::run::Run;
use crate::observer::Observer;

/// A method that holds disks still.
pub(crate) trait HoldMethod: Debug + Sync {
    /// Its name, unlike that of any other.
    fn name(&self) -> &'static str;

    /// Its name in a backup's record; `None` if it reads the disk itself.
    fn kind(&self) -> Option<SnapshotKind>;

    /// Returns whether it reads the disk although another process may write to it.
    fn is_live(&self) -> bool {
        false
    }

    /// Returns whether it can hold this disk. The error says why no method can.
    fn suits(&self, disk: &Disk, options: &SnapshotOptions) -> Result<bool, SnapshotError>;

    /// Finds room for all disks that it is to hold. Makes nothing.
    fn reserve(
        &self,
        _programs: &Programs,
        _disks: &mut [&mut PlannedDisk],
        _options: &SnapshotOptions,
    ) -> Result<(), SnapshotError> {
        Ok(())
    }

    /// The hold of a disk, of which nothing has been made yet.
    fn hold(&self, disk: &PlannedDisk, new: &NewHold<'_>) -> Result<Box<dyn Hold>, SnapshotError>;

    /// The bases that are kept of a disk; `None` if this method keeps none.
    fn bases(&self, _disk: &HeldDisk, _programs: &Programs, _host_id: &str) -> Result<Option<Bases>, SnapshotError> {
        Ok(None)
    }

    /// Lists what runs left and what is kept. It lists first and then looks which runs are alive: a run is locked
    /// before it makes anything, so what is listed belongs to a run that is alive, or to one that is over.
    fn leftovers(&self, _programs: &Programs, _directories: Directories<'_>) -> Result<Vec<Leftover>, SnapshotError> {
        Ok(Vec::new())
    }
}

/// A disk that a method holds still.
pub(crate) trait Hold: Debug + Send + Sync {
    /// Makes it, and says what to read; `None` if this disk can't be held so after all, and nothing was made.
    fn make(&mut self, tools: &Tools, observer: &dyn Observer) -> Result<Option<ReadFrom>, SnapshotError>;

    /// Checks that everything that was read until now was of one moment.
    fn check(&self, tools: &Tools) -> Result<(), SnapshotError>;

    /// Things that become full meanwhile, the one to report first.
    fn watched(&self) -> Vec<Gauged> {
        Vec::new()
    }

    /// Keeps it as a base with this mark when the run is over. From then on it is not the run's any more.
    fn keep(&mut self, _mark: &str, _cache: &Path, _tools: &Tools) -> Result<(), SnapshotError> {
        Ok(())
    }

    /// Removes what was made and not kept. Tried once: a second call does nothing.
    fn release(&mut self, tools: &Tools) -> Result<(), SnapshotError>;
}

/// The programs of the host, and the run that snapshots belong to.
#[derive(Debug)]
pub(crate) struct Tools {
    pub programs: Programs,
    pub run: Run,
}

/// Number of a disk in its guest, and the time and run of its snapshot.
pub(crate) struct NewHold<'a> {
    pub number: usize,
    pub at: Timestamp,
    pub run: &'a Run,
}

/// The thing to read for a disk.
pub(crate) enum ReadFrom {
    Path(PathBuf),
    /// A new logical volume. lvm2 is asked for its path when those of all disks are made, in one question.
    Volume {
        vg: String,
        name: String,
    },
}

/// A disk, as it was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Disk {
    /// Its name.
    pub name: DiskName,
    /// The path, as it was given.
    pub source: PathBuf,
    /// Its size.
    pub size_bytes: u64,
    /// The logical volume that it is.
    pub volume: Option<Volume>,
    /// Number of a block device; `None` for a file.
    pub(super) device: Option<DeviceNumber>,
}

impl Disk {
    /// Returns whether it is a file, and not a block device.
    pub fn is_file(&self) -> bool {
        self.device.is_none()
    }
}

/// A disk, and the method that will hold it still.
#[derive(Debug, Clone)]
pub struct PlannedDisk {
    /// The disk.
    pub disk: Disk,
    /// The thin pool of a volume that gets a thin snapshot.
    pub pool: Option<Volume>,
    /// Space for a snapshot that has space of its own.
    pub space_bytes: Option<u64>,
    pub(super) method: &'static dyn HoldMethod,
}

impl PlannedDisk {
    /// The kind of the snapshot to make; `None` if the disk itself will be read.
    pub fn kind(&self) -> Option<SnapshotKind> {
        self.method.kind()
    }

    /// Returns whether it will be read as it is, although another process may write to it.
    pub fn is_live(&self) -> bool {
        self.method.is_live()
    }
}

/// A disk that is held still, and the thing to read for it.
#[derive(Debug)]
pub struct HeldDisk {
    /// The disk.
    pub disk: Disk,
    /// The path to read.
    pub read: PathBuf,
    /// The snapshot, where it is a logical volume.
    pub snapshot: Option<Volume>,
    pub(super) method: &'static dyn HoldMethod,
    pub(super) hold: Box<dyn Hold>,
    /// Group and name of the volume to find.
    pub(super) awaited: Option<(String, String)>,
}

impl HeldDisk {
    /// The kind of the snapshot; `None` for the disk itself.
    pub fn kind(&self) -> Option<SnapshotKind> {
        self.method.kind()
    }

    /// Returns whether it is read as it is, although another process may write to it.
    pub fn is_live(&self) -> bool {
        self.method.is_live()
    }

    /// The bases that are kept of the disk; `None` if its method keeps none.
    pub(crate) fn bases(&self, programs: &Programs, host_id: &str) -> Result<Option<Bases>, SnapshotError> {
        self.method.bases(self, programs, host_id)
    }
}

/// A disk that is held still, and the bases that are kept of it.
pub(crate) struct Bases {
    /// The disk as it is now.
    pub now: Content,
    /// Room that it would take as a base.
    pub room: Room,
    /// The bases.
    pub kept: Vec<Base>,
}

/// A base of change hints.
#[derive(Debug)]
pub(crate) struct Base {
    /// The backup and disk that it was read for; `None` if its mark was lost.
    pub mark: Option<String>,
    /// Its content.
    pub content: Content,
    /// For its removal.
    pub remains: Box<dyn Remains>,
}

/// The content of a disk at one moment, by the way in which it is compared with that of another moment.
#[derive(Debug)]
pub(crate) enum Content {
    /// By the metadata of their thin pool.
    ThinVolume(Box<Volume>),
    /// By the extents that they share.
    File(PathBuf),
}
