//! The metadata of a volume through a small cache. Content of files does not go this way: it is read in large pieces,
//! once.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::device::SharedDevice;
use crate::error::Result;

/// Length of a cached page: that of a backup's pages, so that a read decodes each of them once.
const PAGE_BYTES: u64 = 64 << 10;
/// Most pages that are kept: 4 MiB, which holds the table of a FAT32 volume of 4 GiB with clusters of 4 KiB, and 4096
/// records of an NTFS.
const MAX_PAGES: usize = 64;

/// A device whose pages are kept for a while.
pub(crate) struct Pages {
    device: SharedDevice,
    /// The page that was used last is in front.
    kept: Mutex<VecDeque<(u64, Arc<[u8]>)>>,
}

impl Pages {
    pub(crate) fn new(device: SharedDevice) -> Self {
        Self {
            device,
            kept: Mutex::default(),
        }
    }

    pub(crate) fn device(&self) -> &SharedDevice {
        &self.device
    }

    /// Fills `buf` from `offset_bytes`; fails if that passes the end.
    pub(crate) fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        let end_bytes = offset_bytes.checked_add(buf.len() as u64);
        if end_bytes.is_none_or(|end_bytes| end_bytes > self.device.size_bytes()) {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset_bytes + done as u64;
            let skipped = (at % PAGE_BYTES) as usize;
            let len = (buf.len() - done).min(PAGE_BYTES as usize - skipped);
            let out = &mut buf[done..done + len];
            match self.page(at / PAGE_BYTES) {
                Ok(page) => out.copy_from_slice(&page[skipped..skipped + len]),
                // An unreadable sector must not hide its neighbours.
                Err(_) => self.device.read_at(at, out)?,
            }
            done += len;
        }
        Ok(())
    }

    /// Reads `N` bytes.
    pub(crate) fn array<const N: usize>(&self, offset_bytes: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read_at(offset_bytes, &mut bytes)?;
        Ok(bytes)
    }

    /// Returns a page; the last one of the device may be shorter. The caller has checked that it is inside.
    fn page(&self, index: u64) -> io::Result<Arc<[u8]>> {
        let mut kept = self.kept.lock();
        if let Some(at) = kept.iter().position(|(kept, _)| *kept == index)
            && let Some(found) = kept.remove(at)
        {
            let page = Arc::clone(&found.1);
            kept.push_front(found);
            return Ok(page);
        }
        // Other threads need not wait for the device.
        drop(kept);
        let start_bytes = index * PAGE_BYTES;
        let len = PAGE_BYTES.min(self.device.size_bytes().saturating_sub(start_bytes));
        let mut bytes = vec![0; len as usize];
        self.device.read_at(start_bytes, &mut bytes)?;
        let page: Arc<[u8]> = bytes.into();
        let mut kept = self.kept.lock();
        kept.truncate(MAX_PAGES - 1);
        kept.push_front((index, Arc::clone(&page)));
        Ok(page)
    }
}
