//! Entry points for bytes made to attack: of the property tests, and of a fuzzer (`scripts/fuzz`).
//!
//! A disk is an input of few bytes by [`pack`]: only the sectors count that a target reads and that are not zero. A
//! build for a fuzzer takes every checksum for right (`crate::proven`).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::device::{Device, SharedDevice, le32};
use crate::error::Result;
use crate::fs::{FileKind, FileTree, MAX_LINK_BYTES, btrfs, exfat, ext, fat, is_name, iso9660, ntfs, xfs};
use crate::probe::{containers, probe_all};
use crate::testing::{Content, MemoryTree};
use crate::volumes::{self, Disk, Secrets, Trees};
use crate::walk::Walk;
use crate::{guest, luks, lvm, partition, signature};

/// An entry point.
#[derive(Clone, Copy)]
pub enum Target {
    /// Parses bytes that are not a disk.
    Bytes(fn(&[u8])),
    /// Opens disks, of which the first always exists.
    Disks(fn(&[SharedDevice])),
}

use Target::{Bytes, Disks};

/// All entry points by their names.
pub const TARGETS: &[(&str, Target)] = &[
    ("partitions", Disks(|disks| partitions(&*disks[0]))),
    ("probe", Disks(|disks| probe(&disks[0]))),
    ("md", Disks(|disks| md(&*disks[0]))),
    ("luks", Disks(|disks| contents(luks::fuzz(&disks[0])))),
    ("lvm", Disks(groups)),
    ("lvm-text", Bytes(lvm::fuzz_text)),
    ("lvm-thin", Disks(|disks| contents(lvm::fuzz_thin(&disks[0])))),
    ("lvm-snapshot", Disks(|disks| contents(lvm::fuzz_snapshot(&disks[0])))),
    ("ext", Disks(|disks| files(ext::open(Arc::clone(&disks[0]))))),
    ("xfs", Disks(|disks| files(xfs::open(Arc::clone(&disks[0]))))),
    ("btrfs", Disks(|disks| files(btrfs::open(disks.to_vec())))),
    ("btrfs-extent", Bytes(btrfs::fuzz_extent)),
    ("ntfs", Disks(|disks| files(ntfs::open(Arc::clone(&disks[0]))))),
    ("ntfs-stream", Bytes(ntfs::fuzz_stream)),
    ("fat", Disks(|disks| files(fat::open(Arc::clone(&disks[0]))))),
    ("exfat", Disks(|disks| files(exfat::open(Arc::clone(&disks[0]))))),
    ("iso9660", Disks(|disks| files(iso9660::open(Arc::clone(&disks[0]))))),
    ("fstab", Bytes(fstab)),
    ("find", Disks(find)),
];

/// Longest time that an input may take: more than any does on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
/// Most nodes that [`walk`] visits.
const MAX_NODES: usize = 300;
/// Most names that it reads of one directory.
const MAX_NAMES: usize = 10_000;
/// Most bytes that one reading of content asks for: more would make the noise in files the most of an input.
const PIECE: u64 = 20_000;
/// Most volumes of which [`find`] and [`groups`] read the content.
const MAX_VOLUMES: usize = 20;

/// Gives an input to a target.
pub fn run(target: Target, input: &[u8]) {
    match target {
        Bytes(parse) => parse(input),
        Disks(open) => open(&unpack(input)),
    }
}

fn partitions(disk: &dyn Device) {
    let Ok(table) = partition::read_table(disk) else {
        return;
    };
    for partition in table.partitions {
        let end_bytes = partition.offset_bytes.checked_add(partition.size_bytes);
        assert!(end_bytes.is_some_and(|end_bytes| end_bytes <= disk.size_bytes()));
    }
}

fn probe(volume: &SharedDevice) {
    if let Ok(probed) = probe_all(&**volume) {
        let _ = (probed.content.to_string(), containers::describe(probed.content, volume));
    }
    for signature in signature::signatures(&**volume).signatures {
        let _ = signature.to_string();
    }
}

