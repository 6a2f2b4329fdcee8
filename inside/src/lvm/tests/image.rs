//! Physical volumes and texts made by hand.

use super::crc;
use super::*;

pub(super) const EXTENT: usize = 256 << 10;
/// Offset of the first extent.
pub(super) const START: usize = 1 << 20;
const AREA: usize = 4096;

/// Formats a UUID that is unique for its number.
pub(super) fn uuid(number: usize) -> String {
    format!("aaaaaa-bbbb-cccc-dddd-eeee-ffff-{number:06}")
}

pub(super) fn segment(start: usize, count: usize, kind: &str, fields: &str) -> String {
    format!("segment{start} {{\nstart_extent = {start}\nextent_count = {count}\ntype = \"{kind}\"\n{fields}\n}}\n")
}

/// A segment of consecutive extents of a physical volume.
pub(super) fn linear(start: usize, count: usize, member: usize, extent: usize) -> String {
    let fields = format!("stripe_count = 1\nstripes = [ \"pv{member}\", {extent} ]");
    segment(start, count, "striped", &fields)
}

/// Text of a group under construction.
pub(super) struct Text {
    pub(super) name: String,
    pub(super) seqno: usize,
    pub(super) members: Vec<(String, usize)>,
    volumes: String,
    count: usize,
}

impl Text {
    /// Starts with the UUIDs of physical volumes and their numbers of extents.
    pub(super) fn new(members: Vec<(String, usize)>) -> Self {
        Self {
            name: "group".to_owned(),
            seqno: 1,
            members,
            volumes: String::new(),
            count: 0,
        }
    }

    fn add(&mut self, name: &str, flags: &str, segments: &[String]) {
        self.count += 1;
        self.volumes += &format!(
            "{name} {{\nid = \"{}\"\nstatus = [\"READ\", \"WRITE\"{flags}]\nflags = []\nsegment_count = {}\n{}}}\n",
            uuid(1000 + self.count),
            segments.len(),
            segments.concat()
        );
    }

    pub(super) fn visible(&mut self, name: &str, segments: &[String]) {
        self.add(name, ", \"VISIBLE\"", segments);
    }

    pub(super) fn hidden(&mut self, name: &str, segments: &[String]) {
        self.add(name, "", segments);
    }

    pub(super) fn flagged(&mut self, name: &str, flag: &str, segments: &[String]) {
        self.add(name, &format!(", \"{flag}\""), segments);
    }

    pub(super) fn build(&self) -> String {
        let members = self.members.iter().enumerate().map(|(number, (id, extents))| {
            format!(
                "pv{number} {{\nid = \"{id}\"\ndevice = \"/dev/sd\"\nstatus = [\"ALLOCATABLE\"]\nflags = []\n\
                 dev_size = {}\npe_start = {}\npe_count = {extents}\n}}\n",
                (START + extents * EXTENT) / 512,
                START / 512
            )
        });
        format!(
            "contents = \"Text Format Volume Group\"\nversion = 1\ndescription = \"\"\ncreation_host = \"h\" # comment\n\
             creation_time = 1\n{} {{\nid = \"{}\"\nseqno = {}\nformat = \"lvm2\"\nstatus = [\"RESIZEABLE\", \"READ\", \
             \"WRITE\"]\nflags = []\nextent_size = {}\nmax_lv = 0\nmax_pv = 0\nmetadata_copies = 0\n\
             physical_volumes {{\n{}}}\nlogical_volumes {{\n{}}}\n}}\n",
            self.name,
            uuid(999),
            self.seqno,
            EXTENT / 512,
            members.collect::<String>(),
            self.volumes
        )
    }

    /// Makes the disks of all members, with this text on each.
    pub(super) fn disks(&self) -> Vec<Arc<Memory>> {
        let text = self.build();
        let disks = self.members.iter();
        disks
            .map(|(id, extents)| Memory::new(disk(id, *extents, text.as_bytes())))
            .collect()
    }
}

/// Makes a physical volume whose only metadata area has a text.
pub(super) fn disk(id: &str, extents: usize, text: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; START + extents * EXTENT];
    let size = disk.len() as u64;
    let label = &mut disk[512..1024];
    label[..8].copy_from_slice(b"LABELONE");
    label[8] = 1;
    label[20] = 32;
    label[24..32].copy_from_slice(b"LVM2 001");
    label[32..64].copy_from_slice(id.replace('-', "").as_bytes());
    let numbers = [size, START as u64, 0, 0, 0, AREA as u64, (START - AREA) as u64, 0, 0];
    for (at, number) in (64..).step_by(8).zip(numbers) {
        label[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    let mut text = text.to_vec();
    text.push(0);
    disk[AREA + 512..AREA + 512 + text.len()].copy_from_slice(&text);
    let header = &mut disk[AREA..AREA + 512];
    header[4..20].copy_from_slice(b" LVM2 x[5A%r0N*>");
    header[20] = 1;
    let numbers = [AREA as u64, (START - AREA) as u64, 512, text.len() as u64];
    for (at, number) in (24..).step_by(8).zip(numbers) {
        header[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    header[56..60].copy_from_slice(&crc::lvm(&text).to_le_bytes());
    sign(&mut disk);
    disk
}

/// Corrects the checksums of label and header.
pub(super) fn sign(disk: &mut [u8]) {
    let sum = crc::lvm(&disk[532..1024]);
    disk[528..532].copy_from_slice(&sum.to_le_bytes());
    let sum = crc::lvm(&disk[AREA + 4..AREA + 512]);
    disk[AREA..AREA + 4].copy_from_slice(&sum.to_le_bytes());
}

/// Returns the offset of an extent.
pub(super) fn extent_at(extent: usize) -> u64 {
    (START + extent * EXTENT) as u64
}
