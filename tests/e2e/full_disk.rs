//! The repository's file system is full: the backup fails and says so, nothing is lost, and with room it goes on.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use serde_json::Value;

use crate::support::bytes::{KIB, MIB, assert_is_noise, copy_sparse, noise_bytes, write_at, write_noise};
use crate::support::disk::{Disk, LoopDevice, Mount};
use crate::support::lab::{Lab, VBK, names_in, u64_of};
use crate::support::run::Said;
use crate::support::tools::{tool, wait_until};

/// What a small repository keeps for a prune on a full disk.
const BALLAST_BYTES: u64 = 16 * MIB;

/// A repository on a small file system of its own, filled up to about `free_mib`.
fn small_lab(size_mib: u64, free_mib: u64) -> (Lab, Mount, PathBuf) {
    let mut lab = Lab::without_repo();
    let disk = Disk::plain(lab.path("small.fs"), size_mib);
    disk.format(0, "mkfs.ext4");
    let mount = Mount::of_device(LoopDevice::of_file(&disk.path), lab.subdir("small"));
    lab.use_repo(&mount.point.join("repo"));
    lab.ok(args!["init"]);
    write_noise(&lab.path("first.img"), 1, 2 * MIB);
    lab.backup("first", &lab.path("first.img"));
    let filler = mount.point.join("filler");
    fill(&mount, &filler, free_mib);
    (lab, mount, filler)
}

/// To the last block: a write that is too large takes nothing of what there is.
fn fill_up(path: &Path) {
    let mut file = File::create(path).expect("creates a file");
    for piece in [MIB, 64 * KIB, 4 * KIB, KIB] {
        while file.write_all(&vec![1; piece as usize]).is_ok() {}
    }
}

fn fill(mount: &Mount, filler: &Path, free_mib: u64) {
    let stat = nix::sys::statvfs::statvfs(&mount.point).expect("is mounted");
    let free = stat.blocks_available() * stat.fragment_size();
    write_noise(filler, 9, free.saturating_sub(free_mib * MIB));
}

#[test]
fn a_backup_on_a_full_disk_fails_and_continues_once_there_is_room() {
    let (lab, mount, filler) = small_lab(256, 40);
    let large = lab.path("large.img");
    write_noise(&large, 2, 100 * MIB);
    for _ in 0..2 {
        let said = lab
            .run(args![
                "backup",
                "large",
                large,
                "--compression",
                "none",
                "--reserve",
                "0"
            ])
            .code(1);
        said.says(&["no space", "room"]);
    }
    // What was there is still there and whole, for everybody, without any room.
    assert_eq!(lab.listed().len(), 1);
    lab.ok(args!["verify"]);
    let out = lab.path("out.img");
    lab.ok(args!["restore", "first@latest", out]);
    assert_is_noise(&out, 1, 2 * MIB);
    let dir = lab.mount("images");
    assert_is_noise(&dir.join("first/latest/vda.img"), 1, 2 * MIB);
    let rest = mount.point.join("rest");
    fill_up(&rest);
    for temporary in [mount.point.clone(), lab.path("nonexistent")] {
        let mut command = Command::new(VBK);
        command.env("TMPDIR", temporary);
        let list = args!["--repo", lab.place(), "list"];
        lab.start_command(command, list).wait().done().tells(&["first"]);
    }
    let left = names_in(&mount.point)
        .into_iter()
        .filter(|name| name.starts_with("vbk-view-"));
    assert_eq!(left.count(), 0);
    fs::remove_file(rest).expect("removes");

    fs::remove_file(filler).expect("removes");
    let done = lab.backup("large", &large);
    assert_eq!(u64_of(&done, "new_bytes") + u64_of(&done, "unchanged_bytes"), 100 * MIB);
    let shown = dir.join("large/latest/vda.img");
    assert!(
        wait_until(Duration::from_secs(20), || shown.exists()),
        "a mount shows it soon"
    );
    assert_is_noise(&shown, 2, 100 * MIB);
    lab.umount(&dir);
    assert_eq!(lab.listed().len(), 2);
    lab.ok(args!["verify"]);
    lab.ok(args!["restore", "large@latest", out, "--force"]);
    assert_is_noise(&out, 2, 100 * MIB);
    lab.end_server();
    mount.unmount();
}

