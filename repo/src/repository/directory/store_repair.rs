//! Repairs the store's own files before anything is read through them: tables from their second copies, the rest from
//! the newest view, which was the complete store when it was made.
//!
//! Only files that are known to be damaged are changed; a failure that says nothing about the files ends the repair.
//! Files that may contain a backup are never removed: a rebuilt store may lack a backup that was committed and not
//! published, and one from an older view lacks more. So the old store and newer views are renamed to `store.damaged`
//! and `views/N.damaged`, for an administrator to remove.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::repository::directory::files;
use crate::repository::directory::second_copies::{self, Spare};
use crate::repository::directory::views;
use crate::store::StoreReader;
use crate::store::rocks::{RocksReader, RocksStore, path_in};

/// Name of the old store once there is a new one.
const OLD_STORE: &str = "store.damaged";

/// Suffix of views that are set aside.
const ASIDE: &str = "damaged";

const UNTIL_REMOVED: &str =
    "remove it once everything is repaired; until then its space can't be freed, not even by a prune";

/// Result of a repair, as sentences for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mended {
    /// Damage that was repaired.
    pub done: Vec<String>,
    /// Damage that remains.
    pub left: Vec<String>,
}

/// Compares the tables of a view, which the caller holds, with their second copies. Returns the damaged ones.
pub fn check_tables(repository: &Path, view: u64) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for spare in second_copies::list(repository)? {
        let table = views::path_of(repository, view).join(&spare.table);
        // A second copy for a newer view, or one that a newer view has made superfluous.
        if !table.exists() || !spare.path.exists() {
            continue;
        }
        let good = second_copies::hash_of(&table)?.as_ref() == Some(&spare.hash);
        let spare_good = second_copies::hash_of(&spare.path)?.as_ref() == Some(&spare.hash);
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

/// Repairs what can be repaired. The caller holds the writer's lock.
pub(crate) fn mend(repository: &Path) -> Result<Mended> {
    let mut mended = Mended::default();
    link(repository, &mut mended)?;
    let named = views::current(repository)?.unwrap_or(0);
    // A damaged link may name any number; a view that existed has left at least its lock.
    let view = views::path_of(repository, named);
    let current = match files::is_there(&view)? || files::is_there(&view.with_extension("lock"))? {
        true => named,
        false => 0,
    };
    // Fails if a newer vbk made it: a view that this vbk can't open may be intact.
    opens(repository, &views::path_of(repository, current))?;
    // The writer may have continued since the newest view: tables that it has merged since are missing in the store for
    // a good reason. A table that has no second copy yet, as after a crash before the copies were updated, stays as it
    // is.
    let views = views::all(repository)?;
    for spare in second_copies::list(repository)? {
        table(repository, &views, &spare, &mut mended)?;
    }
    // A view is complete before the link names it, and the link may be lost.
    let newest = views.last().map_or(current, |(number, _)| current.max(*number));
    if let Some(generation) = store(repository, &views, (current, newest), &mut mended)? {
        if generation < newest {
            put_aside(repository, &views, generation, newest, &mut mended)?;
        }
        blobs(repository, &views, &mut mended)?;
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

/// Returns the generation of a view; `None` if the view can't be opened.
fn opens(repository: &Path, view: &Path) -> Result<Option<u64>> {
    if !files::is_there(&view.join("CURRENT"))? {
        return Ok(None);
    }
    let opened = second_copies::check_view(view).and_then(|()| RocksReader::open(view, None));
    whole(opened.and_then(|reader| {
        reader.identity()?.check(repository)?;
        reader.generation()
    }))
}

/// Ensures that the store opens and, if possible, is as new as the newest view; returns the store's generation.
fn store(
    repository: &Path,
    views: &[(u64, PathBuf)],
    (current, newest): (u64, u64),
    mended: &mut Mended,
) -> Result<Option<u64>> {
    let store = path_in(repository);
    let view = views::path_of(repository, current);
    let view = whole(second_copies::check_view(&view))?.map(|()| &*view);
    let opened = second_copies::check_store(&store, view)
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

/// Ensures that views can be made: RocksDB links every blob file of the store into them, and fails if one is missing.
/// Only the blocks in a missing file are lost, so an empty file in its place does no further harm.
fn blobs(repository: &Path, views: &[(u64, PathBuf)], mended: &mut Mended) -> Result<()> {
    let store = path_in(repository);
    let opened = RocksStore::open(&store)?;
    let probe = repository.join("store.probe");
    loop {
        remove_tree(&probe)?;
        remove_tree(&probe.with_extension("probe.tmp"))?;
        let Err(error) = opened.checkpoint(&probe) else {
            return remove_tree(&probe);
        };
        // RocksDB names the file only in its message.
        let text = error.to_string();
        let name = text.split(['/', ':', ' ']).find(|word| word.ends_with(".blob"));
        let Some(name) = name.filter(|name| !store.join(name).exists()) else {
            return Err(error);
        };
        let (place, in_views) = (store.join(name), views.iter().map(|(_, view)| view.join(name)));
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

/// Makes every name of a table a link to the right bytes.
fn table(repository: &Path, views: &[(u64, PathBuf)], spare: &Spare, mended: &mut Mended) -> Result<()> {
    let places: Vec<PathBuf> = std::iter::once(path_in(repository))
        .chain(views.iter().map(|(_, path)| path.clone()))
        .map(|directory| directory.join(&spare.table))
        .collect();
    let newest = views.iter().map(|(_, path)| path.join(&spare.table)).next_back();
    let is_good = |path: &PathBuf| Ok::<_, Error>(second_copies::hash_of(path)?.as_ref() == Some(&spare.hash));
    let (mut good, mut others) = (None, Vec::new());
    for place in places {
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
    views: &[(u64, PathBuf)],
    found: Option<u64>,
    why: &str,
    mended: &mut Mended,
) -> Result<Option<u64>> {
    let (store, new) = (path_in(repository), repository.join("store.new"));
    for (number, view) in views.iter().rev() {
        let Some(generation) = opens(repository, view)?.filter(|generation| Some(*generation) > found) else {
            continue;
        };
        link_or_copy(view, &new)?;
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

fn link_or_copy(view: &Path, new: &Path) -> Result<()> {
    remove_tree(new)?;
    fs::create_dir(new).map_err(Error::io("create", new))?;
    for entry in fs::read_dir(view).map_err(Error::io("list", view))? {
        let from = entry.map_err(Error::io("list", view))?.path();
        let to = new.join(from.file_name().unwrap_or_default());
        // RocksDB never changes tables and blob files; all other files are copied, because each store has its own.
        match from.extension().and_then(|extension| extension.to_str()) {
            Some("sst" | "blob") => fs::hard_link(&from, &to).map_err(Error::io("link", &to))?,
            _ if second_copies::is_sums(&from) => {}
            _ => {
                let bytes = fs::read(&from).map_err(Error::io("read", &from))?;
                files::write(&to, &bytes)?;
            }
        }
    }
    files::sync_directory(new)
}

/// Renames views that are newer than the store, which the next publication would remove, and reports the loss. Readers
/// that hold one may fail on files that they have not opened yet.
fn put_aside(
    repository: &Path,
    views: &[(u64, PathBuf)],
    generation: u64,
    newest: u64,
    mended: &mut Mended,
) -> Result<()> {
    for (_, view) in views.iter().filter(|(number, _)| *number > generation) {
        let aside = free_name(&view.with_extension(ASIDE))?;
        fs::rename(view, aside).map_err(Error::io("rename", view))?;
    }
    let directory = repository.join("views");
    files::sync_directory(&directory)?;
    second_copies::keep_only(repository, &path_in(repository))?;
    let views = names_in(&directory, |name| {
        let number = name.split_once('.').filter(|(_, rest)| rest.starts_with(ASIDE));
        number.is_some_and(|(number, _)| number.parse().is_ok_and(|number: u64| number > generation))
    })?;
    let mut kept = names_in(repository, |name| name.starts_with(OLD_STORE))?;
    kept.extend(views.iter().map(|name| format!("views/{name}")));
    mended.left.push(match kept.as_slice() {
        [] => format!("everything stored after view {generation}, up to view {newest}, is lost"),
        kept => format!(
            "everything stored after view {generation}, up to view {newest}, is lost, unless it can be recovered from \
             files that could not be opened and are kept in {}; {UNTIL_REMOVED}",
            kept.join(", ")
        ),
    });
    Ok(())
}

/// Returns the name itself, or the first free one of `NAME.2`, `NAME.3`, ...
fn free_name(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut free = path.to_owned();
    for number in 2.. {
        match free.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            found => found.map_err(Error::io("read", &free))?,
        };
        free = path.with_file_name(format!("{name}.{number}"));
    }
    Ok(free)
}

fn names_in(directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let name = entry.map_err(Error::io("list", directory))?.file_name();
        names.extend(name.into_string().ok().filter(|name| wanted(name)));
    }
    names.sort();
    Ok(names)
}

/// Ensures that readers can open the newest view.
fn newest_view(repository: &Path, mended: &mut Mended) -> Result<()> {
    let store = RocksStore::open(&path_in(repository))?;
    let number = views::current(repository)?.unwrap_or(0);
    let checked = second_copies::check_view(&views::path_of(repository, number));
    let held = checked.and_then(|()| views::open(repository));
    let opens = whole(held.and_then(|held| held.map(|held| held.reader.identity()).transpose()))?
        .flatten()
        .is_some();
    if !opens {
        // Published under a new number: the old view may have readers, which continue to see what they can.
        crate::store::StoreManager::amend(&store, &[], &[])?;
        mended
            .done
            .push("the newest view could not be opened and was replaced".into());
    }
    views::publish(repository, &store)
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
