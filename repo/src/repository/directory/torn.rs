//! Removes files that a killed writer left in the store's directory and that RocksDB would never remove.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::repository::directory::views::{self, pool};
use crate::store::rocks::manifest::{Manifest, StoreFile};
use crate::store::rocks::{RocksStore, path_in};

/// Returns the files of the store that a killed writer may have left torn: RocksDB writes blob files under their final
/// names and, after a crash, neither uses nor removes one that is incomplete.
pub(super) fn suspected(repository: &Path) -> Result<Vec<(StoreFile, PathBuf)>> {
    let Ok(entries) = fs::read_dir(path_in(repository)) else {
        // Opening the store will report the cause.
        return Ok(Vec::new());
    };
    let view = match views::current(repository)? {
        Some(number) => views::find(repository, number).ok().flatten(),
        None => None,
    };
    let complete = view
        .map(|view| pool::list(&view.files()))
        .transpose()?
        .unwrap_or_default();
    let mut suspected = Vec::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.extension().is_some_and(|extension| extension == "dbtmp") {
            // A draft of RocksDB's own options.
            let _ = fs::remove_file(&path);
        } else if let Some(file @ StoreFile::Blob(_)) = StoreFile::of_name(path.file_name().unwrap_or_default())
            && !complete.contains_key(&file)
        {
            suspected.push((file, path));
        }
    }
    Ok(suspected)
}

/// Removes suspected files that the opened store does not use. A file that can't be removed now takes space until the
/// next writer starts.
pub(super) fn remove(repository: &Path, store: &RocksStore, suspected: &[(StoreFile, PathBuf)]) {
    // What RocksDB adds to its list meanwhile is new. The numbers of its files show that the list was understood.
    let used = match (Manifest::open(&path_in(repository)), store.counts()) {
        (Ok(used), Ok(counts)) if used.counts() == counts => used,
        (used, _) => return tracing::debug!(error = ?used.err(), "what a killed run left stays for now"),
    };
    for (_, path) in suspected.iter().filter(|(file, _)| !used.has(*file)) {
        tracing::debug!("removing {}, which a killed run left", path.display());
        let _ = fs::remove_file(path);
    }
}
