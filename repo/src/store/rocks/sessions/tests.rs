//! Writers, forgetters and sweeps in any order, from seeds; and each rule of the argument taken away.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::*;
use crate::backup::Image;
use crate::block::{BlockSize, Hashing};
use crate::codec::{Compression, Over, Sealer};
use crate::error::Error;
use crate::store::rocks::sweep::sweep_windows;
use crate::store::{STORE_FORMAT, whole};
use crate::tests::testing::{backup, mixed_bytes, store_image};

/// Blocks that exist: few, so that backups share them.
const BLOCKS: u8 = 24;
/// The first of those that are stored as differences, of the first blocks, if these are there.
const FIRST_DIFFERENCE: u8 = 16;
/// Segments of a backup, and blocks of a segment.
const SEGMENTS: usize = 2;
const SLOTS: usize = 3;
/// Writers at the same time.
const WRITERS: usize = 3;
/// Blocks of a window of the sweep.
const WINDOW: u64 = 3;

const ALL: PruneOptions = PruneOptions {
    max_unused: 0.0,
    dry_run: false,
    empty_bin: false,
};

type Segment = [u8; SLOTS];
type Content = [Segment; SEGMENTS];

/// A step of a history. Numbers choose among what there is.
#[derive(Debug, Clone)]
enum Step {
    /// A writer opens its session, and chooses the backup that it builds on.
    Begin(usize, u8),
    /// A writer makes its next segment: that of the backup before, or one of these blocks.
    Segment(usize, Option<Segment>),
    Flush(usize),
    /// A writer commits if it has all segments.
    Commit(usize),
    /// A writer ends, whether it has committed or not.
    End(usize),
    Forget(u8),
    /// Forgets a backup that must stay in the bin.
    Bin(u8),
    /// Brings a backup back from the bin.
    Unforget(u8),
    /// A sweep. The lists of steps come after it read the records, and each time that it calls back.
    Sweep(Vec<Step>, Vec<Vec<Step>>),
    /// The same, and it empties the bin.
    EmptyingSweep(Vec<Step>, Vec<Vec<Step>>),
    /// A writer looks a block up, and a sweep runs before it has noted the answer.
    LookDuringSweep(usize, u8),
}

