//! What holds a disk's files when that is no file system of Linux right on a partition: mirrors, volume groups, other sectors, NTFS.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::support::bytes::{make_hole, write_at};
use crate::support::disk::{Disk, Part, XFS_MIB};
use crate::support::lab::{Lab, names_in, str_of};
use crate::support::tools::{tool, try_tool};

fn sign(lab: &Lab, disk: &Disk, part: u32) {
    disk.change(lab, part, |root| {
        fs::write(root.join("word"), "precious").expect("writes")
    });
}

fn word(dir: &Path) -> String {
    fs::read_to_string(dir.join("word")).expect("the file is there")
}

#[test]
fn a_skipped_volume_that_may_hold_files_is_a_warning() {
    let lab = Lab::new();
    let disk = Disk::partitioned(
        lab.path("disk.img"),
        80,
        "label: gpt\nsize=20MiB\nsize=40MiB\nsize=8MiB, type=swap\n",
    );
    disk.format(1, "mkfs.ext4");
    disk.format(3, "mkswap");
    sign(&lab, &disk, 1);
    let device = disk.attach(2);
    tool("pvcreate", args!["-q", "--devices", device.node, device.node]);
    tool(
        "vgcreate",
        args!["-q", "--devices", device.node, "guestvg", device.node],
    );
    device.detach();
    lab.backup("rhel", &disk.path);
    let (dir, said) = lab.mount_files("rhel@latest", "files");
    let said = said.code(3).says(&["left out", "p2", "guestmount"]);
    assert!(!said.stderr.contains("p3"), "swap is nothing to miss: {said}");
    let answer = said.json();
    assert_eq!(
        str_of(&answer["volumes"][1], "reason"),
        "LVM physical volume of group guestvg"
    );
    assert_eq!(word(&dir.join("p1")), "precious");
    lab.umount(&dir);
}

#[test]
fn a_swap_page_inside_xfs_is_not_probed_as_swap() {
    let lab = Lab::new();
    let disk = Disk::plain(lab.path("disk.img"), XFS_MIB);
    disk.format(0, "mkfs.xfs");
    // A free block: the root's inodes begin in the next one.
    let mut page = vec![0; 4096];
    page[4086..].copy_from_slice(b"SWAPSPACE2");
    write_at(&disk.path, 15 * 4096, &page);
    sign(&lab, &disk, 0);
    lab.backup("web1", &disk.path);
    let (dir, said) = lab.mount_files("web1@latest", "files");
    said.done();
    assert_eq!(word(&dir), "precious");
    lab.umount(&dir);
}

#[test]
fn ntfs_is_mounted_with_and_without_a_driver_of_the_kernel() {
    let lab = Lab::new();
    let disk = lab.path("disk.img");
    make_hole(&disk, 64 << 20);
    tool("mkfs.ntfs", args!["-q", "-F", disk]);
    fs::write(lab.path("word"), "precious").expect("writes");
    tool("ntfscp", args![disk, lab.path("word"), "word"]);
    lab.backup("win", &disk);
    let (dir, said) = lab.mount_files("win@latest", "files");
    said.done();
    assert_eq!(word(&dir), "precious");
    assert!(fs::write(dir.join("word"), "x").is_err());
    lab.umount(&dir);
    lab.assert_nothing_left();
}

