//! Real file systems on real loop devices, mounted and taken down. All tests but the pure ones need root, loop devices
//! and the mkfs tools, and fail without them.

mod image_server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use image_server::{IMAGE, ImageServer};
use vbk_repo::mounts::{self, Mount};

use super::*;
use crate::drivers::{Backing, Way, how_to_mount};
use crate::volumes::loopdev::{self, LoopDevice};
use vbk_inside::btrfs::Superblock;
use vbk_inside::probe::FsType;

/// A directory with images, a mount point and a directory for hidden mounts. Takes down everything that a failed test
/// leaves below it.
struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("vbk mount ")
            .tempdir_in("/var/tmp")
            .expect("creates");
        for name in ["dir", "images", "run"] {
            fs::create_dir(dir.path().join(name)).expect("creates");
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The mount point.
    fn dir(&self) -> PathBuf {
        self.path("dir")
    }

    /// Images in a plain directory instead of a FUSE mount.
    fn images(&self) -> PathBuf {
        self.path("images")
    }

    fn mounts(&self) -> Vec<Mount> {
        let all = mounts::read().expect("reads");
        let below = |mount: &Mount| mount.at_or_below(self.dir.path());
        all.into_iter().filter(below).collect()
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.mounts(), []);
        assert_eq!(loopdev::attached_below(self.dir.path()).expect("/sys can be read"), []);
    }

    /// A hidden mount of a server that shows one image.
    fn hidden(&self, image: &Path) -> (PathBuf, ImageServer) {
        let hidden = self.path("run/x1/images");
        fs::create_dir_all(&hidden).expect("creates");
        let server = ImageServer::start(&hidden, image);
        (hidden, server)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for mount in self.mounts().iter().rev() {
            let _ = sys::unmount(&mount.mount_point, true);
        }
        for device in loopdev::attached_below(self.dir.path()).unwrap_or_default() {
            let _ = device.clear();
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().expect("starts");
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

/// State in which the guest left its file system.
#[derive(Clone, Copy, PartialEq)]
enum Left {
    Unmounted,
    /// Copied while mounted, right after an fsync: the journal is needed.
    Running,
}

/// Makes a file system with the file `word` in it, as a guest does.
fn make_image(image: &Path, fs: &str, word: &str, left: Left) {
    let script = r#"
        image=$1 fs=$2 word=$3 left=$4
        truncate -s 320M "$image"
        case $fs in ext4) mkfs.ext4 -Fq "$image";; *) mkfs.$fs -q "$image" >/dev/null;; esac
        mkdir "$image.d"
        # Another test may take the loop device that mount has found.
        mount -o loop "$image" "$image.d" || { sleep 0.5; mount -o loop "$image" "$image.d"; }
        trap 'umount "$image.d"; rmdir "$image.d"' EXIT
        printf %s "$word" > "$image.d/word"
        # Freezing empties the journal. A sync does not: after it, the name may still be in the journal only.
        fsfreeze -f "$image.d"
        fsfreeze -u "$image.d"
        if [ $left = running ]; then
            echo late > "$image.d/late"
            sync "$image.d/late"
            cp --sparse=always --reflink=never "$image" "$image.copy"
            mv "$image.copy" "$image"
        fi"#;
    let left = match left {
        Left::Unmounted => "unmounted",
        Left::Running => "running",
    };
    let image = image.to_str().expect("is UTF-8");
    run("sh", &["-euc", script, "sh", image, fs, word, left]);
}

fn volume(name: &str, image: PathBuf, fs: &str) -> Volume {
    let driver = match fs {
        "ext4" => Some(FsType::Ext4),
        "xfs" => Some(FsType::Xfs),
        "btrfs" => Some(FsType::Btrfs),
        _ => None,
    };
    // The kernel must refuse what is not on the image.
    let how = driver.zip(fs::read(&image).ok()).and_then(|(driver, bytes)| {
        let mut how = how_to_mount(driver, &bytes.as_slice(), Way::AsItIs)
            .expect("reads")
            .ok()?;
        if driver == FsType::Btrfs {
            let superblock = Superblock::read(&bytes.as_slice()).expect("reads").expect("is valid");
            how.replay_log(superblock.has_log(), Way::AsItIs);
        }
        Some(how)
    });
    let plain = FileSystem {
        kind: fs.into(),
        options: String::new(),
        without_journal: None,
        warning: None,
        repaired: None,
        backing: Backing::ReadOnly,
        read_write: false,
    };
    Volume {
        name: name.into(),
        image,
        others: Vec::new(),
        sector_size: SectorSize::B512,
        action: Action::Mount(how.unwrap_or(plain)),
    }
}

