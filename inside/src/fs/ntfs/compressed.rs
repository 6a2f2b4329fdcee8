//! Content of a compressed file: LZNT1 in units of 16 clusters ([MS-XCA] 2.5).

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::device::{Device, SharedDevice, le16};
use crate::error::{Error, Result};
use crate::fs::runs::{Runs, Source};

use super::Stream;

/// Plain length of a chunk of LZNT1.
const CHUNK_BYTES: usize = 4096;

/// A compressed file. The unit that was read last stays in memory.
pub(super) struct CompressedFile {
    device: SharedDevice,
    runs: Runs,
    size_bytes: u64,
    /// Length of the part that was written; zeros follow.
    initialized_bytes: u64,
    unit_bytes: u64,
    last: Mutex<Option<(u64, Arc<[u8]>)>>,
}

impl CompressedFile {
    pub(super) fn new(device: SharedDevice, stream: Stream) -> Result<Self> {
        let mut runs = stream.runs;
        // Lost runs must not pass for a hole.
        runs.push(Source::Nowhere, stream.size_bytes.saturating_sub(runs.size_bytes()))?;
        Ok(Self {
            device,
            runs,
            size_bytes: stream.size_bytes,
            initialized_bytes: stream.initialized_bytes.min(stream.size_bytes),
            unit_bytes: stream.unit_bytes,
            last: Mutex::default(),
        })
    }

    /// Returns the number of a unit's bytes on the device before its first hole: all of a unit that is not compressed,
    /// none of a hole.
    fn stored_bytes(&self, unit: u64) -> io::Result<u64> {
        let start_bytes = unit * self.unit_bytes;
        let mut stored = 0;
        while stored < self.unit_bytes {
            match self.runs.at(start_bytes + stored) {
                None | Some((Source::Zeros, _)) => break,
                Some((Source::Device(_), left_bytes)) => stored += left_bytes.min(self.unit_bytes - stored),
                Some((Source::Nowhere, _)) => return Err(Error::damaged("list of the file's clusters").into()),
            }
        }
        Ok(stored)
    }

    fn read_runs(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut read = |from, out: &mut [u8]| self.device.read_at(from, out);
        self.runs.read(offset_bytes, buf, &mut read)
    }

    /// Returns the plain bytes of a unit that is compressed.
    fn unit(&self, unit: u64, stored_bytes: u64) -> io::Result<Arc<[u8]>> {
        if let Some((_, plain)) = self.last.lock().as_ref().filter(|(last, _)| *last == unit) {
            return Ok(Arc::clone(plain));
        }
        let mut stored = vec![0; stored_bytes as usize];
        self.read_runs(unit * self.unit_bytes, &mut stored)?;
        let plain: Arc<[u8]> = decompress(&stored, self.unit_bytes as usize)?.into();
        *self.last.lock() = Some((unit, Arc::clone(&plain)));
        Ok(plain)
    }
}

impl Device for CompressedFile {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let end_bytes = offset_bytes.checked_add(buf.len() as u64);
        if end_bytes.is_none_or(|end_bytes| end_bytes > self.size_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset_bytes + done as u64;
            let Some(written) = self.initialized_bytes.checked_sub(at).filter(|left| *left > 0) else {
                buf[done..].fill(0);
                break;
            };
            let skipped = at % self.unit_bytes;
            let len = (written.min(self.unit_bytes - skipped) as usize).min(buf.len() - done);
            let out = &mut buf[done..done + len];
            match self.stored_bytes(at / self.unit_bytes)? {
                0 => out.fill(0),
                stored if stored == self.unit_bytes => self.read_runs(at, out)?,
                stored => {
                    let plain = self.unit(at / self.unit_bytes, stored)?;
                    out.copy_from_slice(&plain[skipped as usize..skipped as usize + len]);
                }
            }
            done += len;
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    // A unit that has any bytes on the device is no hole.

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        let found = self.runs.next(offset_bytes, false);
        // The hole at the end of a compressed unit belongs to it.
        let in_unit = offset_bytes < self.size_bytes && self.stored_bytes(offset_bytes / self.unit_bytes)? > 0;
        let found = if in_unit { Some(offset_bytes) } else { found };
        Ok(found.filter(|found| *found < self.initialized_bytes))
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        let end_bytes = self.size_bytes.max(offset_bytes);
        let mut at = offset_bytes;
        while let Some(hole) = self.runs.next(at, true).filter(|hole| *hole < self.size_bytes) {
            let unit = hole / self.unit_bytes;
            if self.stored_bytes(unit)? == 0 {
                return Ok(hole);
            }
            at = (unit + 1) * self.unit_bytes;
        }
        Ok(end_bytes)
    }
}

/// Returns the `len` plain bytes of a unit. What the chunks do not fill is zero.
pub(super) fn decompress(stored: &[u8], len: usize) -> Result<Vec<u8>> {
    let bad = || Error::damaged("compressed data");
    let mut plain = Vec::with_capacity(len);
    let mut rest = stored;
    while plain.len() < len && rest.len() >= 2 {
        let head = le16(rest, 0);
        if head == 0 {
            break;
        }
        let size = usize::from(head & 0xfff) + 1;
        let chunk = rest.get(2..2 + size).ok_or_else(bad)?;
        rest = &rest[2 + size..];
        let start = plain.len();
        if head & 0x8000 == 0 {
            plain.extend_from_slice(chunk);
        } else {
            inflate(chunk, &mut plain).ok_or_else(bad)?;
        }
        // Each chunk makes 4 KiB, except for the last one of a file.
        plain.resize(start + CHUNK_BYTES, 0);
    }
    plain.resize(len, 0);
    Ok(plain)
}

/// Appends the plain bytes of a chunk; `None` if it is damaged.
fn inflate(mut chunk: &[u8], plain: &mut Vec<u8>) -> Option<()> {
    let start = plain.len();
    while let Some((flags, rest)) = chunk.split_first() {
        chunk = rest;
        for bit in 0..8 {
            let Some(first) = chunk.first() else {
                return Some(());
            };
            let done = plain.len() - start;
            if flags >> bit & 1 == 0 {
                if done >= CHUNK_BYTES {
                    return None;
                }
                plain.push(*first);
                chunk = &chunk[1..];
                continue;
            }
            let pair = usize::from(le16(chunk.get(..2)?, 0));
            chunk = &chunk[2..];
            // The distance takes as many bits as the bytes done need, and at least four; the length takes the others.
            let distance_bits = done.checked_sub(1)?.checked_ilog2().map_or(4, |log| (log + 1).max(4));
            let length_bits = 16_u32.checked_sub(distance_bits)?;
            let distance = (pair >> length_bits) + 1;
            let length = (pair & ((1 << length_bits) - 1)) + 3;
            if distance > done || length > CHUNK_BYTES - done {
                return None;
            }
            for _ in 0..length {
                plain.push(plain[plain.len() - distance]);
            }
        }
    }
    Some(())
}
