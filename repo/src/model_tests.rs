//! Does at random what people and programs do to a repository, and compares it with a model that is a map from names to
//! disks. Stores, and what stands between a store and its users, differ only in [`Home`] and [`Layer`].
//!
//! `PROPTEST_CASES` sets the number of cases of each test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;

use crate::backup::{Entry, Image};
use crate::block::{BlockIndex, BlockSize, is_zero};
use crate::catalogue::Catalogue;
use crate::codec::{Compression, Sealer};
use crate::error::{Error, ErrorKind, Result};
use crate::id::BlockId;
use crate::mark::mark;
use crate::reader::{ImageReader, ReadResources};
use crate::state::{State, States, note_of};
use crate::store::faulty::{Calls, Fault, FaultyStore};
use crate::store::memory::MemoryStore;
use crate::store::rocks::{RocksReader, RocksStore};
use crate::store::{BlockStore, Identity, Record, STORE_FORMAT, StoreReader, Thrift};
use crate::testing::{SMALL, backup};
use crate::verify::verify;
use crate::writer::{ImageWriter, SlotReader};

const CANCEL: &AtomicBool = &AtomicBool::new(false);

/// Where a store lies between two openings.
trait Home {
    /// Opens the store; nobody may hold what was opened before.
    fn open(&mut self) -> Arc<dyn BlockStore>;
    /// Makes the next opening find what a kill would leave now.
    fn kill(&mut self);
    /// The store as it is now, whatever is done to it later; `None` if that can't be had.
    fn view(&self) -> Option<(Arc<dyn StoreReader>, TempDir)>;
}

struct InMemory(Arc<MemoryStore>);

impl InMemory {
    fn new() -> Self {
        Self(Arc::new(MemoryStore::new(SMALL)))
    }
}

impl Home for InMemory {
    fn open(&mut self) -> Arc<dyn BlockStore> {
        self.0.clone()
    }
    fn kill(&mut self) {}
    fn view(&self) -> Option<(Arc<dyn StoreReader>, TempDir)> {
        None
    }
}

struct InRocks {
    store: Option<Arc<RocksStore>>,
    directory: TempDir,
    left_by_kill: Option<TempDir>,
}

impl InRocks {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let identity = Identity {
            format: STORE_FORMAT,
            features: Vec::new(),
            id: "model".into(),
            block_size: SMALL,
            created: jiff::Timestamp::UNIX_EPOCH,
            key_check: None,
        };
        RocksStore::create(&directory.path().join("store"), &identity).expect("creates");
        Self {
            store: None,
            directory,
            left_by_kill: None,
        }
    }
}

impl Home for InRocks {
    fn open(&mut self) -> Arc<dyn BlockStore> {
        self.store = None;
        if let Some(left) = self.left_by_kill.take() {
            self.directory = left;
        }
        let store = Arc::new(RocksStore::open(&self.directory.path().join("store")).expect("opens"));
        self.store = Some(Arc::clone(&store));
        store
    }

    fn kill(&mut self) {
        // RocksDB works in the background. Only a copy during which no file came, grew or went is one moment.
        let from = self.directory.path().join("store");
        for _ in 0..100 {
            let copy = tempfile::tempdir().expect("a directory");
            let before = files(&from);
            if copy_files(&from, &copy.path().join("store")).is_ok() && files(&from) == before {
                self.left_by_kill = Some(copy);
                return;
            }
        }
        panic!("the store never comes to rest");
    }

    fn view(&self) -> Option<(Arc<dyn StoreReader>, TempDir)> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("view");
        self.store.as_ref()?.checkpoint(&path).expect("makes a view");
        Some((Arc::new(RocksReader::open(&path, None).expect("opens")), directory))
    }
}

fn files(directory: &Path) -> BTreeSet<(std::ffi::OsString, Option<(u64, std::time::SystemTime)>)> {
    let entries = std::fs::read_dir(directory).expect("lists");
    let entries = entries.map(|entry| entry.expect("an entry"));
    let size_and_time = |entry: &std::fs::DirEntry| {
        let metadata = entry.metadata().ok()?;
        Some((metadata.len(), metadata.modified().ok()?))
    };
    entries.map(|entry| (entry.file_name(), size_and_time(&entry))).collect()
}

