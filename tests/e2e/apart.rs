//! Bytes of one day or disk are never shown as another's, and a mount never touches a disk of this host: file systems that span devices,
//! and the kernel's list of those it knows.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::bytes::{assert_same, copy_sparse, make_hole};
use crate::support::disk::{Disk, LoopDevice};
use crate::support::lab::{Lab, str_of, sync};
use crate::support::tools::{tool, try_tool};

/// A btrfs over two disks.
struct Pair {
    disks: [PathBuf; 2],
}

impl Pair {
    fn new(lab: &Lab, profile: &str) -> Self {
        let disks = ["a.img", "b.img"].map(|name| lab.path(name));
        disks.iter().for_each(|disk| make_hole(disk, 256 << 20));
        let devices = disks.each_ref().map(|disk| LoopDevice::of_file(disk));
        let [a, b] = devices.each_ref().map(|device| device.node.clone());
        tool("mkfs.btrfs", args!["-q", "-f", "-d", profile, "-m", "raid1", a, b]);
        let pair = Self { disks };
        forget(&devices);
        pair
    }

    /// Changes files through a mount of both disks.
    fn change(&self, lab: &Lab, change: impl FnOnce(&Path)) {
        let point = lab.subdir("change");
        let devices = self.disks.each_ref().map(|disk| LoopDevice::of_file(disk));
        let option = format!("device={}", devices[1].node.display());
        tool("mount", args!["-t", "btrfs", "-o", option, devices[0].node, point]);
        change(&point);
        sync(&point);
        tool("umount", args![point]);
        forget(&devices);
        fs::remove_dir(&point).expect("removes a directory");
    }

    fn backup(&self, lab: &Lab, guest: &str) {
        let named = |name: &str, disk: &Path| format!("{name}={}", disk.display());
        lab.ok(args![
            "backup",
            guest,
            named("vda", &self.disks[0]),
            named("vdb", &self.disks[1])
        ]);
    }
}

fn forget(devices: &[LoopDevice]) {
    for device in devices {
        try_tool("btrfs", args!["device", "scan", "--forget", device.node]);
    }
}

fn write(root: &Path, text: &str) {
    fs::write(root.join("word"), text).expect("writes");
}

fn word(dir: &Path) -> String {
    fs::read_to_string(dir.join("word")).expect("the file is there")
}

#[test]
fn a_btrfs_over_two_disks_of_a_backup_is_mounted_whole() {
    let lab = Lab::new();
    let pair = Pair::new(&lab, "raid1");
    pair.change(&lab, |root| write(root, "both"));
    pair.backup(&lab, "pair");
    let (dir, said) = lab.mount_files("pair@latest", "files");
    let answer = said.done().json();
    assert_eq!(word(&dir.join("vda")), "both");
    assert!(
        str_of(&answer["volumes"][1], "reason").contains("device 2 of the btrfs on vda.img"),
        "{answer}"
    );
    lab.umount(&dir);
    // One disk is asked for, and the other belongs to it.
    let (dir, said) = lab.mount_files("pair@latest/vdb", "one");
    said.done();
    assert_eq!(word(&dir.join("vdb")), "both");
    lab.umount(&dir);

    // Of a mirror one half is enough, and that is said.
    lab.backup("half", &pair.disks[1]);
    let (dir, said) = lab.mount_files("half@latest", "half");
    let answer = said.code(3).json();
    assert_eq!(word(&dir), "both");
    let warning = str_of(&answer["volumes"][0], "warning");
    assert!(
        warning.contains("degraded") && warning.contains("device 1 is not in the backup"),
        "{answer}"
    );
    lab.umount(&dir);
}

#[test]
fn half_of_an_unmirrored_btrfs_is_refused_with_the_missing_device() {
    let lab = Lab::new();
    let pair = Pair::new(&lab, "raid0");
    pair.change(&lab, |root| write(root, "both"));
    lab.backup("half", &pair.disks[0]);
    let dir = lab.subdir("half");
    let said = lab.run(args!["mount", "half@latest", "--files", dir]).code(1);
    said.tells(&["device 2 is not in the backup", "btrfs restore"]);
}

#[test]
fn a_registered_live_disk_is_neither_mounted_nor_changed() {
    let lab = Lab::new();
    let pair = Pair::new(&lab, "raid1");
    pair.change(&lab, |root| write(root, "monday"));
    pair.backup(&lab, "pair");
    pair.change(&lab, |root| write(root, "friday"));
    // The second disk as a running guest has it: with a log of an fsync.
    let live = lab.path("live.img");
    pair.change(&lab, |root| {
        let file = fs::File::create(root.join("fsynced")).expect("creates");
        std::io::Write::write_all(&mut &file, b"just now")
            .and_then(|()| file.sync_all())
            .expect("writes");
        for device in crate::support::kernel::loops_of(&pair.disks[1]) {
            fs::File::open(device)
                .and_then(|device| device.sync_all())
                .expect("syncs");
        }
        copy_sparse(&pair.disks[1], &live);
    });
    let before = lab.path("before.img");
    copy_sparse(&live, &before);
    let device = LoopDevice::of_file(&live);
    tool("btrfs", args!["device", "scan", device.node]);

    let (dir, said) = lab.mount_files("pair@latest", "files");
    said.done();
    assert_eq!(word(&dir.join("vda")), "monday");
    lab.umount(&dir);
    forget(std::slice::from_ref(&device));
    device.detach();
    assert_same(&live, &before);
}

