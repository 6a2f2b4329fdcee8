//! Walks the manifests of backups: finds everything that they name.
//!
//! The walk goes through a disk in all its backups at once, because they share full segments: a block of a full segment
//! is needed as long as one backup uses it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::backup::Entry;
use crate::catalogue::Catalogue;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, NodeId};
use crate::manifest::{Head, Page, Root, Segment, prove};
use crate::pool;
use crate::store::checked::nodes;
use crate::store::live::{LivePlaces, Starts};
use crate::store::{Distance, Live, StoreReader};

mod needs;
mod sealed;
mod slice;

use needs::Needs;
pub use sealed::mark_sealed;
use slice::{Index, slices};

/// Nodes of segments that go to a thread at once, or more if they belong together, and that are read in one call: at most
/// 560 KiB.
const BATCH_NODES: usize = 16;

/// Roots, or pages, that are read in one call: 270 KiB of pages.
const BATCH_PAGES: usize = 64;

/// Threads that wait for a far store at the same time.
const FAR_THREADS: usize = 8;

/// Finds everything that the backups of a catalogue name. Fails with kind Corrupt if it can't read what one of them names, or if
/// a single named block is missing from the index: then a block that was not found is not proved to be unused.
///
/// Reads the index in its own order, because looking each block up would be a random read: first to count the blocks, then slice
/// by slice. The ids of a slice are held while the manifests are walked, and all named ones of the slice are marked; then the slice
/// is read again, for the places of the marked blocks. So the index is read three times, and the manifests once for each 2
/// million blocks, at most four times. Where blocks are stored as differences, the index is read once more for their bases.
///
/// Memory: a byte per block of the store, or 8 MiB if that is more; a bit per block; 8 bytes per base of differences and per node
/// of a manifest, 50 per page and 40 per distinct full segment.
pub fn mark(store: &dyn StoreReader, catalogue: &Catalogue, threads: usize, cancel: &AtomicBool) -> Result<Live> {
    check_complete(catalogue)?;
    let entries: Vec<_> = catalogue.entries().iter().collect();
    mark_all(store, threads, cancel, &|node, each| {
        each_segment(store, &entries, threads, cancel, node, each)
    })
}

/// An error if a record can't be read: then the blocks that it needs are not known.
pub(crate) fn check_complete(catalogue: &Catalogue) -> Result<()> {
    match catalogue.damaged().first() {
        Some(damaged) => Err(Error::CantTellUnused {
            what: damaged.to_string(),
        }),
        None => Ok(()),
    }
}

/// Passes on the names of nodes, and gives the blocks that some segments need.
type Segments<'a> = dyn Fn(&mut dyn FnMut(NodeId), &(dyn Fn(&[BlockId]) -> Result<()> + Sync)) -> Result<()> + 'a;

fn mark_all(store: &dyn StoreReader, threads: usize, cancel: &AtomicBool, segments: &Segments<'_>) -> Result<Live> {
    let marked = mark_slices(&Index { store, threads, cancel }, segments);
    marked.map_err(|error| match error.kind() {
        ErrorKind::Corrupt => Error::CantTellUnused {
            what: error.to_string(),
        },
        _ => error,
    })
}

/// Writers may put blocks meanwhile. Whatever they put after the count gets a place behind all that were counted, and is live.
/// So is a damaged block that is stored again after its slice was read, although its row names another place then.
fn mark_slices(index: &Index<'_>, segments: &Segments<'_>) -> Result<Live> {
    let (blocks, end) = index.count()?;
    let places = Mutex::new(LivePlaces::default());
    let mut nodes = Starts::default();
    for (number, parts) in slices(blocks).enumerate() {
        let slice = index.slice(parts, blocks)?;
        let mut node = |id: NodeId| {
            // Each walk finds the same.
            if number == 0 {
                nodes.add(&id.0);
            }
        };
        segments(&mut node, &|ids| match ids.iter().find(|id| !slice.mark(id)) {
            None => Ok(()),
            // The index lost its row: the block itself may be there still, and a repair can bring it back.
            Some(id) => Err(Error::BlockMissing(*id)),
        })?;
        index.add_marked(&slice, &places)?;
    }
    loop {
        let bases = places.lock().take_bases();
        if bases.is_empty() {
            break;
        }
        index.add_bases(&bases, &places)?;
    }
    Ok(Live::new(places.into_inner(), end, nodes.into_set()))
}