#[test]
fn a_disk_without_a_single_free_block_harms_no_backup() {
    let (lab, mount, filler) = small_lab(192, 0);
    // To the last block, as far as root may.
    let mut more = 0;
    while fs::write(mount.point.join(format!("more-{more}")), vec![1; 256 << 10]).is_ok() {
        more += 1;
    }
    let said = lab.run(args!["backup", "first", lab.path("first.img")]);
    assert!(matches!(said.status.code(), Some(0 | 1)), "{said}");
    let said = lab.run(args!["list", "--json"]);
    assert_eq!(said.status.code(), Some(0), "{said}");
    let said = lab.run(args!["status", "--check"]).code(1);
    said.tells(&[
        "VBK WARNING - the repository's file system is nearly full (",
        " free); ",
    ]);
    lab.ok(args!["verify"]);
    let out = lab.path("out.img");
    lab.ok(args!["restore", "first@latest", out]);
    assert_is_noise(&out, 1, 2 * MIB);
    fs::remove_file(filler).expect("removes");
    write_noise(&lab.path("second.img"), 3, 8 * MIB);
    lab.backup("second", &lab.path("second.img"));
    lab.ok(args!["verify"]);
    lab.ok(args!["restore", "second@latest", out, "--force"]);
    assert_is_noise(&out, 3, 8 * MIB);
    lab.run(args!["status", "--check"]).code(0);
    lab.end_server();
    mount.unmount();
}

/// What is kept is used up, and something else took the rest: a backup keeps it again where there is room, or stores nothing.
#[test]
fn a_backup_keeps_room_for_forget_and_prune_before_it_takes_any() {
    let (lab, mount, filler) = small_lab(192, 21);
    let (disk, ballast) = (lab.path("large.img"), lab.files().join("ballast"));
    let backup = args!["backup", "large", disk, "--compression", "none", "--reserve", "0"];
    write_noise(&disk, 2, 40 * MIB);
    let manage = [
        args!["note", "first@latest", "kept"],
        args!["protect", "first@latest"],
        args!["unprotect", "first@latest"],
        args!["forget", "--last-too", "first@latest"],
        args!["prune"],
    ];
    lab.end_server();
    fs::remove_file(&ballast).expect("removes");
    lab.run(backup.clone()).code(1).says(&["no space", "room"]);
    assert_eq!(fs::metadata(&ballast).expect("is kept").len(), BALLAST_BYTES);
    // With less there is no room for both. Root has a twentieth more, which is reserved for it.
    lab.end_server();
    fs::remove_file(&ballast).expect("removes");
    fill(&mount, &mount.point.join("more"), 2);
    let before = names_in(&lab.files().join("store")).len();
    for _ in 0..2 {
        lab.run(backup.clone()).code(1).says(&[
            "is full",
            "free",
            "16 MiB kept for `vbk forget` and `vbk prune`",
            "make room",
        ]);
    }
    assert!(
        names_in(&lab.files().join("store")).len() <= before + 1,
        "nothing was stored"
    );
    for command in manage {
        lab.run(command).code(0);
    }
    fs::remove_file(filler).expect("removes");
    lab.run(backup).code(0);
    lab.ok(args!["verify"]);
    lab.end_server();
    mount.unmount();
}

/// Somebody else takes what each command leaves.
#[test]
fn commands_that_free_space_work_one_after_the_other_on_a_disk_that_stays_full() {
    let (lab, mount, _) = small_lab(192, 21);
    lab.backup("second", &lab.path("first.img"));
    let commands = [
        args!["note", "first@latest", "kept"],
        args!["protect", "first@latest"],
        args!["unprotect", "first@latest"],
        args!["forget", "--last-too", "first@latest"],
        args!["prune"],
    ];
    for (number, command) in commands.into_iter().enumerate() {
        lab.end_server();
        fill_up(&mount.point.join(format!("other-{number}")));
        lab.run(command).code(0);
    }
    assert_eq!(lab.listed().len(), 1);
    lab.ok(args!["verify"]);
    lab.end_server();
    mount.unmount();
}

#[test]
fn a_repository_on_a_file_system_that_became_read_only_can_still_be_read() {
    let (lab, mount, _) = small_lab(192, 80);
    lab.end_server();
    crate::support::tools::tool("mount", args!["-o", "remount,ro", mount.point]);
    assert_eq!(lab.listed().len(), 1);
    lab.ok(args!["verify"]);
    let dir = lab.mount("images");
    assert_is_noise(&dir.join("first/latest/vda.img"), 1, 2 * MIB);
    lab.umount(&dir);
    let said = lab.run(args!["backup", "first", lab.path("first.img")]).code(1);
    said.says(&["read-only file system", lab.repo().to_str().expect("UTF-8")]);
    lab.end_server();
    mount.unmount();
}

