//! Which copies of files are kept as bases of change hints, so that those of guests that are gone are found too. Noted in a
//! directory that outlives a reboot, one file for each disk: its path and that of the copy, each with a zero byte at its
//! end. What is noted is only where to look: a copy is known by its name and what it is.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use vbk_repo::block::Hashing;
use vbk_repo::id::to_hex;

use super::SnapshotError;

/// In the directory that outlives a reboot.
const DIRECTORY: &str = "copies";

/// A copy that is kept.
pub(super) struct Kept {
    /// What it is a copy of.
    pub source: PathBuf,
    pub copy: PathBuf,
}

/// Notes the copy of a file before it gets its name. There is one of each file.
pub(super) fn note(cache: &Path, source: &Path, copy: &Path) -> Result<(), SnapshotError> {
    let directory = cache.join(DIRECTORY);
    let path = directory.join(to_hex(&Hashing::Plain.content(source.as_os_str().as_bytes())));
    let mut bytes = Vec::new();
    for path in [source, copy] {
        bytes.extend(path.as_os_str().as_bytes());
        bytes.push(0);
    }
    let new = path.with_extension("new");
    fs::create_dir_all(&directory)
        .and_then(|()| fs::write(&new, bytes))
        .and_then(|()| fs::rename(&new, &path))
        .map_err(SnapshotError::io("write", path))
}

/// The copies that were noted. A caller takes only those that are still copies.
pub(super) fn all(cache: &Path) -> Vec<Kept> {
    let notes = fs::read_dir(cache.join(DIRECTORY)).into_iter().flatten().flatten();
    let known = notes.filter_map(|note| {
        let bytes = fs::read(note.path()).ok()?;
        let mut paths = bytes
            .split(|byte| *byte == 0)
            .map(|path| PathBuf::from(OsStr::from_bytes(path)));
        let (source, copy) = (paths.next()?, paths.next()?);
        Some(Kept { source, copy })
    });
    known.collect()
}
