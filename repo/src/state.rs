//! Facts about backups that their records do not contain because they may change: protection, the last successful
//! verification, damage, and the last rehearsal.
//!
//! | note | JSON |
//! |---|---|
//! | `backup/GUEST@TIME` | [`State`] |
//! | `backup/GUEST@TIME/ID` | [`State`] of a backup in the bin, as it was when the backup was forgotten |
//! | `rotation` | [`Rotation`] |

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::backup::{Backup, Entry};
use crate::error::Result;
use crate::id::BackupId;
use crate::store::{Note, StoreReader};

/// State of one backup. The default is the state of a new one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The backup is kept until an administrator unprotects it.
    #[serde(default)]
    pub protected: bool,
    /// Words of the administrator about it, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Time when all of it was last read; found intact, unless `damaged` says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven: Option<Timestamp>,
    /// Time when it was last found damaged; none if it was found intact since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged: Option<Timestamp>,
    /// Result of the last rehearsal; none if it was never booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsed: Option<Rehearsed>,
    /// Time of the last rehearsal whose guest could not be started, which says nothing about the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unstarted: Option<Timestamp>,
    /// Generation that the backup came with, if it was copied from another repository after later ones of its guest; its
    /// `sequence` is that of an earlier one then, for the order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrived: Option<u64>,
    /// The record that it was copied from, if that is in a repository with other names for blocks: both have the same content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<BackupId>,
}

/// Result of a rehearsal: the backup was booted in a virtual machine. A later version may add fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsed {
    /// Start, by the clock.
    pub at: Timestamp,
    /// Sign of a complete boot; none if the guest did not boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<BootProof>,
    /// Time until the sign or the failure.
    pub duration_ms: u64,
    /// Processor that ran the guest.
    pub accelerator: BootAccelerator,
}

/// Sign of a complete boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootProof {
    /// A login prompt on the serial console.
    Login,
    /// A pattern of the user on the serial console.
    Pattern,
    /// An answer of the guest agent.
    Agent,
    /// A sign that a later version of vbk knows.
    #[serde(other)]
    Other,
}

/// Processor that runs a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootAccelerator {
    /// The host's own.
    Kvm,
    /// A translation.
    Tcg,
    /// One that a later version of vbk knows.
    #[serde(other)]
    Other,
}

/// A rehearsal to record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// The guest was started, with this result.
    Ended(Rehearsed),
    /// It could not be started at this time.
    Unstarted(Timestamp),
}

/// States of all backups in one store.
#[derive(Debug, Clone, Default)]
pub struct States {
    backups: HashMap<String, State>,
    /// Of backups in the bin, by `GUEST@TIME/ID`.
    forgotten: HashMap<String, State>,
    unread: BTreeSet<String>,
    strays: Vec<String>,
    /// Progress of a verification in parts.
    pub rotation: Rotation,
}

/// A verification in parts: each run reads a part of all blocks, and together the runs read everything.
///
/// The first bytes of a block's id determine the part that it belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// Last reading of each part; `None` if it was never read.
    pub parts: Vec<Option<PartRead>>,
}

/// Last reading of a part of all blocks, whatever it found: damage is recorded in the state of the damaged backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRead {
    /// Start of that run, by the clock.
    pub at: Timestamp,
    /// Generation of the view that was read: the view did not contain backups of a later one.
    pub generation: u64,
}

impl PartRead {
    /// Returns whether this reading is the later one.
    pub(crate) fn is_later_than(&self, other: &Self) -> bool {
        // The generation counts changes, whereas a clock may have been wrong.
        (self.generation, self.at) > (other.generation, other.at)
    }
}

