//! Copies backups from one repository to another, which keeps what it has: nothing there is removed or changed.
//!
//! A backup is copied when all that it names is stored there, so a copy that was ended at any moment is continued by the next
//! one: that finds the blocks which are there and does not send them again. Everything is proved before it is put.
//!
//! | the two repositories | manifests | blocks |
//! |---|---|---|
//! | name things alike: both plain, or with the same key | the same nodes | those that the other lacks; they stay compressed as they are, but for differences |
//! | name things differently | written again, see `copy/renamed.rs` | those of the changed parts of a disk are read and get their other names; those that the other lacks are put |
//!
//! A part of a disk that did not change since a backup which both have is neither read nor looked for. Between repositories that
//! name things alike the manifests tell that both have it. Between others nothing in a record does: whoever may add backups could
//! have made one that looks like a copy and has other content, and the names of its blocks would become those of each later copy.
//! So such a backup counts only if a note says what it was copied from: a copy writes that, and who may only add backups can't.
//! Otherwise all blocks of the next copy are read once.
//!
//! What is stored as a difference from another block becomes a whole block there, because there its base may be missing, or be a
//! difference. Only a copy without the key copies differences as they are (`copy/sealed.rs`).
//!
//! # Record and note
//!
//! A copied record is the same but for its `sequence`, which counts the changes of a repository, and the names of manifests that
//! had to be written again. `sequence` keeps the backups of a guest in the order of the repository they come from, also when
//! older ones are copied later. Of the note about a backup, the protection and the last rehearsal are copied, once: both
//! are about its content. That it was verified or is damaged is said of other bytes.
//!
//! # Threads and memory
//!
//! The caller's thread reads manifests and looks blocks up; workers read, prove and put blocks, as many as [`crate::runs`]
//! allows, and with them the sealed bytes of 64 MiB at most. Names: 32 MiB.

mod blocks;
mod error;
mod order;
mod renamed;
mod same;
mod sealed;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::backup::{Backup, Entry, Image};
use crate::catalogue::Catalogue;
use crate::error::{Error, Result};
use crate::id::NodeId;
use crate::manifest::Manifest;
use crate::name::GuestName;
use crate::repository::Writer;
use crate::slots::read_manifests;
use crate::state::{State, States, note_of};
use crate::store::{StoreReader, Terms};
use blocks::{Fault, Mover};
pub use error::{CopyError, check};
use order::Order;
use renamed::Renamed;
use same::Known;
pub use sealed::{SealedBackup, SealedCopied, SealedPlan, check_sealed, copy_sealed};

/// Images whose roots and pages are read at once.
const IMAGES_AT_ONCE: usize = 32;

/// Time after which readers are shown what was copied meanwhile.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(30);

/// Attempts to copy a backup when something is gone that was stored for it.
const MOST_TRIES: u32 = 3;

/// Backups to copy.
#[derive(Debug)]
pub struct Plan {
    /// Those that the other repository lacks, in the order in which they were made.
    pub missing: Vec<Entry>,
    /// Number of those that it has.
    pub present: u64,
    /// Those, as `GUEST@TIME`, in whose place it has another backup.
    pub taken: Vec<String>,
    order: Order,
    /// Backups that both have, of guests that have missing ones.
    bases: BTreeMap<GuestName, Vec<Base>>,
    /// Names of backups whose times FROM does not believe.
    doubted: HashSet<String>,
}

/// A backup that both repositories have.
#[derive(Debug, Clone)]
struct Base {
    /// Position in the order.
    rank: usize,
    from: Entry,
    to: Arc<Backup>,
    /// One is a copy of the other, as far as this copy or an earlier one knows.
    is_proven: bool,
}

impl Plan {
    /// Compares two repositories. Only backups that are `wanted` count.
    pub fn new(from: &Catalogue, to: &Catalogue, wanted: &dyn Fn(&Backup) -> bool) -> Self {
        let (order, ranked) = Order::of(from, to);
        let mut plan = Self {
            missing: Vec::new(),
            present: 0,
            taken: Vec::new(),
            order,
            bases: BTreeMap::new(),
            doubted: HashSet::new(),
        };
        for (rank, entry) in ranked.into_iter().enumerate() {
            let there = to
                .of(&entry.backup.guest)
                .find(|there| there.backup.time == entry.backup.time);
            if from.counted_time(&entry.backup) != entry.backup.time {
                plan.doubted.insert(entry.backup.spec());
            }
            let is_wanted = wanted(&entry.backup);
            match there {
                None if is_wanted => plan.missing.push(entry.clone()),
                None => {}
                Some(there) if is_same(&entry.backup, &there.backup) => {
                    plan.present += u64::from(is_wanted);
                    plan.is_present(Base {
                        rank,
                        from: entry.clone(),
                        to: there.backup.clone(),
                        is_proven: false,
                    });
                }
                Some(_) if is_wanted => plan.taken.push(entry.backup.spec()),
                Some(_) => {}
            }
        }
        let guests: HashSet<_> = plan.missing.iter().map(|entry| &entry.backup.guest).collect();
        plan.bases.retain(|guest, _| guests.contains(guest));
        plan
    }

