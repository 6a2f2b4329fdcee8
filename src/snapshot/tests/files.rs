//! Copies that share extents, on real file systems, and devices that are read without a snapshot.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use vbk_repo::backup::SnapshotKind;

use super::super::*;
use super::fake::{Fake, Warnings};

/// A file system or a device on a loop device, which goes with it.
pub(crate) struct Loop {
    dir: tempfile::TempDir,
    pub(super) device: PathBuf,
    mounted: bool,
}

impl Loop {
    pub(super) fn device(size_bytes: u64) -> Self {
        // Not in /tmp, which may be a tmpfs.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/target").expect("a directory");
        let image = dir.path().join("image");
        File::create(&image)
            .and_then(|file| file.set_len(size_bytes))
            .expect("an image");
        let device = sh(&format!("losetup --find --show {}", image.display()));
        Self {
            dir,
            device: device.trim().into(),
            mounted: false,
        }
    }

    pub(crate) fn mounted(mkfs: &str) -> Self {
        let mut it = Self::device(400 << 20);
        sh(&format!("{mkfs} {} 2>&1", it.device.display()));
        std::fs::create_dir(it.path()).expect("a mount point");
        sh(&format!("mount {} {}", it.device.display(), it.path().display()));
        it.mounted = true;
        it
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if self.mounted {
            // A child that another test has just forked holds our files until it is the program it becomes.
            let umount = format!("umount {} 2>/dev/null", self.path().display());
            sh(&format!(
                "for try in $(seq 50); do {umount} && exit; sleep 0.1; done; exit 1"
            ));
        }
        sh(&format!("losetup -d {}", self.device.display()));
    }
}

#[track_caller]
fn sh(script: &str) -> String {
    let script = format!("PATH=$PATH:/usr/sbin:/sbin; {script}");
    let output = Command::new("sh").args(["-c", &script]).output().expect("sh runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{script}: {text} {output:?}; this test needs root and loop devices"
    );
    text
}

pub(super) fn in_dir(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir)
        .expect("lists")
        .map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.retain(|name| name != "lost+found");
    names.sort();
    names
}

