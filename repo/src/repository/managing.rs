//! The right to change and remove backups: for forget, prune, verify and repair.

use std::collections::HashSet;
use std::sync::Arc;

use super::Writer;
use super::home::Keeper;
use super::writing::{Shown, make_at};
use crate::backup::Entry;
use crate::catalogue::Catalogue;
use crate::error::{Error, Result};
use crate::standing::Standing;
use crate::state::{self, State, States};
use crate::store::{Forgotten, Identity, Note, Record, StoreManager, StoreReader};

/// A change of the set of backups and of the notes about them.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Backups to remove, as `GUEST@TIME`.
    pub forget: Vec<String>,
    /// Notes to write or to remove.
    pub notes: Vec<Note>,
}

/// A repository open for changes and removals.
pub struct Manager {
    pub(super) store: Arc<dyn StoreManager>,
    /// The same store with fewer rights. Dropped last.
    pub(super) writer: Writer,
}

impl Manager {
    pub(super) fn new(
        store: Arc<dyn StoreManager>,
        identity: Identity,
        shown: Arc<Shown>,
        keeper: Arc<dyn Keeper>,
    ) -> Self {
        Self {
            writer: Writer::new(Arc::clone(&store) as _, identity, shown, keeper),
            store,
        }
    }

    /// The right to add backups.
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// Identity of the repository.
    pub fn identity(&self) -> &Identity {
        self.writer.identity()
    }

    /// Identity and age of the repository, as the store itself states them.
    pub fn standing(&self) -> Result<Standing> {
        self.writer.standing()
    }

    /// The store.
    pub fn store(&self) -> &dyn StoreManager {
        &*self.store
    }

    /// All backups.
    pub fn catalogue(&self) -> Result<Arc<Catalogue>> {
        self.writer.catalogue()
    }

    /// Notes about the backups.
    pub fn states(&self) -> Result<States> {
        self.writer.states()
    }

    /// Removes backups and changes notes: all of it or nothing, durable when this returns. The blocks stay until
    /// [`Manager::prune`]. `decide` makes the change out of the repository's present state; it is called again if another writer
    /// changed that meanwhile. Returns what it returned besides the change.
    pub fn change<T, E: From<Error>>(
        &self,
        mut decide: impl FnMut(&Catalogue, &States) -> std::result::Result<(Change, T), E>,
    ) -> std::result::Result<T, E> {
        let mut tried: Option<(Vec<String>, T)> = None;
        make_at(&*self.store, |at| {
            let catalogue = self.catalogue()?;
            // A change that was made, and whose answer was lost, is refused when it is sent again.
            let is_gone = |key: &String| !catalogue.entries().iter().any(|entry| entry.backup.spec() == *key);
            if let Some((forgotten, result)) = tried.take()
                && !forgotten.is_empty()
                && forgotten.iter().all(is_gone)
            {
                self.writer.publish()?;
                return Ok(Ok(result));
            }
            // An error of the caller's is no reason to try again, whatever it says.
            let (change, result) = match decide(&catalogue, &self.states()?) {
                Ok(decided) => decided,
                Err(error) => return Ok(Err(error)),
            };
            if change.forget.is_empty() && change.notes.is_empty() {
                return Ok(Ok(result));
            }
            match self.amend_at(&change.forget, &change.notes, Some(at)) {
                Ok(()) => Ok(Ok(result)),
                Err(error) => {
                    tried = Some((change.forget, result));
                    Err(error)
                }
            }
        })?
    }

    /// Removes backups, named as `GUEST@TIME`, and changes notes, whatever else has changed.
    pub fn amend(&self, forget: &[String], notes: &[Note]) -> Result<()> {
        self.amend_at(forget, notes, None)
    }

