//! Counts what a prune would find unused if some backups were forgotten first. Reads manifests and the index, but no blocks and
//! no lock.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::catalogue::Catalogue;
use crate::error::{Error, ErrorKind, Result};
use crate::mark::mark;
use crate::store::{Record, StoreReader};

/// Blocks of a store, by whether a backup needs them. A prune that leaves some unused removes less.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Unused {
    /// Blocks that backups need.
    pub live_blocks: u64,
    /// Stored bytes of those.
    pub live_bytes: u64,
    /// Blocks that no backup needs.
    pub unused_blocks: u64,
    /// Stored bytes of those.
    pub unused_bytes: u64,
}

/// Counts the blocks as if the backups `forgotten`, named as `GUEST@TIME`, were not there. What the records in the bin name counts
/// as live. Fails with kind Corrupt if what one of the other backups needs is not known.
pub fn unused_without(
    store: &dyn StoreReader,
    catalogue: &Catalogue,
    forgotten: &HashSet<String>,
    bin: Vec<Record>,
    threads: usize,
    cancel: &AtomicBool,
) -> Result<Unused> {
    let left = catalogue.without(forgotten)?;
    let with_bin = left.with_readable(store.hashing(), bin);
    let live = match mark(store, &with_bin, threads, cancel) {
        // What is damaged in the bin can't be brought back, and stops no prune.
        Err(error) if error.kind() == ErrorKind::Corrupt => mark(store, &left, threads, cancel)?,
        live => live?,
    };
    let mut found = Unused::default();
    store.survey(&mut |_, located| {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let (blocks, bytes) = match live.has_block_at(located.place) {
            true => (&mut found.live_blocks, &mut found.live_bytes),
            false => (&mut found.unused_blocks, &mut found.unused_bytes),
        };
        *blocks += 1;
        *bytes += u64::from(located.stored_bytes);
        Ok(())
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreWriter;
    use crate::store::memory::MemoryStore;
    use crate::tests::testing::{SMALL, backup, store_image};

    #[test]
    fn only_what_no_other_backup_needs_is_unused() {
        let store = MemoryStore::new(SMALL);
        let mut records = Vec::new();
        for (time, contents) in [("2026-11-20T05-54-00Z", [1, 2, 3]), ("2026-11-21T05-54-00Z", [1, 4, 5])] {
            let disk: Vec<u8> = contents
                .iter()
                .flat_map(|content| std::iter::repeat_n(*content, SMALL.bytes()))
                .collect();
            let made = backup("web1", time, vec![store_image(&store, "vda", &disk)]);
            let record = Record {
                key: made.spec(),
                bytes: made.encode(),
            };
            store.commit(&record).expect("commits");
            records.push(record);
        }
        let catalogue = Catalogue::load(&store).expect("loads");
        let count = |forgotten: &[&Record], bin: &[Record]| {
            let forgotten = forgotten.iter().map(|record| record.key.clone()).collect();
            let found = unused_without(&store, &catalogue, &forgotten, bin.to_vec(), 2, &AtomicBool::new(false));
            let found = found.expect("counts");
            assert_eq!(found.unused_bytes == 0, found.unused_blocks == 0);
            (found.live_blocks, found.unused_blocks)
        };
        let broken = Record {
            key: "web1@2026-11-22T05-54-00Z".into(),
            bytes: b"{".to_vec(),
        };
        assert_eq!(count(&[], &[]), (5, 0));
        assert_eq!(count(&[&records[0]], &[]), (3, 2));
        assert_eq!(count(&[&records[0], &records[1]], &[]), (0, 5));
        assert_eq!(
            count(&[&records[0], &records[1]], &[records[1].clone(), broken]),
            (3, 2)
        );
    }
}
