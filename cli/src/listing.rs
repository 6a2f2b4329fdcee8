//! Forms in which several commands show a backup.

use serde::Serialize;
use vbk_repo::backup::{Backup, Entry};
use vbk_repo::state::{Rehearsed, State, States};

/// JSON of a backup in lists.
#[derive(Debug, Serialize)]
pub struct BackupJson<'a> {
    backup: String,
    id: String,
    guest: &'a str,
    time: jiff::Timestamp,
    disks: Vec<&'a str>,
    size_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    duration_ms: u64,
    /// Backups with higher numbers were made later, whatever their times say.
    sequence: u64,
    /// Reason to doubt the backup's time or that of another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock: Option<String>,
    #[serde(flatten)]
    state: State,
    /// The note about the backup can't be read; `state` is a safe guess.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    state_unreadable: bool,
}

impl<'a> BackupJson<'a> {
    pub fn new(entry: &'a Entry, states: &States, clock: Option<String>) -> Self {
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

/// Describes the state of a backup: `proven 2026-11-21, protected`.
pub fn describe_state(states: &States, backup: &Backup) -> String {
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
    match state.rehearsed {
        Some(Rehearsed { at, proof: Some(_), .. }) => text.push_str(&format!(", proven bootable {}", day(at))),
        Some(Rehearsed { at, proof: None, .. }) => text.push_str(&format!(", did not boot {}", day(at))),
        None => {}
    }
    if let Some(at) = state.unstarted {
        text.push_str(&format!(", could not be rehearsed {}", day(at)));
    }
    if state.protected {
        text.push_str(", protected");
    }
    text
}

pub fn disk_names(entry: &Entry) -> Vec<&str> {
    entry.backup.images.iter().map(|image| image.disk.as_str()).collect()
}
