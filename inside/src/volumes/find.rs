//! Finds the volumes: from the disks through partitions and arrays to what holds files.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::mirror::Mirror;
use super::{Disk, Secrets, Volume, Volumes};
use crate::device::{Device, SharedDevice, Window};
use crate::fs::ext;
use crate::luks;
use crate::lvm::{self, PhysicalVolume};
use crate::partition::{Partition, PartitionKind, TableKind, read_table};
use crate::probe::containers::{MdMember, md_member};
use crate::probe::{Content, FsType, Probed, probe_all};

/// Limit of volumes. A table or group made to attack could name millions; a guest has a handful.
const MAX_VOLUMES: usize = 1024;
/// Limit of physical volumes and encrypted volumes inside each other. Installers make two: LVM on LUKS.
const MAX_DEPTH: u8 = 6;

/// Finds the volumes of a guest's disks. An encrypted volume is opened if one of the passphrases fits. A part that
/// can't be read or opened is a volume with the reason; a disk whose partition table can't be read is in
/// [`Volumes::failed`].
pub fn find(disks: &[Disk], secrets: &Secrets) -> Volumes {
    let mut search = Search {
        secrets,
        budget: luks::Budget::new(),
        queue: VecDeque::new(),
        members: Vec::new(),
        physical: Vec::new(),
        taken: HashSet::new(),
        kept: Vec::new(),
        found: Volumes::default(),
    };
    // No volume may take the name of a disk: the image of that name shows the disk.
    for disk in disks {
        search.taken.insert(format!("image {}", disk.name));
        search.taken.insert(format!("name {}", disk.name));
    }
    let has_failed = Arc::new(AtomicBool::new(false));
    for (number, disk) in disks.iter().enumerate() {
        let disk = &Disk {
            name: disk.name.clone(),
            device: Arc::new(Watched {
                below: Arc::clone(&disk.device),
                has_failed: Arc::clone(&has_failed),
            }),
        };
        if let Err(error) = search.add_disk(number, disk, disks.len() == 1) {
            search.found.failed.push((number, error));
        }
    }
    search.run();
    search.kept.sort_by_key(|(order, _)| *order);
    search.found.volumes = search.kept.into_iter().map(|(_, volume)| volume).collect();
    search.found.is_complete = !has_failed.load(Ordering::Relaxed);
    search.found
}

/// A disk that notes whether a read of it has failed.
struct Watched {
    below: SharedDevice,
    has_failed: Arc<AtomicBool>,
}

impl Device for Watched {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let read = self.below.read_at(offset_bytes, buf);
        let is_outside = |error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
        if read.as_ref().is_err_and(|error| !is_outside(error)) {
            self.has_failed.store(true, Ordering::Relaxed);
        }
        read
    }

    fn size_bytes(&self) -> u64 {
        self.below.size_bytes()
    }

    fn will_read(&self, offsets_bytes: &[u64]) {
        self.below.will_read(offsets_bytes);
    }

    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.below.write_at(offset_bytes, bytes)
    }

    fn flush(&self) -> io::Result<()> {
        self.below.flush()
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        self.below.next_data(offset_bytes)
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        self.below.next_hole(offset_bytes)
    }
}

/// A volume on the way: not yet known whether it holds others.
#[derive(Clone)]
struct Item {
    image: String,
    name: String,
    place: PathBuf,
    disks: Vec<usize>,
    device: SharedDevice,
    kind: Option<PartitionKind>,
    member: Option<MdMember>,
    names: Vec<String>,
    /// Containers around it.
    depth: u8,
    /// Position in the result: that of the partition, or of the logical volume.
    order: usize,
}

impl Item {
    /// Returns the part of a mirror's member that holds the data of the array.
    fn array_data(&self) -> Option<Window> {
        let (offset_bytes, size_bytes) = self.member.as_ref()?.whole_data?;
        Some(Window::new(Arc::clone(&self.device), offset_bytes, size_bytes))
    }
}

