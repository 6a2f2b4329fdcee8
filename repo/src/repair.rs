//! Restores damaged blocks and nodes: by name from another repository, or from bytes that a caller offers.
//!
//! Bytes are stored only when they are proved to have the missing name, so a repair can't make anything worse. Nothing
//! is removed; blocks that stay damaged are condemned, so that the next backup that reads them from a disk stores them
//! again.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::codec::{Compression, Sealer};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, NodeId};
use crate::manifest::prove;
use crate::reader::read_all;
use crate::store::checked::nodes;
use crate::store::{StoreManager, StoreReader};
use crate::verify::VerifyReport;

/// Nodes that are fetched in one call.
const NODES_AT_ONCE: usize = 64;

/// Plain bytes of the blocks that are fetched in one call; at least one block.
const RUN_BYTES: usize = 16 << 20;

/// The result of [`repair_all`].
#[derive(Debug)]
pub struct Repaired {
    /// The last verification: the damage that is left.
    pub left: VerifyReport,
    /// Number of blocks that were restored.
    pub blocks: u64,
    /// Number of nodes of manifests that were restored.
    pub nodes: u64,
}

/// Verifies and repairs in turns, until a turn restores nothing that may lead to more: a restored node may name
/// blocks that are damaged too. `verify` reads all backups; `look` offers the repair bytes from other sources.
pub fn repair_all<E: From<Error>>(
    store: &dyn StoreManager,
    verify: &mut dyn FnMut() -> std::result::Result<VerifyReport, E>,
    look: &mut dyn FnMut(&mut Repair<'_>) -> std::result::Result<(), E>,
) -> std::result::Result<Repaired, E> {
    let (mut blocks, mut nodes) = (0, 0);
    let mut left = verify()?;
    while !left.bad_blocks.is_empty() || !left.bad_nodes.is_empty() {
        let mut repair = Repair::start(store, &left)?;
        look(&mut repair)?;
        let (restored_blocks, restored_nodes) = repair.mended();
        repair.finish()?;
        if (restored_blocks, restored_nodes) == (0, 0) {
            break;
        }
        blocks += restored_blocks;
        nodes += restored_nodes;
        let before = std::mem::take(&mut left.bad_nodes);
        left = verify()?;
        if restored_nodes == 0 || left.bad_nodes == before {
            break;
        }
    }
    Ok(Repaired { left, blocks, nodes })
}

/// An error of [`Repair::from_repository`].
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The other repository failed.
    #[error(transparent)]
    From(Error),
    /// The damaged repository failed.
    #[error(transparent)]
    To(Error),
}

/// A repair in progress: the damaged or missing blocks and nodes, and those that were restored.
pub struct Repair<'a> {
    store: &'a dyn StoreManager,
    blocks: HashMap<BlockId, usize>,
    nodes: HashSet<NodeId>,
    mended_blocks: u64,
    mended_nodes: u64,
}

impl<'a> Repair<'a> {
    /// Starts from the damage that a verification of `store` found. Condemns the damaged blocks, so that they can be
    /// stored again.
    pub fn start(store: &'a dyn StoreManager, found: &VerifyReport) -> Result<Self> {
        let ids: Vec<_> = found.bad_blocks.keys().copied().collect();
        store.condemn(&ids)?;
        Ok(Self {
            store,
            blocks: found.bad_blocks.clone(),
            nodes: found.bad_nodes.clone(),
            mended_blocks: 0,
            mended_nodes: 0,
        })
    }

    /// Returns the numbers of blocks and nodes that are still missing.
    pub fn missing(&self) -> (u64, u64) {
        (self.blocks.len() as u64, self.nodes.len() as u64)
    }

    /// Returns the numbers of blocks and nodes that were restored.
    pub fn mended(&self) -> (u64, u64) {
        (self.mended_blocks, self.mended_nodes)
    }

    /// Fetches missing blocks and nodes from another repository. Those that it lacks, or has damaged, stay missing; that it can't
    /// be read is an error.
    pub fn from_repository(
        &mut self,
        other: &dyn StoreReader,
        cancel: &AtomicBool,
    ) -> std::result::Result<(), FetchError> {
        let is_cancelled = || match cancel.load(Ordering::SeqCst) {
            true => Err(FetchError::To(Error::Interrupted)),
            false => Ok(()),
        };
        let missing: Vec<_> = self.nodes.iter().copied().collect();
        for ids in missing.chunks(NODES_AT_ONCE) {
            is_cancelled()?;
            let mut found = Vec::new();
            for (&id, bytes) in ids.iter().zip(nodes(other, ids)) {
                let Some(bytes) = if_whole(bytes)? else { continue };
                if prove(self.store.hashing(), id, &bytes).is_ok() {
                    found.push((id, bytes));
                }
            }
            for (id, _) in &found {
                self.nodes.remove(id);
            }
            self.mended_nodes += found.len() as u64;
            self.store.put_nodes(found).map_err(FetchError::To)?;
        }
        let missing: Vec<_> = self.blocks.iter().map(|(id, len)| (*id, *len)).collect();
        let largest = missing.iter().map(|(_, len)| *len).max().unwrap_or(1).max(1);
        for blocks in missing.chunks((RUN_BYTES / largest).max(1)) {
            is_cancelled()?;
            let mut buffers: Vec<_> = blocks.iter().map(|(_, len)| vec![0; *len]).collect();
            let ids = blocks.iter().map(|(id, _)| *id);
            let mut wanted: Vec<_> = ids.zip(buffers.iter_mut().map(Vec::as_mut_slice)).collect();
            let read = read_all(other, &mut wanted);
            for (plain, read) in buffers.iter().zip(read) {
                if if_whole(read)?.is_some() {
                    self.offer(plain).map_err(FetchError::To)?;
                }
            }
        }
        Ok(())
    }

