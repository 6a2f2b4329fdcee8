use std::sync::Arc;

use rocksdb::WriteBatch;

use super::*;
use crate::keys::Keys;
use crate::store::encrypted::Encrypted;
use crate::store::rocks::RocksStore;
use crate::store::{STORE_FORMAT, StoreManager};
use crate::tests::testing::{SMALL, backup, mixed_bytes, store_image};

struct Fixture {
    store: Arc<RocksStore>,
    _directory: tempfile::TempDir,
}

impl Fixture {
    /// A store with one backup of a disk of which no block is zero.
    fn new(features: Vec<String>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let identity = Identity {
            format: STORE_FORMAT,
            features,
            id: "test".into(),
            block_size: SMALL,
            created: jiff::Timestamp::UNIX_EPOCH,
            key_check: None,
        };
        let store = Arc::new(RocksStore::create(&directory.path().join("store"), &identity).expect("creates"));
        match identity.is_encrypted() {
            true => {
                let keys = Keys::generate().expect("random bytes");
                fill(&Encrypted::new(Arc::clone(&store), &keys, &identity));
            }
            false => fill(&*store),
        }
        Self {
            store,
            _directory: directory,
        }
    }

    fn check(&self) -> Vec<String> {
        let mut found = Vec::new();
        let reader = &self.store.reader;
        let bytes = reader.check(2, &AtomicBool::new(false), &mut |what| found.push(what));
        assert!(bytes.expect("reads") > 0);
        found
    }

    /// The rows of a family.
    fn rows(&self, family: &'static str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let reader = &self.store.reader;
        let rows = reader.db.iterator_cf(reader.family(family), IteratorMode::Start);
        rows.map(|row| row.expect("reads"))
            .map(|(key, value)| (key.to_vec(), value.to_vec()))
            .collect()
    }

    /// Writes a row, or removes it, as RocksDB would: its own checksums are right.
    fn write(&self, family: &'static str, key: &[u8], value: Option<&[u8]>) {
        let family = self.store.reader.family(family);
        let mut batch = WriteBatch::default();
        match value {
            Some(value) => batch.put_cf(family, key, value),
            None => batch.delete_cf(family, key),
        }
        self.store.write_logged("damage", batch).expect("writes");
    }
}

fn fill(store: &dyn StoreManager) {
    let image = store_image(store, "vda", &mixed_bytes(1, 3 * SMALL.bytes() + 5));
    let made = backup("web1", "2026-11-20T05-54-00Z", vec![image]);
    let record = Record {
        key: made.spec(),
        bytes: made.encode(),
    };
    store.commit(&record).expect("commits");
}

fn kinds() -> [(&'static str, Fixture); 2] {
    [
        ("plain", Fixture::new(Vec::new())),
        ("sealed", Fixture::new(Identity::features_of_new(true))),
    ]
}

#[test]
fn a_changed_byte_is_found_in_whatever_row_and_without_the_key() {
    for (kind, fixture) in kinds() {
        assert_eq!(fixture.check(), [""; 0], "{kind}");
        for family in ["blocks", "nodes", "backups", "notes"] {
            for (key, mut value) in fixture.rows(family) {
                let last = value.len() - 1;
                value[last] ^= 1;
                fixture.write(family, &key, Some(&value));
                assert_ne!(fixture.check(), [""; 0], "{kind}: {family} {key:?}");
                value[last] ^= 1;
                fixture.write(family, &key, Some(&value));
            }
        }
        assert_eq!(fixture.check(), [""; 0], "{kind}");
    }
}

#[test]
fn a_lost_row_is_found() {
    for (kind, fixture) in kinds() {
        for family in ["blocks", "nodes", "index"] {
            for (key, value) in fixture.rows(family) {
                fixture.write(family, &key, None);
                assert_ne!(fixture.check(), [""; 0], "{kind}: {family} {key:?}");
                fixture.write(family, &key, Some(&value));
            }
        }
        assert_eq!(fixture.check(), [""; 0], "{kind}");
    }
}

#[test]
fn what_is_left_of_a_block_that_was_removed_is_no_damage() {
    for (kind, fixture) in kinds() {
        // A sweep removes the index row first, and the rows of the block one by one.
        let blocks = fixture.rows("blocks");
        for (key, value) in fixture.rows("backups") {
            fixture.write("backups", &key, None);
            assert_ne!(value.len(), 0);
        }
        fixture
            .rows("index")
            .iter()
            .for_each(|(key, _)| fixture.write("index", key, None));
        for (key, _) in blocks {
            assert_eq!(fixture.check(), [""; 0], "{kind}");
            fixture.write("blocks", &key, None);
        }
    }
}

#[test]
fn damage_beyond_a_thousand_places_is_counted() {
    let fixture = Fixture::new(Vec::new());
    for number in 0..1200_u16 {
        let id = [&number.to_be_bytes()[..], &[7; 30]].concat();
        fixture.write("nodes", &id, Some(b"nonsense"));
    }
    let found = fixture.check();
    assert_eq!(found.len(), 1001);
    assert_eq!(found.last().map(String::as_str), Some("and 200 more"));
}
