//! Nodes of manifests that this host has put, on its own disk: the next backup compares with them, and need not fetch what it
//! has written itself.
//!
//! They are sealed as they were sent, and proved by who reads them like those of the server. Each file ends with the BLAKE3 sum
//! of what is before it, so a torn or damaged one counts as none. Nothing here is durable, and all of it may be removed at any
//! time.
//!
//! A backup relies on a node without reading the server's, so it asks the server for the sum of that, which travels while the disk
//! is read. One that is damaged or gone there is put again from here, before the next flush or commit.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use vbk_repo::id::NodeId;

/// Bytes of nodes of one repository: those of 28 TiB of disks.
const MAX_BYTES: u64 = 1 << 30;

/// Age of the time of last use after which it is set again.
const USED_WITHIN: Duration = Duration::from_secs(24 * 3600);

const SUM_BYTES: usize = 32;

/// The nodes of one repository.
#[derive(Debug)]
pub(super) struct NodeCache {
    directory: PathBuf,
    max_bytes: u64,
    has_grown: AtomicBool,
}

impl NodeCache {
    /// Uses a directory below this one for the repository of this address and id. It is made at the first need.
    pub(super) fn new(directory: &Path, repository: &Path, id: &str) -> Self {
        let name = format!("{} {id}", repository.display());
        let name = &blake3::hash(name.as_bytes()).to_hex()[..32];
        Self {
            directory: directory.join(name),
            max_bytes: MAX_BYTES,
            has_grown: AtomicBool::new(false),
        }
    }

    fn path(&self, id: NodeId) -> PathBuf {
        let name: String = id.0.iter().map(|byte| format!("{byte:02x}")).collect();
        self.directory.join(&name[..2]).join(name)
    }

    /// Returns a node and its sum.
    pub(super) fn get(&self, id: NodeId) -> Option<(Vec<u8>, [u8; SUM_BYTES])> {
        let path = self.path(id);
        let mut bytes = fs::read(&path).ok()?;
        let sum = bytes.split_off(bytes.len().checked_sub(SUM_BYTES)?);
        let sum: [u8; SUM_BYTES] = sum.try_into().ok()?;
        if node_sum(&bytes) != sum {
            let _ = fs::remove_file(&path);
            return None;
        }
        let _ = mark_used(&path);
        Some((bytes, sum))
    }

    /// Keeps a node. Errors count as nothing kept.
    pub(super) fn put(&self, id: NodeId, bytes: &[u8]) {
        match self.try_put(&self.path(id), bytes) {
            Ok(()) => self.has_grown.store(true, Ordering::Relaxed),
            Err(error) => tracing::debug!("{}: {error}", self.directory.display()),
        }
    }

    fn try_put(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let directory = path.parent().unwrap_or(&self.directory);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        // Of its own for each write: several may write the same node.
        static DRAFTS: AtomicU64 = AtomicU64::new(0);
        let number = DRAFTS.fetch_add(1, Ordering::Relaxed);
        let draft = directory.join(format!("draft-{}-{number}", std::process::id()));
        let mut options = fs::OpenOptions::new();
        let written = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.write_all(&node_sum(bytes))))
            .and_then(|()| fs::rename(&draft, path));
        written.inspect_err(|_| _ = fs::remove_file(&draft))
    }

    /// Removes what was not used for the longest time, while it is too much.
    fn shrink(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for directory in fs::read_dir(&self.directory)?.flatten() {
            // Another process may remove some meanwhile.
            let is_directory = directory.file_type().is_ok_and(|kind| kind.is_dir());
            let Some(found) = is_directory.then(|| fs::read_dir(directory.path()).ok()).flatten() else {
                continue;
            };
            for file in found.flatten() {
                if let Ok(found) = file.metadata() {
                    files.push((found.modified()?, found.len(), file.path()));
                }
            }
        }
        let mut bytes: u64 = files.iter().map(|(_, len, _)| len).sum();
        if bytes <= self.max_bytes {
            return Ok(());
        }
        files.sort_unstable();
        for (_, len, path) in files {
            // Not just below the bound, or the next run does the same again.
            if bytes <= self.max_bytes / 4 * 3 {
                break;
            }
            let _ = fs::remove_file(path);
            bytes -= len;
        }
        Ok(())
    }
}

impl Drop for NodeCache {
    fn drop(&mut self) {
        if self.has_grown.load(Ordering::Relaxed)
            && let Err(error) = self.shrink()
        {
            tracing::debug!("{}: {error}", self.directory.display());
        }
    }
}

/// The sum of a node's sealed bytes.
pub(crate) fn node_sum(bytes: &[u8]) -> [u8; SUM_BYTES] {
    *blake3::hash(bytes).as_bytes()
}

fn mark_used(path: &Path) -> io::Result<()> {
    let file = fs::File::open(path)?;
    let is_old = file
        .metadata()?
        .modified()?
        .elapsed()
        .is_ok_and(|age| age > USED_WITHIN);
    match is_old {
        true => file.set_modified(SystemTime::now()),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    #[test]
    fn what_was_put_comes_back_and_nothing_else() {
        let parent = tempfile::tempdir().expect("a directory");
        let cache = NodeCache::new(parent.path(), Path::new("vbk://dc2"), "id");
        assert_eq!(cache.get(id(1)), None);
        cache.put(id(1), b"one");
        cache.put(id(2), b"");
        assert_eq!(cache.get(id(1)), Some((b"one".to_vec(), node_sum(b"one"))));
        assert_eq!(cache.get(id(2)), Some((Vec::new(), node_sum(b""))));
        let path = cache.path(id(1));
        let whole = fs::read(&path).expect("reads");
        for damaged in [&whole[..whole.len() - 1], &whole[..10], &whole[1..], b""] {
            fs::write(&path, damaged).expect("writes");
            assert_eq!(cache.get(id(1)), None);
        }
        let mut flipped = whole.clone();
        flipped[1] ^= 1;
        fs::write(&path, flipped).expect("writes");
        assert_eq!(cache.get(id(1)), None);
        assert!(!path.exists());
    }

    #[test]
    fn the_least_recently_used_go_when_there_are_too_many() {
        let parent = tempfile::tempdir().expect("a directory");
        let open = || {
            let mut cache = NodeCache::new(parent.path(), Path::new("vbk://dc2"), "id");
            cache.max_bytes = 10 * 132;
            cache
        };
        let cache = open();
        for number in 0..12 {
            cache.put(id(number), &[number; 100]);
            let file = fs::File::open(cache.path(id(number))).expect("opens");
            let age = Duration::from_secs(1_000_000 - u64::from(number));
            file.set_modified(SystemTime::now() - age).expect("sets");
        }
        // Used just now.
        assert!(cache.get(id(0)).is_some());
        drop(cache);
        let cache = open();
        let there: Vec<_> = (0..12).filter(|number| cache.get(id(*number)).is_some()).collect();
        assert_eq!(there, [0, 6, 7, 8, 9, 10, 11]);
    }
}
