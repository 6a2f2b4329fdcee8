//! The errors of holding disks still. Each message says what to do.

use std::path::PathBuf;

use vbk_repo::ErrorKind;

use crate::host::program::ProgramError;
use crate::host::run::RunError;
use crate::text::size;

/// An error of a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// An lvm2 command failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The run can't be noted.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A disk or copy can't be opened, read or made.
    #[error("can't {doing} {path}: {source}")]
    Io {
        /// The operation that failed, e.g. `open`.
        doing: &'static str,
        /// The disk, or the copy of it.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Neither a block device nor a regular file.
    #[error("{path} is neither a block device nor a regular file; a disk must be one of them")]
    NotADisk {
        /// The disk.
        path: PathBuf,
    },
    /// A logical volume that is not active.
    #[error("logical volume {volume} is not active; activate it first: lvchange -ay {volume}")]
    NotActive {
        /// `vg0/web1`
        volume: String,
    },
    /// A logical volume that no guest can have as its disk.
    #[error("logical volume {volume} is {what}; name the volume that the guest uses as its disk")]
    NotAGuestVolume {
        /// `vg0/web1`
        volume: String,
        /// Its real kind.
        what: &'static str,
    },
    /// One volume was given as two disks.
    #[error("disks {first} and {second} are the same device, {path}")]
    SameDevice {
        /// The one.
        first: String,
        /// The other.
        second: String,
        /// The device, as it was given for the other.
        path: PathBuf,
    },
    /// A volume group has too little room for the snapshots.
    #[error(
        "volume group {vg} has {} free, and snapshots of {disks} need {}; nothing was changed. Make room in {vg}, take less \
         with --snapshot-size, or read the disks of a guest that is shut down with --no-snapshot", size(*.free_bytes), size(*.need_bytes)
    )]
    NoRoom {
        /// The group.
        vg: String,
        /// Free bytes.
        free_bytes: u64,
        /// Bytes that all snapshots in this group need.
        need_bytes: u64,
        /// Their disks.
        disks: String,
    },
    /// A thin pool is so full that a snapshot would be stopped at once.
    #[error(
        "the {what} of thin pool {pool} is {percent:.1} % full, and vbk makes no snapshots in a pool that is {stop_percent:.0} % \
         full or more; extend it first: lvextend {option} {pool}"
    )]
    PoolFull {
        /// `vg0/pool`
        pool: String,
        /// `data` or `metadata`.
        what: &'static str,
        /// Fill, in per cent.
        percent: f64,
        /// The limit.
        stop_percent: f64,
        /// The option of lvextend(8) that extends it.
        option: &'static str,
    },
    /// A thin pool does not work.
    #[error("thin pool {pool} has failed or is read-only; see lvs and dmesg, and lvconvert --repair {pool}")]
    PoolFailed {
        /// `vg0/pool`
        pool: String,
    },
    /// A device is in use.
    #[error(
        "{path} is in use ({what}) and can't be held still; stop the program that uses it, or read it as it is with --live: the \
         backup is then consistent only if nothing writes to the disk meanwhile"
    )]
    InUse {
        /// The device.
        path: PathBuf,
        /// Its user.
        what: String,
    },
    /// A disk that was not in use was written to while it was read.
    #[error("{path} was written to while it was read without a snapshot; the backup was given up")]
    Written {
        /// The device.
        path: PathBuf,
    },
    /// A snapshot does not exist after it was made.
    #[error("snapshot {volume} was made, but does not exist or is not active")]
    NotThere {
        /// `vg0/vbk-web1-...`
        volume: String,
    },
    /// A snapshot has overflowed.
    #[error(
        "snapshot {volume} of {origin} has overflowed and is invalid; the backup was given up. Give it more space with \
         --snapshot-size"
    )]
    Invalid {
        /// The snapshot.
        volume: String,
        /// Its origin.
        origin: String,
    },
    /// A snapshot was about to overflow.
    #[error(
        "snapshot {volume} of {origin} is {percent:.0} % full and could not be extended ({why}); the backup was stopped before \
         it overflows, and what was stored is not stored again. Make room in volume group {vg}, or give more space with \
         --snapshot-size"
    )]
    Filling {
        /// The snapshot.
        volume: String,
        /// Its origin.
        origin: String,
        /// The group.
        vg: String,
        /// Fill, in per cent.
        percent: f64,
        /// The reason for which it was not extended.
        why: String,
    },
    /// A thin pool was about to be full.
    #[error(
        "the {what} of thin pool {pool} is {percent:.0} % full and could not be extended ({why}); the backup was stopped and its \
         snapshots are removed, before the pool is full. Extend it: lvextend {option} {pool}"
    )]
    PoolFilling {
        /// `vg0/pool`
        pool: String,
        /// `data` or `metadata`.
        what: &'static str,
        /// Fill, in per cent.
        percent: f64,
        /// The reason for which it was not extended.
        why: String,
        /// The option of lvextend(8) that extends it.
        option: &'static str,
    },
    /// The guard has lost track of how full a snapshot is.
    #[error("lost track of how full {device} is; the backup was stopped: {source}")]
    Blind {
        /// Its name in the device mapper.
        device: String,
        /// The last error of dmsetup.
        source: ProgramError,
    },
    /// A volume must not be touched.
    #[error("{volume} no longer carries the tags of this host's vbk; it was not removed")]
    NotOurs {
        /// The volume.
        volume: String,
    },
    /// A snapshot could not be removed.
    #[error("snapshot {volume} could not be removed: {source}; type: lvremove {volume}")]
    NotRemoved {
        /// The snapshot.
        volume: String,
        /// The error of lvremove.
        source: ProgramError,
    },
    /// Several errors at once.
    #[error("{}", list(.0))]
    Several(Vec<SnapshotError>),
    /// A thread can't be started.
    #[error("can't start the guard of the snapshots: {0}")]
    NoGuard(std::io::Error),
}

fn list(errors: &[SnapshotError]) -> String {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

impl SnapshotError {
    /// Kind of the error, by what the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Program(error) => error.kind(),
            Self::Run(error) => error.kind(),
            Self::Io { source, .. } | Self::NoGuard(source) => ErrorKind::of_io(source),
            Self::NotADisk { .. } | Self::NotAGuestVolume { .. } | Self::SameDevice { .. } => ErrorKind::Invalid,
            Self::NotActive { .. }
            | Self::PoolFailed { .. }
            | Self::Written { .. }
            | Self::NotThere { .. }
            | Self::Blind { .. }
            | Self::NotOurs { .. }
            | Self::NotRemoved { .. } => ErrorKind::Unavailable,
            Self::NoRoom { .. }
            | Self::PoolFull { .. }
            | Self::Invalid { .. }
            | Self::Filling { .. }
            | Self::PoolFilling { .. } => ErrorKind::NoSpace,
            Self::InUse { .. } => ErrorKind::Locked,
            Self::Several(errors) => errors.first().map_or(ErrorKind::Internal, Self::kind),
        }
    }

    /// Wraps an I/O error: `.map_err(SnapshotError::io("open", path))`.
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }

    /// One error of many, or none.
    pub(super) fn all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}
