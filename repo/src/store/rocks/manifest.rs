//! The files that a store consists of, as RocksDB's own list names them.
//!
//! `MANIFEST-N` is a log (db/log_format.h) of edits (db/version_edit.cc), to which RocksDB only appends: tables that were
//! added and removed, blob files that were added, and blobs that became garbage. [`Manifest`] reads what is new in it, so
//! the cost of knowing the files is that of the new ones.
//!
//! A blob file goes without an edit of its own. RocksDB drops it from the list when no table begins with it (each table
//! names the oldest blob file that it needs), and all its blobs are garbage or it is older than every blob file that a
//! table begins with (db/version_builder.cc `SaveBlobFilesTo`). Then nothing can need it any more, so the moment at which
//! this rule is applied does not matter.
//!
//! RocksDB may write what this file does not know. Anything of that kind is [`Unread::Strange`], and the caller lists the
//! files in another way.

mod edit;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use self::edit::{Edit, NewBlobFile, Table};
use crate::error::{Error, Result};

/// No record crosses the end of a block; each piece of one begins with CRC, length (u16, little-endian) and type.
const BLOCK_BYTES: u64 = 32 << 10;
const HEADER_BYTES: u64 = 7;
/// Piece of the file that is read at a time.
const PIECE_BYTES: u64 = 256 << 10;

/// A table or a blob file of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum StoreFile {
    /// `NUMBER.sst`.
    Table(u64),
    /// `NUMBER.blob`.
    Blob(u64),
}

impl StoreFile {
    /// Reads a file's name; `None` if it is not that of a table or a blob file.
    pub(crate) fn of_name(name: &OsStr) -> Option<Self> {
        let (number, kind) = name.to_str()?.split_once('.')?;
        let file = match kind {
            "sst" => Self::Table(number.parse().ok()?),
            "blob" => Self::Blob(number.parse().ok()?),
            _ => return None,
        };
        // Only the name that RocksDB gives it.
        (file.name().as_str() == name).then_some(file)
    }

    /// Name of the file.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Table(number) => format!("{number:06}.sst"),
            Self::Blob(number) => format!("{number:06}.blob"),
        }
    }

    /// Number of the file: RocksDB numbers all files of a store as they come.
    pub(crate) fn number(self) -> u64 {
        match self {
            Self::Table(number) | Self::Blob(number) => number,
        }
    }
}

/// Reason why the files of a store could not be read from its list.
#[derive(Debug)]
pub(crate) enum Unread {
    /// The list has something that this vbk does not know.
    Strange(&'static str),
    /// It can't be read, or is damaged.
    Error(Error),
}

impl From<Error> for Unread {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

type Read<T> = std::result::Result<T, Unread>;

/// Files that came and went.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) added: BTreeSet<StoreFile>,
    pub(crate) removed: BTreeSet<StoreFile>,
}

impl Changes {
    fn add(&mut self, file: StoreFile) {
        if !self.removed.remove(&file) {
            self.added.insert(file);
        }
    }

