//! Copies on this host's own disk of what it has sent to a repository and read from it, so that it need not fetch them again: nodes
//! of manifests, and blocks.
//!
//! They are sealed as they travelled, and proved by who reads them like those of the server. Each is a file that ends with the BLAKE3
//! sum of what is before it, so a torn or damaged one counts as none. Nothing here is durable, any number of processes may use it at
//! once, and all of it may be removed at any time. Errors, e.g. of a full disk, count as nothing kept.
//!
//! A backup relies on a node without reading the server's, so it asks the server for the sum of that, which travels while the disk
//! is read. One that is damaged or gone there is put again from here, before the next flush or commit. So it takes only nodes that
//! this host has made: one that came from the server may be the damaged one.
//!
//! # Size
//!
//! At the first write of a process, and again after each eighth of the limit that it has written, what was not used for the longest
//! time is removed until seven eighths are left. So one process keeps the limit, and each further one may pass it by an eighth.

use std::fs;
use std::io::{self, IoSlice, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use vbk_repo::id::{BlockId, NodeId};
use vbk_repo::store::{Stored, Wanted};

/// Age of the time of last use after which it is set again.
const USED_WITHIN: Duration = Duration::from_secs(600);

/// Age of a draft that a process has left behind.
const LEFT_AFTER: Duration = Duration::from_secs(3600);

/// Bytes of a file that are read at most: no block is as long.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Files are counted in pieces of this length, as file systems keep them.
const PIECE_BYTES: u64 = 4096;

const SUM_BYTES: usize = 32;

/// Set in the length of a block's header if the block is a difference: the id of its base precedes the header.
const HAS_BASE: usize = 1 << 31;

/// The copies of one repository.
#[derive(Debug)]
pub(super) struct Kept {
    directory: PathBuf,
    max_bytes: u64,
    /// Bytes that may be written until the next look at the size.
    left_bytes: AtomicU64,
    shrinking: Mutex<()>,
    /// A write has failed: another one would too.
    is_full: AtomicBool,
}

/// A copied thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Thing {
    /// A node that this host has made.
    Made(NodeId),
    /// A node that the server gave.
    Node(NodeId),
    /// Header and first pages of a block.
    Block(BlockId),
}

impl Kept {
    /// Uses a directory below this one for the repository of this address and id. It is made at the first need.
    pub(super) fn new(directory: &Path, max_bytes: u64, repository: &Path, id: &str) -> Self {
        let name = format!("{} {id}", repository.display());
        let name = &blake3::hash(name.as_bytes()).to_hex()[..32];
        Self {
            directory: directory.join(name),
            max_bytes,
            left_bytes: AtomicU64::new(0),
            shrinking: Mutex::default(),
            is_full: AtomicBool::new(false),
        }
    }

    fn path(&self, thing: Thing) -> PathBuf {
        let (id, kind) = match thing {
            Thing::Made(id) => (id.0, ""),
            Thing::Node(id) => (id.0, ".node"),
            Thing::Block(id) => (id.0, ".block"),
        };
        let mut name: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let directory = self.directory.join(&name[..2]);
        name.push_str(kind);
        directory.join(name)
    }

    /// Returns a thing and its sum.
    pub(super) fn get(&self, thing: Thing) -> Option<(Vec<u8>, [u8; SUM_BYTES])> {
        let path = self.path(thing);
        let mut file = fs::File::open(&path).ok()?;
        let metadata = file.metadata().ok()?;
        let mut bytes = Vec::with_capacity(metadata.len().min(MAX_FILE_BYTES) as usize);
        // A file that another program has put there may have any length.
        let read = (&mut file).take(MAX_FILE_BYTES).read_to_end(&mut bytes);
        read.ok()?;
        let sum = bytes.len().checked_sub(SUM_BYTES).map(|at| bytes.split_off(at));
        let sum = sum.and_then(|sum| <[u8; SUM_BYTES]>::try_from(sum).ok());
        let Some(sum) = sum.filter(|sum| node_sum(&bytes) == *sum) else {
            self.remove(thing);
            return None;
        };
        let is_old = |used: SystemTime| used.elapsed().is_ok_and(|age| age > USED_WITHIN);
        if metadata.modified().is_ok_and(is_old) {
            let _ = file.set_modified(SystemTime::now());
        }
        Some((bytes, sum))
    }

    /// Keeps a thing, given in pieces.
    pub(super) fn put(&self, thing: Thing, pieces: &[&[u8]]) {
        let bytes = room_of(pieces.iter().map(|piece| piece.len() as u64).sum::<u64>() + SUM_BYTES as u64);
        if bytes > self.max_bytes / 8 || self.is_full.load(Ordering::Relaxed) {
            return;
        }
        let written = self
            .make_room(bytes)
            .and_then(|()| self.try_put(&self.path(thing), pieces));
        if let Err(error) = written {
            tracing::debug!("{}: {error}", self.directory.display());
            self.is_full.store(true, Ordering::Relaxed);
        }
    }

    /// Removes a thing.
    pub(super) fn remove(&self, thing: Thing) {
        let _ = fs::remove_file(self.path(thing));
    }

    /// Returns a node, wherever it came from.
    pub(super) fn node(&self, id: NodeId) -> Option<Vec<u8>> {
        let (bytes, _) = self.get(Thing::Made(id)).or_else(|| self.get(Thing::Node(id)))?;
        Some(bytes)
    }

