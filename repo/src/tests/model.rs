//! Performs random operations of people and programs on a repository, and compares it with a model: a map from names of
//! backups to disks. With faults, a failed step must leave all backups intact, and succeed when it is repeated without
//! a fault.
//!
//! `PROPTEST_CASES` sets the number of cases of each test.

mod engine;
mod expected;
mod homes;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;

use self::expected::{Backups, Bounds, Disk, GUESTS, Kept, ids_of};
use self::homes::{ENCRYPTED, Home, InMemory, InRocks, Layer, NOTHING};
use self::steps::{Step, Trial, Way, steps, trials};
use crate::catalogue::Catalogue;
use crate::error::{Error, ErrorKind, Result};
use crate::id::BlockId;
use crate::mark::mark;
use crate::reader::{ImageReader, ReadResources};
use crate::state::{State, States, note_of};
use crate::store::faulty::{Calls, Fault, FaultyStore};
use crate::store::{PruneOptions, StoreManager, StoreReader, Swept};
use crate::verify::{Scope, verify};

static CANCEL: AtomicBool = AtomicBool::new(false);

/// A store with its model.
struct Bench<H> {
    home: H,
    layer: Layer,
    open: Option<Opened>,
    /// The present disks of each guest.
    guests: Vec<Vec<Disk>>,
    backups: Backups,
    /// The stored blocks.
    blocks: Bounds,
    condemned: Bounds,
    view: Option<View>,
}

struct Opened {
    store: Arc<dyn StoreManager>,
    faulty: Arc<FaultyStore>,
}

struct View {
    reader: Arc<dyn StoreReader>,
    backups: Backups,
    /// Removed when the reader is dropped.
    _directory: TempDir,
}

impl<H: Home> Bench<H> {
    fn new(home: H, layer: Layer) -> Self {
        let mut disk = Disk::default();
        disk.write(0, &[0, 4, 5, 2, 4, 1, 0, 0, 3], 511, true);
        let guests = GUESTS.iter().map(|(_, disks)| vec![disk.clone(); *disks]);
        let mut bench = Self {
            home,
            layer,
            open: None,
            guests: guests.collect(),
            backups: Backups::new(),
            blocks: Bounds::default(),
            condemned: Bounds::default(),
            view: None,
        };
        bench.reopen(false);
        bench
    }

    fn run(mut self, steps: &[(Step, Trial)]) {
        for (step, trial) in steps {
            self.take(step, trial);
        }
        self.step(&Step::Verify).expect("verifies");
        self.check_everything();
        let prune = Step::Prune {
            max_unused: 0.0,
            end_at: None,
            view: false,
        };
        self.step(&prune).expect("prunes");
        self.check_everything();
        self.reopen(true);
        self.check_everything();
    }

    /// Performs a step, and repeats it if it failed because of the injected fault.
    fn take(&mut self, step: &Step, trial: &Trial) {
        if let Some((fault, _)) = trial {
            self.opened().faulty.arm(*fault);
        }
        let result = self.step(step);
        let fired = self.opened().faulty.disarm();
        if let Err(error) = result {
            let Some((fault, kill)) = trial.filter(|_| fired) else {
                panic!("{step:?}: {error}");
            };
            assert_eq!(error.kind(), fault.kind, "{step:?}: {error}");
            self.check_everything();
            if fault.lasting || self.opened().faulty.is_broken() {
                self.reopen(kill);
                self.check_everything();
            }
            self.step(step)
                .unwrap_or_else(|error| panic!("{step:?} again, without the fault: {error}"));
        }
        self.check();
    }

    fn opened(&self) -> &Opened {
        self.open.as_ref().expect("it is closed only while it is opened again")
    }

    fn store(&self) -> Arc<dyn StoreManager> {
        Arc::clone(&self.opened().store)
    }

    fn reopen(&mut self, kill: bool) {
        if kill {
            self.home.kill();
        }
        self.open = None;
        let faulty = Arc::new(FaultyStore::new(self.home.open()));
        let store = (self.layer.store)(faulty.clone());
        self.open = Some(Opened { store, faulty });
        self.blocks.settle(surveyed(&*self.store()).expect("surveys"));
        self.condemned.settle(condemned(&*self.store()).expect("lists"));
    }

    fn look(&mut self) {
        self.view = self.home.view().map(|(reader, directory)| View {
            reader: (self.layer.reader)(reader),
            backups: self.backups.clone(),
            _directory: directory,
        });
    }

