//! Images that were made to attack: any bytes, and changes of a real file system whose checksums are right again.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::damage::{Found, tree_blocks};
use super::images::{Image, populate, random, run, text};
use crate::btrfs::checksum::Checksum;
use crate::device::{Device, SharedDevice};
use crate::fs::FileTree;
use crate::fs::btrfs::open;
use crate::fuzzing;

const NODE_BYTES: usize = 4096;

/// A real file system and its tree blocks.
struct Base {
    content: Arc<Vec<u8>>,
    blocks: Vec<Found>,
}

/// Of 4 KiB blocks, with every kind of item and a log.
static BASE: LazyLock<Base> = LazyLock::new(|| {
    let image = Image::new(
        1,
        110 << 20,
        &["-m", "single", "-d", "single", "-n", "4096", "-s", "4096"],
    );
    let mount = image.mount("noatime,compress=zstd,commit=300");
    let top = mount.path();
    for (dir, compression) in [("lzo", "lzo"), ("zlib", "zlib"), ("zstd", "zstd")] {
        fs::create_dir(top.join(dir)).unwrap();
        run(
            "btrfs",
            &[
                "property",
                "set",
                top.join(dir).to_str().unwrap(),
                "compression",
                compression,
            ],
        );
        fs::write(top.join(dir).join("file"), text(20_000, 1)).unwrap();
        fs::write(top.join(dir).join("inline"), text(1500, 1)).unwrap();
    }
    let sub = top.join("sub");
    run("btrfs", &["subvolume", "create", sub.to_str().unwrap()]);
    fs::create_dir(sub.join("all")).unwrap();
    populate(&sub.join("all"));
    for name in ["random", "text", "zeros 300000", "random 300000", "text 300000"] {
        fs::remove_file(sub.join("all").join(name)).unwrap();
    }
    run(
        "btrfs",
        &[
            "subvolume",
            "snapshot",
            sub.to_str().unwrap(),
            top.join("snap").to_str().unwrap(),
        ],
    );
    run("btrfs", &["subvolume", "set-default", sub.to_str().unwrap()]);
    run("btrfs", &["filesystem", "sync", top.to_str().unwrap()]);
    fs::rename(sub.join("all/text 100"), sub.join("all/renamed")).unwrap();
    fs::remove_file(sub.join("all/small 7")).unwrap();
    fs::write(sub.join("all/logged"), random(10_000, 3)).unwrap();
    for name in ["all/renamed", "all/logged", "all"] {
        fs::File::open(sub.join(name)).unwrap().sync_all().unwrap();
    }
    let content = Arc::new(fs::read(&image.paths[0]).unwrap());
    // Most of the tree blocks in the image are of earlier transactions.
    let recording = Arc::new(Recording {
        content: Arc::clone(&content),
        read: Mutex::default(),
    });
    walk(Arc::clone(&recording) as SharedDevice);
    let mut blocks = tree_blocks(&content);
    blocks.retain(|block| recording.read.lock().contains(&block.offset));
    assert!(
        blocks.len() > 20 && blocks.iter().any(|block| block.owner == u64::MAX - 5),
        "no log"
    );
    Base { content, blocks }
});

/// Notes what is read.
struct Recording {
    content: Arc<Vec<u8>>,
    read: Mutex<HashSet<u64>>,
}

impl Device for Recording {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read.lock().insert(offset_bytes);
        self.content.read_at(offset_bytes, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.content.size_bytes()
    }
}

/// The real file system with changes.
struct Changed(BTreeMap<u64, Vec<u8>>);

impl Device for Changed {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        BASE.content.read_at(offset_bytes, buf)?;
        let end = offset_bytes + buf.len() as u64;
        let first = offset_bytes.saturating_sub(NODE_BYTES as u64);
        for (at, bytes) in self.0.range(first..end) {
            for (at, byte) in (*at..).zip(bytes) {
                if (offset_bytes..end).contains(&at) {
                    buf[(at - offset_bytes) as usize] = *byte;
                }
            }
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        BASE.content.size_bytes()
    }
}

fn fuzz(bytes: &[u8]) {
    walk(Arc::new(bytes.to_vec()));
}

/// Takes any bytes for changes of tree blocks and superblocks: a block, an offset in it, and a value of one to eight
/// bytes each.
fn fuzz_changes(bytes: &[u8]) {
    let base = &*BASE;
    let mut changed: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for change in bytes.chunks_exact(14) {
        let number = usize::from(u16::from_le_bytes([change[0], change[1]])) % (base.blocks.len() + 1);
        let offset = base.blocks.get(number).map_or(64 << 10, |block| block.offset);
        let block = changed
            .entry(offset)
            .or_insert_with(|| base.content[offset as usize..][..NODE_BYTES].to_vec());
        let at = 32 + usize::from(u16::from_le_bytes([change[2], change[3]]));
        // Most of the changes at the start, which has the header and the items.
        let at = if change[4] % 2 == 0 { 32 + at % 700 } else { at };
        let len = usize::from(change[5] % 8) + 1;
        for (index, byte) in change[6..6 + len].iter().enumerate() {
            let at = (at + index) % NODE_BYTES;
            block[at.max(32)] = *byte;
        }
    }
    for block in changed.values_mut() {
        let sum = Checksum::Crc32c.of_block(block);
        block[..32].copy_from_slice(&sum);
    }
    walk(Arc::new(Changed(changed)));
}

