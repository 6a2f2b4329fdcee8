//! Reads a disk's partition table: MBR with logical partitions, or GPT. Trusts nothing it reads.
//!
//! The bytes are a guest's, so every field may be malicious. Whatever they are, reading ends after a few hundred small
//! reads, holds one table of at most 4 MiB, and returns only partitions that lie inside the disk.
//!
//! Partitions have the numbers that the Linux kernel gives them (`block/partitions/msdos.c`, `efi.c`). In two cases the
//! kernel rejects a whole table although its files are still readable: a damaged primary GPT header, and a truncated
//! disk. Here such a table is read, with a warning.
//!
//! Not supported: tables inside partitions (BSD, Solaris), Windows dynamic disks, Apple maps. An MBR does not state the
//! sector size of its disk: see `sectors`.
//!
//! No crate is used, because both candidates, read and tried, break on hostile tables. `gpt` 4.1.0 panics unless an
//! entry has 128 bytes, allocates what the header asks for (up to 512 GiB), does not use the backup when only the
//! primary's entries are damaged, and needs `Write`. `mbrman` 0.6.1 panics when the only partition starts at sector 0
//! and, with overflow checks, when the sum of two sector numbers exceeds 32 bits; it follows chains without a limit,
//! fails a whole table for one bad link, and takes types c5 and d5 for extended, so that its numbers are not the
//! kernel's.

use std::fmt;
use std::io;
use std::ops::Range;

use crate::device::{Device, be16, be32, le16, le32, le64, read_array, read_inside};

mod sectors;

#[cfg(test)]
mod tests;

/// Sector sizes of a GPT: on a disk with sectors of 4096 bytes the header is at byte 4096, and its addresses count in
/// those.
const GPT_SECTOR_SIZES_BYTES: [u64; 2] = [512, 4096];
/// Limit of MBR partitions. More would be noise: fdisk stops at 60, and each one becomes a file.
const MAX_MBR_PARTITIONS: usize = 128;
/// Limit of GPT entries: the kernel's `DISK_MAX_PARTS`.
const MAX_GPT_ENTRIES: usize = 256;
/// Limit of links in a chain. The kernel follows 100 links without a partition; here all links count.
const MAX_LINKS: usize = 100;
/// Limit of the GPT entries' size: the kernel's limit for allocating them (`KMALLOC_MAX_SIZE`).
const MAX_GPT_TABLE_BYTES: u64 = 4 << 20;
/// Offsets and names in the boot sectors of file systems (NTFS, exFAT, BitLocker, FAT12 and FAT16, FAT32).
const BOOT_SECTOR_NAMES: [(usize, &[u8]); 5] = [
    (3, b"NTFS    "),
    (3, b"EXFAT   "),
    (3, b"-FVE-FS-"),
    (0x36, b"FAT"),
    (0x52, b"FAT32"),
];
/// Limit of warnings, so that a malicious table does not fill the screen.
const MAX_WARNINGS: usize = 32;

/// A partition of a disk. Always inside the disk and never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// N of `/dev/sdaN`: primary 1 to 4, logical from 5; with GPT the index of the entry.
    pub number: u32,
    /// Offset on the disk.
    pub offset_bytes: u64,
    /// Length.
    pub size_bytes: u64,
    /// Purpose, according to the table.
    pub kind: PartitionKind,
    /// Name in a GPT entry, with `_` for all that could move a cursor or look like a path.
    pub label: Option<String>,
    /// PARTUUID as libblkid prints it: the GUID of a GPT entry, or the signature of an MBR and the number.
    pub uuid: Option<String>,
}

/// Purpose of a partition, according to its table. The content may differ: see `probe`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionKind {
    /// The type byte.
    Mbr(u8),
    /// The type GUID in its on-disk byte order.
    Gpt([u8; 16]),
}

impl fmt::Display for PartitionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PartitionKind::Mbr(kind) => write!(f, "MBR type {kind:#04x}"),
            PartitionKind::Gpt(kind) => write!(f, "GPT type {}", guid(kind)),
        }
    }
}

