//! Stripes: chunks of a volume that are spread over several devices, with copies or parity between them or without.
//!
//! The layouts are those of drivers/md/raid5.c (`raid5_compute_sector`), raid10.c (`__raid10_find_phys`) and
//! dm-stripe.c. Parity is never needed to read what is there; where one device is missing, its chunks are computed from
//! the others and the parity.

use std::io;

use super::map::check;
use crate::device::{Device, SharedDevice};

/// Largest piece that is computed from parity at once.
const REBUILD_BYTES: usize = 1 << 16;

/// Distribution of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Chunks in turn, nothing else.
    Plain,
    /// Each chunk on this number of devices, one after the other (`near` of RAID 10).
    Near(u64),
    /// Parity.
    Parity(Parity),
}

/// The position of parity among the devices: `ALGORITHM_*` of drivers/md/raid5.h, for RAID 5 and 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parity {
    LeftAsymmetric,
    RightAsymmetric,
    LeftSymmetric,
    RightSymmetric,
    First,
    Last,
    /// RAID 6 whose two parities rotate.
    ZeroRestart,
    NRestart,
    NContinue,
    /// RAID 6: a layout of RAID 5 on all devices but the last, which has the second parity.
    LeftAsymmetric6,
    RightAsymmetric6,
    LeftSymmetric6,
    RightSymmetric6,
    Last6,
}

impl Parity {
    /// Returns the layout of a segment type: `raid_types` of drivers/md/dm-raid.c.
    pub(super) fn of_type(name: &str) -> Option<Self> {
        Some(match name {
            "raid4" => Self::First,
            "raid5_n" => Self::Last,
            "raid5_la" => Self::LeftAsymmetric,
            "raid5_ra" => Self::RightAsymmetric,
            "raid5" | "raid5_ls" => Self::LeftSymmetric,
            "raid5_rs" => Self::RightSymmetric,
            "raid6" | "raid6_zr" => Self::ZeroRestart,
            "raid6_nr" => Self::NRestart,
            "raid6_nc" => Self::NContinue,
            "raid6_la_6" => Self::LeftAsymmetric6,
            "raid6_ra_6" => Self::RightAsymmetric6,
            "raid6_ls_6" => Self::LeftSymmetric6,
            "raid6_rs_6" => Self::RightSymmetric6,
            "raid6_n_6" => Self::Last6,
            _ => return None,
        })
    }

    /// Returns level and number of the layout (`ALGORITHM_*`), as superblocks have them. RAID 4 is one of level 5.
    pub(super) fn number(self) -> (u32, u32) {
        match self {
            Self::LeftAsymmetric => (5, 0),
            Self::RightAsymmetric => (5, 1),
            Self::LeftSymmetric => (5, 2),
            Self::RightSymmetric => (5, 3),
            Self::First => (5, 4),
            Self::Last => (5, 5),
            Self::ZeroRestart => (6, 8),
            Self::NRestart => (6, 9),
            Self::NContinue => (6, 10),
            Self::LeftAsymmetric6 => (6, 16),
            Self::RightAsymmetric6 => (6, 17),
            Self::LeftSymmetric6 => (6, 18),
            Self::RightSymmetric6 => (6, 19),
            Self::Last6 => (6, 5),
        }
    }

    /// Returns the number of devices that have parity instead of data.
    pub(super) fn count(self) -> u64 {
        if self.number().0 == 5 { 1 } else { 2 }
    }

