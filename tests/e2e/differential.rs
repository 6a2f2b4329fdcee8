//! Restores that write only what differs, to devices and to files in place; and qcow2 images.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::bytes::{
    KIB, MIB, assert_is_noise, assert_same, assert_same_range, make_hole, noise_bytes, read_at, size_of, write_at,
    write_noise,
};
use crate::support::disk::{Disk, LoopDevice, Mount};
use crate::support::lab::{Lab, names_in, str_of, u64_of};
use crate::support::tools::{tool, wait_until};

/// 40 MiB and a bit: 16 MiB of noise, a hole, and noise at the end.
const SIZE: u64 = 40 * MIB + 1536;

fn make_disk(path: &Path) {
    write_noise(path, 1, 16 * MIB);
    write_at(path, 30 * MIB, &noise_bytes(2, SIZE - 30 * MIB));
}

fn lab_with_a_backup() -> Lab {
    let lab = Lab::new();
    make_disk(&lab.path("disk.img"));
    lab.backup("web1", &lab.path("disk.img"));
    lab
}

/// Changes two blocks of data, and one of zeros.
fn change(path: &Path) {
    for at in [3 * MIB + 5, 20 * MIB, 35 * MIB] {
        write_at(path, at, b"another day");
    }
}

fn assert_counts(answer: &serde_json::Value, data_bytes: u64, zero_bytes: u64, written_bytes: u64) {
    assert_eq!(u64_of(answer, "compared_bytes"), SIZE, "{answer}");
    assert_eq!(u64_of(answer, "differing_data_bytes"), data_bytes, "{answer}");
    assert_eq!(u64_of(answer, "differing_zero_bytes"), zero_bytes, "{answer}");
    assert_eq!(u64_of(answer, "differing_bytes"), data_bytes + zero_bytes, "{answer}");
    assert_eq!(u64_of(answer, "written_bytes"), written_bytes, "{answer}");
}

#[test]
fn a_larger_device_gets_only_the_blocks_that_differ() {
    let lab = lab_with_a_backup();
    let (image, backing) = (lab.path("disk.img"), lab.path("backing.img"));
    write_noise(&backing, 7, 48 * MIB);
    let device = LoopDevice::of_file(&backing);
    let everything = lab.json(args!["restore", "web1@latest", device.node, "--differential"]);
    let zeros = 14 * MIB;
    assert_counts(&everything, SIZE - zeros, zeros, SIZE);
    assert_eq!(u64_of(&everything, "behind_bytes"), 48 * MIB - SIZE);
    change(&device.node);
    let dry = lab.json(args![
        "restore",
        "web1@latest",
        device.node,
        "--differential",
        "--dry-run"
    ]);
    assert_counts(&dry, 2 * MIB, MIB, 0);
    assert_eq!(dry["dry_run"], true);
    let said = lab
        .run(args!["restore", "web1@latest", device.node, "--differential"])
        .done();
    let _ = said.tells(&[
        "40 MiB compared with",
        "3 MiB written (2 MiB of data, 1 MiB of zeros)",
        "after its end are unchanged",
    ]);
    let nothing = lab.json(args!["restore", "web1@latest", device.node, "--differential"]);
    assert_counts(&nothing, 0, 0, 0);
    device.detach();
    assert_same_range(&backing, 0, &image, 0, SIZE);
    let behind = read_at(&backing, SIZE, 48 * MIB - SIZE).expect("reads");
    assert!(behind == noise_bytes(7, 48 * MIB)[SIZE as usize..]);
}

#[test]
fn a_file_is_changed_in_place_and_gets_the_disks_size() {
    let lab = lab_with_a_backup();
    let (image, out) = (lab.path("disk.img"), lab.path("out.img"));
    lab.ok(args!["restore", "web1@latest", out]);
    change(&out);
    write_at(&out, SIZE, &noise_bytes(9, 5 * MIB));
    lab.run(args!["restore", "web1@latest", out, "--differential"])
        .code(1)
        .says(&["out.img", "exists", "--force"]);
    // A dry run changes nothing: not one byte, time or hole.
    let state = || {
        let found = fs::metadata(&out).expect("is there");
        let times = (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec());
        (tool("sha256sum", args![out]), times, found.blocks(), found.ino())
    };
    let before = state();
    let said = lab
        .run(args![
            "restore",
            "web1@latest",
            out,
            "--differential",
            "--dry-run",
            "--force"
        ])
        .done();
    let _ = said.tells(&[
        "3 MiB would be written",
        "nothing was written",
        "would be truncated from 45 MiB",
    ]);
    assert_eq!(state(), before);
    let said = lab
        .run(args!["restore", "web1@latest", out, "--differential", "--force"])
        .done();
    let _ = said.tells(&[
        "3 MiB written",
        "out.img was truncated from 45 MiB to the size of the disk",
    ]);
    assert_same(&out, &image);
    let after = fs::metadata(&out).expect("is there");
    assert_eq!(after.ino(), before.3, "the same file");
    assert!(after.blocks() * 512 < 28 * MIB, "zeros are a hole again");
    // A file that is too short, and holes where data was.
    make_hole(&out, 10 * MIB);
    let answer = lab.json(args!["restore", "web1@latest", out, "--differential", "--force"]);
    assert_counts(&answer, SIZE - 14 * MIB, 0, SIZE - 14 * MIB);
    assert_eq!(u64_of(&answer, "resized_from_bytes"), 10 * MIB);
    assert_same(&out, &image);
}