fn skipped(report: &VolumeReport) -> &str {
    match &report.outcome {
        Outcome::Skipped { reason, .. } => reason,
        mounted @ Outcome::Mounted { .. } => panic!("{mounted:?}"),
    }
}

fn warning(report: &VolumeReport) -> Option<&str> {
    match &report.outcome {
        Outcome::Mounted { warning, .. } => warning.as_deref(),
        skipped @ Outcome::Skipped { .. } => panic!("{skipped:?}"),
    }
}

fn word(dir: &Path) -> String {
    fs::read_to_string(dir.join("word")).expect("reads")
}

/// A process whose working directory is a directory until this is dropped.
struct Visitor(Child);

impl Visitor {
    fn new(dir: &Path) -> Self {
        Self(
            Command::new("sleep")
                .arg("600")
                .current_dir(dir)
                .spawn()
                .expect("starts"),
        )
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const FILE_SYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

#[test]
fn needs_root_clean_file_systems_are_mounted_and_others_skipped() {
    let scratch = Scratch::new();
    let mut volumes = Vec::new();
    for (index, fs) in FILE_SYSTEMS.iter().enumerate() {
        let image = scratch.images().join(format!("{fs}.img"));
        make_image(&image, fs, fs, Left::Unmounted);
        volumes.push(volume(&format!("vda/p{}", index + 1), image, fs));
    }
    let mut swap = volume("vda/p4", scratch.images().join("ext4.img"), "");
    swap.action = Action::Skip {
        reason: "swap".into(),
        may_hold_files: false,
    };
    volumes.insert(1, swap);
    volumes.push(volume("vdb/p1", scratch.images().join("ext4.img"), "nosuchfs"));
    volumes.push(volume("vdb/p2", scratch.images().join("ext4.img"), "xfs"));
    volumes.push(volume("vdb/p3", scratch.images().join("missing.img"), "xfs"));

    let reports = mount_volumes(&scratch.dir(), &scratch.images(), &volumes, Access::Owner).expect("mounts");

    let names: Vec<_> = reports.iter().map(|report| &report.name).collect();
    let asked: Vec<_> = volumes.iter().map(|volume| &volume.name).collect();
    assert_eq!(names, asked);
    for index in [0, 2, 3] {
        assert_eq!(warning(&reports[index]), None);
        let fs = reports[index].fs.as_deref().expect("has a file system");
        assert_eq!(word(&scratch.dir().join(&reports[index].name)), fs);
    }
    assert_eq!(skipped(&reports[1]), "swap");
    assert!(skipped(&reports[4]).contains("modprobe nosuchfs"));
    assert!(skipped(&reports[5]).contains("does not accept it as xfs"));
    assert!(skipped(&reports[6]).contains("missing.img"));
    assert!(!scratch.dir().join("vda/p4").exists());
    assert!(!scratch.dir().join("vdb").exists());
    for mount in scratch.mounts() {
        assert!(mount.options.0.starts_with("ro,nosuid,nodev,noexec"), "{mount:?}");
    }
    assert!(fs::create_dir(scratch.dir().join("x")).is_err());
    let attached = loopdev::attached_below(&scratch.images()).expect("/sys can be read");
    assert_eq!(attached.len(), 3, "{attached:?}");

    let ours = list_ours().expect("lists");
    let ours = ours.iter().find(|ours| ours.point == scratch.dir()).expect("is listed");
    assert!(!ours.dead);
    assert!(matches!(&ours.kind, MountKind::Files { hidden } if *hidden == scratch.images()));

    assert!(!unmount(&scratch.dir(), WhenBusy::Fail).expect("unmounts").detached);
    scratch.assert_nothing_left();
    assert!(scratch.images().join("ext4.img").exists());
    let again = unmount(&scratch.dir(), WhenBusy::Fail).unwrap_err();
    assert!(matches!(again, MountError::NotMounted { .. }));
}

#[test]
fn needs_root_a_dirty_journal_is_not_replayed_and_is_reported() {
    let scratch = Scratch::new();
    let volumes = FILE_SYSTEMS.map(|fs| {
        let image = scratch.images().join(format!("{fs}.img"));
        make_image(&image, fs, fs, Left::Running);
        volume(fs, image, fs)
    });
    let reports = mount_volumes(&scratch.dir(), &scratch.images(), &volumes, Access::Owner).expect("mounts");
    for (report, option) in reports.iter().zip(["noload", "norecovery", "nologreplay"]) {
        let warning = warning(report).unwrap_or_else(|| panic!("{report:?}"));
        assert!(warning.contains(option) && warning.contains("journal was not replayed"));
        let dir = scratch.dir().join(&report.name);
        assert_eq!(word(&dir), report.fs.clone().expect("has a file system"));
    }
    unmount(&scratch.dir(), WhenBusy::Fail).expect("unmounts");
    scratch.assert_nothing_left();
}

#[test]
fn needs_root_two_backups_of_a_file_system_mount_side_by_side() {
    let scratch = Scratch::new();
    let mut volumes = Vec::new();
    for fs in FILE_SYSTEMS {
        let monday = scratch.images().join(format!("{fs}.monday"));
        let tuesday = scratch.images().join(format!("{fs}.tuesday"));
        make_image(&monday, fs, "monday", Left::Unmounted);
        fs::copy(&monday, &tuesday).expect("copies");
        let script = r#"mkdir "$1.d"
            mount -o loop "$1" "$1.d" || { sleep 0.5; mount -o loop "$1" "$1.d"; }
            printf tuesday > "$1.d/word"
            umount "$1.d""#;
        run("sh", &["-euc", script, "sh", tuesday.to_str().expect("is UTF-8")]);
        volumes.push(volume(&format!("monday/{fs}"), monday, fs));
        volumes.push(volume(&format!("tuesday/{fs}"), tuesday, fs));
    }
    let reports = mount_volumes(&scratch.dir(), &scratch.images(), &volumes, Access::Owner).expect("mounts");
    for report in reports {
        assert_eq!(warning(&report), None);
        let day = report.name.parent().expect("has a parent").to_str().expect("is UTF-8");
        assert_eq!(word(&scratch.dir().join(&report.name)), day, "{report:?}");
    }
    unmount(&scratch.dir(), WhenBusy::Fail).expect("unmounts");
    scratch.assert_nothing_left();
}

#[test]
fn needs_root_a_disk_without_partitions_is_mounted_at_the_directory_itself() {
    let scratch = Scratch::new();
    let image = scratch.images().join("vda.img");
    make_image(&image, "ext4", "whole", Left::Unmounted);
    let volumes = [volume("", image, "ext4")];
    mount_volumes(&scratch.dir(), &scratch.images(), &volumes, Access::Owner).expect("mounts");
    assert_eq!(word(&scratch.dir()), "whole");
    let again = check_mount_point(&scratch.dir()).unwrap_err();
    assert!(matches!(again, MountError::AlreadyOurs { .. }));

    // By a symbolic link, as people do.
    let link = scratch.path("link");
    std::os::unix::fs::symlink("dir", &link).expect("links");
    let unmounted = unmount(&link, WhenBusy::Fail).expect("unmounts");
    assert_eq!(unmounted.point, scratch.dir());
    scratch.assert_nothing_left();
}

#[test]
fn needs_root_a_busy_mount_names_its_users_and_lazy_detaches_it() {
    let scratch = Scratch::new();
    let image = scratch.images().join("p1.img");
    make_image(&image, "ext4", "busy", Left::Unmounted);
    let volumes = [volume("p1", image, "ext4")];
    mount_volumes(&scratch.dir(), &scratch.images(), &volumes, Access::Owner).expect("mounts");

    let visitor = Visitor::new(&scratch.dir().join("p1"));
    let error = unmount(&scratch.dir(), WhenBusy::Fail).unwrap_err();
    let named = format!("sleep ({})", visitor.0.id());
    assert!(error.to_string().contains(&named), "{error}");
    assert_eq!(word(&scratch.dir().join("p1")), "busy");

    let unmounted = unmount(&scratch.dir(), WhenBusy::Detach).expect("unmounts");
    assert!(unmounted.detached);
    assert_eq!(scratch.mounts(), []);
    let attached = loopdev::attached_below(&scratch.images()).expect("/sys can be read");
    assert_eq!(attached.len(), 1);
    drop(visitor);
    assert!(attached[0].wait_cleared(Duration::from_secs(5)));
}

#[test]
fn needs_root_a_busy_frame_is_unmounted_by_the_next_call() {
    let scratch = Scratch::new();
    let image = scratch.path("p1.img");
    make_image(&image, "ext4", "busy", Left::Unmounted);
    let (hidden, mut server) = scratch.hidden(&image);
    let volumes = [volume("p1", hidden.join(IMAGE), "ext4")];
    mount_volumes(&scratch.dir(), &hidden, &volumes, Access::Owner).expect("mounts");
    let visitor = Visitor::new(&scratch.dir());
    let error = unmount(&scratch.dir(), WhenBusy::Fail).unwrap_err();
    assert!(matches!(error, MountError::Busy { .. }), "{error}");
    server.wait();
    drop(visitor);
    unmount(&scratch.dir(), WhenBusy::Fail).expect("unmounts");
    scratch.assert_nothing_left();
}

#[test]
fn needs_root_images_are_unmounted_only_together_with_the_files() {
    let scratch = Scratch::new();
    let image = scratch.path("p1.img");
    make_image(&image, "xfs", "word", Left::Running);
    let (hidden, mut server) = scratch.hidden(&image);
    let volumes = [volume("p1", hidden.join(IMAGE), "xfs")];
    let reports = mount_volumes(&scratch.dir(), &hidden, &volumes, Access::Owner).expect("mounts");
    assert!(warning(&reports[0]).is_some());
    assert_eq!(word(&scratch.dir().join("p1")), "word");

    let device = &loopdev::attached_below(&hidden).expect("/sys can be read")[0];
    let dio = format!("/sys/block/loop{}/loop/dio", device.number);
    assert_eq!(fs::read_to_string(dio).expect("reads"), "1\n");
    let error = unmount(&hidden, WhenBusy::Fail).unwrap_err();
    assert!(matches!(error, MountError::ImagesInUse { .. }), "{error}");
    assert!(error.to_string().contains(scratch.dir().to_str().expect("is UTF-8")));

    assert!(!unmount(&scratch.dir(), WhenBusy::Fail).expect("unmounts").detached);
    server.wait();
    scratch.assert_nothing_left();
    assert!(!scratch.path("run/x1").exists());
    assert!(scratch.path("run").exists());
}

#[test]
fn needs_root_all_mounts_of_a_killed_server_can_be_unmounted() {
    for fs in FILE_SYSTEMS {
        let scratch = Scratch::new();
        let image = scratch.path("p1.img");
        make_image(&image, fs, "word", Left::Unmounted);
        let (hidden, mut server) = scratch.hidden(&image);
        let volumes = [volume("p1", hidden.join(IMAGE), fs)];
        mount_volumes(&scratch.dir(), &hidden, &volumes, Access::Owner).expect("mounts");
        server.kill();
        assert!(fs::metadata(&hidden).is_err(), "the server lives");
        let ours = list_ours().expect("lists");
        assert!(ours.iter().any(|it| it.point == scratch.dir() && it.dead));

        assert!(!unmount(&scratch.dir(), WhenBusy::Fail).expect("unmounts").detached);
        scratch.assert_nothing_left();
        assert!(!scratch.path("run/x1").exists());
    }
}

#[test]
fn needs_root_a_dead_image_mount_is_unmounted_even_in_use() {
    let scratch = Scratch::new();
    fs::write(scratch.path("image"), [0; 4096]).expect("writes");
    let mut server = ImageServer::start(&scratch.dir(), &scratch.path("image"));
    let open = fs::File::open(scratch.dir().join(IMAGE)).expect("opens");
    server.kill();
    let error = check_mount_point(&scratch.dir()).unwrap_err();
    assert!(matches!(error, MountError::AlreadyOurs { .. }), "{error}");
    let ours = list_ours().expect("lists");
    assert!(ours.iter().any(|it| it.point == scratch.dir() && it.dead));
    assert!(unmount(&scratch.dir(), WhenBusy::Fail).expect("unmounts").detached);
    scratch.assert_nothing_left();
    drop(open);
}

#[test]
fn needs_root_only_leftover_mounts_are_removed_not_starting_ones() {
    let scratch = Scratch::new();
    let image = scratch.path("p1.img");
    fs::write(&image, [0; 1 << 20]).expect("writes");
    let root = scratch.path("run");
    let (hidden, mut server) = scratch.hidden(&image);
    // Its process lives and holds the lock, however long it takes.
    let starting = fs::File::open(hidden.parent().expect("has a parent")).expect("opens");
    starting.lock().expect("locks");
    assert_eq!(clean_leftovers(&root).expect("cleans"), Cleaned::default());
    drop(starting);
    assert_eq!(clean_leftovers(&root).expect("cleans").mounts, [hidden]);
    server.wait();

    let (hidden, mut server) = scratch.hidden(&image);
    let device = LoopDevice::attach(&hidden.join(IMAGE), Backing::ReadOnly, SectorSize::B512).expect("attaches");
    server.kill();
    let node = device.node();
    drop(device);
    let cleaned = clean_leftovers(&root).expect("cleans");
    assert_eq!(cleaned.mounts, [hidden]);
    assert!(cleaned.loops.is_empty() || cleaned.loops == [node]);
    scratch.assert_nothing_left();
    assert!(!scratch.path("run/x1").exists());
}

#[test]
fn needs_root_mounts_of_others_are_refused() {
    let scratch = Scratch::new();
    sys::mount(Path::new("theirs"), &scratch.dir(), "tmpfs", Writable::No, "").expect("mounts");
    let error = unmount(&scratch.dir(), WhenBusy::Detach).unwrap_err();
    assert!(matches!(error, MountError::NotOurs { .. }), "{error}");
    let error = check_mount_point(&scratch.dir()).unwrap_err();
    assert!(matches!(error, MountError::AlreadyMounted { .. }), "{error}");
    assert_eq!(scratch.mounts().len(), 1);
}

#[test]
fn needs_root_a_failed_frame_is_undone() {
    let scratch = Scratch::new();
    let image = scratch.images().join("p1.img");
    make_image(&image, "ext4", "word", Left::Unmounted);
    let volumes = [
        volume("p1", image.clone(), "ext4"),
        volume(&"x".repeat(300), image, "ext4"),
    ];
    let error = mount_volumes(&scratch.dir(), &scratch.images(), &volumes, Access::Owner).unwrap_err();
    assert!(matches!(error, MountError::Frame { .. }), "{error}");
    scratch.assert_nothing_left();
}

#[test]
fn a_mount_point_is_checked_before_use() {
    let scratch = Scratch::new();
    check_mount_point(&scratch.dir()).expect("is allowed");
    fs::write(scratch.path("file"), "").expect("writes");
    let check = |name: &str| check_mount_point(&scratch.path(name)).unwrap_err();
    assert!(matches!(check("missing"), MountError::NoDirectory { .. }));
    assert!(matches!(check("file"), MountError::NotADirectory { .. }));
    assert!(matches!(check("."), MountError::NotEmpty { .. }));
}

#[test]
fn needs_root_other_users_have_access_only_if_root_allows_it() {
    use std::os::unix::fs::MetadataExt;
    let scratch = Scratch::new();
    let image = scratch.images().join("p1.img");
    make_image(&image, "ext4", "word", Left::Unmounted);
    for (access, mode) in [(Access::Owner, 0o700), (Access::Everyone, 0o755)] {
        let volumes = [volume("p1", image.clone(), "ext4")];
        mount_volumes(&scratch.dir(), &scratch.images(), &volumes, access).expect("mounts");
        assert_eq!(fs::metadata(scratch.dir()).expect("exists").mode() & 0o777, mode);
        unmount(&scratch.dir(), WhenBusy::Fail).expect("unmounts");
    }
    scratch.assert_nothing_left();
}

#[test]
fn needs_root_a_parent_directory_without_search_right_keeps_others_out() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let above = scratch.path("dir");
    let dir = above.join("below");
    fs::create_dir(&dir).expect("creates");
    fs::set_permissions(scratch.dir.path(), fs::Permissions::from_mode(0o755)).expect("sets the mode");
    for (mode, closed) in [(0o755, false), (0o710, false), (0o700, true)] {
        fs::set_permissions(&above, fs::Permissions::from_mode(mode)).expect("sets the mode");
        assert_eq!(only_root_reaches(&dir), closed, "{mode:o}");
    }
    // The directory itself is hidden by the mount.
    assert!(!only_root_reaches(&above));
}

#[test]
fn needs_root_loop_devices_and_fuse_are_permitted() {
    check_loop_rights().expect("is allowed");
    check_fuse().expect("is allowed");
}

#[test]
fn nested_or_outside_mount_points_are_refused() {
    let places = |names: &[&str]| {
        let volumes: Vec<_> = names.iter().map(|name| volume(name, PathBuf::new(), "ext4")).collect();
        check_places(&volumes)
    };
    assert!(places(&["p1", "p10", "vda/p1", "vda/p2"]).is_ok());
    assert!(places(&[""]).is_ok());
    for bad in [&["../p1"][..], &["/p1"], &["p1", "p1"], &["vda/p1", "vda"], &["", "p1"]] {
        let error = places(bad).unwrap_err();
        assert!(matches!(error, MountError::BadPlace { .. }), "{error}");
    }
}