    fn remove(&mut self, file: StoreFile) {
        if !self.added.remove(&file) {
            self.removed.insert(file);
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Blob {
    /// Tables that begin with it.
    tables: u64,
    blobs: u64,
    garbage: u64,
    bytes: u64,
}

/// The files of a store at some record of its list.
#[derive(Debug, Default)]
struct Files {
    tables: BTreeMap<u64, Table>,
    blobs: BTreeMap<u64, Blob>,
    /// Blob files that an edit since the last look has named.
    touched: BTreeSet<u64>,
    /// The column family with blob files.
    family: Option<u64>,
    changes: Changes,
    /// The list has what RocksDB needs to open the store: a new list begins with edits that repeat the older state.
    is_whole: bool,
}

/// `CURRENT` names the list that is used.
pub(crate) fn current(directory: &Path) -> Result<String> {
    let path = directory.join("CURRENT");
    let text = fs::read(&path).map_err(Error::io("read", &path))?;
    let name = std::str::from_utf8(&text).ok().and_then(|text| text.strip_suffix('\n'));
    match name.filter(|name| is_manifest(name)) {
        Some(name) => Ok(name.to_owned()),
        None => Err(Error::FileDamaged { path }),
    }
}

/// Returns whether a name is that of a list of files.
pub(crate) fn is_manifest(name: &str) -> bool {
    let number = name.strip_prefix("MANIFEST-");
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
}

/// A list of files that is read as it grows.
pub(crate) struct Manifest {
    path: PathBuf,
    name: String,
    file: File,
    /// Bytes of the records that were read: the list is complete as it is up to there.
    length: u64,
    files: Files,
    piece: Vec<u8>,
    piece_at: u64,
    /// The file ended there, and not within a record.
    ends_whole: bool,
}

/// Returns the files that a store should have; none if its list can't be read, which the next writer reports.
pub(crate) fn needed(store: &Path) -> BTreeMap<StoreFile, u64> {
    // A writer that opens the store begins a new list.
    let list = Manifest::open(store).or_else(|_| Manifest::open(store));
    list.inspect_err(|error| tracing::debug!(?error, "the store's list of files can't be read"))
        .map(|list| list.lengths())
        .unwrap_or_default()
}

impl Manifest {
    /// Reads the list that a store uses.
    pub(crate) fn open(directory: &Path) -> Read<Self> {
        let name = current(directory)?;
        let mut manifest = Self::named(directory, &name)?;
        manifest.read_to(u64::MAX)?;
        Ok(manifest)
    }

    /// Reads the first `length` bytes of a list, which must end with a record.
    pub(crate) fn open_part(directory: &Path, name: &str, length: u64) -> Read<Self> {
        let mut manifest = Self::named(directory, name)?;
        manifest.read_to(length)?;
        match manifest.length == length {
            true => Ok(manifest),
            false => Err(manifest.damaged()),
        }
    }

    fn named(directory: &Path, name: &str) -> Read<Self> {
        let path = directory.join(name);
        Ok(Self {
            file: File::open(&path).map_err(Error::io("open", &path))?,
            name: name.to_owned(),
            path,
            length: 0,
            files: Files::default(),
            piece: Vec::new(),
            piece_at: 0,
            ends_whole: true,
        })
    }

    /// Reads what was added. The list may be a newer one then, with all files of the store in it.
    pub(crate) fn advance(&mut self, directory: &Path) -> Read<()> {
        if current(directory)? == self.name {
            return self.read_to(u64::MAX);
        }
        let mut newer = Self::open(directory)?;
        let mut changes = std::mem::take(&mut self.files.changes);
        let (old, new): (BTreeSet<_>, BTreeSet<_>) = (self.files().collect(), newer.files().collect());
        old.difference(&new).for_each(|file| changes.remove(*file));
        new.difference(&old).for_each(|file| changes.add(*file));
        newer.files.changes = changes;
        *self = newer;
        Ok(())
    }

    /// Name of the list.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of the list that were read, up to the end of a record.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Returns whether the file had no beginning of another record when it was read.
    pub(crate) fn ends_whole(&self) -> bool {
        self.ends_whole
    }

    /// The files of the store, tables first, each in the order of their numbers.
    pub(crate) fn files(&self) -> impl Iterator<Item = StoreFile> + '_ {
        let tables = self.files.tables.keys().map(|number| StoreFile::Table(*number));
        tables.chain(self.files.blobs.keys().map(|number| StoreFile::Blob(*number)))
    }

    /// The files with the length that each must have.
    pub(crate) fn lengths(&self) -> BTreeMap<StoreFile, u64> {
        let table = |(number, table): (&u64, &Table)| (StoreFile::Table(*number), table.bytes);
        let blob = |(number, blob): (&u64, &Blob)| (StoreFile::Blob(*number), blob.bytes);
        let tables = self.files.tables.iter().map(table);
        tables.chain(self.files.blobs.iter().map(blob)).collect()
    }

    /// Returns whether the store has a file.
    pub(crate) fn has(&self, file: StoreFile) -> bool {
        match file {
            StoreFile::Table(number) => self.files.tables.contains_key(&number),
            StoreFile::Blob(number) => self.files.blobs.contains_key(&number),
        }
    }

    /// Numbers of tables and of blob files.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.files.tables.len() as u64, self.files.blobs.len() as u64)
    }

    /// A number that is greater than that of each of its files.
    pub(crate) fn next(&self) -> u64 {
        let table = self.files.tables.last_key_value().map(|(number, _)| *number);
        let blob = self.files.blobs.last_key_value().map(|(number, _)| *number);
        table.max(blob).unwrap_or(0).saturating_add(1)
    }

    /// Takes the files that came and went since the last call.
    pub(crate) fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.files.changes)
    }

    fn damaged(&self) -> Unread {
        let path = self.path.clone();
        Unread::Error(Error::FileDamaged { path })
    }

    /// Reads all records up to `end`, or to the end of the file.
    fn read_to(&mut self, end: u64) -> Read<()> {
        // What was read before may have been the beginning of a record.
        self.piece.clear();
        let mut group = Vec::new();
        let mut at = self.length;
        while let Some((record, record_end)) = self.record(at, end)? {
            let edit = Edit::decode(&record).map_err(Unread::Strange)?;
            at = record_end;
            let is_last = edit.after.is_none_or(|after| after == 0);
            group.push(edit);
            if is_last {
                group
                    .drain(..)
                    .try_for_each(|edit| self.files.apply(edit))
                    .map_err(Unread::Strange)?;
                self.length = at;
            }
        }
        self.ends_whole &= group.is_empty();
        self.piece = Vec::new();
        self.files.drop_unused();
        match self.files.is_whole {
            true => Ok(()),
            false => Err(Unread::Strange("a list without its end")),
        }
    }

