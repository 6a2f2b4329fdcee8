//! Restores that must be refused before the first byte is written.

use std::fs;

use crate::support::bytes::{MIB, assert_is_noise, make_hole, write_noise};
use crate::support::disk::{Disk, LoopDevice, Mount};
use crate::support::lab::{Lab, names_in};
use crate::support::tools::tool;

fn lab_with_a_backup() -> Lab {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, 8 * MIB);
    lab.backup("web1", &lab.path("disk.img"));
    lab
}

#[test]
fn a_smaller_target_is_refused_and_unchanged() {
    let lab = lab_with_a_backup();
    let backing = lab.path("backing.img");
    write_noise(&backing, 7, 8 * MIB - 512);
    let device = LoopDevice::of_file(&backing);
    for force in [false, true] {
        let mut arguments = args!["restore", "web1@latest", device.node];
        arguments.extend(force.then(|| "--force".into()));
        let node = device.node.to_str().expect("UTF-8");
        lab.run(arguments)
            .code(1)
            .says(&[node, &(8 * MIB).to_string(), "nothing was written"]);
    }
    device.detach();
    assert_is_noise(&backing, 7, 8 * MIB - 512);
}

#[test]
fn a_mounted_target_is_refused_and_unchanged() {
    let lab = lab_with_a_backup();
    let disk = Disk::plain(lab.path("target.img"), 64);
    disk.format(0, "mkfs.ext4");
    let mount = Mount::of_device(LoopDevice::of_file(&disk.path), lab.subdir("in use"));
    fs::write(mount.point.join("file"), "mine").expect("writes");
    for force in [false, true] {
        let mut arguments = args!["restore", "web1@latest", mount.node()];
        arguments.extend(force.then(|| "--force".into()));
        let node = mount.node().to_str().expect("UTF-8");
        let said = lab
            .run(arguments)
            .says(&[node, "mounted", "umount", "nothing was written"]);
        assert!(matches!(said.status.code(), Some(1 | 75)), "{said}");
    }
    assert_eq!(fs::read_to_string(mount.point.join("file")).expect("reads"), "mine");
    mount.unmount();
    disk.change(&lab, 0, |root| {
        assert_eq!(fs::read_to_string(root.join("file")).expect("reads"), "mine")
    });
}

#[test]
fn a_file_that_is_a_disk_of_a_loop_device_is_refused_even_with_force() {
    let lab = lab_with_a_backup();
    let backing = lab.path("backing.img");
    write_noise(&backing, 7, 9 * MIB);
    let device = LoopDevice::of_file(&backing);
    let said = lab.run(args!["restore", "web1@latest", backing, "--force"]);
    let said = said.says(&["backing.img", "in use"]);
    assert!(matches!(said.status.code(), Some(1 | 75)), "{said}");
    device.detach();
    assert_is_noise(&backing, 7, 9 * MIB);
}

#[test]
fn an_unusable_restore_target_is_named() {
    let lab = lab_with_a_backup();
    let dir = lab.subdir("directory");
    std::fs::create_dir(dir.join("vda.img")).expect("makes a directory");
    let before = names_in(lab.dir());
    lab.run(args!["restore", "web1@latest", dir, "--force"])
        .code(1)
        .says(&["directory"]);
    lab.run(args!["restore", "web1@latest", lab.path("nowhere/out.img")])
        .code(1)
        .says(&["nowhere"]);
    lab.run(args!["restore", "web1@latest", "/dev/null"])
        .code(1)
        .says(&["/dev/null", "character device"]);
    // A mistyped volume must not become a file in /dev.
    lab.run(args!["restore", "web1@latest", "/dev/vbk-e2e-typo"])
        .code(1)
        .says(&["/dev/vbk-e2e-typo"]);
    assert!(!std::path::Path::new("/dev/vbk-e2e-typo").exists());
    assert_eq!(names_in(lab.dir()), before);
    assert_eq!(names_in(&dir), ["vda.img"]);
}

