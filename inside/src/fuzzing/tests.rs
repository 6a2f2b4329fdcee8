//! The disks of a guest, and the packing of disks.

use std::fs;

use super::*;
use crate::fs::compared::{image, run as run_tool};

/// Two disks: a GPT with FAT and an ext2 with the guest's fstab, and an MBR with a logical partition of exFAT.
#[test]
fn seeds() {
    let made = tempfile::tempdir().expect("a directory");
    let (dir, original) = (made.path(), made.path().join("original"));
    fs::create_dir_all(original.join("etc")).expect("a directory");
    let fstab = "/dev/vda2 / ext2\n/dev/vda1 /boot vfat\n/dev/vdb5 /data exfat\n";
    fs::write(original.join("etc/fstab"), fstab).expect("written");
    fs::create_dir(original.join("boot")).expect("a directory");
    let part = |tool: &str, args: &[&dyn AsRef<std::ffi::OsStr>], size_bytes: u64| {
        let path = image(dir, size_bytes);
        run_tool(tool, &[args, &[&path]].concat());
        fs::read(path).expect("the image")
    };
    let fat = part("mkfs.vfat", &[], 1 << 20);
    let ext = part("mke2fs", &[&"-q", &"-b", &"1024", &"-d", &original], 1 << 20);
    let exfat = part("mkfs.exfat", &[&"-b", &"4096"], 2 << 20);
    let disk = |script: &str, parts: &[(usize, &[u8])]| {
        let path = image(dir, 8 << 20);
        fs::write(dir.join("script"), script).expect("written");
        let command = format!("sfdisk --quiet {} < {}", path.display(), dir.join("script").display());
        run_tool("sh", &[&"-c", &command]);
        let mut disk = fs::read(path).expect("the image");
        for (sector, part) in parts {
            disk[sector * SECTOR..][..part.len()].copy_from_slice(part);
        }
        Arc::new(disk) as SharedDevice
    };
    let gpt = disk(
        "label: gpt\nstart=2048, size=2048\nstart=4096, size=2048\n",
        &[(2048, &fat), (4096, &ext)],
    );
    let mbr = disk(
        "label: dos\nstart=2048, size=2048\nstart=4096, size=8192, type=5\nstart=6144, size=4096\n",
        &[(6144, &exfat)],
    );
    seed_disks("partitions", "gpt-of-sfdisk", &[Arc::clone(&gpt)]);
    seed_disks("partitions", "mbr-of-sfdisk", &[Arc::clone(&mbr)]);
    seed_disks("find", "two-disks", &[gpt, mbr]);
}

#[test]
fn no_input_is_too_short_or_too_long() {
    for length in 0..600 {
        let disks = unpack(&vec![1; length]);
        assert!((1..=2).contains(&disks.len()));
        content(&*disks[0]);
    }
}

#[test]
fn what_is_written_is_read() {
    let input: Vec<u8> = [
        [4_u32.to_le_bytes(), [0; 4], 1_u32.to_le_bytes()].concat(),
        vec![7; SECTOR],
    ]
    .concat();
    let disk = unpack(&input).remove(0);
    disk.write_at(510, &[1, 2, 3]).expect("inside");
    let mut read = [9; 6];
    disk.read_at(509, &mut read).expect("inside");
    assert_eq!(read, [0, 1, 2, 3, 7, 7]);
    assert!(disk.write_at(2047, &[1, 2]).is_err());
}
