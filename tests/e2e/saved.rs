//! What a mount saves: `vbk umount` returns when it is whole, and says so, or why it is not.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::apart::run_apart;
use crate::support::bytes::{MIB, write_noise};
use crate::support::disk::Disk;
use crate::support::kernel;
use crate::support::lab::{Lab, str_of, u64_of};
use crate::support::run::Running;
use crate::support::small::Tmpfs;
use crate::support::tools::{tool, wait_until};

const WAIT: Duration = Duration::from_secs(20);

fn lab_with_a_disk() -> Lab {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, 4 * MIB);
    lab.backup("web1", &lab.path("disk.img"));
    lab
}

/// Mounts the images for writing, changes a page, and returns the process.
fn mount_and_write(lab: &Lab, dir: &Path, kept: &Path) -> Pid {
    let mount = lab.json(args!["mount", "web1@latest", dir, "--writable", "--save", kept]);
    let image = File::options().write(true).open(dir.join("vda.img"));
    image.expect("opens").write_all_at(&[7; 4096], 8192).expect("writes");
    Pid::from_raw(i32::try_from(u64_of(&mount, "pid")).expect("a pid"))
}

/// Restores the disk with the changes, and returns the message.
#[track_caller]
fn restore(lab: &Lab, kept: &Path, code: i32) -> String {
    let out = lab.path("out.img");
    let said = lab.run(args!["restore", "web1@latest", out, "--force", "--changes", kept]);
    said.code(code).stderr
}

fn assert_changed(lab: &Lab) {
    let bytes = fs::read(lab.path("out.img")).expect("reads");
    assert!(bytes[8192..12288] == [7; 4096], "the change is restored");
}

/// Unmounts a mount whose process does not answer. Another test that asks it for a moment keeps it busy.
fn unmount_stopped(lab: &Lab, dir: &Path, more: Vec<OsString>) -> Running {
    for _ in 0..20 {
        let mut args = args!["umount", dir];
        args.extend(more.clone());
        let mut umount = lab.start(args);
        let is_gone = || kernel::mounts_at(dir).is_empty();
        assert!(wait_until(WAIT, || is_gone() || umount.has_ended()));
        if is_gone() {
            return umount;
        }
    }
    panic!("{} stays busy", dir.display());
}

#[test]
fn umount_waits_until_the_file_is_whole_and_says_how_to_restore_it() {
    let lab = lab_with_a_disk();
    let (dir, kept) = (lab.subdir("images"), lab.path("kept"));
    for detach in [false, true] {
        let server = mount_and_write(&lab, &dir, &kept);
        let mut args = args!["umount", dir];
        args.extend(detach.then(|| "--lazy".into()));
        let said = lab.run(args).done();
        let file = kept.to_str().expect("UTF-8");
        said.tells(&["is unmounted", file, "4 KiB", "vbk restore web1@", "--changes"]);
        File::open(&kept).expect("opens").try_lock().expect("no process has it");
        assert!(wait_until(WAIT, || !kernel::process_exists(server.as_raw())));
        assert_eq!(restore(&lab, &kept, 0), "");
        assert_changed(&lab);
        fs::remove_file(&kept).expect("removes");
    }
}

