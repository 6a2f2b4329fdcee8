//! A repository on this machine: a directory, who may write to it, and what readers see of it.
//!
//! | in the directory | what |
//! |---|---|
//! | `vbk-repository` | says what this is, the number of this layout, as `format: 1`, and the repository's id, as `id: DIGITS`; in an encrypted repository also `encryption: aes-256-gcm` and [`Keys::check`]; written last when it is made |
//! | `keys/` | the key slots of an encrypted repository, see [`crate::keys`] |
//! | `store/` | the RocksDB store, see [`crate::store::rocks`]; opened by the writer alone |
//! | `views/` | what readers open, see `views.rs` |
//! | `spare/` | second copies of the store's tables, see `second_copies.rs` |
//! | `lock` | held by the writer, see [`crate::repository::lock`] |
//! | `ballast` | room for a prune on a full disk, see `ballast.rs` |

pub mod activity;
mod ballast;
mod create;
pub mod disk_usage;
mod identity;
pub mod lock;
mod second_copies;
pub mod store_repair;
mod torn;
mod verified;
mod view;
mod views;
mod writing;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use self::verified::{Recorded, Verified};
pub use self::view::View;
pub use self::writing::{Committed, Pruned, Writer};
use crate::block::BlockSize;
use crate::error::{Error, ErrorKind, Result};
use crate::keys::{self, Keys, Unlock};
use crate::repository::disk_usage::{FileSystem, file_system};
use crate::repository::lock::{Told, WriterLock};
use crate::repository::store_repair::{Mended, mend};
use crate::store::checked::Checked;
use crate::store::encrypted::Encrypted;
use crate::store::rocks::{RocksReader, RocksStore, path_in};
use crate::store::{BlockStore, ENCRYPTION, Identity, StoreReader};

/// The newest directory layout that this vbk reads, and the one it writes.
pub const LAYOUT_FORMAT: u32 = 1;

const MARKER: &str = "vbk-repository";

/// How long a reader waits for a writer to publish the first view.
const FIRST_VIEW_TIMEOUT: Duration = Duration::from_secs(30);

/// A repository's directory, known to be one.
#[derive(Debug, Clone)]
pub struct Repository {
    path: PathBuf,
    /// Its [`Identity::id`], if the marker says it.
    id: Option<String>,
    /// [`Keys::check`] of an encrypted repository.
    key_check: Option<String>,
    keys: Option<Keys>,
}

/// How much of a repository's file system is to stay free: a prune needs some, and so does all else on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reserve {
    /// 5 %, and 8 GiB at most.
    Default,
    /// A share of the file system, from 0 to 1.
    Share(f64),
    /// Bytes.
    Bytes(u64),
}

/// The most that the default reserve is: what a prune can use at once.
const DEFAULT_RESERVE_BYTES: u64 = 8 << 30;

/// How a repository is to be made.
#[derive(Debug)]
pub struct CreateOptions {
    /// How disks are cut.
    pub block_size: BlockSize,
    /// The keys of an encrypted one, and the slots that open it: their names and what they open with.
    pub encryption: Option<(Keys, Vec<(String, Unlock)>)>,
    /// Makes the directories above it too, where they are missing.
    pub parents: bool,
}

impl CreateOptions {
    /// Without encryption.
    pub fn plain(block_size: BlockSize) -> Self {
        Self {
            block_size,
            encryption: None,
            parents: false,
        }
    }
}

/// Decides whether to go on waiting for the process that holds the lock; it is called with that process's
/// description about five times a second.
pub type Wait<'a> = &'a mut dyn FnMut(&str) -> bool;

impl Repository {
    /// Makes a repository in a new or empty directory. Durable when this returns; when it fails nothing is left.
    pub fn create(path: &Path, options: &CreateOptions) -> Result<Self> {
        Self::check_place(path)?;
        let (path, id) = create::make(path, options)?;
        let keys = options.encryption.as_ref().map(|(keys, _)| keys.clone());
        Ok(Self {
            path,
            id: Some(id),
            key_check: keys.as_ref().map(Keys::check),
            keys,
        })
    }

