//! Metrics of the repository itself, which verifications, prunes and `vbk status` write into the file of the backups: no series
//! may be in two files.

use std::path::Path;

use jiff::Timestamp;
use vbk_repo::file_system::file_system;
use vbk_repo::repository::Repository;

use super::{Metrics, seconds};
use crate::context::Context;
use crate::exit::Result;
use crate::facts::Facts;

/// Metrics of the repository: name and meaning.
pub(super) const OF_A_REPOSITORY: [(&str, &str); 12] = [
    (
        "vbk_repository_size_bytes",
        "Bytes that the repository takes on its file system.",
    ),
    (
        "vbk_repository_free_bytes",
        "Bytes that are free on the repository's file system.",
    ),
    (
        "vbk_repository_stored_bytes",
        "Bytes of the blocks that backups need, at the last prune or its dry run.",
    ),
    (
        "vbk_repository_unreferenced_bytes",
        "Bytes of the blocks that no backup needs, after the last prune or at its dry run.",
    ),
    ("vbk_repository_backups", "Backups in the repository."),
    (
        "vbk_repository_damaged_backups",
        "Backups that a verification found damaged.",
    ),
    (
        "vbk_repository_unproven_backups",
        "Backups that were never verified as a whole.",
    ),
    (
        "vbk_repository_oldest_proof_timestamp_seconds",
        "Time of the least recent proof of a backup that was verified, in seconds since 1970.",
    ),
    (
        "vbk_repository_last_backup_timestamp_seconds",
        "End of the last backup of any guest, in seconds since 1970.",
    ),
    (
        "vbk_verify_last_run_timestamp_seconds",
        "Start of the last verification that came to its end, in seconds since 1970.",
    ),
    (
        "vbk_verify_damage",
        "Damaged places, records and tables that the last verification found.",
    ),
    (
        "vbk_prune_last_run_timestamp_seconds",
        "End of the last prune, in seconds since 1970.",
    ),
];

/// Values of [`OF_A_REPOSITORY`] that a run knows; those that it does not know stay as they are.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RepositoryRun {
    pub(super) values: [Option<f64>; OF_A_REPOSITORY.len()],
}

impl RepositoryRun {
    /// Adds what a verification found.
    pub fn verified(&mut self, at: Timestamp, damage: usize) {
        self.values[9] = Some(seconds(at));
        self.values[10] = Some(damage as f64);
    }

    /// Adds what a prune left.
    pub fn left(&mut self, stored_bytes: u64, unreferenced_bytes: u64) {
        self.values[2] = Some(stored_bytes as f64);
        self.values[3] = Some(unreferenced_bytes as f64);
    }

    /// Adds the end of a prune.
    pub fn pruned(&mut self, at: Timestamp) {
        self.values[11] = Some(seconds(at));
    }

    /// Adds what the repository says of itself.
    pub(super) fn add_facts(&mut self, facts: &Facts) {
        self.values[4] = Some(facts.backups as f64);
        self.values[5] = Some(facts.damaged_backups as f64);
        self.values[6] = Some(facts.unproven_backups as f64);
        self.values[7] = facts.oldest_proof.map(seconds);
        self.values[8] = facts.last_backup_at.map(seconds);
    }

    /// Adds the sizes, as far as they can be told.
    pub(super) fn add_sizes(&mut self, repository: &Repository) {
        self.values[0] = repository.disk_usage().ok().map(|usage| usage.total_bytes as f64);
        let path = repository.local_path().ok();
        self.values[1] = path
            .and_then(|path| file_system(path).ok())
            .map(|found| found.free_bytes as f64);
    }

    /// Puts the values of this run in the place of earlier ones.
    pub(super) fn replace(&self, earlier: &mut [Option<f64>; OF_A_REPOSITORY.len()]) {
        for (earlier, new) in earlier.iter_mut().zip(self.values) {
            *earlier = new.or(*earlier);
        }
    }
}

/// Adds a run to the metrics: to the given file, or else to that of the configuration if this is its repository. Returns false,
/// after a warning, if that was not possible.
pub fn record(
    context: &Context<'_>,
    given: Option<&Path>,
    repository: &Repository,
    run: impl FnOnce(&mut RepositoryRun),
) -> bool {
    let write = || -> Result<()> {
        let path = match given {
            Some(path) => Some(path),
            None => Some(context.config()?)
                .filter(|config| config.is_of(repository.path()))
                .and_then(|config| config.metrics.as_deref()),
        };
        let Some(path) = path else {
            return Ok(());
        };
        let mut metrics = Metrics::at(path, repository.path())?;
        run(&mut metrics.repository);
        metrics.note(repository);
        metrics.finish(|_| true)
    };
    let written = write();
    if let Err(error) = &written {
        tracing::warn!("the metrics were not written: {}", error.text());
    }
    written.is_ok()
}
