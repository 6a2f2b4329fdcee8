//! The parts that both adapters answer alike: the start, buffers, lseek, and the names of open directories.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fuser::{Errno, FileHandle, FileType, INodeNo, InitFlags, KernelConfig, ReplyDirectory};
use parking_lot::Mutex;

/// lseek(2): linux/fs.h.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;
/// Memory for the names of all open directories together. Without room for them they are read again, so a user who opens
/// any number of directories takes no more.
const HELD_BYTES: usize = 64 << 20;
/// Memory of a name, or of a directory, beside the bytes of the name.
const ENTRY_BYTES: usize = 96;

/// Asks the kernel for what makes a mount fast.
pub(super) fn configure(config: &mut KernelConfig, more: InitFlags) {
    // Without ASYNC_DIO, the kernel sends a direct read to us one piece at a time (fs/fuse/file.c, fuse_direct_IO).
    for flag in [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_PARALLEL_DIROPS, more] {
        let _ = config.add_capabilities(flag);
    }
    let _ = config.set_max_background(128);
    let _ = config.set_congestion_threshold(96);
}

/// Runs a function with a buffer of this thread.
pub(super) fn with_buffer(len: usize, run: impl FnOnce(&mut [u8])) {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        run(&mut buffer[..len]);
    });
}

/// Answers lseek(2) for data and holes; `data` and `hole` return `None` if none follows.
pub(super) fn seek(
    (offset, whence): (i64, i32),
    data: impl FnOnce(u64) -> Result<Option<u64>, Errno>,
    hole: impl FnOnce(u64) -> Result<Option<u64>, Errno>,
) -> Result<i64, Errno> {
    let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
    let found = match whence {
        SEEK_DATA => data(offset)?,
        SEEK_HOLE => hole(offset)?,
        _ => return Err(Errno::EINVAL),
    };
    found.and_then(|found| i64::try_from(found).ok()).ok_or(Errno::ENXIO)
}

/// A name in a directory, and what the tree calls its object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed<T> {
    pub(super) object: T,
    pub(super) number: u64,
    pub(super) kind: FileType,
    pub(super) name: Vec<u8>,
}

impl<T> Listed<T> {
    pub(super) fn name(&self) -> &OsStr {
        OsStr::from_bytes(&self.name)
    }
}

/// Consecutive names of a directory.
#[derive(Debug)]
pub(super) struct Part<T> {
    /// Number of the first name.
    pub(super) from: usize,
    pub(super) names: Vec<Listed<T>>,
    /// True if no names follow.
    pub(super) is_last: bool,
}

impl<T> Part<T> {
    /// Returns the names from this number on; `None` if another part has them.
    fn from(&self, from: usize) -> Option<&[Listed<T>]> {
        let names = self.names.get(from.checked_sub(self.from)?..)?;
        (self.is_last || !names.is_empty()).then_some(names)
    }

    fn bytes(&self) -> usize {
        let names = self.names.iter().map(|name| name.name.capacity() + ENTRY_BYTES);
        names.sum::<usize>() + ENTRY_BYTES
    }
}