impl Rotation {
    /// Returns the parts to read now, of `parts` in all: those whose last reading is oldest, as many as days passed
    /// since the last run, so that with a run a day each is read once in `parts` days. A changed number of parts
    /// restarts the rotation.
    pub fn due(&mut self, parts: usize, now: Timestamp) -> Vec<usize> {
        if self.parts.len() != parts {
            self.parts = vec![None; parts];
        }
        let last = self.parts.iter().flatten().map(|part| part.at).max();
        // Rounded, because a nightly run does not start at the same second each night.
        let days = last.map_or(1, |last| (now.duration_since(last).as_hours() + 12) / 24);
        let count = usize::try_from(days).unwrap_or(0).clamp(1, parts.max(1));
        let mut order: Vec<_> = (0..parts).collect();
        // The generation counts changes, whereas a clock may have been wrong.
        order.sort_by_key(|&part| self.parts[part].map(|read| (read.generation, read.at)));
        order.truncate(count);
        order
    }

    /// Returns the generation up to which everything stored was read, and the start of the oldest of those runs; `None`
    /// if a part was never read.
    fn complete(&self) -> Option<PartRead> {
        let parts: Option<Vec<PartRead>> = self.parts.iter().copied().collect();
        let parts = parts?;
        Some(PartRead {
            at: parts.iter().map(|part| part.at).min()?,
            generation: parts.iter().map(|part| part.generation).min()?,
        })
    }
}

impl States {
    /// Reads the notes of a store. An unreadable note does not keep the others from being read.
    pub fn load(store: &dyn StoreReader) -> Result<Self> {
        let mut states = Self::default();
        for Note { name, value } in store.notes()? {
            let value = value.unwrap_or_default();
            if name == ROTATION {
                // An unreadable rotation counts as empty: no part was ever verified, and all are due.
                states.rotation = serde_json::from_slice(&value).unwrap_or_default();
            } else if let Some(key) = name.strip_prefix(BACKUP).filter(|key| key.contains('/')) {
                // An unreadable one is lost, and protects nothing: no rule forgets what is in the bin.
                let state = serde_json::from_slice(&value).unwrap_or_default();
                states.forgotten.insert(key.to_owned(), state);
            } else if let Some(key) = name.strip_prefix(BACKUP) {
                match serde_json::from_slice(&value) {
                    Ok(state) => drop(states.backups.insert(key.to_owned(), state)),
                    Err(_) => drop(states.unread.insert(key.to_owned())),
                }
            } else {
                states.strays.push(name);
            }
        }
        if !states.strays.is_empty() {
            states.attribute_strays(store)?;
        }
        Ok(states)
    }

    /// Finds the backups of notes that are known only by their stored names.
    fn attribute_strays(&mut self, store: &dyn StoreReader) -> Result<()> {
        let rotation = store.stored_note_name(ROTATION);
        self.strays.retain(|name| *name != rotation);
        for key in store.records()?.into_iter().map(|record| record.key) {
            let name = store.stored_note_name(&format!("{BACKUP}{key}"));
            if let Some(place) = self.strays.iter().position(|stray| *stray == name) {
                self.strays.remove(place);
                self.unread.insert(key);
            }
        }
        Ok(())
    }

    /// Returns the state of a backup.
    pub fn of(&self, backup: &Backup) -> State {
        let mut state = self.noted(&backup.spec());
        // A part that was read from a view without the backup says nothing about its blocks. Generations decide this,
        // not times: a clock may have been wrong, and a run may take any time. For a record without a sequence it is
        // not known.
        let came_with = state.arrived.unwrap_or(backup.sequence);
        let was_there = |read: &PartRead| came_with > 0 && came_with <= read.generation;
        let rotated = self.rotation.complete().filter(was_there);
        state.proven = state.proven.max(rotated.map(|read| read.at));
        state
    }

    /// Returns the state in the note for `GUEST@TIME`. An unreadable note counts as protected, because it may have said
    /// so.
    pub fn noted(&self, key: &str) -> State {
        let unread = State {
            protected: self.is_unread(key),
            ..State::default()
        };
        self.backups.get(key).cloned().unwrap_or(unread)
    }

    /// Returns the state that a backup in the bin had when it was forgotten.
    pub fn of_forgotten(&self, entry: &Entry) -> State {
        self.forgotten.get(&forgotten_key(entry)).cloned().unwrap_or_default()
    }

