//! Many things in one mount, other block sizes, and sizes that nothing divides.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::{Whence, lseek64};

use crate::support::bytes::{
    KIB, MIB, assert_is_noise, assert_same, assert_same_range, make_hole, noise_bytes, read_at, size_of, write_at,
    write_noise,
};
use crate::support::kernel;
use crate::support::lab::{Lab, names_in, str_of, u64_of};

const TIB: u64 = 1 << 40;

#[test]
fn guests_and_disks_of_any_size_share_one_mount() {
    let lab = Lab::new();
    let sizes = [
        ("empty", 0),
        ("byte", 1),
        ("sector", 512),
        ("odd", 64 * MIB + 12345),
        ("block", MIB),
        ("under", MIB - 1),
        ("over", MIB + 1),
        ("page", 64 * KIB + 1),
    ];
    for (seed, (guest, size)) in (0..).zip(sizes) {
        let image = lab.path(&format!("{guest}.img"));
        write_noise(&image, seed, size);
        // An empty disk is kept, with a question whether it is the right one.
        let code = if size == 0 { 3 } else { 0 };
        let backup = lab
            .run(args!["--json", "backup", guest, image, "--raw"])
            .code(code)
            .json();
        assert_eq!(u64_of(&backup, "size_bytes"), size, "{guest}");
        assert_eq!(u64_of(&backup, "new_bytes"), size, "{guest}");
    }
    let dir = lab.mount("images");
    let mut guests: Vec<_> = sizes.iter().map(|(guest, _)| guest.to_string()).collect();
    guests.sort();
    assert_eq!(names_in(&dir), guests);
    for (seed, (guest, size)) in (0..).zip(sizes) {
        assert_is_noise(&dir.join(guest).join("latest/vda.img"), seed, size);
        let out = lab.path(&format!("{guest}.out"));
        lab.ok(args!["restore", format!("{guest}@latest"), out]);
        assert_is_noise(&out, seed, size);
    }
    lab.umount(&dir);
    lab.ok(args!["verify"]);
}

#[test]
fn several_disks_of_a_guest_are_one_backup() {
    let lab = Lab::new();
    let names = ["vda", "vdb", "data.1"];
    let named = |name: &str| format!("{name}={}", lab.path(name).display());
    for (seed, name) in (0..).zip(names) {
        write_noise(&lab.path(name), seed, (seed + 1) * MIB + 512);
    }
    let backup = lab.json(args!["backup", "db", named("vda"), named("vdb"), named("data.1")]);
    let disks: Vec<_> = backup["disks"]
        .as_array()
        .expect("disks")
        .iter()
        .map(|disk| str_of(disk, "disk"))
        .collect();
    assert_eq!(disks, names);
    assert_eq!(u64_of(&backup, "size_bytes"), 6 * MIB + 3 * 512);
    let dir = lab.mount("images");
    let latest = dir.join("db/latest");
    assert_eq!(names_in(&latest), ["backup.json", "data.1.img", "vda.img", "vdb.img"]);
    for name in names {
        assert_same(&latest.join(format!("{name}.img")), &lab.path(name));
    }
    lab.umount(&dir);
}

