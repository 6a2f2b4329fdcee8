//! A run of vbk that holds resources, and how another run finds out that it has ended.
//!
//! Each run has a directory `RUNTIME/runs/ID` with a file `lock`, on which it holds flock(2) for the life of the
//! process: the kernel releases it however the process ends. The directory is created and locked under a temporary name
//! and then renamed. So a process that sees the final name finds the lock taken, unless the run is over. After a reboot
//! `/run` is empty, and no run from before is alive.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vbk_repo::ErrorKind;
use vbk_repo::files::{self, Mode, Synced};

/// Hexadecimal digits of an id.
pub(crate) const ID_DIGITS: usize = 12;
const LOCK: &str = "lock";
const INFO: &str = "run.json";

/// A run can't be recorded.
#[derive(Debug, thiserror::Error)]
#[error("can't {doing} {path}: {source}")]
pub struct RunError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl RunError {
    /// Returns the kind of the error, by which a caller decides what to do.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::of_io(&self.source)
    }

    fn new(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self { doing, path, source }
    }
}

/// Description of a run, written by the run itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Command of the run, e.g. `backup web1`.
    pub command: String,
    /// Process id.
    pub pid: u32,
    /// Start time.
    pub since: Timestamp,
    /// Guests that it backs up, once they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guests: Option<Vec<String>>,
}

/// A run. Clones stand for the same run, which is over when the last of them is dropped.
#[derive(Debug, Clone)]
pub struct Run(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: String,
    host_id: String,
    runtime_dir: PathBuf,
    dir: PathBuf,
    _lock: File,
}

impl Run {
    /// Starts a run on the machine `host_id`. Creates `runtime_dir` if it does not exist; it must be on a file system
    /// that a reboot empties, e.g. `/run/vbk`.
    pub fn begin(runtime_dir: &Path, host_id: &str, command: &str) -> Result<Self, RunError> {
        let runs = runs_of(runtime_dir);
        let private = |recursive| {
            let mut builder = DirBuilder::new();
            builder.recursive(recursive).mode(0o700);
            builder
        };
        private(true).create(&runs).map_err(RunError::new("create", &runs))?;
        let id = new_id()?;
        let (new, dir) = (runs.join(format!(".new-{id}")), runs.join(&id));
        private(false).create(&new).map_err(RunError::new("create", &new))?;
        let lock = prepare(&new, command).and_then(|lock| {
            // The id is random, and rename(2) does not replace a directory that is not empty.
            std::fs::rename(&new, &dir)
                .map_err(RunError::new("rename to", &dir))
                .map(|()| lock)
        });
        let lock = lock.inspect_err(|_| {
            let _ = std::fs::remove_dir_all(&new);
        })?;
        Ok(Self(Arc::new(Inner {
            id,
            host_id: host_id.to_owned(),
            runtime_dir: runtime_dir.to_owned(),
            dir,
            _lock: lock,
        })))
    }

    /// Returns the unique id: 12 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Returns the id of the machine, as passed to [`Run::begin`].
    pub fn host_id(&self) -> &str {
        &self.0.host_id
    }

    /// Returns the directory for this run's own files. Removed with the run.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Records the guests of this run, for other processes that ask (`info`).
    pub fn note_guests(&self, guests: Vec<String>) -> Result<(), RunError> {
        let path = self.dir().join(INFO);
        let mut info = info_in(self.dir()).unwrap_or_else(|| RunInfo::new("a backup"));
        info.guests = Some(guests);
        let text = serde_json::to_vec(&info).expect("it has only plain fields");
        // Not synced: a reboot ends the run and empties the directory.
        files::write_whole(&path, &text, Mode::Umask, Synced::Nothing).map_err(RunError::new("write", path))
    }

    /// Returns the directory that holds the directories of all runs.
    pub fn runtime_dir(&self) -> &Path {
        &self.0.runtime_dir
    }
}

impl RunInfo {
    fn new(command: &str) -> Self {
        Self {
            command: command.to_owned(),
            pid: std::process::id(),
            since: Timestamp::now(),
            guests: None,
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The lock is held until the last field is dropped, which is after this.
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!("can't remove {}: {error}", self.dir.display());
        }
    }
}

fn prepare(dir: &Path, command: &str) -> Result<File, RunError> {
    let path = dir.join(LOCK);
    let lock = File::create_new(&path).map_err(RunError::new("create", &path))?;
    lock.try_lock()
        .map_err(|error| RunError::new("lock", &path)(error.into()))?;
    let text = serde_json::to_vec(&RunInfo::new(command)).expect("it has only plain fields");
    let path = dir.join(INFO);
    File::create_new(&path)
        .and_then(|mut file| file.write_all(&text))
        .map_err(RunError::new("write", path))?;
    Ok(lock)
}

fn new_id() -> Result<String, RunError> {
    Ok(vbk_repo::id::to_hex(&random_bytes::<{ ID_DIGITS / 2 }>()?))
}

