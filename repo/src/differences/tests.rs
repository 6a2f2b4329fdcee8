use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::*;
use crate::backup::{Entry, Image};
use crate::catalogue::Catalogue;
use crate::codec::Compression;
use crate::error::Error;
use crate::id::BackupId;
use crate::keys::Keys;
use crate::mark::{mark, mark_sealed};
use crate::reader::{ImageReader, ReadResources};
use crate::repair::{Repair, Write};
use crate::slots::SlotReader;
use crate::store::delayed::Delayed;
use crate::store::encrypted::Encrypted;
use crate::store::memory::MemoryStore;
use crate::store::{PruneOptions, Record, StoreManager, StoreReader};
use crate::tests::testing::{SMALL, backup, noise, store_image, store_image_over};
use crate::verify::{Scope, VerifyReport, verify};

static CANCEL: AtomicBool = AtomicBool::new(false);

/// A disk of four blocks of noise, with a few bytes of the second changed on each day.
fn disk(day: u8) -> Vec<u8> {
    let mut plain = noise(1, 4 * SMALL.bytes());
    plain[SMALL.bytes() + 5] = day;
    plain
}

fn sealed(store: &dyn StoreWriter, sealer: &mut Sealer, condemned: &HashSet<BlockId>, new: &[New<'_>]) -> Vec<Sealed> {
    let bases = bases(store, condemned, new).expect("reads");
    seal(sealer, 1, new, &bases).expect("seals")
}

fn commit(store: &dyn StoreManager, day: u8, image: &Image) -> Entry {
    let made = backup("web1", &format!("2026-11-{day}T05-54-00Z"), vec![image.clone()]);
    let (key, bytes) = (made.spec(), made.encode());
    store.commit(&Record { key, bytes }).expect("commits");
    Entry {
        id: BackupId([0; 32]),
        backup: made.into(),
    }
}

/// Days from 20 on, each stored as a difference from the day before.
fn days(store: &dyn StoreManager, count: u8) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for day in 20..20 + count {
        let image = match entries.last() {
            None => store_image(store, "vda", &disk(day)),
            Some(before) => store_image_over(store, "vda", &disk(day), &before.backup.images[0]),
        };
        entries.push(commit(store, day, &image));
    }
    entries
}

/// The bytes that the block that changes has on a day, and their hashes.
fn changed(store: &dyn StoreManager, day: u8) -> (Vec<u8>, BlockHashes) {
    let block = disk(day)[SMALL.bytes()..2 * SMALL.bytes()].to_vec();
    let hashes = store.hashing().block(&block);
    (block, hashes)
}

/// The block that changes.
fn changing(store: &dyn StoreManager, entry: &Entry) -> BlockId {
    let reader = SlotReader::open(store, entry.backup.images[0].manifest).expect("opens");
    reader.segment(0).expect("reads")[1].expect("not zero")
}

fn base_of(store: &dyn StoreManager, entry: &Entry) -> Option<BlockId> {
    let id = changing(store, entry);
    store.locate(&[id]).expect("locates")[0].expect("is stored").base
}

fn read(store: Arc<dyn StoreReader>, entry: &Entry) -> Result<Vec<u8>> {
    let reader = ImageReader::open(store, ReadResources::new(1), &entry.backup.images[0])?;
    let mut plain = vec![0; reader.size_bytes() as usize];
    // A page in the midst of a block first: it comes alone.
    reader.read_at(SMALL.bytes() as u64 + 3, &mut plain[..100])?;
    reader.read_at(0, &mut plain)?;
    Ok(plain)
}

/// A plain store and an encrypted one, and what keeps each.
fn stores() -> Vec<(Arc<MemoryStore>, Arc<dyn StoreManager>)> {
    let plain = Arc::new(MemoryStore::new(SMALL));
    let (below, identity) = MemoryStore::sealed(SMALL, true);
    let keys = Keys::generate().expect("random bytes");
    let encrypted = Encrypted::new(Arc::clone(&below), &keys, &identity);
    encrypted.accept().expect("begins");
    vec![(Arc::clone(&plain), plain as _), (below, Arc::new(encrypted))]
}

fn check(store: &dyn StoreManager, entries: &[Entry]) -> VerifyReport {
    verify(store, entries, &Scope::All, 2, &|_| (), &CANCEL).expect("runs")
}

fn retain_marked(store: &dyn StoreManager) -> Result<()> {
    let live = mark(store, &Catalogue::load(store)?, 2, &CANCEL)?;
    let options = PruneOptions {
        max_unused: 0.0,
        dry_run: false,
        empty_bin: false,
    };
    store.retain(&live, options, &mut |_| Ok(())).map(drop)
}