fn plain_step() -> impl Strategy<Value = Step> {
    let writer = 0..WRITERS;
    let segment = prop::option::weighted(0.5, prop::array::uniform3(0..BLOCKS));
    prop_oneof![
        4 => (writer.clone(), any::<u8>()).prop_map(|(writer, base)| Step::Begin(writer, base)),
        8 => (writer.clone(), segment).prop_map(|(writer, segment)| Step::Segment(writer, segment)),
        1 => writer.clone().prop_map(Step::Flush),
        4 => writer.clone().prop_map(Step::Commit),
        2 => writer.prop_map(Step::End),
        3 => any::<u8>().prop_map(Step::Forget),
        3 => any::<u8>().prop_map(Step::Bin),
        2 => any::<u8>().prop_map(Step::Unforget),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let steps = || prop::collection::vec(plain_step(), 0..6);
    prop_oneof![
        12 => plain_step(),
        2 => (steps(), prop::collection::vec(steps(), 0..4)).prop_map(|(marked, during)| Step::Sweep(marked, during)),
        1 => (steps(), prop::collection::vec(steps(), 0..4))
            .prop_map(|(marked, during)| Step::EmptyingSweep(marked, during)),
        1 => (0..WRITERS, 0..BLOCKS).prop_map(|(writer, block)| Step::LookDuringSweep(writer, block)),
    ]
}

struct Writer {
    session: RocksSession,
    base: Option<Content>,
    segments: Vec<Segment>,
}

struct World {
    store: Arc<RocksStore>,
    writers: Mutex<[Option<Writer>; WRITERS]>,
    /// Backups that were committed and not forgotten.
    backups: Mutex<BTreeMap<String, Content>>,
    /// Backups that must stay in the bin.
    bin: Mutex<BTreeMap<String, Content>>,
    made: AtomicU32,
    sealed: Vec<Sealed>,
    /// Some of them as differences, each from another one of them.
    differences: BTreeMap<u8, Sealed>,
    _directory: tempfile::TempDir,
}

fn node_of(segment: &Segment) -> (NodeId, Vec<u8>) {
    (NodeId(Hashing::Plain.content(segment)), segment.to_vec())
}

impl Writer {
    /// Makes a segment as a backup does: an unchanged one is neither asked for nor put, of another one the unknown blocks are put.
    fn add(&mut self, world: &World, segment: Option<Segment>) {
        let before = self.base.map(|base| base[self.segments.len()]);
        match (segment, before) {
            (None, Some(before)) => self.segments.push(before),
            (None, None) => {}
            (Some(segment), _) => {
                let ids = segment.map(|block| world.sealed[usize::from(block)].id);
                let located = self.session.locate(&ids).expect("locates");
                let unknown = segment.iter().zip(located).filter(|(_, located)| located.is_none());
                let unknown = unknown.map(|(block, _)| {
                    let difference = world.differences.get(block);
                    let base_is_there = |difference: &&Sealed| {
                        let base = difference.base.expect("has one");
                        self.session.locate(&[base]).expect("locates")[0].is_some()
                    };
                    let whole = &world.sealed[usize::from(*block)];
                    difference.filter(base_is_there).unwrap_or(whole).clone()
                });
                let unknown: Vec<_> = unknown.collect();
                self.session.put(unknown).expect("puts");
                self.session.put_nodes(vec![node_of(&segment)]).expect("puts");
                self.segments.push(segment);
            }
        }
    }
}

impl World {
    fn new(sealed: &[Sealed], without: Option<Rule>) -> Arc<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let identity = Identity {
            format: STORE_FORMAT,
            features: Vec::new(),
            id: "test".into(),
            block_size: BlockSize::MIN,
            created: jiff::Timestamp::UNIX_EPOCH,
            key_check: None,
        };
        let store = RocksStore::create(&directory.path().join("store"), &identity).expect("creates");
        store.sessions.lock().without = without;
        Arc::new(Self {
            store: Arc::new(store),
            writers: Mutex::default(),
            backups: Mutex::default(),
            bin: Mutex::default(),
            made: AtomicU32::new(0),
            sealed: sealed.to_vec(),
            differences: differences(sealed),
            _directory: directory,
        })
    }

    fn session(&self) -> RocksSession {
        RocksSession::open(Arc::clone(&self.store)).expect("opens")
    }

    fn run(self: &Arc<Self>, step: &Step) {
        match step {
            Step::Begin(number, base) => {
                let session = self.session();
                let backups = self.backups.lock();
                let base = backups.iter().nth(usize::from(*base) % (backups.len() + 1));
                if let Some((key, _)) = base {
                    session.builds_on(key).expect("is there");
                }
                let base = base.map(|(_, content)| *content);
                // The writer before it ends after this one has begun.
                self.writers.lock()[*number] = Some(Writer {
                    session,
                    base,
                    segments: Vec::new(),
                });
            }
            Step::Segment(number, segment) => {
                if let Some(writer) = &mut self.writers.lock()[*number]
                    && writer.segments.len() < SEGMENTS
                {
                    writer.add(self, *segment);
                }
            }
            Step::Flush(number) => {
                if let Some(writer) = &self.writers.lock()[*number] {
                    writer.session.flush().expect("flushes");
                }
            }
            Step::Commit(number) => {
                if let Some(writer) = &mut self.writers.lock()[*number]
                    && let Ok(content) = Content::try_from(&*writer.segments)
                {
                    let key = format!("a@{}", self.made.fetch_add(1, Ordering::SeqCst));
                    let bytes = content.as_flattened().to_vec();
                    let record = Record {
                        key: key.clone(),
                        bytes,
                    };
                    writer.session.commit(&record).expect("commits");
                    self.backups.lock().insert(key, content);
                    writer.segments.clear();
                }
            }
            Step::End(number) => self.writers.lock()[*number] = None,
            Step::Forget(which) => {
                let mut backups = self.backups.lock();
                let key = backups.keys().nth(usize::from(*which) % (backups.len() + 1)).cloned();
                if let Some(key) = key {
                    self.session().amend(std::slice::from_ref(&key), &[]).expect("forgets");
                    backups.remove(&key);
                }
            }
            Step::Bin(which) => {
                let mut backups = self.backups.lock();
                let key = backups.keys().nth(usize::from(*which) % (backups.len() + 1)).cloned();
                if let Some((key, content)) = key.and_then(|key| backups.remove_entry(&key)) {
                    let session = self.session();
                    session.set_terms(Terms {
                        keep_removed_secs: 3600,
                        ..Terms::default()
                    });
                    session.amend(std::slice::from_ref(&key), &[]).expect("forgets");
                    self.bin.lock().insert(key, content);
                }
            }
            Step::Unforget(which) => {
                let binned = self.bin.lock().clone();
                let Some((key, content)) = binned.into_iter().nth(usize::from(*which) % 4) else {
                    return;
                };
                let session = self.session();
                let forgotten = session.forgotten().expect("lists");
                let found = forgotten.into_iter().find(|forgotten| forgotten.record.key == key);
                // The proof of the commit: the content of these backups is no manifest.
                let (ids, nodes) = self.named(&content);
                assert!(
                    session.locate(&ids).expect("locates").iter().all(Option::is_some),
                    "{key}"
                );
                assert!(session.nodes(&nodes).iter().all(Result::is_ok), "{key}");
                session.commit(&found.expect("is in the bin").record).expect("commits");
                self.backups.lock().insert(key, content);
            }
            Step::Sweep(marked, during) => self.sweep(marked, during, false),
            Step::EmptyingSweep(marked, during) => self.sweep(marked, during, true),
            Step::LookDuringSweep(number, block) => {
                let Some(mut writer) = self.writers.lock()[*number].take() else {
                    return;
                };
                let world = Arc::clone(self);
                *self.store.pause.lock() = Some(Box::new(move || world.sweep(&[], &[], false)));
                if writer.segments.len() < SEGMENTS {
                    writer.add(self, Some([*block; SLOTS]));
                }
                *self.store.pause.lock() = None;
                self.writers.lock()[*number] = Some(writer);
            }
        }
    }

    /// Sweeps as a prune does: the records are read first, and then the bin.
    fn sweep(self: &Arc<Self>, marked: &[Step], during: &[Vec<Step>], empty: bool) {
        let session = self.session();
        let mut records = session.records().expect("lists");
        let (before, after) = marked.split_at(marked.len() / 2);
        before.iter().for_each(|step| self.run(step));
        let until = if empty {
            jiff::Timestamp::MAX
        } else {
            jiff::Timestamp::now()
        };
        let generation = session.generation().expect("is known");
        let binned: Vec<_> = self.bin.lock().keys().cloned().collect();
        let bin = session.forgotten().expect("lists").into_iter();
        records.extend(
            bin.filter(|forgotten| forgotten.kept_until > until)
                .map(|forgotten| forgotten.record),
        );
        records.extend(session.held());
        after.iter().for_each(|step| self.run(step));
        let segments = || records.iter().flat_map(|record| record.bytes.as_chunks::<SLOTS>().0);
        let blocks = segments().flatten().map(|block| self.sealed[usize::from(*block)].id);
        let mut blocks: HashSet<_> = blocks.collect();
        let mut bases = Vec::new();
        session
            .survey(&mut |id, located| {
                bases.extend(located.base.filter(|_| blocks.contains(&id)));
                Ok(())
            })
            .expect("surveys");
        blocks.extend(bases);
        let blocks: Vec<_> = blocks.into_iter().collect();
        let nodes: Vec<_> = segments().map(|segment| node_of(segment).0).collect();
        session.empty_bin(until, generation).expect("empties");
        if empty {
            // Only what was there when it was read.
            self.bin.lock().retain(|key, _| !binned.contains(key));
        }
        let mut during = during.iter();
        let live = Live::of(&*self.store, &blocks, &nodes).expect("locates");
        sweep_windows(&self.store, Some(session.number), &live, ALL, WINDOW, &mut |_| {
            during.next().into_iter().flatten().for_each(|step| self.run(step));
            Ok(())
        })
        .expect("sweeps");
    }

    /// Returns the blocks and nodes of a backup.
    fn named(&self, content: &Content) -> (Vec<BlockId>, Vec<NodeId>) {
        let ids = content.as_flattened().iter();
        let ids = ids.map(|block| self.sealed[usize::from(*block)].id).collect();
        (ids, content.iter().map(|segment| node_of(segment).0).collect())
    }

    /// Returns the first backup, also in the bin, of which something is missing.
    fn lost(&self) -> Option<String> {
        let mut backups = self.backups.lock().clone();
        backups.extend(self.bin.lock().clone());
        backups.retain(|_, content| {
            let (ids, nodes) = self.named(content);
            let wanted: Vec<_> = ids.iter().map(|&id| Wanted { id, pages: 0..1 }).collect();
            !(whole::get(&*self.store, &wanted).iter().all(Result::is_ok)
                && self.store.nodes(&nodes).iter().all(Result::is_ok))
        });
        backups.into_keys().next()
    }
}

