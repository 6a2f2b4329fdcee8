//! The read half of the embedded store.

mod found;
mod place;
mod scan;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rocksdb::{Cache, ColumnFamily, DB, DBPinnableSlice, IteratorMode, ReadOptions, Snapshot};

use self::found::{Found, FoundCache};
use self::place::Place;
pub(crate) use self::place::WriteList;
use self::scan::Scan;
use super::errors::{damaged, failed, is_damage};
use super::options;
use super::rows::{IndexRow, part_key, part_number, sequence_of};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, NodeId};
use crate::store::{Forgotten, Identity, Listing, Located, Note, Record, StoreReader, Stored, Wanted};

/// A store opened for reading: a view, which no writer changes any more.
pub struct RocksReader {
    pub(super) db: DB,
    /// What it takes to open its files again; `None` for those of a writer.
    opened: Option<Opened>,
    /// The blocks read last. A writer, which moves blocks, does not use it.
    found: FoundCache,
    /// Dropped after the database is closed.
    pub(super) _guard: Option<File>,
}

/// Greater than any number that a store reaches, so that no sum of such numbers overflows: 2^56 blocks, or changes.
const MAX_NUMBER: u64 = 1 << 56;

/// Prefix of the names of rows in `meta` that each condemn a block.
pub(super) struct Condemned(&'static [u8]);

pub(super) const CONDEMNED: Condemned = Condemned(b"condemned/");

impl Condemned {
    fn start(&self) -> IteratorMode<'static> {
        IteratorMode::From(self.0, rocksdb::Direction::Forward)
    }

    pub(super) fn key(&self, id: BlockId) -> Vec<u8> {
        [self.0, &id.0].concat()
    }
}

/// Returns options for reading all of a column family once: nothing of it is cached.
pub(super) fn scan() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options.set_readahead_size(2 << 20);
    options
}

struct Opened {
    place: Place,
    cache: Cache,
}

impl RocksReader {
    /// Opens a checkpoint, or a store on a file system that can't be written to. `guard` is a file whose lock keeps the
    /// checkpoint from removal; it is held as long as the reader.
    pub fn open(path: &Path, guard: Option<File>) -> Result<Self> {
        Self::open_at(Place::Together(path.to_owned()), guard)
    }

    /// Opens a view whose tables and blob files are in `files`. `write_list` is called each time that they are opened. `guard` is
    /// a file whose lock keeps them, and what the list is made of, from removal.
    pub(crate) fn open_apart(files: PathBuf, write_list: WriteList, guard: Option<File>) -> Result<Self> {
        Self::open_at(Place::Apart(files, write_list), guard)
    }

    fn open_at(place: Place, guard: Option<File>) -> Result<Self> {
        let cache = options::cache();
        let (mut database, families) = options::view(&cache);
        // The pages of a block lie next to each other, and so do the blocks that a disk's reader wants next: the kernel
        // notices that, unless it was told that all reads are random.
        database.set_advise_random_on_open(false);
        let db = place.open(database, families)?;
        Ok(Self {
            opened: Some(Opened { place, cache }),
            ..Self::new(db, guard)
        })
    }

    pub(super) fn new(db: DB, guard: Option<File>) -> Self {
        Self {
            db,
            opened: None,
            found: found::cache(),
            _guard: guard,
        }
    }

    pub(super) fn family(&self, name: &'static str) -> &ColumnFamily {
        self.db
            .cf_handle(name)
            .expect("opening fails if a column family is missing")
    }

    fn meta_number(&self, key: &str) -> Result<Option<u64>> {
        self.meta_number_in(key, ReadOptions::default())
    }

    pub(super) fn meta_number_in(&self, key: &str, options: ReadOptions) -> Result<Option<u64>> {
        let row = self
            .db
            .get_cf_opt(self.family("meta"), key, &options)
            .map_err(failed("read its state"))?;
        let number = |row: Vec<u8>| <[u8; 8]>::try_from(row).map(u64::from_be_bytes);
        let number = row.map(number).transpose();
        let number = number.map_err(|_| damaged(format!("{key} is not a number")))?;
        match number {
            Some(number) if number > MAX_NUMBER => Err(damaged(format!(
                "{key} is {number}, which is more than any store can reach"
            ))),
            number => Ok(number),
        }
    }

    /// Returns the lowest sequence number that the last barrier does not cover. Everything from there on is removed on
    /// opening, so a missing number must not be taken for 0.
    pub(super) fn barrier(&self) -> Result<u64> {
        let barrier = self.meta_number("barrier")?;
        let index = || self.db.iterator_cf(self.family("index"), IteratorMode::Start).next();
        match barrier {
            None if index().is_some() => Err(damaged("it has blocks but no barrier".into())),
            barrier => Ok(barrier.unwrap_or(0)),
        }
    }

