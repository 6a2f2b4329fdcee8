//! The reasons for which no backup of a guest is made because it did not come to rest.

use vbk_repo::ErrorKind;

/// Why a guest was not brought to rest, and no backup made of it.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// The administrator's command failed. What state its programs are in is not known, and a backup that claims less
    /// than was asked for would be found out on the day it is needed.
    #[error("no backup of {guest} was made: its pre-freeze command `{command}` {why}")]
    PreFreeze {
        /// The guest.
        guest: String,
        /// The command.
        command: String,
        /// How it ended, and what it said.
        why: String,
    },
    /// The guest agent is asked for, and did not freeze.
    #[error(
        "no backup of {guest} was made: the guest agent of {domain} did not freeze its file systems ({why}); with the \
         freeze mode auto it is backed up crash-consistent"
    )]
    Agent {
        /// The guest.
        guest: String,
        /// The libvirt domain.
        domain: String,
        /// What libvirt said.
        why: String,
    },
    /// The helper can't do its work; nothing was frozen.
    #[error("no backup of {guest} was made: the helper that gets it going again can't be started: {why}")]
    Helper {
        /// The guest.
        guest: String,
        /// Why.
        why: String,
    },
}

impl FreezeError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::PreFreeze { .. } | Self::Agent { .. } | Self::Helper { .. } => ErrorKind::Unavailable,
        }
    }
}