fn md(volume: &dyn Device) {
    if let Ok(Some(member)) = containers::md_member(volume) {
        member.describe();
        let inside = |(at, length): (u64, u64)| at.checked_add(length).is_some_and(|end| end <= volume.size_bytes());
        assert!(member.whole_data.is_none_or(inside));
    }
    let _ = containers::end_is_zero(volume);
}

pub(crate) fn contents(devices: impl IntoIterator<Item = SharedDevice>) {
    devices.into_iter().for_each(|device| content(&*device));
}

/// Reads the logical volumes on some disks, and writes to them.
pub(crate) fn groups(disks: &[SharedDevice]) {
    let members = disks.iter().filter_map(|disk| {
        let volume = lvm::physical_volume(&**disk).ok()?;
        Some((volume, Arc::clone(disk)))
    });
    for group in lvm::assemble(members.collect()) {
        for volume in group.volumes.iter().take(MAX_VOLUMES) {
            match &volume.device {
                Ok(device) => {
                    content(&**device);
                    let _ = (device.write_at(device.size_bytes() / 2, b"x"), device.flush());
                }
                Err(reason) => assert!(reason.chars().all(|c| c.is_ascii_graphic() || c == ' '), "{reason:?}"),
            }
        }
    }
}

/// Composes a guest by any fstab, and walks it.
pub(crate) fn fstab(bytes: &[u8]) {
    let mut root = MemoryTree::with_uuid("r");
    for path in ["/etc", "/a"] {
        root.directory(path);
    }
    root.link("/b", "/a");
    root.file("/etc/fstab", "");
    root.at("/etc/fstab").content = Content::File(bytes.len() as u64, vec![(0, bytes.to_vec())]);
    let mut other = MemoryTree::with_uuid("x");
    other.file("/x", "/x");
    as_guest(&Trees {
        trees: vec![root.named("p1", &["/dev/vda"]), other.named("p2", &["/dev/vdb"])],
        ..Trees::default()
    });
}

fn as_guest(trees: &Trees) {
    if let Ok(guest) = guest::compose(trees) {
        let mut walk = Walk::new(&*guest.tree, guest.tree.root());
        for _ in 0..MAX_NAMES {
            if walk.step().is_none() {
                break;
            }
        }
    }
}

/// Finds and reads all that is on the disks of a guest.
fn find(disks: &[SharedDevice]) {
    let names = ["vda", "vdb"].into_iter().zip(disks);
    let disks: Vec<Disk> = names
        .map(|(name, device)| Disk {
            name: name.to_owned(),
            device: Arc::clone(device),
        })
        .collect();
    let found = volumes::find(&disks, &Secrets::default());
    for volume in found.volumes.iter().take(MAX_VOLUMES) {
        content(&*volume.device);
    }
    let trees = volumes::trees(&found, &|_| true);
    for tree in trees.trees.iter().take(MAX_VOLUMES) {
        walk(&tree.tree);
    }
    as_guest(&trees);
}

/// Reads the files of a volume, if it could be opened.
pub(crate) fn files<T: FileTree + 'static>(opened: Result<T>) {
    if let Ok(tree) = opened {
        let tree: Arc<dyn FileTree> = Arc::new(tree);
        walk(&tree);
    }
}

