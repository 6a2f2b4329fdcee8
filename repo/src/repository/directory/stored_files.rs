//! Compares the tables and blob files that the store and a view should have with those that are there: by their names, lengths
//! and inodes. Each has hard links of its own, so readers do not miss a file that the store has lost.
//!
//! Reads the lists of files alone, and the content only of files that should be the same and are not. A file that is too short
//! in both places is not reported: the blocks in it can't be read, which a verification reports, and a repair leaves an empty
//! file in the place of a lost one.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::files::{hash_of, is_lost};
use super::views::{View, pool};
use crate::error::{Error, Result};
use crate::store::rocks::manifest::{StoreFile, needed};
use crate::store::rocks::path_in;

/// Difference of a file from what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// There is none.
    Missing,
    /// It has another length.
    Length {
        /// Its length.
        is: u64,
        /// The length that it should have.
        should: u64,
    },
    /// It has other bytes than the view's file of the same name.
    Differs,
}

/// A file that is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Faulty {
    pub(super) file: StoreFile,
    pub(super) fault: Fault,
    /// It is the store's; otherwise the view's.
    pub(super) is_in_store: bool,
    /// The other place has it whole.
    pub(super) is_elsewhere: bool,
}

impl Faulty {
    /// Describes it for people.
    pub(super) fn describe(&self) -> String {
        let (place, other) = match self.is_in_store {
            true => ("store/", "the newest view"),
            false => ("the newest view", "store/"),
        };
        let name = describe(self.file);
        let what = match self.fault {
            Fault::Missing => format!("{name} is missing in {place}"),
            Fault::Length { is, should } => format!("{name} in {place} has {is} bytes instead of {should}"),
            Fault::Differs => {
                return format!("{name} in {place} is not the file that {other} has: one of them is damaged");
            }
        };
        match self.is_elsewhere {
            true => format!("{what}; {other} has it, and `vbk repair` puts it back"),
            false => format!("{what}; {other} does not have it whole either"),
        }
    }
}

/// Names a file for people.
pub(super) fn describe(file: StoreFile) -> String {
    match file {
        StoreFile::Table(_) => format!("table {}", file.name()),
        StoreFile::Blob(_) => format!("blob file {}", file.name()),
    }
}

/// A file as it is: its device, number and length.
type Found = (u64, u64, u64);

/// Returns the files of the store and of a view, which the caller holds or keeps from removal, that are not as they should be.
/// A process may write to the store meanwhile.
pub(super) fn faulty(repository: &Path, view: &View) -> Result<Vec<Faulty>> {
    let (store, files) = (path_in(repository), view.files());
    let stored = needed(&store);
    let shown = match view {
        View::File(..) => view.lengths().unwrap_or_default(),
        // An older vbk made it, and it has no list of its own.
        View::Directory(path) => {
            let there = pool::list(path)?;
            let both = stored.iter().filter(|(file, _)| there.contains_key(file));
            both.map(|(file, length)| (*file, *length)).collect()
        }
    };
    let (mut faulty, mut others, mut has_links) = (Vec::new(), Vec::new(), false);
    let names: BTreeSet<_> = stored.keys().chain(shown.keys()).copied().collect();
    for file in names {
        let in_store = found(&store, file)?;
        let in_view = found(&files, file)?;
        let mut add = |is_in_store, found: Option<Found>, should, is_elsewhere| {
            let fault = match found {
                None => Fault::Missing,
                Some((.., is)) => Fault::Length { is, should },
            };
            faulty.push(Faulty {
                file,
                fault,
                is_in_store,
                is_elsewhere,
            });
        };
        match (stored.get(&file), shown.get(&file)) {
            (Some(&should), Some(_)) => {
                let is_whole = |found: &Option<Found>| found.is_some_and(|(.., is)| is == should);
                match (is_whole(&in_store), is_whole(&in_view)) {
                    (true, true) if in_store == in_view => has_links = true,
                    (true, true) => others.push(file),
                    (false, true) => add(true, in_store, should, true),
                    (true, false) => add(false, in_view, should, true),
                    (false, false) if in_store.is_none() => add(true, in_store, should, false),
                    (false, false) => {}
                }
            }
            (Some(&should), None) if in_store.is_none() => add(true, in_store, should, false),
            (None, Some(&should)) if in_view.is_none() => add(false, in_view, should, false),
            _ => {}
        }
    }
    // A copy of the repository that was made without its links has none at all, and is as good.
    for file in others.into_iter().filter(|_| has_links) {
        let [one, other] = [&store, &files].map(|directory| hash_of(&directory.join(file.name())));
        if one? != other? {
            faulty.push(Faulty {
                file,
                fault: Fault::Differs,
                is_in_store: true,
                is_elsewhere: true,
            });
        }
    }
    if faulty.iter().any(|faulty| faulty.is_in_store) {
        // A file that the store does not need any more goes after it has left the list.
        let still = needed(&store);
        faulty.retain(|faulty| !faulty.is_in_store || still.contains_key(&faulty.file));
    }
    Ok(faulty)
}

fn found(directory: &Path, file: StoreFile) -> Result<Option<Found>> {
    let path = directory.join(file.name());
    match fs::metadata(&path) {
        Ok(found) => Ok(Some((found.dev(), found.ino(), found.len()))),
        Err(error) if is_lost(&error) => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

#[cfg(test)]
mod tests;
