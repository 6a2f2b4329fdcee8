//! A repository on this machine: a directory, who may write to it, and what readers see of it.
//!
//! | in the directory | what |
//! |---|---|
//! | `vbk-repository` | says what this is and the number of this layout, as `format: 1`; in an encrypted repository also `encryption: aes-256-gcm` and [`Keys::check`]; written last when it is made |
//! | `keys/` | the key slots of an encrypted repository, see [`crate::keys`] |
//! | `store/` | the RocksDB store, see [`crate::store::rocks`]; opened by the writer alone |
//! | `views/` | what readers open, see `views.rs` |
//! | `spare/` | second copies of the store's tables, see `spare.rs` |
//! | `lock` | held by the writer, see [`crate::lock`] |

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::backup::{Backup, Entry};
use crate::block::{BlockSize, Hashing};
use crate::catalogue::Catalogue;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BackupId, to_hex};
use crate::keys::{self, Keys, PassphraseCost, Unlock};
use crate::lock::WriterLock;
use crate::mark::mark;
use crate::mend::{Mended, mend};
use crate::state::{self, State, States};
use crate::store::encrypted::Encrypted;
use crate::store::rocks::{RocksReader, RocksStore, path_in};
use crate::store::{BlockStore, ENCRYPTION, Identity, Note, Record, STORE_FORMAT, StoreReader, Swept, Thrift};
use crate::usage::disk_usage;
use crate::views;

/// The newest directory layout that this vbk reads, and the one it writes.
pub const LAYOUT_FORMAT: u32 = 1;

const MARKER: &str = "vbk-repository";

/// A prune shows readers its progress, and lets go of what they saw before, each time it has removed so much.
const PUBLISH_BYTES: u64 = 2 << 30;

/// How long a reader waits for a writer to publish the first view.
const FIRST_VIEW_TIMEOUT: Duration = Duration::from_secs(30);

/// A repository's directory, known to be one.
#[derive(Debug, Clone)]
pub struct Repository {
    path: PathBuf,
    /// [`Keys::check`] of an encrypted repository.
    key_check: Option<String>,
    keys: Option<Keys>,
}

/// How a repository is to be made.
#[derive(Debug)]
pub struct CreateOptions {
    /// How disks are cut.
    pub block_size: BlockSize,
    /// The keys of an encrypted one, and the slots that open it: their names and what they open with.
    pub encryption: Option<(Keys, Vec<(String, Unlock)>)>,
}

impl CreateOptions {
    /// Without encryption.
    pub fn plain(block_size: BlockSize) -> Self {
        Self {
            block_size,
            encryption: None,
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
        let is_new = !path.exists();
        fs::create_dir_all(path).map_err(Error::io("create", path))?;
        // Links that will be compared and kept must not depend on where the process stands.
        let path = fs::canonicalize(path).map_err(Error::io("open", path))?;
        let keys = options.encryption.as_ref().map(|(keys, _)| keys.clone());
        match fill(&path, options) {
            Ok(()) => Ok(Self {
                path,
                key_check: keys.as_ref().map(Keys::check),
                keys,
            }),
            Err(error) => {
                undo_fill(&path, is_new);
                Err(error)
            }
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
        let text = fs::read_to_string(&marker).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::NotARepository { path: path.to_owned() },
            _ => Error::io("read", &marker)(error),
        })?;
        let found = text
            .lines()
            .find_map(|line| line.strip_prefix("format: ")?.trim().parse().ok());
        match found {
            Some(found) if found > LAYOUT_FORMAT => Err(Error::NewerFormat {
                path: path.to_owned(),
                found,
                supported: LAYOUT_FORMAT,
            }),
            Some(_) => Ok(Self {
                path: fs::canonicalize(path).map_err(Error::io("open", path))?,
                key_check: text.lines().find_map(key_check_in),
                keys: None,
            }),
            None => Err(Error::NotARepository { path: path.to_owned() }),
        }
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
        self.keys = Some(keys::unlock(&self.path, unlock, self.key_check.as_deref())?);
        Ok(self)
    }

    /// The keys, if it was unlocked or just made.
    pub fn keys(&self) -> Option<&Keys> {
        self.keys.as_ref()
    }

