//! Reads a scratch file that was kept.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::{
    CLOSED, ChangedDisk, GROUP_PAGES, HEADER_BYTES, MAGIC, MAX_DISKS, PAGE, PAGE_BYTES, Page, index_offset, page_offset,
};
use crate::device::le64;

/// Time that a mount which is ending has to write its last pages.
const CLOSE_WAIT: Duration = Duration::from_secs(60);

/// Waits until no mount writes to the file.
fn wait_for(file: &File) -> io::Result<()> {
    let end = Instant::now() + CLOSE_WAIT;
    loop {
        match file.try_lock_shared() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() < end => std::thread::sleep(Duration::from_millis(50)),
            Err(TryLockError::WouldBlock) => {
                let text = "a mount still writes to it; `vbk umount` ends it";
                return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
            }
        }
    }
}

/// Receiver of changed pages: offset and bytes.
pub type EachPage<'a, E> = dyn FnMut(u64, &[u8]) -> Result<(), E> + 'a;

/// A scratch file that was kept.
pub struct Changes {
    file: File,
    backup: String,
    disks: Vec<ChangedDisk>,
    slots: Vec<(Page, u32)>,
    is_closed: bool,
}

impl Changes {
    /// Reads the header and the index. Waits for a mount that is ending and still writes; fails with `WouldBlock` if one
    /// goes on. The inner text of an error of the kind `InvalidData` says what is wrong.
    pub fn open(file: File) -> io::Result<Self> {
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let not_ours = || invalid("it is not a file that vbk mount --save made");
        wait_for(&file)?;
        let size_bytes = file.metadata()?.len();
        let mut head = vec![0; HEADER_BYTES as usize];
        if size_bytes < HEADER_BYTES {
            return Err(not_ours());
        }
        file.read_exact_at(&mut head, 0)?;
        let end = head.iter().position(|byte| *byte == 0).unwrap_or(head.len());
        let text = std::str::from_utf8(&head[..end]).map_err(|_| not_ours())?;
        let mut lines = text.lines();
        if lines.next() != Some(MAGIC) {
            return Err(not_ours());
        }
        let backup = lines
            .next()
            .and_then(|line| line.strip_prefix("backup "))
            .ok_or_else(not_ours)?;
        let disk = |line: &str| {
            let (size, name) = line.strip_prefix("disk ")?.split_once(' ')?;
            Some(ChangedDisk {
                name: name.to_owned(),
                size_bytes: size.parse().ok()?,
            })
        };
        let disks: Option<Vec<_>> = lines.map(disk).collect();
        let disks = disks.filter(|disks| disks.len() <= MAX_DISKS).ok_or_else(not_ours)?;
        let mut slots = Vec::new();
        let mut seen = BTreeSet::new();
        let mut index = [0; PAGE_BYTES];
        for first in (0..u32::MAX).step_by(GROUP_PAGES as usize) {
            if index_offset(first) + PAGE > size_bytes {
                break;
            }
            file.read_exact_at(&mut index, index_offset(first))?;
            for slot in 0..GROUP_PAGES as usize {
                let Some(page) = Page::of_entry(le64(&index, slot * 8)) else {
                    continue;
                };
                let number = first + slot as u32;
                let is_whole = page_offset(number) + PAGE <= size_bytes;
                let disk = disks.get(usize::from(page.disk));
                let is_inside = disk.is_some_and(|disk| page.number < disk.size_bytes.div_ceil(PAGE));
                if !is_whole || !is_inside || !seen.insert(page) {
                    return Err(invalid("its index is damaged"));
                }
                slots.push((page, number));
            }
        }
        slots.sort_unstable();
        Ok(Self {
            file,
            backup: backup.to_owned(),
            disks,
            slots,
            is_closed: head.ends_with(CLOSED),
        })
    }

    /// Tests that the mount ended as it should. Otherwise the file has what was written before the last sync.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Returns the id of the backup that the changes belong to.
    pub fn backup(&self) -> &str {
        &self.backup
    }

    /// Returns the disks of that backup.
    pub fn disks(&self) -> &[ChangedDisk] {
        &self.disks
    }

    /// Calls `each` with offset and bytes of every changed page of a disk, in the order of the disk. The last one may
    /// be shorter than a page.
    pub fn pages<E: From<io::Error>>(&self, disk: &str, each: &mut EachPage<'_, E>) -> Result<(), E> {
        let Some(number) = self.disks.iter().position(|it| it.name == disk) else {
            return Ok(());
        };
        let size_bytes = self.disks[number].size_bytes;
        let mut bytes = [0; PAGE_BYTES];
        for (page, slot) in self.slots.iter().filter(|(page, _)| usize::from(page.disk) == number) {
            let offset_bytes = page.number * PAGE;
            let len = PAGE.min(size_bytes - offset_bytes) as usize;
            self.file.read_exact_at(&mut bytes[..len], page_offset(*slot))?;
            each(offset_bytes, &bytes[..len])?;
        }
        Ok(())
    }
}