fn blocks() -> Vec<Sealed> {
    let mut sealer = Sealer::new(Compression::None).expect("a sealer");
    let mut seal = |seed: u8| {
        let plain = plain(seed);
        sealer.seal(&plain, &Hashing::Plain.block(&plain)).expect("seals")
    };
    (0..BLOCKS).map(&mut seal).collect()
}

/// The bytes of a block; the last eight are much like the first.
fn plain(seed: u8) -> Vec<u8> {
    let byte = |at: u32| (at.wrapping_mul(2_654_435_761) >> 9) as u8 ^ (seed % FIRST_DIFFERENCE);
    let mut plain: Vec<u8> = (0..9000).map(byte).collect();
    plain[77] ^= seed / FIRST_DIFFERENCE;
    plain
}

fn differences(sealed: &[Sealed]) -> BTreeMap<u8, Sealed> {
    let mut sealer = Sealer::new(Compression::Zstd(3)).expect("a sealer");
    let mut seal = |seed: u8| {
        let base = &sealed[usize::from(seed - FIRST_DIFFERENCE)];
        let over = Over::open(Hashing::Plain, base.id, &base.header, 0, &base.pages).expect("opens");
        let plain = plain(seed);
        let difference = sealer.seal_over(&plain, &Hashing::Plain.block(&plain), &over, 1);
        (seed, difference.expect("seals").expect("saves much"))
    };
    (FIRST_DIFFERENCE..BLOCKS).map(&mut seal).collect()
}