/// A full segment, and the deltas that the backups of a disk use it with; one is zero if a backup uses it alone.
type Group = (NodeId, BTreeSet<NodeId>);

/// Gives the blocks that `entries` need to `each`, which is called from several threads: those of some segments at a time,
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
    let head = |id: NodeId, bytes: &[u8]| Ok(prove(store.hashing(), id, bytes)?.0);
    let walk = |groups: Groups<'_>| {
        let walk = Walk {
            store,
            groups,
            seen_alone: HashSet::new(),
        };
        walk.all(entries)
    };
    each_group(store, threads, cancel, node, each, &head, walk)
}

/// Gives the blocks that the groups of a walk need to `each`, in threads. `read` reads the head of a node.
fn each_group(
    store: &dyn StoreReader,
    threads: usize,
    cancel: &AtomicBool,
    node: &mut dyn FnMut(NodeId),
    each: &(dyn Fn(&[BlockId]) -> Result<()> + Sync),
    read: &(dyn Fn(NodeId, &[u8]) -> Result<Head> + Sync),
    walk: impl FnOnce(Groups<'_>) -> Result<()>,
) -> Result<()> {
    let threads = match store.distance() {
        Distance::Near => threads,
        Distance::Far => threads.max(FAR_THREADS),
    };
    let hand_out = |send: &mut dyn FnMut(Vec<Group>) -> bool| {
        walk(Groups {
            node,
            send,
            cancel,
            batch: Vec::new(),
            nodes: 0,
        })
    };
    pool::feed("vbk-mark", threads, 2 * threads, hand_out, &|batch: Vec<_>| {
        blocks_of(store, &batch, read, each)
    })
}

/// The groups that a walk finds, on their way to the threads.
struct Groups<'a> {
    node: &'a mut dyn FnMut(NodeId),
    send: &'a mut dyn FnMut(Vec<Group>) -> bool,
    cancel: &'a AtomicBool,
    batch: Vec<Group>,
    /// Nodes in `batch`.
    nodes: usize,
}

impl Groups<'_> {
    /// Passes on the name of a root or page.
    fn node(&mut self, id: NodeId) {
        (self.node)(id);
    }

    fn add(&mut self, group: Group) -> Result<()> {
        for id in nodes_of(&group) {
            (self.node)(id);
            self.nodes += 1;
        }
        self.batch.push(group);
        match self.nodes >= BATCH_NODES {
            true => self.send(),
            false => Ok(()),
        }
    }

    /// Sends what is left.
    fn send(&mut self) -> Result<()> {
        self.nodes = 0;
        // A thread that fails leaves its own error, which counts.
        match !self.cancel.load(Ordering::SeqCst) && (self.send)(std::mem::take(&mut self.batch)) {
            true => Ok(()),
            false => Err(Error::Interrupted),
        }
    }
}

/// The place of a page: the number of its disk, and its own number on the disk. Backups share a full segment at the same
/// place, seldom elsewhere.
type PagePlace = (usize, usize);

struct Walk<'a, 'g> {
    store: &'a dyn StoreReader,
    groups: Groups<'g>,
    /// Full segments that were handed out alone: guests that were made from one image share them.
    seen_alone: HashSet<NodeId>,
}

