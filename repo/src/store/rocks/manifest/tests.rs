use std::collections::BTreeSet;

use super::*;
use crate::block::Hashing;
use crate::codec::{Compression, Sealed, Sealer};
use crate::store::rocks::tests::Fixture;
use crate::store::rocks::{RocksStore, path_in};
use crate::store::{Live, Note, PruneOptions, StoreManager, StoreWriter};

/// Noise of 5,000 bytes.
fn block(seed: u32) -> Sealed {
    let mut noise = seed * 2 + 1;
    let plain: Vec<u8> = (0..5_000)
        .map(|_| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (noise >> 24) as u8
        })
        .collect();
    Sealer::new(Compression::None)
        .and_then(|mut sealer| sealer.seal(&plain, &Hashing::Plain.block(&plain)))
        .expect("seals")
}

fn note(number: u32) -> Note {
    Note {
        name: format!("note {number}"),
        value: Some(vec![number as u8; 40]),
    }
}

fn set(list: &Manifest) -> BTreeSet<StoreFile> {
    list.files().collect()
}

/// Compares a list that was read as it grew, and one that is read at once, with the files that RocksDB itself names.
fn assert_true(store: &RocksStore, directory: &Path, list: &mut Manifest, what: &str) {
    let scratch = directory.join("scratch");
    let path = path_in(directory);
    let mut known = set(list);
    list.take_changes();
    for _ in 0..1000 {
        let linked = store
            .still(|| store.list_by_checkpoint(&scratch))
            .expect("makes a checkpoint");
        let whole = Manifest::open(&scratch).expect("reads");
        assert_eq!(set(&whole), linked, "{what}");
        for (file, bytes) in whole.lengths() {
            let found = std::fs::metadata(scratch.join(file.name())).expect("is there");
            assert_eq!(found.len(), bytes, "{what}: {file:?}");
        }
        assert_eq!(
            whole.next() - 1,
            linked.iter().map(|file| file.number()).max().unwrap_or(0)
        );
        list.advance(&path).expect("reads on");
        let Changes { added, removed } = list.take_changes();
        assert!(removed.is_subset(&known), "{what}: {removed:?}");
        known.retain(|file| !removed.contains(file));
        assert!(added.is_disjoint(&known), "{what}: {added:?}");
        known.extend(added.iter().copied());
        assert_eq!(known, set(list), "{what}");
        // RocksDB may have gone on since the checkpoint.
        if known == linked && list.counts() == store.counts().expect("counts") {
            super::super::remove_checkpoint(&scratch);
            return;
        }
    }
    panic!("{what}: {known:?}");
}

#[test]
fn the_files_of_a_store_are_those_that_rocksdb_names_whatever_was_done_to_it() {
    let mut fixture = Fixture::new();
    let directory = fixture.directory.path().to_owned();
    let mut list = Manifest::open(&path_in(&directory)).expect("reads");
    list.take_changes();
    let mut noise = 7_u32;
    let mut seed = 0;
    let mut kinds = BTreeSet::new();
    for step in 0..120 {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let store = fixture.store();
        let kind = (noise >> 24) % 16;
        kinds.insert(kind);
        match kind {
            0..8 => {
                let count = (noise >> 8) % 40;
                store
                    .put((0..count).map(|number| block(seed + number)).collect())
                    .expect("puts");
                seed += count;
                store.flush().expect("flushes");
            }
            8..12 => store.amend(&[], &[note(noise >> 20)]).expect("amends"),
            12 => store.checkpoint(&directory.join("other")).expect("flushes all"),
            13 | 14 => {
                let live: Vec<_> = (0..seed)
                    .filter(|number| number.wrapping_mul(noise) >> 30 == 1)
                    .map(|number| block(number).id)
                    .collect();
                let options = PruneOptions {
                    max_unused: 0.0,
                    dry_run: false,
                    empty_bin: false,
                };
                let live = Live::of(store, &live, &[]).expect("locates");
                store.retain(&live, options, &mut |_| Ok(())).expect("sweeps");
            }
            _ => {
                fixture.reopen();
                let fresh = Manifest::open(&path_in(&directory)).expect("reads");
                assert_eq!(fresh.counts(), fixture.store().counts().expect("counts"));
            }
        }
        super::super::remove_checkpoint(&directory.join("other"));
        assert_true(
            fixture.store(),
            &directory,
            &mut list,
            &format!("step {step}, kind {kind}"),
        );
    }
    assert!(kinds.len() > 12, "{kinds:?}");
}

