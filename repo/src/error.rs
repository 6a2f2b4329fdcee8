//! What can go wrong in a repository, and the coarse kind that says what the caller should do about it.

use crate::id::{BlockId, SegmentId};
use std::path::PathBuf;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller should do about an error. Branch on this, never on the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The thing that was named is not there.
    NotFound,
    /// Stored bytes are not what was written. Everything else is still good.
    Corrupt,
    /// Another process holds what is needed; wait for it.
    Locked,
    /// Did not work this time; the same call may work later.
    Unavailable,
    /// The file system or device is full.
    NoSpace,
    /// A right is missing.
    Denied,
    /// A file system or device takes no changes, whoever asks.
    ReadOnly,
    /// What was asked for makes no sense; asking again changes nothing.
    Invalid,
    /// Made by a newer vbk, or not possible on this system.
    Unsupported,
    /// Somebody asked for an end.
    Interrupted,
    /// A bug in vbk.
    Internal,
}

impl ErrorKind {
    /// The kind of an I/O error.
    pub fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        match error.kind() {
            Io::NotFound => Self::NotFound,
            Io::PermissionDenied => Self::Denied,
            Io::ReadOnlyFilesystem => Self::ReadOnly,
            Io::StorageFull | Io::QuotaExceeded => Self::NoSpace,
            Io::Interrupted => Self::Interrupted,
            Io::InvalidInput | Io::IsADirectory | Io::NotADirectory | Io::AlreadyExists => Self::Invalid,
            // Room is not what is missing for a file that is too large: the file system or a limit takes none so large.
            Io::Unsupported | Io::FileTooLarge => Self::Unsupported,
            _ => Self::Unavailable,
        }
    }
}

