//! The main job on the disk of a common server: two days, every past image and file back, nothing left.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use serde_json::Value;

use crate::support::bytes::{MIB, assert_same, assert_same_range, copy_sparse, noise_bytes, read_at, size_of};
use crate::support::disk::Disk;
use crate::support::kernel;
use crate::support::lab::{Lab, names_in, str_of, u64_of};
use crate::support::tools::{tool, wait_until};

/// How long a new backup may take to appear in a running mount.
const APPEARS: Duration = Duration::from_secs(3);

const CONF: &str = "etc/nginx/nginx.conf";

/// Two backups of a guest with a change of files between them, and copies of the disk as it was.
struct TwoDays {
    disk: Disk,
    originals: [PathBuf; 2],
    backups: [Value; 2],
}

impl TwoDays {
    fn make(lab: &Lab) -> Self {
        let disk = Disk::of_a_server(lab, "server.img");
        let write = |root: &Path, text: &str, seed: u64| {
            fs::create_dir_all(root.join("etc/nginx")).expect("makes a directory");
            fs::write(root.join(CONF), text).expect("writes");
            fs::write(root.join(format!("media-{seed}")), noise_bytes(seed, 5 * MIB + 17)).expect("writes");
        };
        let keep = |name: &str| {
            let copy = lab.path(name);
            copy_sparse(&disk.path, &copy);
            (copy, lab.backup("web1", &disk.path))
        };
        disk.change(lab, 1, |root| write(root, "ext4, first day", 1));
        disk.change(lab, 2, |root| write(root, "XFS, first day", 2));
        let first = keep("day1.img");
        disk.change(lab, 1, |root| write(root, "ext4, second day", 3));
        disk.change(lab, 2, |root| {
            write(root, "XFS, second day", 4);
            fs::remove_file(root.join("media-2")).expect("removes");
        });
        let second = keep("day2.img");
        Self {
            disk,
            originals: [first.0, second.0],
            backups: [first.1, second.1],
        }
    }

    fn spec(&self, day: usize) -> String {
        str_of(&self.backups[day], "backup")
    }

    fn time(&self, day: usize) -> String {
        let spec = self.spec(day);
        spec.strip_prefix("web1@").expect("GUEST@TIME").to_owned()
    }
}

fn seconds_of(time: &str) -> i64 {
    let civil = jiff::civil::DateTime::strptime("%Y-%m-%dT%H-%M-%SZ", time).expect("a time as in a mount");
    civil
        .to_zoned(jiff::tz::TimeZone::UTC)
        .expect("a time")
        .timestamp()
        .as_second()
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("can't read {}: {error}", path.display()))
}

#[test]
fn both_backups_are_listed_with_their_new_bytes() {
    let lab = Lab::new();
    let days = TwoDays::make(&lab);
    let size = size_of(&days.disk.path);
    let [first, second] = &days.backups;
    for backup in [first, second] {
        assert_eq!(str_of(backup, "guest"), "web1");
        assert_eq!(u64_of(backup, "size_bytes"), size);
        let done: u64 = ["zero_bytes", "unchanged_bytes", "new_bytes"]
            .iter()
            .map(|part| u64_of(backup, part))
            .sum();
        assert_eq!(done, size, "every byte is zero, unchanged or new: {backup}");
        assert!(u64_of(backup, "read_bytes") <= size, "{backup}");
        let disk = &backup["disks"][0];
        assert_eq!(str_of(disk, "disk"), "vda");
        assert_eq!(str_of(disk, "source"), days.disk.path.to_str().expect("UTF-8"));
        assert_eq!(u64_of(disk, "size_bytes"), size);
    }
    assert_eq!(u64_of(first, "unchanged_bytes"), 0, "{first}");
    assert!(u64_of(second, "new_bytes") > 10 * MIB, "{second}");
    assert!(u64_of(second, "unchanged_bytes") > 5 * MIB, "{second}");
    assert!(
        u64_of(second, "new_bytes") < 40 * MIB,
        "two files of 5 MiB and metadata: {second}"
    );

    assert_eq!(lab.listed(), [days.spec(0), days.spec(1)]);
    let list = &lab.json(args!["list", "web1"])["backups"];
    assert_eq!(list[1]["disks"], serde_json::json!(["vda"]));
    for field in ["size_bytes", "new_bytes", "stored_bytes"] {
        assert_eq!(u64_of(&list[1], field), u64_of(second, field));
    }
    let text = lab.ok(args!["list"]);
    for word in ["web1", &days.time(0), &days.time(1), "vda"] {
        assert!(text.contains(word), "no {word} in\n{text}");
    }
    let shown = lab.json(args!["show", "web1@latest"]);
    assert_eq!(str_of(&shown, "backup"), days.spec(1));
    assert_eq!(str_of(&shown, "id"), str_of(second, "id"));
    assert_eq!(shown, lab.json(args!["show", days.spec(1)]));
    let id = str_of(first, "id");
    assert_eq!(str_of(&lab.json(args!["show", id[..8]]), "backup"), days.spec(0));
    assert!(lab.ok(args!["show", "web1@latest"]).contains(&days.time(1)));
}

