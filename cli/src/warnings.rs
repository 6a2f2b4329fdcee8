//! Warnings that several commands give about what a repository holds.

use vbk_repo::backup::{Backup, Entry};
use vbk_repo::catalogue::{BackupSpec, Catalogue};
use vbk_repo::state::States;

/// Warns of records and notes that were changed without the key.
pub fn warn_of_foreign_changes(catalogue: &Catalogue) {
    for error in catalogue.damaged() {
        if matches!(error, vbk_repo::Error::ForeignChanges { .. }) {
            tracing::warn!("{error}");
        }
    }
}

/// Why the time of a backup can't be right, or not that of another.
pub fn clock_doubt(catalogue: &Catalogue, backup: &Backup) -> Option<String> {
    let doubt = catalogue.doubt(backup, jiff::Timestamp::now())?;
    Some(doubt.to_string())
}

/// Warns where `latest` was named and times don't say the same: it is what was made last.
pub fn warn_of_clock(catalogue: &Catalogue, spec: &BackupSpec, entry: &Entry) {
    if spec.is_latest()
        && let Some(doubt) = clock_doubt(catalogue, &entry.backup)
    {
        tracing::warn!("{spec} is {}, {doubt}", entry.backup.spec());
    }
}

/// The same for the latest backup of each guest, where all are shown.
pub fn warn_of_clocks(catalogue: &Catalogue) {
    for entry in catalogue
        .guests()
        .into_iter()
        .filter_map(|guest| catalogue.latest(guest))
    {
        if let Some(doubt) = clock_doubt(catalogue, &entry.backup) {
            let backup = &entry.backup;
            tracing::warn!("{}@latest is {}, {doubt}", backup.guest, backup.spec());
        }
    }
}

/// What is wrong with notes, a line for each, and what to do about it.
pub fn unreadable_notes(states: &States) -> Vec<String> {
    let of_backups = states.unread().map(|backup| {
        format!(
            "the state of backup {backup} can't be read; it may be protected: `vbk protect {backup}` or `vbk unprotect \
             {backup}` sets it anew"
        )
    });
    let strays = states.strays().iter().map(|name| {
        format!("note {name} can't be read; it may say that a backup is protected: `vbk repair` removes the note")
    });
    of_backups.chain(strays).collect()
}

/// Warns that the state of a backup could not be read and was replaced by a guess.
pub fn warn_of_guess(backup: &str) {
    tracing::warn!(
        "the state of backup {backup} could not be read, so it is protected now; `vbk unprotect {backup}` takes that away"
    );
}
