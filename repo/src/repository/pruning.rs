//! Prunes: marks what backups need, and has the store sweep the rest.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::home::{Keeper, Pruned};
use super::{Manager, Repository, Unfinished, View};
use crate::catalogue::Catalogue;
use crate::error::{Error, ErrorKind, Result};
use crate::mark::{check_complete, mark, mark_sealed};
use crate::store::rocks::Estimate;
use crate::store::{Live, PruneOptions, Record, StoreManager, StoreReader, Swept};

/// Time after which a prune shows readers its progress, and releases the view before. Sooner where little is free.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(60);

/// Room that a prune may take with copies of what it moves before it does the same.
const PUBLISH_BYTES: u64 = 2 << 30;

/// Time between two looks whether another process waits.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

impl Manager {
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
        self.prune_all(options, threads, cancel, &Told::to(progress))
    }

    /// Like [`Manager::prune`], but ends early when another process waits for the repository. What was removed by then stays
    /// removed; a prune that is made when the other process is done continues, with marks of its own.
    pub fn prune_until_awaited(
        &mut self,
        options: PruneOptions,
        threads: usize,
        cancel: &AtomicBool,
        progress: &dyn Fn(u64),
    ) -> Result<Turn> {
        let keeper = Arc::clone(&self.writer.keeper);
        until_awaited(&*keeper, cancel, progress, |stop, told| {
            self.prune_all(options, threads, stop, told)
        })
    }

    fn prune_all(
        &mut self,
        options: PruneOptions,
        threads: usize,
        cancel: &AtomicBool,
        told: &Told<'_>,
    ) -> Result<Pruned> {
        let pruned = self.prune_blocks(options, threads, cancel, told)?;
        if !options.dry_run
            && let Err(error) = self.tidy_notes()
        {
            tracing::debug!(%error, "notes of backups that are not in the bin any more stay until the next prune");
        }
        Ok(pruned)
    }

    fn prune_blocks(
        &mut self,
        options: PruneOptions,
        threads: usize,
        cancel: &AtomicBool,
        told: &Told<'_>,
    ) -> Result<Pruned> {
        // Puts of an unfinished backup of this writer are in the index then.
        self.store.flush()?;
        let catalogue = self.catalogue()?;
        // What keeps the store elsewhere has no key to find that out with.
        check_complete(&catalogue)?;
        let keeper = &self.writer.keeper;
        if let Some(pruned) = keeper.prune(options, cancel, told.progress) {
            return pruned;
        }
        let store = &*self.store;
        let pruning = Pruning {
            store,
            keeper: &**keeper,
            options,
            cancel,
            told,
            started: Instant::now(),
        };
        pruning.run(catalogue.entries().len(), &|kept, alone| {
            let marked = match alone {
                true => Catalogue::default().with(store.hashing(), kept.to_vec()),
                false => catalogue.with(store.hashing(), [kept, &store.held()].concat()),
            };
            mark(store, &marked, threads, cancel)
        })
    }
}

/// Result of [`Repository::would_prune`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WouldPrune {
    /// What would be done, as far as blocks go: nodes of manifests are not counted.
    pub pruned: Pruned,
    /// Blocks that were stored since the newest view, if they are known. They count as unused, unless there is a writer.
    pub unfinished: Option<Unfinished>,
    /// A process writes to the repository, and may need those.
    pub is_written: bool,
}

impl Repository {
    /// Counts what a prune would remove from what a view shows, and from what was stored since, as if the backups `forgotten`, named
    /// as `GUEST@TIME`, had been forgotten. Reads only, so it needs no lock and never waits. Of a repository on another host it is not
    /// known what was stored since the view, nor who writes.
    pub fn would_prune(
        &self,
        view: &View,
        forgotten: &HashSet<String>,
        options: PruneOptions,
        threads: usize,
        cancel: &AtomicBool,
    ) -> Result<WouldPrune> {
        let (store, catalogue) = (view.store(), view.catalogue()?.without(forgotten)?);
        let marks = |kept: &[Record], alone: bool| {
            let marked = match alone {
                true => Catalogue::default().with(store.hashing(), kept.to_vec()),
                false => catalogue.with(store.hashing(), kept.to_vec()),
            };
            mark(&*store, &marked, threads, cancel)
        };
        self.would_prune_in(
            view.number(),
            &*store,
            catalogue.entries().len(),
            options,
            &marks,
            cancel,
        )
    }

