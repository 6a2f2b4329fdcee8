//! Disks as they come: MBR with logical partitions, a GPT that lost its primary header, no table, btrfs, journals not replayed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::support::bytes::{assert_same, assert_same_range, copy_sparse, noise_bytes, write_at};
use crate::support::disk::{Disk, XFS_MIB};
use crate::support::lab::{Lab, names_in, str_of, sync};
use crate::support::run::Said;
use crate::support::tools::tool;

/// Writes a file with a part's name in it into each of these parts.
fn sign(lab: &Lab, disk: &Disk, parts: &[u32]) {
    for part in parts {
        disk.change(lab, *part, |root| {
            fs::write(root.join("name"), format!("part {part}")).expect("writes")
        });
    }
}

/// Looks at a disk's partitions as images and as files; gives what the mount of files said.
fn assert_parts(lab: &Lab, disk: &Disk, parts: &[u32]) -> Said {
    let dir = lab.mount("images");
    let backup = dir.join("web1/latest");
    assert_same(&backup.join("vda.img"), &disk.path);
    for number in parts {
        let (part, file) = (disk.part(*number), backup.join(format!("vda.p{number}.img")));
        assert_eq!(
            fs::metadata(&file).expect("is there").len(),
            part.size_bytes,
            "p{number}"
        );
        assert_same_range(&file, 0, &disk.path, part.start_bytes, part.size_bytes);
    }
    lab.umount(&dir);
    let (dir, said) = lab.mount_files("web1@latest", "files");
    for number in parts {
        let name = fs::read_to_string(dir.join(format!("p{number}/name")));
        assert_eq!(name.expect("the file is there"), format!("part {number}"));
    }
    let expected: Vec<_> = parts.iter().map(|number| format!("p{number}")).collect();
    assert_eq!(names_in(&dir), expected);
    lab.umount(&dir);
    said
}

#[test]
fn logical_partitions_have_their_linux_numbers() {
    let lab = Lab::new();
    let script = "label: dos\nx1: size=20MiB, type=83\nx2: size=80MiB, type=5\nx5: size=24MiB, type=83\n\
                  x6: size=24MiB, type=83\nx7: size=16MiB, type=83\n";
    let disk = Disk::partitioned(lab.path("mbr.img"), 112, script);
    let numbers: Vec<_> = disk.parts.iter().map(|part| part.number).collect();
    assert_eq!(numbers, [1, 2, 5, 6, 7], "as sfdisk sees it");
    let with_files = [1, 5, 6, 7];
    with_files.iter().for_each(|part| disk.format(*part, "mkfs.ext4"));
    sign(&lab, &disk, &with_files);
    lab.backup("web1", &disk.path);
    assert_parts(&lab, &disk, &with_files).done();
}

#[test]
fn a_gpt_without_its_primary_header_is_read_from_the_backup_header() {
    let lab = Lab::new();
    let disk = Disk::partitioned(lab.path("gpt.img"), 64, "label: gpt\nsize=20MiB\nsize=20MiB\n");
    [1, 2].iter().for_each(|part| disk.format(*part, "mkfs.ext4"));
    sign(&lab, &disk, &[1, 2]);
    write_at(&disk.path, 512, &[0; 512]);
    lab.backup("web1", &disk.path);
    // It works, and somebody should know.
    assert_parts(&lab, &disk, &[1, 2])
        .code(3)
        .says(&["primary GPT header", "backup"]);
}

#[test]
fn a_gpt_with_an_overwritten_primary_table_is_read_from_the_backup_table() {
    let lab = Lab::new();
    let disk = Disk::partitioned(lab.path("gpt.img"), 64, "label: gpt\nsize=20MiB\nsize=20MiB\n");
    [1, 2].iter().for_each(|part| disk.format(*part, "mkfs.ext4"));
    sign(&lab, &disk, &[1, 2]);
    // The header is good, its checksum of the entries is not.
    write_at(&disk.path, 1024, &noise_bytes(1, 4096));
    lab.backup("web1", &disk.path);
    // It works, and somebody should know.
    assert_parts(&lab, &disk, &[1, 2])
        .code(3)
        .says(&["primary GPT header", "backup"]);
}

