//! Errors of a repository, and the coarse kind of each, by which a caller decides how to react.

use crate::id::{BlockId, NodeId};
use crate::text::size;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Kind of an error, by which a caller decides how to react. Branch on this, never on the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The named thing does not exist.
    NotFound,
    /// Stored bytes differ from what was written. Everything else is still good.
    Corrupt,
    /// Another process holds a lock that the call needs; wait for it.
    Locked,
    /// The call failed for the moment; the same call may work later.
    Unavailable,
    /// The file system or device is full.
    NoSpace,
    /// A permission or a key is missing.
    Denied,
    /// The file system or device is read-only, also for root.
    ReadOnly,
    /// The request is invalid; repeating it changes nothing.
    Invalid,
    /// The object was made by a newer vbk, or the operation is not possible on this system.
    Unsupported,
    /// The caller asked to stop.
    Interrupted,
    /// A bug in vbk.
    Internal,
}

impl ErrorKind {
    /// Returns the kind of an I/O error.
    pub fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        match error.kind() {
            Io::NotFound => Self::NotFound,
            Io::PermissionDenied => Self::Denied,
            Io::ReadOnlyFilesystem => Self::ReadOnly,
            Io::StorageFull | Io::QuotaExceeded => Self::NoSpace,
            Io::Interrupted => Self::Interrupted,
            Io::InvalidInput | Io::IsADirectory | Io::NotADirectory | Io::AlreadyExists => Self::Invalid,
            // Freeing space does not help a file that is too large: the file system or a resource limit caps its size.
            Io::Unsupported | Io::FileTooLarge => Self::Unsupported,
            _ => Self::Unavailable,
        }
    }
}

