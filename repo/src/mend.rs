//! Puts the store's own files right, before anything is read through them: tables from their second copies, the rest from
//! the newest view, which was the whole store when it was made.
//!
//! Nothing is done to what is as it should be, and each step leaves what a next attempt needs: second copies and views
//! stay until the store opens again. What was put since the newest view belongs to no backup and may be lost.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::spare::{self, Spare};
use crate::store::StoreReader;
use crate::store::rocks::{RocksReader, RocksStore, path_in};
use crate::views;

/// What was found, in words for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mended {
    /// What was wrong and was put right.
    pub done: Vec<String>,
    /// What is wrong and stays so.
    pub left: Vec<String>,
}

/// Compares the tables of a view, which the caller holds, with their second copies. Names what is damaged.
pub fn check_tables(repository: &Path, view: u64) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for spare in spare::list(repository)? {
        let table = views::path_of(repository, view).join(&spare.table);
        // A second copy of a newer view, or one that a newer view has no use for any more.
        if !table.exists() || !spare.path.exists() {
            continue;
        }
        let good = spare::hash_of(&table).as_ref() == Some(&spare.hash);
        let spare_good = spare::hash_of(&spare.path).as_ref() == Some(&spare.hash);
        match (good, spare_good) {
            (true, true) => {}
            (false, true) => found.push(format!("table {} is damaged, its second copy is good", spare.table)),
            (true, false) => found.push(format!("the second copy of table {} is damaged", spare.table)),
            (false, false) => found.push(both_damaged(&spare)),
        }
    }
    Ok(found)
}

fn both_damaged(spare: &Spare) -> String {
    format!("table {} is damaged, and so is its second copy", spare.table)
}

/// Puts right what can be put right. The caller holds the writer's lock.
pub(crate) fn mend(repository: &Path) -> Result<Mended> {
    let mut mended = Mended::default();
    link(repository, &mut mended)?;
    refuse_newer(repository)?;
    // The writer may have gone on since the newest view: tables it has merged away are rightly missing in the store. The
    // view has all that have a second copy.
    let views = views::all(repository)?;
    for spare in spare::list(repository)? {
        table(repository, &views, &spare, &mut mended)?;
    }
    let newest = views::current(repository)?.unwrap_or(0);
    let store = path_in(repository);
    let view = views::path_of(repository, newest);
    let view = spare::check_view(&view).is_ok().then_some(&*view);
    let checked = spare::check_store(&store, view);
    let opened = checked.and_then(|()| RocksStore::open(&store)).and_then(|opened| {
        opened.identity()?;
        opened.generation()
    });
    let why = match opened {
        Ok(generation) if generation >= newest => None,
        Ok(generation) => Some(format!("it is older ({generation}) than the newest view ({newest})")),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::Corrupt | ErrorKind::Unavailable | ErrorKind::NotFound
            ) =>
        {
            Some(error.to_string())
        }
        Err(error) => return Err(error),
    };
    if let Some(why) = why {
        rebuild(repository, &views, &why, &mut mended)?;
    }
    blobs(repository, &views, &mut mended)?;
    newest_view(repository, &mut mended)?;
    Ok(mended)
}

/// An error if a newer vbk made it: what can't be opened here may be as it should be.
fn refuse_newer(repository: &Path) -> Result<()> {
    let newest = views::path_of(repository, views::current(repository)?.unwrap_or(0));
    let opened = spare::check_view(&newest).and_then(|()| RocksReader::open(&newest, None));
    match opened.and_then(|reader| reader.identity()) {
        Ok(identity) => identity.check(repository),
        Err(_) => Ok(()),
    }
}

/// Puts aside what stands in the place of the link to the newest view, as a copy does that was made by a program that knows
/// no links or follows them.
fn link(repository: &Path, mended: &mut Mended) -> Result<()> {
    let link = repository.join("views").join("current");
    if link.symlink_metadata().is_ok_and(|data| !data.is_symlink()) {
        let aside = link.with_extension("damaged");
        if aside.is_dir() {
            remove_tree(&aside)?;
        }
        fs::rename(&link, &aside).map_err(Error::io("rename", &link))?;
        mended.done.push("views/current was no link any more".into());
    }
    Ok(())
}

/// Sees to it that views can be made: RocksDB links every blob file of the store into them, and fails if one is gone. Only
/// the blocks in it are lost, so an empty file in its place is as good.
fn blobs(repository: &Path, views: &[(u64, PathBuf)], mended: &mut Mended) -> Result<()> {
    let store = path_in(repository);
    let Ok(opened) = RocksStore::open(&store) else {
        return Ok(());
    };
    let probe = repository.join("store.probe");
    loop {
        remove_tree(&probe)?;
        remove_tree(&probe.with_extension("probe.tmp"))?;
        let Err(error) = opened.checkpoint(&probe) else {
            return remove_tree(&probe);
        };
        // RocksDB tells the name in its message and nowhere else.
        let text = error.to_string();
        let name = text.split(['/', ':', ' ']).find(|word| word.ends_with(".blob"));
        let Some(name) = name.filter(|name| !store.join(name).exists()) else {
            return Err(error);
        };
        let (place, in_views) = (store.join(name), views.iter().map(|(_, view)| view.join(name)));
        match in_views.rev().find(|path| path.exists()) {
            Some(path) => {
                fs::hard_link(&path, &place).map_err(Error::io("link", &place))?;
                mended.done.push(format!("blob file {name} was missing in store"));
            }
            None => {
                fs::File::create_new(&place).map_err(Error::io("create", &place))?;
                mended.done.push(format!(
                    "blob file {name} is gone with its blocks, which keeps views from being made"
                ));
            }
        }
    }
}