/// Uses all of a tree that may be damaged: nothing may panic, and no loop of directories may be endless.
fn walk(tree: &Arc<dyn FileTree>) {
    let started = Instant::now();
    let _ = (tree.identity(), tree.remarks());
    let (mut seen, mut open) = (HashSet::from([tree.root()]), vec![tree.root()]);
    while let Some(node) = open.pop() {
        let (stat, target) = (tree.stat(node), tree.read_link(node));
        if let Ok(target) = target {
            assert!((1..=MAX_LINK_BYTES).contains(&target.len()) && !target.contains(&0));
        }
        let _ = (tree.xattrs(node), tree.lookup(node, b"Name.TXT"));
        let (mut count, mut names) = (0, Vec::new());
        let _ = tree.list(node, &mut |entry| {
            assert!(is_name(&entry.name));
            count += 1;
            // Some of each directory: large ones would hide the others.
            let is_wanted = count < 20 || count % 50 == 0;
            if is_wanted && seen.len() < MAX_NODES && seen.insert(entry.node) {
                open.push(entry.node);
                names.push(entry.name);
            }
            if count < MAX_NAMES {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        for name in names {
            let _ = tree.lookup(node, &name);
        }
        let Ok(file) = Arc::clone(tree).open(node) else {
            continue;
        };
        let stat = stat.map(|stat| (stat.kind, stat.size_bytes)).ok();
        assert_eq!(stat, Some((FileKind::File, file.size_bytes())));
        content(&*file);
    }
    assert!(started.elapsed() < LIMIT, "{:?}", started.elapsed());
}

/// Reads some of a device, and follows its holes.
pub(crate) fn content(device: &dyn Device) {
    let size_bytes = device.size_bytes();
    let mut buf = vec![0; size_bytes.min(PIECE) as usize];
    let length = buf.len() as u64;
    for at in [0, size_bytes / 2, size_bytes - length] {
        let _ = device.read_at(at, &mut buf[..length.min(size_bytes - at) as usize]);
    }
    assert!(device.read_at(size_bytes, &mut [0]).is_err() && device.read_at(u64::MAX, &mut [0]).is_err());
    let mut at = 0;
    for _ in 0..20 {
        let Ok(Some(data)) = device.next_data(at) else { break };
        assert!((at..size_bytes).contains(&data));
        let _ = device.read_at(data, &mut buf[..1]);
        let Ok(hole) = device.next_hole(data) else { break };
        assert!(hole > data && hole <= size_bytes);
        at = hole;
    }
    for at in [size_bytes / 2, size_bytes, u64::MAX] {
        assert!(!matches!(device.next_data(at), Ok(Some(data)) if data < at || data >= size_bytes));
        assert!(!device.next_hole(at).is_ok_and(|hole| hole < at));
    }
}

/// Length of a sector of a packed disk.
const SECTOR: usize = 512;
/// The input starts with the lengths of the first and the second disk, in sectors.
const HEAD: usize = 8;
/// Marks a sector of the second disk.
const SECOND: u32 = 1 << 31;

/// Returns the input by which a target sees what it sees of these disks. After the lengths come sectors, each after its
/// number: of equal length, so that a changed byte moves none of them.
pub fn pack(target: fn(&[SharedDevice]), disks: &[SharedDevice]) -> Vec<u8> {
    let recorded = disks.iter().map(|below| {
        let below = Arc::clone(below);
        let sectors = Mutex::default();
        Arc::new(Recording { below, sectors })
    });
    let recorded: Vec<Arc<Recording>> = recorded.collect();
    let shared = recorded.iter().map(|disk| Arc::clone(disk) as SharedDevice);
    target(&shared.collect::<Vec<_>>());

    let mut packed = Vec::new();
    for number in 0..HEAD / 4 {
        let sectors = disks.get(number).map_or(0, |disk| disk.size_bytes() / SECTOR as u64);
        packed.extend(u32::try_from(sectors).unwrap_or(u32::MAX).to_le_bytes());
    }
    for (disk, mark) in recorded.iter().zip([0, SECOND]) {
        for number in disk.sectors.lock().iter() {
            let mut bytes = [0; SECTOR];
            let read = disk.below.read_at(u64::from(*number) * SECTOR as u64, &mut bytes);
            if read.is_ok() && bytes != [0; SECTOR] {
                packed.extend((number | mark).to_le_bytes());
                packed.extend(bytes);
            }
        }
    }
    packed
}

fn unpack(packed: &[u8]) -> Vec<SharedDevice> {
    let mut head = [0; HEAD];
    let (sizes, records) = packed.split_at(packed.len().min(HEAD));
    head[..sizes.len()].copy_from_slice(sizes);
    let sizes = [le32(&head, 0), le32(&head, 4)];
    let mut sectors = [BTreeMap::new(), BTreeMap::new()];
    for record in records.chunks(4 + SECTOR) {
        let mut bytes = [0; 4 + SECTOR];
        bytes[..record.len()].copy_from_slice(record);
        let number = le32(&bytes, 0);
        let content = std::array::from_fn(|at| bytes[4 + at]);
        sectors[usize::from(number & SECOND != 0)].insert(u64::from(number & !SECOND), content);
    }
    let disks = sizes.into_iter().zip(sectors).enumerate();
    let disks = disks.filter(|(number, (size, _))| *number == 0 || *size != 0);
    disks
        .map(|(_, (size, sectors))| {
            let size_bytes = u64::from(size) * SECTOR as u64;
            let sectors = Mutex::new(sectors);
            Arc::new(Sectors { size_bytes, sectors }) as SharedDevice
        })
        .collect()
}

/// A disk of which a few sectors are not zero.
struct Sectors {
    size_bytes: u64,
    sectors: Mutex<BTreeMap<u64, [u8; SECTOR]>>,
}

impl Sectors {
    /// Calls `each` with the number of a sector, the part of it and the part of the buffer that are the same bytes.
    fn parts(
        &self,
        at: u64,
        length: usize,
        mut each: impl FnMut(u64, std::ops::Range<usize>, std::ops::Range<usize>),
    ) -> io::Result<()> {
        let end = at.checked_add(length as u64).filter(|end| *end <= self.size_bytes);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        for number in at / SECTOR as u64..end.div_ceil(SECTOR as u64) {
            let start = number * SECTOR as u64;
            let (from, to) = (at.max(start), end.min(start + SECTOR as u64));
            let part = |base: u64| (from - base) as usize..(to - base) as usize;
            each(number, part(start), part(at));
        }
        Ok(())
    }
}

impl Device for Sectors {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let sectors = self.sectors.lock();
        self.parts(offset_bytes, buf.len(), |number, inside, at| {
            match sectors.get(&number) {
                Some(sector) => buf[at].copy_from_slice(&sector[inside]),
                None => buf[at].fill(0),
            }
        })
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        let mut sectors = self.sectors.lock();
        self.parts(offset_bytes, bytes.len(), |number, inside, at| {
            sectors.entry(number).or_insert([0; SECTOR])[inside].copy_from_slice(&bytes[at]);
        })
    }
}

/// A disk that notes the sectors that are read.
struct Recording {
    below: SharedDevice,
    sectors: Mutex<BTreeSet<u32>>,
}

impl Device for Recording {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.below.read_at(offset_bytes, buf)?;
        let end_bytes = offset_bytes + buf.len() as u64;
        let read = offset_bytes / SECTOR as u64..end_bytes.div_ceil(SECTOR as u64);
        let numbers = read.filter_map(|number| u32::try_from(number).ok());
        self.sectors.lock().extend(numbers.filter(|number| *number < SECOND));
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.below.size_bytes()
    }
}

/// Runs a target on a real input, and keeps it for `scripts/fuzz` if that asks for it.
#[cfg(test)]
pub(crate) fn seed(target: &str, name: &str, content: &[u8]) {
    let found = TARGETS.iter().find(|(known, _)| *known == target);
    run(found.expect("a target of that name").1, content);
    if let Some(seeds) = std::env::var_os("VBK_FUZZ_SEEDS") {
        let directory = std::path::Path::new(&seeds).join(target);
        std::fs::create_dir_all(&directory).expect("a directory for seeds");
        std::fs::write(directory.join(name), content).expect("a seed");
    }
}

/// The same for disks. Packed, they must be to the target what they are.
#[cfg(test)]
pub(crate) fn seed_disks(target: &str, name: &str, disks: &[SharedDevice]) {
    let found = TARGETS.iter().find(|(known, _)| *known == target);
    let Some((_, Disks(open))) = found else {
        panic!("{target} takes no disks");
    };
    let packed = pack(*open, disks);
    assert!(packed.len() < 1 << 20, "{target}/{name} has {} bytes", packed.len());
    assert!(pack(*open, &unpack(&packed)) == packed, "{target}/{name}");
    seed(target, name, &packed);
    seed("probe", name, &pack(|disks| probe(&disks[0]), disks));
}

#[cfg(test)]
mod tests;