    /// Returns the latest backup before another one that both have.
    fn base_of(&self, guest: &GuestName, rank: usize) -> Option<&Base> {
        let before = self.bases.get(guest)?.iter().filter(|base| base.rank < rank);
        before.max_by_key(|base| base.rank)
    }

    /// Notes a backup that both have.
    fn is_present(&mut self, base: Base) {
        let guest = base.from.backup.guest.clone();
        self.bases.entry(guest).or_default().push(base);
    }
}

/// Returns whether one record is a copy of the other.
fn is_same(one: &Backup, other: &Backup) -> bool {
    let plain = |backup: &Backup| {
        let mut backup = backup.clone();
        backup.sequence = 0;
        for image in backup.images.iter_mut().chain(&mut backup.files) {
            image.manifest = NodeId::ZERO;
        }
        backup
    };
    plain(one) == plain(other)
}

/// What was put.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Blocks.
    pub blocks: u64,
    /// Their plain bytes.
    pub plain_bytes: u64,
    /// Their bytes as they are stored.
    pub stored_bytes: u64,
}

/// An event of a copy.
#[derive(Debug)]
pub enum Step<'a> {
    /// The copy of a backup begins.
    Begun(&'a Backup),
    /// Blocks of so many plain bytes were read.
    Read(u64),
    /// A backup is copied, for which this was put. It was there already if another process was faster.
    Copied(&'a Backup, Sent),
    /// A backup can't be copied.
    Failed(&'a Backup, &'a Error),
    /// The note about a backup can't be read; the copy is protected.
    Guessed(&'a Backup),
}

/// Result of a copy.
#[derive(Debug, Default)]
pub struct Copied {
    /// Number of backups that were copied.
    pub backups: u64,
    /// Backups, as `GUEST@TIME`, that could not be copied, with the reason.
    pub failed: Vec<(String, Error)>,
    /// All that was put, also for backups that could not be copied.
    pub sent: Sent,
    /// Blocks that were looked for and found there.
    pub found_blocks: u64,
    /// Reason why readers do not see what was copied before the next writer has published it, if so.
    pub unpublished: Option<Error>,
}

/// Options of a copy.
#[derive(Clone, Copy)]
pub struct CopyOptions<'a> {
    /// Number of threads that may compute at once.
    pub threads: usize,
    /// Ends the copy soon when it is set.
    pub cancel: &'a AtomicBool,
    /// Gets every event, from several threads.
    pub observer: &'a (dyn Fn(Step<'_>) + Sync),
    /// Called before backups are added: an error ends the copy.
    pub check_room: &'a (dyn Fn() -> Result<()> + Sync),
}

/// Copies the missing backups of a plan, oldest first. A backup that is damaged where it comes from is in the result; any other
/// error ends the copy. What was put until then stays, for the next copy.
pub fn copy(
    from: &dyn StoreReader,
    to: &Writer,
    plan: Plan,
    options: CopyOptions<'_>,
) -> std::result::Result<Copied, CopyError> {
    let (theirs, ours) = (from.identity().map_err(CopyError::From)?, to.identity());
    check((&theirs.id, theirs.block_size), (&ours.id, ours.block_size))?;
    if plan.missing.is_empty() {
        return Ok(Copied::default());
    }
    let states = States::load(from).map_err(CopyError::From)?;
    let mut plan = plan;
    if from.hashing() != to.store().hashing() {
        let there = States::load(to.store()).map_err(CopyError::To)?;
        for base in plan.bases.values_mut().flatten() {
            base.is_proven = there.noted(&base.to.spec()).copy_of == Some(base.from.id);
        }
    }
    let condemned = to.store().condemned().map_err(CopyError::To)?;
    let mut job = Job {
        from,
        to,
        plan,
        states,
        options,
        mover: Mover::new(
            from,
            to.store(),
            theirs.block_size,
            options,
            condemned.into_iter().collect(),
        ),
        known: Known::default(),
        renamed: Renamed::default(),
        relied_on: HashSet::new(),
        published: Instant::now(),
        copied: Copied::default(),
    };
    let done = job.run();
    if done.is_err() {
        // So that the next copy need not send the same again.
        if let Err(error) = to.store().flush() {
            tracing::debug!(%error, "what an unfinished copy stored may have to be sent again");
        }
    }
    if job.copied.backups > 0 {
        job.copied.unpublished = to.publish().err();
    }
    done?;
    (job.copied.sent, job.copied.found_blocks) = job.mover.totals();
    Ok(job.copied)
}