    /// Puts the store's own files right, as far as that is possible: the first step of a repair, before a writer is opened.
    pub fn mend(&self, wait: Wait<'_>) -> Result<Mended> {
        let _lock = WriterLock::take(&self.path, "repair", wait)?;
        mend(&self.path)
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
                Err(error) if error.kind() == ErrorKind::Denied => {
                    // Nobody can write here, so the store itself is as good as a view.
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
        let store: Arc<dyn BlockStore> = match self.keys_for(&identity)? {
            Some(keys) => Arc::new(Encrypted::new(Arc::clone(&rocks), keys)),
            None => Arc::clone(&rocks) as _,
        };
        Ok(Writer {
            rocks,
            store,
            identity,
            path: self.path.clone(),
            _lock: lock,
        })
    }

    /// The keys, if the repository needs them; an error if they are not there or not the right ones.
    fn keys_for(&self, identity: &Identity) -> Result<Option<&Keys>> {
        identity.check(&self.path)?;
        let needed = identity.features.iter().any(|feature| feature == ENCRYPTION);
        match (&self.keys, needed) {
            (_, false) => Ok(None),
            (None, true) => Err(Error::KeyNeeded {
                path: self.path.clone(),
            }),
            (Some(keys), true) if identity.key_check.as_deref() == Some(&*keys.check()) => Ok(Some(keys)),
            (Some(_), true) => Err(Error::WrongKey {
                what: format!("the key is not that of {}", self.path.display()),
            }),
        }
    }

    fn open_store(&self, command: &str, wait: Wait<'_>) -> Result<(Arc<RocksStore>, WriterLock)> {
        let lock = WriterLock::take(&self.path, command, wait)?;
        let store = RocksStore::open(&path_in(&self.path))?;
        store.identity()?.check(&self.path)?;
        let newest = views::current(&self.path)?.unwrap_or(0);
        if store.generation()? < newest {
            // Published, it would take the place of a state that has more in it.
            return Err(Error::Store {
                kind: ErrorKind::Corrupt,
                doing: "open",
                message: format!("it is older than view {newest}, which was made of it"),
            });
        }
        // A run that was killed between its commit and its publication left a backup that no reader sees yet.
        views::publish(&self.path, &store)?;
        Ok((Arc::new(store), lock))
    }
}

/// `encryption: aes-256-gcm CHECK`.
fn key_check_in(line: &str) -> Option<String> {
    let (_cipher, check) = line.strip_prefix("encryption: ")?.trim().split_once(' ')?;
    Some(check.to_owned())
}

fn fill(path: &Path, options: &CreateOptions) -> Result<()> {
    restrict(path)?;
    let views = path.join("views");
    fs::create_dir(&views).map_err(Error::io("create", &views))?;
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
    let lock = WriterLock::take(path, "init", &mut |_| false)?;
    let store = RocksStore::create(&path_in(path), &identity)?;
    views::publish(path, &store)?;
    drop(store);
    write_marker(path, identity.key_check.as_deref())?;
    drop(lock);
    Ok(())
}

/// Removes what a failed `fill` made; what can't be removed is named by the next attempt.
fn undo_fill(path: &Path, is_new: bool) {
    for name in ["views", "store", "spare", "keys"] {
        let _ = fs::remove_dir_all(path.join(name));
    }
    for name in ["lock", MARKER] {
        let _ = fs::remove_file(path.join(name));
    }
    if is_new {
        let _ = fs::remove_dir(path);
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

fn write_marker(path: &Path, key_check: Option<&str>) -> Result<()> {
    let marker = path.join(MARKER);
    let encryption = key_check.map_or(String::new(), |check| format!("encryption: aes-256-gcm {check}\n"));
    let text = format!(
        "This directory is a repository of vbk, with backups of virtual servers.\n\
         `vbk list --repo DIRECTORY` shows what is in it. Change nothing here by hand.\n\
         format: {LAYOUT_FORMAT}\n{encryption}"
    );
    fs::File::create(&marker)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::File::open(path)?.sync_all()
        })
        .map_err(Error::io("write", &marker))
}

/// A repository as it was after some commit. It stays readable, whatever is done to the repository, until it and all
/// clones of its store are dropped.
pub struct View {
    store: Arc<dyn StoreReader>,
    identity: Identity,
    number: u64,
}

impl View {
    fn new(reader: RocksReader, number: u64, repository: &Repository) -> Result<Self> {
        let identity = reader.identity()?;
        let reader = Arc::new(reader);
        let store: Arc<dyn StoreReader> = match repository.keys_for(&identity)? {
            Some(keys) => Arc::new(Encrypted::new(reader, keys)),
            None => reader,
        };
        Ok(Self {
            store,
            identity,
            number,
        })
    }

