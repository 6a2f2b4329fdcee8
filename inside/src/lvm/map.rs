//! Devices that are made of parts of others: parts one after another, stripes, and copies.

use std::io;

use crate::device::{Device, SharedDevice};

/// A part of a device, as a segment names it. Unlike a window, it keeps its size if the device below is too small: what
/// is missing is an error, and never taken for zeros.
pub(super) struct Part {
    below: SharedDevice,
    offset_bytes: u64,
    size_bytes: u64,
    is_read_only: bool,
}

impl Part {
    /// Returns `None` if the end has no 64-bit offset.
    pub(super) fn new(below: SharedDevice, offset_bytes: u64, size_bytes: u64) -> Option<Self> {
        offset_bytes.checked_add(size_bytes)?;
        Some(Self {
            below,
            offset_bytes,
            size_bytes,
            is_read_only: false,
        })
    }

    /// Makes a part that refuses to be written.
    pub(super) fn read_only(self) -> Self {
        Self {
            is_read_only: true,
            ..self
        }
    }

    fn inside(&self, offset_bytes: u64, len: usize) -> io::Result<u64> {
        check(offset_bytes, len, self.size_bytes)?;
        let at = self.offset_bytes + offset_bytes;
        check(at, len, self.below.size_bytes())?;
        Ok(at)
    }

    fn end_bytes(&self) -> u64 {
        self.offset_bytes + self.size_bytes
    }

    fn is_whole(&self) -> bool {
        self.end_bytes() <= self.below.size_bytes()
    }
}

