//! The place that keeps a repository: a directory of this machine ([`super::directory`]); a server or a bucket implements the
//! same trait.
//!
//! A home gives out stores, each with the rights that its caller needs. What is above it (keys, encryption, the
//! catalogue, the rules of forget and prune) does not depend on the place.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::keys::{self, Keys, SlotFile, Unlock};
use crate::store::{Identity, PruneOptions, StoreManager, StoreReader, StoreWriter, Swept};

/// Decides whether to go on waiting for the process that holds the lock; it is called with that process's
/// description about five times a second.
pub type Wait<'a> = &'a mut dyn FnMut(&str) -> bool;

/// Facts about a repository that are known before anything of it is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marker {
    /// [`crate::store::Identity::id`], if the place states it.
    pub id: Option<String>,
    /// [`Keys::check`] of an encrypted repository.
    pub key_check: Option<String>,
}

/// A place that keeps one repository.
pub trait Home: fmt::Debug + Send + Sync {
    /// Name of the place, for messages and for the memory of hosts: the path of a directory, or an address.
    fn name(&self) -> &Path;

    /// Facts about the repository.
    fn marker(&self) -> &Marker;

    /// Number of the newest snapshot; cheap enough for every look-up in a mount. `None` if there is none yet.
    fn newest(&self) -> Result<Option<u64>>;

    /// The key slots of an encrypted repository.
    fn key_slots(&self) -> Result<Vec<SlotFile>>;

    /// Opens one of the key slots. `check` is the [`Keys::check`] that the right key has.
    fn unlock(&self, way: &Unlock, check: Option<&str>) -> Result<Keys> {
        keys::unlock_files(self.name(), &self.key_slots()?, way, check)
    }

    /// An error if less than `reserve` of the repository's file system is free.
    fn check_reserve(&self, reserve: Reserve) -> Result<()>;

    /// Space that the repository takes on disk.
    fn disk_usage(&self) -> Result<DiskUsage>;

    /// Compares the tables of a snapshot, which the caller holds, with their second copies, and the files of the store and of the
    /// snapshot with their lists. Returns a line for each that is damaged or missing, and [`Error::Interrupted`] soon after `cancel`
    /// is set.
    fn check_tables(&self, snapshot: u64, cancel: &AtomicBool) -> Result<Vec<String>>;

    /// Reads everything that is stored, without a key, and proves what can be proved so: see [`crate::store::door`]. `each` gets a
    /// line for everything that is damaged or missing, and for 1000 of them at most. Returns the number of bytes that were read.
    fn check_stored(&self, _cancel: &AtomicBool, _each: &mut dyn FnMut(String)) -> Result<u64> {
        Err(self.unsupported())
    }

    /// Keeps another key slot: see [`keys::add_file`].
    fn add_key_slot(&self, _slot: &SlotFile) -> Result<()> {
        Err(self.unsupported())
    }

    /// Removes a key slot, if `stays` is still there: see [`keys::remove_file`].
    fn remove_key_slot(&self, _name: &str, _stays: Option<&SlotFile>) -> Result<()> {
        Err(self.unsupported())
    }

    /// The error of a place that can't do what it is asked for.
    fn unsupported(&self) -> Error {
        Error::NotOnThisMachine {
            path: self.name().to_owned(),
        }
    }

    /// Opens the newest snapshot, if it can be read as it is: nothing is waited for and nothing repaired.
    fn read_as_it_is(&self) -> Result<Option<Snapshot>>;

    /// Identity of the repository, as its newest snapshot states it; `None` if that can't be read.
    fn identity_as_it_is(&self) -> Option<Identity> {
        self.read_as_it_is().ok()??.store.identity().ok()
    }

    /// Opens the newest snapshot. Never waits for a writer, except for the very first snapshot.
    fn read(&self) -> Result<Snapshot>;

    /// Opens the store for adding backups, as `command`.
    fn write(&self, command: &str, wait: Wait<'_>) -> Result<Session<dyn StoreWriter>>;

    /// Opens the store for changes and removals, as `command`, also on a full disk.
    fn manage(&self, command: &str, wait: Wait<'_>) -> Result<Session<dyn StoreManager>>;
}

/// A state of the store, open for reading. It stays readable until it is dropped.
pub struct Snapshot {
    /// The store.
    pub store: Arc<dyn StoreReader>,
    /// Greater in a newer snapshot.
    pub number: u64,
}

/// A store open for writing, until it is dropped.
pub struct Session<S: ?Sized> {
    /// The store.
    pub store: Arc<S>,
    /// The place as seen by the writer.
    pub keeper: Arc<dyn Keeper>,
}

impl Session<dyn StoreManager> {
    /// The same with the right to add backups only.
    pub fn to_write(self) -> Session<dyn StoreWriter> {
        Session {
            store: self.store,
            keeper: self.keeper,
        }
    }
}

/// A place that is being written to. Dropping the last reference to it lets the next writer in.
pub trait Keeper: Send + Sync {
    /// Shows the present state to readers that open the repository from now on.
    fn publish(&self) -> Result<()>;

    /// The room that the repository takes. Takes a look at each of its files.
    fn room(&self) -> Result<Room>;

    /// Bytes that are free for the repository.
    fn free_bytes(&self) -> Result<u64> {
        Ok(self.room()?.free_bytes)
    }

    /// Notes that a prune came to its end.
    fn note_prune(&self) {}

    /// Returns whether another process waits until this place is no longer written to.
    fn is_awaited(&self) -> bool {
        false
    }

    /// Prunes there, where a store is kept far away; `None` where [`crate::repository::Manager::prune`] has to do it here.
    fn prune(&self, _options: PruneOptions, _cancel: &AtomicBool, _progress: &dyn Fn(u64)) -> Option<Result<Pruned>> {
        None
    }
}

/// A home made of a store that is open already, without a lock and without room of its own: for tests and measurements.
pub struct StoreHome<S> {
    store: Arc<S>,
    marker: Marker,
}

impl<S: StoreManager + 'static> StoreHome<S> {
    /// Keeps a repository in `store`.
    pub fn new(store: Arc<S>) -> Result<Self> {
        let identity = store.identity()?;
        let marker = Marker {
            id: Some(identity.id),
            key_check: identity.key_check,
        };
        Ok(Self { store, marker })
    }
}

impl<S> fmt::Debug for StoreHome<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreHome")
            .field("marker", &self.marker)
            .finish_non_exhaustive()
    }
}

