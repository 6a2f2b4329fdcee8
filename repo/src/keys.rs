//! The master key of an encrypted repository, and the slots, key files and recovery keys that unlock it.
//!
//! A repository has one random master key, which never changes. It is never used itself, only keys derived from it,
//! each for one purpose: `blake3::derive_key("vbk 2026-11-21 v1 PURPOSE", master)`. The repository contains the master
//! key only in wrapped form, in key slots: the files `REPO/keys/NAME.json` (mode 0600, the directory 0700), one for
//! each passphrase, key file or recovery key that opens it. A passphrase can therefore be changed without touching a
//! backup. It also means that a removed slot still opens the repository for anyone who kept a copy of the slot and its
//! secret.
//!
//! # Crash safety
//!
//! 1. A slot is written in full to `.NAME.json.tmp` and synced. A crash leaves a file that no reader uses.
//! 2. It is renamed to its name, and the directory is synced. A crash before that leaves the old list or the new one.
//! 3. Removal is one unlink, then the directory is synced. The process that removes a slot first proves that the
//!    repository can still be opened: it opens another slot, or has an exported key. Changes are made under a lock
//!    (flock(2) on `REPO/keys`), so that two removals can't each rely on the slot that the other one removes.
//! 4. A key is changed by adding the new one and then removing the old one, with the new one as the proof of 3. A crash in
//!    between leaves both.
//!
//! A damaged slot costs only that slot. If all slots are lost, an exported key opens the repository.

mod elsewhere;
mod file;
mod recovery;
mod slot;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind as Io, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use zeroize::Zeroizing;

use crate::block::derive;
use crate::cipher::{Cipher, random};
use crate::error::{Error, Result};
use crate::files::{self, Mode, Synced, sync_directory_where_possible};
use crate::id::to_hex;
use crate::name;
use file::KeyText;
use slot::{Secret, Slot};

pub use elsewhere::{SlotFile, opened_by, opened_without, remove_file, slot_files, slots_of, unlock_files};
pub use recovery::RecoveryKey;
pub use slot::{PassphraseCost, SlotKind};

const DIRECTORY: &str = "keys";
const ENDING: &str = ".json";

/// The most slots of a repository. A passphrase is tried on each that is for one, which takes a second.
pub const MAX_SLOTS: usize = 64;

/// The master key. Clones share it; it is zeroed when the last is dropped.
#[derive(Clone)]
pub struct Keys {
    master: Arc<Zeroizing<[u8; 32]>>,
}

impl Keys {
    /// Returns a new random master key.
    pub fn generate() -> Result<Self> {
        Ok(Self::of(random()?.into()))
    }

    fn of(master: Zeroizing<[u8; 32]>) -> Self {
        Self {
            master: Arc::new(master),
        }
    }

    /// Returns the key of the keyed BLAKE3 that names blocks, segments and records.
    pub fn hashing_key(&self) -> [u8; 32] {
        derive("vbk 2026-11-21 v1 hashing", &self.master)
    }

    /// Returns the cipher that seals blocks, segments and records.
    pub(crate) fn cipher(&self) -> Cipher {
        Cipher::new(derive("vbk 2026-11-21 v1 cipher", &self.master))
    }

    /// Returns the key of the names that records are stored under, which must not reveal guests and times.
    pub fn name_key(&self) -> [u8; 32] {
        derive("vbk 2026-11-21 v1 record names", &self.master)
    }

    /// Returns the key of the elements whose sums prove which records and notes exist.
    pub(crate) fn epoch_key(&self) -> [u8; 32] {
        derive("vbk 2026-11-28 v1 epoch", &self.master)
    }

    /// Returns 16 hexadecimal digits that distinguish this key from others and reveal nothing else about it.
    pub fn check(&self) -> String {
        to_hex(&derive("vbk 2026-11-21 v1 check", &self.master)[..8])
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(..)")
    }
}

/// A passphrase or key that unlocks a repository, as its owner supplies it.
#[derive(Clone)]
pub enum Unlock {
    /// Used byte for byte: the code that reads it from a file or terminal strips the line end.
    Passphrase(Zeroizing<String>),
    /// The bytes of a key file, or of an exported key.
    KeyFile(Zeroizing<Vec<u8>>),
    /// A recovery key, typed from paper.
    Recovery(RecoveryKey),
}

