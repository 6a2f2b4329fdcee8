//! The repository's file system is full: the backup fails and says so, nothing is lost, and with room it goes on.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::bytes::{MIB, assert_is_noise, write_noise};
use crate::support::disk::{Disk, LoopDevice, Mount};
use crate::support::lab::{Lab, u64_of};

/// A repository on a small file system of its own, filled up to about `free_mib`.
fn small_lab(size_mib: u64, free_mib: u64) -> (Lab, Mount, PathBuf) {
    let mut lab = Lab::without_repo();
    let disk = Disk::plain(lab.path("small.fs"), size_mib);
    disk.format(0, "mkfs.ext4");
    let mount = Mount::of_device(LoopDevice::of_file(&disk.path), lab.subdir("small"));
    lab.use_repo(&mount.point.join("repo"));
    lab.ok(args!["init"]);
    write_noise(&lab.path("first.img"), 1, 2 * MIB);
    lab.backup("first", &lab.path("first.img"));
    let filler = mount.point.join("filler");
    fill(&mount, &filler, free_mib);
    (lab, mount, filler)
}

fn fill(mount: &Mount, filler: &Path, free_mib: u64) {
    let stat = nix::sys::statvfs::statvfs(&mount.point).expect("is mounted");
    let free = stat.blocks_available() * stat.fragment_size();
    write_noise(filler, 9, free.saturating_sub(free_mib * MIB));
}

#[test]
fn a_backup_onto_a_full_disk_fails_and_goes_on_when_there_is_room() {
    let (lab, mount, filler) = small_lab(256, 40);
    let large = lab.path("large.img");
    write_noise(&large, 2, 100 * MIB);
    for _ in 0..2 {
        let said = lab
            .run(args!["backup", "large", large, "--compression", "none"])
            .code(1);
        said.says(&["no space", "room"]);
    }
    // What was there is still there and whole, for everybody, without any room.
    assert_eq!(lab.listed().len(), 1);
    lab.ok(args!["verify"]);
    let out = lab.path("out.img");
    lab.ok(args!["restore", "first@latest", out]);
    assert_is_noise(&out, 1, 2 * MIB);
    let dir = lab.mount("images");
    assert_is_noise(&dir.join("first/latest/vda.img"), 1, 2 * MIB);

    fs::remove_file(filler).expect("removes");
    let done = lab.backup("large", &large);
    assert_eq!(u64_of(&done, "new_bytes") + u64_of(&done, "unchanged_bytes"), 100 * MIB);
    assert_is_noise(&dir.join("large/latest/vda.img"), 2, 100 * MIB);
    lab.umount(&dir);
    assert_eq!(lab.listed().len(), 2);
    lab.ok(args!["verify"]);
    lab.ok(args!["restore", "large@latest", out, "--force"]);
    assert_is_noise(&out, 2, 100 * MIB);
    mount.unmount();
}

#[test]
fn a_disk_without_a_single_free_block_harms_no_backup() {
    let (lab, mount, filler) = small_lab(192, 0);
    // To the last block, as far as root may.
    let mut more = 0;
    while fs::write(mount.point.join(format!("more-{more}")), vec![1; 256 << 10]).is_ok() {
        more += 1;
    }
    let said = lab.run(args!["backup", "first", lab.path("first.img")]);
    assert!(matches!(said.status.code(), Some(0 | 1)), "{said}");
    let said = lab.run(args!["list", "--json"]);
    assert_eq!(said.status.code(), Some(0), "{said}");
    lab.ok(args!["verify"]);
    let out = lab.path("out.img");
    lab.ok(args!["restore", "first@latest", out]);
    assert_is_noise(&out, 1, 2 * MIB);
    fs::remove_file(filler).expect("removes");
    write_noise(&lab.path("second.img"), 3, 8 * MIB);
    lab.backup("second", &lab.path("second.img"));
    lab.ok(args!["verify"]);
    lab.ok(args!["restore", "second@latest", out, "--force"]);
    assert_is_noise(&out, 3, 8 * MIB);
    mount.unmount();
}

#[test]
fn a_repository_on_a_file_system_that_became_read_only_can_still_be_read() {
    let (lab, mount, _) = small_lab(192, 80);
    crate::support::tools::tool("mount", args!["-o", "remount,ro", mount.point]);
    assert_eq!(lab.listed().len(), 1);
    lab.ok(args!["verify"]);
    let dir = lab.mount("images");
    assert_is_noise(&dir.join("first/latest/vda.img"), 1, 2 * MIB);
    lab.umount(&dir);
    let said = lab.run(args!["backup", "first", lab.path("first.img")]).code(1);
    said.says(&["read-only file system", lab.repo().to_str().expect("UTF-8")]);
    mount.unmount();
}

#[test]
fn an_init_without_room_leaves_nothing_half_made() {
    let mut lab = Lab::without_repo();
    let disk = Disk::plain(lab.path("small.fs"), 192);
    disk.format(0, "mkfs.ext4");
    let mount = Mount::of_device(LoopDevice::of_file(&disk.path), lab.subdir("small"));
    lab.use_repo(&mount.point.join("repo"));
    let filler = mount.point.join("filler");
    fill(&mount, &filler, 1);
    lab.run(args!["init"]).code(1).says(&["no space"]);
    lab.run(args!["list"]).code(1).says(&["not a vbk repository"]);
    fs::remove_file(filler).expect("removes");
    lab.ok(args!["init"]);
    mount.unmount();
}
