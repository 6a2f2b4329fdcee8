use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::super::tests::{Fixture, wanted};
use super::*;
use crate::block::Hashing;
use crate::codec::{Compression, Sealed, Sealer};
use crate::error::ErrorKind;
use crate::store::{Place, StoreReader, StoreWriter};

pub(super) const WINDOW: u64 = 100;
pub(super) const ALL: PruneOptions = PruneOptions {
    max_unused: 0.0,
    dry_run: false,
    empty_bin: false,
};

/// Noise of 20,000 bytes.
pub(super) fn block(seed: u32) -> Sealed {
    let mut noise = seed * 2 + 1;
    let plain: Vec<u8> = (0..20_000)
        .map(|_| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (noise >> 24) as u8
        })
        .collect();
    Sealer::new(Compression::None)
        .and_then(|mut sealer| sealer.seal(&plain, &Hashing::Plain.block(&plain)))
        .expect("seals")
}

/// Returns a store with blocks in five windows, and the set of live ones according to `is_live`.
fn filled(is_live: impl Fn(u64) -> bool) -> (Fixture, Vec<Sealed>, Live) {
    filled_by(50, is_live)
}

/// The same with so many blocks in a file.
pub(super) fn filled_by(blocks_in_file: usize, is_live: impl Fn(u64) -> bool) -> (Fixture, Vec<Sealed>, Live) {
    let fixture = Fixture::new();
    let blocks: Vec<_> = (0..5 * WINDOW as u32).map(block).collect();
    for some in blocks.chunks(blocks_in_file) {
        fixture.store().put(some.to_vec()).expect("puts");
        fixture.store().flush().expect("flushes");
    }
    let live: Vec<_> = (0..)
        .zip(&blocks)
        .filter(|(n, _)| is_live(*n))
        .map(|(_, block)| block.id)
        .collect();
    let live = Live::of(fixture.store(), &live, &[]).expect("locates");
    (fixture, blocks, live)
}

pub(super) fn blob_bytes(fixture: &Fixture) -> u64 {
    let files = blob_files(fixture);
    files.iter().map(|file| file.metadata().expect("is there").size()).sum()
}

/// Oldest first.
pub(super) fn blob_files(fixture: &Fixture) -> Vec<PathBuf> {
    let files = std::fs::read_dir(fixture.directory.path().join("store")).expect("lists");
    let files = files.map(|file| file.expect("an entry").path());
    let mut files: Vec<_> = files
        .filter(|file| file.extension().is_some_and(|extension| extension == "blob"))
        .collect();
    files.sort();
    files
}

pub(super) fn run(fixture: &Fixture, live: &Live, options: PruneOptions) -> Swept {
    sweep_windows(fixture.store(), None, live, options, WINDOW, &mut |_| Ok(())).expect("sweeps")
}

pub(super) fn assert_just_live(fixture: &Fixture, blocks: &[Sealed], live: &Live) {
    for (place, block) in (0..).map(Place).zip(blocks) {
        let stored = fixture.store().get(&[wanted(block)]).remove(0);
        let is_live = live.has_block_at(place);
        assert_eq!(
            stored.ok().map(|stored| stored.pages),
            is_live.then(|| block.pages.clone())
        );
    }
}

#[test]
fn space_comes_back_at_once() {
    let (fixture, blocks, live) = filled(|n| n % 2 == 0);
    let before = blob_bytes(&fixture);
    let swept = run(&fixture, &live, ALL);
    assert_eq!((swept.removed_blocks, swept.live_blocks), (250, 250));
    let after = blob_bytes(&fixture);
    assert!(after < before * 55 / 100, "{before} to {after}");
    assert_just_live(&fixture, &blocks, &live);
    let copy = fixture.crashed_copy();
    assert_just_live(&copy, &blocks, &live);
}

