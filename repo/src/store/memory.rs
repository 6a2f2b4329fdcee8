//! A store in memory, for tests: the simplest implementation of the store's rules.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;

use parking_lot::{Mutex, MutexGuard};

use super::{
    Forgotten, Identity, Listing, Live, Located, Note, Place, PruneOptions, Received, Record, StoreManager,
    StoreReader, StoreWriter, Stored, Swept, Terms, Wanted,
};
use crate::block::BlockSize;
use crate::codec::Sealed;
use crate::error::{Error, Result};
use crate::id::{BlockId, NodeId};

/// Blocks that a survey looks at together.
const SURVEYED: usize = 1000;

/// Keeps everything in memory.
pub struct MemoryStore {
    identity: Identity,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    blocks: BTreeMap<BlockId, (Place, Sealed)>,
    nodes: HashMap<NodeId, Vec<u8>>,
    records: BTreeMap<String, Vec<u8>>,
    notes: BTreeMap<String, Vec<u8>>,
    /// With the generation of each removal.
    bin: Vec<(u64, Forgotten)>,
    terms: Terms,
    received: BTreeMap<String, Received>,
    condemned: HashSet<BlockId>,
    next_place: u64,
    generation: u64,
}

impl Inner {
    fn records(&self) -> Vec<Record> {
        let record = |(key, bytes): (&String, &Vec<u8>)| Record {
            key: key.clone(),
            bytes: bytes.clone(),
        };
        self.records.iter().map(record).collect()
    }

    fn notes(&self) -> Vec<Note> {
        let note = |(name, value): (&String, &Vec<u8>)| Note {
            name: name.clone(),
            value: Some(value.clone()),
        };
        self.notes.iter().map(note).collect()
    }

    fn received(&self) -> Vec<(String, Received)> {
        self.received.iter().map(|(key, time)| (key.clone(), *time)).collect()
    }

    /// Number of blocks that a stored one depends on in turn; `None` if one of them is not stored, or is one of `without`.
    fn bases_below(&self, id: BlockId, without: &HashSet<BlockId>) -> Option<usize> {
        let mut id = id;
        for count in 0..=super::MOST_BASES_READ {
            let (_, stored) = self.blocks.get(&id).filter(|_| !without.contains(&id))?;
            match stored.base {
                None => return Some(count),
                Some(base) => id = base,
            }
        }
        None
    }

    fn is_usable(&self, id: BlockId) -> bool {
        self.bases_below(id, &HashSet::new()).is_some()
    }

    /// An error if a block can't be put because of its base.
    fn check_bases(&self, blocks: &[Sealed]) -> Result<()> {
        let is_new = |block: &&Sealed| !self.is_usable(block.id) || self.condemned.contains(&block.id);
        let mut bad = self.condemned.clone();
        bad.extend(blocks.iter().filter(is_new).map(|block| block.id));
        let bases = blocks.iter().filter(is_new).filter_map(|block| block.base);
        let mut bases = bases.filter(|base| {
            let below = self.bases_below(*base, &bad);
            below.is_none_or(|below| below >= super::MOST_BASES)
        });
        bases.next().map_or(Ok(()), |base| Err(Error::BlockMissing(base)))
    }

    fn check_at(&self, at: Option<u64>) -> Result<()> {
        match at.is_none_or(|at| at == self.generation) {
            true => Ok(()),
            false => Err(Error::Moved),
        }
    }

    fn change_notes(&mut self, notes: &[Note]) {
        for note in notes {
            match &note.value {
                Some(value) => self.notes.insert(note.name.clone(), value.clone()),
                None => self.notes.remove(&note.name),
            };
        }
    }
}

impl MemoryStore {
    /// Returns an empty store.
    pub fn new(block_size: BlockSize) -> Self {
        Self::with_identity(Identity {
            format: super::STORE_FORMAT,
            features: Vec::new(),
            id: "memory".into(),
            block_size,
            created: jiff::Timestamp::UNIX_EPOCH,
            key_check: None,
        })
    }

    /// Returns an empty store of an encrypted repository, and its identity.
    #[cfg(test)]
    pub(crate) fn sealed(block_size: BlockSize, has_sums: bool) -> (std::sync::Arc<Self>, Identity) {
        let mut identity = Self::new(block_size).identity;
        identity.features = Identity::features_of_new(true);
        identity.features.retain(|feature| has_sums || feature != super::SUMS);
        (std::sync::Arc::new(Self::with_identity(identity.clone())), identity)
    }

    /// Returns an empty store of a repository with this identity.
    pub fn with_identity(identity: Identity) -> Self {
        Self {
            identity,
            inner: Mutex::default(),
        }
    }

