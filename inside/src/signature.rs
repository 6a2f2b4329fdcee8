//! Identities that a disk carries: of its partition table, and of the file system or container of the disk or of each
//! partition. They tell two disks apart; a clone has those of its original.
//!
//! Reads at most 256 partitions, of each what [`probe_all`] reads. Trusts nothing: a name made to attack
//! can look like another disk, and do no more.
//!
//! Offsets are those of util-linux 2.39 (`libblkid/src/superblocks/*.c`), where each structure is described.

use std::fmt;
use std::io;

use crate::device::{Device, le16, le32, le64, read_array, read_inside};
use crate::fs::ext::uuid_text;
use crate::lvm;
use crate::partition::{PartitionTable, TableKind, guid, read_table};
use crate::probe::containers::md_member;
use crate::probe::{Content, FsType, probe_all};

#[cfg(test)]
mod tests;

/// Limit of partitions that are examined: that of a partition table.
const MAX_PARTITIONS: usize = 256;
/// Longest label in bytes: that of btrfs.
const MAX_LABEL_BYTES: usize = 256;

/// Identity of a partition table, a file system or a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Number of its partition; `None` for the disk itself.
    pub partition: Option<u32>,
    /// Kind, for people: `GPT`, `ext4`, `LUKS`.
    pub what: String,
    /// UUID or serial number, if it has one.
    pub id: Option<String>,
    /// Label or name. Only printable characters.
    pub label: Option<String>,
}

impl Signature {
    /// Tests whether both may be of the same disk. What has no UUID is the same if kind and label are.
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.id, &other.id) {
            (Some(id), Some(of_other)) => id == of_other,
            (None, None) => self.what == other.what && self.label == other.label,
            _ => false,
        }
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match (&self.label, &self.id) {
            (Some(label), _) => write!(f, " '{label}'")?,
            (None, Some(id)) => write!(f, " {id}")?,
            (None, None) => {}
        }
        match self.partition {
            Some(number) => write!(f, " on partition {number}"),
            None => Ok(()),
        }
    }
}

/// Identities of a disk.
#[derive(Debug, Default)]
pub struct Found {
    /// The identities, in the order of the disk's partitions; none for a blank disk and for one with unknown content.
    pub signatures: Vec<Signature>,
    /// First error of reading; there may be more identities.
    pub error: Option<io::Error>,
}

impl Found {
    fn add(&mut self, found: io::Result<Option<Signature>>) {
        match found {
            Ok(found) => self.signatures.extend(found),
            Err(error) => _ = self.error.get_or_insert(error),
        }
    }
}

/// Returns the identities of a disk. A part that can't be read does not hide the others.
pub fn signatures(disk: &dyn Device) -> Found {
    let mut found = Found::default();
    let table = match read_table(disk) {
        Ok(table) => table,
        Err(error) => {
            found.error = Some(error);
            return found;
        }
    };
    found.add(of_table(disk, &table));
    if table.kind == TableKind::None {
        found.add(of_volume(disk, None));
    }
    for partition in table.partitions.iter().take(MAX_PARTITIONS) {
        let part = Part {
            disk,
            offset_bytes: partition.offset_bytes,
            size_bytes: partition.size_bytes,
        };
        found.add(of_volume(&part, Some(partition.number)));
    }
    found
}

/// A partition.
struct Part<'a> {
    disk: &'a dyn Device,
    offset_bytes: u64,
    size_bytes: u64,
}

impl Device for Part<'_> {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        match offset_bytes.checked_add(buf.len() as u64) {
            // The partition is inside the disk.
            Some(end_bytes) if end_bytes <= self.size_bytes => self.disk.read_at(self.offset_bytes + offset_bytes, buf),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

fn of_table(disk: &dyn Device, table: &PartitionTable) -> io::Result<Option<Signature>> {
    let (what, id) = match table.kind {
        TableKind::None => return Ok(None),
        TableKind::Mbr => {
            let signature = read_array::<4>(disk, 440)?.map_or(0, |bytes| le32(&bytes, 0));
            ("MBR", (signature != 0).then(|| format!("{signature:08x}")))
        }
        TableKind::Gpt => ("GPT", disk_guid(disk)?),
    };
    // A table without an identity tells nothing.
    Ok(id.map(|id| Signature {
        partition: None,
        what: what.to_owned(),
        id: Some(id),
        label: None,
    }))
}

/// Reads the GUID of the disk from the primary header, or from the backup in the last sector (UEFI 2.10 section 5.3.2), in sectors
/// of 512 or 4096 bytes.
fn disk_guid(disk: &dyn Device) -> io::Result<Option<String>> {
    let last = |sector_bytes| disk.size_bytes().saturating_sub(sector_bytes);
    for at in [512, 4096, last(512), last(4096)] {
        let header = read_array::<72>(disk, at)?;
        if let Some(header) = header.filter(|header| header.starts_with(b"EFI PART")) {
            return Ok(Some(guid(&std::array::from_fn(|at| header[56 + at]))));
        }
    }
    Ok(None)
}

