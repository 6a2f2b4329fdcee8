//! A view that is read through: many blocks, each once. They come from the disk, past the page cache.
//!
//! RocksDB merges reads of neighbouring values only under direct I/O (file/random_access_file_reader.cc, `MultiRead`). The
//! pages of a block lie next to each other, and so do the blocks that were stored together: one read of up to 2 MiB brings
//! what are 32 reads otherwise. Those of other programs stay in the page cache, and what is proved is what the disk holds.
//!
//! Only pages and headers are read like this. A store of 10 TiB has 480 MB of index rows, in the order of random ids: the page
//! cache is the right place for those.

use std::sync::Arc;

use rocksdb::DB;

use super::{Opened, RocksReader, header_in, read_part};
use crate::error::{Error, Result};
use crate::id::{BlockId, NodeId};
use crate::store::rocks::options;
use crate::store::rocks::rows::{IndexRow, part_key};
use crate::store::{Forgotten, Identity, Listing, Located, Note, Record, StoreReader, Stored, Wanted};

/// A view whose blocks are read with direct I/O.
pub(super) struct Scan {
    /// The files of the view, opened again. Dropped before the view, which keeps them from removal.
    direct: DB,
    view: Arc<RocksReader>,
}

impl Scan {
    /// Opens the files of a view again; `None` if they can't be read with direct I/O.
    pub(super) fn open(view: &Arc<RocksReader>) -> Option<Self> {
        let Opened { place, cache } = view.opened.as_ref()?;
        if !options::can_read_direct(place.files()) {
            return None;
        }
        let (database, family) = options::scan(cache);
        match place.open(database, vec![family]) {
            Ok(direct) => Some(Self {
                direct,
                view: Arc::clone(view),
            }),
            // The view reads the same, only slower.
            Err(error) => {
                tracing::debug!("no direct reads of {}: {error}", place.files().display());
                None
            }
        }
    }

    fn get_at(&self, wanted: &[Wanted], rows: &[Option<IndexRow>]) -> Vec<Result<Stored>> {
        let keys = wanted.iter().zip(rows).flat_map(|(wanted, row)| {
            let parts = wanted.pages.clone().map(|page| page + 1);
            row.iter()
                .flat_map(move |row| parts.clone().map(|part| part_key(row.sequence, part)))
        });
        let keys: Vec<_> = keys.collect();
        // Headers first, through the page cache, where the kernel reads ahead of them. The rows that say where the pages are lie
        // beside them, and are then in the cache that both databases share.
        let mut headers = self.headers(wanted, rows).into_iter();
        let blocks = self.direct.cf_handle(options::BLOCKS).expect("it was opened");
        // RocksDB sorts them: the blocks may be in any order, and one may be wanted twice.
        let mut parts = self.direct.batched_multi_get_cf(blocks, &keys, false).into_iter();
        let mut answer = |(wanted, row): (&Wanted, &Option<IndexRow>)| {
            let header = headers.next().unwrap_or(Err(Error::BlockMissing(wanted.id)));
            row.as_ref().ok_or(Error::BlockMissing(wanted.id))?;
            // All of them are taken, also after an error.
            let read: Vec<_> = parts.by_ref().take(wanted.pages.len()).collect();
            // A sector that can't be read fails all that was read with it, and some file systems refuse direct reads now and
            // then. The view reads page by page, and its answer counts.
            if read.iter().any(|part| part.as_ref().is_err_and(is_unsure)) {
                return self.view.get_at(wanted, *row);
            }
            Ok(Stored {
                header: header?,
                pages: read
                    .into_iter()
                    .map(|part| read_part(wanted.id, part))
                    .collect::<Result<_>>()?,
                base: row.and_then(|row| row.base),
            })
        };
        wanted.iter().zip(rows).map(&mut answer).collect()
    }

    /// Returns one header for each wanted block.
    fn headers(&self, wanted: &[Wanted], rows: &[Option<IndexRow>]) -> Vec<Result<Vec<u8>>> {
        let keys: Vec<_> = rows.iter().flatten().map(|row| part_key(row.sequence, 0)).collect();
        let mut read = self
            .view
            .db
            .batched_multi_get_cf(self.view.family(options::BLOCKS), &keys, false)
            .into_iter();
        let mut header = |(wanted, row): (&Wanted, &Option<IndexRow>)| {
            let missing = || Error::BlockMissing(wanted.id);
            let row = row.ok_or_else(missing)?;
            header_in(wanted.id, &row, read_part(wanted.id, read.next().ok_or_else(missing)?)?)
        };
        wanted.iter().zip(rows).map(&mut header).collect()
    }
}

/// Returns whether an error may be that of a direct read, and not that of the bytes.
fn is_unsure(error: &rocksdb::Error) -> bool {
    error.kind() != rocksdb::ErrorKind::Corruption
}

impl StoreReader for Scan {
    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        let ids: Vec<_> = wanted.iter().map(|wanted| wanted.id).collect();
        match self.view.index_rows(&ids) {
            Ok(rows) => self.get_at(wanted, &rows),
            // A damaged row of the index fails the whole look-up. The view finds out whose it is.
            Err(_) => self.view.get(wanted),
        }
    }

    fn identity(&self) -> Result<Identity> {
        self.view.identity()
    }

    fn generation(&self) -> Result<u64> {
        self.view.generation()
    }

    fn state_at(&self, generation: u64) -> Result<Option<String>> {
        self.view.state_at(generation)
    }

    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>> {
        self.view.locate(ids)
    }

    fn survey_from(&self, from: BlockId, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()> {
        self.view.survey_from(from, each)
    }

    fn condemned(&self) -> Result<Vec<BlockId>> {
        self.view.condemned()
    }

    fn nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
        self.view.nodes(ids)
    }

    fn forgotten(&self) -> Result<Vec<Forgotten>> {
        self.view.forgotten()
    }

    fn records(&self) -> Result<Vec<Record>> {
        self.view.records()
    }

    fn notes(&self) -> Result<Vec<Note>> {
        self.view.notes()
    }

    fn listing(&self, with_notes: bool) -> Result<Listing> {
        self.view.listing(with_notes)
    }

    fn lookup(&self, record_keys: &[String], note_names: &[String]) -> Result<Listing> {
        self.view.lookup(record_keys, note_names)
    }
}

#[cfg(test)]
mod tests;