    /// Stores `plain` if it is a missing block; returns `true` if so.
    pub fn offer(&mut self, plain: &[u8]) -> Result<bool> {
        let hashes = self.store.hashing().block(plain);
        if self.blocks.remove(&hashes.id).is_none() {
            return Ok(false);
        }
        let sealed = Sealer::new(Compression::default())?.seal(plain, &hashes)?;
        self.store.put(vec![sealed])?;
        self.mended_blocks += 1;
        Ok(true)
    }

    /// Makes all restored blocks and nodes durable.
    pub fn finish(self) -> Result<()> {
        self.store.flush()
    }
}

/// Returns what was read; `None` if it is missing or damaged there.
fn if_whole<T>(read: Result<T>) -> std::result::Result<Option<T>, FetchError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
        Err(error) => Err(FetchError::From(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backup::Entry;
    use crate::id::BackupId;
    use crate::reader::read_whole;
    use crate::slots::SlotReader;
    use crate::store::faulty::{Calls, Fault, FaultyStore};
    use crate::store::memory::MemoryStore;
    use crate::tests::testing::{SMALL, backup, mixed_bytes, store_image};
    use crate::verify::{Scope, verify};

    fn stored() -> (MemoryStore, Entry, Vec<BlockId>) {
        let store = MemoryStore::new(SMALL);
        let image = store_image(&store, "vda", &mixed_bytes(3, 30 * SMALL.bytes() - 5));
        let slots = SlotReader::open(&store, image.manifest)
            .expect("opens")
            .segment(0)
            .expect("reads");
        let entry = Entry {
            id: BackupId([0; 32]),
            backup: backup("web1", "2026-11-20T00-00-00Z", vec![image]),
        };
        (store, entry, slots.into_iter().flatten().collect())
    }

    fn check(store: &MemoryStore, entry: &Entry) -> VerifyReport {
        let entries = std::slice::from_ref(entry);
        verify(store, entries, &Scope::All, 2, &|_| (), &AtomicBool::new(false)).expect("runs")
    }

    #[test]
    fn what_another_repository_has_comes_back_and_the_rest_is_still_named() {
        let (store, entry, ids) = stored();
        let (other, ..) = stored();
        store.damage(ids[3], |sealed| sealed.pages.iter_mut().for_each(Vec::clear));
        store.lose(ids[5]);
        store.lose(ids[7]);
        other.lose(ids[7]);
        let found = check(&store, &entry);
        assert_eq!(found.bad_blocks.len(), 3);
        let mut repair = Repair::start(&store, &found).expect("starts");
        repair
            .from_repository(&other, &AtomicBool::new(false))
            .expect("fetches");
        assert_eq!((repair.mended(), repair.missing()), ((2, 0), (1, 0)));
        repair.finish().expect("finishes");
        let left: Vec<_> = check(&store, &entry).bad_blocks.into_keys().collect();
        assert_eq!(left, [ids[7]]);
        assert_eq!(store.condemned().expect("lists"), [ids[7]]);
    }

    #[test]
    fn a_repository_that_can_not_be_read_is_an_error_and_no_lack() {
        let (store, entry, ids) = stored();
        let other = FaultyStore::new(Arc::new(stored().0));
        store.lose(ids[3]);
        let found = check(&store, &entry);
        for kind in [ErrorKind::Denied, ErrorKind::Unavailable] {
            other.arm(Fault {
                calls: Calls::Any,
                after: 0,
                kind,
                lasting: true,
            });
            let mut repair = Repair::start(&store, &found).expect("starts");
            let fetched = repair.from_repository(&other, &AtomicBool::new(false));
            assert!(matches!(fetched, Err(FetchError::From(error)) if error.kind() == kind));
        }
        other.disarm();
        let mut repair = Repair::start(&store, &found).expect("starts");
        let fetched = repair.from_repository(&other, &AtomicBool::new(true));
        assert!(matches!(fetched, Err(FetchError::To(Error::Interrupted))));
        repair
            .from_repository(&other, &AtomicBool::new(false))
            .expect("fetches");
        assert_eq!(repair.mended(), (1, 0));
    }

    #[test]
    fn only_what_is_missing_is_taken_from_what_is_offered() {
        let (store, entry, ids) = stored();
        let mut plain = vec![0; SMALL.bytes()];
        read_whole(&store, ids[2], &mut plain).expect("reads");
        store.lose(ids[2]);
        let mut repair = Repair::start(&store, &check(&store, &entry)).expect("starts");
        assert!(!repair.offer(&vec![7; SMALL.bytes()]).expect("refuses"));
        assert!(repair.offer(&plain).expect("takes"));
        assert!(!repair.offer(&plain).expect("refuses"));
        repair.finish().expect("finishes");
        assert_eq!(check(&store, &entry).damage, []);
    }
}