#[test]
fn files_without_live_blocks_go_and_nothing_is_moved() {
    // Each file has 10 blocks, all of them live or none.
    let (fixture, blocks, live) = filled_by(10, |n| n / 10 % 2 == 0);
    let before = blob_files(&fixture);
    run(&fixture, &live, ALL);
    let after = blob_files(&fixture);
    let expected: Vec<_> = before.iter().step_by(2).cloned().collect();
    assert_eq!(after, expected);
    assert_just_live(&fixture, &blocks, &live);
}

#[test]
fn windows_for_which_there_was_no_room_are_tried_again() {
    let (fixture, blocks, live) = filled(|n| n % 2 == 0);
    let before = blob_bytes(&fixture);
    let mut sweep = Sweep::new(fixture.store(), &live, WINDOW);
    sweep.count(&mut |_| Ok(())).expect("counts");
    sweep
        .unlist(std::slice::from_ref(&(0..5 * WINDOW)), &mut |_| Ok(()))
        .expect("removes");
    // Nothing is moved.
    sweep.sweep_group(&(0..5), false, &mut |_| Ok(())).expect("sweeps");
    assert_eq!(blob_bytes(&fixture), before);
    sweep.short = (0..5).map(|number| (number, 1)).collect();
    sweep.tell_what_is_left().expect_err("tells of the missing room");
    sweep.try_again(&mut |_| Ok(())).expect("sweeps");
    sweep.tell_what_is_left().expect("nothing is left");
    let after = blob_bytes(&fixture);
    assert!(after < before * 55 / 100, "{before} to {after}");
    assert_just_live(&fixture, &blocks, &live);
}

#[test]
fn what_is_worth_little_is_left_alone() {
    // Window 0 has no live blocks, window 1 has one unused block of 100, the others none.
    let (fixture, blocks, live) = filled(|n| n >= WINDOW && n != WINDOW + 7);
    let options = PruneOptions {
        max_unused: 0.01,
        dry_run: false,
        empty_bin: false,
    };
    let swept = run(&fixture, &live, options);
    assert_eq!((swept.unused_blocks, swept.removed_blocks), (101, 100));
    let kept = fixture.store().get(&[wanted(&blocks[WINDOW as usize + 7])]).remove(0);
    assert!(kept.is_ok(), "an unused block that stays is whole");
    // The other block can be used again without being stored again.
    let before = blob_bytes(&fixture);
    fixture
        .store()
        .put(vec![blocks[WINDOW as usize + 7].clone()])
        .expect("puts");
    fixture.store().flush().expect("flushes");
    assert_eq!(blob_bytes(&fixture), before);
}

#[test]
fn a_sweep_that_ends_anywhere_goes_on_later() {
    let mut has_ended = false;
    for end_at in (0..6).chain((6..).step_by(19)) {
        if has_ended {
            break;
        }
        let (fixture, blocks, live) = filled(|n| n % 3 == 0);
        let (mut steps, mut told) = (0, Swept::default());
        let result = sweep_windows(fixture.store(), None, &live, ALL, WINDOW, &mut |swept| {
            steps += 1;
            told = *swept;
            if steps > end_at {
                Err(Error::Interrupted)
            } else {
                Ok(())
            }
        });
        assert_eq!(result.is_err(), steps > end_at);
        has_ended = result.is_ok();
        let copy = fixture.crashed_copy();
        let rest = run(&copy, &live, ALL);
        let unused = blocks.len() - blocks.len().div_ceil(3);
        if result.is_err() {
            assert_eq!(
                told.removed_blocks + rest.removed_blocks,
                unused as u64,
                "ended at {end_at}"
            );
        }
        assert_just_live(&copy, &blocks, &live);
        let left = blob_bytes(&copy);
        assert!(
            left < 500 * 20_000 * 40 / 100,
            "ended at {end_at}: {left} bytes are left"
        );
    }
}

