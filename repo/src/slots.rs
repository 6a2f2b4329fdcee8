//! Reads the manifests of stored images, and their slots: many with one call of the store.

use std::collections::HashSet;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::id::NodeId;
use crate::manifest::{Delta, Full, Manifest, Page, Root, Segment, SegmentSlots, Slot};
use crate::store::StoreReader;
use crate::store::checked::nodes;

/// Pages that are read in one call: about a MiB.
const PAGES_AT_ONCE: usize = 256;

/// Reads and proves the roots and pages of manifests. Returns one result for each. Takes two calls, or more where there
/// are many pages.
pub(crate) fn read_manifests(store: &(impl StoreReader + ?Sized), ids: &[NodeId]) -> Vec<Result<Manifest>> {
    let hashing = store.hashing();
    let decode = |(bytes, id): (Result<Vec<u8>>, &NodeId)| Root::decode(hashing, *id, &bytes?);
    let roots: Vec<_> = nodes(store, ids).into_iter().zip(ids).map(decode).collect();
    let pages = roots.iter().flatten().flat_map(|root| root.pages.iter().copied());
    let pages: Vec<_> = pages.filter(|id| *id != NodeId::ZERO).collect();
    let mut answers = pages.chunks(PAGES_AT_ONCE).flat_map(|ids| nodes(store, ids));
    let manifest = |root: Result<Root>| {
        let root = root?;
        let page = |(number, &id): (usize, &NodeId)| match id {
            // Takes no memory: a few bytes of a root may stand for any number of pages of zeros.
            NodeId::ZERO => Ok(Page(Vec::new())),
            id => Page::decode(hashing, id, root.segments_in(number), &next(&mut answers)?),
        };
        let pages = root.pages.iter().enumerate().map(page).collect();
        Manifest::new(root, pages)
    };
    roots.into_iter().map(manifest).collect()
}

/// Reads and proves a root and its pages.
pub(crate) fn read_manifest(store: &(impl StoreReader + ?Sized), id: NodeId) -> Result<Manifest> {
    read_manifests(store, &[id]).swap_remove(0)
}

/// Reads and proves segments, given with their number of slots, in one call. Returns one result for each.
pub(crate) fn read_segments(
    store: &(impl StoreReader + ?Sized),
    wanted: &[(Segment, usize)],
) -> Vec<Result<SegmentSlots>> {
    let ids: Vec<_> = wanted.iter().flat_map(|(names, _)| names.nodes()).collect();
    let mut answers = nodes(store, &ids).into_iter();
    let of = |&(names, count): &(Segment, usize)| {
        // Both answers are taken, also after an error.
        let mut answer = |id: NodeId| (id != NodeId::ZERO).then(|| next(&mut answers));
        let (full, delta) = (answer(names.full), answer(names.delta));
        let full = full
            .map(|bytes| Full::decode(store.hashing(), names.full, count, &bytes?))
            .transpose()?;
        let slots = match (&full, delta) {
            (Some(full), None) => full.slots(),
            (Some(full), Some(bytes)) => Delta::decode(store.hashing(), names.delta, full, &bytes?)?,
            (None, _) => vec![None; count],
        };
        Ok(SegmentSlots { full, slots })
    };
    wanted.iter().map(of).collect()
}

/// A segment that was read, and the names of the same segment in the image before, which has as many slots.
pub(crate) struct Changed<'a> {
    pub(crate) names: Segment,
    pub(crate) read: &'a SegmentSlots,
    pub(crate) before: Segment,
}

