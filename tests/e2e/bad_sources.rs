//! Disks that are missing, are none, or change while they are read: the backup fails, is not listed, and harms no other.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::path::Path;

use nix::sys::signal::Signal;

use crate::support::bytes::{MIB, write_noise};
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
fn what_is_no_disk_is_named() {
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
fn disks_need_names_of_their_own() {
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
