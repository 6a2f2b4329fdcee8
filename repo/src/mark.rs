//! Walks the manifests of backups: finds everything that they name.
//!
//! The walk goes disk by disk, and through the backups of a disk together, because they share full segments: a block of
//! a full segment is needed as long as one backup uses it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::backup::Entry;
use crate::catalogue::Catalogue;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, NodeId};
use crate::manifest::{Page, Root, Segment, prove};
use crate::pool;
use crate::store::checked::nodes;
use crate::store::live::Ids;
use crate::store::{Distance, Live, Located, StoreReader};

mod needs;

use needs::Needs;

/// Nodes that go to a thread at once and are read in one call: at most 560 KiB.
const BATCH_NODES: usize = 16;

/// Roots, or pages, that are read in one call: 270 KiB of pages.
const BATCH_PAGES: usize = 64;

/// Threads that wait for a far store at the same time.
const FAR_THREADS: usize = 8;

/// Finds everything that the backups of a catalogue name. Fails with kind Corrupt if it can't read what one of them names, or if
/// a single named block is missing from the index: then a block that was not found is not proved to be unused.
///
/// Reads the index twice in its own order, because looking each block up would be a random read. Memory: 5 bytes per
/// block of the store and per node of a manifest, and 40 bytes per distinct full segment.
pub fn mark(store: &dyn StoreReader, catalogue: &Catalogue, threads: usize, cancel: &AtomicBool) -> Result<Live> {
    if let Some(damaged) = catalogue.damaged().first() {
        return Err(Error::CantTellUnused {
            what: damaged.to_string(),
        });
    }
    let marked = mark_all(store, catalogue, threads, cancel);
    marked.map_err(|error| match error.kind() {
        ErrorKind::Corrupt => Error::CantTellUnused {
            what: error.to_string(),
        },
        _ => error,
    })
}

fn mark_all(store: &dyn StoreReader, catalogue: &Catalogue, threads: usize, cancel: &AtomicBool) -> Result<Live> {
    let survey = |each: &mut dyn FnMut(BlockId, Located)| {
        store.survey(&mut |id, located| {
            each(id, located);
            match cancel.load(Ordering::Relaxed) {
                true => Err(Error::Interrupted),
                false => Ok(()),
            }
        })
    };
    let mut stored = 0;
    survey(&mut |_, _| stored += 1)?;
    let mut ids = Ids::with_room_for(stored);
    survey(&mut |id, _| ids.add(&id.0))?;
    let blocks = ids.into_set();
    let entries: Vec<_> = catalogue.entries().iter().collect();
    let mut nodes = Ids::default();
    each_segment(store, &entries, threads, cancel, &mut |id| nodes.add(&id.0), &|ids| {
        match ids.iter().find(|id| !blocks.mark(&id.0)) {
            None => Ok(()),
            // The index lost its row: the block itself may be there still, and a repair can bring it back.
            Some(id) => Err(Error::BlockMissing(*id)),
        }
    })?;
    Ok(Live::new(blocks, nodes.into_set()))
}

/// A full segment, and the deltas that the backups of a disk use it with; one is zero if a backup uses it alone.
type Group = (NodeId, BTreeSet<NodeId>);

/// Gives the blocks that `entries` need to `each`, which is called from several threads: those of a segment at a time,
/// some of them more than once. Gives the names of all nodes to `node`, from the caller's thread. The first error, also
/// of damage, ends it.
pub(crate) fn each_segment(
    store: &dyn StoreReader,
    entries: &[&Entry],
    threads: usize,
    cancel: &AtomicBool,
    node: &mut dyn FnMut(NodeId),
    each: &(dyn Fn(&[BlockId]) -> Result<()> + Sync),
) -> Result<()> {
    let hand_out = |send: &mut dyn FnMut(Vec<Group>) -> bool| {
        // A thread that fails leaves its own error, which counts.
        let send = &mut |batch| match !cancel.load(Ordering::SeqCst) && send(batch) {
            true => Ok(()),
            false => Err(Error::Interrupted),
        };
        let mut walk = Walk {
            store,
            node,
            send,
            seen_alone: HashSet::new(),
            batch: Vec::new(),
        };
        for manifests in manifests_of_disks(entries).values() {
            walk.disk(manifests)?;
        }
        (walk.send)(walk.batch)
    };
    let threads = match store.distance() {
        Distance::Near => threads,
        Distance::Far => threads.max(FAR_THREADS),
    };
    pool::feed("vbk-mark", threads, 2 * threads, hand_out, &|batch: Vec<_>| {
        blocks_of(store, &batch, each)
    })
}