/// A superblock of md metadata 1.0 behind a file system: level 1, this device in sync.
fn md1(at: u64, data_bytes: u64, events: u8) -> Vec<u8> {
    let mut sb = vec![0; 258];
    let mut put = |offset: usize, bytes: &[u8]| sb[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &0xa92b_4efc_u32.to_le_bytes());
    put(4, &[1]);
    put(16, &[0x5a; 16]);
    put(32, b"web:0");
    put(72, &[1]);
    put(80, &(data_bytes / 512).to_le_bytes());
    put(92, &[2]);
    put(144, &(at / 512).to_le_bytes());
    put(200, &[events]);
    put(220, &[1]);
    let sum: u64 = sb
        .chunks(4)
        .map(|word| word.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
        .sum();
    sb[216..220].copy_from_slice(&((sum >> 32) + (sum & 0xffff_ffff)).to_le_bytes()[..4]);
    sb
}

#[test]
fn a_current_half_of_a_mirror_is_mounted_and_a_stale_half_is_not() {
    let lab = Lab::new();
    let (size, data) = (40_u64 << 20, 32_u64 << 20);
    let disk = Disk {
        path: lab.path("new.img"),
        parts: vec![Part {
            number: 0,
            start_bytes: 0,
            size_bytes: data,
        }],
    };
    make_hole(&disk.path, size);
    disk.format(0, "mkfs.ext4");
    sign(&lab, &disk, 0);
    let old = lab.path("old.img");
    fs::copy(&disk.path, &old).expect("copies");
    write_at(&disk.path, size - 8192, &md1(size - 8192, data, 9));
    write_at(&old, size - 8192, &md1(size - 8192, data, 7));
    let named = |name: &str, disk: &Path| format!("{name}={}", disk.display());
    lab.ok(args!["backup", "raid", named("vda", &old), named("vdb", &disk.path)]);
    let (dir, said) = lab.mount_files("raid@latest", "files");
    let answer = said.done().json();
    assert_eq!(names_in(&dir), ["vdb"]);
    assert_eq!(word(&dir.join("vdb")), "precious");
    assert!(
        str_of(&answer["volumes"][0], "reason").contains("out-of-date"),
        "{answer}"
    );
    lab.umount(&dir);
}

#[test]
fn an_mbr_of_a_disk_with_large_sectors_is_read() {
    let lab = Lab::new();
    let path = lab.path("disk.img");
    make_hole(&path, 72 << 20);
    let part = |number, mib: u64, len: u64| Part {
        number,
        start_bytes: mib << 20,
        size_bytes: len << 20,
    };
    let disk = Disk {
        path,
        parts: vec![part(1, 1, 30), part(2, 32, 30)],
    };
    let mut table = [0; 66];
    for (entry, part) in table.chunks_exact_mut(16).zip(&disk.parts) {
        entry[4] = 0x83;
        let sectors = |bytes: u64| u32::try_from(bytes / 4096).expect("small").to_le_bytes();
        entry[8..12].copy_from_slice(&sectors(part.start_bytes));
        entry[12..].copy_from_slice(&sectors(part.size_bytes));
    }
    table[64..].copy_from_slice(&[0x55, 0xaa]);
    write_at(&disk.path, 446, &table);
    for part in [1, 2] {
        disk.format(part, "mkfs.ext4");
        sign(&lab, &disk, part);
    }
    lab.backup("web1", &disk.path);
    let (dir, said) = lab.mount_files("web1@latest", "files");
    said.done();
    assert_eq!(
        (word(&dir.join("p1")), word(&dir.join("p2"))),
        ("precious".into(), "precious".into())
    );
    lab.umount(&dir);
}

#[test]
fn other_users_read_guest_files_only_if_root_allows_it() {
    let lab = Lab::new();
    let disk = Disk::plain(lab.path("disk.img"), 32);
    disk.format(0, "mkfs.ext4");
    sign(&lab, &disk, 0);
    lab.backup("web1", &disk.path);
    // A directory that all users can get to.
    let open = tempfile::tempdir_in("/var/tmp").expect("a directory");
    fs::set_permissions(open.path(), fs::Permissions::from_mode(0o755)).expect("opens it");
    let dir = open.path().join("files");
    fs::create_dir(&dir).expect("makes a directory");
    let as_other = |path: &Path| {
        let user = args![
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--",
            "cat",
            path.join("word")
        ];
        try_tool("setpriv", user).status.success()
    };
    lab.run(args!["mount", "web1@latest", "--files", dir]).done();
    lab.note_hidden(&dir);
    let place = dir.join("vda");
    assert_eq!(word(&place), "precious");
    assert_eq!(fs::metadata(&dir).expect("is there").mode() & 0o777, 0o700);
    assert!(!as_other(&place));
    lab.umount(&dir);

    lab.run(args!["mount", "web1@latest", "--files", dir, "--allow-other"])
        .done();
    lab.note_hidden(&dir);
    assert!(as_other(&dir));
    lab.umount(&dir);
}
