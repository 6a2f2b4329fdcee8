use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;
use vbk_repo::block::BlockIndex;

use super::*;

const MIB: u64 = 1 << 20;

/// A file system in a file, mounted for a test. Needs root.
struct Mounted {
    directory: tempfile::TempDir,
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().expect(program);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
}

impl Mounted {
    fn new(make: &[&str], options: &str) -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let mounted = Self { directory };
        let image = mounted.directory.path().join("image");
        let image = image.to_str().expect("UTF-8");
        run("truncate", &["--size", "400M", image]);
        run(make[0], &[&make[1..], &[image]].concat());
        let point = mounted.directory.path().join("mnt");
        fs::create_dir(&point).expect("creates");
        run("mount", &["-o", options, image, point.to_str().expect("UTF-8")]);
        mounted
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("mnt").join(name)
    }

    fn copy(&self, from: &str, to: &str) {
        let [from, to] = [from, to].map(|name| self.path(name).to_str().expect("UTF-8").to_owned());
        run("cp", &["--reflink=always", &from, &to]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A child that another test has just forked holds our files until it is the program it becomes.
        let umount = "for try in $(seq 50); do umount \"$0\" 2>/dev/null && exit; sleep 0.1; done; exit 1";
        let point = self.directory.path().join("mnt");
        let _ = Command::new("sh").args(["-c", umount]).arg(point).status();
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn write(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .expect("opens");
    file.seek(SeekFrom::Start(at)).expect("seeks");
    file.write_all(bytes).expect("writes");
}

/// Blocks that differ between two files, found by reading them.
fn changed(one: &Path, other: &Path) -> Vec<u64> {
    let (one, other) = (fs::read(one).expect("reads"), fs::read(other).expect("reads"));
    let blocks = one.chunks(MIB as usize).zip(other.chunks(MIB as usize)).enumerate();
    blocks
        .filter(|(_, (one, other))| one != other)
        .map(|(number, _)| number as u64)
        .collect()
}

fn covered(unchanged: &Unchanged) -> Vec<u64> {
    let is_unchanged = |&block: &u64| {
        unchanged
            .run_from(BlockIndex(block))
            .is_some_and(|run| run.contains(&block))
    };
    (0..unchanged.size_bytes().div_ceil(MIB)).filter(is_unchanged).collect()
}

fn check_changed_blocks_on(make: &[&str], options: &str) {
    let mounted = Mounted::new(make, options);
    let disk = mounted.path("disk.img");
    write(&disk, 0, &noise(1, 40 * MIB as usize + 5_000));
    mounted.copy("disk.img", "base");
    // What is written is still in memory when the new copy is made.
    write(&disk, 3 * MIB + 10, &noise(2, 100));
    write(&disk, 10 * MIB, &noise(3, 5 * MIB as usize));
    write(&disk, 40 * MIB + 4_999, b"!");
    run(
        "fallocate",
        &[
            "--punch-hole",
            "--offset",
            "20MiB",
            "--length",
            "1MiB",
            disk.to_str().expect("UTF-8"),
        ],
    );
    run(
        "fallocate",
        &[
            "--zero-range",
            "--offset",
            "25MiB",
            "--length",
            "4KiB",
            disk.to_str().expect("UTF-8"),
        ],
    );
    mounted.copy("disk.img", "new");
    // The guest goes on writing, also to what is shared.
    write(&disk, 30 * MIB, &noise(4, 4 * MIB as usize));
    let (base, new) = (mounted.path("base"), mounted.path("new"));
    let unchanged = unchanged(&base, &new, BlockSize::DEFAULT).expect("compares");
    let changed = changed(&base, &new);
    assert_eq!(changed, [3, 10, 11, 12, 13, 14, 20, 25, 40]);
    let wanted: Vec<u64> = (0..41).filter(|block| !changed.contains(block)).collect();
    let found = covered(&unchanged);
    // File systems may copy more than was written, at the borders of what was.
    assert!(found.iter().all(|block| wanted.contains(block)), "{found:?}");
    assert!(found.len() + 4 >= wanted.len(), "{found:?}");
}

#[test]
fn on_xfs_only_changed_blocks_are_read() {
    check_changed_blocks_on(&["mkfs.xfs", "-q", "-m", "reflink=1"], "loop");
}

#[test]
fn on_btrfs_only_changed_blocks_are_read() {
    check_changed_blocks_on(&["mkfs.btrfs", "-q"], "loop");
    check_changed_blocks_on(&["mkfs.btrfs", "-q"], "loop,nodatacow");
}

#[test]
fn a_fragmented_file_is_mapped_to_its_end() {
    let mounted = Mounted::new(&["mkfs.xfs", "-q", "-m", "reflink=1"], "loop");
    let disk = mounted.path("disk.img");
    for piece in 0..1_500 {
        write(&disk, piece * (128 << 10), &noise(piece, 64 << 10));
    }
    mounted.copy("disk.img", "base");
    write(&disk, 1_400 * (128 << 10), b"!");
    mounted.copy("disk.img", "new");
    let unchanged = unchanged(&mounted.path("base"), &mounted.path("new"), BlockSize::MIN).expect("compares");
    let is_told = |block: u64| {
        unchanged
            .run_from(BlockIndex(block))
            .is_some_and(|run| run.contains(&block))
    };
    for piece in 0..1_500 {
        // Every other block is a hole, which the reader finds by itself.
        assert_eq!(
            (is_told(piece * 2), is_told(piece * 2 + 1)),
            (piece != 1_400, false),
            "{piece}"
        );
    }
}

#[test]
fn compressed_extents_are_read() {
    let mounted = Mounted::new(&["mkfs.btrfs", "-q"], "loop,compress-force=zstd");
    write(&mounted.path("disk.img"), 0, &b"compressible ".repeat(500_000));
    mounted.copy("disk.img", "base");
    mounted.copy("disk.img", "new");
    let unchanged = unchanged(&mounted.path("base"), &mounted.path("new"), BlockSize::DEFAULT).expect("compares");
    assert_eq!(covered(&unchanged), [0; 0]);
}

#[test]
fn files_that_are_not_copies_are_not_compared() {
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
    let path = |name: &str| directory.path().join(name);
    write(&path("a"), 0, &noise(1, 3 * MIB as usize));
    write(&path("b"), 0, &noise(1, 3 * MIB as usize));
    write(&path("short"), 0, b"x");
    let of = |one: &str, other: &str| unchanged(&path(one), &path(other), BlockSize::DEFAULT);
    for (one, other) in [
        ("a", "a"),
        ("a", "short"),
        ("a", "missing"),
        ("missing", "a"),
        (".", "a"),
    ] {
        assert!(of(one, other).is_err(), "{one} {other}");
    }
    // Equal, but not the same place; or the file system has no maps.
    if let Ok(unchanged) = of("a", "b") {
        assert_eq!(unchanged.blocks(), 0);
    }
}

/// Extents as a list, given two at a time.
fn given(list: &[FileExtent]) -> Extents<'_, impl FnMut(u64) -> io::Result<Vec<FileExtent>>> {
    Extents::of(Path::new("file"), move |from| {
        Ok(list
            .iter()
            .filter(|extent| extent.logical >= from)
            .take(2)
            .copied()
            .collect())
    })
}

#[test]
fn invalid_extent_maps_are_refused() {
    let good = FileExtent::new(0, 0, 1 << 16, 0);
    for bad in [
        FileExtent::new(1 << 15, 0, 1 << 16, 0),
        FileExtent::new(1 << 16, 0, 0, 0),
        FileExtent::new(u64::MAX, 0, 1 << 16, 0),
        FileExtent::new(1 << 16, u64::MAX, 1 << 16, 0),
    ] {
        let wrong = |_| Ok(vec![good, bad]);
        let found = compare(
            Extents::of(Path::new("file"), wrong),
            given(&[FileExtent::new(0, 0, 1 << 40, 0)]),
            1 << 40,
            BlockSize::MIN,
        );
        assert!(matches!(found, Err(HintError::NotUnderstood { .. })), "{bad:?}");
    }
}

/// Extents over units of 32 KiB: where each unit lies, if it does.
fn extents(units: &[Option<(u64, u32)>]) -> Vec<FileExtent> {
    const UNIT: u64 = 32 << 10;
    let place = |(number, unit): (u64, &Option<(u64, u32)>)| {
        unit.map(|(physical, flags)| FileExtent::new(number * UNIT, physical * UNIT, UNIT, flags))
    };
    let mut all: Vec<FileExtent> = Vec::new();
    for extent in (0..).zip(units).filter_map(place) {
        match all.last_mut() {
            Some(last)
                if last.end() == extent.logical
                    && last.physical + last.length == extent.physical
                    && last.flags == extent.flags =>
            {
                last.length += extent.length;
            }
            _ => all.push(extent),
        }
    }
    all
}

proptest! {
    #[test]
    fn a_block_is_unchanged_only_if_all_its_extents_match(
        units in prop::collection::vec(
            (prop::option::weighted(0.9, (0_u64..3, prop::sample::select(vec![0, SHARED, LAST, 0x8, 0x800]))), any::<bool>(), any::<bool>()),
            1..80,
        ),
    ) {
        // Mostly in a row, so that extents get long.
        let left: Vec<_> = (0..).zip(&units).map(|(number, (unit, ..))| {
            unit.map(|(jump, flags)| (100 + number + jump / 2 * 7, if jump == 2 { flags & !LAST } else { 0 }))
        }).collect();
        let right: Vec<_> = left.iter().zip(&units).map(|(place, (_, moved, flagged))| match (place, moved, flagged) {
            (Some((physical, _)), true, true) => Some((physical + 1_000, 0)),
            (Some((physical, flags)), ..) => Some((*physical, flags ^ if *flagged { SHARED } else { 0 })),
            (None, true, true) => Some((9_999, 0)),
            (None, ..) => None,
        }).collect();
        let size = units.len() as u64 * (32 << 10);
        let (one, other) = (extents(&left), extents(&right));
        let found = compare(given(&one), given(&other), size, BlockSize::MIN).expect("makes sense");
        for block in 0..size.div_ceil(64 << 10) {
            let range = block as usize * 2..(block as usize * 2 + 2).min(units.len());
            let same = range.into_iter().all(|unit| match (left[unit], right[unit]) {
                (Some((one, flags)), Some((other, others))) => one == other && (flags | others) & !PLAIN == 0,
                _ => false,
            });
            let told = found.run_from(BlockIndex(block)).is_some_and(|run| run.contains(&block));
            prop_assert_eq!(told, same, "block {}", block);
        }
    }
}