#[test]
fn writers_and_sweeps_in_any_order_lose_nothing() {
    let sealed = blocks();
    let mut runner = TestRunner::new(Config {
        cases: 100,
        failure_persistence: None,
        ..Config::default()
    });
    let ran = runner.run(&prop::collection::vec(step(), 10..80), |steps| {
        let world = World::new(&sealed, None);
        let first = [[0, 1, 2], [3, 4, 5]].map(|segment| Step::Segment(0, Some(segment)));
        let first = [&[Step::Begin(0, 0)], &first[..], &[Step::Commit(0), Step::End(0)]].concat();
        for step in first.iter().chain(&steps) {
            world.run(step);
        }
        *world.writers.lock() = Default::default();
        world.sweep(&[], &[], false);
        match world.lost() {
            None => Ok(()),
            Some(key) => Err(TestCaseError::fail(format!("{key} lost a part"))),
        }
    });
    ran.map_err(|error| error.to_string()).expect("nothing is lost");
}

#[test]
fn each_rule_is_needed() {
    use Step::*;
    let dead = |segment| [Begin(0, 0), Segment(0, Some(segment)), Flush(0), End(0)].to_vec();
    let twice = |writer, segment| [Segment(writer, Some(segment)), Segment(writer, Some(segment))].to_vec();
    let kept = |segment| [vec![Begin(0, 0)], twice(0, segment), vec![Commit(0), End(0)]].concat();
    let old = || kept([0, 1, 2]);
    let sweep = || Sweep(vec![], vec![]);
    let histories = [
        // The blocks of a backup in the making are in no record.
        (
            Rule::Used,
            [
                vec![Begin(1, 0)],
                twice(1, [6, 7, 8]),
                vec![Flush(1), sweep(), Commit(1)],
            ]
            .concat(),
        ),
        // It is committed, and its session ends, after the records were read.
        (
            Rule::Ended,
            [
                vec![Begin(1, 0)],
                twice(1, [6, 7, 8]),
                vec![Sweep(vec![Commit(1), End(1)], vec![])],
            ]
            .concat(),
        ),
        // The backup that it builds on is forgotten.
        (
            Rule::Held,
            [
                old(),
                vec![
                    Begin(1, 0),
                    Segment(1, None),
                    Segment(1, None),
                    Forget(0),
                    sweep(),
                    Commit(1),
                ],
            ]
            .concat(),
        ),
        // The same, and its session ends while the sweep reads what it has to mark.
        (
            Rule::Held,
            [
                old(),
                vec![Begin(1, 0), Segment(1, None), Segment(1, None), Forget(0)],
                vec![Sweep(vec![Commit(1), End(1), Flush(0), Flush(0)], vec![])],
            ]
            .concat(),
        ),
        // A sweep removes an unused block after a look-up has found it.
        (
            Rule::Again,
            [
                dead([6, 7, 8]),
                vec![
                    Begin(1, 0),
                    LookDuringSweep(1, 6),
                    Segment(1, Some([9, 9, 9])),
                    Commit(1),
                ],
            ]
            .concat(),
        ),
        // A session uses what its blocks are differences from.
        (
            Rule::Used,
            [
                dead([6, 7, 8]),
                vec![Begin(1, 0)],
                twice(1, [22, 23, 22]),
                vec![Flush(1), sweep(), Commit(1)],
            ]
            .concat(),
        ),
        // A block is put into a window that is about to be swept.
        (
            Rule::Horizon,
            [
                dead([6, 7, 8]),
                kept([9, 10, 11]),
                dead([12, 13, 12]),
                vec![
                    Sweep(vec![], vec![[vec![Begin(1, 0)], twice(1, [14, 15, 16])].concat()]),
                    Commit(1),
                ],
            ]
            .concat(),
        ),
    ];
    let sealed = blocks();
    for (rule, steps) in histories {
        let lost = |without| {
            let world = World::new(&sealed, without);
            steps.iter().for_each(|step| world.run(step));
            *world.writers.lock() = Default::default();
            world.lost()
        };
        assert_eq!(lost(None), None, "{rule:?}");
        assert!(lost(Some(rule)).is_some(), "nothing is lost without {rule:?}");
    }
}

#[test]
fn a_session_that_removes_its_base_trusts_nothing_that_this_named() {
    let world = World::new(&blocks(), None);
    let record = |time, image: &Image| {
        let backup = backup("a", time, vec![image.clone()]);
        Record {
            key: backup.spec(),
            bytes: backup.encode(),
        }
    };
    let plain = mixed_bytes(1, 3 << 16);
    let image = store_image(&*world.store, "vda", &plain);
    let first = record("2026-01-01T00-00-00Z", &image);
    let root = world.store.nodes(&[image.manifest]).remove(0).expect("is there");
    world.store.commit(&first).expect("commits");
    let session = world.session();
    session.builds_on(&first.key).expect("is there");
    session.amend(std::slice::from_ref(&first.key), &[]).expect("removes");
    let sweeper = world.session();
    let live = Live::of(&*world.store, &[], &[]).expect("locates");
    sweeper.retain(&live, ALL, &mut |_| Ok(())).expect("sweeps");
    // As a writer does whose disk did not change.
    session.put_nodes(vec![(image.manifest, root)]).expect("puts");
    let again = session.commit(&record("2026-01-02T00-00-00Z", &image));
    assert!(matches!(again, Err(Error::Missing { .. })), "{again:?}");
}