    /// Changes the stored bytes of a block, to test which reader detects it.
    pub fn damage(&self, id: BlockId, change: impl FnOnce(&mut Sealed)) {
        if let Some((_, sealed)) = self.lock().blocks.get_mut(&id) {
            change(sealed);
        }
    }

    /// Removes a block without a trace.
    pub fn lose(&self, id: BlockId) {
        self.take(id);
    }

    /// Removes a block without a trace, and returns it.
    pub fn take(&self, id: BlockId) -> Option<Sealed> {
        self.lock().blocks.remove(&id).map(|(_, sealed)| sealed)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }
}

#[cfg(test)]
impl MemoryStore {
    pub(crate) fn node_ids(&self) -> Vec<NodeId> {
        self.lock().nodes.keys().copied().collect()
    }

    /// Returns the length of all blocks.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.lock()
            .blocks
            .values()
            .map(|(_, sealed)| sealed.stored_bytes())
            .sum()
    }

    /// Returns the length of all manifests.
    pub(crate) fn node_bytes(&self) -> u64 {
        self.lock().nodes.values().map(|bytes| bytes.len() as u64).sum()
    }
}

impl StoreReader for MemoryStore {
    fn identity(&self) -> Result<Identity> {
        let mut identity = self.identity.clone();
        let has_base = |(_, sealed): &(Place, Sealed)| sealed.base.is_some();
        if !identity.has(super::DIFFERENCES) && self.lock().blocks.values().any(has_base) {
            identity.features.push(super::DIFFERENCES.into());
        }
        Ok(identity)
    }

    fn generation(&self) -> Result<u64> {
        Ok(self.lock().generation)
    }

    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>> {
        let inner = self.lock();
        let usable = |id: &BlockId| inner.blocks.get(id).filter(|_| inner.is_usable(*id));
        Ok(ids.iter().map(|id| usable(id).map(located)).collect())
    }

    fn survey_from(&self, from: BlockId, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()> {
        let mut from = Bound::Included(from);
        loop {
            // The caller may use the store meanwhile.
            let some: Vec<_> = {
                let inner = self.lock();
                let rest = inner.blocks.range((from, Bound::Unbounded));
                rest.take(SURVEYED).map(|(id, block)| (*id, located(block))).collect()
            };
            let Some((last, _)) = some.last() else {
                return Ok(());
            };
            from = Bound::Excluded(*last);
            some.into_iter().try_for_each(|(id, located)| each(id, located))?;
        }
    }

    fn condemned(&self) -> Result<Vec<BlockId>> {
        Ok(self.lock().condemned.iter().copied().collect())
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
                base: sealed.base,
            })
        };
        wanted.iter().map(one).collect()
    }

    fn nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
        let inner = self.lock();
        ids.iter()
            .map(|&id| {
                inner.nodes.get(&id).cloned().ok_or_else(|| Error::NodeDamaged {
                    id,
                    what: "it is missing".into(),
                })
            })
            .collect()
    }

    fn records(&self) -> Result<Vec<Record>> {
        Ok(self.lock().records())
    }

    fn notes(&self) -> Result<Vec<Note>> {
        Ok(self.lock().notes())
    }

    fn forgotten(&self) -> Result<Vec<Forgotten>> {
        Ok(self.lock().bin.iter().map(|(_, forgotten)| forgotten.clone()).collect())
    }

    fn listing(&self, with_notes: bool) -> Result<Listing> {
        let inner = self.lock();
        Ok(Listing {
            records: inner.records(),
            notes: match with_notes {
                true => inner.notes(),
                false => Vec::new(),
            },
            foreign_changes: Vec::new(),
            generation: inner.generation,
            received: inner.received(),
        })
    }

    fn lookup(&self, record_keys: &[String], note_names: &[String]) -> Result<Listing> {
        let mut found = self.listing(true)?;
        found.records.retain(|record| record_keys.contains(&record.key));
        found.notes.retain(|note| note_names.contains(&note.name));
        found.received.retain(|(key, _)| record_keys.contains(key));
        Ok(found)
    }
}

fn located((place, sealed): &(Place, Sealed)) -> Located {
    Located {
        place: *place,
        plain_bytes: sealed.plain_bytes,
        stored_bytes: sealed.stored_bytes() as u32,
        base: sealed.base,
    }
}

impl StoreWriter for MemoryStore {
    fn put(&self, blocks: Vec<Sealed>) -> Result<()> {
        let mut inner = self.lock();
        inner.check_bases(&blocks)?;
        for sealed in blocks {
            let renewed = inner.condemned.remove(&sealed.id) || !inner.is_usable(sealed.id);
            if renewed || !inner.blocks.contains_key(&sealed.id) {
                let place = Place(inner.next_place);
                inner.next_place += 1;
                inner.blocks.insert(sealed.id, (place, sealed));
            }
        }
        Ok(())
    }

