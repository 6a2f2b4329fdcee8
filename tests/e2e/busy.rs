//! Several runs at once: writers wait for each other, readers wait for nobody, and a mount that is used is not torn away.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::bytes::{MIB, assert_is_noise, assert_same, write_noise};
use crate::support::disk::Disk;
use crate::support::kernel;
use crate::support::lab::{Lab, names_in, str_of, u64_of};
use crate::support::run::Running;
use crate::support::tools::{tool, wait_until};

const LARGE: u64 = 256 * MIB;

/// A repository with a backup of `web1`, and a backup of `busy1` that is stopped in the middle of its work.
fn lab_with_a_stopped_writer() -> (Lab, Running) {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, 8 * MIB);
    lab.backup("web1", &lab.path("disk.img"));
    write_noise(&lab.path("large.img"), 2, LARGE);
    let mut writer = lab.start(args!["backup", "busy1", lab.path("large.img"), "--compression", "none"]);
    assert!(writer.wait_until_read(48 * MIB), "the backup ended early");
    writer.signal(Signal::SIGSTOP);
    (lab, writer)
}

#[test]
fn a_second_writer_with_no_wait_names_the_first() {
    let (lab, writer) = lab_with_a_stopped_writer();
    let said = lab
        .run(args!["backup", "web2", lab.path("disk.img"), "--no-wait"])
        .code(75);
    said.says(&[
        "backup busy1",
        &writer.pid().to_string(),
        lab.repo().to_str().expect("UTF-8"),
    ]);
    writer.signal(Signal::SIGCONT);
    writer.wait().done();
    assert_eq!(lab.listed().len(), 2);
}

#[test]
fn a_second_writer_waits_for_the_first_and_then_works() {
    let (lab, writer) = lab_with_a_stopped_writer();
    let mut second = lab.start(args!["backup", "web2", lab.path("disk.img")]);
    second.wait_until_says("waiting for");
    assert!(!second.has_ended(), "it waits");
    assert_eq!(lab.listed().len(), 1);
    writer.signal(Signal::SIGCONT);
    writer.wait().done();
    // While it waits it says for whom, which is no failure.
    second.wait().code(0);
    let mut guests: Vec<_> = lab
        .listed()
        .iter()
        .map(|name| name.split('@').next().unwrap_or("").to_owned())
        .collect();
    guests.dedup();
    assert_eq!(guests, ["busy1", "web1", "web2"]);
    lab.ok(args!["verify"]);
}

#[test]
fn a_waiting_writer_continues_when_the_first_is_killed() {
    let (lab, writer) = lab_with_a_stopped_writer();
    let mut second = lab.start(args!["backup", "web2", lab.path("disk.img")]);
    second.wait_until_says("waiting for");
    writer.signal(Signal::SIGKILL);
    drop(writer);
    second.wait().code(0);
    assert_eq!(lab.listed().len(), 2);
    lab.ok(args!["verify"]);
}

#[test]
fn a_waiting_writer_can_be_interrupted() {
    let (lab, writer) = lab_with_a_stopped_writer();
    let mut second = lab.start(args!["backup", "web2", lab.path("disk.img")]);
    second.wait_until_says("waiting for");
    assert!(!second.has_ended(), "it waits");
    second.signal(Signal::SIGINT);
    let said = second.wait();
    assert_eq!(said.status.code(), Some(130), "{said}");
    writer.signal(Signal::SIGCONT);
    writer.wait().done();
    assert_eq!(lab.listed().len(), 2);
}

