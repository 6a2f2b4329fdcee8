//! Files that are written whole: a reader finds the old content or the new content, never a part of it.
//!
//! # Crashes
//!
//! [`write_whole`] takes these steps. [`Synced`] decides which of them a power cut respects; a killed process loses
//! nothing that it wrote.
//!
//! 1. The draft that a crash left is removed, and a new one is created exclusively. So nothing is ever written through a
//!    link or into a pipe that another user put there. A crash leaves the old file.
//! 2. The bytes are written to the draft. A crash leaves the old file and a part of the draft, which the next write
//!    removes.
//! 3. The draft is synced ([`Synced::File`]). Without it the file system may store the rename before the bytes, and a
//!    power cut then leaves an empty or incomplete file.
//! 4. The draft is renamed to the file. A crash of the process leaves the new file, a power cut the old or the new one.
//! 5. The directory is synced ([`Synced::FileAndDirectory`]). A power cut leaves the new file.
//!
//! # Errors
//!
//! Until the rename, an error leaves the old file and no draft. If the sync of the directory fails, the new file has its
//! name, and a power cut may bring the old one back. Errors are those of the system; the caller adds the path.
//!
//! # Two writers
//!
//! Two writers of one file must not use one draft at the same time: one would rename what the other has not finished.
//! They take turns under a lock, or each has its own draft ([`write_by_draft`]).

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Result, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Extension of a draft, unless the caller names the draft.
pub const DRAFT: &str = "new";

/// Permissions of a new file. An old file's permissions and owner are not taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 0600: only the owner reads it.
    Private,
    /// 0666 without the bits of the umask.
    Umask,
    /// 0644 with any umask, for a file that programs of other users read.
    Public,
}

/// Extent of the durability that a writer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synced {
    /// Nothing. Only for a file that no process reads after a power cut.
    Nothing,
    /// The file's bytes, before the file has its name. A power cut leaves the old file or the new one, until the caller
    /// syncs the directory ([`sync_directory`]).
    File,
    /// The file and its name. A file system that can't sync directories counts as synced, see
    /// [`sync_directory_where_possible`].
    FileAndDirectory,
}

/// Writes a file whole, by way of the draft `PATH.new`. Replaces an old file.
pub fn write_whole(path: &Path, bytes: &[u8], mode: Mode, synced: Synced) -> Result<()> {
    write_by_draft(path, &draft_of(path), bytes, mode, synced)
}

/// Writes a file whole like [`write_whole`], by way of a draft with a name of the caller's choice. It must be in the same
/// directory.
pub fn write_by_draft(path: &Path, draft: &Path, bytes: &[u8], mode: Mode, synced: Synced) -> Result<()> {
    replace(path, draft, mode, synced, &|file| file.write_all(bytes))
}

/// Creates a file, which must not exist yet. If an error occurs, the file is removed again. A crash may leave a part of
/// the file: use this where an existing file must never be replaced.
pub fn create(path: &Path, bytes: &[u8], mode: Mode, synced: Synced) -> Result<()> {
    fill_new(path, mode, synced, &|file| file.write_all(bytes))
}

/// Removes a file, which may be gone.
pub fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes the names in a directory durable: new, renamed and removed ones. Fails with [`ErrorKind::InvalidInput`] if its
/// file system can't sync directories (fsync(2)).
pub fn sync_directory(path: &Path) -> Result<()> {
    File::open(path)?.sync_all()
}

