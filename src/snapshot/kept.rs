//! Notes of the copies of files that are kept as bases of change hints, so that those of guests that are gone are found
//! too. They lie in a directory that outlives a reboot, one file for each disk: its path and that of the copy, each
//! with a zero byte at its end. A note only says where to look: a copy is recognized by its name and owner.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use vbk_repo::block::Hashing;
use vbk_repo::files::{self, Mode, Synced};
use vbk_repo::id::to_hex;

use super::SnapshotError;

/// In the directory that outlives a reboot.
const DIRECTORY: &str = "copies";

/// A copy that is kept.
pub(super) struct Kept {
    /// The file that it is a copy of.
    pub source: PathBuf,
    pub copy: PathBuf,
}

/// Notes the copy of a file before it gets its name. There is one of each file. The note is on disk when this returns.
///
/// A crash leaves:
///
/// 1. Before the rename: the note of the copy before, or none, and perhaps a file `.new`, which [`all`] ignores and the
///    next note of this file replaces. The note's bytes are synced first, so that the rename never puts an empty file
///    in its place.
/// 2. After the rename, before the directory is synced: either note. The copy still has its run's name then, by which
///    the next run of its disk finds it.
/// 3. After that: the note. Only now the caller gives the copy its name: a file system may write that rename before one
///    in another directory, and a kept copy without a note would stay for ever once its guest is gone.
pub(super) fn note(cache: &Path, source: &Path, copy: &Path) -> Result<(), SnapshotError> {
    let directory = cache.join(DIRECTORY);
    let path = directory.join(to_hex(&Hashing::Plain.content(source.as_os_str().as_bytes())));
    let mut bytes = Vec::new();
    for path in [source, copy] {
        bytes.extend(path.as_os_str().as_bytes());
        bytes.push(0);
    }
    write_durably(&directory, &path, &bytes).map_err(SnapshotError::io("write", path))
}

fn write_durably(directory: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let before = directory.ancestors().find(|ancestor| ancestor.exists());
    fs::create_dir_all(directory)?;
    files::write_whole(path, bytes, Mode::Umask, Synced::File)?;
    // The directory, and those above it as far as they are new: each holds the entry of the next.
    for changed in directory.ancestors() {
        files::sync_directory(changed)?;
        if Some(changed) == before {
            break;
        }
    }
    Ok(())
}

/// The copies that were noted. A caller takes only those that are still copies.
pub(super) fn all(cache: &Path) -> Vec<Kept> {
    let notes = fs::read_dir(cache.join(DIRECTORY)).into_iter().flatten().flatten();
    let known = notes.filter_map(|note| {
        let path = note.path();
        if path.extension().is_some_and(|extension| extension == files::DRAFT) {
            return None;
        }
        let bytes = fs::read(path).ok()?;
        let mut paths = bytes
            .split(|byte| *byte == 0)
            .map(|path| PathBuf::from(OsStr::from_bytes(path)));
        let (source, copy) = (paths.next()?, paths.next()?);
        Some(Kept { source, copy })
    });
    known.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_note_replaces_the_old_and_a_torn_note_is_ignored() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = dir.path().join("cache/vbk");
        let source = Path::new("/srv/a.img");
        for copy in ["/srv/.vbk-base-1-a.img", "/srv/.vbk-base-2-a.img"] {
            note(&cache, source, Path::new(copy)).expect("notes");
        }
        let notes = cache.join(DIRECTORY);
        let name = fs::read_dir(&notes).expect("lists").next().expect("one").expect("one");
        fs::write(name.path().with_extension(files::DRAFT), "/srv/a").expect("writes");
        let all = all(&cache);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].source, source);
        assert_eq!(all[0].copy, Path::new("/srv/.vbk-base-2-a.img"));
    }
}