#[test]
fn what_a_crash_left_between_two_steps_is_given_back() {
    for steps in 1..=3 {
        let (fixture, blocks, live) = filled(|n| n % 2 == 0);
        let before = blob_bytes(&fixture);
        let mut sweep = Sweep::new(fixture.store(), &live, WINDOW);
        sweep.count(&mut |_| Ok(())).expect("counts");
        let range = 0..5 * WINDOW;
        let mut batch = WriteBatch::default();
        let meta = fixture.store().reader.family("meta");
        batch.put_cf(meta, SWEEPING, encode(std::slice::from_ref(&range)));
        fixture.store().write_logged("remove blocks", batch).expect("writes");
        if steps > 1 {
            sweep
                .unlist(std::slice::from_ref(&range), &mut |_| Ok(()))
                .expect("removes");
        }
        if steps > 2 {
            sweep.remove(&range).expect("removes");
        }
        let copy = fixture.crashed_copy();
        if steps > 1 {
            assert_just_live(&copy, &blocks, &live);
        }
        let swept = run(&copy, &live, ALL);
        let found = if steps > 1 { 0 } else { 250 };
        assert_eq!((swept.unused_blocks, swept.removed_blocks), (found, found));
        assert!(blob_bytes(&copy) < before * 55 / 100);
        assert_just_live(&copy, &blocks, &live);
        assert_eq!(
            copy.store()
                .reader
                .db
                .get_cf(copy.store().reader.family("meta"), SWEEPING),
            Ok(None)
        );
    }
}

#[test]
fn what_was_stored_since_an_unfinished_sweep_stays() {
    let (fixture, blocks, live) = filled(|n| n % 2 == 0);
    let mut steps = 0;
    let ended = sweep_windows(fixture.store(), None, &live, ALL, WINDOW, &mut |_| {
        steps += 1;
        Err(Error::Interrupted)
    });
    assert!(ended.is_err() && steps == 1);
    let copy = fixture.crashed_copy();
    // One removed block of each window is put again under a new number, in the last window and after it.
    let again: Vec<_> = (0..5).map(|n| blocks[(n * WINDOW) as usize + 1].clone()).collect();
    copy.store().put(again.clone()).expect("puts");
    copy.store().flush().expect("flushes");
    let live: Vec<_> = again
        .iter()
        .chain(blocks.iter().step_by(2))
        .map(|block| block.id)
        .collect();
    let live = Live::of(copy.store(), &live, &[]).expect("locates");
    run(&copy, &live, ALL);
    for block in again.iter().chain(blocks.iter().step_by(2)) {
        let stored = copy.store().get(&[wanted(block)]).remove(0).expect("is there");
        assert_eq!(stored.pages, block.pages);
    }
}

#[test]
fn a_crash_in_the_middle_of_a_backup_and_a_sweep_do_not_mix() {
    let (fixture, blocks, live) = filled(|n| n % 2 == 0);
    let lost = block(7777);
    fixture.store().put(vec![lost.clone()]).expect("puts");
    let copy = fixture.crashed_copy();
    run(&copy, &live, ALL);
    copy.store().put(vec![lost.clone(), blocks[1].clone()]).expect("puts");
    copy.store().flush().expect("flushes");
    let again = copy.crashed_copy();
    let stored = again
        .store()
        .get(&[wanted(&lost), wanted(&blocks[1]), wanted(&blocks[2])]);
    assert!(stored.iter().all(Result::is_ok), "{stored:?}");
}

