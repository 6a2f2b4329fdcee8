//! Key slots of a repository that is not in a directory of this machine: their files travel, and the key only sealed in them.

use std::fs;
use std::path::{Path, PathBuf};

use super::{DIRECTORY, Found, Keys, SlotInfo, Unlock, bad, files_in, lock, no_such, read_file, unlock_by};
use crate::error::{Error, Result};
use crate::files::sync_directory_where_possible;
use crate::name;

/// A key slot as its file has it. It opens only with its secret; an attacker who has it can try passphrases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFile {
    /// Name of the slot.
    pub name: String,
    /// Content of the file.
    pub bytes: Vec<u8>,
}

/// Returns the files of the key slots that can be read, in the order of their names.
pub fn slot_files(repo_dir: &Path) -> Result<Vec<SlotFile>> {
    let file = |(name, path): (String, PathBuf)| {
        Some(SlotFile {
            bytes: read_file(&path).ok()?,
            name,
        })
    };
    Ok(files_in(repo_dir)?.into_iter().filter_map(file).collect())
}

/// Like [`super::unlock`], for a repository elsewhere. `repository` is only for messages.
pub fn unlock_files(repository: &Path, files: &[SlotFile], unlock: &Unlock, check: Option<&str>) -> Result<Keys> {
    let slots = files.iter().map(|file| Found::of(repository, file));
    unlock_by(repository, slots.collect(), unlock, check)
}

/// Like [`super::slots`], for a repository elsewhere. `repository` is only for messages.
pub fn slots_of(repository: &Path, files: &[SlotFile]) -> Vec<Result<SlotInfo>> {
    files.iter().map(|file| Found::of(repository, file).info()).collect()
}

/// Returns the name of the slot by which `way` opens a repository; `None` if `way` is an exported key, which needs no slot. Fails
/// with the errors of [`super::unlock`]. `repository` is only for messages.
pub fn opened_by(repository: &Path, files: &[SlotFile], way: &Unlock, check: &str) -> Result<Option<String>> {
    let opens = |files: &[SlotFile]| unlock_files(repository, files, way, Some(check));
    if opens(&[]).is_ok() {
        return Ok(None);
    }
    match files.iter().find(|file| opens(std::slice::from_ref(file)).is_ok()) {
        Some(file) => Ok(Some(file.name.clone())),
        // With all of them, for the words of the error.
        None => opens(files).map(|_| None),
    }
}

/// Returns a slot other than `name` by which `way` opens a repository elsewhere; `None` if `way` is an exported key, which needs
/// no slot. For [`remove_file`]; fails as [`super::remove`] does. `repository` is only for messages.
pub fn opened_without(
    repository: &Path,
    files: &[SlotFile],
    name: &str,
    way: &Unlock,
    check: &str,
) -> Result<Option<SlotFile>> {
    if !files.iter().any(|file| file.name == name) {
        return Err(no_such(name, files.iter().map(|file| &*file.name)));
    }
    let opens = |files: &[SlotFile]| unlock_files(repository, files, way, Some(check));
    if opens(&[]).is_ok() {
        return Ok(None);
    }
    let mut staying = files.iter().filter(|file| file.name != name);
    match staying.find(|file| opens(std::slice::from_ref(file)).is_ok()) {
        Some(stays) => Ok(Some(stays.clone())),
        None => Err(match opens(files) {
            Ok(_) => Error::LastKey(name.to_owned()),
            Err(error) => error,
        }),
    }
}

/// Removes a slot, damaged or not, for a caller that found with [`opened_without`] that the repository opens without it: by
/// `stays`, which must still be there as it was. So two removals can't each rely on the slot that the other one removes. Durable
/// when this returns.
pub fn remove_file(repo_dir: &Path, name: &str, stays: Option<&SlotFile>) -> Result<()> {
    name::check("key", name)?;
    let directory = repo_dir.join(DIRECTORY);
    let _lock = lock(&directory)?;
    let files = files_in(repo_dir)?;
    let Some((_, path)) = files.iter().find(|(found, _)| found == name) else {
        return Err(no_such(name, files.iter().map(|(name, _)| &**name)));
    };
    if let Some(stays) = stays {
        let file = files.iter().find(|(found, _)| *found == stays.name && found != name);
        if !file.is_some_and(|(_, path)| read_file(path).is_ok_and(|bytes| bytes == stays.bytes)) {
            return Err(bad(&format!(
                "key {} was changed or removed meanwhile; nothing was removed",
                stays.name
            )));
        }
    }
    fs::remove_file(path).map_err(Error::io("remove", path))?;
    sync_directory_where_possible(&directory).map_err(Error::io("sync", directory))
}
