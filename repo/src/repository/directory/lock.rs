//! The writer's lock on a repository: one process writes at a time, and the waiting ones can name the holder.
//!
//! The lock is flock(2) on `REPO/lock`, so the kernel releases it however its holder ends. The file's text is only for
//! people, and is removed when the lock is released.
//!
//! The text is part of every copy of the directory. In an encrypted repository it therefore contains only the command's
//! first word. Processes of the same machine read the rest from the holder's command line, which the kernel shows.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::waiting::{self, Waiting};
use crate::error::{Error, Result};

/// Longest command line that is shown.
const MAX_COMMAND_CHARS: usize = 72;

const POLL: Duration = Duration::from_millis(200);

/// Holder of the lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The holder's command, e.g. `backup web1`; in an encrypted repository only `backup`.
    pub command: String,
    /// The holder's process id.
    pub pid: u32,
    /// Time when it took the lock.
    pub since: jiff::Timestamp,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = self.since.strftime("%Y-%m-%d %H:%M:%S");
        write!(f, "`{}` (process {}, since {since})", self.command, self.pid)
    }
}

/// The held lock; dropping it releases it.
pub(crate) struct WriterLock {
    repository: PathBuf,
    file: File,
}

/// Command of a writer that lets all others in first, and between its steps.
pub const PRUNE: &str = "prune";

/// Command of a writer that lets those in first that wait when its turn comes: a protection must not come too late.
const FORGET: &str = "forget";

/// Part of the command that the lock's text may contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// The whole command.
    Command,
    /// The first word, which names no guest.
    Word,
}

impl Drop for WriterLock {
    fn drop(&mut self) {
        // The lock is released when the file is closed, which is after this.
        if let Err(error) = self.file.set_len(0) {
            tracing::warn!("can't empty the lock file: {error}");
        }
    }
}

impl WriterLock {
    /// Takes the lock. Before each wait it calls `wait` with the holder's description; if that returns `false`, the
    /// call fails with [`Error::Locked`].
    pub(crate) fn take(
        repository: &Path,
        command: &str,
        told: Told,
        wait: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Self> {
        let path = repository.join("lock");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        let mut waiting: Option<Waiting> = None;
        if command == PRUNE {
            waiting::let_go_first(repository);
        }
        let mut gives_way = command.split(' ').next() == Some(FORGET);
        loop {
            match file.try_lock() {
                Ok(()) => {
                    drop(waiting.take());
                    // Once: one of them may be stopped. Of two that forget only the first sees the other.
                    if !std::mem::take(&mut gives_way) || !waiting::is_any(repository) {
                        break;
                    }
                    file.unlock().map_err(Error::io("unlock", &path))?;
                    waiting::let_go_first(repository);
                }
                Err(TryLockError::WouldBlock) => {
                    let holder = describe(&mut file);
                    // Two that wait for each other to go first would go in turns, and get nothing done.
                    if command != PRUNE {
                        waiting = waiting.or_else(|| Waiting::begin(repository));
                    }
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
        let command = match told {
            Told::Command => command,
            Told::Word => command.split(' ').next().unwrap_or_default(),
        };
        let holder = Holder {
            command: command.to_owned(),
            pid: std::process::id(),
            since: jiff::Timestamp::now(),
        };
        let text = serde_json::to_vec(&holder).expect("a holder has only plain fields");
        // In place of the last holder's name: on a full disk there is no block for another one.
        let written = file.rewind().and_then(|()| file.write_all(&text));
        if let Err(error) = written.and_then(|()| file.set_len(text.len() as u64)) {
            // The lock is what counts. A wrong name would be worse than none.
            tracing::debug!(%error, "nobody can see who holds the lock");
            let _emptied = file.set_len(0);
        }
        Ok(Self {
            repository: repository.to_owned(),
            file,
        })
    }

    /// Returns whether another process waits for the lock.
    pub(crate) fn is_awaited(&self) -> bool {
        waiting::is_any(&self.repository)
    }
}

fn describe(file: &mut File) -> String {
    let mut text = String::new();
    // The holder may have taken the lock but not yet written its name.
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    let holder = read.ok().and_then(|_| serde_json::from_str::<Holder>(&text).ok());
    holder.map_or_else(
        || "another process".to_owned(),
        |holder| with_arguments(file, holder).to_string(),
    )
}

/// Adds the rest of the holder's command, if this machine shows it.
pub(crate) fn with_arguments(lock: &File, mut holder: Holder) -> Holder {
    // A process of another machine may have the same id as a process of this one; the latter does not have the file
    // open.
    if !holder.command.contains(' ') && has_open(holder.pid, lock) {
        let line = fs::read(format!("/proc/{}/cmdline", holder.pid)).unwrap_or_default();
        holder.command = arguments_of(&line, &holder.command).unwrap_or(holder.command);
    }
    holder
}

fn has_open(pid: u32, file: &File) -> bool {
    let Ok(wanted) = file.metadata() else {
        return false;
    };
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    open.flatten()
        .filter_map(|entry| fs::metadata(entry.path()).ok())
        .any(|open| (open.dev(), open.ino()) == (wanted.dev(), wanted.ino()))
}

/// Returns the words of a command line, each ended by a zero byte, from the command on; `None` if the command is not
/// among them.
fn arguments_of(line: &[u8], command: &str) -> Option<String> {
    let text = String::from_utf8_lossy(line);
    let words: Vec<_> = text.trim_end_matches('\0').split('\0').skip(1).collect();
    let at = words.iter().position(|word| *word == command)?;
    let text = words[at..].join(" ").replace(char::is_control, "?");
    Some(match text.char_indices().nth(MAX_COMMAND_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_tells_as_much_as_it_may_and_nothing_when_it_is_free() {
        let dir = tempfile::tempdir().expect("a directory");
        let text = || fs::read_to_string(dir.path().join("lock")).expect("reads");
        for (told, command) in [(Told::Command, "backup web1"), (Told::Word, "backup")] {
            let lock = WriterLock::take(dir.path(), "backup web1", told, &mut |_| true).expect("locks");
            let holder: Holder = serde_json::from_str(&text()).expect("a holder");
            assert_eq!(holder.command, command);
            drop(lock);
            assert_eq!(text(), "");
        }
    }

    #[test]
    fn a_command_line_is_told_from_the_command_on() {
        let line = b"/usr/bin/vbk\0--repo\0/srv\0backup\0web1\0/dev/a\x1bb\0";
        assert_eq!(arguments_of(line, "backup").as_deref(), Some("backup web1 /dev/a?b"));
        assert_eq!(arguments_of(line, "forget"), None);
        let long = [&line[..], &[b'x'; 200]].concat();
        assert!(arguments_of(&long, "backup").is_some_and(|text| text.ends_with("...") && text.len() == 75));
    }

    #[test]
    fn arguments_are_those_of_a_process_that_has_the_lock_open() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let open = File::create(&path).expect("makes");
        assert!(has_open(std::process::id(), &open));
        let other = File::create(dir.path().join("other")).expect("makes");
        drop(open);
        let _ = fs::remove_file(&path);
        assert!(has_open(std::process::id(), &other) && !has_open(1_u32 << 30, &other));
    }
}
