//! Pools: directories with the files of views, each once, however many views have it.
//!
//! `views/pool-N` has hard links to tables and blob files of the store, under their names there, and copies of RocksDB's
//! lists of files. RocksDB never gives a number to two files of a store. A store that is rebuilt from an older state, or
//! put back by an administrator, gives the numbers of lost files to others; a new pool is begun then.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::remove_if_there;
use crate::store::rocks::manifest::{StoreFile, is_manifest};

const PREFIX: &str = "pool-";

/// Returns the directory of a pool.
pub(crate) fn path_of(views: &Path, number: u64) -> PathBuf {
    views.join(format!("{PREFIX}{number}"))
}

/// Returns the numbers of all pools, in order.
pub(crate) fn all(views: &Path) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(views).map_err(Error::io("list", views))? {
        let name = entry.map_err(Error::io("list", views))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        all.extend(number.filter(|number: &u64| path_of(views, *number).ends_with(&name)));
    }
    all.sort_unstable();
    Ok(all)
}

/// Returns the tables and blob files in a directory, with the numbers of their inodes. Needs no look at the files, as a rule.
pub(crate) fn list(directory: &Path) -> Result<BTreeMap<StoreFile, u64>> {
    let mut files = BTreeMap::new();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        entries => entries.map_err(Error::io("list", directory))?,
    };
    for entry in entries {
        let entry = entry.map_err(Error::io("list", directory))?;
        files.extend(StoreFile::of_name(&entry.file_name()).map(|file| (file, entry.ino())));
    }
    // A file system in user space may give one number for all.
    let mut numbers = BTreeSet::new();
    if !files.values().all(|number| numbers.insert(*number)) {
        for (file, number) in &mut files {
            let path = directory.join(file.name());
            *number = fs::symlink_metadata(&path).map_err(Error::io("read", path))?.ino();
        }
    }
    Ok(files)
}

/// Returns the names of RocksDB's lists in a pool.
pub(crate) fn manifests(pool: &Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(pool).map_err(Error::io("list", pool))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| is_manifest(name)).collect())
}

/// Result of linking a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Linked {
    Done,
    /// The store has no such file.
    Gone,
    /// The pool has another file of that name.
    Taken,
}

/// Links a file of the store into a pool.
pub(super) fn link(store: &Path, pool: &Path, file: StoreFile) -> Result<Linked> {
    let (from, to) = (store.join(file.name()), pool.join(file.name()));
    match fs::hard_link(&from, &to) {
        Ok(()) => Ok(Linked::Done),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Linked::Gone),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let inode = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
            match (inode(&from), inode(&to)) {
                (Ok(from), Ok(to)) if from == to => Ok(Linked::Done),
                (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Ok(Linked::Gone),
                _ => Ok(Linked::Taken),
            }
        }
        Err(error) => Err(Error::io("link", to)(error)),
    }
}

/// Removes a file of a pool, which may be gone.
pub(super) fn remove(pool: &Path, name: &str) -> Result<()> {
    let path = pool.join(name);
    remove_if_there(&path).map_err(Error::io("remove", path))
}
