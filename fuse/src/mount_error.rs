//! What can go wrong with loop devices and mounts. Every message ends with what to do next, where there is something to do.

#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

use vbk_repo::ErrorKind;

/// An error of the mount layer.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point is not there.
    #[error("mount point {dir} does not exist; make it with `mkdir -p {dir}`")]
    NoDirectory {
        /// The directory.
        dir: PathBuf,
    },
    /// The mount point is a file or the like.
    #[error("mount point {dir} is not a directory; give an empty directory")]
    NotADirectory {
        /// The directory.
        dir: PathBuf,
    },
    /// A mount would hide what is in the directory.
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
        /// What is mounted there.
        origin: String,
    },
    /// A mount of ours is there, alive or dead.
    #[error("a backup is mounted at {dir} already; take it down first with `vbk umount {dir}`")]
    AlreadyOurs {
        /// The directory.
        dir: PathBuf,
    },
    /// Looking at the mount point failed.
    #[error("cannot look at mount point {dir}")]
    Look {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// `CAP_SYS_ADMIN` is missing.
    #[error(
        "the right to mount is missing (CAP_SYS_ADMIN); run as root, for example with `sudo`, or mount the images only, without --files"
    )]
    NotRoot,
    /// No loop devices on this machine.
    #[error("/dev/loop-control is not there; load the driver with `modprobe loop`")]
    NoLoopDriver {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Loop devices may not be used, as in many containers.
    #[error(
        "the right to use loop devices is missing (/dev/loop-control); in a container, let it have that device, or run vbk on the host"
    )]
    LoopDenied {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel gives no further loop device.
    #[error("there is no free loop device; `losetup -a` shows who uses them")]
    NoFreeLoop {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel made the loop device, but /dev does not show it.
    #[error("{node} is missing and cannot be made; make it with `mknod {node} b 7 {number}`")]
    NoLoopNode {
        /// The node.
        node: PathBuf,
        /// The number of the device.
        number: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A loop device was not given the image.
    #[error("cannot attach {image} to a loop device")]
    Attach {
        /// The image.
        image: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// No FUSE on this machine.
    #[error("/dev/fuse is not there; load the driver with `modprobe fuse`")]
    NoFuse {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// FUSE may not be used.
    #[error("the right to use /dev/fuse is missing; run as root, or let this user open it for reading and writing")]
    FuseDenied {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Users other than root mount through a helper.
    #[error(
        "fusermount3 is not installed and only root can mount without it; install the package fuse3, or run as root"
    )]
    NoFusermount,

    /// A volume has a place that cannot be made.
    #[error("a file system cannot be mounted at {name:?}: {why}")]
    BadPlace {
        /// The place, below the mount point.
        name: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The frame that holds the file systems could not be built; nothing is left of it.
    #[error("cannot prepare {dir} for the file systems")]
    Frame {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// The kernel's tables of mounts and loop devices could not be read.
    #[error("cannot read {path}; is it mounted?")]
    KernelTable {
        /// The table.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Nothing is mounted there.
    #[error("nothing is mounted at {dir}; `vbk mounts` lists what is")]
    NotMounted {
        /// The directory.
        dir: PathBuf,
    },
    /// What is mounted there was not mounted by vbk.
    #[error("{dir} was not mounted by vbk ({fs_type} of {origin}); if it is to go, use `umount {dir}`")]
    NotOurs {
        /// The directory.
        dir: PathBuf,
        /// The kernel's name for the file system.
        fs_type: String,
        /// What is mounted there.
        origin: String,
    },
    /// Somebody still reads the mount. What stood above it is unmounted, the rest is as it was.
    #[error("{dir} is in use by {users}; end that and run `vbk umount` again, or let go of it at once with --lazy")]
    Busy {
        /// The directory.
        dir: PathBuf,
        /// Who, in words.
        users: String,
    },
    /// An image in the mount is a loop device that somebody uses.
    #[error("images of {dir} are in use: {users}; unmount that first")]
    ImagesInUse {
        /// The directory.
        dir: PathBuf,
        /// Who, in words.
        users: String,
    },
    /// A loop device stays, though nothing of ours is mounted from it.
    #[error(
        "{users} is still attached to an image of {dir}; see who has it open with `fuser -v`, then run `vbk umount` again"
    )]
    LoopStays {
        /// The directory.
        dir: PathBuf,
        /// Who, in words.
        users: String,
    },
    /// Unmounting failed for a reason other than use.
    #[error("cannot unmount {dir}")]
    Unmount {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Shorthand for results of the mount layer.
pub type Result<T> = std::result::Result<T, MountError>;

impl MountError {
    /// What the caller should do about it.
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
