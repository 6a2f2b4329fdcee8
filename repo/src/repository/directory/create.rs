//! Creates the files of a new repository.
//!
//! The caller shows the recovery key once, when `make` has returned, so a power cut after that must not lose the
//! repository. What is on disk after each step:
//!
//! 1. The missing parent directories, if the caller asked for them: each is synced in its own parent.
//! 2. The directory, synced in its parent, even if it existed before: it may have been created a moment ago. A crash up
//!    to here leaves empty directories.
//! 3. The key slots, each complete and synced (`keys.rs`); then the store, the first view and the link that names it,
//!    synced by RocksDB and `views.rs`. A crash leaves a directory that no command takes for a repository, since it has
//!    no marker, and in which none can be created, since it is not empty.
//! 4. The marker, complete and synced under another name, then renamed, and the directory synced, which also makes all
//!    names of step 3 durable.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::marker::{MARKER, write_marker};
use crate::block::BlockSize;
use crate::cipher::random;
use crate::error::{Error, Result};
use crate::id::to_hex;
use crate::keys::{self, Keys, PassphraseCost, SlotFile, Unlock};
use crate::repository::CreateOptions;
use crate::repository::directory::files;
use crate::repository::directory::lock::{Told, WriterLock};
use crate::repository::directory::views;
use crate::store::encrypted::Encrypted;
use crate::store::memory::MemoryStore;
use crate::store::rocks::{RocksStore, path_in};
use crate::store::{Identity, Note, STORE_FORMAT, StoreManager, StoreReader};

/// Options for making a repository, of which nothing opens it: they may travel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedOptions {
    /// Size of the blocks.
    pub block_size: BlockSize,
    /// [`Identity::features`], as which the keys sealed what is here.
    pub features: Vec<String>,
    /// Makes the directories above it too, where they are missing.
    pub parents: bool,
    /// For an encrypted one.
    pub encryption: Option<SealedKeys>,
}

/// Parts of an encrypted repository that only a holder of its key can make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedKeys {
    /// [`Keys::check`].
    pub check: String,
    /// Names and files of the slots that open it.
    pub slots: Vec<(String, Vec<u8>)>,
    /// The notes that prove that nothing is in it yet, sealed.
    pub notes: Vec<(String, Vec<u8>)>,
}

impl CreateOptions {
    /// The same without the keys.
    pub fn sealed(&self) -> Result<SealedOptions> {
        let features = Identity::features_of_new(self.encryption.is_some());
        let seal = |(keys, slots): &(Keys, Vec<(String, Unlock)>)| {
            let slot = |(name, unlock): &(String, Unlock)| {
                let file = keys::seal(name, keys, unlock, PassphraseCost::default())?;
                Ok((file.name, file.bytes))
            };
            let identity = Identity {
                format: STORE_FORMAT,
                features: features.clone(),
                id: String::new(),
                block_size: self.block_size,
                created: Timestamp::now(),
                key_check: Some(keys.check()),
            };
            let empty = Arc::new(MemoryStore::with_identity(identity.clone()));
            Encrypted::new(Arc::clone(&empty), keys, &identity).accept()?;
            let notes = empty.notes()?.into_iter();
            Ok::<_, Error>(SealedKeys {
                check: keys.check(),
                slots: slots.iter().map(slot).collect::<Result<_>>()?,
                notes: notes.map(|note| (note.name, note.value.unwrap_or_default())).collect(),
            })
        };
        Ok(SealedOptions {
            block_size: self.block_size,
            parents: self.parents,
            encryption: self.encryption.as_ref().map(seal).transpose()?,
            features,
        })
    }
}

/// Directory whose creation claims the repository's directory for this process.
const VIEWS: &str = "views";

