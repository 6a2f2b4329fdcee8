//! Translates RocksDB's errors.

use crate::error::{Error, ErrorKind};

/// Returns what makes an error of one of RocksDB's.
pub(super) fn failed(doing: &'static str) -> impl Fn(rocksdb::Error) -> Error {
    move |error| {
        let message = error.to_string();
        let kind = if message.contains("No space left") || message.contains("Disk quota exceeded") {
            ErrorKind::NoSpace
        } else if message.contains("LOCK: ") {
            ErrorKind::Locked
        } else if message.contains("Permission denied") {
            ErrorKind::Denied
        } else if message.contains("Read-only file system") {
            ErrorKind::ReadOnly
        } else if message.contains("File too large") {
            ErrorKind::Unsupported
        } else if is_damage(&error) {
            ErrorKind::Corrupt
        } else {
            ErrorKind::Unavailable
        };
        Error::Store { kind, doing, message }
    }
}

/// Returns whether an error means that the stored bytes differ from those written. A missing file is damage too: only
/// RocksDB deletes its files.
pub(super) fn is_damage(error: &rocksdb::Error) -> bool {
    let text: &str = error.as_ref();
    // A sector that the disk can't read any more is the same loss as one with wrong bytes.
    let signs = ["No such file or directory", "Input/output error"];
    error.kind() == rocksdb::ErrorKind::Corruption || signs.iter().any(|sign| text.contains(sign))
}

/// Returns an error for a damaged store.
pub(super) fn damaged(message: String) -> Error {
    Error::Store {
        kind: ErrorKind::Corrupt,
        doing: "open",
        message,
    }
}
