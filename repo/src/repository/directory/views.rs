//! Views: the states of the store that readers open while one process may write.
//!
//! `REPO/views/current` is a link that names the newest view, `N`: the store as it was after commit N. `N` itself is a
//! small file ([`record`]) that names the files of that state, which lie in a pool ([`pool`]), once for all views. A reader
//! holds flock(2), shared, on `N.lock` for as long as it reads. A writer publishes a view after each commit, and removes
//! the older ones without a reader and the files that no view needs any more. So a reader never waits for a writer, needs
//! no help from one, and continues to read the view that it opened, whatever is removed from the store meanwhile. The next
//! publication removes what a killed reader or writer left, even if it has nothing new to publish.
//!
//! A publication costs as much as is new in the store, not as much as is there. A writer's opening costs the latter.
//!
//! What is on disk after each step of publishing N:
//!
//! 1. Hard links to the new tables and blob files of the store, in the pool. RocksDB's list of files was read up to the
//!    end of a record, while nothing was committed ([`RocksStore::still`]), and the links are those of the files that it
//!    names there. A file that RocksDB has removed before it was linked is removed further on in the list, and is not
//!    needed. A crash leaves files in the pool that no view names; the next writer keeps those that the store still uses.
//! 2. The new part of the list, appended to the pool's copy and synced, as are the store's own list up to there, and the
//!    names in the pool. A crash leaves a copy that is longer than any view says, and readers read no more of it than
//!    their view says. RocksDB begins a new list whenever it opens, so the next writer does not append to this copy.
//! 3. `N.lock`, and the view's file, complete and synced; the link still names the older view. A crash leaves an unused
//!    view that the next publication replaces.
//! 4. The link, swapped by rename(2), and synced. Readers now open N.
//! 5. Older views without a reader are removed, each under its exclusive lock. A reader that read the link before the
//!    swap either got its shared lock first, and the view stays, or finds its lock file gone and reads the link again.
//! 6. Files that went are removed from the pool, unless one of the views that are left names them: those that were made
//!    while the file was there, and after it. A crash leaves files that no view names; the next writer finds them by
//!    reading the lists of all views.

mod listing;
mod older;
pub(crate) mod pool;
pub(crate) mod record;
mod writing;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub(crate) use self::record::View;
pub(crate) use self::writing::Views;
use crate::error::{Error, Result};
use crate::store::rocks::{RocksReader, RocksStore};

/// Number of attempts of a reader when views change meanwhile. Each retry means that a commit was published in between.
const ATTEMPTS: usize = 100;

/// Returns the directory of all views.
pub(crate) fn directory(repository: &Path) -> PathBuf {
    repository.join("views")
}

/// Makes the directory of all views again if it is gone; returns whether it was. The caller holds the writer's lock, and has found
/// the repository's marker: a file system that is not mounted has none.
pub(crate) fn make_directory(repository: &Path) -> Result<bool> {
    let views = directory(repository);
    match fs::create_dir(&views) {
        Ok(()) => crate::files::sync_directory(repository)
            .map_err(Error::io("sync", repository))
            .map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::io("create", views)(error)),
    }
}

/// Returns the path of a view.
pub(crate) fn path_of(repository: &Path, number: u64) -> PathBuf {
    directory(repository).join(number.to_string())
}

/// Returns the directory where a writer makes a checkpoint only to list the store's files. The next writer removes a
/// checkpoint that a killed one left there: its links would keep the space of everything that is removed later.
pub(crate) fn scratch(repository: &Path) -> PathBuf {
    directory(repository).join(SCRATCH)
}

const SCRATCH: &str = "files.tmp";

/// Returns the number of the newest view; `None` if there is none.
pub(crate) fn current(repository: &Path) -> Result<Option<u64>> {
    let link = directory(repository).join("current");
    match fs::read_link(&link) {
        Ok(target) => Ok(target.to_str().and_then(|name| name.parse().ok())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", link)(error)),
    }
}

/// Finds a view; `None` if there is none with this number.
pub(crate) fn find(repository: &Path, number: u64) -> Result<Option<View>> {
    View::find(&directory(repository), number)
}

/// A view that is kept as long as the value lives, because it holds the reader's lock.
pub(crate) struct HeldView {
    pub(crate) reader: RocksReader,
    pub(crate) number: u64,
}

/// Opens the newest view; `None` if there is none, or it is incomplete.
pub(crate) fn open(repository: &Path) -> Result<Option<HeldView>> {
    let views = directory(repository);
    for _ in 0..ATTEMPTS {
        let Some(number) = current(repository)? else {
            return Ok(None);
        };
        let path = views.join(format!("{number}.lock"));
        let lock = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("open", path)(error)),
        };
        lock.lock_shared().map_err(Error::io("lock", &path))?;
        let links = lock.metadata().map_err(Error::io("read", &path))?.nlink();
        if links == 0 {
            // The view was removed between reading the link and taking the lock.
            continue;
        }
        let Some(view) = View::find(&views, number)? else {
            return Ok(None);
        };
        // A copy of the repository may lack the pool.
        if !view.files().exists() {
            return Ok(None);
        }
        return Ok(Some(HeldView {
            reader: view.open(Some(lock))?,
            number,
        }));
    }
    Ok(None)
}

/// Publishes the store's present state as the newest view: for a caller that does so once. Only the process that holds the
/// writer's lock may call this.
pub(crate) fn publish(repository: &Path, store: &RocksStore) -> Result<()> {
    Views::open(repository, store)?.publish(store)
}

/// Returns the numbers of all views, oldest first; incomplete ones are included.
pub(crate) fn all(repository: &Path) -> Result<Vec<u64>> {
    let views = directory(repository);
    let mut all = Vec::new();
    for entry in fs::read_dir(&views).map_err(Error::io("list", &views))? {
        let entry = entry.map_err(Error::io("list", &views))?;
        all.extend(entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    all.sort_unstable();
    Ok(all)
}

pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if !found.is_dir() => fs::remove_file(path),
        _ => fs::remove_dir_all(path),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
