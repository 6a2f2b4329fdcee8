//! A repository on this machine: a directory, who may write to it, and what readers see of it.
//!
//! | in the directory | what |
//! |---|---|
//! | `vbk-repository` | says what this is and the number of this layout, as `format: 1`; written last when it is made |
//! | `store/` | the RocksDB store, see [`crate::store::rocks`]; opened by the writer alone |
//! | `views/` | what readers open, see `views.rs` |
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
use crate::lock::WriterLock;
use crate::mark::mark;
use crate::state::{self, State, States};
use crate::status::disk_usage;
use crate::store::rocks::{RocksReader, RocksStore, path_in};
use crate::store::{BlockStore, Identity, Note, Record, STORE_FORMAT, StoreReader, Swept, Thrift};
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
}

/// Decides whether to go on waiting for the process that holds the lock; it is called with that process's
/// description about five times a second.
pub type Wait<'a> = &'a mut dyn FnMut(&str) -> bool;

impl Repository {
    /// Makes a repository in a new or empty directory. Durable when this returns; when it fails nothing is left.
    pub fn create(path: &Path, block_size: BlockSize) -> Result<Self> {
        let is_new = !path.exists();
        fs::create_dir_all(path).map_err(Error::io("create", path))?;
        // Links that will be compared and kept must not depend on where the process stands.
        let path = fs::canonicalize(path).map_err(Error::io("open", path))?;
        if path.join(MARKER).exists() {
            return Err(Error::AlreadyARepository { path });
        }
        let mut entries = fs::read_dir(&path).map_err(Error::io("list", &path))?;
        // A file system of its own has this directory at its top.
        if entries.any(|entry| !entry.is_ok_and(|entry| entry.file_name() == "lost+found")) {
            return Err(Error::NotEmpty { path });
        }
        match fill(&path, block_size) {
            Ok(()) => Ok(Self { path }),
            Err(error) => {
                undo_fill(&path, is_new);
                Err(error)
            }
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
            }),
            None => Err(Error::NotARepository { path: path.to_owned() }),
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
        let started = Instant::now();
        loop {
            if let Some(held) = views::open(&self.path)? {
                return View::new(held.reader, held.number, &self.path);
            }
            // No view, or one that lacks something: loss of power right after init, or a copy of the directory. A
            // writer makes it anew when it opens.
            match self.writer("open", &mut |_| false) {
                Err(error) if error.kind() == ErrorKind::Denied => {
                    // Nobody can write here, so the store itself is as good as a view.
                    let reader = RocksReader::open(&path_in(&self.path), None)?;
                    let number = reader.generation()?;
                    return View::new(reader, number, &self.path);
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
        let lock = WriterLock::take(&self.path, command, wait)?;
        let store = RocksStore::open(&path_in(&self.path))?;
        let identity = store.identity()?;
        identity.check(&self.path)?;
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
        Ok(Writer {
            store: Arc::new(store),
            identity,
            path: self.path.clone(),
            _lock: lock,
        })
    }
}

fn fill(path: &Path, block_size: BlockSize) -> Result<()> {
    restrict(path)?;
    let views = path.join("views");
    fs::create_dir(&views).map_err(Error::io("create", &views))?;
    check_hard_links(path)?;
    let now = Timestamp::now();
    let seed = format!("{now} {} {}", path.display(), std::process::id());
    let identity = Identity {
        format: STORE_FORMAT,
        features: Vec::new(),
        id: to_hex(&Hashing::Plain.content(seed.as_bytes())[..8]),
        block_size,
        created: now,
        key_check: None,
    };
    let lock = WriterLock::take(path, "init", &mut |_| false)?;
    let store = RocksStore::create(&path_in(path), &identity)?;
    views::publish(path, &store)?;
    drop(store);
    write_marker(path)?;
    drop(lock);
    Ok(())
}

/// Removes what a failed `fill` made; what can't be removed is named by the next attempt.
fn undo_fill(path: &Path, is_new: bool) {
    for name in ["views", "store"] {
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

fn write_marker(path: &Path) -> Result<()> {
    let marker = path.join(MARKER);
    let text = format!(
        "This directory is a repository of vbk, with backups of virtual servers.\n\
         `vbk list --repo DIRECTORY` shows what is in it. Change nothing here by hand.\n\
         format: {LAYOUT_FORMAT}\n"
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
    fn new(reader: RocksReader, number: u64, path: &Path) -> Result<Self> {
        let identity = reader.identity()?;
        identity.check(path)?;
        Ok(Self {
            store: Arc::new(reader),
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
    store: Arc<RocksStore>,
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
        views::publish(&self.path, &self.store)
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
