//! Copies images between repositories that name things alike: the nodes of manifests stay as they are.

use std::collections::HashSet;

use super::blocks::{Fault, Mover, Piece, Task};
use crate::backup::Backup;
use crate::block::{BlockIndex, Hashing};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, NodeId};
use crate::manifest::{Delta, Manifest, PAGE_SEGMENTS, Page, Root, SEGMENT_SLOTS, Segment, SegmentSlots, damaged};
use crate::slots::{read_manifests, read_segments};
use crate::store::StoreReader;

/// Segments that are read in one call.
const SEGMENTS_AT_ONCE: usize = 16;

/// Names of segments and pages that are remembered, about 100 bytes each.
const MAX_KNOWN: usize = 200_000;

/// Blocks of one backup that are remembered as handed out.
const MAX_HANDED_OUT: usize = 200_000;

/// Parts of manifests of which the other store has everything.
#[derive(Debug, Default)]
pub(super) struct Known {
    pages: HashSet<NodeId>,
    segments: HashSet<Segment>,
    /// Backups whose parts are in here.
    backups: HashSet<String>,
}

impl Known {
    /// Learns what a backup has that is stored there. Damaged parts are left out.
    pub(super) fn learn(&mut self, store: &dyn StoreReader, backup: &Backup) -> Result<()> {
        if !self.backups.insert(backup.spec()) {
            return Ok(());
        }
        let roots: Vec<_> = backup.stored().map(|image| image.manifest).collect();
        for manifest in read_manifests(store, &roots) {
            match manifest {
                Ok(manifest) => {
                    self.pages.extend(manifest.good_pages());
                    self.segments.extend(segments_of(&manifest).map(|(_, segment)| segment));
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Adds what was copied for a backup.
    fn add(&mut self, backup: &Backup, new: New) {
        match self.pages.len() + self.segments.len() + new.segments.len() > MAX_KNOWN {
            true => self.forget(),
            false => _ = self.backups.insert(backup.spec()),
        }
        self.pages.extend(new.pages);
        self.segments.extend(new.segments);
    }

    /// Starts again with nothing.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// Parts of one backup that were not known.
#[derive(Default)]
struct New {
    pages: HashSet<NodeId>,
    segments: HashSet<Segment>,
}

/// Returns the segments of a manifest that are not zeros, with their numbers. Leaves out those of damaged pages.
fn segments_of(manifest: &Manifest) -> impl Iterator<Item = (usize, Segment)> {
    let pages = (0..).zip(manifest.pages()).filter(|(_, page)| **page != NodeId::ZERO);
    let numbers = pages.flat_map(|(page, _)| page * PAGE_SEGMENTS..(page + 1) * PAGE_SEGMENTS);
    let named = numbers.filter_map(|number| Some((number, manifest.segment(number).ok()?)));
    named.filter(|(_, segment)| *segment != Segment::ZERO)
}

/// Puts everything that a backup needs; `manifests` are those of its images.
pub(super) fn copy(
    mover: &Mover<'_>,
    known: &mut Known,
    backup: &Backup,
    manifests: &[Manifest],
) -> std::result::Result<(), Fault> {
    let mut walk = Walk {
        mover,
        hashing: mover.from.hashing(),
        known,
        new: New::default(),
        handed_out: HashSet::new(),
    };
    mover.work(
        |hand_out| {
            for (image, manifest) in backup.stored().zip(manifests) {
                walk.image(image.manifest, manifest, hand_out)?;
            }
            Ok(())
        },
        &|pieces| mover.put(mover.read(&pieces)?),
    )?;
    let new = walk.new;
    known.add(backup, new);
    Ok(())
}

type HandOut<'a> = dyn FnMut(Task<()>) -> std::result::Result<(), Fault> + 'a;

struct Walk<'a> {
    mover: &'a Mover<'a>,
    hashing: Hashing,
    known: &'a Known,
    new: New,
    handed_out: HashSet<BlockId>,
}

impl Walk<'_> {
    fn image(
        &mut self,
        root: NodeId,
        manifest: &Manifest,
        hand_out: &mut HandOut<'_>,
    ) -> std::result::Result<(), Fault> {
        if manifest.block_size() != self.mover.block_size {
            return Err(Fault::Backup(damaged(root, "it gives another block size")));
        }
        let mut nodes = Vec::new();
        let mut unknown = Vec::new();
        for (number, &id) in manifest.pages().iter().enumerate() {
            if id == NodeId::ZERO || self.known.pages.contains(&id) || !self.new.pages.insert(id) {
                continue;
            }
            let start = number * PAGE_SEGMENTS;
            let numbers = manifest.clamp(start..start + PAGE_SEGMENTS);
            let segments: Result<Vec<Segment>> = numbers.clone().map(|number| manifest.segment(number)).collect();
            let segments = segments.map_err(Fault::Backup)?;
            for (number, &segment) in numbers.zip(&segments) {
                let is_known = segment == Segment::ZERO || self.known.segments.contains(&segment);
                if !is_known && self.new.segments.insert(segment) {
                    unknown.push((number, segment));
                }
            }
            nodes.extend(same(id, Page(segments).encode(self.hashing)).map_err(Fault::Backup)?);
        }
        let whole = Root {
            block_size: manifest.block_size(),
            size_bytes: manifest.size_bytes(),
            pages: manifest.pages().to_vec(),
        };
        nodes.extend(same(root, Some(whole.encode(self.hashing))).map_err(Fault::Backup)?);
        hand_out(Task::Nodes(nodes))?;
        for segments in unknown.chunks(SEGMENTS_AT_ONCE) {
            self.segments(manifest, segments, hand_out)?;
        }
        Ok(())
    }

    /// Reads segments, and hands out their nodes and the blocks that the other store lacks.
    fn segments(
        &mut self,
        manifest: &Manifest,
        segments: &[(usize, Segment)],
        hand_out: &mut HandOut<'_>,
    ) -> std::result::Result<(), Fault> {
        let wanted = segments
            .iter()
            .map(|&(number, names)| (names, manifest.slots_in(number)));
        let read = read_segments(self.mover.from, &wanted.collect::<Vec<_>>());
        let mut nodes = Vec::new();
        let mut pieces = Vec::new();
        for (&(number, names), read) in segments.iter().zip(read) {
            let read = read.map_err(Fault::of_source)?;
            nodes.extend(self.nodes(names, &read).map_err(Fault::Backup)?);
            let first = number as u64 * SEGMENT_SLOTS as u64;
            for (index, id) in (first..).zip(&read.slots) {
                let Some(id) = *id else { continue };
                let len = manifest.block_size().len_of(BlockIndex(index), manifest.size_bytes());
                if self.handed_out.insert(id) {
                    pieces.push(Piece { id, len, with: () });
                }
            }
        }
        hand_out(Task::Nodes(nodes))?;
        let ids: Vec<_> = pieces.iter().map(|piece| piece.id).collect();
        let mut missing = self.mover.are_missing(&ids)?.into_iter();
        pieces.retain(|_| missing.next().unwrap_or(true));
        self.mover.sort(&mut pieces)?;
        // One that is forgotten is looked up again, and at worst sent again.
        if self.handed_out.len() > MAX_HANDED_OUT {
            self.handed_out.clear();
        }
        hand_out(Task::Blocks(pieces))
    }

    /// Returns the nodes of a segment that was read.
    fn nodes(&self, names: Segment, read: &SegmentSlots) -> Result<Vec<(NodeId, Vec<u8>)>> {
        let Some(full) = &read.full else {
            return Ok(Vec::new());
        };
        let mut nodes = Vec::from_iter(same(names.full, Some(full.encode(self.hashing)))?);
        if names.delta != NodeId::ZERO {
            let delta = Delta::between(full, &read.slots).map(|delta| delta.encode(self.hashing));
            nodes.extend(same(names.delta, delta)?);
        }
        Ok(nodes)
    }
}

/// Returns a node, which was read and proved, as it is stored: there is one way to write it.
fn same(id: NodeId, node: Option<(NodeId, Vec<u8>)>) -> Result<Option<(NodeId, Vec<u8>)>> {
    match node {
        Some((other, bytes)) if other == id => Ok(Some((id, bytes))),
        _ => Err(Error::NodeDamaged {
            id,
            what: "it is not written as vbk writes it".into(),
        }),
    }
}
