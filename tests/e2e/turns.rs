//! Long work on a repository and backups that start meanwhile: neither is lost, and the backup does not wait.

use nix::sys::signal::Signal;

use crate::damage::Place;
use crate::support::bytes::{KIB, MIB, noise_bytes, write_noise};
use crate::support::lab::{Lab, str_of};
use crate::support::run::Running;

const LARGE: u64 = 256 * MIB;

/// A repository with a backup of a large disk, a smaller disk, and a repair that is stopped while it reads the backup.
fn lab_with_a_stopped_repair() -> (Lab, Running) {
    let lab = Lab::new();
    write_noise(&lab.path("large.img"), 1, LARGE);
    lab.ok(args![
        "backup",
        "large1",
        lab.path("large.img"),
        "--compression",
        "none"
    ]);
    write_noise(&lab.path("disk.img"), 2, 8 * MIB);
    let mut repair = lab.start(args!["repair"]);
    assert!(repair.wait_until_read(48 * MIB), "the repair ended early");
    repair.signal(Signal::SIGSTOP);
    (lab, repair)
}

#[test]
fn a_backup_does_not_wait_for_a_repair_that_reads() {
    let (lab, mut repair) = lab_with_a_stopped_repair();
    lab.ok(args!["backup", "web1", lab.path("disk.img"), "--no-wait"]);
    assert!(!repair.has_ended(), "it is stopped");
    repair.signal(Signal::SIGCONT);
    repair.wait().done();
    assert_eq!(lab.listed().len(), 2);
    lab.ok(args!["verify"]);
}

#[test]
fn a_killed_repair_leaves_a_repository_that_is_as_good_as_before() {
    let (lab, repair) = lab_with_a_stopped_repair();
    repair.signal(Signal::SIGKILL);
    drop(repair);
    lab.ok(args!["backup", "web1", lab.path("disk.img"), "--no-wait"]);
    lab.ok(args!["verify"]);
    lab.ok(args!["repair"]);
}

#[test]
fn a_backup_that_waits_with_a_prune_is_done_when_the_prune_is() {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, 8 * MIB);
    lab.backup("web1", &lab.path("disk.img"));
    let old = lab.listed().remove(0);
    write_noise(&lab.path("disk.img"), 2, 8 * MIB);
    lab.backup("web1", &lab.path("disk.img"));
    lab.ok(args!["forget", old]);
    write_noise(&lab.path("large.img"), 3, LARGE);
    let mut first = lab.start(args![
        "backup",
        "large1",
        lab.path("large.img"),
        "--compression",
        "none"
    ]);
    assert!(first.wait_until_read(48 * MIB), "the backup ended early");
    first.signal(Signal::SIGSTOP);
    let mut prune = lab.start(args!["prune", "--max-unused", "0"]);
    prune.wait_until_says("waiting for");
    let mut second = lab.start(args!["backup", "web2", lab.path("disk.img")]);
    second.wait_until_says("waiting for");
    first.signal(Signal::SIGCONT);
    first.wait().done();
    let said = prune.wait().code(0);
    assert!(said.text().contains("8 unused blocks (8 MiB)"), "{said}");
    assert_eq!(lab.listed().len(), 3, "the prune took the turn of the backup");
    second.wait().code(0);
    lab.ok(args!["verify"]);
}

#[test]
fn a_protection_that_waits_goes_before_a_forget_that_waits_longer() {
    let lab = Lab::new();
    for seed in [1, 2] {
        write_noise(&lab.path("disk.img"), seed, MIB);
        lab.backup("web1", &lab.path("disk.img"));
    }
    let listed = lab.listed();
    write_noise(&lab.path("large.img"), 3, LARGE);
    let backup = args!["backup", "large1", lab.path("large.img"), "--compression", "none"];
    let mut backup = lab.start(backup);
    assert!(backup.wait_until_read(48 * MIB), "the backup ended early");
    backup.signal(Signal::SIGSTOP);
    let mut forget = lab.start(args!["forget", "web1", "--keep-last", "1"]);
    forget.wait_until_says("waiting for");
    let mut protect = lab.start(args!["protect", listed[0]]);
    protect.wait_until_says("lets `vbk protect` go first");
    backup.signal(Signal::SIGCONT);
    backup.wait().code(0);
    protect.wait().code(0);
    forget.wait().code(0);
    let left = lab.listed();
    assert!(listed.iter().all(|backup| left.contains(backup)), "{listed:?} {left:?}");
}

/// A repository with a damaged backup of `web1`, a backup of `busy1` that is stopped in the middle of its work, and what a
/// verification found meanwhile.
fn lab_with_a_late_result() -> (Lab, Running) {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, 8 * MIB);
    lab.ok(args!["backup", "web1", lab.path("disk.img"), "--compression", "none"]);
    let content = noise_bytes(1, 4 * MIB);
    let in_page = (3 * MIB + 100 * KIB) as usize;
    Place::of(lab.repo(), &content[in_page..in_page + 32]).flip();
    write_noise(&lab.path("large.img"), 2, LARGE);
    let mut writer = lab.start(args!["backup", "busy1", lab.path("large.img"), "--compression", "none"]);
    assert!(writer.wait_until_read(48 * MIB), "the backup ended early");
    writer.signal(Signal::SIGSTOP);
    lab.run(args!["verify"])
        .code(4)
        .tells(&["backup busy1", "records the result"]);
    assert!(!is_damaged(&lab), "it can't be recorded yet");
    (lab, writer)
}

/// Returns whether `list` shows the backup of `web1` as damaged.
fn is_damaged(lab: &Lab) -> bool {
    let listed = lab.json(args!["list"]);
    let backups = listed["backups"].as_array().expect("a list");
    let web = backups
        .iter()
        .find(|backup| str_of(backup, "backup").starts_with("web1@"))
        .expect("is there");
    web["damaged"].is_string()
}

#[test]
fn what_a_verification_finds_while_a_backup_runs_is_recorded_at_its_end() {
    let (lab, writer) = lab_with_a_late_result();
    writer.signal(Signal::SIGCONT);
    writer.wait().code(0);
    assert!(is_damaged(&lab));
    // The next backup stores again what is condemned.
    lab.ok(args!["backup", "web1", lab.path("disk.img"), "--compression", "none"]);
    lab.ok(args!["verify"]);
    assert!(!is_damaged(&lab));
}

#[test]
fn what_a_verification_finds_while_a_backup_runs_outlives_that_backup() {
    let (lab, writer) = lab_with_a_late_result();
    writer.signal(Signal::SIGKILL);
    drop(writer);
    assert!(!is_damaged(&lab), "a reader records nothing");
    // This backup knows already what is condemned.
    lab.ok(args!["backup", "web1", lab.path("disk.img"), "--compression", "none"]);
    assert!(is_damaged(&lab));
    lab.ok(args!["verify"]);
    assert!(!is_damaged(&lab));
}
