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
pub mod umount;
pub mod verify;

use serde::Serialize;
use vbk_repo::backup::{Backup, Entry};
use vbk_repo::catalogue::Catalogue;
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
    #[serde(flatten)]
    state: State,
    /// What is noted of it can't be read; `state` is a guess on the safe side.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    state_unreadable: bool,
}

impl<'a> BackupJson<'a> {
    fn new(entry: &'a Entry, states: &States) -> Self {
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