    /// Performs a step. Returns only errors of the store; any wrong result is a panic.
    fn step(&mut self, step: &Step) -> Result<()> {
        let store = self.store();
        match *step {
            Step::Write {
                disk,
                at,
                ref contents,
                last_bytes,
                cut,
            } => {
                let mut disks = self.guests.iter_mut().flatten();
                disks
                    .nth(disk)
                    .expect("there are three")
                    .write(at, contents, last_bytes, cut);
            }
            Step::Backup(guest, way) => return self.back_up(guest, way),
            Step::Forget(number) => {
                if let Some(key) = self.key(number) {
                    store.amend(std::slice::from_ref(&key), &[note_of(&key, State::default())])?;
                    self.backups.remove(&key);
                }
            }
            Step::Protect(number, protected) => {
                if let Some(key) = self.key(number) {
                    let state = State {
                        protected,
                        ..State::default()
                    };
                    store.amend(&[], &[note_of(&key, state)])?;
                    self.backups.get_mut(&key).expect("is there").protected = protected;
                }
            }
            Step::Prune {
                max_unused,
                end_at,
                view,
            } => {
                // The step may have to open the store again.
                drop(store);
                return self.prune(max_unused, end_at, view);
            }
            Step::Condemn { backup, block, heal } => return self.condemn(backup, block, heal),
            Step::Pardon(number) => {
                let all: Vec<_> = self.condemned.sure.union(&self.condemned.maybe).copied().collect();
                if !all.is_empty() {
                    let id = all[number % all.len()];
                    store.pardon(&[id])?;
                    self.condemned.remove(&id);
                }
            }
            Step::Open { kill } => {
                drop(store);
                self.reopen(kill);
            }
            Step::View => self.look(),
            Step::Read {
                backup,
                at_permille,
                len,
            } => {
                if let Some(key) = self.key(backup) {
                    read(store, &key, &self.backups[&key], at_permille, len)?;
                }
                if let Some(view) = self.view.as_ref().filter(|view| !view.backups.is_empty()) {
                    let (key, kept) = view.backups.iter().nth(backup % view.backups.len()).expect("in it");
                    read(view.reader.clone(), key, kept, at_permille, len).expect("a view reads");
                }
            }
            Step::Verify => {
                let catalogue = Catalogue::load(&*store)?;
                let report = verify(&*store, catalogue.entries(), &Scope::All, 2, &|_| (), &CANCEL)?;
                assert_eq!(report.damage, []);
            }
        }
        Ok(())
    }

    fn key(&self, number: usize) -> Option<String> {
        let count = self.backups.len().max(1);
        self.backups.keys().nth(number % count).cloned()
    }

    fn prune(&mut self, max_unused: f64, end_at: Option<(usize, bool)>, view: bool) -> Result<()> {
        let store = self.store();
        store.flush()?;
        let live = mark(&*store, &Catalogue::load(&*store)?, 2, &CANCEL)?;
        let named = ids_of(&*store, &self.backups);
        let named = closure(named, &base_of_each(&*store)?);
        assert!(named.is_subset(&self.blocks.sure), "the model itself is wrong");
        let options = |dry_run| PruneOptions {
            max_unused,
            dry_run,
            empty_bin: false,
        };
        let would = store.retain(&live, options(true), &mut |_| Ok(()))?;
        self.blocks.loosen(|id| named.contains(id));
        // The store may or may not still count a removed block as damaged.
        self.condemned.loosen(|id| named.contains(id));
        let mut calls = 0;
        let mut told = 0;
        let result = store.retain(&live, options(false), &mut |swept| {
            assert!(swept.removed_bytes >= told, "what was removed grows");
            told = swept.removed_bytes;
            if view {
                self.look();
            }
            calls += 1;
            let Some((at, kill)) = end_at.filter(|(at, _)| *at <= calls) else {
                return Ok(());
            };
            // One more call tells what was removed in all.
            if kill && at == calls {
                self.home.kill();
            }
            Err(Error::Interrupted)
        });
        if let Some((_, kill)) = end_at.filter(|(at, _)| *at <= calls) {
            assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
            if kill {
                drop(store);
                self.reopen(false);
            }
            return Ok(());
        }
        let swept = result?;
        assert_eq!(swept, would, "a dry run tells what will be done");
        let mut left_bytes = BTreeMap::new();
        store.survey(&mut |id, located| {
            left_bytes.insert(id, u64::from(located.stored_bytes));
            Ok(())
        })?;
        let live_bytes: u64 = named.iter().filter_map(|id| left_bytes.get(id)).sum();
        let all_bytes: u64 = left_bytes.values().sum();
        let expected = Swept {
            live_blocks: named.len() as u64,
            live_bytes,
            unused_blocks: left_bytes.len() as u64 + swept.removed_blocks - named.len() as u64,
            unused_bytes: all_bytes + swept.removed_bytes - live_bytes,
            ..swept
        };
        assert_eq!(swept, expected);
        assert!(
            (all_bytes - live_bytes) as f64 <= live_bytes as f64 * max_unused,
            "{swept:?}"
        );
        assert!(told == swept.removed_bytes && calls > 0);
        let left: BTreeSet<_> = left_bytes.into_keys().collect();
        if max_unused == 0.0 {
            assert_eq!(left, named);
        }
        self.blocks.settle(left);
        Ok(())
    }