#[test]
fn init_without_room_leaves_no_partial_repository() {
    let mut lab = Lab::without_repo();
    let disk = Disk::plain(lab.path("small.fs"), 192);
    disk.format(0, "mkfs.ext4");
    let mount = Mount::of_device(LoopDevice::of_file(&disk.path), lab.subdir("small"));
    lab.use_repo(&mount.point.join("repo"));
    let filler = mount.point.join("filler");
    fill(&mount, &filler, 0);
    // Also what is set aside for root.
    fill_up(&mount.point.join("rest"));
    lab.run(args!["init"]).code(1).says(&["no space"]);
    lab.run(args!["list"]).code(1).says(&["not a vbk repository"]);
    fs::remove_file(filler).expect("removes");
    lab.ok(args!["init"]);
    mount.unmount();
}

/// A file system with a repository, of which each point of a test gets a copy.
struct Template {
    lab: Lab,
    image: PathBuf,
}

/// A copy of it, with a ballast file that leaves only so much free.
struct Point<'a> {
    lab: &'a Lab,
    mount: Mount,
    free_kib: u64,
}

impl Template {
    fn new(size_mib: u64, block_size: &str, fill: impl FnOnce(&Lab)) -> Self {
        let mut lab = Lab::without_repo();
        let image = lab.path("template.fs");
        File::create(&image)
            .and_then(|file| file.set_len(size_mib * MIB))
            .expect("makes a file");
        // Nothing is set aside for root, who the tests are.
        tool("mkfs.ext4", args!["-q", "-F", "-m", "0", image]);
        let mount = Mount::of_device(LoopDevice::of_file(&image), lab.subdir("small"));
        lab.use_repo(&mount.point.join("repo"));
        lab.ok(args!["init", "--block-size", block_size]);
        fill(&lab);
        lab.end_server();
        mount.unmount();
        Self { lab, image }
    }

    fn at(&self, free_kib: u64) -> Point<'_> {
        let copy = self.lab.path("point.fs");
        copy_sparse(&self.image, &copy);
        let mount = Mount::of_device(LoopDevice::of_file(&copy), self.lab.subdir("small"));
        self.lab.forget_known_repositories();
        let point = Point {
            lab: &self.lab,
            mount,
            free_kib,
        };
        point.take_space();
        point
    }
}

impl Point<'_> {
    fn free_bytes(&self) -> u64 {
        let stat = nix::sys::statvfs::statvfs(&self.mount.point).expect("is mounted");
        // Without what ext4 keeps for its own tables (2 %), which nobody can use.
        stat.blocks_available() * stat.fragment_size()
    }

    fn ballast(&self) -> PathBuf {
        self.mount.point.join("ballast")
    }

    fn take_space(&self) {
        let file = File::create(self.ballast()).expect("creates the ballast");
        // The ballast needs blocks of its own to say where it lies, so a second look is needed.
        for _ in 0..3 {
            let len = file.metadata().expect("is open").len() + self.free_bytes();
            let len = len.saturating_sub(self.free_kib * KIB);
            if len > 0 && fallocate(&file, FallocateFlags::empty(), 0, len as i64).is_err() {
                break;
            }
            file.set_len(len).expect("sizes the ballast");
        }
        if self.free_kib == 0 {
            fill_up(&self.mount.point.join("rest"));
        }
        crate::support::lab::sync(&self.mount.point);
    }

    fn give_space(&self) {
        fs::remove_file(self.ballast()).expect("removes the ballast");
        let _ = fs::remove_file(self.mount.point.join("rest"));
    }

    /// What must be possible without any room: to list, to restore, to verify.
    fn assert_readable(&self, backup: &str, seed: u64, len: u64) {
        let out = self.lab.path("out.img");
        let guest = backup.split('@').next().expect("has one");
        let listed = self.lab.listed();
        let is_listed = listed.iter().any(|name| name.starts_with(&format!("{guest}@")));
        assert!(is_listed, "{} KiB free: {listed:?}", self.free_kib);
        self.lab.ok(args!["restore", backup, out, "--force"]);
        assert_is_noise(&out, seed, len);
        // It may warn that there is no room to note the result.
        self.lab.run(args!["verify"]).code(0);
    }

    /// Succeeded, or says that room is missing.
    fn done_or_no_room(&self, said: &Said) -> bool {
        let stderr = said.stderr.to_lowercase();
        match said.status.code() {
            Some(0) => true,
            // Stored, but there was no room to show it to readers, which is said.
            Some(3) => {
                assert!(
                    stderr.contains("the backup is stored, but will not be listed"),
                    "{said}"
                );
                true
            }
            Some(1) => {
                for word in ["no space", "make room"] {
                    assert!(
                        stderr.contains(word),
                        "{} KiB free: no {word:?} in {said}",
                        self.free_kib
                    );
                }
                false
            }
            _ => panic!("{} KiB free: {said}", self.free_kib),
        }
    }

    /// With room again: everything is good, and nothing is kept that nothing needs.
    fn finish(self) {
        self.lab.ok(args!["verify"]);
        let pruned = self.lab.json(args!["prune", "--max-unused", "0%"]);
        let views = names_in(&self.lab.files().join("views"));
        assert_eq!(
            views.len(),
            4,
            "more than a view, its lock, the link and the files: {views:?}"
        );
        self.assert_small(&pruned);
        self.lab.ok(args!["verify"]);
        self.lab.end_server();
        self.mount.unmount();
    }

    fn assert_small(&self, pruned: &Value) {
        let (live, used) = (u64_of(pruned, "live_bytes"), self.used_bytes());
        let store = || tool("ls", args!["-lsi", self.lab.repo().join("store")]);
        assert!(
            used <= live + live / 10 + BALLAST_BYTES + MIB,
            "{} KiB free: {used} bytes are used for {live}: {pruned}\n{}",
            self.free_kib,
            store()
        );
    }

    fn used_bytes(&self) -> u64 {
        let kib = tool("du", args!["-sk", self.lab.files()]);
        let kib = kib.split_whitespace().next().expect("a number");
        kib.parse::<u64>().expect("a number") * KIB
    }
}

