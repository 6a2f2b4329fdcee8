//! Micro-benchmarks of the store: blocks on their way into RocksDB, with the barrier, and out of it. They write some hundred MB below
//! `target/tmp`.
//!
//! `cargo bench --package vbk-repo --bench store`

use std::sync::atomic::{AtomicU64, Ordering};

use divan::Bencher;
use divan::counter::BytesCount;
use jiff::Timestamp;
use tempfile::TempDir;

use vbk_repo::block::{BlockSize, Hashing, pages_in};
use vbk_repo::codec::{Compression, Sealed, Sealer};
use vbk_repo::store::rocks::RocksStore;
use vbk_repo::store::{Identity, STORE_FORMAT, StoreReader, StoreWriter, Wanted};

const BLOCK_BYTES: usize = 1 << 20;
/// Blocks of one call.
const BATCH: usize = 16;

fn main() {
    divan::main();
}

fn new_store() -> (TempDir, RocksStore) {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory can be made");
    let identity = Identity {
        format: STORE_FORMAT,
        features: Vec::new(),
        id: "bench".into(),
        block_size: BlockSize::DEFAULT,
        created: Timestamp::UNIX_EPOCH,
        key_check: None,
    };
    let store = RocksStore::create(&directory.path().join("store"), &identity).expect("a store can be made");
    (directory, store)
}

/// Returns blocks that no call returned before, stored as they are.
fn new_blocks(count: usize) -> Vec<Sealed> {
    static SEED: AtomicU64 = AtomicU64::new(1);
    let mut sealer = Sealer::new(Compression::None).expect("no compression needs nothing");
    let mut block = || {
        let mut number = SEED.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let plain: Vec<u8> = (0..BLOCK_BYTES / 8)
            .flat_map(|_| {
                number ^= number << 13;
                number ^= number >> 7;
                number ^= number << 17;
                number.to_le_bytes()
            })
            .collect();
        sealer
            .seal(&plain, &Hashing::Plain.block(&plain))
            .expect("a block can be sealed")
    };
    (0..count).map(|_| block()).collect()
}

#[divan::bench(sample_count = 20, sample_size = 1)]
fn put_and_flush(bencher: Bencher<'_, '_>) {
    let (_directory, store) = new_store();
    bencher
        .counter(BytesCount::new(BATCH * BLOCK_BYTES))
        .with_inputs(|| new_blocks(BATCH))
        .bench_local_values(|blocks| {
            store.put(blocks).expect("blocks can be put");
            store.flush().expect("the store can be flushed");
        });
}

#[divan::bench(sample_count = 50, sample_size = 1)]
fn get(bencher: Bencher<'_, '_>) {
    let (_directory, store) = new_store();
    let mut stored = Vec::new();
    for _ in 0..4 {
        let blocks = new_blocks(BATCH);
        stored.extend(blocks.iter().map(|block| block.id));
        store.put(blocks).expect("blocks can be put");
    }
    store.flush().expect("the store can be flushed");
    // In the order of their names, which is no order of the store.
    stored.sort_unstable();
    let wanted: Vec<_> = stored
        .into_iter()
        .take(BATCH)
        .map(|id| Wanted {
            id,
            pages: 0..pages_in(BLOCK_BYTES),
        })
        .collect();
    bencher.counter(BytesCount::new(BATCH * BLOCK_BYTES)).bench_local(|| {
        for answer in store.get(&wanted) {
            answer.expect("the block is stored");
        }
    });
}