#[test]
fn both_backups_are_identical_in_the_mount() {
    let lab = Lab::new();
    let days = TwoDays::make(&lab);
    let dir = lab.mount("images");
    assert_eq!(names_in(&dir), ["web1"]);
    assert_eq!(
        names_in(&dir.join("web1")),
        [days.time(0), days.time(1), "latest".into()]
    );
    assert_eq!(
        fs::read_link(dir.join("web1/latest")).expect("a link"),
        Path::new(&days.time(1))
    );
    for day in 0..2 {
        let time = days.time(day);
        let backup = dir.join("web1").join(&time);
        let parts = ["backup.json", "vda.img", "vda.p1.img", "vda.p2.img", "vda.p3.img"];
        assert_eq!(names_in(&backup), parts);
        let image = backup.join("vda.img");
        assert_same(&image, &days.originals[day]);
        tool("cmp", args![image, days.originals[day]]);
        for part in &days.disk.parts {
            let file = backup.join(format!("vda.p{}.img", part.number));
            assert_eq!(fs::metadata(&file).expect("is there").len(), part.size_bytes);
            assert_same_range(&file, 0, &days.originals[day], part.start_bytes, part.size_bytes);
        }
        for name in parts {
            let metadata = fs::metadata(backup.join(name)).expect("is there");
            assert!(metadata.is_file(), "{name}");
            assert_eq!(metadata.mtime(), seconds_of(&time), "mtime of {name}");
            assert_eq!(metadata.mode() & 0o222, 0, "nobody may write {name}");
        }
        assert_eq!(fs::metadata(&backup).expect("is there").mtime(), seconds_of(&time));
        assert_eq!(fs::metadata(&image).expect("is there").len(), size_of(&days.disk.path));
        let record: Value = serde_json::from_str(&read(backup.join("backup.json"))).expect("JSON");
        assert_eq!(str_of(&record, "guest"), "web1");
    }
    // Odd places and lengths, and the end.
    let image = dir.join("web1/latest/vda.img");
    let size = size_of(&image);
    for (at, len) in [
        (1, 3),
        (MIB - 1, 2),
        (65_535, 131_074),
        (3 * MIB + 511, 2 * MIB),
        (size - 5, 5),
    ] {
        let expected = read_at(&days.originals[1], at, len).expect("reads");
        assert!(
            read_at(&image, at, len).expect("reads") == expected,
            "{len} bytes at {at}"
        );
    }
    assert!(read_at(&image, size, 1).is_err(), "there is nothing behind the end");
    // dd out of the mount.
    let out = lab.path("dd.img");
    let (from, to) = (format!("if={}", image.display()), format!("of={}", out.display()));
    for flag in ["iflag=fullblock", "iflag=direct"] {
        tool("dd", args![from, to, "bs=1M", flag]);
        assert_same(&out, &days.originals[1]);
    }
    lab.umount(&dir);
}

#[test]
fn nothing_in_a_mount_can_be_changed() {
    let lab = Lab::new();
    let image = lab.path("small.img");
    crate::support::bytes::write_noise(&image, 1, MIB);
    lab.backup("web1", &image);
    let dir = lab.mount("images");
    let backup = dir.join("web1/latest");
    let (file, new) = (backup.join("vda.img"), backup.join("new"));
    let open = |write: fn(&mut OpenOptions) -> &mut OpenOptions, path: &Path| {
        write(&mut OpenOptions::new()).open(path).map(drop)
    };
    let attempts: [(&str, io::Result<()>); 12] = [
        ("create a file", fs::write(&new, "x")),
        ("touch a guest", fs::write(dir.join("new"), "x")),
        ("open for writing", open(|options| options.write(true), &file)),
        ("open for both", open(|options| options.read(true).write(true), &file)),
        ("append", open(|options| options.append(true), &file)),
        ("truncate", open(|options| options.write(true).truncate(true), &file)),
        ("remove", fs::remove_file(&file)),
        ("make a directory", fs::create_dir(&new)),
        ("rename", fs::rename(&file, &new)),
        ("link", std::os::unix::fs::symlink("vda.img", &new)),
        ("chmod", fs::set_permissions(&file, Permissions::from_mode(0o666))),
        ("remove a directory", fs::remove_dir(dir.join("web1"))),
    ];
    for (what, result) in attempts {
        let errno = result.err().and_then(|error| error.raw_os_error());
        assert_eq!(errno, Some(Errno::EROFS as i32), "{what}");
    }
    assert!(
        kernel::mounts_at(&dir)[0]
            .options
            .split(',')
            .any(|option| option == "ro")
    );
    assert_same(&file, &image);
    lab.umount(&dir);
}

