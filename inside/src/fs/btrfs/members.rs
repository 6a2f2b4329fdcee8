//! Opens a file system: chooses superblocks, finds the chunks on the devices.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;

use super::Btrfs;
use super::block::{Blocks, Cache, Pointer};
use super::devices::Devices;
use super::key::{DEV_ITEM, Key};
use super::log::Log;
use super::tree::Tree;
use crate::btrfs::chunk::{CHUNK_ITEM, Chunk, system_chunks};
use crate::btrfs::{SUPERBLOCK_OFFSETS, Superblock};
use crate::device::{SharedDevice, le64};
use crate::error::{Error, Result};
use crate::fs::Identity;

/// Features that this reader knows: those of Linux 6.12 up to `METADATA_UUID` and `RAID1C34`, and `SIMPLE_QUOTA`.
const KNOWN_FEATURES: u64 = 0xfff | 1 << 16;
/// Other features by name (`BTRFS_FEATURE_INCOMPAT_*`).
const UNKNOWN_FEATURES: [(u64, &str); 3] = [
    (1 << 12, "zoned devices"),
    (1 << 13, "extent tree v2"),
    (1 << 14, "RAID stripe tree"),
];
/// Devices of one file system.
const MAX_DEVICES: usize = 1024;

/// A device with a superblock.
struct Member {
    superblock: Superblock,
    volume: SharedDevice,
}

/// Opens the tree of trees. Nothing else is read.
pub(super) fn open(volumes: Vec<SharedDevice>) -> Result<Btrfs> {
    let mut remarks = Vec::new();
    let members = members(volumes, &mut remarks)?;
    let Some(newest) = members.iter().max_by_key(|member| member.superblock.generation()) else {
        return Err(Error::damaged("no device has a valid btrfs superblock"));
    };
    let superblock = newest.superblock.clone();
    check(&superblock, &members)?;
    let mut stale = HashSet::new();
    for member in &members {
        let (of, newest) = (member.superblock.generation(), superblock.generation());
        if of < newest {
            let devid = member.superblock.devid();
            remarks.push(format!(
                "device {devid} is older than the others: transaction {of} of {newest}"
            ));
            stale.insert(devid);
        }
    }
    let mut volumes = HashMap::new();
    for member in members {
        let devid = member.superblock.devid();
        if volumes.insert(devid, member.volume).is_some() {
            return Err(Error::damaged(format!("two devices have number {devid}")));
        }
    }
    let mut devices = Devices::new(volumes.clone(), stale.clone());
    for chunk in system_chunks(&superblock) {
        devices.add(chunk)?;
    }
    let mut blocks = Blocks {
        devices,
        checksum: superblock.checksum(),
        fsid: superblock.metadata_uuid(),
        node_bytes: superblock.node_bytes() as usize,
        cache: Mutex::new(Cache::default()),
    };
    blocks.devices = all_chunks(&superblock, &blocks, Devices::new(volumes, stale), &mut remarks)?;
    let (logical, level) = superblock.root();
    let roots = Pointer {
        logical,
        generation: superblock.generation(),
        level,
    };
    blocks.read_root(roots)?;
    let label = superblock.label();
    let identity = Identity {
        uuid: Some(superblock.fsid().to_string()),
        label: (!label.is_empty()).then(|| String::from_utf8_lossy(label).into_owned()),
    };
    Ok(Btrfs {
        blocks,
        roots,
        sector_bytes: superblock.sector_bytes() as usize,
        identity,
        remarks,
        superblock,
        log: Log::default(),
    })
}

