//! A repository in a directory of this machine.
//!
//! | in the directory | content |
//! |---|---|
//! | `vbk-repository` | the marker: a text for people, the number of this layout, as `format: 2`, and the repository's id, as `id: DIGITS`; in an encrypted repository also `encryption: aes-256-gcm` and [`Keys::check`]; written last when the repository is made |
//! | `keys/` | the key slots of an encrypted repository, see [`crate::keys`] |
//! | `store/` | the RocksDB store, see [`crate::store::rocks`]; opened by the writer alone |
//! | `views/` | the states of the store that readers open, see `views.rs` |
//! | `spare/` | second copies of the store's tables, see `second_copies.rs` |
//! | `lock` | held by the writer, see [`lock`] |
//! | `waiting` | held by the processes that wait for the writer, see `waiting.rs` |
//! | `serve.sock`, `serve.lock` | while a process has the repository open for all writers of this machine, see [`shared`] |
//! | `serve/` | the key and the tokens of a server, its logs, and its clients |
//! | `verified/` | results of verifications that the next writer records, see `verified/late.rs` |
//! | `pruned` | the time of the last prune, for people: nothing depends on it |
//! | `ballast` | room for a prune on a full disk, see `ballast.rs` |

pub mod activity;
mod ballast;
pub mod create;
pub mod disk_usage;
mod files;
mod hashes;
pub mod lock;
mod marker;
pub(super) mod second_copies;
pub mod shared;
mod small_files;
pub mod store_repair;
mod stored_files;
pub mod through;
mod torn;
pub(super) mod views;
mod waiting;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::file_system::{FileSystem, file_system};
use crate::files::{Mode, Synced};
use crate::keys::{self, Keys, SlotFile, Unlock};
use crate::store::rocks::{RocksReader, RocksSession, RocksStore, path_in};
use crate::store::{Identity, StoreManager, StoreReader, StoreWriter};
use disk_usage::disk_usage;
use lock::{Told, WriterLock};
pub use marker::LAYOUT_FORMAT;
pub(super) use marker::MARKER;
use store_repair::{Mended, check_files, check_tables, mend, read_tables};
use views::Views;
use waiting::Asking;

use super::home::{DiskUsage, Home, Keeper, Marker, Reserve, Room, Session, Snapshot, Wait};

/// Name in the directory of the file with the time of the last prune.
const PRUNED: &str = "pruned";

/// Time that a reader waits for a writer to publish the first view.
const FIRST_VIEW_TIMEOUT: Duration = Duration::from_secs(30);

/// A directory that is known to be a repository.
#[derive(Debug, Clone)]
pub struct Directory {
    path: PathBuf,
    marker: Marker,
    asking: Arc<Asking>,
}

impl Directory {
    /// Names a repository that was just made.
    pub(super) fn made(path: PathBuf, marker: Marker) -> Self {
        Self {
            path,
            marker,
            asking: Arc::default(),
        }
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
        match marker::format_in(&text) {
            Some(found) if found > LAYOUT_FORMAT => Err(Error::NewerFormat {
                path: path.to_owned(),
                found,
                supported: LAYOUT_FORMAT,
            }),
            Some(_) if key_check.is_none() && path.join("keys").exists() => {
                Err(Error::MarkerDamaged { path: path.to_owned() })
            }
            Some(_) => Ok(Self {
                path: fs::canonicalize(path).map_err(Error::io("open", path))?,
                marker: Marker {
                    id: text
                        .lines()
                        .find_map(|line| Some(line.strip_prefix("id: ")?.trim().to_owned())),
                    key_check,
                },
                asking: Arc::default(),
            }),
            None => Err(without_marker(path)),
        }
    }

    /// Opens a repository that [`Directory::open`] does not know, because its marker is damaged or gone, for
    /// [`Directory::mend`] alone.
    pub fn open_damaged(path: &Path) -> Result<Self> {
        if let error @ Error::NotARepository { .. } = without_marker(path) {
            return Err(error);
        }
        Ok(Self {
            path: fs::canonicalize(path).map_err(Error::io("open", path))?,
            marker: Marker::default(),
            asking: Arc::default(),
        })
    }

    fn is_encrypted(&self) -> bool {
        self.marker.key_check.is_some()
    }

    /// Repairs the store's own files as far as that is possible: the first step of a repair, before a writer is opened.
    pub fn mend(&self, wait: Wait<'_>) -> Result<Mended> {
        let hashes = read_tables(&self.path);
        let _lock = WriterLock::take(&self.path, "repair", Told::Word, wait)?;
        let mut mended = mend(&self.path, &hashes)?;
        self.mend_marker(&mut mended)?;
        Ok(mended)
    }

