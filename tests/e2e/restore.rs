//! Whole disks back: to a new file, onto devices, to stdout, and over what is there if that is wanted.

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

use crate::support::bytes::{
    KIB, MIB, assert_is_noise, assert_same, assert_same_range, make_hole, noise_bytes, read_at, size_of, write_at,
    write_noise,
};
use crate::support::disk::{Disk, LoopDevice};
use crate::support::lab::{Lab, VBK, names_in, str_of, u64_of};
use crate::support::tools::tool;

/// A repository with a day of a real disk.
fn server(lab: &Lab) -> Disk {
    let disk = Disk::of_a_server(lab, "server.img");
    disk.change(lab, 2, |root| {
        fs::write(root.join("media"), noise_bytes(1, 9 * MIB)).expect("writes")
    });
    lab.backup("web1", &disk.path);
    disk
}

#[test]
fn a_restored_file_is_identical_and_sparse() {
    let lab = Lab::new();
    let disk = server(&lab);
    let out = lab.path("out.img");
    let answer = lab.json(args!["restore", "web1@latest", out]);
    assert_same(&out, &disk.path);
    let on_disk = fs::metadata(&out).expect("is there").blocks() * 512;
    assert!(on_disk < size_of(&disk.path) / 2, "{on_disk} bytes on disk");
    assert_eq!(str_of(&answer, "disk"), "vda");
    assert_eq!(str_of(&answer, "target"), out.to_str().expect("UTF-8"));
    assert_eq!(u64_of(&answer, "size_bytes"), size_of(&disk.path));
    assert!(u64_of(&answer, "data_bytes") >= 9 * MIB, "{answer}");
    // The file systems in it are whole.
    let restored = Disk {
        path: out,
        parts: disk.parts,
    };
    restored.change(&lab, 2, |root| {
        assert!(fs::read(root.join("media")).expect("reads") == noise_bytes(1, 9 * MIB));
    });
    let beside = names_in(lab.dir());
    assert!(!beside.iter().any(|name| name.contains(".vbk-")), "{beside:?}");
}

#[test]
fn a_restored_device_is_identical_to_the_disk() {
    let lab = Lab::new();
    let disk = server(&lab);
    let size = size_of(&disk.path);
    let backing = lab.path("backing.img");
    write_noise(&backing, 7, size);
    let device = LoopDevice::of_file(&backing);
    lab.ok(args!["restore", "web1@latest", device.node]);
    tool("cmp", args![device.node, disk.path]);
    device.detach();
    assert_same(&backing, &disk.path);
}

#[test]
fn bytes_after_the_disk_on_a_larger_device_are_kept() {
    let lab = Lab::new();
    let image = lab.path("disk.img");
    // Data, then zeros that must be written over the noise, then an end that no sector divides.
    let size = 20 * MIB + 1536;
    write_noise(&image, 1, 8 * MIB);
    write_at(&image, size - 10, b"0123456789");
    lab.backup("web1", &image);
    let backing = lab.path("backing.img");
    write_noise(&backing, 7, 32 * MIB);
    let device = LoopDevice::of_file(&backing);
    lab.ok(args!["restore", "web1@latest/vda", device.node]);
    device.detach();
    assert_same_range(&backing, 0, &image, 0, size);
    let behind = noise_bytes(7, 32 * MIB);
    assert!(read_at(&backing, size, 32 * MIB - size).expect("reads") == behind[size as usize..]);
}