#[test]
fn readers_work_while_a_backup_runs() {
    let (lab, writer) = lab_with_a_stopped_writer();
    assert_eq!(lab.listed().len(), 1, "what is not complete is not listed");
    let out = lab.path("out.img");
    lab.ok(args!["restore", "web1@latest", out]);
    assert_is_noise(&out, 1, 8 * MIB);
    lab.ok(args!["verify"]);
    let dir = lab.mount("images");
    assert_eq!(names_in(&dir), ["web1"]);
    assert_is_noise(&dir.join("web1/latest/vda.img"), 1, 8 * MIB);
    writer.signal(Signal::SIGCONT);
    writer.wait().done();
    assert!(wait_until(Duration::from_secs(3), || names_in(&dir) == ["busy1", "web1"]));
    assert_is_noise(&dir.join("busy1/latest/vda.img"), 2, LARGE);
    lab.umount(&dir);
}

#[test]
fn backups_run_while_a_mount_and_a_restore_are_read() {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, 64 * MIB);
    lab.backup("web1", &lab.path("disk.img"));
    let dir = lab.mount("images");
    let first = dir.join("web1").join(&names_in(&dir.join("web1"))[0]).join("vda.img");
    let restore = lab.start(args!["restore", "web1@latest", lab.path("out.img")]);
    restore.signal(Signal::SIGSTOP);
    for seed in 2..5 {
        write_noise(&lab.path("disk.img"), seed, 64 * MIB);
        lab.backup("web1", &lab.path("disk.img"));
    }
    restore.signal(Signal::SIGCONT);
    restore.wait().done();
    assert_is_noise(&first, 1, 64 * MIB);
    assert_eq!(lab.listed().len(), 4);
    lab.umount(&dir);
}

#[test]
fn unread_views_are_removed() {
    let lab = Lab::new();
    let backup = |seed| {
        write_noise(&lab.path("disk.img"), seed, MIB);
        lab.backup("web1", &lab.path("disk.img"));
    };
    backup(1);
    // A reader that is killed holds nothing for ever.
    let dir = lab.subdir("images");
    let pid = u64_of(&lab.json(args!["mount", dir]), "pid");
    let pid = i32::try_from(pid).expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).expect("kills");
    assert!(wait_until(Duration::from_secs(5), || !kernel::process_exists(pid)));
    lab.umount(&dir);
    (2..8).for_each(backup);
    let left = names_in(&lab.repo().join("views"));
    assert!(left.len() <= 5, "{left:?}");
}

/// A process that stands in a directory, and nothing else.
struct Inside(Child);