struct Search<'a> {
    secrets: &'a Secrets,
    /// Work that all headers of the guest together may ask for.
    budget: luks::Budget,
    queue: VecDeque<Item>,
    /// Members of arrays that have all data, and what else they would be.
    members: Vec<(Item, Probed)>,
    physical: Vec<(PhysicalVolume, Item, Probed)>,
    /// Names and images that are in use.
    taken: HashSet<String>,
    /// Volumes that hold no opened one, with their positions.
    kept: Vec<(usize, Volume)>,
    found: Volumes,
}

impl Search<'_> {
    /// Queues the partitions of a disk, or the disk itself.
    fn add_disk(&mut self, number: usize, disk: &Disk, alone: bool) -> io::Result<()> {
        let table = read_table(&*disk.device)?;
        let warning = |text: String| (vec![number], format!("{}: {text}", disk.name));
        self.found.warnings.extend(table.warnings.into_iter().map(warning));
        if table.kind == TableKind::None {
            let item = Item {
                image: disk.name.clone(),
                name: disk.name.clone(),
                place: if alone {
                    PathBuf::new()
                } else {
                    disk.name.clone().into()
                },
                disks: vec![number],
                device: Arc::clone(&disk.device),
                kind: None,
                member: None,
                names: device_names(&disk.name, number, None),
                depth: 0,
                order: 0,
            };
            // A partition that can't be read is listed with the reason; of a disk without partitions nothing would be
            // left to list.
            probe_all(&*item.device)?;
            self.queue.push_back(item);
            return Ok(());
        }
        for partition in &table.partitions {
            self.push(partition_item(number, disk, partition, alone));
        }
        Ok(())
    }

    fn push(&mut self, item: Item) {
        if let Some(item) = self.named(item) {
            self.queue.push_back(item);
        }
    }

    /// Gives a new volume names that no other has; `None` if there are too many.
    fn named(&mut self, mut item: Item) -> Option<Item> {
        let count = self.taken.len() / 2;
        if count >= MAX_VOLUMES {
            if self
                .found
                .warnings
                .last()
                .is_none_or(|(_, text)| !text.starts_with("only"))
            {
                let text = format!("only {MAX_VOLUMES} volumes are read");
                self.found.warnings.push((item.disks, text));
            }
            return None;
        }
        item.image = self.unique("image", item.image);
        item.name = self.unique("name", item.name);
        item.order = count;
        Some(item)
    }

    /// Makes a name that no other volume has.
    fn unique(&mut self, what: &str, name: String) -> String {
        let mut names = (1..).map(|number| match number {
            1 => name.clone(),
            number => format!("{name}~{number}"),
        });
        // The iterator does not end.
        let free = names.find(|name| self.taken.insert(format!("{what} {name}")));
        free.unwrap_or(name)
    }

    fn run(&mut self) {
        loop {
            while let Some(item) = self.queue.pop_front() {
                self.open(item);
            }
            if !self.open_arrays() && !self.open_groups() {
                return;
            }
        }
    }

    /// Examines a volume, and queues those that it holds.
    fn open(&mut self, item: Item) {
        let probed = match probe_all(&*item.device) {
            Ok(probed) => probed,
            Err(error) => return self.keep(item, Err(error.to_string())),
        };
        match probed.content {
            Content::MdMember => match md_member(&*item.device) {
                Ok(member) => {
                    let item = Item { member, ..item };
                    self.members.push((item, probed));
                }
                Err(error) => self.keep(item, Err(error.to_string())),
            },
            Content::Luks => self.open_luks(item),
            Content::LvmMember => match lvm::physical_volume(&*item.device) {
                _ if item.depth >= MAX_DEPTH => self.keep(item, Err("too many volumes inside each other".into())),
                Ok(physical) => self.physical.push((physical, item, probed)),
                Err(error) => self.keep(item, Err(format!("LVM physical volume, {error}"))),
            },
            // An ext file system that lost its start can still be opened by a copy of its superblock.
            Content::Unknown | Content::Empty => match ext::backup_superblock(&*item.device) {
                Ok(Some(_)) => {
                    let content = Content::FileSystem(FsType::Ext4);
                    let also = Vec::new();
                    self.keep(item, Ok(Probed { content, also }));
                }
                _ => self.keep(item, Ok(probed)),
            },
            _ => self.keep(item, Ok(probed)),
        }
    }

    /// Queues the plain side of an encrypted volume, if a passphrase opens it.
    fn open_luks(&mut self, item: Item) {
        let opened = luks::header(&item.device).and_then(|header| {
            header.check()?;
            let opened = self.secrets.open(&item.name, &header, &item.device, &mut self.budget)?;
            Ok((header, opened))
        });
        match opened {
            _ if item.depth >= MAX_DEPTH => self.keep(item, Err("too many volumes inside each other".into())),
            Ok((header, Some(plain))) => {
                let warnings = header.remarks().into_iter();
                let warnings = warnings.map(|text| (item.disks.clone(), format!("{}: {text}", item.name)));
                self.found.warnings.extend(warnings);
                let mut names = item.names;
                names.push(format!("/dev/mapper/luks-{}", header.uuid()));
                let plain = Item {
                    image: self.unique("image", format!("{}-luks", item.image)),
                    device: plain,
                    names,
                    depth: item.depth + 1,
                    ..item
                };
                self.queue.push_back(plain);
            }
            Ok((header, None)) => {
                let reason = format!(
                    "LUKS encrypted volume ({}); give its key with --luks-key-file FILE",
                    header.describe()
                );
                self.keep(item, Err(reason));
            }
            Err(error) => self.keep(item, Err(format!("LUKS encrypted volume, {error}"))),
        }
    }

    /// Queues the logical volumes of all groups whose physical volumes were found so far; false if there is none.
    fn open_groups(&mut self) -> bool {
        let mut physical = std::mem::take(&mut self.physical);
        // The members of a mirror have the same content: the first one serves.
        let mut mirrors = HashSet::new();
        physical.retain(|(_, item, _)| item.member.as_ref().is_none_or(|member| mirrors.insert(member.array)));
        if physical.is_empty() {
            return false;
        }
        let depth = physical.iter().map(|(_, item, _)| item.depth).max().unwrap_or(0) + 1;
        let (members, items): (Vec<_>, Vec<_>) = physical
            .into_iter()
            .map(|(physical, item, probed)| ((physical, Arc::clone(&item.device)), (item, probed)))
            .unzip();
        let groups = lvm::assemble(members);
        for (number, (item, probed)) in items.iter().enumerate() {
            let mut with_volumes = groups.iter().filter(|group| !group.volumes.is_empty());
            if !with_volumes.any(|group| group.members.contains(&number)) {
                self.keep(item.clone(), Ok(probed.clone()));
            }
        }
        for group in groups {
            let on = group.members.iter().filter_map(|number| items.get(*number));
            let mut disks: Vec<usize> = on.flat_map(|(item, _)| item.disks.clone()).collect();
            disks.sort_unstable();
            disks.dedup();
            let remarks = group.remarks.iter();
            let warnings = remarks.map(|text| (disks.clone(), format!("volume group {}: {text}", group.name)));
            self.found.warnings.extend(warnings);
            for volume in group.volumes {
                let name = format!("{}-{}", group.name, volume.name);
                let escaped = |name: &str| name.replace('-', "--");
                let mut item = Item {
                    image: name.clone(),
                    place: PathBuf::new(),
                    name,
                    disks: disks.clone(),
                    device: Arc::new(Vec::new()),
                    kind: None,
                    member: None,
                    names: vec![
                        format!("/dev/{}/{}", group.name, volume.name),
                        format!("/dev/mapper/{}-{}", escaped(&group.name), escaped(&volume.name)),
                    ],
                    depth,
                    order: 0,
                };
                let Some(named) = self.named(item) else {
                    continue;
                };
                item = Item {
                    place: PathBuf::from(&named.name),
                    ..named
                };
                match volume.device {
                    Ok(device) => self.queue.push_back(Item { device, ..item }),
                    Err(reason) => self.keep(item, Err(reason)),
                }
            }
        }
        true
    }

    /// Queues the content of all mirrors found so far; false if there is none. Of the members of one mirror, those
    /// that missed changes stay closed.
    fn open_arrays(&mut self) -> bool {
        let members = std::mem::take(&mut self.members);
        let newest = |of: &MdMember| {
            let same = members.iter().filter_map(|(item, _)| item.member.as_ref());
            let same = same.filter(|member| member.array == of.array);
            same.map(|member| member.events).max()
        };
        let mut opened = false;
        for (item, probed) in &members {
            let item = item.clone();
            let is_current = |other: &MdMember| newest(other) == Some(other.events) && other.whole_data.is_some();
            let data = item
                .member
                .as_ref()
                .filter(|member| is_current(member) && item.depth < MAX_DEPTH);
            let data = data.map(|member| {
                // All current members, this one first: reads go to it, writes to all.
                let same = members.iter().filter(|(other, _)| {
                    let theirs = other.member.as_ref();
                    other.image != item.image && theirs.is_some_and(|it| it.array == member.array && is_current(it))
                });
                let all = std::iter::once(&item).chain(same.map(|(other, _)| other));
                Mirror(all.filter_map(Item::array_data).collect())
            });
            match data {
                Some(data) => {
                    let inside = Item {
                        image: self.unique("image", format!("{}-raid", item.image)),
                        device: Arc::new(data),
                        depth: item.depth + 1,
                        ..item
                    };
                    opened = true;
                    self.queue.push_back(inside);
                }
                None => self.keep(item, Ok(probed.clone())),
            }
        }
        opened
    }

    fn keep(&mut self, item: Item, probed: Result<Probed, String>) {
        let volume = Volume {
            image: item.image,
            name: item.name,
            place: item.place,
            disks: item.disks,
            device: item.device,
            kind: item.kind,
            probed,
            member: item.member,
            names: item.names,
        };
        self.kept.push((item.order, volume));
    }
}