#[test]
fn old_signatures_on_a_larger_device_are_removed() {
    let lab = Lab::new();
    let disk = Disk::plain(lab.path("disk.img"), 32);
    disk.format(0, "mkfs.ext4");
    lab.backup("web1", &disk.path);
    let backing = lab.path("backing.img");
    let size = 80 * MIB;
    write_noise(&backing, 7, size);
    let device = LoopDevice::of_file(&backing);
    tool("sgdisk", args!["--clear", device.node]);
    // The superblock of a RAID member of version 1.0, 8 KiB before the end, and a copy of that of Btrfs.
    let raid_at = size - 8 * KIB;
    write_at(&device.node, raid_at, &0xa92b_4efc_u32.to_le_bytes());
    write_at(&device.node, 64 * MIB + 64, b"_BHRfS_M");
    let answer = lab.json(args!["restore", "web1@latest", device.node, "--force"]);
    assert_eq!(u64_of(&answer, "behind_bytes"), 48 * MIB);
    let wiped: Vec<_> = answer["wiped"].as_array().expect("a list").iter().collect();
    let names: Vec<_> = wiped.iter().map(|wiped| str_of(wiped, "what")).collect();
    assert_eq!(names, ["Btrfs", "Linux RAID 1.0", "second header of a GPT"]);
    assert_eq!(
        tool("blkid", args!["-p", "-o", "value", "-s", "TYPE", device.node]),
        "ext4"
    );
    let signatures = tool("wipefs", args!["--noheadings", "--output", "TYPE", device.node]);
    assert_eq!(signatures.trim(), "ext4");
    // Told to people too, when there is nothing to wipe any more.
    let said = lab.run(args!["restore", "web1@latest", device.node]).done();
    let _ = said.tells(&["48 MiB larger than the disk", "after its end are unchanged"]);
    device.detach();
    // All other bytes are as they were.
    assert_same_range(&backing, 0, &disk.path, 0, 32 * MIB);
    let noise = noise_bytes(7, size);
    let between = read_at(&backing, 32 * MIB, 32 * MIB).expect("reads");
    assert!(between == noise[32 * MIB as usize..64 * MIB as usize]);
}

#[test]
fn a_gpt_on_a_larger_device_names_the_command_to_finish_it() {
    let lab = Lab::new();
    let disk = Disk::partitioned(lab.path("disk.img"), 32, "label: gpt\nsize=8MiB\n");
    lab.backup("web1", &disk.path);
    let backing = lab.path("backing.img");
    make_hole(&backing, 64 * MIB);
    let device = LoopDevice::of_file(&backing);
    let said = lab.run(args!["restore", "web1@latest", device.node]).done();
    let command = format!("sgdisk -e {}", device.node.display());
    let _ = said.tells(&[&command]);
    tool("sgdisk", args!["-e", device.node]);
    assert!(tool("sgdisk", args!["-v", device.node]).contains("No problems found"));
    let answer = lab.json(args!["restore", "web1@latest", device.node]);
    assert_eq!(answer["gpt_ends_early"], true);
    device.detach();
}

#[test]
fn restore_to_stdout_prints_only_the_disk() {
    let lab = Lab::new();
    let image = lab.path("disk.img");
    let size = 10 * MIB + 4608;
    make_hole(&image, size);
    write_at(&image, 3 * MIB, &noise_bytes(1, 2 * MIB));
    lab.backup("web1", &image);
    let said = lab.run(args!["restore", "web1@latest", "-"]).done();
    assert!(said.stdout == fs::read(&image).expect("reads"));
}