    /// The same without the key, for a repository in a directory of this machine. Which backups have which names is not known.
    pub fn would_prune_sealed(&self, options: PruneOptions, threads: usize, cancel: &AtomicBool) -> Result<WouldPrune> {
        let view = self.sealed_view()?;
        let records = view.store.records()?;
        let marks = |kept: &[Record], alone: bool| {
            let marked = match alone {
                true => kept.to_vec(),
                false => [&records, kept].concat(),
            };
            mark_sealed(&*view.store, &marked, threads, cancel)
        };
        self.would_prune_in(view.number, &*view.store, records.len(), options, &marks, cancel)
    }

    fn would_prune_in(
        &self,
        view: u64,
        store: &dyn StoreReader,
        backups: usize,
        options: PruneOptions,
        mark: &dyn Fn(&[Record], bool) -> Result<Live>,
        cancel: &AtomicBool,
    ) -> Result<WouldPrune> {
        let started = Instant::now();
        let live = Bin::read(store, options)?.mark(mark)?;
        let marked = started.elapsed();
        let mut estimate = Estimate::new(&store.identity()?);
        store.survey(&mut |_, located| {
            if cancel.load(Ordering::SeqCst) {
                return Err(Error::Interrupted);
            }
            estimate.add(&located, live.has_block_at(located.place));
            Ok(())
        })?;
        // Before the blocks: a writer that begins in between takes over some that are counted as unused, and none is missed.
        let is_written = match self.local_path() {
            Ok(_) => super::directory::activity::status(self)?.writer.is_some(),
            Err(_) => false,
        };
        let unfinished = self.unfinished(view, &mut |located| {
            if !is_written {
                estimate.add(&located, false);
            }
        });
        let used_bytes = self.disk_usage()?.total_bytes;
        Ok(WouldPrune {
            pruned: Pruned {
                backups: backups as u64,
                swept: estimate.finish(options.max_unused),
                marked,
                used_before_bytes: used_bytes,
                used_after_bytes: used_bytes,
            },
            unfinished,
            is_written,
        })
    }
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
    prune_all_without_key(store, keeper, options, threads, cancel, &Told::to(progress))
}

/// The same until another process waits for the repository: see [`Manager::prune_until_awaited`].
pub(super) fn prune_without_key_until_awaited(
    store: &dyn StoreManager,
    keeper: &dyn Keeper,
    options: PruneOptions,
    threads: usize,
    cancel: &AtomicBool,
    progress: &dyn Fn(u64),
) -> Result<Turn> {
    until_awaited(keeper, cancel, progress, |stop, told| {
        prune_all_without_key(store, keeper, options, threads, stop, told)
    })
}

fn prune_all_without_key(
    store: &dyn StoreManager,
    keeper: &dyn Keeper,
    options: PruneOptions,
    threads: usize,
    cancel: &AtomicBool,
    told: &Told<'_>,
) -> Result<Pruned> {
    let pruning = Pruning {
        store,
        keeper,
        options,
        cancel,
        told,
        started: Instant::now(),
    };
    store.flush()?;
    let is_encrypted = store.identity()?.is_encrypted();
    let records = store.records()?;
    pruning.run(records.len(), &|kept, alone| {
        let marked = match alone {
            true => kept.to_vec(),
            false => [&records, kept, &store.held()].concat(),
        };
        if is_encrypted {
            return mark_sealed(store, &marked, threads, cancel);
        }
        let mut catalogue = Catalogue::default();
        catalogue.add(store.hashing(), marked);
        mark(store, &catalogue, threads, cancel)
    })
}

/// End of a prune that lets others in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Turn {
    /// It is complete.
    Done(Pruned),
    /// Another process waits.
    GaveWay {
        /// What was removed.
        swept: Swept,
        /// Room that the repository took before; `None` if nothing was removed yet.
        used_before_bytes: Option<u64>,
    },
}

/// What a prune has told of itself.
struct Told<'a> {
    progress: &'a dyn Fn(u64),
    swept: Cell<Swept>,
    used_before_bytes: Cell<Option<u64>>,
}