impl Inside {
    fn of(dir: &Path) -> Self {
        let child = Command::new("sleep").arg("1000").current_dir(dir).spawn();
        Self(child.expect("runs sleep"))
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lab_with_files() -> (Lab, Disk) {
    let lab = Lab::new();
    let disk = Disk::partitioned(lab.path("disk.img"), 40, "label: gpt\nsize=16MiB\nsize=16MiB\n");
    for part in [1, 2] {
        disk.format(part, "mkfs.ext4");
        disk.change(&lab, part, |root| {
            fs::write(root.join("name"), "hello").expect("writes")
        });
    }
    lab.backup("web1", &disk.path);
    (lab, disk)
}

#[test]
fn a_busy_image_mount_is_not_unmounted() {
    let (lab, disk) = lab_with_files();
    let dir = lab.mount("images");
    let inside = Inside::of(&dir.join("web1/latest"));
    let said = lab
        .run(args!["umount", dir])
        .says(&[dir.to_str().expect("UTF-8"), "sleep", &inside.pid(), "--lazy"]);
    assert!(matches!(said.status.code(), Some(1 | 75)), "{said}");
    assert_same(&dir.join("web1/latest/vda.img"), &disk.path);
    drop(inside);
    lab.umount(&dir);
    lab.assert_nothing_left();
}

#[test]
fn a_busy_file_mount_is_not_unmounted() {
    let (lab, _) = lab_with_files();
    let (dir, said) = lab.mount_files("web1@latest", "files");
    said.done();
    for place in ["p1", "p2"] {
        let inside = Inside::of(&dir.join(place));
        let said = lab
            .run(args!["umount", dir])
            .says(&["in use", "sleep", &inside.pid(), "--lazy"]);
        assert!(matches!(said.status.code(), Some(1 | 75)), "{said}");
        assert_eq!(
            fs::read_to_string(dir.join(place).join("name")).expect("reads"),
            "hello"
        );
        drop(inside);
        lab.umount(&dir);
        lab.assert_nothing_left();
        lab.run(args!["mount", "web1@latest", "--files", dir]).done();
        lab.note_hidden(&dir);
    }
    lab.umount(&dir);
}

#[test]
fn lazy_umount_detaches_at_once_and_cleans_up_after_the_last_user() {
    let (lab, disk) = lab_with_files();
    let (files, said) = lab.mount_files("web1@latest", "files");
    said.done();
    let images = lab.mount("images");
    let in_files = Inside::of(&files.join("p2"));
    let in_images = Inside::of(&images.join("web1"));
    for dir in [&files, &images] {
        lab.ok(args!["umount", dir, "--lazy"]);
        assert!(kernel::mounts_at(dir).is_empty());
        assert!(names_in(dir).is_empty());
    }
    // Both places can be used again at once.
    lab.ok(args!["mount", images]);
    assert_same(&images.join("web1/latest/vda.img"), &disk.path);
    lab.umount(&images);
    drop((in_files, in_images));
    lab.assert_nothing_left();
}

#[test]
fn a_mounted_image_attached_by_hand_counts_as_in_use() {
    let (lab, disk) = lab_with_files();
    let dir = lab.mount("images");
    let image = dir.join("web1/latest/vda.p1.img");
    let point = lab.subdir("by hand");
    crate::support::tools::tool("mount", args!["-o", "loop,ro", image, point]);
    assert_eq!(fs::read_to_string(point.join("name")).expect("reads"), "hello");
    let said = lab
        .run(args!["umount", dir])
        .says(&["in use", point.to_str().expect("UTF-8")]);
    assert!(matches!(said.status.code(), Some(1 | 75)), "{said}");
    assert_same(&dir.join("web1/latest/vda.img"), &disk.path);
    crate::support::tools::tool("umount", args![point]);
    lab.umount(&dir);
    let listed = lab.json(args!["list"]);
    assert_eq!(str_of(&listed["backups"][0], "guest"), "web1");
}

/// As docs/copies.md says that a copy is made.
#[test]
fn a_hard_link_copy_has_the_repository_size_and_blocks_writers() {
    let lab = Lab::new();
    let disk = lab.path("disk.img");
    write_noise(&disk, 1, 24 * MIB);
    lab.backup("web1", &disk);
    let copy = lab.path("copy");
    let mut copying = Command::new("flock")
        .arg(lab.repo().join("lock"))
        .args(["sh", "-c", "cp -a \"$0\" \"$1\" && echo copied && read -r _"])
        .args([lab.repo(), &copy])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut said = String::new();
    let output = copying.stdout.as_mut().expect("is piped");
    BufReader::new(output).read_line(&mut said).expect("reads");
    assert_eq!(said, "copied\n");
    lab.run(args!["backup", "web1", &disk, "--no-wait"]).code(75);
    drop(copying.stdin.take());
    copying.wait().expect("ends");
    let taken = |path: &Path| {
        let used = tool("du", args!["--summarize", "--block-size=1", path]);
        let used = used
            .split_whitespace()
            .next()
            .and_then(|number| number.parse::<u64>().ok());
        used.expect("a number")
    };
    let (one, other) = (taken(lab.repo()), taken(&copy));
    assert!(other.abs_diff(one) < MIB, "{other} and not {one} bytes");
    let of_copy = |args: Vec<OsString>| {
        let mut all = args!["--repo", &copy];
        all.extend(args);
        lab.start_bare(all).wait().done()
    };
    of_copy(args!["verify"]);
    of_copy(args!["restore", "web1@latest", lab.path("out.img")]);
    assert_same(&lab.path("out.img"), &disk);
    of_copy(args!["backup", "web1", &disk]);
}