#[test]
fn a_disk_without_a_table_is_mounted_at_the_directory_itself() {
    let lab = Lab::new();
    let disk = Disk::plain(lab.path("plain.img"), 64);
    disk.format(0, "mkfs.ext4");
    sign(&lab, &disk, &[0]);
    lab.backup("web1", &disk.path);
    let dir = lab.mount("images");
    assert_eq!(names_in(&dir.join("web1/latest")), ["backup.json", "vda.img"]);
    lab.umount(&dir);
    let (dir, said) = lab.mount_files("web1@latest", "files");
    said.done();
    assert_eq!(
        fs::read_to_string(dir.join("name")).expect("the file is there"),
        "part 0"
    );
    lab.umount(&dir);
}

#[test]
fn files_of_each_disk_are_in_a_directory_with_its_name() {
    let lab = Lab::new();
    let root = Disk::partitioned(lab.path("root.img"), 40, "label: gpt\nsize=20MiB\nsize=16MiB\n");
    [1, 2].iter().for_each(|part| root.format(*part, "mkfs.ext4"));
    sign(&lab, &root, &[1, 2]);
    let data = Disk::plain(lab.path("data.img"), 20);
    data.format(0, "mkfs.ext4");
    sign(&lab, &data, &[0]);
    let named = |name: &str, disk: &Disk| format!("{name}={}", disk.path.display());
    lab.ok(args!["backup", "web1", named("vda", &root), named("vdb", &data)]);
    let (dir, said) = lab.mount_files("web1@latest", "files");
    said.done();
    for (place, content) in [("vda/p1", "part 1"), ("vda/p2", "part 2"), ("vdb", "part 0")] {
        assert_eq!(
            fs::read_to_string(dir.join(place).join("name")).expect("is there"),
            content
        );
    }
    lab.umount(&dir);
    // One disk of several, by its name.
    let (dir, said) = lab.mount_files("web1@latest/vdb", "one");
    said.done();
    let name = fs::read_to_string(dir.join("name")).or_else(|_| fs::read_to_string(dir.join("vdb/name")));
    assert_eq!(name.expect("is there"), "part 0");
    assert!(!dir.join("vda").exists());
    lab.umount(&dir);
}

#[test]
fn btrfs_is_mounted_like_the_others() {
    let lab = Lab::new();
    let disk = Disk::partitioned(lab.path("btrfs.img"), 132, "label: gpt\nsize=128MiB\n");
    disk.format(1, "mkfs.btrfs");
    sign(&lab, &disk, &[1]);
    lab.backup("web1", &disk.path);
    assert_parts(&lab, &disk, &[1]).done();
}