/// Formats a GUID. UEFI 2.10 appendix A: the first three fields are little-endian, the rest is in order.
pub(crate) fn guid(g: &[u8; 16]) -> String {
    let (a, b, c) = (le32(g, 0), le16(g, 4), le16(g, 6));
    let (d, e, f_low) = (be16(g, 8), be16(g, 10), be32(g, 12));
    format!("{a:08X}-{b:04X}-{c:04X}-{d:04X}-{e:04X}{f_low:08X}")
}

/// Kind of a disk's partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    /// No table: the disk holds a file system itself, or nothing.
    None,
    /// MBR: partitions have a type byte.
    Mbr,
    /// GPT: partitions have a type GUID.
    Gpt,
}

/// The partitions of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionTable {
    /// Kind of the table.
    pub kind: TableKind,
    /// Partitions by number; the numbers may have gaps. They may overlap: each is only a view.
    pub partitions: Vec<Partition>,
    /// Errors in the table and their treatment, a sentence each.
    pub warnings: Vec<String>,
}

/// Reads the table of `disk`. An error means that the disk could not be read, never that its content is invalid: so a
/// damaged block of the backup is not mistaken for a disk without partitions.
pub fn read_table(disk: &dyn Device) -> io::Result<PartitionTable> {
    let sector = read_array::<512>(disk, 0)?.unwrap_or([0; 512]);
    let entries = mbr_entries(&sector);
    let is_mbr = looks_like_mbr(disk, &sector, &entries);
    // Any entry of type ee means GPT, even beside others (a hybrid MBR): the kernel ignores the others too.
    let protective = entries.iter().filter(|entry| entry.kind == 0xee);
    match protective.min_by_key(|entry| entry.start_sector != 1) {
        Some(entry) if has_signature(&sector) => read_gpt(disk, entry, is_mbr),
        _ if is_mbr => {
            let mut findings = Findings::new(disk);
            findings.sector_bytes = sectors::sector_bytes(disk, &entries)?;
            findings.signature = le32(&sector, 440);
            read_mbr(disk, &entries, findings)
        }
        _ => Ok(Findings::new(disk).into_table(TableKind::None)),
    }
}

// MBR

#[derive(Clone, Copy)]
struct MbrEntry {
    boot: u8,
    kind: u8,
    start_sector: u64,
    sectors: u64,
}

