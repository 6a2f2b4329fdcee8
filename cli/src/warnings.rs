//! Warnings about the content of a repository, given by several commands.

use vbk_repo::backup::{Backup, Entry};
use vbk_repo::catalogue::{BackupSpec, Catalogue, ClockDoubt};
use vbk_repo::state::States;

/// Warns of records and notes that were changed without the key.
pub fn warn_of_foreign_changes(catalogue: &Catalogue) {
    for error in catalogue.damaged() {
        if matches!(error, vbk_repo::Error::ForeignChanges { .. }) {
            tracing::warn!("{error}");
        }
    }
}

/// Returns the reason to doubt the time of a backup or that of another one.
pub fn clock_doubt(catalogue: &Catalogue, backup: &Backup) -> Option<ClockDoubt> {
    catalogue.doubt(backup, jiff::Timestamp::now())
}

/// Warns if `latest`, which names the backup that was made last, is not the one with the newest time.
pub fn warn_of_clock(catalogue: &Catalogue, spec: &BackupSpec, entry: &Entry) {
    if spec.is_latest()
        && let Some(doubt) = clock_doubt(catalogue, &entry.backup)
    {
        tracing::warn!("{spec} is {}, {doubt}", entry.backup.spec());
    }
}

/// Warns of the latest backup of each guest in the same way, for commands that show all guests.
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

/// Describes each unreadable note, with the next step.
pub fn unreadable_notes(states: &States) -> Vec<String> {
    let of_backups = states.unread().map(|backup| {
        format!(
            "the state of backup {backup} can't be read, so the backup may be protected; `vbk protect {backup}` or `vbk \
             unprotect {backup}` writes a new state"
        )
    });
    let strays = states
        .strays()
        .iter()
        .map(|name| format!("note {name} can't be read, and may protect a backup; `vbk repair` removes the note"));
    of_backups.chain(strays).collect()
}

/// Warns that the state of a backup could not be read and was replaced by a guess.
pub fn warn_of_guess(backup: &str) {
    tracing::warn!(
        "the state of backup {backup} could not be read, so the backup is protected now; `vbk unprotect {backup}` undoes that"
    );
}
