//! Second copies of the store's tables.
//!
//! RocksDB keeps headers, the index, manifests and records in sorted files, which together take about a thousandth of what
//! the blocks take: so little that one damaged file can cost much and a second copy costs nothing. Each table of the
//! newest view has one in `REPO/spare/`, named `NUMBER.sst.HASH` with the first 16 digits of the BLAKE3 hash of its
//! bytes; so it can be told which of the two is right. (RocksDB's small `CURRENT` and `MANIFEST` are there twice anyway:
//! in the store and in the view.)
//!
//! A copy is written under another name, synced and renamed, so what has such a name is whole.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::block::Hashing;
use crate::error::{Error, Result};
use crate::id::to_hex;

const EXTENSION: &str = "sst";

/// One table and its second copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spare {
    /// The name of the table, as in `000012.sst`.
    pub(crate) table: String,
    /// The hash that its bytes have.
    pub(crate) hash: String,
    /// Where the second copy is.
    pub(crate) path: PathBuf,
}

fn directory(repository: &Path) -> PathBuf {
    repository.join("spare")
}

/// The hash of a file's bytes, as it stands in names; `None` if it is not there or can't be read.
pub(crate) fn hash_of(path: &Path) -> Option<String> {
    fs::read(path).ok().map(|bytes| hash(&bytes))
}

fn hash(bytes: &[u8]) -> String {
    to_hex(&Hashing::Plain.content(bytes)[..8])
}

/// All second copies, by name.
pub(crate) fn list(repository: &Path) -> Result<Vec<Spare>> {
    let directory = directory(repository);
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("list", &directory))?,
    };
    let mut spares = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("list", &directory))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some((table, hash)) = name.rsplit_once('.').filter(|(table, _)| is_table(Path::new(table))) {
            spares.push(Spare {
                table: table.to_owned(),
                hash: hash.to_owned(),
                path: path.clone(),
            });
        }
    }
    spares.sort_by(|one, other| one.table.cmp(&other.table));
    Ok(spares)
}

fn is_table(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == EXTENSION)
}

/// Gives every table of `view`, the newest one, a second copy, and removes those of others.
pub(crate) fn update(repository: &Path, view: &Path) -> Result<()> {
    let directory = directory(repository);
    match fs::create_dir(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::io("create", directory)(error));
        }
        _ => {}
    }
    let mut old: HashMap<String, Spare> = list(repository)?
        .into_iter()
        .map(|spare| (spare.table.clone(), spare))
        .collect();
    let mut changed = false;
    for entry in fs::read_dir(view).map_err(Error::io("list", view))? {
        let path = entry.map_err(Error::io("list", view))?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if !is_table(&path) || old.remove(&name).is_some() {
            continue;
        }
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        write(&directory.join(format!("{name}.{}", hash(&bytes))), &bytes)?;
        changed = true;
    }
    for spare in old.into_values() {
        fs::remove_file(&spare.path).map_err(Error::io("remove", spare.path))?;
    }
    if changed {
        sync_directory(&directory)?;
    }
    Ok(())
}

/// Writes a file that is whole when it has its name. Its directory is not synced yet.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    File::create(&new)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .map_err(Error::io("write", &new))?;
    fs::rename(&new, path).map_err(Error::io("rename", new))
}

/// Makes renames in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(Error::io("sync", path))
}
