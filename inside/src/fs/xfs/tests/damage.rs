//! Damage: a part is lost, the rest stays readable, and nothing panics, hangs or eats memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use proptest::prelude::*;

use crate::device::{Device, SharedDevice};
use crate::error::Error;
use crate::fs::{FileKind, FileTree, Node};

use super::super::log::items::seal;
use super::super::open;
use super::images::{Image, append_durably, noise, populate, run, set};
use crate::fuzzing;

/// A device with changed bytes that notes which parts are read.
struct Changed {
    below: SharedDevice,
    bytes: BTreeMap<u64, Vec<u8>>,
    read: Mutex<BTreeSet<u64>>,
}

impl Changed {
    fn new(below: SharedDevice) -> Self {
        Self {
            below,
            bytes: BTreeMap::new(),
            read: Mutex::default(),
        }
    }

    fn with(below: SharedDevice, offset_bytes: u64, bytes: &[u8]) -> Arc<Self> {
        let mut changed = Self::new(below);
        changed.bytes.insert(offset_bytes, bytes.to_vec());
        Arc::new(changed)
    }
}

impl Device for Changed {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.below.read_at(offset_bytes, buf)?;
        self.read.lock().insert(offset_bytes);
        let end = offset_bytes + buf.len() as u64;
        for (start, bytes) in &self.bytes {
            let (from, to) = ((*start).max(offset_bytes), (start + bytes.len() as u64).min(end));
            if from < to {
                let target = &mut buf[(from - offset_bytes) as usize..(to - offset_bytes) as usize];
                target.copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
            }
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.below.size_bytes()
    }
}

fn visit(device: SharedDevice) {
    fuzzing::files(open(device));
}

fn fuzz(bytes: &[u8]) {
    visit(Arc::new(bytes.to_vec()));
}

/// A file system with all forms of metadata, and where the reader finds them.
struct Sample {
    _image: Image,
    device: SharedDevice,
    blocks: Vec<u64>,
}

impl Sample {
    fn new(image: Image) -> Self {
        let below = image.device();
        let recorder = Arc::new(Changed::new(below.clone()));
        visit(recorder.clone());
        // The cache reads parts of 64 KiB; the blocks in them that hold something are the metadata.
        let mut blocks = Vec::new();
        for part in recorder.read.lock().iter().filter(|offset| **offset % 65_536 == 0) {
            let mut bytes = vec![0; 65_536];
            below.read_at(*part, &mut bytes).unwrap();
            for (number, block) in bytes.chunks(4096).enumerate() {
                let magics: [&[u8]; 7] = [b"IN", b"BMA", b"XDB", b"XDD", b"XD2", b"XSLM", b"XARM"];
                let has_magic = magics.iter().any(|magic| block.starts_with(magic));
                if has_magic || matches!(&block[8..10], [0x3b | 0xfb, 0xee] | [0x3e | 0xfe, 0xbe]) {
                    blocks.push(part + number as u64 * 4096);
                }
            }
        }
        assert!(blocks.len() > 10, "metadata was found");
        Self {
            _image: image,
            device: below,
            blocks,
        }
    }

    /// Changes bytes of a block of metadata, and makes its checksums right again.
    fn damaged(&self, block: usize, changes: &[(u16, u8)]) -> SharedDevice {
        let offset_bytes = self.blocks[block % self.blocks.len()];
        let mut bytes = vec![0; 4096];
        self.device.read_at(offset_bytes, &mut bytes).unwrap();
        for (at, value) in changes {
            // Mostly in the first part of the block or of an inode, where the fields are.
            let at = usize::from(*at) % 4096;
            bytes[at] = *value;
        }
        let xfs = open(self.device.clone()).unwrap();
        seal(&xfs.volume.superblock, &mut bytes);
        Changed::with(self.device.clone(), offset_bytes, &bytes)
    }
}

static SAMPLE: LazyLock<Sample> = LazyLock::new(|| {
    let image = Image::new(&[]);
    {
        let mount = image.mount("noatime");
        populate(mount.path());
    }
    Sample::new(image)
});

