//! A device: bytes that can be read at any offset, and some written. A disk, a partition of it, a logical volume, the
//! plain side of an encrypted volume and the content of a file all are devices, so each can lie on any other.

use std::io;
use std::sync::Arc;

/// A device that many threads may use at once.
pub type SharedDevice = Arc<dyn Device>;

/// Bytes of a fixed length that can be read at any offset.
pub trait Device: Send + Sync {
    /// Fills `buf` from `offset_bytes`; fails if that passes the end.
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Returns the length of the device.
    fn size_bytes(&self) -> u64;

    /// Announces reads of a few bytes at each of these offsets. A device that is far away reads them now, all at once: one after
    /// the other, each would wait for a round trip. Others do nothing.
    fn will_read(&self, offsets_bytes: &[u64]) {
        let _ = offsets_bytes;
    }

    /// Writes all of `bytes` at `offset_bytes`; fails if that passes the end. Durable after [`Self::flush`] only. Most
    /// devices refuse, with [`io::ErrorKind::ReadOnlyFilesystem`].
    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        let (_, _) = (offset_bytes, bytes);
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    /// Makes all earlier writes durable.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Returns the next offset at or after `offset_bytes` where a byte may be other than zero; `None` if only zeros
    /// follow. A device that knows nothing of its zeros returns `offset_bytes`.
    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        Ok(Some(offset_bytes).filter(|offset_bytes| *offset_bytes < self.size_bytes()))
    }

    /// Returns the next offset at or after `offset_bytes` where bytes are known to be zero, or else the length.
    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        Ok(offset_bytes.max(self.size_bytes()))
    }
}

impl Device for &[u8] {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset_bytes).ok();
        let range = start.and_then(|start| self.get(start..start.checked_add(buf.len())?));
        buf.copy_from_slice(range.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }
}

impl Device for Vec<u8> {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_at(offset_bytes, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }
}

/// A part of a device. Reads and writes go to the same bytes of the device below.
pub struct Window {
    below: SharedDevice,
    offset_bytes: u64,
    size_bytes: u64,
}

impl Window {
    /// Returns the part of `below` that starts at `offset_bytes`: `size_bytes`, or fewer if the device ends before.
    pub fn new(below: SharedDevice, offset_bytes: u64, size_bytes: u64) -> Self {
        let left = below.size_bytes().saturating_sub(offset_bytes);
        Self {
            below,
            offset_bytes,
            size_bytes: size_bytes.min(left),
        }
    }

    fn inside(&self, offset_bytes: u64, len: usize) -> io::Result<u64> {
        let end_bytes = offset_bytes.checked_add(len as u64);
        match end_bytes {
            Some(end_bytes) if end_bytes <= self.size_bytes => Ok(self.offset_bytes + offset_bytes),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Device for Window {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.below.read_at(self.inside(offset_bytes, buf.len())?, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn will_read(&self, offsets_bytes: &[u64]) {
        let inside = offsets_bytes.iter().filter(|offset| **offset < self.size_bytes);
        let below: Vec<_> = inside.map(|offset| self.offset_bytes + offset).collect();
        self.below.will_read(&below);
    }

    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.below.write_at(self.inside(offset_bytes, bytes.len())?, bytes)
    }

    fn flush(&self) -> io::Result<()> {
        self.below.flush()
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        if offset_bytes >= self.size_bytes {
            return Ok(None);
        }
        let found = self.below.next_data(self.offset_bytes + offset_bytes)?;
        let found = found.map(|found| found.saturating_sub(self.offset_bytes).max(offset_bytes));
        Ok(found.filter(|found| *found < self.size_bytes))
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        if offset_bytes >= self.size_bytes {
            return Ok(offset_bytes);
        }
        let found = self.below.next_hole(self.offset_bytes + offset_bytes)?;
        Ok(found
            .saturating_sub(self.offset_bytes)
            .clamp(offset_bytes, self.size_bytes))
    }
}

/// Fills `buf` if all of it is inside the device; returns false if it is not.
pub fn read_inside(device: &dyn Device, offset_bytes: u64, buf: &mut [u8]) -> io::Result<bool> {
    let end_bytes = offset_bytes.checked_add(buf.len() as u64);
    if end_bytes.is_none_or(|end_bytes| end_bytes > device.size_bytes()) {
        return Ok(false);
    }
    device.read_at(offset_bytes, buf)?;
    Ok(true)
}

/// Reads `N` bytes if all of them are inside the device.
pub fn read_array<const N: usize>(device: &dyn Device, offset_bytes: u64) -> io::Result<Option<[u8; N]>> {
    let mut bytes = [0; N];
    Ok(read_inside(device, offset_bytes, &mut bytes)?.then_some(bytes))
}

// Callers pass offsets that are constants inside arrays of known size.

/// Returns the little-endian number at a constant offset of `bytes`; panics if that is outside.
pub fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Returns the little-endian number at a constant offset of `bytes`; panics if that is outside.
pub fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from(le16(bytes, at)) | u32::from(le16(bytes, at + 2)) << 16
}

/// Returns the little-endian number at a constant offset of `bytes`; panics if that is outside.
pub fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}

/// Returns the big-endian number at a constant offset of `bytes`; panics if that is outside.
pub fn be16(bytes: &[u8], at: usize) -> u16 {
    le16(bytes, at).swap_bytes()
}

/// Returns the big-endian number at a constant offset of `bytes`; panics if that is outside.
pub fn be32(bytes: &[u8], at: usize) -> u32 {
    le32(bytes, at).swap_bytes()
}

/// Returns the big-endian number at a constant offset of `bytes`; panics if that is outside.
pub fn be64(bytes: &[u8], at: usize) -> u64 {
    le64(bytes, at).swap_bytes()
}
