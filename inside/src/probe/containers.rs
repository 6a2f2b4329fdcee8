//! Describes containers by their own metadata: the group of an LVM physical volume, the array of a RAID member, the
//! pool of a ZFS device.

use std::io;

use super::Content;
use crate::device::{Device, SharedDevice, le16, le32, le64, read_array, read_inside};
use crate::error::Error;
use crate::lvm;

const MD_MAGIC: u32 = 0xa92b_4efc;
/// First role number that is not an active role: spare, faulty, journal (`MD_DISK_ROLE_*`, linux/raid/md_p.h).
const MD_ROLE_MAX: u16 = 0xff00;
/// Size of the largest superblock of metadata 1.x (`MAX_SB_SIZE` of mdadm).
const MD1_BYTES: usize = 4096;

/// A member of a Linux RAID array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MdMember {
    /// UUID of the array.
    pub array: [u8; 16],
    /// Name that the administrator gave the array.
    pub name: String,
    /// RAID level; negative for those that are not RAID.
    pub level: i32,
    /// Counter of the array's changes: of two members, the one with the lower count is out of date.
    pub events: u64,
    /// Offset and size of a mirror's data, if this member has all of it; `None` for a spare, a member being rebuilt,
    /// and other levels.
    pub whole_data: Option<(u64, u64)>,
}

impl MdMember {
    /// Formats the membership: `member of a Linux RAID 1 array web1:0`.
    pub fn describe(&self) -> String {
        let level = match self.level {
            -1 => "linear".to_owned(),
            level => level.to_string(),
        };
        let space = if self.name.is_empty() { "" } else { " " };
        format!("member of a Linux RAID {level} array{space}{}", self.name)
    }
}