    /// What the repository is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Greater in a newer view.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What keeps the bytes.
    pub fn store(&self) -> Arc<dyn StoreReader> {
        Arc::clone(&self.store)
    }

    /// All backups.
    pub fn catalogue(&self) -> Result<Catalogue> {
        Catalogue::load(&*self.store)
    }

    /// What is known of the backups besides their records.
    pub fn states(&self) -> Result<States> {
        States::load(&*self.store)
    }
}

/// A repository open for writing; no other process can write to it meanwhile.
pub struct Writer {
    rocks: Arc<RocksStore>,
    /// The same, with encryption where there is some.
    store: Arc<dyn BlockStore>,
    identity: Identity,
    path: PathBuf,
    _lock: WriterLock,
}

impl Writer {
    /// What the repository is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What keeps the bytes.
    pub fn store(&self) -> &dyn BlockStore {
        &*self.store
    }

    /// All backups.
    pub fn catalogue(&self) -> Result<Catalogue> {
        Catalogue::load(&*self.store)
    }

    /// Makes a backup visible. Everything it names must have been put; all of it is durable when this returns.
    pub fn commit(&self, backup: Backup) -> Result<Committed> {
        let bytes = backup.encode();
        let id = BackupId(self.store.hashing().content(&bytes));
        let key = backup.spec();
        self.store.commit(&Record { key, bytes })?;
        Ok(Committed {
            entry: Entry { id, backup },
            unpublished: self.publish().err(),
        })
    }

    /// What is known of the backups besides their records.
    pub fn states(&self) -> Result<States> {
        States::load(&*self.store)
    }

    /// Removes backups, named as `GUEST@TIME`, and changes notes: all of it or nothing, durable when this returns. The
    /// blocks stay until [`Writer::prune`].
    pub fn amend(&self, forget: &[String], notes: &[Note]) -> Result<()> {
        let mut all = notes.to_vec();
        all.extend(forget.iter().map(|key| state::note_of(key, State::default())));
        self.store.amend(forget, &all)?;
        self.publish()
    }

    /// Removes what no backup names, and gives its space back. May be ended at any moment; the next one goes on.
    /// `progress` is told the bytes that were removed so far.
    pub fn prune(&self, thrift: Thrift, threads: usize, cancel: &AtomicBool, progress: &dyn Fn(u64)) -> Result<Pruned> {
        let started = Instant::now();
        let catalogue = self.catalogue()?;
        let live = mark(&*self.store, &catalogue, threads, cancel)?;
        let marked = started.elapsed();
        let used_before = disk_usage(&self.path)?.total_bytes;
        let mut published_bytes = 0;
        let swept = self.store.retain(&live, thrift, &mut |removed_bytes| {
            progress(removed_bytes);
            // The view before holds on to all that was removed since.
            if removed_bytes >= published_bytes + PUBLISH_BYTES {
                published_bytes = removed_bytes;
                self.publish()?;
            }
            match cancel.load(Ordering::SeqCst) {
                true => Err(Error::Interrupted),
                false => Ok(()),
            }
        });
        if !thrift.dry_run {
            self.publish()?;
        }
        Ok(Pruned {
            backups: catalogue.entries().len() as u64,
            swept: swept?,
            marked,
            used_before_bytes: used_before,
            used_after_bytes: disk_usage(&self.path)?.total_bytes,
        })
    }

    fn publish(&self) -> Result<()> {
        views::publish(&self.path, &self.rocks)
    }
}

/// What a prune did.
#[derive(Debug, Clone, Copy)]
pub struct Pruned {
    /// Backups that are kept.
    pub backups: u64,
    /// What was found and removed.
    pub swept: Swept,
    /// How long it took to find out what is needed.
    pub marked: Duration,
    /// What the repository took on its file system before.
    pub used_before_bytes: u64,
    /// And after. What views of running readers hold is given back when those end.
    pub used_after_bytes: u64,
}

/// A backup that is stored.
#[derive(Debug)]
pub struct Committed {
    /// The backup.
    pub entry: Entry,
    /// Why readers do not see it before the next writer has been there, if so.
    pub unpublished: Option<Error>,
}

#[cfg(test)]
mod tests;