#[test]
fn windows_are_chosen_by_their_share_until_enough_is_won() {
    let window = |live_bytes, unused_bytes| Window {
        live_bytes,
        unused_bytes,
        unused_blocks: u64::from(unused_bytes > 0),
    };
    let windows = BTreeMap::from([
        (0, window(100, 10)),
        (1, window(0, 50)),
        (2, window(50, 50)),
        (3, window(100, 0)),
    ]);
    assert_eq!(choose(&windows, 250, 0.0), [1, 2, 0]);
    assert_eq!(choose(&windows, 250, 0.05), [1, 2]);
    assert_eq!(choose(&windows, 250, 0.3), [1]);
    assert_eq!(choose(&windows, 250, 1.0), [0_u64; 0]);
    assert_eq!(neighbours(&[1, 2, 3, 4, 5, 6, 9], &|_| 0), [1..5, 5..7, 9..10]);
    // Much that is to be moved is moved in turns.
    let live_bytes = |number| if number == 2 { 3 << 30 } else { 1 << 29 };
    assert_eq!(neighbours(&[1, 2, 3, 4, 5], &live_bytes), [1..2, 2..3, 3..5, 5..6]);
    assert_eq!(length_of_pass(&[0, 1, 2], &windows, 2), 2);
    assert_eq!(length_of_pass(&[0, 1, 2], &windows, 0), 1);
    assert_eq!(length_of_pass(&[0, 1, 2], &windows, 9), 3);
    assert_eq!(decode(&encode(&[1..5, 7..9])), [1..5, 7..9]);
}

#[test]
fn what_a_damaged_row_says_is_being_swept_costs_no_more_than_the_store_has() {
    let (fixture, blocks, live) = filled(|number| number % 2 == 0);
    let store = fixture.store();
    for row in [
        encode(std::slice::from_ref(&(0..u64::MAX))),
        encode(std::slice::from_ref(&(u64::MAX - 1..u64::MAX))),
        encode(&[Range { start: 300, end: 100 }, 0..WINDOW]),
        vec![0xFF; 39],
    ] {
        let mut batch = WriteBatch::default();
        batch.put_cf(store.reader.family("meta"), SWEEPING, row);
        store.write_logged("damage", batch).expect("writes");
        run(&fixture, &live, ALL);
        assert_just_live(&fixture, &blocks, &live);
        let left = store.reader.db.get_cf(store.reader.family("meta"), SWEEPING);
        assert_eq!(left.expect("reads"), None);
    }
}

/// Changes a byte of a file, in the first of two blocks.
pub(super) fn damage(path: &PathBuf) {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("opens");
    let (at, mut byte) = (file.metadata().expect("is there").len() / 3, [0]);
    file.read_exact_at(&mut byte, at).expect("reads");
    file.write_all_at(&[!byte[0]], at).expect("writes");
}

#[test]
fn damage_stops_no_sweep() {
    let (fixture, blocks, live) = filled_by(2, |number| number % 2 == 0);
    let files = blob_files(&fixture);
    // Block 150 is needed.
    damage(&files[75]);
    let sweep = |live: &Live| sweep_windows(fixture.store(), None, live, ALL, WINDOW, &mut |_| Ok(()));
    // The second window stays as it is, and so it does at the next prune.
    for _ in 0..2 {
        let swept = sweep(&live).expect_err("tells of the damage");
        assert_eq!(swept.kind(), ErrorKind::Corrupt);
        assert!(swept.to_string().contains("vbk verify"), "{swept}");
        let (left, all) = (blob_bytes(&fixture), 500 * 20_000);
        assert!(
            (all * 59 / 100..all * 62 / 100).contains(&left),
            "{left} bytes are left"
        );
    }
    // The store can still be written to.
    fixture.store().put(vec![blocks[1].clone()]).expect("puts");
    fixture.store().flush().expect("flushes");
    let needed = (0..)
        .zip(&blocks)
        .filter(|(number, _)| *number % 2 == 0 || *number == 1);
    let needed = needed.filter(|(number, _)| *number != 150).map(|(_, block)| block);
    let needed: Vec<_> = needed.collect();
    // Without the damaged block the rest goes.
    let ids: Vec<_> = needed.iter().map(|block| block.id).collect();
    sweep(&Live::of(fixture.store(), &ids, &[]).expect("locates")).expect("sweeps");
    let left = blob_bytes(&fixture);
    assert!(left < 500 * 20_000 * 52 / 100, "{left} bytes are left");
    for block in needed {
        let stored = fixture.store().get(&[wanted(block)]).remove(0).expect("is there");
        assert_eq!(stored.pages, block.pages);
    }
}
