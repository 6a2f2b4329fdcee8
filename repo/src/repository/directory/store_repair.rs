//! Repairs the store's own files before anything is read through them: tables from their second copies, the rest from
//! the newest view, which was the complete store when it was made.
//!
//! Only files that are known to be damaged are changed; a failure that says nothing about the files ends the repair.
//! Files that may contain a backup are never removed: a rebuilt store may lack a backup that was committed and not
//! published, and one from an older view lacks more. So the old store and newer views are renamed to `store.damaged`
//! and `views/N.damaged`, for an administrator to remove.

mod aside;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use self::aside::{OLD_STORE, UNTIL_REMOVED, free_name, names_in, put_aside};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::directory::files;
use crate::repository::directory::hashes::Hashes;
use crate::repository::directory::second_copies::{self, Spare};
use crate::repository::directory::small_files::check_store;
use crate::repository::directory::stored_files::{self, Fault, Faulty};
use crate::repository::directory::views::{self, View, pool, remove_tree};
use crate::store::StoreReader;
use crate::store::rocks::manifest::Unread;
use crate::store::rocks::{RocksStore, path_in, remove_checkpoint};

/// Result of a repair, as sentences for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mended {
    /// Damage that was repaired.
    pub done: Vec<String>,
    /// Damage that remains.
    pub left: Vec<String>,
}

/// Compares the files of the store and of a view, which the caller holds, with their lists. Returns a line for each that is
/// missing, or not what it should be.
pub fn check_files(repository: &Path, view: u64) -> Result<Vec<String>> {
    let faulty = match views::find(repository, view)? {
        Some(view) => stored_files::faulty(repository, &view)?,
        None => Vec::new(),
    };
    Ok(faulty.iter().map(Faulty::describe).collect())
}

/// Compares the tables of a view, which the caller holds, with their second copies. Returns the damaged ones, and
/// [`Error::Interrupted`] soon after `cancel` is set.
pub fn check_tables(repository: &Path, view: u64, cancel: &AtomicBool) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let Some(view) = views::find(repository, view)? else {
        return Ok(found);
    };
    for spare in second_copies::list(repository)? {
        if cancel.load(Ordering::SeqCst) {
            return Err(Error::Interrupted);
        }
        let table = view.files().join(&spare.table);
        // A second copy for a newer view, or one that a newer view has made superfluous.
        if !table.exists() || !spare.path.exists() {
            continue;
        }
        let good = files::hash_of(&table)?.as_ref() == Some(&spare.hash);
        let spare_good = files::hash_of(&spare.path)?.as_ref() == Some(&spare.hash);
        match (good, spare_good) {
            (true, true) => {}
            (false, true) => found.push(format!("table {} is damaged; its second copy is intact", spare.table)),
            (true, false) => found.push(format!("the second copy of table {} is damaged", spare.table)),
            (false, false) => found.push(both_damaged(&spare)),
        }
    }
    Ok(found)
}

fn both_damaged(spare: &Spare) -> String {
    format!("table {} and its second copy are both damaged", spare.table)
}

/// Reads the tables and their second copies, for [`mend`]. Needs no lock: what a writer makes or removes meanwhile is read again
/// then.
pub(super) fn read_tables(repository: &Path) -> Hashes {
    let hashes = Hashes::default();
    let read = || {
        let places = places_of(repository, &views::all(repository)?)?;
        for spare in second_copies::list(repository)? {
            let of = |directory: &PathBuf| directory.join(&spare.table);
            let tables = std::iter::once(&path_in(repository))
                .chain(&places)
                .map(of)
                .collect::<Vec<_>>();
            tables
                .iter()
                .chain([&spare.path])
                .try_for_each(|path| hashes.of(path).map(drop))?;
        }
        Ok::<_, Error>(())
    };
    if let Err(error) = read() {
        tracing::debug!(%error, "the rest of the tables is read later");
    }
    hashes
}