#[test]
fn an_empty_disk_and_unknown_bytes_are_listed_with_the_reason() {
    let lab = Lab::new();
    let disk = Disk::partitioned(
        lab.path("disk.img"),
        40,
        "label: gpt\nsize=8MiB\nsize=8MiB\nsize=8MiB\nsize=1MiB\nsize=1MiB\n",
    );
    write_at(&disk.path, disk.part(2).start_bytes, &noise_bytes(1, 1 << 20));
    disk.format(3, "mkfs.ext4");
    sign(&lab, &disk, &[3]);
    let mut label = vec![0; 32];
    label[..8].copy_from_slice(b"LABELONE");
    label[24..].copy_from_slice(b"LVM2 001");
    write_at(&disk.path, disk.part(4).start_bytes + 512, &label);
    write_at(&disk.path, disk.part(5).start_bytes, b"LUKS\xba\xbe\0\x02");
    lab.backup("web1", &disk.path);
    let (dir, said) = lab.mount_files("web1@latest", "files");
    let answer = said.code(3).says(&["left out", "p4", "p5", "guestmount"]).json();
    for (place, word) in [(0, "empty"), (1, "unknown"), (3, "LVM"), (4, "LUKS")] {
        let reason = str_of(&answer["volumes"][place], "reason");
        assert!(reason.contains(word), "no {word:?} in {answer}");
    }
    assert_eq!(names_in(&dir), ["p3"]);
    lab.umount(&dir);

    // Nothing at all to mount is a failure that says so, and leaves nothing.
    write_at(&lab.path("zeros.img"), 0, &[0; 4096]);
    lab.backup("void", &lab.path("zeros.img"));
    let dir = lab.subdir("void");
    let said = lab.run(args!["mount", "void@latest", "--files", dir]).code(1);
    assert!(said.text().contains("empty"), "{said}");
    let said = said.says(&["no file system", "void@"]);
    assert!(
        !said.text().contains("vbk umount"),
        "there is nothing to take down: {said}"
    );
    assert!(crate::support::kernel::mounts_at(&dir).is_empty());
}

#[test]
fn a_damaged_file_system_does_not_stop_the_others() {
    let lab = Lab::new();
    let disk = Disk::partitioned(lab.path("disk.img"), 52, "label: gpt\nsize=24MiB\nsize=24MiB\n");
    [1, 2].iter().for_each(|part| disk.format(*part, "mkfs.ext4"));
    sign(&lab, &disk, &[2]);
    // Behind the superblock, where the block groups are described.
    write_at(&disk.path, disk.part(1).start_bytes + 2048, &noise_bytes(1, 512 << 10));
    lab.backup("web1", &disk.path);
    let (dir, said) = lab.mount_files("web1@latest", "files");
    assert!(matches!(said.status.code(), Some(0 | 3)), "{said}");
    let answer = said.json();
    assert_eq!(answer["volumes"][0]["mounted"], false, "{answer}");
    assert!(str_of(&answer["volumes"][0], "reason").contains("ext4"), "{answer}");
    assert_eq!(fs::read_to_string(dir.join("p2/name")).expect("is there"), "part 2");
    assert_eq!(names_in(&dir), ["p2"]);
    lab.umount(&dir);
}

#[test]
fn a_dozen_partitions_are_mounted_and_taken_down() {
    let lab = Lab::new();
    let script = format!("label: gpt\n{}", "size=4MiB\n".repeat(12));
    let disk = Disk::partitioned(lab.path("disk.img"), 52, &script);
    let numbers: Vec<u32> = (1..=12).collect();
    numbers.iter().for_each(|part| disk.format(*part, "mkfs.ext4"));
    sign(&lab, &disk, &numbers);
    lab.backup("web1", &disk.path);
    let (dir, said) = lab.mount_files("web1@latest", "files");
    said.done();
    for part in numbers {
        let name = fs::read_to_string(dir.join(format!("p{part}/name")));
        assert_eq!(name.expect("is there"), format!("part {part}"));
    }
    lab.umount(&dir);
}

/// A copy of a disk with its file system mounted and just written to, as a snapshot of a running guest gives it.
fn copy_of_a_running_guest(lab: &Lab, mkfs: &str, size_mib: u64, write: impl FnOnce(&Path)) -> PathBuf {
    let disk = Disk::plain(lab.path("running.img"), size_mib);
    disk.format(0, mkfs);
    disk.change(lab, 0, |root| {
        fs::write(root.join("old"), "written long ago").expect("writes")
    });
    let mount = disk.mount(lab, 0);
    write(&mount.point);
    File::open(mount.node())
        .and_then(|device| device.sync_all())
        .expect("syncs");
    let copy = lab.path("crashed.img");
    copy_sparse(&disk.path, &copy);
    mount.unmount();
    copy
}