impl Unlock {
    /// Returns the kind of slot that it opens. An exported key counts as a key file.
    pub fn kind(&self) -> SlotKind {
        match self {
            Self::Passphrase(_) => SlotKind::Passphrase,
            Self::KeyFile(_) => SlotKind::KeyFile,
            Self::Recovery(_) => SlotKind::Recovery,
        }
    }
}

impl fmt::Debug for Unlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unlock({})", self.kind())
    }
}

/// Description of a key slot, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotInfo {
    /// Name of the slot.
    pub name: String,
    /// Kind of the secret that opens it.
    pub kind: SlotKind,
    /// Time of its creation.
    pub created: Timestamp,
}

/// Returns the key slots in the order of their names; a damaged one is represented by an error that names its file.
/// Returns none if the repository is not encrypted.
pub fn slots(repo_dir: &Path) -> Result<Vec<Result<SlotInfo>>> {
    Ok(read_all(repo_dir)?.into_iter().map(Found::info).collect())
}

/// Adds a slot that opens with `unlock`. Durable when this returns. `cost` matters only for a passphrase.
///
/// Fails with [`Error::KeyExists`] if a slot has the name already, damaged or not, and with [`Error::BadKey`] if the
/// passphrase is empty or the key file is invalid.
pub fn add(repo_dir: &Path, name: &str, keys: &Keys, unlock: &Unlock, cost: PassphraseCost) -> Result<()> {
    add_file(repo_dir, &seal(name, keys, unlock, cost)?)
}

/// Makes the file of a slot that opens with `unlock`, for [`add_file`]: the key is sealed in it.
pub fn seal(name: &str, keys: &Keys, unlock: &Unlock, cost: PassphraseCost) -> Result<SlotFile> {
    name::check("key", name)?;
    let key;
    let secret = match unlock {
        Unlock::Passphrase(passphrase) if passphrase.is_empty() => return Err(bad("the passphrase is empty")),
        Unlock::Passphrase(passphrase) => Secret::Passphrase(passphrase),
        Unlock::KeyFile(bytes) => match file::parse(bytes)? {
            KeyText::Slot(found) => {
                key = found;
                Secret::KeyFile(&key)
            }
            KeyText::Master { .. } => {
                return Err(bad(
                    "this is an exported key, which opens its repository without a slot",
                ));
            }
        },
        Unlock::Recovery(key) => Secret::Recovery(key.bytes()),
    };
    let now = Timestamp::now();
    let created = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let slot = Slot::wrap(name, created, &secret, &keys.master, cost)?;
    Ok(SlotFile {
        name: name.to_owned(),
        bytes: slot.to_json(),
    })
}

/// Adds a slot that was made elsewhere, maybe by a peer that is not trusted: nothing but a slot with its own name is kept, and
/// [`MAX_SLOTS`] at most. Only a holder of the key can know what the slot opens. Durable when this returns.
///
/// Fails with [`Error::KeyExists`] if a slot has the name already, damaged or not.
pub fn add_file(repo_dir: &Path, file: &SlotFile) -> Result<()> {
    let name = &*file.name;
    name::check("key", name)?;
    Found::of(repo_dir, file).slot?;
    let directory = repo_dir.join(DIRECTORY);
    match DirBuilder::new().mode(0o700).create(&directory) {
        Ok(()) => sync_directory_where_possible(repo_dir).map_err(Error::io("sync", repo_dir))?,
        Err(error) if error.kind() == Io::AlreadyExists => {}
        Err(error) => return Err(Error::io("create", directory)(error)),
    }
    let _lock = lock(&directory)?;
    let path = slot_path(repo_dir, name);
    if path.symlink_metadata().is_ok() {
        return Err(Error::KeyExists(name.to_owned()));
    }
    if files_in(repo_dir)?.len() >= MAX_SLOTS {
        return Err(bad(&format!(
            "the repository has {MAX_SLOTS} keys already; `vbk key remove` removes one"
        )));
    }
    // Hidden, as `read_all` expects of drafts. While the lock is held, no other process writes it.
    let draft = directory.join(format!(".{name}{ENDING}.tmp"));
    files::write_by_draft(&path, &draft, &file.bytes, Mode::Private, Synced::FileAndDirectory)
        .map_err(Error::io("write", path))
}