/// Repairs what can be repaired. The caller holds the writer's lock. `hashes` has what was read before.
pub(super) fn mend(repository: &Path, hashes: &Hashes) -> Result<Mended> {
    let mut mended = Mended::default();
    if views::make_directory(repository)? {
        mended.done.push("views/ was gone".into());
    }
    link(repository, &mut mended)?;
    let named = views::current(repository)?.unwrap_or(0);
    // A damaged link may name any number; a view that existed has left at least its lock.
    let view = views::path_of(repository, named);
    let current = match files::is_there(&view)? || files::is_there(&view.with_extension("lock"))? {
        true => named,
        false => 0,
    };
    // Fails if a newer vbk made it: a view that this vbk can't open may be intact.
    opens(repository, current)?;
    // The writer may have continued since the newest view: tables that it has merged since are missing in the store for
    // a good reason. A table that has no second copy yet, as after a crash before the copies were updated, stays as it
    // is.
    let views = views::all(repository)?;
    let places = places_of(repository, &views)?;
    for spare in second_copies::list(repository)? {
        table(repository, &places, &spare, hashes, &mut mended)?;
    }
    if let Some(Some(view)) = whole(views::find(repository, current))? {
        put_back(repository, &view, &mut mended)?;
    }
    // A view is complete before the link names it, and the link may be lost.
    let newest = views.last().map_or(current, |number| current.max(*number));
    if let Some(generation) = store(repository, &views, (current, newest), &mut mended)? {
        if generation < newest {
            put_aside(repository, &views, generation, newest, &mut mended)?;
        }
        blobs(repository, &places, &mut mended)?;
        newest_view(repository, &mut mended)?;
    }
    Ok(mended)
}

/// Returns `None` for an object that is damaged or gone. Any other error says nothing about what is stored, and is
/// returned.
fn whole<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the directories that have tables and blob files of views, that of the newest view last. A pool has the files of
/// many views.
fn places_of(repository: &Path, views: &[u64]) -> Result<Vec<PathBuf>> {
    let directory = views::directory(repository);
    let mut places: Vec<_> = pool::all(&directory)?
        .into_iter()
        .map(|number| pool::path_of(&directory, number))
        .collect();
    for number in views {
        if let Some(Some(view)) = whole(views::find(repository, *number))? {
            let files = view.files();
            places.retain(|place| *place != files);
            places.push(files);
        }
    }
    Ok(places)
}

/// Returns the generation of a view; `None` if the view can't be opened.
fn opens(repository: &Path, number: u64) -> Result<Option<u64>> {
    let Some(Some(view)) = whole(views::find(repository, number))? else {
        return Ok(None);
    };
    whole(view.open(None).and_then(|reader| {
        reader.identity()?.check(repository)?;
        reader.generation()
    }))
}

/// Ensures that the store opens and, if possible, is as new as the newest view; returns the store's generation.
fn store(repository: &Path, views: &[u64], (current, newest): (u64, u64), mended: &mut Mended) -> Result<Option<u64>> {
    let store = path_in(repository);
    let view = whole(views::find(repository, current))?.flatten();
    let is_good = view
        .as_ref()
        .map(|view| whole(view.check()))
        .transpose()?
        .flatten()
        .is_some();
    let opened = check_store(&store, view.as_ref().filter(|_| is_good))
        .and_then(|()| RocksStore::open(&store))
        .and_then(|opened| opened.generation());
    let (found, why) = match opened {
        Ok(generation) if generation >= newest => return Ok(Some(generation)),
        Ok(generation) => (
            Some(generation),
            format!("its generation {generation} is older than the newest view, {newest}"),
        ),
        Err(error) => {
            let why = error.to_string();
            whole(Err::<(), _>(error))?;
            (None, why)
        }
    };
    let made = rebuild(repository, views, found, &why, mended)?;
    if made.is_none() && found.is_none() {
        mended
            .left
            .push(format!("the store can't be opened ({why}), and neither can any view"));
    }
    Ok(made.or(found))
}

/// Sets aside whatever stands in place of the link to the newest view, e.g. in a copy made by a program that ignores
/// links or follows them.
fn link(repository: &Path, mended: &mut Mended) -> Result<()> {
    let link = repository.join("views").join("current");
    if link.symlink_metadata().is_ok_and(|data| !data.is_symlink()) {
        let aside = link.with_extension("damaged");
        if aside.is_dir() {
            remove_tree(&aside)?;
        }
        fs::rename(&link, &aside).map_err(Error::io("rename", &link))?;
        mended.done.push("views/current was not a link any more".into());
    }
    Ok(())
}

