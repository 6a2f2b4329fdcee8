//! Hashes of tables and their second copies, which a repair reads before it takes the writer's lock: in a large repository that
//! takes minutes. Tables are never changed, so what was read a moment ago need not be read again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::files;
use crate::error::Result;

/// A file by its device, number, length and time of its last change. The number of a removed file is used again.
type Known = (u64, u64, u64, (i64, i64));

/// The hashes of files that were read. A table that has several names is read once.
#[derive(Debug, Default)]
pub(super) struct Hashes(RefCell<HashMap<Known, Option<String>>>);

impl Hashes {
    /// Returns the hash of a file: see [`files::hash_of`].
    pub(super) fn of(&self, path: &Path) -> Result<Option<String>> {
        let Some(known) = fs::metadata(path).ok().map(|found| {
            let changed = (found.mtime(), found.mtime_nsec());
            (found.dev(), found.ino(), found.len(), changed)
        }) else {
            return files::hash_of(path);
        };
        if let Some(hash) = self.0.borrow().get(&known) {
            return Ok(hash.clone());
        }
        let hash = files::hash_of(path)?;
        self.0.borrow_mut().insert(known, hash.clone());
        Ok(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_once_under_all_its_names_and_again_when_it_is_another() {
        let directory = tempfile::tempdir().expect("a directory");
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        let hashes = Hashes::default();
        assert_eq!(hashes.of(&one).expect("is not there"), None);
        fs::write(&one, "1").expect("writes");
        fs::hard_link(&one, &other).expect("links");
        let hash = hashes.of(&one).expect("reads");
        assert!(hash.is_some() && hash == files::hash_of(&one).expect("reads"));
        assert_eq!(
            (hashes.of(&other).expect("reads"), hashes.0.borrow().len()),
            (hash.clone(), 1)
        );
        fs::remove_file(&one).expect("removes");
        fs::write(&one, "22").expect("writes");
        assert_ne!(hashes.of(&one).expect("reads"), hash);
        fs::remove_file(&one).expect("removes");
        assert_eq!(hashes.of(&one).expect("is gone"), None);
    }
}