/// Tests that a range is inside a device.
pub(super) fn check(offset_bytes: u64, len: usize, size_bytes: u64) -> io::Result<()> {
    match offset_bytes.checked_add(len as u64) {
        Some(end_bytes) if end_bytes <= size_bytes => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

impl Device for Part {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.below.read_at(self.inside(offset_bytes, buf.len())?, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        if self.is_read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.below.write_at(self.inside(offset_bytes, bytes.len())?, bytes)
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        if offset_bytes >= self.size_bytes {
            return Ok(None);
        }
        if !self.is_whole() {
            return Ok(Some(offset_bytes));
        }
        let found = self.below.next_data(self.offset_bytes + offset_bytes)?;
        let found = found.map(|found| found.saturating_sub(self.offset_bytes).max(offset_bytes));
        Ok(found.filter(|found| *found < self.size_bytes))
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        if offset_bytes >= self.size_bytes || !self.is_whole() {
            return Ok(offset_bytes.max(self.size_bytes));
        }
        let found = self.below.next_hole(self.offset_bytes + offset_bytes)?;
        let found = found.saturating_sub(self.offset_bytes);
        Ok(found.clamp(offset_bytes, self.size_bytes))
    }
}

/// Parts one after another.
pub(super) struct Chain {
    /// Start and content of each part: the first starts at 0, each other where the one before ends.
    parts: Vec<(u64, SharedDevice)>,
    size_bytes: u64,
}

impl Chain {
    /// Returns `None` if the size does not fit in 64 bits.
    pub(super) fn new(devices: Vec<SharedDevice>) -> Option<Self> {
        let mut size_bytes = 0_u64;
        let mut parts = Vec::with_capacity(devices.len());
        for device in devices {
            let next = size_bytes.checked_add(device.size_bytes())?;
            if next > size_bytes {
                parts.push((size_bytes, device));
            }
            size_bytes = next;
        }
        Some(Self { parts, size_bytes })
    }

    /// Returns the parts from the one with that offset on.
    fn from(&self, offset_bytes: u64) -> &[(u64, SharedDevice)] {
        let after = self.parts.partition_point(|(start, _)| *start <= offset_bytes);
        &self.parts[after.saturating_sub(1)..]
    }
}

impl Device for Chain {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        check(offset_bytes, buf.len(), self.size_bytes)?;
        let (mut at, mut rest) = (offset_bytes, buf);
        for (start, part) in self.from(offset_bytes) {
            let len = (part.size_bytes() - (at - start)).min(rest.len() as u64) as usize;
            let (piece, others) = rest.split_at_mut(len);
            if !piece.is_empty() {
                part.read_at(at - start, piece)?;
            }
            (at, rest) = (at + len as u64, others);
            if rest.is_empty() {
                break;
            }
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        check(offset_bytes, bytes.len(), self.size_bytes)?;
        let (mut at, mut rest) = (offset_bytes, bytes);
        for (start, part) in self.from(offset_bytes) {
            let len = (part.size_bytes() - (at - start)).min(rest.len() as u64) as usize;
            let (piece, others) = rest.split_at(len);
            if !piece.is_empty() {
                part.write_at(at - start, piece)?;
            }
            (at, rest) = (at + len as u64, others);
            if rest.is_empty() {
                break;
            }
        }
        Ok(())
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        if offset_bytes >= self.size_bytes {
            return Ok(None);
        }
        for (start, part) in self.from(offset_bytes) {
            if let Some(found) = part.next_data(offset_bytes.saturating_sub(*start))? {
                return Ok(Some(start + found));
            }
        }
        Ok(None)
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        if offset_bytes >= self.size_bytes {
            return Ok(offset_bytes);
        }
        for (start, part) in self.from(offset_bytes) {
            let found = part.next_hole(offset_bytes.saturating_sub(*start))?;
            if found < part.size_bytes() {
                return Ok(start + found);
            }
        }
        Ok(self.size_bytes)
    }
}

/// Copies of the same bytes: written to all.
pub(super) struct Copies {
    copies: Vec<SharedDevice>,
    /// Number of copies, from the first on, that are known to be complete.
    readable: usize,
    size_bytes: u64,
}

impl Copies {
    /// Makes the device from at least one copy.
    pub(super) fn new(copies: Vec<SharedDevice>, readable: usize, size_bytes: u64) -> Option<Self> {
        (1..=copies.len()).contains(&readable).then_some(Self {
            copies,
            readable,
            size_bytes,
        })
    }
}

impl Device for Copies {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        check(offset_bytes, buf.len(), self.size_bytes)?;
        // The part of one copy may lie in a damaged block of the backup.
        let mut result = Ok(());
        for copy in &self.copies[..self.readable] {
            let read = copy.read_at(offset_bytes, buf);
            if read.is_ok() {
                return read;
            }
            result = result.and(read);
        }
        result
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        check(offset_bytes, bytes.len(), self.size_bytes)?;
        self.copies
            .iter()
            .try_for_each(|copy| copy.write_at(offset_bytes, bytes))
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        let found = self.copies[0].next_data(offset_bytes)?;
        Ok(found.filter(|found| *found < self.size_bytes))
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        let found = self.copies[0].next_hole(offset_bytes)?;
        Ok(found.min(self.size_bytes).max(offset_bytes))
    }
}

/// Zeros, or nothing that can be read: the segment types `zero` and `error`.
pub(super) struct Blank {
    pub(super) size_bytes: u64,
    pub(super) is_zero: bool,
}

impl Device for Blank {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        check(offset_bytes, buf.len(), self.size_bytes)?;
        if !self.is_zero {
            return Err(io::Error::other("the volume has no data here (error segment)"));
        }
        buf.fill(0);
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        let data = !self.is_zero && offset_bytes < self.size_bytes;
        Ok(data.then_some(offset_bytes))
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        Ok(if self.is_zero {
            offset_bytes
        } else {
            offset_bytes.max(self.size_bytes)
        })
    }
}

/// A volume as its user sees it: what it is made of, and the physical volumes that a flush must reach.
pub(super) struct Whole {
    pub(super) device: SharedDevice,
    pub(super) bases: Vec<SharedDevice>,
}

impl Device for Whole {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.device.read_at(offset_bytes, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.device.write_at(offset_bytes, bytes)
    }

    fn flush(&self) -> io::Result<()> {
        self.bases.iter().try_for_each(|base| base.flush())
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        self.device.next_data(offset_bytes)
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        self.device.next_hole(offset_bytes)
    }
}
