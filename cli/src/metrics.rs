//! A file for node_exporter's textfile collector, with the result of each guest's last backup and last rehearsal, and with figures
//! of the repository. All commands write into one file, and each adds to the values of earlier runs: a guest keeps its values until
//! it is backed up again, and its last success through every failure.
//!
//! The format is Prometheus' text format 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats). The file is only
//! ever replaced as a whole, so the collector never sees half of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
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

mod repository;

use self::repository::OF_A_REPOSITORY;
pub use self::repository::{RepositoryRun, record};

/// Interval between writes: with 10,000 guests the file has 9 MiB, too much to write after each of them.
const WRITE_EVERY: Duration = Duration::from_secs(15);
/// Size from which a file is not vbk's. It is renamed, like a damaged one.
const MAX_BYTES: u64 = 1 << 30;
/// Time that another vbk may take to write the file.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// Metrics of each guest: name and meaning.
const OF_A_GUEST: [(&str, &str); 9] = [
    (
        "vbk_backup_last_success_timestamp_seconds",
        "End of the last successful backup of the guest, in seconds since 1970.",
    ),
    (
        "vbk_backup_last_run_timestamp_seconds",
        "End of the last attempt to back the guest up, in seconds since 1970.",
    ),
    ("vbk_backup_success", "1 if the last attempt made a backup, 0 if not."),
    ("vbk_backup_duration_seconds", "Duration of the last attempt."),
    (
        "vbk_backup_read_bytes",
        "Bytes that the last successful backup read from the disks.",
    ),
    (
        "vbk_backup_new_bytes",
        "Uncompressed bytes of the blocks that the last successful backup added to the repository.",
    ),
    ("vbk_backup_stored_bytes", "Bytes that those blocks take in the store."),
    (
        "vbk_backup_size_bytes",
        "Size of all disks of the guest at the last successful backup.",
    ),
    (
        "vbk_backup_snapshot_peak_fill_ratio",
        "Peak fill of a snapshot, or of its thin pool, in the last attempt that had one; 1 is full.",
    ),
];

/// Metrics of each guest's rehearsals.
const OF_A_REHEARSAL: [(&str, &str); 4] = [
    (
        "vbk_rehearsal_last_proof_timestamp_seconds",
        "Time of the last rehearsal in which a backup of the guest booted, in seconds since 1970.",
    ),
    (
        "vbk_rehearsal_last_run_timestamp_seconds",
        "Time of the last rehearsal of the guest, in seconds since 1970.",
    ),
    (
        "vbk_rehearsal_success",
        "1 if the guest booted in its last rehearsal, 0 if not.",
    ),
    (
        "vbk_rehearsal_duration_seconds",
        "Duration of the boot in the last rehearsal.",
    ),
];

/// Metrics of a run over all guests.
const OF_A_RUN: [(&str, &str); 5] = [
    (
        "vbk_run_start_timestamp_seconds",
        "Start of the last run over all guests, in seconds since 1970.",
    ),
    (
        "vbk_run_end_timestamp_seconds",
        "End of the last run over all guests, in seconds since 1970.",
    ),
    (
        "vbk_run_guests",
        "Guests that the last run over all guests had to back up.",
    ),
    (
        "vbk_run_failed_guests",
        "Guests that the last run over all guests could not back up.",
    ),
    (
        "vbk_run_success",
        "1 if the last run over all guests backed all of them up without a warning, 0 if not.",
    ),
];

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

/// Content of the file.
#[derive(Debug, Clone, Default, PartialEq)]
struct Values {
    guests: BTreeMap<String, [Option<f64>; OF_A_GUEST.len()]>,
    rehearsals: BTreeMap<String, [Option<f64>; OF_A_REHEARSAL.len()]>,
    run: [Option<f64>; OF_A_RUN.len()],
    repository: [Option<f64>; OF_A_REPOSITORY.len()],
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
    new: BTreeMap<String, GuestRun>,
    rehearsed: BTreeMap<String, RehearsalRun>,
    whole: Option<WholeRun>,
    repository: RepositoryRun,
    /// Facts about the repository, if they were read.
    facts: Option<Facts>,
    written: Instant,
}

impl Metrics {
    /// Opens the file, which may exist. Fails if it can't be written, so that this is known before the run.
    pub fn at(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(failed("write", path))?;
        let metrics = Self {
            path,
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
        let mut values = read(&self.path)?;
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
        replace(&self.path, &values.render()).map_err(failed("write", &self.path))
    }
}

impl Values {
    fn add(&mut self, guest: &str, run: &GuestRun) {
        let [success_at, run_at, success, duration, read, new, stored, size, peak] =
            self.guests.entry(guest.to_owned()).or_default();
        let ended = Some(seconds(run.ended));
        *run_at = ended;
        *success = Some(if run.made.is_some() { 1.0 } else { 0.0 });
        *duration = Some(run.duration.as_secs_f64());
        if run.snapshot_peak_fill.is_some_and(f64::is_finite) || run.made.is_some() {
            *peak = run.snapshot_peak_fill.filter(|fill| fill.is_finite());
        }
        if let Some(made) = run.made {
            *success_at = ended;
            for (value, bytes) in [
                (read, made.read_bytes),
                (new, made.new_bytes),
                (stored, made.stored_bytes),
                (size, made.size_bytes),
            ] {
                *value = Some(bytes as f64);
            }
        }
    }

