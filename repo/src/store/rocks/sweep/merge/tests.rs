use super::super::super::rows::part_key;
use super::super::super::tests::{Fixture, wanted};
use super::super::tests::{ALL, WINDOW, assert_just_live, blob_bytes, blob_files, block, damage, filled_by, run};
use super::*;
use crate::error::Error;
use crate::store::{Live, StoreReader, StoreWriter};

/// Plain bytes of a table with one block of a page, which has a header beside it.
const TABLE: u64 = 128 << 10;

/// Tables of a few blocks are merged, up to 30 blocks at once.
const TINY: Merging = Merging {
    may_stay: 0,
    small_bytes: 4 * TABLE,
    run_bytes: 30 * TABLE,
    all_bytes: u64::MAX,
};

fn merge(fixture: &Fixture, live: &Live, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<()> {
    Sweep::new(fixture.store(), live, WINDOW).merge(TINY, step)
}

fn table(first: u64, last: u64, plain_bytes: u64) -> Table {
    Table {
        keys: part_key(first, 0)..=part_key(last, 9),
        plain_bytes,
    }
}

#[test]
fn neighbours_with_small_files_are_merged_until_few_are_left() {
    let merging = Merging {
        may_stay: 0,
        small_bytes: 100,
        run_bytes: 1000,
        all_bytes: u64::MAX,
    };
    let small = |from: u64, count: u64, bytes| (from..from + count).map(move |at| table(at, at, bytes));
    let mut tables: Vec<_> = small(0, 12, 90).collect();
    // Large.
    tables.push(table(12, 19, 100));
    // Too few.
    tables.extend(small(20, 7, 50));
    tables.push(table(27, 29, 100));
    // To the edge of a window; a table that reaches into the next one; and what is there.
    tables.extend(small(90, 9, 10));
    tables.push(table(99, 100, 10));
    tables.extend(small(101, 20, 10));
    // Overlaps the one before.
    tables.push(table(120, 121, 10));
    tables.extend(small(122, 8, 10));
    let choose = |merging: Merging| {
        let runs = merging.choose(&tables, 100);
        let one = |run: &Run| (sequence_of(run.keys.start()), sequence_of(run.keys.end()), run.tables);
        runs.iter().map(one).collect::<Vec<_>>()
    };
    let all = [(101, 120, 20), (0, 10, 11), (90, 98, 9), (122, 129, 8)];
    assert_eq!(choose(merging), all);
    // 48 tables are in runs.
    assert_eq!(
        choose(Merging {
            may_stay: 17,
            ..merging
        }),
        all[..2]
    );
    assert_eq!(
        choose(Merging {
            may_stay: 47,
            ..merging
        }),
        all[..1]
    );
    assert_eq!(
        choose(Merging {
            may_stay: 48,
            ..merging
        }),
        []
    );
    assert_eq!(
        choose(Merging {
            all_bytes: 201,
            ..merging
        }),
        all[..2]
    );
    let many: Vec<_> = small(0, 3000, 0).collect();
    assert_eq!(merging.choose(&many, 10_000).len(), 3, "of at most {MOST}");
}

#[test]
fn small_files_become_larger_ones_with_the_same_blocks() {
    let (fixture, blocks, live) = filled_by(1, |_| true);
    let before = blob_files(&fixture).len();
    assert!(before >= blocks.len(), "{before}");
    // It may end at any moment.
    let mut steps = 0;
    let ended = merge(&fixture, &live, &mut |_| {
        steps += 1;
        match steps {
            25 => Err(Error::Interrupted),
            _ => Ok(()),
        }
    });
    assert!(matches!(ended, Err(Error::Interrupted)), "{ended:?}");
    let some = blob_files(&fixture).len();
    assert!(some < before - 40, "{before} to {some}");
    assert_just_live(&fixture.crashed_copy(), &blocks, &live);
    let generation = fixture.store().generation().expect("reads");
    merge(&fixture, &live, &mut |_| Ok(())).expect("merges");
    assert!(
        fixture.store().generation().expect("reads") > generation,
        "readers get a view without the old files"
    );
    let merged = blob_files(&fixture);
    assert!(merged.len() < before / 8, "{before} to {}", merged.len());
    assert_just_live(&fixture, &blocks, &live);
    assert_just_live(&fixture.crashed_copy(), &blocks, &live);
    // What is merged is not merged again.
    merge(&fixture, &live, &mut |_| Ok(())).expect("merges");
    assert_eq!(blob_files(&fixture), merged);
}

#[test]
fn the_files_of_a_window_without_live_blocks_go_as_a_whole() {
    let (fixture, blocks, live) = filled_by(3, |number| !(WINDOW..2 * WINDOW).contains(&number));
    merge(&fixture, &live, &mut |_| Ok(())).expect("merges");
    let (before, files) = (blob_bytes(&fixture), blob_files(&fixture).len());
    assert!(files < 60, "{files}");
    run(&fixture, &live, ALL);
    // All but the files of the blocks at the edges, which it shares with its neighbours.
    let freed = before - blob_bytes(&fixture);
    assert!(freed >= (WINDOW - 4) * 20_000, "{freed}");
    assert_just_live(&fixture, &blocks, &live);
}

#[test]
fn damage_ends_no_merge() {
    let (fixture, blocks, live) = filled_by(1, |_| true);
    let files = blob_files(&fixture);
    damage(&files[150]);
    merge(&fixture, &live, &mut |_| Ok(())).expect("merges the rest");
    let left = blob_files(&fixture);
    assert!(left.len() < 60 && left.contains(&files[150]), "{} files", left.len());
    // The store can still be written to, and what is whole is there.
    for (number, block) in (0..).zip(&blocks) {
        let stored = fixture.store().get(&[wanted(block)]).remove(0);
        assert_eq!(stored.is_ok(), number != 150, "{number}");
    }
    fixture.store().put(vec![block(7777)]).expect("puts");
    fixture.store().flush().expect("flushes");
}
