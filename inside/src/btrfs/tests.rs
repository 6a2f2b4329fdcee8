//! Tests on file systems made by mkfs.btrfs (package btrfs-progs).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use super::*;

const NEW: Fsid = Fsid([0xab; 16]);

/// Devices of 300 MiB with one file system on them.
fn made(count: usize, args: &[&str]) -> (tempfile::TempDir, Vec<File>) {
    let dir = tempfile::tempdir().expect("a directory");
    let paths: Vec<PathBuf> = (0..count).map(|number| dir.path().join(number.to_string())).collect();
    for path in &paths {
        File::create(path)
            .and_then(|file| file.set_len(300 << 20))
            .expect("a sparse file");
    }
    let made = Command::new("mkfs.btrfs")
        .args(["-q", "-f"])
        .args(args)
        .args(&paths)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .expect("this test needs mkfs.btrfs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let files = paths
        .iter()
        .map(|path| File::options().read(true).write(true).open(path).expect("opens"));
    (dir, files.collect())
}

fn read(file: &File) -> Superblock {
    Superblock::read(file)
        .expect("the file is readable")
        .expect("a superblock")
}

fn layout(files: &[&File]) -> Result<Layout, String> {
    let superblocks: Vec<_> = files.iter().map(|file| read(file)).collect();
    let devices: Vec<_> = superblocks
        .iter()
        .zip(files)
        .map(|(it, file)| (it, *file as &dyn Device))
        .collect();
    examine(&devices).expect("the files are readable")
}

#[test]
fn a_new_fsid_changes_only_the_superblocks_and_their_checksums() {
    for checksum in ["crc32c", "xxhash", "sha256", "blake2"] {
        let (_dir, files) = made(1, &["--csum", checksum]);
        let old = read(&files[0]);
        let patches = patches(&files[0], NEW).expect("readable");
        let offsets: Vec<_> = patches.iter().map(|patch| patch.offset_bytes).collect();
        assert_eq!(offsets, [64 << 10, 64 << 20], "{checksum}");
        for patch in &patches {
            files[0].write_all_at(&patch.bytes, patch.offset_bytes).expect("writes");
        }
        let new = read(&files[0]);
        assert_eq!((new.fsid(), new.metadata_uuid()), (NEW, old.fsid()), "{checksum}");
        assert_eq!(new.device_fsid(), old.fsid());
        // A second time: the metadata's UUID stays.
        let again = super::patches(&files[0], Fsid([1; 16])).expect("readable");
        files[0]
            .write_all_at(&again[0].bytes, again[0].offset_bytes)
            .expect("writes");
        assert_eq!(read(&files[0]).metadata_uuid(), old.fsid());
    }
}

#[test]
fn a_superblock_copy_of_another_file_system_is_unchanged() {
    let (_dir, files) = made(2, &["-d", "single", "-m", "dup"]);
    let (_other_dir, other) = made(1, &[]);
    let mut copy = vec![0; SUPERBLOCK_BYTES];
    other[0].read_exact_at(&mut copy, 64 << 20).expect("reads");
    files[0].write_all_at(&copy, 64 << 20).expect("writes");
    let patches = patches(&files[0], NEW).expect("readable");
    assert_eq!(patches.len(), 1);
}

#[test]
fn a_damaged_superblock_is_not_used() {
    let (_dir, files) = made(1, &[]);
    files[0].write_all_at(b"x", (64 << 10) + 300).expect("writes");
    let read = Superblock::read(&files[0]).expect("readable");
    assert_eq!(read.map(|_| ()), Err("the btrfs superblock is damaged"));
    assert!(patches(&files[0], NEW).is_err());
}

#[test]
fn devices_of_every_profile_are_found_and_missing_ones_named() {
    let cases: [(&str, usize, bool); 8] = [
        ("single", 2, false),
        ("raid0", 2, false),
        ("raid1", 2, true),
        ("raid10", 4, true),
        ("raid5", 3, true),
        ("raid6", 4, true),
        ("raid1c3", 3, true),
        ("raid1c4", 4, true),
    ];
    for (profile, count, may_lose_one) in cases {
        let (_dir, files) = made(count, &["-d", profile, "-m", profile]);
        let all: Vec<_> = files.iter().collect();
        let found = layout(&all).unwrap_or_else(|why| panic!("{profile}: {why}"));
        let numbers: Vec<u64> = (1..=count as u64).collect();
        assert_eq!((found.devices.clone(), found.missing.len()), (numbers, 0), "{profile}");
        assert!(found.complete, "{profile}");
        match layout(&all[1..]) {
            Ok(found) => assert_eq!((found.missing, found.complete), (vec![1], may_lose_one), "{profile}"),
            // Where the chunk tree itself was there.
            Err(why) => assert!(
                why.contains(&format!("only {} of its {count}", count - 1)),
                "{profile}: {why}"
            ),
        }
    }
}

#[test]
fn patches_appear_in_reads_of_any_offset_and_length() {
    let patch = Patch {
        offset_bytes: 100,
        bytes: vec![7; 10].into(),
    };
    for start in 80..130_u64 {
        for len in 0..40 {
            let mut out = vec![0; len];
            apply(std::slice::from_ref(&patch), start, &mut out);
            for (at, byte) in (start..).zip(&out) {
                assert_eq!(*byte, if (100..110).contains(&at) { 7 } else { 0 });
            }
        }
    }
}

#[test]
fn a_fsid_round_trips_as_a_uuid() {
    let text = "a1b2c3d4-0000-ffff-1234-56789abcdef0";
    assert_eq!(text.parse::<Fsid>().expect("a UUID").to_string(), text);
    assert!("a1b2".parse::<Fsid>().is_err() && "".parse::<Fsid>().is_err());
}
