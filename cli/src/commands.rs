//! The commands: each checks its arguments, lets the libraries work, and prints what came of it.

pub mod backup;
pub mod diff;
pub mod forget;
pub mod init;
pub mod key;
pub mod list;
pub mod mount;
pub mod mounts;
pub mod prune;
pub mod repair;
pub mod restore;
pub mod show;
pub mod stats;
pub mod status;
pub mod umount;
pub mod verify;

use serde::Serialize;
use vbk_repo::backup::Entry;
use vbk_repo::state::State;

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
}

impl<'a> BackupJson<'a> {
    fn new(entry: &'a Entry, state: State) -> Self {
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
            state,
        }
    }
}

/// `proven 2026-11-21, protected`.
fn describe_state(state: &State) -> String {
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

fn disk_names(entry: &Entry) -> Vec<&str> {
    entry.backup.images.iter().map(|image| image.disk.as_str()).collect()
}