fn partition_item(number: usize, disk: &Disk, partition: &Partition, alone: bool) -> Item {
    let short = format!("p{}", partition.number);
    let long = format!("{}.{short}", disk.name);
    let mut names = device_names(&disk.name, number, Some(partition.number));
    names.extend(partition.uuid.iter().map(|uuid| format!("PARTUUID={uuid}")));
    names.extend(partition.label.iter().map(|label| format!("PARTLABEL={label}")));
    Item {
        image: long.clone(),
        name: if alone { short.clone() } else { long },
        place: if alone {
            short.into()
        } else {
            PathBuf::from(&disk.name).join(short)
        },
        disks: vec![number],
        device: Arc::new(Window::new(
            Arc::clone(&disk.device),
            partition.offset_bytes,
            partition.size_bytes,
        )),
        kind: Some(partition.kind),
        member: None,
        names,
        depth: 0,
        order: 0,
    }
}

/// Returns the names under `/dev` that a disk or partition probably had in the guest: by its name in the backup, and by
/// its position for each usual driver.
fn device_names(disk: &str, position: usize, partition: Option<u32>) -> Vec<String> {
    let mut names = Vec::new();
    let mut add = |disk: String| {
        let separator = if disk.ends_with(|last: char| last.is_ascii_digit()) {
            "p"
        } else {
            ""
        };
        names.push(match partition {
            Some(number) => format!("/dev/{disk}{separator}{number}"),
            None => format!("/dev/{disk}"),
        });
    };
    add(disk.to_owned());
    if let Some(letter) = (b'a'..=b'z').nth(position).map(char::from) {
        for driver in ["vd", "sd", "xvd", "hd"] {
            add(format!("{driver}{letter}"));
        }
    }
    add(format!("nvme{position}n1"));
    names
}