/// Reads the superblock of each device: the first, as the kernel, or else the newest of its copies.
fn members(volumes: Vec<SharedDevice>, remarks: &mut Vec<String>) -> Result<Vec<Member>> {
    if volumes.len() > MAX_DEVICES {
        return Err(Error::unsupported(format!("more than {MAX_DEVICES} devices")));
    }
    let mut members = Vec::new();
    let mut first_failure = None;
    for volume in volumes {
        let copy = |offset_bytes| match Superblock::read_copy(volume.as_ref(), offset_bytes) {
            Ok(Ok(superblock)) => Ok(superblock),
            Ok(Err(why)) => Err(Error::damaged(why)),
            Err(error) => Err(error.into()),
        };
        let [first, others @ ..] = SUPERBLOCK_OFFSETS;
        let failure = match copy(first) {
            Ok(superblock) => {
                members.push(Member { superblock, volume });
                continue;
            }
            Err(error) => error,
        };
        let copies = others.into_iter().filter_map(|at| Some((copy(at).ok()?, at)));
        if let Some((superblock, offset_bytes)) = copies.max_by_key(|(copy, _)| copy.generation()) {
            let (devid, mib) = (superblock.devid(), offset_bytes >> 20);
            remarks.push(format!(
                "the superblock of device {devid} is damaged; opened by its copy at {mib} MiB"
            ));
            members.push(Member { superblock, volume });
        } else {
            remarks.push(format!("a device is not used: {failure}"));
            first_failure.get_or_insert(failure);
        }
    }
    match first_failure {
        Some(failure) if members.is_empty() => Err(failure),
        _ => Ok(members),
    }
}

/// Refuses what can't be read.
fn check(superblock: &Superblock, members: &[Member]) -> Result<()> {
    let other = |member: &Member| member.superblock.fsid() != superblock.fsid();
    if members.iter().any(other) {
        return Err(Error::damaged("the devices are of different file systems"));
    }
    let flags = superblock.incompat_flags();
    if let Some((_, name)) = UNKNOWN_FEATURES.iter().find(|(flag, _)| flags & flag != 0) {
        return Err(Error::unsupported(format!("btrfs with {name}")));
    }
    let unknown = flags & !KNOWN_FEATURES;
    if unknown != 0 {
        return Err(Error::unsupported(format!("btrfs with the features {unknown:#x}")));
    }
    let sector_bytes = superblock.sector_bytes();
    if !sector_bytes.is_power_of_two() || !(512..=65536).contains(&sector_bytes) {
        return Err(Error::damaged(format!(
            "the superblock has sectors of {sector_bytes} bytes"
        )));
    }
    Ok(())
}

/// Reads the chunk tree, which lies in the chunks that the superblock lists.
fn all_chunks(
    superblock: &Superblock,
    blocks: &Blocks,
    mut devices: Devices,
    remarks: &mut Vec<String>,
) -> Result<Devices> {
    for chunk in system_chunks(superblock) {
        devices.add(chunk)?;
    }
    let (logical, level) = superblock.chunk_root();
    let root = Pointer {
        logical,
        generation: superblock.chunk_root_generation(),
        level,
    };
    blocks.read_root(root)?;
    let tree = Tree {
        blocks,
        root: Some(root),
        changes: None,
    };
    let mut damaged = false;
    for item in tree.items(Key::FIRST, Key::LAST) {
        let item = match item {
            Ok(item) => item,
            Err(error) if damaged => {
                let _ = error;
                continue;
            }
            Err(error) => {
                damaged = true;
                remarks.push(format!(
                    "the chunk tree is damaged, and data may be unreadable: {error}"
                ));
                continue;
            }
        };
        match item.key.kind {
            CHUNK_ITEM => {
                if let Some(chunk) = Chunk::parse(item.key.offset, &item) {
                    devices.add(chunk)?;
                }
            }
            DEV_ITEM if item.len() >= 98 => {
                let devid = le64(&item, 0);
                if item[82..98] != superblock.metadata_uuid().0 {
                    return Err(Error::unsupported("btrfs that is built on a seed device"));
                }
                if !devices.has(devid) && remarks.len() < MAX_DEVICES {
                    remarks.push(format!("device {devid} is missing"));
                }
            }
            _ => {}
        }
    }
    Ok(devices)
}
