//! Backups to a far store: the tests count the calls that a thread waits for. `examples/far.rs` measures the rates.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vbk_repo::block::PAGE_BYTES;
use vbk_repo::keys::Keys;
use vbk_repo::manifest::SEGMENT_SLOTS;
use vbk_repo::reader::Stream;
use vbk_repo::repository::home::StoreHome;
use vbk_repo::store::delayed::{Calls, Delayed};
use vbk_repo::store::encrypted::Encrypted;
use vbk_repo::store::memory::MemoryStore;
use vbk_repo::store::{Identity, STORE_FORMAT, StoreManager};

use super::*;
use crate::restore::{RestoreOptions, restore};

/// Long enough for calls to overlap, short enough for a test: the counts do not depend on it.
const DELAY: Duration = Duration::from_millis(5);

struct Far {
    directory: tempfile::TempDir,
    store: Arc<Delayed<MemoryStore>>,
    repository: Repository,
}

impl Far {
    fn new(block_size: BlockSize, keys: Option<&Keys>) -> Self {
        let identity = Identity {
            format: STORE_FORMAT,
            features: Identity::features_of_new(keys.is_some()),
            id: "far".into(),
            block_size,
            created: Timestamp::now(),
            key_check: keys.map(Keys::check),
        };
        let memory = Arc::new(MemoryStore::with_identity(identity.clone()));
        if let Some(keys) = keys {
            Encrypted::new(Arc::clone(&memory), keys, &identity)
                .accept()
                .expect("begins");
        }
        let store = Arc::new(Delayed::new(memory, DELAY).expect("starts"));
        let home = StoreHome::new(Arc::clone(&store)).expect("opens");
        let mut repository = Repository::at(Arc::new(home));
        if let Some(keys) = keys {
            repository = repository.with_keys(keys.clone());
        }
        Self {
            directory: tempfile::tempdir().expect("a directory"),
            store,
            repository,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("disk.img")
    }

    fn backup(&self) -> (BackupSummary, u64) {
        let before = self.store.calls().waits;
        let writer = self.repository.writer("test", &mut |_| false).expect("opens");
        let plan = plan(self.path());
        let stop = AtomicBool::new(false);
        let made = backup(&writer, &plan, &|| Ok(BTreeMap::new()), &[&stop], &()).expect("backs up");
        (made, self.store.calls().waits - before)
    }

    fn calls(&self, run: impl FnOnce()) -> Calls {
        let before = self.store.calls();
        run();
        let after = self.store.calls();
        Calls {
            waits: after.waits - before.waits,
            blocks: after.blocks - before.blocks,
            nodes: after.nodes - before.nodes,
        }
    }
}

/// A disk of many segments, with a little data in each.
fn write_scattered(path: &Path, segments: u64) {
    let file = fs::File::create(path).expect("creates");
    let segment_bytes = (SEGMENT_SLOTS * PAGE_BYTES) as u64;
    file.set_len(segments * segment_bytes).expect("grows");
    for segment in 0..segments {
        let bytes = noise(2 * segment as u32, 3 * PAGE_BYTES);
        file.write_all_at(&bytes, segment * segment_bytes + PAGE_BYTES as u64)
            .expect("writes");
    }
}

#[test]
fn an_unchanged_backup_waits_for_eight_calls_at_most() {
    let keys = Keys::generate().expect("random bytes");
    for keys in [None, Some(&keys)] {
        let far = Far::new(BlockSize::MIN, keys);
        write_scattered(&far.path(), 40);
        let (first, _) = far.backup();
        assert_eq!(first.counts.new_bytes, 40 * 3 * PAGE_BYTES as u64);
        let (second, waits) = far.backup();
        assert_eq!(second.counts.new_bytes, 0);
        assert!(waits <= 8, "{waits} calls, encrypted: {}", keys.is_some());
    }
}

#[test]
fn equal_blocks_that_are_read_at_once_are_sent_once() {
    let far = Far::new(BlockSize::MIN, None);
    // A run of 4 MiB for each of several workers, who all ask for the block's place before one has put it.
    fs::write(far.path(), noise(1, PAGE_BYTES).repeat(1024)).expect("writes");
    let (made, _) = far.backup();
    assert_eq!(made.counts.new_bytes, PAGE_BYTES as u64);
    assert_eq!(made.counts.unchanged_bytes, 1023 * PAGE_BYTES as u64);
}

#[test]
fn blocks_are_read_back_many_at_once() {
    let far = Far::new(BlockSize::MIN, None);
    let blocks = 1600;
    fs::write(far.path(), noise(7, blocks * PAGE_BYTES)).expect("writes");
    let (made, waits) = far.backup();
    // A run of 4 MiB asks for the places of all its blocks with one call.
    assert!(waits <= blocks as u64 / 64 + 12, "{waits} calls");
    let image = &made.entry.backup.images[0];
    let open = || {
        let view = far.repository.view().expect("opens");
        ImageReader::open(view.store(), ReadResources::new(1), image).expect("opens")
    };
    let (reader, target) = (open(), far.directory.path().join("restored.img"));
    let calls = far.calls(|| {
        let options = RestoreOptions {
            label: "web1".into(),
            format: Default::default(),
            changes: None,
            force: false,
            overwrite: false,
            fill: Default::default(),
            damaged: Default::default(),
            threads: 2,
        };
        let stop = AtomicBool::new(false);
        restore(&reader, image.data_bytes, &target, &options, &stop, &()).expect("restores");
    });
    assert!(fs::read(&target).expect("reads") == fs::read(far.path()).expect("reads"));
    assert_eq!(calls.blocks, blocks as u64);
    assert!(calls.waits <= blocks as u64 / 64 + 4, "{calls:?}");

    let stream = Stream::new(Arc::new(open()));
    let mut bytes = vec![0; 128 << 10];
    let calls = far.calls(|| {
        let mut offset = 0;
        while stream.read_at(offset, &mut bytes).expect("reads") > 0 {
            offset += bytes.len() as u64;
        }
    });
    assert!(calls.waits <= blocks as u64 / 3, "{calls:?}");
}

#[test]
fn one_page_of_a_block_brings_the_others() {
    let far = Far::new(BlockSize::DEFAULT, None);
    fs::write(far.path(), noise(7, 3 << 20)).expect("writes");
    let (made, _) = far.backup();
    let view = far.repository.view().expect("opens");
    let reader = ImageReader::open(view.store(), ReadResources::new(1), &made.entry.backup.images[0]);
    let reader = reader.expect("opens");
    let mut page = [0; 4096];
    let calls = far.calls(|| {
        for offset in (0..2 << 20).step_by(4096) {
            reader.read_at(offset, &mut page).expect("reads");
        }
    });
    assert_eq!(calls.blocks, 2);
}
