//! What a client may add in a day: bytes that it sends, and backups.
//!
//! It is counted in `DIR/serve/used/NAME.json`, so that it holds over restarts and for all processes that serve the client. A
//! process takes a part of the day's bytes at once, and gives back what it did not need; a killed one does not.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use vbk_repo::text::size;
use vbk_repo::{Error, Result};

use super::key::{SERVE, make_directory};
use crate::address::check_name;

/// Bytes that a process takes at once.
const PART_BYTES: u64 = if cfg!(test) { 1000 } else { 64 << 20 };
const DAY_SECS: i64 = 86_400;

/// Bounds of what a client adds; `None` for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Bytes of blocks and manifests, as they are stored, that it sends in a day (UTC), also of what is stored already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_day: Option<u64>,
    /// Backups in a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backups_per_day: Option<u64>,
}

impl Quota {
    /// Returns whether there is no bound.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// The count of a day.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Used {
    /// Days since 1970.
    day: i64,
    bytes: u64,
    backups: u64,
}

/// Counts what a client adds.
#[derive(Debug)]
pub(super) struct Meter {
    repository: PathBuf,
    name: String,
    quota: Quota,
    /// Bytes that this process has taken and not used.
    taken: Mutex<u64>,
}

/// The reason for which a quota refuses something.
pub(super) enum Over {
    Quota(String),
    Failed(Error),
}

impl Meter {
    pub(super) fn new(repository: &Path, name: &str, quota: Quota) -> Result<Self> {
        check_name(name).map_err(|why| Error::Remote {
            kind: vbk_repo::ErrorKind::Invalid,
            message: format!("a client with a quota needs a name: {name:?} is none: {why}"),
        })?;
        Ok(Self {
            repository: repository.to_owned(),
            name: name.to_owned(),
            quota,
            taken: Mutex::default(),
        })
    }

    /// Counts bytes before they are put.
    pub(super) fn put(&self, bytes: u64, now: Timestamp) -> std::result::Result<(), Over> {
        let Some(most) = self.quota.bytes_per_day else {
            return Ok(());
        };
        let mut taken = self.taken.lock();
        if let Some(rest) = taken.checked_sub(bytes) {
            *taken = rest;
            return Ok(());
        }
        let needed = bytes - *taken;
        let mut granted = None;
        self.change(now, &mut |used| {
            let free = most.saturating_sub(used.bytes);
            granted = (needed <= free).then(|| needed.max(PART_BYTES.min(free)));
            used.bytes += granted.unwrap_or(0);
        })
        .map_err(Over::Failed)?;
        match granted {
            Some(granted) => {
                *taken = *taken + granted - bytes;
                Ok(())
            }
            None => Err(Over::Quota(format!(
                "{} may send {} a day (UTC) to this repository, and has done so",
                self.name,
                size(most)
            ))),
        }
    }

    /// Counts a backup before it is committed.
    pub(super) fn commit(&self, now: Timestamp) -> std::result::Result<(), Over> {
        let Some(most) = self.quota.backups_per_day else {
            return Ok(());
        };
        let mut fits = false;
        self.change(now, &mut |used| {
            fits = used.backups < most;
            used.backups += u64::from(fits);
        })
        .map_err(Over::Failed)?;
        match fits {
            true => Ok(()),
            false => Err(Over::Quota(format!(
                "{} may add {most} backups a day (UTC) to this repository, and has done so",
                self.name
            ))),
        }
    }

    /// Takes back the count of a backup that was not committed.
    pub(super) fn not_committed(&self, now: Timestamp) {
        if self.quota.backups_per_day.is_some() {
            let given = self.change(now, &mut |used| used.backups = used.backups.saturating_sub(1));
            if let Err(error) = given {
                tracing::debug!("a backup that failed counts: {error}");
            }
        }
    }