fn copy_files(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// What stands between a store and its users.
#[derive(Clone, Copy)]
struct Layer {
    store: fn(Arc<dyn BlockStore>) -> Arc<dyn BlockStore>,
    reader: fn(Arc<dyn StoreReader>) -> Arc<dyn StoreReader>,
}

const NOTHING: Layer = Layer {
    store: |store| store,
    reader: |reader| reader,
};

/// Each guest's number of disks.
const GUESTS: [(&str, usize); 2] = [("db", 1), ("web1", 2)];
const MAX_BLOCKS: usize = 20;
const CONTENTS: u8 = 6;

/// What blocks hold: so few different things that backups share most of them.
static CONTENT: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let mut noise = 1_u32;
    let mut content = |number: u8| -> Vec<u8> {
        let bytes = (0..SMALL.bytes()).map(|at| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match number {
                0 => 0,
                1 => u8::from(at == 40_000),
                2 | 3 => b"abcdefghij"[at % (7 + usize::from(number))],
                _ => (noise >> 24) as u8,
            }
        });
        bytes.collect()
    };
    (0..CONTENTS).map(&mut content).collect()
});

#[derive(Debug, Clone, Default)]
struct Disk {
    contents: Vec<u8>,
    last_bytes: usize,
}

impl Disk {
    fn blocks(&self) -> impl Iterator<Item = &'static [u8]> {
        let last = self.contents.len().saturating_sub(1);
        self.contents.iter().enumerate().map(move |(index, &content)| {
            let whole = &CONTENT[usize::from(content)][..];
            if index == last { &whole[..self.last_bytes] } else { whole }
        })
    }

    fn bytes(&self) -> Vec<u8> {
        self.blocks().collect::<Vec<_>>().concat()
    }

    fn ids(&self, store: &dyn StoreReader) -> Vec<BlockId> {
        let stored = self.blocks().filter(|block| !is_zero(block));
        stored.map(|block| store.hashing().block(block).id).collect()
    }
}

#[derive(Debug, Clone)]
struct Kept {
    guest: usize,
    disks: Vec<Disk>,
    protected: bool,
}

type Backups = BTreeMap<String, Kept>;

fn ids_of(store: &dyn StoreReader, backups: &Backups) -> BTreeSet<BlockId> {
    let disks = backups.values().flat_map(|kept| &kept.disks);
    disks.flat_map(|disk| disk.ids(store)).collect()
}

/// A set of blocks of which not all is known, because not everything is settled before a barrier.
#[derive(Debug, Default)]
struct Bounds {
    sure: BTreeSet<BlockId>,
    maybe: BTreeSet<BlockId>,
}

impl Bounds {
    fn check(&self, found: &BTreeSet<BlockId>) {
        let lost: Vec<_> = self.sure.difference(found).collect();
        let strange: Vec<_> = found
            .iter()
            .filter(|id| !self.sure.contains(id) && !self.maybe.contains(id))
            .collect();
        assert!(lost.is_empty() && strange.is_empty(), "lost {lost:?}, strange {strange:?}");
    }

    fn settle(&mut self, found: BTreeSet<BlockId>) {
        self.check(&found);
        *self = Self {
            sure: found,
            maybe: BTreeSet::new(),
        };
    }

    /// Everything but what is in `left` may be gone.
    fn loosen(&mut self, left: impl Fn(&BlockId) -> bool) {
        let gone: Vec<_> = self.sure.iter().copied().filter(|id| !left(id)).collect();
        self.sure.retain(left);
        self.maybe.extend(gone);
    }

    fn remove(&mut self, id: &BlockId) {
        self.sure.remove(id);
        self.maybe.remove(id);
    }
}

/// How a backup goes about it.
#[derive(Debug, Clone, Copy)]
struct Way {
    /// Blocks that are looked up and put together.
    run: usize,
    /// Whether there is a barrier after each run.
    barriers: bool,
    /// Ends after so many runs: with a last barrier if `true`, else as if killed.
    give_up: Option<(usize, bool)>,
}

