//! [`Listing`] knows the files of the store that a writer has open, and learns of new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::store::rocks::manifest::{self, Changes, Manifest, StoreFile, Unread};
use crate::store::rocks::{RocksStore, remove_checkpoint};

/// Time in which RocksDB uses what it wrote to its list: it syncs the list in between, which takes long on a busy disk.
const MOST_BEHIND: Duration = Duration::from_secs(60);
const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

/// The files of a store, and RocksDB's list that names them.
pub(super) struct Listing {
    store: PathBuf,
    /// Where checkpoints are made.
    scratch: PathBuf,
    files: Files,
}

enum Files {
    /// Read from the list as it grows: costs as much as is new.
    Read(Manifest),
    /// Taken from a checkpoint each time, because the list has something that this vbk does not know.
    Linked {
        files: BTreeSet<StoreFile>,
        name: String,
        length: u64,
    },
    Unknown,
}

impl Listing {
    pub(super) fn new(store: PathBuf, scratch: PathBuf) -> Self {
        Self {
            store,
            scratch,
            files: Files::Unknown,
        }
    }

    /// Learns what came and went since the last call. To be called while nothing is logged ([`RocksStore::still`]).
    pub(super) fn advance(&mut self, store: &RocksStore) -> Result<Changes> {
        let strange = match self.read(store) {
            Ok(changes) => return Ok(changes),
            Err(Unread::Error(error)) => return Err(error),
            Err(Unread::Strange(strange)) => strange,
        };
        if !matches!(self.files, Files::Linked { .. }) {
            tracing::warn!("the store's list of files can't be read ({strange}); views take longer to make");
        }
        let before = match &mut self.files {
            Files::Read(list) => {
                let pending = list.take_changes();
                let mut before: BTreeSet<_> = list.files().collect();
                before.retain(|file| !pending.added.contains(file));
                before.extend(pending.removed);
                before
            }
            Files::Linked { files, .. } => std::mem::take(files),
            Files::Unknown => BTreeSet::new(),
        };
        let files = store.list_by_checkpoint(&self.scratch)?;
        let changes = Changes {
            added: files.difference(&before).copied().collect(),
            removed: before.difference(&files).copied().collect(),
        };
        let name = manifest::current(&self.scratch)?;
        let path = self.scratch.join(&name);
        let length = fs::metadata(&path).map_err(Error::io("read", path))?.len();
        self.files = Files::Linked { files, name, length };
        Ok(changes)
    }

    /// Makes the list one that can't be read from now on.
    #[cfg(test)]
    pub(super) fn misunderstand(&mut self) {
        let (name, length) = self.end();
        self.files = Files::Linked {
            files: self.files(),
            name: name.to_owned(),
            length,
        };
    }

    fn read(&mut self, store: &RocksStore) -> std::result::Result<Changes, Unread> {
        let end = Instant::now() + MOST_BEHIND;
        loop {
            match &mut self.files {
                Files::Read(list) => list.advance(&self.store)?,
                Files::Unknown => self.files = Files::Read(Manifest::open(&self.store)?),
                Files::Linked { .. } => return Err(Unread::Strange("found before")),
            }
            // RocksDB writes to the list before it uses what it wrote, and compactions continue meanwhile.
            if let Files::Read(list) = &mut self.files
                && list.ends_whole()
                && list.counts() == store.counts()?
            {
                return Ok(list.take_changes());
            }
            if Instant::now() > end {
                // The next publication tries again.
                let late = io::Error::new(io::ErrorKind::TimedOut, "RocksDB does not use yet what it wrote there");
                return Err(Unread::Error(Error::io("read the list of files in", &self.store)(late)));
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// The directory from which files can be linked now, until [`Listing::done`].
    pub(super) fn source(&self) -> &Path {
        match self.files {
            Files::Linked { .. } => &self.scratch,
            _ => &self.store,
        }
    }

    /// Ends the use of [`Listing::source`].
    pub(super) fn done(&self) {
        if matches!(self.files, Files::Linked { .. }) {
            remove_checkpoint(&self.scratch);
        }
    }

    /// Name of the list, and the bytes of it that were read.
    pub(super) fn end(&self) -> (&str, u64) {
        match &self.files {
            Files::Read(list) => (list.name(), list.length()),
            Files::Linked { name, length, .. } => (name, *length),
            Files::Unknown => ("", 0),
        }
    }

    /// All files.
    pub(super) fn files(&self) -> BTreeSet<StoreFile> {
        match &self.files {
            Files::Read(list) => list.files().collect(),
            Files::Linked { files, .. } => files.clone(),
            Files::Unknown => BTreeSet::new(),
        }
    }

    /// The lengths that the files must have, as far as they are known.
    pub(super) fn lengths(&self) -> BTreeMap<StoreFile, u64> {
        match &self.files {
            Files::Read(list) => list.lengths(),
            Files::Linked { .. } | Files::Unknown => BTreeMap::new(),
        }
    }

    /// A number that is greater than that of each of its files.
    pub(super) fn next(&self) -> u64 {
        match &self.files {
            Files::Read(list) => list.next(),
            Files::Linked { files, .. } => files.iter().map(|file| file.number()).max().unwrap_or(0) + 1,
            Files::Unknown => 0,
        }
    }
}