struct Job<'a> {
    from: &'a dyn StoreReader,
    to: &'a Writer,
    plan: Plan,
    states: States,
    options: CopyOptions<'a>,
    mover: Mover<'a>,
    known: Known,
    renamed: Renamed,
    /// Backups there, as `GUEST@TIME`, that a prune leaves, with all that this copy takes for known.
    relied_on: HashSet<String>,
    /// Time at which readers were shown what was copied.
    published: Instant,
    copied: Copied,
}

impl Job<'_> {
    fn run(&mut self) -> std::result::Result<(), CopyError> {
        let missing = std::mem::take(&mut self.plan.missing);
        let mut rest = &missing[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(with_images(rest));
            rest = later;
            (self.options.check_room)().map_err(CopyError::To)?;
            let images = now.iter().flat_map(|entry| entry.backup.stored());
            let ids: Vec<_> = images.map(|image| image.manifest).collect();
            let mut manifests = read_manifests(self.from, &ids).into_iter();
            for entry in now {
                let images = entry.backup.stored().count();
                let manifests: Vec<_> = manifests.by_ref().take(images).collect();
                self.backup(entry, manifests)?;
            }
        }
        Ok(())
    }

    /// Copies a backup, and notes in the result if it can't be copied.
    fn backup(&mut self, entry: &Entry, manifests: Vec<Result<Manifest>>) -> std::result::Result<(), CopyError> {
        let backup = &entry.backup;
        if self.options.cancel.load(Ordering::SeqCst) {
            return Err(CopyError::To(Error::Interrupted));
        }
        (self.options.observer)(Step::Begun(backup));
        let before = self.mover.totals().0;
        match self.try_backup(entry, manifests) {
            Ok(()) => {
                let after = self.mover.totals().0;
                let sent = Sent {
                    blocks: after.blocks - before.blocks,
                    plain_bytes: after.plain_bytes - before.plain_bytes,
                    stored_bytes: after.stored_bytes - before.stored_bytes,
                };
                self.copied.backups += 1;
                if self.published.elapsed() >= PUBLISH_INTERVAL {
                    // One that fails is made up for at the end.
                    let _ = self.to.publish();
                    self.published = Instant::now();
                }
                (self.options.observer)(Step::Copied(backup, sent));
                Ok(())
            }
            Err(Fault::Backup(error)) => {
                (self.options.observer)(Step::Failed(backup, &error));
                self.copied.failed.push((backup.spec(), error));
                Ok(())
            }
            Err(Fault::From(error)) => Err(CopyError::From(error)),
            Err(Fault::To(error)) => Err(CopyError::To(error)),
        }
    }

    fn try_backup(&mut self, entry: &Entry, manifests: Vec<Result<Manifest>>) -> std::result::Result<(), Fault> {
        let backup = &entry.backup;
        let manifests = manifests.into_iter().map(|read| read.map_err(Fault::of_source));
        let manifests: Vec<Manifest> = manifests.collect::<std::result::Result<_, _>>()?;
        let mut tries = 0;
        loop {
            let stored = self.images(backup, &manifests, tries > 0);
            match stored.and_then(|stored| self.commit(entry, stored)) {
                Err(Fault::To(Error::Missing { blocks, .. })) if tries < MOST_TRIES => {
                    tries += 1;
                    // Nothing counts as known that is not found there, and what is gone is put whatever the store says.
                    self.mover.are_lost(blocks);
                    self.known.forget();
                    self.renamed.forget();
                    self.relied_on.clear();
                }
                done => {
                    self.mover.are_lost(Vec::new());
                    return done;
                }
            }
        }
    }

    /// Puts everything that a backup needs, and returns the backup with the manifests that it has there. With `looks_at_all`
    /// nothing is taken for known.
    fn images(
        &mut self,
        backup: &Backup,
        manifests: &[Manifest],
        looks_at_all: bool,
    ) -> std::result::Result<Backup, Fault> {
        let rank = self.plan.order.rank(backup);
        let base = match looks_at_all {
            false => self.plan.base_of(&backup.guest, rank),
            true => None,
        };
        if let Some(spec) = base.map(|base| base.to.spec())
            && self.relied_on.insert(spec.clone())
        {
            // Before anything of it is taken for known, so that a prune leaves it.
            self.to.store().builds_on(&spec).map_err(Fault::To)?;
        }
        let mut stored = backup.clone();
        if self.names_alike() {
            // Where blocks are condemned, all of the disk is looked through for them: that is cheap here, and replaces them.
            if let Some(base) = base.filter(|_| !self.mover.has_condemned()) {
                self.known.learn(self.to.store(), &base.to).map_err(Fault::To)?;
            }
            same::copy(&self.mover, &mut self.known, backup, manifests)?;
            return Ok(stored);
        }
        let base = base.filter(|base| base.is_proven);
        let images = stored.images.iter_mut().chain(&mut stored.files);
        for (image, manifest) in images.zip(manifests) {
            let before = base.and_then(|base| Some((find(&base.from.backup, image)?, find(&base.to, image)?)));
            image.manifest = self.renamed.copy(&self.mover, manifest, before)?;
        }
        Ok(stored)
    }

    /// Returns whether equal blocks have equal names in both.
    fn names_alike(&self) -> bool {
        self.from.hashing() == self.to.store().hashing()
    }

    /// Makes a backup visible there.
    fn commit(&mut self, entry: &Entry, stored: Backup) -> std::result::Result<(), Fault> {
        let backup = &entry.backup;
        let key = backup.spec();
        let copy_of = (!self.names_alike()).then_some(entry.id);
        let noted = self.states.noted(&key);
        let sequence = self.plan.order.sequence_of(backup);
        let with = |generation| {
            let state = State {
                protected: noted.protected,
                note: noted.note.clone(),
                rehearsed: noted.rehearsed,
                arrived: sequence.map(|_| generation),
                copy_of,
                ..State::default()
            };
            let notes = match state == State::default() {
                true => Vec::new(),
                false => vec![note_of(&key, state)],
            };
            (sequence.unwrap_or(generation), notes)
        };
        // What FROM's rules do not believe must not become true by a copy.
        self.to.store().set_terms(Terms {
            doubts_times: self.plan.doubted.contains(&key),
            ..Terms::default()
        });
        let (there, is_proven) = match self.to.commit_unpublished(stored, &with) {
            Err(Error::BackupExists(_)) => (self.exists(backup)?, false),
            committed => (committed.map_err(Fault::To)?.backup, true),
        };
        if self.states.is_unread(&key) {
            (self.options.observer)(Step::Guessed(backup));
        }
        self.plan.order.add(backup, there.sequence);
        // All that it needs was put or found by this writer.
        self.relied_on.insert(key);
        // The backups come in order, so the earlier ones are of no use any more.
        let rank = self.plan.order.rank(backup);
        let base = Base {
            rank,
            from: entry.clone(),
            to: there,
            is_proven,
        };
        if let Some(bases) = self.plan.bases.get_mut(&backup.guest) {
            bases.retain(|other| other.rank > rank);
        }
        self.plan.is_present(base);
        Ok(())
    }

    /// Returns the backup that another process has stored meanwhile, if it is the same one.
    fn exists(&self, backup: &Backup) -> std::result::Result<Arc<Backup>, Fault> {
        let (store, key) = (self.to.store(), backup.spec());
        let found = store.lookup(std::slice::from_ref(&key), &[]).map_err(Fault::To)?;
        let record = found.records.into_iter().next();
        let there = record.and_then(|record| Entry::decode(store.hashing(), &key, &record.bytes).ok());
        match there.filter(|there| is_same(&there.backup, backup)) {
            Some(there) => Ok(there.backup),
            None => Err(Fault::Backup(Error::BackupExists(key))),
        }
    }
}

/// Returns the number of backups at the start of a list, one at least, that have [`IMAGES_AT_ONCE`] images.
fn with_images(entries: &[Entry]) -> usize {
    let mut images = 0;
    let fits = entries.iter().take_while(|entry| {
        images += entry.backup.stored().count();
        images <= IMAGES_AT_ONCE
    });
    fits.count().max(1)
}

/// Returns the manifest that an image of the same name has in another backup.
fn find(backup: &Backup, image: &Image) -> Option<NodeId> {
    let found = backup.stored().find(|other| other.disk == image.disk);
    found.map(|image| image.manifest)
}

#[cfg(test)]
mod tests;