    /// Returns the devices of a data chunk and of the second parity, if there is one, in a row of `n` devices.
    fn locate(self, row: u64, index: u64, n: u64) -> (u64, Option<u64>) {
        let (left, right) = (n - 1 - row % n, row % n);
        let skip = |parity: u64| index + u64::from(index >= parity);
        let after = |parity: u64, n: u64| (parity + 1 + index) % n;
        // Both parities side by side; the second one may wrap to the first device.
        let skip_two = |parity: u64| {
            let data = match index {
                index if parity == n - 1 => index + 1,
                index if index >= parity => index + 2,
                index => index,
            };
            (data, Some((parity + 1) % n))
        };
        let five = n.saturating_sub(1).max(1);
        let (left_6, right_6) = (five - 1 - row % five, row % five);
        match self {
            Self::LeftAsymmetric => (skip(left), None),
            Self::RightAsymmetric => (skip(right), None),
            Self::LeftSymmetric => (after(left, n), None),
            Self::RightSymmetric => (after(right, n), None),
            Self::First => (index + 1, None),
            Self::Last => (index, None),
            Self::ZeroRestart => skip_two(right),
            Self::NRestart => skip_two(n - 1 - (row + 1) % n),
            Self::NContinue => (after(left, n), Some((left + n - 1) % n)),
            Self::LeftAsymmetric6 => (skip(left_6), Some(n - 1)),
            Self::RightAsymmetric6 => (skip(right_6), Some(n - 1)),
            Self::LeftSymmetric6 => (after(left_6, five), Some(n - 1)),
            Self::RightSymmetric6 => (after(right_6, five), Some(n - 1)),
            Self::Last6 => (index, Some(n - 1)),
        }
    }
}

/// A striped device.
pub(super) struct Stripes {
    /// The devices; `None` for one that is missing or out of date.
    legs: Vec<Option<SharedDevice>>,
    layout: Layout,
    chunk_bytes: u64,
    size_bytes: u64,
}

/// A chunk's offset on its devices.
struct Place {
    leg: usize,
    /// Devices that have it, from `leg` on.
    copies: u64,
    offset_bytes: u64,
    second_parity: Option<usize>,
}

impl Stripes {
    /// Makes a device of `size_bytes`. Returns `None` if it does not consist of whole rows, or if more devices are
    /// missing than the layout can replace.
    pub(super) fn new(
        legs: Vec<Option<SharedDevice>>,
        layout: Layout,
        chunk_bytes: u64,
        size_bytes: u64,
    ) -> Option<Self> {
        let count = legs.len() as u64;
        let data = match layout {
            Layout::Plain => count,
            Layout::Near(copies) => (copies > 0 && copies <= count).then_some(count)?,
            Layout::Parity(parity) => count.checked_sub(parity.count()).filter(|data| *data > 0)?,
        };
        let row_bytes = data.checked_mul(chunk_bytes).filter(|bytes| *bytes > 0)?;
        let copies = match layout {
            Layout::Near(copies) => copies,
            _ => 1,
        };
        // A multiple of the row on each device is enough, though with copies the row has fewer chunks of data.
        if size_bytes.checked_mul(copies)? % row_bytes != 0 {
            return None;
        }
        let stripes = Self {
            legs,
            layout,
            chunk_bytes,
            size_bytes,
        };
        stripes.is_complete().then_some(stripes)
    }

    fn is_complete(&self) -> bool {
        let missing = self.legs.iter().filter(|leg| leg.is_none()).count();
        match self.layout {
            Layout::Plain => missing == 0,
            Layout::Parity(_) => missing <= 1,
            Layout::Near(copies) => {
                // The first copies of one row's chunks start at all multiples of the greatest common divisor.
                let count = self.legs.len() as u64;
                (0..count)
                    .filter(|first| first % gcd(copies, count) == 0)
                    .all(|first| (first..first + copies).any(|leg| self.legs[(leg % count) as usize].is_some()))
            }
        }
    }

    fn place(&self, chunk: u64) -> Place {
        let count = self.legs.len() as u64;
        let (leg, row, copies, second_parity) = match self.layout {
            Layout::Plain => (chunk % count, chunk / count, 1, None),
            Layout::Near(copies) => {
                // Chunks times copies is at most the size of all devices, which `new` has computed.
                let first = chunk * copies;
                (first % count, first / count, copies, None)
            }
            Layout::Parity(parity) => {
                let data = count - parity.count();
                let row = chunk / data;
                let (leg, second) = parity.locate(row, chunk % data, count);
                (leg, row, 1, second)
            }
        };
        Place {
            leg: leg as usize,
            copies,
            offset_bytes: row * self.chunk_bytes,
            second_parity: second_parity.map(|leg| leg as usize),
        }
    }

