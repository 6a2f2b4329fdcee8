//! Backups that are killed or interrupted at any moment: what was complete stays, what was not is never seen.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::bytes::{MIB, assert_is_noise, write_noise};
use crate::support::lab::{Lab, VBK, u64_of};
use crate::support::run::Running;

const SIZE: u64 = 320 * MIB;

fn start_backup(lab: &Lab) -> Running {
    lab.start(args![
        "--json",
        "backup",
        "web1",
        lab.path("disk.img"),
        "--compression",
        "none"
    ])
}

fn assert_restores(lab: &Lab, backup: &str, seed: u64) {
    let out = lab.path("out.img");
    lab.ok(args!["restore", backup, out, "--force"]);
    assert_is_noise(&out, seed, SIZE);
}

#[test]
fn a_backup_killed_at_any_moment_leaves_the_repository_whole() {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 0, SIZE);
    let first = start_backup(&lab).wait().done().json();
    assert_eq!(u64_of(&first, "new_bytes"), SIZE);
    let mut seeds = vec![0];
    let mut seed = 1;
    write_noise(&lab.path("disk.img"), seed, SIZE);
    // How much of the disk was read when the kill comes, and how long after that: the last ones hit the flush, the commit
    // and the publication of the view.
    let moments = [
        (0, 0),
        (0, 10),
        (5, 0),
        (20, 0),
        (45, 0),
        (70, 0),
        (95, 0),
        (100, 0),
        (100, 15),
        (100, 60),
        (100, 150),
        (100, 300),
    ];
    for (percent, then_ms) in moments {
        let mut running = start_backup(&lab);
        running.wait_until_read(SIZE * percent / 100);
        std::thread::sleep(Duration::from_millis(then_ms));
        let _ = running.has_ended() || {
            running.signal(Signal::SIGKILL);
            true
        };
        let ended = running.wait().status.success();
        let listed = lab.listed();
        // Killed after its commit it is complete, though it could not say so; killed before it was shown to readers it
        // appears with the next run.
        let new = listed.len() - seeds.len();
        assert!(
            new <= 2 && (new > 0 || !ended),
            "at {percent} % + {then_ms} ms: {listed:?}"
        );
        lab.ok(args!["verify"]);
        if new > 0 {
            seeds.extend(std::iter::repeat_n(seed, new));
            assert_restores(&lab, "web1@latest", seed);
            seed += 1;
            write_noise(&lab.path("disk.img"), seed, SIZE);
        }
    }
    assert!(lab.listed().len() < moments.len(), "no kill hit anything");
    lab.backup("web1", &lab.path("disk.img"));
    let listed = lab.listed();
    let new = listed.len() - seeds.len();
    assert!((1..=2).contains(&new), "{listed:?}");
    seeds.extend(std::iter::repeat_n(seed, new));
    for (backup, seed) in listed.iter().zip(seeds) {
        assert_restores(&lab, backup, seed);
    }
    lab.ok(args!["verify"]);
}

#[test]
fn an_interrupted_backup_is_not_listed_and_its_blocks_are_reused() {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, SIZE);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut running = start_backup(&lab);
        assert!(running.wait_until_read(SIZE / 2), "the backup ended early");
        running.signal(signal);
        let said = running.wait();
        assert_eq!(said.status.code(), Some(130), "{said}");
        assert!(said.stdout.is_empty(), "{said}");
        assert!(said.stderr.contains("interrupted"), "{said}");
        assert!(lab.listed().is_empty());
    }
    let done = lab.json(args!["backup", "web1", lab.path("disk.img"), "--compression", "none"]);
    let (new, unchanged) = (u64_of(&done, "new_bytes"), u64_of(&done, "unchanged_bytes"));
    assert_eq!(new + unchanged, SIZE, "{done}");
    assert!(unchanged > SIZE / 4, "what the first run stored is found: {done}");
    assert_restores(&lab, "web1@latest", 1);
    lab.ok(args!["verify"]);
}

#[test]
fn killed_backups_do_not_grow_the_repository_without_bound() {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, SIZE);
    let mut sizes = Vec::new();
    for _ in 0..4 {
        let mut running = start_backup(&lab);
        assert!(running.wait_until_read(SIZE * 3 / 4), "the backup ended early");
        running.signal(Signal::SIGKILL);
        running.wait();
        sizes.push(stored_bytes(&lab));
    }
    // Garbage of four runs would be more than twice the disk.
    assert!(*sizes.last().expect("four") < SIZE + SIZE / 2, "{sizes:?}");
    lab.backup("web1", &lab.path("disk.img"));
    assert_restores(&lab, "web1@latest", 1);
    assert!(stored_bytes(&lab) < 2 * SIZE, "{} bytes", stored_bytes(&lab));
}