#[test]
fn a_killed_differential_restore_is_completed_by_the_next_one() {
    let lab = Lab::new();
    let (image, out) = (lab.path("disk.img"), lab.path("out.img"));
    let size = 96 * MIB;
    write_noise(&image, 1, size);
    lab.ok(args!["backup", "web1", image, "--compression", "none"]);
    write_noise(&out, 2, size + MIB);
    let arguments = || args!["--json", "restore", "web1@latest", out, "--differential", "--force"];
    let wanted = noise_bytes(1, size);
    let written = || {
        let there = fs::read(&out).expect("reads");
        let blocks = there.chunks(MIB as usize).zip(wanted.chunks(MIB as usize));
        blocks.filter(|(there, wanted)| there == wanted).count() as u64 * MIB
    };
    for percent in [20, 60] {
        let mut running = lab.start(arguments());
        wait_until(Duration::from_secs(100), || {
            running.has_ended() || written() >= size * percent / 100
        });
        if !running.has_ended() {
            running.signal(Signal::SIGKILL);
        }
        let _ = running.wait();
    }
    let answer = lab.run(arguments()).done().json();
    assert!(u64_of(&answer, "written_bytes") < size, "{answer}");
    assert_is_noise(&out, 1, size);
    let nothing = lab.run(arguments()).done().json();
    assert_eq!(u64_of(&nothing, "written_bytes"), 0, "{nothing}");
}

#[test]
fn an_encrypted_repository_has_the_same_blocks_as_its_disk() {
    let lab = Lab::without_repo();
    let (key, image, out) = (lab.path("key"), lab.path("disk.img"), lab.path("out.img"));
    make_disk(&image);
    lab.ok(args![
        "--key-file",
        key,
        "init",
        "--encrypt",
        "--no-recovery-key",
        "--block-size",
        "64K"
    ]);
    lab.ok(args!["--key-file", key, "backup", "web1", image]);
    tool("cp", args![image, out]);
    change(&out);
    let restore = || {
        lab.json(args![
            "--key-file",
            key,
            "restore",
            "web1@latest",
            out,
            "--differential",
            "--force"
        ])
    };
    let block = 64 * KIB;
    assert_counts(&restore(), 2 * block, block, 3 * block);
    assert_same(&out, &image);
    assert_counts(&restore(), 0, 0, 0);
}

#[test]
fn a_target_in_use_is_refused_and_a_dry_run_of_it_is_approximate() {
    let lab = lab_with_a_backup();
    let disk = Disk::plain(lab.path("target.img"), 64);
    disk.format(0, "mkfs.ext4");
    let mount = Mount::of_device(LoopDevice::of_file(&disk.path), lab.subdir("in use"));
    let node = mount.node().to_str().expect("UTF-8").to_owned();
    let files = [mount.node(), &disk.path];
    for target in files {
        lab.run(args!["restore", "web1@latest", target, "--differential", "--force"])
            .code(75)
            .says(&["in use", "nothing was written"]);
        lab.run(args!["restore", "web1@latest", target, "--differential", "--dry-run"])
            .code(1)
            .says(&["in use", "approximate"])
            .tells(&["40 MiB compared with", "nothing was written", "would be refused"]);
    }
    lab.run(args!["restore", "web1@latest", mount.node(), "--differential"])
        .code(75)
        .says(&[&node, "mounted", "umount"]);
    mount.unmount();
    tool("e2fsck", args!["-fn", disk.path]);
}