#[test]
fn a_target_without_room_is_refused_before_it_is_written() {
    let lab = lab_with_a_backup();
    let disk = Disk::plain(lab.path("small.img"), 8);
    disk.format(0, "mkfs.ext4");
    let mount = Mount::of_device(LoopDevice::of_file(&disk.path), lab.subdir("small"));
    let before = names_in(&mount.point);
    lab.run(args!["restore", "web1@latest", mount.point.join("out.img")])
        .code(1)
        .says(&["free", "nothing was written"]);
    assert_eq!(names_in(&mount.point), before);
    // A hole as large as the disk takes no room.
    make_hole(&lab.path("hole.img"), 100 * MIB);
    lab.backup("void", &lab.path("hole.img"));
    lab.ok(args!["restore", "void@latest", mount.point.join("hole.img")]);
    mount.unmount();
}

#[test]
fn a_read_only_device_is_reported_as_read_only_even_to_root() {
    let lab = lab_with_a_backup();
    let backing = lab.path("backing.img");
    write_noise(&backing, 7, 9 * MIB);
    let device = LoopDevice::of_file(&backing);
    tool("blockdev", args!["--setro", device.node]);
    let said = lab.run(args!["restore", "web1@latest", device.node]);
    // It would stay so for the next user of this number.
    tool("blockdev", args!["--setrw", device.node]);
    let said = said.code(1).says(&["set read-only", "blockdev --setrw"]);
    assert!(!said.stderr.contains("run as root"), "{said}");
    device.detach();
    assert_is_noise(&backing, 7, 9 * MIB);
}

#[test]
fn symlinks_and_pipes_of_another_user_are_not_followed() {
    let lab = lab_with_a_backup();
    let dir = lab.subdir("customer");
    let (target, victim) = (dir.join("web1.img"), lab.path("victim"));
    fs::write(&victim, "precious").expect("writes");
    // What a killed restore would have left, as a pipe without another end.
    tool("mkfifo", args![dir.join(".vbk-part-1-web1.img")]);
    lab.ok(args!["restore", "web1@latest", target]);
    assert_is_noise(&target, 1, 8 * MIB);
    fs::remove_file(&target).expect("removes");
    std::os::unix::fs::symlink(&victim, &target).expect("links");
    tool("chown", args!["-h", "65534:65534", target]);
    lab.run(args!["restore", "web1@latest", target, "--force"])
        .code(1)
        .says(&["web1.img", "link of user 65534", "nothing was written"]);
    assert_eq!(fs::read_to_string(&victim).expect("reads"), "precious");
}

#[test]
fn a_file_of_a_loop_device_is_refused_under_any_name() {
    let lab = lab_with_a_backup();
    let (backing, other) = (lab.path("backing.img"), lab.path("other.img"));
    write_noise(&backing, 7, 9 * MIB);
    fs::hard_link(&backing, &other).expect("links");
    let device = LoopDevice::of_file(&backing);
    let node = device.node.to_str().expect("UTF-8").to_owned();
    lab.run(args!["restore", "web1@latest", other, "--force"])
        .code(75)
        .says(&["other.img", "in use", &node]);
    // And through a bind mount.
    let bound = lab.subdir("bound");
    let aside = lab.subdir("aside");
    fs::rename(&other, aside.join("third.img")).expect("moves");
    tool("mount", args!["--bind", aside, bound]);
    let said = lab.run(args!["restore", "web1@latest", bound.join("third.img"), "--force"]);
    tool("umount", args![bound]);
    said.code(75).says(&["in use", &node]);
    device.detach();
    assert_is_noise(&backing, 7, 9 * MIB);
}

