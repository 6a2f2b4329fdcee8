//! An entry of a FAT directory.

use jiff::Timestamp;

use crate::device::{le16, le32};
use crate::fs::chain::RawEntry;
use crate::fs::{FileKind, Stat};

use super::boot::Width;

// `ATTR_*` of linux/msdos_fs.h.
const ATTR_VOLUME: u8 = 0x08;
const ATTR_DIRECTORY: u8 = 0x10;
const ATTR_LONG_NAME: u8 = 0x0f;
const ATTR_LONG_NAME_MASK: u8 = 0x3f;

/// An entry as it is on the disk (`struct msdos_dir_entry`).
#[derive(Clone, Copy)]
pub(super) struct Raw(pub(super) RawEntry);

impl Raw {
    /// Tests for the mark after the last entry.
    pub(super) fn is_end(&self) -> bool {
        self.0[0] == 0
    }

    pub(super) fn is_deleted(&self) -> bool {
        self.0[0] == 0xe5
    }

    /// Tests for a piece of the long name of the entry that follows.
    pub(super) fn is_long(&self) -> bool {
        self.0[11] & ATTR_LONG_NAME_MASK == ATTR_LONG_NAME
    }

    pub(super) fn is_label(&self) -> bool {
        self.0[11] & ATTR_VOLUME != 0
    }

    pub(super) fn is_directory(&self) -> bool {
        self.0[11] & ATTR_DIRECTORY != 0
    }

    /// Tests for the entries `.` and `..`.
    pub(super) fn is_dot(&self) -> bool {
        matches!(&self.0[..11], b".          " | b"..         ")
    }

    pub(super) fn size_bytes(&self) -> u32 {
        le32(&self.0, 28)
    }

    pub(super) fn first_cluster(&self, width: Width) -> u32 {
        let high = if width == Width::Fat32 { le16(&self.0, 20) } else { 0 };
        u32::from(high) << 16 | u32::from(le16(&self.0, 26))
    }

    pub(super) fn stat(&self) -> Stat {
        let modified = timestamp(le16(&self.0, 24), le16(&self.0, 22));
        let accessed = match le16(&self.0, 18) {
            0 => modified,
            date => timestamp(date, 0),
        };
        let mut stat = Stat::of_directory(Timestamp::UNIX_EPOCH);
        if !self.is_directory() {
            stat.kind = FileKind::File;
            stat.mode = 0o644;
            stat.size_bytes = self.size_bytes().into();
        }
        Stat {
            modified,
            changed: modified,
            accessed,
            ..stat
        }
    }
}

/// Returns the time of a date and a time of day as if they were UTC; 1970 if they are none.
pub(in crate::fs) fn timestamp(date: u16, time: u16) -> Timestamp {
    let part = |bits: u16, shift: u16, mask: u16| i8::try_from(bits >> shift & mask).unwrap_or_default();
    let year = 1980 + i16::try_from(date >> 9).unwrap_or_default();
    let date = jiff::civil::Date::new(year, part(date, 5, 0xf), part(date, 0, 0x1f));
    let time = jiff::civil::Time::new(part(time, 11, 0x1f), part(time, 5, 0x3f), part(time, 0, 0x1f) * 2, 0);
    let zoned = date.and_then(|date| date.to_datetime(time?).to_zoned(jiff::tz::TimeZone::UTC));
    zoned.map_or(Timestamp::UNIX_EPOCH, |zoned| zoned.timestamp())
}
