//! Errors of reading and writing disks, the errors of the modules below included.

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
    /// A repository operation failed.
    #[error(transparent)]
    Repository(#[from] vbk_repo::Error),
    /// The repository's file system is full.
    #[error(
        "the repository's file system is full (no space left on device): {}{}", kept(*.kept_bytes), left(*.left_bytes)
    )]
    RepositoryFull {
        /// Bytes of new blocks that are kept for the next run, if that is known. The others are removed by the next writer.
        kept_bytes: Option<u64>,
        /// Bytes of the disks that were not read yet.
        left_bytes: u64,
        /// The store's error.
        source: vbk_repo::Error,
    },
    /// A source can't be opened.
    #[error("can't open {path}: {source}")]
    OpenSource {
        /// The source.
        path: PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
    /// A source is neither a block device nor a regular file.
    #[error("{path} is {what}; a disk is a block device or a raw image file")]
    NotADisk {
        /// The source or target.
        path: PathBuf,
        /// Kind of file it is instead.
        what: &'static str,
    },
    /// A source can't be read.
    #[error("reading {path} failed at {offset_bytes} bytes: {source}; the backup was given up")]
    ReadSource {
        /// The source.
        path: PathBuf,
        /// Offset of the failed read.
        offset_bytes: u64,
        /// The I/O error.
        source: std::io::Error,
    },
    /// The kept changes of a disk can't be read.
    #[error("can't read the changed pages: {source}")]
    ReadChanges {
        /// The I/O error.
        source: std::io::Error,
    },
    /// A source changed after the backup started.
    #[error("{path} {what} while it was read; the backup was given up")]
    SourceChanged {
        /// The source.
        path: PathBuf,
        /// The change, as the rest of a sentence.
        what: String,
    },
    /// One disk name was given twice.
    #[error("{0} is named twice; name disks as vda=/dev/vg0/web1-root vdb=/srv/data.img, and attached files otherwise")]
    DiskTwice(String),
    /// The target file exists.
    #[error("{0} exists; --force replaces it")]
    TargetExists(PathBuf),
    /// A differential restore to an existing file.
    #[error("{0} exists; --force changes it in place")]
    TargetKept(PathBuf),
    /// A differential restore to a file that does not exist.
    #[error("{0} does not exist, so there is nothing to compare with; without --differential a new file is made")]
    NothingToCompare(PathBuf),
    /// A file that would be changed in place has a second hard link.
    #[error(
        "{0} has another name, a hard link, and would change under that name too; nothing was written. Without \
         --differential the file is replaced, and the other name keeps the old one"
    )]
    HardLinked(PathBuf),
    /// An image format other than raw for a block device.
    #[error("{path} is a block device; {format} images are files, and a device gets the raw disk: omit --format")]
    FormatNeedsFile {
        /// The device.
        path: PathBuf,
        /// Name of the format.
        format: &'static str,
    },
    /// The target is smaller than the image.
    #[error(
        "{path} has {} ({have_bytes} bytes), the disk has {} ({need_bytes} bytes); nothing was written",
        size(*.have_bytes),
        size(*.need_bytes)
    )]
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
        /// Holder of the target, as far as known.
        what: String,
    },
    /// A device holds another disk.
    #[error("{path} holds {what}; nothing was written. --overwrite overwrites it")]
    TargetHolds {
        /// The target.
        path: PathBuf,
        /// Its content.
        what: String,
    },
    /// The target's file system has too little free space for the image's data.
    #[error("{path}: {} are needed and {} are free; nothing was written", size(*.need_bytes), size(*.have_bytes))]
    NoRoom {
        /// The target.
        path: PathBuf,
        /// Free bytes of the file system.
        have_bytes: u64,
        /// Bytes of the image's data.
        need_bytes: u64,
    },
    /// A target can't be opened, written or finished.
    #[error("can't {doing} {path}: {source}")]
    Target {
        /// The failed action, e.g. `write`.
        doing: &'static str,
        /// The target.
        path: PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
    /// A link that another user owns determines the location of a target.
    #[error(
        "{path} leads through {link}, a link of user {owner}, who could point it elsewhere; nothing was written. Name \
         the target itself"
    )]
    ForeignLink {
        /// The target.
        path: PathBuf,
        /// Path of the link.
        link: PathBuf,
        /// User id of the link's owner.
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
        /// Holder of the target.
        what: String,
        /// Present content of the target, in words.
        left: &'static str,
    },
    /// Another process changed the directory of a target.
    #[error("{path} {what}; another process changes this directory, and the restored file is not at that path")]
    TargetExchanged {
        /// The target.
        path: PathBuf,
        /// The finding, as the rest of a sentence.
        what: &'static str,
    },
    /// A disk image of another format than raw, or an archive.
    #[error(
        "{path} is {format}, not a raw disk: its bytes would be backed up as if they were the disk itself. {remedy}, \
         or insist with --raw (in the configuration `raw = true`) if the disk itself begins like this"
    )]
    Container {
        /// Path of the disk.
        path: PathBuf,
        /// Format of the file, with its article.
        format: &'static str,
        /// Way to back up the disk inside it.
        remedy: String,
    },
    /// A file has a size that no disk has.
    #[error(
        "{path} has {size_bytes} bytes, which is not a multiple of 512: a raw disk consists of whole sectors. See that it is the \
         right file and complete, or insist with --raw (in the configuration `raw = true`)"
    )]
    NoSectors {
        /// Path of the file.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
    /// The system refused to start another thread.
    #[error("can't start a thread: {0}; a limit of processes, threads or memory was reached")]
    Thread(std::io::Error),
    /// A backup can't be read.
    #[error("reading {image} failed at {offset_bytes} bytes: {source}")]
    ReadImage {
        /// Name of the backup and disk.
        image: String,
        /// Offset on the disk.
        offset_bytes: u64,
        /// The repository's error.
        source: vbk_repo::Error,
    },
    /// The target is a symbolic link whose own target does not exist.
    #[error("{0} is a link to a file that does not exist; name that file, or remove the link")]
    DanglingLink(PathBuf),
    /// Another program failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The record of a run can't be written.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Disks can't be held still.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A guest could not be frozen.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    /// libvirt did not answer a query.
    #[error(transparent)]
    Libvirt(#[from] LibvirtError),
    /// No guest has the given name.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A restored guest gets no domain.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// A guest's volumes can't be created.
    #[error(transparent)]
    Volumes(#[from] VolumesError),
    /// The files that describe a guest can't be made or used.
    #[error(transparent)]
    GuestFiles(#[from] GuestFilesError),
    /// The caller cancelled the operation.
    #[error("interrupted")]
    Interrupted,
}

/// `22 MiB of new blocks are kept for the next run, and `, if that is known.
fn kept(bytes: Option<u64>) -> String {
    let kept = |bytes| format!("{} of new blocks are kept for the next run, and ", size(bytes));
    bytes.map_or_else(String::new, kept)
}

/// How much of the disks is missing.
fn left(bytes: u64) -> String {
    match bytes {
        0 => "all was read, but the backup is not complete".to_owned(),
        bytes => format!("up to {} of the disks were not read yet", size(bytes)),
    }
}

impl Error {
    /// Returns the kind of the error, by which a caller decides what to do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Repository(error)
            | Self::ReadImage { source: error, .. }
            | Self::RepositoryFull { source: error, .. } => error.kind(),
            Self::OpenSource { source, .. } | Self::Target { source, .. } | Self::ReadChanges { source } => {
                ErrorKind::of_io(source)
            }
            Self::NotADisk { .. }
            | Self::DiskTwice(_)
            | Self::TargetExists(_)
            | Self::TargetKept(_)
            | Self::HardLinked(_)
            | Self::FormatNeedsFile { .. }
            | Self::TargetTooSmall { .. }
            | Self::TargetHolds { .. }
            | Self::ForeignLink { .. }
            | Self::Container { .. }
            | Self::NoSectors { .. }
            | Self::DanglingLink(_) => ErrorKind::Invalid,
            Self::ReadSource { .. }
            | Self::SourceChanged { .. }
            | Self::TargetTaken { .. }
            | Self::TargetExchanged { .. }
            | Self::Thread(_) => ErrorKind::Unavailable,
            Self::NothingToCompare(_) => ErrorKind::NotFound,
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
