//! Records the result of a verification for `list`, policies and the next backup: the state of each backup, the blocks
//! that the next backup must store again, and the progress of a rotation.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::backup::Entry;
use crate::error::{ErrorKind, Result};
use crate::repository::{Manager, Repository};
use crate::state::{State, note_of, note_of_rotation, note_without};
use crate::store::Note;
use crate::verify::{Scope, VerifyReport};

/// Longest wait for another writer; after that the result is not recorded.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A verification to record.
#[derive(Debug, Clone, Copy)]
pub struct Verified<'a> {
    /// The backups that were verified.
    pub entries: &'a [Entry],
    /// The blocks that were read. Parts of a rotation must be marked as read already.
    pub scope: &'a Scope,
    /// Every disk of every backup in `entries` was read. A backup with unread disks is not proven.
    pub all_disks: bool,
    /// The result.
    pub report: &'a VerifyReport,
    /// Time of the verification.
    pub at: Timestamp,
    /// Replaces states that can't be read, and removes notes that belong to no known backup.
    pub resets_unreadable: bool,
}

/// Changes besides the states that follow from the result.
#[derive(Debug, Default)]
pub struct Recorded {
    /// Backups, as `GUEST@TIME`, whose state could not be read. They are protected now, because they may have been
    /// before.
    pub protected: Vec<String>,
    /// Stored names of notes that could not be read and were removed.
    pub removed: Vec<String>,
}

impl Repository {
    /// Records a verification, as [`Manager::record_verification`] does, unless this process must not write to the
    /// repository. Waits at most 2 seconds for another writer, and then fails with [`ErrorKind::Locked`].
    pub fn record_verification(&self, verified: &Verified<'_>) -> Result<Recorded> {
        let deadline = Instant::now() + TIMEOUT;
        match self.manager("verify", &mut |_| Instant::now() < deadline) {
            Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::ReadOnly) => Ok(Recorded::default()),
            writer => writer?.record_verification(verified),
        }
    }
}

impl Manager {
    /// Records a verification. Backups that were forgotten meanwhile get no state.
    pub fn record_verification(&self, verified: &Verified<'_>) -> Result<Recorded> {
        let states = self.states()?;
        let damage = &verified.report.damage;
        let damaged: HashSet<&str> = damage.iter().map(|damage| damage.backup.as_str()).collect();
        let mut notes = Vec::new();
        let mut recorded = Recorded::default();
        for key in self.existing(verified.entries)? {
            let state = verified.state_of(states.noted(&key), damaged.contains(key.as_str()));
            let is_unread = states.is_unread(&key);
            if state != states.noted(&key) || is_unread && verified.resets_unreadable {
                notes.push(note_of(&key, state));
                recorded.protected.extend(is_unread.then_some(key));
            }
        }
        if verified.resets_unreadable {
            recorded.removed = states.strays().to_vec();
            notes.extend(recorded.removed.iter().map(|stray| note_without(stray)));
        }
        notes.extend(verified.rotation_note());
        let bad: Vec<_> = verified.report.bad_blocks.keys().copied().collect();
        if !bad.is_empty() {
            self.store().condemn(&bad)?;
        }
        if !verified.report.sound_again.is_empty() {
            self.store().pardon(&verified.report.sound_again)?;
        }
        self.amend(&[], &notes)?;
        Ok(recorded)
    }

    /// Returns the names of those `entries` that are still in the repository.
    fn existing(&self, entries: &[Entry]) -> Result<Vec<String>> {
        let catalogue = self.catalogue()?;
        let existing: HashSet<String> = catalogue.entries().iter().map(|entry| entry.backup.spec()).collect();
        let keys = entries.iter().map(|entry| entry.backup.spec());
        Ok(keys.filter(|key| existing.contains(key)).collect())
    }
}

impl Verified<'_> {
    /// Returns the state of a backup after the verification.
    fn state_of(&self, mut state: State, is_damaged: bool) -> State {
        if is_damaged {
            state.damaged = Some(self.at);
        } else if self.all_disks && *self.scope == Scope::All {
            state.damaged = None;
            state.proven = Some(self.at);
        }
        state
    }

    fn rotation_note(&self) -> Option<Note> {
        match self.scope {
            Scope::Parts { rotation, .. } => Some(note_of_rotation(rotation)),
            Scope::All | Scope::Sample { .. } => None,
        }
    }
}
