//! The store that an image is read from, and its copies on this host.
//!
//! A copy is proved like everything else that a store gives. A wrong one, or one of something that was damaged in the store when
//! it was copied, costs time and never changes the result: it is dropped, and the store is asked.

use std::sync::Arc;

use crate::error::{ErrorKind, Result};
use crate::id::{BlockId, NodeId};
use crate::manifest::{Manifest, Segment, SegmentSlots};
use crate::slots::{read_manifest, read_segments};
use crate::store::StoreReader;

/// Bytes of a sequential run that are copied: enough for most files and for the metadata of a file system. What reads a disk
/// through would push out all other copies.
const COPIED_RUN_BYTES: u64 = 64 << 20;

/// A store, and perhaps its copies.
pub(super) struct Source {
    store: Arc<dyn StoreReader>,
    copies: Option<Arc<dyn StoreReader>>,
}

impl Source {
    pub(super) fn new(store: Arc<dyn StoreReader>) -> Self {
        Self {
            copies: Arc::clone(&store).with_copies(),
            store,
        }
    }

    /// The store itself: for what is read once.
    pub(super) fn store(&self) -> &Arc<dyn StoreReader> {
        &self.store
    }

    /// The store for a part of a sequential run of reads that has this length so far. Its caller reads what fails with
    /// [`Source::read`].
    pub(super) fn of_run(&self, run_bytes: u64) -> &Arc<dyn StoreReader> {
        match &self.copies {
            Some(copies) if run_bytes <= COPIED_RUN_BYTES => copies,
            _ => &self.store,
        }
    }

    /// Reads and proves something of a block.
    pub(super) fn read<T>(&self, id: BlockId, mut read: impl FnMut(&dyn StoreReader) -> Result<T>) -> Result<T> {
        let Some(copies) = &self.copies else {
            return read(&*self.store);
        };
        match read(&**copies) {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                copies.drop_copies(&[id], &[]);
                read(&*self.store)
            }
            read => read,
        }
    }

    pub(super) fn manifest(&self, id: NodeId) -> Result<Manifest> {
        let Some(copies) = &self.copies else {
            return read_manifest(&*self.store, id);
        };
        let bad = match read_manifest(&**copies, id) {
            Ok(manifest) => {
                let bad: Vec<_> = manifest.bad_pages().collect();
                if bad.is_empty() {
                    return Ok(manifest);
                }
                bad
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => vec![id],
            Err(error) => return Err(error),
        };
        copies.drop_copies(&[], &bad);
        read_manifest(&*self.store, id)
    }

    /// Reads segments, given with their number of slots: one result for each.
    pub(super) fn segments(&self, wanted: &[(Segment, usize)]) -> Vec<Result<SegmentSlots>> {
        let Some(copies) = &self.copies else {
            return read_segments(&*self.store, wanted);
        };
        let again = |(read, &(names, count)): (Result<SegmentSlots>, &(Segment, usize))| match read {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                copies.drop_copies(&[], &names.nodes().collect::<Vec<_>>());
                read_segments(&*self.store, &[(names, count)]).swap_remove(0)
            }
            read => read,
        };
        read_segments(&**copies, wanted)
            .into_iter()
            .zip(wanted)
            .map(again)
            .collect()
    }
}