/// Two days with one byte changed, in a repository with this block size.
fn two_backups_with_blocks_of(words: &str, block_bytes: u64) {
    let lab = Lab::without_repo();
    lab.ok(args!["init", "--block-size", words]);
    let size = 64 * MIB + 3 * 4096 + 512;
    let image = lab.path("disk.img");
    write_noise(&image, 1, size);
    // A hole in the middle, smaller than the largest block, and a disk that ends in the middle of a page.
    let (hole_at, hole_len) = (20 * MIB, 9 * MIB);
    write_at(&image, hole_at, &vec![0; hole_len as usize]);
    let first = lab.backup("web1", &image);
    if block_bytes < hole_len {
        assert!(u64_of(&first, "zero_bytes") >= hole_len - 2 * block_bytes, "{first}");
    }
    let changed_at = 40 * MIB + 5;
    let before = read_at(&image, changed_at, 1).expect("reads")[0];
    write_at(&image, changed_at, &[!before]);
    write_at(&image, size - 1, &[!noise_bytes(1, size)[size as usize - 1]]);
    let second = lab.backup("web1", &image);
    let last_block = match size % block_bytes {
        0 => block_bytes,
        rest => rest,
    };
    assert_eq!(
        u64_of(&second, "new_bytes"),
        block_bytes + last_block,
        "one block and the last: {second}"
    );

    let time = |backup: &serde_json::Value| str_of(backup, "backup").split_once('@').expect("a time").1.to_owned();
    let dir = lab.mount("images");
    assert_same(&dir.join("web1").join(time(&second)).join("vda.img"), &image);
    let older = dir.join("web1").join(time(&first)).join("vda.img");
    assert_eq!(read_at(&older, changed_at, 1).expect("reads")[0], before);
    write_at(&image, changed_at, &[before]);
    write_at(&image, size - 1, &noise_bytes(1, size)[size as usize - 1..]);
    assert_same(&older, &image);
    lab.umount(&dir);
    let out = lab.path("out.img");
    lab.ok(args!["restore", str_of(&first, "backup"), out]);
    assert_same(&out, &image);
    let verified = lab.json(args!["verify"]);
    assert_eq!(u64_of(&verified, "backups"), 2);
}

#[test]
fn blocks_may_be_as_small_as_64_kib() {
    two_backups_with_blocks_of("64K", 64 * KIB);
}

#[test]
fn blocks_may_be_as_large_as_16_mib() {
    two_backups_with_blocks_of("16M", 16 * MIB);
}

#[test]
fn compressed_and_raw_backups_give_the_same_bytes() {
    let lab = Lab::new();
    let image = lab.path("disk.img");
    let text = "a line that can be made smaller, ".repeat(102_400);
    fs::write(&image, &text).expect("writes");
    let mut stored = Vec::new();
    for (guest, level) in [("none", "none"), ("fast", "1"), ("best", "19")] {
        // Other content each time, or all but the first would find every block stored.
        write_at(&image, 0, guest.as_bytes());
        write_at(&image, MIB, guest.as_bytes());
        let backup = lab.json(args!["backup", guest, image, "--compression", level]);
        stored.push(u64_of(&backup, "stored_bytes"));
        let out = lab.path(guest);
        lab.ok(args!["restore", format!("{guest}@latest"), out]);
        assert_same(&out, &image);
    }
    assert!(
        stored[0] >= 2 * MIB && stored[1] < MIB / 4 && stored[2] <= stored[1],
        "{stored:?}"
    );
}

#[test]
fn a_sparse_terabyte_disk_costs_only_its_data() {
    let lab = Lab::new();
    let image = lab.path("huge.img");
    make_hole(&image, TIB);
    let places = [0, 300 << 30, TIB - MIB];
    for (seed, at) in (0..).zip(places) {
        write_at(&image, at, &noise_bytes(seed, MIB));
    }
    let started = Instant::now();
    let backup = lab.backup("huge", &image);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "took {:?}",
        started.elapsed()
    );
    assert_eq!(u64_of(&backup, "size_bytes"), TIB);
    assert_eq!(u64_of(&backup, "new_bytes"), 3 * MIB);
    assert_eq!(u64_of(&backup, "zero_bytes"), TIB - 3 * MIB);

    let dir = lab.mount("images");
    let mounted = dir.join("huge/latest/vda.img");
    assert_eq!(fs::metadata(&mounted).expect("is there").len(), TIB);
    for (seed, at) in (0..).zip(places) {
        assert!(
            read_at(&mounted, at, MIB).expect("reads") == noise_bytes(seed, MIB),
            "at {at}"
        );
    }
    assert!(read_at(&mounted, 500 << 30, 4 * MIB).expect("reads") == vec![0; 4 << 20]);
    lab.umount(&dir);

    let started = Instant::now();
    let out = lab.path("out.img");
    lab.ok(args!["restore", "huge@latest", out]);
    lab.ok(args!["verify"]);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "took {:?}",
        started.elapsed()
    );
    assert_eq!(size_of(&out), TIB);
    let blocks = fs::metadata(&out).expect("is there").blocks() * 512;
    assert!(blocks < 16 * MIB, "{blocks} bytes on disk");
    for (seed, at) in (0..).zip(places) {
        assert!(
            read_at(&out, at, MIB).expect("reads") == noise_bytes(seed, MIB),
            "at {at}"
        );
    }
}