/// Ensures that views can be made: they have links to every blob file of the store. Only the blocks in a missing file are
/// lost, so an empty file in its place does no further harm.
fn blobs(repository: &Path, places: &[PathBuf], mended: &mut Mended) -> Result<()> {
    let store = path_in(repository);
    let opened = RocksStore::open(&store)?;
    let probe = repository.join("store.probe");
    loop {
        remove_checkpoint(&probe);
        let Err(error) = opened.checkpoint(&probe) else {
            return remove_tree(&probe);
        };
        // RocksDB names the file only in its message.
        let text = error.to_string();
        let name = text.split(['/', ':', ' ']).find(|word| word.ends_with(".blob"));
        let Some(name) = name.filter(|name| !store.join(name).exists()) else {
            return Err(error);
        };
        let (place, in_views) = (store.join(name), places.iter().map(|place| place.join(name)));
        match in_views.rev().find(|path| path.exists()) {
            Some(path) => {
                fs::hard_link(&path, &place).map_err(Error::io("link", &place))?;
                mended.done.push(format!("blob file {name} was missing in the store"));
            }
            None => {
                fs::File::create_new(&place).map_err(Error::io("create", &place))?;
                mended.done.push(format!(
                    "blob file {name} is lost with its blocks, so no views can be made"
                ));
            }
        }
    }
}

/// Puts files back into the store that it lacks and a view has whole.
fn put_back(repository: &Path, view: &View, mended: &mut Mended) -> Result<()> {
    let (store, pool) = (path_in(repository), view.files());
    let faulty = stored_files::faulty(repository, view)?.into_iter();
    let faulty: Vec<_> = faulty
        .filter(|faulty| faulty.is_in_store && faulty.is_elsewhere)
        .collect();
    if faulty.is_empty() {
        return Ok(());
    }
    for Faulty { file, fault, .. } in faulty {
        let (from, to) = (pool.join(file.name()), store.join(file.name()));
        let name = stored_files::describe(file);
        let what = match fault {
            Fault::Missing => format!("{name} was missing in the store"),
            Fault::Length { is, should } => format!("{name} in the store had {is} bytes instead of {should}"),
            Fault::Differs => {
                // It can't be told here which of them is the right one.
                mended.left.push(format!(
                    "{name} in store/ is not the file that the newest view has, and both stay: the next backup shows the store's to \
                     readers, and then `vbk verify` tells whether it is whole"
                ));
                continue;
            }
        };
        let draft = to.with_extension("mended");
        let _ = fs::remove_file(&draft);
        fs::hard_link(&from, &draft).map_err(Error::io("link", &draft))?;
        fs::rename(&draft, &to).map_err(Error::io("rename", &draft))?;
        mended.done.push(what);
    }
    files::sync_directory(&store)
}

/// Makes every name of a table a link to the right bytes.
fn table(repository: &Path, places: &[PathBuf], spare: &Spare, hashes: &Hashes, mended: &mut Mended) -> Result<()> {
    // A pool that is gone is made again with the newest view.
    let newest = places.last().filter(|place| place.exists());
    let newest = newest.map(|place| place.join(&spare.table));
    let is_good = |path: &PathBuf| Ok::<_, Error>(hashes.of(path)?.as_ref() == Some(&spare.hash));
    let (mut good, mut others) = (None, Vec::new());
    for directory in std::iter::once(&path_in(repository)).chain(places) {
        let place = directory.join(&spare.table);
        match is_good(&place)? {
            true => good = Some(place),
            false => others.push(place),
        }
    }
    if !is_good(&spare.path)? {
        let Some(good) = &good else {
            mended.left.push(both_damaged(spare));
            return Ok(());
        };
        let bytes = fs::read(good).map_err(Error::io("read", good))?;
        files::write(&spare.path, &bytes)?;
        mended
            .done
            .push(format!("the second copy of table {} was written again", spare.table));
    }
    // A table may be missing in an older view or in the store for a good reason.
    let needed = |path: &PathBuf| path.exists() || Some(path) == newest.as_ref();
    for place in others.iter().filter(|path| needed(path)) {
        let draft = place.with_extension("mended");
        let _ = fs::remove_file(&draft);
        match &good {
            Some(good) => fs::hard_link(good, &draft).map_err(Error::io("link", &draft))?,
            None => {
                let bytes = fs::read(&spare.path).map_err(Error::io("read", &spare.path))?;
                files::write(&draft, &bytes)?;
            }
        }
        fs::rename(&draft, place).map_err(Error::io("rename", draft))?;
        // The others become links to it.
        good.get_or_insert_with(|| place.clone());
        mended.done.push(format!(
            "table {} was damaged in {}",
            spare.table,
            name_of(repository, place)
        ));
    }
    Ok(())
}

