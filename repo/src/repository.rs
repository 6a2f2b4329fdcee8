//! A repository: the place where one is opened, whatever keeps it.
//!
//! [`home`] is what a place has to do; [`directory`] is the one of this machine. Three things are opened, with rights of their
//! own: a [`View`] reads, a [`Writer`] adds backups, a [`Manager`] forgets, prunes and repairs.

pub mod directory;
pub mod home;
mod managing;
mod pruning;
mod publisher;
mod rehearsed;
mod renaming;
mod sealed;
mod unfinished;
mod verified;
mod view;
mod writing;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub use self::directory::LAYOUT_FORMAT;
pub use self::directory::create::{SealedKeys, SealedOptions};
pub use self::home::{DiskUsage, Pruned, Reserve, Wait};
pub use self::managing::{Change, Manager};
pub use self::pruning::{Turn, WouldPrune, prune_without_key};
pub use self::renaming::Renamed;
pub use self::sealed::{SealedView, SealedWriter};
pub use self::unfinished::Unfinished;
pub use self::verified::{Kept, Recorded, Verified};
pub use self::view::View;
use self::writing::Shown;
pub use self::writing::{Committed, Writer};
use crate::block::BlockSize;
use crate::error::{Error, Result};
use crate::keys::{self, Keys, PassphraseCost, SlotInfo, Unlock};
use crate::standing::Standing;
use crate::store::checked::Checked;
use crate::store::encrypted::Encrypted;
use crate::store::{Identity, StoreManager, StoreReader, StoreWriter};
use directory::store_repair::Mended;
use directory::{Directory, create};
use home::{Home, Marker};

/// A repository that is known to exist, with its keys if it was unlocked.
#[derive(Debug, Clone)]
pub struct Repository {
    home: Arc<dyn Home>,
    /// The same as `home`, if it is a directory of this machine.
    directory: Option<Arc<Directory>>,
    /// [`Keys::check`] of an encrypted repository.
    key_check: Option<String>,
    keys: Option<Keys>,
    shown: Arc<Shown>,
}

/// Options for making a repository.
#[derive(Debug)]
pub struct CreateOptions {
    /// Size of the blocks.
    pub block_size: BlockSize,
    /// For an encrypted one its keys, and the slots that open it: their names and their secrets.
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

impl Repository {
    /// Makes a repository in a new or empty directory. Durable when this returns; when it fails nothing is left.
    pub fn create(path: &Path, options: &CreateOptions) -> Result<Self> {
        Self::check_place(path)?;
        let keys = options.encryption.as_ref().map(|(keys, _)| keys.clone());
        Ok(Self {
            keys,
            ..Self::create_sealed(path, &options.sealed()?)?
        })
    }

    /// The same without the keys: for a client elsewhere that has them. Returns the repository locked.
    pub fn create_sealed(path: &Path, options: &SealedOptions) -> Result<Self> {
        Self::check_place(path)?;
        let (path, id) = create::make(path, options)?;
        let marker = Marker {
            id: Some(id),
            key_check: options.encryption.as_ref().map(|keys| keys.check.clone()),
        };
        Ok(Self::in_directory(Directory::made(path, marker)))
    }

    /// An error unless a repository can be made there: see [`Directory::check_place`].
    pub fn check_place(path: &Path) -> Result<()> {
        Directory::check_place(path)
    }

    /// Opens the repository in a directory; refuses one that a newer vbk made.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self::in_directory(Directory::open(path)?))
    }

    /// Opens a damaged one for [`Repository::mend`] alone: see [`Directory::open_damaged`].
    pub fn open_damaged(path: &Path) -> Result<Self> {
        Ok(Self::in_directory(Directory::open_damaged(path)?))
    }

    /// Opens the repository that a home keeps.
    pub fn at(home: Arc<dyn Home>) -> Self {
        Self {
            key_check: home.marker().key_check.clone(),
            directory: None,
            home,
            keys: None,
            shown: Arc::default(),
        }
    }

    /// Opens the repository in a directory like [`Repository::open`], with a home made of that.
    pub fn open_through(path: &Path, home: impl FnOnce(Arc<Directory>) -> Arc<dyn Home>) -> Result<Self> {
        let directory = Arc::new(Directory::open(path)?);
        Ok(Self {
            directory: Some(Arc::clone(&directory)),
            ..Self::at(home(directory))
        })
    }

    /// The same with keys that are at hand already.
    pub fn with_keys(mut self, keys: Keys) -> Self {
        self.keys = Some(keys);
        self
    }

    fn in_directory(directory: Directory) -> Self {
        let directory = Arc::new(directory);
        Self {
            directory: Some(Arc::clone(&directory)),
            ..Self::at(directory)
        }
    }