    /// Changes the count, under a lock of its file.
    fn change(&self, now: Timestamp, change: &mut dyn FnMut(&mut Used)) -> Result<()> {
        let path = self
            .repository
            .join(SERVE)
            .join("used")
            .join(format!("{}.json", self.name));
        let mut changed = || {
            let mut file = self.open(&path)?;
            file.lock()?;
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            // A power cut may leave it empty; that day's count begins again.
            let mut used: Used = serde_json::from_str(&text).unwrap_or_default();
            let day = now.as_second().div_euclid(DAY_SECS);
            // A clock that is set back gives no new day.
            if day > used.day {
                used = Used { day, ..Used::default() };
            }
            change(&mut used);
            let text = serde_json::to_vec(&used).expect("plain fields");
            file.rewind()?;
            file.write_all(&text)?;
            file.set_len(text.len() as u64)
        };
        changed().map_err(Error::io("write", &path))
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        match options.open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make_directory(&self.repository).map_err(io::Error::other)?;
                let directory = path.parent().unwrap_or(path);
                match DirBuilder::new().mode(0o700).create(directory) {
                    Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
                    _ => options.open(path),
                }
            }
            opened => opened,
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let taken = std::mem::take(&mut *self.taken.lock());
        if taken > 0 {
            let given = self.change(Timestamp::now(), &mut |used| {
                used.bytes = used.bytes.saturating_sub(taken)
            });
            if let Err(error) = given {
                tracing::debug!("a part of a quota is not given back: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(directory: &Path, bytes: u64, backups: u64) -> Meter {
        let quota = Quota {
            bytes_per_day: Some(bytes),
            backups_per_day: Some(backups),
        };
        Meter::new(directory, "web", quota).expect("has a name")
    }

    #[test]
    fn a_quota_holds_for_all_sessions_of_a_day() {
        let dir = tempfile::tempdir().expect("a directory");
        let now = Timestamp::now();
        let one = meter(dir.path(), 10_000, 2);
        assert!(one.put(2500, now).is_ok());
        {
            let other = meter(dir.path(), 10_000, 2);
            assert!(other.put(7000, now).is_ok());
            assert!(other.put(700, now).is_err());
            assert!(other.commit(now).is_ok());
        }
        assert!(one.put(501, now).is_err());
        assert!(one.put(500, now).is_ok());
        assert!(one.put(1, now).is_err());
        assert!(one.commit(now).is_ok() && one.commit(now).is_err());
        // A clock that is set back gives no new day; the next day does.
        let day = jiff::SignedDuration::from_secs(DAY_SECS);
        assert!(one.put(1, now - day).is_err() && one.commit(now - day).is_err());
        assert!(one.put(10_000, now + day).is_ok() && one.commit(now + day).is_ok());
        assert!(one.put(1, now + day).is_err());
    }

    #[test]
    fn what_a_session_took_and_did_not_need_is_given_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let now = Timestamp::now();
        for _ in 0..10 {
            assert!(meter(dir.path(), 1500, 1).put(100, now).is_ok());
        }
        assert!(meter(dir.path(), 1500, 1).put(500, now).is_ok());
        assert!(meter(dir.path(), 1500, 1).put(1, now).is_err());
    }

    #[test]
    fn the_last_part_of_a_quota_is_as_small_as_it_must_be() {
        let dir = tempfile::tempdir().expect("a directory");
        let now = Timestamp::now();
        let meter = meter(dir.path(), 1300, 1);
        assert!(meter.put(400, now).is_ok());
        // 600 are taken and 300 are left.
        assert!(meter.put(800, now).is_ok());
        assert!(meter.put(101, now).is_err());
        assert!(meter.put(100, now).is_ok());
        assert!(meter.put(1, now).is_err());
    }

    #[test]
    fn a_backup_that_was_not_committed_does_not_count() {
        let dir = tempfile::tempdir().expect("a directory");
        let now = Timestamp::now();
        let meter = meter(dir.path(), 1300, 1);
        for _ in 0..3 {
            assert!(meter.commit(now).is_ok());
            meter.not_committed(now);
        }
        assert!(meter.commit(now).is_ok() && meter.commit(now).is_err());
    }

    #[test]
    fn without_bounds_nothing_is_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        let meter = Meter::new(dir.path(), "web", Quota::default()).expect("has a name");
        assert!(meter.put(u64::MAX, Timestamp::now()).is_ok() && meter.commit(Timestamp::now()).is_ok());
        assert!(!dir.path().join(SERVE).exists());
        assert!(Meter::new(dir.path(), "../x", Quota::default()).is_err());
    }
}
