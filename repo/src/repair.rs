//! Restores damaged blocks and nodes: by name from another repository, or from bytes that a caller offers.
//!
//! Bytes are stored only when they are proved to have the missing name, so a repair can't make anything worse. Nothing
//! is removed; blocks that stay damaged are condemned, so that the next backup that reads them from a disk stores them
//! again.
//!
//! Reading and looking take hours, and other writers work meanwhile: the repository is opened for writing only for moments, to
//! condemn what is damaged and to store what was found. What others do in between does no harm: a block that is stored by then
//! is stored once more if it is condemned, and what a prune has made superfluous goes with the next one.
//!
//! Memory: what was found and not stored yet, 64 MiB and one call's answer.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::block::Hashing;
use crate::codec::{Compression, Sealed, Sealer};
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

/// Bytes that were found and are stored at once.
const FOUND_BYTES: u64 = 64 << 20;

/// Longest time after which what was found is stored.
const FOUND_FOR: Duration = Duration::from_secs(60);

/// Opens the damaged repository for writing, has a function put something into it, and closes it. When this returns, what was
/// put is durable, and in the views that readers open from then on.
pub type Write<'a> = dyn Fn(&mut dyn FnMut(&dyn StoreManager) -> Result<()>) -> Result<()> + 'a;

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
/// blocks that are damaged too. `verify` reads all backups; `look` offers the repair bytes from other sources. What was found is
/// stored also if that fails.
pub fn repair_all<E: From<Error>>(
    hashing: Hashing,
    write: &Write<'_>,
    verify: &mut dyn FnMut() -> std::result::Result<VerifyReport, E>,
    look: &mut dyn FnMut(&mut Repair<'_>) -> std::result::Result<(), E>,
) -> std::result::Result<Repaired, E> {
    let (mut blocks, mut nodes) = (0, 0);
    let mut left = verify()?;
    while !left.bad_blocks.is_empty() || !left.bad_nodes.is_empty() {
        let mut repair = Repair::start(hashing, write, &left)?;
        let looked = look(&mut repair);
        let (restored_blocks, restored_nodes) = repair.mended();
        repair.finish()?;
        looked?;
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
    hashing: Hashing,
    write: &'a Write<'a>,
    found: Found,
    blocks: HashMap<BlockId, usize>,
    nodes: HashSet<NodeId>,
    mended_blocks: u64,
    mended_nodes: u64,
}

/// Restored blocks and nodes that are not stored yet.
#[derive(Default)]
struct Found {
    blocks: Vec<Sealed>,
    nodes: Vec<(NodeId, Vec<u8>)>,
    bytes: u64,
    /// Time of the first one.
    since: Option<Instant>,
}

impl Found {
    fn is_due(&self) -> bool {
        self.bytes >= FOUND_BYTES || self.since.is_some_and(|since| since.elapsed() >= FOUND_FOR)
    }

    fn count(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.since.get_or_insert_with(Instant::now);
    }
}

impl<'a> Repair<'a> {
    /// Starts from the damage that a verification found. Condemns the damaged blocks, so that they can be stored again.
    pub fn start(hashing: Hashing, write: &'a Write<'a>, found: &VerifyReport) -> Result<Self> {
        let ids: Vec<_> = found.bad_blocks.keys().copied().collect();
        if !ids.is_empty() {
            write(&mut |store| store.condemn(&ids))?;
        }
        Ok(Self {
            hashing,
            write,
            found: Found::default(),
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
            for (&id, bytes) in ids.iter().zip(nodes(other, ids)) {
                let Some(bytes) = if_whole(bytes)? else { continue };
                if prove(self.hashing, id, &bytes).is_ok() {
                    self.nodes.remove(&id);
                    self.mended_nodes += 1;
                    self.found.count(bytes.len() as u64);
                    self.found.nodes.push((id, bytes));
                }
            }
            self.store_if_due().map_err(FetchError::To)?;
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

    /// Takes `plain` if it is a missing block; returns `true` if so.
    pub fn offer(&mut self, plain: &[u8]) -> Result<bool> {
        self.store_if_due()?;
        let hashes = self.hashing.block(plain);
        if self.blocks.remove(&hashes.id).is_none() {
            return Ok(false);
        }
        let sealed = Sealer::new(Compression::default())?.seal(plain, &hashes)?;
        self.found.count(sealed.stored_bytes());
        self.found.blocks.push(sealed);
        self.mended_blocks += 1;
        Ok(true)
    }

    fn store_if_due(&mut self) -> Result<()> {
        match self.found.is_due() {
            true => self.store(),
            false => Ok(()),
        }
    }

    fn store(&mut self) -> Result<()> {
        let Found { blocks, nodes, .. } = std::mem::take(&mut self.found);
        if blocks.is_empty() && nodes.is_empty() {
            return Ok(());
        }
        let mut found = Some((blocks, nodes));
        (self.write)(&mut |store| {
            let (blocks, nodes) = found.take().unwrap_or_default();
            store.put_nodes(nodes)?;
            store.put(blocks)?;
            store.flush()
        })
    }

    /// Makes all restored blocks and nodes durable.
    pub fn finish(mut self) -> Result<()> {
        self.store()
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
            backup: backup("web1", "2026-11-20T00-00-00Z", vec![image]).into(),
        };
        (store, entry, slots.into_iter().flatten().collect())
    }

    fn writing(store: &MemoryStore) -> Box<Write<'_>> {
        Box::new(move |change| change(store))
    }

    fn check(store: &MemoryStore, entry: &Entry) -> VerifyReport {
        let entries = std::slice::from_ref(entry);
        verify(store, entries, &Scope::All, 2, &|_| (), &AtomicBool::new(false)).expect("runs")
    }

    #[test]
    fn what_another_repository_has_comes_back_and_the_rest_is_still_named() {
        let (store, entry, ids) = stored();
        let write = writing(&store);
        let (other, ..) = stored();
        store.damage(ids[3], |sealed| sealed.pages.iter_mut().for_each(Vec::clear));
        store.lose(ids[5]);
        store.lose(ids[7]);
        other.lose(ids[7]);
        let found = check(&store, &entry);
        assert_eq!(found.bad_blocks.len(), 3);
        let mut repair = Repair::start(Hashing::Plain, &*write, &found).expect("starts");
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
        let write = writing(&store);
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
            let mut repair = Repair::start(Hashing::Plain, &*write, &found).expect("starts");
            let fetched = repair.from_repository(&other, &AtomicBool::new(false));
            assert!(matches!(fetched, Err(FetchError::From(error)) if error.kind() == kind));
        }
        other.disarm();
        let mut repair = Repair::start(Hashing::Plain, &*write, &found).expect("starts");
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
        let write = writing(&store);
        let mut plain = vec![0; SMALL.bytes()];
        read_whole(&store, ids[2], &mut plain).expect("reads");
        store.lose(ids[2]);
        let mut repair = Repair::start(Hashing::Plain, &*write, &check(&store, &entry)).expect("starts");
        assert!(!repair.offer(&vec![7; SMALL.bytes()]).expect("refuses"));
        assert!(repair.offer(&plain).expect("takes"));
        assert!(!repair.offer(&plain).expect("refuses"));
        repair.finish().expect("finishes");
        assert_eq!(check(&store, &entry).damage, []);
    }
}
