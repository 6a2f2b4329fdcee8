//! A file for node_exporter's textfile collector, with the result of each guest's last backup and last rehearsal, and with figures
//! of the repository. All commands write into one file, and each adds to the values of earlier runs: a guest keeps its values until
//! it is backed up again, and its last success through every failure.
//!
//! Every value has the name of its repository as a label. So two repositories may have a file each in one directory, or share one.
//! The file is only ever replaced as a whole, so the collector never sees half of it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::fcntl::OFlag;
use vbk_repo::files::{self, Mode, Synced};
use vbk_repo::repository::Repository;

use crate::exit::{Error, Result};
use crate::facts::Facts;
use crate::place;

mod repository;
mod values;

pub use self::repository::{RepositoryRun, record};
use self::values::{OF_A_RUN, Values};

/// Interval between writes: with 10,000 guests the file has 9 MiB, too much to write after each of them.
const WRITE_EVERY: Duration = Duration::from_secs(15);
/// Size from which a file is not vbk's. It is renamed, like a damaged one.
const MAX_BYTES: u64 = 1 << 30;
/// Time that another vbk may take to write the file.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// Result of the backup of one guest.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestRun {
    /// End of the attempt, successful or not.
    pub ended: Timestamp,
    /// Duration of the attempt.
    pub duration: Duration,
    /// Peak fill of a snapshot that can fill up: 0.4 for 40 %.
    pub snapshot_peak_fill: Option<f64>,
    /// Sizes of the backup; `None` if it failed.
    pub made: Option<Made>,
}

/// Sizes of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    pub read_bytes: u64,
    pub new_bytes: u64,
    pub stored_bytes: u64,
    pub size_bytes: u64,
}

/// Result of a run over all guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WholeRun {
    pub started: Timestamp,
    pub ended: Timestamp,
    pub guests: usize,
    pub failed: usize,
    /// Nothing failed, and there were no warnings.
    pub success: bool,
}

/// A rehearsal of a guest.
#[derive(Debug, Clone, Copy)]
pub struct RehearsalRun {
    /// Start.
    pub at: Timestamp,
    /// The guest booted.
    pub is_proven: bool,
    /// Time of the boot; 0 if the guest could not be started.
    pub duration_ms: u64,
}

/// The file, and the values that a run adds to it.
pub struct Metrics {
    path: PathBuf,
    /// Label of the repository.
    label: String,
    new: BTreeMap<String, GuestRun>,
    rehearsed: BTreeMap<String, RehearsalRun>,
    whole: Option<WholeRun>,
    repository: RepositoryRun,
    /// Facts about the repository, if they were read.
    facts: Option<Facts>,
    written: Instant,
}

impl Metrics {
    /// Opens the file, which may exist, for the values of a repository. Fails if it can't be written, so that this is known before the
    /// run. `repository` is its directory or address, which need not be reached now.
    pub fn at(path: &Path, repository: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(failed("write", path))?;
        let metrics = Self {
            path,
            label: label(repository),
            new: BTreeMap::new(),
            rehearsed: BTreeMap::new(),
            whole: None,
            repository: RepositoryRun::default(),
            facts: None,
            written: Instant::now(),
        };
        metrics.write(|_| true)?;
        Ok(metrics)
    }

    /// Adds the result for a guest. Writes the file at most every 15 s, so that a run that is killed has written most of it.
    pub fn record(&mut self, guest: &str, run: GuestRun) -> Result<()> {
        self.new.insert(guest.to_owned(), run);
        if self.written.elapsed() < WRITE_EVERY {
            return Ok(());
        }
        // Also after a failure, or each of 10,000 guests would fail again.
        self.written = Instant::now();
        self.write(|_| true)
    }

    /// Adds the result of a rehearsal.
    pub fn record_rehearsal(&mut self, guest: &str, run: RehearsalRun) {
        self.rehearsed.insert(guest.to_owned(), run);
    }

    /// Adds the result of a run over all guests.
    pub fn record_whole(&mut self, run: WholeRun) {
        self.whole = Some(run);
    }

    /// Adds what the repository says: its sizes, the state of its backups, and the last success of each guest, which the file may
    /// have lost. Leaves out what can't be read.
    pub fn note(&mut self, repository: &Repository) {
        self.repository.add_sizes(repository);
        match repository.view().and_then(|view| Facts::of(&view)) {
            Ok(facts) => self.facts = Some(facts),
            Err(error) => tracing::debug!(%error, "the metrics have no figures of the repository"),
        }
    }