    /// Calls `each` for every piece of a range that lies in one chunk: its place, its offset in the chunk, its range in
    /// the buffer.
    fn pieces(
        &self,
        offset_bytes: u64,
        len: usize,
        mut each: impl FnMut(Place, u64, std::ops::Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        check(offset_bytes, len, self.size_bytes)?;
        let mut done = 0;
        while done < len {
            let at = offset_bytes + done as u64;
            let within = at % self.chunk_bytes;
            let piece = (self.chunk_bytes - within).min((len - done) as u64) as usize;
            each(self.place(at / self.chunk_bytes), within, done..done + piece)?;
            done += piece;
        }
        Ok(())
    }

    fn read_piece(&self, place: &Place, within: u64, buf: &mut [u8]) -> io::Result<()> {
        for copy in 0..place.copies {
            let leg = (place.leg as u64 + copy) % self.legs.len() as u64;
            // A copy that wraps to the first device is in the next row.
            let wrapped = (place.leg as u64 + copy) / self.legs.len() as u64;
            if let Some(leg) = &self.legs[leg as usize] {
                return leg.read_at(place.offset_bytes + wrapped * self.chunk_bytes + within, buf);
            }
        }
        for (number, piece) in buf.chunks_mut(REBUILD_BYTES).enumerate() {
            let at = place.offset_bytes + within + (number * REBUILD_BYTES) as u64;
            self.rebuild(place, at, piece)?;
        }
        Ok(())
    }

    /// Computes a missing chunk: the exclusive-or of all others and the first parity.
    fn rebuild(&self, place: &Place, at: u64, out: &mut [u8]) -> io::Result<()> {
        out.fill(0);
        let mut other = vec![0; out.len()];
        for (number, leg) in self.legs.iter().enumerate() {
            if number == place.leg || Some(number) == place.second_parity {
                continue;
            }
            let leg = leg.as_ref().ok_or(io::ErrorKind::UnexpectedEof)?;
            leg.read_at(at, &mut other)?;
            out.iter_mut().zip(&other).for_each(|(out, other)| *out ^= other);
        }
        Ok(())
    }

    /// Returns the smallest offset of the volume, at or after `offset_bytes`, that `find` finds on a device of a plain
    /// layout, where device offsets grow with those of the volume.
    fn first_of(
        &self,
        offset_bytes: u64,
        find: impl Fn(&dyn Device, u64) -> io::Result<Option<u64>>,
    ) -> io::Result<Option<u64>> {
        let (count, chunk) = (self.legs.len() as u64, offset_bytes / self.chunk_bytes);
        let row = chunk / count;
        let mut first = None;
        for (number, leg) in self.legs.iter().flatten().enumerate() {
            let start = match (number as u64).cmp(&(chunk % count)) {
                std::cmp::Ordering::Less => (row + 1) * self.chunk_bytes,
                std::cmp::Ordering::Equal => row * self.chunk_bytes + offset_bytes % self.chunk_bytes,
                std::cmp::Ordering::Greater => row * self.chunk_bytes,
            };
            if let Some(found) = find(leg.as_ref(), start)?
                && found < self.size_bytes / count
            {
                let chunk = found / self.chunk_bytes * count + number as u64;
                let at = chunk * self.chunk_bytes + found % self.chunk_bytes;
                first = first.map_or(Some(at), |first: u64| Some(first.min(at)));
            }
        }
        Ok(first)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Device for Stripes {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let len = buf.len();
        self.pieces(offset_bytes, len, |place, within, range| {
            self.read_piece(&place, within, &mut buf[range])
        })
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        if self.layout != Layout::Plain {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.pieces(offset_bytes, bytes.len(), |place, within, range| {
            let leg = self.legs[place.leg].as_ref().ok_or(io::ErrorKind::UnexpectedEof)?;
            leg.write_at(place.offset_bytes + within, &bytes[range])
        })
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        if offset_bytes >= self.size_bytes {
            return Ok(None);
        }
        match self.layout {
            Layout::Plain => self.first_of(offset_bytes, |leg, at| leg.next_data(at)),
            _ => Ok(Some(offset_bytes)),
        }
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        if offset_bytes >= self.size_bytes || self.layout != Layout::Plain {
            return Ok(offset_bytes.max(self.size_bytes));
        }
        let found = self.first_of(offset_bytes, |leg, at| leg.next_hole(at).map(Some))?;
        Ok(found.unwrap_or(self.size_bytes))
    }
}
