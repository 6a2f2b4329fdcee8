use std::ops::Range;

use proptest::prelude::*;
use vbk_repo::id::BackupId;
use vbk_repo::slots::SlotReader;
use vbk_repo::store::{Live, PruneOptions};

use super::*;
use crate::hints::{Collector, Unchanged, audit};

/// Returns the unchanged bytes of a disk, found by comparing all of them.
fn compared(before: &[u8], after: &[u8], block_size: BlockSize) -> Unchanged {
    const STEP: usize = 4096;
    let mut collector = Collector::new(after.len() as u64, block_size);
    for (number, (one, other)) in before.chunks(STEP).zip(after.chunks(STEP)).enumerate() {
        if one == other {
            let start = (number * STEP) as u64;
            collector.add(start..start + one.len() as u64).expect("in order");
        }
    }
    collector.finish()
}

fn all(size_bytes: u64, block_size: BlockSize) -> Unchanged {
    let mut collector = Collector::new(size_bytes, block_size);
    collector.add(0..size_bytes).expect("in order");
    collector.finish()
}

fn hint(since: BackupId, unchanged: Unchanged, audit_one_in: u64) -> Option<Hint> {
    Some(Hint {
        since,
        unchanged,
        seed: 12_345,
        audit_one_in,
    })
}

/// Records warnings.
#[derive(Default)]
pub(super) struct Warnings(Mutex<Vec<String>>);

impl Warnings {
    pub(super) fn texts(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

impl Observer for Warnings {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Warning(text) => self.0.lock().push(text.to_owned()),
            Event::HintsWrong { name } => self.0.lock().push(format!("wrong: {name}")),
            _ => {}
        }
    }
}

impl Fixture {
    fn hinted(&self, hint: Option<Hint>) -> (BackupSummary, Vec<String>) {
        let mut plan = self.plan();
        plan.disks[0].hint = hint;
        let warnings = Warnings::default();
        let summary = self
            .try_backup(&plan, &AtomicBool::new(false), &warnings)
            .expect("backs up");
        (summary, warnings.texts())
    }
}

fn blocks(count: u32) -> Vec<u8> {
    (0..count)
        .flat_map(|seed| noise(seed * 2 + 1, BlockSize::MIN.bytes()))
        .collect()
}

/// Returns different blocks of 1 MiB.
pub(super) fn noise_blocks(seed: u32, count: u32) -> Vec<u8> {
    (seed..seed + count)
        .flat_map(|seed| noise(seed * 2 + 1, MIB as usize))
        .collect()
}

#[test]
fn a_disk_is_read_in_proportion_to_what_changed() {
    let fixture = Fixture::new(BlockSize::MIN);
    let (block, count) = (BlockSize::MIN.bytes(), 2_500);
    let mut bytes = blocks(count);
    bytes[100 * block..400 * block].fill(0);
    fs::write(fixture.path(), &bytes).expect("writes");
    let first = fixture.backup();
    let before = bytes.clone();
    // 1 %, of which some were zero, and some become zero.
    for changed in (50..2_500_usize).step_by(100) {
        bytes[changed * block + 77] ^= changed as u8 | 1;
    }
    bytes[2_000 * block..2_001 * block].fill(0);
    fs::write(fixture.path(), &bytes).expect("writes");
    let unchanged = compared(&before, &bytes, BlockSize::MIN);
    let (second, warnings) = fixture.hinted(hint(first.entry.id, unchanged.clone(), audit::ONE_IN));
    assert_eq!(warnings, [""; 0]);
    let sample = unchanged.blocks().div_ceil(100) * block as u64;
    assert_eq!(second.counts.new_bytes, 25 * block as u64);
    assert!(
        second.counts.read_bytes <= 26 * block as u64 + sample,
        "{:?}",
        second.counts
    );
    assert_eq!(second.counts.done_bytes(), bytes.len() as u64);
    assert_eq!(
        second.counts.read_bytes + second.counts.skipped_bytes,
        bytes.len() as u64
    );
    let image = &second.entry.backup.images[0];
    assert_eq!(
        (image.skipped_bytes, image.hints_wrong),
        (second.counts.skipped_bytes, false)
    );
    assert!(fixture.read(&second.entry) == bytes);
}