/// An entry of a directory, as the kernel gets it.
pub(super) enum Line<'a, T> {
    /// The directory itself, or the one above.
    Dot(&'static str),
    Name(&'a Listed<T>),
}

/// The names that are held for programs which list directories.
pub(super) struct Listings<T>(Mutex<Held<T>>);

struct Held<T> {
    /// By handle, with the time of the last use.
    parts: HashMap<u64, (u64, Arc<Part<T>>)>,
    /// Handles by the time of the last use.
    order: BTreeMap<u64, u64>,
    bytes: usize,
    now: u64,
    last_handle: u64,
}

impl<T> Default for Listings<T> {
    fn default() -> Self {
        Self(Mutex::new(Held {
            parts: HashMap::new(),
            order: BTreeMap::new(),
            bytes: 0,
            now: 0,
            last_handle: 0,
        }))
    }
}

impl<T> Listings<T> {
    /// Opens a directory with its first names.
    pub(super) fn open(&self, part: Part<T>) -> FileHandle {
        let mut held = self.0.lock();
        held.last_handle += 1;
        let handle = held.last_handle;
        held.insert(handle, Arc::new(part));
        FileHandle(handle)
    }

    /// Answers with the names from an offset on. Those that are not held are read again from the number that `read` gets.
    pub(super) fn reply(
        &self,
        (directory, handle, offset): (INodeNo, FileHandle, u64),
        read: impl FnOnce(usize) -> Result<Part<T>, Errno>,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.each((handle, offset), read, |line, next| match line {
            Line::Dot(dot) => reply.add(directory, next, FileType::Directory, dot),
            // Programs take the number 0 for an erased entry.
            Line::Name(name) => reply.add(INodeNo(name.number.max(1)), next, name.kind, name.name()),
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    /// Passes on the entries from an offset on, each with the offset of the next one, until `add` returns true: the
    /// reply is full. Names that are not held are read again from the number that `read` gets.
    pub(super) fn each(
        &self,
        (handle, offset): (FileHandle, u64),
        read: impl FnOnce(usize) -> Result<Part<T>, Errno>,
        mut add: impl FnMut(Line<'_, T>, u64) -> bool,
    ) -> Result<(), Errno> {
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, dot) in [".", ".."].into_iter().enumerate().skip(at) {
            if add(Line::Dot(dot), index as u64 + 1) {
                return Ok(());
            }
            at = index + 1;
        }
        let from = at - 2;
        let part = self.part(handle, from, read)?;
        for (index, name) in part.from(from).unwrap_or_default().iter().enumerate() {
            if add(Line::Name(name), (from + index) as u64 + 3) {
                break;
            }
        }
        Ok(())
    }

    fn part(
        &self,
        handle: FileHandle,
        from: usize,
        read: impl FnOnce(usize) -> Result<Part<T>, Errno>,
    ) -> Result<Arc<Part<T>>, Errno> {
        if let Some(part) = self.0.lock().get(handle.0)
            && part.from(from).is_some()
        {
            return Ok(part);
        }
        let part = Arc::new(read(from)?);
        self.0.lock().insert(handle.0, Arc::clone(&part));
        Ok(part)
    }

    /// Closes a directory.
    pub(super) fn close(&self, handle: FileHandle) {
        self.0.lock().remove(handle.0);
    }
}

impl<T> Held<T> {
    fn get(&mut self, handle: u64) -> Option<Arc<Part<T>>> {
        let (used, part) = self.parts.get_mut(&handle)?;
        self.order.remove(used);
        self.now += 1;
        *used = self.now;
        self.order.insert(self.now, handle);
        Some(Arc::clone(part))
    }

    fn insert(&mut self, handle: u64, part: Arc<Part<T>>) {
        self.remove(handle);
        self.now += 1;
        self.bytes += part.bytes();
        self.parts.insert(handle, (self.now, part));
        self.order.insert(self.now, handle);
        while self.bytes > HELD_BYTES
            && let Some((_, oldest)) = self.order.first_key_value()
        {
            self.remove(*oldest);
        }
    }

    fn remove(&mut self, handle: u64) {
        if let Some((used, part)) = self.parts.remove(&handle) {
            self.order.remove(&used);
            self.bytes -= part.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of a directory that is larger than its parts.
    fn read(from: usize) -> Result<Part<()>, Errno> {
        const NAMES: usize = 2500;
        let end = (from + 1000).min(NAMES);
        let listed = |number: usize| Listed {
            object: (),
            number: number as u64,
            kind: FileType::RegularFile,
            name: format!("{number:0200}").into_bytes(),
        };
        Ok(Part {
            from,
            names: (from..end).map(listed).collect(),
            is_last: end == NAMES,
        })
    }

    #[test]
    fn any_number_of_open_directories_takes_bounded_memory() {
        let listings = Listings::default();
        let handles: Vec<_> = (0..1000).map(|_| listings.open(read(0).expect("reads"))).collect();
        let held = listings.0.lock();
        let really: usize = held.parts.values().map(|(_, part)| part.bytes()).sum();
        assert_eq!(held.bytes, really);
        assert!(held.bytes <= HELD_BYTES && held.parts.len() == held.order.len() && held.parts.len() < handles.len());
        drop(held);
        for handle in handles {
            listings.close(handle);
        }
        let held = listings.0.lock();
        assert!(held.bytes == 0 && held.parts.is_empty() && held.order.is_empty());
    }

    #[test]
    fn a_directory_without_room_is_listed_whole() {
        let listings = Listings::default();
        let first = listings.open(read(0).expect("reads"));
        let mut seen = Vec::new();
        loop {
            // Others take all the room between any two requests.
            for _ in 0..400 {
                listings.open(read(0).expect("reads"));
            }
            assert!(!listings.0.lock().parts.contains_key(&first.0));
            let part = listings.part(first, seen.len(), read).expect("reads");
            let names = part.from(seen.len()).expect("has them");
            if names.is_empty() {
                break;
            }
            seen.extend(names.iter().take(300).map(|name| name.number));
        }
        assert!(seen.into_iter().eq(0..2500));
    }

    #[test]
    fn the_last_used_directory_is_dropped_last() {
        let listings = Listings::default();
        let kept = listings.open(read(0).expect("reads"));
        for _ in 0..1000 {
            listings.open(read(0).expect("reads"));
            let not_again = |_| -> Result<Part<()>, Errno> { panic!("it is held") };
            listings.part(kept, 5, not_again).expect("is held");
        }
    }
}
