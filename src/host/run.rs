//! A run of vbk that holds what must not outlive it, and how another run finds out that it is gone.
//!
//! Each run has a directory `RUNTIME/runs/ID` with a file `lock`, on which it holds flock(2) for the life of the process:
//! the kernel releases it however the process ends. The directory is made under another name and locked there, and only
//! then gets its own: so whoever sees it finds the lock taken, unless the run is over. After a reboot `/run` is empty,
//! and nothing of before is running.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vbk_repo::ErrorKind;

/// Digits of an id.
pub const ID_DIGITS: usize = 12;
const LOCK: &str = "lock";
const INFO: &str = "run.json";

/// A run can't be noted.
#[derive(Debug, thiserror::Error)]
#[error("can't {doing} {path}: {source}")]
pub struct RunError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl RunError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::of_io(&self.source)
    }

    fn new(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self { doing, path, source }
    }
}

/// What a run says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunInfo {
    /// What it does, as in `backup web1`.
    pub command: String,
    /// Its process.
    pub pid: u32,
    /// Since when.
    pub since: Timestamp,
    /// The guests it backs up, once they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guests: Option<Vec<String>>,
}

/// A run. Clones are the same run, which is over when the last of them is dropped.
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
    /// Begins a run on the machine `host_id`. `runtime_dir` is made if it is not there, and must be on a file system that
    /// a reboot empties, as `/run/vbk`.
    pub fn begin(runtime_dir: &Path, host_id: &str, command: &str) -> Result<Self, RunError> {
        let runs = runs_of(runtime_dir);
        let private = |recursive| {
            let mut builder = DirBuilder::new();
            builder.recursive(recursive).mode(0o700);
            builder
        };
        private(true).create(&runs).map_err(RunError::new("make", &runs))?;
        let id = new_id()?;
        let (new, dir) = (runs.join(format!(".new-{id}")), runs.join(&id));
        private(false).create(&new).map_err(RunError::new("make", &new))?;
        let lock = prepare(&new, command).and_then(|lock| {
            // The id is random, and a directory that is not empty would not be replaced.
            std::fs::rename(&new, &dir)
                .map_err(RunError::new("name", &dir))
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

    /// Tells it from all others: 12 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The machine, as it was given.
    pub fn host_id(&self) -> &str {
        &self.0.host_id
    }

    /// The directory for what this run notes of itself. Removed with the run.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Notes which guests it is about, for those who ask what runs ([`info`]).
    pub fn note_guests(&self, guests: Vec<String>) -> Result<(), RunError> {
        let (path, new) = (self.dir().join(INFO), self.dir().join("run.json.new"));
        let mut info = info_in(self.dir()).unwrap_or_else(|| RunInfo::new("a backup"));
        info.guests = Some(guests);
        let text = serde_json::to_vec(&info).expect("it has only plain fields");
        std::fs::write(&new, text).map_err(RunError::new("write", &new))?;
        std::fs::rename(&new, &path).map_err(RunError::new("write", path))
    }

    /// Where all runs have their directories.
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
    let lock = File::create_new(&path).map_err(RunError::new("make", &path))?;
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

/// Returns an unpredictable number.
pub(crate) fn random() -> Result<u64, RunError> {
    random_bytes().map(u64::from_ne_bytes)
}

/// Returns bytes from the kernel's random number generator.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], RunError> {
    let mut bytes = [0; N];
    let filled = getrandom::fill(&mut bytes).map_err(io::Error::other);
    filled.map_err(RunError::new("read", "/dev/urandom")).map(|()| bytes)
}

/// Whether a run is alive. False if its directory is missing, as after a reboot, or nobody holds its lock. A run whose
/// lock can't be looked at counts as alive: what it holds is left alone.
pub fn is_running(runtime_dir: &Path, id: &str) -> bool {
    is_id(id) && is_held(&runs_of(runtime_dir).join(id))
}

/// What a running run says of itself; `None` if it is over or nothing can be read.
pub fn info(runtime_dir: &Path, id: &str) -> Option<RunInfo> {
    if !is_id(id) {
        return None;
    }
    info_in(&runs_of(runtime_dir).join(id))
}

fn info_in(dir: &Path) -> Option<RunInfo> {
    serde_json::from_slice(&std::fs::read(dir.join(INFO)).ok()?).ok()
}

/// The directories of all runs, alive or dead.
pub(crate) fn all(runtime_dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(runs_of(runtime_dir)).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_id));
    dirs.map(|entry| entry.path()).collect()
}

/// The runs that go on: their directories, in order, and what they say of themselves.
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

/// The directories of runs that ended without removing them.
pub(crate) fn dead(runtime_dir: &Path) -> Vec<PathBuf> {
    let mut dirs = all(runtime_dir);
    dirs.retain(|dir| !is_held(dir));
    dirs
}

/// Whether text may be an id; it comes from tags and file names.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_held(dir: &Path) -> bool {
    match File::open(dir.join(LOCK)) {
        // Shared: many may ask at once and not see each other. It is released with the file, right here.
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
        // As kill -9 leaves it.
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
    fn many_that_ask_at_once_never_misjudge_a_run() {
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
            // Others begin and end meanwhile, and none of them is ever seen dead.
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