#[test]
fn a_wrong_hint_is_caught_and_everything_is_read() {
    let fixture = Fixture::new(BlockSize::MIN);
    let block = BlockSize::MIN.bytes();
    let mut bytes = blocks(300);
    fs::write(fixture.path(), &bytes).expect("writes");
    let first = fixture.backup();
    for (place, one_in) in [(0, 1), (150 * block, 1), (300 * block - 1, 1)] {
        bytes[place] ^= 1;
        fs::write(fixture.path(), &bytes).expect("writes");
        let latest = {
            let view = fixture.repository.view().expect("opens");
            let catalogue = view.catalogue().expect("loads");
            catalogue.latest(&first.entry.backup.guest).expect("is there").id
        };
        let lie = all(bytes.len() as u64, BlockSize::MIN);
        let (second, warnings) = fixture.hinted(hint(latest, lie, one_in));
        assert!(
            warnings.len() == 2 && warnings[0] == "wrong: vda" && warnings[1].contains("WRONG"),
            "{warnings:?}"
        );
        let image = &second.entry.backup.images[0];
        assert_eq!((image.skipped_bytes, image.hints_wrong), (0, true));
        assert_eq!(second.counts.done_bytes(), bytes.len() as u64);
        assert!(second.counts.read_bytes >= bytes.len() as u64);
        assert!(fixture.read(&second.entry) == bytes);
    }
}

#[test]
fn holes_that_a_hint_does_not_know_of_are_holes() {
    let fixture = Fixture::new(BlockSize::MIN);
    let file = fs::File::create(fixture.path()).expect("creates");
    file.set_len(200 << 20).expect("grows");
    file.write_all_at(&blocks(100), 50 << 20).expect("writes");
    let first = fixture.backup();
    let lens = all(200 << 20, BlockSize::MIN);
    let (second, warnings) = fixture.hinted(hint(first.entry.id, lens, audit::ONE_IN));
    assert_eq!(warnings, [""; 0]);
    let manifests = [&first, &second].map(|summary| summary.entry.backup.images[0].manifest);
    assert_eq!(manifests[0], manifests[1]);
    assert!(second.counts.skipped_bytes > 80 << 16, "{:?}", second.counts);
}

#[test]
fn a_zero_block_that_a_hint_is_wrong_about_is_caught() {
    for (before, after) in [(0, 7), (7, 0)] {
        let fixture = Fixture::new(BlockSize::MIN);
        fs::write(fixture.path(), vec![before; 1 << 20]).expect("writes");
        let first = fixture.backup();
        let bytes = vec![after; 1 << 20];
        fs::write(fixture.path(), &bytes).expect("writes");
        let (second, _) = fixture.hinted(hint(first.entry.id, all(1 << 20, BlockSize::MIN), 100));
        assert!(second.entry.backup.images[0].hints_wrong);
        assert!(fixture.read(&second.entry) == bytes);
    }
}

#[test]
fn a_hint_about_anything_else_is_not_used() {
    let fixture = Fixture::new(BlockSize::MIN);
    let bytes = blocks(100);
    fs::write(fixture.path(), &bytes).expect("writes");
    let size = bytes.len() as u64;
    let (alone, warnings) = fixture.hinted(hint(BackupId([1; 32]), all(size, BlockSize::MIN), 100));
    assert!(warnings[0].contains("no earlier backup"), "{warnings:?}");
    assert_eq!(alone.counts.read_bytes, size);
    let latest = fixture.backup().entry.id;
    let other_block = all(size, BlockSize::DEFAULT);
    for (wrong, why) in [
        (hint(alone.entry.id, all(size, BlockSize::MIN), 100), "another backup"),
        (hint(latest, all(size - 1, BlockSize::MIN), 100), "its size differs"),
        (hint(latest, other_block, 100), "blocks of another size"),
    ] {
        // A complete backup would become the latest, so this one ends before it is recorded.
        let mut plan = fixture.plan();
        plan.disks[0].hint = wrong;
        let warnings = Warnings::default();
        let writer = fixture.repository.manager("test", &mut |_| true).expect("locks");
        let ended = backup(writer.writer(), &plan, &|| Err(Error::Interrupted), &[], &warnings);
        assert!(matches!(ended, Err(Error::Interrupted)));
        let warnings = warnings.texts();
        assert!(warnings.len() == 1 && warnings[0].contains(why), "{warnings:?}");
    }
    // The disk grew.
    let longer = [&bytes[..], &noise(9, 1 << 16)].concat();
    fs::write(fixture.path(), &longer).expect("writes");
    let (grown, warnings) = fixture.hinted(hint(latest, all(size, BlockSize::MIN), 100));
    assert!(warnings[0].contains("its size differs"), "{warnings:?}");
    assert!(fixture.read(&grown.entry) == longer);
}

