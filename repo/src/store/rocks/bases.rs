//! Blocks that are stored as differences: what they depend on, and what depends on them.
//!
//! 1. A difference counts as stored only while all that it depends on has an index row: a sweep may remove an unused base and leave
//!    an unused difference, and damage may cost a row. The next put of such a block takes its place.
//! 2. A session that finds or puts a difference uses its bases too, see `sessions.rs`. All marks include bases (`mark.rs`).
//! 3. A base, and all below it, is there when the difference is put, is not condemned, and is none of the blocks that this put replaces: so no
//!    blocks depend on each other in a circle. What damage to the index could make one of ends after [`MOST_BASES_READ`].
//! 4. A block that depends on a condemned one is condemned with it. It may be whole for all its readers; then the next
//!    verification that reads it pardons it.

use std::collections::HashSet;

use rocksdb::WriteBatch;

use super::reader::RocksReader;
use super::rows::IndexRow;
use crate::codec::Sealed;
use crate::error::{Error, ErrorKind, Result};
use crate::id::BlockId;
use crate::store::{DIFFERENCES, MOST_BASES, MOST_BASES_READ, Place, StoreReader};

/// Looks up index rows.
type LookUp<'a> = dyn Fn(&[BlockId]) -> Result<Vec<Option<IndexRow>>> + 'a;

/// Clears the rows of blocks of whose bases one is not stored. Returns the places of the bases of the others.
pub(super) fn follow(
    rows: &mut [Option<IndexRow>],
    most_bases: usize,
    look_up: impl Fn(&[BlockId]) -> Result<Vec<Option<IndexRow>>>,
) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    let bases = rows.iter().enumerate();
    let mut bases: Vec<(usize, BlockId)> = bases.filter_map(|(at, row)| Some((at, row.as_ref()?.base?))).collect();
    for _ in 0..most_bases {
        if bases.is_empty() {
            break;
        }
        let ids: Vec<_> = bases.iter().map(|(_, id)| *id).collect();
        let mut further = Vec::new();
        for ((at, _), base) in bases.into_iter().zip(look_up(&ids)?) {
            match base {
                Some(base) => {
                    places.push(Place(base.sequence));
                    further.extend(base.base.map(|id| (at, id)));
                }
                None => rows[at] = None,
            }
        }
        bases = further;
    }
    bases.into_iter().for_each(|(at, _)| rows[at] = None);
    Ok(places)
}

/// What a put has to know of bases.
pub(super) struct Bases {
    /// Places of all that the blocks depend on.
    pub(super) places: Vec<Place>,
    /// For each block whether it has an index row and depends on a block that is not stored.
    pub(super) lost: Vec<bool>,
}

impl Bases {
    /// Checks the blocks of a put; `stored` are their index rows. Those that are pending stay as they are.
    pub(super) fn of(
        blocks: &[Sealed],
        stored: &[Option<IndexRow>],
        condemned: &HashSet<BlockId>,
        is_pending: &dyn Fn(&BlockId) -> bool,
        look_up: &LookUp<'_>,
    ) -> Result<Self> {
        let mut usable = stored.to_vec();
        let mut places = follow(&mut usable, MOST_BASES_READ, look_up)?;
        let new = blocks.iter().zip(&usable);
        let new = new.filter(|(block, usable)| usable.is_none() || condemned.contains(&block.id));
        let new = new.filter(|(block, _)| !is_pending(&block.id));
        let new: HashSet<_> = new.map(|(block, _)| block.id).collect();
        let row_over = |block: &Sealed| {
            let base = block.base.filter(|_| new.contains(&block.id))?;
            Some(IndexRow {
                sequence: 0,
                plain_bytes: 0,
                stored_bytes: 0,
                base: Some(base),
            })
        };
        let mut rows: Vec<_> = blocks.iter().map(row_over).collect();
        let bases: Vec<_> = rows.iter().map(|row| row.and_then(|row| row.base)).collect();
        places.extend(follow(&mut rows, MOST_BASES, |ids| {
            // What is stored now under the name of one of these blocks is about to be replaced; and a damaged one is no base.
            let is_bad = |id| new.contains(id) || condemned.contains(id) && !is_pending(id);
            let stored = look_up(ids)?.into_iter().zip(ids);
            Ok(stored.map(|(row, id)| row.filter(|_| !is_bad(id))).collect())
        })?);
        let gone = bases
            .into_iter()
            .zip(&rows)
            .find(|(base, row)| base.is_some() && row.is_none());
        match gone {
            Some((Some(base), _)) => Err(Error::BlockMissing(base)),
            _ => Ok(Self {
                places,
                lost: stored
                    .iter()
                    .zip(usable)
                    .map(|(stored, usable)| stored.is_some() && usable.is_none())
                    .collect(),
            }),
        }
    }
}

impl RocksReader {
    /// Like [`RocksReader::index_rows`], but for blocks that depend on one that is not stored.
    pub(super) fn usable_rows(&self, ids: &[BlockId]) -> Result<Vec<Option<IndexRow>>> {
        let mut rows = self.index_rows(ids)?;
        follow(&mut rows, MOST_BASES_READ, |ids| self.index_rows(ids))?;
        Ok(rows)
    }

    /// Returns these blocks and all that depend on them. Reads the whole index if there are differences: seconds for millions of
    /// blocks.
    pub(super) fn with_dependents(&self, ids: &[BlockId]) -> Result<Vec<BlockId>> {
        let mut all = ids.to_vec();
        if ids.is_empty() || !self.identity()?.has(DIFFERENCES) {
            return Ok(all);
        }
        let mut known: HashSet<_> = ids.iter().copied().collect();
        loop {
            let before = all.len();
            let read = self.index(BlockId([0; 32]), &mut |id, row| {
                if row.base.is_some_and(|base| known.contains(&base)) && known.insert(id) {
                    all.push(id);
                }
                Ok(())
            });
            match read {
                // A damaged index must not keep the blocks from being stored again.
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    tracing::warn!("not all blocks that depend on damaged ones are known: {error}");
                    return Ok(all);
                }
                read => read?,
            }
            if all.len() == before {
                return Ok(all);
            }
        }
    }

    /// Adds [`DIFFERENCES`] to the features, unless it is one of them.
    pub(super) fn note_differences(&self, batch: &mut WriteBatch) -> Result<()> {
        let mut identity = self.identity()?;
        if !identity.has(DIFFERENCES) {
            identity.features.push(DIFFERENCES.into());
            let identity = serde_json::to_vec(&identity).expect("an identity has only plain fields");
            batch.put_cf(self.family("meta"), "identity", identity);
        }
        Ok(())
    }
}