    /// Tells an encrypted repository, which needs [`Repository::unlock`] before anything is read.
    pub fn is_encrypted(&self) -> bool {
        self.key_check.is_some()
    }

    /// Opens an encrypted repository's keys. Takes a second or so with a passphrase.
    pub fn unlock(mut self, way: &Unlock) -> Result<Self> {
        if !self.is_encrypted() {
            return Err(self.not_encrypted());
        }
        self.keys = Some(match self.home.unlock(way, self.key_check.as_deref()) {
            Err(refused @ Error::WrongKey { .. }) => {
                // One damaged digit in the marker would refuse every key.
                let noted = self.home.identity_as_it_is().and_then(|identity| identity.key_check);
                let Some(noted) = noted.filter(|noted| Some(noted) != self.key_check.as_ref()) else {
                    return Err(refused);
                };
                let keys = self.home.unlock(way, Some(&noted)).map_err(|_| refused)?;
                self.key_check = Some(noted);
                keys
            }
            keys => keys?,
        });
        Ok(self)
    }

    /// The key slots of an encrypted repository, in the order of their names. A damaged one is an error that names its file.
    pub fn key_slots(&self) -> Result<Vec<Result<SlotInfo>>> {
        match self.directory {
            Some(_) => keys::slots(self.path()),
            None => Ok(keys::slots_of(self.path(), &self.home.key_slots()?)),
        }
    }

    /// Adds a key slot that opens with `way`; see [`keys::add`]. The key leaves this machine only sealed in the slot.
    pub fn add_key(&self, name: &str, way: &Unlock, cost: PassphraseCost) -> Result<()> {
        let keys = self.keys.as_ref().ok_or_else(|| self.not_encrypted())?;
        match self.directory {
            Some(_) => keys::add(self.path(), name, keys, way, cost),
            None => self.home.add_key_slot(&keys::seal(name, keys, way, cost)?),
        }
    }

    /// Removes a key slot; see [`keys::remove`].
    pub fn remove_key(&self, name: &str, way: &Unlock) -> Result<()> {
        let check = self.key_check.as_ref().ok_or_else(|| self.not_encrypted())?;
        if self.directory.is_some() {
            return keys::remove(self.path(), name, way, check);
        }
        let stays = keys::opened_without(self.path(), &self.home.key_slots()?, name, way, check)?;
        self.home.remove_key_slot(name, stays.as_ref())
    }

    /// Returns the name of the key slot by which `way` opens the repository; `None` if `way` is an exported key, which needs none.
    pub fn slot_of(&self, way: &Unlock) -> Result<Option<String>> {
        let check = self.key_check.as_ref().ok_or_else(|| self.not_encrypted())?;
        keys::opened_by(self.path(), &self.home.key_slots()?, way, check)
    }

    fn not_encrypted(&self) -> Error {
        Error::NotEncrypted {
            path: self.owned_path(),
        }
    }

    /// The keys, if it was unlocked or just made.
    pub fn keys(&self) -> Option<&Keys> {
        self.keys.as_ref()
    }

    /// Name of the place: the path of its directory.
    pub fn path(&self) -> &Path {
        self.home.name()
    }

    fn owned_path(&self) -> std::path::PathBuf {
        self.path().to_owned()
    }

    /// Number of the newest view, to compare with [`View::number`]: cheap enough for every look-up in a mount.
    pub fn newest_view(&self) -> Result<Option<u64>> {
        self.home.newest()
    }

    /// Opens the newest state for reading. Never waits for a writer, except for the very first view.
    pub fn view(&self) -> Result<View> {
        View::new(self.home.read()?, self)
    }

    /// Opens the repository for adding backups, as `command`, when no other writer has it open.
    pub fn writer(&self, command: &str, wait: Wait<'_>) -> Result<Writer> {
        let session = self.home.write(command, wait)?;
        let identity = session.store.identity()?;
        // Encryption pairs questions with answers too, so the store below it is checked as well.
        let checked = Arc::new(Checked::new(session.store));
        let store: Arc<dyn StoreWriter> = match self.keys_for(&identity)? {
            Some(keys) => Arc::new(Checked::new(Arc::new(Encrypted::new(checked, keys, &identity).begun()))),
            None => checked,
        };
        Ok(Writer::new(store, identity, Arc::clone(&self.shown), session.keeper))
    }