impl MbrEntry {
    /// Tests for the types that hold logical partitions. An entry without sectors is unused, whatever its type.
    fn is_extended(&self) -> bool {
        self.sectors != 0 && matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

fn mbr_entries(sector: &[u8; 512]) -> [MbrEntry; 4] {
    std::array::from_fn(|slot| {
        let entry = &sector[446 + 16 * slot..][..16];
        MbrEntry {
            boot: entry[0],
            kind: entry[4],
            start_sector: le32(entry, 8).into(),
            sectors: le32(entry, 12).into(),
        }
    })
}

fn has_signature(sector: &[u8; 512]) -> bool {
    sector[510..] == [0x55, 0xaa]
}

/// Distinguishes a table from the boot sector of a file system, which also ends in 55aa but has text, code or zeros
/// instead of entries.
fn looks_like_mbr(disk: &dyn Device, sector: &[u8; 512], entries: &[MbrEntry; 4]) -> bool {
    let bootable = |entry: &MbrEntry| matches!(entry.boot, 0x00 | 0x80);
    let used = || entries.iter().filter(|entry| entry.sectors != 0);
    // The kernel's check. For the kernel, all zeros are a table without partitions; nothing is lost by calling that no
    // table.
    if !has_signature(sector) || !entries.iter().all(bootable) || used().next().is_none() {
        return false;
    }
    // A disk that once was one file system and was partitioned later may keep the old name: good entries win.
    let named = |(at, name): &(usize, &[u8])| sector[*at..].starts_with(name);
    let disk_sectors = disk.size_bytes() / sectors::COMMON;
    let inside = |entry: &MbrEntry| entry.start_sector + entry.sectors <= disk_sectors;
    !BOOT_SECTOR_NAMES.iter().any(named) || used().all(inside)
}

fn read_mbr(disk: &dyn Device, entries: &[MbrEntry; 4], mut findings: Findings) -> io::Result<PartitionTable> {
    let mut next_logical = 5;
    for (number, entry) in (1..).zip(entries) {
        if entry.is_extended() {
            read_logical(disk, entry, &mut next_logical, &mut findings)?;
        } else {
            findings.add_mbr(number, entry.start_sector, entry);
        }
    }
    Ok(findings.into_table(TableKind::Mbr))
}

/// Follows the chain of extended boot records. An entry for data counts from its own record, a link to the next record
/// from the extended partition.
fn read_logical(
    disk: &dyn Device,
    extended: &MbrEntry,
    next_number: &mut u32,
    findings: &mut Findings,
) -> io::Result<()> {
    // All numbers here have 32 bits on the disk: neither their sums nor their products exceed 64.
    let extended_end = extended.start_sector + extended.sectors;
    let (mut record, mut record_sectors) = (extended.start_sector, extended.sectors);
    let mut seen = Vec::with_capacity(MAX_LINKS);
    let broken = loop {
        if seen.contains(&record) {
            break format!("returns to sector {record}");
        }
        if seen.len() == MAX_LINKS {
            break format!("has more than {MAX_LINKS} links");
        }
        seen.push(record);
        let Some(sector) = read_array::<512>(disk, record * findings.sector_bytes)? else {
            break format!("leaves the disk at sector {record}");
        };
        if !has_signature(&sector) {
            // An extended partition that never held a logical one has no record.
            if seen.len() == 1 && sector.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            break format!("leads to sector {record}, which holds no table");
        }
        let entries = mbr_entries(&sector);
        for (slot, entry) in entries.iter().enumerate() {
            let (start, size) = (record + entry.start_sector, entry.sectors);
            // OS/2 used all four entries; elsewhere the last two may be garbage, so the kernel accepts them only if
            // they fit.
            let fits = entry.start_sector + size <= record_sectors && start + size <= extended_end;
            if size != 0 && !entry.is_extended() && (slot < 2 || fits) {
                findings.add_mbr(*next_number, start, entry);
                // A partition that is left out keeps its number, as in the kernel.
                *next_number += 1;
            }
        }
        let Some(link) = entries.iter().find(|entry| entry.is_extended()) else {
            return Ok(());
        };
        record = extended.start_sector + link.start_sector;
        record_sectors = link.sectors;
    };
    findings.warn(format!(
        "the chain of logical partitions {broken}; the rest is not shown"
    ));
    Ok(())
}

// GPT

/// A header whose checksums match, with its entries.
struct Gpt {
    sector_bytes: u64,
    entry_bytes: usize,
    entries: Vec<u8>,
}

/// Content of a sector that may hold a header.
enum GptHeader {
    Good(Gpt),
    /// It has the signature, but the rest is invalid. The address of the other header may still be right.
    Damaged {
        why: &'static str,
        other_lba: u64,
    },
    Absent,
}

/// Reads a GPT. `is_mbr` says that the first sector is certainly a partition table, so a GPT without a header is
/// damaged, and not a file system that looks like one.
fn read_gpt(disk: &dyn Device, protective: &MbrEntry, is_mbr: bool) -> io::Result<PartitionTable> {
    let mut findings = Findings::new(disk);
    let mut why_damaged = "it has no signature";
    let mut backups = Vec::new();
    for sector_bytes in GPT_SECTOR_SIZES_BYTES {
        match read_gpt_header(disk, 1, sector_bytes)? {
            GptHeader::Good(gpt) => return Ok(findings.with_gpt(protective, &gpt)),
            GptHeader::Damaged { why, other_lba } => {
                why_damaged = why;
                backups.push((other_lba, sector_bytes));
            }
            GptHeader::Absent => {}
        }
        // The backup header is at the end of the disk, or at the end that the disk had when the table was made: it may
        // have grown since.
        let protected_end = protective.start_sector + protective.sectors;
        for end in [disk.size_bytes() / sector_bytes, protected_end] {
            backups.push((end.saturating_sub(1), sector_bytes));
        }
    }
    for (lba, sector_bytes) in backups.into_iter().filter(|(lba, _)| *lba > 1) {
        if let GptHeader::Good(gpt) = read_gpt_header(disk, lba, sector_bytes)? {
            findings.warn(format!(
                "the primary GPT header is damaged ({why_damaged}); the backup in sector {lba} is used"
            ));
            return Ok(findings.with_gpt(protective, &gpt));
        }
    }
    if !is_mbr || protective.start_sector != 1 {
        return Ok(findings.into_table(TableKind::None));
    }
    findings.warn(format!(
        "the primary GPT header is damaged ({why_damaged}) and has no backup; no partitions are shown"
    ));
    Ok(findings.into_table(TableKind::Gpt))
}

/// Reads a GPT header (UEFI 2.10 section 5.3.2) with the checks of `is_gpt_valid` in the kernel's `efi.c`, except that
/// of the usable range: a truncated disk is still useful.
fn read_gpt_header(disk: &dyn Device, lba: u64, sector_bytes: u64) -> io::Result<GptHeader> {
    let mut sector = vec![0; sector_bytes as usize];
    let offset_bytes = lba.saturating_mul(sector_bytes);
    if !read_inside(disk, offset_bytes, &mut sector)? || !sector.starts_with(b"EFI PART") {
        return Ok(GptHeader::Absent);
    }
    let other_lba = le64(&sector, 32);
    let damaged = |why| Ok(GptHeader::Damaged { why, other_lba });

    let (header_bytes, header_crc) = (le32(&sector, 12) as usize, le32(&sector, 16));
    sector[16..20].fill(0);
    let header = sector.get(..header_bytes);
    if header.is_none_or(|header| header.len() < 92 || !crate::proven(crc32(header) == header_crc)) {
        return damaged("its checksum is wrong");
    }
    if le64(&sector, 24) != lba {
        return damaged("it was written for another sector");
    }
    let (entry_count, entry_bytes) = (le32(&sector, 80), le32(&sector, 84));
    let table_bytes = u64::from(entry_count) * u64::from(entry_bytes);
    let table_offset_bytes = le64(&sector, 72).saturating_mul(sector_bytes);
    let good_size = matches!(entry_bytes, 128 | 256 | 512 | 1024 | 2048 | 4096);
    if !good_size || !(1..=MAX_GPT_TABLE_BYTES).contains(&table_bytes) {
        return damaged("its table has an invalid size");
    }
    let mut entries = vec![0; table_bytes as usize];
    if !read_inside(disk, table_offset_bytes, &mut entries)? {
        return damaged("its table lies outside the disk");
    }
    if !crate::proven(crc32(&entries) == le32(&sector, 88)) {
        return damaged("the checksum of its table is wrong");
    }
    let entry_bytes = entry_bytes as usize;
    Ok(GptHeader::Good(Gpt {
        sector_bytes,
        entry_bytes,
        entries,
    }))
}

/// Computes the checksum of GPT (ISO-HDLC, reflected polynomial edb88320). Bit by bit is enough for a table of 16 KiB.
fn crc32(bytes: &[u8]) -> u32 {
    let shift = |crc: u32| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    !bytes
        .iter()
        .fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| shift(crc)))
}