/// Fills the directory, creating it if it does not exist, and returns its real path and the repository's id. On failure
/// it removes everything that it created, and leaves alone what another process created meanwhile.
pub(in crate::repository) fn make(path: &Path, options: &SealedOptions) -> Result<(PathBuf, String)> {
    let path = std::path::absolute(path).map_err(Error::io("open", path))?;
    let parent = path.parent().unwrap_or(&path);
    if options.parents {
        make_durably(parent)?;
    }
    let is_new = match fs::create_dir(&path) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
        Err(error) if error.kind() == ErrorKind::NotFound && !parent.exists() => {
            return Err(Error::NoParent {
                parent: parent.to_owned(),
            });
        }
        Err(error) => return Err(Error::io("create", path)(error)),
    };
    // Paths are compared and stored later, so they must not depend on this process's current directory or on links.
    let path = fs::canonicalize(&path).map_err(Error::io("open", path))?;
    let parent = path.parent().unwrap_or(&path);
    let result = sync_parent(parent)
        .and_then(|()| claim(&path))
        .and_then(|()| fill(&path, options).inspect_err(|_| undo_fill(&path)));
    if result.is_err() && is_new {
        // Fails if another process has created files in it, and must fail then.
        let _ = fs::remove_dir(&path);
    }
    result.map(|id| (path, id))
}

/// Creates a directory and its missing parents, from the top down, each synced in its parent.
fn make_durably(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(path);
    if parent != path {
        make_durably(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made.map_err(Error::io("create", path))?,
    }
    sync_parent(parent)
}

/// Makes a new name in a directory durable.
fn sync_parent(parent: &Path) -> Result<()> {
    match files::sync_directory(parent) {
        // A directory with search but no read permission can't be opened for a sync. EINVAL: its file system can't sync
        // directories (fsync(2)).
        Err(Error::Io { source, .. })
            if matches!(source.kind(), ErrorKind::PermissionDenied | ErrorKind::InvalidInput) =>
        {
            tracing::warn!(
                "can't sync {} ({source}): a power cut in the next seconds may lose the new repository; run sync(1) to \
                 save it",
                parent.display()
            );
            Ok(())
        }
        synced => synced,
    }
}

/// Creates the directory that only one process can create. Of several processes at once the others fail here, with
/// nothing to undo.
fn claim(path: &Path) -> Result<()> {
    restrict(path)?;
    let views = path.join(VIEWS);
    fs::create_dir(&views).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Error::NotEmpty { path: path.to_owned() },
        _ => Error::io("create", &views)(error),
    })
}

/// Fills the directory, and returns the repository's id.
fn fill(path: &Path, options: &SealedOptions) -> Result<String> {
    check_hard_links(path)?;
    let keys = options.encryption.as_ref();
    let features = Identity::features_of_new(keys.is_some());
    if options.features != features {
        return Err(Error::Remote {
            kind: crate::ErrorKind::Unsupported,
            message: "the client's vbk makes repositories of another kind; use the same vbk on both".to_owned(),
        });
    }
    if let Some(SealedKeys { check, slots, .. }) = keys {
        // It gets into the marker, a text.
        if check.len() != 16 || !check.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Error::BadKey {
                what: "the check value of the key is not one".to_owned(),
            });
        }
        for (name, bytes) in slots {
            let (name, bytes) = (name.clone(), bytes.clone());
            keys::add_file(path, &SlotFile { name, bytes })?;
        }
    }
    let identity = Identity {
        format: STORE_FORMAT,
        features,
        id: to_hex(&random::<8>()?),
        block_size: options.block_size,
        created: Timestamp::now(),
        key_check: keys.map(|keys| keys.check.clone()),
    };
    let lock = WriterLock::take(path, "init", Told::Word, &mut |_| false)?;
    let store = RocksStore::create(&path_in(path), &identity)?;
    if let Some(keys) = keys {
        let note = |(name, value): &(String, Vec<u8>)| Note {
            name: name.clone(),
            value: Some(value.clone()),
        };
        let notes: Vec<_> = keys.notes.iter().map(note).collect();
        store.amend_at(&[], &notes, None)?;
    }
    views::publish(path, &store)?;
    drop(store);
    write_marker(path, &identity)?;
    drop(lock);
    Ok(identity.id)
}

/// Removes the files that a failed `fill` created; the next attempt reports any that can't be removed. The claim is
/// removed last: until then no other process creates files that this one could take for its own.
fn undo_fill(path: &Path) {
    for name in ["lock", "ballast", "vbk-repository.new", MARKER] {
        let _ = fs::remove_file(path.join(name));
    }
    for name in ["store", "spare", "keys", VIEWS] {
        let _ = fs::remove_dir_all(path.join(name));
    }
}

/// Lets only the owner enter the directory: it contains the disks of other users.
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
