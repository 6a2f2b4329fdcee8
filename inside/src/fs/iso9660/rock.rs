//! Rock Ridge: POSIX names and attributes in the system use fields of a directory record.

use jiff::Timestamp;

use crate::device::le32;
use crate::error::{Error, Result};
use crate::fs::pages::Pages;
use crate::fs::{FileKind, MAX_LINK_BYTES, MAX_NAME_BYTES};

use super::dates;
use super::record::Record;

/// Most areas with fields of one record, and most bytes of an area. Linux follows 32 as well (`RR_MAX_CE_ENTRIES`), and
/// none is longer than a sector.
const MAX_AREAS: usize = 32;
const MAX_AREA_BYTES: u64 = 2048;

/// Mode, owner and number of links (PX).
#[derive(Clone, Copy)]
pub(super) struct Attributes {
    /// `None` if the mode has an unknown kind.
    pub(super) kind: Option<FileKind>,
    pub(super) mode: u16,
    pub(super) links: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The fields of a record.
#[derive(Default)]
pub(super) struct Rock {
    pub(super) name: Option<Vec<u8>>,
    pub(super) attributes: Option<Attributes>,
    pub(super) device: Option<(u32, u32)>,
    target: Option<Vec<u8>>,
    pub(super) modified: Option<Timestamp>,
    pub(super) accessed: Option<Timestamp>,
    pub(super) changed: Option<Timestamp>,
    /// Block of the directory that this record stands for (CL).
    pub(super) child_block: Option<u32>,
    /// The directory is shown elsewhere (RE).
    pub(super) is_relocated: bool,
    /// Reason why the content is not plain.
    pub(super) foreign: Option<&'static str>,
    /// The last part of the target continues in the next SL field.
    in_component: bool,
    target_lost: bool,
}

/// Tests the record `.` of the top directory for Rock Ridge; returns the bytes to skip in each other record (SP).
pub(super) fn skipped_bytes(dot: &Record) -> Result<Option<u8>> {
    let fields = dot.system_use();
    // XA of CD-ROM comes before on some discs.
    let found = [0, 14]
        .into_iter()
        .find_map(|at| fields.get(at..at + 7).filter(|field| field.starts_with(b"SP")));
    Ok(found.filter(|field| field[4..6] == *b"\xbe\xef").map(|field| field[6]))
}

impl Rock {
    /// Reads the fields of a record and of the areas where they continue.
    pub(super) fn read(pages: &Pages, record: &Record, skipped: u8, block_bytes: u64) -> Result<Self> {
        let mut rock = Self::default();
        // In the record with the field SP, nothing is skipped; elsewhere these bytes are not Rock Ridge's.
        let fields = record.system_use();
        let skipped = if fields.starts_with(b"SP") {
            0
        } else {
            usize::from(skipped)
        };
        let mut area = fields.get(skipped..).unwrap_or_default().to_vec();
        for _ in 0..MAX_AREAS {
            let Some((block, offset_bytes, len)) = rock.take(&area)? else {
                return Ok(rock);
            };
            if u64::from(len) > MAX_AREA_BYTES {
                break;
            }
            area = vec![0; len as usize];
            pages.read_at(u64::from(block) * block_bytes + u64::from(offset_bytes), &mut area)?;
        }
        Err(Error::damaged("continuation of a directory record"))
    }

    /// Returns the target of a link.
    pub(super) fn target(self) -> Option<Vec<u8>> {
        self.target.filter(|target| !self.target_lost && !target.is_empty())
    }