    /// Rewrites a marker that does not agree with the store.
    fn mend_marker(&self, mended: &mut Mended) -> Result<()> {
        let Some(identity) = self.identity_as_it_is() else {
            return Ok(());
        };
        let said = match Self::open(&self.path) {
            Err(newer @ Error::NewerFormat { .. }) => return Err(newer),
            Ok(Self { marker: said, .. })
                if said.key_check == identity.key_check && said.id.as_ref() == Some(&identity.id) =>
            {
                return Ok(());
            }
            said => said.ok().and_then(|said| said.marker.key_check),
        };
        // A plain store in the place of an encrypted one is no damage, and the marker is not to be made to fit it.
        if identity.key_check.is_none() && (said.is_some() || self.path.join("keys").exists()) {
            return Err(Error::EncryptionGone {
                path: self.path.clone(),
            });
        }
        marker::write_marker(&self.path, &identity)?;
        mended.done.push(format!("{MARKER} did not say what the repository is"));
        Ok(())
    }

    /// Makes sure that loss of power does not take the newest view's name back, which another process may just have
    /// changed. Changes nothing where nothing can be written.
    pub fn settle(&self) {
        // A reader that can't do it is on storage that it can't write to either.
        let _ = files::sync_directory(&views::directory(&self.path));
    }

