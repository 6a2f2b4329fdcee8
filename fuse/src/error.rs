//! What can go wrong when backups are shown.

use std::path::PathBuf;

use vbk_repo::ErrorKind;

use crate::mount_error::MountError;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of a mount.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository's part of the work failed.
    #[error(transparent)]
    Repository(#[from] vbk_repo::Error),
    /// Loop devices or mounts.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The FUSE file system can't be mounted.
    #[error("can't mount at {point}: {source}")]
    Fuse {
        /// The mount point.
        point: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The directory for the images behind a mount of files can't be made.
    #[error("can't make {path}: {source}")]
    Runtime {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A disk can't be looked into.
    #[error("can't read the partitions of {image}: {source}")]
    Inspect {
        /// The backup and disk.
        image: String,
        /// What was found.
        source: std::io::Error,
    },
}

impl Error {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Repository(error) => error.kind(),
            Self::Mount(error) => error.kind(),
            Self::Fuse { source, .. } | Self::Runtime { source, .. } => ErrorKind::of_io(source),
            Self::Inspect { .. } => ErrorKind::Corrupt,
        }
    }
}
