//! What can go wrong when disks are read and written.

use std::path::PathBuf;

use vbk_repo::ErrorKind;

use crate::guest::discover::GuestError;
use crate::guest::domain::DomainError;
use crate::guest::files::GuestFilesError;
use crate::guest::freeze::FreezeError;
use crate::guest::volumes::VolumesError;
use crate::host::libvirt::LibvirtError;
use crate::host::program::ProgramError;
use crate::host::run::RunError;
use crate::snapshot::SnapshotError;
use crate::text::size;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of a backup or a restore.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository's part of the work failed.
    #[error(transparent)]
    Repository(#[from] vbk_repo::Error),
    /// The repository's file system is full.
    #[error(
        "the repository's file system is full: {} of new blocks were stored, and up to {} of the disks were still to be read: \
         {source}", size(*.stored_bytes), size(*.left_bytes)
    )]
    RepositoryFull {
        /// What this run stored.
        stored_bytes: u64,
        /// What of the disks was not read yet.
        left_bytes: u64,
        /// The store's words.
        source: vbk_repo::Error,
    },
    /// A source can't be opened.
    #[error("can't open {path}: {source}")]
    OpenSource {
        /// The source.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A source is neither a block device nor a regular file.
    #[error("{path} is {what}; a disk is a block device or a raw image file")]
    NotADisk {
        /// The source or target.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// A source can't be read.
    #[error("reading {path} failed at {offset_bytes} bytes: {source}; the backup was given up")]
    ReadSource {
        /// The source.
        path: PathBuf,
        /// Where.
        offset_bytes: u64,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A source is not what it was when the backup started.
    #[error("{path} {what} while it was read; the backup was given up")]
    SourceChanged {
        /// The source.
        path: PathBuf,
        /// What happened, as the rest of a sentence.
        what: String,
    },
    /// One disk name was given twice.
    #[error("{0} is named twice; name disks as vda=/dev/vg0/web1-root vdb=/srv/data.img, and attached files otherwise")]
    DiskTwice(String),
    /// The target file is there already.
    #[error("{0} exists; --force replaces it")]
    TargetExists(PathBuf),
    /// The target is smaller than the image.
    #[error("{path} has {have_bytes} bytes, the disk has {need_bytes}; nothing was written")]
    TargetTooSmall {
        /// The target.
        path: PathBuf,
        /// Its size.
        have_bytes: u64,
        /// The image's size.
        need_bytes: u64,
    },
    /// The target is in use.
    #[error("{path} is in use ({what}); nothing was written")]
    TargetInUse {
        /// The target.
        path: PathBuf,
        /// By whom, as far as known.
        what: String,
    },
    /// The target's file system has less room than the image's data needs.
    #[error("{path}: {} are needed and {} are free; nothing was written", size(*.need_bytes), size(*.have_bytes))]
    NoRoom {
        /// The target.
        path: PathBuf,
        /// Free bytes.
        have_bytes: u64,
        /// The image's data.
        need_bytes: u64,
    },
    /// A target can't be opened, written or finished.
    #[error("can't {doing} {path}: {source}")]
    Target {
        /// What was being done, as in `write`.
        doing: &'static str,
        /// The target.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A link of another user decides where a target is.
    #[error(
        "{path} leads through {link}, which is a link of user {owner}: another user decides where it leads; nothing was \
         written. Name the place itself"
    )]
    ForeignLink {
        /// The target.
        path: PathBuf,
        /// The link's name.
        link: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// A device is set read-only.
    #[error("{0} is set read-only; nothing was written. `blockdev --setrw {0}` sets it writable")]
    TargetReadOnly(PathBuf),
    /// A target came into use during a restore.
    #[error("{path} came into use while it was written ({what}); the restore was stopped: {left}")]
    TargetTaken {
        /// The target.
        path: PathBuf,
        /// By whom.
        what: String,
        /// What is at the target now.
        left: &'static str,
    },
    /// Another process changed the directory of a target.
    #[error("{path} {what}; another process changes this directory, and what was restored is not there")]
    TargetExchanged {
        /// The target.
        path: PathBuf,
        /// What was found, as the rest of a sentence.
        what: &'static str,
    },
    /// A disk image of another format than raw, or an archive.
    #[error(
        "{path} is {format}, not a raw disk: what is in it would be backed up as if it were the disk itself. {remedy}, or \
         insist with --raw (in the configuration `raw = true`) if the disk itself begins like this"
    )]
    Container {
        /// The disk.
        path: PathBuf,
        /// What it is.
        format: &'static str,
        /// How the disk in it can be backed up.
        remedy: String,
    },
    /// The system starts no more threads.
    #[error("can't start a thread: {0}; a limit of processes, threads or memory was reached")]
    Thread(std::io::Error),
    /// A backup can't be read.
    #[error("reading {image} failed at {offset_bytes} bytes: {source}")]
    ReadImage {
        /// The backup and disk.
        image: String,
        /// Where on the disk.
        offset_bytes: u64,
        /// What is wrong.
        source: vbk_repo::Error,
    },
    /// The target is a link to something that is not there.
    #[error("{0} is a link to a file that does not exist; name that file, or remove the link")]
    DanglingLink(PathBuf),
    /// Another program failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A run can't be noted.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Disks can't be held still.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A guest was not brought to rest.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    /// libvirt can't say.
    #[error(transparent)]
    Libvirt(#[from] LibvirtError),
    /// There is no such guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A restored guest gets no domain.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// A guest's volumes can't be made.
    #[error(transparent)]
    Volumes(#[from] VolumesError),
    /// The files that describe a guest can't be made or used.
    #[error(transparent)]
    GuestFiles(#[from] GuestFilesError),
    /// The caller asked for an end.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Repository(error)
            | Self::ReadImage { source: error, .. }
            | Self::RepositoryFull { source: error, .. } => error.kind(),
            Self::OpenSource { source, .. } | Self::Target { source, .. } => ErrorKind::of_io(source),
            Self::NotADisk { .. }
            | Self::DiskTwice(_)
            | Self::TargetExists(_)
            | Self::TargetTooSmall { .. }
            | Self::ForeignLink { .. }
            | Self::Container { .. }
            | Self::DanglingLink(_) => ErrorKind::Invalid,
            Self::ReadSource { .. }
            | Self::SourceChanged { .. }
            | Self::TargetTaken { .. }
            | Self::TargetExchanged { .. }
            | Self::Thread(_) => ErrorKind::Unavailable,
            Self::TargetReadOnly(_) => ErrorKind::ReadOnly,
            Self::TargetInUse { .. } => ErrorKind::Locked,
            Self::NoRoom { .. } => ErrorKind::NoSpace,
            Self::Program(error) => error.kind(),
            Self::Run(error) => error.kind(),
            Self::Snapshot(error) => error.kind(),
            Self::Freeze(error) => error.kind(),
            Self::Libvirt(error) => error.kind(),
            Self::Guest(error) => error.kind(),
            Self::Domain(error) => error.kind(),
            Self::Volumes(error) => error.kind(),
            Self::GuestFiles(error) => error.kind(),
            Self::Interrupted => ErrorKind::Interrupted,
        }
    }

    /// Wraps an I/O error of a target: `.map_err(Error::target("write", path))`.
    pub(crate) fn target(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Target { doing, path, source }
    }
}
