//! Needs root and loop devices.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::restore::differential::{DifferentialOptions, restore as update};
use crate::restore::preview::preview;
use crate::restore::tests::device::Loop;
use crate::restore::tests::{MIB, image, plain};
use crate::restore::{Damaged, Fill, Format, RestoreOptions, restore};

/// A disk with an MBR of this identity and a partition; 0 for none at all.
fn disk(id: u32) -> Vec<u8> {
    let mut disk = plain();
    if id == 0 {
        return disk;
    }
    disk[..512].fill(0);
    disk[440..444].copy_from_slice(&id.to_le_bytes());
    disk[446 + 4] = 0x83;
    disk[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    disk[446 + 12..446 + 16].copy_from_slice(&2048u32.to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

/// A device that holds a disk.
fn device(content: &[u8]) -> Loop {
    let device = Loop::new(14 * MIB);
    let file = fs::OpenOptions::new().write(true).open(&device.path).expect("opens");
    file.write_all_at(content, 0).expect("writes");
    file.sync_all().expect("syncs");
    device
}

fn options(force: bool, fill: Fill) -> RestoreOptions {
    RestoreOptions {
        label: "web1".into(),
        format: Format::Raw,
        changes: None,
        force,
        overwrite: false,
        fill,
        damaged: Damaged::Refuse,
        threads: 2,
    }
}

/// Restores one disk onto the device of another; with `differential` in that way.
fn run(backup: &[u8], device: &Loop, options: &RestoreOptions, differential: bool) -> Result<(), Error> {
    let (image, data_bytes) = image(backup);
    let cancel = AtomicBool::new(false);
    if differential {
        let options = DifferentialOptions {
            label: "web1".into(),
            force: options.force,
            overwrite: false,
            damaged: Damaged::Refuse,
            threads: 2,
        };
        return update(&image, &device.path, &options, &cancel, &()).map(drop);
    }
    restore(&image, data_bytes, &device.path, options, &cancel, &()).map(drop)
}

#[test]
fn a_device_with_another_disk_is_refused_and_unchanged_unless_forced() {
    for (own, other) in [(1, 2), (0, 2)] {
        for differential in [false, true] {
            let device = device(&disk(other));
            let before = fs::read(&device.path).expect("reads");
            let refused = run(&disk(own), &device, &options(false, Fill::Image), differential);
            let text = refused.expect_err("holds another disk").to_string();
            let node = device.path.display();
            let expected =
                format!("{node} holds another disk: MBR 00000002; nothing was written. --overwrite overwrites it");
            assert_eq!(text, expected);
            assert!(fs::read(&device.path).expect("reads") == before);
            run(&disk(own), &device, &options(true, Fill::Image), differential).expect("restores");
            assert!(fs::read(&device.path).expect("reads").starts_with(&disk(own)));
        }
    }
}

#[test]
fn a_blank_device_an_unknown_one_and_the_own_one_are_written_at_once() {
    let mut changed = disk(1);
    changed[9 * MIB..].fill(7);
    for content in [vec![0; 14 * MIB], vec![0x77; 14 * MIB], changed] {
        for differential in [false, true] {
            let device = device(&content);
            run(&disk(1), &device, &options(false, Fill::Image), differential).expect("restores");
            assert!(fs::read(&device.path).expect("reads").starts_with(&disk(1)));
        }
    }
}

#[test]
fn a_new_volume_may_hold_what_others_left() {
    let device = device(&disk(2));
    run(&disk(1), &device, &options(false, Fill::Device), false).expect("restores");
}

#[test]
fn a_preview_says_what_is_there_and_writes_nothing() {
    let device = device(&disk(2));
    let before = fs::read(&device.path).expect("reads");
    let look = |own: u32, force: bool| {
        let (image, data_bytes) = image(&disk(own));
        preview(&image, data_bytes, &device.path, &options(force, Fill::Image), false).expect("looks")
    };
    let found = look(1, false);
    assert!(matches!(found.refusal, Some(Error::TargetHolds { .. })), "{found:?}");
    assert_eq!(
        (found.is_device, found.target_bytes, found.user),
        (true, Some(14 * MIB as u64), None)
    );
    assert_eq!(found.holds, ["MBR 00000002"]);
    for found in [look(1, true), look(2, false)] {
        assert!(found.refusal.is_none(), "{found:?}");
        assert_eq!(found.holds, ["MBR 00000002"]);
    }
    assert!(fs::read(&device.path).expect("reads") == before);
}

#[test]
fn a_preview_of_a_file_makes_none() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("out.img");
    let (image, data_bytes) = image(&plain());
    let look =
        |data_bytes, force| preview(&image, data_bytes, &path, &options(force, Fill::Image), false).expect("looks");
    let found = look(data_bytes, false);
    assert!(found.refusal.is_none() && found.target_bytes.is_none(), "{found:?}");
    assert!(matches!(look(u64::MAX, false).refusal, Some(Error::NoRoom { .. })));
    assert_eq!(fs::read_dir(directory.path()).expect("lists").count(), 0);
    fs::write(&path, "old").expect("writes");
    assert!(matches!(look(data_bytes, false).refusal, Some(Error::TargetExists(_))));
    let found = look(data_bytes, true);
    assert!(found.refusal.is_none() && found.target_bytes == Some(3), "{found:?}");
    assert_eq!(fs::read(&path).expect("reads"), b"old");
}