/// What the repository takes on its file system, hard links counted once.
fn stored_bytes(lab: &Lab) -> u64 {
    let kib = crate::support::tools::tool("du", args!["-sk", lab.files()]);
    let kib: u64 = kib
        .split_whitespace()
        .next()
        .expect("a number")
        .parse()
        .expect("a number");
    kib << 10
}

#[test]
fn a_killed_init_can_be_repeated_or_reports_why_not() {
    for delay_ms in [0, 5, 15, 30] {
        let lab = Lab::without_repo();
        let running = lab.start(args!["init"]);
        std::thread::sleep(Duration::from_millis(delay_ms));
        drop(running);
        lab.wait_for_what_was_killed();
        // Its last step is the file that says what the directory is: with it the repository is whole.
        let whole = lab.repo().join("vbk-repository").exists();
        let said = lab.run(args!["init"]);
        if said.status.code() != Some(0) {
            said.code(1)
                .says(&[if whole { "is already a repository" } else { "not empty" }]);
        }
        if whole {
            lab.ok(args!["list"]);
        }
        // Half a repository is not taken for one, and of one that lacks only that file the rest is not given up.
        let said = lab.run(args!["list"]);
        match said.status.code() {
            Some(0) => {}
            Some(4) => {
                said.code(4).says(&["vbk-repository is damaged or gone", "vbk repair"]);
                lab.ok(args!["repair"]);
                lab.ok(args!["list"]);
            }
            _ => {
                said.code(1).says(&["not a vbk repository"]);
            }
        }
    }
}

#[test]
fn an_interrupted_restore_leaves_no_file() {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, SIZE);
    lab.backup("web1", &lab.path("disk.img"));
    let dir = lab.subdir("restored");
    for signal in [Signal::SIGINT, Signal::SIGHUP] {
        let mut attempts = 0;
        loop {
            let mut running = lab.start(args!["restore", "web1@latest", dir.join("out.img")]);
            let read = running.wait_until_read(SIZE / 8);
            running.signal(signal);
            let said = running.wait();
            if said.status.success() {
                // On a busy machine the restore may be complete before the signal is sent.
                attempts += 1;
                assert!(
                    attempts < 10,
                    "no restore is slow enough to be interrupted; read: {read}"
                );
                std::fs::remove_file(dir.join("out.img")).expect("a complete restore");
                continue;
            }
            said.code(130);
            break;
        }
        let left = crate::support::lab::names_in(&dir);
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_restore_under_nohup_survives_a_hangup() {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, SIZE);
    lab.backup("web1", &lab.path("disk.img"));
    let mut command = Command::new("nohup");
    command.current_dir(lab.dir());
    let out = lab.path("out.img");
    let mut running = lab.start_command(
        command,
        args![VBK, "--repo", lab.place(), "restore", "web1@latest", out],
    );
    assert!(running.wait_until_read(SIZE / 4), "the restore ended early");
    running.signal(Signal::SIGHUP);
    running.wait().code(0);
    assert!(out.exists());
}

#[test]
fn a_new_repository_is_durable_before_its_recovery_key_is_shown() {
    let lab = Lab::without_repo();
    let (trace, key) = (lab.path("trace"), lab.path("key"));
    let deep = lab.path("some/place/repo");
    let mut command = Command::new("strace");
    command.current_dir(lab.dir());
    // Paths of file descriptors, and long lines whole.
    command.args([
        "-f",
        "-y",
        "-s",
        "4096",
        "-e",
        "trace=fsync,fdatasync,write,rename,renameat,renameat2",
        "-o",
    ]);
    let args = args![trace, VBK, "init", "--key-file", key, "--encrypt", "--parents", deep];
    let said = lab.start_command(command, args).wait().code(0);
    assert!(said.text().contains("Recovery key"), "{said}");
    let text = fs::read_to_string(&trace).expect("reads");
    let lines: Vec<_> = text.lines().collect();
    let at = |what: &dyn Fn(&str) -> bool| lines.iter().position(|line| what(line));
    let shown = at(&|line| line.contains("write(1<") && line.contains("Recovery key")).expect("is shown");
    let last_sync = |path: &Path| {
        let name = format!("<{}>", path.display());
        let synced = |line: &&str| line.contains("fsync(") && line.contains(&name) && !line.contains("= -1");
        lines[..shown].iter().rposition(synced)
    };
    // The directories that were made, each in the one above it.
    for directory in [lab.dir(), &lab.path("some"), &lab.path("some/place")] {
        assert!(
            last_sync(directory).is_some(),
            "{} was not synced: {text}",
            directory.display()
        );
    }
    // The names in the repository, the last of which is the marker's.
    let marker = at(&|line| line.contains("rename") && line.contains("/vbk-repository\"")).expect("is renamed");
    assert!(last_sync(&deep).is_some_and(|synced| synced > marker), "{text}");
    for directory in ["keys", "views", "store"] {
        assert!(
            last_sync(&deep.join(directory)).is_some(),
            "{directory} was not synced: {text}"
        );
    }
}