#[test]
fn each_day_is_a_difference_from_a_whole_block_and_is_read_back() {
    for (_, store) in stores() {
        let entries = days(&*store, 4);
        let first = changing(&*store, &entries[0]);
        let bases: Vec<_> = entries.iter().map(|entry| base_of(&*store, entry)).collect();
        assert_eq!(bases, [None, Some(first), Some(first), Some(first)]);
        for (day, entry) in (20..).zip(&entries) {
            assert!(read(store.clone(), entry).expect("reads") == disk(day), "{day}");
        }
        assert_eq!(check(&*store, &entries).damage, []);
    }
}

#[test]
fn what_is_new_and_the_first_of_its_place_is_whole() {
    for (_, store) in stores() {
        let plain = disk(20);
        let hashes = store.hashing().block(&plain[..SMALL.bytes()]);
        let mut sealer = Sealer::new(Compression::default()).expect("a sealer");
        for before in [None, Some(BlockId([7; 32]))] {
            let new = New {
                plain: &plain[..SMALL.bytes()],
                hashes: &hashes,
                before,
            };
            let sealed = sealed(&*store, &mut sealer, &HashSet::new(), &[new]);
            assert_eq!(sealed[0].base, None, "{before:?}");
        }
    }
}

#[test]
fn no_difference_is_made_from_a_damaged_or_condemned_block_or_in_a_far_store() {
    for (below, store) in stores() {
        let entries = days(&*store, 1);
        let before = changing(&*store, &entries[0]);
        let (block, hashes) = changed(&*store, 21);
        let new = [New {
            plain: &block,
            hashes: &hashes,
            before: Some(before),
        }];
        let mut sealer = Sealer::new(Compression::default()).expect("a sealer");
        let mut base = |store: &dyn StoreWriter, condemned: &[BlockId]| {
            let condemned = condemned.iter().copied().collect();
            sealed(store, &mut sealer, &condemned, &new)[0].base
        };
        assert_eq!(base(&*store, &[]), Some(before));
        assert_eq!(base(&*store, &[before]), None);
        if store.hashing() == below.hashing() {
            let far = Delayed::new(Arc::clone(&below), Duration::from_millis(1)).expect("starts");
            let calls = far.calls().waits;
            assert_eq!(base(&far, &[]), None);
            assert_eq!(far.calls().waits, calls, "nothing is asked");
        }
        below.damage(before, |sealed| sealed.pages[0][5] ^= 1);
        assert_eq!(base(&*store, &[]), None);
    }
}

#[test]
fn no_difference_is_made_from_the_base_of_a_condemned_difference() {
    for (_, store) in stores() {
        let entries = days(&*store, 2);
        let [first, second] = [0, 1].map(|day| changing(&*store, &entries[day]));
        let (block, hashes) = changed(&*store, 22);
        let new = [New {
            plain: &block,
            hashes: &hashes,
            before: Some(second),
        }];
        let mut sealer = Sealer::new(Compression::default()).expect("a sealer");
        let mut base = |condemned: HashSet<BlockId>| sealed(&*store, &mut sealer, &condemned, &new)[0].base;
        assert_eq!(base(HashSet::new()), Some(first));
        // Its base may be what is damaged, in a part that the new block would share.
        assert_eq!(base([second].into()), None);
        assert_eq!(base([first].into()), None);
    }
}

#[test]
fn a_block_is_put_as_a_whole_if_its_base_is_condemned_meanwhile() {
    for (_, store) in stores() {
        let entries = days(&*store, 1);
        let before = changing(&*store, &entries[0]);
        let (block, hashes) = changed(&*store, 21);
        let new = [New {
            plain: &block,
            hashes: &hashes,
            before: Some(before),
        }];
        let mut sealer = Sealer::new(Compression::default()).expect("a sealer");
        let difference = sealed(&*store, &mut sealer, &HashSet::new(), &new);
        assert_eq!(difference[0].base, Some(before));
        store.condemn(&[before]).expect("condemns");
        let bytes = put(&*store, difference, || seal(&mut sealer, 1, &new, &[None])).expect("puts");
        assert!(bytes as usize > SMALL.bytes(), "noise");
        let located = store.locate(&[hashes.id]).expect("locates")[0].expect("is stored");
        assert_eq!(located.base, None);
    }
}