#[test]
fn two_backups_of_a_btrfs_are_mounted_beside_the_live_disk() {
    let lab = Lab::new();
    let disk = Disk::plain(lab.path("disk.img"), 256);
    disk.format(0, "mkfs.btrfs");
    let mut days = Vec::new();
    for day in ["monday", "tuesday"] {
        disk.change(&lab, 0, |root| write(root, day));
        let guest = format!("web-{day}");
        lab.backup(&guest, &disk.path);
        days.push((day, format!("{guest}@latest")));
    }
    disk.change(&lab, 0, |root| write(root, "today"));
    let live = disk.mount(&lab, 0);
    let mut dirs = Vec::new();
    for (day, backup) in &days {
        let (dir, said) = lab.mount_files(backup, day);
        said.done();
        assert_eq!(word(&dir), *day);
        dirs.push(dir);
    }
    assert_eq!(word(&live.point), "today");
    dirs.iter().for_each(|dir| lab.umount(dir));
    live.unmount();
}

#[test]
fn all_subvolumes_of_a_btrfs_are_mounted_and_the_root_is_named() {
    let lab = Lab::new();
    let disk = Disk::plain(lab.path("disk.img"), 256);
    disk.format(0, "mkfs.btrfs");
    // As openSUSE does: the default subvolume is a snapshot, /home is a subvolume beside it.
    disk.change(&lab, 0, |root| {
        for subvolume in ["@", "@/home", "@/root"] {
            tool("btrfs", args!["subvolume", "create", root.join(subvolume)]);
        }
        fs::write(root.join("@/home/thesis"), "long").expect("writes");
        tool("btrfs", args!["subvolume", "set-default", root.join("@/root")]);
    });
    lab.backup("suse", &disk.path);
    let (dir, said) = lab.mount_files("suse@latest", "files");
    let answer = said.done().json();
    assert_eq!(fs::read_to_string(dir.join("@/home/thesis")).expect("is there"), "long");
    assert!(dir.join("@/root").is_dir());
    assert_eq!(str_of(&answer["volumes"][0], "root"), "@/root");
    lab.umount(&dir);
    let said = lab.run(args!["mount", "suse@latest", "--files", dir]);
    lab.note_hidden(&dir);
    said.done().tells(&["the guest's root is", "@/root"]);
    lab.umount(&dir);
}

#[test]
fn a_journal_on_a_device_of_this_host_is_not_opened() {
    let lab = Lab::new();
    let (disk, journal) = (lab.path("disk.img"), lab.path("journal.img"));
    make_hole(&disk, 64 << 20);
    make_hole(&journal, 16 << 20);
    // Attached all the time, with the number that the superblock names.
    let journal_device = LoopDevice::of_file(&journal);
    tool(
        "mke2fs",
        args!["-q", "-F", "-b", "4096", "-O", "journal_dev", journal_device.node],
    );
    let device = LoopDevice::of_file(&disk);
    let option = format!("device={}", journal_device.node.display());
    tool("mkfs.ext4", args!["-q", "-F", "-b", "4096", "-J", option, device.node]);
    let point = lab.subdir("change");
    tool("mount", args![device.node, point]);
    write(&point, "old");
    sync(&point);
    // A guest that runs: the journal is not empty.
    fs::write(point.join("new"), "just now").expect("writes");
    fs::File::open(point.join("new"))
        .and_then(|file| file.sync_all())
        .expect("syncs");
    for node in [&device.node, &journal_device.node] {
        fs::File::open(node)
            .and_then(|device| device.sync_all())
            .expect("syncs");
    }
    let (copy, journal_copy) = (lab.path("copy.img"), lab.path("journal-copy.img"));
    copy_sparse(&disk, &copy);
    copy_sparse(&journal, &journal_copy);
    tool("umount", args![point]);
    device.detach();
    // The guest's live journal again, as it was at the backup.
    fs::copy(&journal_copy, &journal).expect("copies");
    let before = lab.path("before.img");
    copy_sparse(&journal, &before);

    lab.backup("web1", &copy);
    let (dir, said) = lab.mount_files("web1@latest", "files");
    let answer = said.code(3).json();
    assert_eq!(word(&dir), "old");
    assert!(str_of(&answer["volumes"][0], "options").contains("noload"), "{answer}");
    lab.umount(&dir);
    journal_device.detach();
    assert_same(&journal, &before);
}
