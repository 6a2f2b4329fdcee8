//! The order in which a run takes all guests, so that a run that is cut short each night reaches every guest in turn.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use vbk_repo::catalogue::Catalogue;

use super::{Done, Job};
use crate::exit::Error;

/// File in the cache directory: the guests that the time limit cut short in the last run, a line each.
const FILE: &str = "cut-short";

/// Memory of the last run. Losing it costs one night's order.
pub struct Queue {
    path: PathBuf,
    cut_short: BTreeSet<String>,
}

impl Queue {
    /// Reads the note of the last run in this directory.
    pub fn at(cache: &Path) -> Self {
        let path = cache.join(FILE);
        let text = fs::read_to_string(&path).unwrap_or_default();
        Self {
            cut_short: text.lines().map(str::to_owned).collect(),
            path,
        }
    }

    /// Sorts the guests: those without a backup come first, then by the age of the latest backup, oldest first. Guests that
    /// were cut short come last: one that needs more than a night would otherwise be the oldest, and take every night from
    /// all others.
    pub fn sort(&self, jobs: &mut [Job], catalogue: &Catalogue) {
        jobs.sort_by_key(|job| {
            let latest = catalogue.latest(&job.guest).map(|entry| entry.backup.order());
            (self.cut_short.contains(job.guest.as_str()), latest)
        });
    }

    /// Notes the guests that the time limit of this run cut short.
    pub fn remember(&self, done: &[Done]) {
        let is_cut = |done: &&Done| done.is_begun && matches!(done.result, Err(Error::TimeOver(_)));
        let text: String = done
            .iter()
            .filter(is_cut)
            .map(|done| format!("{}\n", done.guest))
            .collect();
        if text.is_empty() && self.cut_short.is_empty() {
            return;
        }
        let written = self
            .path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&self.path, text));
        if let Err(error) = written {
            tracing::info!(
                "can't note in {} which guests the time limit cut short: {error}",
                self.path.display()
            );
        }
    }
}
