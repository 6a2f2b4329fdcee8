//! Proves that everything that a backup needs is stored, before its record makes it visible: whoever writes the record, a record
//! that names what is not there can't come about.
//!
//! It follows the heads of nodes, which need no key. A part of a disk that did not change since a backup that the writer names
//! is known to be whole, and so are the blocks of a changed part that it named before, so the proof costs what changed, and not
//! what the disk has. It shows that things are there and not that they are good: that is for [`crate::verify`].

use std::collections::{HashMap, HashSet};

use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, NodeId};
use crate::manifest::{Head, Kind, Page, Segment};
use crate::store::StoreReader;

/// Nodes that are read in one call: 2.2 MiB.
const NODES: usize = 64;

/// Blocks that are looked up in one call.
const BLOCKS: usize = 4096;

/// The most missing things that one error names: a caller puts these, and tries again.
const MOST: usize = 100_000;

/// Parts of manifests of which all is stored.
#[derive(Debug, Default)]
pub(super) struct Proved {
    pages: HashSet<NodeId>,
    segments: HashSet<Segment>,
    /// The delta of one of the segments with each full node. Of a segment that has another delta today, the blocks that were in
    /// that one are stored.
    deltas: HashMap<NodeId, NodeId>,
}

impl Proved {
    /// Takes for proved what the manifests of a stored backup name. Damaged parts are left out.
    pub(super) fn trust(&mut self, store: &dyn StoreReader, roots: &[NodeId]) -> Result<()> {
        let (mut skipped, mut pages) = (Missing::default(), Vec::new());
        skipped.read(store, roots, Kind::Root, &mut |_, head| pages.extend(pages_of(&head)))?;
        skipped.read(store, &pages, Kind::Page, &mut |page, head| {
            self.pages.insert(page);
            self.add(Page::pairs(&head));
        })
    }

    fn add(&mut self, segments: impl IntoIterator<Item = Segment>) {
        for segment in segments {
            self.deltas.insert(segment.full, segment.delta);
            self.segments.insert(segment);
        }
    }

    /// Fails with [`Error::Missing`] unless everything below these roots is stored.
    pub(super) fn prove(&mut self, store: &dyn StoreReader, roots: &[NodeId]) -> Result<()> {
        let mut missing = Missing::default();
        let mut pages: Vec<NodeId> = Vec::new();
        missing.read(store, roots, Kind::Root, &mut |_, head| pages.extend(pages_of(&head)))?;
        pages.retain(|page| !self.pages.contains(page));
        pages.sort_unstable();
        pages.dedup();
        let mut segments: Vec<Segment> = Vec::new();
        missing.read(store, &pages, Kind::Page, &mut |_, head| {
            segments.extend(Page::pairs(&head))
        })?;
        segments.retain(|segment| !self.segments.contains(segment));
        segments.sort_unstable();
        segments.dedup();
        for segments in segments.chunks(NODES / 2) {
            missing.look_up(store, segments, &self.deltas)?;
        }
        if missing.nodes.is_empty() && missing.blocks.is_empty() {
            // For the next commit of the same writer.
            self.pages.extend(pages);
            self.add(segments);
            return Ok(());
        }
        Err(Error::Missing {
            blocks: missing.blocks,
            nodes: missing.nodes,
        })
    }
}

fn pages_of(root: &Head) -> impl Iterator<Item = NodeId> {
    root.names.iter().copied().map(NodeId)
}

#[derive(Default)]
struct Missing {
    blocks: Vec<BlockId>,
    nodes: Vec<NodeId>,
}

impl Missing {
    /// Reads nodes of a kind. A damaged node is missing too: putting it again repairs it.
    fn read(
        &mut self,
        store: &dyn StoreReader,
        ids: &[NodeId],
        kind: Kind,
        each: &mut dyn FnMut(NodeId, Head),
    ) -> Result<()> {
        for ids in ids.chunks(NODES) {
            for (id, node) in ids.iter().zip(store.nodes(ids)) {
                let head = match node {
                    Ok(node) => Head::split(&node)
                        .map(|(head, _)| head)
                        .filter(|head| head.kind == kind),
                    Err(error) if error.kind() == ErrorKind::Corrupt => None,
                    Err(error) => return Err(error),
                };
                match head {
                    Some(head) => each(*id, head),
                    None if self.nodes.len() < MOST => self.nodes.push(*id),
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// Looks up the blocks of segments, except for those in the segments with other `deltas`, of which all is stored.
    fn look_up(
        &mut self,
        store: &dyn StoreReader,
        segments: &[Segment],
        deltas: &HashMap<NodeId, NodeId>,
    ) -> Result<()> {
        let fulls = self.heads(store, Kind::Full, segments.iter().map(|segment| segment.full))?;
        let news = self.heads(store, Kind::Delta, segments.iter().map(|segment| segment.delta))?;
        let olds = segments.iter().filter_map(|segment| deltas.get(&segment.full).copied());
        // One that is damaged is of no use, and this backup does not need it.
        let olds = Self::default().heads(store, Kind::Delta, olds)?;
        let mut needed = HashSet::new();
        for segment in segments {
            let new = Delta::of(news.get(&segment.delta));
            let old = deltas.get(&segment.full);
            let old = old.and_then(|old| match *old {
                NodeId::ZERO => Some(Delta::of(None)),
                old => olds.get(&old).map(|head| Delta::of(Some(head))),
            });
            let full = fulls.get(&segment.full).into_iter().flat_map(|full| &full.names);
            let used = full.enumerate().filter(|(number, _)| !new.drops(*number));
            let is_known = |number| old.as_ref().is_some_and(|old| !old.drops(number));
            needed.extend(used.filter(|(number, _)| !is_known(*number)).map(|(_, name)| *name));
            let is_known = |name: &&[u8; 32]| old.as_ref().is_some_and(|old| old.names.contains(*name));
            needed.extend(new.names.iter().filter(|name| !is_known(name)).copied());
        }
        let needed: Vec<_> = needed.into_iter().map(BlockId).collect();
        for ids in needed.chunks(BLOCKS) {
            let located = ids.iter().zip(store.locate(ids)?);
            let missing = located.filter(|(_, located)| located.is_none()).map(|(id, _)| *id);
            let room = MOST - self.blocks.len().min(MOST);
            self.blocks.extend(missing.take(room));
        }
        Ok(())
    }

    fn heads(
        &mut self,
        store: &dyn StoreReader,
        kind: Kind,
        ids: impl Iterator<Item = NodeId>,
    ) -> Result<HashMap<NodeId, Head>> {
        let ids: HashSet<_> = ids.filter(|id| *id != NodeId::ZERO).collect();
        let ids: Vec<_> = ids.into_iter().collect();
        let mut heads = HashMap::new();
        self.read(store, &ids, kind, &mut |id, head| drop(heads.insert(id, head)))?;
        Ok(heads)
    }
}

/// What a delta changes in a full node.
struct Delta<'a> {
    drops: HashSet<u16>,
    names: HashSet<&'a [u8; 32]>,
}

impl<'a> Delta<'a> {
    /// `None` changes nothing.
    fn of(head: Option<&'a Head>) -> Self {
        Self {
            drops: head.iter().flat_map(|head| &head.drops).copied().collect(),
            names: head.iter().flat_map(|head| &head.names).collect(),
        }
    }

    fn drops(&self, number: usize) -> bool {
        u16::try_from(number).is_ok_and(|number| self.drops.contains(&number))
    }
}

#[cfg(test)]
mod tests;
