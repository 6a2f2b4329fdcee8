//! Errors of showing backups.

use std::path::PathBuf;

use vbk_repo::ErrorKind;

use crate::volumes::MountError;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of a mount.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A repository operation failed.
    #[error(transparent)]
    Repository(#[from] vbk_repo::Error),
    /// A loop device or a mount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The FUSE file system can't be mounted.
    #[error("can't mount at {point}: {source}")]
    Fuse {
        /// The mount point.
        point: PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
    /// The directory for the images of a mount of files can't be created.
    #[error("can't create {path}: {source}")]
    Runtime {
        /// The directory.
        path: PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
    /// The scratch file of a writable mount can't be created.
    #[error("can't create the scratch file {path}: {source}")]
    Scratch {
        /// The file, or the directory for one without a name.
        path: PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
    /// A disk's partitions can't be read.
    #[error("can't read the partitions of {image}: {source}")]
    Inspect {
        /// The backup and disk.
        image: String,
        /// The I/O error.
        source: std::io::Error,
    },
}

impl Error {
    /// Returns the kind of the error, by which a caller decides what to do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Repository(error) => error.kind(),
            Self::Mount(error) => error.kind(),
            Self::Fuse { source, .. } | Self::Runtime { source, .. } | Self::Scratch { source, .. } => {
                ErrorKind::of_io(source)
            }
            // What a server refuses or can't be asked for is no damage.
            Self::Inspect { source, .. } => {
                let below = source
                    .get_ref()
                    .and_then(|error| error.downcast_ref::<vbk_repo::Error>());
                below.map_or(ErrorKind::Corrupt, vbk_repo::Error::kind)
            }
        }
    }
}