    /// Returns whether the rows at a sequence number are those of this block, as far as they can be read.
    pub(super) fn is_at(&self, id: BlockId, sequence: u64) -> bool {
        let row = self.db.get_pinned_cf(self.family("blocks"), part_key(sequence, 0));
        row.is_ok_and(|row| row.is_some_and(|row| row.starts_with(&id.0)))
    }

    pub(super) fn index_rows(&self, ids: &[BlockId]) -> Result<Vec<Option<IndexRow>>> {
        let keys = ids.iter().map(|id| &id.0);
        self.db
            .batched_multi_get_cf(self.family("index"), keys, false)
            .into_iter()
            .zip(ids)
            .map(|(row, id)| match row.map_err(failed("read the index"))? {
                Some(row) => IndexRow::decode(*id, &row).map(Some),
                None => Ok(None),
            })
            .collect::<Result<Vec<_>>>()
            .and_then(|rows| self.within_barrier(rows))
    }

    /// Treats a block as not stored if its row gives a place that no barrier has covered: the block does not exist
    /// there, the next put stores it again, and per-place tables do not grow without bound. The barrier is read after
    /// the rows: it is written together with the rows that it covers.
    fn within_barrier(&self, rows: Vec<Option<IndexRow>>) -> Result<Vec<Option<IndexRow>>> {
        if rows.iter().all(Option::is_none) {
            return Ok(rows);
        }
        let barrier = self.barrier()?;
        let is_stored = |row: &IndexRow| row.sequence < barrier;
        Ok(rows.into_iter().map(|row| row.filter(is_stored)).collect())
    }

    /// Passes the rows of the index from an id on, as they are.
    pub(super) fn index(&self, from: BlockId, each: &mut dyn FnMut(BlockId, IndexRow) -> Result<()>) -> Result<()> {
        // Not the iterator that gives boxes: two allocations for each row take longer than RocksDB does.
        let mut rows = self.db.raw_iterator_cf_opt(self.family("index"), scan());
        rows.seek(from.0);
        while let Some((id, row)) = rows.item() {
            let id = <[u8; 32]>::try_from(id).map_err(|_| Error::Store {
                kind: ErrorKind::Corrupt,
                doing: "read the index",
                message: "the key of a row is not a block id".into(),
            })?;
            each(BlockId(id), IndexRow::decode(BlockId(id), row)?)?;
            rows.next();
        }
        rows.status().map_err(failed("read the index"))
    }

    /// Passes on the blocks that a store has above the barrier of an older state of it, up to its own, in the order of their places.
    pub(crate) fn survey_since(&self, older: &Self, each: &mut dyn FnMut(Located)) -> Result<()> {
        let end = self.barrier()?;
        let mut rows = self.db.raw_iterator_cf_opt(self.family("blocks"), scan());
        rows.seek(part_key(older.barrier()?, 0));
        while let Some((key, part)) = rows.item() {
            let sequence = sequence_of(key);
            if sequence >= end {
                break;
            }
            if part_number(key) == 0
                && let Some((_, row, _)) = IndexRow::of_part_zero(sequence, part)
            {
                each(row.located());
            }
            // Past the pages, which are in other files.
            rows.seek(part_key(sequence + 1, 0));
        }
        rows.status().map_err(failed("read the blocks"))
    }

    fn records_in(&self, options: ReadOptions) -> Result<Vec<Record>> {
        self.db
            .iterator_cf_opt(self.family("backups"), options, IteratorMode::Start)
            .map(|row| {
                let (key, bytes) = row.map_err(failed("list the backups"))?;
                Ok(Record {
                    key: String::from_utf8_lossy(&key).into_owned(),
                    bytes: bytes.into(),
                })
            })
            .collect()
    }

    fn notes_in(&self, options: ReadOptions) -> Result<Vec<Note>> {
        self.db
            .iterator_cf_opt(self.family("notes"), options, IteratorMode::Start)
            .map(|row| {
                let (name, value) = row.map_err(failed("read the notes"))?;
                Ok(Note {
                    name: String::from_utf8_lossy(&name).into_owned(),
                    value: Some(value.into()),
                })
            })
            .collect()
    }

