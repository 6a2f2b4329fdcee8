//! Damaged images: what has another copy is read, the rest is an error of its own part.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::images::{Image, compare, populate, random};
use crate::Error;
use crate::device::le64;
use crate::fs::FileTree;
use crate::fs::btrfs::open;

/// A tree block in an image.
pub(super) struct Found {
    pub(super) offset: u64,
    pub(super) logical: u64,
    pub(super) owner: u64,
    pub(super) level: u8,
}

/// Finds the tree blocks by the identity that they bear.
pub(super) fn tree_blocks(image: &[u8]) -> Vec<Found> {
    let fsid = &image[0x10020..0x10030];
    let mut found = Vec::new();
    for (number, block) in image.chunks_exact(4096).enumerate() {
        if block[32..48] == *fsid && block[64..72] != *b"_BHRfS_M" {
            found.push(Found {
                offset: number as u64 * 4096,
                logical: le64(block, 48),
                owner: le64(block, 88),
                level: block[100],
            });
        }
    }
    found
}

fn overwrite(file: &File, offset: u64, len: usize) {
    file.write_all_at(&vec![0x55; len], offset).unwrap();
}

#[test]
fn a_mirror_replaces_damaged_tree_blocks_and_data() {
    // All of one device but its superblocks.
    let image = Image::new(2, 150 << 20, &["-d", "raid1", "-m", "raid1"]);
    populate(image.mount("noatime").path());
    for damaged in 0..2 {
        let copy = image.copy();
        let content = fs::read(&copy.paths[damaged]).unwrap();
        let file = copy.file(damaged);
        for (number, block) in content.chunks_exact(4096).enumerate() {
            let offset = number as u64 * 4096;
            if offset >= 1 << 20 && offset != 64 << 20 && block.iter().any(|byte| *byte != 0) {
                overwrite(&file, offset, 4096);
            }
        }
        let fs = copy.open();
        let mount = image.mount("ro,noatime");
        assert!(compare(&fs, mount.path()) > 150);
    }
}

#[test]
fn the_second_copy_of_a_tree_block_is_read() {
    let image = Image::new(1, 128 << 20, &["-m", "dup"]);
    populate(image.mount("noatime").path());
    let content = fs::read(&image.paths[0]).unwrap();
    let copy = image.copy();
    let mut seen = std::collections::HashSet::new();
    for block in tree_blocks(&content) {
        if seen.insert(block.logical) {
            overwrite(&copy.file(0), block.offset + 200, 10);
        }
    }
    assert!(seen.len() > 10);
    let fs = copy.open();
    let mount = image.mount("ro,noatime");
    assert!(compare(&fs, mount.path()) > 150);
}

#[test]
fn damaged_data_is_an_error_of_its_sector_only() {
    for options in ["compress=no", "compress-force=zstd"] {
        let image = Image::new(1, 128 << 20, &["-m", "single"]);
        let bytes = random(500_000, 77);
        {
            let mount = image.mount(&format!("noatime,{options}"));
            fs::write(mount.path().join("file"), &bytes).unwrap();
            fs::write(mount.path().join("other"), "small").unwrap();
        }
        let content = fs::read(&image.paths[0]).unwrap();
        let needle = &bytes[200_000..200_100];
        // Bytes that do not compress are stored as they are, or as a literal run.
        let at = content.windows(100).position(|window| window == needle).unwrap();
        overwrite(&image.file(0), at as u64, 1);
        let fs = image.open();
        let file = Arc::clone(&fs).open(fs.lookup(fs.root(), b"file").unwrap()).unwrap();
        let mut whole = vec![0; bytes.len()];
        let error = file.read_at(0, &mut whole).unwrap_err();
        assert!(error.to_string().contains("checksum mismatch"), "{error}");
        let mut good = 0;
        for (number, expected) in bytes.chunks(4096).enumerate() {
            let mut sector = vec![0; expected.len()];
            if file.read_at(number as u64 * 4096, &mut sector).is_ok() {
                assert_eq!(sector, expected);
                good += 1;
            }
        }
        assert!((60..123).contains(&good), "{good}");
    }
}

#[test]
fn a_damaged_leaf_hides_only_its_own_entries() {
    let image = Image::new(1, 128 << 20, &["-m", "single", "-n", "4096"]);
    {
        let mount = image.mount("noatime");
        for number in 0..2000 {
            fs::write(mount.path().join(format!("file {number}")), "x").unwrap();
        }
    }
    let content = fs::read(&image.paths[0]).unwrap();
    // The newest leaves of the top subvolume with directory entries in the middle.
    let leaves: Vec<_> = tree_blocks(&content)
        .into_iter()
        .filter(|block| {
            let first = &content[block.offset as usize + 101..];
            let newest = content[block.offset as usize + 80..][..8] == content[0x10048..0x10050];
            block.owner == 5 && block.level == 0 && first[8] == 96 && newest
        })
        .collect();
    let middle = &leaves[leaves.len() / 2];
    let count = |fs: &crate::fs::btrfs::Btrfs| {
        let mut count = 0;
        let listed = fs.list(fs.root(), &mut |_| {
            count += 1;
            ControlFlow::Continue(())
        });
        (count, listed)
    };
    let (all, listed) = count(&image.open());
    assert_eq!((all, listed.is_ok()), (2000, true));
    overwrite(&image.file(0), middle.offset + 1000, 4);
    let (rest, listed) = count(&image.open());
    assert!((1900..2000).contains(&rest), "{rest}");
    let error = listed.unwrap_err();
    assert!(
        matches!(&error, Error::Damaged(text) if text.contains("tree block")),
        "{error}"
    );
}

#[test]
fn a_damaged_superblock_is_replaced_by_its_copy() {
    let image = Image::new(1, 128 << 20, &[]);
    populate(image.mount("noatime").path());
    let copy = image.copy();
    overwrite(&copy.file(0), (64 << 10) + 300, 4);
    let fs = copy.open();
    assert_eq!(
        fs.remarks(),
        ["the superblock of device 1 is damaged; opened by its copy at 64 MiB"]
    );
    let mount = image.mount("ro,noatime");
    assert!(compare(&fs, mount.path()) > 150);
    overwrite(&copy.file(0), (64 << 20) + 300, 4);
    let error = open(copy.devices()).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "damaged: the btrfs superblock is damaged");
}

#[test]
fn checksums_that_are_missing_or_damaged_are_errors_of_files_alone() {
    let image = Image::new(1, 128 << 20, &["-m", "single"]);
    {
        let mount = image.mount("noatime");
        fs::write(mount.path().join("large"), random(100_000, 1)).unwrap();
        fs::write(mount.path().join("small"), "inline").unwrap();
    }
    let content = fs::read(&image.paths[0]).unwrap();
    for block in tree_blocks(&content).iter().filter(|block| block.owner == 7) {
        overwrite(&image.file(0), block.offset + 150, 4);
    }
    let fs = image.open();
    let read = |name: &str| {
        let file = Arc::clone(&fs)
            .open(fs.lookup(fs.root(), name.as_bytes()).unwrap())
            .unwrap();
        let mut bytes = vec![0; file.size_bytes() as usize];
        file.read_at(0, &mut bytes).map(|()| bytes)
    };
    assert_eq!(read("small").unwrap(), b"inline");
    assert!(read("large").is_err());
}