/// Mounts a crashed disk as its journal says, then as it lies there.
fn assert_replays(lab: &Lab, image: &Path, option: &str) {
    lab.backup("web1", image);
    let before = fs::read(image).expect("reads");
    let (dir, said) = lab.mount_files("web1@latest", "files");
    let said = said.done();
    let volume = &said.json()["volumes"][0];
    assert_eq!(volume["mounted"], true, "{said}");
    assert!(str_of(volume, "options").starts_with("ro,"), "{said}");
    assert!(str_of(volume, "repaired").contains("was replayed"), "{said}");
    assert_eq!(fs::read_to_string(dir.join("old")).expect("reads"), "written long ago");
    assert_eq!(fs::read_to_string(dir.join("new")).expect("reads"), "just now");
    fs::write(dir.join("more"), "x").expect_err("it is read-only");
    lab.umount(&dir);

    let said = lab
        .run(args!["--json", "mount", "web1@latest", "--files", dir, "--no-replay"])
        .code(3);
    lab.note_hidden(&dir);
    let volume = &said.json()["volumes"][0];
    assert!(str_of(volume, "warning").contains("journal"), "{said}");
    assert!(str_of(volume, "options").contains(option), "{said}");
    assert_eq!(fs::read_to_string(dir.join("old")).expect("reads"), "written long ago");
    lab.umount(&dir);
    // For people the same in words.
    let said = lab
        .run(args!["mount", "web1@latest", "--files", dir, "--no-replay"])
        .code(3);
    lab.note_hidden(&dir);
    let words = format!("{}{}", said.text(), said.stderr);
    assert!(words.contains("journal") && words.contains(option), "{said}");
    lab.umount(&dir);
    assert_restores(lab, "web1@latest", &before);
}

/// Nothing that a mount writes gets into the backup.
fn assert_restores(lab: &Lab, backup: &str, content: &[u8]) {
    let copy = lab.path("restored.img");
    lab.ok(args!["restore", backup, copy, "--force"]);
    assert!(fs::read(&copy).expect("reads") == content, "the backup changed");
}

#[test]
fn writes_to_a_mount_are_seen_in_it_and_end_with_it() {
    let lab = Lab::new();
    let disk = Disk::plain(lab.path("disk.img"), 64);
    disk.format(0, "mkfs.ext4");
    disk.change(&lab, 0, |root| {
        fs::write(root.join("old"), "as it was").expect("writes")
    });
    lab.backup("web1", &disk.path);
    let before = fs::read(&disk.path).expect("reads");
    let dir = lab.subdir("files");
    for keep in [false, true] {
        let kept = lab.path("kept");
        let mut arguments = args!["mount", "web1@latest", "--files", dir, "--writable"];
        if keep {
            arguments.extend(args!["--save", kept]);
        }
        lab.ok(arguments);
        lab.note_hidden(&dir);
        assert_eq!(fs::read_to_string(dir.join("old")).expect("reads"), "as it was");
        fs::write(dir.join("old"), "changed").expect("writes");
        fs::write(dir.join("new"), vec![7; 5 << 20]).expect("writes");
        sync(&dir);
        fs::write("/proc/sys/vm/drop_caches", "3").expect("drops");
        assert!(fs::read(dir.join("new")).expect("reads") == vec![7; 5 << 20]);
        lab.umount(&dir);
        assert_eq!(kept.exists(), keep);
    }
    assert_restores(&lab, "web1@latest", &before);
}

