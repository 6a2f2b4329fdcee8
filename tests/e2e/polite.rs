//! Read limits, on the command line and while a backup runs.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::bytes::{MIB, write_noise};
use crate::support::kernel;
use crate::support::lab::Lab;

#[test]
fn a_limited_backup_keeps_the_rate_and_reports_the_limit() {
    let lab = Lab::new();
    let disk = lab.path("disk.img");
    write_noise(&disk, 1, 16 * MIB);
    let clock = Instant::now();
    let said = lab.run(args![
        "backup",
        "web1",
        disk,
        "--read-limit",
        "50%",
        "--device-speed",
        "16MiB/s"
    ]);
    // All reads but the last are paid for: 15 MiB at 8 MiB/s.
    assert!(clock.elapsed() > Duration::from_millis(1800), "{:?}", clock.elapsed());
    let text = said.done().text();
    let told = "web1: read limit 8.4 MB/s: 50% of 16.8 MB/s (--device-speed)\n";
    assert!(text.starts_with(told), "{text}");
}

#[test]
fn a_limited_backup_can_be_interrupted() {
    let lab = Lab::new();
    let disk = lab.path("disk.img");
    write_noise(&disk, 1, 16 * MIB);
    // With what it reads of its own that is after the first read of the disk, and long before the last.
    let mut running = lab.start(args!["backup", "web1", disk, "--read-limit", "500K"]);
    assert!(running.wait_until_read(3 * MIB));
    let clock = Instant::now();
    running.signal(Signal::SIGTERM);
    running.wait().code(130);
    // The whole disk takes half a minute.
    assert!(clock.elapsed() < Duration::from_secs(15));
    assert!(lab.listed().is_empty());
}

#[test]
fn a_wrong_limit_is_refused_with_a_valid_example() {
    let lab = Lab::new();
    let disk = lab.path("disk.img");
    write_noise(&disk, 1, MIB);
    for bad in ["fast", "0%", "101%", "0", "5X"] {
        let backup = lab.run(args!["backup", "web1", disk, "--read-limit", bad]);
        backup.code(2).says(&["60%", "200MB/s"]);
        lab.run(args!["limit", bad]).code(2).says(&["60%", "default"]);
    }
}

/// A run as `vbk limit` sees it.
struct FakeRun {
    directory: PathBuf,
    guest: String,
    _lock: File,
}

impl FakeRun {
    fn new(lab: &Lab) -> Self {
        let guest = "web1".to_owned();
        let directory = lab.runtime_dir().join("runs/0123456789ab");
        fs::create_dir_all(&directory).expect("makes a directory");
        let lock = File::create(directory.join("lock")).expect("makes a lock");
        lock.lock().expect("locks");
        let json = format!(
            r#"{{"command": "backup {guest}", "pid": 1, "since": "2026-11-21T02:10:30Z", "guests": ["{guest}"]}}"#
        );
        fs::write(directory.join("run.json"), json).expect("writes");
        Self {
            directory,
            guest,
            _lock: lock,
        }
    }
}

impl Drop for FakeRun {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn the_limit_command_changes_only_running_backups() {
    let lab = Lab::without_repo();
    let run = FakeRun::new(&lab);
    let file = run.directory.join("limit");
    let text = lab.ok(args!["limit", run.guest, "50MB/s"]);
    assert!(text.contains(&run.guest) && text.contains("50 MB/s"), "{text}");
    assert_eq!(
        fs::read_to_string(&file).expect("reads"),
        format!("{} 50000000B\n", run.guest)
    );
    let listed = lab.ok(args!["limit"]);
    assert!(listed.contains("read limit is the one that it began with"), "{listed}");
    assert!(listed.contains(&format!("; of {} 50 MB/s", run.guest)), "{listed}");
    let listed = lab.json(args!["limit"]);
    assert_eq!(
        listed["runs"][0]["guests"][&run.guest]["read_limit_bytes_per_sec"],
        50_000_000
    );
    let answer = lab.json(args!["limit", run.guest, "default"]);
    assert_eq!(answer["runs"][0]["default"], true);
    assert_eq!(fs::read_to_string(&file).expect("reads"), "");
    let guest = run.guest.clone();
    drop(run);
    let said = lab.run(args!["limit", guest, "none"]).code(1);
    assert!(said.text().contains("nothing was changed"), "{said}");
}

#[test]
fn the_next_backup_removes_the_control_group_of_a_killed_one() {
    let lab = Lab::new();
    let disk = lab.path("disk.img");
    write_noise(&disk, 1, 16 * MIB);
    let device = crate::support::disk::LoopDevice::of_file(&disk);
    let mut running = lab.start(args!["backup", "web1", device.node, "--read-limit", "500K"]);
    assert!(running.wait_until_read(3 * MIB));
    let pid = running.pid();
    running.signal(Signal::SIGKILL);
    running.wait();
    lab.ok(args!["backup", "web1", device.node, "--read-limit", "1G", "--quiet"]);
    let left: Vec<_> = kernel::control_groups()
        .into_iter()
        .filter(|group| group.ends_with(format!("vbk-{pid}")))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    device.detach();
}
