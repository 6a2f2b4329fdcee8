//! Gives the backups of a guest another name.
//!
//! A record names its guest, and its id is the hash of the record. So each backup is recorded again with the new name, and gets a
//! new id; blocks and manifests stay as they are. What is on disk:
//!
//! 1. Each backup is committed under the new name, with its note: protection, proofs and all. A crash leaves some backups under
//!    both names, which shows the administrator more than there is, and nothing less. The same rename continues.
//! 2. One change forgets all records with the old name, and writes the notes again as they are then. A crash leaves all of the
//!    change or nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Change, Manager};
use crate::backup::{Backup, Entry};
use crate::catalogue::Catalogue;
use crate::error::{Error, Result};
use crate::name::{BackupTime, GuestName};
use crate::state::{States, note_of};
use crate::store::Terms;

/// Result of [`Manager::rename`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renamed {
    /// All backups have the new name. The new names, as `GUEST@TIME`.
    Done(Vec<String>),
    /// Nothing was done: this backup has the new name, and is another one.
    Taken(String),
}

impl Manager {
    /// Renames a guest. Durable and visible when this returns. May be ended at any moment; the next call continues. Fails if
    /// the record of one of its backups, or a note about one, can't be read.
    pub fn rename(&self, old: &GuestName, new: &GuestName, cancel: &AtomicBool) -> Result<Renamed> {
        let renamed = self.rename_all(old, new, cancel);
        self.writer.store().set_terms(Terms::default());
        if renamed.is_err() {
            // Readers see what is there. The first error says more than one of this.
            let _ = self.writer.publish();
        }
        renamed
    }

    fn rename_all(&self, old: &GuestName, new: &GuestName, cancel: &AtomicBool) -> Result<Renamed> {
        if old == new {
            return Ok(Renamed::Done(Vec::new()));
        }
        if let Some(what) = self.store.foreign_changes()?.into_iter().next() {
            return Err(Error::ForeignChanges { what });
        }
        loop {
            let (catalogue, states) = (self.catalogue()?, self.states()?);
            check(&catalogue, &states, old)?;
            if let Some(taken) = find_taken(&catalogue, old, new) {
                return Ok(Renamed::Taken(taken));
            }
            for entry in catalogue.of(old) {
                if cancel.load(Ordering::SeqCst) {
                    return Err(Error::Interrupted);
                }
                self.record_as(entry, new, &catalogue, &states)?;
            }
            let done = self.change(|catalogue, states| {
                check(catalogue, states, old)?;
                Ok::<_, Error>(match is_recorded(catalogue, old, new) {
                    true => forget_old(catalogue, states, old, new),
                    // Another process has added one meanwhile.
                    false => (Change::default(), None),
                })
            })?;
            if let Some(names) = done {
                return Ok(Renamed::Done(names));
            }
        }
    }

    /// Commits a backup under the new name, if it is not there already.
    fn record_as(&self, entry: &Entry, new: &GuestName, catalogue: &Catalogue, states: &States) -> Result<()> {
        let (before, renamed) = (&*entry.backup, with_name(&entry.backup, new));
        if catalogue.of(new).any(|there| *there.backup == renamed) {
            return Ok(());
        }
        let store = self.writer.store();
        store.builds_on(&before.spec())?;
        store.set_terms(Terms {
            // A time that was not believed must not become true by a new name; one that was believed stays so.
            doubts_times: catalogue.counted_time(before) != before.time,
            ..Terms::default()
        });
        let state = states.noted(&before.spec());
        let note = note_of(&renamed.spec(), state);
        let notes: Vec<_> = note.value.is_some().then_some(note).into_iter().collect();
        let committed = self
            .writer
            .commit_unpublished(renamed, &|_| (before.sequence, notes.clone()));
        match committed {
            // Made by another process; the next look finds out whether it is the same.
            Err(Error::BackupExists(_)) => Ok(()),
            committed => committed.map(drop),
        }
    }
}

fn with_name(backup: &Backup, new: &GuestName) -> Backup {
    Backup {
        guest: new.clone(),
        ..backup.clone()
    }
}

/// Fails if a backup of the guest, or a note about one, can't be read.
fn check(catalogue: &Catalogue, states: &States, old: &GuestName) -> Result<()> {
    let is_of_old = |backup: &str| backup.split_once('@').is_some_and(|(guest, _)| guest == old.as_str());
    for error in catalogue.damaged() {
        if let Error::RecordDamaged { backup, what } = error
            && is_of_old(backup)
        {
            return Err(Error::RecordDamaged {
                backup: backup.clone(),
                what: what.clone(),
            });
        }
    }
    match (states.unread().find(|backup| is_of_old(backup)), states.strays()) {
        (Some(name), _) => Err(Error::NoteDamaged { name: name.to_owned() }),
        (None, [stray, ..]) => Err(Error::NoteDamaged { name: stray.clone() }),
        (None, []) => catalogue.check_guest(old),
    }
}

/// Returns a backup with the new name that is not one of those with the old name.
fn find_taken(catalogue: &Catalogue, old: &GuestName, new: &GuestName) -> Option<String> {
    let before: HashMap<BackupTime, &Entry> = catalogue.of(old).map(|entry| (entry.backup.time, entry)).collect();
    let is_other = |there: &&Entry| {
        let before = before.get(&there.backup.time);
        before.is_none_or(|before| with_name(&before.backup, new) != *there.backup)
    };
    catalogue.of(new).find(is_other).map(|there| there.backup.spec())
}

fn is_recorded(catalogue: &Catalogue, old: &GuestName, new: &GuestName) -> bool {
    let there: HashMap<BackupTime, &Entry> = catalogue.of(new).map(|entry| (entry.backup.time, entry)).collect();
    catalogue.of(old).all(|before| {
        let there = there.get(&before.backup.time);
        there.is_some_and(|there| *there.backup == with_name(&before.backup, new))
    })
}

/// The change of step 2, and the new names.
fn forget_old(
    catalogue: &Catalogue,
    states: &States,
    old: &GuestName,
    new: &GuestName,
) -> (Change, Option<Vec<String>>) {
    let (mut change, mut names) = (Change::default(), Vec::new());
    for entry in catalogue.of(old) {
        let (before, name) = (entry.backup.spec(), with_name(&entry.backup, new).spec());
        change.notes.push(note_of(&name, states.noted(&before)));
        change.forget.push(before);
        names.push(name);
    }
    (change, Some(names))
}

#[cfg(test)]
mod tests;
