use std::sync::Arc;

use super::*;
use crate::backup::Image;
use crate::block::BlockSize;
use crate::id::BackupId;
use crate::slots::SlotReader;
use crate::state::Rotation;
use crate::store::memory::MemoryStore;
use crate::store::{StoreManager, StoreWriter};
use crate::tests::testing::{SMALL, backup, mixed_bytes, store_image, store_image_after};

fn entry(time: &str, images: Vec<Image>) -> Entry {
    Entry {
        id: BackupId([0; 32]),
        backup: backup("web1", time, images).into(),
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

/// Six days of a disk of 300 blocks, each stored by comparison with the day before. Day N has its own block N - 1; day 3 also lost
/// block 200, which day 4 has again, and the disk of the last day is larger.
fn six_days() -> (MemoryStore, Vec<Entry>) {
    let store = MemoryStore::new(SMALL);
    let mut plain = mixed_bytes(3, 300 * SMALL.bytes());
    for block in 0..300 {
        plain[block * SMALL.bytes()..][..2].copy_from_slice(&(block as u16 + 1).to_le_bytes());
    }
    let mut entries: Vec<Entry> = Vec::new();
    for day in 0..6 {
        let mut today = plain.clone();
        (0..day).for_each(|block| today[block * SMALL.bytes() + 9] ^= 1);
        if day == 3 {
            today[200 * SMALL.bytes()..201 * SMALL.bytes()].fill(0);
        }
        if day == 5 {
            today.extend([7; 5]);
        }
        let before = entries.last().map(|entry| &entry.backup.images[0]);
        let image = store_image_after(&store, "vda", &today, before);
        entries.push(entry(&format!("2026-11-2{day}T00-00-00Z"), vec![image]));
    }
    (store, entries)
}

#[test]
fn only_the_slots_that_changed_are_looked_up() {
    let (store, entries) = six_days();
    assert_eq!(run(&store, &entries).read.blocks, 306);
    let ids: Vec<_> = entries.iter().map(|entry| entry.backup.images[0].manifest).collect();
    let manifests: Vec<_> = read_manifests(&store, &ids)
        .into_iter()
        .map(|read| read.expect("reads"))
        .collect();
    let walk = Walk::new(&store, 8);
    let looked_up = |day: usize| {
        let names = manifests[day].segment(0).expect("has one");
        let segment = read_segments(&store, &[(names, manifests[day].slots_in(0))]).remove(0);
        let before = day.checked_sub(1).map(|before| &manifests[before]);
        let blocks = walk.changed_blocks(&manifests[day], before, &[(0, names, segment.expect("reads"))]);
        blocks.expect("compares").len()
    };
    // Of another number of slots nothing is compared.
    assert_eq!([0, 1, 2, 3, 4, 5].map(looked_up), [300, 1, 1, 1, 2, 301]);
}

#[test]
fn what_a_damaged_day_alone_had_handed_out_is_found_by_the_next() {
    let (store, entries) = six_days();
    // Whatever is lost, all that the other days name is read.
    for lost in 0..5 {
        let manifest = read_manifests(&store, &[entries[lost].backup.images[0].manifest]).remove(0);
        let segment = manifest.expect("reads").segment(0).expect("has one");
        let node = if lost == 0 { segment.full } else { segment.delta };
        let bytes = store.nodes(&[node]).remove(0).expect("is there");
        store.put_nodes(vec![(node, vec![0])]).expect("puts");
        let report = run(&store, &entries);
        // Days 1 to 4 are made of the full segment of day 0. Each of them has its block on the days after it, too, and day 3
        // had one block less.
        assert_eq!(report.read.blocks, if lost == 0 { 301 } else { 306 }, "day {lost}");
        assert_eq!(report.damage.len(), if lost == 0 { 5 } else { 1 }, "day {lost}");
        store.put_nodes(vec![(node, bytes)]).expect("puts");
    }
    assert_eq!(run(&store, &entries).damage, []);
}

#[test]
fn a_lost_manifest_is_damage_of_the_whole_disk() {
    let (store, mut entries) = two_days();
    Arc::make_mut(&mut entries[0].backup).images[0].manifest = NodeId([5; 32]);
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
