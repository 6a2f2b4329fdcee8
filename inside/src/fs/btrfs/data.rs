//! Data of files on disk, verified by the tree of checksums. Damaged data is read from another copy or not at all.

use std::io;

use super::Btrfs;
use super::devices::Source;
use super::key::{CSUM_OBJECT, EXTENT_CSUM, Key};
use super::tree::Tree;
use crate::btrfs::checksum::CHECKSUM_BYTES;
use crate::error::{Error, Result};

/// Largest piece that is read from a device at once.
const PIECE_BYTES: u64 = 1 << 20;

/// Reads the data at an address: from the sources, after so many bytes of them.
type ReadPart<'a> = &'a mut dyn FnMut(&Btrfs, u64, &mut [u8], &[Source], u64) -> Result<()>;

type Sum = [u8; CHECKSUM_BYTES];

impl Btrfs {
    /// Fills `out` with the data at `logical`. Without checksums the first copy that can be read counts.
    pub(super) fn read_data(&self, logical: u64, out: &mut [u8], verified: bool) -> Result<()> {
        if !verified {
            return self.read_runs(logical, out, &mut |this, logical, part, sources, skip_bytes| {
                this.read_any(logical, part, sources, skip_bytes)
            });
        }
        let sector = self.sector_bytes as u64;
        let end = logical.checked_add(out.len() as u64).ok_or_else(outside)?;
        let inner_start = logical.checked_next_multiple_of(sector).ok_or_else(outside)?;
        let inner_end = end - end % sector;
        // Only whole sectors can be verified; the parts at the edges are cut from copies.
        if inner_start >= inner_end {
            let start = logical - logical % sector;
            let whole = end.checked_next_multiple_of(sector).ok_or_else(outside)?;
            let mut sectors = vec![0; (whole - start) as usize];
            self.read_verified(start, &mut sectors)?;
            let skip = (logical - start) as usize;
            out.copy_from_slice(&sectors[skip..skip + out.len()]);
            return Ok(());
        }
        let (head, rest) = out.split_at_mut((inner_start - logical) as usize);
        let (inner, tail) = rest.split_at_mut((inner_end - inner_start) as usize);
        for (at, part) in [(logical, head), (inner_end, tail)] {
            if !part.is_empty() {
                self.read_data(at, part, true)?;
            }
        }
        self.read_verified(inner_start, inner)
    }

    /// Fills `out` with whole sectors.
    fn read_verified(&self, logical: u64, out: &mut [u8]) -> Result<()> {
        let sector = self.sector_bytes;
        self.read_runs(logical, out, &mut |this, logical, part, sources, skip_bytes| {
            let sums = this.checksums(logical, part.len() / sector)?;
            // Sectors that an unreadable piece leaves are read again one by one.
            let read = sources
                .first()
                .is_some_and(|source| this.devices().read(source, skip_bytes, part).is_ok());
            for (index, (bytes, sum)) in part.chunks_mut(sector).zip(&sums).enumerate() {
                let at = (index * sector) as u64;
                let Some(sum) = sum else {
                    let what = format!("data at address {}: no checksum", logical + at);
                    return Err(Error::damaged(what));
                };
                if !(read && this.matches(bytes, sum)) {
                    this.read_sector(logical + at, bytes, sum, sources, skip_bytes + at)?;
                }
            }
            Ok(())
        })
    }

    fn matches(&self, sector: &[u8], sum: &Sum) -> bool {
        crate::proven(self.blocks.checksum.of(sector) == *sum)
    }

    fn read_sector(&self, logical: u64, out: &mut [u8], sum: &Sum, sources: &[Source], skip_bytes: u64) -> Result<()> {
        let mut failed: Option<io::Error> = None;
        for source in sources {
            match self.devices().read(source, skip_bytes, out) {
                Ok(()) if self.matches(out, sum) => return Ok(()),
                Ok(()) => {}
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        out.fill(0);
        match failed {
            Some(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error.into()),
            _ => Err(Error::damaged(format!("data at address {logical}: checksum mismatch"))),
        }
    }

    fn read_any(&self, logical: u64, out: &mut [u8], sources: &[Source], skip_bytes: u64) -> Result<()> {
        let mut failed: Option<io::Error> = None;
        for source in sources {
            match self.devices().read(source, skip_bytes, out) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        match failed {
            Some(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error.into()),
            _ => Err(Error::damaged(format!(
                "data at address {logical}: it is beyond the end of its device"
            ))),
        }
    }

    /// Splits a range into pieces that each lie in one piece on the devices.
    fn read_runs(&self, mut logical: u64, mut out: &mut [u8], each: ReadPart<'_>) -> Result<()> {
        while !out.is_empty() {
            let run = self.devices().run(logical)?;
            let mut run_bytes = run.len_bytes;
            let mut skip_bytes = 0;
            while run_bytes > 0 && !out.is_empty() {
                let mut len = run_bytes.min(PIECE_BYTES).min(out.len() as u64);
                // A run that ends inside of a sector would leave a part that no checksum covers.
                let sector = self.sector_bytes as u64;
                if len < out.len() as u64 && len % sector != 0 && logical.is_multiple_of(sector) {
                    len -= len % sector;
                    if len == 0 {
                        return Err(Error::damaged(format!(
                            "chunk at address {logical} ends inside of a sector"
                        )));
                    }
                }
                let (part, rest) = out.split_at_mut(len as usize);
                each(self, logical, part, &run.sources, skip_bytes)?;
                logical = logical.checked_add(len).ok_or_else(outside)?;
                skip_bytes += len;
                run_bytes -= len;
                out = rest;
            }
        }
        Ok(())
    }

    /// Finds the checksums of `count` sectors.
    fn checksums(&self, logical: u64, count: usize) -> Result<Vec<Option<Sum>>> {
        let mut sums = vec![None; count];
        for tree in self.checksum_trees()? {
            self.checksums_of(tree, logical, &mut sums)?;
        }
        Ok(sums)
    }

    fn checksums_of(&self, tree: Tree<'_>, logical: u64, sums: &mut [Option<Sum>]) -> Result<()> {
        let sector = self.sector_bytes as u64;
        let len = self.blocks.checksum.len();
        let before = tree.floor(Key::new(CSUM_OBJECT, EXTENT_CSUM, logical))?;
        let start = before.map_or(logical, |item| item.key.offset);
        let end = logical.saturating_add((sums.len() as u64).saturating_sub(1) * sector);
        let items = tree.items(
            Key::new(CSUM_OBJECT, EXTENT_CSUM, start),
            Key::new(CSUM_OBJECT, EXTENT_CSUM, end),
        );
        for item in items {
            let item = item?;
            // An item may have begun long before.
            let skip = logical.saturating_sub(item.key.offset).div_ceil(sector);
            let Some(skip) = usize::try_from(skip).ok().and_then(|skip| skip.checked_mul(len)) else {
                continue;
            };
            let index = item.key.offset.saturating_sub(logical) / sector;
            let values = item.get(skip..).unwrap_or_default().chunks_exact(len);
            for (sum, value) in sums.iter_mut().skip(index as usize).zip(values) {
                let mut field = [0; CHECKSUM_BYTES];
                field[..len].copy_from_slice(value);
                *sum = Some(field);
            }
        }
        Ok(())
    }
}

fn outside() -> Error {
    Error::damaged("an extent ends beyond the last address")
}