/// Reads the superblock of a RAID member. linux_raid.c: metadata 0.90 starts at the last but one multiple of 64 KiB,
/// 1.0 lies 8 KiB before the end, 1.1 and 1.2 are at the start.
pub fn md_member(volume: &dyn Device) -> io::Result<Option<MdMember>> {
    let size_bytes = volume.size_bytes();
    if let Some(at) = (size_bytes & !0xffff).checked_sub(0x10000)
        && let Some(sb) = read_array::<4096>(volume, at)?
        && let Some(found) = md0(&sb, at)
    {
        return Ok(Some(found));
    }
    let at_end = (size_bytes & !0xfff).checked_sub(0x2000);
    for at in at_end.into_iter().chain([0, 4096]) {
        let mut sb = vec![0; MD1_BYTES.min(size_bytes.saturating_sub(at) as usize)];
        if read_inside(volume, at, &mut sb)?
            && let Some(found) = md1(&sb, at, size_bytes)
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Tests that the offsets where RAID superblocks can be hold only zeros.
pub fn end_is_zero(volume: &dyn Device) -> io::Result<bool> {
    let size_bytes = volume.size_bytes();
    for at in [
        (size_bytes & !0xffff).checked_sub(0x10000),
        (size_bytes & !0xfff).checked_sub(0x2000),
    ] {
        if let Some(at) = at
            && let Some(bytes) = read_array::<256>(volume, at)?
            && bytes.iter().any(|byte| *byte != 0)
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Parses `mdp_superblock_s` of linux/raid/md_p.h (`mdp_super_t`), in the byte order of the machine that wrote it.
fn md0(sb: &[u8], at: u64) -> Option<MdMember> {
    let little = le32(sb, 0) == MD_MAGIC;
    if !little && le32(sb, 0).swap_bytes() != MD_MAGIC {
        return None;
    }
    let word = |index: usize| {
        if little {
            le32(sb, index * 4)
        } else {
            le32(sb, index * 4).swap_bytes()
        }
    };
    // Field 8 is the size in KiB that the array uses of this member: it must end before the superblock.
    let used_bytes = u64::from(word(8)) << 10;
    if word(1) != 0 || used_bytes > at {
        return None;
    }
    let mut array = [0; 16];
    for (bytes, index) in array.chunks_exact_mut(4).zip([5, 13, 14, 15]) {
        bytes.copy_from_slice(&word(index).to_be_bytes());
    }
    let level = word(7).cast_signed();
    // Words 39 and 40: the event count, whose halves are in the byte order of the machine. This disk's descriptor is at
    // word 992; its fifth word is the state, with `MD_DISK_FAULTY` (1), `MD_DISK_ACTIVE` (2) and `MD_DISK_SYNC` (4).
    let (low, high) = if little {
        (word(39), word(40))
    } else {
        (word(40), word(39))
    };
    let events = u64::from(low) | u64::from(high) << 32;
    let in_sync = word(992 + 4) & 0x7 == 0x6;
    Some(MdMember {
        array,
        name: String::new(),
        level,
        events,
        whole_data: (level == 1 && in_sync && used_bytes > 0).then_some((0, used_bytes)),
    })
}

/// Parses `struct mdp_superblock_1` of linux/raid/md_p.h: magic, major version, the sector of the superblock itself,
/// and its checksum.
fn md1(sb: &[u8], at: u64, volume_bytes: u64) -> Option<MdMember> {
    const FEATURE_RECOVERY_OFFSET: u32 = 0x2;
    const FEATURE_RESHAPE: u32 = 0x4;
    let roles = 2 * sb.get(220..224).map(|bytes| le32(bytes, 0) as usize)?;
    let summed = sb.get(..256usize.checked_add(roles)?)?;
    if le32(sb, 0) != MD_MAGIC
        || le32(sb, 4) != 1
        || le64(sb, 144) != at / 512
        || !crate::proven(md1_sum(summed) == le32(sb, 216))
    {
        return None;
    }
    let level = le32(sb, 72).cast_signed();
    let number = le32(sb, 160) as usize;
    let role = sb[256..]
        .get(2 * number..2 * number + 2)
        .map_or(u16::MAX, |bytes| le16(bytes, 0));
    let features = le32(sb, 8);
    let in_sync =
        role < MD_ROLE_MAX && number * 2 < roles && features & (FEATURE_RECOVERY_OFFSET | FEATURE_RESHAPE) == 0;
    // In sectors: the size that all members share, and the offset of the data on this one.
    let (offset_bytes, size_bytes) = (le64(sb, 128).saturating_mul(512), le64(sb, 80).saturating_mul(512));
    let inside = offset_bytes
        .checked_add(size_bytes)
        .is_some_and(|end| end <= volume_bytes);
    Some(MdMember {
        array: std::array::from_fn(|byte| sb[16 + byte]),
        name: printable(&sb[32..64]),
        level,
        events: le64(sb, 200),
        whole_data: (level == 1 && in_sync && inside && size_bytes > 0).then_some((offset_bytes, size_bytes)),
    })
}

/// Computes `calc_sb_1_csum` of drivers/md/md.c: the folded sum of all words but the checksum itself.
pub(super) fn md1_sum(sb: &[u8]) -> u32 {
    let words = sb.chunks(4).enumerate().filter(|(index, _)| *index != 216 / 4);
    let sum: u64 = words
        .map(|(_, word)| match word {
            [a, b, c, d] => u64::from(u32::from_le_bytes([*a, *b, *c, *d])),
            [a, b] => u64::from(u16::from_le_bytes([*a, *b])),
            _ => 0,
        })
        .sum();
    ((sum >> 32) + (sum & 0xffff_ffff)) as u32
}

/// Describes a container with the name of the group, array or pool it belongs to.
pub fn describe(content: Content, volume: &SharedDevice) -> io::Result<Option<String>> {
    Ok(match content {
        Content::MdMember => md_member(&**volume)?.map(|member| member.describe()),
        Content::LvmMember => lvm_group(volume)?.map(|group| format!("LVM physical volume of group {group}")),
        Content::ZfsMember => zfs_pool(&**volume)?.map(|pool| format!("member of ZFS pool {pool}")),
        _ => None,
    })
}

/// Reads the group's name; `None` if the volume is damaged or has no metadata.
fn lvm_group(volume: &SharedDevice) -> io::Result<Option<String>> {
    match lvm::physical_volume(&**volume) {
        Ok(volume) => Ok(volume.group().map(|(name, _)| printable(name.as_bytes()))),
        Err(Error::Io(error)) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Reads the pool's name from the first label: an XDR list whose pairs consist of name, type, count and value.
fn zfs_pool(volume: &dyn Device) -> io::Result<Option<String>> {
    let mut list = vec![0; 112 << 10];
    if !read_inside(volume, 16 << 10, &mut list)? {
        return Ok(None);
    }
    // The name "name" with its length, then the type "string", the count 1, and the string's length.
    let pair = b"\0\0\0\x04name\0\0\0\x09\0\0\0\x01";
    let at = list.windows(pair.len()).position(|bytes| bytes == pair);
    let value = at.and_then(|at| list.get(at + pair.len()..));
    Ok(value.and_then(|value| {
        let len = le32(value.get(..4)?, 0).swap_bytes() as usize;
        Some(printable(value.get(4..)?.get(..len.min(256))?))
    }))
}

/// Returns a name up to its first zero, with `_` for all that could move a cursor or look like markup.
fn printable(name: &[u8]) -> String {
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let harmless = |byte: &u8| {
        if byte.is_ascii_graphic() {
            char::from(*byte)
        } else {
            '_'
        }
    };
    name.iter().map(harmless).collect()
}