#[test]
fn a_device_with_another_guests_disk_is_refused_and_named() {
    let lab = Lab::new();
    let (mine, other) = (
        Disk::plain(lab.path("mine.img"), 64),
        Disk::plain(lab.path("other.img"), 64),
    );
    mine.format(0, "mkfs.ext4");
    other.format(0, "mkfs.ext4");
    lab.backup("web1", &mine.path);
    let device = LoopDevice::of_file(&other.path);
    let before = fs::read(&other.path).expect("reads");
    let node = device.node.to_str().expect("UTF-8").to_owned();
    let holds = format!("{node} holds another disk: ext4 ");
    for more in [args![], args!["--differential"]] {
        let mut words = args!["restore", "web1@latest", device.node];
        words.extend(more);
        lab.run(words)
            .code(1)
            .says(&[&holds, "nothing was written", "--overwrite overwrites it"]);
    }
    let dry = lab
        .run(args!["--json", "restore", "web1@latest", device.node, "-n"])
        .code(1)
        .json();
    assert_eq!(
        (&dry["dry_run"], &dry["kind"], &dry["in_use"]),
        (&true.into(), &"device".into(), &().into())
    );
    assert!(
        dry["refused"].as_str().is_some_and(|why| why.starts_with(&holds)),
        "{dry}"
    );
    assert!(fs::read(&device.node).expect("reads") == before);
    lab.ok(args!["restore", "web1@latest", device.node, "--overwrite"]);
    // In place it needs no option, also after a change.
    device.detach();
    other.change(&lab, 0, |root| fs::write(root.join("file"), "new").expect("writes"));
    let device = LoopDevice::of_file(&other.path);
    lab.ok(args!["restore", "web1@latest", device.node]);
    device.detach();
    assert_eq!(
        fs::read(&other.path).expect("reads"),
        fs::read(&mine.path).expect("reads")
    );
}

#[test]
fn a_dry_run_of_each_kind_of_target_makes_nothing() {
    let lab = lab_with_a_backup();
    let before = names_in(lab.dir());
    let (new, directory) = (lab.path("new.img"), lab.path("new/"));
    lab.run(args!["restore", "web1@latest", new, "-n"]).done().tells(&[
        "8 MiB (8 MiB of data) would be restored to",
        "a new file",
        "nothing was written",
    ]);
    lab.run(args!["restore", "web1@latest", directory, "-n"])
        .done()
        .tells(&["vda.img", "new/ would be made"]);
    let dry = lab.json(args!["restore", "web1@latest", directory, "-n"]);
    assert_eq!((&dry["makes_directory"], &dry["refused"]), (&true.into(), &().into()));
    assert_eq!(
        (&dry["disks"][0]["kind"], &dry["disks"][0]["size_bytes"]),
        (&"new-file".into(), &(8 * MIB).into())
    );
    lab.run(args!["restore", "web1@latest", lab.path("disk.img"), "-n"])
        .code(1)
        .tells(&["in place of a file of 8 MiB", "would be refused", "--force replaces it"]);
    lab.run(args!["restore", "web1@latest", lab.path("disk.img"), "-n", "--force"])
        .done();
    for words in [args![], args!["-n"]] {
        let mut all = args!["restore", "web1@latest", lab.path("nowhere/deep/")];
        all.extend(words);
        lab.run(all).code(1).says(&["nowhere", "does not exist", "mounted?"]);
    }
    assert_eq!(names_in(lab.dir()), before);
}

#[test]
fn a_directory_that_was_made_for_a_refused_restore_is_removed() {
    let lab = lab_with_a_backup();
    let disk = Disk::plain(lab.path("small.img"), 8);
    disk.format(0, "mkfs.ext4");
    let mount = Mount::of_device(LoopDevice::of_file(&disk.path), lab.subdir("small"));
    let before = names_in(&mount.point);
    for words in [args!["-n"], args![]] {
        let mut all = args!["restore", "web1@latest", mount.point.join("new/")];
        all.extend(words);
        let said = lab.run(all).code(1);
        assert!(format!("{said}").contains("free; nothing was written"), "{said}");
    }
    assert_eq!(names_in(&mount.point), before);
    mount.unmount();
}