#[test]
fn blocks_that_are_condemned_or_gone_are_read() {
    let fixture = Fixture::new(BlockSize::MIN);
    let bytes = blocks(200);
    fs::write(fixture.path(), &bytes).expect("writes");
    let size = bytes.len() as u64;
    let first = fixture.backup();
    let manifest = first.entry.backup.images[0].manifest;
    let nodes = {
        let writer = fixture.repository.manager("test", &mut |_| true).expect("locks");
        let reader = SlotReader::open(writer.store(), manifest).expect("opens");
        let slots = reader.segment(0).expect("reads");
        let condemned: Vec<BlockId> = slots[10..30].iter().copied().flatten().collect();
        writer.store().condemn(&condemned).expect("notes");
        let segment = reader.manifest().segment(0).expect("is whole");
        let pages = reader.manifest().pages();
        segment
            .nodes()
            .chain(pages.iter().copied())
            .chain([manifest])
            .collect::<Vec<_>>()
    };
    let (second, warnings) = fixture.hinted(hint(first.entry.id, all(size, BlockSize::MIN), 100));
    assert_eq!(warnings, [""; 0]);
    assert_eq!(second.counts.new_bytes, 20 << 16, "stored anew");
    assert!(second.counts.skipped_bytes >= 160 << 16, "{:?}", second.counts);
    assert!(fixture.read(&second.entry) == bytes);
    {
        let writer = fixture.repository.manager("test", &mut |_| true).expect("locks");
        let live = Live::of(writer.store(), &[], &nodes).expect("locates");
        let options = PruneOptions {
            max_unused: 0.0,
            dry_run: false,
            empty_bin: false,
        };
        let swept = writer.store().retain(&live, options, &mut |_| Ok(())).expect("removes");
        assert!(swept.removed_blocks >= 200, "{swept:?}");
    }
    let (third, _) = fixture.hinted(hint(second.entry.id, all(size, BlockSize::MIN), 100));
    assert_eq!((third.counts.new_bytes, third.counts.skipped_bytes), (size, 0));
    assert!(fixture.read(&third.entry) == bytes);
}

#[test]
fn an_interrupted_sample_makes_no_backup() {
    let fixture = Fixture::new(BlockSize::MIN);
    let bytes = blocks(50);
    fs::write(fixture.path(), &bytes).expect("writes");
    let first = fixture.backup();
    let mut plan = fixture.plan();
    plan.disks[0].hint = hint(first.entry.id, all(bytes.len() as u64, BlockSize::MIN), 1);
    let ended = fixture.try_backup(&plan, &AtomicBool::new(true), &());
    assert!(matches!(ended, Err(Error::Interrupted)));
    assert_eq!(fixture.count(), 1);
}

proptest! {
    // Each case creates a repository, which takes longer than the rest of it.
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn skipping_equals_reading_everything(
        size in 1_usize..3 << 20,
        zeros in prop::collection::vec((any::<u32>(), 0_usize..400_000), 0..4),
        days in prop::collection::vec(
            prop::collection::vec((any::<u32>(), 0_usize..200_000, prop::option::of(any::<u8>())), 0..6),
            1..4,
        ),
        audit_one_in in prop::sample::select(vec![1, 3, 100]),
    ) {
        let fixture = Fixture::new(BlockSize::MIN);
        let range = |at: u32, len: usize| -> Range<usize> {
            let start = at as usize % size;
            start..(start + len).min(size)
        };
        let mut bytes = noise(size as u32, size);
        for (at, len) in zeros {
            bytes[range(at, len)].fill(0);
        }
        fs::write(fixture.path(), &bytes).expect("writes");
        let mut latest = fixture.backup().entry.id;
        for changes in days {
            let before = bytes.clone();
            for (at, len, value) in changes {
                match value {
                    Some(value) => bytes[range(at, len)].fill(value),
                    None => bytes[range(at, len)].copy_from_slice(&noise(at, range(at, len).len())),
                }
            }
            fs::write(fixture.path(), &bytes).expect("writes");
            let unchanged = compared(&before, &bytes, BlockSize::MIN);
            let (summary, warnings) = fixture.hinted(hint(latest, unchanged, audit_one_in));
            prop_assert_eq!(warnings, Vec::<String>::new());
            let full = fixture.backup();
            prop_assert_eq!(summary.entry.backup.images[0].manifest, full.entry.backup.images[0].manifest);
            prop_assert_eq!(full.counts.new_bytes, 0);
            prop_assert!(fixture.read(&summary.entry) == bytes);
            latest = full.entry.id;
        }
    }
}