#[test]
fn a_new_backup_appears_in_a_running_mount() {
    let lab = Lab::new();
    let image = lab.path("disk.img");
    crate::support::bytes::write_noise(&image, 1, 3 * MIB);
    let first = lab.backup("web1", &image);
    let dir = lab.mount("images");
    let guest = dir.join("web1");
    assert_eq!(names_in(&guest).len(), 2);
    // A reader of the older day goes on reading it.
    let mut older = fs::File::open(guest.join("latest/vda.img")).expect("opens");
    crate::support::bytes::write_noise(&image, 2, 4 * MIB);
    let second = lab.backup("web1", &image);
    let other = lab.backup("db1", &image);
    let time = |backup: &Value| {
        str_of(backup, "backup")
            .split_once('@')
            .expect("GUEST@TIME")
            .1
            .to_owned()
    };
    let appeared = wait_until(APPEARS, || {
        names_in(&guest) == [time(&first), time(&second), "latest".into()]
            && names_in(&dir) == ["db1", "web1"]
            && fs::read_link(guest.join("latest")).expect("a link") == Path::new(&time(&second))
    });
    assert!(appeared, "{:?} {:?}", names_in(&dir), names_in(&guest));
    assert_same(&guest.join("latest/vda.img"), &image);
    assert_same(&dir.join("db1").join(time(&other)).join("vda.img"), &image);
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut older, &mut bytes).expect("reads");
    assert!(bytes == noise_bytes(1, 3 * MIB), "the older day is what it was");
    drop(older);
    lab.umount(&dir);
}

#[test]
fn a_file_is_restored_from_either_backup_while_both_are_mounted() {
    let lab = Lab::new();
    let days = TwoDays::make(&lab);
    // Two file systems with one UUID at the same time.
    let (first, said) = lab.mount_files(&days.spec(0), "day1");
    let answer = said.done().json();
    let (second, said) = lab.mount_files("web1@latest", "day2");
    said.done();
    for (dir, day, seeds) in [(&first, "first", [1, 2]), (&second, "second", [3, 4])] {
        assert_eq!(read(dir.join("p1").join(CONF)), format!("ext4, {day} day"));
        assert_eq!(read(dir.join("p2").join(CONF)), format!("XFS, {day} day"));
        for (part, seed) in [("p1", seeds[0]), ("p2", seeds[1])] {
            let bytes = fs::read(dir.join(part).join(format!("media-{seed}"))).expect("reads");
            assert!(
                bytes == noise_bytes(seed, 5 * MIB + 17),
                "{part}/media-{seed} of the {day} day"
            );
            let mount = &kernel::mounts_at(&dir.join(part))[0];
            for option in ["ro", "nodev", "nosuid", "noexec"] {
                assert!(
                    mount.options.split(',').any(|it| it == option),
                    "{option} is not in {mount:?}"
                );
            }
            let errno = fs::write(dir.join(part).join("new"), "x")
                .err()
                .and_then(|error| error.raw_os_error());
            assert_eq!(errno, Some(Errno::EROFS as i32));
        }
    }
    assert!(first.join("p2/media-2").exists() && !second.join("p2/media-2").exists());
    assert_eq!(
        names_in(&first),
        ["p1", "p2"],
        "no directory that looks like an empty file system"
    );

    assert_eq!(str_of(&answer, "mount_point"), first.to_str().expect("UTF-8"));
    let volumes = answer["volumes"].as_array().expect("volumes");
    let names: Vec<_> = volumes.iter().map(|volume| str_of(volume, "name")).collect();
    assert_eq!(names, ["p1", "p2", "p3"]);
    assert_eq!([str_of(&volumes[0], "fs"), str_of(&volumes[1], "fs")], ["ext4", "xfs"]);
    assert!(
        volumes[0]["mounted"] == true && volumes[1]["mounted"] == true,
        "{answer}"
    );
    assert!(
        volumes[0]["warning"].is_null() && volumes[1]["warning"].is_null(),
        "{answer}"
    );
    assert_eq!(volumes[2]["mounted"], false);
    assert!(str_of(&volumes[2], "reason").contains("swap"), "{answer}");

    let listed = lab.ok(args!["mounts"]);
    for dir in [&first, &second] {
        assert!(listed.contains(dir.to_str().expect("UTF-8")), "{listed}");
    }
    lab.umount(&first);
    assert_eq!(
        read(second.join("p2").join(CONF)),
        "XFS, second day",
        "one day's end is not the other's"
    );
    lab.umount(&second);
    lab.assert_nothing_left();
    assert!(!lab.ok(args!["mounts"]).contains(first.to_str().expect("UTF-8")));
}