fn check_reflink_copy_on(mkfs: &str) {
    let (fake, fs) = (Fake::new(), Loop::mounted(mkfs));
    let disk = fs.path().join("disk with a space.img");
    std::fs::write(&disk, vec![1; 8 << 20]).expect("writes");
    let link = fs.dir.path().join("link");
    std::os::unix::fs::symlink(&disk, &link).expect("links");
    let run = fake.run();
    let plan = fake.plan(&[("vda", &link)]).expect("plans");
    assert_eq!((plan.disks()[0].method.name(), fake.called("lvs")), ("reflink", 0));
    let snapshots = plan.take(&run, &()).expect("takes");
    let held = &snapshots.disks()[0];
    assert_eq!((held.kind(), held.is_live()), (Some(SnapshotKind::Reflink), false));
    let name = std::fs::read_link(&held.read).expect("a descriptor");
    assert_eq!(name.parent(), disk.parent());
    // Whoever owns the directory may give the name to another file.
    std::fs::rename(&name, disk.with_file_name("moved")).expect("renames");
    std::os::unix::fs::symlink("/etc/passwd", &name).expect("links");
    assert_eq!(std::fs::read(&held.read).expect("reads"), vec![1; 8 << 20]);
    std::fs::rename(disk.with_file_name("moved"), &name).expect("renames");
    // The disk goes on, the copy does not.
    File::options()
        .write(true)
        .open(&disk)
        .and_then(|file| file.write_all_at(&[2; 4096], 1 << 20))
        .expect("writes");
    assert_eq!(std::fs::read(&held.read).expect("reads"), vec![1; 8 << 20]);
    snapshots.check().expect("is good");

    // One that a kill left, noted in the directory of a run that is over.
    let dead = ".vbk-disk with a space.img-20260101T000000Z-0123456789ab";
    let other = [
        ".vbk-disk with a space.img-2026-0123456789ab",
        ".vbk-other.img-20260101T000000Z-0123456789ab",
    ];
    let noted = fake.runtime().join("runs/0123456789ab");
    std::fs::create_dir(&noted).expect("is made");
    std::fs::write(
        noted.join("copies"),
        format!("{}\0/nowhere\0", fs.path().join(dead).display()),
    )
    .expect("writes");
    for name in other.iter().chain([&dead]) {
        std::fs::write(fs.path().join(name), "x").expect("writes");
    }
    let found = leftovers(&fake.programs, fake.directories()).expect("lists");
    let mut states: Vec<State> = found.iter().map(|found| found.state).collect();
    states.sort_by_key(|state| *state == State::LeftBehind);
    assert_eq!(states, [State::InUse, State::LeftBehind]);
    let cleaned = clean(&fake.programs, fake.directories(), false).expect("cleans");
    assert_eq!(cleaned.removed, [fs.path().join(dead).display().to_string()]);
    assert!(!noted.exists());
    // After a reboot there is no note, and the next run finds it by its name; one that is locked is in use elsewhere.
    std::fs::write(fs.path().join(dead), "x").expect("writes");
    let locked = ".vbk-disk with a space.img-20260102T000000Z-0123456789ab";
    let lock = File::create(fs.path().join(locked)).expect("is made");
    lock.lock().expect("locks");
    let second = fake.plan(&[("vda", &disk), ("vdb", &disk)]).expect("plans");
    let second = second.take(&run, &()).expect("takes");
    assert!(
        !fs.path().join(dead).exists()
            && fs.path().join(locked).exists()
            && std::fs::read_link(&held.read).expect("a descriptor").exists()
    );
    second.remove().expect("removes");

    // One that is kept is listed also when its disk is gone, and only removed when that is asked for.
    let mut third = fake
        .plan(&[("vda", &disk)])
        .expect("plans")
        .take(&run, &())
        .expect("takes");
    let mark = "0123456789abcdef".repeat(2);
    let name = third.disks()[0].disk.name.clone();
    third.keep(&name, &mark, fake.runtime()).expect("keeps");
    third.remove().expect("removes nothing");
    let gone = fs.path().join("gone");
    std::fs::rename(&disk, &gone).expect("renames");
    let kept = |states: &[Leftover]| {
        let kept = states.iter().filter(|found| found.state == State::Kept);
        kept.map(|found| (found.name.clone(), found.of.clone()))
            .collect::<Vec<_>>()
    };
    let base = fs.path().join(format!(".vbk-base-{mark}-disk with a space.img"));
    let found = leftovers(&fake.programs, fake.directories()).expect("lists");
    assert_eq!(kept(&found), [(base.display().to_string(), disk.display().to_string())]);
    assert_eq!(
        clean(&fake.programs, fake.directories(), false)
            .expect("cleans")
            .removed,
        [] as [&str; 0]
    );
    assert!(base.exists());
    let cleaned = clean(&fake.programs, fake.directories(), true).expect("cleans");
    assert_eq!(cleaned.removed, [base.display().to_string()]);
    assert_eq!(kept(&leftovers(&fake.programs, fake.directories()).expect("lists")), []);
    std::fs::rename(&gone, &disk).expect("renames");

    snapshots.remove().expect("removes");
    let mut left = vec!["disk with a space.img", locked, other[0], other[1]];
    left.sort_unstable();
    assert_eq!(in_dir(&fs.path()), left);
}

#[test]
fn on_xfs_a_file_is_held_by_a_reflink_copy() {
    check_reflink_copy_on("mkfs.xfs -q -m reflink=1");
}

#[test]
fn on_btrfs_a_file_is_held_by_a_reflink_copy() {
    check_reflink_copy_on("mkfs.btrfs -q");
}

#[test]
fn a_file_without_reflink_is_read_directly_if_unused_or_live() {
    let fake = Fake::new();
    for mkfs in ["mkfs.xfs -q -m reflink=0", "mkfs.ext4 -q"] {
        let fs = Loop::mounted(mkfs);
        let disk = fs.path().join("disk.img");
        std::fs::write(&disk, "x").expect("writes");
        let take = |options: &SnapshotOptions| {
            plan(&fake.programs, &Fake::disks(&[("vda", &disk)]), options).and_then(|plan| plan.take(&fake.run(), &()))
        };
        let usual = SnapshotOptions::default();
        let snapshots = take(&usual).expect("takes");
        let held = &snapshots.disks()[0];
        assert_eq!(
            (held.is_live(), held.kind(), &held.read),
            (false, None, &disk),
            "on {mkfs}"
        );
        assert_eq!(in_dir(&fs.path()), ["disk.img"], "on {mkfs}");
        snapshots.check().expect("is as it was");
        let write = File::options().write(true).open(&disk).expect("opens");
        write.write_all_at(b"y", 0).expect("writes");
        let error = snapshots.check().expect_err("was written");
        assert!(matches!(error, SnapshotError::Written { .. }), "{error}");
        snapshots.remove().expect("has nothing to remove");

        // Under another path, as a guest in a namespace of its own has it.
        let (bound, target) = (fs.path().join("bound"), fs.path().join("bound/disk.img"));
        std::fs::create_dir(&bound)
            .and_then(|()| std::fs::hard_link(&disk, &target))
            .expect("links");
        let mut writer = Command::new("sleep")
            .arg("100")
            .stdout(File::options().write(true).open(&target).expect("opens"))
            .spawn()
            .expect("sleeps");
        drop(write);
        let error = take(&usual).expect_err("is refused").to_string();
        let warnings = Warnings::default();
        let live = SnapshotOptions {
            live: true,
            ..usual.clone()
        };
        let live = plan(&fake.programs, &Fake::disks(&[("vda", &disk)]), &live)
            .and_then(|plan| plan.take(&fake.run(), &warnings));
        writer.kill().and_then(|()| writer.wait()).expect("ends");
        assert!(
            error.contains("in process") && error.contains("sleep"),
            "on {mkfs}: {error}"
        );
        assert!(live.expect("takes").is_live());
        let warnings = warnings.all();
        assert!(
            warnings.len() == 1 && warnings[0].contains("is in use") && warnings[0].contains("sleep"),
            "on {mkfs}: {warnings:?}"
        );
        take(&usual).expect("is free again");
    }
}