/// Makes every name of a table a link to bytes that are right.
fn table(repository: &Path, views: &[(u64, PathBuf)], spare: &Spare, mended: &mut Mended) -> Result<()> {
    let places: Vec<PathBuf> = std::iter::once(path_in(repository))
        .chain(views.iter().map(|(_, path)| path.clone()))
        .map(|directory| directory.join(&spare.table))
        .collect();
    let newest = views.iter().map(|(_, path)| path.join(&spare.table)).next_back();
    let is_good = |path: &PathBuf| spare::hash_of(path).as_ref() == Some(&spare.hash);
    let good = places.iter().find(|path| is_good(path)).cloned();
    if !is_good(&spare.path) {
        let Some(good) = &good else {
            mended.left.push(both_damaged(spare));
            return Ok(());
        };
        let bytes = fs::read(good).map_err(Error::io("read", good))?;
        spare::write(&spare.path, &bytes)?;
        mended
            .done
            .push(format!("the second copy of table {} was written anew", spare.table));
    }
    // A name that is missing in an older view or in the store may be missing rightly.
    let needed = |path: &PathBuf| path.exists() || Some(path) == newest.as_ref();
    for place in places.iter().filter(|path| needed(path) && !is_good(path)) {
        let draft = place.with_extension("mended");
        let _ = fs::remove_file(&draft);
        match &good {
            Some(good) => fs::hard_link(good, &draft).map_err(Error::io("link", &draft))?,
            None => {
                let bytes = fs::read(&spare.path).map_err(Error::io("read", &spare.path))?;
                spare::write(&draft, &bytes)?;
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

/// Makes the store anew from the newest view that opens.
fn rebuild(repository: &Path, views: &[(u64, PathBuf)], why: &str, mended: &mut Mended) -> Result<()> {
    let opens = |path: &PathBuf| {
        spare::check_view(path)
            .and_then(|()| RocksReader::open(path, None))
            .and_then(|reader| reader.identity())
            .is_ok()
    };
    let Some((number, view)) = views.iter().rev().find(|(_, path)| opens(path)) else {
        mended
            .left
            .push(format!("the store can't be opened ({why}), and no view can"));
        return Ok(());
    };
    let store = path_in(repository);
    let (new, damaged) = (repository.join("store.new"), repository.join("store.damaged"));
    remove_tree(&new)?;
    fs::create_dir(&new).map_err(Error::io("create", &new))?;
    for entry in fs::read_dir(view).map_err(Error::io("list", view))? {
        let from = entry.map_err(Error::io("list", view))?.path();
        let to = new.join(from.file_name().unwrap_or_default());
        // RocksDB never changes tables and blob files; all else is its own in each place.
        match from.extension().and_then(|extension| extension.to_str()) {
            Some("sst" | "blob") => fs::hard_link(&from, &to).map_err(Error::io("link", &to))?,
            _ if spare::is_sums(&from) => {}
            _ => {
                let bytes = fs::read(&from).map_err(Error::io("read", &from))?;
                spare::write(&to, &bytes)?;
            }
        }
    }
    spare::sync_directory(&new)?;
    // A crash between the renames leaves no store, and the next repair begins here again.
    if store.exists() {
        remove_tree(&damaged)?;
        fs::rename(&store, &damaged).map_err(Error::io("rename", &store))?;
    }
    fs::rename(&new, &store).map_err(Error::io("rename", &new))?;
    spare::sync_directory(repository)?;
    match RocksStore::open(&store) {
        Ok(_) => {
            remove_tree(&damaged)?;
            mended.done.push(format!(
                "the store could not be opened ({why}) and was made anew from view {number}"
            ));
        }
        Err(error) => mended.left.push(format!("the store can't be opened: {error}")),
    }
    Ok(())
}

/// Makes sure that readers can open the newest view.
fn newest_view(repository: &Path, mended: &mut Mended) -> Result<()> {
    let Ok(store) = RocksStore::open(&path_in(repository)) else {
        return Ok(());
    };
    let number = views::current(repository)?.unwrap_or(0);
    let checked = spare::check_view(&views::path_of(repository, number));
    let current = checked.and_then(|()| views::open(repository));
    let opens = matches!(&current, Ok(Some(held)) if held.reader.identity().is_ok());
    drop(current);
    if !opens {
        // Under a new number: the old one may have readers, who see what they can.
        crate::store::BlockStore::amend(&store, &[], &[])?;
        mended
            .done
            .push("the newest view could not be opened and was made anew".into());
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
