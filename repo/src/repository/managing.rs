//! The right to change and remove backups: for forget, prune, verify and repair.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::Writer;
use super::home::{Keeper, Pruned};
use super::writing::{Shown, make_at};
use crate::catalogue::Catalogue;
use crate::error::{Error, ErrorKind, Result};
use crate::mark::{check_complete, mark, mark_sealed};
use crate::standing::Standing;
use crate::state::{self, State, States};
use crate::store::{Forgotten, Identity, Live, Note, PruneOptions, Record, StoreManager, StoreReader};

/// Time after which a prune shows readers its progress, and releases the view before. Sooner where little is free.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(60);

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
    store: Arc<dyn StoreManager>,
    /// The same store with fewer rights. Dropped last.
    writer: Writer,
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
    pub fn catalogue(&self) -> Result<Catalogue> {
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
        self.store.amend_at(forget, &all, at)?;
        if let Some(at) = at {
            self.writer.changed(at + 1);
        }
        self.writer.publish()
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

    /// Commits a record of the bin again: the same bytes under the same name. The commit finds out whether all of it is there.
    fn bring_back(&self, record: &Record) -> Result<()> {
        make_at(&*self.store, |at| {
            // A verification in turns that passed it meanwhile has not read it.
            let state = State {
                arrived: Some(at + 1),
                ..State::default()
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

    /// Removes what no backup names, and frees its space. May be ended at any moment; the next prune continues.
    /// `progress` gets the bytes that were removed so far. Nothing else may use the repository's writer meanwhile, so it
    /// is borrowed alone: a backup would count on blocks that are about to be removed.
    pub fn prune(
        &mut self,
        options: PruneOptions,
        threads: usize,
        cancel: &AtomicBool,
        progress: &dyn Fn(u64),
    ) -> Result<Pruned> {
        // Puts of an unfinished backup of this writer are in the index then.
        self.store.flush()?;
        let catalogue = self.catalogue()?;
        // What keeps the store elsewhere has no key to find that out with.
        check_complete(&catalogue)?;
        let keeper = &self.writer.keeper;
        if let Some(pruned) = keeper.prune(options, cancel, progress) {
            return pruned;
        }
        let started = Instant::now();
        let store = &*self.store;
        // After the records, so that one which is removed meanwhile is among these or those.
        let bin = Bin::read(store, options)?;
        let live = bin.mark(&|kept, alone| {
            let marked = match alone {
                true => Catalogue::default().with(store.hashing(), kept.to_vec()),
                false => catalogue.with(store.hashing(), [kept, &store.held()].concat()),
            };
            mark(store, &marked, threads, cancel)
        })?;
        let pruning = Pruning {
            store,
            keeper: &**keeper,
            options,
            bin: (bin.until, bin.up_to),
            cancel,
            progress,
        };
        pruning.run(&live, catalogue.entries().len(), started)
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

/// Prunes a store that is open for changes, without the key if it is encrypted: for a server, see [`Keeper::prune`].
pub fn prune_without_key(
    store: &dyn StoreManager,
    keeper: &dyn Keeper,
    options: PruneOptions,
    threads: usize,
    cancel: &AtomicBool,
    progress: &dyn Fn(u64),
) -> Result<Pruned> {
    let started = Instant::now();
    store.flush()?;
    let is_encrypted = store.identity()?.is_encrypted();
    let mut records = store.records()?;
    let backups = records.len();
    // After the records, so that one which is removed meanwhile is among these or those.
    let bin = Bin::read(store, options)?;
    records.extend(store.held());
    let live = bin.mark(&|kept, alone| {
        let marked = match alone {
            true => kept.to_vec(),
            false => [&records, kept].concat(),
        };
        if is_encrypted {
            return mark_sealed(store, &marked, threads, cancel);
        }
        let mut catalogue = Catalogue::default();
        catalogue.add(store.hashing(), marked);
        mark(store, &catalogue, threads, cancel)
    })?;
    let pruning = Pruning {
        store,
        keeper,
        options,
        bin: (bin.until, bin.up_to),
        cancel,
        progress,
    };
    pruning.run(&live, backups, started)
}

/// The part of the bin that a prune keeps.
struct Bin {
    kept: Vec<Record>,
    /// The rest is what need not stay after that time,
    until: Timestamp,
    /// and came there with this generation or before: nothing else was looked at.
    up_to: u64,
}

impl Bin {
    fn read(store: &dyn StoreManager, options: PruneOptions) -> Result<Self> {
        let until = match options.empty_bin {
            true => Timestamp::MAX,
            false => Timestamp::now(),
        };
        let up_to = store.generation()?;
        let kept = store.forgotten()?.into_iter();
        let kept = kept.filter(|forgotten| forgotten.kept_until > until);
        Ok(Self {
            kept: kept.map(|forgotten| forgotten.record).collect(),
            until,
            up_to,
        })
    }

    /// Marks what these records name, and all else that must stay unless they are marked `alone`. Records in the bin that
    /// are damaged are left out: they can't be brought back, and must not keep a prune from its work.
    fn mark(&self, mark: &dyn Fn(&[Record], bool) -> Result<Live>) -> Result<Live> {
        match mark(&self.kept, false) {
            Err(error) if error.kind() == ErrorKind::Corrupt && !self.kept.is_empty() => {
                let mut whole = Vec::new();
                find_whole(&self.kept, &mark, &mut whole)?;
                mark(&whole, false)
            }
            marked => marked,
        }
    }
}

/// Finds the records that can be marked, by halves: mostly few can't be.
fn find_whole(
    records: &[Record],
    mark: &dyn Fn(&[Record], bool) -> Result<Live>,
    whole: &mut Vec<Record>,
) -> Result<()> {
    match mark(records, true) {
        Ok(_) => whole.extend_from_slice(records),
        Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
        Err(error) => match records {
            [] => {}
            [one] => tracing::warn!(
                "{} can't be brought back, and its blocks are not kept: {error}",
                one.key
            ),
            _ => {
                let (first, second) = records.split_at(records.len() / 2);
                find_whole(first, mark, whole)?;
                find_whole(second, mark, whole)?;
            }
        },
    }
    Ok(())
}

struct Pruning<'a> {
    store: &'a dyn StoreManager,
    keeper: &'a dyn Keeper,
    options: PruneOptions,
    bin: (Timestamp, u64),
    cancel: &'a AtomicBool,
    progress: &'a dyn Fn(u64),
}

impl Pruning<'_> {
    /// Removes what is not in `live`.
    fn run(&self, live: &Live, backups: usize, started: Instant) -> Result<Pruned> {
        let Self {
            store,
            keeper,
            options,
            bin: (until, up_to),
            cancel,
            progress,
        } = *self;
        let marked = started.elapsed();
        let used_before_bytes = keeper.room()?.used_bytes;
        if !options.dry_run {
            store.empty_bin(until, up_to)?;
        }
        let (mut published_bytes, mut published) = (0, Instant::now());
        let swept = store.retain(live, options, &mut |removed_bytes| {
            progress(removed_bytes);
            // The view before keeps all that was removed since on the disk.
            let held_bytes = removed_bytes - published_bytes;
            if held_bytes > 0 && (published.elapsed() >= PUBLISH_INTERVAL || held_bytes >= keeper.free_bytes()?) {
                keeper.publish()?;
                (published_bytes, published) = (removed_bytes, Instant::now());
            }
            match cancel.load(Ordering::SeqCst) {
                true => Err(Error::Interrupted),
                false => Ok(()),
            }
        });
        if !options.dry_run {
            keeper.publish()?;
        }
        Ok(Pruned {
            backups: backups as u64,
            swept: swept?,
            marked,
            used_before_bytes,
            used_after_bytes: keeper.room()?.used_bytes,
        })
    }
}
