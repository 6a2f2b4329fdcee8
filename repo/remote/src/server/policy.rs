//! The policy of a repository: what its server lets clients destroy. `DIR/serve/policy.json`; without it the defaults count.
//!
//! It is for clients that come over TLS or by ssh with rights of their own (`vbk token add`). The administrator, who could write to
//! the directory itself, is not bound by it.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vbk_repo::files::{self, Mode, Synced};
use vbk_repo::{Error, Result};

use super::key::{SERVE, make_directory};

/// The policy of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
// A later version may add restrictions; a server that ignored them would give too much.
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Seconds for which a backup that a client forgot can be brought back, whoever prunes.
    pub bin_secs: u64,
    /// Seconds from the commit of a backup before which no client may forget it, by the server's clock: whoever can set that
    /// forward, ages backups. None by default: the bin protects what is forgotten, and a rule such as `--keep-daily 7` forgets
    /// what is a week old.
    pub min_age_secs: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            bin_secs: 7 * 86400,
            min_age_secs: 0,
        }
    }
}

impl Policy {
    /// The policy for the administrator.
    pub(super) const NONE: Self = Self {
        bin_secs: 0,
        min_age_secs: 0,
    };

    fn file(repository: &Path) -> PathBuf {
        repository.join(SERVE).join("policy.json")
    }

    /// Reads the policy of the repository in a directory. One that can't be read is an error: nothing else says what is allowed.
    pub fn load(repository: &Path) -> Result<Self> {
        let path = Self::file(repository);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            bytes => bytes.map_err(Error::io("read", &path))?,
        };
        serde_json::from_slice(&bytes).map_err(|error| {
            let what = format!("{error}; remove it, and set the policy anew with `vbk policy`");
            Error::io("use", &path)(io::Error::new(ErrorKind::InvalidData, what))
        })
    }

    /// Writes the policy, which counts for what clients open from then on. Durable when this returns.
    pub fn save(&self, repository: &Path) -> Result<()> {
        let path = Self::file(repository);
        make_directory(repository)?;
        let mut text = serde_json::to_vec_pretty(self).expect("plain fields");
        text.push(b'\n');
        files::write_whole(&path, &text, Mode::Private, Synced::FileAndDirectory).map_err(Error::io("write", &path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_kept_and_one_that_can_t_be_read_is_no_policy() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(Policy::load(dir.path()).expect("loads"), Policy::default());
        let policy = Policy {
            bin_secs: 3,
            min_age_secs: 4,
        };
        policy.save(dir.path()).expect("saves");
        assert_eq!(Policy::load(dir.path()).expect("loads"), policy);
        for text in ["", "{", r#"{"bin_secs":3,"later":1}"#] {
            fs::write(Policy::file(dir.path()), text).expect("writes");
            assert!(Policy::load(dir.path()).is_err(), "{text}");
        }
        policy.save(dir.path()).expect("saves");
        fs::write(Policy::file(dir.path()), "{}").expect("writes");
        assert_eq!(Policy::load(dir.path()).expect("loads"), Policy::default());
    }
}
