//! Groups made by the real LVM (package lvm2) without device mapper, thin pools made by thin_restore (package
//! thin-provisioning-tools), and images made by hand and at random.
//!
//! The tests that run LVM need root and loop devices: LVM accepts nothing but block devices.

mod arrays;
mod hostile;
mod image;
mod lab;
mod real;
mod thin;

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::device::Device;
use crate::error::Error;

/// A disk in memory that can be written, and knows its zeros.
struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(bytes)))
    }

    fn put(&self, offset_bytes: u64, bytes: &[u8]) {
        self.write_at(offset_bytes, bytes).unwrap();
    }

    /// Returns the first block from `offset_bytes` on that has other bytes than zero, or none.
    fn find(&self, offset_bytes: u64, is_data: bool) -> Option<u64> {
        const BLOCK: usize = 4096;
        let bytes = self.0.lock();
        let first = offset_bytes as usize / BLOCK;
        let mut blocks = bytes.chunks(BLOCK).enumerate().skip(first);
        let found = blocks.find(|(_, block)| block.iter().any(|byte| *byte != 0) == is_data);
        found.map(|(at, _)| ((at * BLOCK) as u64).max(offset_bytes))
    }
}

impl Device for Memory {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.lock().read_at(offset_bytes, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.0.lock().len() as u64
    }

    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        let mut all = self.0.lock();
        let range = usize::try_from(offset_bytes).ok();
        let range = range.and_then(|start| all.get_mut(start..start.checked_add(bytes.len())?));
        range.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(bytes);
        Ok(())
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        Ok(self.find(offset_bytes, true))
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        Ok(self
            .find(offset_bytes, false)
            .unwrap_or(self.size_bytes().max(offset_bytes)))
    }
}

/// Bytes that tell where they belong: every eight of them differ from all others of this and of other volumes.
fn pattern(seed: u64, offset_bytes: u64, len: usize) -> Vec<u8> {
    assert!(offset_bytes.is_multiple_of(8) && len.is_multiple_of(8));
    let words = (offset_bytes / 8..).take(len / 8);
    words
        .flat_map(|word| (word << 16 | 0xa000 | seed).to_le_bytes())
        .collect()
}

fn read_all(device: &dyn Device) -> Vec<u8> {
    let mut bytes = vec![0xee; device.size_bytes() as usize];
    device.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Compares a device with its content: whole, in pieces of odd sizes, and by its holes.
fn assert_content(device: &dyn Device, expected: &[u8]) {
    assert_eq!(device.size_bytes(), expected.len() as u64);
    assert!(read_all(device) == expected, "the content differs");
    let mut at = 0;
    for len in [1, 511, 4097, 65_535, 65_537, 300_001].into_iter().cycle() {
        let len = len.min(expected.len() - at);
        let mut piece = vec![0; len];
        device.read_at(at as u64, &mut piece).unwrap();
        assert!(piece == expected[at..at + len], "the piece at {at} differs");
        at += len;
        if at == expected.len() {
            break;
        }
    }
    assert!(device.read_at(expected.len() as u64, &mut [0]).is_err());
    let mut at = 0;
    while let Some(data) = device.next_data(at).unwrap() {
        assert!(data >= at && data < expected.len() as u64);
        assert!(expected[at as usize..data as usize].iter().all(|byte| *byte == 0));
        at = device.next_hole(data).unwrap();
        assert!(at > data, "a hole at data");
    }
    assert!(expected[at as usize..].iter().all(|byte| *byte == 0));
}

fn open(disks: &[Arc<Memory>]) -> Vec<Group> {
    let shared = disks.iter().map(|disk| -> SharedDevice { Arc::<Memory>::clone(disk) });
    let members = shared.map(|disk| (physical_volume(&*disk).unwrap(), disk));
    assemble(members.collect())
}

fn volume<'a>(group: &'a Group, name: &str) -> &'a LogicalVolume {
    let found = group.volumes.iter().find(|volume| volume.name == name);
    found.unwrap_or_else(|| panic!("no volume {name}"))
}

fn device<'a>(group: &'a Group, name: &str) -> &'a SharedDevice {
    match &volume(group, name).device {
        Ok(device) => device,
        Err(reason) => panic!("{name}: {reason}"),
    }
}

fn reason<'a>(group: &'a Group, name: &str) -> &'a str {
    match &volume(group, name).device {
        Ok(_) => panic!("{name} can be read"),
        Err(reason) => reason,
    }
}
