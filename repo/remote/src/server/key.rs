//! The key of a server that is reached over TLS, in `DIR/serve/key` (0600). Every token names its fingerprint, so the key stays
//! the same for as long as the repository is served.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use vbk_repo::files::{self, Mode, Synced};
use vbk_repo::{Error, Result};

use crate::peer::Seed;

/// Directory below that of a repository with all that belongs to its server.
pub(super) const SERVE: &str = "serve";

/// Returns the key of the server of a repository, or of all repositories below a directory. Makes it if there is none yet.
pub fn load_or_make(directory: &Path) -> Result<Seed> {
    let path = directory.join(SERVE).join("key");
    if let Some(seed) = read(&path)? {
        return Ok(seed);
    }
    make_directory(directory)?;
    let seed = Seed::generate().map_err(Error::io("make", &path))?;
    let text = format!("{}\n", *seed.text());
    match create(&path, text.as_bytes()) {
        // Another process was faster; its key is the one that counts.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => return made.map(|()| seed).map_err(Error::io("make", &path)),
    }
    read(&path)?.ok_or_else(|| Error::io("read", &path)(ErrorKind::NotFound.into()))
}

fn read(path: &Path) -> Result<Option<Seed>> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        metadata => metadata.map_err(Error::io("read", path))?,
    };
    let refused = |what: &str| Error::io("use", path)(io::Error::new(ErrorKind::InvalidData, what));
    if metadata.mode() & 0o077 != 0 {
        return Err(refused(
            "other users can read the key of the server; `chmod 600` it. Make it and all tokens anew if somebody may have read it",
        ));
    }
    let text = zeroize::Zeroizing::new(fs::read_to_string(path).map_err(Error::io("read", path))?);
    let seed = Seed::parse(text.trim()).ok_or_else(|| {
        refused("it is no key; restore it from a copy, or remove it and make all tokens anew, because they name its fingerprint")
    })?;
    Ok(Some(seed))
}

/// Makes `DIR/serve` with the given directories below it. Fails for another user than the directory's owner: the server could
/// not read what is in it.
pub(super) fn make_directory(directory: &Path) -> Result<PathBuf> {
    let serve = directory.join(SERVE);
    let owner = fs::metadata(directory).map_err(Error::io("open", directory))?.uid();
    if owner != geteuid().as_raw() {
        let why = format!("it belongs to user {owner}; run this command as that user, e.g. with `sudo -u '#{owner}'`");
        return Err(Error::io("write to", directory)(io::Error::new(
            ErrorKind::PermissionDenied,
            why,
        )));
    }
    match DirBuilder::new().mode(0o700).create(&serve) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => {
            made.map_err(Error::io("make", &serve))?;
            files::sync_directory_where_possible(directory).map_err(Error::io("sync", directory))?;
        }
    }
    Ok(serve)
}

/// Creates a private file whole and durable; fails if there is one of that name.
///
/// 1. A draft with the process's own name is written and synced. A crash leaves it, and no other code reads it.
/// 2. It gets a second name by link(2), which fails if that exists. A crash leaves the file, with the draft as a second name.
/// 3. The draft's name is removed and the directory synced.
pub(super) fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension(format!("{}.{}", std::process::id(), files::DRAFT));
    files::write_by_draft(
        &draft,
        &draft.with_extension("part"),
        bytes,
        Mode::Private,
        Synced::File,
    )?;
    let linked = fs::hard_link(&draft, path);
    fs::remove_file(&draft)?;
    linked?;
    files::sync_directory_where_possible(path.parent().unwrap_or(Path::new(".")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_server_keeps_its_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = load_or_make(dir.path()).expect("makes");
        assert_eq!(load_or_make(dir.path()).expect("reads"), key);
        let path = dir.path().join("serve/key");
        assert_eq!(fs::metadata(&path).expect("is there").mode() & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(dir.path().join("serve")).expect("lists").count(),
            1,
            "a draft is left"
        );

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("changes");
        assert!(
            load_or_make(dir.path())
                .expect_err("others read it")
                .to_string()
                .contains("chmod 600")
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changes");
        fs::write(&path, "x").expect("writes");
        assert!(
            load_or_make(dir.path()).is_err(),
            "no new key in place of a damaged one"
        );
    }

    #[test]
    fn two_servers_that_start_at_once_have_one_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        create(&path, b"one").expect("creates");
        let second = create(&path, b"other").expect_err("there is one");
        assert_eq!(second.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).expect("reads"), b"one");
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1, "a draft is left");
    }
}
