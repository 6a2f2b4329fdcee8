use std::os::unix::fs::FileExt;

use super::super::tests::{WINDOW, assert_just_live, blob_files, filled_by};
use super::super::{PruneOptions, sweep_windows};
use super::*;
use crate::store::{Live, StoreReader, StoreWriter};

/// Tables of one block are merged, up to about 20 at once.
const TINY: Merging = Merging {
    may_stay: 0,
    small_bytes: 4 << 10,
    merged_bytes: 20 * 1200,
};

fn table(first: u8, last: u8, bytes: u64) -> Table {
    Table {
        keys: [first; 10]..=[last; 10],
        bytes,
    }
}

#[test]
fn neighbours_with_small_files_are_merged_until_few_are_left() {
    let merging = Merging {
        may_stay: 0,
        small_bytes: 100,
        merged_bytes: 400,
    };
    let small = |count: u8, from: u8, bytes| (from..from + count).map(move |at| table(at, at, bytes));
    let mut tables = Vec::new();
    // 8 files, and 2 that the merge of more would have taken too.
    tables.extend(small(10, 0, 50));
    tables.push(table(10, 19, 500));
    // Too few.
    tables.extend(small(7, 20, 50));
    tables.push(table(30, 39, 100));
    // Smaller ones, and the last ones, which still grow.
    tables.extend(small(40, 40, 10));
    tables.extend(small(9, 100, 10));
    let choose = |may_stay, tables: &[Table]| Merging { may_stay, ..merging }.choose(tables);
    let chosen = |may_stay| choose(may_stay, &tables);
    let runs = chosen(0);
    let keys: Vec<_> = runs
        .iter()
        .map(|run| (run.keys.start()[0], run.keys.end()[0], run.tables))
        .collect();
    assert_eq!(keys, [(40, 79, 40), (0, 7, 8)]);
    // 57 small files are in runs.
    assert_eq!(chosen(17).len(), 1);
    assert_eq!(chosen(16).len(), 2);
    assert_eq!(chosen(57).len(), 0);
    // A table of the same keys as others, as removals leave them, stretches a run.
    tables.insert(1, table(0, 5, 50));
    assert_eq!(choose(0, &tables)[1].keys, [0; 10]..=[6; 10]);
}

#[test]
fn small_files_become_larger_ones_with_the_same_blocks() {
    let (fixture, blocks, live) = filled_by(1, |_| true);
    let before = blob_files(&fixture).len();
    assert!(before >= blocks.len(), "{before}");
    let mut steps = 0;
    // It may end at any moment.
    let ended = merge(fixture.store(), TINY, &mut || {
        steps += 1;
        match steps {
            5 => Err(Error::Interrupted),
            _ => Ok(()),
        }
    });
    assert!(matches!(ended, Err(Error::Interrupted)), "{ended:?}");
    let some = blob_files(&fixture).len();
    assert!(some < before - 40, "{before} to {some}");
    let generation = fixture.store().generation().expect("reads");
    merge(fixture.store(), TINY, &mut || Ok(())).expect("merges");
    assert!(
        fixture.store().generation().expect("reads") > generation,
        "readers get a view without the old files"
    );
    let after = blob_files(&fixture).len();
    assert!(after < before / 8, "{before} to {after}");
    assert_just_live(&fixture, &blocks, &live);
    assert_just_live(&fixture.crashed_copy(), &blocks, &live);
    // What is merged is not merged again.
    let merged = blob_files(&fixture);
    merge(fixture.store(), TINY, &mut || Ok(())).expect("merges");
    assert_eq!(blob_files(&fixture), merged);
}

#[test]
fn damage_ends_neither_a_merge_nor_a_sweep() {
    let (fixture, blocks, live) = filled_by(1, |number| number % 2 == 0);
    let files = blob_files(&fixture);
    // The block of the 51st file is needed.
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&files[50])
        .expect("opens");
    let (at, mut byte) = (file.metadata().expect("is there").len() / 2, [0]);
    file.read_exact_at(&mut byte, at).expect("reads");
    file.write_all_at(&[!byte[0]], at).expect("writes");
    merge(fixture.store(), TINY, &mut || Ok(())).expect("merges the rest");
    let left = blob_files(&fixture);
    assert!(
        left.len() < files.len() / 5 && left.contains(&files[50]),
        "{} files",
        left.len()
    );
    let all = PruneOptions {
        max_unused: 0.0,
        dry_run: false,
        empty_bin: false,
    };
    let swept = sweep_windows(fixture.store(), None, &live, all, WINDOW, &mut |_| Ok(()));
    assert!(
        matches!(&swept, Err(error) if error.to_string().contains("vbk verify")),
        "{swept:?}"
    );
    // All but the windows that shared files with that block are swept, and the store can still be written to.
    let bytes = |files: &[std::path::PathBuf]| {
        files
            .iter()
            .map(|file| file.metadata().expect("is there").len())
            .sum::<u64>()
    };
    let left = bytes(&blob_files(&fixture));
    assert!(left < bytes_of(&blocks) * 65 / 100, "{left} bytes are left");
    fixture.store().put(vec![blocks[1].clone()]).expect("puts");
    fixture.store().flush().expect("flushes");
    // Without the block the rest goes.
    let (ids, damaged): (Vec<_>, _) = (blocks.iter().map(|block| block.id).collect(), blocks[50].id);
    let ids: Vec<_> = ids
        .into_iter()
        .step_by(2)
        .filter(|id| *id != damaged)
        .chain([blocks[1].id])
        .collect();
    let live = Live::of(fixture.store(), &ids, &[]).expect("locates");
    sweep_windows(fixture.store(), None, &live, all, WINDOW, &mut |_| Ok(())).expect("sweeps");
    let left = bytes(&blob_files(&fixture));
    assert!(left < bytes_of(&blocks) * 55 / 100, "{left} bytes are left");
}

fn bytes_of(blocks: &[crate::codec::Sealed]) -> u64 {
    blocks.iter().map(|block| u64::from(block.plain_bytes)).sum()
}
