//! Disks that are missing, are none, or change while they are read: the backup fails, is not listed, and harms no other.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::path::Path;

use nix::sys::signal::Signal;

use crate::support::bytes::{MIB, make_hole, write_at, write_noise};
use crate::support::disk::LoopDevice;
use crate::support::lab::Lab;
use crate::support::run::Said;

fn lab_with_a_disk() -> Lab {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, 2 * MIB);
    lab
}

#[track_caller]
fn refused(lab: &Lab, args: Vec<OsString>, words: &[&str]) -> Said {
    let mut all = args!["backup"];
    all.extend(args);
    let said = lab.run(all).says(words);
    assert!(matches!(said.status.code(), Some(1 | 2)), "{said}");
    assert!(said.stdout.is_empty(), "{said}");
    assert!(lab.listed().is_empty(), "nothing is half-made");
    said
}

#[test]
fn a_source_that_is_not_a_disk_is_named() {
    let lab = lab_with_a_disk();
    let (disk, nowhere, dir) = (lab.path("disk.img"), lab.path("nowhere.img"), lab.subdir("directory"));
    refused(&lab, args!["web1", nowhere], &["nowhere.img", "no such file"]).code(1);
    refused(&lab, args!["web1", dir], &["directory"]).code(1);
    refused(&lab, args!["web1", "/dev/null"], &["/dev/null", "character device"]).code(1);
    // All disks are looked at before the first is read.
    let named = |name: &str, path: &Path| format!("{name}={}", path.display());
    refused(
        &lab,
        args!["web1", named("vda", &disk), named("vdb", &nowhere)],
        &["nowhere.img"],
    )
    .code(1);
    refused(&lab, args!["web1"], &["no guest web1 is known", "name its disks"]).code(1);
    lab.ok(args!["backup", "web1", disk]);
}

#[test]
fn disks_need_distinct_names() {
    let lab = lab_with_a_disk();
    let disk = lab.path("disk.img");
    let named = |name: &str| format!("{name}={}", disk.display());
    refused(&lab, args!["web1", named("vda"), named("vda")], &["vda", "twice"]);
    refused(&lab, args!["web1", disk, disk], &["name"]);
    for name in ["..", ".", "a/b", "a\nb", "-a", "a b"] {
        refused(&lab, args!["web1", named(name)], &["disk"]);
    }
}

#[test]
fn guest_names_that_could_leave_a_directory_are_refused() {
    let lab = lab_with_a_disk();
    for name in [
        "..",
        ".",
        "a/b",
        "/etc",
        "../x",
        "a\nb",
        "a\u{7}b",
        "a b",
        "a@b",
        "",
        &"x".repeat(300),
    ] {
        let said = refused(&lab, args!["--", name, lab.path("disk.img")], &["name"]);
        assert!(
            !said.stderr.contains('\u{7}'),
            "control characters are not sent to the terminal: {said}"
        );
    }
    assert!(!lab.dir().parent().expect("a parent").join("x").exists());
}

/// Stops a backup in the middle of its disk, does something to the disk, and lets it go on.
#[track_caller]
fn meanwhile(lab: &Lab, harm: impl FnOnce(&Path)) -> Said {
    let disk = lab.path("large.img");
    write_noise(&disk, 2, 320 * MIB);
    let mut running = lab.start(args!["backup", "web1", disk, "--compression", "none"]);
    assert!(running.wait_until_read(48 * MIB), "the backup ended early");
    running.signal(Signal::SIGSTOP);
    harm(&disk);
    running.signal(Signal::SIGCONT);
    let said = running.wait().code(1).says(&["large.img"]);
    assert!(lab.listed().is_empty());
    said
}

#[test]
fn a_disk_that_shrinks_while_it_is_read_is_no_backup() {
    let lab = Lab::new();
    let said = meanwhile(&lab, |disk| {
        let file = OpenOptions::new().write(true).open(disk).expect("opens");
        file.set_len(100 * MIB).expect("shrinks");
    });
    said.says(&["smaller"]);
    // The next run takes it as it is now.
    lab.backup("web1", &lab.path("large.img"));
    lab.ok(args!["verify"]);
}

#[test]
fn a_disk_that_vanishes_while_it_is_read_is_no_backup() {
    let lab = Lab::new();
    meanwhile(&lab, |disk| fs::remove_file(disk).expect("removes")).says(&["vanished"]);
}

#[test]
fn a_disk_that_is_replaced_while_it_is_read_is_no_backup() {
    let lab = Lab::new();
    meanwhile(&lab, |disk| {
        fs::rename(disk, lab.path("old.img")).expect("renames");
        write_noise(disk, 3, MIB);
    });
}

/// The first bytes of images and archives, and words of the advice for each.
const CONTAINERS: [(&str, usize, &[u8], &str); 5] = [
    ("web1.qcow2", 0, b"QFI\xfb\0\0\0\x03", "qemu-img convert -O raw"),
    ("web1.vmdk", 0, b"KDMV\x01\0\0\0", "qemu-img convert -O raw"),
    ("web1.vdi", 0x40, &[0x7f, 0x10, 0xda, 0xbe], "qemu-nbd -r -c"),
    ("web1.img.gz", 0, &[0x1f, 0x8b, 0x08, 0], "gzip -dk"),
    ("web1.ova", 257, b"ustar\0", "tar -xf"),
];

#[test]
fn a_container_format_is_refused_as_a_raw_disk() {
    let lab = Lab::new();
    for (name, at, mark, advice) in CONTAINERS {
        let disk = lab.path(name);
        make_hole(&disk, 2 * MIB);
        write_at(&disk, at as u64, mark);
        refused(&lab, args!["web1", disk], &[name, "not a raw disk", advice, "--raw"]).code(1);
    }
    // One that has its mark at the end.
    let disk = lab.path("fixed.vhd");
    write_noise(&disk, 1, 2 * MIB);
    write_at(&disk, 2 * MIB - 512, b"conectix");
    refused(&lab, args!["web1", disk], &["vhd image", "qemu-img"]).code(1);
    lab.ok(args!["backup", "web1", disk, "--raw"]);
}

#[test]
fn the_configuration_refuses_the_same_sources_as_the_command_line() {
    let lab = Lab::new();
    let disk = lab.path("web1.qcow2");
    make_hole(&disk, 2 * MIB);
    write_at(&disk, 0, b"QFI\xfb");
    let etc = tempfile::tempdir().expect("a directory");
    let config = etc.path().join("config.toml");
    let write = |raw: &str| {
        let text = format!("[guest.web1]\ndisks = {{ vda = \"{}\" }}\n{raw}", disk.display());
        fs::write(&config, text).expect("writes");
    };
    write("");
    refused(&lab, args!["web1", "--config-file", config], &["qcow2", "raw = true"]).code(1);
    lab.run(args!["backup", "--all", "--config-file", config])
        .code(1)
        .says(&["qcow2"]);
    assert!(lab.listed().is_empty());
    write("raw = true\n");
    lab.ok(args!["backup", "web1", "--config-file", config]);
}

#[test]
fn a_device_that_looks_like_a_container_is_backed_up_with_a_warning() {
    let lab = Lab::new();
    let disk = lab.path("disk.img");
    make_hole(&disk, 2 * MIB);
    // As a guest can write to its own disk.
    write_at(&disk, 0, b"QFI\xfb");
    let device = LoopDevice::of_file(&disk);
    lab.run(args!["backup", "web1", device.node])
        .code(3)
        .says(&["qcow2", "--raw"]);
    lab.ok(args!["backup", "web1", device.node, "--raw"]);
    device.detach();
    assert_eq!(lab.listed().len(), 2);
}
