//! Errors of bringing a guest to rest. After each of them, no backup of the guest is made.

use vbk_repo::ErrorKind;

/// A guest was not brought to rest, so no backup of it was made.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// The administrator's command failed. The state of its programs is unknown, and a backup with less consistency
    /// than requested would be noticed only on the day it is needed.
    #[error("no backup of {guest} was made: its pre-freeze command `{command}` {why}")]
    PreFreeze {
        /// Name of the guest.
        guest: String,
        /// The command.
        command: String,
        /// Its end and its output, as the rest of a sentence.
        why: String,
    },
    /// The guest agent is required, and did not freeze.
    #[error(
        "no backup of {guest} was made: the guest agent of {domain} did not freeze its file systems ({why}); with the \
         freeze mode auto it is backed up crash-consistent"
    )]
    Agent {
        /// Name of the guest.
        guest: String,
        /// The libvirt domain.
        domain: String,
        /// libvirt's error.
        why: String,
    },
    /// The helper can't start; nothing was frozen.
    #[error("no backup of {guest} was made: the helper process that would thaw it can't be started: {why}")]
    Helper {
        /// Name of the guest.
        guest: String,
        /// Reason.
        why: String,
    },
}

impl FreezeError {
    /// Returns the kind of the error, by which a caller decides what to do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::PreFreeze { .. } | Self::Agent { .. } | Self::Helper { .. } => ErrorKind::Unavailable,
        }
    }
}