fn name_of(repository: &Path, place: &Path) -> String {
    let directory = place.parent().unwrap_or(place);
    directory
        .strip_prefix(repository)
        .unwrap_or(directory)
        .display()
        .to_string()
}

/// Rebuilds the store from the newest view that opens, if that is newer than the generation that the store was `found`
/// at; returns the store's generation after that.
///
/// 1. The new store is made under another name and opened there. A crash leaves the store as it was.
/// 2. The old store is set aside. A crash leaves none, and the next repair starts here again.
/// 3. The new store gets its name.
fn rebuild(
    repository: &Path,
    views: &[u64],
    found: Option<u64>,
    why: &str,
    mended: &mut Mended,
) -> Result<Option<u64>> {
    let (store, new) = (path_in(repository), repository.join("store.new"));
    for number in views.iter().rev() {
        let Some(generation) = opens(repository, *number)?.filter(|generation| Some(*generation) > found) else {
            continue;
        };
        let Some(view) = views::find(repository, *number)? else {
            continue;
        };
        link_or_copy(&view, &new)?;
        // Before the store is opened: opening may write tables, under names that are free in this view.
        second_copies::keep_only(repository, &new)?;
        if whole(RocksStore::open(&new))?.is_none() {
            continue;
        }
        files::sync_directory(&new)?;
        if files::is_there(&store)? {
            let aside = free_name(&repository.join(OLD_STORE))?;
            fs::rename(&store, aside).map_err(Error::io("rename", &store))?;
        }
        fs::rename(&new, &store).map_err(Error::io("rename", &new))?;
        files::sync_directory(repository)?;
        let kept = names_in(repository, |name| name.starts_with(OLD_STORE))?;
        let kept = match kept.as_slice() {
            [] => String::new(),
            kept => format!("; the old store is kept in {}; {UNTIL_REMOVED}", kept.join(", ")),
        };
        mended.done.push(format!(
            "the store could not be used ({why}) and was rebuilt from view {number}{kept}"
        ));
        return Ok(Some(generation));
    }
    remove_tree(&new)?;
    Ok(None)
}

/// Makes a store of a view. RocksDB never changes tables and blob files, so they are linked; the rest is copied.
fn link_or_copy(view: &View, new: &Path) -> Result<()> {
    remove_tree(new)?;
    fs::create_dir(new).map_err(Error::io("create", new))?;
    let from = view.files();
    let files = match view.list() {
        Ok(files) => files,
        Err(Unread::Error(error)) => return Err(error),
        // RocksDB removes what it does not need as it opens.
        Err(Unread::Strange(_)) => pool::list(&from)?.into_keys().collect(),
    };
    for file in files {
        let (from, to) = (from.join(file.name()), new.join(file.name()));
        match fs::hard_link(&from, &to) {
            // The repair of the store's own files finds it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            linked => linked.map_err(Error::io("link", &to))?,
        }
    }
    view.write_list(new)?;
    files::sync_directory(new)
}

/// Ensures that readers can open the newest view.
fn newest_view(repository: &Path, mended: &mut Mended) -> Result<()> {
    let newest = views::current(repository)?.unwrap_or(0);
    let lacks = match whole(views::find(repository, newest))?.flatten() {
        Some(view) => stored_files::faulty(repository, &view)?,
        None => Vec::new(),
    };
    let lacks: Vec<_> = lacks.iter().filter(|faulty| !faulty.is_in_store).collect();
    let store = RocksStore::open(&path_in(repository))?;
    let held = views::open(repository);
    let opens = whole(held.and_then(|held| held.map(|held| held.reader.identity()).transpose()))?
        .flatten()
        .is_some();
    if !opens || !lacks.is_empty() {
        // Published under a new number: the old view may have readers, which continue to see what they can.
        crate::store::StoreManager::amend(&store, &[], &[])?;
        mended.done.push(match lacks.as_slice() {
            [] => "the newest view could not be opened and was replaced".into(),
            lacks => {
                let names: Vec<_> = lacks
                    .iter()
                    .map(|lacking| stored_files::describe(lacking.file))
                    .collect();
                format!("the newest view lacked {} and was replaced", names.join(", "))
            }
        });
    }
    views::publish(repository, &store)
}

#[cfg(test)]
mod tests;
