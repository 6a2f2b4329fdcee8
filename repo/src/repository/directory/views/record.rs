//! One view, as it lies in `views/`.
//!
//! `views/N` is a file of a few lines: the pool with the view's files, the name of RocksDB's list of them in that pool,
//! the length of the list that counts, 16 digits of the hash of so much of it, a number that is greater than that of each
//! file that the view has, and 16 digits of the hash of the lines before. An older vbk made directories instead, with a
//! link to each file; they are read as long as they are there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::older;
use super::pool;
use crate::block::Hashing;
use crate::error::{Error, Result};
use crate::repository::directory::files::{digits_of, hash_of_bytes, is_lost, is_there, read_pieces};
use crate::store::rocks::RocksReader;
use crate::store::rocks::manifest::{Manifest, StoreFile, Unread, is_manifest};

const TITLE: &str = "vbk view";
/// Files that are a few lines long are not read beyond this.
const MOST_BYTES: u64 = 4 << 10;

/// The lines of a view's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Number of the pool that has its files.
    pub(crate) pool: u64,
    /// Name of the list of its files.
    pub(crate) manifest: String,
    /// Bytes of the list that count.
    pub(crate) length: u64,
    /// Hash of these bytes.
    pub(crate) hash: String,
    /// Greater than the number of each of its files.
    pub(crate) next: u64,
}

impl Record {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Self {
            pool,
            manifest,
            length,
            hash,
            next,
        } = self;
        let lines =
            format!("{TITLE}\npool: {pool}\nmanifest: {manifest}\nlength: {length}\nhash: {hash}\nnext: {next}\n");
        let sum = hash_of_bytes(lines.as_bytes());
        format!("{lines}sum: {sum}\n").into_bytes()
    }

    /// Reads what [`Record::encode`] made; `None` if it is anything else.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.lines().skip(1);
        let mut line = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(": ");
        let record = Self {
            pool: line("pool")?.parse().ok()?,
            manifest: line("manifest").filter(|name| is_manifest(name))?.to_owned(),
            length: line("length")?.parse().ok()?,
            hash: line("hash")?.to_owned(),
            next: line("next")?.parse().ok()?,
        };
        // The sum, and that there is nothing else.
        (record.encode() == bytes).then_some(record)
    }
}

/// A view that can be read.
#[derive(Debug, Clone)]
pub(crate) enum View {
    /// An older vbk made it: a directory with everything.
    Directory(PathBuf),
    /// The file, and the directory of all views.
    File(Record, PathBuf),
}

impl View {
    /// Finds a view; `None` if there is none with this number.
    pub(crate) fn find(views: &Path, number: u64) -> Result<Option<Self>> {
        let path = views.join(number.to_string());
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Ok(found) if found.is_dir() => {
                let is_whole = is_there(&path.join("CURRENT"))?;
                return Ok(is_whole.then_some(Self::Directory(path)));
            }
            found => found.map_err(Error::io("read", &path))?,
        };
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes));
        match read {
            Ok(_) => {}
            Err(error) if is_lost(&error) => {}
            Err(error) => return Err(Error::io("read", path)(error)),
        }
        match Record::decode(&bytes) {
            Some(record) => Ok(Some(Self::File(record, views.to_owned()))),
            None => Err(Error::FileDamaged { path }),
        }
    }

    /// Directory of its tables and blob files, among which may be those of other views.
    pub(crate) fn files(&self) -> PathBuf {
        match self {
            Self::Directory(path) => path.clone(),
            Self::File(record, views) => pool::path_of(views, record.pool),
        }
    }

    /// Fails if the list of its files differs from what it was when the view was made.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Directory(path) => older::check(path),
            Self::File(record, _) => self.read_list(record, &mut |_| Ok(())),
        }
    }

    /// Opens it. `guard` is a file whose lock keeps the view from removal.
    pub(crate) fn open(&self, guard: Option<File>) -> Result<RocksReader> {
        match self {
            Self::Directory(path) => {
                older::check(path)?;
                RocksReader::open(path, guard)
            }
            Self::File(..) => {
                let view = self.clone();
                let write_list = move |directory: &Path| view.write_list(directory);
                RocksReader::open_apart(self.files(), Box::new(write_list), guard)
            }
        }
    }

    /// Writes RocksDB's list of its files, and what names that, into a directory. It is not synced.
    pub(crate) fn write_list(&self, directory: &Path) -> Result<()> {
        match self {
            Self::Directory(path) => older::copy_small(path, directory),
            Self::File(record, _) => {
                let path = directory.join(&record.manifest);
                let mut list = File::create_new(&path).map_err(Error::io("create", &path))?;
                self.read_list(record, &mut |piece| {
                    list.write_all(piece).map_err(Error::io("write", &path))
                })?;
                let path = directory.join("CURRENT");
                fs::write(&path, format!("{}\n", record.manifest)).map_err(Error::io("write", path))
            }
        }
    }

    /// Gives the list in pieces, and fails at its end if it is not what it was when the view was made.
    fn read_list(&self, record: &Record, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let path = self.files().join(&record.manifest);
        let damaged = || Error::FileDamaged { path: path.clone() };
        let lost = |error: io::Error| match is_lost(&error) {
            true => damaged(),
            false => Error::io("read", &path)(error),
        };
        let mut file = File::open(&path).map_err(lost)?.take(record.length);
        let mut hasher = Hashing::Plain.hasher();
        let mut length = 0;
        read_pieces(&mut file, &lost, &mut |piece| {
            hasher.update(piece);
            length += piece.len() as u64;
            each(piece)
        })?;
        match length == record.length && digits_of(&hasher) == record.hash {
            true => Ok(()),
            false => Err(damaged()),
        }
    }

    /// The view's files with their lengths, from the list that it names; `None` if that can't be read, or for a view of an older
    /// vbk.
    pub(crate) fn lengths(&self) -> Option<BTreeMap<StoreFile, u64>> {
        let Self::File(record, _) = self else {
            return None;
        };
        let list = Manifest::open_part(&self.files(), &record.manifest, record.length);
        list.ok().map(|list| list.lengths())
    }

    /// The view's files, from the list that it names. A view of an older vbk has a directory of its own instead.
    pub(crate) fn list(&self) -> std::result::Result<BTreeSet<StoreFile>, Unread> {
        match self {
            Self::Directory(path) => Ok(pool::list(path)?.into_keys().collect()),
            Self::File(record, _) => {
                let list = Manifest::open_part(&self.files(), &record.manifest, record.length)?;
                Ok(list.files().collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_nothing_else_is() {
        let record = Record {
            pool: 3,
            manifest: "MANIFEST-000012".into(),
            length: 4711,
            hash: "0123456789abcdef".into(),
            next: 99,
        };
        let bytes = record.encode();
        assert_eq!(Record::decode(&bytes), Some(record.clone()));
        for at in 0..bytes.len() {
            for bit in [1, 0x20, 0x80] {
                let mut other = bytes.clone();
                other[at] ^= bit;
                assert_eq!(Record::decode(&other), None, "byte {at}");
            }
            assert_eq!(Record::decode(&bytes[..at]), None, "{at} bytes");
        }
        assert_eq!(Record::decode(&[&bytes[..], b"\n"].concat()), None);
        let elsewhere = Record {
            manifest: "../MANIFEST-000012".into(),
            ..record
        };
        assert_eq!(Record::decode(&elsewhere.encode()), None);
    }
}