impl Walk<'_, '_> {
    /// Hands out all segments.
    fn all(mut self, entries: &[&Entry]) -> Result<()> {
        // A page at two places is read twice; the number of its segments is the same.
        let pages: Vec<(PagePlace, NodeId, usize)> = self
            .pages(entries)?
            .into_iter()
            .flat_map(|(place, pages)| pages.into_iter().map(move |(id, count)| (place, id, count)))
            .collect();
        let hashing = self.store.hashing();
        let mut place = None;
        let mut groups: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        for pages in pages.chunks(BATCH_PAGES) {
            let ids: Vec<_> = pages.iter().map(|(_, id, _)| *id).collect();
            for (&(of, id, count), bytes) in pages.iter().zip(nodes(self.store, &ids)) {
                if place.replace(of) != Some(of) {
                    self.hand_out(std::mem::take(&mut groups))?;
                }
                let page = Page::decode(hashing, id, count, &bytes?)?;
                for segment in page.0.into_iter().filter(|segment| *segment != Segment::ZERO) {
                    groups.entry(segment.full).or_default().insert(segment.delta);
                }
                self.groups.node(id);
            }
        }
        self.hand_out(groups)?;
        self.groups.send()
    }

    /// Reads all roots, and returns their pages by their place, with their numbers of segments.
    fn pages(&mut self, entries: &[&Entry]) -> Result<BTreeMap<PagePlace, BTreeMap<NodeId, usize>>> {
        let mut numbers: HashMap<(&str, &str), usize> = HashMap::new();
        let mut roots: BTreeSet<(NodeId, usize)> = BTreeSet::new();
        for entry in entries {
            for image in entry.backup.stored() {
                let disks = numbers.len();
                let disk = (entry.backup.guest.as_str(), image.disk.as_str());
                roots.insert((image.manifest, *numbers.entry(disk).or_insert(disks)));
            }
        }
        let roots: Vec<_> = roots.into_iter().collect();
        let mut pages: BTreeMap<PagePlace, BTreeMap<NodeId, usize>> = BTreeMap::new();
        for roots in roots.chunks(BATCH_PAGES) {
            let ids: Vec<_> = roots.iter().map(|(id, _)| *id).collect();
            for (&(id, disk), bytes) in roots.iter().zip(nodes(self.store, &ids)) {
                let root = Root::decode(self.store.hashing(), id, &bytes?)?;
                for (number, &page) in root.pages.iter().enumerate() {
                    if page != NodeId::ZERO {
                        let place = pages.entry((disk, number)).or_default();
                        place.insert(page, root.segments_in(number));
                    }
                }
                self.groups.node(id);
            }
        }
        Ok(pages)
    }

    fn hand_out(&mut self, groups: BTreeMap<NodeId, BTreeSet<NodeId>>) -> Result<()> {
        groups.into_iter().try_for_each(|group| self.group(group))
    }

    fn group(&mut self, (full, deltas): Group) -> Result<()> {
        let is_alone = deltas.iter().all(|delta| *delta == NodeId::ZERO);
        if is_alone && !self.seen_alone.insert(full) {
            return Ok(());
        }
        self.groups.add((full, deltas))
    }
}

/// Returns the stored nodes of a group, the full segment first.
fn nodes_of((full, deltas): &Group) -> impl Iterator<Item = NodeId> {
    let deltas = deltas.iter().filter(|delta| **delta != NodeId::ZERO);
    std::iter::once(full).chain(deltas).copied()
}

/// Gives the blocks that the groups of a batch need to `each`. `read` reads the head of a node.
fn blocks_of(
    store: &dyn StoreReader,
    batch: &[Group],
    read: &dyn Fn(NodeId, &[u8]) -> Result<Head>,
    each: &(dyn Fn(&[BlockId]) -> Result<()> + Sync),
) -> Result<()> {
    let alone = |(_, deltas): &Group| deltas.contains(&NodeId::ZERO);
    let mut needs: Vec<_> = batch.iter().map(|group| Needs::new(alone(group))).collect();
    let wanted = (0..)
        .zip(batch)
        .flat_map(|(group, one)| nodes_of(one).map(move |id| (group, id)));
    let wanted: Vec<(usize, NodeId)> = wanted.collect();
    for wanted in wanted.chunks(BATCH_NODES) {
        let ids: Vec<_> = wanted.iter().map(|(_, id)| *id).collect();
        for (&(group, id), bytes) in wanted.iter().zip(nodes(store, &ids)) {
            needs[group].add(id, read(id, &bytes?)?)?;
        }
    }
    let blocks: Vec<_> = needs.into_iter().flat_map(Needs::blocks).collect();
    each(&blocks)
}

#[cfg(test)]
mod tests;