#[test]
fn holes_of_a_mounted_image_are_found_without_reading_them() {
    let lab = Lab::new();
    let image = lab.path("huge.img");
    make_hole(&image, TIB);
    let data_at = 300 << 30;
    write_at(&image, data_at, &noise_bytes(1, MIB));
    lab.backup("huge", &image);
    let dir = lab.mount("images");
    let mounted = File::open(dir.join("huge/latest/vda.img")).expect("opens");
    let started = Instant::now();
    let seek = |from: u64, whence| lseek64(&mounted, i64::try_from(from).expect("small"), whence).map(|at| at as u64);
    assert_eq!(seek(0, Whence::SeekHole), Ok(0), "it begins with a hole");
    assert_eq!(seek(0, Whence::SeekData), Ok(data_at));
    assert_eq!(seek(data_at, Whence::SeekHole), Ok(data_at + MIB));
    assert_eq!(
        seek(data_at + MIB, Whence::SeekData),
        Err(nix::errno::Errno::ENXIO),
        "no data to the end"
    );
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "took {:?}",
        started.elapsed()
    );
    drop(mounted);
    lab.umount(&dir);
}

#[test]
fn paths_may_have_spaces_and_letters_of_all_kinds() {
    let lab = Lab::without_repo();
    let place = lab.subdir("Ort mit \u{e4}\u{20ac} und \\ ' \"");
    let repo = place.join("re po");
    let vbk = |args: Vec<std::ffi::OsString>| {
        let mut all = args!["--repo", repo];
        all.extend(args);
        lab.start_bare(all).wait().done().text()
    };
    vbk(args!["init"]);
    let image = place.join("disk = 1.img");
    make_ext4(&lab, &image);
    vbk(args!["backup", "m\u{fc}nchen", format!("vda={}", image.display())]);
    let (images, files) = (place.join("the images"), place.join("the files"));
    [&images, &files]
        .iter()
        .for_each(|dir| fs::create_dir(dir).expect("makes a directory"));
    vbk(args!["mount", images]);
    vbk(args!["mount", "m\u{fc}nchen@latest", "--files", files]);
    lab.note_hidden(&files);
    assert_same(&images.join("m\u{fc}nchen/latest/vda.img"), &image);
    assert_eq!(fs::read_to_string(files.join("name")).expect("reads"), "hello");
    vbk(args!["umount", images]);
    vbk(args!["umount", files]);
    lab.assert_nothing_left();
}

fn make_ext4(lab: &Lab, image: &Path) {
    let disk = crate::support::disk::Disk::plain(lab.path("made.img"), 16);
    disk.format(0, "mkfs.ext4");
    disk.change(lab, 0, |root| fs::write(root.join("name"), "hello").expect("writes"));
    fs::rename(&disk.path, image).expect("renames");
}

#[test]
fn two_backups_in_one_second_have_distinct_times() {
    let lab = Lab::new();
    let image = lab.path("disk.img");
    for seed in 0..4 {
        write_noise(&image, seed, MIB);
        lab.backup("web1", &image);
    }
    let listed = lab.listed();
    assert_eq!(listed.len(), 4);
    assert!(
        listed.is_sorted() && listed.windows(2).all(|pair| pair[0] != pair[1]),
        "{listed:?}"
    );
    let out = lab.path("out.img");
    lab.ok(args!["restore", listed[2], out]);
    assert_is_noise(&out, 2, MIB);
    // A file that somebody may write to is no disk that stands still.
    let open = OpenOptions::new().write(true).open(&image).expect("opens");
    let said = lab.run(args!["backup", "web1", image]).code(75);
    said.says(&["disk.img is in use (open for writing in process", "--live"]);
    lab.run(args!["backup", "web1", image, "--live"])
        .code(3)
        .says(&["may be of different moments"]);
    assert_eq!(lab.json(args!["show", "web1@latest"])["consistency"], "live");
    drop(open);
    lab.backup("web1", &image);
}

