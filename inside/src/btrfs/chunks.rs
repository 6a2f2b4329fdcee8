//! Reads the chunk tree of a btrfs: its devices, and the location of each copy of its data. Trusts nothing it reads.
//!
//! The kernel may read any copy of a tree block, so all copies are read here: a guest must not be able to hide a device
//! in the copy that was not examined.

use std::collections::{HashMap, HashSet};
use std::io;

use super::chunk::{CHUNK_ITEM, Chunk, KEY_BYTES, system_chunks};
use super::{Fsid, Superblock};
use crate::device::{Device, le32, le64, read_inside};

/// Tree blocks of the largest chunk tree that is read: one block of 16 KiB describes about a hundred chunks of 1 GiB.
const MAX_NODES: usize = 1 << 14;
/// `BTRFS_MAX_LEVEL`.
const MAX_LEVEL: u8 = 8;

const NODE_HEADER_BYTES: usize = 101;
const ITEM_BYTES: usize = 25;
const POINTER_BYTES: usize = 33;
const DEVICE_ITEM: u8 = 216;

/// The devices of a file system, according to its chunk tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Device numbers, in order.
    pub devices: Vec<u64>,
    /// Numbers of the devices that are not in the backup.
    pub missing: Vec<u64>,
    /// True if every byte has a copy, or can be reconstructed, without the missing devices.
    pub complete: bool,
}

/// Reads the chunk tree from the available devices, all of one file system. The inner error says why it must not be
/// mounted.
pub fn examine(devices: &[(&Superblock, &dyn Device)]) -> io::Result<Result<Layout, String>> {
    let Some((newest, _)) = devices.iter().max_by_key(|(superblock, _)| superblock.generation()) else {
        return Ok(Err("no device of it is available".to_owned()));
    };
    if devices.iter().any(|(it, _)| it.device_fsid() != it.metadata_uuid()) {
        return Ok(Err("a device's superblock contradicts itself".to_owned()));
    }
    let mut walk = Walk {
        newest,
        volumes: devices.iter().map(|(it, volume)| (it.devid(), *volume)).collect(),
        system: system_chunks(newest),
        chunks: HashMap::new(),
        devices: HashMap::new(),
    };
    if let Err(why) = walk.run()? {
        return Ok(Err(why));
    }
    let metadata = newest.metadata_uuid();
    if walk
        .devices
        .values()
        .any(|fsids| fsids.iter().any(|fsid| *fsid != metadata))
    {
        return Ok(Err(
            "it is built on a seed device, which is a separate file system".to_owned()
        ));
    }
    let mut numbers: Vec<u64> = walk.devices.keys().copied().collect();
    numbers.sort_unstable();
    let missing: Vec<u64> = numbers
        .iter()
        .copied()
        .filter(|it| !walk.volumes.contains_key(it))
        .collect();
    let lost = |chunk: &Chunk| {
        let gone = chunk
            .stripes
            .iter()
            .filter(|(devid, _)| !walk.volumes.contains_key(devid));
        gone.count() > chunk.may_lose()
    };
    let complete = !walk.chunks.values().chain(&walk.system).any(lost);
    Ok(Ok(Layout {
        devices: numbers,
        missing,
        complete,
    }))
}

struct Walk<'a> {
    newest: &'a Superblock,
    volumes: HashMap<u64, &'a dyn Device>,
    system: Vec<Chunk>,
    /// By logical address.
    chunks: HashMap<u64, Chunk>,
    /// Fsids in the items of each device, in all copies.
    devices: HashMap<u64, HashSet<Fsid>>,
}

impl Walk<'_> {
    fn run(&mut self) -> io::Result<Result<(), String>> {
        let (root, level) = self.newest.chunk_root();
        if level >= MAX_LEVEL {
            return Ok(Err("its chunk tree has an invalid depth".to_owned()));
        }
        let mut to_read = vec![(root, level)];
        let mut seen = HashSet::new();
        while let Some((logical, level)) = to_read.pop() {
            if !seen.insert((logical, level)) {
                continue;
            }
            if seen.len() > MAX_NODES {
                return Ok(Err(format!("its chunk tree has more than {MAX_NODES} blocks")));
            }
            let nodes = self.read_node(logical, level)?;
            if nodes.is_empty() {
                return Ok(Err(self.unreadable()));
            }
            for node in nodes {
                match level {
                    0 => self.take_leaf(&node),
                    _ => to_read.extend(children(&node).map(|child| (child, level - 1))),
                }
            }
        }
        Ok(Ok(()))
    }

    fn unreadable(&self) -> String {
        let (have, of) = (self.volumes.len() as u64, self.newest.device_count());
        if have < of {
            format!("only {have} of its {of} devices are in the backup, and its chunk tree is not on them")
        } else {
            "its chunk tree is damaged".to_owned()
        }
    }

    /// Reads all valid copies of a tree block on the available devices.
    fn read_node(&self, logical: u64, level: u8) -> io::Result<Vec<Vec<u8>>> {
        let mut nodes: Vec<Vec<u8>> = Vec::new();
        for (devid, offset_bytes) in self.system.iter().flat_map(|chunk| chunk.copies(logical)) {
            let Some(volume) = self.volumes.get(&devid) else {
                continue;
            };
            let mut node = vec![0; self.newest.node_bytes() as usize];
            let good = read_inside(*volume, offset_bytes, &mut node)?
                && self.newest.checksum.holds(&node)
                && le64(&node, 48) == logical
                && node[100] == level;
            if good && !nodes.contains(&node) {
                nodes.push(node);
            }
        }
        Ok(nodes)
    }

    fn take_leaf(&mut self, node: &[u8]) {
        let items = node[NODE_HEADER_BYTES..]
            .chunks_exact(ITEM_BYTES)
            .take(le32(node, 96) as usize);
        for item in items {
            let (kind, key_offset) = (item[8], le64(item, 9));
            let (at, len) = (le32(item, 17) as usize, le32(item, 21) as usize);
            let data = node[NODE_HEADER_BYTES..].get(at..).and_then(|data| data.get(..len));
            match (kind, data) {
                (DEVICE_ITEM, Some(data)) if data.len() >= 98 => {
                    let fsid = Fsid(std::array::from_fn(|byte| data[82 + byte]));
                    self.devices.entry(le64(data, 0)).or_default().insert(fsid);
                }
                (CHUNK_ITEM, Some(data)) => {
                    if let Some(chunk) = Chunk::parse(key_offset, data) {
                        self.chunks.entry(key_offset).or_insert(chunk);
                    }
                }
                _ => {}
            }
        }
    }
}

fn children(node: &[u8]) -> impl Iterator<Item = u64> {
    let pointers = node[NODE_HEADER_BYTES..].chunks_exact(POINTER_BYTES);
    pointers
        .take(le32(node, 96) as usize)
        .map(|pointer| le64(pointer, KEY_BYTES))
}
