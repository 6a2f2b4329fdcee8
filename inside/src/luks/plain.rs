//! The plain side of an encrypted volume.

use std::io;

use parking_lot::RwLock;

use super::cipher::{SECTOR_BYTES, SectorCipher};
use crate::device::{Device, SharedDevice, Window};

/// Most that a write encrypts at once, beside the caller's bytes. A multiple of every sector size.
const WRITE_BYTES: usize = 1 << 20;

/// Plain bytes over encrypted ones. Holes of the encrypted device are not zeros of the plain one, so none are reported.
pub(super) struct Plain {
    below: Window,
    cipher: Box<dyn SectorCipher>,
    sector_bytes: usize,
    /// Number of the first sector for the cipher, in units of 512 bytes.
    first: u64,
    /// Held alone by writes of a part of a sector: they read and write the rest of it as well. All else shares it.
    whole: RwLock<()>,
}

impl Plain {
    /// Returns the plain side of whole sectors. `sector_bytes` is a power of two from 512 to 4096.
    pub(super) fn new(
        below: SharedDevice,
        offset_bytes: u64,
        size_bytes: u64,
        sector_bytes: usize,
        first: u64,
        cipher: Box<dyn SectorCipher>,
    ) -> Self {
        let left = below.size_bytes().saturating_sub(offset_bytes).min(size_bytes);
        Self {
            below: Window::new(below, offset_bytes, left - left % sector_bytes as u64),
            cipher,
            sector_bytes,
            first,
            whole: RwLock::new(()),
        }
    }

    fn check(&self, offset_bytes: u64, len: usize) -> io::Result<()> {
        let end_bytes = offset_bytes.checked_add(len as u64);
        end_bytes
            .filter(|end_bytes| *end_bytes <= self.size_bytes())
            .map(|_| ())
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn number(&self, offset_bytes: u64) -> u64 {
        self.first.wrapping_add(offset_bytes / SECTOR_BYTES as u64)
    }

    /// Returns the start and the length of the whole sectors around a range, and the range's offset in them.
    fn around(&self, offset_bytes: u64, len: usize) -> (u64, usize, usize) {
        let before = (offset_bytes % self.sector_bytes as u64) as usize;
        let length = (before + len).next_multiple_of(self.sector_bytes);
        (offset_bytes - before as u64, length, before)
    }

    fn read_sectors(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.below.read_at(offset_bytes, buf)?;
        self.cipher.decrypt(self.sector_bytes, self.number(offset_bytes), buf);
        Ok(())
    }

    /// Writes a run of whole sectors, or of parts of them.
    fn write_run(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        let (start, length, before) = self.around(offset_bytes, bytes.len());
        let mut sectors = vec![0; length];
        let is_whole = length == bytes.len();
        let (_shared, _alone) = if is_whole {
            (Some(self.whole.read()), None)
        } else {
            (None, Some(self.whole.write()))
        };
        if !is_whole {
            let last = length - self.sector_bytes;
            self.read_sectors(start, &mut sectors[..self.sector_bytes])?;
            if last > 0 {
                self.read_sectors(start + last as u64, &mut sectors[last..])?;
            }
        }
        sectors[before..before + bytes.len()].copy_from_slice(bytes);
        self.cipher.encrypt(self.sector_bytes, self.number(start), &mut sectors);
        self.below.write_at(start, &sectors)
    }
}

impl Device for Plain {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check(offset_bytes, buf.len())?;
        if buf.is_empty() {
            return Ok(());
        }
        let _shared = self.whole.read();
        let (start, length, before) = self.around(offset_bytes, buf.len());
        if length == buf.len() {
            return self.read_sectors(start, buf);
        }
        let mut sectors = vec![0; length];
        self.read_sectors(start, &mut sectors)?;
        buf.copy_from_slice(&sectors[before..before + buf.len()]);
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.below.size_bytes()
    }

    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(offset_bytes, bytes.len())?;
        let (mut at, mut left) = (offset_bytes, bytes);
        while !left.is_empty() {
            // All runs but the first start at a sector.
            let length = WRITE_BYTES - (at % self.sector_bytes as u64) as usize;
            let (run, rest) = left.split_at(length.min(left.len()));
            self.write_run(at, run)?;
            at += run.len() as u64;
            left = rest;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.below.flush()
    }
}
