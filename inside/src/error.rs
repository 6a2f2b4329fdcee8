//! Errors of reading what is inside a disk.

use std::io;

/// Shorthand for results of the readers.
pub type Result<T> = std::result::Result<T, Error>;

/// A file system, a volume or a file that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device below can't be read: its backup is damaged, or its store does not answer.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The guest's own structures contradict themselves. The text names the structure and its number, without the
    /// file system: `inode 12: extent tree of depth 9`.
    #[error("damaged: {0}")]
    Damaged(String),
    /// The format has a feature that this reader does not know. The text is a noun phrase: `encrypted file`.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// There is no entry of that name.
    #[error("not found")]
    NotFound,
    /// A directory was expected.
    #[error("not a directory")]
    NotADirectory,
    /// A regular file was expected.
    #[error("not a regular file")]
    NotAFile,
}

impl Error {
    /// Makes the error for structures that contradict themselves.
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }

    /// Makes the error for an unknown feature.
    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported(what.into())
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error {
            Error::Io(error) => return error,
            Error::Damaged(_) => io::ErrorKind::InvalidData,
            Error::Unsupported(_) => io::ErrorKind::Unsupported,
            Error::NotFound => io::ErrorKind::NotFound,
            Error::NotADirectory => io::ErrorKind::NotADirectory,
            Error::NotAFile => io::ErrorKind::IsADirectory,
        };
        io::Error::new(kind, error)
    }
}