#[test]
fn what_can_not_be_compared_is_refused() {
    let lab = lab_with_a_backup();
    let before = names_in(lab.dir());
    let missing = lab.path("missing.img");
    for more in [args![], args!["--dry-run"]] {
        let mut all = args!["restore", "web1@latest", missing, "--differential"];
        all.extend(more);
        lab.run(all)
            .code(1)
            .says(&["missing.img does not exist", "without --differential"]);
    }
    lab.run(args!["restore", "web1@latest", "-", "--differential"])
        .code(2)
        .says(&["standard output has no disk to compare with"]);
    lab.run(args!["restore", "web1@latest", "--create-in", "vg0", "--differential"])
        .code(2)
        .says(&["--create-in", "--differential"]);
    write_noise(&lab.path("small.img"), 7, SIZE - 777);
    let device = LoopDevice::of_file(&lab.path("small.img"));
    for more in [args!["--force"], args!["--dry-run"]] {
        let mut all = args!["restore", "web1@latest", device.node, "--differential"];
        all.extend(more);
        lab.run(all).code(1).says(&[&SIZE.to_string(), "nothing was written"]);
    }
    device.detach();
    assert_is_noise(&lab.path("small.img"), 7, SIZE - 777);
    fs::remove_file(lab.path("small.img")).expect("removes");
    assert_eq!(names_in(lab.dir()), before);
}

#[test]
fn a_qcow2_image_is_the_disk_as_qemu_reads_it() {
    let lab = Lab::new();
    let disk = Disk::of_a_server(&lab, "server.img");
    disk.change(&lab, 2, |root| {
        fs::write(root.join("media"), noise_bytes(1, 9 * MIB)).expect("writes")
    });
    // Data that needs the second and the fourth L2 table, but not the third.
    let size = 3 * 512 * MIB + 512;
    tool("truncate", args![format!("--size={size}"), disk.path]);
    write_at(&disk.path, 600 * MIB + 5, b"data");
    write_at(&disk.path, size - 4, b"data");
    lab.backup("web1", &disk.path);
    let (raw, out) = (lab.path("out.img"), lab.path("out.qcow2"));
    lab.ok(args!["restore", "web1@latest/vda", raw]);
    let said = lab
        .run(args!["restore", "web1@latest/vda", out, "--format", "qcow2"])
        .done();
    let _ = said.tells(&["restored to", "(qcow2)"]);
    let check = tool("qemu-img", args!["check", "-f", "qcow2", out]);
    assert!(check.contains("No errors were found"), "{check}");
    tool("qemu-img", args!["compare", "-f", "raw", "-F", "qcow2", raw, out]);
    let info: serde_json::Value =
        serde_json::from_str(&tool("qemu-img", args!["info", "--output", "json", out])).expect("JSON");
    assert_eq!(u64_of(&info, "virtual-size"), size);
    assert_eq!(str_of(&info, "format"), "qcow2");
    assert!(u64_of(&info, "actual-size") <= fs::metadata(&raw).expect("is there").blocks() * 512 + MIB);
    let beside = names_in(lab.dir());
    assert!(!beside.iter().any(|name| name.contains(".vbk-")), "{beside:?}");
}

#[test]
fn qcow2_is_for_files_only() {
    let lab = lab_with_a_backup();
    let backing = lab.path("backing.img");
    write_noise(&backing, 7, 48 * MIB);
    let device = LoopDevice::of_file(&backing);
    lab.run(args![
        "restore",
        "web1@latest",
        device.node,
        "--format",
        "qcow2",
        "--force"
    ])
    .code(1)
    .says(&["is a block device", "omit --format"]);
    device.detach();
    assert_is_noise(&backing, 7, 48 * MIB);
    lab.run(args!["restore", "web1@latest", "-", "--format", "qcow2"])
        .code(2)
        .says(&["--format qcow2 needs a file"]);
    for with in [args!["--create-in", "vg0"], args![backing, "--differential"]] {
        let mut all = args!["restore", "web1@latest", "--format", "qcow2"];
        all.extend(with);
        lab.run(all).code(2).says(&["--format"]);
    }
    lab.run(args![
        "restore",
        "web1@latest",
        backing,
        "--format",
        "qcow2",
        "--force",
        "--skip-damaged=keep"
    ])
    .code(2)
    .says(&["no old data to keep"]);
    lab.run(args!["restore", "web1@latest", backing, "--format", "qcow2"])
        .code(1)
        .says(&["backing.img", "exists", "--force"]);
    assert_is_noise(&backing, 7, 48 * MIB);
    lab.ok(args!["restore", "web1@latest", backing, "--format", "qcow2", "--force"]);
    // Rounded up to sectors.
    let info: serde_json::Value =
        serde_json::from_str(&tool("qemu-img", args!["info", "--output", "json", backing])).expect("JSON");
    assert_eq!(u64_of(&info, "virtual-size"), SIZE.next_multiple_of(512));
    assert!(size_of(&backing) < 28 * MIB);
}
