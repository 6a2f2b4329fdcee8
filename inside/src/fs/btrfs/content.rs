//! Content of a file: its extents in order, with holes between them.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Btrfs;
use super::compress::{MAX_EXTENT_BYTES, unpack};
use super::item::{Compression, Content, Extent};
use super::key::{EXTENT_DATA, Key};
use super::tree::Item;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::fs::Node;

/// The content of a regular file or the target of a link.
pub(super) struct File {
    fs: Arc<Btrfs>,
    node: Node,
    size_bytes: u64,
    has_checksums: bool,
    /// Compressed extent that was read last: the same serves many small reads.
    unpacked: Mutex<Option<(PackedExtent, Arc<Vec<u8>>)>>,
}

/// An extent and the part of the file that it describes.
struct Span {
    start: u64,
    stop: u64,
    item: Item,
}

/// Identifies a compressed extent on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PackedExtent {
    logical: u64,
    disk_bytes: u64,
    ram_bytes: u64,
    compression: Compression,
}

impl File {
    pub(super) fn new(fs: Arc<Btrfs>, node: Node, size_bytes: u64, has_checksums: bool) -> Self {
        Self {
            fs,
            node,
            size_bytes,
            has_checksums,
            unpacked: Mutex::new(None),
        }
    }

    /// Walks over the extents from the one at `offset_bytes` to the last that starts before `end_bytes`. An extent ends
    /// where the next starts, so that every walk says the same of a byte.
    fn extents(&self, offset_bytes: u64, end_bytes: u64) -> Result<impl Iterator<Item = Result<Span>>> {
        let tree = self.fs.subvolume(self.node.space)?;
        let before = tree.floor(Key::new(self.node.number, EXTENT_DATA, offset_bytes))?;
        let start = before.map_or(offset_bytes, |item| item.key.offset);
        let key = |offset| Key::new(self.node.number, EXTENT_DATA, offset);
        let number = self.node.number;
        let mut items = tree.items(key(start), key(end_bytes.saturating_sub(1))).peekable();
        Ok(std::iter::from_fn(move || {
            let item = match items.next()? {
                Ok(item) => item,
                Err(error) => return Some(Err(error)),
            };
            let start = item.key.offset;
            let len = match Extent::parse(number, &item) {
                Ok(extent) => extent.len_bytes(),
                Err(error) => return Some(Err(error)),
            };
            let next = match items.peek() {
                Some(Ok(next)) => next.key.offset,
                _ => u64::MAX,
            };
            let stop = start.saturating_add(len).min(next);
            Some(Ok(Span { start, stop, item }))
        }))
    }

    fn read(&self, offset_bytes: u64, out: &mut [u8]) -> Result<()> {
        let len = out.len() as u64;
        let end = offset_bytes.checked_add(len).filter(|end| *end <= self.size_bytes);
        let end = end.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let mut done = offset_bytes;
        if out.is_empty() {
            return Ok(());
        }
        for span in self.extents(offset_bytes, end)? {
            let Span { start, stop, item } = span?;
            let extent = Extent::parse(self.node.number, &item)?;
            let stop = stop.min(end);
            let from = start.max(done);
            if from >= stop {
                continue;
            }
            out[(done - offset_bytes) as usize..(from - offset_bytes) as usize].fill(0);
            let part = &mut out[(from - offset_bytes) as usize..(stop - offset_bytes) as usize];
            self.read_extent(&extent, from - start, part)?;
            done = stop;
            if done >= end {
                break;
            }
        }
        out[(done - offset_bytes) as usize..].fill(0);
        Ok(())
    }

    fn read_extent(&self, extent: &Extent<'_>, skip: u64, out: &mut [u8]) -> Result<()> {
        let damaged = || Error::damaged(format!("inode {}: a compressed extent is invalid", self.node.number));
        match extent.content {
            Content::Zeros(_) => out.fill(0),
            Content::Inline(data) if extent.compression == Compression::None => copy(data, skip, out),
            Content::Inline(data) => {
                let sector = self.fs.sector_bytes;
                let data = unpack(extent.compression, data, extent.ram_bytes, sector).ok_or_else(damaged)?;
                copy(&data, skip, out);
            }
            Content::Stored {
                logical, skip_bytes, ..
            } if extent.compression == Compression::None => {
                let at = logical.checked_add(skip_bytes).and_then(|at| at.checked_add(skip));
                self.fs.read_data(at.ok_or_else(damaged)?, out, self.has_checksums)?;
            }
            Content::Stored {
                logical,
                disk_bytes,
                skip_bytes,
                ..
            } => {
                let packed = PackedExtent {
                    logical,
                    disk_bytes,
                    ram_bytes: extent.ram_bytes,
                    compression: extent.compression,
                };
                let data = self.unpacked(packed)?;
                copy(&data, skip_bytes.saturating_add(skip), out);
            }
        }
        Ok(())
    }

    fn unpacked(&self, extent: PackedExtent) -> Result<Arc<Vec<u8>>> {
        if let Some((kept, data)) = &*self.unpacked.lock()
            && *kept == extent
        {
            return Ok(Arc::clone(data));
        }
        let number = self.node.number;
        if extent.disk_bytes > MAX_EXTENT_BYTES || extent.ram_bytes > MAX_EXTENT_BYTES {
            return Err(Error::damaged(format!(
                "inode {number}: a compressed extent is too long"
            )));
        }
        let mut packed = vec![0; extent.disk_bytes as usize];
        self.fs.read_data(extent.logical, &mut packed, self.has_checksums)?;
        let data = unpack(extent.compression, &packed, extent.ram_bytes, self.fs.sector_bytes);
        let data = data.ok_or_else(|| Error::damaged(format!("inode {number}: a compressed extent is invalid")))?;
        let data = Arc::new(data);
        *self.unpacked.lock() = Some((extent, Arc::clone(&data)));
        Ok(data)
    }

    /// Returns the first data, or else the first hole, at or after `offset_bytes`; the length if there is none.
    fn next(&self, offset_bytes: u64, data: bool) -> Result<u64> {
        let mut done = offset_bytes;
        for span in self.extents(offset_bytes, self.size_bytes)? {
            let Span { start, stop, item } = span?;
            let extent = Extent::parse(self.node.number, &item)?;
            if stop <= done {
                continue;
            }
            if start > done && !data {
                return Ok(done);
            }
            let is_data = !matches!(extent.content, Content::Zeros(_));
            if is_data == data {
                return Ok(start.max(done));
            }
            done = stop;
        }
        // An inline extent may end before the file, and the kernel counts its sector as data.
        Ok(if data {
            self.size_bytes
        } else {
            done.min(self.size_bytes)
        })
    }
}

/// Fills `out` with bytes of `data` from `skip` on, and zeros beyond its end.
fn copy(data: &[u8], skip: u64, out: &mut [u8]) {
    let skip = usize::try_from(skip).unwrap_or(usize::MAX);
    let data = data.get(skip..).unwrap_or_default();
    let (from_data, zeros) = out.split_at_mut(data.len().min(out.len()));
    from_data.copy_from_slice(&data[..from_data.len()]);
    zeros.fill(0);
}

impl Device for File {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        Ok(self.read(offset_bytes, buf)?)
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        if offset_bytes >= self.size_bytes {
            return Ok(None);
        }
        let found = self.next(offset_bytes, true)?;
        Ok(Some(found).filter(|found| *found < self.size_bytes))
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        if offset_bytes >= self.size_bytes {
            return Ok(offset_bytes);
        }
        Ok(self.next(offset_bytes, false)?)
    }
}