/// Makes the names in a directory durable, as [`sync_directory`]. A file system that can't sync directories is no error:
/// it has no better way to offer.
pub fn sync_directory_where_possible(path: &Path) -> Result<()> {
    match sync_directory(path) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

fn draft_of(path: &Path) -> PathBuf {
    let mut draft = OsString::from(path);
    draft.push(".");
    draft.push(DRAFT);
    draft.into()
}

fn parent_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Content of a new file.
type Fill<'a> = &'a dyn Fn(&mut File) -> Result<()>;

fn replace(path: &Path, draft: &Path, mode: Mode, synced: Synced, fill: Fill<'_>) -> Result<()> {
    remove_if_there(draft)?;
    // The name of the draft need not be durable, only that of the file.
    let of_draft = match synced {
        Synced::Nothing => Synced::Nothing,
        Synced::File | Synced::FileAndDirectory => Synced::File,
    };
    fill_new(draft, mode, of_draft, fill)?;
    fs::rename(draft, path).inspect_err(|_| remove(draft))?;
    match synced {
        Synced::Nothing | Synced::File => Ok(()),
        Synced::FileAndDirectory => sync_directory_where_possible(parent_of(path)),
    }
}

fn fill_new(path: &Path, mode: Mode, synced: Synced, fill: Fill<'_>) -> Result<()> {
    let bits = match mode {
        Mode::Private => 0o600,
        Mode::Umask => 0o666,
        Mode::Public => 0o644,
    };
    let mut file = File::options().write(true).create_new(true).mode(bits).open(path)?;
    let mut finish = || {
        if mode == Mode::Public {
            file.set_permissions(fs::Permissions::from_mode(bits))?;
        }
        fill(&mut file)?;
        match synced {
            Synced::Nothing => Ok(()),
            Synced::File => file.sync_all(),
            Synced::FileAndDirectory => {
                file.sync_all()?;
                sync_directory_where_possible(parent_of(path))
            }
        }
    };
    finish().inspect_err(|_| remove(path))
}

/// Removes an unfinished file. The caller reports the error that came before.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!("can't remove {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::fs::symlink;

    use super::*;

    const LEVELS: [Synced; 3] = [Synced::Nothing, Synced::File, Synced::FileAndDirectory];

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("lists");
        let names = entries.map(|entry| entry.expect("lists").file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).expect("exists").permissions().mode() & 0o777
    }

    #[test]
    fn a_write_replaces_the_content_and_leaves_no_draft() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.json");
        for synced in LEVELS {
            for bytes in [&b"a longer text"[..], b"short", b""] {
                write_whole(&path, bytes, Mode::Umask, synced).expect("writes");
                assert_eq!(fs::read(&path).expect("reads"), bytes);
                assert_eq!(names(dir.path()), ["a.json"]);
            }
        }
    }

    #[test]
    fn the_mode_is_that_of_the_call_and_not_that_of_the_old_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, plain) = (dir.path().join("a"), dir.path().join("plain"));
        File::create(&plain).expect("creates");
        for (mode, bits) in [
            (Mode::Public, 0o644),
            (Mode::Private, 0o600),
            (Mode::Umask, mode_of(&plain)),
        ] {
            write_whole(&path, b"x", mode, Synced::Nothing).expect("writes");
            assert_eq!(mode_of(&path), bits, "{mode:?}");
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_draft() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a");
        fs::write(&path, "old").expect("writes");
        for synced in LEVELS {
            let full = |file: &mut File| {
                file.write_all(b"ne")?;
                Err(io::Error::from(ErrorKind::StorageFull))
            };
            let error = replace(&path, &draft_of(&path), Mode::Private, synced, &full).expect_err("fails");
            assert_eq!(error.kind(), ErrorKind::StorageFull);
            assert_eq!(fs::read(&path).expect("reads"), b"old");
            assert_eq!(names(dir.path()), ["a"]);
        }
    }

    #[test]
    fn a_failed_rename_leaves_no_draft() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a");
        fs::create_dir_all(path.join("below")).expect("creates");
        write_whole(&path, b"new", Mode::Umask, Synced::File).expect_err("is a directory");
        assert_eq!(names(dir.path()), ["a"]);
        assert!(path.join("below").is_dir());
    }

    #[test]
    fn the_draft_of_a_crash_is_replaced_and_never_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, draft, victim) = (
            dir.path().join("a.json"),
            dir.path().join("a.json.new"),
            dir.path().join("v"),
        );
        fs::write(&victim, "precious").expect("writes");
        fs::write(&draft, "a part of something longer").expect("writes");
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o666)).expect("sets");
        write_whole(&path, b"one", Mode::Private, Synced::File).expect("writes");
        assert_eq!(
            (fs::read(&path).expect("reads").as_slice(), mode_of(&path)),
            (&b"one"[..], 0o600)
        );
        symlink(&victim, &draft).expect("links");
        write_whole(&path, b"two", Mode::Private, Synced::File).expect("writes");
        fs::hard_link(&victim, &draft).expect("links");
        write_whole(&path, b"two", Mode::Private, Synced::File).expect("writes");
        assert_eq!(fs::read(&path).expect("reads"), b"two");
        assert_eq!(fs::read(&victim).expect("reads"), b"precious");
        assert_eq!(names(dir.path()), ["a.json", "v"]);
    }

    #[test]
    fn a_named_draft_is_used_instead_of_the_usual_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, own, usual) = (dir.path().join("a"), dir.path().join(".own"), dir.path().join("a.new"));
        fs::write(&own, "left").expect("writes");
        fs::write(&usual, "of another writer").expect("writes");
        write_by_draft(&path, &own, b"x", Mode::Umask, Synced::FileAndDirectory).expect("writes");
        assert_eq!(names(dir.path()), ["a", "a.new"]);
    }

    #[test]
    fn an_existing_file_is_never_created_again_and_a_failed_one_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a");
        for synced in LEVELS {
            create(&path, b"one", Mode::Private, synced).expect("creates");
            let error = create(&path, b"two", Mode::Private, synced).expect_err("exists");
            assert_eq!(error.kind(), ErrorKind::AlreadyExists);
            assert_eq!(fs::read(&path).expect("reads"), b"one");
            fs::remove_file(&path).expect("removes");
            let full = |_: &mut File| Err(io::Error::from(ErrorKind::StorageFull));
            fill_new(&path, Mode::Private, synced, &full).expect_err("fails");
            assert!(names(dir.path()).is_empty());
        }
    }

    #[test]
    fn the_directory_of_a_bare_name_is_the_current_one() {
        assert_eq!(parent_of(Path::new("a")), Path::new("."));
        assert_eq!(parent_of(Path::new("/a")), Path::new("/"));
        assert_eq!(parent_of(Path::new("b/a")), Path::new("b"));
    }

    #[test]
    fn a_directory_that_does_not_exist_is_not_synced() {
        let dir = tempfile::tempdir().expect("a directory");
        sync_directory(dir.path()).expect("syncs");
        let error = sync_directory_where_possible(&dir.path().join("no")).expect_err("does not exist");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