/// An error of the repository.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory contains no repository.
    #[error("{path} is not a vbk repository")]
    NotARepository {
        /// The directory.
        path: PathBuf,
    },
    /// The directory has a store, but the marker file is missing, or damaged: it may not even say that the repository is
    /// encrypted.
    #[error("the marker {path}/vbk-repository is damaged or gone; `vbk repair` writes a new one")]
    MarkerDamaged {
        /// The directory.
        path: PathBuf,
    },
    /// A file of the store differs from what was written.
    #[error("{path} is damaged")]
    FileDamaged {
        /// The file.
        path: PathBuf,
    },
    /// The directory is not empty. A repository is only created in a new or empty one.
    #[error("{path} is not empty; a repository can only be created in a new or empty directory")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The directory contains a repository already.
    #[error("{path} is already a repository; `vbk list --repo {path}` lists its backups")]
    AlreadyARepository {
        /// The directory.
        path: PathBuf,
    },
    /// The repository was made by a newer vbk.
    #[error("repository {path} has format {found}, but this vbk reads formats up to {supported}; use a newer vbk")]
    NewerFormat {
        /// The directory.
        path: PathBuf,
        /// The repository's format number.
        found: u32,
        /// The newest format number that this vbk reads.
        supported: u32,
    },
    /// The repository uses a feature that this vbk does not know.
    #[error("repository {path} uses features that this vbk does not know ({features}); use a newer vbk")]
    UnknownFeatures {
        /// The directory.
        path: PathBuf,
        /// Their names, separated by commas.
        features: String,
    },
    /// Another process writes to the repository.
    #[error("repository {path} is in use by {holder}")]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The holder: its command, process id and start time.
        holder: String,
    },
    /// A name can't be used for a guest or disk.
    #[error("{what} name {name:?} {reason}")]
    BadName {
        /// `guest` or `disk`.
        what: &'static str,
        /// The refused name.
        name: String,
        /// The reason for the refusal, as the rest of a sentence that starts with the name.
        reason: &'static str,
    },
    /// The name of a backup has none of the accepted forms.
    #[error(
        "{spec:?} does not name a backup; write GUEST@latest, GUEST@2026-11-21 (enough of the time to be unambiguous) \
         or the first digits of a backup's id"
    )]
    BadSpec {
        /// The name as given.
        spec: String,
    },
    /// A block size outside what the format allows.
    #[error("block size {given} is not a power of two from 64 KiB to 16 MiB; nearest: {nearest}")]
    BadBlockSize {
        /// The requested size in bytes.
        given: u64,
        /// The nearest valid size in bytes.
        nearest: u32,
    },
    /// The repository has no backup of the guest.
    #[error("no guest {guest:?} in the repository; known guests: {known}")]
    NoSuchGuest {
        /// The requested name.
        guest: String,
        /// The repository's guests, as text for people.
        known: String,
    },
    /// No backup matches.
    #[error("no backup {spec}; {hint}")]
    NoSuchBackup {
        /// The requested backup.
        spec: String,
        /// The backups that exist, or the command that lists them.
        hint: String,
    },
    /// Several backups match.
    #[error("{spec} matches more than one backup; name one of:\n  {}", candidates.join("\n  "))]
    Ambiguous {
        /// The requested backup.
        spec: String,
        /// The matching backups, each in a form that names only it.
        candidates: Vec<String>,
    },
    /// The backup has no such disk.
    #[error("backup {backup} has no disk {disk:?}; its disks: {known}")]
    NoSuchDisk {
        /// The backup.
        backup: String,
        /// The requested name.
        disk: String,
        /// The backup's disks, as text for people.
        known: String,
    },
    /// The backup has no such file.
    #[error("backup {backup} has no file {file:?}; its files: {known}")]
    NoSuchFile {
        /// The backup.
        backup: String,
        /// The requested name.
        file: String,
        /// The backup's files, as text for people.
        known: String,
    },
    /// A file to be stored with a backup exceeds the size limit.
    #[error("{name} has {have_bytes} bytes; a file stored with a backup may have at most {limit_bytes} bytes")]
    FileTooLarge {
        /// The file.
        name: String,
        /// Its size.
        have_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// A backup of this guest and time exists already.
    #[error("backup {0} already exists")]
    BackupExists(String),
    /// Another writer changed records or notes after the caller read them.
    #[error("the repository was changed by another command at the same time; try again")]
    Moved,
    /// Blocks and nodes that a backup needs are not stored: the process that had the store open was restarted before they were
    /// flushed, or another writer removed them. They must be put again.
    #[error(
        "{} blocks and {} parts of manifests are gone, because the process that has the repository open was restarted; run the \
         command again",
        blocks.len(),
        nodes.len()
    )]
    Missing {
        /// The blocks.
        blocks: Vec<BlockId>,
        /// The nodes of manifests.
        nodes: Vec<NodeId>,
    },
    /// A block that a manifest names is not stored.
    #[error("block {0} is missing")]
    BlockMissing(BlockId),
    /// A stored block differs from what was written.
    #[error("block {id} is damaged: {what}")]
    BlockDamaged {
        /// The block.
        id: BlockId,
        /// Description of the damage.
        what: String,
    },
    /// A node of a manifest is missing or differs from what was written.
    #[error("part {id} of a manifest is damaged: {what}")]
    NodeDamaged {
        /// The node.
        id: NodeId,
        /// Description of the damage.
        what: String,
    },
    /// A backup record differs from what was written.
    #[error("the record of backup {backup} is damaged: {what}")]
    RecordDamaged {
        /// Its guest and time.
        backup: String,
        /// Description of the damage.
        what: String,
    },
    /// The records and notes of an encrypted repository are not those that its writers left.
    #[error(
        "records and notes were changed without the key: {what}. `vbk forget` and `vbk prune` are refused until \
         `vbk repair` accepts the changes; to undo them, restore `store` and `views` from a copy of the repository"
    )]
    ForeignChanges {
        /// The changes found.
        what: String,
    },
    /// The note with a backup's state can't be read. The backup may be protected.
    #[error(
        "the note for {name} can't be read; the backup may be protected, so nothing was forgotten. {}",
        note_remedy(name)
    )]
    NoteDamaged {
        /// The backup as `GUEST@TIME`, or the stored name of the note if its backup is not known.
        name: String,
    },
    /// The file system has less free space than the reserve.
    #[error(
        "the file system of repository {path} is nearly full: {} free, less than the reserve of {}",
        size(*.free_bytes),
        size(*.reserve_bytes)
    )]
    NearlyFull {
        /// The directory.
        path: PathBuf,
        /// Free space.
        free_bytes: u64,
        /// Space that must stay free.
        reserve_bytes: u64,
    },
    /// The file system has less free space than `forget` and `prune` need, and the space that was kept for them is used up.
    #[error(
        "repository {path} is full: {} free, {} kept for `vbk forget` and `vbk prune`; run these or make room",
        size(*.free_bytes),
        size(*.kept_bytes)
    )]
    Full {
        /// The directory.
        path: PathBuf,
        /// Free space.
        free_bytes: u64,
        /// Space that is kept.
        kept_bytes: u64,
    },
    /// A record or manifest can't be read, so the blocks that it needs are not known.
    #[error("can't determine which blocks are unused; nothing was removed: {what}")]
    CantTellUnused {
        /// The error of the unreadable record or manifest.
        what: String,
    },
    /// The repository is encrypted, and no key was given.
    #[error("{path} is encrypted, and no key was given")]
    KeyNeeded {
        /// The directory.
        path: PathBuf,
    },
    /// The repository is encrypted, but the store in it is not.
    #[error(
        "the store in {path} is not encrypted, although the repository is: the store was replaced; nothing was \
         written. Restore `store` and `views` from a copy of the repository"
    )]
    EncryptionGone {
        /// The directory.
        path: PathBuf,
    },
    /// The store belongs to another repository than the marker says.
    #[error(
        "the store in {path} belongs to repository {store}, but the marker {path}/vbk-repository says {marker}: \
         another store was put there, or the marker is damaged; nothing was written. Restore the right `store` and \
         `views`; if they are the right ones, `vbk repair` writes a new marker"
    )]
    OtherStore {
        /// The directory.
        path: PathBuf,
        /// The id in the store.
        store: String,
        /// The id in the marker.
        marker: String,
    },
    /// The parent directory of a new repository does not exist.
    #[error("can't create the repository: its parent directory {parent} does not exist")]
    NoParent {
        /// The missing directory.
        parent: PathBuf,
    },
    /// A key was given for a repository that has none.
    #[error("{path} is not encrypted; it has no keys")]
    NotEncrypted {
        /// The directory.
        path: PathBuf,
    },
    /// The key does not open the repository.
    #[error("{what}")]
    WrongKey {
        /// The message: the keys and slots that were tried.
        what: String,
    },
    /// A key slot can't be read.
    #[error("key slot {path} is damaged: {what}")]
    KeySlotDamaged {
        /// The slot's file.
        path: PathBuf,
        /// Description of the damage.
        what: String,
    },
    /// No key slot has this name.
    #[error("no key {name:?} in the repository; known keys: {known}")]
    NoSuchKey {
        /// The requested name.
        name: String,
        /// The existing names, as text for people.
        known: String,
    },
    /// A key slot has this name already.
    #[error("a key named {0:?} already exists")]
    KeyExists(String),
    /// The given key opens only the slot to be removed.
    #[error(
        "this key opens only slot {0:?}, which you are removing; unlock with a key that will remain, or with an \
         exported key (`vbk key add` and `vbk key export` make them)"
    )]
    LastKey(String),
    /// A key file or recovery key can't be read.
    #[error("{what}")]
    BadKey {
        /// The message: the defect of the key.
        what: String,
    },
    /// A mount has no file or directory of this name.
    #[error("there is no {0}")]
    NotInTree(String),
    /// Something that never fails did, or a caller broke a rule: a fault of vbk.
    #[error("can't {doing}: {message}")]
    Internal {
        /// The operation that failed, e.g. `write a manifest`.
        doing: &'static str,
        /// Description of the fault.
        message: String,
    },
    /// Two images have blocks of different sizes.
    #[error(
        "can't compare two images: their block sizes are {before} and {after} bytes; only images of one repository can be \
         compared"
    )]
    OtherBlockSize {
        /// Block size of the first image.
        before: usize,
        /// Block size of the second image.
        after: usize,
    },
    /// The store failed.
    #[error("the repository's store failed to {doing}: {message}")]
    Store {
        /// The error's kind.
        kind: ErrorKind,
        /// The operation that failed, e.g. `read a block`.
        doing: &'static str,
        /// The store's own message.
        message: String,
    },
    /// A file operation failed.
    #[error("{doing} {path}: {source}")]
    Io {
        /// The operation that failed, e.g. `create`.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A server, or the way to it, failed.
    #[error("{message}")]
    Remote {
        /// The error's kind.
        kind: ErrorKind,
        /// The message.
        message: String,
    },
    /// The operation needs the repository's files, which are on another machine.
    #[error("{path} is on another machine; run this command there")]
    NotOnThisMachine {
        /// The repository.
        path: PathBuf,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

fn note_remedy(name: &str) -> String {
    match name.contains('@') {
        true => format!("`vbk protect {name}` or `vbk unprotect {name}` writes a new note"),
        false => "`vbk repair` removes the note".to_owned(),
    }
}

impl Error {
    /// Returns the error's kind, by which the caller decides how to react.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotARepository { .. }
            | Self::NoParent { .. }
            | Self::NoSuchGuest { .. }
            | Self::NoSuchBackup { .. }
            | Self::NoSuchDisk { .. }
            | Self::NoSuchFile { .. }
            | Self::NoSuchKey { .. } => ErrorKind::NotFound,
            Self::NotEmpty { .. }
            | Self::AlreadyARepository { .. }
            | Self::BadName { .. }
            | Self::FileTooLarge { .. }
            | Self::BadSpec { .. }
            | Self::BadBlockSize { .. }
            | Self::Ambiguous { .. }
            | Self::BackupExists(_)
            | Self::NotEncrypted { .. }
            | Self::KeyExists(_)
            | Self::LastKey(_)
            | Self::BadKey { .. } => ErrorKind::Invalid,
            Self::KeyNeeded { .. } | Self::WrongKey { .. } => ErrorKind::Denied,
            Self::NearlyFull { .. } | Self::Full { .. } => ErrorKind::NoSpace,
            Self::NewerFormat { .. } | Self::UnknownFeatures { .. } | Self::NotOnThisMachine { .. } => {
                ErrorKind::Unsupported
            }
            Self::Locked { .. } => ErrorKind::Locked,
            Self::Moved | Self::Missing { .. } => ErrorKind::Unavailable,
            Self::BlockMissing(_)
            | Self::BlockDamaged { .. }
            | Self::NodeDamaged { .. }
            | Self::RecordDamaged { .. }
            | Self::ForeignChanges { .. }
            | Self::CantTellUnused { .. }
            | Self::NoteDamaged { .. }
            | Self::EncryptionGone { .. }
            | Self::OtherStore { .. }
            | Self::MarkerDamaged { .. }
            | Self::FileDamaged { .. }
            | Self::KeySlotDamaged { .. } => ErrorKind::Corrupt,
            Self::NotInTree(_) => ErrorKind::NotFound,
            Self::Internal { .. } => ErrorKind::Internal,
            Self::OtherBlockSize { .. } => ErrorKind::Invalid,
            Self::Store { kind, .. } | Self::Remote { kind, .. } => *kind,
            Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::Interrupted => ErrorKind::Interrupted,
        }
    }

    /// Returns a function that wraps an I/O error: `.map_err(Error::io("create", path))`.
    pub fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_free_space_is_given_in_a_unit_that_shows_it() {
        let error = Error::NearlyFull {
            path: "/srv/vbk".into(),
            free_bytes: 512 << 10,
            reserve_bytes: 1 << 30,
        };
        let text = error.to_string();
        assert!(text.contains("512 KiB free, less than the reserve of 1 GiB"), "{text}");
    }
}