    /// Returns notes that remove the states of backups that are not in the bin.
    pub fn notes_without_all_but(&self, bin: &[Entry]) -> Vec<Note> {
        let kept: HashSet<String> = bin.iter().map(forgotten_key).collect();
        let gone = self.forgotten.keys().filter(|key| !kept.contains(*key));
        gone.map(|key| note_of(key, State::default())).collect()
    }

    /// Returns whether the note for `GUEST@TIME` exists but can't be read. Setting the state again repairs it.
    pub fn is_unread(&self, key: &str) -> bool {
        self.unread.contains(key)
    }

    /// Returns the backups, as `GUEST@TIME`, whose state can't be read.
    pub fn unread(&self) -> impl Iterator<Item = &str> {
        self.unread.iter().map(String::as_str)
    }

    /// Returns the stored names of unreadable notes whose backups are not known.
    pub fn strays(&self) -> &[String] {
        &self.strays
    }
}

const BACKUP: &str = "backup/";
const ROTATION: &str = "rotation";

/// Returns the note that sets the state of a backup; the default state needs none.
pub fn note_of(key: &str, state: State) -> Note {
    let text = || serde_json::to_vec(&state).expect("a state has only plain fields");
    Note {
        name: format!("{BACKUP}{key}"),
        value: (state != State::default()).then(text),
    }
}

/// Returns the note that keeps the state of a backup that is forgotten, for the time when it is brought back.
pub fn note_of_forgotten(entry: &Entry, state: State) -> Note {
    let key = forgotten_key(entry);
    note_of(&key, State { arrived: None, ..state })
}

/// Another backup of the same name may be in the bin, so the id belongs to the key.
fn forgotten_key(entry: &Entry) -> String {
    format!("{}/{}", entry.backup.spec(), entry.id)
}

/// Returns the note that removes one of [`States::strays`].
pub fn note_without(stray: &str) -> Note {
    Note {
        name: stray.to_owned(),
        value: None,
    }
}