#[test]
fn a_file_mount_reports_skipped_volumes_with_the_reason() {
    let lab = Lab::new();
    let disk = Disk::of_a_server(&lab, "server.img");
    disk.change(&lab, 1, |root| fs::write(root.join("motd"), "hello").expect("writes"));
    lab.backup("web1", &disk.path);
    let dir = lab.subdir("files");
    let text = lab.ok(args!["mount", "web1@latest", "--files", dir]);
    lab.note_hidden(&dir);
    let line = text
        .lines()
        .find(|line| line.contains("p3"))
        .unwrap_or_else(|| panic!("no p3 in\n{text}"));
    assert!(line.contains("swap"), "{text}");
    assert!(
        text.contains("p1") && text.contains("ext4") && text.contains("p2"),
        "{text}"
    );
    assert_eq!(read(dir.join("p1/motd")), "hello");
    lab.umount(&dir);
}

#[test]
fn a_foreground_mount_runs_until_unmounted() {
    let lab = Lab::new();
    let disk = Disk::plain(lab.path("disk.img"), 16);
    disk.format(0, "mkfs.ext4");
    lab.backup("web1", &disk.path);
    let dir = lab.subdir("images");
    let mut running = lab.start(args!["mount", dir, "--foreground"]);
    let there = wait_until(Duration::from_secs(20), || {
        running.has_ended() || dir.join("web1/latest/vda.img").exists()
    });
    assert!(there && !running.has_ended());
    assert_same(&dir.join("web1/latest/vda.img"), &disk.path);
    lab.umount(&dir);
    running.wait().code(0);

    let files = lab.subdir("files");
    let mut running = lab.start(args!["mount", "web1@latest", "--files", files, "--foreground"]);
    let there = wait_until(Duration::from_secs(20), || {
        running.has_ended() || files.join("lost+found").exists()
    });
    assert!(there && !running.has_ended());
    lab.note_hidden(&files);
    // Ctrl-C takes all of it down.
    running.signal(nix::sys::signal::Signal::SIGINT);
    let said = running.wait();
    assert!(matches!(said.status.code(), Some(0 | 130)), "{said}");
    assert!(kernel::mounts_at(&files).is_empty());
    lab.assert_nothing_left();
}

#[test]
fn a_block_device_is_backed_up_like_a_file() {
    let lab = Lab::new();
    let disk = Disk::of_a_server(&lab, "server.img");
    disk.change(&lab, 2, |root| fs::write(root.join("motd"), "hello").expect("writes"));
    let device = crate::support::disk::LoopDevice::of_file(&disk.path);
    let kind = fs::metadata(&device.node).expect("is there").file_type();
    assert!(kind.is_block_device());
    let of_device = lab.backup("web1", &device.node);
    assert_eq!(u64_of(&of_device, "size_bytes"), size_of(&disk.path));
    device.detach();
    let of_file = lab.backup("web2", &disk.path);
    assert_eq!(u64_of(&of_file, "new_bytes"), 0, "the same blocks: {of_file}");
    let dir = lab.mount("images");
    for guest in ["web1", "web2"] {
        assert_same(&dir.join(guest).join("latest/vda.img"), &disk.path);
    }
    lab.umount(&dir);
    let said = lab.run(args!["verify", "--json"]).done().json();
    assert_eq!(
        (u64_of(&said, "backups"), said["damage"].as_array().map(Vec::len)),
        (2, Some(0))
    );
}
