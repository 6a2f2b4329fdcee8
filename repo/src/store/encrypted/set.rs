//! Maintains the epoch together with the set of records and notes that it lists.

use std::collections::HashMap;

use super::epoch::{self, Element, Epoch, Set};
use super::{Encrypted, NOTE, RECORD};
use crate::error::Result;
use crate::store::{Note, Record, StoreManager, StoreReader, StoreWriter};

impl<S: StoreReader + ?Sized> Encrypted<S> {
    /// Reads the set that is stored now. The caller holds the lock.
    fn read_set(&self) -> Result<Set> {
        let records = self.store.records()?;
        Ok(self.set_of(&records, &self.store.notes()?))
    }

    /// Returns the set of these stored records and notes.
    pub(super) fn set_of(&self, records: &[Record], notes: &[Note]) -> Set {
        let hidden = self.hidden(NOTE, epoch::NAME);
        let element = |kind, name: &str, bytes: &[u8]| epoch::element(&self.epoch_key, kind, name, bytes);
        let records = records.iter().map(|Record { key, bytes }| {
            let element = element(RECORD, key, bytes);
            (key.clone(), element)
        });
        let mut set = Set {
            epoch: None,
            records: records.collect(),
            notes: HashMap::new(),
        };
        let mut has_epoch = false;
        for Note { name, value } in notes {
            let value = value.as_deref().unwrap_or_default();
            if *name == hidden {
                has_epoch = true;
                let opened = self.open_named(NOTE, name, value);
                set.epoch = opened.and_then(|(_, plain)| Epoch::decode(&plain));
            } else {
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
    /// Writes a change of the set with the matching epoch: `change` gets the sealed epoch, to be written in the same
    /// batch. Changes made without the key stay detectable, because the new epoch is computed from the one before.
    pub(super) fn with_epoch(&self, change: &Change, write: &mut dyn FnMut(Note) -> Result<()>) -> Result<()> {
        let mut held = self.set();
        let mut set = match held.take() {
            Some(set) => set,
            None => self.read_set()?,
        };
        let mut epoch = set.epoch.unwrap_or_else(unreadable);
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
        set.epoch = Some(epoch);
        // If this fails, it is not known whether it was written; the next change reads the set again.
        write(self.seal_epoch(&epoch)?)?;
        *held = Some(set);
        Ok(())
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
        let mut held = self.set();
        let mut set = self.read_set()?;
        let found = set.differences();
        if found.is_empty() && set.epoch.is_some_and(|epoch| epoch.counter > 0) {
            return Ok(found);
        }
        let (records, notes) = set.sums();
        let before = set.epoch.unwrap_or_else(unreadable);
        let epoch = Epoch {
            counter: before.counter + 1,
            unchecked: false,
            records,
            notes,
        };
        *held = None;
        self.store.amend(&[], &[self.seal_epoch(&epoch)?])?;
        set.epoch = Some(epoch);
        *held = Some(set);
        Ok(found)
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
