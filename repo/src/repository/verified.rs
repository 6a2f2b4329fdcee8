//! Records the result of a verification for `list`, policies and the next backup: the state of each backup, the blocks
//! that the next backup must store again, and the progress of a rotation.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::backup::Entry;
use crate::catalogue::Catalogue;
use crate::error::{ErrorKind, Result};
use crate::id::BlockId;
use crate::repository::{Change, Manager, Repository};
use crate::state::{Rotation, State, note_of, note_of_rotation, note_without};
use crate::store::Note;
use crate::verify::{Scope, VerifyReport};

mod late;

/// Longest wait for another writer; after that the result is kept for the next one.
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

/// A result as it is recorded, and kept until then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Finding {
    /// Time of the verification.
    at: Timestamp,
    /// The backups that were verified, as `GUEST@TIME`.
    backups: Vec<String>,
    /// Those of them that are damaged.
    damaged: Vec<String>,
    /// All blocks of all disks were read.
    is_whole: bool,
    /// The rotation, with the parts that were read.
    rotation: Option<Rotation>,
    bad_blocks: Vec<BlockId>,
    sound_again: Vec<BlockId>,
}

impl Finding {
    fn of(verified: &Verified<'_>) -> Self {
        let report = verified.report;
        let damaged: HashSet<&str> = report.damage.iter().map(|damage| damage.backup.as_str()).collect();
        Self {
            at: verified.at,
            backups: verified.entries.iter().map(|entry| entry.backup.spec()).collect(),
            damaged: damaged.into_iter().map(str::to_owned).collect(),
            is_whole: verified.all_disks && *verified.scope == Scope::All,
            rotation: match verified.scope {
                Scope::Parts { rotation, .. } => Some(rotation.clone()),
                Scope::All | Scope::Sample { .. } => None,
            },
            bad_blocks: report.bad_blocks.keys().copied().collect(),
            sound_again: report.sound_again.clone(),
        }
    }

    /// Returns the state of a backup after the verification. What is known from a later time stays.
    fn state_of(&self, mut state: State, is_damaged: bool) -> State {
        if state.damaged.max(state.proven) > Some(self.at) {
            return state;
        }
        if is_damaged {
            state.damaged = Some(self.at);
        } else if self.is_whole {
            state.damaged = None;
            state.proven = Some(self.at);
        }
        state
    }
}

/// Place of a result that was to be recorded.
#[derive(Debug)]
pub enum Kept {
    /// It is recorded.
    Recorded(Recorded),
    /// It is kept until this process, or any other, has written; the text describes the process.
    ForLater(String),
}

impl Repository {
    /// Records a verification, as [`Manager::record_verification`] does, unless this process must not write to the
    /// repository. Waits at most 2 seconds for another writer; then the result is kept for the next writer, in a directory
    /// of this machine. Elsewhere this waits until it is `cancel`led, and then fails with [`ErrorKind::Locked`].
    pub fn record_verification(&self, verified: &Verified<'_>, cancel: &AtomicBool) -> Result<Kept> {
        let deadline = Instant::now() + TIMEOUT;
        let may_keep = self.local_path().is_ok();
        let mut writes = String::new();
        let manager = self.manager("verify", &mut |holder| {
            holder.clone_into(&mut writes);
            !cancel.load(Ordering::SeqCst) && (!may_keep || Instant::now() < deadline)
        });
        match manager {
            Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::ReadOnly) => {
                Ok(Kept::Recorded(Recorded::default()))
            }
            Err(error) if error.kind() == ErrorKind::Locked && may_keep => {
                match late::keep(self.local_path()?, self.keys(), &Finding::of(verified)) {
                    Ok(()) => Ok(Kept::ForLater(writes)),
                    Err(unkept) => {
                        tracing::debug!(error = %unkept, "can't keep the result");
                        Err(error)
                    }
                }
            }
            manager => manager?.record_verification(verified).map(Kept::Recorded),
        }
    }

    /// Returns whether a verification left a result while another process had the repository to itself.
    pub fn has_late_results(&self) -> bool {
        self.local_path().is_ok_and(|path| !late::names(path).is_empty())
    }

    /// Records the results that verifications left. Those that can't be recorded stay for the next writer.
    pub fn record_late_results(&self, manager: &Manager) {
        let Ok(path) = self.local_path() else { return };
        for name in late::names(path) {
            let recorded = match late::read(path, self.keys(), &name) {
                Ok(Some(finding)) => manager.record(&finding, false).map(drop),
                Ok(None) => {
                    tracing::warn!(
                        "the result of a verification in {}/verified/{name} can't be read and is removed; verify again",
                        path.display()
                    );
                    Ok(())
                }
                Err(error) => Err(error),
            };
            if let Err(error) = recorded.and_then(|()| late::remove(path, &name)) {
                tracing::warn!("the result of a verification is not recorded yet: {error}");
                return;
            }
        }
    }
}

impl Manager {
    /// Records a verification. Backups that were forgotten meanwhile get no state.
    pub fn record_verification(&self, verified: &Verified<'_>) -> Result<Recorded> {
        self.record(&Finding::of(verified), verified.resets_unreadable)
    }