    /// Opens the repository for changes and removals, as `command`. On a full disk it uses the room that is kept for it.
    pub fn manager(&self, command: &str, wait: Wait<'_>) -> Result<Manager> {
        let session = self.home.manage(command, wait)?;
        let identity = session.store.identity()?;
        let checked = Arc::new(Checked::new(session.store));
        let store: Arc<dyn StoreManager> = match self.keys_for(&identity)? {
            Some(keys) => Arc::new(Checked::new(Arc::new(Encrypted::new(checked, keys, &identity).begun()))),
            None => checked,
        };
        Ok(Manager::new(store, identity, Arc::clone(&self.shown), session.keeper))
    }

    /// The keys, if the repository needs them; an error if they are missing or not the right ones.
    fn keys_for(&self, identity: &Identity) -> Result<Option<&Keys>> {
        identity.check(self.path())?;
        let needed = identity.is_encrypted();
        // An attacker who can write to the storage can put a store without encryption there.
        if (self.is_encrypted() || self.keys.is_some()) && !needed {
            return Err(Error::EncryptionGone {
                path: self.owned_path(),
            });
        }
        match (&self.keys, needed) {
            (_, false) => Ok(None),
            (None, true) if !self.is_encrypted() => Err(Error::MarkerDamaged {
                path: self.owned_path(),
            }),
            (None, true) => Err(Error::KeyNeeded {
                path: self.owned_path(),
            }),
            (Some(keys), true) if identity.key_check.as_deref() == Some(&*keys.check()) => Ok(Some(keys)),
            (Some(_), true) => Err(Error::WrongKey {
                what: format!("the key is not that of {}", self.path().display()),
            }),
        }
    }

    /// Identity and age of the repository, as the marker and the number of the newest view state them: cheap, and known before
    /// a key is asked for or the store is touched.
    pub fn standing(&self) -> Standing {
        Standing {
            id: match &self.home.marker().id {
                Some(id) => Some(id.clone()),
                None => self.home.identity_as_it_is().map(|identity| identity.id),
            },
            key_check: self.key_check.clone(),
            // The error of a link that can't be read is reported by the opening of the view; a repair rewrites the link.
            generation: self.newest_view().ok().flatten().max(self.shown.generation()),
            epoch: None,
            state: None,
        }
    }

    /// The same, as the newest view itself states it, with the epoch if the keys are at hand; `None` if the view can't be read.
    /// A damaged marker changes nothing of it.
    pub fn standing_of_view(&self) -> Option<Standing> {
        let store = self.home.read_as_it_is().ok()??.store;
        let (identity, generation) = (store.identity().ok()?, store.generation().ok()?);
        let keys = self.keys_for(&identity).ok().flatten();
        let standing = Standing::of(&*store, &identity, generation);
        let epoch = keys.and_then(|keys| Encrypted::new(store, keys, &identity).epoch().ok()?);
        Some(standing.with_epoch(epoch))
    }

    /// The directory, if it is one of this machine; an error that says so otherwise.
    pub fn local_path(&self) -> Result<&Path> {
        self.directory().map(|_| self.path())
    }

    fn directory(&self) -> Result<&Directory> {
        self.directory.as_deref().ok_or_else(|| Error::NotOnThisMachine {
            path: self.owned_path(),
        })
    }

    /// Repairs the store's own files: see [`Directory::mend`].
    pub fn mend(&self, wait: Wait<'_>) -> Result<Mended> {
        self.directory()?.mend(wait)
    }

    /// An error if less than `reserve` of the repository's file system is free.
    pub fn check_reserve(&self, reserve: Reserve) -> Result<()> {
        self.home.check_reserve(reserve)
    }

    /// Format of its store, as far as that can be read without a key.
    pub fn format(&self) -> Option<u32> {
        self.home.identity_as_it_is().map(|identity| identity.format)
    }

    /// Space that the repository takes on disk.
    pub fn disk_usage(&self) -> Result<DiskUsage> {
        self.home.disk_usage()
    }

    /// Looks whether the store's own files are there and whole: see [`Home::check_tables`].
    pub fn check_tables(&self, view: u64, cancel: &AtomicBool) -> Result<Vec<String>> {
        self.home.check_tables(view, cancel)
    }

    /// Reads everything that is stored and compares it with its checksums: see [`Home::check_stored`].
    pub fn check_stored(&self, cancel: &AtomicBool, each: &mut dyn FnMut(String)) -> Result<u64> {
        self.home.check_stored(cancel, each)
    }

    /// Makes the newest view's name durable: see [`Directory::settle`].
    pub fn settle(&self) {
        if let Some(directory) = &self.directory {
            directory.settle();
        }
    }
}

/// An error if the marker is that of another repository than the store.
fn check_id(path: &Path, marker: &Marker, identity: &Identity) -> Result<()> {
    match &marker.id {
        Some(id) if *id != identity.id => Err(Error::OtherStore {
            path: path.to_owned(),
            store: identity.id.clone(),
            marker: id.clone(),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
