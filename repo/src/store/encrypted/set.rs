//! Maintains the epoch together with the set of records and notes that it lists.

use std::collections::BTreeSet;

use super::epoch::{self, Element, Epoch, Set};
use super::{Encrypted, NOTE, RECORD, uncounted};
use crate::error::{Error, Result};
use crate::store::{Note, Record, StoreManager, StoreReader, StoreWriter};

impl<S: StoreReader + ?Sized> Encrypted<S> {
    /// Returns the set of these stored records and notes.
    pub(super) fn set_of(&self, records: &[Record], notes: &[Note]) -> Set {
        let hidden = self.hidden(NOTE, epoch::NAME);
        let element = |kind, name: &str, bytes: &[u8]| epoch::element(&self.epoch_key, kind, name, bytes);
        let mut set = Set::default();
        let list = notes.iter().find(|note| note.name == uncounted::NAME);
        set.has_list = list.is_some();
        let listed = uncounted::names(list.and_then(|note| note.value.as_deref()).unwrap_or_default());
        for Record { key, bytes } in records {
            let is_uncounted = listed.contains(key) && self.open_named(RECORD, key, bytes).is_some();
            let part = match is_uncounted {
                true => &mut set.uncounted,
                false => &mut set.records,
            };
            part.insert(key.clone(), element(RECORD, key, bytes));
        }
        let mut has_epoch = false;
        for Note { name, value } in notes {
            let value = value.as_deref().unwrap_or_default();
            if *name == hidden {
                has_epoch = true;
                let opened = self.open_named(NOTE, name, value);
                set.epoch = opened.and_then(|(_, plain)| Epoch::decode(&plain));
            } else if name != uncounted::NAME {
                let element = element(NOTE, name, value);
                set.notes.insert(name.clone(), element);
            }
        }
        if !has_epoch && !self.has_begun && set.records.is_empty() && set.notes.is_empty() {
            set.epoch = Some(Epoch::default());
        }
        set
    }
}

impl<S: StoreWriter + ?Sized> Encrypted<S> {
    /// Writes a change of the set with the matching epoch: `write` gets the sealed epoch and what else is to be written in the
    /// same batch, and the generation that it was made out of. Changes made without the key stay detectable, because the new epoch is computed
    /// from the one before. Repeated when another writer was faster, unless the caller's own change is bound to generation `at`.
    pub(super) fn with_epoch(
        &self,
        change: &Change,
        at: Option<u64>,
        write: &dyn Fn(&[Note], u64) -> Result<()>,
    ) -> Result<()> {
        loop {
            let (mut set, generation) = self.read_changed(change, at)?;
            if at.is_some_and(|at| at != generation) {
                return Err(Error::Moved);
            }
            let mut epoch = set.epoch.unwrap_or_else(unreadable);
            // Now that somebody with the key writes.
            set.uncounted.values().for_each(|element| epoch.records.add(element));
            set.count_all();
            let changes = [
                (&change.records, &mut set.records, &mut epoch.records),
                (&change.notes, &mut set.notes, &mut epoch.notes),
            ];
            for (changes, there, sum) in changes {
                for (name, element) in changes {
                    let before = match element {
                        Some(element) => there.insert(name.clone(), *element),
                        None => there.remove(name),
                    };
                    before.iter().for_each(|before| sum.remove(before));
                    element.iter().for_each(|element| sum.add(element));
                }
            }
            epoch.counter += 1;
            let mut notes = vec![self.seal_epoch(&epoch)?];
            notes.extend(set.has_list.then(uncounted::no_note));
            let written = write(&notes, generation);
            // A change comes with the next generation. After an error it is not known whether it was written.
            *self.seen.lock() = written.is_ok().then_some((generation + 1, epoch));
            match written {
                Err(Error::Moved) if at.is_none() => {}
                written => return written,
            }
        }
    }

