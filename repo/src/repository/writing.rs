//! A repository open for writing.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::backup::{Backup, Entry};
use crate::catalogue::Catalogue;
use crate::error::{Error, Result};
use crate::id::BackupId;
use crate::mark::mark;
use crate::repository::disk_usage::{disk_usage, file_system};
use crate::repository::lock::WriterLock;
use crate::repository::views;
use crate::standing::Standing;
use crate::state::{self, State, States};
use crate::store::rocks::RocksStore;
use crate::store::{BlockStore, Identity, Note, Record, Swept, Thrift};

/// A prune shows readers its progress, and lets go of what they saw before, each time it has removed so much, or as much
/// as is free.
const PUBLISH_BYTES: u64 = 2 << 30;

/// A repository open for writing; no other process can write to it meanwhile.
pub struct Writer {
    pub(super) rocks: Arc<RocksStore>,
    /// The same, with encryption where there is some.
    pub(super) store: Arc<dyn BlockStore>,
    pub(super) identity: Identity,
    pub(super) path: PathBuf,
    /// Held while the store's generation changes, so that a backup knows the one that it comes with.
    pub(super) changing: Mutex<()>,
    pub(super) publishing: Mutex<()>,
    pub(super) _lock: WriterLock,
}

impl Writer {
    /// What the repository is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The repository's identity and age, as the store itself says.
    pub fn standing(&self) -> Result<Standing> {
        Ok(Standing::new(&self.identity, self.store.generation()?).with_epoch(self.store.epoch()?))
    }

    /// What keeps the bytes.
    pub fn store(&self) -> &dyn BlockStore {
        &*self.store
    }

    /// All backups.
    pub fn catalogue(&self) -> Result<Catalogue> {
        Catalogue::load(&*self.store)
    }

    /// Makes a backup visible. Everything it names must have been put; all of it is durable when this returns.
    /// Its `format` is set to what it needs, and its `sequence` to the generation that it comes with.
    pub fn commit(&self, mut backup: Backup) -> Result<Committed> {
        backup.check()?;
        backup.format = backup.needed_format();
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        backup.sequence = self.store.generation()? + 1;
        let bytes = backup.encode();
        let id = BackupId(self.store.hashing().content(&bytes));
        let key = backup.spec();
        self.store.commit(&Record { key, bytes })?;
        drop(changing);
        Ok(Committed {
            entry: Entry { id, backup },
            unpublished: self.publish().err(),
        })
    }

    /// What is known of the backups besides their records.
    pub fn states(&self) -> Result<States> {
        States::load(&*self.store)
    }

    /// Removes backups, named as `GUEST@TIME`, and changes notes: all of it or nothing, durable when this returns. The
    /// blocks stay until [`Writer::prune`].
    pub fn amend(&self, forget: &[String], notes: &[Note]) -> Result<()> {
        if let (Some(what), false) = (self.store.foreign_changes()?.into_iter().next(), forget.is_empty()) {
            return Err(Error::ForeignChanges { what });
        }
        let mut all = notes.to_vec();
        all.extend(forget.iter().map(|key| state::note_of(key, State::default())));
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.store.amend(forget, &all)?;
        drop(changing);
        self.publish()
    }

    /// Takes the records and notes of an encrypted repository as they are, whoever changed them. Gives what was found changed
    /// without the key.
    pub fn accept(&self) -> Result<Vec<String>> {
        let found = self.store.accept()?;
        if !found.is_empty() {
            self.publish()?;
        }
        Ok(found)
    }

    /// Removes what no backup names, and gives its space back. May be ended at any moment; the next one goes on.
    /// `progress` is told the bytes that were removed so far.
    pub fn prune(&self, thrift: Thrift, threads: usize, cancel: &AtomicBool, progress: &dyn Fn(u64)) -> Result<Pruned> {
        let started = Instant::now();
        // What an unfinished backup of this writer put is in the index then.
        self.store.flush()?;
        let catalogue = self.catalogue()?;
        let live = mark(&*self.store, &catalogue, threads, cancel)?;
        let marked = started.elapsed();
        let used_before = disk_usage(&self.path)?.total_bytes;
        let mut published_bytes = 0;
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let swept = self.store.retain(&live, thrift, &mut |removed_bytes| {
            progress(removed_bytes);
            // The view before holds on to all that was removed since.
            let free_bytes = file_system(&self.path)?.free_bytes;
            if removed_bytes - published_bytes >= PUBLISH_BYTES.min(free_bytes) {
                published_bytes = removed_bytes;
                self.publish()?;
            }
            match cancel.load(Ordering::SeqCst) {
                true => Err(Error::Interrupted),
                false => Ok(()),
            }
        });
        drop(changing);
        if !thrift.dry_run {
            self.publish()?;
        }
        Ok(Pruned {
            backups: catalogue.entries().len() as u64,
            swept: swept?,
            marked,
            used_before_bytes: used_before,
            used_after_bytes: disk_usage(&self.path)?.total_bytes,
        })
    }

    fn publish(&self) -> Result<()> {
        // One at a time: guests are backed up at once, and an older view put in the place of a newer one would hide what is
        // in that, and take its directory away.
        let _one = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        views::publish(&self.path, &self.rocks)
    }
}

/// What a prune did.
#[derive(Debug, Clone, Copy)]
pub struct Pruned {
    /// Backups that are kept.
    pub backups: u64,
    /// What was found and removed.
    pub swept: Swept,
    /// How long it took to find out what is needed.
    pub marked: Duration,
    /// What the repository took on its file system before.
    pub used_before_bytes: u64,
    /// And after. What views of running readers hold is given back when those end.
    pub used_after_bytes: u64,
}

/// A backup that is stored.
#[derive(Debug)]
pub struct Committed {
    /// The backup.
    pub entry: Entry,
    /// Why readers do not see it before the next writer has been there, if so.
    pub unpublished: Option<Error>,
}