#[test]
fn a_prune_keeps_what_is_needed_and_stops_if_that_has_lost_its_index_row() {
    for (below, store) in stores() {
        let entries = days(&*store, 3);
        let first = changing(&*store, &entries[0]);
        store.amend(&[entries[0].backup.spec()], &[]).expect("forgets");
        retain_marked(&*store).expect("prunes");
        assert!(read(store.clone(), &entries[2]).expect("reads") == disk(22));
        if store.hashing() != below.hashing() {
            let live = mark_sealed(&*below, &below.records().expect("lists"), 2, &CANCEL).expect("marks");
            let place = below.locate(&[first]).expect("locates")[0].expect("is stored").place;
            assert!(live.has_block_at(place), "without the key");
        }
        let lost = below.take(first).expect("was kept");
        let stopped = retain_marked(&*store).expect_err("it can't tell");
        assert!(matches!(stopped, Error::CantTellUnused { .. }), "{stopped}");
        assert!(stopped.to_string().contains(&first.to_string()), "{stopped}");
        below.put(vec![lost]).expect("puts");
        // When no backup needs it any more it goes.
        let keys: Vec<_> = entries[1..].iter().map(|entry| entry.backup.spec()).collect();
        store.amend(&keys, &[]).expect("forgets");
        retain_marked(&*store).expect("prunes");
        assert_eq!(store.locate(&[first]).expect("locates"), [None]);
    }
}

#[test]
fn a_damaged_base_is_found_and_a_repair_stores_what_depends_on_it() {
    for (below, store) in stores() {
        let entries = days(&*store, 3);
        let first = changing(&*store, &entries[0]);
        let later = &entries[1..];
        store.amend(&[entries[0].backup.spec()], &[]).expect("forgets");
        below.damage(first, |sealed| sealed.pages[0][5] ^= 1);
        let found = check(&*store, later);
        let bad: HashSet<_> = found.bad_blocks.keys().copied().collect();
        // The base too, which no backup names any more: otherwise the next difference would be made from it.
        let changed = later.iter().map(|entry| changing(&*store, entry));
        assert_eq!(bad, changed.chain([first]).collect(), "{:?}", found.damage);
        assert_eq!(found.damage.len(), later.len());
        assert!(read(store.clone(), &entries[1]).is_err());
        let write: Box<Write<'_>> = Box::new(|change| change(&*store));
        let mut repair = Repair::start(store.hashing(), &*write, &found).expect("starts");
        for day in [21, 22] {
            assert!(
                repair
                    .offer(&disk(day)[SMALL.bytes()..2 * SMALL.bytes()])
                    .expect("takes")
            );
        }
        repair.finish().expect("finishes");
        assert_eq!(check(&*store, later).damage, []);
        assert!(later.iter().all(|entry| base_of(&*store, entry).is_none()));
        assert!(read(store.clone(), &entries[2]).expect("reads") == disk(22));
    }
}

#[test]
fn a_repository_gives_back_what_is_a_difference_there() {
    let (_, damaged) = stores().remove(0);
    let (_, other) = stores().remove(0);
    let entries = days(&*damaged, 3);
    days(&*other, 3);
    let lost = changing(&*damaged, &entries[2]);
    damaged.condemn(&[lost]).expect("condemns");
    let found = VerifyReport {
        bad_blocks: [(lost, SMALL.bytes())].into(),
        ..VerifyReport::default()
    };
    let write: Box<Write<'_>> = Box::new(|change| change(&*damaged));
    let mut repair = Repair::start(damaged.hashing(), &*write, &found).expect("starts");
    repair.from_repository(&*other, &CANCEL).expect("fetches");
    repair.finish().expect("finishes");
    assert_eq!(base_of(&*damaged, &entries[2]), None);
    assert_eq!(damaged.condemned().expect("lists"), []);
}

#[test]
fn the_base_of_an_encrypted_block_can_not_be_exchanged() {
    let (below, store) = stores().remove(1);
    let entries = days(&*store, 2);
    let id = changing(&*store, &entries[1]);
    let reader = SlotReader::open(&*store, entries[1].backup.images[0].manifest).expect("opens");
    let other = reader.segment(0).expect("reads")[2].expect("not zero");
    for base in [Some(other), None] {
        let before = below.locate(&[id]).expect("locates")[0].expect("is stored").base;
        below.damage(id, |sealed| sealed.base = base);
        let wanted = Wanted { id, pages: 0..1 };
        let error = whole::get(&*store, &[wanted])
            .remove(0)
            .expect_err("it was sealed with another");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        below.damage(id, |sealed| sealed.base = before);
    }
    assert!(read(store, &entries[1]).expect("reads") == disk(21));
}