    fn record(&self, finding: &Finding, resets_unreadable: bool) -> Result<Recorded> {
        let damaged: HashSet<&str> = finding.damaged.iter().map(String::as_str).collect();
        if !finding.bad_blocks.is_empty() {
            match self.store().condemn(&finding.bad_blocks) {
                // The backups are noted as damaged all the same.
                Err(error) if error.kind() == ErrorKind::Denied => tracing::warn!("{error}"),
                condemned => condemned?,
            }
        }
        if !finding.sound_again.is_empty() {
            self.store().pardon(&finding.sound_again)?;
        }
        self.change(|catalogue, states| {
            let mut notes = Vec::new();
            let mut recorded = Recorded::default();
            for key in existing(catalogue, &finding.backups) {
                let state = finding.state_of(states.noted(&key), damaged.contains(key.as_str()));
                let is_unread = states.is_unread(&key);
                if state != states.noted(&key) || is_unread && resets_unreadable {
                    notes.push(note_of(&key, state));
                    recorded.protected.extend(is_unread.then_some(key));
                }
            }
            if resets_unreadable {
                recorded.removed = states.strays().to_vec();
                notes.extend(recorded.removed.iter().map(|stray| note_without(stray)));
            }
            notes.extend(rotation_note(finding, &states.rotation));
            let change = Change {
                notes,
                ..Change::default()
            };
            Ok((change, recorded))
        })
    }
}

/// Returns those of `backups` that are still in the repository.
fn existing(catalogue: &Catalogue, backups: &[String]) -> Vec<String> {
    let existing: HashSet<String> = catalogue.entries().iter().map(|entry| entry.backup.spec()).collect();
    backups.iter().filter(|key| existing.contains(*key)).cloned().collect()
}

/// Returns the note of the rotation, with what other runs read meanwhile.
fn rotation_note(finding: &Finding, noted: &Rotation) -> Option<Note> {
    let mut rotation = finding.rotation.clone()?;
    if rotation.parts.len() == noted.parts.len() {
        for (part, noted) in rotation.parts.iter_mut().zip(&noted.parts) {
            if noted.is_some_and(|noted| part.is_none_or(|part| noted.is_later_than(&part))) {
                *part = *noted;
            }
        }
    }
    Some(note_of_rotation(&rotation))
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

    #[test]
    fn a_result_of_a_moment_when_another_writes_is_recorded_by_the_next_one() {
        for encrypted in [false, true] {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("repo");
            let options = CreateOptions {
                encryption: encrypted.then(|| (crate::keys::Keys::generate().expect("keys"), Vec::new())),
                ..CreateOptions::plain(BlockSize::MIN)
            };
            let repository = Repository::create(&path, &options).expect("creates");
            let open = || repository.manager("test", &mut |_| true).expect("opens");
            let image = store_image(open().store(), "vda", &mixed_bytes(1, 100_000));
            let writer = open();
            let made = backup("web1", "2026-11-20T00-00-00Z", vec![image]);
            let entry = writer.writer().commit(made).expect("commits").entry;
            let web = entry.backup.spec();
            let report = damage_to(&web);
            let at = |second: i64| Timestamp::from_second(second).expect("a time");
            let verified = |report| Verified {
                entries: std::slice::from_ref(&entry),
                scope: &Scope::All,
                all_disks: true,
                report,
                at: at(10),
                resets_unreadable: false,
            };
            let never = AtomicBool::new(false);
            let kept = repository
                .record_verification(&verified(&report), &never)
                .expect("keeps");
            assert!(
                matches!(&kept, Kept::ForLater(writer) if writer.contains("test")),
                "{kept:?}"
            );
            assert!(repository.has_late_results());
            let name = late::names(&path).remove(0);
            let bytes = std::fs::read(path.join("verified").join(&name)).expect("reads");
            let says_guest = bytes.windows(5).any(|part| part == b"web1@");
            assert_eq!(says_guest, !encrypted, "an encrypted repository tells no name");

            repository.record_late_results(&writer);
            assert_eq!(writer.states().expect("loads").noted(&web).damaged, Some(at(10)));
            assert_eq!(writer.store().condemned().expect("lists"), [BlockId([7; 32])]);
            assert!(!repository.has_late_results());

            // What is put back is older than what is known by then.
            let good = VerifyReport::default();
            let later = Verified {
                at: at(20),
                ..verified(&good)
            };
            writer.record_verification(&later).expect("records");
            std::fs::write(path.join("verified").join(&name), &bytes).expect("writes");
            repository.record_late_results(&writer);
            let state = writer.states().expect("loads").noted(&web);
            assert_eq!((state.damaged, state.proven), (None, Some(at(20))));

            // A damaged one is removed, as is one under another name in an encrypted repository.
            std::fs::write(path.join("verified").join(&name), &bytes[1..]).expect("writes");
            std::fs::write(path.join("verified").join("30-1"), &bytes).expect("writes");
            repository.record_late_results(&writer);
            assert!(!repository.has_late_results());
            assert_eq!(writer.states().expect("loads").noted(&web), state);
        }
    }
}
