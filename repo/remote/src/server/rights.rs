//! The rights of a client.
//!
//! | right | reads backups' blocks | reads the whole store | adds backups | changes and removes |
//! |---|---|---|---|---|
//! | `backup` | | | yes | |
//! | `restore`, `copy` | yes | | | |
//! | `verify` | yes | yes | | |
//! | `manage` | yes | yes | yes | yes |
//!
//! Key slots are added and removed by an administrator alone, and so changed. With a slot of its own a thief of a token could still
//! open the repository when the stolen key was changed, and what is forgotten stays in the bin for a while, but would be of no use
//! without a key. The status of the repository shows a client itself and the room that there is, and the others
//! only to an administrator and to `manage` for all guests.
//!
//! All may read records, notes, manifests, key slots, and look blocks up by their ids. The whole store is the list of all
//! blocks, the files of the store and their size. `copy` reads what a copy needs, as it is sealed; it has a name of its own, so
//! that the list of tokens and the audit log tell it from a restore.

use serde::{Deserialize, Serialize};

/// What a client may do with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allowed {
    /// Read backups.
    #[serde(rename = "restore")]
    Read,
    /// Read everything, also what no backup names: for a machine that verifies. It notes nothing.
    #[serde(rename = "verify")]
    Verify,
    /// Read backups as they are sealed: for a machine that keeps a copy.
    #[serde(rename = "copy")]
    Copy,
    /// Add backups, and read what that needs: records, notes, manifests and the index, but no block.
    #[serde(rename = "backup")]
    Add,
    /// Read everything, and add, change and remove backups.
    #[serde(rename = "manage")]
    Everything,
    /// The same, and what it puts is not checked again: it could write to the directory itself. No token has it.
    #[serde(skip)]
    Trusted,
}

impl Allowed {
    /// The name, as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "restore",
            Self::Verify => "verify",
            Self::Copy => "copy",
            Self::Add => "backup",
            Self::Everything | Self::Trusted => "manage",
        }
    }

    pub(super) fn reads_blocks(self) -> bool {
        match self {
            Self::Read | Self::Verify | Self::Copy | Self::Everything | Self::Trusted => true,
            Self::Add => false,
        }
    }

    pub(super) fn reads_whole_store(self) -> bool {
        match self {
            Self::Verify | Self::Everything | Self::Trusted => true,
            Self::Read | Self::Copy | Self::Add => false,
        }
    }

    pub(super) fn adds(self) -> bool {
        match self {
            Self::Add | Self::Everything | Self::Trusted => true,
            Self::Read | Self::Verify | Self::Copy => false,
        }
    }

    pub(super) fn manages(self) -> bool {
        match self {
            Self::Everything | Self::Trusted => true,
            Self::Read | Self::Verify | Self::Copy | Self::Add => false,
        }
    }
}

#[cfg(test)]
mod tests;