    /// Reads the epoch and the part of the set that a change concerns, and the generation that they belong to.
    fn read_changed(&self, change: &Change, at: Option<u64>) -> Result<(Set, u64)> {
        // The store refuses a record whose name is taken, so one that is added takes the place of none.
        let only_adds = change.notes.is_empty() && change.records.iter().all(|(_, element)| element.is_some());
        if let Some((generation, epoch)) = self
            .seen
            .lock()
            .filter(|(generation, _)| only_adds && at == Some(*generation))
        {
            let set = Set {
                epoch: Some(epoch),
                ..Set::default()
            };
            return Ok((set, generation));
        }
        let names = |changed: &[(String, _)]| changed.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>();
        let epoch = self.hidden(NOTE, epoch::NAME);
        let records: Vec<_> = names(&change.records).into_iter().collect();
        let own = [epoch.clone(), uncounted::NAME.to_owned()];
        let notes: Vec<_> = names(&change.notes).into_iter().chain(own).collect();
        let mut found = self.store.lookup(&records, &notes)?;
        let has = |name: &str| found.notes.iter().any(|note| note.name == name);
        if !has(&epoch) || has(uncounted::NAME) {
            // Only the whole set tells a new repository from one that lost its epoch.
            found = self.store.listing(true)?;
        }
        Ok((self.set_of(&found.records, &found.notes), found.generation))
    }

    fn seal_epoch(&self, epoch: &Epoch) -> Result<Note> {
        let (name, value) = self.seal_named(NOTE, epoch::NAME, &epoch.encode())?;
        Ok(Note {
            name,
            value: Some(value),
        })
    }

    /// Returns the notes in their stored form, and their change to the set.
    pub(super) fn hide(&self, notes: &[Note]) -> Result<(Change, Vec<Note>)> {
        let (mut change, mut hidden) = (Change::default(), Vec::with_capacity(notes.len() + 1));
        for note in notes {
            let note = match &note.value {
                Some(value) => {
                    let (name, value) = self.seal_named(NOTE, &note.name, value)?;
                    Note {
                        name,
                        value: Some(value),
                    }
                }
                None => Note {
                    name: self.hidden(NOTE, &note.name),
                    value: None,
                },
            };
            let value = note.value.as_ref();
            let element = value.map(|value| self.element(NOTE, &note.name, value));
            change.notes.push((note.name.clone(), element));
            hidden.push(note);
        }
        Ok((change, hidden))
    }

    pub(super) fn element(&self, kind: u8, name: &str, bytes: &[u8]) -> Element {
        epoch::element(&self.epoch_key, kind, name, bytes)
    }
}

impl<S: StoreManager + ?Sized> Encrypted<S> {
    /// Implements [`StoreManager::accept`].
    pub(super) fn accept_set(&self) -> Result<Vec<String>> {
        loop {
            let stored = self.store.listing(true)?;
            let mut set = self.set_of(&stored.records, &stored.notes);
            let found = set.differences();
            if found.is_empty() && set.epoch.is_some_and(|epoch| epoch.counter > 0) {
                return Ok(found);
            }
            set.count_all();
            let (records, notes) = set.sums();
            let before = set.epoch.unwrap_or_else(unreadable);
            let epoch = Epoch {
                counter: before.counter + 1,
                unchecked: false,
                records,
                notes,
            };
            match self.store.amend_at(
                &[],
                &[self.seal_epoch(&epoch)?, uncounted::no_note()],
                Some(stored.generation),
            ) {
                Err(Error::Moved) => {}
                written => return written.map(|()| found),
            }
        }
    }
}

/// Changes to records and notes, by their stored names; `None` removes one.
#[derive(Default)]
pub(super) struct Change {
    pub(super) records: Vec<(String, Option<Element>)>,
    pub(super) notes: Vec<(String, Option<Element>)>,
}

/// Returns an epoch that stands in for an unreadable one. Its counter is greater than any that was counted one by one,
/// so hosts that remember the counter do not take it for an older one.
fn unreadable() -> Epoch {
    Epoch {
        counter: u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0),
        unchecked: true,
        ..Epoch::default()
    }
}
