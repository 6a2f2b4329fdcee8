//! The right to add backups to a repository.

use std::sync::Arc;

use super::home::Keeper;
use crate::backup::{Backup, Entry};
use crate::catalogue::Catalogue;
use crate::error::{Error, Result};
use crate::id::BackupId;
use crate::standing::Standing;
use crate::state::States;
use crate::store::{Identity, Note, Record, StoreReader, StoreWriter};

/// Times that a change is made again because other writers were faster. Each time one of them has done its work, so only a
/// server that lies comes near this.
const MOST_TRIES: u32 = 1000;

/// Makes a change out of the store's present generation, and again when another writer has taken that.
pub(super) fn make_at<T>(store: &(impl StoreReader + ?Sized), mut change: impl FnMut(u64) -> Result<T>) -> Result<T> {
    let mut tries = 0;
    loop {
        match change(store.generation()?) {
            Err(Error::Moved) if tries < MOST_TRIES => tries += 1,
            made => return made,
        }
    }
}

/// A repository open for adding backups. May be used by many threads at once.
pub struct Writer {
    store: Arc<dyn StoreWriter>,
    identity: Identity,
    /// Dropped last: it lets the next writer in.
    pub(super) keeper: Arc<dyn Keeper>,
}

impl Writer {
    pub(super) fn new(store: Arc<dyn StoreWriter>, identity: Identity, keeper: Arc<dyn Keeper>) -> Self {
        Self {
            store,
            identity,
            keeper,
        }
    }

    /// Identity of the repository.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Identity and age of the repository, as the store itself states them.
    pub fn standing(&self) -> Result<Standing> {
        Ok(Standing::new(&self.identity, self.store.generation()?).with_epoch(self.store.epoch()?))
    }

    /// The store.
    pub fn store(&self) -> &dyn StoreWriter {
        &*self.store
    }

    /// All backups.
    pub fn catalogue(&self) -> Result<Catalogue> {
        Catalogue::load(&*self.store)
    }

    /// Notes about the backups.
    pub fn states(&self) -> Result<States> {
        States::load(&*self.store)
    }

    /// Makes a backup visible. Everything it names must have been put; all of it is durable when this returns.
    /// Its `sequence` is set to the generation that it comes with.
    pub fn commit(&self, backup: Backup) -> Result<Committed> {
        let entry = self.commit_unpublished(backup, &|generation| (generation, Vec::new()))?;
        Ok(Committed {
            entry,
            unpublished: self.publish().err(),
        })
    }

    /// Like [`Writer::commit`], with notes in the same step; `with` returns the `sequence` and the notes for the generation that
    /// they come with. Readers do not see the backup before [`Writer::publish`].
    pub(crate) fn commit_unpublished(
        &self,
        mut backup: Backup,
        with: &dyn Fn(u64) -> (u64, Vec<Note>),
    ) -> Result<Entry> {
        backup.check()?;
        let key = backup.spec();
        let id = make_at(&*self.store, |at| {
            let (sequence, notes) = with(at + 1);
            backup.sequence = sequence;
            let bytes = backup.encode();
            let id = BackupId(self.store.hashing().content(&bytes));
            let record = Record {
                key: key.clone(),
                bytes,
            };
            self.store.commit_at(&record, &notes, Some(at))?;
            Ok(id)
        })?;
        Ok(Entry { id, backup })
    }

    /// Shows what was committed to readers that open the repository from now on.
    pub(crate) fn publish(&self) -> Result<()> {
        self.keeper.publish()
    }
}

/// A backup that is stored.
#[derive(Debug)]
pub struct Committed {
    /// The backup.
    pub entry: Entry,
    /// Reason why readers do not see it before the next writer has published it, if so.
    pub unpublished: Option<Error>,
}