    fn takes_differences(&self) -> bool {
        true
    }

    fn put_nodes(&self, nodes: Vec<(NodeId, Vec<u8>)>) -> Result<()> {
        let mut inner = self.lock();
        let keeps = inner.terms.keeps_nodes;
        for (id, bytes) in nodes {
            if !(keeps && inner.nodes.contains_key(&id)) {
                inner.nodes.insert(id, bytes);
            }
        }
        Ok(())
    }

    fn set_terms(&self, terms: Terms) {
        self.lock().terms = terms;
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn commit_at(&self, record: &Record, notes: &[Note], at: Option<u64>) -> Result<()> {
        let mut inner = self.lock();
        match inner.records.get(&record.key) {
            Some(stored) if *stored == record.bytes => return Ok(()),
            Some(_) => return Err(Error::BackupExists(record.key.clone())),
            None => inner.check_at(at)?,
        }
        inner.records.insert(record.key.clone(), record.bytes.clone());
        let received = Received {
            time: jiff::Timestamp::now(),
            is_doubted: inner.terms.doubts_times,
        };
        inner.received.insert(record.key.clone(), received);
        inner.generation += 1;
        inner.change_notes(notes);
        Ok(())
    }
}

impl StoreManager for MemoryStore {
    fn amend_at(&self, remove_records: &[String], notes: &[Note], at: Option<u64>) -> Result<()> {
        let mut inner = self.lock();
        inner.check_at(at)?;
        inner.generation += 1;
        let removed = jiff::Timestamp::now();
        let kept_until = removed + jiff::SignedDuration::from_secs(inner.terms.keep_removed_secs as i64);
        for key in remove_records {
            inner.received.remove(key);
            if let Some(bytes) = inner.records.remove(key) {
                let key = key.clone();
                let forgotten = Forgotten {
                    record: Record { key, bytes },
                    removed,
                    kept_until,
                };
                let generation = inner.generation;
                inner.bin.push((generation, forgotten));
            }
        }
        inner.change_notes(notes);
        Ok(())
    }

    fn empty_bin(&self, time: jiff::Timestamp, up_to: u64) -> Result<()> {
        let mut inner = self.lock();
        inner
            .bin
            .retain(|(came_with, forgotten)| forgotten.kept_until > time || *came_with > up_to);
        Ok(())
    }

    fn condemn(&self, ids: &[BlockId]) -> Result<()> {
        let mut inner = self.lock();
        let mut all: HashSet<BlockId> = ids.iter().copied().collect();
        loop {
            let before = all.len();
            let depends = |(id, (_, sealed)): (&BlockId, &(Place, Sealed))| {
                sealed.base.filter(|base| all.contains(base)).map(|_| *id)
            };
            let more: Vec<_> = inner.blocks.iter().filter_map(depends).collect();
            all.extend(more);
            if all.len() == before {
                inner.condemned.extend(all);
                return Ok(());
            }
        }
    }

    fn pardon(&self, ids: &[BlockId]) -> Result<()> {
        self.lock().condemned.retain(|id| !ids.contains(id));
        Ok(())
    }

    fn retain(&self, live: &Live, options: PruneOptions, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<Swept> {
        let mut swept = Swept::default();
        let mut inner = self.lock();
        let mut unused = Vec::new();
        for (id, block) in &inner.blocks {
            let bytes = block.1.stored_bytes();
            if live.has_block_at(block.0) {
                swept.live_blocks += 1;
                swept.live_bytes += bytes;
            } else {
                swept.unused_blocks += 1;
                swept.unused_bytes += bytes;
                unused.push(*id);
            }
        }
        if swept.unused_bytes as f64 > swept.live_bytes as f64 * options.max_unused {
            swept.removed_blocks = swept.unused_blocks;
            swept.removed_bytes = swept.unused_bytes;
        } else {
            unused.clear();
        }
        let nodes = inner.nodes.len();
        swept.removed_nodes = (nodes - inner.nodes.keys().filter(|id| live.has_node(id)).count()) as u64;
        if !options.dry_run {
            for id in unused {
                inner.blocks.remove(&id);
            }
            inner.nodes.retain(|id, _| live.has_node(id));
            step(&swept)?;
        }
        Ok(swept)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_memory_store_keeps_the_rules_of_the_seam() {
        super::super::conformance::check(|size| Box::new(super::MemoryStore::new(size)));
    }
}