    fn add_rehearsal(&mut self, guest: &str, run: &RehearsalRun) {
        let [proof_at, run_at, success, duration] = self.rehearsals.entry(guest.to_owned()).or_default();
        let at = Some(seconds(run.at));
        *run_at = at;
        *success = Some(if run.is_proven { 1.0 } else { 0.0 });
        *duration = Some(run.duration_ms as f64 / 1000.0);
        if run.is_proven {
            *proof_at = at;
        }
    }

    fn render(&self) -> String {
        let mut text = String::new();
        let head = |text: &mut String, (name, help): (&str, &str)| {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
        };
        for (index, metric) in OF_A_GUEST.into_iter().enumerate() {
            head(&mut text, metric);
            for (guest, values) in &self.guests {
                if let Some(value) = values[index] {
                    let _ = writeln!(text, "{}{{guest=\"{}\"}} {value}", metric.0, escape(guest));
                }
            }
        }
        for (index, metric) in OF_A_REHEARSAL.into_iter().enumerate() {
            let with_value = self
                .rehearsals
                .iter()
                .filter_map(|(guest, values)| Some((guest, values[index]?)));
            for (number, (guest, value)) in with_value.enumerate() {
                if number == 0 {
                    head(&mut text, metric);
                }
                let _ = writeln!(text, "{}{{guest=\"{}\"}} {value}", metric.0, escape(guest));
            }
        }
        let of_run = OF_A_RUN.into_iter().zip(self.run);
        for (metric, value) in of_run.chain(OF_A_REPOSITORY.into_iter().zip(self.repository)) {
            if let Some(value) = value {
                head(&mut text, metric);
                let _ = writeln!(text, "{} {value}", metric.0);
            }
        }
        text
    }

    /// Parses the output of [`Values::render`]; `None` if any line is different. A metric that only a later version of vbk
    /// knows is left out; that version adds it again.
    fn parse(text: &str) -> Option<Self> {
        let mut values = Self::default();
        if !text.is_empty() && !text.ends_with('\n') {
            return None;
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name_and_label, value) = line.rsplit_once(' ')?;
            let value: f64 = value.parse().ok().filter(|value: &f64| value.is_finite())?;
            let name = name_and_label.split('{').next().unwrap_or_default();
            let mut known = OF_A_RUN
                .iter()
                .chain(&OF_A_GUEST)
                .chain(&OF_A_REHEARSAL)
                .chain(&OF_A_REPOSITORY);
            if name.starts_with("vbk_") && !known.any(|(known, _)| *known == name) {
                continue;
            }
            let slot = match name_and_label.split_once('{') {
                None => match OF_A_RUN.iter().position(|(name, _)| *name == name_and_label) {
                    Some(index) => &mut values.run[index],
                    None => {
                        let index = OF_A_REPOSITORY.iter().position(|(name, _)| *name == name_and_label)?;
                        &mut values.repository[index]
                    }
                },
                Some((name, label)) => {
                    let guest = unescape(label.strip_prefix("guest=\"")?.strip_suffix("\"}")?)?;
                    let of_rehearsal = OF_A_REHEARSAL.iter().position(|(known, _)| *known == name);
                    match of_rehearsal {
                        Some(index) => &mut values.rehearsals.entry(guest).or_default()[index],
                        None => {
                            let index = OF_A_GUEST.iter().position(|(known, _)| *known == name)?;
                            &mut values.guests.entry(guest).or_default()[index]
                        }
                    }
                }
            };
            if slot.replace(value).is_some() {
                return None;
            }
        }
        Some(values)
    }
}

impl WholeRun {
    fn values(&self) -> [Option<f64>; OF_A_RUN.len()] {
        let success = if self.success { 1.0 } else { 0.0 };
        let (guests, failed) = (self.guests as f64, self.failed as f64);
        [seconds(self.started), seconds(self.ended), guests, failed, success].map(Some)
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn unescape(label: &str) -> Option<String> {
    let mut text = String::new();
    let mut letters = label.chars();
    while let Some(letter) = letters.next() {
        text.push(match letter {
            '\\' => match letters.next()? {
                'n' => '\n',
                letter @ ('\\' | '"') => letter,
                _ => return None,
            },
            '"' => return None,
            letter => letter,
        });
    }
    Some(text)
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