/// Returns a number that can't be guessed.
pub(crate) fn random() -> Result<u64, RunError> {
    random_bytes().map(u64::from_ne_bytes)
}

/// Returns bytes from the kernel's random number generator.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], RunError> {
    let mut bytes = [0; N];
    let filled = getrandom::fill(&mut bytes).map_err(io::Error::other);
    filled.map_err(RunError::new("read", "/dev/urandom")).map(|()| bytes)
}

/// Tests that a run is alive. False if its directory is missing, e.g. after a reboot, or no process holds its lock. A
/// run whose lock can't be examined counts as alive, so that its resources are left alone.
pub(crate) fn is_running(runtime_dir: &Path, id: &str) -> bool {
    is_id(id) && is_held(&runs_of(runtime_dir).join(id))
}

/// Reads a run's description of itself; `None` if it is over or nothing can be read.
pub(crate) fn info(runtime_dir: &Path, id: &str) -> Option<RunInfo> {
    if !is_id(id) {
        return None;
    }
    info_in(&runs_of(runtime_dir).join(id))
}

fn info_in(dir: &Path) -> Option<RunInfo> {
    serde_json::from_slice(&std::fs::read(dir.join(INFO)).ok()?).ok()
}

/// Lists the directories of all runs, alive or dead.
pub(crate) fn all(runtime_dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(runs_of(runtime_dir)).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_id));
    dirs.map(|entry| entry.path()).collect()
}

/// Lists the running runs: their directories, in order, and their descriptions.
pub(crate) fn running(runtime_dir: &Path) -> Vec<(PathBuf, Option<RunInfo>)> {
    let mut dirs = all(runtime_dir);
    dirs.retain(|dir| is_held(dir));
    dirs.sort();
    dirs.into_iter()
        .map(|dir| {
            let info = info_in(&dir);
            (dir, info)
        })
        .collect()
}

/// Lists the directories of runs that ended without removing them.
pub(crate) fn dead(runtime_dir: &Path) -> Vec<PathBuf> {
    let mut dirs = all(runtime_dir);
    dirs.retain(|dir| !is_held(dir));
    dirs
}

/// Tests that text has the form of an id; it comes from tags and file names.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_held(dir: &Path) -> bool {
    match File::open(dir.join(LOCK)) {
        // A shared lock: several processes may ask at once without seeing each other. It is released with the file,
        // right here.
        Ok(file) => match file.try_lock_shared() {
            Ok(()) => false,
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(_)) => true,
        },
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

fn runs_of(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("runs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_running_until_its_last_clone_is_dropped() {
        let dir = tempfile::tempdir().expect("a directory");
        let run = Run::begin(dir.path(), "host", "backup web1").expect("begins");
        let (id, place) = (run.id().to_owned(), run.dir().to_owned());
        assert!(is_running(dir.path(), &id) && is_id(&id));
        let info = info(dir.path(), &id).expect("says what it is");
        assert_eq!((info.command.as_str(), info.pid), ("backup web1", std::process::id()));
        assert_eq!(info.guests, None);
        run.note_guests(vec!["web1".to_owned()]).expect("notes");
        let noted = super::info(dir.path(), &id).expect("says what it is");
        assert_eq!(
            (noted.guests, noted.command),
            (Some(vec!["web1".to_owned()]), info.command)
        );
        let clone = run.clone();
        drop(run);
        assert!(is_running(dir.path(), &id));
        drop(clone);
        assert!(!is_running(dir.path(), &id) && !place.exists());
    }

    #[test]
    fn a_directory_without_a_held_lock_is_a_dead_run() {
        let dir = tempfile::tempdir().expect("a directory");
        let living = Run::begin(dir.path(), "host", "x").expect("begins");
        // The state that kill -9 leaves.
        let dead_id = "0123456789ab";
        let place = runs_of(dir.path()).join(dead_id);
        std::fs::create_dir(&place).expect("is made");
        std::fs::write(place.join(LOCK), "").expect("is written");
        assert!(!is_running(dir.path(), dead_id));
        assert_eq!(dead(dir.path()), [place]);
        assert!(is_running(dir.path(), living.id()));
        for bad in ["", "../../etc", "0123456789AB", "0123456789abc"] {
            assert!(!is_running(dir.path(), bad), "{bad}");
        }
    }

    #[test]
    fn concurrent_checks_never_misjudge_a_run() {
        let dir = tempfile::tempdir().expect("a directory");
        let run = Run::begin(dir.path(), "host", "x").expect("begins");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        assert!(is_running(dir.path(), run.id()));
                    }
                });
            }
            // Other runs begin and end in the meantime, and none of them is ever seen dead.
            scope.spawn(|| {
                for _ in 0..200 {
                    let other = Run::begin(dir.path(), "host", "y").expect("begins");
                    assert!(is_running(dir.path(), other.id()));
                    assert_eq!(dead(dir.path()), [] as [PathBuf; 0]);
                }
            });
        });
    }
}
