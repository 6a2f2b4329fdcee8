//! The location of a store between two openings, and the layers between the store and its users. These distinguish the
//! model tests from each other.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use tempfile::TempDir;

use crate::keys::Keys;
use crate::store::encrypted::Encrypted;
use crate::store::faulty::FaultyStore;
use crate::store::memory::MemoryStore;
use crate::store::rocks::{RocksReader, RocksStore};
use crate::store::{Identity, STORE_FORMAT, StoreManager, StoreReader};
use crate::tests::testing::SMALL;

/// Location of a store between two openings.
pub(super) trait Home {
    /// Opens the store; nothing that was opened before may still be held.
    fn open(&mut self) -> Arc<dyn StoreManager>;
    /// Makes the next opening find the files that a kill would leave now.
    fn kill(&mut self);
    /// Returns a view of the present store, which later changes do not affect; `None` if the store has no views.
    fn view(&self) -> Option<(Arc<RocksReader>, TempDir)>;
}

pub(super) struct InMemory(Arc<MemoryStore>);

impl InMemory {
    pub(super) fn new() -> Self {
        Self(Arc::new(MemoryStore::new(SMALL)))
    }
}

impl Home for InMemory {
    fn open(&mut self) -> Arc<dyn StoreManager> {
        self.0.clone()
    }
    fn kill(&mut self) {}
    fn view(&self) -> Option<(Arc<RocksReader>, TempDir)> {
        None
    }
}

pub(super) struct InRocks {
    store: Option<Arc<RocksStore>>,
    directory: TempDir,
    left_by_kill: Option<TempDir>,
}

impl InRocks {
    pub(super) fn new() -> Self {
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
    fn open(&mut self) -> Arc<dyn StoreManager> {
        self.store = None;
        if let Some(left) = self.left_by_kill.take() {
            self.directory = left;
        }
        let store = Arc::new(RocksStore::open(&self.directory.path().join("store")).expect("opens"));
        self.store = Some(Arc::clone(&store));
        store
    }

    fn kill(&mut self) {
        // RocksDB works in the background. Only a copy during which no file was added, grew or was removed shows one
        // moment.
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

    fn view(&self) -> Option<(Arc<RocksReader>, TempDir)> {
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
    entries
        .map(|entry| (entry.file_name(), size_and_time(&entry)))
        .collect()
}

fn copy_files(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Layer between a store and its users.
#[derive(Clone, Copy)]
pub(super) struct Layer {
    pub(super) store: fn(Arc<FaultyStore>) -> Arc<dyn StoreManager>,
    pub(super) reader: fn(Arc<RocksReader>) -> Arc<dyn StoreReader>,
}

pub(super) const NOTHING: Layer = Layer {
    store: |store| store,
    reader: |reader| reader,
};

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys::generate().expect("random bytes"));

pub(super) const ENCRYPTED: Layer = Layer {
    store: |store| {
        let identity = store.identity().expect("has one");
        Arc::new(Encrypted::new(store, &KEYS, &identity))
    },
    reader: |reader| {
        let identity = reader.identity().expect("has one");
        Arc::new(Encrypted::new(reader, &KEYS, &identity))
    },
};
