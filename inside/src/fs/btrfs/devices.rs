//! The devices of a file system as one range of logical addresses. Knows nothing of the content.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;

use crate::btrfs::chunk::Chunk;
use crate::device::{SharedDevice, read_inside};
use crate::error::{Error, Result};

/// Chunks of the largest file system that is read: 256 TiB in chunks of 1 GiB.
const MAX_CHUNKS: usize = 1 << 18;
/// Stripes of all chunks: 16 bytes each.
const MAX_STRIPES: usize = 1 << 20;
/// Piece that is read at once where data is reconstructed from several devices.
const PARITY_BYTES: usize = 64 << 10;

/// The devices and the chunks on them.
pub(super) struct Devices {
    /// By device number.
    volumes: HashMap<u64, SharedDevice>,
    /// Numbers of devices that missed transactions: their copies are read last.
    stale: HashSet<u64>,
    /// By logical address.
    chunks: BTreeMap<u64, Chunk>,
    stripes: usize,
}

/// A source of data: a copy, or all that it can be computed from.
pub(super) enum Source {
    /// Device number and offset.
    Copy(u64, u64),
    /// The pieces whose XOR is the data.
    Parity(Vec<(u64, u64)>),
}

/// Data that lies in one piece in each source.
pub(super) struct Run {
    pub(super) len_bytes: u64,
    /// Available sources, best first.
    pub(super) sources: Vec<Source>,
}

impl Devices {
    pub(super) fn new(volumes: HashMap<u64, SharedDevice>, stale: HashSet<u64>) -> Self {
        Self {
            volumes,
            stale,
            chunks: BTreeMap::new(),
            stripes: 0,
        }
    }

    pub(super) fn has(&self, devid: u64) -> bool {
        self.volumes.contains_key(&devid)
    }

    /// Adds a chunk. Of two with the same address the first counts.
    pub(super) fn add(&mut self, chunk: Chunk) -> Result<()> {
        self.stripes += chunk.stripes.len();
        if self.chunks.len() >= MAX_CHUNKS || self.stripes > MAX_STRIPES {
            return Err(Error::unsupported(format!(
                "more than {MAX_CHUNKS} chunks or {MAX_STRIPES} stripes"
            )));
        }
        self.chunks.entry(chunk.start).or_insert(chunk);
        Ok(())
    }

    /// Finds the data at `logical`.
    pub(super) fn run(&self, logical: u64) -> Result<Run> {
        let chunk = self.chunks.range(..=logical).next_back().map(|(_, chunk)| chunk);
        let Some((chunk, len_bytes)) = chunk
            .map(|chunk| (chunk, chunk.run_bytes(logical)))
            .filter(|(_, len)| *len > 0)
        else {
            return Err(Error::damaged(format!("address {logical} is in no chunk")));
        };
        let mut copies = chunk.copies(logical);
        copies.retain(|(devid, _)| self.has(*devid));
        copies.sort_by_key(|(devid, _)| self.stale.contains(devid));
        let mut sources: Vec<Source> = copies.into_iter().map(|(devid, at)| Source::Copy(devid, at)).collect();
        let parity = chunk.parity(logical);
        if !parity.is_empty() && parity.iter().all(|(devid, _)| self.has(*devid)) {
            sources.push(Source::Parity(parity));
        }
        if sources.is_empty() {
            let missing: Vec<String> = chunk
                .stripes
                .iter()
                .filter(|(devid, _)| !self.has(*devid))
                .map(|(devid, _)| devid.to_string())
                .collect();
            return Err(Error::damaged(format!(
                "address {logical} is only on missing devices ({})",
                missing.join(", ")
            )));
        }
        Ok(Run { len_bytes, sources })
    }

    /// Fills `out` with the data of a source from `skip_bytes` on.
    pub(super) fn read(&self, source: &Source, skip_bytes: u64, out: &mut [u8]) -> io::Result<()> {
        match source {
            Source::Copy(devid, at) => self.read_copy(*devid, *at, skip_bytes, out),
            Source::Parity(pieces) => {
                let mut other = vec![0; out.len().min(PARITY_BYTES)];
                for (number, part) in out.chunks_mut(PARITY_BYTES).enumerate() {
                    part.fill(0);
                    let skip_bytes = skip_bytes + (number * PARITY_BYTES) as u64;
                    for (devid, at) in pieces {
                        let other = &mut other[..part.len()];
                        self.read_copy(*devid, *at, skip_bytes, other)?;
                        part.iter_mut().zip(other).for_each(|(sum, byte)| *sum ^= *byte);
                    }
                }
                Ok(())
            }
        }
    }

    fn read_copy(&self, devid: u64, at: u64, skip_bytes: u64, out: &mut [u8]) -> io::Result<()> {
        let volume = self.volumes.get(&devid).ok_or(io::ErrorKind::NotFound)?;
        let at = at.checked_add(skip_bytes).ok_or(io::ErrorKind::UnexpectedEof)?;
        match read_inside(volume.as_ref(), at, out)? {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