impl<'a> Told<'a> {
    fn to(progress: &'a dyn Fn(u64)) -> Self {
        Self {
            progress,
            swept: Cell::default(),
            used_before_bytes: Cell::default(),
        }
    }

    fn tell(&self, swept: &Swept) {
        self.swept.set(*swept);
        (self.progress)(swept.removed_bytes);
    }
}

/// Runs a prune with a flag that ends it soon after the caller cancels it, or another process waits for `keeper`'s place.
fn until_awaited(
    keeper: &dyn Keeper,
    cancel: &AtomicBool,
    progress: &dyn Fn(u64),
    prune: impl FnOnce(&AtomicBool, &Told<'_>) -> Result<Pruned>,
) -> Result<Turn> {
    let (stop, is_awaited) = (AtomicBool::new(false), AtomicBool::new(false));
    let told = Told::to(progress);
    let (ended, ends) = mpsc::channel::<()>();
    let look = || {
        is_awaited.fetch_or(keeper.is_awaited(), Ordering::SeqCst);
        if is_awaited.load(Ordering::SeqCst) || cancel.load(Ordering::SeqCst) {
            stop.store(true, Ordering::SeqCst);
        }
    };
    look();
    let look = &look;
    let watch = move || {
        // Ends when the other side of the channel is dropped.
        while ends.recv_timeout(LOOK_INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
            look();
        }
    };
    let pruned = thread::scope(|scope| {
        let watching = thread::Builder::new().name("vbk-turns".into());
        let watching = watching.spawn_scoped(scope, watch);
        watching.map_err(Error::io("start thread", "vbk-turns"))?;
        let pruned = prune(&stop, &told);
        drop(ended);
        pruned
    });
    match pruned {
        Err(Error::Interrupted) if is_awaited.into_inner() && !cancel.load(Ordering::SeqCst) => Ok(Turn::GaveWay {
            swept: told.swept.get(),
            used_before_bytes: told.used_before_bytes.get(),
        }),
        pruned => pruned.map(Turn::Done),
    }
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
    fn read(store: &(impl StoreReader + ?Sized), options: PruneOptions) -> Result<Self> {
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
    cancel: &'a AtomicBool,
    told: &'a Told<'a>,
    started: Instant,
}

impl Pruning<'_> {
    /// Removes what is not marked. The caller has read the `backups` records before: see [`Bin::mark`] for `mark`.
    fn run(&self, backups: usize, mark: &dyn Fn(&[Record], bool) -> Result<Live>) -> Result<Pruned> {
        let Self {
            store,
            keeper,
            options,
            cancel,
            told,
            started,
        } = *self;
        // After the records, so that one which is removed meanwhile is among these or those.
        let bin = Bin::read(store, options)?;
        let live = bin.mark(mark)?;
        let marked = started.elapsed();
        let room = keeper.room()?;
        let used_before_bytes = room.used_bytes;
        told.used_before_bytes.set(Some(used_before_bytes));
        if !options.dry_run {
            store.empty_bin(bin.until, bin.up_to)?;
        }
        let (mut published_bytes, mut published, mut free_then_bytes) = (0, Instant::now(), room.free_bytes);
        let swept = store.retain(&live, options, &mut |swept| {
            told.tell(swept);
            let removed_bytes = swept.removed_bytes;
            // The view before keeps on the disk all that was removed since, and a copy of what was moved.
            let held_bytes = removed_bytes - published_bytes;
            let free_bytes = keeper.free_bytes()?;
            let is_short = free_bytes <= held_bytes.max(free_then_bytes / 2);
            let is_due = is_short || published.elapsed() >= PUBLISH_INTERVAL;
            if held_bytes > 0 && is_due || free_bytes.saturating_add(PUBLISH_BYTES) <= free_then_bytes {
                keeper.publish()?;
                (published_bytes, published) = (removed_bytes, Instant::now());
                free_then_bytes = keeper.free_bytes()?;
            }
            match cancel.load(Ordering::SeqCst) {
                true => Err(Error::Interrupted),
                false => Ok(()),
            }
        });
        if !options.dry_run {
            keeper.publish()?;
            if swept.is_ok() {
                keeper.note_prune();
            }
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

#[cfg(test)]
mod tests;