#[test]
fn umount_waits_for_a_mount_that_was_taken_down_or_detached_before() {
    let lab = lab_with_a_disk();
    let (dir, kept) = (lab.subdir("images"), lab.path("kept"));
    // By a program that does not wait, while the server is slow. Not by umount(8), which asks the server first.
    let server = mount_and_write(&lab, &dir, &kept);
    kill(server, Signal::SIGSTOP).expect("is there");
    unmount_stopped(&lab, &dir, args!["--no-wait"]).wait().done();
    let mut waits = lab.start(args!["umount", dir]);
    assert!(!wait_until(Duration::from_millis(200), || waits.has_ended()));
    kill(server, Signal::SIGCONT).expect("is there");
    waits.wait().done().tells(&["already", "--changes"]);
    assert_eq!(restore(&lab, &kept, 0), "");
    fs::remove_file(&kept).expect("removes");

    mount_and_write(&lab, &dir, &kept);
    let image = File::open(dir.join("vda.img")).expect("opens");
    let said = lab.run(args!["umount", dir, "--lazy"]).done();
    said.tells(&["detached", "vbk umount", kept.to_str().expect("UTF-8")]);
    let mut waits = lab.start(args!["umount", dir]);
    assert!(!wait_until(Duration::from_millis(200), || waits.has_ended()));
    drop(image);
    waits.wait().done().tells(&["--changes"]);
    assert_eq!(restore(&lab, &kept, 0), "");
    lab.run(args!["umount", dir]).code(1).says(&["nothing is mounted"]);
}

#[test]
fn a_server_that_is_killed_before_it_has_closed_its_file_is_reported() {
    let lab = lab_with_a_disk();
    let (dir, kept) = (lab.subdir("images"), lab.path("kept"));
    let server = mount_and_write(&lab, &dir, &kept);
    kill(server, Signal::SIGSTOP).expect("is there");
    let umount = unmount_stopped(&lab, &dir, args![]);
    kill(server, Signal::SIGKILL).expect("is there");
    let said = umount.wait().code(1);
    said.says(&["not complete", "killed", kept.to_str().expect("UTF-8")]);
    let warned = restore(&lab, &kept, 3);
    assert!(
        warned.contains("is not complete: the mount that wrote it was killed"),
        "{warned}"
    );
}

#[test]
fn space_that_others_take_is_respected_and_a_full_disk_loses_nothing() {
    let lab = lab_with_a_disk();
    let small = Tmpfs::mount(&lab);
    let (dir, kept) = (lab.subdir("images"), small.path().join("kept"));
    lab.ok(args!["mount", "web1@latest", dir, "--writable", "--save", kept]);
    let image = File::options().write(true).open(dir.join("vda.img")).expect("opens");
    // There is room for the page, but not above the tenth that stays free.
    small.fill(200 << 10);
    for _ in 0..3 {
        let error = image.write_all_at(&[7; 4096], 8192).expect_err("is full");
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }
    small.make_room();
    image.write_all_at(&[7; 4096], 8192).expect("writes");
    drop(image);
    small.fill(0);
    lab.run(args!["umount", dir]).done().tells(&["4 KiB", "--changes"]);
    assert_eq!(restore(&lab, &kept, 0), "");
    assert_changed(&lab);
}

#[test]
fn a_file_that_can_not_be_closed_is_reported() {
    let lab = lab_with_a_disk();
    let small = Tmpfs::mount(&lab);
    let (dir, kept) = (lab.subdir("images"), small.path().join("kept"));
    mount_and_write(&lab, &dir, &kept);
    // The room of its index is taken away, as by a file system that can't overwrite in place.
    tool(
        "fallocate",
        args!["--punch-hole", "--offset", "65536", "--length", "4096", kept],
    );
    small.fill(0);
    let image = File::options().write(true).open(dir.join("vda.img")).expect("opens");
    assert_eq!(
        image.sync_all().expect_err("is full").kind(),
        std::io::ErrorKind::StorageFull
    );
    drop(image);
    let said = lab.run(args!["umount", dir]).code(1);
    let said = said.says(&["not complete", "no space left", kept.to_str().expect("UTF-8")]);
    assert!(said.text().contains("is unmounted"), "{said}");
    assert!(kernel::mounts_at(&dir).is_empty());
    // It was told; there is nothing more to say.
    lab.run(args!["umount", dir]).code(1).says(&["nothing is mounted"]);
    small.make_room();
    let warned = restore(&lab, &kept, 3);
    assert!(
        warned.contains("killed, or could not close it") && warned.contains("before the last sync"),
        "{warned}"
    );
}

