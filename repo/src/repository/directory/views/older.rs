//! Views of an older vbk: a directory with a link to each file of the store, copies of RocksDB's small files, and `sums`,
//! which has a line for each of these copies, 16 digits of its hash and its name.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::repository::directory::files::{content, hash_of, is_there, write};

const SUMS: &str = "sums";

/// Fails if a small file of a view differs from what it was when the view was made. A view without sums was made by a
/// run that was killed before it wrote them.
pub(super) fn check(view: &Path) -> Result<()> {
    let damaged = |path: &Path| Error::FileDamaged { path: path.to_owned() };
    let sums = view.join(SUMS);
    if !is_there(&sums)? {
        return Ok(());
    }
    let bytes = content(&sums)?.ok_or_else(|| damaged(&sums))?;
    let text = String::from_utf8_lossy(&bytes);
    for line in text.lines() {
        let file = line.split_once(' ').map(|(hash, name)| (hash, view.join(name)));
        let Some((hash, path)) = file else {
            return Err(damaged(&sums));
        };
        if hash_of(&path)?.as_deref() != Some(hash) {
            return Err(damaged(&path));
        }
    }
    // A truncated list would check fewer files; RocksDB's CURRENT and MANIFEST always exist.
    match text.ends_with('\n') && text.contains(" CURRENT\n") && text.contains(" MANIFEST-") {
        true => Ok(()),
        false => Err(damaged(&sums)),
    }
}

/// Copies all files but tables and blob files.
pub(super) fn copy_small(view: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(view).map_err(Error::io("list", view))? {
        let from = entry.map_err(Error::io("list", view))?.path();
        let name = from.file_name().unwrap_or_default();
        let is_large = crate::store::rocks::manifest::StoreFile::of_name(name).is_some();
        if !is_large && name != SUMS {
            let bytes = fs::read(&from).map_err(Error::io("read", &from))?;
            write(&to.join(name), &bytes)?;
        }
    }
    Ok(())
}
