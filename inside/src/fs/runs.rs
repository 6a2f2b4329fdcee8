//! The content of a file as runs of a device. A part that no run covers is damaged: it can't be read, the rest can.

use std::io;

use crate::device::{Device, SharedDevice};
use crate::error::{Error, Result};

/// Most runs of one file: 24 MiB of memory. A FAT file of 4 GiB in clusters of 4 KiB can't have more.
pub(crate) const MAX_RUNS: usize = 1 << 20;

/// Source of the bytes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The device, from this offset.
    Device(u64),
    /// No device: zeros.
    Zeros,
    /// Unknown: the structures that should name it are damaged.
    Nowhere,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    /// End in the file. It starts at the end of the run before.
    end_bytes: u64,
    from: Source,
}

/// Runs of a file, in its order, without gaps. Neighbours on the device are one run, so that they are read at once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Runs(Vec<Run>);

impl Runs {
    /// Length of the file that these runs make.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.0.last().map_or(0, |run| run.end_bytes)
    }

    /// Appends a run.
    pub(crate) fn push(&mut self, from: Source, size_bytes: u64) -> Result<()> {
        let start_bytes = self.size_bytes();
        let last_start = self.0.len().checked_sub(2).map_or(0, |at| self.0[at].end_bytes);
        let Some(end_bytes) = start_bytes.checked_add(size_bytes) else {
            return Err(Error::damaged("file longer than 2^64 bytes"));
        };
        if size_bytes == 0 {
            return Ok(());
        }
        if let Some(last) = self.0.last_mut() {
            let continues = match (last.from, from) {
                (Source::Device(last_from), Source::Device(from)) => {
                    last_from.checked_add(start_bytes - last_start) == Some(from)
                }
                (last, from) => last == from,
            };
            if continues {
                last.end_bytes = end_bytes;
                return Ok(());
            }
        }
        if self.0.len() >= MAX_RUNS {
            return Err(Error::unsupported(format!("file in more than {MAX_RUNS} fragments")));
        }
        self.0.push(Run { end_bytes, from });
        Ok(())
    }

    /// Cuts the file at `size_bytes`.
    pub(crate) fn truncate(&mut self, size_bytes: u64) {
        let kept = self.0.partition_point(|run| run.end_bytes < size_bytes);
        self.0.truncate(kept.saturating_add(1));
        if size_bytes == 0 {
            self.0.clear();
        }
        if let Some(last) = self.0.last_mut() {
            last.end_bytes = last.end_bytes.min(size_bytes);
        }
    }

    /// Makes the file `size_bytes` long: cuts it, or appends bytes from `from`.
    pub(crate) fn resize(&mut self, size_bytes: u64, from: Source) -> Result<()> {
        self.truncate(size_bytes);
        self.push(from, size_bytes - self.size_bytes())
    }

    /// Returns the run around an offset, from that offset on: its source and the bytes left in it.
    pub(crate) fn at(&self, offset_bytes: u64) -> Option<(Source, u64)> {
        let at = self.0.partition_point(|run| run.end_bytes <= offset_bytes);
        let run = self.0.get(at)?;
        let start_bytes = at.checked_sub(1).map_or(0, |before| self.0[before].end_bytes);
        let from = match run.from {
            Source::Device(from) => Source::Device(from.checked_add(offset_bytes - start_bytes)?),
            other => other,
        };
        Some((from, run.end_bytes - offset_bytes))
    }

    /// Fills `buf` from `offset_bytes` of the file; `read` reads the device.
    pub(crate) fn read(
        &self,
        offset_bytes: u64,
        buf: &mut [u8],
        read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset_bytes.checked_add(done as u64);
            let (from, left_bytes) = at.and_then(|at| self.at(at)).ok_or(io::ErrorKind::UnexpectedEof)?;
            let left = usize::try_from(left_bytes).unwrap_or(usize::MAX);
            let len = left.min(buf.len() - done);
            let out = &mut buf[done..done + len];
            match from {
                Source::Device(from) => read(from, out)?,
                Source::Zeros => out.fill(0),
                Source::Nowhere => return Err(Error::damaged("list of the file's clusters").into()),
            }
            done += len;
        }
        Ok(())
    }

    /// Returns the next offset at or after `offset_bytes` that is a hole or, if `hole` is false, is none.
    pub(crate) fn next(&self, mut offset_bytes: u64, hole: bool) -> Option<u64> {
        loop {
            let (from, left_bytes) = self.at(offset_bytes)?;
            if (from == Source::Zeros) == hole {
                return Some(offset_bytes);
            }
            offset_bytes = offset_bytes.checked_add(left_bytes)?;
        }
    }
}

/// The content of a file.
pub(crate) struct RunFile {
    /// The volume.
    pub(crate) device: SharedDevice,
    /// The file's parts.
    pub(crate) runs: Runs,
}

impl Device for RunFile {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut read = |from, out: &mut [u8]| self.device.read_at(from, out);
        self.runs.read(offset_bytes, buf, &mut read)
    }

    fn size_bytes(&self) -> u64 {
        self.runs.size_bytes()
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        Ok(self.runs.next(offset_bytes, false))
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        let end_bytes = self.size_bytes().max(offset_bytes);
        Ok(self.runs.next(offset_bytes, true).unwrap_or(end_bytes))
    }
}