/// A store with something in its list, closed, and its list.
fn small() -> (Fixture, Manifest) {
    let mut fixture = Fixture::new();
    for seed in 0..4 {
        fixture.store().put(vec![block(seed)]).expect("puts");
        fixture.store().flush().expect("flushes");
    }
    fixture.reopen();
    fixture.store().put(vec![block(9)]).expect("puts");
    fixture.store().flush().expect("flushes");
    let list = Manifest::open(&path_in(fixture.directory.path())).expect("reads");
    (fixture, list)
}

#[test]
fn a_list_that_was_cut_gives_the_state_at_its_last_whole_record() {
    let (fixture, whole) = small();
    let path = path_in(fixture.directory.path()).join(whole.name());
    let bytes = std::fs::read(path).expect("reads");
    let copy = tempfile::tempdir().expect("a directory");
    std::fs::write(copy.path().join("CURRENT"), format!("{}\n", whole.name())).expect("writes");
    let mut states = BTreeSet::new();
    let mut growing: Option<Manifest> = None;
    for length in 0..=whole.length() {
        std::fs::write(copy.path().join("draft"), &bytes[..length as usize]).expect("writes");
        // The same file, longer each time, as RocksDB makes it.
        let grown = copy.path().join(whole.name());
        std::fs::write(&grown, &bytes[..length as usize]).expect("writes");
        match (&mut growing, Manifest::open(copy.path())) {
            (None, Err(Unread::Strange(_))) => {}
            (None, Ok(first)) => growing = Some(first),
            (Some(growing), read) => {
                let read = read.expect("reads");
                growing.advance(copy.path()).expect("reads on");
                assert!(read.length() <= length);
                assert_eq!(read.ends_whole(), read.length() == length, "{length}");
                assert_eq!(
                    (growing.length(), set(growing)),
                    (read.length(), set(&read)),
                    "{length}"
                );
                assert!(Manifest::open_part(copy.path(), whole.name(), read.length()).is_ok());
                states.insert(read.length());
            }
            (None, Err(error)) => panic!("{length}: {error:?}"),
        }
    }
    assert!(states.len() > 2, "{states:?}");
    let last = growing.expect("was read");
    assert_eq!(set(&last), set(&whole));
    for length in states.iter().map(|length| length - 1) {
        let cut = Manifest::open_part(copy.path(), whole.name(), length);
        assert!(cut.is_err(), "{length}");
    }
}

#[test]
fn a_flipped_bit_in_a_list_never_gives_other_files() {
    let (fixture, whole) = small();
    let path = path_in(fixture.directory.path()).join(whole.name());
    let bytes = std::fs::read(path).expect("reads");
    let copy = tempfile::tempdir().expect("a directory");
    let harmed = copy.path().join(whole.name());
    for at in 0..whole.length() as usize {
        let mut other = bytes[..whole.length() as usize].to_vec();
        other[at] ^= 1 << (at % 8);
        std::fs::write(&harmed, &other).expect("writes");
        let read = Manifest::open_part(copy.path(), whole.name(), whole.length());
        assert!(read.is_err(), "byte {at}");
    }
}

#[test]
fn an_unknown_entry_is_strange_unless_it_may_be_passed_over() {
    let known: &[&[u8]] = &[
        &[],
        // Last sequence number.
        &[4, 7],
        // An ignorable entry: tag 2^13 + 200, of three bytes.
        &[0xC8, 0x41, 3, 1, 2, 3],
        // A removed table: level and number.
        &[6, 0, 12],
        // A blob file with an ignorable field.
        &[0x90, 3, 5, 1, 1, 0, 0, 2, 1, 9, 0],
    ];
    for bytes in known {
        Edit::decode(bytes).expect("is known");
    }
    let unknown: &[&[u8]] = &[
        &[8],
        // Column family that is dropped.
        &[0xCA, 1],
        // Old forms of a new table.
        &[7, 0, 1, 1, 0, 0],
        // An ignorable entry that is cut off.
        &[0xC8, 0x41, 3, 1, 2],
        &[6, 0],
        // A blob file with a field that must be known.
        &[0x90, 3, 5, 1, 1, 0, 0, 0x41, 1, 9, 0],
        // A table in another directory.
        &[103, 0, 1, 1, 0, 0, 0, 0, 65, 1, 1, 1],
        &[0x80],
    ];
    for bytes in unknown {
        assert!(Edit::decode(bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn only_the_names_that_rocksdb_gives_are_those_of_files() {
    for file in [StoreFile::Table(7), StoreFile::Blob(1_234_567)] {
        assert_eq!(StoreFile::of_name(file.name().as_ref()), Some(file));
    }
    for name in [
        "7.sst",
        "000007.SST",
        "000007.sst.new",
        "+00007.sst",
        "000007",
        "CURRENT",
    ] {
        assert_eq!(StoreFile::of_name(name.as_ref()), None, "{name}");
    }
}