    /// Reads the record at an offset, and returns its end too; `None` if it is not complete.
    fn record(&mut self, mut at: u64, end: u64) -> Read<Option<(Vec<u8>, u64)>> {
        let mut record = Vec::new();
        let mut has_begun = false;
        loop {
            let left = BLOCK_BYTES - at % BLOCK_BYTES;
            if left < HEADER_BYTES {
                at += left;
                continue;
            }
            let Some(header) = self.bytes(at, HEADER_BYTES, end)? else {
                self.ends_whole = !has_begun && self.piece.is_empty();
                return Ok(None);
            };
            let [a, b, c, d, low, high, kind] = <[u8; 7]>::try_from(header).expect("so many were asked for");
            let (crc, length) = (
                u32::from_le_bytes([a, b, c, d]),
                u64::from(u16::from_le_bytes([low, high])),
            );
            if kind == 0 && length == 0 && crc == 0 {
                // Space that was allocated and not used yet.
                self.ends_whole = !has_begun;
                return Ok(None);
            }
            if HEADER_BYTES + length > left {
                return Err(self.damaged());
            }
            let Some(data) = self.bytes(at + HEADER_BYTES, length, end)? else {
                self.ends_whole = false;
                return Ok(None);
            };
            if masked(crc32c::crc32c_append(crc32c::crc32c(&[kind]), data)) != crc {
                return Err(self.damaged());
            }
            record.extend_from_slice(data);
            at += HEADER_BYTES + length;
            // Complete records, and the first, middle and last piece of one.
            match (kind, has_begun) {
                (1, false) | (4, true) => return Ok(Some((record, at))),
                (2, false) | (3, true) => has_begun = true,
                (1..=4, _) => return Err(self.damaged()),
                _ => return Err(Unread::Strange("a record of an unknown type")),
            }
        }
    }

    /// Returns bytes of the file; `None` if it, or `end`, does not reach so far.
    fn bytes(&mut self, at: u64, length: u64, end: u64) -> Read<Option<&[u8]>> {
        if at + length > end {
            self.piece.clear();
            return Ok(None);
        }
        let is_in = |piece: &[u8], piece_at| at >= piece_at && at + length <= piece_at + piece.len() as u64;
        if !is_in(&self.piece, self.piece_at) {
            self.piece.resize(PIECE_BYTES as usize, 0);
            let mut len = 0;
            while len < self.piece.len() {
                match self.file.read_at(&mut self.piece[len..], at + len as u64) {
                    Ok(0) => break,
                    Ok(read) => len += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(Error::io("read", &self.path)(error).into()),
                }
            }
            self.piece.truncate(len);
            self.piece_at = at;
        }
        if !is_in(&self.piece, self.piece_at) {
            return Ok(None);
        }
        let from = (at - self.piece_at) as usize;
        Ok(Some(&self.piece[from..from + length as usize]))
    }
}

/// util/crc32c.h `Mask`.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xA282_EAD8)
}

impl Files {
    /// Blob files come before tables in an edit, as in db/version_builder.cc.
    fn apply(&mut self, edit: Edit) -> std::result::Result<(), &'static str> {
        self.is_whole |= edit.has_sequence;
        let has_blobs = !edit.blobs.is_empty() || !edit.garbage.is_empty();
        if has_blobs && *self.family.get_or_insert(edit.family) != edit.family {
            return Err("blob files of two column families");
        }
        for NewBlobFile { number, blobs, bytes } in edit.blobs {
            let blob = Blob {
                tables: 0,
                blobs,
                garbage: 0,
                bytes,
            };
            if self.blobs.insert(number, blob).is_some() {
                return Err("a blob file that comes twice");
            }
            self.touched.insert(number);
            self.changes.add(StoreFile::Blob(number));
        }
        for (number, garbage) in edit.garbage {
            let blob = self.blobs.get_mut(&number).ok_or("garbage in an unknown blob file")?;
            blob.garbage = blob.garbage.saturating_add(garbage);
            self.touched.insert(number);
        }
        for number in edit.removed {
            let Table { oldest, .. } = self.tables.remove(&number).ok_or("an unknown table is removed")?;
            self.changes.remove(StoreFile::Table(number));
            if let Some(blob) = self.blobs.get_mut(&oldest) {
                blob.tables = blob.tables.saturating_sub(1);
                self.touched.insert(oldest);
            }
        }
        for (number, table) in edit.added {
            if self.tables.insert(number, table).is_some() {
                return Err("a table that comes twice");
            }
            self.changes.add(StoreFile::Table(number));
            if let Some(blob) = self.blobs.get_mut(&table.oldest) {
                blob.tables += 1;
            }
        }
        Ok(())
    }

    /// Drops the blob files that nothing needs: see the top of this file.
    fn drop_unused(&mut self) {
        while let Some((&number, Blob { tables: 0, .. })) = self.blobs.first_key_value() {
            self.blobs.remove(&number);
            self.changes.remove(StoreFile::Blob(number));
        }
        for number in std::mem::take(&mut self.touched) {
            let blob = self.blobs.get(&number);
            if blob.is_some_and(|blob| blob.tables == 0 && blob.garbage >= blob.blobs) {
                self.blobs.remove(&number);
                self.changes.remove(StoreFile::Blob(number));
            }
        }
    }
}

#[cfg(test)]
mod tests;
