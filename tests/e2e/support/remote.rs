//! The work that a repository on another host has to stand, whatever the way to it.

use std::fs;
use std::path::PathBuf;

use super::bytes::{MIB, assert_same, noise_bytes, write_at};
use super::lab::{Lab, u64_of};

/// Makes a disk of an odd length.
pub fn disk(lab: &Lab) -> PathBuf {
    let path = lab.path("disk.img");
    fs::write(&path, noise_bytes(1, 20 * MIB + 512)).expect("writes");
    path
}

/// Backs a disk up twice, reads both backups in all ways, and removes the first. Returns the disk.
pub fn main_job(lab: &Lab) -> PathBuf {
    let disk = disk(lab);
    let first = lab.backup("web1", &disk);
    assert!(u64_of(&first, "new_bytes") > 20 * MIB, "{first}");
    let yesterday = lab.path("yesterday.img");
    fs::copy(&disk, &yesterday).expect("copies");
    write_at(&disk, 5 * MIB, &noise_bytes(2, MIB));
    let second = lab.backup("web1", &disk);
    assert!(u64_of(&second, "new_bytes") <= 2 * MIB, "{second}");
    let specs = lab.listed();
    assert_eq!(specs.len(), 2);
    lab.ok(args!["show", "web1@latest"]);
    lab.ok(args!["diff", specs[0], specs[1]]);
    lab.ok(args!["stats"]);
    lab.ok(args!["verify"]);

    let restored = lab.path("restored.img");
    lab.ok(args!["restore", "web1@latest", restored]);
    assert_same(&disk, &restored);
    let images = lab.mount("images");
    let day = specs[0].strip_prefix("web1@").expect("GUEST@TIME");
    assert_same(&yesterday, &images.join("web1").join(day).join("vda.img"));
    lab.umount(&images);

    lab.ok(args!["protect", specs[1]]);
    lab.ok(args!["forget", specs[0]]);
    let pruned = lab.json(args!["prune", "--max-unused", "0%"]);
    assert!(u64_of(&pruned, "removed_blocks") >= 1, "{pruned}");
    lab.ok(args!["verify"]);
    disk
}