fn walk(device: SharedDevice) {
    fuzzing::files(open(vec![device]));
}

#[test]
fn seeds() {
    fuzzing::seed_disks("btrfs", "log", &[Arc::clone(&BASE.content) as SharedDevice]);
}

/// The image is another in each run, so the seed of a failure is not worth keeping.
fn cases() -> ProptestConfig {
    let cases = std::env::var("BTRFS_CASES").map_or(60, |cases| cases.parse().unwrap());
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn changes_of_tree_blocks_end_in_errors(bytes in prop::collection::vec(any::<u8>(), 14..80)) {
        fuzz_changes(&bytes);
    }

    #[test]
    fn changed_numbers_end_in_errors(
        changes in prop::collection::vec((any::<u16>(), any::<u16>(), prop::sample::select(vec![
            0, 1, 2, 4, 255, 256, 4096, 65535, u64::from(u32::MAX), 1 << 31, 1 << 32, 1 << 63, u64::MAX, u64::MAX - 4095,
        ])), 1..4),
    ) {
        let mut bytes = Vec::new();
        for (block, at, value) in changes {
            bytes.extend(block.to_le_bytes());
            bytes.extend(at.to_le_bytes());
            bytes.extend([(at >> 8) as u8, at as u8]);
            bytes.extend(value.to_le_bytes());
        }
        fuzz_changes(&bytes);
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        fuzz(&bytes);
        // With a superblock that is right.
        let mut image = BASE.content[..(64 << 10) + 4096].to_vec();
        image.extend(&bytes);
        fuzz(&image);
    }
}

#[test]
fn the_unchanged_image_is_read() {
    let fs = Arc::new(open(vec![Arc::new(Changed(BTreeMap::new()))]).unwrap());
    let remarks = fs.remarks();
    assert!(
        remarks
            .iter()
            .any(|remark| remark.starts_with("the log tree was replayed")),
        "{remarks:?}"
    );
    let all = fs.lookup(fs.lookup(fs.root(), b"sub").unwrap(), b"all").unwrap();
    assert!(fs.lookup(all, b"renamed").is_ok() && fs.lookup(all, b"logged").is_ok());
    assert!(fs.lookup(all, b"text 100").is_err());
    walk(Arc::new(Changed(BTreeMap::new())));
}

#[test]
fn extents_that_overlap_are_the_same_in_every_walk() {
    for len in [1_u64, 5000, 1 << 40, u64::MAX >> 1] {
        let mut changed = BTreeMap::new();
        for found in BASE.blocks.iter().filter(|found| found.level == 0) {
            let mut block = BASE.content[found.offset as usize..][..NODE_BYTES].to_vec();
            let count = crate::device::le32(&block, 96) as usize;
            for number in 0..count {
                let item = 101 + number * 25;
                let data = 101 + crate::device::le32(&block, item + 17) as usize;
                let is_regular = block[item + 8] == 108 && block.get(data + 20).is_some_and(|kind| *kind != 0);
                if is_regular && (number % 2 == 0 || len < 10_000) {
                    block[data + 45..data + 53].copy_from_slice(&len.to_le_bytes());
                }
            }
            let sum = Checksum::Crc32c.of_block(&block);
            block[..32].copy_from_slice(&sum);
            changed.insert(found.offset, block);
        }
        walk(Arc::new(Changed(changed)));
    }
}

#[test]
fn every_feature_that_is_unknown_is_named() {
    for (flag, name) in [
        (12, "zoned devices"),
        (13, "extent tree v2"),
        (14, "RAID stripe tree"),
        (40, "0x10000000000"),
    ] {
        let mut superblock = BASE.content[64 << 10..][..4096].to_vec();
        superblock[0xbc + flag / 8] |= 1 << (flag % 8);
        let sum = Checksum::Crc32c.of_block(&superblock);
        superblock[..32].copy_from_slice(&sum);
        let changed = Changed(BTreeMap::from([(64 << 10, superblock)]));
        let error = open(vec![Arc::new(changed)]).map(|_| ()).unwrap_err();
        assert!(
            matches!(&error, crate::Error::Unsupported(text) if text.contains(name)),
            "{error}"
        );
    }
}