    fn newest_reader(&self) -> Result<(RocksReader, u64)> {
        let started = Instant::now();
        loop {
            if let Some(held) = views::open(&self.path)? {
                return Ok((held.reader, held.number));
            }
            // No view, or an incomplete one: loss of power right after init, or a copy of the directory. A writer makes it
            // again when it opens.
            match self.open_store("open", &mut |_| false) {
                Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::ReadOnly) => {
                    // No process can write here, so the store itself is as good as a view.
                    small_files::check_store(&path_in(&self.path), None)?;
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

    fn open_store(&self, command: &str, wait: Wait<'_>) -> Result<Opened> {
        // A damaged marker may not say that the repository is encrypted.
        let told = match self.is_encrypted() || self.path.join("keys").exists() {
            true => Told::Word,
            false => Told::Command,
        };
        let lock = WriterLock::take(&self.path, command, told, wait)?;
        let suspected = torn::suspected(&self.path)?;
        let newest = views::current(&self.path)?.unwrap_or(0);
        let view = views::find(&self.path, newest).ok().flatten();
        let view = view.filter(|view| view.check().is_ok());
        small_files::check_store(&path_in(&self.path), view.as_ref())?;
        // An older one, published, would take the place of a state that has more in it.
        let store = RocksStore::open_at_least(&path_in(&self.path), newest)?;
        if !suspected.is_empty() {
            torn::remove(&self.path, &store, &suspected);
        }
        self.check_identity(&store.identity()?)?;
        // A run that was killed between its commit and its publication left a backup that no reader sees yet.
        let mut views = Views::open(&self.path, &store)?;
        views.publish(&store)?;
        ballast::ensure(&self.path, views.list_bytes());
        Ok(Opened {
            path: self.path.clone(),
            store: Arc::new(store),
            views: Mutex::new(views),
            lock,
        })
    }

    /// An error if the store is not that of the marker. An attacker who can write to the storage can put a store without
    /// encryption there; to go on would be to write in the clear.
    fn check_identity(&self, identity: &Identity) -> Result<()> {
        let is_encrypted = identity.is_encrypted();
        if self.is_encrypted() && !is_encrypted {
            return Err(Error::EncryptionGone {
                path: self.path.clone(),
            });
        }
        super::check_id(&self.path, &self.marker, identity)
    }

    /// Calls `open`, which takes the lock for `command`. If another process has it, and the caller does not wait, this process
    /// counts as one that waits until the caller asks again. A prune does not, for it is the one that lets others in.
    fn asks<T>(&self, command: &str, open: impl FnOnce() -> Result<T>) -> Result<T> {
        if command == lock::PRUNE {
            return open();
        }
        self.asking.end();
        let opened = open();
        if let Err(Error::Locked { .. }) = opened {
            self.asking.begin(&self.path);
        }
        opened
    }

    /// Opens the store for sessions.
    fn opened(&self, command: &str, wait: Wait<'_>) -> Result<Arc<Opened>> {
        self.open_store(command, wait).map(Arc::new)
    }

    /// Like [`Directory::opened`], also on a full disk.
    fn opened_to_manage(&self, command: &str, wait: Wait<'_>) -> Result<Arc<Opened>> {
        match self.opened(command, wait) {
            Err(error) if error.kind() == ErrorKind::NoSpace && ballast::release(&self.path)? => {
                self.opened(command, wait)
            }
            // What is left was enough to open it, and is not for what comes.
            Ok(opened) if opened.is_full()? => {
                ballast::release(&self.path)?;
                Ok(opened)
            }
            opened => opened,
        }
    }
}

impl Home for Directory {
    fn name(&self) -> &Path {
        &self.path
    }

    fn marker(&self) -> &Marker {
        &self.marker
    }

    fn newest(&self) -> Result<Option<u64>> {
        views::current(&self.path)
    }

    fn key_slots(&self) -> Result<Vec<SlotFile>> {
        keys::slot_files(&self.path)
    }

    fn unlock(&self, way: &Unlock, check: Option<&str>) -> Result<Keys> {
        keys::unlock(&self.path, way, check)
    }

    fn check_reserve(&self, reserve: Reserve) -> Result<()> {
        let FileSystem {
            size_bytes, free_bytes, ..
        } = file_system(&self.path)?;
        let reserve_bytes = reserve.bytes_of(size_bytes);
        match free_bytes < reserve_bytes {
            true => Err(Error::NearlyFull {
                path: self.path.clone(),
                free_bytes,
                reserve_bytes,
            }),
            false => Ok(()),
        }
    }

    fn disk_usage(&self) -> Result<DiskUsage> {
        disk_usage(&self.path)
    }

    fn check_tables(&self, snapshot: u64, cancel: &AtomicBool) -> Result<Vec<String>> {
        let mut found = check_files(&self.path, snapshot)?;
        found.extend(check_tables(&self.path, snapshot, cancel)?);
        Ok(found)
    }

    fn check_stored(&self, cancel: &AtomicBool, each: &mut dyn FnMut(String)) -> Result<u64> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (reader, number) = self.newest_reader()?;
        check_files(&self.path, number)?.into_iter().for_each(&mut *each);
        reader.check(threads, cancel, each)
    }

    fn add_key_slot(&self, slot: &SlotFile) -> Result<()> {
        keys::add_file(&self.path, slot)
    }

    fn remove_key_slot(&self, name: &str, stays: Option<&SlotFile>) -> Result<()> {
        keys::remove_file(&self.path, name, stays)
    }

    fn read_as_it_is(&self) -> Result<Option<Snapshot>> {
        Ok(views::open(&self.path)?.map(|held| Snapshot {
            store: Arc::new(held.reader),
            number: held.number,
        }))
    }

    fn read(&self) -> Result<Snapshot> {
        let (reader, number) = self.newest_reader()?;
        Ok(Snapshot {
            store: Arc::new(reader),
            number,
        })
    }

    fn write(&self, command: &str, wait: Wait<'_>) -> Result<Session<dyn StoreWriter>> {
        let opened = self.asks(command, || self.opened(command, wait))?;
        opened.keep_room()?;
        Ok(opened.session()?.to_write())
    }

    fn manage(&self, command: &str, wait: Wait<'_>) -> Result<Session<dyn StoreManager>> {
        self.asks(command, || self.opened_to_manage(command, wait))?.session()
    }
}

/// The store of a directory, open for writing.
struct Opened {
    path: PathBuf,
    store: Arc<RocksStore>,
    views: Mutex<Views>,
    /// Dropped after the store is closed.
    lock: WriterLock,
}

impl Opened {
    fn session(self: Arc<Self>) -> Result<Session<dyn StoreManager>> {
        Ok(Session {
            store: Arc::new(RocksSession::open(Arc::clone(&self.store))?),
            keeper: self,
        })
    }

    /// Keeps room for `forget` and `prune`, before a backup uses what is free; an error if there is not enough.
    fn keep_room(&self) -> Result<()> {
        ballast::require(&self.path, self.views.lock().list_bytes())
    }

    /// Returns whether the disk has too little room for a change of notes.
    fn is_full(&self) -> Result<bool> {
        Ok(file_system(&self.path)?.free_bytes < 4 << 20)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        ballast::refill(&self.path, self.views.get_mut().list_bytes());
    }
}

impl Keeper for Opened {
    fn publish(&self) -> Result<()> {
        let wanted = self.store.generation()?;
        // One at a time: guests are backed up at once, and an older view put in the place of a newer one would hide what is
        // in that, and take its directory away.
        let mut views = self.views.lock();
        // What several waited for meanwhile is published in one go.
        if views.newest().is_none_or(|newest| newest <= wanted) {
            views.publish(&self.store)?;
            ballast::ensure(&self.path, views.list_bytes());
        }
        Ok(())
    }

    fn room(&self) -> Result<Room> {
        Ok(Room {
            used_bytes: disk_usage(&self.path)?.total_bytes,
            free_bytes: self.free_bytes()?,
        })
    }

    fn free_bytes(&self) -> Result<u64> {
        Ok(file_system(&self.path)?.free_bytes)
    }

    fn note_prune(&self) {
        let now = Timestamp::now().to_string();
        let path = self.path.join(PRUNED);
        if let Err(error) = crate::files::write_whole(&path, now.as_bytes(), Mode::Umask, Synced::File) {
            tracing::debug!(%error, "the time of the prune is not noted");
        }
    }

    fn is_awaited(&self) -> bool {
        self.lock.is_awaited()
    }
}

/// Returns the end of the last prune of the repository in a directory, if it is known.
pub fn last_prune(repository: &Path) -> Option<Timestamp> {
    fs::read_to_string(repository.join(PRUNED)).ok()?.trim().parse().ok()
}

/// The error for a directory without a readable marker.
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