impl<S: StoreManager + 'static> Home for StoreHome<S> {
    fn name(&self) -> &Path {
        Path::new("a store")
    }

    fn marker(&self) -> &Marker {
        &self.marker
    }

    fn newest(&self) -> Result<Option<u64>> {
        self.store.generation().map(Some)
    }

    fn key_slots(&self) -> Result<Vec<SlotFile>> {
        Ok(Vec::new())
    }

    fn check_reserve(&self, _reserve: Reserve) -> Result<()> {
        Ok(())
    }

    fn disk_usage(&self) -> Result<DiskUsage> {
        Ok(DiskUsage::default())
    }

    fn check_tables(&self, _snapshot: u64, _cancel: &AtomicBool) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn check_stored(&self, _cancel: &AtomicBool, _each: &mut dyn FnMut(String)) -> Result<u64> {
        Ok(0)
    }

    fn add_key_slot(&self, _slot: &SlotFile) -> Result<()> {
        Ok(())
    }

    fn remove_key_slot(&self, _name: &str, _stays: Option<&SlotFile>) -> Result<()> {
        Ok(())
    }

    fn read_as_it_is(&self) -> Result<Option<Snapshot>> {
        self.read().map(Some)
    }

    fn read(&self) -> Result<Snapshot> {
        Ok(Snapshot {
            number: self.store.generation()?,
            store: Arc::clone(&self.store) as _,
        })
    }

    fn write(&self, _command: &str, _wait: Wait<'_>) -> Result<Session<dyn StoreWriter>> {
        Ok(Session {
            store: Arc::clone(&self.store) as _,
            keeper: Arc::new(NoRoom),
        })
    }

    fn manage(&self, _command: &str, _wait: Wait<'_>) -> Result<Session<dyn StoreManager>> {
        Ok(Session {
            store: Arc::clone(&self.store) as _,
            keeper: Arc::new(NoRoom),
        })
    }
}

struct NoRoom;

impl Keeper for NoRoom {
    fn publish(&self) -> Result<()> {
        Ok(())
    }

    fn room(&self) -> Result<Room> {
        Ok(Room {
            used_bytes: 0,
            free_bytes: u64::MAX,
        })
    }
}

/// Room on the device that keeps a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Bytes that the repository takes, all told.
    pub used_bytes: u64,
    /// Bytes that are free for it.
    pub free_bytes: u64,
}

/// Bytes that a repository takes on disk. Each file is counted once, however many links it has, and sparse files by
/// their allocated size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUsage {
    /// All bytes of the repository.
    pub total_bytes: u64,
    /// Bytes of the store.
    pub store_bytes: u64,
    /// Bytes that the current view has and the store does not.
    pub current_view_bytes: u64,
    /// Bytes that only other views have. They are freed when the last reader of those views ends and the next writer
    /// removes them.
    pub other_views_bytes: u64,
}

/// Free space that a backup leaves on a repository's file system: for a prune, and for everything else on it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Reserve {
    /// 5 %, and 8 GiB at most: as much as a prune can use at once.
    Default,
    /// A share of the file system, from 0 to 1.
    Share(f64),
    /// Bytes.
    Bytes(u64),
}

impl Reserve {
    /// Returns what it is on a file system of this size.
    pub fn bytes_of(self, size_bytes: u64) -> u64 {
        let share = |share: f64| (size_bytes as f64 * share) as u64;
        match self {
            Self::Default => share(0.05).min(8 << 30),
            Self::Share(of_all) => share(of_all),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// Result of a prune.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pruned {
    /// Backups that are kept.
    pub backups: u64,
    /// Blocks and nodes of manifests that were found and removed.
    pub swept: Swept,
    /// Time that the marking took.
    pub marked: Duration,
    /// Room that the repository took before.
    pub used_before_bytes: u64,
    /// Room that it takes now. Views of running readers still hold some of it, and free it when they end.
    pub used_after_bytes: u64,
}
