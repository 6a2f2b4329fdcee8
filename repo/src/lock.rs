//! The writer's lock on a repository: one process writes at a time, and the others can say for whom they wait.
//!
//! The lock is flock(2) on `REPO/lock`, so the kernel releases it however its holder ends. The file's text is only
//! for people.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const POLL: Duration = Duration::from_millis(200);

/// Who holds the lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// What it does, as in `backup web1`.
    pub command: String,
    /// Its process.
    pub pid: u32,
    /// Since when.
    pub since: jiff::Timestamp,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = crate::name::BackupTime::new(self.since);
        write!(f, "`{}` (process {}, since {since})", self.command, self.pid)
    }
}

/// The held lock; dropping it lets the next writer in.
pub(crate) struct WriterLock {
    _file: File,
}

impl WriterLock {
    /// Takes the lock, asking `wait` with the holder's description before each wait; `false` gives up with
    /// [`Error::Locked`].
    pub(crate) fn take(repository: &Path, command: &str, wait: &mut dyn FnMut(&str) -> bool) -> Result<Self> {
        let path = repository.join("lock");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    let holder = describe(&mut file);
                    if !wait(&holder) {
                        return Err(Error::Locked {
                            path: repository.to_owned(),
                            holder,
                        });
                    }
                    std::thread::sleep(POLL);
                }
                Err(TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
            }
        }
        let holder = Holder {
            command: command.to_owned(),
            pid: std::process::id(),
            since: jiff::Timestamp::now(),
        };
        let text = serde_json::to_vec(&holder).expect("a holder has only plain fields");
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(&text))
            .map_err(Error::io("write", path))?;
        Ok(Self { _file: file })
    }
}

fn describe(file: &mut File) -> String {
    let mut text = String::new();
    // The holder may be between taking the lock and writing its name.
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    read.ok()
        .and_then(|_| serde_json::from_str::<Holder>(&text).ok())
        .map_or_else(|| "another process".to_owned(), |holder| holder.to_string())
}