/// Returns the note that sets the rotation.
pub fn note_of_rotation(rotation: &Rotation) -> Note {
    Note {
        name: ROTATION.into(),
        value: Some(serde_json::to_vec(rotation).expect("a rotation has only plain fields")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreManager;
    use crate::store::StoreReader;
    use crate::store::memory::MemoryStore;
    use crate::tests::testing::{SMALL, backup};

    fn at(text: &str) -> Option<Timestamp> {
        Some(text.parse().expect("a time"))
    }

    #[test]
    fn states_are_kept_and_a_default_one_leaves_nothing() {
        let store = MemoryStore::new(SMALL);
        let backup = backup("web1", "2026-11-20T05-54-00Z", Vec::new());
        let state = State {
            protected: true,
            note: Some("before the upgrade".into()),
            proven: at("2026-11-21T00:00:00Z"),
            damaged: None,
            rehearsed: Some(Rehearsed {
                at: Timestamp::UNIX_EPOCH,
                proof: Some(BootProof::Agent),
                duration_ms: 2000,
                accelerator: BootAccelerator::Tcg,
            }),
            unstarted: at("2026-11-22T00:00:00Z"),
            arrived: Some(3),
            copy_of: Some(BackupId([7; 32])),
        };
        store
            .amend(&[], &[note_of(&backup.spec(), state.clone())])
            .expect("notes");
        assert_eq!(States::load(&store).expect("loads").of(&backup), state);
        store
            .amend(&[], &[note_of(&backup.spec(), State::default())])
            .expect("notes");
        assert_eq!(store.notes().expect("lists"), []);
        assert_eq!(States::load(&store).expect("loads").of(&backup), State::default());
    }

    #[test]
    fn the_state_of_a_forgotten_backup_is_kept_apart_until_the_bin_does_not_have_it() {
        let store = MemoryStore::new(SMALL);
        let made = |number: u8| Entry {
            id: BackupId([number; 32]),
            backup: backup("web1", "2026-11-20T05-54-00Z", Vec::new()).into(),
        };
        let (first, second) = (made(1), made(2));
        let state = State {
            note: Some("keep for audit".into()),
            arrived: Some(7),
            ..State::default()
        };
        store.amend(&[], &[note_of_forgotten(&first, state)]).expect("notes");
        let states = States::load(&store).expect("loads");
        assert_eq!(states.of_forgotten(&first).note.as_deref(), Some("keep for audit"));
        assert_eq!(
            states.of_forgotten(&first).arrived,
            None,
            "it arrives when it is brought back"
        );
        assert_eq!(states.of_forgotten(&second), State::default());
        assert_eq!(states.of(&first.backup), State::default());
        assert_eq!(states.notes_without_all_but(&[second.clone(), first]), []);
        store
            .amend(&[], &states.notes_without_all_but(&[second]))
            .expect("notes");
        assert_eq!(store.notes().expect("lists"), []);
    }

    #[test]
    fn a_state_that_can_not_be_read_is_known_and_counts_as_protected() {
        let store = MemoryStore::new(SMALL);
        let (web, db) = ("web1@2026-11-20T05-54-00Z", "db1@2026-11-20T05-54-00Z");
        let bad = Note {
            name: format!("{BACKUP}{web}"),
            value: Some(b"{\"protected\": tr".to_vec()),
        };
        let strange = Note {
            name: "backupX".into(),
            value: Some(b"{}".to_vec()),
        };
        store.amend(&[], &[bad, strange]).expect("notes");
        let states = States::load(&store).expect("loads");
        assert!(states.is_unread(web) && states.noted(web).protected);
        assert!(!states.is_unread(db) && !states.noted(db).protected);
        assert_eq!(
            (states.unread().collect::<Vec<_>>(), states.strays()),
            (vec![web], &["backupX".to_owned()][..])
        );
        let anew = [note_of(web, State::default()), note_without("backupX")];
        store.amend(&[], &anew).expect("notes");
        assert_eq!(store.notes().expect("lists"), []);
    }

    #[test]
    fn a_whole_rotation_proves_what_was_there_when_it_began() {
        let mut states = States::default();
        let (first, second) = ("2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z");
        let read = |time: &str, generation| at(time).map(|at| PartRead { at, generation });
        // Dated long before and long after all parts: the result depends only on whether the views that were read had
        // the backup.
        for time in ["1970-01-01T00-00-01Z", "2026-11-20T05-54-00Z", "2031-05-05T10-00-00Z"] {
            let mut backup = backup("web1", time, Vec::new());
            backup.sequence = 7;
            for (parts, proven) in [
                (vec![], None),
                (vec![read(first, 7), None], None),
                (vec![read(first, 7), read(second, 6)], None),
                (vec![read(first, 6), read(second, 9)], None),
                (vec![read(first, 7), read(second, 9)], at(first)),
                (vec![read(second, 8), read(first, 7)], at(first)),
            ] {
                states.rotation.parts = parts;
                assert_eq!(states.of(&backup).proven, proven, "{time}");
            }
            backup.sequence = 0;
            assert_eq!(states.of(&backup).proven, None);
        }
    }

    #[test]
    fn nightly_runs_read_every_part_and_make_up_for_missed_nights() {
        let mut rotation = Rotation::default();
        let mut read = [0_u32; 30];
        let mut now: Timestamp = "2026-11-01T03:00:00Z".parse().expect("a time");
        let mut generation = 0;
        let mut night = |rotation: &mut Rotation, read: &mut [u32], days: i64, wanted: usize| {
            generation += 1;
            now += jiff::SignedDuration::from_secs(days * 86_400 + 40);
            let due = rotation.due(30, now);
            assert_eq!(due.len(), wanted);
            for part in due {
                read[part] += 1;
                rotation.parts[part] = Some(PartRead { at: now, generation });
            }
        };
        (0..20).for_each(|_| night(&mut rotation, &mut read, 1, 1));
        night(&mut rotation, &mut read, 10, 10);
        assert_eq!(read, [1; 30]);
        night(&mut rotation, &mut read, 0, 1);
        night(&mut rotation, &mut read, 400, 30);
        assert_eq!(Rotation::default().due(7, Timestamp::UNIX_EPOCH), [0]);
    }
}