    /// Returns the wanted pages of a block.
    pub(super) fn block(&self, wanted: &Wanted) -> Option<Stored> {
        let (bytes, _) = self.get(Thing::Block(wanted.id))?;
        let mut rest = &bytes[..];
        let mut take = |len: usize| {
            let (taken, left) = rest.split_at_checked(len)?;
            rest = left;
            Some(taken)
        };
        let mut number = || Some(u32::from_le_bytes(take(4)?.try_into().ok()?) as usize);
        let count = number()?;
        if wanted.pages.end > count || wanted.pages.start > wanted.pages.end {
            return None;
        }
        let header_and_base = number()?;
        let lens: Vec<_> = (0..count).map(|_| number()).collect::<Option<_>>()?;
        let base = match header_and_base & HAS_BASE {
            0 => None,
            _ => Some(BlockId(take(32)?.try_into().ok()?)),
        };
        let header = take(header_and_base & !HAS_BASE)?.to_vec();
        let mut pages = Vec::with_capacity(wanted.pages.len());
        for (page, len) in lens.into_iter().enumerate().take(wanted.pages.end) {
            let bytes = take(len)?;
            if page >= wanted.pages.start {
                pages.push(bytes.to_vec());
            }
        }
        Some(Stored { header, pages, base })
    }

    /// Keeps the answer for a block, if that has its first pages.
    pub(super) fn put_block(&self, wanted: &Wanted, stored: &Stored) {
        if wanted.pages.start != 0 || stored.pages.len() != wanted.pages.len() {
            return;
        }
        let lens = stored.pages.iter().map(Vec::len);
        let header_and_base = stored.header.len() | stored.base.map_or(0, |_| HAS_BASE);
        let lens = [stored.pages.len(), header_and_base].into_iter().chain(lens);
        let head: Vec<u8> = lens.flat_map(|len| (len as u32).to_le_bytes()).collect();
        let pages = stored.pages.iter().map(Vec::as_slice);
        let base = stored.base.as_ref().map_or(&[][..], |base| &base.0);
        let pieces: Vec<_> = [&head[..], base, &stored.header].into_iter().chain(pages).collect();
        self.put(Thing::Block(wanted.id), &pieces);
    }

    fn try_put(&self, path: &Path, pieces: &[&[u8]]) -> io::Result<()> {
        let directory = path.parent().unwrap_or(&self.directory);
        // Of its own for each write: several may write the same thing, and another process may have had the same number.
        static DRAFTS: AtomicU64 = AtomicU64::new(0);
        let number = DRAFTS.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let draft = directory.join(format!("draft-{}-{}-{number}", now.as_nanos(), std::process::id()));
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let file = options.open(&draft).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
                options.open(&draft)
            }
            _ => Err(error),
        })?;
        let written = write_with_sum(file, pieces).and_then(|()| fs::rename(&draft, path));
        written.inspect_err(|_| _ = fs::remove_file(&draft))
    }

    /// Takes room for so many bytes.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        let take = |left: u64| left.checked_sub(bytes);
        let has_room = || {
            self.left_bytes
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .is_ok()
        };
        if has_room() {
            return Ok(());
        }
        let _one = self.shrinking.lock();
        if has_room() {
            return Ok(());
        }
        self.shrink()?;
        // Never more than the limit allows, whatever was left.
        self.left_bytes.store(self.max_bytes / 8 - bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Removes what was not used for the longest time, until an eighth of the limit is free.
    fn shrink(&self) -> io::Result<()> {
        let mut files = Vec::new();
        let directories = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            directories => directories?,
        };
        for directory in directories.flatten() {
            // Another process may remove some meanwhile.
            let is_directory = directory.file_type().is_ok_and(|kind| kind.is_dir());
            let Some(found) = is_directory.then(|| fs::read_dir(directory.path()).ok()).flatten() else {
                continue;
            };
            for file in found.flatten() {
                let Ok(found) = file.metadata() else { continue };
                let used = found.modified()?;
                let is_draft = file.file_name().as_encoded_bytes().starts_with(b"draft-");
                if is_draft && used.elapsed().is_ok_and(|age| age > LEFT_AFTER) {
                    let _ = fs::remove_file(file.path());
                } else {
                    files.push((used, room_of(found.len()), file.path()));
                }
            }
        }
        let mut bytes: u64 = files.iter().map(|(_, len, _)| len).sum();
        let most = self.max_bytes / 8 * 7;
        if bytes <= most {
            return Ok(());
        }
        files.sort_unstable();
        for (_, len, path) in files {
            if bytes <= most {
                break;
            }
            let _ = fs::remove_file(path);
            bytes -= len;
        }
        Ok(())
    }
}

/// Bytes that a file of this length takes.
fn room_of(len: u64) -> u64 {
    len.next_multiple_of(PIECE_BYTES)
}

fn write_with_sum(mut file: fs::File, pieces: &[&[u8]]) -> io::Result<()> {
    let mut hasher = blake3::Hasher::new();
    pieces.iter().for_each(|piece| _ = hasher.update(piece));
    let sum = hasher.finalize();
    let pieces = pieces.iter().copied().chain([&sum.as_bytes()[..]]);
    let mut slices: Vec<_> = pieces.map(IoSlice::new).collect();
    let mut slices = &mut slices[..];
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match file.write_vectored(slices)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => IoSlice::advance_slices(&mut slices, written),
        }
    }
    Ok(())
}

/// The sum of a node's sealed bytes.
pub(crate) fn node_sum(bytes: &[u8]) -> [u8; SUM_BYTES] {
    *blake3::hash(bytes).as_bytes()
}

#[cfg(test)]
mod tests;