    fn amend_at(&self, forget: &[String], notes: &[Note], at: Option<u64>) -> Result<()> {
        if let (Some(what), false) = (self.store.foreign_changes()?.into_iter().next(), forget.is_empty()) {
            return Err(Error::ForeignChanges { what });
        }
        let mut all = notes.to_vec();
        all.extend(forget.iter().map(|key| state::note_of(key, State::default())));
        all.extend(self.notes_for_the_bin(forget)?);
        self.store.amend_at(forget, &all, at)?;
        if let Some(at) = at {
            self.writer.changed(at + 1);
        }
        self.writer.publish()
    }

    /// Returns notes that keep the states of backups which are about to be forgotten.
    fn notes_for_the_bin(&self, forget: &[String]) -> Result<Vec<Note>> {
        if forget.is_empty() {
            return Ok(Vec::new());
        }
        let (catalogue, states) = (self.catalogue()?, self.states()?);
        let forget: HashSet<&String> = forget.iter().collect();
        let gone = catalogue
            .entries()
            .iter()
            .filter(|entry| forget.contains(&entry.backup.spec()));
        let notes = gone.map(|entry| state::note_of_forgotten(entry, states.of(&entry.backup)));
        // Most have none, and nothing is removed here.
        Ok(notes.filter(|note| note.value.is_some()).collect())
    }

    /// Removes the states of backups that are not in the bin any more.
    pub(super) fn tidy_notes(&self) -> Result<()> {
        let bin = self.store.forgotten()?.into_iter().filter_map(|forgotten| {
            let record = forgotten.record;
            Entry::decode(self.store.hashing(), &record.key, &record.bytes).ok()
        });
        let notes = self.states()?.notes_without_all_but(&bin.collect::<Vec<_>>());
        match notes.is_empty() {
            true => Ok(()),
            false => self.amend(&[], &notes),
        }
    }

    /// Returns the backups in the bin, the last one that was forgotten first: those that can be brought back until the bin is
    /// emptied. A backup that was brought back is not among them.
    pub fn forgotten(&self) -> Result<Vec<Forgotten>> {
        forgotten_of(&*self.store)
    }

    /// Brings backups back from the bin. Each is durable and visible when this returns. Fails with [`Error::Missing`] if a prune
    /// has removed what one of them needs.
    pub fn unforget(&self, forgotten: &[Forgotten]) -> Result<()> {
        for Forgotten { record, .. } in forgotten {
            if let Err(error) = self.bring_back(record) {
                self.writer.publish()?;
                return Err(error);
            }
        }
        self.writer.publish()
    }

    /// Commits a record of the bin again: the same bytes under the same name, with the state that it had. The commit finds out
    /// whether all of it is there.
    fn bring_back(&self, record: &Record) -> Result<()> {
        make_at(&*self.store, |at| {
            let entry = Entry::decode(self.store.hashing(), &record.key, &record.bytes)?;
            let state = State {
                // A verification in turns that passed it meanwhile has not read it.
                arrived: Some(at + 1),
                ..self.states()?.of_forgotten(&entry)
            };
            self.store
                .commit_at(record, &[state::note_of(&record.key, state)], Some(at))?;
            self.writer.changed(at + 1);
            Ok(())
        })
    }

    /// Accepts the records and notes of an encrypted repository as they are, whoever changed them. Returns a line for each
    /// kind of change that was made without the key.
    pub fn accept(&self) -> Result<Vec<String>> {
        let found = self.store.accept()?;
        if !found.is_empty() {
            self.writer.publish()?;
        }
        Ok(found)
    }
}

/// See [`Manager::forgotten`].
pub(super) fn forgotten_of(store: &(impl StoreReader + ?Sized)) -> Result<Vec<Forgotten>> {
    let name = |record: &Record| (record.key.clone(), record.bytes.clone());
    let mut seen: HashSet<_> = store.records()?.iter().map(name).collect();
    let mut forgotten = store.forgotten()?;
    forgotten.reverse();
    forgotten.retain(|forgotten| seen.insert(name(&forgotten.record)));
    Ok(forgotten)
}
