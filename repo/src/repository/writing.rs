//! The right to add backups to a repository.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::home::Keeper;
use super::publisher::Publisher;
use crate::backup::{Backup, Entry};
use crate::catalogue::Catalogue;
use crate::codec::Sealers;
use crate::error::{Error, Result};
use crate::id::BackupId;
use crate::standing::Standing;
use crate::state::States;
use crate::store::{Identity, Note, Received, Record, StoreReader, StoreWriter};
use crate::storing::Storing;

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
    storing: Storing,
    sealers: Sealers,
    identity: Identity,
    /// Generation of the last change that was made here.
    changed: AtomicU64,
    publisher: Publisher,
    known: Mutex<Known>,
    shown: Arc<Shown>,
    /// Dropped last: it lets the next writer in.
    pub(super) keeper: Arc<dyn Keeper>,
}

/// Generation of the last change that this process has made and shown to readers. A home may know an older one for a moment.
#[derive(Debug, Default)]
pub(super) struct Shown(AtomicU64);

impl Shown {
    /// Returns the generation, if there was a change.
    pub(super) fn generation(&self) -> Option<u64> {
        Some(self.0.load(Ordering::SeqCst)).filter(|generation| *generation > 0)
    }
}

impl Writer {
    pub(super) fn new(
        store: Arc<dyn StoreWriter>,
        identity: Identity,
        shown: Arc<Shown>,
        keeper: Arc<dyn Keeper>,
    ) -> Self {
        Self {
            store,
            storing: Storing::default(),
            sealers: Sealers::default(),
            identity,
            changed: AtomicU64::new(0),
            publisher: Publisher::default(),
            known: Mutex::default(),
            shown,
            keeper,
        }
    }

    /// Notes a change that came with a generation.
    pub(super) fn changed(&self, generation: u64) {
        self.changed.fetch_max(generation, Ordering::SeqCst);
    }

    /// Identity of the repository.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Identity and age of the repository, as the store itself states them.
    pub fn standing(&self) -> Result<Standing> {
        let standing = Standing::of(&*self.store, &self.identity, self.store.generation()?);
        Ok(standing.with_epoch(self.store.epoch()?))
    }

    /// The store.
    pub fn store(&self) -> &dyn StoreWriter {
        &*self.store
    }

    /// The blocks that are being stored, for all backups that this writer makes at once.
    pub fn storing(&self) -> &Storing {
        &self.storing
    }

    /// The sealers for all backups that this writer makes at once.
    pub fn sealers(&self) -> &Sealers {
        &self.sealers
    }

    /// All backups. Read from the store only if they have changed since the last call, during [`Writer::publishing`] only if somebody
    /// else has changed them.
    pub fn catalogue(&self) -> Result<Arc<Catalogue>> {
        let mut known = self.known.lock();
        if let Some(catalogue) = &known.catalogue
            && catalogue.generation() == self.store.generation()?
        {
            return Ok(Arc::clone(catalogue));
        }
        let loaded = Arc::new(Catalogue::load(&*self.store)?);
        known
            .came_with
            .retain(|generation, _| *generation > loaded.generation());
        known.catalogue = Some(Arc::clone(&loaded));
        Ok(loaded)
    }

    /// Notes about the backups.
    pub fn states(&self) -> Result<States> {
        States::load(&*self.store)
    }

    /// Makes a backup visible, during [`Writer::publishing`] within a second. Everything it names must have been put; all of it is durable
    /// when this returns.
    /// Its `sequence` is set to the generation that it comes with.
    pub fn commit(&self, backup: Backup) -> Result<Committed> {
        let entry = self.commit_unpublished(backup, &|generation| (generation, Vec::new()))?;
        let unpublished = match self.publisher.tell() {
            true => None,
            false => self.publish().err(),
        };
        Ok(Committed { entry, unpublished })
    }

    /// Calls `work`, and shows the backups that it commits to readers: at most once a second, in a thread of its own, and all of them
    /// when it is done. To show each would take longer than to make a small one. Also returns why the last ones are not shown before
    /// the next writer has published them, if so. Must not be called by `work`.
    pub fn publishing<T>(&self, work: impl FnOnce() -> T) -> (T, Option<Error>) {
        self.publisher.during(&|| self.publish(), work)
    }

    /// Keeps the list of backups up to date while many are made. If this fails, it is read again when it is needed.
    fn learn(&self, generation: u64, entry: &Entry) {
        if !self.publisher.is_at_work() || !self.known.lock().can_follow() {
            return;
        }
        // The store may be far away, and others need the list meanwhile.
        let found = self.store.lookup(&[entry.backup.spec()], &[]);
        let mut known = self.known.lock();
        match found {
            // A copy may have been there already, and then it came with an earlier generation.
            Ok(found) if known.can_follow() && entry.backup.sequence == generation => {
                known.learn(generation, entry, found.received)
            }
            _ => *known = Known::default(),
        }
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
        let (id, generation) = make_at(&*self.store, |at| {
            let (sequence, notes) = with(at + 1);
            backup.sequence = sequence;
            let bytes = backup.encode();
            let id = BackupId(self.store.hashing().content(&bytes));
            let record = Record {
                key: key.clone(),
                bytes,
            };
            self.store.commit_at(&record, &notes, Some(at))?;
            self.changed(at + 1);
            Ok((id, at + 1))
        })?;
        let entry = Entry {
            id,
            backup: Arc::new(backup),
        };
        self.learn(generation, &entry);
        Ok(entry)
    }

    /// Shows what was committed to readers that open the repository from now on.
    pub(crate) fn publish(&self) -> Result<()> {
        let changed = self.changed.load(Ordering::SeqCst);
        self.keeper.publish()?;
        self.shown.0.fetch_max(changed, Ordering::SeqCst);
        Ok(())
    }
}

/// Backups that may be known before one that came with an earlier generation.
const MOST_AHEAD: usize = 64;

/// The backups that a writer knows of.
#[derive(Default)]
struct Known {
    catalogue: Option<Arc<Catalogue>>,
    /// Backups that were committed here, by their generations, until all those before them are in the catalogue.
    came_with: BTreeMap<u64, (Entry, Vec<(String, Received)>)>,
}

impl Known {
    fn learn(&mut self, generation: u64, entry: &Entry, received: Vec<(String, Received)>) {
        let Some(mut catalogue) = self.catalogue.take() else {
            return;
        };
        self.came_with.insert(generation, (entry.clone(), received));
        while let Some((entry, received)) = self.came_with.remove(&(catalogue.generation() + 1)) {
            catalogue = Arc::new(catalogue.followed_by(entry, received));
        }
        // Others change the repository too, and nobody asks for the list.
        match self.came_with.len() > MOST_AHEAD {
            true => self.came_with.clear(),
            false => self.catalogue = Some(catalogue),
        }
    }

    fn can_follow(&self) -> bool {
        self.catalogue
            .as_ref()
            .is_some_and(|catalogue| catalogue.damaged().is_empty())
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
