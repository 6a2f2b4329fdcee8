//! A store in memory, for tests: the plainest thing that keeps the rules of the seam.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{BlockStore, Identity, Place, Record, StoreReader, Stored, Wanted};
use crate::block::BlockSize;
use crate::codec::Sealed;
use crate::error::{Error, Result};
use crate::id::{BlockId, SegmentId};

/// Keeps everything in memory.
pub struct MemoryStore {
    identity: Identity,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    blocks: HashMap<BlockId, (Place, Sealed)>,
    segments: HashMap<SegmentId, Vec<u8>>,
    records: BTreeMap<String, Vec<u8>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new(block_size: BlockSize) -> Self {
        Self {
            identity: Identity {
                format: super::STORE_FORMAT,
                features: Vec::new(),
                id: "memory".into(),
                block_size,
                created: jiff::Timestamp::UNIX_EPOCH,
            },
            inner: Mutex::default(),
        }
    }

    /// Changes the stored bytes of a block, to see who notices.
    pub fn damage(&self, id: BlockId, change: impl FnOnce(&mut Sealed)) {
        if let Some((_, sealed)) = self.lock().blocks.get_mut(&id) {
            change(sealed);
        }
    }

    /// Loses a block.
    pub fn lose(&self, id: BlockId) {
        self.lock().blocks.remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoreReader for MemoryStore {
    fn identity(&self) -> Result<Identity> {
        Ok(self.identity.clone())
    }

    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Place>>> {
        let inner = self.lock();
        Ok(ids
            .iter()
            .map(|id| inner.blocks.get(id).map(|(place, _)| *place))
            .collect())
    }

    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        let inner = self.lock();
        let one = |wanted: &Wanted| {
            let (_, sealed) = inner.blocks.get(&wanted.id).ok_or(Error::BlockMissing(wanted.id))?;
            Ok(Stored {
                header: sealed.header.clone(),
                pages: wanted
                    .pages
                    .clone()
                    .map(|page| sealed.pages.get(page).cloned().unwrap_or_default())
                    .collect(),
            })
        };
        wanted.iter().map(one).collect()
    }

    fn segments(&self, ids: &[SegmentId]) -> Vec<Result<Vec<u8>>> {
        let inner = self.lock();
        ids.iter()
            .map(|&id| {
                inner.segments.get(&id).cloned().ok_or_else(|| Error::SegmentDamaged {
                    id,
                    what: "it is missing".into(),
                })
            })
            .collect()
    }

    fn records(&self) -> Result<Vec<Record>> {
        let record = |(key, bytes): (&String, &Vec<u8>)| Record {
            key: key.clone(),
            bytes: bytes.clone(),
        };
        Ok(self.lock().records.iter().map(record).collect())
    }
}

impl BlockStore for MemoryStore {
    fn put(&self, blocks: Vec<Sealed>) -> Result<()> {
        let mut inner = self.lock();
        for sealed in blocks {
            let place = Place(inner.blocks.len() as u64);
            inner.blocks.entry(sealed.id).or_insert((place, sealed));
        }
        Ok(())
    }

    fn put_segments(&self, segments: Vec<(SegmentId, Vec<u8>)>) -> Result<()> {
        self.lock().segments.extend(segments);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn commit(&self, record: &Record) -> Result<()> {
        let mut inner = self.lock();
        if inner.records.contains_key(&record.key) {
            return Err(Error::BackupExists(record.key.clone()));
        }
        inner.records.insert(record.key.clone(), record.bytes.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_memory_store_keeps_the_rules_of_the_seam() {
        super::super::conformance::check(|size| Box::new(super::MemoryStore::new(size)));
    }
}