/// Removes a slot, damaged or not. Durable when this returns.
///
/// `way` must open the repository without that slot, by another slot or as an exported key; otherwise nothing is
/// removed. A slot that can be read is not enough: its secret may be lost, or it may belong to another repository.
/// Fails with [`Error::LastKey`] if `way` opens the slot to be removed and no other; otherwise with the errors of
/// [`unlock`].
pub fn remove(repo_dir: &Path, name: &str, way: &Unlock, check: &str) -> Result<()> {
    name::check("key", name)?;
    let directory = repo_dir.join(DIRECTORY);
    let _lock = match lock(&directory) {
        Err(Error::Io { source, .. }) if source.kind() == Io::NotFound => None,
        held => Some(held?),
    };
    let all = read_all(repo_dir)?;
    let path = slot_path(repo_dir, name);
    if !all.iter().any(|found| found.path == path) {
        return Err(no_such(name, all.iter().map(|found| &*found.name)));
    }
    let staying = all.into_iter().filter(|found| found.path != path).collect();
    if unlock_by(repo_dir, staying, way, Some(check)).is_err() {
        return Err(match unlock(repo_dir, way, Some(check)) {
            Ok(_) => Error::LastKey(name.to_owned()),
            Err(error) => error,
        });
    }
    fs::remove_file(&path).map_err(Error::io("remove", path))?;
    sync_directory_where_possible(&directory).map_err(Error::io("sync", directory))
}

fn no_such<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Error {
    let known: Vec<_> = known.collect();
    Error::NoSuchKey {
        name: name.to_owned(),
        known: match known.is_empty() {
            true => "none".to_owned(),
            false => known.join(", "),
        },
    }
}

/// Opens the repository. `check` is the value of [`Keys::check`] when the repository was created: a key with another
/// value is refused. Without `check`, a slot or exported key of another repository is taken for one of this repository.
///
/// Tries every slot of the kind, which for passphrases takes about a second and [`PassphraseCost::memory_kib`] of
/// memory each.
pub fn unlock(repo_dir: &Path, unlock: &Unlock, check: Option<&str>) -> Result<Keys> {
    unlock_by(repo_dir, read_all(repo_dir)?, unlock, check)
}

fn unlock_by(repo_dir: &Path, slots: Vec<Found>, unlock: &Unlock, check: Option<&str>) -> Result<Keys> {
    let key;
    let (secret, what) = match unlock {
        Unlock::Passphrase(passphrase) => (Secret::Passphrase(passphrase), "passphrase"),
        Unlock::Recovery(key) => (Secret::Recovery(key.bytes()), "recovery key"),
        Unlock::KeyFile(bytes) => match file::parse(bytes)? {
            KeyText::Slot(found) => {
                key = found;
                (Secret::KeyFile(&key), "key file")
            }
            KeyText::Master { repository, master } => {
                return fits(Keys::of(master), check).ok_or_else(|| Error::WrongKey {
                    what: format!(
                        "the exported key belongs to repository {repository}, not to {}",
                        repo_dir.display()
                    ),
                });
            }
        },
    };
    let (mut tried, mut others, mut unread) = (false, Vec::new(), Vec::new());
    let mut stranger = None;
    for found in slots {
        let slot = match found.slot {
            Ok(slot) => slot,
            Err(error) => {
                unread.push(error);
                continue;
            }
        };
        if slot.kind != secret.kind() {
            others.push(format!("{} ({})", slot.name, slot.kind));
            continue;
        }
        match slot.unwrap(&secret) {
            Ok(Some(master)) => match fits(Keys::of(master), check) {
                Some(keys) => return Ok(keys),
                None => stranger = Some(found.path),
            },
            Ok(None) => {}
            Err(error) => {
                unread.push(error);
                continue;
            }
        }
        tried = true;
    }
    Err(refusal(repo_dir, what, tried, stranger, &others, unread))
}