/// From nothing to more than enough: close together where only the small files of the store do not fit, then across the
/// data, then where only the last files do not fit.
fn points(data_kib: u64) -> Vec<u64> {
    let small = [0, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024];
    let across = (1..10).map(|tenth| data_kib * tenth / 10);
    let last = [0, 32, 64, 128, 192, 256, 384, 512, 1024, 4096].map(|more| data_kib + more);
    small.into_iter().chain(across).chain(last).collect()
}

#[test]
fn a_backup_on_a_full_disk_fails_cleanly_at_any_point() {
    const KNOWN: u64 = 4 * MIB;
    const LARGE: u64 = 12 * MIB;
    let template = Template::new(256, "1M", |lab| {
        write_noise(&lab.path("first.img"), 1, 2 * MIB);
        lab.backup("first", &lab.path("first.img"));
        // Blocks that a barrier covered and no backup names, as an interrupted run leaves them.
        write_noise(&lab.path("large.img"), 2, KNOWN);
        lab.backup("part", &lab.path("large.img"));
        lab.ok(args!["forget", "--last-too", "part@latest"]);
        write_noise(&lab.path("large.img"), 2, LARGE);
    });
    let backup = args![
        "--json",
        "backup",
        "large",
        template.lab.path("large.img"),
        "--reserve",
        "0"
    ];
    let mut fits = Vec::new();
    for free_kib in points((LARGE - KNOWN) / KIB) {
        let point = template.at(free_kib);
        let lab = &template.lab;
        let done = point.done_or_no_room(&lab.run(backup.clone()));
        point.assert_readable("first@latest", 1, 2 * MIB);
        point.give_space();
        let again = lab.run(backup.clone()).code(0).json();
        let (new, unchanged) = (u64_of(&again, "new_bytes"), u64_of(&again, "unchanged_bytes"));
        assert_eq!(new + unchanged, LARGE, "{free_kib} KiB free: {again}");
        let missing = if done { 0 } else { LARGE - KNOWN };
        assert!(new <= missing, "{free_kib} KiB free: {again}");
        point.assert_readable("large@latest", 2, LARGE);
        point.finish();
        fits.push(done);
    }
    assert!(!fits[0] && fits[fits.len() - 1], "{fits:?}");
}