    fn condemn(&mut self, number: usize, block: usize, heal: Option<Way>) -> Result<()> {
        let store = self.store();
        let Some(key) = self.key(number) else {
            return Ok(());
        };
        let kept = self.backups[&key].clone();
        let ids: Vec<_> = kept.disks.iter().flat_map(|disk| disk.ids(&*store)).collect();
        let Some(id) = ids.get(block % ids.len().max(1)) else {
            return Ok(());
        };
        // A block that an unfinished backup put since it was condemned may be at its new place already.
        let fresh = !self.condemned.maybe.contains(id);
        let place = || Ok::<_, Error>(store.locate(&[*id])?[0].expect("a backup names it").place);
        let before = place()?;
        let dependents = base_of_each(&*store)?
            .into_iter()
            .map(|(dependent, base)| (base, dependent));
        let mut dependents = closure(BTreeSet::from([*id]), &dependents.collect::<Vec<_>>());
        dependents.retain(|dependent| dependent != id && !self.condemned.sure.contains(dependent));
        // Also if it fails.
        self.condemned.maybe.extend(dependents);
        store.condemn(&[*id])?;
        if fresh {
            self.condemned.sure.insert(*id);
        }
        let Some(way) = heal else {
            return Ok(());
        };
        let guest = GUESTS
            .iter()
            .position(|(guest, _)| key.split('@').next() == Some(*guest));
        let guest = guest.expect("it was made of one of them");
        self.guests[guest] = kept.disks;
        self.back_up(guest, Way { give_up: None, ..way })?;
        assert!(!condemned(&*store)?.contains(id));
        if fresh {
            assert_ne!(place()?, before, "it was not stored anew");
        }
        Ok(())
    }

    /// Performs the cheap checks.
    fn check(&self) {
        let store = self.store();
        check_list(&*store, &self.backups);
        self.condemned.check(&condemned(&*store).expect("lists"));
        if self.opened().faulty.is_broken() {
            return;
        }
        if let Some(mut record) = store.records().expect("lists").pop() {
            store.commit(&record).expect("commits the same again");
            record.bytes.push(b' ');
            let again = store.commit(&record);
            assert!(matches!(again, Err(Error::BackupExists(_))), "{again:?}");
        }
    }

    fn check_everything(&self) {
        self.check();
        let store: Arc<dyn StoreReader> = self.store();
        for (key, kept) in &self.backups {
            read(store.clone(), key, kept, 0, usize::MAX).expect("reads");
        }
        let ids: Vec<_> = ids_of(&*store, &self.backups).into_iter().collect();
        assert!(store.locate(&ids).expect("locates").iter().all(Option::is_some));
        if let Some(view) = &self.view {
            check_list(&*view.reader, &view.backups);
            for (key, kept) in &view.backups {
                read(view.reader.clone(), key, kept, 0, usize::MAX).expect("a view reads");
            }
        }
    }
}

/// Returns each difference with its base.
fn base_of_each(store: &dyn StoreReader) -> Result<Vec<(BlockId, BlockId)>> {
    let mut pairs = Vec::new();
    store.survey(&mut |id, located| {
        pairs.extend(located.base.map(|base| (id, base)));
        Ok(())
    })?;
    Ok(pairs)
}

/// Adds what the arrows lead to from these blocks, over any number of steps.
fn closure(mut from: BTreeSet<BlockId>, arrows: &[(BlockId, BlockId)]) -> BTreeSet<BlockId> {
    loop {
        let before = from.len();
        let next = arrows
            .iter()
            .filter(|(start, _)| from.contains(start))
            .map(|(_, end)| *end);
        from.extend(next.collect::<Vec<_>>());
        if from.len() == before {
            return from;
        }
    }
}

