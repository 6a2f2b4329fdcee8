//! What an administrator asks of a repository in the morning: its backups, when they were verified, and what is wrong. For `vbk
//! status`, metrics and the message about a night.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use vbk_repo::Result;
use vbk_repo::backup::Backup;
use vbk_repo::repository::View;

/// Backups of one night end at about the same time, in another order than they began.
const SAME_TIME: SignedDuration = SignedDuration::from_secs(60);

/// Facts about the backups that a view shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Facts {
    /// Number of backups.
    pub backups: u64,
    /// Number of guests that have backups.
    pub guests: u64,
    /// The newest backup by its time, as `GUEST@TIME`.
    pub last_backup: Option<String>,
    /// Its end.
    pub last_backup_at: Option<Timestamp>,
    /// The backup that was made last, if its time is more than a minute older: an import has the time of its image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made_last: Option<String>,
    /// Time of the last verification that was recorded: of all blocks of some backup, or of a part of all blocks.
    pub last_verify: Option<Timestamp>,
    /// The least recent proof of any backup that was proven.
    pub oldest_proof: Option<Timestamp>,
    /// Backups that were not read as a whole since they were made.
    pub unproven_backups: u64,
    /// Backups that a verification found damaged, and records that can't be read.
    pub damaged_backups: u64,
    /// End of the newest backup of each guest.
    #[serde(skip)]
    pub last_success: BTreeMap<String, Timestamp>,
}

impl Facts {
    /// Reads them.
    pub fn of(view: &View) -> Result<Self> {
        let (catalogue, states) = (view.catalogue()?, view.states()?);
        let mut facts = Self {
            backups: catalogue.entries().len() as u64,
            guests: catalogue.guests().len() as u64,
            last_verify: states.rotation.parts.iter().flatten().map(|part| part.at).max(),
            damaged_backups: catalogue.damaged().len() as u64,
            ..Self::default()
        };
        let last = catalogue.entries().iter().max_by_key(|entry| entry.backup.order());
        for entry in catalogue.entries() {
            let backup = &entry.backup;
            let state = states.of(backup);
            facts.damaged_backups += u64::from(state.damaged.is_some());
            facts.last_verify = facts.last_verify.max(state.damaged).max(state.proven);
            match state.proven {
                None => facts.unproven_backups += 1,
                Some(proven) => {
                    let oldest = facts.oldest_proof.map_or(proven, |oldest| oldest.min(proven));
                    facts.oldest_proof = Some(oldest);
                }
            }
            let end = end_of(backup);
            let of_guest = facts.last_success.entry(backup.guest.to_string()).or_insert(end);
            *of_guest = end.max(*of_guest);
            if facts.last_backup_at.is_none_or(|last| last <= end) {
                (facts.last_backup, facts.last_backup_at) = (Some(backup.spec()), Some(end));
            }
        }
        let newest = facts.last_backup_at;
        let last =
            last.filter(|last| newest.is_some_and(|newest| newest.duration_since(end_of(&last.backup)) > SAME_TIME));
        facts.made_last = last.map(|entry| entry.backup.spec());
        Ok(facts)
    }
}

fn end_of(backup: &Backup) -> Timestamp {
    let begin = backup.time.timestamp();
    begin.checked_add(backup.duration()).unwrap_or(begin)
}
