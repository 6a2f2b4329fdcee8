//! What a repository is: its layout, features, block size and name.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::block::BlockSize;
use crate::error::{Error, Result};

/// The newest store format that this vbk reads, and the one it writes.
pub const STORE_FORMAT: u32 = 1;

/// The feature of an encrypted repository.
pub const ENCRYPTION: &str = "encryption";

/// The feature of an encrypted repository whose sealed things have sums: see `encrypted/sums.rs`.
pub const SUMS: &str = "sums";

/// The feature of a repository with blocks that are stored as differences. The first of them brings it.
pub const DIFFERENCES: &str = "differences";

/// All features that this vbk knows.
const FEATURES: [&str; 3] = [ENCRYPTION, SUMS, DIFFERENCES];

/// Identity of a repository, fixed when it is made but for [`DIFFERENCES`]. Kept in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Layout of the store.
    pub format: u32,
    /// Names of features that a reader must know, or refuse.
    #[serde(default)]
    pub features: Vec<String>,
    /// Random hexadecimal digits that tell repositories apart.
    pub id: String,
    /// The size of every block but an image's last.
    pub block_size: BlockSize,
    /// Time of its making.
    pub created: jiff::Timestamp,
    /// Check value of the master key of an encrypted repository: it tells the right key from a wrong one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_check: Option<String>,
}

impl Identity {
    /// Returns the features of a new repository.
    pub fn features_of_new(is_encrypted: bool) -> Vec<String> {
        match is_encrypted {
            true => vec![ENCRYPTION.into(), SUMS.into()],
            false => Vec::new(),
        }
    }

    /// Returns whether the repository has a feature.
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|has| has == feature)
    }

    /// Returns whether both are of one repository, which may have got [`DIFFERENCES`] since.
    pub fn is_of_same(&self, other: &Self) -> bool {
        let fixed = |identity: &Self| {
            let mut identity = identity.clone();
            identity.features.retain(|feature| feature != DIFFERENCES);
            identity
        };
        fixed(self) == fixed(other)
    }

    /// Returns whether what is stored is sealed.
    pub fn is_encrypted(&self) -> bool {
        self.has(ENCRYPTION)
    }

    /// Refuses what a newer vbk made. `path` is only for the message.
    pub(crate) fn check(&self, path: impl Into<PathBuf>) -> Result<()> {
        if self.format > STORE_FORMAT {
            return Err(Error::NewerFormat {
                path: path.into(),
                found: self.format,
                supported: STORE_FORMAT,
            });
        }
        let known = |feature: &&String| FEATURES.contains(&feature.as_str());
        let unknown: Vec<_> = self
            .features
            .iter()
            .filter(|feature| !known(feature))
            .cloned()
            .collect();
        if !unknown.is_empty() {
            return Err(Error::UnknownFeatures {
                path: path.into(),
                features: unknown.join(", "),
            });
        }
        Ok(())
    }
}
