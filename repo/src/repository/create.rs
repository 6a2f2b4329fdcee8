//! Makes the files of a new repository.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::{CreateOptions, LAYOUT_FORMAT, MARKER};
use crate::block::Hashing;
use crate::error::{Error, Result};
use crate::id::to_hex;
use crate::keys::{self, Keys, PassphraseCost};
use crate::lock::{Told, WriterLock};
use crate::spare;
use crate::store::encrypted::Encrypted;
use crate::store::rocks::{RocksStore, path_in};
use crate::store::{BlockStore, ENCRYPTION, Identity, STORE_FORMAT};
use crate::views;

/// Its making is the claim on the directory.
const VIEWS: &str = "views";

/// Fills the directory, which is made if need be, and gives its real path. When it fails nothing is left of what it made,
/// and what somebody else made meanwhile is left alone.
pub(super) fn make(path: &Path, options: &CreateOptions) -> Result<PathBuf> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    let is_new = match fs::create_dir(path) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
        Err(error) => return Err(Error::io("create", path)(error)),
    };
    // Links that will be compared and kept must not depend on where the process stands.
    let path = fs::canonicalize(path).map_err(Error::io("open", path))?;
    let result = claim(&path).and_then(|()| fill(&path, options).inspect_err(|_| undo_fill(&path)));
    if result.is_err() && is_new {
        // Fails, as it should, if somebody else's files are in it.
        let _ = fs::remove_dir(&path);
    }
    result.map(|()| path)
}

/// Makes what only one process can make: of several at once the others stop here, and have nothing to undo.
fn claim(path: &Path) -> Result<()> {
    restrict(path)?;
    let views = path.join(VIEWS);
    fs::create_dir(&views).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Error::NotEmpty { path: path.to_owned() },
        _ => Error::io("create", &views)(error),
    })
}

fn fill(path: &Path, options: &CreateOptions) -> Result<()> {
    check_hard_links(path)?;
    let now = Timestamp::now();
    let seed = format!("{now} {} {}", path.display(), std::process::id());
    let keys = options.encryption.as_ref().map(|(keys, _)| keys);
    if let Some((keys, slots)) = &options.encryption {
        for (name, unlock) in slots {
            keys::add(path, name, keys, unlock, PassphraseCost::default())?;
        }
    }
    let identity = Identity {
        format: STORE_FORMAT,
        features: keys.map(|_| ENCRYPTION.to_owned()).into_iter().collect(),
        id: to_hex(&Hashing::Plain.content(seed.as_bytes())[..8]),
        block_size: options.block_size,
        created: now,
        key_check: keys.map(Keys::check),
    };
    let lock = WriterLock::take(path, "init", Told::Word, &mut |_| false)?;
    let store = RocksStore::create(&path_in(path), &identity)?;
    let store = Arc::new(store);
    if let Some(keys) = keys {
        Encrypted::new(Arc::clone(&store), keys).accept()?;
    }
    views::publish(path, &store)?;
    drop(store);
    write_marker(path, identity.key_check.as_deref())?;
    drop(lock);
    Ok(())
}

/// Removes what a failed `fill` made; what can't be removed is named by the next attempt. The claim goes last: until then
/// nobody else makes files that this could take for its own.
fn undo_fill(path: &Path) {
    for name in ["lock", "ballast", "vbk-repository.new", MARKER] {
        let _ = fs::remove_file(path.join(name));
    }
    for name in ["store", "spare", "keys", VIEWS] {
        let _ = fs::remove_dir_all(path.join(name));
    }
}

/// Only its owner may enter: what is in it are other people's disks.
fn restrict(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(Error::io("set permissions of", path))
}

fn check_hard_links(path: &Path) -> Result<()> {
    let (one, two) = (path.join("lock"), path.join(".hard-link-probe"));
    fs::File::create(&one).map_err(Error::io("create", &one))?;
    fs::hard_link(&one, &two).map_err(Error::io(
        "make a hard link (a repository needs a file system with them)",
        &two,
    ))?;
    fs::remove_file(&two).map_err(Error::io("remove", &two))
}

/// Also takes the place of a damaged one.
pub(super) fn write_marker(path: &Path, key_check: Option<&str>) -> Result<()> {
    let marker = path.join(MARKER);
    let encryption = key_check.map_or(String::new(), |check| format!("encryption: aes-256-gcm {check}\n"));
    let text = format!(
        "This directory is a repository of vbk, with backups of virtual servers.\n\
         `vbk list --repo DIRECTORY` shows what is in it. Change nothing here by hand.\n\
         format: {LAYOUT_FORMAT}\n{encryption}"
    );
    spare::write(&marker, text.as_bytes())?;
    spare::sync_directory(path)
}
