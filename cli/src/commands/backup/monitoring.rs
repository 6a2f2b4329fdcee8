//! Reports of a run beside the terminal: metrics for Prometheus, the administrator's on-failure command, and the notices of the
//! whole run.
//!
//! A run that ends before its first guest is reported like one in which every guest fails: at night nobody watches the
//! terminal.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use vbk::backup::BackupSummary;
use vbk::guest::discover::GuestError;
use vbk::host::program::{ProgramError, Programs};
use vbk_repo::ErrorKind;
use vbk_repo::name::GuestName;
use vbk_repo::repository::Repository;

use super::Done;
use super::notices::{self, Night};
use crate::commands::backup::nightly;
use crate::config::Notices;
use crate::exit::{Error, Result};
use crate::machine::host;
use crate::metrics::{GuestRun, Made, Metrics, WholeRun};

/// Stands for all guests where the name of one is expected. No guest can have this name.
const ALL: &str = "--all";

/// Sends the reports of one run.
pub struct Monitoring<'a> {
    programs: &'a Programs,
    notices: Option<&'a Notices>,
    metrics: Mutex<Option<Metrics>>,
    started: Timestamp,
    /// Number of guests that a run over all guests has to back up, once it is known.
    pub guests: usize,
    /// Number of warnings about the reports themselves.
    pub warnings: u64,
}

impl<'a> Monitoring<'a> {
    /// Opens the metrics, a file and the repository, at the start of a run. Metrics that can't be written are only a warning.
    pub fn new(
        programs: &'a Programs,
        metrics: Option<(&Path, &Path)>,
        notices: Option<&'a Notices>,
        started: Timestamp,
    ) -> Self {
        let mut monitoring = Self {
            programs,
            notices,
            metrics: Mutex::default(),
            started,
            guests: 0,
            warnings: 0,
        };
        match metrics
            .map(|(file, repository)| Metrics::at(file, repository))
            .transpose()
        {
            Ok(metrics) => monitoring.metrics = Mutex::new(metrics),
            Err(error) => monitoring.warn(&format!("this run writes no metrics: {}", error.text())),
        }
        monitoring
    }

    /// Runs the on-failure command for a guest, if there is one.
    pub fn failed(&self, guest: &str, error: &Error) -> std::result::Result<(), ProgramError> {
        match self.notices.and_then(|notices| notices.on_failure.as_deref()) {
            Some(command) => nightly::on_failure(self.programs, command, guest, error, &host()),
            None => Ok(()),
        }
    }

    /// Adds the result for a guest to the metrics. A backup that a person interrupted is left out: it would look like a
    /// failure.
    pub fn record(
        &self,
        guest: &GuestName,
        result: std::result::Result<&BackupSummary, &Error>,
        took: Duration,
        snapshot_peak_fill: Option<f64>,
    ) -> Result<()> {
        let mut metrics = self.metrics.lock();
        let Some(metrics) = metrics.as_mut() else {
            return Ok(());
        };
        let made = match result {
            Ok(made) => Some(made),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(_) => None,
        };
        let run = GuestRun {
            ended: Timestamp::now(),
            duration: took,
            snapshot_peak_fill,
            made: made.map(|made| Made {
                read_bytes: made.counts.read_bytes,
                new_bytes: made.counts.new_bytes,
                stored_bytes: made.counts.stored_bytes,
                size_bytes: made.entry.backup.size_bytes(),
            }),
        };
        metrics.record(guest.as_str(), run)
    }

    /// Reports a run that ended before its first guest, for `guest` or for all.
    pub fn nothing_was_done(
        mut self,
        guest: Option<&GuestName>,
        error: &Error,
        repository: Option<&Repository>,
        took: Duration,
    ) {
        if guest.is_some() && is_slip(error) {
            return;
        }
        if error.kind() != ErrorKind::Interrupted
            && let Err(why) = self.failed(guest.map_or(ALL, GuestName::as_str), error)
        {
            self.warn(&format!("the on-failure command: {why}"));
        }
        if guest.is_none() {
            self.tell_of(&[], Some(error), 0, repository, took);
        }
        self.note(repository);
        match guest {
            None => self.record_whole(self.guests, false),
            // Written below.
            Some(guest) => drop(self.record(guest, Err(error), took, None)),
        }
        self.finish(|_| true);
    }

    /// Reports all guests that the time limit left out in one call, instead of one for each.
    pub fn not_begun(&mut self, done: &[Done]) {
        let left_out = |done: &&Done| !done.is_begun && matches!(done.result, Err(Error::TimeOver(_)));
        let left_out: Vec<&str> = done.iter().filter(left_out).map(|done| done.guest.as_str()).collect();
        if left_out.is_empty() {
            return;
        }
        let error = Error::TimeOver(format!(
            "the time limit was reached; not begun: {}",
            left_out.join(", ")
        ));
        if let Err(why) = self.failed(ALL, &error) {
            self.warn(&format!("the on-failure command: {why}"));
        }
    }

    /// Adds the result of a run over all guests to the metrics.
    pub fn record_whole(&self, failed: usize, success: bool) {
        let mut metrics = self.metrics.lock();
        if let Some(metrics) = metrics.as_mut() {
            metrics.record_whole(WholeRun {
                started: self.started,
                ended: Timestamp::now(),
                guests: self.guests,
                failed,
                success,
            });
        }
    }

    /// Tells of a run over all guests, in the ways that the configuration names. A person who interrupted it knows.
    pub fn tell(&mut self, done: &[Done], warnings: u64, repository: Option<&Repository>, took: Duration) {
        let warnings = warnings + self.warnings + done.iter().map(|done| done.warnings).sum::<u64>();
        self.tell_of(done, None, warnings, repository, took);
    }

    fn tell_of(
        &mut self,
        done: &[Done],
        error: Option<&Error>,
        warnings: u64,
        repository: Option<&Repository>,
        took: Duration,
    ) {
        let Some(notices) = self.notices else {
            return;
        };
        let failed = done.iter().filter_map(|done| done.result.as_ref().err());
        if failed.chain(error).any(|error| error.kind() == ErrorKind::Interrupted) {
            return;
        }
        let night = Night {
            host: &host(),
            started: self.started,
            took,
            done,
            error,
            warnings,
            repository,
        };
        for why in notices::tell(self.programs, notices, &night) {
            self.warn(&why);
        }
    }

    /// Adds figures of the repository to the metrics.
    pub fn note(&self, repository: Option<&Repository>) {
        if let (Some(metrics), Some(repository)) = (self.metrics.lock().as_mut(), repository) {
            metrics.note(repository);
        }
    }

    /// Writes the metrics, without guests that `is_known` no longer knows. Returns the number of warnings.
    pub fn finish(mut self, is_known: impl Fn(&str) -> bool) -> u64 {
        let metrics = std::mem::take(&mut self.metrics);
        let metrics = metrics.into_inner();
        if let Some(Err(error)) = metrics.map(|metrics| metrics.finish(is_known)) {
            self.warn(&error.text());
        }
        self.warnings
    }

    fn warn(&mut self, text: &str) {
        tracing::warn!("{text}");
        self.warnings += 1;
    }
}

/// Returns whether an error is a mistake on the command line. An unknown guest must not get metrics, which would raise an
/// alarm for ever.
fn is_slip(error: &Error) -> bool {
    matches!(
        error,
        Error::Usage(_) | Error::Engine(vbk::Error::Guest(GuestError::Unknown { .. }))
    )
}