/// Returns the error for a failed unlock. It always names damaged slots: one of them may have been the right one.
fn refusal(
    repo_dir: &Path,
    secret: &str,
    tried: bool,
    stranger: Option<PathBuf>,
    others: &[String],
    mut unread: Vec<Error>,
) -> Error {
    let repository = repo_dir.display();
    let mut what = match (stranger, tried) {
        (Some(path), _) => format!(
            "{} opens with this {secret}, but contains the key of another repository",
            path.display()
        ),
        (None, true) => format!("no key slot of {repository} opens with this {secret}"),
        (None, false) if others.is_empty() && unread.is_empty() => {
            format!("{repository} has no key slots; only its exported key opens it")
        }
        (None, false) if unread.is_empty() => {
            format!(
                "no key slot of {repository} is for a {secret}; existing slots: {}",
                others.join(", ")
            )
        }
        (None, false) => {
            // No slot was tried, so the damage is the whole error.
            let mut first = unread.remove(0);
            if let Error::KeySlotDamaged { what, .. } = &mut first {
                unread.iter().for_each(|error| *what += &format!("; {error}"));
            }
            return first;
        }
    };
    for error in unread {
        what += &format!("; not tried: {error}");
    }
    Error::WrongKey { what }
}

fn fits(keys: Keys, check: Option<&str>) -> Option<Keys> {
    check.is_none_or(|check| check == keys.check()).then_some(keys)
}

/// Creates a key file, mode 0600, and returns it as a means to unlock. Durable when this returns; an existing file is
/// never replaced.
pub fn create_key_file(path: &Path) -> Result<Unlock> {
    file::create(path).map(Unlock::KeyFile)
}

/// Returns the text of an exported key: the master key itself, with the repository's id and a checksum.
/// [`Unlock::KeyFile`] accepts it. `repo_id` must be one word.
pub fn export(keys: &Keys, repo_id: &str) -> Zeroizing<String> {
    file::export(&keys.master, repo_id)
}

struct Found {
    name: String,
    path: PathBuf,
    slot: Result<Slot>,
}

impl Found {
    fn of(repository: &Path, SlotFile { name, bytes }: &SlotFile) -> Self {
        Self::new(name.clone(), slot_path(repository, name), Ok(bytes.clone()))
    }

    fn info(self) -> Result<SlotInfo> {
        self.slot.map(|slot| SlotInfo {
            name: slot.name,
            kind: slot.kind,
            created: slot.created,
        })
    }

    fn new(name: String, path: PathBuf, bytes: Result<Vec<u8>>) -> Self {
        let slot = bytes.and_then(|bytes| {
            let slot = match bytes.len() as u64 > slot::MAX_BYTES {
                true => Err("it is too long".to_owned()),
                false => Slot::from_json(&name, &bytes),
            };
            slot.map_err(|what| Error::KeySlotDamaged {
                path: path.clone(),
                what,
            })
        });
        Self { name, path, slot }
    }
}

fn read_all(repo_dir: &Path) -> Result<Vec<Found>> {
    let read = |(name, path): (String, PathBuf)| {
        let bytes = read_file(&path);
        Found::new(name, path, bytes)
    };
    Ok(files_in(repo_dir)?.into_iter().map(read).collect())
}

/// Returns the names and paths of all slots, in the order of their names.
fn files_in(repo_dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let directory = repo_dir.join(DIRECTORY);
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == Io::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("list", &directory))?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let file_name = entry.map_err(Error::io("list", &directory))?.file_name();
        let text = file_name.to_string_lossy();
        // Hidden files are drafts.
        if let Some(name) = text.strip_suffix(ENDING).filter(|name| !name.starts_with('.')) {
            all.push((name.to_owned(), directory.join(&file_name)));
        }
    }
    // Not by the paths, where passphrase-2.json is before passphrase.json.
    all.sort();
    Ok(all)
}

/// Reads no more of a slot's file than shows that it is too long.
fn read_file(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(slot::MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(Error::io("read", path))?;
    Ok(bytes)
}

fn slot_path(repo_dir: &Path, name: &str) -> PathBuf {
    repo_dir.join(DIRECTORY).join(format!("{name}{ENDING}"))
}

fn lock(directory: &Path) -> Result<File> {
    let file = File::open(directory).map_err(Error::io("open", directory))?;
    file.lock().map_err(Error::io("lock", directory))?;
    Ok(file)
}

fn bad(what: &str) -> Error {
    Error::BadKey { what: what.to_owned() }
}