/// Decodes a GPT partition name: UTF-16LE up to a zero. Keeps letters and digits of any script and printable ASCII
/// except slashes.
fn clean_label(name: &[u8]) -> Option<String> {
    let printable = |c: char| c.is_alphanumeric() || c.is_ascii_graphic() || c == ' ';
    let harmless = |c: char| printable(c) && c != '/' && c != '\\';
    let units = name
        .chunks_exact(2)
        .map(|unit| le16(unit, 0))
        .take_while(|unit| *unit != 0);
    let chars = char::decode_utf16(units).map(|c| c.unwrap_or('_'));
    let label: String = chars.map(|c| if harmless(c) { c } else { '_' }).collect();
    (!label.trim().is_empty()).then(|| label.trim().to_owned())
}

/// Partitions found so far. A partition gets into a table only through this type, so the bounds are checked here.
struct Findings {
    disk_bytes: u64,
    /// Sector size of an MBR's numbers.
    sector_bytes: u64,
    /// Signature of an MBR; 0 if it has none.
    signature: u32,
    partitions: Vec<Partition>,
    warnings: Vec<String>,
}

impl Findings {
    fn new(disk: &dyn Device) -> Self {
        Findings {
            disk_bytes: disk.size_bytes(),
            sector_bytes: sectors::COMMON,
            signature: 0,
            partitions: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn warn(&mut self, warning: String) {
        if self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(warning);
        } else if self.warnings.len() == MAX_WARNINGS {
            self.warnings.push("this table has more errors".into());
        }
    }

    fn add_mbr(&mut self, number: u32, start_sector: u64, entry: &MbrEntry) {
        if entry.sectors == 0 {
            return;
        }
        if self.partitions.len() == MAX_MBR_PARTITIONS {
            return self.warn(format!(
                "partition {number} exceeds the limit of {MAX_MBR_PARTITIONS}; left out"
            ));
        }
        let start_bytes = start_sector * self.sector_bytes;
        let bytes = start_bytes..start_bytes + entry.sectors * self.sector_bytes;
        let uuid = (self.signature != 0).then(|| format!("{:08x}-{number:02x}", self.signature));
        self.add(number, bytes, PartitionKind::Mbr(entry.kind), (None, uuid));
    }

    fn with_gpt(mut self, protective: &MbrEntry, gpt: &Gpt) -> PartitionTable {
        if protective.start_sector != 1 {
            self.warn("the protective MBR entry does not start at sector 1; Linux would not read this table".into());
        }
        let entries = gpt.entries.chunks_exact(gpt.entry_bytes);
        if entries.len() > MAX_GPT_ENTRIES {
            self.warn(format!("only {MAX_GPT_ENTRIES} of {} entries are read", entries.len()));
        }
        for (number, entry) in (1..).zip(entries.take(MAX_GPT_ENTRIES)) {
            let kind: [u8; 16] = std::array::from_fn(|at| entry[at]);
            let (start_lba, end_lba) = (le64(entry, 32), le64(entry, 40).checked_add(1));
            // Type zero is an unused entry; a last sector just before the first is an empty partition.
            if kind == [0; 16] || end_lba == Some(start_lba) {
                continue;
            }
            // A product too large for 64 bits is past the end of any disk.
            let to_bytes = |lba: u64| lba.saturating_mul(gpt.sector_bytes);
            let bytes = to_bytes(start_lba)..to_bytes(end_lba.unwrap_or(u64::MAX));
            let uuid = guid(&std::array::from_fn(|at| entry[16 + at])).to_lowercase();
            let names = (clean_label(&entry[56..128]), Some(uuid));
            self.add(number, bytes, PartitionKind::Gpt(kind), names);
        }
        self.into_table(TableKind::Gpt)
    }

    fn add(
        &mut self,
        number: u32,
        bytes: Range<u64>,
        kind: PartitionKind,
        (label, uuid): (Option<String>, Option<String>),
    ) {
        if bytes.start >= self.disk_bytes {
            return self.warn(format!("partition {number} starts past the end; left out"));
        }
        if bytes.is_empty() {
            return self.warn(format!("partition {number} ends before its start; left out"));
        }
        if bytes.end > self.disk_bytes {
            self.warn(format!("partition {number} ends past the end; cut off there"));
        }
        self.partitions.push(Partition {
            number,
            offset_bytes: bytes.start,
            size_bytes: bytes.end.min(self.disk_bytes) - bytes.start,
            kind,
            label,
            uuid,
        });
    }

    fn into_table(mut self, kind: TableKind) -> PartitionTable {
        self.partitions.sort_by_key(|partition| partition.number);
        self.warn_of_overlaps();
        PartitionTable {
            kind,
            partitions: self.partitions,
            warnings: self.warnings,
        }
    }

    /// Compares each partition with that one before it which reaches furthest: at most one warning each, and no
    /// quadratic work.
    fn warn_of_overlaps(&mut self) {
        let range = |p: &Partition| (p.offset_bytes, p.offset_bytes + p.size_bytes, p.number);
        let mut by_offset: Vec<_> = self.partitions.iter().map(range).collect();
        by_offset.sort_unstable();
        let (mut furthest_bytes, mut furthest_number) = (0, 0);
        for (start_bytes, end_bytes, number) in by_offset {
            if start_bytes < furthest_bytes {
                self.warn(format!("partitions {furthest_number} and {number} overlap"));
            }
            if end_bytes > furthest_bytes {
                (furthest_bytes, furthest_number) = (end_bytes, number);
            }
        }
    }
}
