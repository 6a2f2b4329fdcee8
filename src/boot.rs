//! Boots the disks of a backup in QEMU, and judges from outside if the guest came up. Needs the disks as raw image files
//! that QEMU may write to; knows nothing of repositories and mounts.
//!
//! The guest is hostile: its disks and its libvirt description may be made by an attacker. QEMU gets no network unless told,
//! no file of the host but the images, as open files, and a private directory. Where vbk is root, it runs as another user;
//! and always in its own seccomp sandbox. Its console and its answers are bounded.

pub mod console;
pub mod machine;
pub mod process;
mod qmp;
pub mod rehearsal;

use std::path::PathBuf;
use std::time::Duration;

use vbk_repo::ErrorKind;

/// A failure to boot that says nothing about the guest.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// QEMU is not installed.
    #[error("{} is not installed (package qemu-system-x86)", machine::PROGRAM)]
    NoQemu,
    /// OVMF is not installed.
    #[error("the guest boots with UEFI, and its firmware OVMF is not installed (package ovmf)")]
    NoOvmf,
    /// The host has too little free memory.
    #[error("only {} of memory are free, and a guest needs {}", crate::text::size(*.free_bytes), crate::text::size(machine::MIN_MEMORY_BYTES))]
    NoMemory {
        /// Free memory.
        free_bytes: u64,
    },
    /// QEMU ended with an error.
    #[error("QEMU failed: {0}")]
    Failed(String),
    /// QEMU does not answer, or not in its protocol.
    #[error("QEMU can't be controlled: {0}")]
    Qmp(String),
    /// The guest did not answer in time.
    #[error("no answer from QEMU within {} s", .0.as_secs())]
    Silent(Duration),
    /// The user ended the start.
    #[error("interrupted")]
    Cancelled,
    /// A call of the system failed.
    #[error("can't {doing} {}: {source}", path.display())]
    Io {
        /// The failed action, e.g. `write`.
        doing: &'static str,
        /// The file or program.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
}

impl BootError {
    /// Returns the kind of the error, by which a caller decides what to do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoQemu | Self::NoOvmf => ErrorKind::NotFound,
            Self::NoMemory { .. } | Self::Failed(_) | Self::Qmp(_) | Self::Silent(_) => ErrorKind::Unavailable,
            Self::Cancelled => ErrorKind::Interrupted,
            Self::Io { source, .. } => ErrorKind::of_io(source),
        }
    }

    fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