fn of_volume(volume: &dyn Device, partition: Option<u32>) -> io::Result<Option<Signature>> {
    let content = probe_all(volume)?.content;
    let (id, label) = match content {
        Content::Empty | Content::Unknown => return Ok(None),
        Content::FileSystem(fs) => of_file_system(volume, fs)?,
        Content::Journal => (uuid(volume, 1024 + 104)?, None),
        Content::Swap => (uuid(volume, 1024 + 12)?, label(volume, 1024 + 28, 16)?),
        Content::Luks => (label(volume, 168, 40)?, None),
        Content::LvmMember => of_physical_volume(volume)?,
        Content::MdMember => md_member(volume)?.map_or((None, None), |member| {
            (uuid_text(&member.array), clean(member.name.as_bytes()))
        }),
        Content::BitLocker | Content::ZfsMember | Content::BcacheMember | Content::Refs => (None, None),
    };
    Ok(Some(Signature {
        partition,
        what: name_of(content),
        id,
        label,
    }))
}

/// Returns a short name: `ext4`, `LUKS`.
fn name_of(content: Content) -> String {
    match content {
        Content::FileSystem(fs) => fs.to_string(),
        Content::Swap => "swap space".to_owned(),
        Content::Luks => "LUKS".to_owned(),
        other => other.to_string(),
    }
}

/// UUID and label.
type Names = (Option<String>, Option<String>);

fn of_file_system(volume: &dyn Device, fs: FsType) -> io::Result<Names> {
    let (id, name) = match fs {
        FsType::Ext2 | FsType::Ext3 | FsType::Ext4 => (1024 + 104, Some((1024 + 120, 16))),
        FsType::Xfs => (32, Some((108, 12))),
        FsType::Btrfs => ((64 << 10) + 32, Some(((64 << 10) + 299, MAX_LABEL_BYTES))),
        FsType::Bcachefs => (4096 + 56, Some((4096 + 72, 32))),
        FsType::Reiserfs => ((64 << 10) + 84, Some(((64 << 10) + 100, 16))),
        FsType::Jfs => ((32 << 10) + 136, Some(((32 << 10) + 152, 16))),
        FsType::Erofs => (1024 + 48, Some((1024 + 64, 16))),
        // Its label is UTF-16.
        FsType::F2fs => (1024 + 108, None),
        FsType::Vfat => return of_fat(volume),
        FsType::Exfat => return Ok((serial(volume, 100)?, None)),
        FsType::Ntfs => {
            let number = read_array::<8>(volume, 72)?.map_or(0, |bytes| le64(&bytes, 0));
            return Ok(((number != 0).then(|| format!("{number:016X}")), None));
        }
        FsType::Iso9660 => return Ok((None, label(volume, (32 << 10) + 40, 32)?)),
        FsType::Udf | FsType::Squashfs | FsType::Hfsplus | FsType::Ufs => return Ok((None, None)),
    };
    let name = name.map_or(Ok(None), |(at, len)| label(volume, at, len))?;
    Ok((uuid(volume, id)?, name))
}

/// Reads the extended boot record, which FAT32 has 28 bytes later.
fn of_fat(volume: &dyn Device) -> io::Result<Names> {
    let Some(boot) = read_array::<512>(volume, 0)? else {
        return Ok((None, None));
    };
    let at = if le16(&boot, 0x16) == 0 { 66 } else { 38 };
    if !matches!(boot[at], 0x28 | 0x29) {
        return Ok((None, None));
    }
    let name = clean(&boot[at + 5..at + 16]).filter(|name| name != "NO NAME");
    Ok((serial(volume, at as u64 + 1)?, name))
}

/// Returns the UUID in the label of a physical volume, and the name of its group.
fn of_physical_volume(volume: &dyn Device) -> io::Result<Names> {
    match lvm::physical_volume(volume) {
        Ok(found) => Ok((
            Some(found.uuid.clone()),
            found.group().and_then(|(name, _)| clean(name.as_bytes())),
        )),
        Err(crate::Error::Io(error)) => Err(error),
        Err(_) => Ok((None, None)),
    }
}

fn uuid(volume: &dyn Device, at: u64) -> io::Result<Option<String>> {
    Ok(read_array::<16>(volume, at)?.and_then(|bytes| uuid_text(&bytes)))
}

/// Reads a serial number of 32 bits, in the form of libblkid.
fn serial(volume: &dyn Device, at: u64) -> io::Result<Option<String>> {
    let number = read_array::<4>(volume, at)?.map_or(0, |bytes| le32(&bytes, 0));
    Ok((number != 0).then(|| format!("{:04X}-{:04X}", number >> 16, number & 0xffff)))
}

fn label(volume: &dyn Device, at: u64, len: usize) -> io::Result<Option<String>> {
    let mut bytes = vec![0; len.min(MAX_LABEL_BYTES)];
    Ok(match read_inside(volume, at, &mut bytes)? {
        true => clean(&bytes),
        false => None,
    })
}

/// Returns a name up to its first zero, with `_` for all that could move a cursor or end a quotation.
fn clean(name: &[u8]) -> Option<String> {
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(name);
    let harmless = |c: char| c.is_alphanumeric() || (c.is_ascii_graphic() && c != '\'') || c == ' ';
    let text: String = text.trim().chars().map(|c| if harmless(c) { c } else { '_' }).collect();
    (!text.is_empty()).then_some(text)
}
