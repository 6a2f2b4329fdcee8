//! Reads at offsets that come from untrusted data.

use std::io;

/// Bytes that can be read at any offset: an image, a partition of it, a buffer.
pub(crate) trait ReadAt {
    /// Fills `buf` from `offset_bytes`; fails if that passes the end.
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Returns the length of the bytes.
    fn size_bytes(&self) -> u64;
}

impl ReadAt for &[u8] {
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

/// Fills `buf` if all of it is inside the disk; returns false if it is not.
pub(crate) fn read_inside(disk: &dyn ReadAt, offset_bytes: u64, buf: &mut [u8]) -> io::Result<bool> {
    let end_bytes = offset_bytes.checked_add(buf.len() as u64);
    if end_bytes.is_none_or(|end_bytes| end_bytes > disk.size_bytes()) {
        return Ok(false);
    }
    disk.read_at(offset_bytes, buf)?;
    Ok(true)
}

/// Reads `N` bytes if all of them are inside the disk.
pub(crate) fn read_array<const N: usize>(disk: &dyn ReadAt, offset_bytes: u64) -> io::Result<Option<[u8; N]>> {
    let mut bytes = [0; N];
    Ok(read_inside(disk, offset_bytes, &mut bytes)?.then_some(bytes))
}

// Callers pass offsets that are constants inside arrays of known size.

pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from(le16(bytes, at)) | u32::from(le16(bytes, at + 2)) << 16
}

pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}