#[test]
fn a_disk_may_grow_and_shrink_between_backups() {
    let lab = Lab::new();
    let image = lab.path("disk.img");
    let sizes = [3 * MIB + 512, 9 * MIB, 70 * KIB, 9 * MIB + 4096];
    for (number, size) in sizes.into_iter().enumerate() {
        write_noise(&image, 1, size);
        let said = lab.run(args!["backup", "web1", image]);
        match number {
            // It may be another guest's.
            2 => said.code(3).says(&["has 70 KiB, but had 9 MiB in the latest backup"]),
            _ => said.done(),
        };
    }
    let dir = lab.mount("images");
    for (backup, size) in lab.listed().iter().zip(sizes) {
        let time = backup.split_once('@').expect("a time").1;
        assert_is_noise(&dir.join("web1").join(time).join("vda.img"), 1, size);
    }
    lab.umount(&dir);
}

#[test]
fn many_readers_at_once_get_the_right_bytes() {
    let lab = Lab::new();
    let size = 40 * MIB;
    for seed in 0..3 {
        write_noise(&lab.path("disk.img"), seed, size);
        lab.backup(&format!("web{seed}"), &lab.path("disk.img"));
    }
    let dir = lab.mount("images");
    let contents: Vec<_> = (0..3).map(|seed| noise_bytes(seed, size)).collect();
    std::thread::scope(|scope| {
        for reader in 0..8_u64 {
            let (dir, contents) = (&dir, &contents);
            scope.spawn(move || {
                // Each its own way through the three disks, with lengths from a byte to 2 MiB.
                let choices = noise_bytes(100 + reader, 3 * 8 * 60);
                for choice in choices.chunks(24) {
                    let number = |at: usize| u64::from_le_bytes(choice[at..at + 8].try_into().expect("eight bytes"));
                    let seed = (number(0) % 3) as usize;
                    let at = number(8) % (size - 1);
                    let len = (1 + number(16) % (2 * MIB)).min(size - at);
                    let bytes = read_at(&dir.join(format!("web{seed}/latest/vda.img")), at, len).expect("reads");
                    let expected = &contents[seed][at as usize..(at + len) as usize];
                    assert!(bytes == expected, "{len} bytes at {at} of web{seed}");
                }
            });
        }
    });
    lab.umount(&dir);
}

#[test]
fn memory_stays_below_300_mib_whatever_the_disk_and_the_blocks() {
    const LIMIT: u64 = 300 * MIB;
    for block_size in ["64K", "16M"] {
        let lab = Lab::without_repo();
        lab.ok(args!["init", "--block-size", block_size]);
        // A terabyte of slots, and half a gigabyte that must be read.
        let image = lab.path("disk.img");
        write_noise(&image, 1, 512 * MIB);
        File::options()
            .write(true)
            .open(&image)
            .and_then(|file| file.set_len(TIB))
            .expect("grows");
        write_at(&image, TIB - MIB, &noise_bytes(2, MIB));
        let out = lab.path("out.img");
        for command in [
            args!["backup", "web1", image],
            args!["backup", "web1", image],
            args!["verify"],
            args!["restore", "web1@latest", out],
        ] {
            let said = lab.run(command).done();
            assert!(said.peak_bytes > MIB, "it was looked at");
            let mib = said.peak_bytes / MIB;
            assert!(said.peak_bytes < LIMIT, "{mib} MiB with blocks of {block_size}: {said}");
        }
        let dir = lab.subdir("images");
        let pid = u64_of(&lab.json(args!["mount", dir]), "pid");
        assert_same_range(&dir.join("web1/latest/vda.img"), 0, &image, 0, 512 * MIB);
        let peak = kernel::peak_bytes_of(u32::try_from(pid).expect("a pid")).expect("runs");
        assert!(
            peak < LIMIT,
            "{} MiB of the mount with blocks of {block_size}",
            peak / MIB
        );
        lab.umount(&dir);
    }
}
