//! Finds everything that the backups of an encrypted repository name, without its key: by the roots that stand beside each
//! sealed record, and by the heads of nodes (`manifest.rs`).
//!
//! Nothing of it is proved, because only the holder of the key can. A head that does not fit its body makes its own backup
//! unreadable; whoever could put it there has the key, or is the one who keeps the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{BATCH_NODES, BATCH_PAGES, Group, blocks_of, mark_all, nodes_of};
use crate::error::{Error, Result};
use crate::id::{BlockId, NodeId};
use crate::manifest::{Head, Kind, PAGE_SEGMENTS, Page, damaged};
use crate::pool;
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
    mark_all(store, cancel, &|node, each| {
        each_segment(store, &roots, threads, cancel, node, each)
    })
}

fn each_segment(
    store: &dyn StoreReader,
    roots: &[NodeId],
    threads: usize,
    cancel: &AtomicBool,
    node: &mut dyn FnMut(NodeId),
    each: &(dyn Fn(&[BlockId]) -> Result<()> + Sync),
) -> Result<()> {
    let hand_out = |send: &mut dyn FnMut(Vec<Group>) -> bool| {
        let mut pages: BTreeSet<NodeId> = BTreeSet::new();
        each_head(store, roots, Kind::Root, &mut |id, head| {
            node(id);
            pages.extend(head.names.into_iter().map(NodeId));
        })?;
        let pages: Vec<_> = pages.into_iter().collect();
        pages.iter().for_each(|page| node(*page));
        let turns = (pages.len() * PAGE_SEGMENTS).div_ceil(MAX_PAIRS);
        for turn in 0..turns {
            let is_due = |full: &NodeId| (usize::from(full.0[0]) << 8 | usize::from(full.0[1])) % turns == turn;
            let mut groups: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
            each_head(store, &pages, Kind::Page, &mut |_, head| {
                for pair in Page::pairs(&head).into_iter().filter(|pair| is_due(&pair.full)) {
                    groups.entry(pair.full).or_default().insert(pair.delta);
                }
            })?;
            let mut batch: Vec<Group> = Vec::new();
            let mut held = 0;
            for group in groups {
                nodes_of(&group).for_each(&mut *node);
                held += nodes_of(&group).count();
                batch.push(group);
                if held >= BATCH_NODES {
                    held = 0;
                    // A thread that fails leaves its own error, which counts.
                    if cancel.load(Ordering::SeqCst) || !send(std::mem::take(&mut batch)) {
                        return Err(Error::Interrupted);
                    }
                }
            }
            if !send(batch) {
                return Err(Error::Interrupted);
            }
        }
        Ok(())
    };
    pool::feed("vbk-mark", threads, 2 * threads, hand_out, &|batch: Vec<_>| {
        blocks_of(store, &batch, &head_of, each)
    })
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
