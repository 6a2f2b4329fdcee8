//! Records the result of a verification for `list`, policies and the next backup: the state of each backup, the blocks
//! that the next backup must store again, and the progress of a rotation.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::backup::Entry;
use crate::catalogue::Catalogue;
use crate::error::{ErrorKind, Result};
use crate::repository::{Change, Manager, Repository};
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
        let damage = &verified.report.damage;
        let damaged: HashSet<&str> = damage.iter().map(|damage| damage.backup.as_str()).collect();
        let bad: Vec<_> = verified.report.bad_blocks.keys().copied().collect();
        if !bad.is_empty() {
            match self.store().condemn(&bad) {
                // The backups are noted as damaged all the same.
                Err(error) if error.kind() == ErrorKind::Denied => tracing::warn!("{error}"),
                condemned => condemned?,
            }
        }
        if !verified.report.sound_again.is_empty() {
            self.store().pardon(&verified.report.sound_again)?;
        }
        self.change(|catalogue, states| {
            let mut notes = Vec::new();
            let mut recorded = Recorded::default();
            for key in existing(catalogue, verified.entries) {
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
            let change = Change {
                notes,
                ..Change::default()
            };
            Ok((change, recorded))
        })
    }
}

/// Returns the names of those `entries` that are still in the repository.
fn existing(catalogue: &Catalogue, entries: &[Entry]) -> Vec<String> {
    let existing: HashSet<String> = catalogue.entries().iter().map(|entry| entry.backup.spec()).collect();
    let keys = entries.iter().map(|entry| entry.backup.spec());
    keys.filter(|key| existing.contains(key)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::BlockSize;
    use crate::id::BlockId;
    use crate::repository::CreateOptions;
    use crate::tests::testing::{backup, mixed_bytes, store_image};
    use crate::verify::Damage;

    /// A repository with backups of two guests, and its writer.
    fn two_guests() -> (tempfile::TempDir, Manager, Vec<Entry>) {
        let directory = tempfile::tempdir().expect("a directory");
        let options = CreateOptions::plain(BlockSize::MIN);
        let repository = Repository::create(&directory.path().join("repo"), &options).expect("creates");
        let writer = repository.manager("test", &mut |_| true).expect("opens");
        let mut entries = Vec::new();
        for (guest, seed) in [("web1", 1), ("db1", 2)] {
            let image = store_image(writer.store(), "vda", &mixed_bytes(seed, 500_000));
            let backup = backup(guest, "2026-11-20T00-00-00Z", vec![image]);
            entries.push(writer.writer().commit(backup).expect("commits").entry);
        }
        (directory, writer, entries)
    }

    fn damage_to(backup: &str) -> VerifyReport {
        VerifyReport {
            damage: vec![Damage {
                backup: backup.to_owned(),
                disk: "vda".to_owned(),
                offset_bytes: 0,
                len_bytes: 1 << 16,
                what: "damaged".to_owned(),
            }],
            bad_blocks: [(BlockId([7; 32]), 1 << 16)].into(),
            ..VerifyReport::default()
        }
    }

    const FIRST: Timestamp = Timestamp::UNIX_EPOCH;

    fn record(writer: &Manager, entries: &[Entry], scope: &Scope, all_disks: bool, report: &VerifyReport) -> Recorded {
        let verified = Verified {
            entries,
            scope,
            all_disks,
            report,
            at: FIRST,
            resets_unreadable: false,
        };
        writer.record_verification(&verified).expect("records")
    }

    #[test]
    fn a_backup_is_proven_or_damaged_and_its_bad_blocks_are_condemned_until_they_are_read_whole() {
        let (_directory, writer, entries) = two_guests();
        let (web, db) = ("web1@2026-11-20T00-00-00Z", "db1@2026-11-20T00-00-00Z");
        record(&writer, &entries, &Scope::All, true, &damage_to(web));
        let states = writer.states().expect("loads");
        assert_eq!(
            (states.noted(web).damaged, states.noted(web).proven),
            (Some(FIRST), None)
        );
        assert_eq!((states.noted(db).damaged, states.noted(db).proven), (None, Some(FIRST)));
        assert_eq!(writer.store().condemned().expect("lists"), [BlockId([7; 32])]);
        let good = VerifyReport {
            sound_again: vec![BlockId([7; 32])],
            ..VerifyReport::default()
        };
        record(&writer, &entries, &Scope::All, true, &good);
        let state = writer.states().expect("loads").noted(web);
        assert_eq!((state.damaged, state.proven), (None, Some(FIRST)));
        assert_eq!(writer.store().condemned().expect("lists"), []);
    }

    #[test]
    fn a_part_of_the_blocks_or_disks_proves_nothing_and_a_forgotten_backup_gets_no_state() {
        let (_directory, writer, entries) = two_guests();
        let good = VerifyReport::default();
        record(&writer, &entries, &Scope::sample(0.5, FIRST), true, &good);
        record(&writer, &entries, &Scope::All, false, &good);
        let states = writer.states().expect("loads");
        assert!(entries.iter().all(|entry| states.of(&entry.backup).proven.is_none()));
        let gone = entries[0].backup.spec();
        writer.amend(std::slice::from_ref(&gone), &[]).expect("forgets");
        record(&writer, &entries, &Scope::All, true, &good);
        let states = writer.states().expect("loads");
        assert_eq!(states.noted(&gone), State::default());
        assert!(states.of(&entries[1].backup).proven.is_some());
    }

    #[test]
    fn the_parts_of_a_rotation_that_were_read_are_noted() {
        let (_directory, writer, entries) = two_guests();
        let rotation = writer.states().expect("loads").rotation;
        let mut scope = Scope::rotation(rotation, 3, FIRST);
        let read = crate::state::PartRead {
            at: FIRST,
            generation: 2,
        };
        scope.set_read(read);
        record(&writer, &entries, &scope, true, &VerifyReport::default());
        let parts = writer.states().expect("loads").rotation.parts;
        assert_eq!(parts, [Some(read), None, None]);
    }

    #[test]
    fn only_a_repair_resets_what_can_not_be_read() {
        let (_directory, writer, entries) = two_guests();
        let note = |name: &str| Note {
            name: name.to_owned(),
            value: Some(b"not JSON".to_vec()),
        };
        let web = entries[0].backup.spec();
        let bad = [note(&format!("backup/{web}")), note("stray")];
        writer.amend(&[], &bad).expect("notes");
        let report = VerifyReport::default();
        let sample = Scope::sample(0.5, FIRST);
        let mut verified = Verified {
            entries: &entries,
            scope: &sample,
            all_disks: true,
            report: &report,
            at: FIRST,
            resets_unreadable: false,
        };
        writer.record_verification(&verified).expect("records");
        assert!(writer.states().expect("loads").is_unread(&web));
        verified.resets_unreadable = true;
        let recorded = writer.record_verification(&verified).expect("records");
        assert_eq!(
            (recorded.protected, recorded.removed),
            (vec![web.clone()], vec!["stray".to_owned()])
        );
        let states = writer.states().expect("loads");
        assert!(!states.is_unread(&web) && states.noted(&web).protected && states.strays().is_empty());
    }
}
