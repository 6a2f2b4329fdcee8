//! Mounts and unmounts that must be refused, and say why.

use std::fs;
use std::path::Path;

use crate::support::bytes::{MIB, assert_same, write_noise};
use crate::support::kernel;
use crate::support::lab::{Lab, names_in};
use crate::support::tools::{tool, try_tool};

fn lab_with_a_backup() -> Lab {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, 2 * MIB);
    lab.backup("web1", &lab.path("disk.img"));
    lab
}

/// Both kinds of mount are refused at `dir`.
#[track_caller]
fn refused_at(lab: &Lab, dir: &Path, words: &[&str]) {
    for command in [args!["mount", dir], args!["mount", "web1@latest", "--files", dir]] {
        let said = lab.run(command).says(words).says(&[dir.to_str().expect("UTF-8")]);
        assert!(matches!(said.status.code(), Some(1 | 75)), "{said}");
        assert!(said.stdout.is_empty(), "{said}");
    }
}

#[test]
fn a_mount_point_must_be_an_empty_directory() {
    let lab = lab_with_a_backup();
    refused_at(&lab, &lab.path("missing"), &["does not exist", "mkdir"]);
    assert!(!lab.path("missing").exists());
    let full = lab.subdir("full");
    fs::write(full.join("precious"), "mine").expect("writes");
    refused_at(&lab, &full, &["not empty"]);
    assert_eq!(names_in(&full), ["precious"]);
    refused_at(&lab, &lab.path("disk.img"), &["not a directory"]);
    lab.assert_nothing_left();
}

#[test]
fn mounting_over_a_vbk_mount_names_the_umount_command() {
    let lab = lab_with_a_backup();
    let dir = lab.mount("images");
    refused_at(&lab, &dir, &["already", "vbk umount"]);
    // And the mount that was there serves on.
    assert_same(&dir.join("web1/latest/vda.img"), &lab.path("disk.img"));
    assert_eq!(kernel::mounts_at(&dir).len(), 1);
    lab.umount(&dir);
}

#[test]
fn umount_refuses_a_mount_that_is_not_of_vbk() {
    let lab = lab_with_a_backup();
    let dir = lab.subdir("theirs");
    tool("mount", args!["-t", "tmpfs", "somebody", dir]);
    refused_at(&lab, &dir, &["mount point already", "tmpfs"]);
    lab.run(args!["umount", dir])
        .code(1)
        .says(&["not mounted by vbk", "tmpfs", "umount"]);
    lab.run(args!["umount", "--lazy", dir]).code(1);
    assert_eq!(kernel::mounts_at(&dir).len(), 1);
    try_tool("umount", args![dir]);
}

#[test]
fn umount_of_an_unmounted_directory_is_refused() {
    let lab = lab_with_a_backup();
    let dir = lab.subdir("directory");
    lab.run(args!["umount", dir])
        .code(1)
        .says(&["nothing is mounted", "directory", "vbk mounts"]);
    lab.run(args!["umount", lab.path("missing")]).code(1).says(&["missing"]);
    // Below a mount is not the mount.
    let images = lab.mount("images");
    lab.run(args!["umount", images.join("web1")])
        .code(1)
        .says(&["nothing is mounted"]);
    assert_eq!(names_in(&images), ["web1"]);
    lab.umount(&images);
    lab.run(args!["umount", images]).code(1).says(&["nothing is mounted"]);
}

#[test]
fn a_mount_point_can_be_named_in_other_ways() {
    let lab = lab_with_a_backup();
    let dir = lab.subdir("images");
    let link = lab.path("link");
    std::os::unix::fs::symlink(&dir, &link).expect("links");
    lab.ok(args!["mount", link]);
    assert_eq!(names_in(&dir), ["web1"]);
    lab.ok(args!["umount", link]);
    assert!(kernel::mounts_at(&dir).is_empty());
    // Relative to where the program is started, which is the test's directory.
    lab.ok(args!["mount", "images"]);
    assert_eq!(names_in(&dir), ["web1"]);
    lab.ok(args!["umount", "./images/"]);
    assert!(kernel::mounts_at(&dir).is_empty());
}

#[test]
fn an_empty_repository_can_be_mounted_and_filled_later() {
    let lab = Lab::new();
    assert_eq!(lab.listed(), Vec::<String>::new());
    let dir = lab.mount("images");
    assert!(names_in(&dir).is_empty());
    write_noise(&lab.path("disk.img"), 1, MIB);
    lab.backup("web1", &lab.path("disk.img"));
    let there = crate::support::tools::wait_until(std::time::Duration::from_secs(3), || names_in(&dir) == ["web1"]);
    assert!(there);
    assert_same(&dir.join("web1/latest/vda.img"), &lab.path("disk.img"));
    lab.umount(&dir);
    lab.ok(args!["verify"]);
}

#[test]
fn other_users_see_a_mount_only_with_allow_other() {
    let lab = lab_with_a_backup();
    // The directories above are the test's own.
    tool("chmod", args!["755", lab.dir()]);
    let list_as_nobody = |dir: &Path| {
        let nobody = args!["--reuid=65534", "--regid=65534", "--clear-groups", "ls", dir];
        try_tool("setpriv", nobody).status.success()
    };
    let dir = lab.mount("images");
    assert!(!list_as_nobody(&dir), "by default nobody else");
    lab.umount(&dir);
    lab.ok(args!["mount", dir, "--allow-other"]);
    assert!(list_as_nobody(&dir));
    lab.umount(&dir);
}
