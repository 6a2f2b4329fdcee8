//! Second copies of the store's tables.
//!
//! RocksDB keeps headers, the index, manifests and records in sorted files, which together take about a thousandth of
//! the space of the blocks: so little that one damaged file can cost much and a second copy costs almost nothing. Each
//! table of the newest view has one in `REPO/spare/`, named `NUMBER.sst.HASH` with the first 16 digits of the BLAKE3
//! hash of its bytes, which shows which of the two copies is right.
//!
//! A copy is written under another name, synced and renamed, so a file with such a name is complete.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::files::{HASH_DIGITS, hash_of, is_there, read_through, sync_directory};
use crate::error::{Error, Result};
use crate::files::{DRAFT, remove_if_there};
use crate::id::to_hex;
use crate::store::rocks::manifest::StoreFile;

const EXTENSION: &str = "sst";

/// One table and its second copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spare {
    /// Name of the table, e.g. `000012.sst`.
    pub(crate) table: String,
    /// Hash that the table's bytes must have.
    pub(crate) hash: String,
    /// Path of the second copy.
    pub(crate) path: PathBuf,
}

fn directory(repository: &Path) -> PathBuf {
    repository.join("spare")
}

/// Copies a table, synced, and returns its hash. Copies byte by byte, because the kernel's own copy may share the bytes
/// on the disk (copy_file_range(2)), and then both files would be one copy.
fn copy(from: &Path, to: &Path) -> Result<[u8; HASH_DIGITS / 2]> {
    let open = File::open(from).map_err(Error::io("read", from))?;
    let mut copy = File::create(to).map_err(Error::io("create", to))?;
    let hasher = read_through(open, &mut |piece| copy.write_all(piece)).map_err(Error::io("copy", from))?;
    copy.sync_all().map_err(Error::io("write", to))?;
    Ok(*hasher.finalize().as_bytes().first_chunk().expect("a hash is longer"))
}

/// Returns all second copies, by name.
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
        // Any other file is a draft that a killed writer left.
        let is_spare = |(table, hash): &(&str, &str)| {
            is_table(Path::new(table))
                && hash.len() == HASH_DIGITS
                && hash.bytes().all(|digit| digit.is_ascii_hexdigit())
        };
        if let Some((table, hash)) = name.rsplit_once('.').filter(is_spare) {
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

fn is_draft(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == DRAFT)
}

fn is_table(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == EXTENSION)
}

/// The second copies of the tables of the newest view, as a writer keeps them.
#[derive(Default)]
pub(crate) struct SecondCopies {
    directory: PathBuf,
    /// Hashes of the tables that have one, by their numbers.
    known: BTreeMap<u64, [u8; HASH_DIGITS / 2]>,
    /// Tables that need one.
    wanted: BTreeSet<u64>,
    /// Tables that need none any more.
    over: BTreeSet<u64>,
}

impl SecondCopies {
    /// Compares what is there with the tables that need one.
    pub(crate) fn open(repository: &Path, tables: impl Iterator<Item = u64>) -> Result<Self> {
        let directory = directory(repository);
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io("create", directory)(error));
            }
            _ => {}
        }
        remove_drafts(&directory)?;
        let (mut known, mut over) = (BTreeMap::new(), BTreeSet::new());
        for spare in list(repository)? {
            let number = number_of(Path::new(&spare.table));
            let digits = spare.hash.as_bytes().as_chunks::<2>().0.try_into();
            // A second one for the same table stays: a repair may need it.
            if let (Some(number), Some(hash)) = (number, digits.ok().and_then(from_digits))
                && !known.contains_key(&number)
            {
                known.insert(number, hash);
                over.insert(number);
            }
        }
        let mut wanted = BTreeSet::new();
        for number in tables {
            if !over.remove(&number) && !known.contains_key(&number) {
                wanted.insert(number);
            }
        }
        Ok(Self {
            directory,
            known,
            wanted,
            over,
        })
    }

    /// Notes a table that came.
    pub(crate) fn want(&mut self, table: u64) {
        if !self.over.remove(&table) && !self.known.contains_key(&table) {
            self.wanted.insert(table);
        }
    }

    /// Notes a table that went.
    pub(crate) fn retire(&mut self, table: u64) {
        self.wanted.remove(&table);
        if self.known.contains_key(&table) {
            self.over.insert(table);
        }
    }

    /// Makes what was noted true, once the newest view names none of the tables that went. `files` has the tables.
    pub(crate) fn update(&mut self, files: &Path) -> Result<()> {
        let mut changed = false;
        while let Some(&number) = self.wanted.first() {
            let table = StoreFile::Table(number).name();
            // Not by `write`: a table is large, and the name of its copy has the hash, which is known when all is copied.
            let draft = self.directory.join(format!("{table}.{DRAFT}"));
            let hash = copy(&files.join(&table), &draft)?;
            let spare = self.directory.join(format!("{table}.{}", to_hex(&hash)));
            fs::rename(&draft, &spare).map_err(Error::io("rename", draft))?;
            self.known.insert(number, hash);
            self.wanted.remove(&number);
            changed = true;
        }
        while let Some(&number) = self.over.first() {
            if let Some(hash) = self.known.get(&number) {
                let name = format!("{}.{}", StoreFile::Table(number).name(), to_hex(hash));
                let path = self.directory.join(name);
                remove_if_there(&path).map_err(Error::io("remove", path))?;
            }
            self.known.remove(&number);
            self.over.remove(&number);
        }
        match changed {
            true => sync_directory(&self.directory),
            false => Ok(()),
        }
    }
}

fn number_of(table: &Path) -> Option<u64> {
    match StoreFile::of_name(table.file_name()?)? {
        StoreFile::Table(number) => Some(number),
        StoreFile::Blob(_) => None,
    }
}

fn from_digits(digits: [[u8; 2]; HASH_DIGITS / 2]) -> Option<[u8; HASH_DIGITS / 2]> {
    let mut hash = [0; HASH_DIGITS / 2];
    for (byte, digits) in hash.iter_mut().zip(digits) {
        *byte = u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

/// Removes the second copies of tables that `directory` lacks or has with other bytes. A store that is rebuilt from an
/// older view reuses their names, and [`update`], which compares names, would take them for copies of the new tables. A
/// damaged second copy stays if its table exists: it shows that the table can't be trusted.
pub(crate) fn keep_only(repository: &Path, directory: &Path) -> Result<()> {
    for spare in list(repository)? {
        let is_of_it = match hash_of(&directory.join(&spare.table))? {
            Some(hash) => hash == spare.hash || hash_of(&spare.path)?.as_ref() != Some(&spare.hash),
            None => is_there(&directory.join(&spare.table))?,
        };
        if !is_of_it {
            fs::remove_file(&spare.path).map_err(Error::io("remove", spare.path))?;
        }
    }
    Ok(())
}

/// Removes files that a killed writer did not finish.
fn remove_drafts(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let path = entry.map_err(Error::io("list", directory))?.path();
        if is_draft(&path) {
            fs::remove_file(&path).map_err(Error::io("remove", path))?;
        }
    }
    Ok(())
}
