//! Finds everything that the backups of an encrypted repository name, without its key: by the roots that stand beside each
//! sealed record, and by the heads of nodes (`manifest.rs`).
//!
//! Nothing of it is proved, because only the holder of the key can. A head that does not fit its body makes its own backup
//! unreadable; whoever could put it there has the key, or is the one who keeps the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;

use super::{BATCH_PAGES, Groups, each_group, mark_all};
use crate::error::{Error, Result};
use crate::id::NodeId;
use crate::manifest::{Head, Kind, PAGE_SEGMENTS, Page, damaged};
use crate::store::checked::nodes;
use crate::store::encrypted::roots_below;
use crate::store::{Live, Record, StoreReader};

/// Pairs of a full segment and its delta that are held at once, about 100 bytes each. If there may be more, the pages are read
/// several times.
const MAX_PAIRS: usize = 2 << 20;

/// Like [`super::mark`], for the store below an encrypted one.
pub fn mark_sealed(store: &dyn StoreReader, records: &[Record], threads: usize, cancel: &AtomicBool) -> Result<Live> {
    let mut roots = BTreeSet::new();
    for record in records {
        roots.extend(roots_below(&record.bytes).ok_or_else(|| Error::CantTellUnused {
            what: format!("the sealed record {} is cut off", record.key),
        })?);
    }
    let roots: Vec<_> = roots.into_iter().collect();
    mark_all(store, threads, cancel, &|node, each| {
        each_group(store, threads, cancel, node, each, &head_of, |groups| {
            walk(store, &roots, groups)
        })
    })
}

/// Hands out all segments.
fn walk(store: &dyn StoreReader, roots: &[NodeId], mut groups: Groups<'_>) -> Result<()> {
    let mut pages: BTreeSet<NodeId> = BTreeSet::new();
    each_head(store, roots, Kind::Root, &mut |id, head| {
        groups.node(id);
        pages.extend(head.names.into_iter().map(NodeId));
    })?;
    let pages: Vec<_> = pages.into_iter().collect();
    pages.iter().for_each(|page| groups.node(*page));
    let turns = (pages.len() * PAGE_SEGMENTS).div_ceil(MAX_PAIRS);
    for turn in 0..turns {
        let is_due = |full: &NodeId| (usize::from(full.0[0]) << 8 | usize::from(full.0[1])) % turns == turn;
        let mut found: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        each_head(store, &pages, Kind::Page, &mut |_, head| {
            for pair in Page::pairs(&head).into_iter().filter(|pair| is_due(&pair.full)) {
                found.entry(pair.full).or_default().insert(pair.delta);
            }
        })?;
        found.into_iter().try_for_each(|group| groups.add(group))?;
    }
    groups.send()
}

/// Gives the heads of nodes of one kind.
fn each_head(store: &dyn StoreReader, ids: &[NodeId], kind: Kind, each: &mut dyn FnMut(NodeId, Head)) -> Result<()> {
    for ids in ids.chunks(BATCH_PAGES) {
        for (&id, bytes) in ids.iter().zip(nodes(store, ids)) {
            match head_of(id, &bytes?)? {
                head if head.kind == kind => each(id, head),
                _ => return Err(damaged(id, "another kind of node has this name")),
            }
        }
    }
    Ok(())
}

fn head_of(id: NodeId, bytes: &[u8]) -> Result<Head> {
    let head = Head::split(bytes).map(|(head, _)| head);
    head.ok_or_else(|| damaged(id, "it is of an unknown kind or version, or cut off"))
}
