//! Views: the snapshots of the store that readers open while one process may write.
//!
//! `REPO/views/current` is a link that names the newest view, `N`: the store as it was after commit N, made of hard
//! links to its files. A reader holds flock(2), shared, on `N.lock` for as long as it reads. A writer publishes a view
//! after each commit and removes the older ones without a reader. So a reader never waits for a writer, needs no help
//! from one, and continues to read the view that it opened, whatever is removed from the store meanwhile. The next
//! publication removes what a killed reader or writer left, even if it has nothing new to publish.
//!
//! What is on disk after each step of publishing N:
//!
//! 1. `N.lock` and the view's directory, complete (RocksDB builds it under another name and renames it); the link still
//!    names the older view, so a crash leaves an unused view that the next publication replaces.
//! 2. The link, swapped by rename(2). Readers now open N.
//! 3. Older views without a reader are removed, each under its exclusive lock. A reader that read the link before the
//!    swap either got its shared lock first, and the view stays, or finds its lock file gone and reads the link again.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::repository::directory::{files, second_copies};
use crate::store::StoreReader;
use crate::store::rocks::{RocksReader, RocksStore};

/// Number of attempts of a reader when views change meanwhile. Each retry means that a commit was published in between.
const ATTEMPTS: usize = 100;

/// Returns the directory of all views.
pub(crate) fn directory(repository: &Path) -> PathBuf {
    repository.join("views")
}

/// Returns the directory of a view.
pub(crate) fn path_of(repository: &Path, number: u64) -> PathBuf {
    directory(repository).join(number.to_string())
}

/// Returns the directory where a writer makes a checkpoint only to examine it. The next publication removes a
/// checkpoint that a killed writer left there: its links would keep the space of everything that is removed later.
pub(crate) fn scratch(repository: &Path) -> PathBuf {
    directory(repository).join(SCRATCH)
}

const SCRATCH: &str = "files.tmp";

fn remove_scratch(views: &Path) -> Result<()> {
    remove_tree(&views.join(SCRATCH))?;
    // RocksDB builds the checkpoint under this name.
    remove_tree(&views.join(format!("{SCRATCH}.tmp")))
}

/// Returns the number of the newest view; `None` if there is none.
pub(crate) fn current(repository: &Path) -> Result<Option<u64>> {
    let link = directory(repository).join("current");
    match fs::read_link(&link) {
        Ok(target) => Ok(target.to_str().and_then(|name| name.parse().ok())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", link)(error)),
    }
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
        let view = path_of(repository, number);
        if !view.join("CURRENT").exists() {
            return Ok(None);
        }
        second_copies::check_view(&view)?;
        return Ok(Some(HeldView {
            reader: RocksReader::open(&view, Some(lock))?,
            number,
        }));
    }
    Ok(None)
}

/// Publishes the store's present state as the newest view. Only the process that holds the writer's lock may call this.
pub(crate) fn publish(repository: &Path, store: &RocksStore) -> Result<()> {
    let views = directory(repository);
    let number = store.generation()?;
    let path = views.join(number.to_string());
    let lock = views.join(format!("{number}.lock"));
    // A copy of the repository may lack some of it.
    let whole = lock.exists() && path.join("CURRENT").exists();
    if current(repository)? != Some(number) || !whole {
        remove_tree(&path)?;
        File::create(&lock).map_err(Error::io("create", &lock))?;
        store.checkpoint(&path)?;
        point_to(&views, number)?;
    }
    // The view is complete without second copies, but damage to a table may cost more; so this is not a reason to fail.
    if let Err(error) = second_copies::update(repository, &path) {
        tracing::warn!("the second copies of the store's tables are not up to date: {error}");
    }
    remove_unused(&views, number)
}

/// Returns all views, oldest first; incomplete ones are included.
pub(crate) fn all(repository: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let views = directory(repository);
    let mut all = Vec::new();
    for entry in fs::read_dir(&views).map_err(Error::io("list", &views))? {
        let entry = entry.map_err(Error::io("list", &views))?;
        if let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            all.push((number, entry.path()));
        }
    }
    all.sort_unstable();
    Ok(all)
}

fn point_to(views: &Path, number: u64) -> Result<()> {
    let (link, new) = (views.join("current"), views.join("current.new"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("remove", new)(error));
        }
        _ => {}
    }
    std::os::unix::fs::symlink(number.to_string(), &new).map_err(Error::io("create", &new))?;
    fs::rename(&new, &link).map_err(Error::io("replace", &link))?;
    files::sync_directory(views)
}

fn remove_unused(views: &Path, keep: u64) -> Result<()> {
    remove_scratch(views)?;
    let entries = fs::read_dir(views).map_err(Error::io("list", views))?;
    for entry in entries {
        let entry = entry.map_err(Error::io("list", views))?;
        let name = entry.file_name();
        // `N`, `N.lock`, and `N.tmp` that RocksDB did not finish. Other files are not vbk's to remove.
        let first = name.to_str().and_then(|name| name.split('.').next());
        let Some(number) = first.filter(|number| number.parse::<u64>().is_ok_and(|number| number != keep)) else {
            continue;
        };
        let path = views.join(format!("{number}.lock"));
        let held = match File::open(&path) {
            Ok(lock) => match lock.try_lock() {
                Ok(()) => Some(lock),
                Err(_) => continue,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // The lock can't be tested, so the view may have a reader.
            Err(_) => continue,
        };
        remove_tree(&views.join(number))?;
        remove_tree(&views.join(format!("{number}.tmp")))?;
        let _ = fs::remove_file(&path);
        drop(held);
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}
