//! Entry sets: the entries that together describe a file (7.4, 7.6, 7.7).

use jiff::{SignedDuration, Timestamp};

use crate::device::{le16, le32, le64};
use crate::error::{Error, Result};
use crate::fs::chain::RawEntry;
use crate::fs::{FileKind, Stat, is_name, utf16};

// Types of entries that are in use.
pub(super) const LABEL: u8 = 0x83;
const FILE: u8 = 0x85;
const STREAM: u8 = 0xc0;
const NAME: u8 = 0xc1;

/// `FileAttributes`: a directory.
const DIRECTORY: u16 = 0x10;
/// `GeneralSecondaryFlags`: no chain, the clusters are in one piece.
const NO_FAT_CHAIN: u8 = 0x2;
/// Most entries after the first one: the stream, 17 with the name, and a few that are not known here.
const MAX_SECONDARIES: u8 = 30;

pub(super) fn bad(at: u64) -> Error {
    Error::damaged(format!("directory entry at {at}"))
}

/// The entries of a file, the first of which is there.
pub(super) struct Set {
    entries: Vec<RawEntry>,
}

impl Set {
    /// Starts a set with its first entry, if it is one.
    pub(super) fn start(first: RawEntry) -> Option<Self> {
        let valid = first[0] == FILE && (2..=MAX_SECONDARIES).contains(&first[1]);
        valid.then(|| Self { entries: vec![first] })
    }

    /// Returns the number of entries that are still to add.
    pub(super) fn lacks(&self) -> usize {
        (usize::from(self.entries[0][1]) + 1).saturating_sub(self.entries.len())
    }

    pub(super) fn add(&mut self, entry: RawEntry) {
        self.entries.push(entry);
    }

    /// Tests a set that lacks nothing (6.3.3).
    pub(super) fn check(&self, at: u64) -> Result<()> {
        let bytes = self.entries.as_flattened().iter().enumerate();
        let covered = bytes.filter(|(at, _)| !matches!(at, 2 | 3));
        let sum = covered.fold(0_u16, |sum, (_, byte)| {
            sum.rotate_right(1).wrapping_add(u16::from(*byte))
        });
        let is_whole = self.entries.get(1).is_some_and(|stream| stream[0] == STREAM);
        if !is_whole || !crate::proven(sum == le16(&self.entries[0], 2)) {
            Err(bad(at))
        } else {
            Ok(())
        }
    }

    /// The entry that describes the content. Only a set that was checked surely has it.
    fn stream(&self) -> &RawEntry {
        self.entries.get(1).unwrap_or(&self.entries[0])
    }

    pub(super) fn name(&self, at: u64) -> Result<Vec<u8>> {
        let names = self.entries.iter().skip(2).filter(|entry| entry[0] == NAME);
        let units = names.flat_map(|entry| utf16::units(&entry[2..]));
        let name = utf16::to_utf8(units.take(self.stream()[3].into()));
        if is_name(&name) { Ok(name) } else { Err(bad(at)) }
    }

    pub(super) fn is_directory(&self) -> bool {
        le16(&self.entries[0], 4) & DIRECTORY != 0
    }

    pub(super) fn in_one_piece(&self) -> bool {
        self.stream()[1] & NO_FAT_CHAIN != 0
    }

    pub(super) fn first_cluster(&self) -> u32 {
        le32(self.stream(), 20)
    }

    pub(super) fn size_bytes(&self) -> u64 {
        le64(self.stream(), 24)
    }

    /// Returns the length of the part that was written.
    pub(super) fn valid_bytes(&self) -> u64 {
        le64(self.stream(), 8).min(self.size_bytes())
    }

    pub(super) fn stat(&self) -> Stat {
        let first = &self.entries[0];
        let modified = timestamp(le32(first, 12), first[21], first[23]);
        let mut stat = Stat::of_directory(Timestamp::UNIX_EPOCH);
        if !self.is_directory() {
            stat.kind = FileKind::File;
            stat.mode = 0o644;
            stat.size_bytes = self.size_bytes();
        }
        Stat {
            modified,
            changed: modified,
            accessed: timestamp(le32(first, 16), 0, first[24]),
            ..stat
        }
    }
}

/// Returns a time with its hundredths of a second and its zone (7.4.8 to 7.4.10); as if it were UTC without a zone.
fn timestamp(time: u32, hundredths: u8, zone: u8) -> Timestamp {
    // The high half is the date, both are as in FAT.
    let local = crate::fs::fat::timestamp((time >> 16) as u16, time as u16);
    // Seven bits with a sign, in quarters of an hour; the eighth says that they are valid.
    let quarters = if zone & 0x80 == 0 {
        0
    } else {
        i64::from((zone << 1).cast_signed() >> 1)
    };
    let hundredths = if hundredths < 200 { i64::from(hundredths) } else { 0 };
    let shift = SignedDuration::from_millis(hundredths * 10 - quarters * 15 * 60 * 1000);
    local.checked_add(shift).unwrap_or(local)
}