#[test]
fn restore_to_a_closed_pipe_does_not_panic() {
    let lab = Lab::new();
    let image = lab.path("disk.img");
    write_noise(&image, 1, 16 * MIB);
    lab.backup("web1", &image);
    let child = Command::new(VBK)
        .env("VBK_STATE_DIR", lab.state_dir())
        .args(args!["--repo", lab.repo(), "restore", "web1@latest", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.expect("starts");
    let mut first = [0; 100];
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_exact(&mut first).expect("reads");
    drop(stdout);
    let output = child.wait_with_output().expect("ends");
    assert_eq!(first[..], noise_bytes(1, 100));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(!output.status.success());
}

#[test]
fn one_disk_of_several_is_restored_by_name() {
    let lab = Lab::new();
    for (seed, name) in [(1, "a"), (2, "b")] {
        write_noise(&lab.path(name), seed, 3 * MIB + 512 * seed);
    }
    let named = |disk: &str, file: &str| format!("{disk}={}", lab.path(file).display());
    lab.ok(args!["backup", "db", named("vda", "a"), named("vdb", "b")]);
    let out = lab.path("out.img");
    let said = lab.run(args!["restore", "db@latest", out]).says(&["vda", "vdb"]);
    assert!(matches!(said.status.code(), Some(1 | 2)), "{said}");
    assert!(!out.exists());
    lab.run(args!["restore", "db@latest/vdc", out])
        .code(1)
        .says(&["vdc", "vda", "vdb"]);
    assert!(!out.exists());
    lab.ok(args!["restore", "db@latest/vdb", out]);
    assert_is_noise(&out, 2, 3 * MIB + 1024);
    let id = str_of(&lab.json(args!["show", "db@latest"]), "id");
    let other = lab.path("other.img");
    lab.ok(args!["restore", format!("{}/vda", &id[..10]), other]);
    assert_is_noise(&other, 1, 3 * MIB + 512);
}

#[test]
fn an_existing_file_is_replaced_only_with_force() {
    let lab = Lab::new();
    let image = lab.path("disk.img");
    write_noise(&image, 1, 3 * MIB);
    lab.backup("web1", &image);
    let out = lab.path("out.img");
    // Longer than the disk: nothing of it may stay behind the end.
    write_noise(&out, 2, 5 * MIB);
    fs::set_permissions(&out, Permissions::from_mode(0o640)).expect("sets");
    let before = fs::metadata(&out).expect("is there");
    let said = lab.run(args!["restore", "web1@latest", out]).code(1);
    let _ = said.says(&["out.img", "exists", "--force"]);
    let after = fs::metadata(&out).expect("is there");
    assert_is_noise(&out, 2, 5 * MIB);
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    lab.ok(args!["restore", "web1@latest", out, "--force"]);
    assert_is_noise(&out, 1, 3 * MIB);
    assert_eq!(fs::metadata(&out).expect("is there").mode() & 0o777, 0o640);
}

#[test]
fn a_partition_image_of_the_mount_can_be_written_to_a_partition() {
    let lab = Lab::new();
    let disk = server(&lab);
    let dir = lab.mount("images");
    // A guest's root file system alone, by dd, as docs/restore.md says of whole disks.
    let target = lab.path("partition.img");
    make_hole(&target, disk.part(1).size_bytes);
    let device = LoopDevice::of_file(&target);
    let from = format!("if={}", dir.join("web1/latest/vda.p1.img").display());
    let to = format!("of={}", device.node.display());
    tool("dd", args![from, to, "bs=1M", "conv=fsync"]);
    device.detach();
    assert_same_range(
        &target,
        0,
        &disk.path,
        disk.part(1).start_bytes,
        disk.part(1).size_bytes,
    );
    lab.umount(&dir);
}

#[test]
fn a_directory_gets_all_disks_of_a_guest_and_its_files() {
    let lab = Lab::new();
    write_noise(&lab.path("a.img"), 1, 3 * MIB);
    write_noise(&lab.path("b.img"), 2, 2 * MIB);
    fs::write(lab.path("note"), "rack 7").expect("writes");
    let disk = |name: &str, file: &str| format!("{name}={}", lab.path(file).display());
    lab.ok(args![
        "backup",
        "web1",
        disk("vda", "a.img"),
        disk("vdb", "b.img"),
        "--attach",
        disk("note.txt", "note")
    ]);
    let out = lab.path("out");
    let missing = lab.run(args!["restore", "web1@latest", out]).code(2);
    missing.says(&["name a directory for all of them", "/vda"]);
    let ending = format!("{}/", out.display());
    let answer = lab.json(args!["restore", "web1@latest", ending]);
    assert_eq!(answer["disks"].as_array().map(Vec::len), Some(2), "{answer}");
    assert_eq!(str_of(&answer["files"][0], "disk"), "note.txt");
    assert_eq!(names_in(&out), ["note.txt", "vda.img", "vdb.img"]);
    assert_is_noise(&out.join("vda.img"), 1, 3 * MIB);
    assert_is_noise(&out.join("vdb.img"), 2, 2 * MIB);
    assert_eq!(fs::read_to_string(out.join("note.txt")).expect("reads"), "rack 7");
    // Nothing is written if anything is in the way.
    fs::remove_file(out.join("vda.img")).expect("removes");
    lab.run(args!["restore", "web1@latest", out])
        .code(1)
        .says(&["vdb.img exists"]);
    assert!(!out.join("vda.img").exists());
    lab.ok(args!["restore", "web1@latest/vda", out]);
    assert_is_noise(&out.join("vda.img"), 1, 3 * MIB);
    lab.ok(args!["restore", "web1@latest", out, "--force"]);
    lab.run(args!["restore", "web1@latest/vda", out, "--differential"])
        .code(2);
    lab.run(args![
        "restore",
        "web1@latest",
        out,
        "--force",
        "--format",
        "qcow2",
        "--skip-damaged=keep"
    ])
    .code(2)
    .says(&["no old data to keep"]);
}