    /// Writes the file. Guests of earlier runs that `is_known` no longer knows are left out: their values would raise an
    /// alarm for ever.
    pub fn finish(self, is_known: impl Fn(&str) -> bool) -> Result<()> {
        self.write(is_known)
    }

    fn write(&self, is_known: impl Fn(&str) -> bool) -> Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let directory = File::open(directory).map_err(failed("write", &self.path))?;
        // Two runs at once must not undo each other's values. The lock is on the directory, because the file is replaced.
        lock(&directory);
        let mut all = read(&self.path)?;
        let values = all.0.entry(self.label.clone()).or_default();
        values
            .guests
            .retain(|guest, _| self.new.contains_key(guest) || is_known(guest));
        values
            .rehearsals
            .retain(|guest, _| self.new.contains_key(guest) || is_known(guest));
        for (guest, run) in &self.rehearsed {
            values.add_rehearsal(guest, run);
        }
        for (guest, run) in &self.new {
            values.add(guest, run);
        }
        if let Some(run) = &self.whole {
            values.run = run.values();
        }
        let mut repository = self.repository.clone();
        if let Some(facts) = &self.facts {
            repository.add_facts(facts);
            // All its backups were forgotten.
            let is_gone = |guest: &String| !self.new.contains_key(guest) && !facts.last_success.contains_key(guest);
            values
                .guests
                .retain(|guest, [success_at, ..]| success_at.is_none() || !is_gone(guest));
            values.rehearsals.retain(|guest, _| !is_gone(guest));
            for (guest, [success_at, ..]) in &mut values.guests {
                let known = facts.last_success.get(guest).copied().map(seconds);
                *success_at = [*success_at, known].into_iter().flatten().reduce(f64::max);
            }
        }
        repository.replace(&mut values.repository);
        replace(&self.path, &all.render()).map_err(failed("write", &self.path))
    }
}

impl WholeRun {
    fn values(&self) -> [Option<f64>; OF_A_RUN.len()] {
        let success = if self.success { 1.0 } else { 0.0 };
        let (guests, failed) = (self.guests as f64, self.failed as f64);
        [seconds(self.started), seconds(self.ended), guests, failed, success].map(Some)
    }
}

/// Returns the label of a repository: the same whether it can be reached or not, and from any working directory.
fn label(repository: &Path) -> String {
    let absolute = match place::is_address(repository) {
        true => None,
        false => std::path::absolute(repository).ok(),
    };
    // Without a slash at the end.
    let absolute: Option<PathBuf> = absolute.map(|path| path.components().collect());
    absolute.as_deref().unwrap_or(repository).to_string_lossy().into_owned()
}

fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}

/// Reads the values of earlier runs. A file that is damaged or was not written by vbk is renamed, with a warning.
fn read(path: &Path) -> Result<Values> {
    // Opening a pipe would wait for its writer, and the owner of the directory can put one here at any moment.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path);
    let file = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Values::default()),
        result => result.map_err(failed("read", path))?,
    };
    if !file.metadata().map_err(failed("read", path))?.is_file() {
        return Err(Error::Usage(format!(
            "{} is not a file; metrics go to a file",
            path.display()
        )));
    }
    let mut bytes = Vec::new();
    let read = file.take(MAX_BYTES).read_to_end(&mut bytes);
    read.map_err(failed("read", path))?;
    if let Some(values) = std::str::from_utf8(&bytes).ok().and_then(Values::parse) {
        return Ok(values);
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    std::fs::rename(path, &aside).map_err(failed("replace", path))?;
    tracing::warn!(
        "{} is damaged or was not written by vbk; it was renamed to {}, and a new file is started",
        path.display(),
        Path::new(&aside).display()
    );
    Ok(Values::default())
}

/// Replaces the file as a whole: after a crash at any point either the old or the new file exists. A draft that is left is
/// removed by the next run; the collector reads only `*.prom`. The directory often belongs to the collector, which could
/// put a link or a pipe in the place of the draft: [`files::write_by_draft`] opens neither.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().ok_or(ErrorKind::InvalidInput)?);
    name.push(".tmp");
    let draft = path.with_file_name(name);
    // The collector runs as another user, so the umask must not decide.
    files::write_by_draft(path, &draft, text.as_bytes(), Mode::Public, Synced::File)
}

fn lock(directory: &File) {
    let begun = Instant::now();
    while directory.try_lock().is_err() && begun.elapsed() < LOCK_WAIT {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    Error::io(format!("{doing} the metrics {}", path.display()))
}

#[cfg(test)]
mod tests;
