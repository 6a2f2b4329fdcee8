//! A guest that lost one of its disks: a backup warns once, and the rules keep the last backup with its data.

use std::ffi::OsString;
use std::fs::{self, File};

use crate::support::bytes::{MIB, assert_is_noise, write_noise};
use crate::support::lab::{Lab, str_of};

/// A guest with two disks that was backed up twice. Returns the names of the backups.
fn two_backups(lab: &Lab) -> [String; 2] {
    write_noise(&lab.path("a"), 1, 8 * MIB);
    write_noise(&lab.path("b"), 2, 9 * MIB);
    [0, 1].map(|_| str_of(&lab.json(words(lab, &["vda=a", "vdb=b"])), "backup"))
}

/// `backup db1` of these disks of the lab's directory.
fn words(lab: &Lab, disks: &[&str]) -> Vec<OsString> {
    let mut words = args!["backup", "db1"];
    for disk in disks {
        let (name, file) = disk.split_once('=').expect("NAME=FILE");
        words.extend(args![format!("{name}={}", lab.path(file).display())]);
    }
    words
}

/// Applies a rule that keeps one backup, as a look and then in earnest, and expects that the second of `made` stays besides the newest.
fn assert_the_last_with_data_stays(lab: &Lab, made: &[String; 2], why: &str) {
    let newest = lab.listed().pop().expect("a backup");
    for dry_run in [args!["--dry-run"], args![]] {
        let mut forget = args!["forget", "db1", "--keep-last", "1"];
        forget.extend(dry_run);
        let stays = format!("{} stays: disk vdb {why}", made[1]);
        lab.run(forget)
            .done()
            .tells(&[&stays, "vbk forget db1@", "--changed-too"]);
    }
    assert_eq!(lab.listed(), [made[1].clone(), newest.clone()]);
    let said = lab.ok(args!["forget", "db1", "--keep-last", "1", "--dry-run"]);
    assert!(said.contains("newest one with the data of disk vdb"), "{said}");
    lab.ok(args!["prune", "--max-unused", "0%"]);
    let out = lab.path("out");
    lab.ok(args!["restore", format!("{}/vdb", made[1]), out]);
    assert_is_noise(&out, 2, 9 * MIB);
    // Forgotten by its name, it is gone for good.
    lab.ok(args!["forget", made[1]]);
    lab.ok(args!["forget", "db1", "--keep-last", "1"]);
    assert_eq!(lab.listed(), [newest]);
}

#[test]
fn one_name_for_two_disks_is_refused_before_any_disk_is_missed() {
    let lab = Lab::new();
    two_backups(&lab);
    let said = lab.run(words(&lab, &["vda=a", "vda=b"])).code(2);
    assert!(said.stderr.starts_with("vbk: vda is named twice"), "{said}");
}

#[test]
fn a_disk_without_data_any_more_is_a_warning_and_its_last_data_stay() {
    let lab = Lab::new();
    let made = two_backups(&lab);
    let zeros = File::create(lab.path("zeros")).expect("makes");
    zeros.set_len(9 * MIB).expect("sizes");
    drop(zeros);
    let night = || lab.run(words(&lab, &["vda=a", "vdb=zeros"]));
    let had = format!("disk vdb has no data any more, but had 9 MiB in {}", made[1]);
    night().code(3).says(&[&had]);
    night().done();
    lab.ok(args!["forget", "db1@latest"]);
    assert_the_last_with_data_stays(&lab, &made, "has 9 MiB of data in it, but none in the latest one");
}

#[test]
fn a_disk_that_is_left_out_is_a_warning_once_and_its_last_data_stay() {
    let lab = Lab::new();
    let made = two_backups(&lab);
    let config = lab.path("config.toml");
    let disks = ["a", "b"].map(|file| lab.path(file).display().to_string());
    let text = format!(
        "[guest.db1]\ndisks = {{ vda = '{}', vdb = '{}' }}\nskip-disks = ['vdb']\n",
        disks[0], disks[1]
    );
    fs::write(&config, text).expect("writes");
    let night = || lab.run(args!["--config-file", config, "backup", "db1"]);
    let gone = format!("disk vdb of the latest backup ({}) is not in this one", made[1]);
    night().code(3).says(&[&gone]);
    lab.ok(args!["forget", "db1@latest"]);
    // The same without a configuration.
    lab.run(words(&lab, &["vda=a"])).code(3).says(&[&gone]);
    night().done();
    lab.ok(args!["forget", "db1@latest"]);
    assert_the_last_with_data_stays(&lab, &made, "is in it, but not in the latest one");
}

#[test]
fn a_disk_of_no_bytes_is_a_warning_and_its_last_data_stay() {
    let lab = Lab::new();
    let made = two_backups(&lab);
    fs::write(lab.path("none"), "").expect("writes");
    lab.run(words(&lab, &["vda=a", "vdb=none"]))
        .code(3)
        .says(&["disk vdb", "has 0 B, but had 9 MiB in the latest backup"]);
    assert_the_last_with_data_stays(&lab, &made, "has 9 MiB of data in it, but none in the latest one");
}