    fn get_at(&self, wanted: &Wanted, row: Option<IndexRow>) -> Result<Stored> {
        let id = wanted.id;
        let row = row.ok_or(Error::BlockMissing(id))?;
        let keys = std::iter::once(0).chain(wanted.pages.clone().map(|page| page + 1));
        let mut parts = self.parts(id, row.sequence, keys).into_iter();
        Ok(Stored {
            header: header_in(id, &row, parts.next().unwrap_or_else(|| Ok(Vec::new()))?)?,
            pages: parts.collect::<Result<_>>()?,
            base: row.base,
        })
    }

    /// Reads one block. A reader at random offsets comes back to its blocks for other pages, so the header, and the row
    /// that gives its place, are kept.
    fn get_one(&self, wanted: &Wanted) -> Result<Stored> {
        let id = wanted.id;
        let found = match self.found.get(&id) {
            Some(found) => found,
            None => {
                let row = self.index_rows(&[id])?.pop().flatten().ok_or(Error::BlockMissing(id))?;
                let found = Arc::new(Found {
                    header: header_in(id, &row, self.part(id, row.sequence, 0)?)?,
                    row,
                });
                self.found.insert(id, Arc::clone(&found));
                found
            }
        };
        let pages = match wanted.pages.len() {
            1 => vec![self.part(id, found.row.sequence, wanted.pages.start + 1)?],
            _ => {
                let keys = wanted.pages.clone().map(|page| page + 1);
                self.parts(id, found.row.sequence, keys)
                    .into_iter()
                    .collect::<Result<_>>()?
            }
        };
        Ok(Stored {
            header: found.header.clone(),
            pages,
            base: found.row.base,
        })
    }

    /// Reads parts of a block; those that are not stored are empty.
    fn parts(&self, id: BlockId, sequence: u64, parts: impl Iterator<Item = usize>) -> Vec<Result<Vec<u8>>> {
        let keys: Vec<_> = parts.map(|part| part_key(sequence, part)).collect();
        let read = self.db.batched_multi_get_cf(self.family("blocks"), &keys, true);
        read.into_iter().map(|part| read_part(id, part)).collect()
    }

    /// Reads one part: `get` has less to prepare than `multi_get`.
    fn part(&self, id: BlockId, sequence: u64, part: usize) -> Result<Vec<u8>> {
        read_part(
            id,
            self.db.get_pinned_cf(self.family("blocks"), part_key(sequence, part)),
        )
    }
}

fn read_part(id: BlockId, part: std::result::Result<Option<DBPinnableSlice<'_>>, rocksdb::Error>) -> Result<Vec<u8>> {
    match part {
        Ok(part) => Ok(part.map(|part| part.to_vec()).unwrap_or_default()),
        Err(error) if is_damage(&error) => Err(Error::BlockDamaged {
            id,
            what: error.to_string(),
        }),
        Err(error) => Err(failed("read a block")(error)),
    }
}

/// Returns the header in part 0, which names its block and the base of that. This detects an index row that points elsewhere,
/// which is not damage to the block there, and one without which a prune would remove the base.
fn header_in(id: BlockId, row: &IndexRow, mut part: Vec<u8>) -> Result<Vec<u8>> {
    match IndexRow::of_part_zero(row.sequence, &part) {
        Some((there, repeated, header)) if there == id && repeated.base == row.base => {
            let at = part.len() - header.len();
            part.drain(..at);
            Ok(part)
        }
        _ => Err(Error::BlockDamaged {
            id,
            what: "its header is missing or belongs to another block".into(),
        }),
    }
}

impl StoreReader for RocksReader {
    fn identity(&self) -> Result<Identity> {
        let damaged = |message: String| Error::Store {
            kind: ErrorKind::Corrupt,
            doing: "read its identity",
            message,
        };
        let row = self
            .db
            .get_cf(self.family("meta"), "identity")
            .map_err(failed("read its identity"))?
            .ok_or_else(|| damaged("it is missing".into()))?;
        serde_json::from_slice(&row).map_err(|error| damaged(error.to_string()))
    }

    fn generation(&self) -> Result<u64> {
        self.generation_in(ReadOptions::default())
    }

    fn state_at(&self, generation: u64) -> Result<Option<String>> {
        self.state_of(generation)
    }

    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>> {
        let rows = self.usable_rows(ids)?.into_iter();
        Ok(rows.map(|row| row.map(IndexRow::located)).collect())
    }

