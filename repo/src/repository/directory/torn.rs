//! Removes files that a killed writer left in the store's directory and that RocksDB would never remove.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::repository::directory::views;
use crate::store::rocks::{RocksStore, is_blob_file, path_in};

/// Returns the files of the store that a killed writer may have left torn: RocksDB writes blob files under their final
/// names and, after a crash, neither uses nor removes one that is incomplete.
pub(super) fn suspected(repository: &Path) -> Result<Vec<PathBuf>> {
    let view = views::current(repository)?.map(|number| views::path_of(repository, number));
    let Ok(entries) = fs::read_dir(path_in(repository)) else {
        // Opening the store will report the cause.
        return Ok(Vec::new());
    };
    let mut suspected = Vec::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default();
        if path.extension().is_some_and(|extension| extension == "dbtmp") {
            // A draft of RocksDB's own options.
            let _ = fs::remove_file(&path);
        } else if is_blob_file(name) && !view.as_ref().is_some_and(|view| view.join(name).exists()) {
            suspected.push(path);
        }
    }
    Ok(suspected)
}

/// Removes suspected files that the opened store does not use. A file that can't be removed now takes space until the
/// next writer starts.
pub(super) fn remove(repository: &Path, store: &RocksStore, suspected: &[PathBuf]) {
    let used = match store.blob_files(&views::scratch(repository)) {
        Ok(used) => used,
        Err(error) => return tracing::debug!(%error, "what a killed run left stays for now"),
    };
    let torn = |path: &&PathBuf| !path.file_name().is_some_and(|name| used.contains(name));
    for path in suspected.iter().filter(torn) {
        tracing::debug!("removing {}, which a killed run left", path.display());
        let _ = fs::remove_file(path);
    }
}