/// A small file system with a log that was not written back.
#[test]
fn seeds() {
    for (name, args) in [
        ("v5", &["-m", "rmapbt=0"][..]),
        ("small-blocks", &["-b", "size=1024", "-n", "size=4096"]),
    ] {
        let image = Image::new(args);
        {
            let mount = image.mount("noatime");
            let top = mount.path();
            for number in 0..40 {
                std::fs::write(top.join(format!("file {number}")), "x").unwrap();
            }
            std::os::unix::fs::symlink("y/".repeat(300), top.join("link")).unwrap();
            set(&top.join("file 1"), "user.large", &noise(3000, 1));
            set(&top.join("file 1"), "trusted.small", b"value");
            let file = std::fs::File::create(top.join("fragments")).unwrap();
            for number in 0..30 {
                std::os::unix::fs::FileExt::write_all_at(&file, b"data", number * 8192).unwrap();
            }
            drop(file);
            append_durably(&top.join("file 2"), b"end");
            std::fs::remove_file(top.join("file 7")).unwrap();
            append_durably(&top.join("file 3"), b"end");
            run("xfs_io", &["-x", "-c", "shutdown -f", top.to_str().unwrap()]);
        }
        fuzzing::seed_disks("xfs", name, &[image.device()]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_metadata_does_no_harm(
        block in any::<usize>(),
        changes in prop::collection::vec(
            (prop_oneof![0u16..200, (0u16..8, 0u16..176).prop_map(|(slot, at)| slot * 512 + at), any::<u16>()],
             prop_oneof![Just(0), Just(1), Just(0xff), any::<u8>()]), 1..6),
    ) {
        visit(SAMPLE.damaged(block, &changes));
    }

    #[test]
    fn any_bytes_do_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        fuzz(&bytes);
        if bytes.len() > 8 {
            bytes[..4].copy_from_slice(b"XFSB");
            bytes.resize(1 << 20, 0);
            fuzz(&bytes);
        }
    }

    #[test]
    fn a_changed_superblock_does_no_harm(changes in prop::collection::vec((0usize..264, any::<u8>()), 1..4)) {
        let mut sector = vec![0; 512];
        SAMPLE.device.read_at(0, &mut sector).unwrap();
        for (at, value) in changes {
            sector[at] = value;
        }
        let crc = super::super::checksum::crc_without(&sector, 224).unwrap();
        sector[224..228].copy_from_slice(&crc.to_le_bytes());
        visit(Changed::with(SAMPLE.device.clone(), 0, &sector));
    }
}

#[test]
fn the_copies_of_a_damaged_superblock_are_found() {
    for args in [
        &[][..],
        &["--unsupported", "-d", "agcount=7"],
        &["--unsupported", "-b", "size=1024", "-d", "agsize=40m"],
    ] {
        let image = Image::new(args);
        {
            let mount = image.mount("noatime");
            std::fs::write(mount.path().join("file"), "content").unwrap();
        }
        for lost in [512, 64 << 10] {
            let device = Changed::with(image.device(), 0, &vec![0; lost]);
            let xfs = open(device).unwrap();
            let remark = &xfs.remarks()[0];
            assert!(
                remark.starts_with("superblock: no magic number; opened by the copy at byte "),
                "{remark}"
            );
            if lost == 512 {
                let file = xfs.lookup(xfs.root(), b"file").unwrap();
                assert_eq!(xfs.stat(file).unwrap().size_bytes, 7);
            }
        }
    }
}

#[test]
fn damage_hides_only_what_it_hit() {
    let image = Image::new(&[]);
    {
        let mount = image.mount("noatime");
        let many = mount.path().join("many");
        std::fs::create_dir(&many).unwrap();
        for number in 0..2000 {
            std::fs::write(many.join(format!("file {number}")), "").unwrap();
        }
        std::fs::write(mount.path().join("hit"), noise(5000, 1)).unwrap();
        std::fs::write(mount.path().join("safe"), noise(5000, 1)).unwrap();
        set(&mount.path().join("hit"), "user.large", &noise(20_000, 1));
    }
    let xfs = image.open();
    let find = |name: &[u8]| xfs.lookup(xfs.root(), name).unwrap();
    let (hit, safe, many) = (find(b"hit"), find(b"safe"), find(b"many"));
    let superblock = &xfs.volume.superblock;
    let inode_at = |node: Node| {
        let block = node.number >> superblock.inodes_per_block_log;
        let slot = node.number & ((1 << superblock.inodes_per_block_log) - 1);
        xfs.volume.offset_of(block, 1).unwrap() + slot * superblock.inode_bytes as u64
    };
    let damaged = open(Changed::with(image.device(), inode_at(hit) + 400, b"!")).unwrap();
    assert!(matches!(damaged.stat(hit), Err(Error::Damaged(_))));
    assert_eq!(damaged.stat(safe).unwrap().kind, FileKind::File);

    let fork = super::super::inode::Inode::read(&xfs.volume, many.number)
        .unwrap()
        .data_fork()
        .unwrap();
    let (block_at, _) = fork.read(&xfs.volume, many.number, 3, 1).unwrap();
    let damaged = open(Changed::with(image.device(), block_at + 1000, b"!")).unwrap();
    let mut count = 0;
    let listed = damaged.list(many, &mut |_| {
        count += 1;
        ControlFlow::Continue(())
    });
    assert!(matches!(listed, Err(Error::Damaged(_))));
    assert!((1500..2000).contains(&count), "{count}");
    assert!(damaged.xattrs(hit).is_ok());
}
