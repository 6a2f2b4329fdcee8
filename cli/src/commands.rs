//! The commands: each checks its arguments, lets the libraries work, and prints what came of it.

pub mod backup;
pub mod config;
pub mod diff;
pub mod forget;
pub mod guests;
pub mod init;
pub mod key;
pub mod limit;
pub mod list;
pub mod mount;
pub mod mounts;
pub mod prune;
pub mod repair;
pub mod restore;
pub mod show;
pub mod snapshots;
pub mod stats;
pub mod status;
pub mod trust;
pub mod umount;
pub mod verify;

use serde::Serialize;
use vbk_repo::backup::{Backup, Entry};
use vbk_repo::catalogue::{BackupSpec, Catalogue};
use vbk_repo::state::{State, States};

/// Warns of records and notes that were changed without the key.
fn warn_of_foreign_changes(catalogue: &Catalogue) {
    for error in catalogue.damaged() {
        if matches!(error, vbk_repo::Error::ForeignChanges { .. }) {
            tracing::warn!("{error}");
        }
    }
}

/// What is shown of a backup in lists.
#[derive(Debug, Serialize)]
struct BackupJson<'a> {
    backup: String,
    id: String,
    guest: &'a str,
    time: jiff::Timestamp,
    disks: Vec<&'a str>,
    size_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    duration_ms: u64,
    /// Backups of higher numbers were made later, whatever their times say.
    sequence: u64,
    /// Why the time can't be right, or not that of another backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock: Option<String>,
    #[serde(flatten)]
    state: State,
    /// What is noted of it can't be read; `state` is a guess on the safe side.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    state_unreadable: bool,
}

impl<'a> BackupJson<'a> {
    fn new(entry: &'a Entry, states: &States, clock: Option<String>) -> Self {
        let backup = &entry.backup;
        Self {
            backup: backup.spec(),
            id: entry.id.to_string(),
            guest: backup.guest.as_str(),
            time: backup.time.timestamp(),
            disks: disk_names(entry),
            size_bytes: backup.size_bytes(),
            new_bytes: backup.new_bytes(),
            stored_bytes: backup.stored_bytes(),
            duration_ms: backup.duration_ms,
            sequence: backup.sequence,
            clock,
            state: states.of(backup),
            state_unreadable: states.is_unread(&backup.spec()),
        }
    }
}

/// `proven 2026-11-21, protected`.
fn describe_state(states: &States, backup: &Backup) -> String {
    if states.is_unread(&backup.spec()) {
        return "unreadable, may be protected".to_owned();
    }
    let state = states.of(backup);
    let day = |at: jiff::Timestamp| at.strftime("%Y-%m-%d").to_string();
    let mut text = match (state.damaged, state.proven) {
        (Some(found), _) => format!("damaged, found {}", day(found)),
        (None, Some(proven)) => format!("proven {}", day(proven)),
        (None, None) => "not proven yet".to_owned(),
    };
    if state.protected {
        text.push_str(", protected");
    }
    text
}

/// Why the time of a backup can't be right, or not that of another.
fn clock_doubt(catalogue: &Catalogue, backup: &Backup) -> Option<String> {
    let doubt = catalogue.doubt(backup, jiff::Timestamp::now())?;
    Some(doubt.to_string())
}

/// Warns where `latest` was named and times don't say the same: it is what was made last.
fn warn_of_clock(catalogue: &Catalogue, spec: &BackupSpec, entry: &Entry) {
    if spec.is_latest()
        && let Some(doubt) = clock_doubt(catalogue, &entry.backup)
    {
        tracing::warn!("{spec} is {}, {doubt}", entry.backup.spec());
    }
}

/// The same for the latest backup of each guest, where all are shown.
fn warn_of_clocks(catalogue: &Catalogue) {
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
fn unreadable_notes(states: &States) -> Vec<String> {
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

fn disk_names(entry: &Entry) -> Vec<&str> {
    entry.backup.images.iter().map(|image| image.disk.as_str()).collect()
}