#[test]
fn a_forget_on_a_full_disk_forgets_all_or_nothing() {
    let template = Template::new(256, "1M", |lab| {
        for seed in 1..4 {
            write_noise(&lab.path("disk.img"), seed, 2 * MIB);
            lab.backup("web1", &lab.path("disk.img"));
        }
    });
    let forget = args!["--json", "forget", "web1", "--keep-last", "1"];
    let mut fits = Vec::new();
    for free_kib in points(256) {
        let point = template.at(free_kib);
        let lab = &template.lab;
        let done = point.done_or_no_room(&lab.run(forget.clone()));
        let left = lab.listed().len();
        assert!(left == 1 || (left == 3 && !done), "{free_kib} KiB free: {left} left");
        point.assert_readable("web1@latest", 3, 2 * MIB);
        point.give_space();
        lab.run(forget.clone()).code(0);
        assert_eq!(lab.listed().len(), 1);
        point.finish();
        fits.push(done);
    }
    assert!(fits[fits.len() - 1], "{fits:?}");
}

/// Prunes at many points; gives how much had to be free for it.
fn prune_at_points(template: &Template, points: &[u64], live: (u64, u64), frees: u64) -> Option<u64> {
    let prune = args!["--json", "prune", "--max-unused", "0%"];
    let mut enough = None;
    for &free_kib in points {
        let point = template.at(free_kib);
        let lab = &template.lab;
        let before = point.used_bytes();
        let said = lab.run(prune.clone());
        let done = point.done_or_no_room(&said);
        if done {
            let given = before.saturating_sub(point.used_bytes());
            assert!(given >= frees, "{free_kib} KiB free: {given} bytes given back, {said}");
            enough = enough.or(Some(free_kib));
        }
        point.assert_readable("live@latest", live.0, live.1);
        point.give_space();
        point.finish();
    }
    enough
}

#[test]
fn prune_on_a_full_disk_frees_space_or_reports_the_shortage() {
    const LIVE: u64 = 4 * MIB;
    const ALL: u64 = 12 * MIB;
    // What is live lies between what is not, in the same files.
    let template = Template::new(256, "1M", |lab| {
        let disk = lab.path("disk.img");
        write_noise(&disk, 2, ALL);
        lab.backup("all", &disk);
        write_noise(&disk, 2, LIVE);
        lab.backup("live", &disk);
        lab.ok(args!["forget", "--last-too", "all@latest"]);
    });
    let points = [0, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 4608, 5120, 8192];
    let enough = prune_at_points(&template, &points, (2, LIVE), ALL - LIVE - MIB);
    // The live blocks are written anew before the old files go, and little else.
    assert!(enough.is_some_and(|kib| kib <= LIVE / KIB + 1024), "{enough:?}");
}

#[test]
fn prune_on_a_full_disk_frees_a_guest_beside_a_large_one() {
    const LIVE: u64 = 64 * MIB;
    let template = Template::new(256, "1M", |lab| {
        let disk = lab.path("disk.img");
        for (guest, seed, bytes) in [("dead1", 5, 8 * MIB), ("live", 3, LIVE), ("dead2", 6, 8 * MIB)] {
            write_noise(&disk, seed, bytes);
            lab.backup(guest, &disk);
        }
        lab.ok(args!["forget", "--guest", "dead1", "--guest", "dead2", "--all"]);
    });
    let enough = prune_at_points(&template, &[0, 64, 256, 512, 1024], (3, LIVE), 15 * MIB);
    assert!(enough.is_some_and(|kib| kib <= 512), "{enough:?}");
}

#[test]
fn prune_on_a_full_disk_frees_isolated_blocks_without_room_for_data() {
    const BLOCKS: u64 = 128;
    const BLOCK: u64 = 16 * MIB;
    const LIVE: u64 = 2 * MIB;
    // 2 GiB of disk with a little data in each block: as many blocks as a prune works on at once, so that the forgotten
    // ones are no neighbours of those in use.
    let template = Template::new(256, "16M", |lab| {
        let disk = lab.path("disk.img");
        crate::support::bytes::make_hole(&disk, BLOCKS * BLOCK);
        let noise = noise_bytes(5, BLOCKS * 64 * KIB);
        for (number, piece) in noise.chunks(64 * KIB as usize).enumerate() {
            write_at(&disk, number as u64 * BLOCK, piece);
        }
        lab.backup("dead", &disk);
        write_noise(&disk, 3, LIVE);
        lab.backup("live", &disk);
        lab.ok(args!["forget", "--last-too", "dead@latest"]);
    });
    let points = [0, 4, 16, 64, 128, 256, 512, 1024, 2048];
    let enough = prune_at_points(&template, &points, (3, LIVE), 7 * MIB);
    assert!(enough.is_some_and(|kib| kib <= 1024), "{enough:?}");
}