#[test]
fn the_file_of_a_mount_that_fails_to_start_is_removed() {
    let lab = lab_with_a_disk();
    let small = Tmpfs::mount(&lab);
    let (dir, kept) = (lab.subdir("dir"), small.path().join("kept"));
    let mount = |more: &[&str]| {
        let mut args = args!["mount", "web1@latest", "--writable", "--save", kept];
        args.extend(more.iter().map(Into::into));
        lab.run(args)
    };
    let at = dir.to_str().expect("UTF-8");
    // Noise holds no file system.
    mount(&["--files", at]).code(1);
    assert!(!kept.exists());
    small.fill(0);
    mount(&[at]).code(1).says(&["no space left"]);
    assert!(!kept.exists());
    small.make_room();
    fs::write(&kept, "of another program").expect("writes");
    for more in [&[at][..], &["--files", at]] {
        mount(more).code(1).says(&["exists"]);
        assert_eq!(fs::read_to_string(&kept).expect("reads"), "of another program");
    }
    assert!(kernel::mounts_at(&dir).is_empty());
}

#[test]
fn mounts_names_the_backup_and_the_time_of_each_mount() {
    let lab = Lab::new();
    let disk = Disk::plain(lab.path("disk.img"), 16);
    disk.format(0, "mkfs.ext4");
    lab.backup("web1", &disk.path);
    let backup = lab.listed().remove(0);
    let dirs = ["all", "one", "files", "user"].map(|name| lab.subdir(name));
    lab.ok(args!["mount", dirs[0]]);
    lab.ok(args!["mount", "web1@latest", dirs[1]]);
    lab.ok(args!["mount", "web1@latest", "--files", dirs[2]]);
    lab.note_hidden(&dirs[2]);
    lab.ok(args!["mount", "web1@latest", "--files", dirs[3], "--user"]);
    let mounts = lab.json(args!["mounts"]);
    let table = lab.ok(args!["mounts"]);
    for (number, dir) in dirs.iter().enumerate() {
        let dir = dir.to_str().expect("UTF-8");
        let mounts = mounts["mounts"].as_array().expect("an array").iter();
        let mut found = mounts.filter(|mount| mount["mount_point"].as_str() == Some(dir));
        let mount = found.next().expect("is listed");
        let shown = mount["backup"].as_str().map(str::to_owned);
        assert_eq!(shown, (number > 0).then(|| backup.clone()), "{mount}");
        let since: jiff::Timestamp = str_of(mount, "since").parse().expect("a time");
        assert!(since <= jiff::Timestamp::now());
        let line = table
            .lines()
            .find(|line| line.starts_with(&format!("{dir} ")))
            .expect("is listed");
        let of = match number {
            0 => format!("all in {}", lab.place().display()),
            _ => backup.clone(),
        };
        assert!(
            line.contains(&of) && line.contains(&since.strftime("%Y-%m-%d %H:%M:%S").to_string()),
            "{line}"
        );
    }
    // Several at once; one of them is none of vbk's.
    let said = lab.run(args!["umount", dirs[0], lab.dir(), dirs[1], dirs[2]]).code(1);
    let said = said.says(&["nothing is mounted"]);
    assert_eq!(said.text().matches("is unmounted").count(), 3, "{said}");
    lab.umount(&dirs[3]);
}

#[test]
fn umount_all_takes_every_mount_down() {
    let lab = lab_with_a_disk();
    let dirs = ["images", "one"].map(|name| lab.subdir(name));
    let script = "
        \"$vbk\" --repo \"$repo\" mount \"$1\"
        \"$vbk\" --repo \"$repo\" mount web1@latest \"$2\"
        \"$vbk\" umount --all
        not grep -F -e \" $1 \" -e \" $2 \" /proc/self/mountinfo
        \"$vbk\" umount --all";
    let said = run_apart(&lab, script, args![dirs[0], dirs[1]]).done();
    said.tells(&["nothing is mounted"]);
}