#[test]
fn a_file_of_a_writable_loop_device_counts_as_in_use() {
    let (fake, disk) = (Fake::new(), Loop::device(8 << 20));
    let image = disk.dir.path().join("image");
    let options = SnapshotOptions {
        method: Method::None,
        ..SnapshotOptions::default()
    };
    let planned = plan(&fake.programs, &Fake::disks(&[("vda", &image)]), &options);
    let error = planned.expect_err("is refused").to_string();
    assert!(
        error.contains(&format!("shown by {}", disk.device.display())),
        "{error}"
    );
    drop(disk);
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    std::fs::write(&image, [0; 4096]).expect("writes");
    let device = sh(&format!("losetup --find --show --read-only {}", image.display()));
    let planned = plan(&fake.programs, &Fake::disks(&[("vda", &image)]), &options);
    sh(&format!("losetup -d {device}"));
    assert_eq!(planned.expect("plans").disks()[0].method.name(), "unused");
}

#[test]
fn an_unused_device_is_read_directly_and_checked_for_writes() {
    let (fake, disk) = (Fake::new(), Loop::device(8 << 20));
    let take = || {
        fake.plan(&[("vda", &disk.device)])
            .expect("plans")
            .take(&fake.run(), &())
            .expect("takes")
    };
    let snapshots = take();
    assert_eq!((snapshots.is_live(), &snapshots.disks()[0].read), (false, &disk.device));
    snapshots.check().expect("is as it was");
    let write = File::options().write(true).open(&disk.device).expect("opens");
    write
        .write_all_at(&[1; 4096], 0)
        .and_then(|()| write.sync_all())
        .expect("writes");
    drop(write);
    let error = snapshots.check().expect_err("was written");
    assert!(matches!(error, SnapshotError::Written { .. }), "{error}");
    // A machine without lvm2 has such disks too.
    fake.remove_program("lvs");
    take().check().expect("is good");
}

#[test]
fn a_device_in_use_is_refused_unless_live_is_set() {
    let (fake, fs) = (Fake::new(), Loop::mounted("mkfs.ext4 -q"));
    let disks = [("vda", fs.device.as_path())];
    let error = fake.plan(&disks).expect_err("is refused").to_string();
    assert!(
        error.contains(&format!("mounted at {}", fs.path().display())) && error.contains("--live"),
        "{error}"
    );
    let options = SnapshotOptions {
        live: true,
        ..SnapshotOptions::default()
    };
    let plan = plan(&fake.programs, &Fake::disks(&disks), &options).expect("plans");
    assert_eq!(plan.disks()[0].method.name(), "live");
    assert!(plan.take(&fake.run(), &()).expect("takes").is_live());

    let disk = Loop::device(8 << 20);
    let mut writer = Command::new("sleep")
        .arg("100")
        .stdout(File::options().write(true).open(&disk.device).expect("opens"))
        .spawn()
        .expect("sleeps");
    let error = fake.plan(&[("vda", &disk.device)]).expect_err("is refused").to_string();
    writer.kill().and_then(|()| writer.wait()).expect("ends");
    assert!(
        error.contains("open for writing in process") && error.contains("sleep"),
        "{error}"
    );
    fake.plan(&[("vda", &disk.device)]).expect("is free again");
}