    /// An error unless a repository can be made there: the directory is new or empty.
    pub fn check_place(path: &Path) -> Result<()> {
        let owned = || path.to_owned();
        if path.join(MARKER).exists() {
            return Err(Error::AlreadyARepository { path: owned() });
        }
        let mut entries = match fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(Error::io("list", path))?,
        };
        // A file system of its own has this directory at its top.
        match entries.any(|entry| !entry.is_ok_and(|entry| entry.file_name() == "lost+found")) {
            true => Err(Error::NotEmpty { path: owned() }),
            false => Ok(()),
        }
    }

    /// Opens a repository; refuses one that a newer vbk made.
    pub fn open(path: &Path) -> Result<Self> {
        let marker = path.join(MARKER);
        let bytes = fs::read(&marker).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => without_marker(path),
            _ => Error::io("read", &marker)(error),
        })?;
        // One damaged byte of the text for people does no harm.
        let text = String::from_utf8_lossy(&bytes);
        let key_check = text.lines().find_map(key_check_in);
        let found = text
            .lines()
            .find_map(|line| line.strip_prefix("format: ")?.trim().parse().ok());
        match found.filter(|found| *found > 0) {
            Some(found) if found > LAYOUT_FORMAT => Err(Error::NewerFormat {
                path: path.to_owned(),
                found,
                supported: LAYOUT_FORMAT,
            }),
            Some(_) if key_check.is_none() && path.join("keys").exists() => Err(says_nothing_of_keys(path)),
            Some(_) => Ok(Self {
                path: fs::canonicalize(path).map_err(Error::io("open", path))?,
                id: text
                    .lines()
                    .find_map(|line| Some(line.strip_prefix("id: ")?.trim().to_owned())),
                key_check,
                keys: None,
            }),
            None => Err(without_marker(path)),
        }
    }

    /// Opens a repository that [`Repository::open`] does not know, because its marker is damaged or gone, for
    /// [`Repository::mend`] alone.
    pub fn open_damaged(path: &Path) -> Result<Self> {
        if let error @ Error::NotARepository { .. } = without_marker(path) {
            return Err(error);
        }
        Ok(Self {
            path: fs::canonicalize(path).map_err(Error::io("open", path))?,
            id: None,
            key_check: None,
            keys: None,
        })
    }

    /// Whether its content is encrypted, so that [`Repository::unlock`] comes before anything is read.
    pub fn is_encrypted(&self) -> bool {
        self.key_check.is_some()
    }

    /// Opens an encrypted repository's keys. Takes a second or so with a passphrase.
    pub fn unlock(mut self, unlock: &Unlock) -> Result<Self> {
        if !self.is_encrypted() {
            return Err(Error::NotEncrypted { path: self.path });
        }
        self.keys = Some(match keys::unlock(&self.path, unlock, self.key_check.as_deref()) {
            Err(refused @ Error::WrongKey { .. }) => {
                // One damaged digit in the marker would refuse every key.
                let noted = self.identity_of_view().and_then(|identity| identity.key_check);
                let Some(noted) = noted.filter(|noted| Some(noted) != self.key_check.as_ref()) else {
                    return Err(refused);
                };
                let keys = keys::unlock(&self.path, unlock, Some(&noted)).map_err(|_| refused)?;
                self.key_check = Some(noted);
                keys
            }
            keys => keys?,
        });
        Ok(self)
    }

    /// Removes a key slot; see [`keys::remove`].
    pub fn remove_key(&self, name: &str, way: &Unlock) -> Result<()> {
        match &self.key_check {
            Some(check) => keys::remove(&self.path, name, way, check),
            None => Err(Error::NotEncrypted {
                path: self.path.clone(),
            }),
        }
    }

    /// The keys, if it was unlocked or just made.
    pub fn keys(&self) -> Option<&Keys> {
        self.keys.as_ref()
    }

    /// Puts the store's own files right, as far as that is possible: the first step of a repair, before a writer is opened.
    pub fn mend(&self, wait: Wait<'_>) -> Result<Mended> {
        let _lock = WriterLock::take(&self.path, "repair", Told::Word, wait)?;
        let mut mended = mend(&self.path)?;
        self.mend_marker(&mut mended)?;
        Ok(mended)
    }

    /// Writes the marker anew if it does not say what the store says.
    fn mend_marker(&self, mended: &mut Mended) -> Result<()> {
        let Some(identity) = self.identity_of_view() else {
            return Ok(());
        };
        let said = match Self::open(&self.path) {
            Err(newer @ Error::NewerFormat { .. }) => return Err(newer),
            Ok(said) if said.key_check == identity.key_check && said.id.as_ref() == Some(&identity.id) => {
                return Ok(());
            }
            said => said.ok().and_then(|said| said.key_check),
        };
        // A plain store in the place of an encrypted one is no damage, and the marker is not to be made to fit it.
        if identity.key_check.is_none() && (said.is_some() || self.path.join("keys").exists()) {
            return Err(Error::EncryptionGone {
                path: self.path.clone(),
            });
        }
        create::write_marker(&self.path, &identity)?;
        mended.done.push(format!("{MARKER} did not say what the repository is"));
        Ok(())
    }

    /// An error if less than `reserve` of its file system is free.
    pub fn check_reserve(&self, reserve: Reserve) -> Result<()> {
        let FileSystem {
            size_bytes, free_bytes, ..
        } = file_system(&self.path)?;
        let share = |share: f64| (size_bytes as f64 * share) as u64;
        let reserve_bytes = match reserve {
            Reserve::Default => share(0.05).min(DEFAULT_RESERVE_BYTES),
            Reserve::Share(of_all) => share(of_all),
            Reserve::Bytes(bytes) => bytes,
        };
        match free_bytes < reserve_bytes {
            true => Err(Error::NearlyFull {
                path: self.path.clone(),
                free_bytes,
                reserve_bytes,
            }),
            false => Ok(()),
        }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of the newest view, to compare with [`View::number`]: cheap enough for every look-up in a mount.
    pub fn newest_view(&self) -> Result<Option<u64>> {
        views::current(&self.path)
    }

    /// Opens the newest state for reading. Never waits for a writer, except for the very first view.
    pub fn view(&self) -> Result<View> {
        let (reader, number) = self.newest()?;
        View::new(reader, number, self)
    }

    /// Reads everything that is stored and compares it with its checksums, also without a key. `each` is told what can't be
    /// read; gives the bytes that were.
    pub fn check_stored(&self, cancel: &AtomicBool, each: &mut dyn FnMut(String)) -> Result<u64> {
        self.newest()?.0.check(cancel, each)
    }

    fn newest(&self) -> Result<(RocksReader, u64)> {
        let started = Instant::now();
        loop {
            if let Some(held) = views::open(&self.path)? {
                return Ok((held.reader, held.number));
            }
            // No view, or one that lacks something: loss of power right after init, or a copy of the directory. A
            // writer makes it anew when it opens.
            match self.open_store("open", &mut |_| false) {
                Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::ReadOnly) => {
                    // Nobody can write here, so the store itself is as good as a view.
                    second_copies::check_store(&path_in(&self.path), None)?;
                    let reader = RocksReader::open(&path_in(&self.path), None)?;
                    let number = reader.generation()?;
                    return Ok((reader, number));
                }
                result if started.elapsed() > FIRST_VIEW_TIMEOUT => {
                    result?;
                    return Err(Error::Store {
                        kind: ErrorKind::Unavailable,
                        doing: "open a view",
                        message: "views come and go too quickly".into(),
                    });
                }
                Ok(_) => {}
                Err(Error::Locked { .. }) => std::thread::sleep(Duration::from_millis(100)),
                Err(error) => return Err(error),
            }
        }
    }

    /// Opens the repository for writing, as `command`, when nobody else does.
    pub fn writer(&self, command: &str, wait: Wait<'_>) -> Result<Writer> {
        let (rocks, lock) = self.open_store(command, wait)?;
        let identity = rocks.identity()?;
        // Encryption pairs questions with answers too, so what is below it is checked as well.
        let checked = Arc::new(Checked::new(Arc::clone(&rocks)));
        let store: Arc<dyn BlockStore> = match self.keys_for(&identity)? {
            Some(keys) => Arc::new(Checked::new(Arc::new(Encrypted::new(checked, keys).begun()))),
            None => checked,
        };
        Ok(Writer {
            rocks,
            store,
            identity,
            path: self.path.clone(),
            changing: Mutex::default(),
            publishing: Mutex::default(),
            _lock: lock,
        })
    }

    /// The keys, if the repository needs them; an error if they are not there or not the right ones.
    fn keys_for(&self, identity: &Identity) -> Result<Option<&Keys>> {
        identity.check(&self.path)?;
        self.check_encryption(identity)?;
        let needed = identity.features.iter().any(|feature| feature == ENCRYPTION);
        match (&self.keys, needed) {
            (_, false) => Ok(None),
            (None, true) if !self.is_encrypted() => Err(says_nothing_of_keys(&self.path)),
            (None, true) => Err(Error::KeyNeeded {
                path: self.path.clone(),
            }),
            (Some(keys), true) if identity.key_check.as_deref() == Some(&*keys.check()) => Ok(Some(keys)),
            (Some(_), true) => Err(Error::WrongKey {
                what: format!("the key is not that of {}", self.path.display()),
            }),
        }
    }

    /// An error if this repository is encrypted and the store that lies in it is not. Whoever can write to the storage can
    /// put such a store there; to go on would be to write in the clear.
    fn check_encryption(&self, identity: &Identity) -> Result<()> {
        let is_encrypted = identity.features.iter().any(|feature| feature == ENCRYPTION);
        match (self.is_encrypted() || self.keys.is_some()) && !is_encrypted {
            true => Err(Error::EncryptionGone {
                path: self.path.clone(),
            }),
            false => Ok(()),
        }
    }

    /// As [`Repository::writer`], for what removes something: on a full disk it makes use of the room that is kept for it.
    pub fn writer_that_removes(&self, command: &str, wait: Wait<'_>) -> Result<Writer> {
        match self.writer(command, wait) {
            Err(error) if error.kind() == ErrorKind::NoSpace && ballast::release(&self.path)? => {
                self.writer(command, wait)
            }
            result => result,
        }
    }

    fn open_store(&self, command: &str, wait: Wait<'_>) -> Result<(Arc<RocksStore>, WriterLock)> {
        // A damaged marker may not say that the repository is encrypted.
        let told = match self.is_encrypted() || self.path.join("keys").exists() {
            true => Told::Word,
            false => Told::Command,
        };
        let lock = WriterLock::take(&self.path, command, told, wait)?;
        let suspected = torn::suspected(&self.path)?;
        let newest = views::current(&self.path)?.unwrap_or(0);
        let view = views::path_of(&self.path, newest);
        let view = second_copies::check_view(&view).is_ok().then_some(&*view);
        second_copies::check_store(&path_in(&self.path), view)?;
        // An older one, published, would take the place of a state that has more in it.
        let store = RocksStore::open_at_least(&path_in(&self.path), newest)?;
        if !suspected.is_empty() {
            torn::remove(&self.path, &store, &suspected);
        }
        let identity = store.identity()?;
        self.check_encryption(&identity)?;
        self.check_id(&identity)?;
        // A run that was killed between its commit and its publication left a backup that no reader sees yet.
        views::publish(&self.path, &store)?;
        ballast::ensure(&self.path, file_system(&self.path)?.free_bytes);
        Ok((Arc::new(store), lock))
    }
}

fn says_nothing_of_keys(repository: &Path) -> Error {
    let marker = repository.join(MARKER);
    Error::Store {
        kind: ErrorKind::Corrupt,
        doing: "open",
        message: format!(
            "{} is damaged: it does not say that the repository is encrypted; `vbk repair` writes it anew",
            marker.display()
        ),
    }
}

/// What a directory without a readable marker is.
fn without_marker(path: &Path) -> Error {
    let path = path.to_owned();
    // The last thing that is made before it.
    let link = path.join("views").join("current");
    match path_in(&path).is_dir() && link.symlink_metadata().is_ok() {
        true => Error::MarkerDamaged { path },
        false => Error::NotARepository { path },
    }
}

/// `encryption: aes-256-gcm CHECK`.
fn key_check_in(line: &str) -> Option<String> {
    let (_cipher, check) = line.strip_prefix("encryption: ")?.trim().split_once(' ')?;
    Some(check.to_owned())
}

#[cfg(test)]
mod tests;
