//! Errors of loop devices and mounts. Every message ends with the next step, where there is one.

use std::io;
use std::path::PathBuf;

use vbk_repo::ErrorKind;

/// An error of the mount layer.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point does not exist.
    #[error("mount point {dir} does not exist; make it with `mkdir -p {dir}`")]
    NoDirectory {
        /// The directory.
        dir: PathBuf,
    },
    /// The mount point is not a directory.
    #[error("mount point {dir} is not a directory; give an empty directory")]
    NotADirectory {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory is not empty, and a mount would hide its content.
    #[error("mount point {dir} is not empty; give an empty directory")]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// Something else is mounted there.
    #[error("{dir} is a mount point already ({fs_type} of {origin}); give another directory")]
    AlreadyMounted {
        /// The directory.
        dir: PathBuf,
        /// The kernel's name for the file system.
        fs_type: String,
        /// Source of that mount.
        origin: String,
    },
    /// A vbk mount exists there, alive or dead.
    #[error("a backup is mounted at {dir} already; take it down first with `vbk umount {dir}`")]
    AlreadyOurs {
        /// The directory.
        dir: PathBuf,
    },
    /// The mount point can't be examined.
    #[error("can't examine mount point {dir}")]
    Look {
        /// The directory.
        dir: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },

    /// `CAP_SYS_ADMIN` is missing.
    #[error(
        "mounting needs the capability CAP_SYS_ADMIN; add --user, which shows the files without it, or run as root, or mount the \
         images only, without --files"
    )]
    NotRoot,
    /// No loop devices on this machine.
    #[error("/dev/loop-control does not exist; load the driver with `modprobe loop`")]
    NoLoopDriver {
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// The process may not use loop devices, e.g. in many containers.
    #[error(
        "vbk may not use loop devices (/dev/loop-control); in a container, allow that device, or run vbk on the host"
    )]
    LoopDenied {
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// The kernel has no further loop device.
    #[error("no free loop device; `losetup -a` lists those in use")]
    NoFreeLoop {
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// The kernel made the loop device, but /dev does not show it.
    #[error("{node} is missing and can't be created; create it with `mknod {node} b 7 {number}`")]
    NoLoopNode {
        /// The node.
        node: PathBuf,
        /// The number of the device.
        number: u32,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// The image can't be attached to a loop device.
    #[error("can't attach {image} to a loop device")]
    Attach {
        /// The image.
        image: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },

    /// No FUSE on this machine.
    #[error("/dev/fuse does not exist; load the driver with `modprobe fuse`")]
    NoFuse {
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// The process may not use FUSE.
    #[error("vbk may not use /dev/fuse; run as root, or give this user read and write access to it")]
    FuseDenied {
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// Users other than root mount through a helper.
    #[error(
        "fusermount3 is not installed and only root can mount without it; install the package fuse3, or run as root"
    )]
    NoFusermount,

    /// A volume's path below the mount point can't be created.
    #[error("a file system can't be mounted at {name:?}: {why}")]
    BadPlace {
        /// Path below the mount point.
        name: PathBuf,
        /// Reason.
        why: &'static str,
    },
    /// The frame that holds the file systems could not be built; nothing is left of it.
    #[error("can't prepare {dir} for the file systems")]
    Frame {
        /// The directory.
        dir: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },

    /// The kernel's tables of mounts and loop devices could not be read.
    #[error("can't read {path}; is it mounted?")]
    KernelTable {
        /// The table.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// Nothing is mounted there.
    #[error("nothing is mounted at {dir}; `vbk mounts` lists what is mounted")]
    NotMounted {
        /// The directory.
        dir: PathBuf,
    },
    /// The mount at this directory is not one of vbk's.
    #[error("{dir} was not mounted by vbk ({fs_type} of {origin}); to unmount it, use `umount {dir}`")]
    NotOurs {
        /// The directory.
        dir: PathBuf,
        /// The kernel's name for the file system.
        fs_type: String,
        /// Source of that mount.
        origin: String,
    },
    /// A process still uses the mount. The mounts above it are unmounted, the rest is unchanged.
    #[error("{dir} is in use by {users}; end that use and run `vbk umount` again, or detach it at once with --lazy")]
    Busy {
        /// The directory.
        dir: PathBuf,
        /// The users, in words.
        users: String,
    },
    /// A loop device in use shows an image of the mount.
    #[error("images of {dir} are in use: {users}; unmount those first")]
    ImagesInUse {
        /// The directory.
        dir: PathBuf,
        /// The users, in words.
        users: String,
    },
    /// A loop device stays attached, though nothing of vbk is mounted from it.
    #[error(
        "{users} is still attached to an image of {dir}; find the process that has it open with `fuser -v`, then run \
         `vbk umount` again"
    )]
    LoopStays {
        /// The directory.
        dir: PathBuf,
        /// The loop devices, in words.
        users: String,
    },
    /// Unmounting failed, though the mount is not in use.
    #[error("can't unmount {dir}")]
    Unmount {
        /// The directory.
        dir: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
}

/// Shorthand for results of the mount layer.
pub(crate) type Result<T> = std::result::Result<T, MountError>;

impl MountError {
    /// Returns the kind of the error, by which a caller decides what to do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoDirectory { .. } | Self::NotMounted { .. } => ErrorKind::NotFound,
            Self::NotADirectory { .. }
            | Self::NotEmpty { .. }
            | Self::AlreadyMounted { .. }
            | Self::AlreadyOurs { .. }
            | Self::NotOurs { .. }
            | Self::BadPlace { .. } => ErrorKind::Invalid,
            Self::NotRoot | Self::LoopDenied { .. } | Self::FuseDenied { .. } => ErrorKind::Denied,
            Self::NoLoopDriver { .. }
            | Self::NoFuse { .. }
            | Self::NoFusermount
            | Self::NoLoopNode { .. }
            | Self::NoFreeLoop { .. } => ErrorKind::Unsupported,
            Self::Busy { .. } | Self::ImagesInUse { .. } | Self::LoopStays { .. } => ErrorKind::Locked,
            Self::Look { source, .. }
            | Self::Attach { source, .. }
            | Self::Frame { source, .. }
            | Self::KernelTable { source, .. }
            | Self::Unmount { source, .. } => ErrorKind::of_io(source),
        }
    }
}