/// Returns the roots of each disk in all its backups.
fn manifests_of_disks<'a>(entries: &[&'a Entry]) -> BTreeMap<(&'a str, &'a str), Vec<NodeId>> {
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for entry in entries {
        for image in entry.backup.stored() {
            let disk = (entry.backup.guest.as_str(), image.disk.as_str());
            found.entry(disk).or_default().push(image.manifest);
        }
    }
    found.values_mut().for_each(|roots| {
        roots.sort_unstable();
        roots.dedup();
    });
    found
}

struct Walk<'a> {
    store: &'a dyn StoreReader,
    node: &'a mut dyn FnMut(NodeId),
    send: &'a mut dyn FnMut(Vec<Group>) -> Result<()>,
    /// Full segments that were handed out alone: guests that were made from one image share them.
    seen_alone: HashSet<NodeId>,
    batch: Vec<Group>,
}

impl Walk<'_> {
    /// Hands out the segments of a disk.
    fn disk(&mut self, roots: &[NodeId]) -> Result<()> {
        let hashing = self.store.hashing();
        // The pages at each place of the disk, and their numbers of segments. Memory: 32 bytes for each page of each
        // backup that differs from the others.
        let mut places: Vec<BTreeMap<NodeId, usize>> = Vec::new();
        self.read(roots, &mut |number, bytes| {
            let root = Root::decode(hashing, roots[number], bytes)?;
            places.resize_with(places.len().max(root.pages.len()), BTreeMap::new);
            for (place, &page) in root.pages.iter().enumerate() {
                if page != NodeId::ZERO {
                    places[place].insert(page, root.segments_in(place));
                }
            }
            Ok(())
        })?;
        // Backups share a full segment at the same place of the disk, seldom elsewhere.
        for pages in places {
            let (ids, counts): (Vec<_>, Vec<_>) = pages.into_iter().unzip();
            let mut groups: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
            self.read(&ids, &mut |number, bytes| {
                let page = Page::decode(hashing, ids[number], counts[number], bytes)?;
                for segment in page.0.into_iter().filter(|segment| *segment != Segment::ZERO) {
                    groups.entry(segment.full).or_default().insert(segment.delta);
                }
                Ok(())
            })?;
            groups.into_iter().try_for_each(|group| self.group(group))?;
        }
        Ok(())
    }

    /// Reads roots or pages, many with one call, and gives each with its number to `each`.
    fn read(&mut self, ids: &[NodeId], each: &mut dyn FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        let mut number = 0;
        for ids in ids.chunks(BATCH_PAGES) {
            for (id, bytes) in ids.iter().zip(nodes(self.store, ids)) {
                each(number, &bytes?)?;
                (self.node)(*id);
                number += 1;
            }
        }
        Ok(())
    }

    fn group(&mut self, (full, deltas): Group) -> Result<()> {
        let is_alone = deltas.iter().all(|delta| *delta == NodeId::ZERO);
        if is_alone && !self.seen_alone.insert(full) {
            return Ok(());
        }
        (self.node)(full);
        deltas.iter().for_each(|delta| (self.node)(*delta));
        self.batch.push((full, deltas));
        let nodes: usize = self.batch.iter().map(|(_, deltas)| 1 + deltas.len()).sum();
        match nodes >= BATCH_NODES {
            true => (self.send)(std::mem::take(&mut self.batch)),
            false => Ok(()),
        }
    }
}

/// Gives the blocks that the groups of a batch need to `each`.
fn blocks_of(store: &dyn StoreReader, batch: &[Group], each: &(dyn Fn(&[BlockId]) -> Result<()> + Sync)) -> Result<()> {
    let mut needs: Vec<_> = batch.iter().map(|_| Needs::default()).collect();
    let wanted: Vec<_> = (0..)
        .zip(batch)
        .flat_map(|(group, (full, deltas))| std::iter::once(full).chain(deltas).map(move |id| (group, *id)))
        .collect();
    for batch in wanted.chunks(2 * BATCH_NODES) {
        let stored: Vec<_> = batch
            .iter()
            .map(|(_, id)| *id)
            .filter(|id| *id != NodeId::ZERO)
            .collect();
        let mut answers = nodes(store, &stored).into_iter();
        for &(group, id) in batch {
            let needs: &mut Needs = &mut needs[group];
            if id == NodeId::ZERO {
                needs.add_full_alone();
            } else if let Some(bytes) = answers.next() {
                needs.add(id, prove(store.hashing(), id, &bytes?)?.0)?;
            }
        }
    }
    needs.into_iter().try_for_each(|needs| each(&needs.blocks()))
}

#[cfg(test)]
mod tests;