    /// Takes the fields of an area; returns the next area.
    fn take(&mut self, mut area: &[u8]) -> Result<Option<(u32, u32, u32)>> {
        let mut next = None;
        while let Some(len) = area.get(2).map(|len| usize::from(*len)).filter(|len| *len >= 4) {
            let Some((field, rest)) = area.split_at_checked(len) else {
                break;
            };
            area = rest;
            let number = |at: usize| field.get(at..at + 4).map(|bytes| le32(bytes, 0));
            match &field[..2] {
                b"CE" => {
                    next = number(4)
                        .zip(number(12))
                        .zip(number(20))
                        .map(|((block, at), len)| (block, at, len))
                }
                b"ST" => break,
                b"NM" => self.take_name(field)?,
                b"PX" => self.attributes = attributes(field),
                b"PN" => self.device = number(4).zip(number(12)).map(|(high, low)| device(high, low)),
                // Without its target, a link still has its name.
                b"SL" if self.take_target(field).is_none() => self.target_lost = true,
                b"TF" => self.take_times(field),
                b"CL" => self.child_block = number(4),
                b"RE" => self.is_relocated = true,
                b"ZF" => self.foreign = Some("file compressed with zisofs"),
                b"SF" => self.foreign = Some("sparse file of Rock Ridge"),
                _ => {}
            }
        }
        Ok(next)
    }

    fn take_name(&mut self, field: &[u8]) -> Result<()> {
        // `.` and `..` have flags instead of a name.
        if field.get(4).is_some_and(|flags| flags & 6 != 0) {
            return Ok(());
        }
        let name = self.name.get_or_insert_default();
        name.extend_from_slice(field.get(5..).unwrap_or_default());
        if name.len() > MAX_NAME_BYTES {
            return Err(Error::damaged("name of Rock Ridge"));
        }
        Ok(())
    }

    /// Appends the components of a link's target; `None` if they are damaged.
    fn take_target(&mut self, field: &[u8]) -> Option<()> {
        let target = self.target.get_or_insert_default();
        let mut rest = field.get(5..).unwrap_or_default();
        while let [flags, len, tail @ ..] = rest {
            let (text, after) = tail.split_at_checked(usize::from(*len))?;
            rest = after;
            if !self.in_component && !target.is_empty() && target.last() != Some(&b'/') {
                target.push(b'/');
            }
            match flags & 0xe {
                0 => target.extend_from_slice(text),
                2 => target.push(b'.'),
                4 => target.extend_from_slice(b".."),
                8 => *target = b"/".to_vec(),
                _ => return None,
            }
            self.in_component = flags & 1 != 0;
        }
        (target.len() <= MAX_LINK_BYTES && !target.contains(&0)).then_some(())
    }

    fn take_times(&mut self, field: &[u8]) {
        let Some((flags, mut rest)) = field.get(4..).and_then(<[u8]>::split_first) else {
            return;
        };
        // Creation, change, access, change of attributes; three more do not matter here.
        for bit in 0..4 {
            if flags >> bit & 1 == 0 {
                continue;
            }
            let time = if flags & 0x80 != 0 {
                rest.split_first_chunk().map(|(time, after)| (dates::long(time), after))
            } else {
                rest.split_first_chunk()
                    .map(|(time, after)| (dates::short(time), after))
            };
            let Some((time, after)) = time else {
                return;
            };
            rest = after;
            match bit {
                1 => self.modified = Some(time),
                2 => self.accessed = Some(time),
                3 => self.changed = Some(time),
                _ => {}
            }
        }
    }
}

fn attributes(field: &[u8]) -> Option<Attributes> {
    let number = |at: usize| field.get(at..at + 4).map(|bytes| le32(bytes, 0));
    let mode = number(4)?;
    let kind = match mode & 0o170_000 {
        0o100_000 => Some(FileKind::File),
        0o040_000 => Some(FileKind::Directory),
        0o120_000 => Some(FileKind::Link),
        0o020_000 => Some(FileKind::CharDevice),
        0o060_000 => Some(FileKind::BlockDevice),
        0o010_000 => Some(FileKind::Fifo),
        0o140_000 => Some(FileKind::Socket),
        _ => None,
    };
    Some(Attributes {
        kind,
        mode: (mode & 0o7777) as u16,
        links: number(12)?,
        uid: number(20)?,
        gid: number(28)?,
    })
}

/// Returns the numbers of a device. Some writers have both in the low half (`parse_rock_ridge_inode_internal`).
fn device(high: u32, low: u32) -> (u32, u32) {
    if high == 0 && low > 0xff {
        (low >> 8, low & 0xff)
    } else {
        (high, low)
    }
}