#[test]
fn kept_writes_are_restored_with_the_backup() {
    for mkfs in ["mkfs.ext4", "mkfs.btrfs"] {
        let lab = Lab::new();
        let disk = Disk::partitioned(lab.path("disk.img"), 160, "label: gpt\nsize=8MiB\nsize=+\n");
        disk.format(2, mkfs);
        disk.change(&lab, 2, |root| {
            fs::write(root.join("old"), "as it was").expect("writes")
        });
        lab.backup("web1", &disk.path);
        let uuid = uuid_of(&disk);
        let (dir, kept) = (lab.subdir("files"), lab.path("kept"));
        lab.ok(args![
            "mount",
            "web1@latest",
            "--files",
            dir,
            "--writable",
            "--save",
            kept
        ]);
        lab.note_hidden(&dir);
        fs::write(dir.join("p2/old"), "changed").expect("writes");
        fs::write(dir.join("p2/new"), noise_bytes(3, 7 << 20)).expect("writes");
        lab.umount(&dir);

        lab.ok(args!["restore", "web1@latest", disk.path, "--force", "--changes", kept]);
        assert_eq!(uuid_of(&disk), uuid, "{mkfs}");
        disk.change(&lab, 2, |root| {
            assert_eq!(
                fs::read_to_string(root.join("old")).expect("reads"),
                "changed",
                "{mkfs}"
            );
            assert!(
                fs::read(root.join("new")).expect("reads") == noise_bytes(3, 7 << 20),
                "{mkfs}"
            );
        });
        lab.backup("web1", &disk.path);
        let said = lab.run(args!["restore", "web1@latest", lab.path("out.img"), "--changes", kept]);
        said.code(2).says(&["another backup"]);
    }
}

/// The UUID of the file system in the second part.
fn uuid_of(disk: &Disk) -> String {
    let offset = disk.part(2).start_bytes.to_string();
    tool(
        "blkid",
        args!["-p", "-O", offset, "-s", "UUID", "-o", "value", disk.path],
    )
}

#[test]
fn a_full_scratch_file_fails_the_guest_and_not_the_host() {
    let lab = Lab::new();
    let disk = Disk::plain(lab.path("disk.img"), 64);
    fs::write(&disk.path, vec![1; 64 << 20]).expect("writes");
    lab.backup("web1", &disk.path);
    let dir = lab.subdir("images");
    lab.ok(args!["mount", "web1@latest", dir, "--writable", "--scratch-size", "4M"]);
    let image = File::options()
        .read(true)
        .write(true)
        .open(dir.join("vda.img"))
        .expect("opens");
    image
        .write_all_at(&[2; 4 << 20], 8 << 20)
        .expect("there is room for this");
    let error = image.write_all_at(&[2; 4096], 0).expect_err("is full");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    image
        .write_all_at(&[3; 4096], 8 << 20)
        .expect("what is there can be written again");
    let mut bytes = [0; 8192];
    image.read_exact_at(&mut bytes, (8 << 20) - 4096).expect("reads");
    assert!(bytes[..4096] == [1; 4096] && bytes[4096..] == [3; 4096]);
    drop(image);
    lab.umount(&dir);
}

#[test]
fn an_ext4_journal_is_replayed() {
    let lab = Lab::new();
    let image = copy_of_a_running_guest(&lab, "mkfs.ext4", 64, |root| {
        fs::write(root.join("new"), "just now").expect("writes");
        sync(root);
    });
    assert_replays(&lab, &image, "noload");
}

#[test]
fn an_xfs_log_is_replayed() {
    let lab = Lab::new();
    let image = copy_of_a_running_guest(&lab, "mkfs.xfs", XFS_MIB, |root| {
        fs::write(root.join("new"), "just now").expect("writes");
        sync(root);
    });
    assert_replays(&lab, &image, "norecovery");
}

#[test]
fn a_btrfs_log_is_replayed() {
    let lab = Lab::new();
    let image = copy_of_a_running_guest(&lab, "mkfs.btrfs", 128, |root| {
        // An fsync alone: a sync of all would end the log.
        let file = File::create(root.join("new")).expect("creates");
        std::io::Write::write_all(&mut &file, b"just now")
            .and_then(|()| file.sync_all())
            .expect("writes");
    });
    assert_replays(&lab, &image, "nologreplay");
}