fn surveyed(store: &dyn StoreReader) -> Result<BTreeSet<BlockId>> {
    let mut found = BTreeSet::new();
    store.survey(&mut |id, _| {
        assert!(found.insert(id), "a block is listed once");
        Ok(())
    })?;
    Ok(found)
}

fn condemned(store: &dyn StoreReader) -> Result<BTreeSet<BlockId>> {
    Ok(store.condemned()?.into_iter().collect())
}

fn check_list(store: &dyn StoreReader, backups: &Backups) {
    let catalogue = Catalogue::load(store).expect("loads");
    assert_eq!(catalogue.damaged().len(), 0);
    let listed: BTreeSet<_> = catalogue.entries().iter().map(|entry| entry.backup.spec()).collect();
    assert_eq!(listed, backups.keys().cloned().collect());
    let states = States::load(store).expect("loads");
    for (key, kept) in backups {
        assert_eq!(states.noted(key).protected, kept.protected, "{key}");
    }
    let protected = backups.values().filter(|kept| kept.protected).count();
    assert_eq!(
        store.notes().expect("lists").len(),
        protected,
        "notes go with their backups"
    );
}

/// Compares a range of each disk of a backup with its content at that time.
fn read(store: Arc<dyn StoreReader>, key: &str, kept: &Kept, at_permille: u64, len: usize) -> Result<()> {
    let catalogue = Catalogue::load(&*store)?;
    let entry = catalogue.find(&key.parse().expect("a name"))?;
    // Separate resources, because cached data would hide what the store has lost.
    let resources = ReadResources::new(1);
    for (number, disk) in kept.disks.iter().enumerate() {
        let image = entry.backup.image(&format!("vd{number}"))?;
        let reader = ImageReader::open(store.clone(), resources.clone(), image)?;
        let plain = disk.bytes();
        assert_eq!(reader.size_bytes(), plain.len() as u64);
        let from = plain.len() * at_permille as usize / 1000;
        let wanted = &plain[from..plain.len().min(from.saturating_add(len))];
        // Longer than the rest of the image, to test where reading ends.
        let mut bytes = vec![0xEE; wanted.len() + usize::from(from + wanted.len() == plain.len())];
        let count = reader.read_at(from as u64, &mut bytes)?;
        assert!(
            bytes[..count] == *wanted,
            "{key}, disk {number}, {len} bytes from {from}"
        );
    }
    Ok(())
}

fn check<H: Home>(cases: u32, length: usize, layer: Layer, trials: BoxedStrategy<Trial>, home: impl Fn() -> H) {
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    let config = Config {
        cases: asked.unwrap_or(cases),
        // A seed is useless after the next change of the steps; a failing case is printed in full.
        failure_persistence: None,
        max_shrink_time: 60_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let result = runner.run(&steps(length, trials), |steps| {
        Bench::new(home(), layer).run(&steps);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

fn no_trials() -> BoxedStrategy<Trial> {
    Just(None).boxed()
}

#[test]
fn a_read_that_fails_for_now_is_no_damage() {
    for after in 0..9 {
        let mut bench = Bench::new(InMemory::new(), NOTHING);
        bench.guests[0][0].write(0, &[4, 5], 1, true);
        let way = Way {
            run: 1,
            barriers: false,
            give_up: None,
        };
        bench.step(&Step::Backup(0, way)).expect("backs up");
        let fault = Fault {
            calls: Calls::Any,
            after,
            kind: ErrorKind::Unavailable,
            lasting: false,
        };
        bench.take(&Step::Verify, &Some((fault, false)));
    }
}

#[test]
fn a_store_in_memory_does_as_the_model() {
    check(200, 60, NOTHING, no_trials(), InMemory::new);
}

#[test]
fn a_store_in_memory_that_fails_keeps_every_backup() {
    check(200, 60, NOTHING, trials(), InMemory::new);
}

#[test]
fn a_rocks_store_does_as_the_model() {
    check(16, 40, NOTHING, no_trials(), InRocks::new);
}

#[test]
fn a_rocks_store_that_fails_keeps_every_backup() {
    check(16, 40, NOTHING, trials(), InRocks::new);
}

#[test]
fn an_encrypted_store_in_memory_does_as_the_model() {
    check(100, 60, ENCRYPTED, trials(), InMemory::new);
}

#[test]
fn an_encrypted_rocks_store_does_as_the_model() {
    check(8, 40, ENCRYPTED, trials(), InRocks::new);
}