#[derive(Debug, Clone)]
enum Step {
    Write {
        guest: usize,
        at: usize,
        contents: Vec<u8>,
        last_bytes: usize,
        cut: bool,
    },
    Backup(usize, Way),
    Forget(usize),
    Protect(usize, bool),
    Prune {
        max_unused: f64,
        end_at: Option<usize>,
        view: bool,
    },
    Condemn {
        backup: usize,
        block: usize,
        heal: Option<Way>,
    },
    Pardon(usize),
    Open {
        kill: bool,
    },
    View,
    Read {
        backup: usize,
        at_permille: u64,
        len: usize,
    },
    Verify,
}

/// A fault, and whether the store is killed or closed before what failed is repeated.
type Trial = Option<(Fault, bool)>;

fn steps(len: usize, trials: BoxedStrategy<Trial>) -> impl Strategy<Value = Vec<(Step, Trial)>> {
    let way = || {
        let give_up = prop::option::weighted(0.2, (0..4_usize, any::<bool>()));
        (1..8_usize, any::<bool>(), give_up).prop_map(|(run, barriers, give_up)| Way { run, barriers, give_up })
    };
    let last = prop::sample::select(vec![1, 511, 40_001, SMALL.bytes() - 1, SMALL.bytes()]);
    let write = (
        0..3_usize,
        0..MAX_BLOCKS,
        prop::collection::vec(0..CONTENTS, 1..12),
        last,
        any::<bool>(),
    );
    let prune = (
        prop::sample::select(vec![0.0, 0.0, 0.1, 0.5, 1.0, 10.0]),
        prop::option::weighted(0.3, 1..4_usize),
        any::<bool>(),
    );
    let condemn = (0..50_usize, 0..50_usize, prop::option::weighted(0.7, way()));
    let step = prop_oneof![
        5 => write.prop_map(|(guest, at, contents, last_bytes, cut)| Step::Write { guest, at, contents, last_bytes, cut }),
        7 => (0..GUESTS.len(), way()).prop_map(|(guest, way)| Step::Backup(guest, way)),
        4 => (0..50_usize).prop_map(Step::Forget),
        1 => (0..50_usize, any::<bool>()).prop_map(|(backup, protected)| Step::Protect(backup, protected)),
        4 => prune.prop_map(|(max_unused, end_at, view)| Step::Prune { max_unused, end_at, view }),
        2 => condemn.prop_map(|(backup, block, heal)| Step::Condemn { backup, block, heal }),
        1 => (0..50_usize).prop_map(Step::Pardon),
        3 => any::<bool>().prop_map(|kill| Step::Open { kill }),
        2 => Just(Step::View),
        2 => (0..50_usize, 0..1000_u64, 0..300_000_usize)
            .prop_map(|(backup, at_permille, len)| Step::Read { backup, at_permille, len }),
        1 => Just(Step::Verify),
    ];
    prop::collection::vec((step, trials), 1..len)
}

fn trials() -> BoxedStrategy<Trial> {
    let fault = (
        prop::sample::select(vec![Calls::Any, Calls::Writing]),
        0..24_usize,
        prop::sample::select(vec![ErrorKind::NoSpace, ErrorKind::Unavailable]),
        any::<bool>(),
    );
    let fault = fault.prop_map(|(calls, after, kind, lasting)| Fault {
        calls,
        after: if calls == Calls::Writing { after / 4 } else { after },
        kind,
        lasting,
    });
    prop::option::weighted(0.6, (fault, any::<bool>())).boxed()
}

mod run;

fn check<H: Home>(cases: u32, layer: Layer, trials: BoxedStrategy<Trial>, home: impl Fn() -> H) {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let config = Config {
        cases: asked.unwrap_or(cases),
        // A seed means nothing after the next change of the steps; what failed is printed in full.
        failure_persistence: None,
        max_shrink_time: 60_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let result = runner.run(&steps(30, trials), |steps| {
        run::Bench::new(home(), layer).run(&steps);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