    fn survey_from(&self, from: BlockId, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()> {
        let mut barrier = self.barrier()?;
        self.index(from, &mut |id, row| {
            if row.sequence >= barrier {
                // A store that is open for writing continues to write meanwhile.
                barrier = self.barrier()?;
            }
            match row.sequence < barrier {
                true => each(id, row.located()),
                false => Err(Error::BlockDamaged {
                    id,
                    what: format!(
                        "its index row gives place {}, but nothing was stored from {barrier} on",
                        row.sequence
                    ),
                }),
            }
        })
    }

    fn condemned(&self) -> Result<Vec<BlockId>> {
        let mut found = Vec::new();
        for row in self.db.iterator_cf(self.family("meta"), CONDEMNED.start()) {
            let (key, _) = row.map_err(failed("read its state"))?;
            match key.strip_prefix(CONDEMNED.0).map(<[u8; 32]>::try_from) {
                None => break,
                Some(Ok(id)) => found.push(BlockId(id)),
                Some(Err(_)) => {}
            }
        }
        Ok(found)
    }

    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        match wanted {
            [wanted] => vec![self.get_one(wanted)],
            wanted => get_each(wanted, |ids| self.index_rows(ids), self),
        }
    }

    fn nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
        let keys = ids.iter().map(|id| &id.0);
        self.db
            .batched_multi_get_cf(self.family("nodes"), keys, false)
            .into_iter()
            .zip(ids)
            .map(|(node, &id)| match node {
                Ok(Some(node)) => Ok(node.to_vec()),
                Ok(None) => Err(Error::NodeDamaged {
                    id,
                    what: "it is missing".into(),
                }),
                Err(error) if is_damage(&error) => Err(Error::NodeDamaged {
                    id,
                    what: error.to_string(),
                }),
                Err(error) => Err(failed("read a manifest")(error)),
            })
            .collect()
    }

    fn to_scan(self: Arc<Self>) -> Option<Arc<dyn StoreReader>> {
        Some(Arc::new(Scan::open(&self)?))
    }

    fn forgotten(&self) -> Result<Vec<Forgotten>> {
        self.forgotten_records()
    }

    fn records(&self) -> Result<Vec<Record>> {
        self.records_in(ReadOptions::default())
    }

    fn notes(&self) -> Result<Vec<Note>> {
        self.notes_in(ReadOptions::default())
    }

    fn listing(&self, with_notes: bool) -> Result<Listing> {
        // A writer may have the store open: all parts are of the same moment.
        let snapshot = self.db.snapshot();
        Ok(Listing {
            records: self.records_in(at(&snapshot))?,
            notes: match with_notes {
                true => self.notes_in(at(&snapshot))?,
                false => Vec::new(),
            },
            foreign_changes: Vec::new(),
            generation: self.generation_in(at(&snapshot))?,
            received: self.received_in(at(&snapshot))?,
        })
    }

    fn lookup(&self, record_keys: &[String], note_names: &[String]) -> Result<Listing> {
        let snapshot = self.db.snapshot();
        let read = |family, names: &[String], doing| {
            let rows = names.iter().map(|name| {
                let row = self.db.get_cf_opt(self.family(family), name, &at(&snapshot));
                Ok(row.map_err(failed(doing))?.map(|value| (name.clone(), value)))
            });
            rows.filter_map(Result::transpose).collect::<Result<Vec<_>>>()
        };
        let records = read("backups", record_keys, "list the backups")?.into_iter();
        let mut received = Vec::new();
        for key in record_keys {
            let found = self.received_of(key, &at(&snapshot))?;
            received.extend(found.map(|found| (key.clone(), found)));
        }
        let notes = read("notes", note_names, "read the notes")?.into_iter();
        Ok(Listing {
            records: records.map(|(key, bytes)| Record { key, bytes }).collect(),
            notes: notes
                .map(|(name, value)| Note {
                    name,
                    value: Some(value),
                })
                .collect(),
            foreign_changes: Vec::new(),
            generation: self.generation_in(at(&snapshot))?,
            received,
        })
    }
}

/// Returns options for reading the state of a snapshot.
fn at(snapshot: &Snapshot<'_>) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_snapshot(snapshot);
    options
}

pub(super) fn get_each(
    wanted: &[Wanted],
    rows: impl Fn(&[BlockId]) -> Result<Vec<Option<IndexRow>>>,
    reader: &RocksReader,
) -> Vec<Result<Stored>> {
    let ids: Vec<_> = wanted.iter().map(|wanted| wanted.id).collect();
    match rows(&ids) {
        Ok(rows) => wanted
            .iter()
            .zip(rows)
            .map(|(wanted, row)| reader.get_at(wanted, row))
            .collect(),
        // A damaged index row fails the whole look-up; looked up one by one, only its own block fails.
        Err(_) => wanted
            .iter()
            .map(|wanted| reader.get_at(wanted, rows(&[wanted.id])?.pop().flatten()))
            .collect(),
    }
}
