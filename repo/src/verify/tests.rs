use super::*;
use crate::backup::Image;
use crate::block::BlockSize;
use crate::id::BackupId;
use crate::slots::SlotReader;
use crate::state::Rotation;
use crate::store::StoreManager;
use crate::store::memory::MemoryStore;
use crate::tests::testing::{SMALL, backup, mixed_bytes, store_image};

fn entry(time: &str, images: Vec<Image>) -> Entry {
    Entry {
        id: BackupId([0; 32]),
        backup: backup("web1", time, images),
    }
}

fn run(store: &MemoryStore, entries: &[Entry]) -> VerifyReport {
    verify(store, entries, &Scope::All, 2, &|_| (), &AtomicBool::new(false)).expect("runs")
}

fn slot(store: &MemoryStore, image: &Image, index: usize) -> BlockId {
    let reader = SlotReader::open(store, image.manifest).expect("opens");
    reader.segment(0).expect("reads")[index].expect("not zero")
}

/// Two days of a disk of 100 blocks, none of them zero; the second day changes block 40.
fn two_days() -> (MemoryStore, Vec<Entry>) {
    let store = MemoryStore::new(SMALL);
    let mut plain = mixed_bytes(3, 100 * SMALL.bytes() - 5);
    for block in 0..100 {
        plain[block * SMALL.bytes()] = block as u8 + 1;
    }
    let first = store_image(&store, "vda", &plain);
    plain[40 * SMALL.bytes() + 7] ^= 1;
    let second = store_image(&store, "vda", &plain);
    let entries = vec![
        entry("2026-11-20T00-00-00Z", vec![first]),
        entry("2026-11-21T00-00-00Z", vec![second]),
    ];
    (store, entries)
}

#[test]
fn good_backups_are_read_once_and_found_good() {
    let (store, entries) = two_days();
    let report = run(&store, &entries);
    assert_eq!(report.damage, []);
    assert_eq!((report.read.backups, report.read.blocks), (2, 101));
}

#[test]
fn every_place_of_a_damaged_block_is_named() {
    let (store, entries) = two_days();
    store.damage(slot(&store, &entries[0].backup.images[0], 99), |sealed| {
        sealed.pages[0][5] ^= 1;
    });
    store.lose(slot(&store, &entries[1].backup.images[0], 40));
    let places: Vec<_> = run(&store, &entries)
        .damage
        .into_iter()
        .map(|d| (d.backup, d.offset_bytes >> 16, d.len_bytes))
        .collect();
    let (one, two) = ("web1@2026-11-20T00-00-00Z", "web1@2026-11-21T00-00-00Z");
    assert_eq!(
        places,
        [
            (one.to_owned(), 99, (1 << 16) - 5),
            (two.to_owned(), 40, 1 << 16),
            (two.to_owned(), 99, (1 << 16) - 5),
        ]
    );
}

#[test]
fn a_lost_manifest_is_damage_of_the_whole_disk() {
    let (store, mut entries) = two_days();
    entries[0].backup.images[0].manifest = NodeId([5; 32]);
    let report = run(&store, &entries);
    assert_eq!(report.damage.len(), 1);
    assert_eq!(report.damage[0].len_bytes, entries[0].backup.images[0].size_bytes);
    assert_eq!(report.read.blocks, 100, "the other day is still read");
}

#[test]
fn a_verification_can_be_interrupted() {
    let (store, entries) = two_days();
    let result = verify(&store, &entries, &Scope::All, 1, &|_| (), &AtomicBool::new(true));
    assert!(matches!(result, Err(Error::Interrupted)));
}

#[test]
fn a_backup_of_nothing_is_good() {
    let store = MemoryStore::new(BlockSize::DEFAULT);
    let image = store_image(&store, "vda", &[]);
    let report = run(&store, &[entry("2026-11-20T00-00-00Z", vec![image])]);
    assert_eq!((report.damage.len(), report.read.blocks), (0, 0));
}

#[test]
fn parts_of_all_blocks_are_read_one_by_one() {
    let (store, entries) = two_days();
    let read = |part| {
        let scope = Scope::Parts {
            rotation: Rotation { parts: vec![None; 7] },
            due: vec![part],
        };
        let report = verify(&store, &entries, &scope, 2, &|_| (), &AtomicBool::new(false)).expect("runs");
        report.read.blocks
    };
    let all: Vec<u64> = (0..7).map(read).collect();
    assert_eq!(all.iter().sum::<u64>(), 101);
    assert!(all.iter().all(|part| (5..30).contains(part)), "{all:?}");
}

#[test]
fn condemned_blocks_that_are_read_whole_are_named() {
    let (store, entries) = two_days();
    let image = &entries[0].backup.images[0];
    let (sound, damaged, unnamed) = (slot(&store, image, 7), slot(&store, image, 8), BlockId([9; 32]));
    store.damage(damaged, |sealed| sealed.pages[0][5] ^= 1);
    store.condemn(&[sound, damaged, unnamed]).expect("condemns");
    assert_eq!(run(&store, &entries).sound_again, [sound]);
}