/// Reads the slots that segments had before, in one call. Returns one result for each. Full segments that are still used are not
/// read again.
pub(crate) fn read_before(store: &(impl StoreReader + ?Sized), changed: &[Changed<'_>]) -> Vec<Result<Vec<Slot>>> {
    let has_full = |one: &Changed<'_>| one.before.full == one.names.full && one.read.full.is_some();
    let wanted = |one: &Changed<'_>| Segment {
        full: if has_full(one) { NodeId::ZERO } else { one.before.full },
        ..one.before
    };
    let ids: Vec<_> = changed.iter().flat_map(|one| wanted(one).nodes()).collect();
    let mut answers = nodes(store, &ids).into_iter();
    let of = |one: &Changed<'_>| {
        // Both answers are taken, also after an error.
        let mut answer = |id: NodeId| (id != NodeId::ZERO).then(|| next(&mut answers));
        let (full, delta) = (answer(wanted(one).full), answer(one.before.delta));
        let count = one.read.slots.len();
        let decode = |bytes: Result<Vec<u8>>| Full::decode(store.hashing(), one.before.full, count, &bytes?);
        let read = full.map(decode).transpose()?;
        let kept = one.read.full.as_ref().filter(|_| has_full(one));
        match (read.as_ref().or(kept), delta) {
            (Some(full), None) => Ok(full.slots()),
            (Some(full), Some(bytes)) => Delta::decode(store.hashing(), one.before.delta, full, &bytes?),
            (None, _) => Ok(vec![None; count]),
        }
    };
    changed.iter().map(of).collect()
}

/// Reads several segments of an image in one call: one result for each segment that the image has.
pub(crate) fn read_numbers(
    store: &(impl StoreReader + ?Sized),
    manifest: &Manifest,
    numbers: Range<usize>,
) -> Vec<Result<SegmentSlots>> {
    let names: Vec<_> = manifest
        .clamp(numbers)
        .map(|number| Ok((manifest.segment(number)?, manifest.slots_in(number))))
        .collect();
    let wanted: Vec<_> = names.iter().flatten().copied().collect();
    let mut read = read_segments(store, &wanted).into_iter();
    let of = |names: Result<_>| names.and_then(|_| read.next().unwrap_or_else(|| Err(no_answer())));
    names.into_iter().map(of).collect()
}

/// Takes the next answer; the store gave as many as were asked for.
fn next(answers: &mut impl Iterator<Item = Result<Vec<u8>>>) -> Result<Vec<u8>> {
    answers.next().unwrap_or_else(|| Err(no_answer()))
}

fn no_answer() -> Error {
    Error::Internal {
        doing: "read a manifest",
        message: "the store returned no answer for a node".into(),
    }
}

/// Reads the slots of a stored image.
pub struct SlotReader<'a> {
    store: &'a dyn StoreReader,
    id: NodeId,
    manifest: Manifest,
}

impl<'a> SlotReader<'a> {
    /// Reads the root and the pages of a manifest. A damaged page is an error only of its segments.
    pub fn open(store: &'a dyn StoreReader, id: NodeId) -> Result<Self> {
        Ok(Self {
            store,
            id,
            manifest: read_manifest(store, id)?,
        })
    }

    /// Returns the root and the pages.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the slots of segment `number`; none past the end.
    pub fn segment(&self, number: usize) -> Result<Vec<Slot>> {
        let read = self.segments(number..number + 1).pop();
        read.map_or_else(|| Ok(Vec::new()), |read| Ok(read?.slots))
    }

    /// Reads several segments in one call: one result for each segment that the image has.
    pub fn segments(&self, numbers: Range<usize>) -> Vec<Result<SegmentSlots>> {
        read_numbers(self.store, &self.manifest, numbers)
    }

    /// Returns the full segment alone, if the segment has a delta: of use where the delta is damaged.
    pub(crate) fn without_delta(&self, number: usize) -> Option<(Segment, SegmentSlots)> {
        let names = self.manifest.segment(number).ok()?;
        let alone = Segment {
            delta: NodeId::ZERO,
            ..names
        };
        if alone == names {
            return None;
        }
        let count = self.manifest.slots_in(number);
        let read = read_segments(self.store, &[(alone, count)]).pop()?.ok()?;
        Some((alone, read))
    }

    /// Returns the root and the pages that were read and proved.
    pub(crate) fn proved(&self) -> HashSet<NodeId> {
        self.manifest.good_pages().chain([self.id]).collect()
    }
}