/// An error of the repository.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory has no repository in it.
    #[error("{path} is not a vbk repository")]
    NotARepository {
        /// The directory.
        path: PathBuf,
    },
    /// There is a store, and the file that says so is damaged or gone.
    #[error("the marker {path}/vbk-repository is damaged or gone; `vbk repair` writes it anew")]
    MarkerDamaged {
        /// The directory.
        path: PathBuf,
    },
    /// A repository can only be made in a new or empty directory.
    #[error("{path} is not empty; a repository is made in a new or empty directory")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// There is a repository in the directory.
    #[error("{path} is a repository already; `vbk list --repo {path}` shows what is in it")]
    AlreadyARepository {
        /// The directory.
        path: PathBuf,
    },
    /// The repository was made by a newer vbk.
    #[error("repository {path} has format {found}, this vbk reads up to {supported}; use a newer vbk")]
    NewerFormat {
        /// The directory.
        path: PathBuf,
        /// The format number in the repository.
        found: u32,
        /// The newest format number known here.
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
        /// Who holds it: command, process id and since when.
        holder: String,
    },
    /// A name can't be used for a guest or disk.
    #[error("{what} name {name:?} {reason}")]
    BadName {
        /// `guest` or `disk`.
        what: &'static str,
        /// The refused name.
        name: String,
        /// What is wrong with it, as the rest of a sentence.
        reason: &'static str,
    },
    /// A backup was named in a way that can't be read.
    #[error(
        "{spec:?} does not name a backup; write GUEST@latest, GUEST@2026-11-21 (as much of the time as tells it from others) or the first digits of a backup's id"
    )]
    BadSpec {
        /// What was given.
        spec: String,
    },
    /// A block size outside what the format allows.
    #[error("block size {given} is not a power of two from 64 KiB to 16 MiB; nearest: {nearest}")]
    BadBlockSize {
        /// Bytes asked for.
        given: u64,
        /// The nearest good number of bytes.
        nearest: u32,
    },
    /// No backup of such a guest.
    #[error("no guest {guest:?} in the repository; there is {known}")]
    NoSuchGuest {
        /// The name asked for.
        guest: String,
        /// The guests there are, for people.
        known: String,
    },
    /// No backup matches.
    #[error("no backup {spec}; {hint}")]
    NoSuchBackup {
        /// What was asked for.
        spec: String,
        /// What there is instead.
        hint: String,
    },
    /// Several backups match.
    #[error("{spec} means more than one backup; name one of:\n  {}", candidates.join("\n  "))]
    Ambiguous {
        /// What was asked for.
        spec: String,
        /// The backups that match, each in a form that names it alone.
        candidates: Vec<String>,
    },
    /// The backup has no such disk.
    #[error("backup {backup} has no disk {disk:?}; it has {known}")]
    NoSuchDisk {
        /// The backup.
        backup: String,
        /// The name asked for.
        disk: String,
        /// The disks it has, for people.
        known: String,
    },
    /// The backup has no such file.
    #[error("no file {file:?} is kept with backup {backup}; there are: {known}")]
    NoSuchFile {
        /// The backup.
        backup: String,
        /// The name asked for.
        file: String,
        /// The files it has, for people.
        known: String,
    },
    /// A file that is kept with a backup is larger than any may be.
    #[error("{name} has {have_bytes} bytes; a file that is kept with a backup has at most {limit_bytes}")]
    FileTooLarge {
        /// The file.
        name: String,
        /// Its size.
        have_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// A backup of this guest and time is already there.
    #[error("backup {0} exists already")]
    BackupExists(String),
    /// A block that a manifest names is not stored.
    #[error("block {0} is missing")]
    BlockMissing(BlockId),
    /// A stored block is not what was written.
    #[error("block {id} is damaged: {what}")]
    BlockDamaged {
        /// The block.
        id: BlockId,
        /// What was found.
        what: String,
    },
    /// A stored manifest segment is missing or not what was written.
    #[error("manifest segment {id} is damaged: {what}")]
    SegmentDamaged {
        /// The segment.
        id: SegmentId,
        /// What was found.
        what: String,
    },
    /// A backup record is not what was written.
    #[error("the record of backup {backup} is damaged: {what}")]
    RecordDamaged {
        /// Its guest and time.
        backup: String,
        /// What was found.
        what: String,
    },
    /// The records and notes of an encrypted repository are not those that its writers left.
    #[error(
        "records and notes were changed without the key: {what}. Nothing is forgotten or pruned until `vbk repair` takes them as they are; bring `store` and `views` back from a copy of the repository to have them as they were"
    )]
    ForeignChanges {
        /// What was found.
        what: String,
    },
    /// What is known of a backup besides its record can't be read, so it may be protected.
    #[error(
        "what is noted of {name} can't be read, so it may be that a backup is protected; nothing was forgotten. {}",
        note_remedy(name)
    )]
    NoteDamaged {
        /// The backup's guest and time, or the name that the note is stored under.
        name: String,
    },
    /// Less is free than is to stay free.
    #[error(
        "the file system of repository {path} is nearly full: {free_bytes} bytes are free, and {reserve_bytes} are to stay free"
    )]
    NearlyFull {
        /// The directory.
        path: PathBuf,
        /// What is free.
        free_bytes: u64,
        /// What is to stay free.
        reserve_bytes: u64,
    },
    /// It can't be told what no backup needs any more.
    #[error("it can't be told what is unused, so nothing was removed: {what}")]
    CantTellUnused {
        /// What can't be read.
        what: String,
    },
    /// An encrypted repository, and no key was given.
    #[error("{path} is encrypted, and no key was given")]
    KeyNeeded {
        /// The directory.
        path: PathBuf,
    },
    /// An encrypted repository with a store in it that is not.
    #[error(
        "the store in {path} is not encrypted, although the repository is: somebody put another one there; nothing was written. Bring `store` and `views` back from a copy of the repository"
    )]
    EncryptionGone {
        /// The directory.
        path: PathBuf,
    },
    /// The store is that of another repository than the marker says.
    #[error(
        "the store in {path} is that of repository {store}, although the marker {path}/vbk-repository says {marker}: another store was put there, or the marker is damaged; nothing was written. Bring `store` and `views` back, or, if they are the right ones, `vbk repair` writes the marker anew"
    )]
    OtherStore {
        /// The directory.
        path: PathBuf,
        /// The id in the store.
        store: String,
        /// The id in the marker.
        marker: String,
    },
    /// The directory in which a repository is to be made does not exist.
    #[error("{parent} does not exist, in which the repository is to be made")]
    NoParent {
        /// The missing directory.
        parent: PathBuf,
    },
    /// A key was given to a repository that has none.
    #[error("{path} is not encrypted; it has no keys")]
    NotEncrypted {
        /// The directory.
        path: PathBuf,
    },
    /// The key does not open the repository.
    #[error("{what}")]
    WrongKey {
        /// What was tried.
        what: String,
    },
    /// A key slot can't be read.
    #[error("key slot {path} is damaged: {what}")]
    KeySlotDamaged {
        /// Its file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// No key slot has this name.
    #[error("there is no key {name:?}; there is {known}")]
    NoSuchKey {
        /// The name asked for.
        name: String,
        /// The names there are, for people.
        known: String,
    },
    /// A key slot has this name already.
    #[error("there is a key {0:?} already")]
    KeyExists(String),
    /// The key at hand opens the repository by the slot that is to go, and by no other.
    #[error(
        "the key that was given opens the repository by {0:?} alone, so it would open nothing any more; give one that stays, or an exported one (`vbk key add` and `vbk key export` make them)"
    )]
    LastKey(String),
    /// A key file or recovery key can't be read.
    #[error("{what}")]
    BadKey {
        /// What is wrong with it.
        what: String,
    },
    /// The store failed.
    #[error("the repository's store failed to {doing}: {message}")]
    Store {
        /// What the caller should do.
        kind: ErrorKind,
        /// What was being done, as in `read a block`.
        doing: &'static str,
        /// The store's own words.
        message: String,
    },
    /// A file operation failed.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was being done, as in `create`.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The operation needs the files of a repository that another machine keeps.
    #[error("{path} is kept by another machine; run this command there")]
    NotOnThisMachine {
        /// The repository.
        path: PathBuf,
    },
    /// The caller asked for an end.
    #[error("interrupted")]
    Interrupted,
}

fn note_remedy(name: &str) -> String {
    match name.contains('@') {
        true => format!("`vbk protect {name}` or `vbk unprotect {name}` sets it anew"),
        false => "`vbk repair` removes the note".to_owned(),
    }
}

impl Error {
    /// What the caller should do about it.
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
            Self::NearlyFull { .. } => ErrorKind::NoSpace,
            Self::NewerFormat { .. } | Self::UnknownFeatures { .. } | Self::NotOnThisMachine { .. } => {
                ErrorKind::Unsupported
            }
            Self::Locked { .. } => ErrorKind::Locked,
            Self::BlockMissing(_)
            | Self::BlockDamaged { .. }
            | Self::SegmentDamaged { .. }
            | Self::RecordDamaged { .. }
            | Self::ForeignChanges { .. }
            | Self::CantTellUnused { .. }
            | Self::NoteDamaged { .. }
            | Self::EncryptionGone { .. }
            | Self::OtherStore { .. }
            | Self::MarkerDamaged { .. }
            | Self::KeySlotDamaged { .. } => ErrorKind::Corrupt,
            Self::Store { kind, .. } => *kind,
            Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::Interrupted => ErrorKind::Interrupted,
        }
    }

    /// Wraps an I/O error: `.map_err(Error::io("create", path))`.
    pub fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
